"""Real peers of the current protocol version: the ockam crate of Rust, 0.150.0, over TCP on this machine."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio

from tests.support.doubling import open_doubling
from tests.support.processes import Running
from tests.support.rust_peers import Peers, open_peers, reports
from trionode import (
    Identity,
    Mailbox,
    Message,
    Node,
    Route,
    TrustPolicy,
    from_attributes,
    open_node,
    trust_attributes,
    trust_everyone,
    trust_only,
)
from trionode.channel.listener import SecureChannelListener
from trionode.counters import DropReason
from trionode.errors import AnswerTimeout, HandshakeError
from trionode.protocol.handshake.exchange import Peer
from trionode.protocol.identity.identity import import_history
from trionode.protocol.rules.access import from_anywhere

pytestmark = pytest.mark.interop

#: Seconds after which a test has failed, on a busy machine.
STALL_TIMEOUT = 60.0

#: Seconds that a side waits which is refused and hears nothing.
REFUSED_SECONDS = 2

#: As many as a Rust initiator sends: the keys change six times each way.
COUNT = 200

#: An identifier that no peer has.
UNKNOWN = "I" + "0" * 64

#: Both kinds of identity that a Rust peer can make.
CURVES = pytest.mark.parametrize("curve", [(), ("--p256",)], ids=["ed25519", "p256"])


def texts(count: int) -> Iterator[str]:
    """Texts of 0, 1, 100, 1000 and 60000 bytes, and some that are not ASCII, in turn."""
    for n in range(count):
        pattern = f"{n} " * 60_000
        yield [
            "",
            "x",
            pattern[:100],
            pattern[:1000],
            pattern[:60_000],
            f"{n}: Grüße, 世界, 🌍\0 \u202e",
            "é" * 30_000,
        ][n % 7]


class Echoer:
    """Sends every payload back, and records it."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    async def work(self, mailbox: Mailbox) -> None:
        async for message in mailbox:
            self.messages.append(message)
            await mailbox.reply(message, message.payload)


@attrs.define(eq=False)
class Scene:
    """Our node, listening, with an identity and an echoer; and Rust peers to start."""

    node: Node
    ours: Identity
    echoer: Echoer
    peers: Peers
    #: Where our node listens, as Rust writes it: `127.0.0.1:PORT`.
    endpoint: str

    async def listen(self, trust: TrustPolicy = trust_everyone) -> SecureChannelListener:
        return await self.node.serve_secure_channels("listener", self.ours, trust=trust)


@pytest.fixture
async def scene(current_program: Path) -> AsyncIterator[Scene]:
    async with _open_scene(current_program) as scene:
        yield scene


@asynccontextmanager
async def _open_scene(program: Path) -> AsyncIterator[Scene]:
    async with open_peers(program) as peers, open_node("tcp") as node:
        echoer = Echoer()
        await node.start_worker("echoer", echoer.work, allow=from_anywhere)
        at = await node.listen("tcp:127.0.0.1:0")
        yield Scene(node, await Identity.create(node.vault), echoer, peers, str(at).removeprefix("tcp:"))


class OnlyOne:
    """The policy that trusts one peer, which is named after the listener was opened: a Rust peer makes its identity when
    it starts.
    """

    def __init__(self) -> None:
        self._named = trio.Event()
        self._policy: TrustPolicy = trust_everyone

    def name(self, identifier: str) -> None:
        self._policy = trust_only(identifier)
        self._named.set()

    async def __call__(self, peer: Peer) -> bool:
        await self._named.wait()
        return await self._policy(peer)


# -- a Rust initiator --------------------------------------------------------------------------------------------------


@CURVES
async def test_a_rust_initiator_receives_every_echo_from_us(scene: Scene, curve: tuple[str, ...]) -> None:
    with trio.fail_after(STALL_TIMEOUT):
        trust = OnlyOne()
        listener = await scene.listen(trust)
        initiator = await scene.peers.start(
            "initiate", scene.endpoint, "--count", str(COUNT), "--trust", str(scene.ours.identifier), "--linger", *curve
        )
        (identifier,) = await reports(initiator, "identity")
        trust.name(identifier)
        await reports(initiator, "established")
        assert await reports(initiator, "echoed") == [str(COUNT)]
        assert len(scene.echoer.messages) == COUNT
        assert {"I" + (message.origin.identifier or b"").hex() for message in scene.echoer.messages} == {identifier}
        # It closes the channel, and so does our side then.
        for channel in list(listener.channels):
            await channel.closed.wait()
        assert not listener.channels
        await initiator.close_input()
        assert await initiator.end() == 0, initiator.complaints
        assert not +scene.node.counters


async def test_a_rust_initiator_receives_every_echo_over_plain_tcp(scene: Scene) -> None:
    with trio.fail_after(STALL_TIMEOUT):
        initiator = await scene.peers.start("initiate", scene.endpoint, "--plain", "--count", str(COUNT))
        await reports(initiator, "identity")
        assert await reports(initiator, "echoed") == [str(COUNT)]
        assert await initiator.end() == 0, initiator.complaints
        assert {message.origin.identifier for message in scene.echoer.messages} == {None}


async def test_a_refused_rust_initiator_gets_no_answer(scene: Scene) -> None:
    with trio.fail_after(STALL_TIMEOUT):
        listener = await scene.listen(trust_only(UNKNOWN))
        initiator = await scene.peers.start("initiate", scene.endpoint, "--timeout", str(REFUSED_SECONDS))
        # Message 3 is the last one: it learns of the refusal by silence only.
        await reports(initiator, "identity", "established")
        assert await initiator.end() == 1
        assert "imeout" in initiator.complaints
        assert not listener.channels
        assert not scene.echoer.messages


async def test_a_rust_initiator_that_refuses_us_opens_nothing(scene: Scene) -> None:
    with trio.fail_after(STALL_TIMEOUT):
        listener = await scene.listen()
        initiator = await scene.peers.start(
            "initiate", scene.endpoint, "--trust", UNKNOWN, "--timeout", str(REFUSED_SECONDS)
        )
        await reports(initiator, "identity")
        assert await initiator.end() == 1
        assert await initiator.rest() == []
        assert not listener.channels
        assert not scene.echoer.messages


async def test_duplicate_frames_of_a_rust_initiator_are_delivered_once(scene: Scene) -> None:
    with trio.fail_after(STALL_TIMEOUT):
        await scene.listen()
        async with open_doubling(scene.endpoint) as doubling:
            initiator = await scene.peers.start("initiate", doubling.endpoint, "--count", "70")
            await reports(initiator, "identity", "established", "echoed")
            assert await initiator.end() == 0, initiator.complaints
            assert doubling.doubled >= 70
        assert len(scene.echoer.messages) == 70
        assert scene.node.counters[DropReason.DECRYPT_FAILED] == 70


# -- a Rust responder --------------------------------------------------------------------------------------------------


@CURVES
async def test_we_receive_every_echo_from_a_rust_responder(scene: Scene, curve: tuple[str, ...]) -> None:
    with trio.fail_after(STALL_TIMEOUT):
        responder = await scene.peers.start("respond", "--trust", str(scene.ours.identifier), *curve)
        endpoint, identifier = await reports(responder, "listening", "identity")
        channel = await scene.node.open_secure_channel(
            Route(f"tcp:{endpoint}", "listener"), scene.ours, trust=trust_only(identifier)
        )
        assert str(channel.peer.identifier) == identifier
        for text in texts(COUNT):
            echo = await scene.node.ask(Route(channel, "echoer"), text)
            assert echo.text == text
            assert echo.origin.identifier == channel.peer.identifier.value
            assert await reports(responder, "received") == [str(len(text.encode()))]
        assert not +scene.node.counters


async def test_we_receive_every_echo_from_a_rust_responder_over_plain_tcp(scene: Scene) -> None:
    with trio.fail_after(STALL_TIMEOUT):
        responder = await scene.peers.start("respond")
        (endpoint, _) = await reports(responder, "listening", "identity")
        for text in texts(COUNT):
            assert (await scene.node.ask(Route(f"tcp:{endpoint}", "echoer"), text)).text == text


async def test_unacknowledged_messages_keep_their_order_to_a_rust_responder_and_back(scene: Scene) -> None:
    with trio.fail_after(STALL_TIMEOUT):
        responder = await scene.peers.start("respond")
        endpoint, _ = await reports(responder, "listening", "identity")
        channel = await scene.node.open_secure_channel(
            Route(f"tcp:{endpoint}", "listener"), scene.ours, trust=trust_everyone
        )
        sent = [f"message {n}" for n in range(COUNT)]
        async with scene.node.open_mailbox() as mailbox:
            for text in sent:
                await mailbox.send(Route(channel, "echoer"), text)
            assert [(await mailbox.receive()).text for _ in sent] == sent


async def test_we_refuse_an_untrusted_rust_responder(scene: Scene) -> None:
    with trio.fail_after(STALL_TIMEOUT):
        responder = await scene.peers.start("respond")
        endpoint, identifier = await reports(responder, "listening", "identity")
        with pytest.raises(HandshakeError, match=identifier):
            await scene.node.open_secure_channel(
                Route(f"tcp:{endpoint}", "listener"), scene.ours, trust=trust_only(UNKNOWN)
            )


async def test_a_rust_responder_that_refuses_us_sends_nothing(scene: Scene) -> None:
    with trio.fail_after(STALL_TIMEOUT):
        responder = await scene.peers.start("respond", "--trust", UNKNOWN)
        endpoint, identifier = await reports(responder, "listening", "identity")
        # Message 3 is the last one: we learn of the refusal by silence only.
        channel = await scene.node.open_secure_channel(
            Route(f"tcp:{endpoint}", "listener"), scene.ours, trust=trust_only(identifier)
        )
        with pytest.raises(AnswerTimeout):
            await scene.node.ask(Route(channel, "echoer"), "anybody there?", timeout=REFUSED_SECONDS)
        responder.process.kill()
        assert await responder.rest() == []


async def test_our_duplicate_frames_are_delivered_once_by_a_rust_responder(scene: Scene) -> None:
    with trio.fail_after(STALL_TIMEOUT):
        responder = await scene.peers.start("respond")
        endpoint, identifier = await reports(responder, "listening", "identity")
        async with open_doubling(endpoint) as doubling:
            channel = await scene.node.open_secure_channel(
                Route(f"tcp:{doubling.endpoint}", "listener"), scene.ours, trust=trust_only(identifier)
            )
            for n in range(70):
                assert (await scene.node.ask(Route(channel, "echoer"), "x" * n)).text == "x" * n
            assert doubling.doubled == 70
            assert await reports(responder, *["received"] * 70) == [*map(str, range(70))]
            responder.process.kill()
            assert await responder.rest() == []


async def test_a_channel_that_we_close_leaves_the_rust_responder_and_the_link_in_order(scene: Scene) -> None:
    with trio.fail_after(STALL_TIMEOUT):
        responder = await scene.peers.start("respond")
        endpoint, identifier = await reports(responder, "listening", "identity")
        for n in range(3):
            channel = await scene.node.open_secure_channel(
                Route(f"tcp:{endpoint}", "listener"), scene.ours, trust=trust_only(identifier)
            )
            assert (await scene.node.ask(Route(channel, "echoer"), f"{n}")).text == f"{n}"
            await channel.aclose()
            assert channel.closed.is_set()
        assert not responder.complaints
        assert responder.process.returncode is None


# -- credentials -------------------------------------------------------------------------------------------------------


@attrs.define(eq=False)
class RustAuthority:
    """A Rust authority, which issues credentials."""

    running: Running
    #: Its change history in hex.
    history: str

    @classmethod
    async def start(cls, peers: Peers) -> "RustAuthority":
        running = await peers.start("authority")
        (history,) = await reports(running, "history")
        return cls(running, history)

    async def issue(self, history: str, *attributes: str) -> str:
        await self.running.write(" ".join([history, *attributes]))
        (credential,) = await reports(self.running, "credential")
        return credential


async def present(peer: Running, authority: RustAuthority | Identity, role: str) -> None:
    """Let a Rust peer present a credential with that role."""
    (history,) = await reports(peer, "history")
    if isinstance(authority, RustAuthority):
        credential = await authority.issue(history, f"role={role}", "team=blue")
    else:
        subject = import_history(history).identifier
        credential = authority.issue_credential(subject, {"role": role, "team": "blue"})
    await peer.write(credential)


@pytest.fixture(params=["a Rust authority", "our authority"])
async def authority(request: pytest.FixtureRequest, scene: Scene) -> RustAuthority | Identity:
    if request.param == "our authority":
        return await Identity.create(scene.node.vault, "authority")
    return await RustAuthority.start(scene.peers)


def history_of(authority: RustAuthority | Identity) -> str:
    return authority.history if isinstance(authority, RustAuthority) else authority.export()


@pytest.mark.parametrize("role", ["member", "guest"])
async def test_a_rust_initiator_is_trusted_by_its_credential(
    scene: Scene, authority: RustAuthority | Identity, role: str
) -> None:
    with trio.fail_after(STALL_TIMEOUT):
        listener = await scene.listen(trust_attributes(history_of(authority), {"role": "member"}))
        initiator = await scene.peers.start(
            "initiate", scene.endpoint, "--count", "3", "--present", "--linger", "--timeout", str(REFUSED_SECONDS)
        )
        await present(initiator, authority, role)
        await reports(initiator, "identity", "established")
        if role == "guest":
            assert await initiator.end() == 1
            assert not scene.echoer.messages
            return
        assert await reports(initiator, "echoed") == ["3"]
        for message in scene.echoer.messages:
            assert from_attributes(history_of(authority), {"role": "member", "team": None})(message.origin)
            assert not from_attributes(history_of(authority), {"team": "red"})(message.origin)
            assert not from_attributes(scene.ours.export())(message.origin)
        for channel in listener.channels:
            await channel.closed.wait()
        await initiator.close_input()
        assert await initiator.end() == 0, initiator.complaints


@pytest.mark.parametrize("role", ["member", "guest"])
async def test_a_rust_responder_is_trusted_by_its_credential_and_asks_for_ours(
    scene: Scene, authority: RustAuthority | Identity, role: str
) -> None:
    with trio.fail_after(STALL_TIMEOUT):
        responder = await scene.peers.start(
            "respond", "--present", "--authority", history_of(authority), "--require", "role=member"
        )
        await present(responder, authority, role)
        endpoint, identifier = await reports(responder, "listening", "identity")
        to_listener = Route(f"tcp:{endpoint}", "listener")
        trust = trust_attributes(history_of(authority), {"role": "member"})
        if role == "guest":
            with pytest.raises(HandshakeError, match=identifier):
                await scene.node.open_secure_channel(to_listener, scene.ours, trust=trust)
            return
        channel = await scene.node.open_secure_channel(to_listener, scene.ours, trust=trust)
        assert channel.peer_attributes(history_of(authority)) == {"role": "member", "team": "blue"}
        # Rust's echoer refuses us without the attribute, and takes us as soon as we present it.
        with pytest.raises(AnswerTimeout):
            await scene.node.ask(Route(channel, "echoer"), "hello", timeout=REFUSED_SECONDS)
        for ours in ("guest", "member"):
            if isinstance(authority, RustAuthority):
                credential = await authority.issue(scene.ours.export(), f"role={ours}")
            else:
                credential = authority.issue_credential(scene.ours.identifier, {"role": ours})
            await scene.ours.add_credential(credential)
            await channel.refresh_credentials(scene.ours)
            if ours == "guest":
                with pytest.raises(AnswerTimeout):
                    await scene.node.ask(Route(channel, "echoer"), "hello", timeout=REFUSED_SECONDS)
        assert (await scene.node.ask(Route(channel, "echoer"), "hello")).text == "hello"
        # A new channel presents it in the handshake.
        again = await scene.node.open_secure_channel(to_listener, scene.ours, trust=trust)
        assert (await scene.node.ask(Route(again, "echoer"), "hello")).text == "hello"
