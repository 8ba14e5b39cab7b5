import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing

import trionode_tcp.link
from trionode import Node, Route, open_node
from trionode.errors import ConnectionLost, LocalError, WireError
from trionode.net import connections
from trionode.net.byte_stream import TCPStream
from trionode.net.sockets import open_listeners
from trionode.net.transport import Link
from trionode.protocol.rules.access import from_anywhere
from trionode.protocol.wire.address import local
from trionode.protocol.wire.current_codec import CURRENT
from trionode.protocol.wire.framing import join_frames
from trionode.testing.transport import CHECKS, SMALL, Check, Harness, run_check, the_largest_frame_arrives_whole
from trionode.workers import echoer
from trionode_tcp import TCP
from trionode_tcp.link import TCPLink

#: Port 1 of the loopback interface: nothing listens there on any machine that runs tests.
UNREACHABLE = "127.0.0.1:1"


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_tcp_keeps_the_contract(check: Check) -> None:
    await run_check(check, Harness(TCP(), "127.0.0.1:0", UNREACHABLE, small=TCP(max_frame=SMALL)))


async def test_tcp_keeps_the_contract_with_small_frames() -> None:
    await run_check(the_largest_frame_arrives_whole, Harness(TCP(max_frame=1000), "127.0.0.1:0", UNREACHABLE))


async def test_tcp_supports_ipv6_addresses_in_brackets() -> None:
    if not socket.has_ipv6:
        pytest.skip("this system has no IPv6")
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this system has no IPv6 loopback interface")
    async with open_node("tcp") as bob, open_node("tcp") as alice:
        at = await bob.listen("tcp:[::1]:0")
        assert str(at).startswith("tcp:[::1]:")
        await bob.start_worker("echoer", echoer, allow=from_anywhere)
        assert (await alice.ask(Route(at, "echoer"), "hello")).text == "hello"


async def test_links_set_nodelay_and_keepalive() -> None:
    async with trio.open_nursery() as nursery:

        async def accept(link: Link) -> None:
            await link.aclose()

        bound = await nursery.start(partial(TCP().serve, "127.0.0.1:0", accept))
        link = await TCP().connect(bound)
        assert isinstance(link, TCPLink)
        assert isinstance(link._stream, TCPStream)
        assert link._stream._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert link._stream._socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        await link.aclose()
        nursery.cancel_scope.cancel()


# Bad prefaces


@asynccontextmanager
async def two_nodes() -> AsyncIterator[tuple[Node, str, Node, Route]]:
    """Yield a listening node, its HOST:PORT, and another node whose link to it works before and after the block."""
    async with open_node(TCP(max_frame=100_000)) as node, open_node("tcp") as friend:
        at = await node.listen("tcp:127.0.0.1:0")
        await node.start_worker("echoer", echoer, allow=from_anywhere)
        route = Route(at, "echoer")
        assert (await friend.ask(route, "before")).text == "before"
        yield node, at.value.decode(), friend, route
        assert (await friend.ask(route, "after")).text == "after"


async def end_of(stream: trio.SocketStream) -> bytes:
    """Return everything until the stream ends, orderly or not."""
    received = b""
    try:
        async for part in stream:
            received += part
    except trio.BrokenResourceError:
        pass
    return received


OTHER_PROTOCOLS = {
    "http": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "tls": bytes.fromhex("16030100c8010000c40303") + bytes(100),
    "ssh": b"SSH-2.0-OpenSSH_9.6\r\n",
    "a wrong first byte, and no more": b"\x02",
    "a wrong preface": b"\x02\x00\x00",
    "half a classic frame": bytes.fromhex("005a0101000c73747265616d"),
    "half a frame": b"\x01" + (80).to_bytes(4, "big") + b"\x83",
    "zeros": bytes(100),
    "a huge first length": b"\x01" + (2**32 - 1).to_bytes(4, "big"),
    "a first length beyond the link's": b"\x01" + (200_000).to_bytes(4, "big"),
    "an empty first frame": b"\x01" + bytes(4),
}


@pytest.mark.parametrize("first_bytes", OTHER_PROTOCOLS.values(), ids=OTHER_PROTOCOLS.keys())
async def test_a_bad_preface_is_refused_with_a_log_line_and_affects_no_other_link(
    first_bytes: bytes, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "trionode")
    # Some of them may be half of something: those are refused when their time is over.
    monkeypatch.setattr(trionode_tcp.link, "HANDSHAKE_TIMEOUT", 0.4)
    with trio.fail_after(5):
        async with two_nodes() as (_, peer, _, _):
            host, _, port = peer.partition(":")
            async with await trio.open_tcp_stream(host, int(port)) as peer_stream:
                await peer_stream.send_all(first_bytes)
                assert await end_of(peer_stream) in (b"\x01", b"")
            assert sum(r.message.startswith("refused a connection at tcp:127.0.0.1:0") for r in caplog.records) == 1
            assert "\r" not in caplog.text


HEARTBEAT = join_frames(CURRENT, [bytes.fromhex("83808040")])
NONSENSE = {
    "a huge length": (b"\xff\xff\xff\xff", "where 1 to 100000 are allowed"),
    "an empty frame": (bytes(4), "a frame of 0 bytes"),
    "a frame that is no message": (join_frames(CURRENT, [b"\xa0"]), "a CBOR dict, expected list"),
    "a truncated message": (join_frames(CURRENT, [b"\x83\x80\x80"]), "more items than its input"),
    "half a frame, then the end": (join_frames(CURRENT, [b"x" * 1000])[:500], "in the middle of a frame"),
    "half a length, then the end": (b"\x00\x00", "in the middle of a frame"),
}


@pytest.mark.parametrize(("nonsense", "reason"), NONSENSE.values(), ids=NONSENSE.keys())
async def test_nonsense_after_the_preface_ends_that_link_only(
    nonsense: bytes, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "trionode")
    with trio.fail_after(5):
        async with two_nodes() as (_, peer, _, _):
            host, _, port = peer.partition(":")
            async with await trio.open_tcp_stream(host, int(port)) as peer_stream:
                await peer_stream.send_all(b"\x01" + HEARTBEAT)
                assert await peer_stream.receive_some(1) == b"\x01"
                await peer_stream.send_all(nonsense)
                if "middle" in reason:
                    await peer_stream.send_eof()
                assert not await end_of(peer_stream)
            await trio.testing.wait_all_tasks_blocked()
            assert any(r.message.startswith("link with tcp:127.0.0.1") and reason in r.message for r in caplog.records)


async def test_no_frame_follows_an_invalid_frame() -> None:
    links, accepted = trio.open_memory_channel[Link](1)
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            bound = await nursery.start(partial(TCP().serve, "127.0.0.1:0", links.send))
            host, _, port = bound.partition(":")
            async with await trio.open_tcp_stream(host, int(port)) as peer:
                await peer.send_all(b"\x01")
                link = await accepted.receive()
                await peer.send_all(bytes(4))
                for _ in range(2):
                    with pytest.raises(WireError, match="a frame of 0 bytes"):
                        await link.receive()
                    await peer.send_all(join_frames(CURRENT, [b"what looks like one"]))
            await link.aclose()
            nursery.cancel_scope.cancel()


async def test_a_peer_may_send_byte_by_byte() -> None:
    with trio.fail_after(5):
        async with two_nodes() as (_, peer, _, _):
            host, _, port = peer.partition(":")
            frame = join_frames(CURRENT, [CURRENT.encode((local("echoer"),), (local("app"),), b"payload")])
            async with await trio.open_tcp_stream(host, int(port)) as slow:
                for byte in b"\x01" + HEARTBEAT + frame:
                    await slow.send_all(bytes((byte,)))
                    await trio.testing.wait_all_tasks_blocked()
                answer = join_frames(CURRENT, [CURRENT.encode((local("app"),), (local("echoer"),), b"payload")])
                received = b""
                while len(received) < 1 + len(answer):
                    received += await slow.receive_some()
                assert received == b"\x01" + answer


async def test_an_incomplete_frame_times_out_and_an_idle_link_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trionode_tcp.link, "FRAME_TIMEOUT", 0.2)
    links, accepted = trio.open_memory_channel[Link](1)
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:

            async def accept(link: Link) -> None:
                await links.send(link)

            bound = await nursery.start(partial(TCP().serve, "127.0.0.1:0", accept))
            host, _, port = bound.partition(":")
            async with await trio.open_tcp_stream(host, int(port)) as peer:
                await peer.send_all(b"\x01")
                link = await accepted.receive()
                with trio.move_on_after(0.4):
                    await link.receive()
                    raise AssertionError("nothing was sent")
                await peer.send_all((1000).to_bytes(4, "big") + b"a part")
                with pytest.raises(ConnectionLost, match="did not complete a frame within"):
                    await link.receive()
            await link.aclose()
            nursery.cancel_scope.cancel()


async def test_port_0_of_a_name_with_several_addresses_is_one_port() -> None:
    class TwoAddresses(trio.abc.HostnameResolver):
        async def getaddrinfo(self, host: bytes | None, port: bytes | str | int | None, *more: int, **_: int) -> Any:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in ("127.0.0.1", "127.0.0.2")]

        async def getnameinfo(self, sockaddr: Any, flags: int) -> tuple[str, str]:
            raise NotImplementedError

    trio.socket.set_custom_hostname_resolver(TwoAddresses())
    served: list[trio.SocketListener] = []

    async def serve(_handler: object, listeners: list[trio.SocketListener]) -> None:
        served.extend(listeners)
        await trio.sleep_forever()

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(trio, "serve_listeners", serve)
        async with open_node("tcp") as node:
            at = await node.listen("tcp:two.example:0")
            await trio.testing.wait_all_tasks_blocked()
            assert [str(at)] == [f"tcp:127.0.0.1:{each.socket.getsockname()[1]}" for each in served]
            await served[0].aclose()


async def test_frames_that_arrive_with_the_preface_survive_a_cancelled_receive() -> None:
    links, accepted = trio.open_memory_channel[Link](1)
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:

            async def accept(link: Link) -> None:
                await links.send(link)

            bound = await nursery.start(partial(TCP().serve, "127.0.0.1:0", accept))
            host, _, port = bound.partition(":")
            async with await trio.open_tcp_stream(host, int(port)) as peer:
                await peer.send_all(b"\x01" + join_frames(CURRENT, [b"early", b"frames"]))
                link = await accepted.receive()
                with trio.CancelScope() as scope:
                    scope.cancel()
                    await link.receive()
                assert list(await link.receive()) == [b"early", b"frames"]
            await link.aclose()
            nursery.cancel_scope.cancel()


async def test_silent_connections_time_out_and_are_bounded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "trionode")
    monkeypatch.setattr(trionode_tcp.link, "HANDSHAKE_TIMEOUT", 0.2)
    monkeypatch.setattr(connections, "MAX_HANDSHAKES", 3)
    with trio.fail_after(5):
        async with two_nodes() as (_, peer, _, _):
            host, _, port = peer.partition(":")
            streams = [await trio.open_tcp_stream(host, int(port)) for _ in range(5)]
            for stream in streams:
                await end_of(stream)
                await stream.aclose()
    assert caplog.text.count("more than 3 connections at tcp:127.0.0.1:0 are in their handshake") == 1
    assert caplog.text.count("within 0.2 s: it sent nothing") == 3


async def test_silent_connections_lock_no_peer_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(connections, "MAX_HANDSHAKES", 3)
    with trio.fail_after(5):
        async with two_nodes() as (_, peer, _, route):
            host, _, port = peer.partition(":")
            silent = [await trio.open_tcp_stream(host, int(port)) for _ in range(3)]
            for gone in range(3):
                async with open_node("tcp") as newcomer:
                    assert (await newcomer.ask(route, "hello")).text == "hello"
                assert not await end_of(silent[0]), "the oldest had to go"
                silent.append(await trio.open_tcp_stream(host, int(port)))
                await silent.pop(0).aclose()
                assert caplog.text.count("are in their handshake") == 1, f"logged once a minute, not {gone + 1} times"
            for each in silent:
                await each.aclose()


# Dialing other servers


async def other_server(first_bytes: bytes, stream: trio.SocketStream) -> None:
    """Another server: send its first bytes, wait for the client's bytes, and disconnect."""
    async with stream:
        await stream.send_all(first_bytes)
        await stream.receive_some()


@pytest.mark.parametrize(
    ("first_bytes", "reason"),
    [
        (b"SSH-2.0-OpenSSH_9.6\r\n", "is not a trionode or Ockam node.*began with 53, expected 01"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "is not a trionode or Ockam node.*began with 48, expected 01"),
        (b"\x01\xff\xff\xff\xff", "is not a trionode or Ockam node.*are allowed"),
        (b"", "closed the connection before it sent its preface|was lost"),
    ],
)
async def test_connecting_to_another_server_is_connection_lost_with_a_reason(first_bytes: bytes, reason: str) -> None:
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(
                partial(trio.serve_tcp, partial(other_server, first_bytes), 0, host="127.0.0.1"),
            )
            port = listeners[0].socket.getsockname()[1]
            async with open_node("tcp") as node:
                with pytest.raises(ConnectionLost, match=reason):
                    await node.connect(f"tcp:127.0.0.1:{port}")
            nursery.cancel_scope.cancel()


async def test_connecting_to_a_silent_server_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trionode_tcp.link, "HANDSHAKE_TIMEOUT", 0.1)

    async def silent(stream: trio.SocketStream) -> None:
        await end_of(stream)
        await stream.aclose()

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(partial(trio.serve_tcp, silent, 0, host="127.0.0.1"))
            port = listeners[0].socket.getsockname()[1]
            with pytest.raises(ConnectionLost, match=r"sent no preface within 0.1 s: is it a trionode"):
                await TCP().connect(f"127.0.0.1:{port}")
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("peer", ["127.0.0.1:1", "localhost:1"])
async def test_connection_refused_is_reported_with_the_text_of_the_system(peer: str) -> None:
    with pytest.raises(ConnectionLost, match=rf"can't connect to tcp:{peer}: .*Connection refused\. Is the node there"):
        await TCP().connect(peer)


@pytest.mark.parametrize("host", ["a..b", "x" * 64 + ".example", "\ud800"])
async def test_an_invalid_host_name_is_connection_lost(host: str) -> None:
    with pytest.raises(ConnectionLost, match=r"can't connect to tcp:.*:4000: '.*' is not a valid host name"):
        await TCP().connect(f"{host}:4000")
    with pytest.raises(LocalError, match=r"can't listen at"):
        await open_listeners(f"{host}:4000")


async def test_an_address_in_use_is_an_error_with_advice() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        async with open_node("tcp") as node:
            with pytest.raises(LocalError, match=rf"can't listen at 127.0.0.1:{port}: .* Choose another port"):
                await node.listen(f"tcp:127.0.0.1:{port}")


@pytest.mark.parametrize("at", ["tcp:127.0.0.1", "tcp:127.0.0.1:x", "tcp:127.0.0.1:70000"])
async def test_an_address_without_a_port_is_a_local_error(at: str) -> None:
    async with open_node("tcp") as node:
        with pytest.raises(LocalError, match="expected HOST:PORT"):
            await node.listen(at)
        with pytest.raises(LocalError, match="expected HOST:PORT"):
            await node.connect(at)
