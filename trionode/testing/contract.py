"""Parts of both contracts: demands, leak checks, and cancellation at every step."""

import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import attrs
import trio

_OPEN_FILES = Path("/proc/self/fd")


def demand(held: object, what: str) -> None:
    """Raise AssertionError with this text if the demand does not hold."""
    # Not an assert statement: `python -O` removes those.
    if not held:
        raise AssertionError(what)


@attrs.frozen
class Held:
    """Counts of tasks and open files (if the system reports them), and the threads, without Trio's idle ones."""

    tasks: int
    files: int
    threads: frozenset[threading.Thread]

    @classmethod
    def now(cls) -> "Held":
        """Return the resources of this Trio program now."""
        # An idle worker thread of Trio has this name.
        threads = frozenset(each for each in threading.enumerate() if not each.name.startswith("Trio thread "))
        files = sum(1 for _ in _OPEN_FILES.iterdir()) if _OPEN_FILES.is_dir() else 0
        return cls(trio.lowlevel.current_statistics().tasks_living, files, threads)

    def require_back(self) -> None:
        """Raise AssertionError if the program holds more now."""
        now = Held.now()
        for what, more in (("tasks", now.tasks - self.tasks), ("open files", now.files - self.files)):
            demand(more <= 0, f"{more} {what} are left behind")
        left = sorted(each.name for each in now.threads - self.threads)
        demand(not left, f"threads are left behind: {', '.join(left)}")


class _Countdown(trio.abc.Instrument):
    """Cancel a scope after a number of task steps. Neither a clock nor a count of checkpoints reaches every stage."""

    def __init__(self, steps: int, scope: trio.CancelScope) -> None:
        self._left = steps
        self._scope = scope

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        del task
        self._left -= 1
        if self._left == 0:
            self._scope.cancel()


async def cancelled_after(steps: int, operation: Callable[[], Awaitable[object]]) -> bool:
    """Run an operation and cancel it after so many steps of all tasks (0: before it begins).

    Return whether it was cancelled.
    """
    with trio.CancelScope() as scope:
        if not steps:
            scope.cancel()
        countdown = _Countdown(steps, scope)
        trio.lowlevel.add_instrument(countdown)
        try:
            await operation()
        finally:
            trio.lowlevel.remove_instrument(countdown)
    return scope.cancelled_caught
