"""The queue behind every mailbox and every outbox: a deque, two parking lots and a byte budget."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import Generic, Self, TypeVar

import trio

from trionode.errors import ClosedError
from trionode.routing.byte_budget import DEFAULT_BOUND, ByteBudget

T = TypeVar("T")

#: The cost of an item beside its bytes: the object, its routes, its place in the deque. It bounds a million tiny items.
ITEM_OVERHEAD = 512
#: Items taken before other tasks run: a checkpoint for each item halves the rate, and 512 items let others wait for 13
#: ms.
FAIR_BURST = 64


class Receiver(ABC, Generic[T]):
    """Iteration by `receive`, until it raises EndOfChannel."""

    __slots__ = ()

    @abstractmethod
    async def receive(self) -> T:
        """Wait for the next item and return it."""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        try:
            return await self.receive()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None


class MemoryChannel(ByteBudget, Receiver[T]):
    """A memory channel bounded in bytes, one object for both ends.

    `put` and `take` never wait. `send`, `receive` and iteration do, and if they are cancelled, nothing has changed.

    Args:
      bound: Bytes, with ITEM_OVERHEAD for each item.
      stall_timeout: See `ByteBudget`.
      on_stall: See `ByteBudget`.
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
        """Add an item without waiting. A closed channel drops it.

        Args:
          item: The item.
          size: Its bytes.

        Returns:
          This channel if it is now over its bound: wait for it before the next `put`. Else None.
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
        """Return all items that wait."""
        items = [item for item, _ in self._items]
        self.taken += len(items)
        self._items.clear()
        self.size = 0
        if self._waiting:
            self._waiting.unpark_all()
        return items

    async def ready(self) -> bool:
        """Wait until there is an item. If cancelled, nothing is taken.

        Returns:
          False once the channel is closed and empty.
        """
        while not self._items:
            if self._closed:
                return False
            await self._receivers.park()
        return True

    async def send(self, item: T, size: int) -> None:
        """Wait for capacity and add an item.

        Args:
          item: The item.
          size: Its bytes.

        Raises:
          ClosedError: The channel is closed.

        If cancelled, the item has not been added.
        """
        await self.wait_for_capacity()
        if self._closed:
            raise ClosedError("this memory channel is closed: nothing can be sent into it")
        self.put(item, size)

    async def receive(self) -> T:
        """Wait for the next item and return it. If cancelled, nothing is taken.

        Raises:
          trio.EndOfChannel: The channel is closed and empty.
        """
        await trio.lowlevel.checkpoint()
        if not await self.ready():
            raise trio.EndOfChannel
        item, cost = self._items.popleft()
        self.release(cost)
        return item

    def close(self) -> None:
        """Accept no more items. Queued items can still be taken."""
        super().close()
        self._receivers.unpark_all()

    async def aclose(self) -> None:
        """Do the same as `close`, with Trio's name and a checkpoint. If cancelled, the channel is closed."""
        self.close()
        await trio.lowlevel.checkpoint()

    def discard(self) -> int:
        """Drop all items that wait; return how many they were."""
        return len(self.take_all())
