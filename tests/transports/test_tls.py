"""TLS under a link: the contract, proven ends, and an error text for each mismatch of the two ends."""

import logging
import random
import socket
import ssl
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

import trionode_tcp.link
from tests.support.certificates import Authority
from tests.support.key_updates import Keys, logging_to
from trionode.errors import ConnectionLost, LocalError
from trionode.net import byte_stream, connections
from trionode.net.byte_stream import TCPStream
from trionode.net.tls import client_context, reason_of_tls, server_context
from trionode.net.tls_stream import TLSStream
from trionode.net.transport import Link, load_transport
from trionode.node.node import Node, open_node
from trionode.protocol.rules.access import from_anywhere
from trionode.protocol.wire.classic_codec import CLASSIC
from trionode.protocol.wire.current_codec import CURRENT
from trionode.protocol.wire.framing import join_frames
from trionode.protocol.wire.route import Route
from trionode.testing.transport import (
    CHECKS,
    SMALL,
    Check,
    Harness,
    a_link_still_receives_after_send_eof,
    everything_sent_arrives_before_the_orderly_end,
    run_check,
)
from trionode.workers import echoer
from trionode_tcp import TCP, TLS

#: Port 1 of the loopback interface: nothing listens there on any machine that runs tests.
UNREACHABLE = "127.0.0.1:1"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def other_authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("other"), "other")


@pytest.fixture(scope="module")
def certificate(authority: Authority) -> str:
    return authority.sign().certificate


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_tls_keeps_the_contract(check: Check, authority: Authority, certificate: str) -> None:
    make = partial(TLS, certificate=certificate, ca_file=authority.path)
    await run_check(check, Harness(make(), "127.0.0.1:0", UNREACHABLE, small=make(max_frame=SMALL)))


@pytest.mark.parametrize(
    "check", [a_link_still_receives_after_send_eof, everything_sent_arrives_before_the_orderly_end]
)
async def test_each_direction_ends_separately_in_tls_1_2_too(
    check: Check, authority: Authority, certificate: str
) -> None:
    tls = TLS(certificate=certificate, ca_file=authority.path)
    tls._contexts.client.maximum_version = ssl.TLSVersion.TLSv1_2
    await run_check(check, Harness(tls, "127.0.0.1:0", UNREACHABLE))


@asynccontextmanager
async def listening(transport: TCP) -> AsyncIterator[tuple[Node, str]]:
    """A node that listens, with an echoer, and its HOST:PORT."""
    async with open_node(transport) as node:
        await node.start_worker("echoer", echoer, allow=from_anywhere)
        at = await node.listen(f"{transport.name}:127.0.0.1:0")
        yield node, at.value.decode()


async def echo(transport: TCP, endpoint: str, text: str = "hello") -> str:
    async with open_node(transport) as node:
        return (await node.ask(Route(f"{transport.name}:{endpoint}", "echoer"), text)).text


@asynccontextmanager
async def accepting(transport: TCP) -> AsyncIterator[tuple[str, trio.MemoryReceiveChannel[Link]]]:
    links, accepted = trio.open_memory_channel[Link](10)
    async with trio.open_nursery() as nursery:
        bound = await nursery.start(partial(transport.serve, "127.0.0.1:0", links.send))
        yield bound, accepted
        nursery.cancel_scope.cancel()


async def dialled(endpoint: str, authority: Authority) -> trio.SSLStream[trio.SocketStream]:
    """Dial with another TLS implementation."""
    host, _, port = endpoint.partition(":")
    stream = await trio.open_tcp_stream(host, int(port))
    return trio.SSLStream(stream, client_context(ca_file=authority.path), server_hostname=host)


# What TLS carries


async def test_tls_is_installed_and_carries_both_protocol_versions(authority: Authority, certificate: str) -> None:
    with trio.fail_after(5):
        transport = load_transport("tls", certificate=certificate)
        assert isinstance(transport, TLS)
        async with listening(transport) as (_, endpoint):
            assert await echo(TLS(ca_file=authority.path), endpoint, "x" * 200_000) == "x" * 200_000
            stream = await dialled(endpoint, authority)
            await stream.send_all(
                join_frames(CLASSIC, [CLASSIC.encode((b"\x82\x00\x46echoer",), (b"\x82\x00\x41a",), b"\x00")])
            )
            answer = join_frames(CLASSIC, [CLASSIC.encode((b"\x82\x00\x41a",), (b"\x82\x00\x46echoer",), b"\x00")])
            assert await stream.receive_some() == answer
            await trio.aclose_forcefully(stream)


async def test_client_ca_file_demands_client_certificates(authority: Authority, certificate: str) -> None:
    with trio.fail_after(5):
        own = authority.sign_client()
        async with listening(TLS(certificate=certificate, client_ca_file=authority.path)) as (_, endpoint):
            for key in (None, own.key):
                dialler = TLS(ca_file=authority.path, certificate=own.certificate, key=key)
                assert await echo(dialler, endpoint) == "hello"


async def test_tls_listens_at_given_sockets(authority: Authority, certificate: str) -> None:
    with trio.fail_after(5), socket.create_server(("127.0.0.1", 0)) as kept:
        async with listening(TLS(certificate=certificate, sockets=[kept])) as (_, endpoint):
            assert endpoint == f"127.0.0.1:{kept.getsockname()[1]}"
            assert await echo(TLS(ca_file=authority.path), endpoint) == "hello"


# Ends


async def test_an_end_without_close_notify_is_connection_lost(authority: Authority, certificate: str) -> None:
    with trio.fail_after(5):
        async with accepting(TLS(certificate=certificate)) as (endpoint, accepted):
            for orderly in (True, False):
                stream = await dialled(endpoint, authority)
                await stream.send_all(CURRENT.preface + join_frames(CURRENT, [b"first", b"last"]))
                link = await accepted.receive()
                assert list(await link.receive()) == [b"first", b"last"]
                if orderly:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(stream.aclose)
                        assert await link.receive() == ()
                        assert await link.receive() == ()
                        await link.aclose()
                else:
                    await stream.transport_stream.send_eof()
                    for _ in range(2):
                        with pytest.raises(ConnectionLost, match="was cut off"):
                            await link.receive()
                    await link.aclose()
                    await trio.aclose_forcefully(stream)


async def test_a_forged_record_ends_the_link_after_the_valid_frames(authority: Authority, certificate: str) -> None:
    with trio.fail_after(5):
        async with accepting(TLS(certificate=certificate)) as (endpoint, accepted):
            stream = await dialled(endpoint, authority)
            await stream.send_all(CURRENT.preface + join_frames(CURRENT, [b"proven"]))
            link = await accepted.receive()
            await stream.transport_stream.send_all(bytes.fromhex("1703030020") + bytes(32))
            assert list(await link.receive()) == [b"proven"]
            for _ in range(2):
                with pytest.raises(ConnectionLost, match="TLS failed"):
                    await link.receive()
            await link.aclose()
            await trio.aclose_forcefully(stream)


class Memory(TCPStream):
    """Half of a connection in memory, whose reads bring as much as the test lets them."""

    def __init__(self, peer: str) -> None:
        self.peer = peer
        self._waiting = bytearray()
        self._ended = False
        self._unsent = deque()
        self.chance = random.Random(1)
        self.other: Memory = self
        #: Bytes that leave without waiting.
        self.capacity: int | None = None

    async def receive(self) -> bytes:
        await trio.lowlevel.checkpoint()
        while not self._waiting:
            if self._ended:
                return b""
            await trio.testing.wait_all_tasks_blocked()
        data = bytes(self._waiting[: self.chance.choice((1, 7, 100, 20_000))])
        del self._waiting[: len(data)]
        return data

    def write(self, data: bytes) -> None:
        if self._unsent:
            self._unsent.append(memoryview(data))
            return
        self.other._waiting += data[: self.capacity]
        if self.capacity is not None and len(data) > self.capacity:
            self._unsent.append(memoryview(data)[self.capacity :])

    async def flush(self) -> None:
        await trio.lowlevel.checkpoint()
        while self._unsent:
            self.other._waiting += self._unsent.popleft()

    async def send_eof(self) -> None:
        await trio.lowlevel.checkpoint()
        self.other._ended = True


async def pair_in_memory(
    authority: Authority, certificate: str, seed: int, version: ssl.TLSVersion
) -> tuple[TLSStream, TLSStream]:
    one, other = Memory("memory:one"), Memory("memory:other")
    one.other, other.other = other, one
    one.chance, other.chance = random.Random(seed), random.Random(-seed)
    context = client_context(ca_file=authority.path)
    context.maximum_version = version
    client = TLSStream(one, context, host="localhost")
    server = TLSStream(other, server_context(certificate=certificate))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.handshake)
        nursery.start_soon(server.handshake)
    return client, server


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_close_notify_between_the_peers_records_loses_nothing(
    authority: Authority, certificate: str, version: ssl.TLSVersion
) -> None:
    data = bytes(range(256)) * 300
    for seed in range(1, 25):
        client, server = await pair_in_memory(authority, certificate, seed, version)
        with trio.fail_after(5):
            await server.send(data)
            received = b""
            while len(received) < len(data) * seed // 25:
                received += await client.receive()
            await client.send(b"last")
            await client.send_eof()
            await server.send(b"more")
            while len(received) < len(data) + 4:
                received += await client.receive()
            assert received == data + b"more"
            assert b"".join([await server.receive() for _ in range(2)]) == b"last"
            await server.send_eof()
            assert await client.receive() == b""
            assert await client.receive() == b""


# TLS's own answers


async def pair_with_keys(
    authority: Authority, certificate: str, folder: Path
) -> tuple[TLSStream, TLSStream, Memory, Keys]:
    """A client, a server, the stream below the server, and the keys that encrypt the client's next records."""
    below, other = Memory("memory:client"), Memory("memory:server")
    below.other, other.other = other, below
    context = logging_to(folder / "keys.log", client_context(ca_file=authority.path))
    client = TLSStream(below, context, host="localhost")
    server = TLSStream(other, server_context(certificate=certificate))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.handshake)
        nursery.start_soon(server.handshake)
    return client, server, other, Keys(folder / "keys.log")


async def test_key_updates_are_answered_without_a_send(authority: Authority, certificate: str, tmp_path: Path) -> None:
    client, server, below, keys = await pair_with_keys(authority, certificate, tmp_path)
    with trio.fail_after(5):
        for capacity in (None, 10):  # all answers leave at once, or a part of them, and the rest with the next send
            below.capacity = capacity
            for _ in range(20):
                below._waiting += keys.update() + keys.update()
                below._waiting += keys.data(b"data")
                assert await server.receive() == b"data"
            assert (server._outgoing.pending == 0) == (capacity is None)
        await server.send(b"answer")
        assert server._outgoing.pending == 0
        assert await client.receive() == b"answer"


async def test_unread_key_update_answers_are_bounded(authority: Authority, certificate: str, tmp_path: Path) -> None:
    _, server, below, keys = await pair_with_keys(authority, certificate, tmp_path)
    with trio.fail_after(5):
        below.capacity = 0
        below._waiting += keys.data(b"data")
        below._waiting += b"".join(keys.update() for _ in range(200))
        assert await server.receive() == b"data"
        for _ in range(2):
            with pytest.raises(ConnectionLost, match="demands more TLS answers than it reads"):
                await server.receive()
        assert server._outgoing.pending < 2 * 200 * 27


async def test_nothing_is_read_after_the_end_that_tls_proves(
    authority: Authority, certificate: str, tmp_path: Path
) -> None:
    client, server, below, _ = await pair_with_keys(authority, certificate, tmp_path)
    with trio.fail_after(5):
        await client.send(b"data")
        await client.send_eof()
        below._waiting += bytes(1_000_000)
        received = b""
        while data := await server.receive():
            received += data
        assert received == b"data"
        for _ in range(10):
            assert await server.receive() == b""
        assert server._incoming.pending <= byte_stream.READ_SIZE


async def test_a_failed_answer_does_not_disturb_the_reader(
    authority: Authority, certificate: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, server, below, keys = await pair_with_keys(authority, certificate, tmp_path)

    def gone(_: bytes) -> None:
        raise ConnectionLost("gone")

    monkeypatch.setattr(below, "write", gone)
    with trio.fail_after(5):
        below._waiting += keys.update() + keys.data(b"data") + keys.update() + keys.data(b"more")
        received = b""
        while len(received) < 8:
            received += await server.receive()
        assert received == b"datamore"


# Failed handshakes


async def silent(stream: trio.SocketStream) -> None:
    async with stream:
        while await stream.receive_some():
            pass


async def http(stream: trio.SocketStream) -> None:
    async with stream:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")


@asynccontextmanager
async def another_server(handler: object) -> AsyncIterator[str]:
    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, handler, 0, host="127.0.0.1"))  # type: ignore[arg-type]
        yield f"127.0.0.1:{listener.socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


async def refused(
    listener: TCP, dialler: TCP, reason: str, seen: str, caplog: pytest.LogCaptureFixture, host: str = "127.0.0.1"
) -> None:
    """Check that the dialer gets the reason at once, that the listener logs its own, and that it still serves."""
    caplog.set_level(logging.INFO, "trionode")
    with trio.fail_after(3):
        async with accepting(listener) as (endpoint, accepted):
            with pytest.raises(ConnectionLost, match=reason):
                await dialler.connect(endpoint.replace("127.0.0.1", host))
            await trio.testing.wait_all_tasks_blocked(0.01)
            lines = [each.message for each in caplog.records if each.message.startswith("refused a connection")]
            assert len(lines) == 1
            assert seen in lines[0], lines[0]
            with pytest.raises(trio.WouldBlock):
                accepted.receive_nowait()


async def test_an_unknown_ca_is_reported_at_both_ends(
    authority: Authority, other_authority: Authority, certificate: str, caplog: pytest.LogCaptureFixture
) -> None:
    await refused(
        TLS(certificate=certificate),
        TLS(ca_file=other_authority.path),
        "the other end's certificate is not signed by a trusted CA: set ca_file",
        "does not trust the CA that signed",
        caplog,
    )


async def test_the_systems_cas_are_trusted_by_default(certificate: str, caplog: pytest.LogCaptureFixture) -> None:
    await refused(TLS(certificate=certificate), TLS(), "is not signed by a trusted CA", "does not trust", caplog)


async def test_a_certificate_for_another_host_is_refused(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    await refused(
        TLS(certificate=authority.sign("hub.example").certificate),
        TLS(ca_file=authority.path),
        "IP address mismatch, certificate is not valid for '127.0.0.1'",
        "does not accept this end's certificate",
        caplog,
    )


async def test_the_dialed_name_is_verified_not_its_address(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    await refused(
        TLS(certificate=authority.sign("127.0.0.1").certificate),
        TLS(ca_file=authority.path),
        "Hostname mismatch, certificate is not valid for 'localhost'",
        "does not accept this end's certificate",
        caplog,
        host="localhost",
    )


async def test_an_expired_certificate_is_refused(authority: Authority, caplog: pytest.LogCaptureFixture) -> None:
    await refused(
        TLS(certificate=authority.sign(expired=True).certificate),
        TLS(ca_file=authority.path),
        "the other end's certificate has expired",
        "this end's certificate has expired",
        caplog,
    )


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_missing_client_certificate_is_reported_at_both_ends(
    authority: Authority, certificate: str, version: ssl.TLSVersion, caplog: pytest.LogCaptureFixture
) -> None:
    dialler = TLS(ca_file=authority.path)
    dialler._contexts.client.maximum_version = version
    await refused(
        TLS(certificate=certificate, client_ca_file=authority.path),
        dialler,
        "demands a certificate: set the options certificate and key",
        "sent no certificate, and this listener demands one",
        caplog,
    )


async def test_a_client_certificate_of_an_unknown_ca_is_refused(
    authority: Authority, other_authority: Authority, certificate: str, caplog: pytest.LogCaptureFixture
) -> None:
    await refused(
        TLS(certificate=certificate, client_ca_file=authority.path),
        TLS(ca_file=authority.path, certificate=other_authority.sign_client().certificate),
        "does not trust the CA that signed",
        "client_ca_file on a listener",
        caplog,
    )


async def test_dialing_a_tls_listener_without_tls_is_reported(
    certificate: str, caplog: pytest.LogCaptureFixture
) -> None:
    await refused(
        TLS(certificate=certificate),
        TCP(),
        "speaks TLS: dial it as tls:",
        "does not speak TLS, as this listener does",
        caplog,
    )


async def test_a_tls_listener_answers_one_byte_of_a_preface_with_an_alert(certificate: str) -> None:
    with trio.fail_after(3):
        async with accepting(TLS(certificate=certificate)) as (endpoint, _):
            host, _, port = endpoint.partition(":")
            async with await trio.open_tcp_stream(host, int(port)) as stream:
                await stream.send_all(CURRENT.preface)
                assert (await stream.receive_some()).startswith(b"\x15\x03")
                assert await stream.receive_some() == b""


async def test_dialing_a_plain_listener_with_tls_is_reported(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    await refused(
        TCP(),
        TLS(ca_file=authority.path),
        "ended the connection in the TLS handshake: does it listen with TLS",
        "the peer speaks TLS, and this listener does not",
        caplog,
    )


async def test_dialing_another_server_with_tls_is_reported(authority: Authority) -> None:
    with trio.fail_after(3):
        async with another_server(http) as endpoint:
            with pytest.raises(
                ConnectionLost, match="does not speak TLS: is it a listener without TLS, or another port"
            ):
                await TLS(ca_file=authority.path).connect(endpoint)


async def test_a_tls_server_that_is_not_a_node_is_reported(authority: Authority, certificate: str) -> None:
    async def https(stream: trio.SocketStream) -> None:
        async with trio.SSLStream(stream, server_context(certificate=certificate), server_side=True) as secured:
            await http(secured)  # type: ignore[arg-type]

    with trio.fail_after(3):
        async with another_server(https) as endpoint:
            with pytest.raises(
                ConnectionLost, match=f"tls:{endpoint} is not a trionode or Ockam node: .*began with 48"
            ):
                await TLS(ca_file=authority.path).connect(endpoint)


async def test_a_silent_tls_server_times_out(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trionode_tcp.link, "HANDSHAKE_TIMEOUT", 0.1)
    with trio.fail_after(3):
        async with another_server(silent) as endpoint:
            with pytest.raises(ConnectionLost, match=r"sent no preface within 0\.1 s"):
                await TLS(ca_file=authority.path).connect(endpoint)


async def test_tls_handshakes_count_as_pending_connections(
    authority: Authority, certificate: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "trionode")
    monkeypatch.setattr(trionode_tcp.link, "HANDSHAKE_TIMEOUT", 0.3)
    monkeypatch.setattr(connections, "MAX_HANDSHAKES", 3)
    with trio.fail_after(5):
        async with listening(TLS(certificate=certificate)) as (_, endpoint):
            host, _, port = endpoint.partition(":")
            streams = [await trio.open_tcp_stream(host, int(port)) for _ in range(5)]
            for stream in streams:
                with trio.move_on_after(0):
                    await stream.send_all(b"\x16\x03\x01")  # half a hello
            for stream in streams:
                await silent(stream)
            assert await echo(TLS(ca_file=authority.path), endpoint) == "hello"
    assert caplog.text.count("more than 3 connections at tls:127.0.0.1:0 are in their handshake") == 1
    assert caplog.text.count("within 0.3 s: it sent nothing") == 3


# Options


async def test_a_tls_listener_needs_a_certificate() -> None:
    async with open_node("tls") as node:
        with pytest.raises(LocalError, match=r"can't listen at tls:127.0.0.1:0 without a certificate: set the option"):
            await node.listen("tls:127.0.0.1:0")


def test_a_bad_file_is_reported_with_its_name(authority: Authority, tmp_path: Path) -> None:
    one, other = authority.sign(), authority.sign()
    alone = tmp_path / "alone.pem"
    alone.write_text(Path(one.certificate).read_text().partition("-----BEGIN PRIVATE")[0])
    broken = tmp_path / "broken.pem"
    broken.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    sealed = tmp_path / "sealed.pem"
    sealed.write_text("-----BEGIN ENCRYPTED PRIVATE KEY-----\n-----END ENCRYPTED PRIVATE KEY-----\n")
    missing = str(tmp_path / "missing.pem")
    for options, reason in (
        ({"certificate": missing}, f"can't read certificate {missing}: No such file"),
        ({"certificate": one.certificate, "key": missing}, f"can't read key {missing}: No such file"),
        ({"certificate": one.key}, f"there is no certificate in {one.key}"),
        ({"certificate": str(alone)}, f"there is no private key in {alone}: key is the path"),
        (
            {"certificate": str(alone), "key": other.key},
            f"the key in {other.key} does not belong to the certificate in {alone}",
        ),
        (
            {"certificate": str(broken), "key": one.key},
            f"the certificate in {broken}, or the key in {one.key}, can't be",
        ),
        ({"certificate": str(alone), "key": str(sealed)}, "can't be read"),
        ({"certificate": one.certificate, "client_ca_file": one.key}, "client_ca_file is the path of a PEM file"),
        ({"ca_file": str(broken)}, f"ca_file {broken} holds a certificate that can't be read"),
        ({"ca_file": str(tmp_path)}, f"can't read ca_file {tmp_path}: Is a directory"),
        ({"key": one.key}, f"the key {one.key} has no certificate"),
    ):
        with pytest.raises(LocalError) as caught:
            load_transport("tls", **options)
        assert reason in str(caught.value)


def test_reason_of_tls_searches_groups_and_causes() -> None:
    inner = ssl.SSLCertVerificationError()
    inner.verify_code, inner.verify_message = 10, "certificate has expired"
    outer = trio.BrokenResourceError()
    outer.__cause__ = inner
    assert reason_of_tls(ExceptionGroup("", [ValueError(), outer])) == "the other end's certificate has expired"
    assert reason_of_tls(ConnectionResetError(104, "Connection reset by peer")) == "Connection reset by peer"
    assert reason_of_tls(trio.BrokenResourceError()) == "BrokenResourceError"
