"""The lifecycle that services share: a nursery for the tasks that their hops start, and one end for all of them."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio


class Service:
    """The tasks of something that a node serves or keeps open; a base class.

    A subclass runs its body in `async with self._serving()`. Its hops start tasks by `_start_soon`, which refuses them
    once the body has
    ended: links still read then, and a closed nursery starts no tasks.
    """

    def __init__(self) -> None:
        self._nursery: trio.Nursery | None = None
        self._scope = trio.CancelScope()
        self._ended = trio.Event()

    @asynccontextmanager
    async def _serving(self) -> AsyncIterator[trio.Nursery]:
        """Open the nursery, for the length of a block or until `aclose`; then wait for the tasks in it."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    self._nursery = nursery
                    try:
                        yield nursery
                    finally:
                        self._nursery = None
        finally:
            self._ended.set()

    def _start_soon(self, task: Callable[..., Awaitable[object]], *args: object) -> bool:
        """Start a task, unless the service has ended; whether it was started."""
        if self._nursery is None:
            return False
        self._nursery.start_soon(task, *args)
        return True

    @property
    def is_ended(self) -> bool:
        """Whether all its tasks have ended."""
        return self._ended.is_set()

    async def aclose(self) -> None:
        """End the service and wait for its tasks; a second time it does nothing.

        If cancelled, the service still ends.
        """
        self._scope.cancel()
        await self._ended.wait()
