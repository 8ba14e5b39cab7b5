"""Alice: sends the numbers from 1, in order, until Bob has answered all. Arguments: folder, Bob, count, seconds
between two numbers, hubs.

She keeps at most WINDOW numbers unanswered. When no answer comes for a while, she opens another channel, and sends
again what was not answered: what a program must do that nothing below it does.
"""

import sys
from pathlib import Path

import attrs
import trio

from tests.faults.programs.notes import ACCEPTED, HANDLED, INTENT, Log, read_log
from tests.faults.programs.party import PAUSE, TRY_SECONDS, open_party, open_their_stream
from trionode import Identity, Mailbox, Node, Route, Stream, trust_only
from trionode.errors import RemoteError, UnknownAddressError

#: Numbers that wait for an answer.
WINDOW = 64
#: Seconds without an answer until she opens another channel.
PATIENCE = 3.0


@attrs.define
class Numbers:
    """Which numbers were accepted and are not yet handled, and which comes next."""

    log: Log
    last: int
    pause: float
    following: int = 1
    open: dict[int, None] = attrs.Factory(dict)

    def restore(self, path: Path) -> None:
        """Go on where an earlier process was killed. What it was about to send is sent no more: it may have been."""
        for what, number, _ in read_log(path):
            if what == INTENT:
                self.following = number + 1
            elif what == ACCEPTED:
                self.open[number] = None
            elif what == HANDLED:
                self.open.pop(number, None)

    @property
    def are_done(self) -> bool:
        return self.following > self.last and not self.open


async def converse(node: Node, stream: Stream, identity: Identity, bob: str, numbers: Numbers) -> None:
    """Send over one channel until all is answered, or no answer comes."""
    channel = await node.open_secure_channel(
        Route(stream, "listener"), identity, trust=trust_only(bob), timeout=TRY_SECONDS
    )
    route = Route(channel, "numbers")
    async with node.open_mailbox() as mailbox:
        for number in numbers.open:
            await mailbox.send(route, b"%d" % number)
        while not numbers.are_done:
            while len(numbers.open) < WINDOW and numbers.following <= numbers.last:
                number = numbers.following
                numbers.log.note(INTENT, number)
                numbers.following += 1
                if numbers.pause:
                    await trio.sleep(numbers.pause)
                await mailbox.send(route, b"%d" % number)
                numbers.log.note(ACCEPTED, number)
                numbers.open[number] = None
            if not await _hear(mailbox, numbers):
                break
    await channel.aclose()


async def _hear(mailbox: Mailbox, numbers: Numbers) -> bool:
    with trio.move_on_after(PATIENCE):
        number = int((await mailbox.receive()).payload)
        if number in numbers.open:
            del numbers.open[number]
            numbers.log.note(HANDLED, number)
        return True
    return False


async def main(folder: Path, bob: str, last: int, pause: float, hubs: list[str]) -> None:
    """Send all, over as many channels as it takes."""
    numbers = Numbers(Log(folder / "sent.log"), last, pause)
    numbers.restore(folder / "sent.log")
    async with open_party(folder / "alice.vault") as (node, identity):
        stream = await open_their_stream(node, hubs, sends="alice_to_bob", receives="bob_to_alice", client_id="alice")
        while not numbers.are_done:
            try:
                await converse(node, stream, identity, bob, numbers)
            except (RemoteError, UnknownAddressError):
                await trio.sleep(PAUSE)


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), sys.argv[5:])
