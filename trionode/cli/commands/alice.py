"""`trionode alice`: a secure channel to Bob through two streams.

Lines of input are messages, and their echoes are printed.
"""

import secrets
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from hashlib import sha256

import attrs
import click
import trio

from trionode.channel.secure_channel import SecureChannel
from trionode.cli.options import Client, client_options
from trionode.cli.runner import run_async
from trionode.cli.state import Conversation
from trionode.cli.terminal import Line, Lines, Output, payload_text, printable, say
from trionode.errors import (
    AnswerTimeout,
    ConnectionLost,
    IdentityRefused,
    LocalError,
    MessageTooLargeError,
    UnknownAddressError,
)
from trionode.node.node import CHANNEL_TIMEOUT, Node
from trionode.protocol.identity.identity import Identifier
from trionode.protocol.stream.messages import MAX_RECORD
from trionode.protocol.stream.names import valid_stream_name
from trionode.protocol.wire.message import Message, payload_of
from trionode.protocol.wire.route import Route
from trionode.routing.mailbox import Mailbox
from trionode.stream.client import Stream

#: Seconds after which an echo is reported as missing.
ECHO_SECONDS = 30.0
#: Messages, and their bytes, whose echoes may be outstanding before the next line is read. Alice sends faster than Bob
#: echoes: without a bound she would be half a minute ahead on a long file, and report echoes as missing that are only
#: late.
MAX_OUTSTANDING = 4096
MAX_OUTSTANDING_BYTES = 8 << 20
#: Missing messages that are remembered, so that a late echo is recognised.
MAX_MISSING = 100_000
#: Lines of input before the messages.
ADDRESS_LINES = 2
#: Characters of a message in a report.
EXCERPT = 60


@click.command()
@client_options("Talk only to this identifier, as Bob prints it.")
@click.option(
    "--timeout",
    "seconds",
    type=click.FloatRange(0, min_open=True),
    default=CHANNEL_TIMEOUT,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for the secure channel.",
)
@run_async
async def alice(working: trio.CancelScope, *, client: Client, seconds: float) -> bool:
    """Send lines to Bob, end to end encrypted, and print their echoes.

    Alice reads from standard input: first the two stream addresses that Bob printed, bob_to_alice and then alice_to_bob
    (with --state an empty line means the address of last time), then one message a line. The exit code is 0 if every
    echo arrived.
    """
    output, lines = Output(), Lines()
    trust = client.trust("the peer that answers at the two addresses is trusted as Bob; its identifier is printed")
    async with client.open_node() as (node, identity):
        stream: Stream | None = None
        channel: SecureChannel | None = None
        succeeded = False
        with working:
            own = await client.identifier(identity)
            say(f"Alice is {own}")
            names = await ask_addresses(lines, client.state.conversation())
            stream = await client.open_stream(
                node, identity, names.client_id, sends=names.alice_to_bob, receives=names.bob_to_alice
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
                raise AnswerTimeout(_no_channel(client, names, own, seconds)) from error
            except IdentityRefused as error:
                raise IdentityRefused(f"Bob refuses this identity: start Bob with --trust {own}") from error
            await output.line(
                f"[✓] End-to-end encrypted secure channel was established with {channel.peer.identifier}."
            )
            say("Type one message a line; Ctrl-D ends.")
            succeeded = await converse(node, channel, own, lines, output)
        if channel is not None:
            await channel.aclose()
        if stream is not None:
            await stream.aclose()
    return succeeded


def _no_channel(client: Client, names: Conversation, own: Identifier, seconds: float) -> str:
    return (
        f"no secure channel within {seconds:g} s: no peer completed a handshake through the streams {names.alice_to_bob} and "
        f"{names.bob_to_alice} on the hub {' or '.join(client.hubs)}. Check that both addresses are those that `trionode bob` printed, and that "
        f"Bob runs at the same hub. Bob may also refuse this identity, which looks the same from here: then start Bob with --trust {own}"
    )


async def ask_addresses(lines: AsyncIterator[Line], stored: Conversation | None) -> Conversation:
    """Ask for Bob's two stream addresses; LocalError if they are not valid, or in the wrong order."""
    to_alice = await _ask_address(lines, "bob_to_alice", stored.bob_to_alice if stored else None)
    to_bob = await _ask_address(lines, "alice_to_bob", stored.alice_to_bob if stored else None)
    if to_alice == to_bob or to_alice.startswith("alice_to_bob") or to_bob.startswith("bob_to_alice"):
        raise LocalError(
            f"expected the bob_to_alice address and then the alice_to_bob address, as `trionode bob` prints them, and got "
            f"{to_alice} and {to_bob}: give both, in this order"
        )
    return Conversation(stored.client_id if stored else secrets.token_hex(16), to_alice, to_bob)


async def _ask_address(lines: AsyncIterator[Line], name: str, stored: str | None) -> str:
    say(f"Enter the {name} stream address{f', or an empty line for {stored}' if stored else ''}:")
    line = await anext(lines, None)
    if line is None:
        raise LocalError(
            f"standard input ended before the {name} stream address: give it the two lines that `trionode bob` printed"
        )
    # The whole line that Bob printed is accepted, too.
    text = line.content.decode(errors="replace").rpartition(":")[2].strip()
    if not text and stored:
        return stored
    if not valid_stream_name(text):
        raise LocalError(
            f"{printable(text[:EXCERPT])!r} is not a {name} stream address: expected what `trionode bob` prints, such as {name}_ and 32 hex digits"
        )
    return text


@attrs.define(eq=False)
class _Sent:
    """A message whose echo is outstanding. Only the hash and the beginning of its payload are stored."""

    number: int
    excerpt: str
    digest: bytes
    size: int
    deadline: float
    outstanding: bool = True


class Echoes:
    """The messages whose echoes are outstanding. An echo belongs to the oldest message with the same payload."""

    def __init__(self) -> None:
        #: Messages that were reported as missing, and whose echoes have not come since.
        self.missing = 0
        #: Echoes that have arrived.
        self.count = 0
        #: Messages whose echoes are outstanding.
        self.outstanding = 0
        # The first event is set and replaced when the number falls, the other is set when it rises.
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
        self.outstanding += 1
        self._bytes += sent.size
        self._more.set()

    def arrived(self, message: Message) -> str | None:
        """Count an echo. Return a remark if it is unusual."""
        digest = sha256(message.payload).digest()
        if digest in self._by_digest:
            self.count += 1
            self._remove(self._by_digest[digest][0])
            return None
        if digest not in self._late:
            return "Bob sent a message that Alice never sent, or a second echo of one"
        self._late[digest] -= 1
        if not self._late[digest]:
            del self._late[digest]
        self.missing -= 1
        self.count += 1
        return "this echo arrived late"

    def _remove(self, sent: _Sent) -> None:
        same = self._by_digest[sent.digest]
        same.popleft()
        if not same:
            del self._by_digest[sent.digest]
        sent.outstanding = False
        self.outstanding -= 1
        self._bytes -= sent.size
        while self._in_order and not self._in_order[0].outstanding:
            self._in_order.popleft()
        self._fewer.set()
        self._fewer = trio.Event()

    def overdue(self) -> list[_Sent]:
        """Stop waiting for the echoes whose deadline is over, and return their messages."""
        overdue: list[_Sent] = []
        while self._in_order and self._in_order[0].deadline <= trio.current_time():
            sent = self._in_order[0]
            overdue.append(sent)
            self._late[sent.digest] = self._late.get(sent.digest, 0) + 1
            self.missing += 1
            self._remove(sent)
            if len(self._late) > MAX_MISSING:
                self._late.popitem(last=False)
        return overdue

    async def next_deadline(self) -> float:
        """Wait until an echo is outstanding, and return its deadline."""
        while not self._in_order:
            self._more = trio.Event()
            await self._more.wait()
        return self._in_order[0].deadline

    async def wait_for_capacity(self) -> None:
        """Wait until one more echo may be outstanding."""
        while self.outstanding >= MAX_OUTSTANDING or self._bytes >= MAX_OUTSTANDING_BYTES:
            await self._fewer.wait()

    async def wait_until_none(self) -> None:
        """Wait until no echo is outstanding."""
        while self.outstanding:
            await self._fewer.wait()


async def converse(
    node: Node, channel: SecureChannel, own: Identifier, lines: AsyncIterator[Line], output: Output
) -> bool:
    """Send every line and print every echo as soon as possible.

    Return whether every line was sent, and every echo arrived.

    ConnectionLost if the channel ends meanwhile, AnswerTimeout if no echo at all has come.
    """
    echoes = Echoes()
    async with node.open_mailbox() as mailbox, trio.open_nursery() as nursery:
        nursery.start_soon(_print_echoes, mailbox, echoes, output)
        nursery.start_soon(_report_missing, echoes)
        nursery.start_soon(_watch, channel, echoes)
        refused = await _send_lines(mailbox, Route(channel, "echoer"), lines, echoes)
        await echoes.wait_until_none()
        nursery.cancel_scope.cancel()
    if echoes.missing and not echoes.count:
        raise AnswerTimeout(
            f"sent {echoes.missing} messages to the echoer of {channel.peer.identifier}, and no echo arrived within {ECHO_SECONDS:g} s. Bob may have "
            f"stopped, or refuse this identity, which looks the same from here: then start Bob with --trust {own}"
        )
    if refused or echoes.missing:
        say(f"{echoes.missing} echoes are missing, and {refused} lines were not sent")
    return not refused and not echoes.missing


async def _send_lines(mailbox: Mailbox, route: Route, lines: AsyncIterator[Line], echoes: Echoes) -> int:
    """Send all lines, and return the number of lines that could not be sent."""
    refused = 0
    async for line in lines:
        await echoes.wait_for_capacity()
        number = line.number - ADDRESS_LINES
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
                f"message {number} was not sent: {'it is not UTF-8' if isinstance(error, UnicodeDecodeError) else error}"
            )
        except UnknownAddressError:
            await trio.sleep_forever()  # the channel has just ended, and `_watch` raises
        else:
            echoes.sent(number, text)
    return refused


async def _print_echoes(mailbox: Mailbox, echoes: Echoes, output: Output) -> None:
    async for message in mailbox:
        # Print first: everything ends when the last echo is counted.
        await output.line(f"Alice received an echo: {payload_text(message)}")
        remark = echoes.arrived(message)
        if remark is not None:
            say(f"{remark}: {payload_text(message)[:EXCERPT]}")


async def _report_missing(echoes: Echoes) -> None:
    while True:
        await trio.sleep_until(await echoes.next_deadline())
        for sent in echoes.overdue():
            say(f"no echo within {ECHO_SECONDS:g} s of message {sent.number}: {sent.excerpt}")


async def _watch(channel: SecureChannel, echoes: Echoes) -> None:
    await channel.closed.wait()
    raise ConnectionLost(
        f"the secure channel with {channel.peer.identifier} has ended, as when Bob stops, and {echoes.outstanding + echoes.missing} echoes have not come: "
        f"start `trionode alice` again when Bob runs"
    )
