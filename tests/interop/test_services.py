"""Portals and relays with real Rust peers of both protocol versions (spec §13.2, §13.3)."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import pytest
import trio

from tests.interop.test_current import STALL_TIMEOUT
from tests.portals.test_portals import echo, parts, service_at
from tests.support.rust_peers import Peers, open_peers, program_of, reports
from trionode import Identity, Node, Route, open_node, trust_everyone

pytestmark = pytest.mark.interop


@attrs.define(eq=False)
class Scene:
    """Our node, which answers channels of one protocol version, and Rust peers of it."""

    node: Node
    ours: Identity
    peers: Peers
    endpoint: str
    protocol_version: str

    @property
    def scheme(self) -> str:
        return "tcp" if self.protocol_version == "current" else "tcp_classic"


@pytest.fixture(params=["current", "classic"])
async def scene(request: pytest.FixtureRequest) -> AsyncIterator[Scene]:
    protocol_version: str = request.param
    async with open_peers(program_of(protocol_version)) as peers, open_node("tcp", "tcp_classic") as node:
        ours = await Identity.create(node.vault)
        await node.serve_secure_channels("listener", ours, trust=trust_everyone, protocol_versions=(protocol_version,))
        at = await node.listen("tcp:127.0.0.1:0")
        yield Scene(node, ours, peers, at.value.decode(), protocol_version)


@asynccontextmanager
async def client_of(endpoint: str) -> AsyncIterator[trio.SocketStream]:
    host, _, port = endpoint.rpartition(":")
    async with await trio.open_tcp_stream(host, int(port)) as client:
        yield client


async def echoes(endpoint: str, size: int = 1_000_000) -> None:
    """Send so much while reading, and see that all of it comes back."""
    data = b"".join(parts(size))
    async with client_of(endpoint) as client, trio.open_nursery() as nursery:
        nursery.start_soon(client.send_all, data)
        received = bytearray()
        while len(received) < size:
            part = await client.receive_some(65_536)
            assert part, f"ended after {len(received)} of {size} bytes"
            received += part
        assert received == data


async def test_a_rust_inlet_reaches_our_outlet(scene: Scene) -> None:
    with trio.fail_after(STALL_TIMEOUT):
        async with service_at(echo) as target:
            await scene.node.serve_outlet("outlet", target)
            inlet = await scene.peers.start("inlet", "127.0.0.1:0", scene.endpoint)
            *_, at = await reports(inlet, "identity", "established", "listening")
            for _ in range(3):
                await echoes(at)


async def test_our_inlet_reaches_a_rust_outlet(scene: Scene) -> None:
    with trio.fail_after(STALL_TIMEOUT):
        async with service_at(echo) as target:
            outlet = await scene.peers.start("outlet", target)
            endpoint, _ = await reports(outlet, "listening", "identity")
            channel = await scene.node.open_secure_channel(
                Route(f"{scene.scheme}:{endpoint}", "listener"),
                scene.ours,
                trust=trust_everyone,
                protocol_version=scene.protocol_version,
            )
            inlet = await scene.node.open_inlet("127.0.0.1:0", Route(channel, "outlet"))
            for _ in range(3):
                await echoes(inlet.bound)
            # No half-close there: the end of our client's input ends the connection on both sides.
            async with client_of(inlet.bound) as client:
                await client.send_all(b"x")
                assert await client.receive_some(1) == b"x"
                await client.send_eof()
                assert await client.receive_some(1) == b""


async def test_a_rust_node_behind_our_relay_is_reached_through_a_channel(scene: Scene) -> None:
    with trio.fail_after(STALL_TIMEOUT):
        await scene.node.serve_relays()
        # A classic program keeps its name by asking again; the answer has to be what it asked for.
        relay = await scene.peers.start("relay", scene.endpoint, "inside")
        address, identifier = await reports(relay, "relay", "identity")
        assert address.endswith("inside")
        async with open_node(scene.scheme) as caller:
            me = await Identity.create(caller.vault)
            channel = await caller.open_secure_channel(
                Route(f"{scene.scheme}:{scene.endpoint}", "forward_to_inside", "listener"),
                me,
                trust=trust_everyone,
                protocol_version=scene.protocol_version,
            )
            assert str(channel.peer.identifier) == identifier
            for number in range(70):
                assert (await caller.ask(Route(channel, "echoer"), f"{number}")).text == f"{number}"


async def test_our_node_behind_a_rust_relay_service_is_reached(scene: Scene) -> None:
    if scene.protocol_version == "classic":
        pytest.skip("a classic Rust relay service does not forward between two TCP connections from 0.78 on")
    with trio.fail_after(STALL_TIMEOUT):
        service = await scene.peers.start("relay-service")
        (endpoint,) = await reports(service, "listening")
        relay = await scene.node.open_relay(Route(f"tcp:{endpoint}"), "ours")
        async with open_node("tcp") as caller:
            me = await Identity.create(caller.vault)
            channel = await caller.open_secure_channel(
                Route(f"tcp:{endpoint}", relay.remote, "listener"), me, trust=trust_everyone
            )
            assert channel.peer.identifier == scene.ours.identifier
