"""Topologies that run in memory and in virtual time, with every observer recorded: the net under the analysis."""

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, ClassVar, Never
from unittest.mock import patch

import attrs
import trio
from trio.testing import wait_all_tasks_blocked

from trionode import Message, Node, Route
from trionode.channel import handshakers
from trionode.channel.hops import ChannelHops
from trionode.channel.secure_channel import SecureChannel
from trionode.errors import TrionodeError, WireError
from trionode.net.transport import Link, Transport
from trionode.protocol.stream.messages import PullResponse, PushRequest, decode_request, decode_response
from trionode.protocol.wire.current_codec import CURRENT
from trionode.protocol.wire.message import Origin
from trionode.routing.byte_budget import ByteBudget
from trionode.routing.mailbox import Mailbox
from trionode.routing.router import Router
from trionode.stream.service import StreamService
from trionode.stream.store.base import Push, Stored, StoreError, StreamStore
from trionode.stream.store.memory import MemoryStore
from trionode.topology.run.node import RunningNode
from trionode.topology.run.resolve import resolve_trust
from trionode.topology.run.topology import RunningTopology, run_topology
from trionode.topology.spec import NodeSpec, TopologySpec
from trionode.verify.model.messages import RANDOM, Observer
from trionode.verify.paths import Observation, Path
from trionode_loopback import Loopback, LoopbackLink

#: The payload that is sent, its answer, and the payload that an attacker injects; all have the same length.
MARKER, ANSWER, EVIL = b"\x00the-plain-marker\x00", b"\x00the-plain-answer\x00", b"\x00the-evil--marker\x00"
#: Seconds of virtual time to wait for answers that may not come.
SOON, LATE = 3.0, 14.0


@attrs.define
class Sighting:
    """What an observer sees: the message, the answer, and which names."""

    request: bool = False
    reply: bool = False
    names: set[bytes] = attrs.Factory(set)


@attrs.define(eq=False)
class Recorder:
    """Records all frames, all messages within nodes, all records of streams, and what workers took; can change what
    passes.
    """

    names: frozenset[bytes] = frozenset()
    seen: dict[Observer, Sighting] = attrs.Factory(dict)
    #: Node, worker, payload and origin of the messages that workers took.
    taken: list[tuple[str, str, bytes, Origin]] = attrs.Factory(list)
    routers: dict[Router, str] = attrs.Factory(dict)
    #: Payloads of the protocols between nodes, as they are on the wire.
    control: set[bytes] = attrs.Factory(set)
    in_control: int = 0
    #: Changes what passes an observer.
    tamper: "Callable[[Observer, bytes], tuple[bytes, ...] | None] | None" = None
    stores: dict[int, str] = attrs.Factory(dict)
    #: The node that listens at each address.
    listeners: dict[str, str] = attrs.Factory(dict)

    def clear(self) -> None:
        self.seen.clear()
        self.taken.clear()

    def record(self, observer: Observer, *parts: bytes) -> None:
        sighting = self.seen.setdefault(observer, Sighting())
        for part in parts:
            sighting.request |= MARKER in part
            sighting.reply |= ANSWER in part
            sighting.names.update(name for name in self.names if name in part)

    def is_control(self, payload: bytes) -> bool:
        """Whether a payload belongs to a protocol between nodes, also in records of a stream over another stream."""
        if payload in self.control:
            return True
        try:
            request = decode_request(payload)
        except WireError:
            pass
        else:
            return not isinstance(request, PushRequest) or self._holds_control(request.record)
        try:
            response = decode_response(payload)
        except WireError:
            return False
        records = response.records if isinstance(response, PullResponse) else ()
        return all(self._holds_control(record.message) for record in records)

    def without_control(self, payload: bytes) -> bytes:
        """Return a payload without the records that belong to protocols between nodes."""
        try:
            response = decode_response(payload)
        except WireError:
            return payload
        records = response.records if isinstance(response, PullResponse) else ()
        return b"".join(record.message for record in records if not self._holds_control(record.message))

    def _holds_control(self, record: bytes) -> bool:
        try:
            return self.is_control(CURRENT.decode(record)[2])
        except WireError:
            return False

    def message(self, router: Router, message: Message) -> None:
        """Record a message within a node, and change it if the node is the attacker."""
        if self.in_control:
            self.control.add(message.payload)
        name = self.routers.get(router)
        if name is not None and not self.is_control(message.payload):
            observer = Observer("node", name)
            self.record(observer, *message.onward, *message.back, self.without_control(message.payload))
            (message.payload,) = self.changed(observer, message.payload)

    def frame(self, dialler: str, where: str, frame: bytes) -> tuple[bytes, ...]:
        onward, back, payload = CURRENT.decode(frame)
        if not onward or self.is_control(payload):
            return (frame,)
        for observer, is_seen in self.observers(dialler, where):
            self.record(observer, *((*onward, *back, self.without_control(payload)) if is_seen else ()))
        return self.changed(self.connection(dialler, where), frame)

    def changed(self, at: Observer, data: bytes) -> tuple[bytes, ...]:
        return (None if self.tamper is None else self.tamper(at, data)) or (data,)

    def connection(self, dialler: str, where: str) -> Observer:
        return Observer("connection", f"{dialler} → {self.listeners[where]} ({where.partition(':')[0]})")

    def observers(self, dialler: str, where: str) -> Iterator[tuple[Observer, bool]]:
        """Yield each observer of a connection's frames, and whether it sees plaintext."""
        transport = where.partition(":")[0]
        if transport == "kafka":
            yield Observer("store", where), True
        if transport != "loopback":
            yield self.connection(dialler, where), transport not in {"tls", "wss"}


RECORDER = Recorder()


class RecordedLink:
    """A link whose frames RECORDER sees, and can change."""

    def __init__(self, link: Link, dialler: str, where: str) -> None:
        self._link, self._dialler, self._where = link, dialler, where
        self.peer, self.protocol_version, self.max_frame = link.peer, link.protocol_version, link.max_frame
        self.receive, self.send_eof, self.aclose = link.receive, link.send_eof, link.aclose

    async def send(self, frames: Sequence[bytes]) -> None:
        await self._link.send([each for frame in frames for each in RECORDER.frame(self._dialler, self._where, frame)])


class RecordedTransport(Transport):
    """One node's transport of any name, in memory."""

    name: ClassVar[str] = ""

    def __init__(self, name: str, network: Loopback, node: str) -> None:
        self._of_links, self._network, self._node = name, network, node

    async def connect(self, peer: str) -> Link:
        link = await self._network.connect(f"{self.name}/{peer}")
        assert isinstance(link, LoopbackLink)
        _DIALLERS[id(link._incoming)] = self._node
        return RecordedLink(link, self._node, f"{self.name}:{peer}")

    async def serve(
        self,
        at: str,
        accept: Callable[[Link], Awaitable[None]],
        *,
        task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
    ) -> Never:
        RECORDER.listeners[f"{self.name}:{at}"] = self._node

        async def take(link: Link) -> None:
            assert isinstance(link, LoopbackLink)
            await accept(RecordedLink(link, _DIALLERS[id(link._outgoing)], f"{self.name}:{at}"))

        await self._network.serve(f"{self.name}/{at}", take, task_status=_Renamed(task_status, at))


#: The node that dialled, by the memory channel that it reads.
_DIALLERS: dict[int, str] = {}


class _Renamed(trio.TaskStatus[str]):
    """Reports an address without the name that loopback gave it."""

    def __init__(self, status: trio.TaskStatus[str], at: str) -> None:
        self._status, self._at = status, at

    def started(self, value: str | None = None) -> None:
        del value
        self._status.started(self._at)


def recorded(name: str, network: Loopback) -> Callable[[str], Transport]:
    """Return a function that makes a transport of any name for a node."""
    of_name = type(f"Recorded_{name}", (RecordedTransport,), {"name": name})

    def make(node: str) -> Transport:
        made: Transport = of_name(name, network, node)
        return made

    return make


@contextmanager
def recording() -> Iterator[None]:
    """Let RECORDER see all that passes.

    Listeners do not offer the delivery layer: its acknowledgements belong to no flow, and it sends again what an attacker
    drops.
    """
    deliver, bridge, encrypt, append = Router.deliver, Router.bridge, ChannelHops.encrypt, MemoryStore._append

    def recorded_deliver(router: Router, message: Message) -> ByteBudget | None:
        RECORDER.message(router, message)
        return deliver(router, message)

    def recorded_bridge(router: Router, message: Message) -> ByteBudget | None:
        RECORDER.message(router, message)
        return bridge(router, message)

    def recorded_encrypt(channel: ChannelHops, message: Message) -> ByteBudget | None:
        is_control = RECORDER.is_control(message.payload)
        RECORDER.in_control += is_control
        try:
            return encrypt(channel, message)
        finally:
            RECORDER.in_control -= is_control

    def recorded_append(store: MemoryStore, push: Push) -> Stored | StoreError:
        if id(store) not in RECORDER.stores or RECORDER._holds_control(push.record):
            return append(store, push)
        observer = Observer("store", f"memory of {RECORDER.stores[id(store)]}")
        RECORDER.record(observer, push.stream.encode(), push.record)
        first, *more = RECORDER.changed(observer, push.record)
        for record in more:
            append(store, Push(push.stream, b"an attacker", len(store._streams[push.stream].records), record))
        return append(store, attrs.evolve(push, record=first))

    with (
        patch.object(Router, "deliver", recorded_deliver),
        patch.object(Router, "bridge", recorded_bridge),
        patch.object(ChannelHops, "encrypt", recorded_encrypt),
        patch.object(handshakers, "Offer", lambda: None),
        patch.object(MemoryStore, "_append", recorded_append),
    ):
        yield


async def noting_worker(mailbox: Mailbox, *, node: str, name: str, sends: Sequence[Callable[[], Route]] = ()) -> None:
    """A worker that notes each message, answers it, and passes it on."""
    async for message in mailbox:
        RECORDER.taken.append((node, name, message.payload, message.origin))
        if message.payload in {MARKER, EVIL} and message.back:
            await mailbox.reply(message, ANSWER)
        for route in sends:
            try:
                await mailbox.send(route(), message.payload)
            except TrionodeError:
                RECORDER.taken.append((node, name, b"lost", message.origin))


@attrs.define(eq=False)
class Harness:
    """A running topology with everything open that can be opened."""

    spec: TopologySpec
    running: RunningTopology
    #: What could not be opened when it was tried: node, kind, name.
    unopened: set[tuple[str, str, str]] = attrs.Factory(set)

    async def ask(self, node: str, hops: Sequence[str], payload: bytes = MARKER) -> bytes | None:
        """Send a message and return the answer, if one came."""
        try:
            answer = await self.running[node].ask(hops, payload, timeout=SOON)
        except TrionodeError:
            await wait_all_tasks_blocked()
            return None
        await wait_all_tasks_blocked()
        return answer.payload


@asynccontextmanager
async def run(spec: TopologySpec, unopened: Collection[tuple[str, str, str]]) -> AsyncIterator[Harness]:
    """Run a topology without the parts that the analysis says cannot be opened; then try to open those too."""
    network = Loopback()
    RECORDER.__init__()  # type: ignore[misc]
    _DIALLERS.clear()
    names = {listener.address.partition(":")[0] for node in spec.nodes.values() for listener in node.listen}
    transports = {name: recorded(name, network) for name in names}
    async with run_topology(_without(spec, unopened), transports=transports) as running:
        for each in running:
            RECORDER.routers[each.node._router] = each.name
            RECORDER.stores.update((id(store), each.name) for store in _stores(each.node))
        await wait_all_tasks_blocked()
        harness = Harness(spec, running)
        for each in running:
            for name in running.spec.nodes[each.name].secure_channels:
                if not _is_taken(harness, each, each.channel(name)):
                    harness.unopened.add((each.name, "secure_channels", name))
        for node, kind, name in unopened:
            if not await _opens(harness, node, kind, name):
                harness.unopened.add((node, kind, name))
        await trio.sleep(71.37)  # all second attempts are over, and so are the pulls of streams that opened half
        yield harness


def _without(spec: TopologySpec, unopened: Collection[tuple[str, str, str]]) -> TopologySpec:
    nodes = {}
    for name, node in spec.nodes.items():
        gone = {(kind, key) for where, kind, key in unopened if where == name}

        def left(kind: str, node: NodeSpec = node, gone: set[tuple[str, str]] = gone) -> dict[str, Any]:
            return {key: each for key, each in getattr(node, kind).items() if (kind, key) not in gone}

        names = {f"@{key}" for _, key in gone}
        workers = {
            key: attrs.evolve(each, sends=[route for route in each.sends if route[0] not in names])
            for key, each in node.workers.items()
        }
        nodes[name] = attrs.evolve(
            node,
            workers=workers,
            secure_channels=left("secure_channels"),
            streams=left("streams"),
            relays=left("relays"),
        )
    return attrs.evolve(spec, nodes=nodes, flows={})


async def _opens(harness: Harness, where: str, kind: str, key: str) -> bool:
    """Return whether something can be opened, whatever the analysis says."""
    running, node_spec = harness.running[where], harness.spec.nodes[where]
    node = running.node
    try:
        match kind:
            case "relays":
                relay = node_spec.relays[key]
                to = None if relay.to is None else Route(*relay.to)
                await node.open_relay(running.route(*relay.via), key, to=to, timeout=SOON)
            case "streams":
                stream = node_spec.streams[key]
                await node.open_stream(
                    running.route(*stream.via),
                    sends=stream.sends,
                    receives=stream.receives,
                    service=stream.service,
                    index_service=stream.index_service,
                    timeout=SOON,
                )
            case _:
                channel_spec = node_spec.secure_channels[key]
                known = {each.name: (each.identity.identifier,) for each in harness.running}
                trust = resolve_trust(channel_spec.trust, known)
                channel = await node.open_secure_channel(
                    running.route(*channel_spec.to), running.identity, trust=trust, timeout=LATE
                )
                await wait_all_tasks_blocked()
                is_taken = _is_taken(harness, running, channel)
                if not is_taken:
                    await channel.aclose()
                return is_taken
    except TrionodeError:
        return False
    return True


def _is_taken(harness: Harness, opener: RunningNode, channel: SecureChannel) -> bool:
    """Return whether a channel has another side. Its opener cannot know that a listener refused it."""
    return any(
        channel._hops.route[-1] == side.decryptor and side.peer.identifier == opener.identity.identifier
        for each in harness.running
        for side in _channels(each.node)
    )


def _stores(node: Node) -> Iterator[StreamStore]:
    for entry in node._router._prefixes.values():
        service = getattr(entry.hop, "__self__", None)
        assert isinstance(service, StreamService)
        yield service._store


def _channels(node: Node) -> Iterator[ChannelHops]:
    for entry in node._router._table.values():
        owner = getattr(entry.hop, "__self__", None)
        if isinstance(owner, ChannelHops):
            yield owner


# What the analysis says, in the same form


def names_of(spec: TopologySpec) -> frozenset[bytes]:
    """Return all names that messages could show; none is part of another."""
    names: set[str] = set()
    for node in spec.nodes.values():
        names |= {*node.workers, *node.secure_channel_listeners, *node.links, *node.relays, *node.stream_services}
        names |= {name for stream in node.streams.values() for name in (stream.sends, stream.receives)}
    return frozenset(name.encode() for name in names)


def predicted(spec: TopologySpec, path: Path) -> dict[Observer, Sighting]:
    """Return the view of each observer of a path, according to the analysis."""
    names = names_of(spec)
    return {each.at: _predicted(names, path, each) for each in path.observations if each.at.kind != "outsider"}


def _predicted(names: frozenset[bytes], path: Path, observation: Observation) -> Sighting:
    def reads(found: Observation | None) -> bool:
        return found is not None and found.visible.payload == "plaintext"

    visible = [each.encode() for each in observation.visible.addresses if not each.startswith(RANDOM)]
    found = {name for name in names if any(name in each for each in visible)}
    return Sighting(reads(path.request.at(observation.at)), reads(path.reply.at(observation.at)), found)
