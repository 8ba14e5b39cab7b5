import pytest
import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from trio.testing import MockClock, assert_checkpoints, wait_all_tasks_blocked

from trionode.errors import ClosedError
from trionode.routing.byte_budget import HARD_FACTOR, HARD_LIMIT, ByteBudget
from trionode.routing.memory_channel import ITEM_OVERHEAD, MemoryChannel


class Model(RuleBasedStateMachine):
    """Compare the synchronous methods with a list: items leave in order, and the size is that of the queued items."""

    def __init__(self) -> None:
        super().__init__()
        self.channel: MemoryChannel[int] = MemoryChannel(5 * ITEM_OVERHEAD)
        self.waiting: list[tuple[int, int]] = []
        self.put = 0

    @rule(size=st.integers(0, 3000))
    def add(self, size: int) -> None:
        over_budget = self.channel.put(self.put, size)
        if not self.channel.is_closed:
            self.waiting.append((self.put, size))
        assert (over_budget is self.channel) == (self.channel.size > self.channel.bound and not self.channel.is_closed)
        self.put += 1

    @rule()
    def take(self) -> None:
        expected = self.waiting.pop(0)[0] if self.waiting else None
        assert self.channel.take() == expected

    @rule()
    def take_all(self) -> None:
        assert self.channel.take_all() == [item for item, _ in self.waiting]
        self.waiting.clear()

    @precondition(lambda self: self.put > 5)
    @rule()
    def close(self) -> None:
        self.channel.close()

    @invariant()
    def the_size_is_what_waits(self) -> None:
        assert len(self.channel) == len(self.waiting)
        assert self.channel.size == sum(size + ITEM_OVERHEAD for _, size in self.waiting)
        assert self.channel.is_full == (self.channel.size >= self.channel.hard_bound)


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=50, stateful_step_count=40)


def full(bound: int = 4 * ITEM_OVERHEAD) -> MemoryChannel[bytes]:
    """A channel that is over its bound by one item, in items without bytes."""
    channel: MemoryChannel[bytes] = MemoryChannel(bound)
    while channel.put(b"", 0) is None:
        pass
    return channel


def test_hard_limit_is_a_capped_multiple_of_the_bound() -> None:
    assert MemoryChannel(1000).hard_bound == 1000 * HARD_FACTOR
    assert MemoryChannel(HARD_LIMIT // 2).hard_bound == HARD_LIMIT
    assert MemoryChannel(HARD_LIMIT * 2).hard_bound == HARD_LIMIT * 2


def test_items_without_bytes_are_bounded_too() -> None:
    channel: MemoryChannel[bytes] = MemoryChannel()
    while channel.put(b"", 0) is None:
        pass
    assert len(channel) <= channel.bound // ITEM_OVERHEAD + 1


def test_an_empty_channel_is_true() -> None:
    assert MemoryChannel[int]()


async def test_waiting_for_available_capacity_is_one_checkpoint() -> None:
    channel: MemoryChannel[bytes] = MemoryChannel()
    channel.put(b"", 0)
    with assert_checkpoints():
        assert await channel.wait_for_capacity()


async def test_wait_for_capacity_returns_when_half_is_taken() -> None:
    channel = full()
    done = trio.Event()

    async def wait() -> None:
        assert await channel.wait_for_capacity()
        done.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        while channel.size > channel.bound // 2:
            await wait_all_tasks_blocked()
            assert not done.is_set()
            channel.take()
        await done.wait()


async def test_wait_for_capacity_returns_when_the_channel_is_closed() -> None:
    channel = full()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(channel.wait_for_capacity)
        nursery.start_soon(channel.wait_for_capacity, 1.0)
        await wait_all_tasks_blocked()
        await channel.aclose()
    assert await channel.wait_for_capacity()
    assert channel.put(b"", 0) is None


async def test_stall_timeout_ends_after_its_time_without_one_item_taken(autojump_clock: MockClock) -> None:
    channel = full()
    assert not await channel.wait_for_capacity(5)
    assert trio.current_time() == pytest.approx(5, abs=0.01)


async def test_stall_timeout_starts_again_whenever_an_item_is_taken(autojump_clock: MockClock) -> None:
    channel = full(20 * ITEM_OVERHEAD)

    async def take_slowly() -> None:
        for _ in range(3):
            await trio.sleep(4)
            channel.take()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take_slowly)
        assert not await channel.wait_for_capacity(5)
    # Taken at 4, 8 and 12; asked at 5, 10, 15 and, for the first time in vain, at 20.
    assert trio.current_time() == pytest.approx(20, abs=0.01)


async def test_on_stall_is_called_after_the_stall_timeout_and_not_before(autojump_clock: MockClock) -> None:
    stalled: list[float] = []
    channel: MemoryChannel[bytes] = MemoryChannel(
        ITEM_OVERHEAD, stall_timeout=3, on_stall=lambda: stalled.append(trio.current_time())
    )
    channel.put(b"", 0)
    await channel.wait_or_stall()
    assert not stalled
    channel.put(b"", 0)
    await channel.wait_or_stall()
    assert stalled == [pytest.approx(3, abs=0.01)]


async def test_byte_budget_works_without_a_queue() -> None:
    budget = ByteBudget(100)
    assert budget.add(60) is None
    assert budget.add(60) is budget
    async with trio.open_nursery() as nursery:
        nursery.start_soon(budget.wait_for_capacity)
        await wait_all_tasks_blocked()
        budget.release(60)
        await wait_all_tasks_blocked()
        assert nursery.child_tasks
        budget.release(60)


@pytest.mark.parametrize("wait", ["wait_for_capacity", "wait_or_stall", "send"])
async def test_cancelled_wait_for_capacity_changes_nothing(wait: str, autojump_clock: MockClock) -> None:
    channel = full()
    before = len(channel), channel.size
    with trio.move_on_after(1) as scope:
        match wait:
            case "wait_for_capacity":
                await channel.wait_for_capacity()
            case "wait_or_stall":
                await channel.wait_for_capacity(10)
            case _:
                await channel.send(b"never", 5)
    assert scope.cancelled_caught
    assert (len(channel), channel.size) == before


async def test_cancelled_send_adds_nothing_even_with_capacity() -> None:
    channel: MemoryChannel[bytes] = MemoryChannel()
    with trio.CancelScope() as scope:
        scope.cancel()
        await channel.send(b"never", 5)
    assert scope.cancelled_caught
    assert not len(channel)


async def test_a_cancelled_receive_takes_nothing(autojump_clock: MockClock) -> None:
    channel: MemoryChannel[int] = MemoryChannel()
    with trio.move_on_after(1) as waiting:
        await channel.receive()
    assert waiting.cancelled_caught
    channel.put(1, 0)
    with trio.CancelScope() as scope:
        scope.cancel()
        await channel.receive()
    assert scope.cancelled_caught
    assert await channel.receive() == 1


async def test_senders_wait_for_the_receiver_and_everything_arrives_once_and_in_order() -> None:
    channel: MemoryChannel[tuple[int, int]] = MemoryChannel(8 * ITEM_OVERHEAD)
    senders, count, highest = 5, 200, 0

    async def send(sender: int) -> None:
        nonlocal highest
        for i in range(count):
            await channel.send((sender, i), 0)
            highest = max(highest, len(channel))

    received = []
    async with trio.open_nursery() as nursery:
        for sender in range(senders):
            nursery.start_soon(send, sender)
        received.extend([await channel.receive() for _ in range(senders * count)])
    for sender in range(senders):
        assert [i for s, i in received if s == sender] == list(range(count))
    assert highest <= 8 + senders, "a channel holds its bound and one item for each sender"


async def test_receivers_share_the_items() -> None:
    channel: MemoryChannel[int] = MemoryChannel(8 * ITEM_OVERHEAD)
    received: list[int] = []

    async def receive() -> None:
        async for item in channel:
            received.append(item)  # noqa: PERF401  # several tasks append to one list

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(receive)
        await wait_all_tasks_blocked()
        for i in range(100):
            await channel.send(i, 0)
        channel.close()
    assert sorted(received) == list(range(100))


async def test_closed_channel_ends_after_its_items_are_taken() -> None:
    channel: MemoryChannel[int] = MemoryChannel()
    channel.put(1, 0)
    channel.put(2, 0)
    await channel.aclose()
    assert channel.is_closed
    assert channel.put(3, 0) is None
    with pytest.raises(ClosedError, match="closed"):
        await channel.send(3, 0)
    assert await channel.ready()
    assert [item async for item in channel] == [1, 2]
    assert not await channel.ready()
    with pytest.raises(trio.EndOfChannel):
        await channel.receive()


async def test_waiting_receiver_ends_when_the_channel_is_closed() -> None:
    channel: MemoryChannel[int] = MemoryChannel()
    async with trio.open_nursery() as nursery:

        async def receive() -> None:
            with pytest.raises(trio.EndOfChannel):
                await channel.receive()

        nursery.start_soon(receive)
        await wait_all_tasks_blocked()
        channel.close()


async def test_discard_counts_and_frees_capacity() -> None:
    channel = full()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(channel.wait_for_capacity)
        await wait_all_tasks_blocked()
        assert channel.discard() == 5
    assert channel.size == 0


def test_items_without_bytes_fill_a_channel_too_threat_16() -> None:
    channel: MemoryChannel[int] = MemoryChannel(10 * ITEM_OVERHEAD)
    assert [channel.put(n, 0) is channel for n in range(12)] == [False] * 10 + [True] * 2
