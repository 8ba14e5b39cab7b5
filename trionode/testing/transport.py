"""The contract of transports as checks that any plugin can run against itself, in the manner of `trio.testing.check_two_way_stream`."""

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
#: Bytes that a transport may have on their way to a peer that doesn't read: more than the socket buffers of any system that we know.
CLOGGED = 64 * 1024 * 1024
#: Seconds without any task running after which a sender counts as blocked.
QUIET = 0.05
#: Sends that may still seem to work after the peer has gone, before one of them must fail.
LATE_SENDS = 1000
#: Seconds that `aclose` may take with a peer that does nothing: its node gives it one, and cancels it then.
CLOSING = 3.0
#: Seconds within which a mistake of the caller's is answered: it needs no peer.
PROMPT = 1.0
#: Bytes in the largest frame that `Ground.small` reads, or fewer.
SMALL = 1000
#: Steps of tasks after which something is cancelled: more than it takes over a local socket, or until it is done.
STAGES = 40
#: Connects that are cancelled together.
AT_ONCE = 4


@attrs.frozen
class Ground:
    """Where a transport is checked: the transport, a place to listen at (a free one each time), and one where nobody listens."""

    #: Its links have to carry frames of 100 000 bytes.
    transport: Transport
    at: str
    nobody: str
    #: Another of its kind, in the same network, that reads frames of at most SMALL bytes; without one, what is too large is sent, never read.
    small: Transport | None = None


#: One promise of the contract; AssertionError or another error if the transport breaks it.
Check = Callable[[Ground], Awaitable[None]]


async def check_transport(
    make: Callable[[], Transport], *, at: str, nobody: str, small: Callable[[], Transport] | None = None
) -> None:
    """Run every check against transports that `make` makes; the first broken promise comes out as AssertionError or another error.

    `at` is where to listen, such as "127.0.0.1:0", and has to be free each time; `nobody` is where nobody listens. `small` makes one of the
    same kind that reads frames of at most SMALL bytes, if there is such an option.
    """
    for check in CHECKS:
        await run_check(check, Ground(make(), at, nobody, small() if small else None))


async def run_check(check: Check, ground: Ground) -> None:
    """Run one check within LIMIT seconds, and see that it leaves no task, no thread and, where the system tells, no open file behind."""
    before = Held.now()
    with trio.move_on_after(LIMIT) as scope:
        await check(ground)
    demand(not scope.cancelled_caught, f"{check.__name__.replace('_', ' ')}: still waiting after {LIMIT:g} s")
    before.require_back()


@asynccontextmanager
async def _served(ground: Ground) -> AsyncIterator[tuple[str, trio.MemoryReceiveChannel[Link]]]:
    """A listener: its bound address, and the links that it accepts, each of which is closed at the end."""
    links, accepted = trio.open_memory_channel[Link](1000)

    async def accept(link: Link) -> None:
        links.send_nowait(link)
        try:
            await trio.sleep_forever()
        finally:
            await _drop(link)

    async with trio.open_nursery() as nursery:
        bound = await nursery.start(partial(ground.transport.serve, ground.at, accept))
        yield bound, accepted
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def _pair(ground: Ground, *, dialling: Transport | None = None) -> AsyncIterator[tuple[Link, Link]]:
    """Both ends of a new link: the one that connected and the one that was accepted."""
    async with _served(ground) as (bound, accepted):
        client = await (dialling or ground.transport).connect(bound)
        try:
            yield client, await accepted.receive()
        finally:
            await _drop(client)


async def _drop(link: Link) -> None:
    """Close a link at once: `aclose` closes even if it is cancelled."""
    with trio.CancelScope() as scope:
        scope.cancel()
        await link.aclose()


async def _arrive(link: Link, frames: Sequence[bytes]) -> None:
    """Demand that these frames are what comes next, and no other with them."""
    received: list[bytes] = []
    while len(received) < len(frames):
        burst = await link.receive()
        demand(burst, f"{len(frames)} frames were sent, and the link ended after {len(received)}")
        received += burst
    demand(
        received == list(frames), f"frames arrive whole and in order: expected {_told(frames)}, got {_told(received)}"
    )


def _told(frames: Sequence[bytes]) -> str:
    return (
        "["
        + ", ".join(f"{bytes(frame[:10])!r} of {len(frame)} bytes" for frame in frames[:5])
        + ", …" * (len(frames) > 5)
        + "]"
    )


async def _rest(link: Link) -> list[bytes]:
    """All that comes until the end, be that orderly or not."""
    frames: list[bytes] = []
    with suppress(RemoteError):
        while burst := await link.receive():
            frames += burst
    return frames


def _numbered(i: int) -> bytes:
    return i.to_bytes(8, "big") * 10_000


def _demand_numbered(frames: Sequence[bytes], sent: int) -> None:
    """Demand that frames are the first of those that `_stuck` sends."""
    demand(
        len(frames) <= sent and list(frames) == [_numbered(i) for i in range(len(frames))],
        "however a link ends, frames arrive whole, in order, and once",
    )


@asynccontextmanager
async def _stuck(link: Link) -> AsyncIterator[Callable[[], int]]:
    """Somebody who sends numbered frames and can't go on, for the length of a block; he is cancelled then. How many he began."""
    begun = 0

    async def send_for_ever() -> None:
        nonlocal begun
        while True:
            demand(begun * len(_numbered(0)) < CLOGGED, "a peer that doesn't read is not sent to without end")
            begun += 2
            await link.send([_numbered(begun - 2), _numbered(begun - 1)])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_for_ever)
        await trio.testing.wait_all_tasks_blocked(QUIET)
        yield lambda: begun
        nursery.cancel_scope.cancel()


async def _clog(link: Link) -> int:
    """Send numbered frames until nothing goes any more, and cancel that; how many were begun."""
    async with _stuck(link) as begun:
        pass
    return begun()


async def links_say_what_they_are(ground: Ground) -> None:
    """A transport has a name, a link a peer to show in logs, a wire, and a largest frame within what the wire allows."""
    demand(ground.transport.name.isidentifier(), "a transport's name is an identifier")
    async with _pair(ground) as pair:
        for link in pair:
            demand(link.peer, "a link's peer is a text for logs")
            demand(
                0 < link.max_frame <= link.protocol_version.max_sent,
                "a link's max_frame is from 1 to its wire's max_sent",
            )


async def frames_arrive_whole_and_in_order_in_both_directions_at_once(ground: Ground) -> None:
    """Frames of all sizes, alone and in bursts, arrive as they were sent; `receive` brings at least one."""
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

    async with _pair(ground) as (client, server), trio.open_nursery() as nursery:
        for one, other, seed in ((client, server, 1), (server, client, 2)):
            nursery.start_soon(send, one, seed)
            nursery.start_soon(receive, other, seed)


async def the_largest_frame_arrives_whole(ground: Ground) -> None:
    """A frame of `max_frame` bytes passes, with others around it."""
    async with _pair(ground) as (client, server), trio.open_nursery() as nursery:
        largest = bytes(range(256)) * (client.max_frame // 256)
        largest += bytes(client.max_frame - len(largest))
        burst = [b"before", largest, b"after"]
        nursery.start_soon(client.send, burst)
        await _arrive(server, burst)


async def a_frame_that_is_too_large_is_refused_before_anything_is_sent(ground: Ground) -> None:
    """MessageTooLargeError that names the limit; nothing of that burst arrives, and the link lives on."""
    async with _pair(ground) as pair:
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


async def a_frame_that_is_too_large_to_read_ends_the_link(ground: Ground) -> None:
    """WireError where the reader's bound is lower than what its peer sends, and after that no frame; or the sender knows, and is refused."""
    if ground.small is None:
        return
    async with _pair(attrs.evolve(ground, transport=ground.small), dialling=ground.transport) as (client, server):
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
            f"small has to read frames of at most SMALL ({SMALL}) bytes; this one reads {server.max_frame}, as its links' max_frame says",
        )
        raise AssertionError(
            f"a frame that is larger than its reader takes is a WireError at the reader; it got {_told(got)}"
        )


async def an_empty_burst_sends_nothing_and_ends_nothing(ground: Ground) -> None:
    """`send` of no frames is a checkpoint, and the peer, to whom () is the end, hears nothing of it."""
    async with _pair(ground) as pair:
        for sender, receiver in (pair, pair[::-1]):
            with trio.testing.assert_checkpoints():
                await sender.send([])
            with trio.move_on_after(0.01):
                raise AssertionError(f"an empty burst sends nothing; it was received as {await receiver.receive()!r}")
            await sender.send(())
            await sender.send([b"x"])
            await _arrive(receiver, [b"x"])


async def a_burst_stays_its_senders_and_frames_are_bytes(ground: Ground) -> None:
    """Once `send` has returned the sender may use its list again; it was not changed, and what arrives is immutable."""
    async with _pair(ground) as pair:
        for sender, receiver in (pair, pair[::-1]):
            sent = [bytes((i,)) * 1000 for i in range(50)]
            burst = list(sent)
            await sender.send(burst)
            demand(burst == sent, "send leaves the list that it is given as it is")
            burst[:10] = [b"changed"]
            burst.clear()
            received: list[bytes] = []
            while len(received) < len(sent):
                frames = await receiver.receive()
                demand(frames, "what was sent arrives, whatever its sender does with his list afterwards")
                received += frames
            demand(received == sent, "what was sent arrives, whatever its sender does with his list afterwards")
            demand({type(frame) for frame in received} == {bytes}, "frames that are received are bytes")


async def all_that_was_sent_arrives_before_the_orderly_end(ground: Ground) -> None:
    """Who sends and closes destroys nothing: the peer reads all of it, then (), and () again."""
    frames = [i.to_bytes(4, "big") * 32 for i in range(5000)]

    async def send_and_close(link: Link) -> None:
        for i in range(0, len(frames), 50):
            await link.send(frames[i : i + 50])
        await link.aclose()

    for turned in (False, True):
        async with _pair(ground) as pair, trio.open_nursery() as nursery:
            sender, receiver = pair[::-1] if turned else pair
            nursery.start_soon(send_and_close, sender)
            await _arrive(receiver, frames)
            for _ in range(2):
                demand(tuple(await receiver.receive()) == (), "behind the last frame is the end, and behind that too")
            await receiver.aclose()


async def a_link_receives_on_after_it_sent_its_end(ground: Ground) -> None:
    """`send_eof` ends one direction, where the transport can, and takes nothing from the other."""
    async with _pair(ground) as (client, server):
        await client.send([b"last"])
        await client.send_eof()
        await _arrive(server, [b"last"])
        await server.send([b"still", b"heard"])
        await _arrive(client, [b"still", b"heard"])


async def an_end_may_be_told_twice_in_vain_and_cancelled(ground: Ground) -> None:
    """`send_eof` a second time, or to a peer that is gone, is nothing and no error; cancelled, the link can still be closed."""
    async with _pair(ground) as (client, server):
        await client.send_eof()
        await client.send_eof()
        await _drop(server)
        await client.send_eof()
    async with _pair(ground) as (client, server):
        await _drop(server)
        await _rest(client)
        await client.send_eof()
    async with _pair(ground) as (client, server):
        await client.send([b"last"])
        with trio.CancelScope() as scope:
            scope.cancel()
            await client.send_eof()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.aclose)
            await _arrive(server, [b"last"])
            await _rest(server)
            nursery.start_soon(server.aclose)


async def both_ends_may_close_at_once_and_twice(ground: Ground) -> None:
    """Closing waits for no answer that will not come, and closing what is closed is nothing."""
    async with _pair(ground) as pair:
        async with trio.open_nursery() as nursery:
            for link in pair:
                nursery.start_soon(link.aclose)
        for link in pair:
            await link.aclose()


async def closing_needs_no_peer_that_listens(ground: Ground) -> None:
    """A peer that neither reads nor closes holds `aclose` up for a short grace only, be what was sent under way or stuck."""

    async def close(link: Link) -> None:
        with trio.move_on_after(CLOSING) as scope:
            await link.aclose()
        demand(not scope.cancelled_caught, f"aclose with a silent peer returns by itself within {CLOSING:g} s")

    async with _served(ground) as (bound, accepted):
        idle = await ground.transport.connect(bound)
        stuck = await ground.transport.connect(bound)
        for _ in range(2):
            await accepted.receive()
        await idle.send([b"unread"])
        await _clog(stuck)
        async with trio.open_nursery() as nursery:
            for link in (idle, stuck):
                nursery.start_soon(close, link)


async def a_cancelled_close_still_closes(ground: Ground) -> None:
    """Cancelled before it begins or while it waits, `aclose` has closed: nothing is sent any more, and the peer sees the end."""
    for timeout in (0, 0.01):
        for turned in (False, True):
            async with _pair(ground) as pair:
                closed, other = pair[::-1] if turned else pair
                with trio.move_on_after(timeout):
                    await closed.aclose()
                with trio.move_on_after(PROMPT) as scope:
                    await _rest(other)
                demand(not scope.cancelled_caught, "a close that was cancelled has closed, and its peer sees the end")


async def sending_to_a_peer_that_is_gone_fails(ground: Ground) -> None:
    """ConnectionLost, at the latest after what the transport can have under way; what had arrived is still received, and then the end."""
    async with _pair(ground) as (left, gone):
        await gone.send([b"last", b"words"])
        await _drop(gone)
        for _ in range(LATE_SENDS):
            try:
                await left.send([b"to nobody" * 1000])
            except ConnectionLost as error:
                demand(str(error), "ConnectionLost says what happened")
                break
        else:
            raise AssertionError("sending to a peer that is gone raises ConnectionLost")
        await _arrive(left, [b"last", b"words"])
        for _ in range(2):
            demand(not await _rest(left), "behind what had arrived is the end, and behind that too")


async def a_wait_ends_when_the_peer_goes(ground: Ground) -> None:
    """Whoever waits in `receive`, or in `send` to a peer that doesn't read, is woken: by an end the one, by ConnectionLost the other."""

    async def send(link: Link) -> None:
        with suppress(ConnectionLost):
            for i in itertools.count():
                await link.send([_numbered(i)])

    for wait in (_rest, send):
        async with _pair(ground) as (client, server):
            with trio.move_on_after(CLOSING) as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(wait, client)
                    await trio.testing.wait_all_tasks_blocked(QUIET)
                    await _drop(server)
            demand(not scope.cancelled_caught, f"who waits in {wait.__name__} hears that the peer has gone")


async def a_peer_that_vanishes_leaves_whole_frames(ground: Ground) -> None:
    """Cut off in the middle of a burst, and of a frame: what arrives are whole frames, in order, then ConnectionLost, WireError or an end."""
    async with _pair(ground) as (client, server):
        sent = await _clog(client)
        await _drop(client)
        _demand_numbered(await _rest(server), sent)
        demand(not await _rest(server), "behind an end comes nothing")


async def a_cancelled_receive_takes_nothing(ground: Ground) -> None:
    """Cancelled before it begins, while it waits, or at whatever stage of taking what has come: the next one gets it all."""
    async with _pair(ground) as (client, server):
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
            demand(not scope.cancelled_caught, "what a receive that is cancelled has taken comes with the next")
            if not cancelled:
                break


async def every_wait_is_a_checkpoint(ground: Ground) -> None:
    """Sending, receiving, connecting and closing let other tasks run, whether or not they have to wait."""
    async with _served(ground) as (bound, accepted):
        with trio.testing.assert_checkpoints():
            client = await ground.transport.connect(bound)
        server = await accepted.receive()
        with trio.testing.assert_checkpoints():
            await client.send([b"x", b"y"])
        with trio.testing.assert_checkpoints():
            await server.receive()
        with trio.testing.assert_checkpoints():
            await server.send_eof()
        await _drop(server)
        with trio.testing.assert_checkpoints():
            await client.aclose()


async def a_clogged_peer_blocks_the_sender_until_it_reads(ground: Ground) -> None:
    """What is under way is bounded; when the peer reads at last, all of it arrives in order."""
    async with _pair(ground) as (client, server), _stuck(client) as begun:
        blocked_at, received = begun(), 0
        while received < blocked_at + 10:
            frames = await server.receive()
            demand(
                frames and list(frames) == [_numbered(received + i) for i in range(len(frames))],
                "a peer that reads late reads all frames, in order",
            )
            received += len(frames)


async def a_clogged_direction_holds_up_nothing_else(ground: Ground) -> None:
    """While one direction of one link is stuck, the other direction and other links of the same listener go on."""
    async with _served(ground) as (bound, accepted):
        links: list[Link] = []
        try:
            for _ in range(2):
                links.append(await ground.transport.connect(bound))
                links.append(await accepted.receive())
            stuck, silent, client, server = links
            async with _stuck(stuck):
                for one, other in ((silent, stuck), (client, server), (server, client)):
                    with trio.move_on_after(PROMPT) as scope:
                        await one.send([b"passes"])
                        await _arrive(other, [b"passes"])
                    demand(not scope.cancelled_caught, "a clogged direction holds up nothing but itself")
        finally:
            for link in links:
                await _drop(link)


async def a_cancelled_send_to_a_clogged_peer_can_be_closed(ground: Ground) -> None:
    """A send that waits can be cancelled; the link is broken then, and can be closed in a short time. Its peer sees whole frames and an end."""
    async with _pair(ground) as (client, server):
        sent = await _clog(client)
        with trio.move_on_after(CLOSING) as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.aclose)
                _demand_numbered(await _rest(server), sent)
                nursery.start_soon(server.aclose)
        demand(not scope.cancelled_caught, f"a broken link can be closed within {CLOSING:g} s")


async def links_do_not_mix(ground: Ground) -> None:
    """Many links of one listener at a time: each carries its own frames, and none waits for another to be done."""

    async def talk(bound: str, number: int) -> None:
        link = await ground.transport.connect(bound)
        try:
            for turn in range(10):
                await link.send([bytes((number, turn))])
                await _arrive(link, [bytes((number, turn))])
        finally:
            await _drop(link)

    async def answer(link: Link) -> None:
        while burst := await link.receive():
            await link.send(burst)

    async with _served(ground) as (bound, accepted), trio.open_nursery() as answers:
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(talk, bound, number)
            for _ in range(20):
                answers.start_soon(answer, await accepted.receive())
        answers.cancel_scope.cancel()


async def the_bound_address_can_be_dialled_and_written_in_a_route(ground: Ground) -> None:
    """What `serve` reports leads to that listener, as often as one likes, and reads the same behind the transport's name in a route."""
    async with _served(ground) as (bound, accepted):
        name = ground.transport.name
        demand(
            Address.parse(f"{name}:{bound}") == Address(bound, name)
            and "=>" not in bound
            and not any(map(str.isspace, bound)),
            f"the bound address {bound!r} can be written in a route behind {name}:",
        )
        for _ in range(2):
            link = await ground.transport.connect(bound)
            try:
                await accepted.receive()
            finally:
                await _drop(link)


async def nobody_there_is_a_lost_link(ground: Ground) -> None:
    """Connecting where nobody listens raises ConnectionLost that names the place."""
    try:
        link = await ground.transport.connect(ground.nobody)
    except ConnectionLost as error:
        demand(ground.nobody in str(error), f"the error names the place, {ground.nobody!r}; it says: {error}")
    else:
        await _drop(link)
        raise AssertionError("connecting where nobody listens raises ConnectionLost")


async def a_cancelled_connect_leaves_no_link(ground: Ground) -> None:
    """Cancelled at whatever stage, nothing stays open: if the listener saw a link at all, that one ends, and the listener goes on."""
    async with _served(ground) as (bound, accepted):
        for stage in range(STAGES):
            made: list[Link] = []

            async def connect(made: list[Link]) -> None:
                made.append(await ground.transport.connect(bound))

            async def connect_at_once(made: list[Link]) -> None:
                # More than one, so that some are gone before the listener looks at them.
                async with trio.open_nursery() as nursery:
                    for _ in range(AT_ONCE):
                        nursery.start_soon(connect, made)

            cancelled = await cancelled_after(stage, partial(connect_at_once, made))
            demand(stage or not made, "connect is a checkpoint, and can be cancelled")
            for link in made:
                await _drop(link)
            if not cancelled:
                break
        await trio.testing.wait_all_tasks_blocked(QUIET)
        with suppress(trio.WouldBlock), trio.move_on_after(CLOSING) as scope:
            while True:
                await _rest(accepted.receive_nowait())
        demand(not scope.cancelled_caught, "a connect that was cancelled leaves no link open")
        link = await ground.transport.connect(bound)
        await accepted.receive()
        await _drop(link)


async def links_outlive_their_listener(ground: Ground) -> None:
    """A listener that is cancelled takes no link with it that it has handed over: the node closes those, in its own order."""
    links, accepted = trio.open_memory_channel[Link](1)
    scope, over = trio.CancelScope(), trio.Event()

    async def accept(link: Link) -> None:
        links.send_nowait(link)
        await trio.sleep_forever()

    async def listen(*, task_status: trio.TaskStatus[str]) -> None:
        with scope:
            await ground.transport.serve(ground.at, accept, task_status=task_status)
        over.set()

    async with trio.open_nursery() as nursery:
        client = await ground.transport.connect(await nursery.start(listen))
        server = await accepted.receive()
        try:
            scope.cancel()
            await over.wait()
            for one, other in ((client, server), (server, client)):
                await one.send([b"still", b"here"])
                await _arrive(other, [b"still", b"here"])
        finally:
            await _drop(client)
            await _drop(server)


async def a_cancelled_serve_leaves_its_place_free(ground: Ground) -> None:
    """Cancelled at whatever stage of its beginning, a listener is gone, and the next one gets the place."""

    async def accept(link: Link) -> None:
        await _drop(link)

    async def listen_once(at: str) -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(ground.transport.serve, at, accept))
            nursery.cancel_scope.cancel()

    async with _served(ground) as (bound, _):
        pass
    for stage in range(STAGES):
        cancelled = await cancelled_after(stage, partial(listen_once, bound))
        await listen_once(bound)
        if not cancelled:
            break


async def a_place_is_taken_once_and_free_again(ground: Ground) -> None:
    """A second listener at the same place raises LocalError that names it; when the first has ended, nobody is there and the place is free."""

    async def accept(link: Link) -> None:
        await _drop(link)

    async with _served(ground) as (bound, _), trio.open_nursery() as nursery:
        try:
            await nursery.start(partial(ground.transport.serve, bound, accept))
        except LocalError as error:
            demand(bound in str(error), f"the error names the place, {bound!r}; it says: {error}")
        else:
            nursery.cancel_scope.cancel()
            raise AssertionError("a second listener at one place raises LocalError")
    await nobody_there_is_a_lost_link(attrs.evolve(ground, nobody=bound))
    async with _served(attrs.evolve(ground, at=bound)) as (again, accepted):
        demand(again == bound, "a place that is free again is bound as the same")
        link = await ground.transport.connect(bound)
        await accepted.receive()
        await _drop(link)


CHECKS: tuple[Check, ...] = (
    links_say_what_they_are,
    frames_arrive_whole_and_in_order_in_both_directions_at_once,
    the_largest_frame_arrives_whole,
    a_frame_that_is_too_large_is_refused_before_anything_is_sent,
    a_frame_that_is_too_large_to_read_ends_the_link,
    an_empty_burst_sends_nothing_and_ends_nothing,
    a_burst_stays_its_senders_and_frames_are_bytes,
    all_that_was_sent_arrives_before_the_orderly_end,
    a_link_receives_on_after_it_sent_its_end,
    an_end_may_be_told_twice_in_vain_and_cancelled,
    both_ends_may_close_at_once_and_twice,
    closing_needs_no_peer_that_listens,
    a_cancelled_close_still_closes,
    sending_to_a_peer_that_is_gone_fails,
    a_wait_ends_when_the_peer_goes,
    a_peer_that_vanishes_leaves_whole_frames,
    a_cancelled_receive_takes_nothing,
    every_wait_is_a_checkpoint,
    a_clogged_peer_blocks_the_sender_until_it_reads,
    a_clogged_direction_holds_up_nothing_else,
    a_cancelled_send_to_a_clogged_peer_can_be_closed,
    links_do_not_mix,
    the_bound_address_can_be_dialled_and_written_in_a_route,
    nobody_there_is_a_lost_link,
    a_cancelled_connect_leaves_no_link,
    links_outlive_their_listener,
    a_cancelled_serve_leaves_its_place_free,
    a_place_is_taken_once_and_free_again,
)
