"""One node of a topology from its start to its end: it opens its services, listens, and keeps its parts open."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import trio

from trionode.channel.listener import SecureChannelListener
from trionode.channel.secure_channel import SecureChannel
from trionode.errors import ClosedError, HandshakeError, LocalError
from trionode.node.closing import close_in_order
from trionode.node.node import Hub, Node, open_node
from trionode.portal import Inlet
from trionode.protocol.wire.address import Address
from trionode.protocol.wire.route import Route
from trionode.relay.client import Relay
from trionode.routing.link import NodeLink
from trionode.routing.mailbox import Worker
from trionode.stream.client import Stream
from trionode.stream.service import StreamService
from trionode.topology.check.names import INDEX_SUFFIX
from trionode.topology.endpoints import parse_endpoint
from trionode.topology.errors import Problem, SpecError
from trionode.topology.run.resolve import resolve_access, resolve_trust, resolve_worker
from trionode.topology.run.setup import Prepared
from trionode.topology.run.startup_order import Kind, Part, routes_of
from trionode.topology.run.supervise import Supervised
from trionode.topology.spec import RouteSpec

#: Seconds of the first tries to open a channel; the last value is for all that follow. A handshake is lost if a hop of
#: its route is not open yet.
HANDSHAKE_TIMEOUTS = (1.0, 2.0, 5.0, 15.0, 30.0)
#: Seconds of the tries to open a stream or relay. A hub refuses in silence: the first try ends well before
#: START_TIMEOUT, so the error names it.
HUB_TIMEOUTS = (10.0, 30.0)
#: Seconds that streams, inlets and relays have at the end to deliver what was sent.
DISCONNECT_SECONDS = 1.0


class NodeRunner:
    """Runs one node of a topology."""

    def __init__(self, prepared: Prepared, *, is_whole: bool) -> None:
        """Import the workers; SpecError if that fails.

        Args:
          prepared: The prepared parts of the node.
          is_whole: Whether all nodes of the topology run here. Then an untrusted peer is a mistake in the spec, and
              raises; else it may be anyone who connected first, and the node tries again.
        """
        self.name = prepared.name
        self.spec = spec = prepared.spec
        self.identity = prepared.identity
        #: Where the node listens, as bound.
        self.endpoints: tuple[Address, ...] = ()
        #: Everything that the node keeps open.
        self.parts: dict[Part, Supervised[Any]] = {}
        self._prepared = prepared
        self._workers = self._import_workers()
        self._node: Node | None = None
        self._services: list[StreamService] = []
        self._listeners: list[SecureChannelListener] = []
        self._supervisors: trio.Nursery | None = None
        self._ending = trio.Event()
        self._ended = trio.Event()
        self._scope = trio.CancelScope()
        self._add("links", spec.links, self._open_link, _link_ended)
        self._add("streams", spec.streams, self._open_stream, _never)
        self._add("relays", spec.relays, self._open_relay, _never)
        fatal = HandshakeError if is_whole else ()
        self._add("secure_channels", spec.secure_channels, self._open_channel, _channel_closed, fatal)
        self._add("inlets", spec.inlets, self._open_inlet, _never)
        # A worker does not dial, so the node keeps the links open that its routes begin with.
        firsts = dict.fromkeys(route[0] for worker in spec.workers.values() for route in worker.sends)
        self._add("sends", filter(parse_endpoint, firsts), self._connect, _link_ended)

    def _add(
        self,
        kind: Kind,
        names: Iterable[str],
        open_: Callable[[str, int], Awaitable[Any]],
        ended: Callable[[Any], Awaitable[object]],
        fatal: type[HandshakeError] | tuple[()] = (),
    ) -> None:
        for name in names:
            part = Part(self.name, kind, name)
            self.parts[part] = Supervised(part, partial(open_, name), ended, fatal=(fatal,) if fatal else ())

    def _import_workers(self) -> Mapping[str, Worker]:
        """Import all workers; SpecError names every one that can't be imported."""
        imported: dict[str, Worker] = {}
        problems: list[Problem] = []
        for key, spec in self.spec.workers.items():
            sends = tuple(partial(self._route_of_worker, route) for route in spec.sends)
            try:
                imported[key] = resolve_worker(spec, ("nodes", self.name, "workers", key), sends)
            except SpecError as error:
                problems += error.problems
        if problems:
            raise SpecError(problems)
        return imported

    @property
    def node(self) -> Node:
        """The node; LocalError if it does not run."""
        if self._node is None:
            raise LocalError(f"node {self.name} does not run: it was stopped, or has crashed")
        return self._node

    # Routes

    def part(self, kind: Kind, name: str, what: str) -> Supervised[Any]:
        """Return a part by kind and name; LocalError if the spec has none."""
        part = Part(self.name, kind, name)
        if part not in self.parts:
            known = ", ".join(sorted(each.name for each in self.parts if each.kind == kind)) or "none"
            raise LocalError(f"node {self.name} has no {what} {name!r}; known are: {known}")
        return self.parts[part]

    def first_part(self, hops: Sequence[str]) -> Supervised[SecureChannel | Stream] | None:
        """Return the channel or stream that a route begins with, None if it begins otherwise.

        Raises LocalError if there is none of that name.
        """
        if isinstance(hops, str):
            raise LocalError(f"a route is a list of its hops, such as [{hops!r}]; this is the text {hops!r}")
        if not hops or not hops[0].startswith("@"):
            return None
        name = hops[0].removeprefix("@")
        for kind in ("secure_channels", "streams"):
            if found := self.parts.get(Part(self.name, kind, name)):
                return found
        known = ", ".join(f"@{each}" for each in sorted([*self.spec.secure_channels, *self.spec.streams])) or "none"
        raise LocalError(f"node {self.name} has no secure channel or stream {name!r}; known are: {known}")

    def route(self, hops: Sequence[str]) -> Route:
        """Return the route as it is now; ConnectionLost while its channel or stream is being opened."""
        first = self.first_part(hops)
        return Route(*hops) if first is None else Route(first.value, *hops[1:])

    async def open_route(self, hops: Sequence[str]) -> Route:
        """Return the route once its channel or stream is open."""
        first = self.first_part(hops)
        return Route(*hops) if first is None else Route(await first.wait_open(), *hops[1:])

    def _route_of_worker(self, hops: RouteSpec) -> Route:
        """Return a route of a worker as it is now; ConnectionLost while it is being opened."""
        link = self.parts.get(Part(self.name, "sends", hops[0]))
        return self.route(hops) if link is None else Route(link.value, *hops[1:])

    def _hub(self, hops: RouteSpec) -> Hub:
        """Return a function that opens the route to a hub. A stream or relay calls it again after each loss."""
        last: SecureChannel | None = None

        async def open_hub_route() -> Route:
            nonlocal last
            first = self.first_part(hops)
            if first is None:
                return Route(*hops)
            if last is not None:
                await (
                    last.aclose()
                )  # the hub was silent, perhaps because the channel has not noticed that its peer is gone
            opened = await first.wait_open(other_than=last)
            last = opened if isinstance(opened, SecureChannel) else None
            return Route(opened, *hops[1:])

        open_hub_route.__name__ = " => ".join(hops)
        return open_hub_route

    # Running

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the node until `aclose` or `crash`; `started` is called when its services are there and it listens."""
        prepared = self._prepared
        try:
            with self._scope:
                async with open_node(
                    *prepared.transports, vault=self.identity.vault, forwards=self.spec.forwards
                ) as node:
                    self._node = node
                    await self._serve(node)
                    async with trio.open_nursery() as self._supervisors:
                        task_status.started()
                        await self._ending.wait()
                        self._supervisors.cancel_scope.cancel()
                    await self._ending.wait()  # `disconnect` may have cancelled the nursery
                    await close_in_order(node, self._services)
        finally:
            self._node = self._supervisors = None
            self._ended.set()

    async def supervise(self, part: Part) -> None:
        """Open a part, and keep it open from then on. Return when it is open for the first time."""
        assert self._supervisors is not None
        await self._supervisors.start(self.parts[part].run)

    async def _serve(self, node: Node) -> None:
        """Open the services, and listen last."""
        spec, known = self.spec, self._prepared.identifiers
        if (relays := spec.relay_service) is not None:
            allow = resolve_access(relays.allow, known)
            await node.serve_relays(prefix=relays.prefix, allow=allow, limits=relays.limits)
        for key, service in spec.stream_services.items():
            self._services.append(
                await node.serve_streams(
                    self._prepared.stores[key],
                    service=key,
                    index_service=service.index or key + INDEX_SUFFIX,
                    allow=resolve_access(service.allow, known),
                    limits=service.limits,
                )
            )
        for key, outlet in spec.outlets.items():
            allow = resolve_access(outlet.allow, known)
            await node.serve_outlet(key, outlet.target, allow=allow, limits=outlet.limits)
        for key, listener in spec.secure_channel_listeners.items():
            self._listeners.append(
                await node.serve_secure_channels(
                    key,
                    self.identity,
                    trust=resolve_trust(listener.trust, known),
                    allow=resolve_access(listener.allow, known),
                    protocol_versions=listener.protocol_versions,
                )
            )
        for key, worker in spec.workers.items():
            allow = resolve_access(worker.allow, known)
            await node.start_worker(
                key,
                self._workers[key],
                allow=allow,
                bound=worker.bound,
                stall_timeout=worker.stall_timeout,
                on_error=worker.on_error,
            )
        self.endpoints = tuple([await self._listen(node, index) for index in range(len(spec.listen))])

    async def _listen(self, node: Node, index: int) -> Address:
        spec = self.spec.listen[index]
        try:
            return await node.listen(spec.address, drop_when_full=spec.drop_when_full)
        except LocalError as error:
            raise SpecError([Problem(("nodes", self.name, "listen", index), str(error))]) from error

    # Opening parts: each takes the name of the part and the number of failures in a row.

    async def _open_link(self, key: str, _failures: int) -> NodeLink:
        spec = self.spec.links[key]
        if spec.dial == "on_demand":
            await trio.lowlevel.checkpoint()
            return self.node.dial_on_demand(spec.to, name=key, drop_when_full=spec.drop_when_full)
        return await self.node.connect(spec.to, name=key, drop_when_full=spec.drop_when_full)

    async def _connect(self, endpoint: str, _failures: int) -> NodeLink:
        return await self.node.connect(endpoint)

    async def _open_stream(self, key: str, failures: int) -> Stream:
        spec = self.spec.streams[key]
        return await self.node.open_stream(
            self._hub(spec.via),
            sends=spec.sends,
            receives=spec.receives,
            service=spec.service,
            index_service=spec.index_service,
            client_id=spec.client_id,
            start=spec.start,
            protocol_version=spec.protocol_version,
            timeout=_timeout(HUB_TIMEOUTS, failures),
        )

    async def _open_relay(self, key: str, failures: int) -> Relay:
        spec = self.spec.relays[key]
        to = None if spec.to is None else Route(*spec.to)
        return await self.node.open_relay(self._hub(spec.via), key, to=to, timeout=_timeout(HUB_TIMEOUTS, failures))

    async def _open_channel(self, key: str, failures: int) -> SecureChannel:
        spec = self.spec.secure_channels[key]
        return await self.node.open_secure_channel(
            await self.open_route(spec.to),
            self.identity,
            trust=resolve_trust(spec.trust, self._prepared.identifiers),
            protocol_version=spec.protocol_version,
            timeout=_timeout(HANDSHAKE_TIMEOUTS, failures),
        )

    async def _open_inlet(self, key: str, _failures: int) -> Inlet:
        spec = self.spec.inlets[key]
        try:
            return await self.node.open_inlet(spec.listen, partial(self.open_route, spec.to), limits=spec.limits)
        except ClosedError:
            raise  # the node has ended meanwhile
        except LocalError as error:
            raise SpecError([Problem(("nodes", self.name, "inlets", key, "listen"), str(error))]) from error

    # Ending

    async def disconnect(self, *, others_stay: bool) -> None:
        """Close the inlets, relays, streams and channels while the other nodes are still there.

        A stream first confirms what was sent.

        Parts that lead through a channel or stream close before it, so the peer at the other end is notified. If other
        nodes stay, the channels that they have opened with this node are closed, too.
        """
        if self._supervisors is None:
            return  # the node has ended meanwhile
        self._supervisors.cancel_scope.cancel()
        by_depth: dict[int, list[Supervised[Any]]] = {}
        for part, route in routes_of(self.name, self.spec):
            if self.parts[part].is_open:
                by_depth.setdefault(self._depth(route), []).append(self.parts[part])
        with trio.move_on_after(DISCONNECT_SECONDS):
            for listener in self._listeners if others_stay else ():
                await listener.aclose()
            for _, level in sorted(by_depth.items(), reverse=True):
                async with trio.open_nursery() as nursery:
                    for supervised in level:
                        nursery.start_soon(supervised.value.aclose)

    def _depth(self, route: RouteSpec) -> int:
        """Return how many channels and streams of this node a route leads through, one within the other."""
        name = route[0].removeprefix("@")
        if name == route[0]:
            return 0
        spec = self.spec
        return 1 + self._depth(spec.streams[name].via if name in spec.streams else spec.secure_channels[name].to)

    async def aclose(self) -> None:
        """End in order: services answer the requests that they have, and links are flushed and closed."""
        self._ending.set()
        await self._ended.wait()

    async def crash(self) -> None:
        """End at once, and send nothing."""
        self._scope.cancel()
        await self._ended.wait()


def _timeout(timeouts: Sequence[float], failures: int) -> float:
    return timeouts[min(failures, len(timeouts) - 1)]


async def _link_ended(link: NodeLink) -> None:
    await link.ended.wait()


async def _channel_closed(channel: SecureChannel) -> None:
    await channel.closed.wait()


async def _never(_: object) -> None:
    """Streams, relays and inlets last as long as their node, since they reconnect by themselves."""
    await trio.sleep_forever()
