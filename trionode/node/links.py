"""The links of a node: listening, connecting, dialling on demand, and closing them all at the end."""

from collections.abc import Callable, Iterable
from functools import partial

import trio

from trionode.counters import DropReason
from trionode.errors import ClosedError, ConfigError, LocalError
from trionode.log import LogThrottle, sanitize
from trionode.net.transport import Link, Transport
from trionode.protocol.rules.access import Access
from trionode.protocol.wire.address import Address, Encoded, local
from trionode.protocol.wire.route import Route, RouteLike
from trionode.routing.link import NodeLink
from trionode.routing.on_demand_link import OnDemandLink
from trionode.routing.router import Router, random_address

#: Links that one listener holds at a time; a further peer's link is closed at once.
MAX_LINKS = 10_000


class Links:
    """Makes links, and holds the open ones. The methods of `Node` describe each of these."""

    def __init__(
        self, router: Router, nursery: trio.Nursery, transports: Iterable[Transport], *, allow: Access
    ) -> None:
        #: Whether the node's block has ended; nothing more is opened then.
        self.is_closed = False
        self._router = router
        self._nursery = nursery
        self._transports = {transport.name: transport for transport in transports}
        self._allow = allow
        self._connected: dict[tuple[str, str | None], NodeLink] = {}
        self._dialing: dict[tuple[str, str | None], trio.Lock] = {}
        #: The open links, in the order in which they were opened: they are closed in that order, always the same.
        self._all: dict[NodeLink, None] = {}
        self._listening: set[trio.CancelScope] = set()

    def require_open(self) -> None:
        """Raise ClosedError if the node's block has ended."""
        if self.is_closed:
            raise ClosedError("this node's block has ended: open what you need within `async with open_node(...)`")

    def _transport(self, text: str) -> tuple[Transport, str]:
        """Return the transport of an address such as `tcp:127.0.0.1:4000`, and the address without its name."""
        self.require_open()
        address = Address.parse(text)
        if not address.transport:
            raise ConfigError(f"expected a transport address such as tcp:127.0.0.1:4000; this is {text!r}")
        if address.transport not in self._transports:
            raise ConfigError(
                f"this node was opened with the transports {sorted(self._transports)}, but {text!r} needs "
                f"{address.transport!r}: name it in open_node"
            )
        return self._transports[address.transport], address.value.decode()

    async def listen(self, at: str, *, drop_when_full: bool) -> Address:
        """See `Node.listen`."""
        transport, where = self._transport(at)
        accepted: set[NodeLink] = set()
        log_throttle = LogThrottle()

        async def accept(link: Link) -> None:
            if self.is_closed:
                await link.aclose()
                return
            if len(accepted) >= MAX_LINKS:
                self._router.counters[DropReason.TOO_MANY_LINKS] += 1
                text = "refused a link from %s: the listener at %s holds %d already; further refusals are only counted"
                log_throttle.log_warning("too many", text, sanitize(link.peer), at, MAX_LINKS)
                await link.aclose()
                return
            # The link's task is a child of the node, not of the listener, which may end before its links do. There is
            # no checkpoint up to here, so a listener that ends now leaves no link behind that nothing closes.
            accepted_link = self._add(link, drop_when_full=drop_when_full)
            accepted.add(accepted_link)
            try:
                await accepted_link.ended.wait()
            finally:
                accepted.discard(accepted_link)

        async def serve(*, task_status: trio.TaskStatus[str]) -> None:
            with trio.CancelScope() as scope:
                self._listening.add(scope)
                try:
                    await transport.serve(where, accept, task_status=task_status)
                finally:
                    self._listening.discard(scope)

        bound: str = await self._nursery.start(serve)
        return Address(bound, transport.name)

    def stop_listening(self) -> None:
        """See `Node.stop_listening`."""
        for scope in self._listening:
            scope.cancel()

    def _add(
        self,
        link: Link,
        *,
        drop_when_full: bool,
        address: Encoded | None = None,
        hang_up: Callable[[str], None] | None = None,
    ) -> NodeLink:
        """Give a link an address and a task, without a checkpoint; AddressInUseError if the address is taken."""
        node_link = NodeLink(
            self._router,
            address or random_address(),
            link,
            allow=self._allow,
            drop_when_full=drop_when_full,
            hang_up=hang_up,
        )
        self._all[node_link] = None
        self._nursery.start_soon(self._run, node_link)
        return node_link

    async def _run(self, node_link: NodeLink) -> None:
        try:
            await node_link._run()
        finally:
            self._all.pop(node_link, None)

    async def connect(self, peer: str, *, name: str | None = None, drop_when_full: bool = False) -> NodeLink:
        """See `Node.connect`."""
        key = peer, name
        async with self._dialing.setdefault(key, trio.Lock()):
            known = self._connected.get(key)
            if known is not None and known.is_open:
                return known
            transport, where = self._transport(peer)
            link = await transport.connect(where)
            try:
                self.require_open()  # the node's block may have ended meanwhile
                address = None if name is None else local(name)
                self._connected[key] = self._add(link, drop_when_full=drop_when_full, address=address)
            except LocalError:
                await link.aclose()
                raise
            return self._connected[key]

    def dial_on_demand(self, peer: str, *, name: str, drop_when_full: bool) -> NodeLink:
        """See `Node.dial_on_demand`."""
        transport, where = self._transport(peer)
        link = OnDemandLink(peer, partial(transport.connect, where), self._router.counters)
        return self._add(link, drop_when_full=drop_when_full, address=local(name), hang_up=link.hang_up)

    async def resolve(self, route: RouteLike) -> tuple[Encoded, ...]:
        """Return the encoded hops of a route.

        If the first hop is a transport address, connect it unless it is connected.
        """
        hops = Route.of(route).hops
        if hops and hops[0].transport:
            link = await self.connect(str(hops[0]))
            return (link.encoded, *Route(*hops[1:]).encoded)
        return Route.of(route).encoded

    async def aclose(self) -> None:
        """See `Node.aclose_links`."""
        self.stop_listening()
        async with trio.open_nursery() as nursery:
            for node_link in list(self._all):
                nursery.start_soon(node_link.aclose)
