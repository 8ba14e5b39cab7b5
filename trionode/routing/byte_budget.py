"""A size with a bound, and the wait until it is lower: what whoever delivered a message may owe."""

from collections.abc import Callable

import trio

#: Bytes that wait before whoever put the last item is asked to wait.
DEFAULT_BOUND = 256 * 1024
#: The hard bound, for those who may not wait: so many times the bound, and never more than HARD_LIMIT.
HARD_FACTOR = 16
HARD_LIMIT = 4 * 1024 * 1024


class ByteBudget:
    """Bytes that are outstanding somewhere, in a queue or at a service, and a bound over which whoever adds is asked to wait.

    What is added is always admitted: a room holds its bound and one item for each who owes. `patience` is how many seconds a
    link's reader waits without one item taken before `on_stall` is called; None: without end.
    """

    __slots__ = ("_closed", "_on_stall", "_stall_timeout", "_waiting", "bound", "hard_bound", "size", "taken")

    def __init__(
        self,
        bound: int = DEFAULT_BOUND,
        *,
        stall_timeout: float | None = None,
        on_stall: Callable[[], None] | None = None,
    ) -> None:
        self.bound = bound
        self.hard_bound = max(bound, min(bound * HARD_FACTOR, HARD_LIMIT))
        #: Bytes that are outstanding now.
        self.size = 0
        #: Items taken so far; who waits sees progress in it.
        self.taken = 0
        self._stall_timeout = stall_timeout
        self._on_stall = on_stall
        self._waiting = trio.lowlevel.ParkingLot()
        self._closed = False

    @property
    def is_full(self) -> bool:
        """Whether even the hard bound is reached, so that who may not wait has to drop."""
        return self.size >= self.hard_bound

    @property
    def is_closed(self) -> bool:
        """Whether nothing more will come in."""
        return self._closed

    def add(self, cost: int) -> "ByteBudget | None":
        """Count an item of `cost` bytes; this room itself if it is now over its bound: a debt, to be settled before the next."""
        self.size += cost
        return self if self.size > self.bound else None

    def release(self, cost: int) -> None:
        """An item of `cost` bytes is done with."""
        self.size -= cost
        self.taken += 1
        if self._waiting and self.size <= self.bound // 2:
            self._waiting.unpark_all()

    async def wait_for_capacity(self, stall_timeout: float | None = None) -> bool:
        """Wait until this is half empty, if it is over its bound; True when there is room, or it is closed. Cancelling changes nothing.

        With patience (seconds): False after so long without one item taken; it runs anew whenever something is taken.
        """
        if self.size <= self.bound or self._closed:
            await trio.lowlevel.checkpoint()
            return True
        while self.size > self.bound // 2 and not self._closed:
            before = self.taken
            if stall_timeout is None:
                await self._waiting.park()
                continue
            with trio.move_on_after(stall_timeout):
                # To wake at every take would cost a task switch an item: sleep until half empty, look for progress when time is up.
                await self._waiting.park()
            if self.taken == before and self.size > self.bound // 2 and not self._closed:
                return False
        return True

    async def wait_or_stall(self) -> None:
        """Wait as a link's reader does: as long as this room's patience lasts, then its owner is told that it is stuck."""
        if not await self.wait_for_capacity(self._stall_timeout):
            self.stalled()

    def stalled(self) -> None:
        """Tell the owner that what waits here is not being taken: a mailbox begins to drop, a slow link is closed."""
        if self._on_stall is not None:
            self._on_stall()

    def close(self) -> None:
        """Nothing more is to come in; whoever waits for room goes on."""
        self._closed = True
        self._waiting.unpark_all()
