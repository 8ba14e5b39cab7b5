import contextlib
import logging
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
import trio.testing

import trionode_websocket
from tests.support.certificates import Authority
from trionode import Node, Route, open_node
from trionode.errors import ConnectionLost, LocalError, WireError
from trionode.net import connections
from trionode.net.tls import server_context
from trionode.net.transport import Link, load_transport
from trionode.protocol.rules.access import from_anywhere
from trionode.protocol.wire.address import local
from trionode.protocol.wire.current_codec import CURRENT
from trionode.protocol.wire.framing import join_frames
from trionode.testing.transport import CHECKS, SMALL, Check, Harness, run_check
from trionode.workers import echoer
from trionode_websocket import BURSTS, SecureWebSocket, WebSocket, handshake, link
from trionode_websocket import stream as counting

#: Port 1 of the loopback interface: nothing listens there on any machine that runs tests.
UNREACHABLE = "127.0.0.1:1"

ASK = CURRENT.encode((local("echoer"),), (local("app"),), b"payload")
ANSWER = CURRENT.encode((local("app"),), (local("echoer"),), b"payload")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def secure(authority: Authority) -> SecureWebSocket:
    own = authority.sign()
    return SecureWebSocket(certificate=own.certificate, key=own.key, ca_file=authority.path)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_ws_keeps_the_contract(check: Check) -> None:
    await run_check(check, Harness(WebSocket(), "127.0.0.1:0", UNREACHABLE, WebSocket(max_frame=SMALL)))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_wss_keeps_the_contract(check: Check, secure: SecureWebSocket) -> None:
    await run_check(check, Harness(secure, "127.0.0.1:0/a/node", f"{UNREACHABLE}/a/node"))


async def drop(link: Link) -> None:
    """Close a link at once: `aclose` closes even if it is cancelled."""
    with trio.CancelScope() as scope:
        scope.cancel()
        await link.aclose()


@asynccontextmanager
async def opened(transport: WebSocket | None = None) -> AsyncIterator[tuple[WebSocket, trio.Nursery]]:
    """A transport as a node has it, and the nursery of its connections."""
    async with trio.open_nursery() as nursery:
        yield (transport or WebSocket()).open(nursery), nursery
        nursery.cancel_scope.cancel()


async def dial(transport: WebSocket, peer: str) -> None:
    """Connect, and raise ConnectionLost out of the nursery of connections as it is."""
    failure: ConnectionLost | None = None
    async with opened(transport) as (dialer, _):
        try:
            await drop(await dialer.connect(peer))
        except ConnectionLost as error:
            failure = error
    if failure is not None:
        raise failure


@asynccontextmanager
async def pair() -> AsyncIterator[tuple[Link, Link]]:
    """Both ends of a new link, the dialer's first."""
    links, accepted = trio.open_memory_channel[Link](1)
    async with opened() as (transport, nursery):
        bound = await nursery.start(partial(transport.serve, "127.0.0.1:0", links.send))
        client = await transport.connect(bound)
        server = await accepted.receive()
        try:
            yield client, server
        finally:
            await drop(client)
            await drop(server)


@asynccontextmanager
async def two_nodes(
    listening: WebSocket | None = None, dialling: WebSocket | None = None, *, endpoint: str = "127.0.0.1:0"
) -> AsyncIterator[tuple[Node, str, int]]:
    """Yield a listening node, its host and port. Another node's link to it must work before and after the block."""
    listening, dialling = listening or WebSocket(max_frame=100_000), dialling or WebSocket()
    async with open_node(listening) as node, open_node(dialling) as friend:
        at = await node.listen(f"{listening.name}:{endpoint}")
        await node.start_worker("echoer", echoer, allow=from_anywhere)
        route = Route(at, "echoer")
        assert (await friend.ask(route, "before")).text == "before"
        host, _, port = at.value.decode().partition("/")[0].partition(":")
        yield node, host, int(port)
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


# Bad requests


def asking(*headers: str, path: str = "/", subprotocol: str = "trionode.v1") -> bytes:
    """A request for a WebSocket (RFC 6455 §1.2)."""
    lines = (
        f"GET {path} HTTP/1.1",
        "Host: node.example",
        "Upgrade: websocket",
        "Connection: keep-alive, Upgrade",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version: 13",
        *([f"Sec-WebSocket-Protocol: {subprotocol}"] if subprotocol else []),
        *headers,
    )
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


#: The answer to `asking()`, of which the key of the RFC's example is a part.
ACCEPTED = b"HTTP/1.1 101 "

BAD_REQUESTS = {
    "plain http": (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"HTTP/1.1 426 ", "did not ask for a WebSocket"),
    "a form": (b"POST / HTTP/1.1\r\nHost: x\r\n\r\na=b", b"HTTP/1.1 426 ", "did not ask for a WebSocket"),
    "http/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"HTTP/1.1 426 ", "did not ask for a WebSocket"),
    "zeros": (bytes(16) + b"\r\n\r\n", b"HTTP/1.1 426 ", "did not ask for a WebSocket"),
    "tls": (
        bytes.fromhex("16030100c8010000c40303") + bytes(100),
        b"HTTP/1.1 400 ",
        "speaks TLS: it has to dial ws:",
    ),
    "the wire over tcp": (b"\x01", b"", "opened no WebSocket within 0.2 s"),
    "nothing": (b"", b"", "opened no WebSocket within 0.2 s"),
    "half a request": (asking()[:-2], b"", "opened no WebSocket within 0.2 s"),
    "an old version": (asking().replace(b": 13", b": 8"), b"HTTP/1.1 426 ", "did not ask for a WebSocket"),
    "no key": (asking().replace(b"-Key: ", b"-Kay: "), b"HTTP/1.1 426 ", "did not ask for a WebSocket"),
    "a host that is no name": (asking().replace(b"node.ex", b"\xff" * 70), b"HTTP/1.1 426 ", "did not ask"),
    "a huge head": (asking(*["Cookie: " + "x" * 1000] * 17), b"HTTP/1.1 431 ", "more than 16384 bytes"),
    "another path": (asking(path="/other"), b"HTTP/1.1 404 ", "the path /other, and this node is at /"),
    "a query": (asking(path="/?a=b"), b"HTTP/1.1 404 ", "the path /?a=b"),
    "no subprotocol": (asking(subprotocol=""), b"HTTP/1.1 400 ", "offered the subprotocols none"),
    "another subprotocol": (asking(subprotocol="mqtt"), b"HTTP/1.1 400 ", "offered the subprotocols mqtt"),
    "a browser": (asking("Origin: https://evil.example"), b"HTTP/1.1 403 ", "a page of https://evil.example"),
    "a sandboxed browser": (asking("Origin: null"), b"HTTP/1.1 403 ", "a page of null"),
    "two origins": (asking("Origin: https://good.example", "Origin: https://evil.example"), b"HTTP/1.1 403 ", "evil"),
    "impatience": (asking() + b"\x82\x80abcd", b"HTTP/1.1 400 ", "did not wait for the answer"),
    "impatience that ends as a head does": (
        asking() + b"\x82\x84\0\0\0\0\r\n\r\n",
        b"HTTP/1.1 400 ",
        "did not wait for the answer",
    ),
    "impatience behind bare line ends": (
        asking().replace(b"\r", b"") + b"\x82\x84\0\0\0\0\r\n\r\n",
        b"HTTP/1.1 400 ",
        "did not wait for the answer",
    ),
}


@pytest.mark.parametrize(("said", "answer", "reason"), BAD_REQUESTS.values(), ids=BAD_REQUESTS.keys())
async def test_a_bad_preface_is_refused_with_a_log_line_and_affects_no_other_link(
    said: bytes, answer: bytes, reason: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "trionode")
    monkeypatch.setattr(trionode_websocket, "HANDSHAKE_TIMEOUT", 0.2)
    monkeypatch.setattr(handshake, "REFUSAL_GRACE", 0.1)
    listening = WebSocket(origins=["https://good.example"])
    with trio.fail_after(5):
        async with two_nodes(listening) as (_, host, port):
            peer = await trio.open_tcp_stream(host, port)
            async with peer:
                await peer.send_all(said)
                answered = await end_of(peer)
                assert answered.startswith(answer)
                assert bool(answered) == bool(answer)
    (line,) = [r.getMessage() for r in caplog.records if r.message.startswith("refused")]
    assert line.startswith("refused a connection at ws:127.0.0.1:0: ws:127.0.0.1:")
    assert reason in line
    assert "\r" not in line


async def test_an_allowed_origin_is_accepted() -> None:
    async with two_nodes(WebSocket(origins=["https://good.example"])) as (_, host, port):
        browser = await trio.open_tcp_stream(host, port)
        async with browser:
            await browser.send_all(asking("Origin: https://good.example"))
            answer = await browser.receive_some()
            assert answer.startswith(ACCEPTED)
            assert b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n" in answer


@pytest.mark.parametrize(
    "origins", [["*"], ["https://a.example/"], ["a.example"], ["https://a.example/x"], "https://a"]
)
def test_a_malformed_origin_is_refused(origins: list[str]) -> None:
    with pytest.raises(LocalError, match=r"such as https://app.example.org; this is"):
        WebSocket(origins=origins)


async def test_silent_connections_are_bounded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "trionode")
    monkeypatch.setattr(trionode_websocket, "HANDSHAKE_TIMEOUT", 0.2)
    monkeypatch.setattr(connections, "MAX_HANDSHAKES", 3)
    with trio.fail_after(5):
        async with two_nodes() as (_, host, port):
            streams = [await trio.open_tcp_stream(host, port) for _ in range(5)]
            for each in streams:
                await end_of(each)
                await each.aclose()
    assert caplog.text.count("more than 3 connections at ws:127.0.0.1:0 are in their handshake") == 1
    assert caplog.text.count("opened no WebSocket within 0.2 s") == 3


async def test_silent_connections_lock_no_peer_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MAX_HANDSHAKES", 3)
    with trio.fail_after(5):
        async with two_nodes() as (_, host, port):
            silent = [await trio.open_tcp_stream(host, port) for _ in range(3)]
            async with raw_client(host, port):
                assert not await end_of(silent[0]), "the oldest had to go"
            for each in silent:
                await each.aclose()


# Messages of a peer


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, masked: bool = True) -> bytes:
    """A WebSocket frame (RFC 6455 §5.2), as a client sends it: masked, here with zeros."""
    size, mask = len(payload), 0x80 * masked
    if size < 126:
        length = bytes((mask | size,))
    elif size < 65_536:
        length = bytes((mask | 126,)) + size.to_bytes(2, "big")
    else:
        length = bytes((mask | 127,)) + size.to_bytes(8, "big")
    return bytes((0x80 * fin | rsv << 4 | opcode,)) + length + bytes(4 * masked) + payload


MORE, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10


@asynccontextmanager
async def raw_client(host: str, port: int, subprotocol: str = "trionode.v1") -> AsyncIterator[trio.SocketStream]:
    """A client with an open WebSocket, whose bytes the test writes from here on."""
    async with await trio.open_tcp_stream(host, port) as peer:
        await peer.send_all(asking(subprotocol=subprotocol))
        assert (await peer.receive_some()).startswith(ACCEPTED)
        yield peer


#: What a peer sends, the code of the Close frame that answers it (None: trio-websocket closes without one), and the
#: reason in the log.
NONSENSE = {
    "text": (frame(TEXT, b"hello"), 1003, "sent a text message"),
    "an empty message": (frame(BINARY), 1008, "a frame of 0 bytes, where 1 to 100000"),
    "a large message": (frame(BINARY, bytes(100_001)), 1009, "where 1 to 100000 are allowed"),
    "a huge message": (frame(BINARY, bytes(100_005)), 1009, "Exceeded maximum message size: 100004 bytes"),
    "a huge message in parts": (
        frame(BINARY, bytes(60_000), fin=False) + frame(MORE, bytes(60_000)),
        1009,
        "Exceeded maximum message size: 100004 bytes",
    ),
    "a message of the largest length that can be written": (
        b"\x82\xff" + (2**63 - 1).to_bytes(8, "big") + bytes(4) + bytes(100_005),
        1009,
        "Exceeded maximum message size: 100004 bytes",
    ),
    "a length with its first bit set": (b"\x82\xff" + (2**64 - 1).to_bytes(8, "big"), None, "code 1002: "),
    "no mask": (frame(BINARY, ASK, masked=False), None, "unmasked"),
    "compression": (frame(BINARY, ASK, rsv=4), None, "Reserved bit"),
    "an unknown opcode": (frame(5), None, "Invalid opcode"),
    "the end of nothing": (frame(MORE, b"x"), None, "unexpected CONTINUATION"),
    "a message within another": (frame(BINARY, b"x", fin=False) + frame(BINARY, b"x"), None, "expected CONTINUATION"),
    "a ping in parts": (frame(PING, fin=False), None, "fragment control frame"),
    "a long ping": (frame(PING, bytes(126)), None, "Control frame with payload len > 125"),
    "an end of one byte": (frame(CLOSE, b"\x03"), None, "CLOSE with 1 byte payload"),
    "no message": (frame(BINARY, b"\xa0"), 1000, "a CBOR dict, expected list"),
    "half a frame, then the end": (frame(BINARY, ASK)[:-5], None, "ended the connection without saying so"),
    "half a message, then a Close": (frame(BINARY, ASK, fin=False) + frame(CLOSE), 1005, "the peer ended it"),
    "a Close that complains": (frame(CLOSE, b"\x03\xf3oh\x1b[1mno"), 1011, r"with code 1011: oh\x1b[1mno"),
    "empty fragments": (frame(BINARY, fin=False) + frame(MORE, fin=False) * 70_000, None, "without a whole message"),
}


@pytest.mark.parametrize("test", NONSENSE)
async def test_nonsense_ends_that_link_only_with_a_log_line_and_a_close_code(
    test: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    nonsense, code, reason = NONSENSE[test]
    caplog.set_level(logging.INFO, "trionode")
    monkeypatch.setattr(link, "CLOSE_GRACE", 0.2)
    with trio.fail_after(5):
        async with two_nodes() as (_, host, port):
            async with raw_client(host, port) as peer:
                with contextlib.suppress(trio.BrokenResourceError):  # it may be closed before it has read all
                    await peer.send_all(nonsense)
                if "half a frame" in test:
                    await peer.send_eof()
                answer = await end_of(peer)
                if code is None:
                    assert CLOSE not in {byte & 15 for byte in answer[:1]}
                elif code == 1005:
                    assert answer == bytes((0x80 | CLOSE, 0))
                else:
                    assert answer[0] == 0x80 | CLOSE
                    assert answer[2:4] == code.to_bytes(2, "big")
            with trio.move_on_after(2):
                while not any(r.message.startswith("link with ws:127.0.0.1") for r in caplog.records):
                    await trio.testing.wait_all_tasks_blocked(0.01)
    assert any(r.message.startswith("link with ws:127.0.0.1") and reason in r.message for r in caplog.records)


async def test_a_message_may_come_byte_by_byte_and_in_fragments_between_pings() -> None:
    with trio.fail_after(5):
        async with two_nodes() as (_, host, port), raw_client(host, port) as peer:
            said = frame(BINARY, ASK[:3], fin=False) + frame(PING, b"?") + frame(MORE, fin=False) + frame(MORE, ASK[3:])
            for byte in said:
                await peer.send_all(bytes((byte,)))
                await trio.testing.wait_all_tasks_blocked()
            expected = frame(PONG, b"?", masked=False) + frame(BINARY, ANSWER, masked=False)
            received = b""
            while len(received) < len(expected):
                received += await peer.receive_some()
            assert received == expected


async def test_a_peer_that_sends_pings_and_does_not_read_is_disconnected() -> None:
    async with raw_pair() as (peer, server), trio.open_nursery() as nursery:
        nursery.start_soon(partial(peer.send_all, frame(PING, bytes(100)) * 50_000))
        with pytest.raises(ConnectionLost, match="sends pings and does not read the answers"):
            await server.receive()
        await drop(server)
        nursery.cancel_scope.cancel()


async def test_a_flood_of_control_frames_does_not_starve_other_tasks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    in_a_row = most = 0
    receive_some = counting.CountingStream.receive_some

    async def counted(self: counting.CountingStream, max_bytes: int | None = None) -> bytes:
        nonlocal in_a_row
        piece = await receive_some(self, max_bytes)
        assert len(piece) <= counting.PIECE
        in_a_row += len(piece)
        return piece

    async def others() -> None:
        nonlocal in_a_row, most
        while True:
            most, in_a_row = max(most, in_a_row), 0
            await trio.lowlevel.checkpoint()

    monkeypatch.setattr(counting.CountingStream, "receive_some", counted)
    async with raw_pair() as (peer, server), trio.open_nursery() as nursery:
        # The reader task alternates with the other task; which of them runs first in a turn is chance.
        nursery.start_soon(others)
        data = [frame(BINARY, b"first"), frame(PONG) * 8_000, frame(BINARY, b"a"), frame(BINARY, b"b"), frame(PING)]
        nursery.start_soon(peer.send_all, b"".join(data))
        received: list[bytes] = []
        while len(received) < 3:
            received += await server.receive()
        assert received == [b"first", b"a", b"b"]
        assert await peer.receive_some() == frame(PONG, masked=False)
        nursery.cancel_scope.cancel()
    assert 0 < most <= 2 * counting.PIECE


@pytest.mark.parametrize("subprotocol", ["trionode.v1", BURSTS])
async def test_many_messages_of_one_read_arrive_in_order_before_the_end(subprotocol: str) -> None:
    async with raw_pair(subprotocol) as (peer, server):
        numbers = [i.to_bytes(2, "big") for i in range(1, 1001)]
        messages = numbers if subprotocol != BURSTS else [join_frames(CURRENT, [each]) for each in numbers] + [bytes(4)]
        await peer.send_all(b"".join(frame(BINARY, each) for each in messages) + frame(CLOSE))
        received: list[bytes] = []
        while frames := await server.receive():
            received += frames
        assert received == numbers


@asynccontextmanager
async def raw_pair(subprotocol: str = "trionode.v1") -> AsyncIterator[tuple[trio.SocketStream, Link]]:
    """A client whose bytes the test writes, and the link that was accepted from it."""
    links, accepted = trio.open_memory_channel[Link](1)
    async with opened() as (transport, nursery):
        bound = await nursery.start(partial(transport.serve, "127.0.0.1:0", links.send))
        host, _, port = bound.partition(":")
        async with raw_client(host, int(port), subprotocol) as peer:
            server = await accepted.receive()
            try:
                yield peer, server
            finally:
                await drop(server)


async def test_frames_before_nonsense_are_received_and_none_after_it() -> None:
    async with raw_pair() as (peer, server):
        await peer.send_all(frame(BINARY, b"one") + frame(BINARY, b"two") + frame(TEXT, b"no") + frame(BINARY, b"x"))
        assert [await server.receive() for _ in range(2)] == [(b"one",), (b"two",)]
        for _ in range(2):
            with pytest.raises(WireError, match="sent a text message"):
                await server.receive()


async def test_an_incomplete_message_times_out_and_an_idle_link_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(counting, "FREE", 50)
    monkeypatch.setattr(counting, "MESSAGE_TIMEOUT", 0.2)
    async with raw_pair() as (peer, server):

        async def ping() -> None:
            for _ in range(40):
                await peer.send_all(frame(PING, b"1234"))
                assert await peer.receive_some() == frame(PONG, b"1234", masked=False)
                await trio.testing.wait_all_tasks_blocked(0.01)

        async def trickle() -> None:
            await peer.send_all(frame(BINARY, b"a part", fin=False))
            for _ in range(100):
                await peer.send_all(frame(MORE, b"x", fin=False) + frame(PING))
                await trio.testing.wait_all_tasks_blocked(0.01)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.receive)
            await ping()  # control frames are no part of a message
            nursery.cancel_scope.cancel()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trickle)
            with pytest.raises(ConnectionLost, match=r"did not complete a message within 0\.2 s"):
                await server.receive()
            nursery.cancel_scope.cancel()


# Bursts between two nodes


async def test_a_burst_is_one_message_and_an_empty_frame_ends_a_direction() -> None:
    async with raw_pair(f"{BURSTS}, trionode.v1") as (peer, server):
        await server.send([b"a", b"bc"])
        await server.send_eof()
        expected = frame(BINARY, b"\0\0\0\x01a\0\0\0\x02bc", masked=False) + frame(BINARY, bytes(4), masked=False)
        received = b""
        while len(received) < len(expected):
            received += await peer.receive_some()
        assert received == expected
        await peer.send_all(frame(BINARY, join_frames(CURRENT, [b"still", b"heard"])) + frame(BINARY, bytes(4)))
        assert list(await server.receive()) == [b"still", b"heard"]
        assert [await server.receive() for _ in range(2)] == [(), ()]


async def test_a_large_burst_is_split_and_a_large_frame_has_its_own_message() -> None:
    async with pair() as (client, server), trio.open_nursery() as nursery:
        burst = [bytes((i,)) * size for i, size in enumerate((30_000, 30_000, 30_000, 200_000, 1, 1))]
        nursery.start_soon(client.send, burst)
        received = [await server.receive() for _ in range(4)]
        assert [len(frames) for frames in received] == [2, 1, 1, 2]
        assert [each for frames in received for each in frames] == burst


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"", "sent a message with no frame"),
        (b"\0\0\0\x02a", "sent a message with part of a frame"),
        (b"\0\0\0\x01a" + bytes(4), "a frame of 0 bytes, where 1 to"),
        (b"\xff\xff\xff\xffa", "where 1 to 16777216 are allowed"),
    ],
)
async def test_a_malformed_burst_ends_the_link(message: bytes, reason: str) -> None:
    async with raw_pair(BURSTS) as (peer, server):
        await peer.send_all(frame(BINARY, message))
        for _ in range(2):
            with pytest.raises(WireError, match=reason):
                await server.receive()


async def test_a_close_without_an_empty_frame_is_connection_lost() -> None:
    async with raw_pair(BURSTS) as (peer, server):
        await peer.send_all(frame(CLOSE, b"\x03\xe8"))
        with pytest.raises(ConnectionLost, match="was closed with code 1000"):
            await server.receive()


# Detecting dead peers


async def test_a_dead_peer_is_detected_by_its_unanswered_ping(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(link, "PING_AFTER", 0.1)
    async with raw_pair() as (peer, server):
        began = trio.current_time()
        with pytest.raises(ConnectionLost, match=r"was silent for 0\.2 s and answers no ping"):
            await server.receive()
        assert 0.19 <= trio.current_time() - began < 1
        assert await peer.receive_some() == frame(PING, bytes(8), masked=False)


async def test_idle_links_stay_open_while_both_ends_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "PING_AFTER", 0.05)
    async with pair() as ends:
        with trio.move_on_after(0.4) as scope:
            async with trio.open_nursery() as nursery:
                for each in ends:
                    nursery.start_soon(each.receive)
        assert scope.cancelled_caught


async def test_a_peer_counts_as_dead_only_after_it_has_read_everything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(link, "PING_AFTER", 0.05)
    async with raw_pair() as (peer, server):
        await server.send([b"much work"])
        # The peer is at work on that burst, and so does not read on.
        with trio.move_on_after(0.4) as scope:
            await server.receive()
        assert scope.cancelled_caught
        said = frame(BINARY, b"much work", masked=False) + frame(PING, (1).to_bytes(8, "big"), masked=False)
        assert await peer.receive_some() == said, "one ping is under way at a time"
        # It reads on, answers the ping, and then nothing more.
        await peer.send_all(frame(PONG, (1).to_bytes(8, "big")))
        with pytest.raises(ConnectionLost, match="answers no ping"), trio.fail_after(2):
            await server.receive()


async def test_a_ping_is_answered_while_the_other_direction_is_busy() -> None:
    async with raw_pair() as (peer, server), trio.open_nursery() as nursery:
        nursery.start_soon(server.send, [*[bytes(1_000_000)] * 10, b"last"])
        nursery.start_soon(server.receive)
        await trio.testing.wait_all_tasks_blocked(0.05)
        await peer.send_all(frame(PING, b"?"))
        await trio.testing.wait_all_tasks_blocked(0.05)
        received = b""
        while not received.endswith(frame(BINARY, b"last", masked=False)):
            received += await peer.receive_some()
        assert frame(PONG, b"?", masked=False) in received
        nursery.cancel_scope.cancel()


# Dialing other servers


async def error_of_dialing(
    transport: WebSocket,
    first_bytes: bytes,
    *,
    path: str = "",
    hang_up: bool = True,
    context: ssl.SSLContext | None = None,
) -> str:
    """Dial a server that reads once, sends its first bytes and disconnects; return the error text."""

    async def server(stream: trio.SocketStream) -> None:
        async with stream:
            with contextlib.suppress(trio.BrokenResourceError, ssl.SSLError):
                talk: trio.abc.HalfCloseableStream | trio.SSLStream[trio.SocketStream] = stream
                if context is not None:
                    talk = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
                await talk.receive_some()
                await talk.send_all(first_bytes)
                if not hang_up:
                    await trio.sleep_forever()

    with trio.fail_after(5):
        async with opened(transport) as (dialer, nursery):
            (listener,) = await nursery.start(partial(trio.serve_tcp, server, 0, host="127.0.0.1"))
            endpoint = f"127.0.0.1:{listener.socket.getsockname()[1]}{path}"
            with pytest.raises(ConnectionLost) as caught:
                await dialer.connect(endpoint)
    assert str(caught.value).startswith(f"can't open a WebSocket at {transport.name}:{endpoint}: ")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def answering(status: str, *headers: str, body: str = "") -> bytes:
    return ("\r\n".join([f"HTTP/1.1 {status}", *headers]) + "\r\n\r\n" + body).encode()


UPGRADE = ("Upgrade: websocket", "Connection: Upgrade")
OTHER_SERVERS = {
    "a web server": (
        answering("404 Not Found", "Content-Type: text/html", "Content-Length: 9", body="<h1>404<"),
        "answered the request for a WebSocket with HTTP 404: is the path right?",
    ),
    "one with words": (
        answering("403 Forbidden", "Content-Type: text/plain", "Content-Length: 11", body="go\x1b[1m away"),
        r"with HTTP 403: go\x1b[1m away",
    ),
    "one that sends elsewhere": (
        answering("301 Moved", "Location: https://x.example/", "Content-Length: 0"),
        "with HTTP 301: it redirects to https://x.example/: dial that",
    ),
    "one that answers with 200": (
        answering("200 OK", "Content-Length: 2", body="hi"),
        "HTTP 200: is it a trionode node?",
    ),
    "a proxy without its node": (answering("502 Bad Gateway"), "HTTP 502: the proxy there does not reach its node"),
    "one that never ends its answer": (answering("500 Oh", body="x" * 1000), "HTTP 500: is it a trionode node?"),
    "another early answer": (answering("103 Early Hints", "Link: <x>"), "HTTP 103: is it a trionode node?"),
    "ssh": (b"SSH-2.0-OpenSSH_9.6\r\n", "it is not a WebSocket server: it began with 'SSH-2.0"),
    "the wire over tcp": (
        b"\x01\0\0\0\4\x83\x80\x80\x40",
        r"it is not a WebSocket server: illegal request line",
    ),
    "tls, by its alert": (bytes.fromhex("15030100020146"), "it speaks TLS: dial it with wss: instead of ws:"),
    "one that hangs up": (b"", "closed the connection without an answer: does it speak TLS (wss:)"),
    "half an answer": (b"HTTP/1.1 101 Swi", "it is not a WebSocket server: it began with 'HTTP/1.1 101 Swi'"),
    "a wrong key": (answering("101 Ok", *UPGRADE, "Sec-WebSocket-Accept: AAAA"), "Bad accept token"),
    "no upgrade": (answering("101 Ok"), "Missing header, 'Connection: Upgrade'"),
    "letters of no alphabet": (answering("101 Ok", "Connection: \xff"), "it is not a WebSocket server"),
}


@pytest.mark.parametrize(("first_bytes", "reason"), OTHER_SERVERS.values(), ids=OTHER_SERVERS.keys())
async def test_connecting_to_another_server_is_connection_lost_with_a_reason(first_bytes: bytes, reason: str) -> None:
    assert reason in await error_of_dialing(WebSocket(), first_bytes)


async def test_connecting_to_a_silent_server_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trionode_websocket, "HANDSHAKE_TIMEOUT", 0.1)
    error = await error_of_dialing(WebSocket(), b"", hang_up=False)
    assert "opened no WebSocket within 0.1 s: is it a trionode node?" in error


async def test_only_the_logged_part_of_a_refusal_is_read() -> None:
    error = await error_of_dialing(
        WebSocket(),
        answering("400 No", "Content-Type: text/plain", "Content-Length: 9999", body="x" * 5000),
        hang_up=False,
    )
    assert "HTTP 400: " + "x" * 100 in error
    assert len(error) < 500


@pytest.mark.parametrize("peer", [UNREACHABLE, "localhost:1/node"])
async def test_connection_refused_is_reported_with_the_text_of_the_system(peer: str) -> None:
    with pytest.raises(ConnectionLost, match=rf"can't connect to ws:{peer}: .*Connection refused\. Is the node there"):
        await WebSocket().connect(peer)


async def test_the_path_is_part_of_the_address() -> None:
    async with open_node("ws") as bob, open_node("ws") as alice:
        at = await bob.listen("ws:127.0.0.1:0/a/node%20")
        assert str(at).endswith("/a/node%20")
        await bob.start_worker("echoer", echoer, allow=from_anywhere)
        assert (await alice.ask(Route(at, "echoer"), "hello")).text == "hello"
        elsewhere = str(at).replace("/a/node%20", "/a/nod")
        with pytest.raises(ConnectionLost, match=rf"{elsewhere}: .* HTTP 404: no node is at this path"):
            await alice.connect(elsewhere)
        with pytest.raises(LocalError, match=rf"can't listen at {at.value.decode()}: .* Choose another port"):
            await bob.listen(str(at))


@pytest.mark.parametrize("at", ["127.0.0.1", "127.0.0.1:x/y", "127.0.0.1:70000", "/node"])
async def test_a_ws_address_without_a_port_is_a_local_error(at: str) -> None:
    async with open_node("ws") as node:
        for call in (node.listen, node.connect):
            with pytest.raises(LocalError, match="expected HOST:PORT"):
                await call(f"ws:{at}")


@pytest.mark.parametrize("host", ["a..b", "x" * 64 + ".example"])
async def test_an_invalid_host_name_is_connection_lost(host: str) -> None:
    with pytest.raises(ConnectionLost, match=rf"can't connect to ws:{host}:4000/x: '.*' is not a valid host name"):
        await WebSocket().connect(f"{host}:4000/x")


@pytest.mark.parametrize("path", ["/a b", "/a?b", "/a#b", "/ä", "/%zz", "/\r\nHost: x"])
async def test_an_invalid_path_is_a_local_error(path: str) -> None:
    with pytest.raises(LocalError, match=r"a path without query and fragment; this is '127"):
        await WebSocket().connect("127.0.0.1:1" + path)


async def test_ws_supports_ipv6_addresses_in_brackets() -> None:
    async with open_node("ws") as bob, open_node("ws") as alice:
        try:
            at = await bob.listen("ws:[::1]:0/x")
        except LocalError:
            pytest.skip("this system has no IPv6 loopback interface")
        assert str(at).startswith("ws:[::1]:")
        await bob.start_worker("echoer", echoer, allow=from_anywhere)
        assert (await alice.ask(Route(at, "echoer"), "hello")).text == "hello"


# Under TLS


async def test_a_wss_listener_needs_a_certificate() -> None:
    async with open_node("wss") as node:
        with pytest.raises(
            LocalError, match=r"can't listen at wss:127\.0\.0\.1:0 without a certificate: set the option"
        ):
            await node.listen("wss:127.0.0.1:0")


async def test_mixing_ws_and_wss_is_reported(
    secure: SecureWebSocket, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "trionode")
    async with two_nodes(secure, secure) as (_, host, port):
        with pytest.raises(ConnectionLost, match=r"speaks? TLS"):
            await dial(WebSocket(), f"{host}:{port}")
    async with two_nodes() as (_, host, port):
        with pytest.raises(ConnectionLost, match=r"can't open a WebSocket at wss:.*: the other end does not speak TLS"):
            await dial(secure, f"{host}:{port}")
    lines = [r.getMessage() for r in caplog.records if r.message.startswith("refused")]
    assert len(lines) == 2
    assert "does not speak TLS" in lines[0]
    assert "speaks TLS: it has to dial ws:" in lines[1]


async def test_wss_refuses_untrusted_and_wrong_certificates(secure: SecureWebSocket, authority: Authority) -> None:
    other = authority.sign("other.example")
    elsewhere = SecureWebSocket(certificate=other.certificate, key=other.key, ca_file=authority.path)
    for listening, dialling, reason in (
        (secure, SecureWebSocket(), "not signed by a trusted CA"),
        (elsewhere, secure, "certificate"),
    ):
        async with opened(listening) as (listener, nursery):
            bound = await nursery.start(listener.serve, "127.0.0.1:0", trio.sleep)
            with pytest.raises(ConnectionLost, match=reason):
                await dial(dialling, bound)


async def test_a_wss_listener_may_demand_client_certificates(authority: Authority) -> None:
    own, client = authority.sign(), authority.sign_client()
    strict = SecureWebSocket(certificate=own.certificate, key=own.key, client_ca_file=authority.path)
    known = SecureWebSocket(certificate=client.certificate, key=client.key, ca_file=authority.path)
    async with two_nodes(strict, known) as (_, host, port):
        with pytest.raises(ConnectionLost, match="demands a certificate: set the options certificate and key"):
            await dial(SecureWebSocket(ca_file=authority.path), f"{host}:{port}")


async def test_another_https_server_is_reported(authority: Authority) -> None:
    own = authority.sign()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(own.certificate, own.key)
    error = await error_of_dialing(SecureWebSocket(ca_file=authority.path), answering("404 No"), context=context)
    assert "HTTP 404: is the path right?" in error


async def test_an_ipv6_interface_is_neither_verified_nor_sent(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = authority.sign("fe80::1")
    dial_tcp, dialed, request = trio.open_tcp_stream, [], b""

    async def loopback(host: str, port: int) -> trio.SocketStream:
        dialed.append(host)
        return await dial_tcp("127.0.0.1", port)

    async def server(stream: trio.SocketStream) -> None:
        nonlocal request
        secured = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
        request = bytes(await secured.receive_some())
        await secured.aclose()

    context = server_context(certificate=own.certificate, key=own.key)
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            (listener,) = await nursery.start(partial(trio.serve_tcp, server, 0, host="127.0.0.1"))
            port = listener.socket.getsockname()[1]
            monkeypatch.setattr(trio, "open_tcp_stream", loopback)
            with pytest.raises(ConnectionLost, match="can't open a WebSocket at wss:"):
                await dial(SecureWebSocket(ca_file=authority.path), f"[fe80::1%eth0]:{port}/x")
            nursery.cancel_scope.cancel()
    assert dialed == ["fe80::1%eth0"]
    assert request.startswith(f"GET /x HTTP/1.1\r\nHost: [fe80::1]:{port}\r\n".encode())


# As a plugin


@pytest.mark.parametrize("name", ["ws", "wss"])
def test_a_missing_package_is_reported_with_its_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [each for each in sys.modules if each.partition(".")[0] in ("trionode_websocket", "trio_websocket")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "trio_websocket", None)
    with pytest.raises(
        LocalError, match=rf"'{name}' needs the package trio_websocket, .*: pip install 'trionode\[websocket\]'"
    ):
        load_transport(name)


def test_options_are_passed_by_name() -> None:
    assert isinstance(load_transport("wss", origins=["https://a.example"], max_frame=1000), SecureWebSocket)


@pytest.mark.parametrize("option", ["ca_file", "certificate"])
def test_a_missing_file_is_reported_when_the_transport_is_made(option: str) -> None:
    with pytest.raises(LocalError, match=rf"can't read {option} x\.pem"):
        load_transport("wss", **{option: "x.pem"})
