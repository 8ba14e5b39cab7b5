"""Rules of portal connections (spec §13.3): which peers may send, and what an untrusted peer can cause."""

import logging
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
import trio.testing

from trionode import Identity, Mailbox, Message, Node, Route, SecureChannel, open_node, trust_everyone
from trionode.counters import DropReason
from trionode.errors import ConnectionLost
from trionode.portal import PortalLimits
from trionode.portal.connection import Connection
from trionode.protocol.portal import (
    MAX_DATA,
    Disconnect,
    EndOfInput,
    Payload,
    Ping,
    Pong,
    PortalMessage,
    decode,
    encode,
)
from trionode.protocol.rules.access import from_anywhere
from trionode.protocol.wire.address import Encoded

#: Seconds after which a test has failed, on a busy machine.
LIMIT = 30.0


@attrs.define(eq=False)
class Target:
    """A TCP service whose connections a test plays by hand."""

    at: str
    accepted: trio.MemoryReceiveChannel[trio.SocketStream]


@asynccontextmanager
async def open_target() -> AsyncIterator[Target]:
    put, accepted = trio.open_memory_channel[trio.SocketStream](1000)

    async def keep(stream: trio.SocketStream) -> None:
        put.send_nowait(stream)
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, keep, 0)
        yield Target(f"127.0.0.1:{listeners[0].socket.getsockname()[1]}", accepted)
        nursery.cancel_scope.cancel()


async def connect(at: str) -> trio.SocketStream:
    host, _, port = at.partition(":")
    return await trio.open_tcp_stream(host, int(port))


async def assert_reset(stream: trio.SocketStream) -> None:
    with pytest.raises(trio.BrokenResourceError):
        await stream.receive_some(1)


async def read_out(stream: trio.SocketStream) -> bytes:
    return b"".join([data async for data in stream])


async def next_message(mailbox: Mailbox) -> PortalMessage:
    return decode((await mailbox.receive()).payload)


@asynccontextmanager
async def open_pair() -> AsyncIterator[tuple[Node, Node, str, Identity]]:
    """Alice's and Bob's nodes, where Bob listens, and Alice's identity."""
    async with open_node("tcp") as bob, open_node("tcp") as alice:
        await bob.serve_secure_channels("listener", await Identity.create(bob.vault), trust=trust_everyone)
        at = await bob.listen("tcp:127.0.0.1:0")
        yield alice, bob, str(at), await Identity.create(alice.vault)


async def open_channel(node: Node, at: str, identity: Identity) -> SecureChannel:
    return await node.open_secure_channel(Route(at, "listener"), identity, trust=trust_everyone)


async def test_connection_admits_only_the_identity_of_its_ping() -> None:
    with trio.fail_after(LIMIT):
        async with open_target() as target, open_pair() as (alice, bob, at, identity):
            outlet = await bob.serve_outlet("outlet", target.at)
            channel = await open_channel(alice, at, identity)
            mallory = await open_channel(alice, at, await Identity.create(alice.vault, name="mallory"))
            async with alice.open_mailbox() as inlet:
                await inlet.send(Route(channel, "outlet"), encode(Ping()))
                pong = await inlet.receive()
                served = await target.accepted.receive()
                last = pong.return_route.hops[-1]
                for way in (Route(mallory, last), Route(at, last)):
                    await alice.send(way, encode(Payload(b"injected")))
                    await alice.send(way, encode(Disconnect()))
                # The bare link and the other channel deliver in order with this one: an answer shows that those
                # messages have come.
                await trio.testing.wait_all_tasks_blocked()
                while bob.counters[DropReason.ACCESS_DENIED] < 4:
                    await trio.testing.wait_all_tasks_blocked()
                await inlet.reply(pong, encode(Payload(b"genuine")))
                assert await served.receive_some(100) == b"genuine"
                assert outlet.connections == 1


async def test_outlet_admits_peers_of_secure_channels_only() -> None:
    with trio.fail_after(LIMIT):
        async with open_target() as target, open_pair() as (alice, bob, at, _):
            outlet = await bob.serve_outlet("outlet", target.at)
            await alice.send(Route(at, "outlet"), encode(Ping()))
            while not bob.counters[DropReason.ACCESS_DENIED]:
                await trio.testing.wait_all_tasks_blocked()
            assert outlet.connections == 0


async def test_return_routes_of_later_messages_are_ignored() -> None:
    with trio.fail_after(LIMIT):
        async with open_target() as target, open_node() as node:
            await node.serve_outlet("outlet", target.at)
            async with node.open_mailbox() as inlet, node.open_mailbox() as other:
                await inlet.send(Route("outlet"), encode(Ping()))
                pong = await inlet.receive()
                served = await target.accepted.receive()
                await other.reply(pong, encode(Payload(b"from another address, as classic does")))
                assert await served.receive_some(100)
                await served.send_all(b"answer")
                assert await next_message(inlet) == Payload(b"answer")


async def test_an_outlet_bounds_the_connections_of_one_client_and_of_all() -> None:
    with trio.fail_after(LIMIT):
        async with open_target() as target, open_pair() as (alice, bob, at, identity):
            outlet = await bob.serve_outlet("outlet", target.at, limits=PortalLimits(connections=3, per_client=2))
            other = await Identity.create(alice.vault, name="other")
            channels = [await open_channel(alice, at, each) for each in (identity, other)]
            answers: list[list[PortalMessage]] = []
            for channel in (channels[0], channels[0], channels[0], channels[1], channels[1]):
                async with alice.open_mailbox() as inlet:
                    await inlet.send(Route(channel, "outlet"), encode(Ping()))
                    answers.append([await next_message(inlet)])
                    if len(answers) in (3, 5):
                        answers[-1].append(await next_message(inlet))
            assert answers == [[Pong()], [Pong()], [Pong(), Disconnect()], [Pong()], [Pong(), Disconnect()]]
            assert outlet.connections == 3


async def test_an_inlet_bounds_its_connections() -> None:
    with trio.fail_after(LIMIT):
        async with open_target() as target, open_node() as node:
            await node.serve_outlet("outlet", target.at)
            inlet = await node.open_inlet("127.0.0.1:0", Route("outlet"), limits=PortalLimits(connections=1))
            async with await connect(inlet.bound), await connect(inlet.bound) as second:
                await target.accepted.receive()
                await assert_reset(second)
                assert inlet.connections == 1


async def test_an_inlet_survives_a_lost_channel_by_a_function_that_opens_another() -> None:
    with trio.fail_after(LIMIT):
        async with open_target() as target, open_pair() as (alice, bob, at, identity):
            outlet = await bob.serve_outlet("outlet", target.at)
            channels: list[SecureChannel] = []

            async def way() -> Route:
                if not channels or channels[-1].closed.is_set():
                    channels.append(await open_channel(alice, at, identity))
                return Route(channels[-1], "outlet")

            inlet = await alice.open_inlet("127.0.0.1:0", way)
            for _ in range(2):
                async with await connect(inlet.bound) as client:
                    await client.send_all(b"x")
                    served = await target.accepted.receive()
                    assert await served.receive_some(1) == b"x"
                    await channels[-1].aclose()
                    await assert_reset(client)
                    await assert_reset(served)
            assert len(channels) == 2
            while outlet.connections or inlet.connections:
                await trio.testing.wait_all_tasks_blocked()


async def test_a_lost_link_resets_the_sockets_of_both_sides_at_once() -> None:
    with trio.fail_after(LIMIT / 2):  # a channel listener notices only after a minute or two
        async with open_target() as target, open_pair() as (alice, bob, at, identity):
            await bob.serve_outlet("outlet", target.at)
            channel = await open_channel(alice, at, identity)
            inlet = await alice.open_inlet("127.0.0.1:0", Route(channel, "outlet"))
            async with await connect(inlet.bound) as client:
                served = await target.accepted.receive()
                await client.send_all(b"x")
                assert await served.receive_some(1) == b"x"
                (link,) = alice._links._all
                await link.aclose()
                await assert_reset(client)
                await assert_reset(served)


async def test_failing_path_raises_at_first_and_resets_clients_later(
    caplog: pytest.LogCaptureFixture,
) -> None:
    is_there = False

    async def way() -> Route:
        if not is_there:
            raise ConnectionLost("no way")
        return Route("outlet")

    with trio.fail_after(LIMIT):
        async with open_target() as target, open_node() as node:
            await node.serve_outlet("outlet", target.at)
            with pytest.raises(ConnectionLost, match="no way"):
                await node.open_inlet("127.0.0.1:0", way)
            is_there = True
            inlet = await node.open_inlet("127.0.0.1:0", way)
            is_there = False
            with caplog.at_level(logging.WARNING, "trionode"):
                for _ in range(3):
                    async with await connect(inlet.bound) as client:
                        await assert_reset(client)
            assert [each for each in caplog.messages if "no way" in each] == caplog.messages
            assert len(caplog.messages) == 1, "one line, however many clients try"
            is_there = True
            async with await connect(inlet.bound) as client:
                served = await target.accepted.receive()
                await served.send_all(b"back again")
                assert await client.receive_some(100) == b"back again"


async def test_client_without_an_answer_is_reset_and_a_late_answer_gets_a_disconnect(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("trionode.portal.inlet.OPEN_SECONDS", 0.1)
    with trio.fail_after(LIMIT):
        async with open_node() as node, node.open_mailbox() as outlet:
            inlet = await node.open_inlet("127.0.0.1:0", Route(outlet))
            async with await connect(inlet.bound) as client:
                ping = await outlet.receive()
                await assert_reset(client)
                await outlet.reply(ping, encode(Pong()))
                assert await next_message(outlet) == Disconnect()


async def test_broken_socket_is_reported_to_a_peer_without_credit() -> None:
    with trio.fail_after(LIMIT):
        async with open_target() as target, open_node() as node:
            await node.serve_outlet("outlet", target.at)
            for end in ("orderly", "reset"):
                async with node.open_mailbox() as inlet:
                    await inlet.send(Route("outlet"), encode(Ping()))
                    assert await next_message(inlet) == Pong()
                    served = await target.accepted.receive()
                    if end == "reset":
                        served.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    await served.aclose()
                    assert await next_message(inlet) == Disconnect()


async def test_truncated_connection_is_no_end_of_file() -> None:
    with trio.fail_after(LIMIT):
        async with open_target() as target, open_node() as node, node.open_mailbox() as inlet:
            await node.serve_outlet("outlet", target.at)
            await inlet.send(Route("outlet"), encode(Ping(1000)))
            pong = await inlet.receive()
            served = await target.accepted.receive()
            await inlet.reply(pong, encode(Payload(b"part", 0)))
            await inlet.reply(pong, encode(EndOfInput(10)))
            with pytest.raises(trio.BrokenResourceError):  # which may overtake what the program had not read
                await read_out(served)


async def test_inlet_sends_within_its_credit_and_the_smallest_payload_size() -> None:
    with trio.fail_after(LIMIT):
        async with open_node() as node, node.open_mailbox() as outlet, trio.open_nursery() as nursery:
            inlet = await node.open_inlet("127.0.0.1:0", Route(outlet))
            async with await connect(inlet.bound) as client:
                nursery.start_soon(client.send_all, bytes(200_000))
                ping = await outlet.receive()
                await outlet.reply(ping, encode(Pong(100_000)))
                total = 0
                while total < 100_000:
                    payload = await next_message(outlet)
                    assert isinstance(payload, Payload)
                    assert len(payload.data) <= MAX_DATA
                    total += len(payload.data)
                assert total == 100_000
                await trio.testing.wait_all_tasks_blocked()
                assert not len(outlet._inbox)


async def test_payloads_fit_a_path_with_smaller_frames() -> None:
    with trio.fail_after(LIMIT):
        async with open_target() as target, open_node() as node, node.open_mailbox() as inlet:
            sizes: list[int] = []

            def narrow(message: Message) -> None:
                sizes.append(len(message.payload) + sum(map(len, message.onward)) + sum(map(len, message.back)))
                node._router.deliver(Message(message.onward[1:], message.back, message.payload))

            narrow_address: Encoded = Route("narrow").encoded[0]
            node._router.register(narrow_address, narrow, allow=from_anywhere, limit=1000)
            await node.serve_outlet("outlet", target.at)
            way = Message((Route("outlet").encoded[0],), (narrow_address, inlet.encoded), encode(Ping(2**20)))
            node._router.deliver(way)
            assert isinstance(await next_message(inlet), Pong)
            served = await target.accepted.receive()
            await served.send_all(bytes(10_000))
            total = 0
            while total < 10_000:
                payload = await next_message(inlet)
                assert isinstance(payload, Payload)
                total += len(payload.data)
            assert 900 < max(sizes) <= 1000


async def test_ended_connection_leaves_no_address_and_no_callback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[Connection] = []
    create = Connection.__init__

    def noted(self: Connection, *args: object) -> None:
        create(self, *args)  # type: ignore[arg-type]
        made.append(self)

    monkeypatch.setattr(Connection, "__init__", noted)
    with trio.fail_after(LIMIT):
        async with open_target() as target, open_pair() as (alice, bob, at, identity):
            outlet = await bob.serve_outlet("outlet", target.at)
            channel = await open_channel(alice, at, identity)
            inlet = await alice.open_inlet("127.0.0.1:0", Route(channel, "outlet"))
            close_callbacks = [sum(map(len, node._router._close_callbacks.values())) for node in (alice, bob)]
            async with await connect(inlet.bound) as client:
                served = await target.accepted.receive()
                await client.send_eof()
                assert await served.receive_some(1) == b""
                await served.send_eof()
                assert await client.receive_some(1) == b""
            while outlet.connections or inlet.connections:
                await trio.testing.wait_all_tasks_blocked()
            assert len(made) == 2
            assert all(each.encoded not in node._router for each in made for node in (alice, bob))
            assert [sum(map(len, node._router._close_callbacks.values())) for node in (alice, bob)] == close_callbacks
            assert all(not each.end.is_broken for each in made)
