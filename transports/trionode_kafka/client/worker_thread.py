"""Between threads and Trio: lanes that do jobs, slots for their results, and a drain for calls that come back."""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

import trio

#: Confirmations that the Trio thread takes in one turn, some 2 ms.
DRAIN_AT_ONCE = 256

T = TypeVar("T")


class Slot(Generic[T]):
    """Where one job's result arrives, from any thread, for the task that waits for it."""

    __slots__ = ("_done", "_error", "_result", "_token")

    def __init__(self, token: trio.lowlevel.TrioToken) -> None:
        self._done = trio.Event()
        self._token = token
        self._result: T
        self._error: BaseException | None = None

    def give(self, result: T) -> None:
        """Let the task have its result; from any thread."""
        self._result = result
        self._wake()

    def fail(self, error: BaseException) -> None:
        """Let the task raise; from any thread."""
        self._error = error
        self._wake()

    async def answer(self) -> T:
        """Wait for the result."""
        await self._done.wait()
        if self._error is not None:
            raise self._error
        return self._result

    def _wake(self) -> None:
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._done.set)


class Lane:
    """Threads that do jobs in order of arrival; the jobs of one thread never overlap, which is what a consumer demands."""

    def __init__(self, name: str, token: trio.lowlevel.TrioToken, *, threads: int = 1) -> None:
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._token = token
        self._threads = [threading.Thread(target=self._work, name=f"kafka {name}", daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def put(self, job: Callable[[], None]) -> None:
        """Leave a job that answers by other means."""
        self._jobs.put(job)

    def run(self, job: Callable[[], T]) -> Slot[T]:
        """Do a job; if nobody waits for its result any more, the lane finishes it all the same."""
        slot: Slot[T] = Slot(self._token)

        def work() -> None:
            try:
                slot.give(job())
            except BaseException as error:  # noqa: BLE001 - it is raised again in the task that waits
                slot.fail(error)

        self._jobs.put(work)
        return slot

    def end(self, deadline: float) -> None:
        """Let the threads end after the job that each is at; called when those jobs can't block any more. Blocks until the deadline."""
        with contextlib.suppress(Empty):
            while True:
                self._jobs.get_nowait()
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()


class Drain:
    """Calls from other threads, made in the Trio thread, all that wait in one go."""

    def __init__(self, token: trio.lowlevel.TrioToken) -> None:
        self._calls: deque[Callable[[], None]] = deque()
        self._token = token

    def put(self, call: Callable[[], None]) -> None:
        """Have a call made soon, in order; from any thread."""
        self._calls.append(call)
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._drain, idempotent=True)

    def _drain(self) -> None:
        for _ in range(min(len(self._calls), DRAIN_AT_ONCE)):
            self._calls.popleft()()
        if self._calls:
            # Other tasks have their turn first.
            self._token.run_sync_soon(self._drain, idempotent=True)
