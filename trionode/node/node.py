"""A node: one nursery that holds a router, links, workers, secure channels and streams, and the verbs that open them."""

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import trio

from trionode.channel.handshakers import handshaker, require_protocol_versions
from trionode.channel.initiator import open_secure_channel
from trionode.channel.listener import SecureChannelListener
from trionode.channel.secure_channel import SecureChannel
from trionode.counters import Counters, DropReason
from trionode.errors import AnswerTimeout, ClosedError, LocalError
from trionode.identity.identity import Identity
from trionode.identity.stored import IdentityVault
from trionode.identity.trust import TrustPolicy
from trionode.log import LogThrottle, log, sanitize
from trionode.net.transport import Link, Transport, load_transport
from trionode.portal import Inlet, Outlet, PortalLimits
from trionode.protocol.rules.access import Access, from_anywhere, from_local_or_channels, link_access
from trionode.protocol.wire.address import Address, Encoded, local
from trionode.protocol.wire.message import Message, payload_of
from trionode.protocol.wire.route import Route
from trionode.relay.client import Relay
from trionode.relay.service import EPHEMERAL_SERVICE, NAMED_SERVICE, PREFIX, RelayLimits, RelayService, is_relay_name
from trionode.routing.byte_budget import DEFAULT_BOUND
from trionode.routing.hub_connection import OpenPath
from trionode.routing.link import NodeLink
from trionode.routing.mailbox import STALL_TIMEOUT, Mailbox, Sender, Worker
from trionode.routing.on_demand_link import OnDemandLink
from trionode.routing.router import Router, random_address
from trionode.stream.client import Stream
from trionode.stream.clients import StreamLimits
from trionode.stream.hub_client import HubClient
from trionode.stream.service import INDEX_SERVICE, SERVICE, StreamService
from trionode.stream.store.base import StreamStore
from trionode.vault.memory import MemoryVault

#: Links that one listener holds at a time; a peer beyond them is closed at once.
MAX_LINKS = 10_000
#: Seconds that `ask` waits for an answer.
ANSWER_TIMEOUT = 30.0
#: Seconds that opening a secure channel may take, retries included.
CHANNEL_TIMEOUT = 30.0
#: Seconds that opening a stream may take.
STREAM_TIMEOUT = 30.0
#: Seconds that opening a relay may take.
RELAY_TIMEOUT = 30.0

#: The way to a hub: a route, or an async function that opens it anew each time it was lost, such as one that makes a secure channel.
Hub = Route | Callable[[], Awaitable[Route]]


class Node:
    """Made by `open_node`, and alive as long as its block. Every verb that opens something returns it ready."""

    def __init__(
        self,
        nursery: trio.Nursery,
        connections: trio.Nursery,
        transports: Iterable[Transport],
        vault: IdentityVault,
        *,
        forwards: bool,
    ) -> None:
        #: Messages to addresses of this node.
        self.router = Router()
        #: Where the keys of this node's identities are.
        self.vault = vault
        self._nursery = nursery
        self._transports = {transport.name: transport.open(connections) for transport in transports}
        self._link_access: Access = link_access(forwards=forwards)
        self._links: dict[tuple[str, str | None], NodeLink] = {}
        self._dialing: dict[tuple[str, str | None], trio.Lock] = {}
        self._all_links: set[NodeLink] = set()
        self._listening: set[trio.CancelScope] = set()
        self._sender = Sender(self.router, random_address())
        self._is_over = False

    @property
    def counters(self) -> Counters:
        """How many messages were dropped, by reason."""
        return self.router.counters

    # Transports

    def _transport(self, name: str) -> Transport:
        if name not in self._transports:
            msg = f"this node was opened with the transports {sorted(self._transports)}, not with {name!r}: name it in open_node"
            raise LocalError(msg)
        return self._transports[name]

    async def listen(self, at: str, *, drop_when_full: bool = False) -> Address:
        """Listen at `tcp:127.0.0.1:4000` (port 0: a free one), for as long as the node lives; returns the address as bound.

        LocalError if it can't be bound. Links of a trunk listener are hub to hub: their readers never wait, they drop and count.
        """
        where = Address.parse(at)
        transport = self._transport(where.transport)
        accepted: set[NodeLink] = set()
        log_throttle = LogThrottle()

        async def accept(link: Link) -> None:
            if len(accepted) >= MAX_LINKS:
                self.counters[DropReason.TOO_MANY_LINKS] += 1
                if log_throttle.is_due("too many", trio.current_time()):
                    log.warning(
                        "refused a link from %s: the listener at %s holds %d already; more are counted, not shown",
                        sanitize(link.peer),
                        at,
                        MAX_LINKS,
                    )
                await link.aclose()
                return
            if self._is_over:
                await link.aclose()
                return
            # In the node's nursery and not the listener's, which may end before its links do; and without a wait, so that a listener that
            # ends now leaves no link behind which nobody holds.
            held = self._take(link, drop_when_full=drop_when_full)
            accepted.add(held)
            try:
                await held.ended.wait()
            finally:
                accepted.discard(held)

        async def serve(*, task_status: trio.TaskStatus[str]) -> None:
            with trio.CancelScope() as scope:
                self._listening.add(scope)
                try:
                    await transport.serve(where.value.decode(), accept, task_status=task_status)
                finally:
                    self._listening.discard(scope)

        bound: str = await self.start(serve)
        return Address(bound, transport.name)

    def stop_listening(self) -> None:
        """Accept no more links; those that there are live on."""
        for scope in self._listening:
            scope.cancel()

    def _take(
        self,
        link: Link,
        *,
        drop_when_full: bool,
        address: Encoded | None = None,
        hang_up: Callable[[str], None] | None = None,
    ) -> NodeLink:
        """Give a link its place in the node at once; AddressInUseError if its address is taken."""
        address = address or random_address()
        held = NodeLink(
            self.router, address, link, allow=self._link_access, drop_when_full=drop_when_full, hang_up=hang_up
        )
        self._all_links.add(held)
        self._nursery.start_soon(self._hold, held)
        return held

    async def _hold(self, held: NodeLink) -> None:
        try:
            await held.run()
        finally:
            self._all_links.discard(held)

    async def connect(self, peer: str, *, name: str | None = None, drop_when_full: bool = False) -> NodeLink:
        """Return a link to `tcp:HOST:PORT`: the one that lives, or a new one. `name` gives it a known address, for routes through this node.

        ConnectionLost if the peer can't be reached, AddressInUseError if the name is taken. Cancelled, no link stays.
        """
        key = peer, name
        async with self._dialing.setdefault(key, trio.Lock()):
            known = self._links.get(key)
            if known is not None and known.is_open:
                return known
            where = Address.parse(peer)
            self._require_open()
            link = await self._transport(where.transport).connect(where.value.decode())
            try:
                self._require_open()  # its block may have ended meanwhile
                held = self._take(link, drop_when_full=drop_when_full, address=None if name is None else local(name))
            except LocalError:
                await link.aclose()
                raise
            self._links[key] = held
            return held

    def dial_on_demand(self, peer: str, *, name: str, drop_when_full: bool = False) -> NodeLink:
        """Return a link to `peer` behind a known address that is connected when a message is to go there, whoever sent it.

        So a message from afar makes this node dial, but only a place that its program named. A connection that was lost, or that is given up because the
        peer takes nothing, is made again by the next message, after a pause if it did not last; what can't be sent, or waits too long, is dropped and
        counted, whatever is wrong with the place. It speaks the current generation. LocalError if `peer` names no transport of this node,
        AddressInUseError if the name is taken.
        """
        self._require_open()
        where = Address.parse(peer)
        connect = partial(self._transport(where.transport).connect, where.value.decode())
        link = OnDemandLink(peer, connect, self.counters)
        return self._take(link, drop_when_full=drop_when_full, address=local(name), hang_up=link.hang_up)

    async def resolve(self, route: Route) -> tuple[Encoded, ...]:
        """Return the encoded hops of a route whose first hop may be a transport address: that is connected first, if it isn't yet."""
        if route.hops and route.hops[0].transport:
            link = await self.connect(str(route.hops[0]))
            return (link.encoded, *Route(*route.hops[1:]).encoded)
        return route.encoded

    # Workers and messages

    async def start_worker(
        self,
        name: str,
        worker: Worker,
        *,
        allow: Access = from_local_or_channels,
        bound: int = DEFAULT_BOUND,
        stall_timeout: float = STALL_TIMEOUT,
    ) -> Address:
        """Run `worker(mailbox)` behind the address `name` until it returns or the node ends; what it raises ends the node.

        By default this node and peers of secure channels reach it, strangers don't. `bound` is the mailbox's in bytes;
        `patience` how many seconds a link waits for it while it takes nothing. AddressInUseError if the name is taken.
        """
        await trio.lowlevel.checkpoint()  # before anything has been done, so that cancelled means not started
        self._require_open()
        mailbox = Mailbox(self.router, local(name), bound=bound, stall_timeout=stall_timeout)
        self.router.register(mailbox.encoded, mailbox.hop, allow=allow)

        async def run() -> None:
            try:
                await worker(mailbox)
            finally:
                mailbox.close()
                self.router.unregister(mailbox.encoded)

        self._nursery.start_soon(run, name=f"worker {name}")
        return mailbox.address

    @asynccontextmanager
    async def open_mailbox(self, name: str | None = None, *, allow: Access | None = None) -> AsyncIterator[Mailbox]:
        """Open a mailbox that the caller reads himself, in a block.

        Without a name it has a random address that only its peers learn, and everybody who has learned it reaches it; with one, the rule
        is that of workers. `allow` says otherwise. AddressInUseError if the name is taken.
        """
        mailbox = Mailbox(self.router, random_address() if name is None else local(name))
        by_default = from_anywhere if name is None else from_local_or_channels
        self.router.register(mailbox.encoded, mailbox.hop, allow=allow or by_default)
        try:
            yield mailbox
        finally:
            self.router.unregister(mailbox.encoded)
            mailbox.close()

    async def send(self, route: Route, body: bytes | str) -> None:
        """Send a payload that wants no answer: bytes as they are, a str as a BARE string (spec §5).

        Connects the first hop if it is a transport address. Waits while the way is over its bound; cancelled, nothing was sent.
        """
        await self._sender.deliver(Message(await self.resolve(route), (), payload_of(body)))

    async def ask(self, route: Route, body: bytes | str, *, timeout: float = ANSWER_TIMEOUT) -> Message:  # noqa: ASYNC109  # an answer always has a deadline
        """Send a payload and wait for one answer, which comes to a fresh address; AnswerTimeout after `timeout` seconds.

        To connect the first hop counts too; ConnectionLost if that fails before. The answer never waits behind other messages. Cancelled, an answer that comes later is dropped.
        """
        answers: list[Message] = []
        arrived = trio.Event()

        def take(message: Message) -> None:
            if not answers:
                answers.append(message)
                arrived.set()

        address = random_address()
        self.router.register(address, take, allow=from_anywhere)
        try:
            with trio.move_on_after(timeout):
                onward = await self.resolve(route)
                await self._sender.deliver(Message(onward, (address,), payload_of(body)))
                await arrived.wait()
        finally:
            self.router.unregister(address)
        if not answers:
            msg = f"no answer from [{route}] within {timeout:g} s: it may be gone, not reachable from here, or refuse this node"
            raise AnswerTimeout(msg)
        return answers[0]

    # Secure channels

    async def open_secure_channel(
        self,
        route: Route,
        identity: Identity,
        *,
        trust: TrustPolicy,
        timeout: float = CHANNEL_TIMEOUT,  # noqa: ASYNC109  # a handshake always has a deadline
        protocol_version: str = "current",
    ) -> SecureChannel:
        """A channel with whoever listens at the end of a route, once both sides have proven their identities (spec §7, §8).

        `generation` is "current", or "classic" for a peer that knows nothing else: it sees the classic face of the identity, may take replays
        for new messages, and is not told when the channel closes. LocalError for another name; nothing is ever tried instead.
        A handshake that is not answered is begun again after 5, 10, 20 s until `timeout` seconds are over: AnswerTimeout, which is also
        what a peer that refuses this identity looks like. HandshakeError if `trust` refuses the peer, ConnectionLost if the first
        hop can't be connected. Cancelled, no channel stays.
        """
        speaker = await handshaker(identity, protocol_version)
        deadline = trio.current_time() + timeout
        hops = None
        with trio.CancelScope(deadline=deadline):
            hops = await self.resolve(route)
        if hops is not None:
            return await open_secure_channel(
                self.router, hops, speaker, trust=trust, known_peers=identity.vault.known_peers, deadline=deadline
            )
        raise AnswerTimeout(
            f"the first hop of [{route}] could not be connected within {timeout:g} s: is that node running?"
        )

    async def serve_secure_channels(
        self,
        name: str,
        identity: Identity,
        *,
        trust: TrustPolicy,
        allow: Access = from_anywhere,
        protocol_versions: Sequence[str] = ("current",),
    ) -> SecureChannelListener:
        """Answer handshakes at the address `name` for as long as the node lives (spec §7, §8); `trust` decides about each peer.

        `generations` are those that are answered, of "current" and "classic"; to the others there is silence, so that nobody is talked down to
        classic. AddressInUseError if the name is taken, LocalError for an unknown generation.
        """
        speakers = [
            await handshaker(identity, protocol_version)
            for protocol_version in require_protocol_versions(protocol_versions)
        ]
        listener = SecureChannelListener(self.router, local(name), identity, speakers, trust=trust)
        await self.start(partial(listener.run, allow=allow))
        return listener

    # Streams

    async def open_stream(
        self,
        hub: Hub | Sequence[Hub],
        *,
        sends: str,
        receives: str,
        service: str = SERVICE,
        index_service: str = INDEX_SERVICE,
        client_id: str | None = None,
        start: int | None = None,
        protocol_version: str = "current",
        timeout: float = STREAM_TIMEOUT,  # noqa: ASYNC109  # whether a hub answers at all is known only by a deadline
    ) -> Stream:
        """Both directions of a conversation over the streams of a hub (spec §11), created there if they don't exist.

        `hub` is the route to it, a function that opens the way anew each time it was lost, or several of either: the next is tried when
        one is gone. `client_id` names the position that the hub keeps, so that a program that starts again reads on there; without one
        reading begins at the first record, or at `start`. `wire` is the generation that the peer reads, "current" or "classic": what is written
        is written in it, whatever the hub speaks; both are read. LocalError for another one, ConnectionLost if no hub can be reached, ServiceError if it refuses,
        AnswerTimeout after `timeout` seconds. Cancelled, no stream stays.
        """
        deadline = trio.current_time() + timeout
        client = HubClient(
            self.router,
            self._ways(hub),
            sends=sends,
            receives=receives,
            service=service,
            index_service=index_service,
            client_id=client_id or secrets.token_hex(16),
            start=start,
            protocol_version=protocol_version,
        )
        await self.start(client.run)
        try:
            await client.wait_ready(deadline)
        except BaseException:  # also when cancelled: what can't be returned must not stay behind
            with trio.CancelScope(shield=True):
                await client.aclose()
            raise
        return Stream(client)

    def _ways(self, hub: Hub | Sequence[Hub]) -> list[tuple[str, OpenPath]]:
        """Return, for each hub, a name for logs and what opens the way to it."""
        hubs = [hub] if isinstance(hub, Route) or callable(hub) else list(hub)
        return [
            (str(each) if isinstance(each, Route) else each.__name__, partial(self._open_way, each)) for each in hubs
        ]

    async def _open_way(self, hub: Hub) -> tuple[Encoded, ...]:
        way = await self.resolve(hub if isinstance(hub, Route) else await hub())
        if not way:
            raise LocalError("this route has at least one hop, such as tcp:127.0.0.1:4000")
        return way

    async def serve_streams(
        self,
        store: StreamStore,
        *,
        service: str = SERVICE,
        index_service: str = INDEX_SERVICE,
        allow: Access = from_anywhere,
        limits: StreamLimits = StreamLimits(),  # noqa: B008  # a frozen value
    ) -> StreamService:
        """Offer the streams of a store at two addresses for as long as the node lives (spec §11.2). AddressInUseError if one is taken."""
        streams = StreamService(self.router, store, service, index_service, limits)
        await self.start(partial(streams._run, allow=allow))  # noqa: SLF001  # private to users, not to the node
        return streams

    # Relays

    async def open_relay(
        self,
        hub: Hub | Sequence[Hub],
        name: str | None = None,
        *,
        to: Route | None = None,
        service: str | None = None,
        timeout: float = RELAY_TIMEOUT,  # noqa: ASYNC109  # a hub refuses in silence
    ) -> Relay:
        """An address on a hub by which others reach this node, or the one at `to`, registered anew whenever the way was lost (spec §13.2).

        `hub` is as for `open_stream`. With a name, 1 to 64 of A-Z a-z 0-9 . _ -, it is the same address each time; without one the hub chooses
        one that nobody can guess. `to` begins with the place of a node that this one connects to, such as tcp:127.0.0.1:4001. Who comes by a
        relay is a stranger, so only what strangers may reach is reached. ConnectionLost if no hub, or `to`, can be reached, AnswerTimeout
        after `timeout` seconds, which is also what a hub that refuses looks like. Cancelled, no relay stays.
        """
        deadline = trio.current_time() + timeout
        if name is not None and not is_relay_name(name):
            raise LocalError(
                f"a relay is named by 1 to 64 of A-Z a-z 0-9 . _ -, and not register; without a name the hub chooses one; this is {name!r}"
            )
        if to is not None and not (to.hops and to.hops[0].transport):
            raise LocalError(f"`to` begins with the place of a node, such as tcp:127.0.0.1:4001; this is [{to}]")
        if to is not None:  # first, so that who can't be reached is told of at once
            with trio.CancelScope(deadline=deadline) as scope:
                await self.resolve(to)
            if scope.cancelled_caught:
                raise AnswerTimeout(f"[{to}] could not be connected within {timeout:g} s: is that node running?")
        relay = Relay(
            self.router,
            self._ways(hub),
            name=name,
            service=service or (EPHEMERAL_SERVICE if name is None else NAMED_SERVICE),
            open_target=None if to is None else partial(self.resolve, to),
        )
        await self.start(relay.run)
        try:
            await relay.ready(deadline)
        except BaseException:  # also when cancelled: what can't be returned must not stay behind
            with trio.CancelScope(shield=True):
                await relay.aclose()
            raise
        return relay

    async def serve_relays(
        self,
        *,
        services: Sequence[str] = (EPHEMERAL_SERVICE, NAMED_SERVICE),
        prefix: str = PREFIX,
        allow: Access = from_anywhere,
        limits: RelayLimits = RelayLimits(),  # noqa: B008  # a frozen value
    ) -> RelayService:
        """Let nodes that nobody can connect to be reached by their links with this one, for as long as the node lives (spec §13.2).

        `allow` says who may register; the relays themselves are for everybody. A relay works whether or not this node forwards.
        AddressInUseError if the address of a service is taken.
        """
        await trio.lowlevel.checkpoint()
        self._require_open()
        return RelayService(self.router, services, prefix, allow=allow, limits=limits)

    # TCP portals

    async def open_inlet(
        self,
        at: str,
        route: Hub,
        *,
        limits: PortalLimits = PortalLimits(),  # noqa: B008  # a frozen value
    ) -> Inlet:
        """Listen at HOST:PORT (port 0: a free one), and carry each TCP connection along `route` to the outlet at its end (spec §13.3).

        `route` is a route, or an async function that is asked for it with each connection, such as one that opens a channel anew once it was
        lost; it normally begins with a secure channel, since a portal has no protection of its own. A connection whose reader stops holds up
        no other. When its way is lost, a connection is reset, and while there is none, so is every new one. ConnectionLost, or what the function
        raises, if there is no way to begin with; LocalError if HOST:PORT can't be bound. Cancelled, no inlet stays.
        """
        open_way = partial(self._open_way, route)
        await open_way()
        inlet = Inlet(self.router, open_way, limits)
        await self.start(partial(inlet.run, at))
        return inlet

    async def serve_outlet(
        self,
        name: str,
        target: str,
        *,
        allow: Access = from_local_or_channels,
        limits: PortalLimits = PortalLimits(),  # noqa: B008  # a frozen value
    ) -> Outlet:
        """Let inlets that reach the address `name` use the TCP service at `target`, HOST:PORT, for as long as the node lives (spec §13.3).

        By default this node and peers of secure channels reach it. AddressInUseError if the name is taken, LocalError for what is no HOST:PORT.
        """
        outlet = Outlet(self.router, local(name), target, limits)
        await self.start(partial(outlet.run, allow=allow))
        return outlet

    # What else lives in the node

    async def start(self, task: Callable[..., Awaitable[object]]) -> Any:
        """Run a task in the node's nursery, for as long as the node lives, and wait for what it reports by `task_status.started`.

        ClosedError, as of every verb that opens something, once the node's block has ended.
        """
        self._require_open()
        return await self._nursery.start(task)

    def _require_open(self) -> None:
        if self._is_over:
            raise ClosedError("this node's block has ended: open what you need within `async with open_node(...)`")

    def end(self) -> None:
        """Let nothing more be opened."""
        self._is_over = True

    async def aclose_links(self) -> None:
        """Listen no longer, and flush, drain and close every link, all at the same time."""
        self.stop_listening()
        async with trio.open_nursery() as nursery:
            for link in list(self._all_links):
                nursery.start_soon(link.aclose)


async def _hold_connections(*, task_status: trio.TaskStatus[trio.Nursery]) -> None:
    """Keep the nursery in which transports start the tasks of their connections."""
    async with trio.open_nursery() as nursery:
        task_status.started(nursery)
        await trio.sleep_forever()


@asynccontextmanager
async def open_node(
    *transports: str | Transport, vault: IdentityVault | None = None, forwards: bool = False
) -> AsyncIterator[Node]:
    """Open a node for the length of a block.

    `async with open_node("tcp") as node`: transports are names of installed plugins, or objects. Without a vault, keys live in memory and end with the program.
    `forwards` lets strangers' messages pass from link to link, as on a hub. At the end of the block links are flushed and
    closed. What a worker raises comes out as an exception group.
    """
    made = [load_transport(transport) if isinstance(transport, str) else transport for transport in transports]
    async with trio.open_nursery() as nursery:
        connections: trio.Nursery = await nursery.start(_hold_connections)
        node = Node(nursery, connections, made, MemoryVault() if vault is None else vault, forwards=forwards)
        try:
            yield node
            await node.aclose_links()
        finally:
            node.end()
        nursery.cancel_scope.cancel()
