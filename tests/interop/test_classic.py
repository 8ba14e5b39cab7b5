"""Real classic peers: the ockam crate of Rust, 0.81.0, over TCP and through the streams of a hub."""

import signal
from collections.abc import AsyncIterator
from pathlib import Path

import attrs
import pytest
import trio

from tests.interop.test_current import COUNT, REFUSED_SECONDS, STALL_TIMEOUT, UNKNOWN, Echoer, texts
from tests.support.doubling import CLASSIC, open_doubling
from tests.support.processes import Commands, Running, addresses
from tests.support.rust_peers import Peers, open_peers, reports
from trionode import Identity, Node, Route, open_node, trust_everyone, trust_only
from trionode.counters import DropReason
from trionode.errors import AnswerTimeout, HandshakeError
from trionode.identity.identity import ClassicIdentity
from trionode.protocol.rules.access import from_anywhere
from trionode.protocol.stream.consumer import POLL_SECONDS
from trionode.testing import KafkaBroker

pytestmark = pytest.mark.interop

#: An identifier that no peer has.
NO_P = "P" + UNKNOWN[1:]


@attrs.define(eq=False)
class Scene:
    """Our node, listening, with an identity, its classic and an echoer; and Rust peers to start."""

    node: Node
    ours: Identity
    classic: ClassicIdentity
    echoer: Echoer
    peers: Peers
    endpoint: str


@pytest.fixture
async def scene(classic_program: Path) -> AsyncIterator[Scene]:
    async with open_peers(classic_program) as peers, open_node("tcp", "tcp_classic") as node:
        echoer = Echoer()
        await node.start_worker("echoer", echoer.work, allow=from_anywhere)
        at = await node.listen("tcp:127.0.0.1:0")
        ours = await Identity.create(node.vault)
        yield Scene(node, ours, await ours.classic(), echoer, peers, str(at).removeprefix("tcp:"))


async def test_a_rust_initiator_receives_every_echo_from_us(scene: Scene) -> None:
    with trio.fail_after(STALL_TIMEOUT):
        await scene.node.serve_secure_channels(
            "listener", scene.ours, trust=trust_everyone, protocol_versions=("current", "classic")
        )
        initiator = await scene.peers.start(
            "initiate", scene.endpoint, "--count", str(COUNT), "--trust", str(scene.classic.identifier)
        )
        identifier, _, echoed = await reports(initiator, "identity", "established", "echoed")
        assert echoed == str(COUNT)
        assert await initiator.end() == 0, initiator.complaints
        assert len(scene.echoer.messages) == COUNT
        assert {"P" + (message.origin.identifier or b"").hex() for message in scene.echoer.messages} == {identifier}


async def test_a_rust_initiator_receives_every_echo_over_plain_tcp(scene: Scene) -> None:
    with trio.fail_after(STALL_TIMEOUT):
        initiator = await scene.peers.start("initiate", scene.endpoint, "--plain", "--count", str(COUNT))
        await reports(initiator, "identity", "echoed")
        assert await initiator.end() == 0, initiator.complaints


async def test_a_listener_for_current_channels_does_not_answer_a_classic_initiator(scene: Scene) -> None:
    with trio.fail_after(STALL_TIMEOUT):
        listener = await scene.node.serve_secure_channels("listener", scene.ours, trust=trust_everyone)
        initiator = await scene.peers.start("initiate", scene.endpoint)
        await reports(initiator, "identity")
        with trio.move_on_after(REFUSED_SECONDS):
            await initiator.line()
            raise AssertionError("it was answered")
        assert not listener.channels
        assert scene.node.counters[DropReason.HANDSHAKE_REFUSED] == 1


async def test_duplicate_frames_of_a_rust_initiator_are_delivered_once(scene: Scene) -> None:
    with trio.fail_after(STALL_TIMEOUT):
        await scene.node.serve_secure_channels(
            "listener", scene.ours, trust=trust_everyone, protocol_versions=("classic",)
        )
        async with open_doubling(scene.endpoint, CLASSIC) as doubling:
            initiator = await scene.peers.start("initiate", doubling.endpoint, "--count", "70")
            await reports(initiator, "identity", "established", "echoed")
            assert await initiator.end() == 0, initiator.complaints
            assert doubling.doubled >= 70
        assert len(scene.echoer.messages) == 70
        assert scene.node.counters[DropReason.DECRYPT_FAILED] >= 70


async def test_we_receive_every_echo_from_a_rust_responder(scene: Scene) -> None:
    with trio.fail_after(STALL_TIMEOUT):
        responder = await scene.peers.start("respond", "--trust", str(scene.classic.identifier))
        endpoint, identifier = await reports(responder, "listening", "identity")
        channel = await scene.node.open_secure_channel(
            Route(f"tcp_classic:{endpoint}", "listener"),
            scene.ours,
            trust=trust_only(identifier),
            protocol_version="classic",
        )
        for text in texts(COUNT):
            assert (await scene.node.ask(Route(channel, "echoer"), text)).text == text
            assert await reports(responder, "received") == [str(len(text.encode()))]


async def test_we_receive_every_echo_from_a_rust_responder_over_plain_tcp(scene: Scene) -> None:
    with trio.fail_after(STALL_TIMEOUT):
        responder = await scene.peers.start("respond")
        endpoint, _ = await reports(responder, "listening", "identity")
        for text in texts(COUNT):
            assert (await scene.node.ask(Route(f"tcp_classic:{endpoint}", "echoer"), text)).text == text


async def test_our_duplicate_frames_are_delivered_twice_by_a_rust_responder(scene: Scene) -> None:
    """What our documents warn of: a classic peer has no protection of its own."""
    with trio.fail_after(STALL_TIMEOUT):
        responder = await scene.peers.start("respond")
        endpoint, identifier = await reports(responder, "listening", "identity")
        async with open_doubling(endpoint, CLASSIC) as doubling:
            channel = await scene.node.open_secure_channel(
                Route(f"tcp_classic:{doubling.endpoint}", "listener"),
                scene.ours,
                trust=trust_only(identifier),
                protocol_version="classic",
            )
            for n in range(10):
                assert (await scene.node.ask(Route(channel, "echoer"), "x" * n)).text == "x" * n
            assert doubling.doubled == 10
            assert await reports(responder, *["received"] * 20) == [str(n) for n in range(10) for _ in "12"]


async def test_we_refuse_an_untrusted_rust_responder_and_it_refuses_us(scene: Scene) -> None:
    with trio.fail_after(STALL_TIMEOUT):
        responder = await scene.peers.start("respond", "--trust", NO_P)
        endpoint, identifier = await reports(responder, "listening", "identity")
        route = Route(f"tcp_classic:{endpoint}", "listener")
        with pytest.raises(HandshakeError, match=identifier):
            await scene.node.open_secure_channel(route, scene.ours, trust=trust_only(NO_P), protocol_version="classic")
        # Our identity is the handshake's last message: we learn of the refusal by silence only.
        channel = await scene.node.open_secure_channel(
            route, scene.ours, trust=trust_only(identifier), protocol_version="classic"
        )
        with pytest.raises(AnswerTimeout):
            await scene.node.ask(Route(channel, "echoer"), "anybody there?", timeout=REFUSED_SECONDS)


# -- through the streams of a hub --------------------------------------------------------------------------------------

MESSAGES = ["hello", "Grüße, 世界, 🌍", "x" * 60_000, "the last one"]
RUST, OURS = "Rust", "ours"


async def converse(
    folder: Path, program: Path, store: str, *, bob: str, alice: str, restarts: int = 0
) -> tuple[Running, Running]:
    """Bob and Alice, each of them the Rust program or our command, with a hub of ours between; it is restarted between
    messages.
    """
    async with Commands(folder) as commands, open_peers(program) as peers:
        hub, at = await commands.hub("--store", store)
        endpoint = at.removeprefix("tcp:")
        if bob == RUST:
            bobs = await peers.start("bob", endpoint)
            (names,) = [line.split() for line in await told_last(bobs, "streams")]
        else:
            bobs = await commands.start("bob", "--hub", at, "--protocol-version", "classic")
            names = list((await addresses(bobs))[:2])
        if alice == RUST:
            alices = await peers.start("alice", endpoint, *names)
            await told_last(alices, "established")
        else:
            alices = await commands.start("alice", "--hub", at, "--protocol-version", "classic")
            await alices.write(*names)
            assert "established" in await alices.line()
        for number, message in enumerate(MESSAGES):
            if number <= restarts and restarts:
                hub.process.send_signal(signal.SIGHUP)
                assert await hub.line() == f"listening on {at}"
                # A Rust program that pushes in the very moment in which it connects again to pull opens two connections
                # and is lost between them, whatever a hub does: it gets its next pull's time first.
                with trio.move_on_after(2 * POLL_SECONDS):
                    await hub.process.wait()
            await alices.write(message)
            assert (await alices.line()).endswith(message)
        await alices.close_input()
        assert await alices.end() == 0, alices.complaints
    return bobs, alices


async def told_last(peer: Running, word: str) -> list[str]:
    """What the first line says that begins with a word; lines before it are passed over."""
    while True:
        first, _, rest = (await peer.line()).partition(" ")
        if first == word:
            return [rest]


PAIRS = pytest.mark.parametrize(("bob", "alice"), [(RUST, RUST), (RUST, OURS), (OURS, RUST)])


@PAIRS
async def test_bob_and_alice_talk_through_a_hub_on_sqlite(
    tmp_path: Path, classic_program: Path, bob: str, alice: str
) -> None:
    with trio.fail_after(STALL_TIMEOUT):
        await converse(tmp_path, classic_program, f"sqlite:{tmp_path / 'streams.db'}", bob=bob, alice=alice)


@PAIRS
async def test_bob_and_alice_talk_through_a_hub_on_kafka(
    tmp_path: Path, classic_program: Path, kafka_broker: KafkaBroker, bob: str, alice: str
) -> None:
    with trio.fail_after(STALL_TIMEOUT):
        await converse(tmp_path, classic_program, f"kafka:{kafka_broker.bootstrap}", bob=bob, alice=alice)


async def test_two_rust_programs_do_not_notice_that_the_hub_restarts(tmp_path: Path, classic_program: Path) -> None:
    with trio.fail_after(STALL_TIMEOUT):
        store = f"sqlite:{tmp_path / 'streams.db'}"
        await converse(tmp_path, classic_program, store, bob=RUST, alice=RUST, restarts=3)
