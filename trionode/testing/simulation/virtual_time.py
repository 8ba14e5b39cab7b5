"""Virtual time, and a run of Trio that a seed repeats."""

import gc
import heapq
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any, TypeVar
from unittest.mock import patch

import trio
from trio._core import _run

#: The wall clock at time 0, in seconds since 1970. A fixed value, so that a run is the same on any day.
EPOCH = 1_800_000_000.0
#: How much earlier it is while nodes make their identities.
HEAD_START = 30 * 86400.0
#: How often the time is asked for before it has to pass. A pass of the scheduler asks at least once, so tasks that run in
#: circles come to an end.
MOST_ASKED = 10_000_000
#: Seconds that Trio may sleep if no task waits for a deadline. A run always has one, so this is never slept.
FOREVER = 3600.0

T = TypeVar("T")


class LivelockError(Exception):
    """Tasks run without end, and no time passes."""


class VirtualClock(trio.abc.Clock):
    """A clock that jumps to the next deadline as soon as all tasks wait. Nothing outside of Trio can wake a task.

    Unlike Trio's MockClock it needs one pass of the scheduler for a jump instead of two, and it has a wall clock.
    """

    def __init__(self) -> None:
        self.now = 0.0
        #: What the wall clock shows at time 0. It changes if the wall clock jumps.
        self.epoch = EPOCH - HEAD_START
        self._asked = 0

    def start_clock(self) -> None:
        """Do nothing: time begins at 0."""

    def current_time(self) -> float:
        """Return the virtual seconds since the start."""
        self._asked += 1
        if self._asked > MOST_ASKED:
            raise LivelockError(f"no time passes after {self.now:.3f} s, and tasks run without end")
        return self.now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """Jump to the deadline. Trio calls this when no task can run."""
        if deadline == float("inf"):
            return FOREVER
        self.now = max(self.now, deadline)
        self._asked = 0
        return 0.0

    def wall(self) -> float:
        """Return the seconds since 1970 that programs see."""
        return self.epoch + self.now

    def wall_ns(self) -> int:
        """Return the same in nanoseconds."""
        return int(self.wall() * 1e9)


async def _run_inline(sync_fn: Callable[..., T], *args: Any, **_: object) -> T:
    """Take the place of `trio.to_thread.run_sync`: real threads have no place in virtual time."""
    await trio.lowlevel.checkpoint()
    return sync_fn(*args)


def _adding_in_order() -> Callable[[_run.Deadlines, float, trio.CancelScope], None]:
    """Return the method that adds a deadline, so that equal ones pass in the order in which they were set.

    Trio lets the address of the cancel scope in memory decide between them.
    """
    order = count()

    def add(deadlines: _run.Deadlines, deadline: float, cancel_scope: trio.CancelScope) -> None:
        heapq.heappush(deadlines._heap, (deadline, next(order), cancel_scope))
        deadlines._active += 1

    return add


@contextmanager
def _deterministic(seed: int, clock: VirtualClock) -> Iterator[None]:
    """Make everything deterministic that decides about the order of events.

    That is the order in which Trio runs its tasks (Trio offers this for Hypothesis, in private names) and lets equal
    deadlines pass, the jitter of delays, the wall clock, threads, and the time of garbage collection. Keys, nonces and addresses stay random.
    """
    scheduler, jitter, collects = _run._r.getstate(), random.getstate(), gc.isenabled()
    with (
        patch.object(_run, "_ALLOW_DETERMINISTIC_SCHEDULING", True),  # noqa: FBT003  # the value of a flag
        patch.object(_run.Deadlines, "add", _adding_in_order()),
        patch.object(time, "time", clock.wall),
        patch.object(time, "time_ns", clock.wall_ns),
        patch.object(trio.to_thread, "run_sync", _run_inline),
    ):
        _run._r.seed(seed)
        random.seed(seed)
        gc.disable()
        try:
            yield
        finally:
            _run._r.setstate(scheduler)
            random.setstate(jitter)
            if collects:
                gc.enable()


def run_in_virtual_time(main: Callable[[VirtualClock], Awaitable[T]], seed: int) -> T:
    """Run an async function under Trio, with everything that a seed decides.

    Args:
      main: The function. Its tasks use no sockets, threads or other processes.
      seed: Decides the order in which Trio runs its tasks.

    Returns:
      What the function returns.

    Raises:
      LivelockError: If tasks run without end while no time passes.
    """
    clock = VirtualClock()
    with _deterministic(seed, clock):
        try:
            return trio.run(main, clock, clock=clock, strict_exception_groups=True)
        except trio.TrioInternalError as error:  # what the clock raises ends the scheduler
            if isinstance(error.__cause__, LivelockError):
                raise error.__cause__ from None
            raise
