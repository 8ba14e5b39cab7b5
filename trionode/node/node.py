"""A node: a nursery with a router, links, workers, secure channels and streams, and the methods that open them.

Longer than 400 lines because of the docstrings of those methods, the public interface; there is little code in them.
"""

import inspect
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from functools import partial
from typing import Any, Literal, TypeAlias, cast, get_args

import trio

from trionode.channel.deliveries import Deliveries
from trionode.channel.delivering import SendReceipt
from trionode.channel.handshakers import handshaker, require_protocol_versions
from trionode.channel.initiator import DeliveryMode, open_secure_channel
from trionode.channel.listener import SecureChannelListener
from trionode.channel.secure_channel import GRACE, SecureChannel
from trionode.counters import Counters
from trionode.errors import AnswerTimeout, ConfigError, Undelivered
from trionode.identity.identity import Identity
from trionode.identity.stored import IdentityVault
from trionode.identity.trust import TrustPolicy
from trionode.net.transport import Transport, load_transport
from trionode.node.links import Links
from trionode.portal import Inlet, Outlet, PortalLimits
from trionode.protocol.rules.access import Access, from_anywhere, from_local_or_channels, link_access
from trionode.protocol.wire.address import Address, Encoded, local
from trionode.protocol.wire.message import Message, payload_of
from trionode.protocol.wire.route import Hop, Route, RouteLike
from trionode.relay.client import Relay
from trionode.relay.service import EPHEMERAL_SERVICE, NAMED_SERVICE, PREFIX, RelayLimits, RelayService, is_relay_name
from trionode.routing.byte_budget import DEFAULT_BOUND
from trionode.routing.hub_connection import OpenPath
from trionode.routing.link import NodeLink
from trionode.routing.mailbox import STALL_TIMEOUT, Mailbox, Sender, Worker
from trionode.routing.router import Router, random_address
from trionode.routing.supervision import DeadLetters, OnError, Supervisor
from trionode.stream.client import Stream
from trionode.stream.clients import StreamLimits
from trionode.stream.hub_client import HubClient
from trionode.stream.service import INDEX_SERVICE, SERVICE, StreamService
from trionode.stream.store.base import StreamStore
from trionode.vault.memory import MemoryVault

#: When `send` returns.
Until: TypeAlias = Literal["accepted", "acknowledged", "handled"]

#: Seconds that `ask` waits for an answer.
ANSWER_TIMEOUT = 30.0
#: Seconds that it may take to open a secure channel, retries included.
CHANNEL_TIMEOUT = 30.0
#: Seconds that it may take to open a stream.
STREAM_TIMEOUT = 30.0
#: Seconds that it may take to open a relay.
RELAY_TIMEOUT = 30.0

#: The path to a hub: a route or one hop; or an async function that returns it, called again whenever it was lost: it
#: may open a secure channel.
Hub: TypeAlias = Hop | Callable[[], Awaitable[RouteLike]]


class Node:
    """A node, which lives as long as its `open_node` block. Every method that opens something returns it ready.

    Where a verb takes a route, you can pass a `Route`, one hop, or a list of hops. In a verb that opens something, a
    first hop that is a transport address, such as `tcp:127.0.0.1:4000`, is connected. Once the block has ended, such
    verbs raise ClosedError.
    """

    def __init__(
        self, nursery: trio.Nursery, transports: Iterable[Transport], vault: IdentityVault, *, forwards: bool
    ) -> None:
        #: Holds the keys of this node's identities.
        self.vault = vault
        self._router = Router()
        self._nursery = nursery
        self._links = Links(self._router, nursery, transports, allow=link_access(forwards=forwards))
        self._sender = Sender(self._router, random_address())
        self._deliveries = Deliveries()
        self._streams: list[HubClient] = []
        #: The messages that workers with `on_error="set_aside"` could not handle. They can be read after the node's end,
        #: too.
        self.dead_letters = DeadLetters()

    @property
    def counters(self) -> Counters:
        """How many messages, links and handshakes were dropped, by `DropReason`."""
        return self._router.counters

    # Transports

    async def listen(self, at: str, *, drop_when_full: bool = False) -> Address:
        """Accept links at an address for as long as the node lives.

        Args:
          at: Such as `tcp:127.0.0.1:4000`; port 0 takes a free one.
          drop_when_full: Whether the links join hubs. Their readers never wait: they drop what a full queue does not
            take.

        Returns:
          The address as bound.

        Raises:
          ConfigError: The node has no such transport, or the address is wrong.
          LocalError: The address can't be bound.

        If cancelled, the node does not listen.
        """
        return await self._links.listen(at, drop_when_full=drop_when_full)

    def stop_listening(self) -> None:
        """Accept no more links. The existing links live on."""
        self._links.stop_listening()

    async def connect(self, peer: str, *, name: str | None = None, drop_when_full: bool = False) -> NodeLink:
        """Return a link to a peer: the existing one, or a new one.

        Args:
          peer: Such as `tcp:HOST:PORT`.
          name: A known address for the link, for routes through this node. By default it is random.
          drop_when_full: As for `listen`.

        Returns:
          The link, which can stand in a route.

        Raises:
          ConnectionLost: The peer can't be reached.
          AddressInUseError: The name is taken.
          ConfigError: The node has no such transport, or the address is wrong.

        If cancelled, no link stays.
        """
        return await self._links.connect(peer, name=name, drop_when_full=drop_when_full)

    def dial_on_demand(self, peer: str, *, name: str, drop_when_full: bool = False) -> NodeLink:
        """Return a link that is connected when a message is sent by it, by this program or a peer.

        So a message of a peer makes this node dial, but only an address that this program named. After a loss, or after
        the peer took nothing for too long, the next message dials again, with a pause if the connection did not last.
        A message that can't be sent, or waits too long, is dropped and counted. The link speaks the current protocol
        version.

        Args:
          peer: Such as `tcp:HOST:PORT`.
          name: The address of the link on this node.
          drop_when_full: As for `listen`.

        Returns:
          The link, which lives until you close it.

        Raises:
          AddressInUseError: The name is taken.
          ConfigError: The node has no such transport, or the address is wrong.
        """
        return self._links.dial_on_demand(peer, name=name, drop_when_full=drop_when_full)

    async def aclose_links(self) -> None:
        """Stop listening, and flush and close every link, all at the same time.

        The end of the node's block does this too.

        If cancelled, the links end at once.
        """
        await self._links.aclose()

    # Workers and messages

    async def start_worker(
        self,
        name: str,
        worker: Worker,
        *,
        allow: Access = from_local_or_channels,
        bound: int = DEFAULT_BOUND,
        stall_timeout: float = STALL_TIMEOUT,
        on_error: OnError = "end_node",
    ) -> Address:
        """Run a worker at an address until it returns or the node ends.

        A worker that is called again has the same mailbox, with all messages that wait there, and none of its local
        variables. Whatever `on_error` says, it is called again if it raised `UndecodableText`, which is a peer's fault.

        Args:
          name: The address.
          worker: An async function, which is called with its `Mailbox`.
          allow: Which messages reach it. By default those of this node and of peers of its secure channels.
          bound: How many bytes may wait in the mailbox before senders wait.
          stall_timeout: Seconds that links wait for a full mailbox of which nothing is taken, before its messages are
            dropped.
          on_error: What happens when the worker raises an exception. "end_node": it leaves the `open_node` block in an
            ExceptionGroup. "restart": the worker is called again after 0.1 s, and each further time in a row after
            twice as long; the message that it handled is dropped and counted; after 10 restarts within 60 s the next
            exception ends the node. "set_aside": the message that it handled is put among the `dead_letters`, and the
            worker is called again at once; without such a message it is restarted.

        Returns:
          The address.

        Raises:
          AddressInUseError: The name is taken.
          ConfigError: `worker` is no async function, or `on_error` is something else.

        If cancelled, the worker was not started.
        """
        await trio.lowlevel.checkpoint()  # before anything is done
        self._links.require_open()
        mailbox = Mailbox(self._router, local(name), bound=bound, stall_timeout=stall_timeout)
        supervisor = Supervisor(
            mailbox, on_error, stall_timeout=stall_timeout, counters=self.counters, dead_letters=self.dead_letters
        )
        with ExitStack() as stack:
            stack.enter_context(self._registered(mailbox, allow))
            running = _call_worker(worker, mailbox)
            at_end = stack.pop_all()  # nothing was raised: the mailbox stays until the worker's end

        async def run() -> None:
            with at_end:
                await supervisor.run(running, partial(_call_worker, worker, mailbox))

        self._nursery.start_soon(run, name=f"worker {name}")
        return mailbox.address

    @asynccontextmanager
    async def open_mailbox(self, name: str | None = None, *, allow: Access | None = None) -> AsyncIterator[Mailbox]:
        """Open a mailbox that your own task reads, for the length of a block.

        Args:
          name: The address. By default it is random, so only peers that got a message from it reach it.
          allow: Which messages reach it. By default the rule of workers if it has a name, else every message.

        Returns:
          A context manager that gives the mailbox.

        Raises:
          AddressInUseError: The name is taken.
        """
        mailbox = Mailbox(self._router, random_address() if name is None else local(name))
        with self._registered(mailbox, allow or (from_anywhere if name is None else from_local_or_channels)):
            yield mailbox

    async def send(self, route: RouteLike, body: bytes | str, *, until: Until = "accepted") -> None:
        """Send a payload without a return route.

        It waits while the path is over its byte budget. Through a secure channel with the delivery layer, an accepted
        message is sent until the peer acknowledges it, and the end of the node's block waits for that.

        Args:
          route: Where it goes.
          body: bytes are sent as they are, a str as a BARE string (spec §5).
          until: When to return: "accepted" by this node; "acknowledged" by the peer of the secure channel that the
            route passes first; or "handled" by its worker, which then asks for its next message.

        Raises:
          Undelivered: The channel ended before the peer had acknowledged or handled the message.
          ConnectionLost: The first hop can't be connected.
          UnknownAddressError: This node has no such first hop.
          MessageTooLargeError: A link or stream on this node can't carry it.
          ConfigError: The route, the body or `until` is something else, or nothing on the route can acknowledge.

        If cancelled, nothing was sent; while it waits for the peer, the message is sent nevertheless.
        """
        payload = payload_of(body)
        if until == "accepted":
            await self._sender.deliver(Message(await self._links.resolve(route), (), payload, is_promised=True))
            return
        if until not in get_args(Until):
            raise ConfigError(f"until is one of {', '.join(map(repr, get_args(Until)))}; this is {until!r}")
        onward = await self._links.resolve(route)
        receipt = SendReceipt()
        await self._sender.deliver(Message(onward, (), payload, receipt=receipt, is_promised=True))
        if not receipt.is_queued:
            raise ConfigError(
                f"until={until!r} needs a route that begins with a secure channel whose peer has the delivery layer, or "
                f"with a worker of this node; the message was sent, and [{Route.of(route)}] can't acknowledge it"
            )
        await (receipt.acknowledged if until == "acknowledged" else receipt.handled).wait()
        if receipt.is_lost:
            raise Undelivered(
                1, "the channel ended before the peer had acknowledged the message: open it again, and send it again"
            )

    async def ask(self, route: RouteLike, body: bytes | str, *, timeout: float = ANSWER_TIMEOUT) -> Message:  # noqa: ASYNC109  # an answer always has a deadline
        """Send a payload and wait for one answer. The answer never waits behind other messages.

        Args:
          route: Where it goes.
          body: bytes are sent as they are, a str as a BARE string (spec §5).
          timeout: Seconds to wait, the time to connect the first hop included.

        Returns:
          The answer.

        Raises:
          AnswerTimeout: No answer came in time.
          ConnectionLost: The first hop can't be connected.
          UnknownAddressError: This node has no such first hop.
          MessageTooLargeError: A link or stream on this node can't carry it.
          ConfigError: The route or the body is something else.

        If cancelled, a later answer is dropped.
        """
        payload = payload_of(body)
        answers: list[Message] = []
        arrived = trio.Event()

        def hop(message: Message) -> None:
            if not answers:
                answers.append(message)
                arrived.set()

        address = random_address()
        self._router.register(address, hop, allow=from_anywhere)
        try:
            with trio.move_on_after(timeout):
                onward = await self._links.resolve(route)
                await self._sender.deliver(Message(onward, (address,), payload))
                await arrived.wait()
        finally:
            self._router.unregister(address)
        if not answers:
            raise AnswerTimeout(
                f"no answer from [{Route.of(route)}] within {timeout:g} s: "
                "it may have ended, not be reachable from here, or refuse this node"
            )
        return answers[0]

    # Secure channels

    async def open_secure_channel(
        self,
        route: RouteLike,
        identity: Identity,
        *,
        trust: TrustPolicy,
        timeout: float = CHANNEL_TIMEOUT,  # noqa: ASYNC109  # a handshake always has a deadline
        protocol_version: str = "current",
        delivery: DeliveryMode = "on",
    ) -> SecureChannel:
        """Open a secure channel with the listener at the end of a route (spec §7, §8).

        Both sides prove their identities. A handshake without an answer is begun again after 5, 10 and 20 s.

        Args:
          route: The path to the listener, its address last.
          identity: This side's identity.
          trust: Decides about the peer's identity. There is no default.
          timeout: Seconds for all tries together.
          protocol_version: "current"; or "classic" for a peer that speaks nothing else. That peer sees the classic
            identity, may accept replayed messages, and is not notified when the channel closes. There is no fallback
            from one to the other.
          delivery: Whether messages are numbered and acknowledged, and sent again until then: "on", if the peer has that
            layer, as nodes of this library have; "required", so the channel does not open without it; or "off".

        Returns:
          The channel, which can stand in a route. It lives until either side closes it, the peer is gone, or the node
          ends.

        Raises:
          AnswerTimeout: No handshake was answered. A peer without the delivery layer that refuses this identity does not
            answer either.
          IdentityRefused: The peer refuses this identity.
          HandshakeError: `trust` refuses the peer, or it has no delivery layer and that is required.
          ConnectionLost: The first hop can't be connected.
          ConfigError: The protocol version or the delivery mode is unknown.

        If cancelled, no channel stays.
        """
        _require_delivery_mode(delivery)
        speaker = await handshaker(identity, protocol_version)
        deadline = trio.current_time() + timeout
        hops = await self._resolve_by(route, deadline, timeout)
        return await open_secure_channel(
            self._router,
            hops,
            speaker,
            trust=trust,
            known_peers=identity.vault.known_peers,
            deadline=deadline,
            delivery=delivery,
            deliveries=self._deliveries,
        )

    async def serve_secure_channels(
        self,
        name: str,
        identity: Identity,
        *,
        trust: TrustPolicy,
        allow: Access = from_anywhere,
        protocol_versions: Sequence[str] = ("current",),
        delivery: DeliveryMode = "on",
    ) -> SecureChannelListener:
        """Answer handshakes at an address for as long as the node lives (spec §7, §8).

        Args:
          name: The address.
          identity: This side's identity.
          trust: Decides about each peer's identity. There is no default.
          allow: Which messages reach the listener.
          protocol_versions: Those that are answered, of "current" and "classic". The others get no answer, so no
            attacker can downgrade peers to classic.
          delivery: As for `open_secure_channel`. With "required", peers without the delivery layer are refused.

        Returns:
          The listener.

        Raises:
          AddressInUseError: The name is taken.
          ConfigError: A protocol version or the delivery mode is unknown.

        If cancelled, the node does not listen there.
        """
        _require_delivery_mode(delivery)
        handshakers = [
            await handshaker(identity, version, offers_delivery=delivery != "off")
            for version in require_protocol_versions(protocol_versions)
        ]
        listener = SecureChannelListener(
            self._router,
            local(name),
            identity,
            handshakers,
            trust=trust,
            delivery=delivery,
            deliveries=self._deliveries,
        )
        await self._start(partial(listener._run, allow=allow))
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
        timeout: float = STREAM_TIMEOUT,  # noqa: ASYNC109  # only a deadline shows that a hub does not answer
    ) -> Stream:
        """Open both directions of a conversation over two streams of a hub (spec §11).

        The hub creates them if they do not exist.

        Args:
          hub: The path to the hub; or several hubs, of which the next is tried when one is lost. A path of several hops
            is a `Route`.
          sends: The name of the stream to write.
          receives: The name of the stream to read.
          service: The address of the hub's stream service.
          index_service: The address of the service that keeps positions.
          client_id: Names the position that the hub keeps, so a restarted program reads on from it. By default reading
            begins at `start`.
          start: The index of the first record to read without a stored position; by default the stream's first one.
          protocol_version: The version that the peer reads, "current" or "classic". Records are written in it, whatever
            the hub speaks. Both are read.
          timeout: Seconds.

        Returns:
          The stream, which can stand in a route and be iterated.

        Raises:
          ConnectionLost: No hub can be reached.
          ServiceError: The hub refuses.
          AnswerTimeout: The hub did not answer in time.
          ConfigError: The protocol version or a name is wrong.

        If cancelled, no stream stays.
        """
        client = HubClient(
            self._router,
            self._hubs(hub),
            sends=sends,
            receives=receives,
            service=service,
            index_service=index_service,
            client_id=client_id or secrets.token_hex(16),
            start=start,
            protocol_version=protocol_version,
        )
        await self._start_ready(client.run, client.wait_ready, client.aclose, timeout)
        self._streams = [*(each for each in self._streams if not each.is_ended), client]
        return Stream(client)

    async def serve_streams(
        self,
        store: StreamStore,
        *,
        service: str = SERVICE,
        index_service: str = INDEX_SERVICE,
        allow: Access = from_anywhere,
        limits: StreamLimits = StreamLimits(),  # noqa: B008  # a frozen value
    ) -> StreamService:
        """Offer the streams of a store at two addresses for as long as the node lives (spec §11.2).

        Args:
          store: Keeps the records.
          service: The address of the stream service.
          index_service: The address of the service that keeps positions.
          allow: Which messages reach them.
          limits: What one client may make this node hold.

        Returns:
          The service.

        Raises:
          AddressInUseError: An address is taken.

        If cancelled, nothing is offered.
        """
        streams = StreamService(self._router, store, service, index_service, limits)
        await self._start(partial(streams._run, allow=allow))
        return streams

    # Relays

    async def open_relay(
        self,
        hub: Hub | Sequence[Hub],
        name: str | None = None,
        *,
        to: RouteLike | None = None,
        service: str | None = None,
        timeout: float = RELAY_TIMEOUT,  # noqa: ASYNC109  # a hub refuses in silence
    ) -> Relay:
        """Register an address on a hub by which others reach this node, again whenever the hub was lost (spec §13.2).

        A message that comes by a relay counts as one of an unauthenticated peer, so it reaches only what such peers may
        reach.

        Args:
          hub: The path to the hub, or several hubs, as for `open_stream`.
          name: 1 to 64 of A-Z a-z 0-9 . _ -, for an address that stays the same. By default the hub chooses a random
            one.
          to: The node that the relay leads to, if it is another one. Its first hop is a transport address such as
            tcp:127.0.0.1:4001.
          service: The address of the hub's relay service. By default the one that Ockam uses for such a name.
          timeout: Seconds.

        Returns:
          The relay; put its `remote` behind the path to the hub.

        Raises:
          ConnectionLost: No hub, or not `to`, can be reached.
          AnswerTimeout: The hub did not answer in time. A hub that refuses does not answer either.
          ConfigError: The name or `to` is wrong.

        If cancelled, no relay stays.
        """
        deadline = trio.current_time() + timeout
        if name is not None and not is_relay_name(name):
            raise ConfigError(
                "the name of a relay has 1 to 64 of A-Z a-z 0-9 . _ -, and is not `register`; "
                f"without a name the hub chooses one; this is {name!r}"
            )
        if to is not None:
            to = Route.of(to)
            if not (to.hops and to.hops[0].transport):
                raise ConfigError(f"`to` begins with a transport address such as tcp:127.0.0.1:4001; this is [{to}]")
            await self._resolve_by(to, deadline, timeout)  # so the caller learns at once if it can't be reached
        relay = Relay(
            self._router,
            self._hubs(hub),
            name=name,
            service=service or (EPHEMERAL_SERVICE if name is None else NAMED_SERVICE),
            open_target=None if to is None else partial(self._links.resolve, to),
        )
        await self._start_ready(relay._run, relay._wait_ready, relay.aclose, deadline - trio.current_time())
        return relay

    async def serve_relays(
        self,
        *,
        services: Sequence[str] = (EPHEMERAL_SERVICE, NAMED_SERVICE),
        prefix: str = PREFIX,
        allow: Access = from_anywhere,
        limits: RelayLimits = RelayLimits(),  # noqa: B008  # a frozen value
    ) -> RelayService:
        """Offer relays for as long as the node lives (spec §13.2).

        Nodes that can't be connected to are reached by their links to this one.
        Relays work whether or not this node forwards. Every message may pass a relay.

        Args:
          services: The addresses at which relays are registered.
          prefix: The beginning of the addresses of relays.
          allow: Which messages may register a relay.
          limits: What clients may make this node hold.

        Returns:
          The service.

        Raises:
          AddressInUseError: The address of a service is taken.
          ConfigError: The prefix has other characters than A-Z a-z 0-9 . _ -, or none.

        If cancelled, nothing is offered.
        """
        await trio.lowlevel.checkpoint()
        self._links.require_open()
        return RelayService(self._router, services, prefix, allow=allow, limits=limits)

    # TCP portals

    async def open_inlet(
        self,
        at: str,
        route: RouteLike | Hub,
        *,
        limits: PortalLimits = PortalLimits(),  # noqa: B008  # a frozen value
    ) -> Inlet:
        """Listen on a TCP port, and carry each connection along a route to the outlet at its end (spec §13.3).

        A portal encrypts nothing itself, so the route normally begins with a secure channel. A connection that is not
        read does not delay others. If the path is lost, its connections are reset, and so are new ones until there is a
        path again.

        Args:
          at: HOST:PORT; port 0 takes a free one.
          route: The path to the outlet, its address last; or an async function that returns it, called for each
            connection: it may open a channel again that was lost.
          limits: What the inlet holds at most.

        Returns:
          The inlet.

        Raises:
          ConnectionLost: The first hop can't be connected. The function's own exceptions propagate too.
          LocalError: The port can't be bound.
          ConfigError: `at` or the route is wrong.

        If cancelled, the port is not open.
        """
        open_path = self._path_opener(route)
        await open_path()
        inlet = Inlet(self._router, open_path, limits)
        await self._start(partial(inlet._run, at))
        return inlet

    async def serve_outlet(
        self,
        name: str,
        target: str,
        *,
        allow: Access = from_local_or_channels,
        limits: PortalLimits = PortalLimits(),  # noqa: B008  # a frozen value
    ) -> Outlet:
        """Let inlets use a TCP service by an address of this node, for as long as the node lives (spec §13.3).

        Args:
          name: The address.
          target: HOST:PORT of the TCP service.
          allow: Which messages reach the outlet. By default those of this node and of peers of its secure channels.
          limits: What the outlet holds at most.

        Returns:
          The outlet.

        Raises:
          AddressInUseError: The name is taken.
          ConfigError: `target` is no HOST:PORT.

        If cancelled, nothing is offered.
        """
        outlet = Outlet(self._router, local(name), target, limits)
        await self._start(partial(outlet._run, allow=allow))
        return outlet

    # Internal

    @contextmanager
    def _registered(self, mailbox: Mailbox, allow: Access) -> Iterator[None]:
        """Give a mailbox its address for the length of a block, and close it at the end."""
        self._router.register(mailbox.encoded, mailbox._hop, allow=allow)
        try:
            yield
            mailbox._finish()
        finally:
            self._router.unregister(mailbox.encoded)
            mailbox._close()

    async def _drain(self, grace: float) -> None:
        """Wait until the peers of channels have acknowledged everything, and report the end of this node to them."""
        with trio.move_on_after(grace):
            await self._deliveries.drain()
        for channel in list(self._deliveries.channels):
            channel.say_goodbye()

    async def _finish(self, grace: float) -> int:
        """Wait until accepted messages are acknowledged, report the end to peers, and close streams and links.

        Return the number of messages that are not acknowledged.
        """
        deadline = trio.current_time() + grace
        await self._drain(grace)
        undelivered = self._deliveries.undelivered + sum(channel.promised for channel in self._deliveries.channels)
        self._router.is_ending = True

        async def close(client: HubClient) -> None:
            nonlocal undelivered
            if client.is_ended:
                return
            await client.flush(deadline)
            try:
                await client.aclose()
            except Undelivered as error:
                undelivered += error.count

        async with trio.open_nursery() as nursery:
            for client in self._streams:
                nursery.start_soon(close, client)
        await self.aclose_links()
        return undelivered

    async def _start(self, task: Callable[..., Awaitable[object]]) -> Any:
        """Run a task in the node's nursery, and wait for the value that it reports by `task_status.started`."""
        self._links.require_open()
        return await self._nursery.start(task)

    async def _start_ready(
        self,
        run: Callable[..., Awaitable[object]],
        wait_ready: Callable[[float], Awaitable[None]],
        aclose: Callable[[], Awaitable[None]],
        seconds: float,
    ) -> None:
        """Start a task and wait until it is ready, or end it again."""
        deadline = trio.current_time() + seconds
        await self._start(run)
        try:
            await wait_ready(deadline)
        except BaseException:  # also when cancelled: a part that the caller does not get must not stay
            with trio.CancelScope(shield=True):
                await aclose()
            raise

    async def _resolve_by(self, route: RouteLike, deadline: float, seconds: float) -> tuple[Encoded, ...]:
        """Connect the first hop of a route before a deadline; AnswerTimeout names `seconds`, the caller's timeout."""
        with trio.CancelScope(deadline=deadline):
            return await self._links.resolve(route)
        raise AnswerTimeout(
            f"the first hop of [{Route.of(route)}] could not be connected within {seconds:g} s: is that node running?"
        )

    def _hubs(self, hub: Hub | Sequence[Hub]) -> list[tuple[str, OpenPath]]:
        """Return for each hub a name for logs, and the function that opens the path to it."""
        hubs: Sequence[Hub] = hub if isinstance(hub, list | tuple) else [cast(Hub, hub)]
        if not hubs:
            raise ConfigError("name at least one hub")
        names = [getattr(each, "__name__", "hub") if callable(each) else str(Route.of(each)) for each in hubs]
        return list(zip(names, map(self._path_opener, hubs), strict=True))

    def _path_opener(self, hub: RouteLike | Hub) -> OpenPath:
        """Return the function that opens the path that a route describes, or that a function returns.

        ConfigError at once for a wrong route.
        """
        route = None if callable(hub) else _path(hub)

        async def open_path() -> tuple[Encoded, ...]:
            return await self._links.resolve(route or _path(await hub()))  # type: ignore[operator]  # callable, since there is no route

        return open_path


def _require_delivery_mode(delivery: DeliveryMode) -> None:
    if delivery not in get_args(DeliveryMode):
        raise ConfigError(f"delivery is one of {', '.join(map(repr, get_args(DeliveryMode)))}; this is {delivery!r}")


def _path(route: RouteLike) -> Route:
    path = Route.of(route)
    if not path.hops:
        raise ConfigError("a path has at least one hop, such as tcp:127.0.0.1:4000; this route is empty")
    return path


def _call_worker(worker: Worker, mailbox: Mailbox) -> Awaitable[None]:
    """Return the coroutine of a worker; ConfigError for a function that makes none."""
    if callable(worker):
        running = worker(mailbox)
        if inspect.isawaitable(running):
            return running
    raise ConfigError(f"a worker is an async function, called with its mailbox; this is {worker!r}")


async def _hold_connections(*, task_status: trio.TaskStatus[trio.Nursery]) -> None:
    """Keep the nursery in which transports start the tasks of their connections."""
    async with trio.open_nursery() as nursery:
        task_status.started(nursery)
        await trio.sleep_forever()


@asynccontextmanager
async def open_node(
    *transports: str | Transport,
    vault: IdentityVault | None = None,
    forwards: bool = False,
    grace: float = GRACE,
) -> AsyncIterator[Node]:
    """Open a node for the length of a block.

    Use it as `async with open_node("tcp") as node:`. Everything that you start in the block ends with it. At its end
    the links are flushed and closed. An exception of a worker leaves the block in an ExceptionGroup, unless
    `start_worker(on_error=...)` says otherwise. A message of a peer never raises in your program.

    Args:
      transports: Names of installed transports, or `Transport` objects.
      vault: Holds the keys. By default they live in memory, and are lost when the node ends.
      forwards: Whether messages of unauthenticated peers may pass from link to link, as on a hub.
      grace: Seconds that the end of the block waits for the peers of secure channels to acknowledge what was sent.

    Returns:
      A context manager that gives the node.

    Raises:
      ConfigError: A transport is not installed, or Trio does not run.
      Undelivered: At the end of the block, messages that were sent through secure channels are not acknowledged.

    If cancelled in the block, the links end without being flushed. Nothing is waited for then, nor after an exception.
    """
    if not trio.lowlevel.in_trio_run():
        raise ConfigError(
            "trionode runs on Trio, which does not run here: call trio.run(main), and not asyncio.run(main)"
        )
    found = [load_transport(transport) if isinstance(transport, str) else transport for transport in transports]
    async with trio.open_nursery() as nursery:
        connections: trio.Nursery = await nursery.start(_hold_connections)
        opened = [transport.open(connections) for transport in found]
        node = Node(nursery, opened, MemoryVault() if vault is None else vault, forwards=forwards)
        await nursery.start(node._deliveries.run)
        undelivered = 0
        try:
            yield node
            undelivered = await node._finish(grace)
        finally:
            node._links.is_closed = True
            node.dead_letters._close()
        nursery.cancel_scope.cancel()
    if undelivered:
        raise Undelivered(
            undelivered,
            f"{undelivered} messages were accepted and not acknowledged when the node ended, after {grace:g} s: their "
            "peers or the routes to them are gone, or slow. Send them again, or open the node with a longer grace",
        )
