"""The connection to a hub, of several that may stand in for each other, opened again whenever it is lost."""

from collections.abc import Awaitable, Callable, Sequence

import trio

from trionode.errors import ConnectionLost, RemoteError, UnknownAddressError
from trionode.log import log, sanitize
from trionode.net.backoff import Backoff, reconnect
from trionode.protocol.wire.address import Encoded
from trionode.routing.router import Router

#: Opens a path to a hub, which may connect and make a channel: the encoded hops before the hub's services, at least
#: one.
OpenPath = Callable[[], Awaitable[tuple[Encoded, ...]]]


class HubConnection:
    """A path to one of several hubs.

    After a loss it tries the same hub first, or the next one if this one was silent.
    """

    def __init__(self, router: Router, hubs: Sequence[tuple[str, OpenPath]]) -> None:
        """Take the hubs by preference, each with a name for logs and a function that opens a path to it."""
        #: The hub that is connected, or that is tried.
        self.name = hubs[0][0]
        #: The encoded hops to the hub; empty while it is not connected.
        self.path: tuple[Encoded, ...] = ()
        #: Whether the hub has answered since the path was opened. The owner of this object sets it.
        self.has_answered = False
        self._router = router
        self._hubs = hubs
        self._turn = 0
        self._next_hub = False
        # By name. Only a hub that has answered before is suspected: one that refuses is silent too.
        self._known: set[str] = set()
        self._scope = trio.CancelScope()

    def drop(self, *, next_hub: bool = False) -> None:
        """Leave this path and open another.

        Args:
          next_hub: Try the next hub, although this one has answered before.
        """
        self._next_hub |= next_hub
        self._scope.cancel()

    async def keep(
        self,
        use: Callable[[], Awaitable[None]],
        lost: Callable[[], None],
        unreachable: Callable[[RemoteError], bool],
    ) -> None:
        """Connect, call `use`, wait until the connection is lost, and connect again.

        Args:
          use: Called whenever a path was opened, and cancelled when that is lost.
          lost: Called after each loss, for the log.
          unreachable: Called when every hub has failed in a row; returns whether to go on.
        """
        backoff = Backoff(peers=len(self._hubs))

        async def connect() -> tuple[Encoded, ...]:
            self.name, open_path = self._hubs[self._turn % len(self._hubs)]
            path = await open_path()
            if backoff.failures:
                log.info("connected to the hub %s again", self.name)
            return path

        async def use_path(path: tuple[Encoded, ...]) -> bool:
            with trio.CancelScope() as self._scope:
                self.path, self.has_answered, self._next_hub = path, False, False
                self._router.on_close(path[0], self._scope.cancel)
                try:
                    await use()
                    await trio.sleep_forever()
                finally:
                    self.path = ()
                    self._router.forget(path[0], self._scope.cancel)  # the link may live on
                    if self.has_answered:
                        self._known.add(self.name)
                    if self._next_hub and self.name in self._known:
                        self._router.suspect(path[0])
            if not self._router.is_ending:
                lost()
            # The same hub again, since it may only have restarted; the next one if this one never answered, or no
            # longer does.
            self._turn += self._next_hub or not self.has_answered
            return self.has_answered

        def failed(error: RemoteError | UnknownAddressError, delay: float) -> bool:
            self._turn += 1
            if backoff.failures >= len(self._hubs):
                remote = error if isinstance(error, RemoteError) else ConnectionLost(str(error))
                if not unreachable(remote):
                    return False
            log.warning("no connection to the hub %s: %s; trying again in %.1f s", self.name, sanitize(error), delay)
            return True

        await reconnect(connect, use_path, failed, backoff)
