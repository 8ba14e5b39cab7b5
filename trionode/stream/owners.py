"""The owners of the streams of a store, and the clients that may use them."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from trionode.log import LogThrottle, sanitize
from trionode.protocol.rules import stream as rules
from trionode.protocol.wire.message import Origin
from trionode.routing.router import Router
from trionode.stream.clients import Clients
from trionode.stream.store.base import FinalError, StoreError, StreamStore

#: Seconds until the store is asked again for clients that do not ask again themselves.
RETRY_SECONDS = 0.5

T = TypeVar("T")


class StoreLog:
    """Logs failures of a store, each kind for each stream at most once a minute, since peers can cause them."""

    def __init__(self) -> None:
        self._throttle = LogThrottle()

    def failed(self, what: str, stream: object, error: StoreError) -> None:
        """Log a failure; `what` has a place for the stream and one for the error."""
        self._throttle.log_warning(f"{what}{stream}", what, sanitize(stream), sanitize(error))


class Owners:
    """Asks the store for the owner of a stream, remembers the answer, and applies the rules of ownership."""

    def __init__(self, router: Router, store: StreamStore, clients: Clients, store_log: StoreLog) -> None:
        self._router = router
        self._store = store
        self._clients = clients
        self._log = store_log
        self._owners: dict[str, str] = {}

    def __contains__(self, stream: str) -> bool:
        """Whether the owner of a stream is known."""
        return stream in self._owners

    def may_use(self, stream: str, origin: Origin) -> bool:
        """Whether the client of this origin may use a stream."""
        owner = self._owners.get(stream, rules.ANYONE)
        return rules.may_use_stream(stream, owner, rules.owner_of(origin.identifier))

    def may_use_position(self, client_id: str, stream: str, origin: Origin) -> bool:
        """Whether the client of this origin may save or read a position in a stream."""
        owner = self._owners.get(stream, rules.ANYONE)
        return rules.may_use_position(client_id, stream, owner, rules.owner_of(origin.identifier))

    async def open(self, stream: str, origin: Origin) -> str | None:
        """Create a stream, unless it exists, for the client of this origin.

        The owner is known only afterwards: a stream's worker can be used without a create, so the first client on this
        hub need not be the one that created the stream on another hub.

        Returns:
          Why the client may not use the stream, or None if it may.
        """
        opened = self._clients.get(origin).opened
        limit = self._clients.limits.streams
        if not rules.may_open_another(stream, opened, limit):
            return f"this hub lets a client use {limit} streams"
        is_new = stream not in opened
        # Counted before the store is asked, so that requests at the same time don't pass the limit together.
        opened.add(stream)
        refusal: str | None = "the service has ended"
        try:
            refusal = await self._create(stream, origin)
        finally:
            if refusal is not None and is_new:
                opened.discard(stream)
        return refusal

    async def _create(self, stream: str, origin: Origin) -> str | None:
        owner = rules.owner_of(origin.identifier)
        try:
            self._owners[stream] = await self.ask(
                "the stream %s could not be created: %s", stream, origin, lambda: self._store.create(stream, owner)
            )
        except StoreError as error:
            return f"the stream could not be created: {error}"
        return None if self.may_use(stream, origin) else "the stream belongs to another identity"

    async def ask(self, failure: str, stream: str, origin: Origin, call: Callable[[], Awaitable[T]]) -> T:
        """Call the store, and again after a failure for a client that asks only once, for as long as its link lasts.

        Args:
          failure: The log line of a failure, with a place for the stream and one for the error.
          stream: The stream that the call is about.
          origin: The origin of the client's request.
          call: Calls the store.

        Returns:
          The store's answer.

        Raises:
          StoreError: The store failed, and another try is not needed or of no use.
        """
        while True:
            try:
                return await call()
            except StoreError as error:
                self._log.failed(failure, stream, error)
                if origin.resends or isinstance(error, FinalError):
                    raise
                await trio.sleep(RETRY_SECONDS)
                if origin.link is not None and origin.link not in self._router:
                    raise
