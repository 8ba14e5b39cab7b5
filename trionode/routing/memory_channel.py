"""The bounded queue behind every mailbox and every outbox: a deque, two parking lots and a size in bytes."""

from collections import deque
from collections.abc import Callable
from typing import Generic, Self, TypeVar

import trio

from trionode.errors import ClosedError
from trionode.routing.byte_budget import DEFAULT_BOUND, ByteBudget

T = TypeVar("T")

#: What an item costs beside its bytes: the object, its routes, its place in the deque. A million tiny items are bounded by it.
ITEM_OVERHEAD = 512
#: Items taken before a taker lets other tasks run: a checkpoint an item halves the rate, 512 an item starve others for 13 ms.
FAIR_BURST = 64


class MemoryChannel(ByteBudget, Generic[T]):
    """One end for all: `put` and `take` never wait, `send`, `receive`, `room` and iteration do, and cancelling a wait changes nothing.

    `bound` is in bytes, counting ITEM_OVERHEAD for each item.
    """

    __slots__ = ("_items", "_receivers")

    def __init__(
        self,
        bound: int = DEFAULT_BOUND,
        *,
        stall_timeout: float | None = None,
        on_stall: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(bound, stall_timeout=stall_timeout, on_stall=on_stall)
        self._items: deque[tuple[T, int]] = deque()
        self._receivers = trio.lowlevel.ParkingLot()

    def put(self, item: T, size: int) -> ByteBudget | None:
        """Add an item of `size` bytes; this channel itself if it is now over its bound: a debt, to be settled before the next.

        A closed channel takes nothing more and owes nothing.
        """
        if self._closed:
            return None
        cost = size + ITEM_OVERHEAD
        self._items.append((item, cost))
        self.size += cost
        if self._receivers:
            self._receivers.unpark()
        return self if self.size > self.bound else None

    def __len__(self) -> int:
        return len(self._items)

    def __bool__(self) -> bool:
        return True

    def take(self) -> T | None:
        """Return the next item, or None if none waits."""
        if not self._items:
            return None
        item, cost = self._items.popleft()
        self.release(cost)
        return item

    def take_all(self) -> list[T]:
        """All items that wait."""
        items = [item for item, _ in self._items]
        self.taken += len(items)
        self._items.clear()
        self.size = 0
        if self._waiting:
            self._waiting.unpark_all()
        return items

    async def ready(self) -> bool:
        """Wait until an item is there; False once the channel is closed and empty."""
        while not self._items:
            if self._closed:
                return False
            await self._receivers.park()
        return True

    async def send(self, item: T, size: int) -> None:
        """Wait for room and add an item; cancelled, the item has not been added. ClosedError after `aclose`."""
        await self.wait_for_capacity()
        if self._closed:
            raise ClosedError("this memory channel is closed: nothing can be sent into it")
        self.put(item, size)

    async def receive(self) -> T:
        """Wait for the next item and return it; EndOfChannel once closed and empty. Cancelled, nothing is taken."""
        await trio.lowlevel.checkpoint()
        if not await self.ready():
            raise trio.EndOfChannel
        item, cost = self._items.popleft()
        self.release(cost)
        return item

    def close(self) -> None:
        """Take nothing more in; what waits can still be taken."""
        super().close()
        self._receivers.unpark_all()

    async def aclose(self) -> None:
        """Do the same as `close`, with Trio's name and a checkpoint."""
        self.close()
        await trio.lowlevel.checkpoint()

    def discard(self) -> int:
        """Throw away all that waits; how many items that was."""
        return len(self.take_all())

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        try:
            return await self.receive()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None
