"""Alice, Bob and the network between them, for the tests of channels."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import attrs
import trio

from trionode import (
    Identifier,
    Identity,
    Mailbox,
    Message,
    Node,
    Route,
    SecureChannel,
    Stream,
    TrustPolicy,
    open_node,
    trust_everyone,
    unique,
)
from trionode.channel.initiator import DeliveryMode
from trionode.channel.listener import SecureChannelListener
from trionode.net.transport import Transport
from trionode.stream.store.base import StreamStore
from trionode.stream.store.memory import MemoryStore
from trionode.workers import echoer
from trionode_loopback import Loopback

#: The protocol versions of channels that this library speaks.
PROTOCOL_VERSIONS = ["current", "classic"]
#: Seconds of virtual time after which a test has failed: none waits for more than two retries and a long poll.
STALL_TIMEOUT = 120.0


class Handler:
    """A worker that records its messages."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self._arrived = trio.lowlevel.ParkingLot()

    @property
    def payloads(self) -> list[bytes]:
        return [message.payload for message in self.messages]

    async def work(self, mailbox: Mailbox) -> None:
        async for message in mailbox:
            self.messages.append(message)
            self._arrived.unpark_all()

    async def until(self, payload: bytes) -> None:
        """Wait until a message with this payload has come."""
        while payload not in self.payloads:
            await self._arrived.park()

    async def until_count(self, count: int) -> None:
        while len(self.messages) < count:
            await self._arrived.park()


@attrs.define(eq=False)
class Parties:
    """Two nodes with a route from Alice to Bob's listener; each has an echoer and a handler that channels reach."""

    alice: Node
    bob: Node
    alices: Identity
    bobs: Identity
    listener: SecureChannelListener
    #: From Alice to Bob's listener.
    route: Route
    alice_handler: Handler
    bob_handler: Handler
    #: The network between them, if any.
    hub: Node | None = None
    #: The names of the two streams, if there are any.
    alice_to_bob: str = ""
    bob_to_alice: str = ""
    bobs_stream: Stream | None = None
    #: The protocol version of their channels, and what they are known by in it.
    protocol_version: str = "current"
    #: Whether their channels have the delivery layer.
    delivery: DeliveryMode = "off"
    alices_identifier: Identifier = attrs.field(kw_only=True)
    bobs_identifier: Identifier = attrs.field(kw_only=True)

    async def open(self, *, trust: TrustPolicy = trust_everyone) -> tuple[SecureChannel, SecureChannel]:
        """A channel that has carried a message in each direction: Alice's side of it, and Bob's."""
        channel = await self.alice.open_secure_channel(
            self.route,
            self.alices,
            trust=trust,
            protocol_version=self.protocol_version,
            delivery=self.delivery,
        )
        assert (await self.alice.ask(Route(channel, "echoer"), b"hello")).payload == b"hello"
        # Bob's side is the one that sends to Alice's decryptor.
        (bobs_side,) = [each for each in self.listener.channels if each._hops.route[-1] == channel._hops.decryptor]
        return channel, bobs_side


async def known_as(identity: Identity, protocol_version: str) -> Identifier:
    return (await identity.classic()).identifier if protocol_version == "classic" else identity.identifier


async def serve(node: Node) -> tuple[Identity, Handler]:
    """An identity for a node, its echoer and its handler."""
    handler = Handler()
    await node.start_worker("echoer", echoer)
    await node.start_worker("handler", handler.work)
    return await Identity.create(node.vault), handler


@asynccontextmanager
async def open_parties(
    way: str = "loopback",
    *,
    trust: TrustPolicy = trust_everyone,
    tap: Transport | None = None,
    store: StreamStore | None = None,
    protocol_version: str = "current",
    protocol_versions: Sequence[str] = (),
    delivery: DeliveryMode = "off",
) -> AsyncIterator[Parties]:
    """Alice and Bob, joined by "loopback", "tcp", "a hub", "two hubs" or "streams"; `tap` is the transport of the first hub.

    Alice's channels are of a protocol version, and Bob's listener answers it alone, unless the test says otherwise.
    They have no delivery layer by default, so a test sees what the session alone does.
    """
    transport: str | Transport = "tcp" if way == "tcp" else Loopback() if tap is None else tap
    network: str | Transport = getattr(tap, "_inner", transport)
    async with AsyncExitStack() as stack:
        hubs: Sequence[Node] = [
            await stack.enter_async_context(open_node(transport if not n else network, forwards=way != "streams"))
            for n in range({"a hub": 1, "two hubs": 2, "streams": 1}.get(way, 0))
        ]
        bob = await stack.enter_async_context(open_node(network))
        alice = await stack.enter_async_context(open_node(network))
        bobs, bob_handler = await serve(bob)
        alices, alice_handler = await serve(alice)
        listener = await bob.serve_secure_channels(
            "listener", bobs, trust=trust, protocol_versions=protocol_versions or (protocol_version,), delivery=delivery
        )
        parties = Parties(
            alice,
            bob,
            alices,
            bobs,
            listener,
            Route("listener"),
            alice_handler,
            bob_handler,
            protocol_version=protocol_version,
            delivery=delivery,
            alices_identifier=await known_as(alices, protocol_version),
            bobs_identifier=await known_as(bobs, protocol_version),
        )
        if way == "streams":
            (hub,) = hubs
            at = await hub.listen("loopback:hub")
            await hub.serve_streams(MemoryStore() if store is None else store)
            parties.hub = hub
            parties.alice_to_bob, parties.bob_to_alice = unique("alice_to_bob"), unique("bob_to_alice")
            parties.bobs_stream = await bob.open_stream(
                Route(at), sends=parties.bob_to_alice, receives=parties.alice_to_bob, client_id="bob"
            )
            stream = await alice.open_stream(Route(at), sends=parties.alice_to_bob, receives=parties.bob_to_alice)
            parties.route = Route(stream, "listener")
        else:
            at = await bob.listen("tcp:127.0.0.1:0" if way == "tcp" else "loopback:bob")
            route = Route("listener")
            for n, hub in reversed(list(enumerate(hubs))):
                await hub.connect(str(at), name="onward")
                at = await hub.listen(f"loopback:hub{n}")
                route = Route("onward", route)
            parties.hub = hubs[0] if hubs else None
            parties.route = Route(at, route)
        yield parties
