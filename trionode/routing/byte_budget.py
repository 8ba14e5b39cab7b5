"""A byte budget with backpressure: how many bytes may wait somewhere before the task that adds more waits."""

from collections.abc import Callable

import trio

#: Bytes that may wait before the task that added the last item waits.
DEFAULT_BOUND = 256 * 1024
#: The hard limit for senders that never wait: this many times the bound, and never more than HARD_LIMIT.
HARD_FACTOR = 16
HARD_LIMIT = 4 * 1024 * 1024


class ByteBudget:
    """Bytes that are outstanding in a queue or at a service, and a bound beyond which tasks that add more wait.

    What is added is always admitted, so a budget holds its bound and one item of each task that waits. `stall_timeout`
    is how many seconds a link's reader waits without one item taken before `on_stall` is called; None: without end.
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
        #: Items taken so far; a waiting task sees progress in it.
        self.taken = 0
        self._stall_timeout = stall_timeout
        self._on_stall = on_stall
        self._waiting = trio.lowlevel.ParkingLot()
        self._closed = False

    @property
    def is_full(self) -> bool:
        """Whether the hard limit is reached, so a sender that never waits has to drop."""
        return self.size >= self.hard_bound

    @property
    def is_closed(self) -> bool:
        """Whether nothing more will come in."""
        return self._closed

    def add(self, cost: int) -> "ByteBudget | None":
        """Count an item of `cost` bytes.

        Return this budget if it is now over its bound: the caller waits for it before it adds more.
        """
        self.size += cost
        return self if self.size > self.bound else None

    def release(self, cost: int) -> None:
        """Count an item of `cost` bytes as done."""
        self.size -= cost
        self.taken += 1
        if self._waiting and self.size <= self.bound // 2:
            self._waiting.unpark_all()

    async def wait_for_capacity(self, stall_timeout: float | None = None) -> bool:
        """Wait until half of the bound is free, if the budget is over its bound. If cancelled, nothing changes.

        Args:
          stall_timeout: Seconds without one item taken after which to stop waiting; every item that is taken starts
            them again.

        Returns:
          True if there is capacity or the budget is closed; False after the stall timeout.
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
                # Waking at every item would cost a task switch each: sleep until half is free, and look for progress
                # when the time is up.
                await self._waiting.park()
            if self.taken == before and self.size > self.bound // 2 and not self._closed:
                return False
        return True

    async def wait_or_stall(self) -> None:
        """Wait for capacity as a link's reader does: until the stall timeout, then call `on_stall`."""
        if not await self.wait_for_capacity(self._stall_timeout):
            self.stalled()

    def stalled(self) -> None:
        """Report that nothing is taken from here: a mailbox begins to drop, a slow link is closed."""
        if self._on_stall is not None:
            self._on_stall()

    def close(self) -> None:
        """Accept nothing more, and let waiting tasks continue."""
        self._closed = True
        self._waiting.unpark_all()
