"""Between threads and Trio: worker threads, futures that a task waits for, and callbacks for the Trio thread."""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import TypeVar

import trio
from kafka.errors import KafkaError

from trionode_kafka.client.errors import BrokerUnavailableError, store_error
from trionode_kafka.client.settings import REQUEST_SECONDS

#: Callbacks that run in one turn of the Trio thread, some 2 ms. Other tasks run before the next ones.
CALLBACKS_AT_ONCE = 256

T = TypeVar("T")


async def wait_for(future: Future[T]) -> T:
    """Return the result of a future, or raise its error. If cancelled, the future goes on."""
    done = trio.Event()
    token = trio.lowlevel.current_trio_token()

    def wake(_: object) -> None:
        with contextlib.suppress(trio.RunFinishedError):
            token.run_sync_soon(done.set)

    future.add_done_callback(wake)
    await done.wait()
    return future.result()


async def wait_for_answer(future: Future[T]) -> T:
    """Return the result of a request to Kafka; StoreError if it failed, or if its thread does not answer in time."""
    try:
        with trio.fail_after(2 * REQUEST_SECONDS):
            return await wait_for(future)
    except trio.TooSlowError:
        raise BrokerUnavailableError("Kafka did not answer in time") from None
    except (KafkaError, OSError) as error:
        raise store_error(error) from error


class WorkerThreads:
    """Threads that run jobs in order of arrival. With one thread, the default, jobs never overlap."""

    def __init__(self, name: str, *, count: int = 1) -> None:
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._threads = [threading.Thread(target=self._work, name=f"kafka {name}", daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def put(self, job: Callable[[], None]) -> None:
        """Run a job that reports its own result and never raises."""
        self._jobs.put(job)

    def run(self, job: Callable[[], T]) -> Future[T]:
        """Run a job. It runs to its end even if no task waits for it any more."""
        future: Future[T] = Future()

        def work() -> None:
            try:
                future.set_result(job())
            except BaseException as error:  # noqa: BLE001 - the task that waits raises it again
                future.set_exception(error)

        self._jobs.put(work)
        return future

    def join(self, deadline: float) -> None:
        """Drop the jobs that wait, and block until the threads have ended, or until the deadline (`time.monotonic`).

        Call it once nothing can block the jobs that run.
        """
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


class CallbackQueue:
    """Callbacks from other threads that run in the Trio thread, in order, many in one turn."""

    def __init__(self, token: trio.lowlevel.TrioToken) -> None:
        self._callbacks: deque[Callable[[], None]] = deque()
        self._token = token

    def put(self, callback: Callable[[], None]) -> None:
        """Let a callback run soon; from any thread."""
        self._callbacks.append(callback)
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._run, idempotent=True)

    def _run(self) -> None:
        for _ in range(min(len(self._callbacks), CALLBACKS_AT_ONCE)):
            self._callbacks.popleft()()
        if self._callbacks:
            self._token.run_sync_soon(self._run, idempotent=True)
