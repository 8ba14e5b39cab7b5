"""The contract of transports as checks that any plugin can run against itself, in the manner of `trio.testing.check_two_way_stream`."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import attrs
import trio
import trio.testing

from trionode.errors import LinkLostError, LocalError, RemoteError
from trionode.transport import Link, Transport

#: Seconds that one check may take; none of them needs a tenth of it.
LIMIT = 20.0
#: Bytes that a transport may have on their way to a peer that doesn't read: more than the socket buffers of any system that we know.
CLOGGED = 64 * 1024 * 1024
#: Seconds without any task running after which a sender counts as blocked.
QUIET = 0.1
#: Sends that may still seem to work after the peer has gone, before one of them must fail.
LATE_SENDS = 1000

_OPEN_FILES = Path("/proc/self/fd")


@attrs.frozen
class Ground:
    """Where a transport is checked: the transport, a place to listen at (a free one each time), and one where nobody listens."""

    transport: Transport
    at: str
    nobody: str


#: One promise of the contract; AssertionError or another error if the transport breaks it.
Check = Callable[[Ground], Awaitable[None]]


async def check_transport(make: Callable[[], Transport], *, at: str, nobody: str) -> None:
    """Run every check against transports that `make` makes; the first broken promise comes out as AssertionError or another error.

    `at` is where to listen, such as "127.0.0.1:0", and has to give a free place each time; `nobody` is where nobody listens.
    """
    for check in CHECKS:
        await run_check(check, Ground(make(), at, nobody))


async def run_check(check: Check, ground: Ground) -> None:
    """Run one check within LIMIT seconds, and see that it leaves no task and, where the system tells, no open file behind."""
    before = trio.lowlevel.current_statistics().tasks_living, _open_files()
    with trio.fail_after(LIMIT):
        await check(ground)
    assert (trio.lowlevel.current_statistics().tasks_living, _open_files()) == before, (
        "tasks or open files are left behind"
    )


def _open_files() -> int:
    return sum(1 for _ in _OPEN_FILES.iterdir()) if _OPEN_FILES.is_dir() else 0


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
async def _pair(ground: Ground) -> AsyncIterator[tuple[Link, Link]]:
    """Both ends of a new link: the one that connected and the one that was accepted."""
    async with _served(ground) as (bound, accepted):
        client = await ground.transport.connect(bound)
        try:
            yield client, await accepted.receive()
        finally:
            await _drop(client)


async def _drop(link: Link) -> None:
    """Close a link at once: `aclose` closes even if it is cancelled."""
    with trio.CancelScope() as scope:
        scope.cancel()
        await link.aclose()


async def _receive(link: Link, count: int) -> list[bytes]:
    frames: list[bytes] = []
    while len(frames) < count:
        burst = await link.receive()
        assert burst, f"the link ended after {len(frames)} of {count} frames"
        frames += burst
    assert len(frames) == count
    return frames


async def _receive_all(link: Link) -> list[bytes]:
    frames: list[bytes] = []
    while burst := await link.receive():
        frames += burst
    return frames


async def _is_over(link: Link) -> None:
    """Read until the end, be it orderly or not."""
    with suppress(RemoteError):
        while await link.receive():
            pass


def _bursts(seed: int) -> list[list[bytes]]:
    sizes = (1, 2, 3, 255, 256, 1000, 4096, 65_530, 65_536, 70_000)
    return [
        [bytes((seed, i % 251)) * size for size in sizes[: 1 + i % len(sizes)]][:: -1 if i % 2 else 1]
        for i in range(60)
    ]


async def links_say_what_they_are(ground: Ground) -> None:
    """A transport has a name, a link a peer to show in logs, a wire, and a largest frame within what the wire allows."""
    assert ground.transport.name.isidentifier()
    async with _pair(ground) as pair:
        for link in pair:
            assert isinstance(link.peer, str)
            assert link.peer
            assert 0 < link.max_frame <= link.wire.max_frame


async def frames_arrive_whole_and_in_order_in_both_directions_at_once(ground: Ground) -> None:
    """Frames of all sizes, alone and in bursts, arrive as they were sent; `receive` brings at least one."""

    async def send(link: Link, bursts: Sequence[Sequence[bytes]]) -> None:
        for burst in bursts:
            await link.send(burst)

    async def receive(link: Link, bursts: Sequence[Sequence[bytes]]) -> None:
        expected = [frame for burst in bursts for frame in burst]
        assert await _receive(link, len(expected)) == expected

    async with _pair(ground) as (client, server), trio.open_nursery() as nursery:
        for one, other, seed in ((client, server, 1), (server, client, 2)):
            nursery.start_soon(send, one, _bursts(seed))
            nursery.start_soon(receive, other, _bursts(seed))


async def the_largest_frame_arrives_whole(ground: Ground) -> None:
    """A frame of `max_frame` bytes passes, with others around it."""
    async with _pair(ground) as (client, server), trio.open_nursery() as nursery:
        largest = bytes(range(256)) * (client.max_frame // 256)
        largest += bytes(client.max_frame - len(largest))
        nursery.start_soon(client.send, [b"before", largest, b"after"])
        before, frame, after = await _receive(server, 3)
        assert (before, after) == (b"before", b"after")
        assert frame == largest


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
            assert await _receive_all(receiver) == frames
            assert not await receiver.receive()
            await receiver.aclose()


async def a_link_receives_on_after_it_sent_its_end(ground: Ground) -> None:
    """`send_eof` ends one direction, where the transport can, and takes nothing from the other."""
    async with _pair(ground) as (client, server):
        await client.send([b"last"])
        await client.send_eof()
        assert await _receive(server, 1) == [b"last"]
        await server.send([b"still", b"heard"])
        assert await _receive(client, 2) == [b"still", b"heard"]


async def both_ends_may_close_at_once_and_twice(ground: Ground) -> None:
    """Closing waits for no answer that will not come, and closing what is closed is nothing."""
    async with _pair(ground) as pair:
        async with trio.open_nursery() as nursery:
            for link in pair:
                nursery.start_soon(link.aclose)
        for link in pair:
            await link.aclose()


async def closing_needs_no_peer_that_listens(ground: Ground) -> None:
    """A peer that neither reads nor closes holds `aclose` up for a short grace only."""
    async with _pair(ground) as (client, _):
        await client.send([b"unread"])
        await client.aclose()


async def sending_to_a_peer_that_is_gone_fails(ground: Ground) -> None:
    """LinkLostError, at the latest after what the transport can have under way; and receiving ends."""
    async with _pair(ground) as (client, server):
        await _drop(server)
        for _ in range(LATE_SENDS):
            try:
                await client.send([b"to nobody" * 1000])
            except LinkLostError:
                break
        else:
            raise AssertionError("a peer that is gone was sent to without an error")
        await _is_over(client)


async def a_cancelled_receive_takes_nothing(ground: Ground) -> None:
    """Cancelled before or while it waits, also when frames are there: the next one gets them all."""
    async with _pair(ground) as (client, server):
        for timeout in (0, 0.01):
            with trio.move_on_after(timeout) as scope:
                await server.receive()
            assert scope.cancelled_caught
        for count in range(1, 20):
            await client.send([bytes((count,))] * count)
            with trio.CancelScope() as scope:
                scope.cancel()
                await server.receive()
            assert scope.cancelled_caught, "receive has to be a checkpoint, also when frames are there"
            assert await _receive(server, count) == [bytes((count,))] * count


async def every_wait_is_a_checkpoint(ground: Ground) -> None:
    """Sending, receiving, connecting and closing let other tasks run, whether or not they have to wait."""
    async with _served(ground) as (bound, accepted):
        with trio.testing.assert_checkpoints():
            client = await ground.transport.connect(bound)
        server = await accepted.receive()
        with trio.testing.assert_checkpoints():
            await client.send([b"x", b"y"])
        with trio.testing.assert_checkpoints():
            await _receive(server, 2)
        await _drop(server)
        with trio.testing.assert_checkpoints():
            await client.aclose()


async def a_clogged_peer_blocks_the_sender_until_it_reads(ground: Ground) -> None:
    """What is under way is bounded; when the peer reads at last, all of it arrives in order."""
    frame, sent = b"z" * 65_000, 0

    async def send_for_ever(link: Link) -> None:
        nonlocal sent
        while True:
            await link.send([sent.to_bytes(8, "big") + frame])
            sent += 1

    async with _pair(ground) as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(send_for_ever, client)
        await trio.testing.wait_all_tasks_blocked(QUIET)
        blocked_at = sent
        assert blocked_at * len(frame) < CLOGGED, "a peer that doesn't read is sent to without end"
        received = 0
        while received < blocked_at + 10:
            for got in await server.receive():
                assert got == received.to_bytes(8, "big") + frame
                received += 1
        nursery.cancel_scope.cancel()


async def a_cancelled_send_to_a_clogged_peer_can_be_closed(ground: Ground) -> None:
    """A send that waits can be cancelled; the link is broken then, and can be closed in a short time. Its peer sees whole frames and an end."""
    frame = b"z" * 300_000

    async def send_for_ever(link: Link, scope: trio.CancelScope) -> None:
        with scope:
            while True:
                await link.send([frame])

    async with _pair(ground) as (client, server):
        scope = trio.CancelScope()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_for_ever, client, scope)
            await trio.testing.wait_all_tasks_blocked(QUIET)
            scope.cancel()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.aclose)
            with suppress(RemoteError):  # the end of a broken stream may be anything but half a frame
                while burst := await server.receive():
                    assert set(burst) == {frame}


async def links_do_not_mix(ground: Ground) -> None:
    """Many links of one listener at a time: each carries its own frames."""

    async def talk(bound: str, number: int) -> None:
        link = await ground.transport.connect(bound)
        try:
            for turn in range(10):
                await link.send([bytes((number, turn))])
                assert await _receive(link, 1) == [bytes((number, turn))]
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


async def nobody_there_is_a_lost_link(ground: Ground) -> None:
    """Connecting where nobody listens raises LinkLostError that names the place."""
    try:
        await ground.transport.connect(ground.nobody)
    except LinkLostError as error:
        if ground.nobody not in str(error):
            raise AssertionError("the error has to name the place") from error
    else:
        raise AssertionError("a link to nobody")


async def a_cancelled_connect_leaves_no_link(ground: Ground) -> None:
    """Cancelled, nothing stays open: if the listener saw a link at all, that one ends."""
    async with _served(ground) as (bound, accepted):
        with trio.CancelScope() as scope:
            scope.cancel()
            await ground.transport.connect(bound)
        assert scope.cancelled_caught, "connect has to be a checkpoint"
        await trio.testing.wait_all_tasks_blocked(QUIET)
        with suppress(trio.WouldBlock):
            while True:
                await _is_over(accepted.receive_nowait())


async def a_place_is_taken_once_and_free_again(ground: Ground) -> None:
    """A second listener at the same place raises LocalError; when the first has ended, nobody is there and the place is free."""

    async def accept(link: Link) -> None:
        await _drop(link)

    async with _served(ground) as (bound, _), trio.open_nursery() as nursery:
        with suppress(LocalError):
            await nursery.start(partial(ground.transport.serve, bound, accept))
            raise AssertionError("two listeners at one place")
    await nobody_there_is_a_lost_link(attrs.evolve(ground, nobody=bound))
    async with _served(attrs.evolve(ground, at=bound)) as (again, accepted):
        assert again == bound
        link = await ground.transport.connect(bound)
        await accepted.receive()
        await _drop(link)


CHECKS: tuple[Check, ...] = (
    links_say_what_they_are,
    frames_arrive_whole_and_in_order_in_both_directions_at_once,
    the_largest_frame_arrives_whole,
    all_that_was_sent_arrives_before_the_orderly_end,
    a_link_receives_on_after_it_sent_its_end,
    both_ends_may_close_at_once_and_twice,
    closing_needs_no_peer_that_listens,
    sending_to_a_peer_that_is_gone_fails,
    a_cancelled_receive_takes_nothing,
    every_wait_is_a_checkpoint,
    a_clogged_peer_blocks_the_sender_until_it_reads,
    a_cancelled_send_to_a_clogged_peer_can_be_closed,
    links_do_not_mix,
    nobody_there_is_a_lost_link,
    a_cancelled_connect_leaves_no_link,
    a_place_is_taken_once_and_free_again,
)
