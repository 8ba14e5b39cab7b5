"""Inlets and outlets over real sockets: bytes and ends in both directions, and stopped readers (spec §13.3)."""

import hashlib
import random
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress

import attrs
import pytest
import trio
import trio.testing

from trionode import Identity, Node, Route, SecureChannel, open_node, trust_everyone
from trionode.counters import DropReason
from trionode.errors import AddressInUseError, LocalError
from trionode.portal import Inlet, Outlet
from trionode.protocol.portal import MAX_UNPACED, Disconnect, Payload, Ping, Pong, decode, encode
from trionode.protocol.rules.access import from_anywhere
from trionode.routing.mailbox import Mailbox
from trionode.stream.store.base import load_store
from trionode.testing import KafkaBroker

#: Seconds after which a test has failed, on a busy machine.
LIMIT = 30.0

Service = Callable[[trio.SocketStream], Awaitable[None]]


async def echo(stream: trio.SocketStream) -> None:
    """Send everything back, to the end."""
    async with stream:
        with suppress(trio.BrokenResourceError):
            async for data in stream:
                await stream.send_all(data)
            await stream.send_eof()


async def answer_at_the_end(stream: trio.SocketStream) -> None:
    """Answer once the client has ended its side: with the digest of all that came."""
    async with stream:
        digest = hashlib.sha256()
        async for data in stream:
            digest.update(data)
        await stream.send_all(digest.digest())


@asynccontextmanager
async def service_at(service: Service) -> AsyncIterator[str]:
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, service, 0)
        yield f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


@attrs.define(eq=False)
class Tunnel:
    """An inlet and an outlet, each on a node of its own."""

    near: Node
    far: Node
    inlet: Inlet
    outlet: Outlet
    channel: SecureChannel

    async def connect(self) -> trio.SocketStream:
        host, _, port = self.inlet.bound.partition(":")
        return await trio.open_tcp_stream(host, int(port))


@asynccontextmanager
async def tunnel(service: Service, protocol_version: str = "current") -> AsyncIterator[Tunnel]:
    """A tunnel through a secure channel over TCP."""
    dials = "tcp" if protocol_version == "current" else "tcp_classic"
    async with service_at(service) as target, open_node("tcp") as far, open_node(dials) as near:
        theirs, ours = await Identity.create(far.vault), await Identity.create(near.vault)
        await far.serve_secure_channels("listener", theirs, trust=trust_everyone, protocol_versions=(protocol_version,))
        outlet = await far.serve_outlet("outlet", target)
        at = await far.listen("tcp:127.0.0.1:0")
        way = Route(f"{dials}:{at.value.decode()}", "listener")
        channel = await near.open_secure_channel(way, ours, trust=trust_everyone, protocol_version=protocol_version)
        inlet = await near.open_inlet("127.0.0.1:0", Route(channel, "outlet"))
        yield Tunnel(near, far, inlet, outlet, channel)


@asynccontextmanager
async def stream_tunnel(service: Service, store: str) -> AsyncIterator[Tunnel]:
    """A tunnel through a secure channel over two streams of a hub."""
    async with (
        service_at(service) as target,
        load_store(store) as kept,
        open_node("tcp") as hub,
        open_node("tcp") as far,
        open_node("tcp") as near,
    ):
        await hub.serve_streams(kept)
        at = Route(await hub.listen("tcp:127.0.0.1:0"))
        theirs, ours = await Identity.create(far.vault), await Identity.create(near.vault)
        await far.serve_secure_channels("listener", theirs, trust=trust_everyone)
        outlet = await far.serve_outlet("outlet", target)
        tag = random.randbytes(16).hex()
        await far.open_stream(at, sends=f"back_{tag}", receives=f"forth_{tag}")
        stream = await near.open_stream(at, sends=f"forth_{tag}", receives=f"back_{tag}")
        channel = await near.open_secure_channel(Route(stream, "listener"), ours, trust=trust_everyone)
        inlet = await near.open_inlet("127.0.0.1:0", Route(channel, "outlet"))
        yield Tunnel(near, far, inlet, outlet, channel)


def parts(size: int, seed: int = 1) -> Iterator[bytes]:
    """So many bytes that don't repeat, in parts of 64 KiB."""
    source = random.Random(seed)
    for start in range(0, size, 65_536):
        yield source.randbytes(min(65_536, size - start))


async def digest_through(tunnel: Tunnel, size: int) -> None:
    """Send `size` bytes, end, and compare with the report of the other side."""
    digest = hashlib.sha256()
    async with await tunnel.connect() as client:
        for part in parts(size):
            digest.update(part)
            await client.send_all(part)
        await client.send_eof()
        assert b"".join([data async for data in client]) == digest.digest()


async def echoed(tunnel: Tunnel, data: bytes) -> bytes:
    """What comes back of some bytes, sent while reading, until the other side ends."""
    async with await tunnel.connect() as client, trio.open_nursery() as nursery:

        async def send() -> None:
            await client.send_all(data)
            await client.send_eof()

        nursery.start_soon(send)
        return b"".join([part async for part in client])


@pytest.mark.parametrize("protocol_version", ["current", "classic"])
async def test_bytes_and_ends_pass_in_both_directions(protocol_version: str) -> None:
    with trio.fail_after(LIMIT):
        async with tunnel(echo, protocol_version) as t:
            for data in (b"", b"x", b"hello" * 1000, b"".join(parts(2_000_000))):
                assert await echoed(t, data) == data
            # Credit for the last bytes may come when both directions have ended; nothing else is lost.
            assert set(+t.near.counters) | set(+t.far.counters) <= {DropReason.UNKNOWN_ADDRESS}


async def test_a_client_that_ends_its_side_first_still_gets_the_whole_answer() -> None:
    with trio.fail_after(LIMIT):
        async with tunnel(answer_at_the_end) as t:
            await digest_through(t, 100_000)


async def test_each_keystroke_comes_back_before_the_next() -> None:
    with trio.fail_after(LIMIT):
        async with tunnel(echo) as t, await t.connect() as client:
            for byte in b"ls -l; echo interactive" * 10:
                await client.send_all(bytes((byte,)))
                assert await client.receive_some(10) == bytes((byte,))


async def two_hundred_at_once(t: Tunnel) -> None:
    texts = [b"%d " % number * 1000 for number in range(200)]
    answers: dict[int, bytes] = {}

    async def one(number: int) -> None:
        answers[number] = await echoed(t, texts[number])

    async with trio.open_nursery() as nursery:
        for number in range(200):
            nursery.start_soon(one, number)
    assert [answers[number] for number in range(200)] == texts


async def test_two_hundred_connections_at_once() -> None:
    with trio.fail_after(LIMIT):
        async with tunnel(echo) as t:
            await two_hundred_at_once(t)


async def test_stopped_reader_blocks_no_other_connection() -> None:
    with trio.fail_after(LIMIT):
        async with tunnel(echo) as t, await t.connect() as stuck, trio.open_nursery() as nursery:

            async def flood() -> None:
                for part in parts(20_000_000):
                    await stuck.send_all(part)

            nursery.start_soon(flood)  # and never reads the echo
            await trio.testing.wait_all_tasks_blocked(0.2)
            data = b"".join(parts(1_000_000))
            assert await echoed(t, data) == data
            nursery.cancel_scope.cancel()


async def test_a_large_transfer_arrives_whole() -> None:
    with trio.fail_after(LIMIT):
        async with tunnel(answer_at_the_end) as t:
            await digest_through(t, 20_000_000)


def peak_memory() -> int:
    """The most memory that this process has had, in bytes."""
    import resource  # on Linux and macOS only

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


async def digest_in_bounded_memory(t: Tunnel, size: int) -> None:
    """As `digest_through`, and see that the whole process grows by less than 64 MiB."""
    import resource  # on Linux and macOS only

    await digest_through(t, 10_000_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    await digest_through(t, size)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024  # KiB


@pytest.mark.soak
async def test_200_megabytes_arrive_whole_in_bounded_memory() -> None:
    with trio.fail_after(300):
        async with tunnel(answer_at_the_end) as t:
            await digest_in_bounded_memory(t, 200_000_000)


@pytest.mark.soak
async def test_200_megabytes_and_200_connections_over_the_streams_of_a_kafka(kafka_broker: KafkaBroker) -> None:
    with trio.fail_after(900):
        async with stream_tunnel(answer_at_the_end, f"kafka:{kafka_broker.bootstrap}") as t:
            await digest_in_bounded_memory(t, 200_000_000)
            async with trio.open_nursery() as nursery:
                for _ in range(200):
                    nursery.start_soon(digest_through, t, 10_000)


async def test_a_tunnel_over_streams() -> None:
    with trio.fail_after(LIMIT):
        async with stream_tunnel(answer_at_the_end, "memory") as t:
            await digest_through(t, 2_000_000)


async def test_a_tunnel_over_the_streams_of_a_kafka(kafka_broker: KafkaBroker) -> None:
    with trio.fail_after(2 * LIMIT):
        async with stream_tunnel(echo, f"kafka:{kafka_broker.bootstrap}") as t:
            data = b"".join(parts(500_000))
            assert await echoed(t, data) == data


async def test_unreachable_target_ends_the_client() -> None:
    with trio.fail_after(LIMIT):
        async with tunnel(echo) as t:
            await t.far.serve_outlet("nowhere", "127.0.0.1:1")
            inlet = await t.near.open_inlet("127.0.0.1:0", Route(t.channel, "nowhere"))
            host, _, port = inlet.bound.partition(":")
            async with await trio.open_tcp_stream(host, int(port)) as client:
                await is_over(client)


async def test_a_reset_of_one_socket_resets_the_other() -> None:
    async def reset(stream: trio.SocketStream) -> None:
        await stream.receive_some(1)
        stream.setsockopt(1, 13, struct.pack("ii", 1, 0))  # SO_LINGER of no seconds
        stream.socket.close()

    with trio.fail_after(LIMIT):
        async with tunnel(reset) as t, await t.connect() as client:
            await client.send_all(b"x")
            with pytest.raises(trio.BrokenResourceError):
                await client.receive_some(1)


async def test_lost_path_resets_its_connections_and_new_ones() -> None:
    with trio.fail_after(LIMIT):
        async with tunnel(echo) as t, await t.connect() as client:
            await client.send_all(b"x")
            assert await client.receive_some(1) == b"x"
            await t.channel.aclose()
            with pytest.raises(trio.BrokenResourceError):
                await client.receive_some(1)
            async with await t.connect() as late:
                await is_over(late)


async def test_closing_an_inlet_or_outlet_ends_its_connections() -> None:
    with trio.fail_after(LIMIT):
        async with tunnel(echo) as t:
            for end in (t.outlet.aclose, t.inlet.aclose):
                async with await t.connect() as client:
                    await client.send_all(b"x")
                    if end == t.outlet.aclose:
                        assert await client.receive_some(1) == b"x"
                    await end()
                    await is_over(client)


async def test_wrong_addresses_and_taken_names_raise_at_once() -> None:
    with trio.fail_after(LIMIT):
        async with tunnel(echo) as t:
            with pytest.raises(AddressInUseError):
                await t.far.serve_outlet("outlet", "127.0.0.1:1")
            with pytest.raises(LocalError, match="expected HOST:PORT"):
                await t.far.serve_outlet("other", "nowhere")
            with pytest.raises(LocalError, match="can't listen"):
                await t.near.open_inlet(t.inlet.bound, Route(t.channel, "outlet"))


async def is_over(stream: trio.SocketStream) -> None:
    """Read to the end, be it orderly or not."""
    with suppress(trio.BrokenResourceError):
        while await stream.receive_some(10):
            pass


# -- peers that speak no credit, as Rust's: played by hand -------------------------------------------------------------


async def received(mailbox: Mailbox) -> object:
    return decode((await mailbox.receive()).payload)


async def test_an_outlet_and_a_peer_without_credit() -> None:
    with trio.fail_after(LIMIT):
        async with service_at(echo) as target, open_node() as node, node.open_mailbox() as inlet:
            await node.serve_outlet("outlet", target, allow=from_anywhere)
            await inlet.send(Route("outlet"), encode(Ping()))
            pong = await inlet.receive()
            assert decode(pong.payload) == Pong()
            await inlet.send(Route("outlet"), encode(Ping()))  # again: it has no effect
            await inlet.reply(pong, encode(Payload(b"hello")))
            assert await received(inlet) == Payload(b"hello")
            await inlet.reply(pong, encode(Disconnect()))
            await trio.testing.wait_all_tasks_blocked()
            assert node.counters[DropReason.PORTAL_PING_REPEATED] == 1


async def test_peer_without_credit_that_sends_too_much_is_disconnected() -> None:
    async def sleep(stream: trio.SocketStream) -> None:
        async with stream:
            await trio.sleep_forever()

    with trio.fail_after(LIMIT):
        async with service_at(sleep) as target, open_node() as node, node.open_mailbox() as inlet:
            await node.serve_outlet("outlet", target, allow=from_anywhere)
            await inlet.send(Route("outlet"), encode(Ping()))
            pong = await inlet.receive()
            for _ in range(20 * MAX_UNPACED // 40_000):  # more than any socket buffers hold as well
                await inlet.reply(pong, encode(Payload(bytes(40_000))))
            assert await received(inlet) == Disconnect()


async def test_an_inlet_and_an_outlet_without_credit() -> None:
    with trio.fail_after(LIMIT):
        async with open_node() as node, node.open_mailbox() as outlet:
            inlet = await node.open_inlet("127.0.0.1:0", Route(outlet))
            host, _, port = inlet.bound.partition(":")
            async with await trio.open_tcp_stream(host, int(port)) as client:
                ping = await outlet.receive()
                assert isinstance(decode(ping.payload), Ping)
                await outlet.reply(ping, encode(Pong()))
                await client.send_all(b"question")
                assert await received(outlet) == Payload(b"question")
                await outlet.reply(ping, encode(Payload(b"answer")))
                await outlet.reply(ping, b"\xff nonsense")
                await outlet.reply(ping, encode(Disconnect()))
                assert b"".join([data async for data in client]) == b"answer"
                assert node.counters[DropReason.PORTAL_UNDECODABLE] == 1
