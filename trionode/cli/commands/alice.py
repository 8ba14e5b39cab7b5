"""`trionode alice`: a secure channel to Bob through two streams, lines of input as messages, and their echoes as they arrive."""

import secrets
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from functools import partial
from hashlib import sha256

import attrs
import click
import trio

from trionode.channel.secure_channel import SecureChannel
from trionode.cli.options import Client, client_options
from trionode.cli.runner import run
from trionode.cli.state import Conversation
from trionode.cli.terminal import Line, Lines, Output, payload_text, printable, say
from trionode.errors import AnswerTimeout, ConnectionLost, LocalError, MessageTooLargeError, UnknownAddressError
from trionode.node.node import CHANNEL_TIMEOUT, Node
from trionode.protocol.identity.identity import Identifier
from trionode.protocol.stream import MAX_RECORD, valid_stream_name
from trionode.protocol.wire.message import Message, payload_of
from trionode.protocol.wire.route import Route
from trionode.routing.mailbox import Mailbox
from trionode.stream.client import Stream

#: Seconds after which an echo is called missing.
ECHO_SECONDS = 30.0
#: Messages, and their bytes, whose echoes may be awaited before the next line is read: without a bound Alice, who sends faster than Bob echoes,
#: would be half a minute ahead of him on a long file, and call echoes missing that only wait their turn.
MAX_AWAITED = 4096
MAX_AWAITED_BYTES = 8 << 20
#: Missing messages that are remembered, so that an echo which comes late is known for what it is.
MAX_MISSING = 100_000
#: Lines of input before the messages.
ADDRESSES = 2
#: Characters of a message that are shown where it is called missing.
EXCERPT = 60


@click.command()
@client_options("Bob's identifier, as he prints it: talk to him and nobody else.")
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=CHANNEL_TIMEOUT,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for the secure channel.",
)
def alice(*, client: Client, timeout: float) -> None:
    """Send lines to Bob, end to end encrypted, and print their echoes.

    Alice reads from standard input: first the two stream addresses that Bob printed, bob_to_alice and then alice_to_bob (with --state an
    empty line means the one of last time), then one message a line. She exits with 0 if every echo came.
    """
    run(partial(_alice, client, timeout))


async def _alice(client: Client, seconds: float, working: trio.CancelScope) -> bool:
    output, lines = Output(), Lines()
    trust = client.trust("whoever answers at the two addresses is taken for Bob; his identifier is shown")
    async with client.open_node() as (node, identity):
        stream: Stream | None = None
        channel: SecureChannel | None = None
        well = False
        with working:
            who = await client.identifier(identity)
            say(f"Alice is {who}")
            names = await ask_addresses(lines, client.state.conversation())
            stream = await node.open_stream(
                client.ways(node, identity),
                sends=names.alice_to_bob,
                receives=names.bob_to_alice,
                client_id=names.client_id,
                protocol_version=client.protocol_version,
            )
            client.state.keep(names)
            try:
                channel = await node.open_secure_channel(
                    Route(stream, "listener"),
                    identity,
                    trust=trust,
                    timeout=seconds,
                    protocol_version=client.protocol_version,
                )
            except AnswerTimeout as error:
                raise AnswerTimeout(_silence(client, names, who, seconds)) from error
            await output.line(
                f"[✓] End-to-end encrypted secure channel was established with {channel.peer.identifier}."
            )
            say("Now one message a line; Ctrl-D ends.")
            well = await converse(node, channel, who, lines, output)
        if channel is not None:
            await channel.aclose()
        if stream is not None:
            await stream.aclose()
    return well


def _silence(client: Client, names: Conversation, who: Identifier, seconds: float) -> str:
    return (
        f"no secure channel within {seconds:g} s: nobody completed a handshake through the streams {names.alice_to_bob} and "
        f"{names.bob_to_alice} on the hub {' or '.join(client.hubs)}. See that both addresses are the ones that `trionode bob` printed and that "
        f"he runs, at the same hub; he may also refuse this identity, which looks the same from here: then he needs --trust {who}"
    )


async def ask_addresses(lines: AsyncIterator[Line], kept: Conversation | None) -> Conversation:
    """Ask for Bob's two stream addresses; LocalError for what can't be addresses, or can't be his."""
    to_alice = await _ask_address(lines, "bob_to_alice", kept.bob_to_alice if kept else None)
    to_bob = await _ask_address(lines, "alice_to_bob", kept.alice_to_bob if kept else None)
    if to_alice == to_bob or to_alice.startswith("alice_to_bob") or to_bob.startswith("bob_to_alice"):
        raise LocalError(
            f"expected the bob_to_alice address and then the alice_to_bob address, as `trionode bob` prints them, and got "
            f"{to_alice} and {to_bob}: give both, in this order"
        )
    return Conversation(kept.client_id if kept else secrets.token_hex(16), to_alice, to_bob)


async def _ask_address(lines: AsyncIterator[Line], name: str, kept: str | None) -> str:
    say(f"Enter the {name} stream address{f', or an empty line for {kept}' if kept else ''}:")
    line = await anext(lines, None)
    if line is None:
        raise LocalError(
            f"standard input ended before the {name} stream address: give it the two lines that `trionode bob` printed"
        )
    # The whole line that Bob printed is as good as the address in it.
    text = line.content.decode(errors="replace").rpartition(":")[2].strip()
    if not text and kept:
        return kept
    if not valid_stream_name(text):
        raise LocalError(
            f"{printable(text[:EXCERPT])!r} is no {name} stream address: expected what `trionode bob` prints, such as {name}_ and 32 hex digits"
        )
    return text


@attrs.define(eq=False)
class _Sent:
    """A message whose echo is awaited; of its payload only the hash is kept, and how it begins."""

    number: int
    excerpt: str
    digest: bytes
    size: int
    deadline: float
    awaited: bool = True


class Echoes:
    """Which messages still want their echoes: an echo belongs to the oldest message with the same payload."""

    def __init__(self) -> None:
        #: Messages that were called missing and whose echoes have not come since.
        self.missing = 0
        #: Echoes that have come.
        self.came = 0
        #: Messages whose echoes are awaited.
        self.awaited = 0
        # The first is set, and made anew, whenever fewer are awaited than before, the other when more are.
        self._fewer = trio.Event()
        self._more = trio.Event()
        self._bytes = 0
        self._in_order: deque[_Sent] = deque()
        self._by_digest: dict[bytes, deque[_Sent]] = {}
        self._late: OrderedDict[bytes, int] = OrderedDict()

    def sent(self, number: int, text: str) -> None:
        """Remember a message that has just been sent."""
        payload = payload_of(text)
        digest = sha256(payload).digest()
        sent = _Sent(number, printable(text[:EXCERPT]), digest, len(payload), trio.current_time() + ECHO_SECONDS)
        self._in_order.append(sent)
        self._by_digest.setdefault(digest, deque()).append(sent)
        self.awaited += 1
        self._bytes += sent.size
        self._more.set()

    def arrived(self, message: Message) -> str | None:
        """Take an echo; what is to be said of it, if anything."""
        digest = sha256(message.payload).digest()
        if digest in self._by_digest:
            self.came += 1
            self._settle(self._by_digest[digest][0])
            return None
        if digest not in self._late:
            return "Bob sent what was never sent to him, or more than one echo of it"
        self._late[digest] -= 1
        if not self._late[digest]:
            del self._late[digest]
        self.missing -= 1
        self.came += 1
        return "this echo came late"

    def _settle(self, sent: _Sent) -> None:
        same = self._by_digest[sent.digest]
        same.popleft()
        if not same:
            del self._by_digest[sent.digest]
        sent.awaited = False
        self.awaited -= 1
        self._bytes -= sent.size
        while self._in_order and not self._in_order[0].awaited:
            self._in_order.popleft()
        self._fewer.set()
        self._fewer = trio.Event()

    def overdue(self) -> list[_Sent]:
        """Give up waiting for the echoes whose time is over; they are returned."""
        overdue: list[_Sent] = []
        while self._in_order and self._in_order[0].deadline <= trio.current_time():
            sent = self._in_order[0]
            overdue.append(sent)
            self._late[sent.digest] = self._late.get(sent.digest, 0) + 1
            self.missing += 1
            self._settle(sent)
            if len(self._late) > MAX_MISSING:
                self._late.popitem(last=False)
        return overdue

    async def next_deadline(self) -> float:
        """Wait until an echo is awaited; when its time is over."""
        while not self._in_order:
            self._more = trio.Event()
            await self._more.wait()
        return self._in_order[0].deadline

    async def room(self) -> None:
        """Wait until one more may be awaited."""
        while self.awaited >= MAX_AWAITED or self._bytes >= MAX_AWAITED_BYTES:
            await self._fewer.wait()

    async def none(self) -> None:
        """Wait until no more are awaited."""
        while self.awaited:
            await self._fewer.wait()


async def converse(
    node: Node, channel: SecureChannel, who: Identifier, lines: AsyncIterator[Line], output: Output
) -> bool:
    """Send every line and print every echo, each as soon as may be; True if in the end every echo has come.

    ConnectionLost if the channel ends meanwhile, AnswerTimeout if in the end not one echo has come.
    """
    echoes = Echoes()
    async with node.open_mailbox() as mailbox, trio.open_nursery() as nursery:
        nursery.start_soon(_print_echoes, mailbox, echoes, output)
        nursery.start_soon(_name_missing, echoes)
        nursery.start_soon(_watch, channel, echoes)
        refused = await _send_lines(mailbox, Route(channel, "echoer"), lines, echoes)
        await echoes.none()
        nursery.cancel_scope.cancel()
    if echoes.missing and not echoes.came:
        raise AnswerTimeout(
            f"sent {echoes.missing} messages to the echoer of {channel.peer.identifier}, and no echo came within {ECHO_SECONDS:g} s. He may have stopped, "
            f"or he refuses this identity, which looks the same from here: then he needs --trust {who}"
        )
    if refused or echoes.missing:
        say(f"in the end {echoes.missing} echoes are missing, and {refused} lines were not sent")
    return not refused and not echoes.missing


async def _send_lines(mailbox: Mailbox, route: Route, lines: AsyncIterator[Line], echoes: Echoes) -> int:
    """Send all lines; how many could not be sent."""
    refused = 0
    async for line in lines:
        await echoes.room()
        number = line.number - ADDRESSES
        if not line.is_whole:
            refused += 1
            say(
                f"message {number} was not sent: it has {line.length} bytes, and a stream carries {MAX_RECORD} with the routes: send it in parts"
            )
            continue
        try:
            text = line.content.decode()
            await mailbox.send(route, text)
        except (MessageTooLargeError, UnicodeDecodeError) as error:
            refused += 1
            say(
                f"message {number} was not sent: {'it is no UTF-8' if isinstance(error, UnicodeDecodeError) else error}"
            )
        except UnknownAddressError:
            await trio.sleep_forever()  # the channel has just ended: whoever watches it says why
        else:
            echoes.sent(number, text)
    return refused


async def _print_echoes(mailbox: Mailbox, echoes: Echoes, output: Output) -> None:
    async for message in mailbox:
        # Printed first: with the last one settled, everything ends.
        await output.line(f"Alice received an echo: {payload_text(message)}")
        remark = echoes.arrived(message)
        if remark is not None:
            say(f"{remark}: {payload_text(message)[:EXCERPT]}")


async def _name_missing(echoes: Echoes) -> None:
    while True:
        await trio.sleep_until(await echoes.next_deadline())
        for sent in echoes.overdue():
            say(f"no echo within {ECHO_SECONDS:g} s of message {sent.number}: {sent.excerpt}")


async def _watch(channel: SecureChannel, echoes: Echoes) -> None:
    await channel.closed.wait()
    raise ConnectionLost(
        f"the secure channel with {channel.peer.identifier} has ended, as when Bob stops, and {echoes.awaited + echoes.missing} echoes have not come: "
        f"start `trionode alice` again once he runs"
    )
