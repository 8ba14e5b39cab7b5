"""The contract of transports as checks that any plugin can run, like `trio.testing.check_two_way_stream`.

The file is long because it is one list: each function is one promise, and the order is that of `CHECKS`.
"""

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial

import attrs
import trio
import trio.testing

from trionode.errors import ConnectionLost, LocalError, MessageTooLargeError, RemoteError, WireError
from trionode.net.transport import Link, Transport
from trionode.protocol.wire.address import Address
from trionode.testing.contract import Held, cancelled_after, demand

#: Seconds that one check may take; none of them needs a tenth of it.
LIMIT = 20.0
#: Bytes that a transport may have under way to a peer that does not read: more than the socket buffers of any known
#: system.
CLOGGED = 64 * 1024 * 1024
#: Seconds without a running task after which a sender counts as blocked.
QUIET = 0.05
#: Sends that may seem to work after the peer has disconnected. One of them must fail.
LATE_SENDS = 1000
#: Seconds that `aclose` may take with a peer that does nothing. A node gives it one second and then cancels it.
CLOSING = 3.0
#: Seconds within which a caller's mistake raises: that needs no peer.
PROMPT = 1.0
#: `Harness.small` reads frames of at most so many bytes.
SMALL = 1000
#: Task steps after which an operation is cancelled, from 0 to so many. It ends earlier if the operation is done by
#: then.
STAGES = 40
#: Connects that are cancelled at the same time.
AT_ONCE = 4


@attrs.frozen
class Harness:
    """A transport to check, and the addresses to check it with.

    Attributes:
      transport: The transport, as its class makes it. Its links have to carry frames of 100 000 bytes.
      at: An address to listen at, the text behind `name:`. It has to be free each time, such as "127.0.0.1:0".
      unreachable: An address where nothing listens.
      small: Another transport of the same kind, in the same network, that reads frames of at most SMALL bytes; None if
          there is no such option.
      unopened: What `transport` was before `open`. `run_check` sets it.
    """

    transport: Transport
    at: str
    unreachable: str
    small: Transport | None = None
    unopened: Transport | None = None

    def opened(self, nursery: trio.Nursery) -> "Harness":
        """Return the harness with transports that are opened as a node does it.

        Args:
          nursery: For the tasks of their connections.
        """
        return attrs.evolve(
            self,
            transport=self.transport.open(nursery),
            small=self.small and self.small.open(nursery),
            unopened=self.transport,
        )


#: One promise of the contract. It raises AssertionError, or another error, if the transport breaks it.
Check = Callable[[Harness], Awaitable[None]]


async def check_transport(
    make: Callable[[], Transport], *, at: str, unreachable: str, small: Callable[[], Transport] | None = None
) -> None:
    """Run every check, each with a new transport.

    Args:
      make: Makes the transport.
      at: An address to listen at; it has to be free each time.
      unreachable: An address where nothing listens.
      small: Makes a transport of the same kind that reads frames of at most SMALL bytes.

    Raises:
      AssertionError: A promise is broken. Other errors of the transport are raised as they are, perhaps in a group.

    If cancelled, the check that runs ends.
    """
    for check in CHECKS:
        await run_check(check, Harness(make(), at, unreachable, small() if small else None))


async def run_check(check: Check, harness: Harness) -> None:
    """Run one check, with a nursery for the transport, as a node has it. No task, thread or open file may be left.

    Args:
      check: One of CHECKS.
      harness: What to check.

    Raises:
      AssertionError: The promise is broken, or the check took more than LIMIT seconds.

    If cancelled, the check ends.
    """
    before = Held.now()
    with trio.move_on_after(LIMIT) as scope:
        async with trio.open_nursery() as nursery:
            await check(harness.opened(nursery))
            nursery.cancel_scope.cancel()
    demand(not scope.cancelled_caught, f"{check.__name__.replace('_', ' ')}: still waiting after {LIMIT:g} s")
    before.require_back()


@asynccontextmanager
async def _served(harness: Harness) -> AsyncIterator[tuple[str, trio.MemoryReceiveChannel[Link]]]:
    """Listen; yield the bound address and a channel of accepted links. They are closed at the end."""
    links, accepted = trio.open_memory_channel[Link](1000)

    async def accept(link: Link) -> None:
        links.send_nowait(link)
        try:
            await trio.sleep_forever()
        finally:
            await _abort(link)

    async with trio.open_nursery() as nursery:
        bound = await nursery.start(partial(harness.transport.serve, harness.at, accept))
        yield bound, accepted
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def _pair(harness: Harness, *, dialling: Transport | None = None) -> AsyncIterator[tuple[Link, Link]]:
    """Yield both ends of a new link: the one that connected and the one that was accepted."""
    async with _served(harness) as (bound, accepted):
        client = await (dialling or harness.transport).connect(bound)
        try:
            yield client, await accepted.receive()
        finally:
            await _abort(client)


async def _abort(link: Link) -> None:
    """Close a link at once: `aclose` closes even if it is cancelled."""
    with trio.CancelScope() as scope:
        scope.cancel()
        await link.aclose()


async def _arrive(link: Link, frames: Sequence[bytes]) -> None:
    """Demand that these frames come next, and no others with them."""
    received: list[bytes] = []
    while len(received) < len(frames):
        burst = await link.receive()
        demand(burst, f"{len(frames)} frames were sent, and the link ended after {len(received)}")
        received += burst
    demand(
        received == list(frames), f"frames arrive whole and in order: expected {_shown(frames)}, got {_shown(received)}"
    )


def _shown(frames: Sequence[bytes]) -> str:
    return (
        "["
        + ", ".join(f"{bytes(frame[:10])!r} of {len(frame)} bytes" for frame in frames[:5])
        + ", …" * (len(frames) > 5)
        + "]"
    )


async def _rest(link: Link) -> list[bytes]:
    """Return everything that comes until the end, orderly or not."""
    frames: list[bytes] = []
    with suppress(RemoteError):
        while burst := await link.receive():
            frames += burst
    return frames


def _numbered(i: int) -> bytes:
    return i.to_bytes(8, "big") * 10_000


def _demand_numbered(frames: Sequence[bytes], sent: int) -> None:
    """Demand that these are the first frames that `_blocked_sender` sends."""
    demand(
        len(frames) <= sent and list(frames) == [_numbered(i) for i in range(len(frames))],
        "frames arrive whole, in order, and once, however a link ends",
    )


@asynccontextmanager
async def _blocked_sender(link: Link) -> AsyncIterator[Callable[[], int]]:
    """Send numbered frames for the length of a block, until the peer's buffers are full.

    Yield a function that returns how many were begun.
    """
    begun = 0

    async def send_for_ever() -> None:
        nonlocal begun
        while True:
            demand(begun * len(_numbered(0)) < CLOGGED, "send blocks while the peer does not read")
            begun += 2
            await link.send([_numbered(begun - 2), _numbered(begun - 1)])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_for_ever)
        await trio.testing.wait_all_tasks_blocked(QUIET)
        yield lambda: begun
        nursery.cancel_scope.cancel()


async def _fill(link: Link) -> int:
    """Send numbered frames until the sender blocks, and cancel it. Return how many were begun."""
    async with _blocked_sender(link) as begun:
        pass
    return begun()


async def links_describe_themselves(harness: Harness) -> None:
    """A transport has a name.

    A link has a peer for logs, a protocol version, and a largest frame that this version allows.
    """
    demand(harness.transport.name.isidentifier(), "a transport's name is an identifier")
    async with _pair(harness) as pair:
        for link in pair:
            demand(link.peer, "a link's peer is a text for logs")
            demand(
                0 < link.max_frame <= link.protocol_version.max_sent,
                "a link's max_frame is from 1 to its protocol version's max_sent",
            )


async def frames_arrive_whole_and_in_order_in_both_directions_at_once(harness: Harness) -> None:
    """Frames of all sizes, alone and in bursts, arrive as they were sent. `receive` returns at least one."""
    sizes = (1, 2, 3, 255, 256, 1000, 4096, 65_530, 65_536, 70_000)

    def bursts(seed: int) -> Iterator[list[bytes]]:
        for i in range(60):
            burst = [bytes((seed, i)) * size for size in sizes[: 1 + i % len(sizes)]]
            yield burst[::-1] if i % 2 else burst

    async def send(link: Link, seed: int) -> None:
        for burst in bursts(seed):
            await link.send(burst)

    async def receive(link: Link, seed: int) -> None:
        await _arrive(link, [frame for burst in bursts(seed) for frame in burst])

    async with _pair(harness) as (client, server), trio.open_nursery() as nursery:
        for one, other, seed in ((client, server, 1), (server, client, 2)):
            nursery.start_soon(send, one, seed)
            nursery.start_soon(receive, other, seed)


async def the_largest_frame_arrives_whole(harness: Harness) -> None:
    """A frame of `max_frame` bytes arrives, with others around it."""
    async with _pair(harness) as (client, server), trio.open_nursery() as nursery:
        largest = bytes(range(256)) * (client.max_frame // 256)
        largest += bytes(client.max_frame - len(largest))
        burst = [b"before", largest, b"after"]
        nursery.start_soon(client.send, burst)
        await _arrive(server, burst)


async def a_too_large_frame_is_refused_before_anything_is_sent(harness: Harness) -> None:
    """`send` raises MessageTooLargeError that names the limit.

    Nothing of the burst arrives, and the link stays usable.
    """
    async with _pair(harness) as pair:
        for sender, receiver in (pair, pair[::-1]):
            try:
                with trio.move_on_after(PROMPT):
                    await sender.send([b"small", bytes(sender.max_frame + 1), b"small"])
            except MessageTooLargeError as error:
                demand(
                    str(sender.max_frame) in str(error),
                    "MessageTooLargeError names the largest frame that the link carries",
                )
            else:
                raise AssertionError(
                    "a frame of more than max_frame bytes is refused with MessageTooLargeError, at once"
                )
            await sender.send([b"next"])
            await _arrive(receiver, [b"next"])


async def a_too_large_incoming_frame_ends_the_link(harness: Harness) -> None:
    """A frame larger than the reader takes is WireError at the reader, and no frame follows it.

    Or the sender knows the bound, and `send` refuses it.
    """
    if harness.small is None:
        return
    async with _pair(attrs.evolve(harness, transport=harness.small), dialling=harness.transport) as (client, server):
        await client.send([b"before"])
        await _arrive(server, [b"before"])
        try:
            await client.send([bytes(SMALL + 1), b"after"])
        except MessageTooLargeError:
            return  # both ends know the bound
        try:
            got = await server.receive()
        except WireError:
            return
        demand(
            server.max_frame <= SMALL,
            f"small has to read frames of at most SMALL ({SMALL}) bytes; this one reads {server.max_frame}, "
            "as its links' max_frame says",
        )
        raise AssertionError(
            f"a frame that is larger than its reader takes is a WireError at the reader; it got {_shown(got)}"
        )


async def an_empty_burst_sends_nothing(harness: Harness) -> None:
    """`send` of no frames is a checkpoint, and the peer, for which () is the end, receives nothing."""
    async with _pair(harness) as pair:
        for sender, receiver in (pair, pair[::-1]):
            with trio.testing.assert_checkpoints():
                await sender.send([])
            with trio.move_on_after(0.01):
                raise AssertionError(f"an empty burst sends nothing; it was received as {await receiver.receive()!r}")
            await sender.send(())
            await sender.send([b"x"])
            await _arrive(receiver, [b"x"])


async def the_sender_may_reuse_its_list_and_frames_are_bytes(harness: Harness) -> None:
    """After `send` the caller may change its list, which `send` has not changed. Received frames are `bytes`."""
    async with _pair(harness) as pair:
        for sender, receiver in (pair, pair[::-1]):
            sent = [bytes((i,)) * 1000 for i in range(50)]
            burst = list(sent)
            await sender.send(burst)
            demand(burst == sent, "send does not change the list that it is given")
            burst[:10] = [b"changed"]
            burst.clear()
            received: list[bytes] = []
            while len(received) < len(sent):
                frames = await receiver.receive()
                demand(frames, "a sent frame arrives, even if the sender changes its list afterwards")
                received += frames
            demand(received == sent, "a sent frame arrives, even if the sender changes its list afterwards")
            demand({type(frame) for frame in received} == {bytes}, "frames that are received are bytes")


async def everything_sent_arrives_before_the_orderly_end(harness: Harness) -> None:
    """A sender that closes destroys nothing: the peer reads all frames, then (), and () again."""
    frames = [i.to_bytes(4, "big") * 32 for i in range(5000)]

    async def send_and_close(link: Link) -> None:
        for i in range(0, len(frames), 50):
            await link.send(frames[i : i + 50])
        await link.aclose()

    for turned in (False, True):
        async with _pair(harness) as pair, trio.open_nursery() as nursery:
            sender, receiver = pair[::-1] if turned else pair
            nursery.start_soon(send_and_close, sender)
            await _arrive(receiver, frames)
            for _ in range(2):
                demand(tuple(await receiver.receive()) == (), "behind the last frame is the end, again and again")
            await receiver.aclose()


async def a_link_still_receives_after_send_eof(harness: Harness) -> None:
    """`send_eof` ends one direction, where the transport can, and the other direction goes on."""
    async with _pair(harness) as (client, server):
        await client.send([b"last"])
        await client.send_eof()
        await _arrive(server, [b"last"])
        await server.send([b"still", b"heard"])
        await _arrive(client, [b"still", b"heard"])


async def send_eof_may_be_repeated_late_or_cancelled(harness: Harness) -> None:
    """`send_eof` does nothing the second time, and raises nothing if the peer has disconnected.

    If it is cancelled, the link can still be closed.
    """
    async with _pair(harness) as (client, server):
        await client.send_eof()
        await client.send_eof()
        await _abort(server)
        await client.send_eof()
    async with _pair(harness) as (client, server):
        await _abort(server)
        await _rest(client)
        await client.send_eof()
    async with _pair(harness) as (client, server):
        await client.send([b"last"])
        with trio.CancelScope() as scope:
            scope.cancel()
            await client.send_eof()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.aclose)
            await _arrive(server, [b"last"])
            await _rest(server)
            nursery.start_soon(server.aclose)


async def both_ends_may_close_at_once_and_twice(harness: Harness) -> None:
    """`aclose` does not wait for an answer that will not come. Closing a closed link does nothing."""
    async with _pair(harness) as pair:
        async with trio.open_nursery() as nursery:
            for link in pair:
                nursery.start_soon(link.aclose)
        for link in pair:
            await link.aclose()


async def closing_does_not_need_the_peer(harness: Harness) -> None:
    """If the peer neither reads nor closes, `aclose` returns after a short grace, even if sent bytes are stuck."""

    async def close(link: Link) -> None:
        with trio.move_on_after(CLOSING) as scope:
            await link.aclose()
        demand(not scope.cancelled_caught, f"aclose with a silent peer returns by itself within {CLOSING:g} s")

    async with _served(harness) as (bound, accepted):
        idle = await harness.transport.connect(bound)
        stuck = await harness.transport.connect(bound)
        for _ in range(2):
            await accepted.receive()
        await idle.send([b"unread"])
        await _fill(stuck)
        async with trio.open_nursery() as nursery:
            for link in (idle, stuck):
                nursery.start_soon(close, link)


async def a_cancelled_close_still_closes(harness: Harness) -> None:
    """`aclose` closes even if it is cancelled, before it begins or while it waits. The peer sees the end."""
    for timeout in (0, 0.01):
        for turned in (False, True):
            async with _pair(harness) as pair:
                closed, other = pair[::-1] if turned else pair
                with trio.move_on_after(timeout):
                    await closed.aclose()
                with trio.move_on_after(PROMPT) as scope:
                    await _rest(other)
                demand(not scope.cancelled_caught, "a cancelled close has closed, and its peer sees the end")


async def sending_to_a_peer_that_is_gone_fails(harness: Harness) -> None:
    """`send` raises ConnectionLost, at the latest when the buffers are full.

    Frames that had arrived are still received, and then the end.
    """
    async with _pair(harness) as (left, gone):
        await gone.send([b"last", b"words"])
        await _abort(gone)
        for _ in range(LATE_SENDS):
            try:
                await left.send([b"unread" * 1000])
            except ConnectionLost as error:
                demand(str(error), "ConnectionLost says what happened")
                break
        else:
            raise AssertionError("sending to a peer that has disconnected raises ConnectionLost")
        await _arrive(left, [b"last", b"words"])
        for _ in range(2):
            demand(not await _rest(left), "behind the frames that had arrived is the end, again and again")


async def a_wait_ends_when_the_peer_disconnects(harness: Harness) -> None:
    """A task in `receive` gets the end, and a task that is blocked in `send` gets ConnectionLost."""

    async def send(link: Link) -> None:
        with suppress(ConnectionLost):
            for i in itertools.count():
                await link.send([_numbered(i)])

    for wait in (_rest, send):
        async with _pair(harness) as (client, server):
            with trio.move_on_after(CLOSING) as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(wait, client)
                    await trio.testing.wait_all_tasks_blocked(QUIET)
                    await _abort(server)
            demand(
                not scope.cancelled_caught, f"a task that waits in {wait.__name__} is woken when the peer disconnects"
            )


async def a_broken_connection_leaves_whole_frames(harness: Harness) -> None:
    """If a connection breaks in the middle of a frame, whole frames arrive in order, and then an error or the end."""
    async with _pair(harness) as (client, server):
        sent = await _fill(client)
        await _abort(client)
        _demand_numbered(await _rest(server), sent)
        demand(not await _rest(server), "behind an end comes nothing")


async def a_cancelled_receive_loses_nothing(harness: Harness) -> None:
    """If `receive` is cancelled, at any stage, the next `receive` returns what has come."""
    async with _pair(harness) as (client, server):
        for timeout in (0, 0.01):
            with trio.move_on_after(timeout) as scope:
                await server.receive()
            demand(scope.cancelled_caught, "receive waits for a frame, and can be cancelled")
        for count in range(1, 5):
            frames = [bytes((count,))] * count
            await client.send(frames)
            with trio.CancelScope() as scope:
                scope.cancel()
                await server.receive()
            demand(scope.cancelled_caught, "receive is a checkpoint, also when frames are there")
            await _arrive(server, frames)
        for stage in range(STAGES):
            received: list[bytes] = []

            async def receive(received: list[bytes]) -> None:
                received += await server.receive()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.send, [b"x"])
                cancelled = await cancelled_after(stage, partial(receive, received))
            await client.send([b"y"])
            with trio.move_on_after(PROMPT) as scope:
                await _arrive(server, [b"x", b"y"][len(received) :])
            demand(not scope.cancelled_caught, "the next receive returns what a cancelled receive had taken")
            if not cancelled:
                break


async def every_wait_is_a_checkpoint(harness: Harness) -> None:
    """Every async method is a checkpoint, whether or not it has to wait."""
    async with _served(harness) as (bound, accepted):
        with trio.testing.assert_checkpoints():
            client = await harness.transport.connect(bound)
        server = await accepted.receive()
        with trio.testing.assert_checkpoints():
            await client.send([b"x", b"y"])
        with trio.testing.assert_checkpoints():
            await server.receive()
        with trio.testing.assert_checkpoints():
            await server.send_eof()
        await _abort(server)
        with trio.testing.assert_checkpoints():
            await client.aclose()


async def a_slow_reader_blocks_the_sender(harness: Harness) -> None:
    """The bytes under way are bounded. When the peer reads at last, all frames arrive in order."""
    async with _pair(harness) as (client, server), _blocked_sender(client) as begun:
        blocked_at, received = begun(), 0
        while received < blocked_at + 10:
            frames = await server.receive()
            demand(
                frames and list(frames) == [_numbered(received + i) for i in range(len(frames))],
                "a peer that reads late receives all frames, in order",
            )
            received += len(frames)


async def a_blocked_direction_blocks_nothing_else(harness: Harness) -> None:
    """While one direction of a link is blocked, its other direction and other links of the same listener go on."""
    async with _served(harness) as (bound, accepted):
        links: list[Link] = []
        try:
            for _ in range(2):
                links.append(await harness.transport.connect(bound))
                links.append(await accepted.receive())
            stuck, silent, client, server = links
            async with _blocked_sender(stuck):
                for one, other in ((silent, stuck), (client, server), (server, client)):
                    with trio.move_on_after(PROMPT) as scope:
                        await one.send([b"passes"])
                        await _arrive(other, [b"passes"])
                    demand(not scope.cancelled_caught, "a blocked direction blocks nothing but itself")
        finally:
            for link in links:
                await _abort(link)


async def a_link_can_be_closed_after_a_cancelled_send(harness: Harness) -> None:
    """A blocked `send` can be cancelled.

    The link is broken then, and closes in a short time. Its peer sees whole frames and an end.
    """
    async with _pair(harness) as (client, server):
        sent = await _fill(client)
        with trio.move_on_after(CLOSING) as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.aclose)
                _demand_numbered(await _rest(server), sent)
                nursery.start_soon(server.aclose)
        demand(not scope.cancelled_caught, f"a broken link can be closed within {CLOSING:g} s")


async def links_do_not_mix(harness: Harness) -> None:
    """Many links of one listener work at the same time. Each carries its own frames, and none waits for another."""

    async def talk(bound: str, number: int) -> None:
        link = await harness.transport.connect(bound)
        try:
            for turn in range(10):
                await link.send([bytes((number, turn))])
                await _arrive(link, [bytes((number, turn))])
        finally:
            await _abort(link)

    async def answer(link: Link) -> None:
        while burst := await link.receive():
            await link.send(burst)

    async with _served(harness) as (bound, accepted), trio.open_nursery() as answers:
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(talk, bound, number)
            for _ in range(20):
                answers.start_soon(answer, await accepted.receive())
        answers.cancel_scope.cancel()


async def the_bound_address_works_in_a_route(harness: Harness) -> None:
    """The address that `serve` reports can be dialed several times, and can be written in a route."""
    async with _served(harness) as (bound, accepted):
        name = harness.transport.name
        demand(
            Address.parse(f"{name}:{bound}") == Address(bound, name)
            and "=>" not in bound
            and not any(map(str.isspace, bound)),
            f"the bound address {bound!r} can be written in a route behind {name}:",
        )
        for _ in range(2):
            link = await harness.transport.connect(bound)
            try:
                await accepted.receive()
            finally:
                await _abort(link)


async def an_unreachable_address_is_connection_lost(harness: Harness) -> None:
    """Connecting where nothing listens raises ConnectionLost that names the address."""
    try:
        link = await harness.transport.connect(harness.unreachable)
    except ConnectionLost as error:
        demand(
            harness.unreachable in str(error), f"the error names the address, {harness.unreachable!r}; it says: {error}"
        )
    else:
        await _abort(link)
        raise AssertionError("connecting where nothing listens raises ConnectionLost")


async def a_cancelled_connect_leaves_no_link(harness: Harness) -> None:
    """If `connect` is cancelled, at any stage, nothing stays open.

    A link that the listener accepted ends, and the listener goes on.
    """
    async with _served(harness) as (bound, accepted):
        for stage in range(STAGES):
            made: list[Link] = []

            async def connect(made: list[Link]) -> None:
                made.append(await harness.transport.connect(bound))

            async def connect_at_once(made: list[Link]) -> None:
                # Several, so that some have disconnected before the listener accepts them.
                async with trio.open_nursery() as nursery:
                    for _ in range(AT_ONCE):
                        nursery.start_soon(connect, made)

            cancelled = await cancelled_after(stage, partial(connect_at_once, made))
            demand(stage or not made, "connect is a checkpoint, and can be cancelled")
            for link in made:
                await _abort(link)
            if not cancelled:
                break
        await trio.testing.wait_all_tasks_blocked(QUIET)
        with suppress(trio.WouldBlock), trio.move_on_after(CLOSING) as scope:
            while True:
                await _rest(accepted.receive_nowait())
        demand(not scope.cancelled_caught, "a connect that was cancelled leaves no link open")
        link = await harness.transport.connect(bound)
        await accepted.receive()
        await _abort(link)


async def links_outlive_their_listener(harness: Harness) -> None:
    """Cancelling a listener does not close the links that it has handed over. The node closes them."""
    links, accepted = trio.open_memory_channel[Link](1)
    scope, over = trio.CancelScope(), trio.Event()

    async def accept(link: Link) -> None:
        links.send_nowait(link)
        await trio.sleep_forever()

    async def listen(*, task_status: trio.TaskStatus[str]) -> None:
        with scope:
            await harness.transport.serve(harness.at, accept, task_status=task_status)
        over.set()

    async with trio.open_nursery() as nursery:
        client = await harness.transport.connect(await nursery.start(listen))
        server = await accepted.receive()
        try:
            scope.cancel()
            await over.wait()
            for one, other in ((client, server), (server, client)):
                await one.send([b"still", b"here"])
                await _arrive(other, [b"still", b"here"])
        finally:
            await _abort(client)
            await _abort(server)


async def a_cancelled_serve_frees_its_address(harness: Harness) -> None:
    """If `serve` is cancelled, at any stage of its start, the next listener gets the address."""

    async def accept(link: Link) -> None:
        await _abort(link)

    async def listen_once(at: str) -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(harness.transport.serve, at, accept))
            nursery.cancel_scope.cancel()

    async with _served(harness) as (bound, _):
        pass
    for stage in range(STAGES):
        cancelled = await cancelled_after(stage, partial(listen_once, bound))
        await listen_once(bound)
        if not cancelled:
            break


async def an_address_in_use_is_refused_and_free_again(harness: Harness) -> None:
    """A second listener at an address raises LocalError that names it.

    When the first has ended, the address is unreachable, and free.
    """

    async def accept(link: Link) -> None:
        await _abort(link)

    async with _served(harness) as (bound, _), trio.open_nursery() as nursery:
        try:
            await nursery.start(partial(harness.transport.serve, bound, accept))
        except LocalError as error:
            demand(bound in str(error), f"the error names the address, {bound!r}; it says: {error}")
        else:
            nursery.cancel_scope.cancel()
            raise AssertionError("a second listener at one address raises LocalError")
    await an_unreachable_address_is_connection_lost(attrs.evolve(harness, unreachable=bound))
    async with _served(attrs.evolve(harness, at=bound)) as (again, accepted):
        demand(again == bound, "an address that is free again is reported as before")
        link = await harness.transport.connect(bound)
        await accepted.receive()
        await _abort(link)


async def tasks_end_with_the_nursery(harness: Harness) -> None:
    """When the nursery of `open` is cancelled, the transport's tasks end in a short time.

    A link that is still open can be closed.
    """
    assert harness.unopened is not None
    async with trio.open_nursery() as nursery:
        own = attrs.evolve(harness, transport=harness.unopened.open(nursery))
        async with _served(own) as (bound, accepted):
            client = await own.transport.connect(bound)
            await accepted.receive()
        began = trio.current_time()
        nursery.cancel_scope.cancel()
    demand(
        trio.current_time() - began < CLOSING,
        f"a transport's tasks end within {CLOSING:g} s after their nursery is cancelled",
    )
    await _abort(client)


async def one_transport_serves_several_nodes(harness: Harness) -> None:
    """`open` may be called for several nodes. When one of them ends, the links of the others go on."""
    assert harness.unopened is not None
    async with trio.open_nursery() as nursery, _served(harness) as (bound, accepted):
        own = harness.unopened.open(nursery)
        async with trio.open_nursery() as ending:
            other = harness.unopened.open(ending)
            client, ended = await own.connect(bound), await other.connect(bound)
            server = await accepted.receive()
            await accepted.receive()
            await _abort(ended)
            ending.cancel_scope.cancel()
        try:
            await client.send([b"still here"])
            await _arrive(server, [b"still here"])
        finally:
            await _abort(client)
        nursery.cancel_scope.cancel()


CHECKS: tuple[Check, ...] = (
    links_describe_themselves,
    frames_arrive_whole_and_in_order_in_both_directions_at_once,
    the_largest_frame_arrives_whole,
    a_too_large_frame_is_refused_before_anything_is_sent,
    a_too_large_incoming_frame_ends_the_link,
    an_empty_burst_sends_nothing,
    the_sender_may_reuse_its_list_and_frames_are_bytes,
    everything_sent_arrives_before_the_orderly_end,
    a_link_still_receives_after_send_eof,
    send_eof_may_be_repeated_late_or_cancelled,
    both_ends_may_close_at_once_and_twice,
    closing_does_not_need_the_peer,
    a_cancelled_close_still_closes,
    sending_to_a_peer_that_is_gone_fails,
    a_wait_ends_when_the_peer_disconnects,
    a_broken_connection_leaves_whole_frames,
    a_cancelled_receive_loses_nothing,
    every_wait_is_a_checkpoint,
    a_slow_reader_blocks_the_sender,
    a_blocked_direction_blocks_nothing_else,
    a_link_can_be_closed_after_a_cancelled_send,
    links_do_not_mix,
    the_bound_address_works_in_a_route,
    an_unreachable_address_is_connection_lost,
    a_cancelled_connect_leaves_no_link,
    links_outlive_their_listener,
    a_cancelled_serve_frees_its_address,
    an_address_in_use_is_refused_and_free_again,
    tasks_end_with_the_nursery,
    one_transport_serves_several_nodes,
)
