"""A node of a topology that runs: what others reach is served, and what it needs of others is kept open."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import attrs
import trio

from trionode.channel.listener import SecureChannelListener
from trionode.channel.secure_channel import SecureChannel
from trionode.errors import AnswerTimeout, ClosedError, HandshakeError, LocalError
from trionode.identity.identity import Identity
from trionode.node.node import ANSWER_TIMEOUT, Hub, Node, open_node
from trionode.portal import Inlet
from trionode.protocol.wire.address import Address
from trionode.protocol.wire.message import Message
from trionode.protocol.wire.route import Route
from trionode.relay.client import Relay
from trionode.routing.link import NodeLink
from trionode.routing.mailbox import Worker
from trionode.stream.client import Stream
from trionode.stream.service import StreamService
from trionode.topology.check.names import INDEX_SUFFIX
from trionode.topology.endpoints import parse_endpoint
from trionode.topology.errors import Problem, SpecError
from trionode.topology.run.resolve import access_of, trust_of, worker_of
from trionode.topology.run.setup import Prepared
from trionode.topology.run.startup_order import Kind, Part
from trionode.topology.run.supervise import Kept
from trionode.topology.spec import NodeSpec, RouteSpec

T = TypeVar("T")

#: Seconds of the first tries to open a channel; the last for all that follow. What a handshake passes may not be there yet, and then it is lost.
HANDSHAKE_TIMEOUTS = (1.0, 2.0, 5.0, 15.0, 30.0)
#: Seconds of the tries to open a stream or relay. A hub refuses in silence: the first ends well before START_TIMEOUT, so that this is told.
HUB_TIMEOUTS = (10.0, 30.0)
#: Seconds that streams, inlets and relays get at the end for what was sent to arrive.
LEAVE_SECONDS = 1.0
#: Seconds for what peers still send when links are closed: less than the whole end may take, since stores come last.
DRAIN_SECONDS = 0.25


@attrs.frozen
class Opening:
    """Something that a node opens, and the task that opens it and keeps it open; `started` is told once it was open."""

    kept: "Kept[Any]"
    keep: Callable[..., Awaitable[None]]


class RunningNode:
    """A node of a running topology, with all that its spec describes; made by `run_topology`."""

    def __init__(self, prepared: Prepared, *, among_strangers: bool) -> None:
        self.name = prepared.name
        # Where all nodes run here, whom a policy refuses at first is a mistake in the spec; elsewhere it may be anybody who was faster.
        self._rising = () if among_strangers else (HandshakeError,)
        self.spec: NodeSpec = prepared.spec
        self.identity: Identity = prepared.identity
        #: Where it listens, as bound.
        self.endpoints: tuple[Address, ...] = ()
        self._workers = self._imported_workers()
        self._prepared = prepared
        self._node: Node | None = None
        self._services: list[StreamService] = []
        self._listeners: list[SecureChannelListener] = []
        self._keepers: trio.Nursery | None = None
        self._ending = trio.Event()
        self._ended = trio.Event()
        self._scope = trio.CancelScope()
        spec = self.spec
        self._links: dict[str, Kept[NodeLink]] = {key: Kept(self._part("links", key)) for key in spec.links}
        self._streams: dict[str, Kept[Stream]] = {key: Kept(self._part("streams", key)) for key in spec.streams}
        self._relays: dict[str, Kept[Relay]] = {key: Kept(self._part("relays", key)) for key in spec.relays}
        self._channels: dict[str, Kept[SecureChannel]] = {
            key: Kept(self._part("secure_channels", key)) for key in spec.secure_channels
        }
        self._inlets: dict[str, Kept[Inlet]] = {key: Kept(self._part("inlets", key)) for key in spec.inlets}
        #: Links that workers' routes begin with, by their places: a worker does not dial.
        self._dialled: dict[str, Kept[NodeLink]] = {
            route[0]: Kept(self._part("sends", route[0]))
            for worker in spec.workers.values()
            for route in worker.sends
            if parse_endpoint(route[0]) is not None
        }

    def _imported_workers(self) -> Mapping[str, Worker]:
        """Import all workers; SpecError tells of all that can't be."""
        workers: dict[str, Worker] = {}
        problems: list[Problem] = []
        for key, spec in self.spec.workers.items():
            sends = tuple(partial(self._route_of_worker, route) for route in spec.sends)
            try:
                workers[key] = worker_of(spec, ("nodes", self.name, "workers", key), sends)
            except SpecError as error:
                problems += error.problems
        if problems:
            raise SpecError(problems)
        return workers

    def _part(self, kind: Kind, key: str) -> Part:
        return Part(self.name, kind, key)

    @property
    def node(self) -> Node:
        """The node itself, for all that no spec describes; LocalError if it does not run."""
        if self._node is None:
            raise LocalError(f"node {self.name} does not run: it was stopped, or has crashed")
        return self._node

    def channel(self, name: str) -> SecureChannel:
        """Return the secure channel of that name as it is now; ConnectionLost while it is being opened again, LocalError if there is none."""
        return self._named(self._channels, name, "secure channel").value

    def stream(self, name: str) -> Stream:
        """Return the stream of that name, as `channel` does."""
        return self._named(self._streams, name, "stream").value

    def relay(self, name: str) -> Relay:
        """Return the relay of that name, as `channel` does."""
        return self._named(self._relays, name, "relay").value

    def inlet(self, name: str) -> Inlet:
        """Return the inlet of that name, which knows the port that it was bound to, as `channel` does."""
        return self._named(self._inlets, name, "inlet").value

    def _named(self, table: "Mapping[str, Kept[T]]", name: str, what: str) -> "Kept[T]":
        if name not in table:
            raise LocalError(
                f"node {self.name} has no {what} {name!r}; known are: {', '.join(sorted(table)) or 'none'}"
            )
        return table[name]

    # Messages

    def route(self, *hops: str) -> Route:
        """Return the route that hops mean on this node, as in the spec: `@bob` is its own channel or stream, as it is now.

        ConnectionLost while that is being opened again, LocalError if there is none.
        """
        own = self._own(hops)
        return Route(*hops) if own is None else Route(own.value, *hops[1:])

    async def send(self, hops: Sequence[str], body: bytes | str) -> None:
        """Send a payload along a route that is written as in the spec, once the channel or stream that it begins with is open; see `Node.send`."""
        await self.node.send(await self._way(hops), body)

    async def ask(self, hops: Sequence[str], body: bytes | str, *, timeout: float = ANSWER_TIMEOUT) -> Message:  # noqa: ASYNC109  # an answer always has a deadline
        """Send a payload along a route that is written as in the spec, and wait for the answer; see `Node.ask`.

        To wait for a channel or stream that is being opened again counts too.
        """
        deadline = trio.current_time() + timeout
        way = None
        with trio.CancelScope(deadline=deadline):
            way = await self._way(hops)
        if way is None:
            own = self._own(hops)
            assert own is not None
            raise AnswerTimeout(f"{own.part} was not open within {timeout:g} s: {own.reason}")
        return await self.node.ask(way, body, timeout=deadline - trio.current_time())

    def _own(self, hops: Sequence[str]) -> "Kept[SecureChannel] | Kept[Stream] | None":
        if isinstance(hops, str):
            raise LocalError(f"a route is a list of its hops, such as [{hops!r}]; this is the text {hops!r}")
        if not hops or not hops[0].startswith("@"):
            return None
        name = hops[0].removeprefix("@")
        own = self._channels.get(name) or self._streams.get(name)
        if own is None:
            known = ", ".join(f"@{each}" for each in sorted([*self._channels, *self._streams])) or "none"
            raise LocalError(f"node {self.name} has no secure channel or stream {name!r}; known are: {known}")
        return own

    async def _way(self, hops: Sequence[str]) -> Route:
        own = self._own(hops)
        return Route(*hops) if own is None else Route(await own.opened(), *hops[1:])

    def _hub(self, hops: RouteSpec) -> Hub:
        """The way to a hub for a stream or relay, which asks for it anew each time that it was lost."""
        last: SecureChannel | Stream | None = None

        async def open_way() -> Route:
            nonlocal last
            own = self._own(hops)
            if own is None:
                return Route(*hops)
            if isinstance(last, SecureChannel):
                # Who asks again has found it silent, even if nobody told the channel that its peer is gone.
                await last.aclose()
            last = await own.opened(but=last if isinstance(last, SecureChannel) else None)
            return Route(last, *hops[1:])

        open_way.__name__ = " => ".join(hops)
        return open_way

    def _route_of_worker(self, hops: RouteSpec) -> Route:
        """Return a route of a worker as it is now; ConnectionLost while it is none."""
        return Route(self._dialled[hops[0]].value, *hops[1:]) if hops[0] in self._dialled else self.route(*hops)

    # Its life

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Live until `end` or `crash`; `started` is told once all that waits for others is there."""
        prepared = self._prepared
        try:
            with self._scope:
                async with open_node(
                    *prepared.transports, vault=self.identity.vault, forwards=self.spec.forwards
                ) as node:
                    self._node = node
                    await self._serve(node)
                    async with trio.open_nursery() as self._keepers:
                        task_status.started()
                        await self._ending.wait()
                        self._keepers.cancel_scope.cancel()
                    await self._ending.wait()  # where `leave` has cancelled the first
                    await self._close(node)
        finally:
            self._node = self._keepers = None
            self._ended.set()

    async def _serve(self, node: Node) -> None:
        """Open what waits for others, and listen last."""
        spec, known = self.spec, self._prepared.identifiers
        if (relays := spec.relay_service) is not None:
            await node.serve_relays(prefix=relays.prefix, allow=access_of(relays.allow, known), limits=relays.limits)
        for key, service in spec.stream_services.items():
            self._services.append(
                await node.serve_streams(
                    self._prepared.stores[key],
                    service=key,
                    index_service=service.index or key + INDEX_SUFFIX,
                    allow=access_of(service.allow, known),
                    limits=service.limits,
                )
            )
        for key, outlet in spec.outlets.items():
            await node.serve_outlet(key, outlet.target, allow=access_of(outlet.allow, known), limits=outlet.limits)
        for key, listener in spec.secure_channel_listeners.items():
            self._listeners.append(
                await node.serve_secure_channels(
                    key,
                    self.identity,
                    trust=trust_of(listener.trust, known),
                    allow=access_of(listener.allow, known),
                    protocol_versions=listener.protocol_versions,
                )
            )
        for key, worker in spec.workers.items():
            allow = access_of(worker.allow, known)
            await node.start_worker(
                key, self._workers[key], allow=allow, bound=worker.bound, stall_timeout=worker.stall_timeout
            )
        self.endpoints = tuple([await self._listen(node, index) for index in range(len(spec.listen))])

    async def _listen(self, node: Node, index: int) -> Address:
        spec = self.spec.listen[index]
        try:
            return await node.listen(spec.address, drop_when_full=spec.drop_when_full)
        except LocalError as error:
            raise SpecError([Problem(("nodes", self.name, "listen", index), str(error))]) from error

    async def _close(self, node: Node) -> None:
        """End in the order in which nothing is lost that a client would not send again (spec §11.6, 7), as `trionode hub` does."""
        node.stop_listening()
        for service in self._services:
            await service.finish()
        with trio.move_on_after(DRAIN_SECONDS):
            await node.aclose_links()
        for service in self._services:
            await service.aclose()

    # What it keeps open

    @property
    def openings(self) -> Mapping[Part, Opening]:
        """All that it opens."""
        tables: Sequence[tuple[Mapping[str, Kept[Any]], Callable[..., Awaitable[None]]]] = (
            (self._links, self._keep_link),
            (self._dialled, self._keep_dialled),
            (self._streams, self._keep_stream),
            (self._relays, self._keep_relay),
            (self._channels, self._keep_channel),
            (self._inlets, self._keep_inlet),
        )
        return {kept.part: Opening(kept, partial(keep, key)) for table, keep in tables for key, kept in table.items()}

    async def open(self, opening: Opening) -> None:
        """Open one of them, and keep it open from then on."""
        assert self._keepers is not None
        await self._keepers.start(opening.keep)

    async def _keep_link(self, key: str, *, task_status: trio.TaskStatus[None]) -> None:
        spec = self.spec.links[key]

        async def open_(_: int) -> NodeLink:
            if spec.dial == "on_demand":
                await trio.lowlevel.checkpoint()
                return self.node.dial_on_demand(spec.to, name=key, drop_when_full=spec.drop_when_full)
            return await self.node.connect(spec.to, name=key, drop_when_full=spec.drop_when_full)

        await self._links[key].keep(open_, lambda link: link.ended.wait(), task_status=task_status)

    async def _keep_dialled(self, endpoint: str, *, task_status: trio.TaskStatus[None]) -> None:
        async def open_(_: int) -> NodeLink:
            return await self.node.connect(endpoint)

        await self._dialled[endpoint].keep(open_, lambda link: link.ended.wait(), task_status=task_status)

    async def _keep_stream(self, key: str, *, task_status: trio.TaskStatus[None]) -> None:
        spec = self.spec.streams[key]

        async def open_(failed: int) -> Stream:
            return await self.node.open_stream(
                self._hub(spec.via),
                sends=spec.sends,
                receives=spec.receives,
                service=spec.service,
                index_service=spec.index_service,
                client_id=spec.client_id,
                start=spec.start,
                protocol_version=spec.protocol_version,
                timeout=HUB_TIMEOUTS[min(failed, len(HUB_TIMEOUTS) - 1)],
            )

        await self._streams[key].keep(open_, _for_ever, task_status=task_status)

    async def _keep_relay(self, key: str, *, task_status: trio.TaskStatus[None]) -> None:
        spec = self.spec.relays[key]

        async def open_(failed: int) -> Relay:
            to = None if spec.to is None else Route(*spec.to)
            timeout = HUB_TIMEOUTS[min(failed, len(HUB_TIMEOUTS) - 1)]
            return await self.node.open_relay(self._hub(spec.via), key, to=to, timeout=timeout)

        await self._relays[key].keep(open_, _for_ever, task_status=task_status)

    async def _keep_channel(self, key: str, *, task_status: trio.TaskStatus[None]) -> None:
        spec = self.spec.secure_channels[key]
        trust = trust_of(spec.trust, self._prepared.identifiers)

        async def open_(failed: int) -> SecureChannel:
            return await self.node.open_secure_channel(
                await self._way(spec.to),
                self.identity,
                trust=trust,
                protocol_version=spec.protocol_version,
                timeout=HANDSHAKE_TIMEOUTS[min(failed, len(HANDSHAKE_TIMEOUTS) - 1)],
            )

        await self._channels[key].keep(
            open_, lambda channel: channel.closed.wait(), rising=self._rising, task_status=task_status
        )

    async def _keep_inlet(self, key: str, *, task_status: trio.TaskStatus[None]) -> None:
        spec = self.spec.inlets[key]

        async def open_(_: int) -> Inlet:
            try:
                return await self.node.open_inlet(spec.listen, partial(self._way, spec.to), limits=spec.limits)
            except ClosedError:
                raise  # the node has ended meanwhile
            except LocalError as error:
                raise SpecError([Problem(("nodes", self.name, "inlets", key, "listen"), str(error))]) from error

        await self._inlets[key].keep(open_, _for_ever, task_status=task_status)

    # Its end

    async def leave(self, *, others_stay: bool) -> None:
        """Take leave of the others while they are still there: close what it has opened, and let streams end once what was sent is confirmed.

        What leads through something goes before it, so that whoever is at its other end can be told. If others stay, those are told as well who
        have opened channels with this node.
        """
        if self._keepers is None:
            return  # it has ended meanwhile
        self._keepers.cancel_scope.cancel()
        spec = self.spec
        opened: list[tuple[Kept[Inlet] | Kept[Relay] | Kept[Stream] | Kept[SecureChannel], RouteSpec]] = [
            *((self._inlets[key], inlet.to) for key, inlet in spec.inlets.items()),
            *((self._relays[key], relay.via) for key, relay in spec.relays.items()),
            *((self._streams[key], stream.via) for key, stream in spec.streams.items()),
            *((self._channels[key], channel.to) for key, channel in spec.secure_channels.items()),
        ]
        by_depth: dict[int, list[Kept[Inlet] | Kept[Relay] | Kept[Stream] | Kept[SecureChannel]]] = {}
        for kept, route in opened:
            if kept.is_open:
                by_depth.setdefault(self._depth(route), []).append(kept)
        with trio.move_on_after(LEAVE_SECONDS):
            for listener in self._listeners if others_stay else ():
                await listener.aclose()
            for _, level in sorted(by_depth.items(), reverse=True):
                async with trio.open_nursery() as nursery:
                    for kept in level:
                        nursery.start_soon(kept.value.aclose)

    def _depth(self, route: RouteSpec) -> int:
        """How many of its own channels and streams a route of this node leads through, one within the other."""
        own = route[0].removeprefix("@")
        if own == route[0]:
            return 0
        spec = self.spec
        return 1 + self._depth(spec.streams[own].via if own in spec.streams else spec.secure_channels[own].to)

    async def end(self) -> None:
        """End in order: its services answer who waits, its links are flushed and closed."""
        self._ending.set()
        await self._ended.wait()

    async def crash(self) -> None:
        """End at once, without a word to anybody."""
        self._scope.cancel()
        await self._ended.wait()


async def _for_ever(_: object) -> None:
    """Streams, relays and inlets last as long as their node: they find their ways again themselves."""
    await trio.sleep_forever()
