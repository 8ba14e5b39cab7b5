"""One port serves both protocol versions, which their first bytes show, and refuses others (spec §3.3)."""

import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

import trionode_tcp.link
from trionode.counters import DropReason
from trionode.errors import LocalError, MessageTooLargeError, WireError
from trionode.node.node import Node, open_node
from trionode.protocol.rules.access import from_anywhere
from trionode.protocol.wire.address import Address, local
from trionode.protocol.wire.classic_codec import CLASSIC, MAX_FRAME, MAX_SENT
from trionode.protocol.wire.current_codec import CURRENT
from trionode.protocol.wire.detect import recognise
from trionode.protocol.wire.framing import join_frames
from trionode.protocol.wire.message import payload_of
from trionode.protocol.wire.route import Route
from trionode.protocol.wire.version import ProtocolVersion
from trionode.routing.mailbox import Mailbox
from trionode.workers import echoer
from trionode_tcp import TCP

BEGINNINGS = {
    "nothing": (b"", None),
    "one byte of both": (b"\x01", None),
    "two bytes of both": (b"\x01\x00", None),
    "two bytes of a classic length": (b"\x00\x5a", None),
    "a classic frame": (bytes.fromhex("005a0101"), CLASSIC),
    "a classic frame of 256 bytes and more": (bytes.fromhex("01000101"), CLASSIC),
    "a classic heartbeat": (bytes.fromhex("000401000000"), CLASSIC),
    "what a Rust client of 0.150 sends": (bytes.fromhex("010000"), CURRENT),
    "our own preface": (bytes.fromhex("010000000483808040"), CURRENT),
    "what TLS and a classic frame of 5635 bytes have in common": (bytes.fromhex("1603010100016161"), None),
    "a classic frame of 5635 bytes": (bytes.fromhex("160301010001616161"), CLASSIC),
}


@pytest.mark.parametrize(("start", "protocol_version"), BEGINNINGS.values(), ids=BEGINNINGS.keys())
def test_the_first_bytes_show_the_protocol_version(start: bytes, protocol_version: ProtocolVersion | None) -> None:
    assert recognise(start) is protocol_version


@pytest.mark.parametrize("start", [b"GET / HTTP/1.1", b"SSH-2.0", b"\x00\x00\x00", b"\x16\x03\x03"])
def test_other_protocols_are_refused_with_their_first_bytes(start: bytes) -> None:
    with pytest.raises(WireError, match=start[:3].hex()):
        recognise(start)


@pytest.mark.parametrize("version", ["0300", "0301", "0302", "0303"])
def test_tls_of_any_version_is_recognised_and_refused(version: str) -> None:
    with pytest.raises(WireError, match="the peer speaks TLS, and this listener does not"):
        recognise(bytes.fromhex(f"16{version}02000100 01fc0303"))


def test_only_a_single_byte_is_decided_by_a_timeout() -> None:
    assert [recognise(start, quiet=True) for start in (b"", b"\x01", b"\x01\x00", b"\x00")] == [
        None,
        CURRENT,
        None,
        None,
    ]


@given(st.binary(min_size=1, max_size=400), st.integers(1, 3))
def test_a_classic_frame_of_any_length_is_recognised_with_any_split(payload: bytes, cut: int) -> None:
    start = join_frames(CLASSIC, [CLASSIC.encode((local("a"),), (), payload)])
    assert recognise(start[:cut]) in (None, CLASSIC)
    assert recognise(start) is CLASSIC


# Over real sockets


@asynccontextmanager
async def echoing_node(*, at: str = "tcp:127.0.0.1:0", **options: object) -> AsyncIterator[tuple[Node, Address]]:
    async with open_node(TCP(**options)) as node:  # type: ignore[arg-type]  # the transport's own options
        await node.start_worker("echoer", echoer, allow=from_anywhere)
        yield node, await node.listen(at)


def classic(at: Address) -> str:
    return f"tcp_classic:{at.value.decode()}"


async def test_a_classic_and_a_current_client_use_one_port_at_the_same_time() -> None:
    with trio.fail_after(10):
        async with (
            echoing_node() as (_, at),
            open_node("tcp") as current,
            open_node("tcp_classic") as old,
        ):
            answers: list[str] = []

            async def ask(node: Node, route: Route, name: str) -> None:
                for number in range(50):
                    text = f"{name} {number}" + "ü" * number
                    assert (await node.ask(route, text)).text == text
                answers.append(name)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask, current, Route(at, "echoer"), "current")
                nursery.start_soon(ask, old, Route(classic(at), "echoer"), "classic")
            assert sorted(answers) == ["classic", "current"]


async def test_classic_bytes_come_back_as_classic_bytes_and_nothing_before() -> None:
    request = join_frames(CLASSIC, [CLASSIC.encode((local("echoer"),), (local("app"),), payload_of("hi"))])
    answer = join_frames(CLASSIC, [CLASSIC.encode((local("app"),), (local("echoer"),), payload_of("hi"))])
    with trio.fail_after(10):
        async with echoing_node() as (_, at):
            host, _, port = at.value.decode().partition(":")
            stream = await trio.open_tcp_stream(host, int(port))
            async with stream:
                for byte in request:
                    await stream.send_all(bytes((byte,)))
                received = b""
                while len(received) < len(answer):
                    received += await stream.receive_some(len(answer) - len(received))
                assert received == answer


async def test_a_current_client_that_waits_for_our_preface_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trionode_tcp.link, "LONE_BYTE_SECONDS", 0.05)
    with trio.fail_after(10):
        async with echoing_node() as (_, at):
            host, _, port = at.value.decode().partition(":")
            async with await trio.open_tcp_stream(host, int(port)) as stream:
                await stream.send_all(b"\x01")
                assert await stream.receive_some(10) == b"\x01"


async def test_a_large_first_frame_is_not_mistaken_for_classic() -> None:
    text = "x" * 100_000
    with trio.fail_after(10):
        async with echoing_node() as (_, at), open_node("tcp") as node:
            assert (await node.ask(Route(at, "echoer"), text)).text == text


async def test_a_few_undecodable_classic_frames_are_skipped_and_too_many_end_the_link(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "trionode")
    request = CLASSIC.encode((local("echoer"),), (local("app"),), payload_of("hi"))
    with trio.fail_after(10):
        async with echoing_node() as (node, at):
            host, _, port = at.value.decode().partition(":")
            async with await trio.open_tcp_stream(host, int(port)) as stream:
                bad = [b"", b"\x01\xff", b"\x01\x01\x00\x05ab"]
                await stream.send_all(join_frames(CLASSIC, [request, *bad, request]))
                received = b""
                while received.count(b"hi") < 2:
                    received += await stream.receive_some(4096)
                assert node.counters[DropReason.FRAME_UNDECODABLE] == 3
                assert caplog.text.count("skipped a frame") == 1
                await stream.send_all(join_frames(CLASSIC, [b"\x02"] * 6))
                assert await stream.receive_some(1) == b""


async def test_no_classic_peer_is_sent_a_frame_over_65000_bytes_and_65535_are_read() -> None:
    lengths: list[int] = []

    async def count(mailbox: Mailbox) -> None:
        async for message in mailbox:
            lengths.append(len(message.payload))
            await mailbox.reply(message, message.payload)
            await mailbox.reply(message, b"ok")

    with trio.fail_after(10):
        async with echoing_node() as (node, at), open_node("tcp_classic") as old:
            await node.start_worker("count", count, allow=from_anywhere)
            overhead = len(CLASSIC.encode((local("count"),), (local("app"),), bytes(60_000))) - 60_000
            host, _, port = at.value.decode().partition(":")
            async with await trio.open_tcp_stream(host, int(port)) as stream:
                request = CLASSIC.encode((local("count"),), (local("app"),), bytes(MAX_FRAME - overhead))
                assert len(request) == MAX_FRAME
                await stream.send_all(join_frames(CLASSIC, [request]))
                received = await stream.receive_some(4096)
                assert lengths == [MAX_FRAME - overhead]
                # The echo would be too large for a classic peer; what follows it comes.
                assert received.endswith(b"\x02ok")
                assert node.counters[DropReason.REPLY_TOO_LARGE] == 1
            with pytest.raises(MessageTooLargeError, match=str(MAX_SENT)):
                await old.ask(Route(classic(at), "count"), bytes(MAX_SENT))


async def test_a_given_socket_outlives_the_node_and_keeps_its_backlog() -> None:
    with trio.fail_after(10), socket.create_server(("127.0.0.1", 0)) as kept:
        endpoint = f"127.0.0.1:{kept.getsockname()[1]}"
        for _ in range(2):
            async with open_node("tcp") as client:
                async with trio.open_nursery() as nursery:
                    answers: list[str] = []

                    async def ask(client: Node = client, answers: list[str] = answers) -> None:
                        answers.append((await client.ask(Route(f"tcp:{endpoint}", "echoer"), "hi")).text)

                    nursery.start_soon(ask)  # before there is a node
                    await trio.testing.wait_all_tasks_blocked(0.05)
                    async with echoing_node(at="tcp:127.0.0.1:1", sockets=[kept]) as (_, at):
                        assert at.value.decode() == endpoint
                        while not answers:
                            await trio.testing.wait_all_tasks_blocked()
                assert answers == ["hi"]


async def test_frames_sent_before_our_end_was_seen_are_delivered() -> None:
    got: list[bytes] = []

    async def keep(mailbox: Mailbox) -> None:
        async for message in mailbox:
            got.append(message.payload)  # noqa: PERF401  # it is looked at before the iteration ends

    with trio.fail_after(10):
        async with echoing_node() as (node, at):
            await node.start_worker("keep", keep, allow=from_anywhere)
            host, _, port = at.value.decode().partition(":")
            stream = await trio.open_tcp_stream(host, int(port))
            await stream.send_all(join_frames(CLASSIC, [CLASSIC.encode((local("echoer"),), (local("a"),), b"\x00")]))
            assert await stream.receive_some(100)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(node.aclose_links)
                assert await stream.receive_some(100) == b""  # its end; ours is still to come
                late = [CLASSIC.encode((local("keep"),), (), bytes((number,))) for number in range(5)]
                await stream.send_all(join_frames(CLASSIC, late))
                await stream.aclose()
        assert got == [bytes((number,)) for number in range(5)]


async def test_a_dialed_classic_link_can_stay_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trionode_tcp.link, "HANDSHAKE_TIMEOUT", 0.1)
    with trio.fail_after(10):
        async with echoing_node() as (_, at), open_node("tcp_classic") as old:
            link = await old.connect(classic(at))
            with trio.move_on_after(0.3):
                await link.ended.wait()
            assert link.is_open
            assert (await old.ask(Route(classic(at), "echoer"), "hi")).text == "hi"


async def test_a_socket_that_does_not_listen_is_refused() -> None:
    with trio.fail_after(10), socket.socket() as deaf:
        async with open_node(TCP(sockets=[deaf])) as node:
            with pytest.raises(LocalError, match="expected open, listening sockets"):
                await node.listen("tcp:127.0.0.1:0")
