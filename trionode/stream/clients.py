"""The clients of a stream service: the limits of each, and the resources that it uses now."""

import attrs

from trionode.protocol.rules.access import client_of
from trionode.protocol.wire.address import Encoded
from trionode.protocol.wire.message import Origin
from trionode.routing.byte_budget import ByteBudget
from trionode.routing.router import Router

#: Clients that are remembered before those with nothing outstanding and without a link are forgotten.
MAX_CLIENTS = 256


@attrs.frozen
class StreamLimits:
    """What one client (a link, or an authenticated identity) may make a hub hold.

    Attributes:
      streams: Streams that it may create or open.
      push_bytes: Bytes of pushes that wait for the store, each with PUSH_OVERHEAD. Over it the client's link is not
          read any further.
      requests: Pulls, creates and index requests that wait for an answer.
    """

    streams: int = 1000
    push_bytes: int = 1024 * 1024
    requests: int = 256


@attrs.define(eq=False)
class Client:
    """The outstanding requests of one client."""

    #: Its pushes that wait for the store.
    budget: ByteBudget
    #: The streams that it has created or opened.
    opened: set[str] = attrs.Factory(set)
    #: Its requests that wait for an answer.
    requests: int = 0


class Clients:
    """The clients that have something outstanding, or a link to this node."""

    def __init__(self, router: Router, limits: StreamLimits) -> None:
        self._router = router
        self.limits = limits
        self._clients: dict[Encoded | bytes | None, Client] = {}

    def get(self, origin: Origin) -> Client:
        """Return the client that a message of this origin comes from."""
        key = client_of(origin)
        client = self._clients.get(key)
        if client is None:
            if len(self._clients) >= MAX_CLIENTS:
                self._forget_idle()
            client = self._clients[key] = Client(ByteBudget(self.limits.push_bytes))
        return client

    def _forget_idle(self) -> None:
        for key, client in list(self._clients.items()):
            if not client.budget.size and not client.requests and (key is None or key not in self._router):
                del self._clients[key]

    def close(self) -> None:
        """Let readers of links that wait for a budget continue."""
        for client in self._clients.values():
            client.budget.close()
