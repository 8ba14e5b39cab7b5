"""Streams whose hub is reached through relays, and strangers at the same relay (spec §13.2, threats 20, 23 and 24)."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trionode import Identity, Message, Node, Route, Stream, open_node, trust_everyone, trust_only
from trionode.counters import DropReason
from trionode.net.transport import Link
from trionode.protocol.stream.messages import (
    CreateResponse,
    IndexResponse,
    PullResponse,
    PushResponse,
    Record,
    Response,
    encode,
)
from trionode.protocol.wire.address import Encoded, local
from trionode.protocol.wire.current_codec import CURRENT
from trionode.relay.client import Relay
from trionode.stream.store.memory import MemoryStore
from trionode_loopback import Loopback, LoopbackLink

BODIES = [b"%04d" % number for number in range(300)]


class Network(Loopback):
    """A loopback network that knows its links by the name that was dialled, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[tuple[str, LoopbackLink]] = []

    async def connect(self, peer: str) -> Link:
        link = await super().connect(peer)
        assert isinstance(link, LoopbackLink)
        self.links.append((peer, link))
        return link


@attrs.frozen(eq=False)
class Scene:
    """A node with relays, a hub of streams behind it, and the nodes of Alice and Bob."""

    network: Network
    relaying: Node
    hub: Node
    relay: Relay
    alice: Node
    bob: Node

    async def pair(self, way: Route | None = None) -> tuple[Stream, Stream]:
        way = Route("loopback:relaying", self.relay.remote) if way is None else way
        return (
            await self.alice.open_stream(way, sends="to_bob", receives="to_alice"),
            await self.bob.open_stream(way, sends="to_alice", receives="to_bob"),
        )


@asynccontextmanager
async def open_scene() -> AsyncIterator[Scene]:
    network = Network()
    async with open_node(network) as relaying, open_node(network) as hub:
        await relaying.listen("loopback:relaying")
        await relaying.serve_relays()
        await hub.serve_streams(MemoryStore())
        relay = await hub.open_relay(Route("loopback:relaying"), "streams")
        async with open_node(network) as alice, open_node(network) as bob:
            yield Scene(network, relaying, hub, relay, alice, bob)


async def talk(scene: Scene, ours: Stream, theirs: Stream) -> None:
    """Send both ways, and check that all arrives once and in order."""
    for body in BODIES:
        await scene.alice.send(Route(ours), body)
    assert [(await theirs.receive()).payload for _ in BODIES] == BODIES
    for body in BODIES:
        await scene.bob.send(Route(theirs), body)
    assert [(await ours.receive()).payload for _ in BODIES] == BODIES


async def test_a_stream_opens_and_carries_messages_through_a_relay(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        ours, theirs = await scene.pair()
        await talk(scene, ours, theirs)
        assert trio.current_time() < 1
        assert not scene.alice.counters[DropReason.STREAM_ANSWER_NOT_FROM_HUB]


async def test_a_stream_opens_through_a_relay_behind_a_relay(autojump_clock: MockClock) -> None:
    async with open_scene() as scene, open_node(scene.network) as inner, open_node(scene.network) as hub:
        # The second node with relays, and the hub behind it, accept no connections at all.
        await inner.serve_relays()
        outer_relay = await inner.open_relay(Route("loopback:relaying"), "inner")
        await hub.serve_streams(MemoryStore())
        inner_relay = await hub.open_relay(Route("loopback:relaying", outer_relay.remote), "streams")
        way = Route("loopback:relaying", outer_relay.remote, inner_relay.remote)
        await talk(scene, *await scene.pair(way))


async def test_a_stream_opens_through_a_secure_channel_that_passes_a_relay(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        identity = await Identity.create(scene.hub.vault)
        await scene.hub.serve_secure_channels("api", identity, trust=trust_everyone)
        ways = []
        for node in (scene.alice, scene.bob):
            channel = await node.open_secure_channel(
                Route("loopback:relaying", scene.relay.remote, "api"),
                await Identity.create(node.vault),
                trust=trust_only(identity.identifier),
            )
            ways.append(Route(channel))
        ours = await scene.alice.open_stream(ways[0], sends="to_bob_" + 32 * "0", receives="to_alice_" + 32 * "0")
        theirs = await scene.bob.open_stream(ways[1], sends="to_alice_" + 32 * "0", receives="to_bob_" + 32 * "0")
        await talk(scene, ours, theirs)


async def test_a_stream_goes_on_after_the_hub_has_registered_its_relay_again(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        ours, theirs = await scene.pair()
        await scene.alice.send(Route(ours), b"before")
        assert (await theirs.receive()).payload == b"before"
        # Only the link between the hub and the node with relays: Alice and Bob notice silence.
        link = scene.network.links[0][1]
        for channel in (link._incoming, link._outgoing):
            channel.discard()
            channel.close()
        await scene.alice.send(Route(ours), b"after")
        with trio.fail_after(60):
            assert (await theirs.receive()).payload == b"after"


async def test_another_client_of_the_relays_cannot_answer_for_the_hub_threats_20_23_24(
    autojump_clock: MockClock,
) -> None:
    async with open_scene() as scene, open_node(scene.network) as mallory:
        # Mallory has a relay there, too, and knows more than can be known: Alice's return path, from a message that she
        # sent through his relay, and both addresses of her stream.
        learned: list[tuple[Encoded, ...]] = []
        mallory._router.register(local("trap"), lambda message: learned.append(message.back), allow=lambda _: True)
        trap = await mallory.open_relay(Route("loopback:relaying"), "trap")
        ours, theirs = await scene.pair()
        await scene.alice.send(Route("loopback:relaying", trap.remote, "trap"), b"hello")
        await wait_all_tasks_blocked()
        (way,) = learned
        client = ours._client
        await scene.alice.send(Route(ours), b"real")
        assert (await theirs.receive()).payload == b"real"

        async def forge(target: Encoded, response: Response) -> None:
            onward = (*way[:2], target)
            mallory._router.deliver(Message(onward, (local("stream_kafka.to_bob"),), encode(response)))
            await wait_all_tasks_blocked()

        before = scene.alice.counters[DropReason.STREAM_ANSWER_NOT_FROM_HUB]
        forged = CURRENT.encode((), (), b"forged")
        for request_id in range(5):
            await forge(client._receiving.address, PullResponse(request_id, (Record(request_id, forged),)))
            await forge(client.address, PushResponse(request_id, ok=True, index=request_id))
        assert scene.alice.counters[DropReason.STREAM_ANSWER_NOT_FROM_HUB] == before + 10
        worker = client.producer.worker
        await forge(client.address, CreateResponse("to_bob"))
        await forge(client._receiving.address, CreateResponse("to_alice"))
        await forge(client._receiving.address, IndexResponse(client.consumer.client_id, "to_alice", 10**6))
        assert client.producer.worker == worker
        assert client.consumer.position == 0
        await talk(scene, ours, theirs)


async def test_a_stranger_who_knows_all_addresses_but_not_the_way_reaches_no_stream(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        ours, theirs = await scene.pair()
        await scene.alice.listen("loopback:alice")
        link = await scene.network.connect("alice")
        forged = encode(PullResponse(0, (Record(0, CURRENT.encode((), (), b"forged")),)))
        # The return route of the hub's own answers, but not by Alice's link to the node with relays.
        for target in (ours._client.address, ours._client._receiving.address):
            await link.send([CURRENT.encode((target,), ours._client.consumer.worker[1:], forged)])
        await wait_all_tasks_blocked()
        assert scene.alice.counters[DropReason.STREAM_ANSWER_NOT_FROM_HUB] == 2
        await talk(scene, ours, theirs)
