"""A node of a test that can crash and start again."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Generic, Protocol, TypeVar

import trio

from trionode.errors import LocalError

T = TypeVar("T")


class _Crashes(Protocol):
    """The part of a network that a crash needs."""

    def crash(self, name: str, *, silent: bool = False) -> None: ...

    def revive(self, name: str) -> None: ...


class Crashable(Generic[T]):
    """A node that can crash; made by `FaultyNetwork.crashable`."""

    def __init__(
        self,
        network: _Crashes,
        name: str,
        run: Callable[[], AbstractAsyncContextManager[T]],
        nursery: trio.Nursery,
    ) -> None:
        self._network = network
        self._name = name
        self._make = run
        self._nursery = nursery
        self._run: _Run[T] | None = None

    @property
    def node(self) -> T:
        """What `run` has made.

        Raises:
          LocalError: If the node is down.
        """
        if self._run is None:
            raise LocalError(f"{self._name} is down: restart() it first")
        return self._run.made

    async def crash(self, *, silent: bool = False) -> None:
        """Cancel the node's tasks and wait for their end. Whatever they do meanwhile has no effect in the network.

        Args:
          silent: False: its peers lose their links. True: they receive nothing until the node is back, as if its
            machine had lost power.

        Raises:
          LocalError: If the node is down.

        If cancelled, the node is down, and its tasks may not have ended yet.
        """
        run = self._run
        if run is None:
            raise LocalError(f"{self._name} is down already: restart() it first")
        self._network.crash(self._name, silent=silent)
        self._run = None
        run.scope.cancel()
        await run.ended.wait()

    async def restart(self) -> T:
        """Run the node again.

        Returns:
          What `run` makes, once it is up.

        Raises:
          LocalError: If the node is not down.

        If cancelled, the node is down.
        """
        if self._run is not None:
            raise LocalError(f"{self._name} runs: crash() it first")
        self._network.revive(self._name)
        return await self._start()

    async def _start(self) -> T:
        self._run = run = _Run[T]()
        await self._nursery.start(run.run, self._make)
        return run.made

    def _stop(self) -> None:
        """Let the node end in good order."""
        if self._run is not None:
            self._run.stop.set()


class _Run(Generic[T]):
    """One run of a node."""

    def __init__(self) -> None:
        self.made: T
        self.scope = trio.CancelScope()
        self.stop = trio.Event()
        self.ended = trio.Event()

    async def run(
        self, make: Callable[[], AbstractAsyncContextManager[T]], *, task_status: trio.TaskStatus[None]
    ) -> None:
        try:
            with self.scope:
                async with make() as self.made:
                    task_status.started()
                    await self.stop.wait()
        finally:
            self.ended.set()
