"""Topologies that really run, in memory and in virtual time, with everybody who carries something watched: what the proof is held against."""

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, ClassVar, Never
from unittest.mock import patch

import attrs
import trio
from trio.testing import wait_all_tasks_blocked

from trionode import Message, Node, Route
from trionode.channel.secure_channel import SecureChannel
from trionode.errors import TrionodeError, WireError
from trionode.net.transport import Link, Transport
from trionode.protocol.stream import PullResponse, PushRequest, decode_request, decode_response
from trionode.protocol.wire.current_codec import CURRENT
from trionode.protocol.wire.message import Origin
from trionode.routing.byte_budget import ByteBudget
from trionode.routing.mailbox import Mailbox
from trionode.routing.router import Router
from trionode.stream.service import StreamService
from trionode.stream.store.base import Push, Stored, StoreError, StreamStore
from trionode.stream.store.memory import MemoryStore
from trionode.topology.run.node import RunningNode
from trionode.topology.run.resolve import trust_of
from trionode.topology.run.topology import RunningTopology, run_topology
from trionode.topology.spec import NodeSpec, TopologySpec
from trionode.verify.model.messages import RANDOM, Watcher
from trionode.verify.paths import Passed, Path
from trionode_loopback import Loopback, LoopbackLink

#: What is sent, what is answered, and what somebody puts in; all as long as one another.
MARKER, ANSWER, EVIL = b"\x00the-plain-marker\x00", b"\x00the-plain-answer\x00", b"\x00the-evil--marker\x00"
#: Seconds of virtual time for what may not come.
SOON, LATE = 3.0, 14.0


@attrs.define(eq=False)
class Sighting:
    """What somebody has seen since it was cleared."""

    there: bool = False
    back: bool = False
    evil: bool = False
    names: set[bytes] = attrs.Factory(set)


@attrs.define(eq=False)
class Spy:
    """Sees all frames, all messages within nodes, and all records, and who took what; can change what passes."""

    names: frozenset[bytes] = frozenset()
    seen: dict[Watcher, Sighting] = attrs.Factory(dict)
    #: Node, worker, payload and facts of what workers took.
    taken: list[tuple[str, str, bytes, Origin]] = attrs.Factory(list)
    routers: dict[Router, str] = attrs.Factory(dict)
    #: Payloads that nodes exchange for themselves, as they are on the wire.
    control: set[bytes] = attrs.Factory(set)
    in_control: int = 0
    #: Changes frames on a wire, by the wire's name and direction, or records in a store.
    tamper: "Callable[[Watcher, bytes], tuple[bytes, ...] | None] | None" = None
    stores: dict[int, str] = attrs.Factory(dict)
    #: Who listens at a place.
    listeners: dict[str, str] = attrs.Factory(dict)

    def clear(self) -> None:
        self.seen.clear()
        self.taken.clear()

    def look(self, watcher: Watcher, *parts: bytes) -> None:
        sighting = self.seen.setdefault(watcher, Sighting())
        for part in parts:
            sighting.there |= MARKER in part
            sighting.back |= ANSWER in part
            sighting.evil |= EVIL in part
            sighting.names.update(name for name in self.names if name in part)

    def is_control(self, payload: bytes) -> bool:
        """Whether a payload is what nodes say for their own purposes, also within records of a stream that leads over another."""
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

    def shown(self, payload: bytes) -> bytes:
        """What a payload shows, but for what nodes say for their own purposes, which may lie beside it in one answer."""
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
        """See a message within a node, and change it if that node lies."""
        if self.in_control:
            self.control.add(message.payload)
        name = self.routers.get(router)
        if name is not None and not self.is_control(message.payload):
            watcher = Watcher("node", name)
            self.look(watcher, *message.onward, *message.back, self.shown(message.payload))
            (message.payload,) = self.changed(watcher, message.payload)

    def frame(self, dialler: str, where: str, frame: bytes) -> tuple[bytes, ...]:
        onward, back, payload = CURRENT.decode(frame)
        if not onward or self.is_control(payload):
            return (frame,)
        for watcher, is_seen in self.observers(dialler, where):
            self.look(watcher, *((*onward, *back, self.shown(payload)) if is_seen else ()))
        return self.changed(self.connection(dialler, where), frame)

    def changed(self, at: Watcher, data: bytes) -> tuple[bytes, ...]:
        return (None if self.tamper is None else self.tamper(at, data)) or (data,)

    def connection(self, dialler: str, where: str) -> Watcher:
        return Watcher("connection", f"{dialler} → {self.listeners[where]} ({where.partition(':')[0]})")

    def observers(self, dialler: str, where: str) -> Iterator[tuple[Watcher, bool]]:
        """Who sees frames on a wire, and whether he sees what they say."""
        transport = where.partition(":")[0]
        if transport == "kafka":
            yield Watcher("store", where), True
        if transport != "loopback":
            yield self.connection(dialler, where), transport not in {"tls", "wss"}


SPY = Spy()


class SpiedLink:
    """A link whose frames SPY sees, and can change."""

    def __init__(self, link: Link, dialler: str, where: str) -> None:
        self._link, self._dialler, self._where = link, dialler, where
        self.peer, self.protocol_version, self.max_frame = link.peer, link.protocol_version, link.max_frame
        self.receive, self.send_eof, self.aclose = link.receive, link.send_eof, link.aclose

    async def send(self, frames: Sequence[bytes]) -> None:
        await self._link.send([each for frame in frames for each in SPY.frame(self._dialler, self._where, frame)])


class SpiedTransport(Transport):
    """A transport of any name, in memory, of one node."""

    name: ClassVar[str] = ""

    def __init__(self, name: str, network: Loopback, node: str) -> None:
        self._of_links, self._network, self._node = name, network, node

    async def connect(self, peer: str) -> Link:
        link = await self._network.connect(f"{self.name}/{peer}")
        assert isinstance(link, LoopbackLink)
        _DIALLERS[id(link._incoming)] = self._node
        return SpiedLink(link, self._node, f"{self.name}:{peer}")

    async def serve(
        self,
        at: str,
        accept: Callable[[Link], Awaitable[None]],
        *,
        task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
    ) -> Never:
        SPY.listeners[f"{self.name}:{at}"] = self._node

        async def take(link: Link) -> None:
            assert isinstance(link, LoopbackLink)
            await accept(SpiedLink(link, _DIALLERS[id(link._outgoing)], f"{self.name}:{at}"))

        await self._network.serve(f"{self.name}/{at}", take, task_status=_Renamed(task_status, at))


#: Who has dialled, by the memory channel that he reads.
_DIALLERS: dict[int, str] = {}


class _Renamed(trio.TaskStatus[str]):
    """Reports a place as its transport names it."""

    def __init__(self, status: trio.TaskStatus[str], at: str) -> None:
        self._status, self._at = status, at

    def started(self, value: str | None = None) -> None:
        del value
        self._status.started(self._at)


def spied(name: str, network: Loopback) -> Callable[[str], Transport]:
    """What makes a transport of any name for each node."""
    of_name = type(f"Spied_{name}", (SpiedTransport,), {"name": name})

    def make(node: str) -> Transport:
        made: Transport = of_name(name, network, node)
        return made

    return make


@contextmanager
def watching() -> Iterator[None]:
    """Let SPY see all that passes."""
    deliver, bridge, encrypt, append = Router.deliver, Router.bridge, SecureChannel.encrypt, MemoryStore._append

    def spied_deliver(router: Router, message: Message) -> ByteBudget | None:
        SPY.message(router, message)
        return deliver(router, message)

    def spied_bridge(router: Router, message: Message) -> ByteBudget | None:
        SPY.message(router, message)
        return bridge(router, message)

    def spied_encrypt(channel: SecureChannel, message: Message) -> ByteBudget | None:
        is_control = SPY.is_control(message.payload)
        SPY.in_control += is_control
        try:
            return encrypt(channel, message)
        finally:
            SPY.in_control -= is_control

    def spied_append(store: MemoryStore, push: Push) -> Stored | StoreError:
        if id(store) not in SPY.stores or SPY._holds_control(push.record):
            return append(store, push)
        watcher = Watcher("store", f"memory of {SPY.stores[id(store)]}")
        SPY.look(watcher, push.stream.encode(), push.record)
        first, *more = SPY.changed(watcher, push.record)
        for record in more:
            append(store, Push(push.stream, b"a stranger", len(store._streams[push.stream].records), record))
        return append(store, attrs.evolve(push, record=first))

    with (
        patch.object(Router, "deliver", spied_deliver),
        patch.object(Router, "bridge", spied_bridge),
        patch.object(SecureChannel, "encrypt", spied_encrypt),
        patch.object(MemoryStore, "_append", spied_append),
    ):
        yield


async def noting(mailbox: Mailbox, *, node: str, name: str, sends: Sequence[Callable[[], Route]] = ()) -> None:
    """Note what comes, answer it, and pass it on."""
    async for message in mailbox:
        SPY.taken.append((node, name, message.payload, message.origin))
        if message.payload in {MARKER, EVIL} and message.back:
            await mailbox.reply(message, ANSWER)
        for way in sends:
            try:
                await mailbox.send(way(), message.payload)
            except TrionodeError:
                SPY.taken.append((node, name, b"lost", message.origin))


@attrs.define(eq=False)
class Ground:
    """A topology that runs, with all that can be opened."""

    spec: TopologySpec
    running: RunningTopology
    #: What could not be opened, though it was tried: node, kind, name.
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
async def run(spec: TopologySpec, unopened: Collection[tuple[str, str, str]]) -> AsyncIterator[Ground]:
    """Run a topology without what is said to be impossible to open; then try that as well."""
    network = Loopback()
    SPY.__init__()  # type: ignore[misc]
    _DIALLERS.clear()
    names = {listener.address.partition(":")[0] for node in spec.nodes.values() for listener in node.listen}
    transports = {name: spied(name, network) for name in names}
    async with run_topology(_without(spec, unopened), transports=transports) as running:
        for each in running:
            SPY.routers[each.node.router] = each.name
            SPY.stores.update((id(store), each.name) for store in _stores(each.node))
        await wait_all_tasks_blocked()
        ground = Ground(spec, running)
        for each in running:
            for name in running.spec.nodes[each.name].secure_channels:
                if not _is_taken(ground, each, each.channel(name)):
                    ground.unopened.add((each.name, "secure_channels", name))
        for node, kind, name in unopened:
            if not await _opens(ground, node, kind, name):
                ground.unopened.add((node, kind, name))
        await trio.sleep(
            71.37
        )  # whatever was begun twice is over, and the pulls of those who could not be opened whole
        yield ground


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


async def _opens(ground: Ground, where: str, kind: str, key: str) -> bool:
    """Whether something can be opened after all."""
    running, node_spec = ground.running[where], ground.spec.nodes[where]
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
                known = {each.name: (each.identity.identifier,) for each in ground.running}
                trust = trust_of(channel_spec.trust, known)
                channel = await node.open_secure_channel(
                    running.route(*channel_spec.to), running.identity, trust=trust, timeout=LATE
                )
                await wait_all_tasks_blocked()
                is_taken = _is_taken(ground, running, channel)
                if not is_taken:
                    await channel.aclose()
                return is_taken
    except TrionodeError:
        return False
    return True


def _is_taken(ground: Ground, opener: RunningNode, channel: SecureChannel) -> bool:
    """Whether a channel has another side: who opens it can't know that a listener refuses him."""
    return any(
        channel._route[-1] == side.decryptor and side.peer.identifier == opener.identity.identifier
        for each in ground.running
        for side in _channels(each.node)
    )


def _stores(node: Node) -> Iterator[StreamStore]:
    for entry in node.router._prefixes.values():
        service = getattr(entry.hop, "__self__", None)
        assert isinstance(service, StreamService)
        yield service._store


def _channels(node: Node) -> Iterator[SecureChannel]:
    for entry in node.router._table.values():
        owner = getattr(entry.hop, "__self__", None)
        if isinstance(owner, SecureChannel):
            yield owner


# What the proof says, in the same terms


@attrs.frozen
class Told:
    """What somebody sees: of the message, of the answer, and which names."""

    there: bool
    back: bool
    names: frozenset[bytes]


def names_of(spec: TopologySpec) -> frozenset[bytes]:
    """All names that messages could show; each is part of no other."""
    names: set[str] = set()
    for node in spec.nodes.values():
        names |= {*node.workers, *node.secure_channel_listeners, *node.links, *node.relays, *node.stream_services}
        names |= {name for stream in node.streams.values() for name in (stream.sends, stream.receives)}
    return frozenset(name.encode() for name in names)


def told(spec: TopologySpec, path: Path) -> dict[Watcher, Told]:
    """What the proof says that each sees of a path."""
    names = names_of(spec)
    return {each.at: _told(names, path, each) for each in path.passed if each.at.kind != "outsider"}


def _told(names: frozenset[bytes], path: Path, passed: Passed) -> Told:
    def reads(found: Passed | None) -> bool:
        return found is not None and found.seen.payload == "plaintext"

    visible = [each.encode() for each in passed.seen.addresses if not each.startswith(RANDOM)]
    found = frozenset(name for name in names if any(name in each for each in visible))
    return Told(reads(path.there.at(passed.at)), reads(path.back.at(passed.at)), found)


def really() -> dict[Watcher, Told]:
    """What each has really seen."""
    return {
        watcher: Told(sighting.there, sighting.back, frozenset(sighting.names))
        for watcher, sighting in SPY.seen.items()
    }
