import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
import trio.testing

from tests.support.channel_parties import PROTOCOL_VERSIONS, STALL_TIMEOUT, Parties, open_parties
from tests.support.scripted_hub import Wiretap, changed, honest
from trionode import Identifier, Identity, Mailbox, Message, Route, open_node, trust_everyone, trust_only
from trionode.channel.listener import HANDSHAKE_TIMEOUT, PENDING_PER_SOURCE, SWEEP_SECONDS
from trionode.counters import DropReason
from trionode.errors import AnswerTimeout, ConfigError, HandshakeError, LocalError, RemoteError
from trionode.protocol.handshake.classic_exchange import ClassicExchange
from trionode.protocol.handshake.exchange import Peer
from trionode.protocol.handshake.noise import Role
from trionode.protocol.rules.access import from_anywhere
from trionode.protocol.wire import bare
from trionode.protocol.wire.address import local
from trionode.protocol.wire.classic_codec import CLASSIC
from trionode.protocol.wire.current_codec import CURRENT
from trionode.routing.router import random_address
from trionode_loopback import Loopback

WAYS = ["loopback", "a hub", "two hubs", "streams"]


# -- over any way ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
async def test_messages_pass_both_ways_with_the_peers_identifier_in_their_origin(
    way: str, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_parties(way, protocol_version="classic") as parties:
        alices, bobs = await parties.open()
        assert (alices.peer.identifier, bobs.peer.identifier) == (parties.bobs_identifier, parties.alices_identifier)
        assert str(alices.peer.identifier).startswith("P")
        with trio.fail_after(STALL_TIMEOUT):
            for n in range(100):
                await parties.alice.send(Route(alices, "handler"), b"%d" % n)
                await parties.bob.send(Route(bobs, "handler"), b"%d" % n)
            await parties.bob_handler.until(b"99")
            await parties.alice_handler.until(b"99")
        for handler, peer in (
            (parties.bob_handler, parties.alices_identifier),
            (parties.alice_handler, parties.bobs_identifier),
        ):
            assert handler.payloads == [b"%d" % n for n in range(100)]
            assert {message.origin.identifier for message in handler.messages} == {peer.value}
        assert (await parties.alice.ask(Route(alices, "echoer"), "Grüße")).text == "Grüße"
        assert not +parties.alice.counters
        assert not +parties.bob.counters


async def test_messages_pass_both_ways_over_tcp() -> None:
    async with open_parties("tcp", protocol_version="classic") as parties:
        alices, bobs = await parties.open(trust=trust_only(parties.bobs_identifier))
        with trio.fail_after(5):
            for n in range(500):
                await parties.alice.send(Route(alices, "handler"), b"%d" % n)
                await parties.bob.send(Route(bobs, "handler"), b"%d" % n)
            await parties.bob_handler.until(b"499")
            await parties.alice_handler.until(b"499")


@pytest.mark.parametrize(("outer", "inner"), [("current", "classic"), ("classic", "current"), ("classic", "classic")])
async def test_channel_in_a_channel_can_have_another_protocol_version(
    outer: str, inner: str, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_parties("a hub", protocol_version=outer) as parties:
        carol = await Identity.create(parties.bob.vault, "carol")
        await parties.bob.serve_secure_channels("inner", carol, trust=trust_everyone, protocol_versions=[inner])
        channel, _ = await parties.open()
        within = await parties.alice.open_secure_channel(
            Route(channel, "inner"), parties.alices, trust=trust_everyone, protocol_version=inner
        )
        answer = await parties.alice.ask(Route(within, "echoer"), b"x")
        assert answer.origin.identifier == within.peer.identifier.value != channel.peer.identifier.value


# -- protocol versions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("speaks", "answers"), [("classic", "current"), ("current", "classic")])
async def test_listener_is_silent_to_other_protocol_versions_threat_11(
    speaks: str, answers: str, autojump_clock: trio.testing.MockClock
) -> None:
    tap = Wiretap(Loopback())
    async with open_parties("a hub", tap=tap, protocol_version=speaks, protocol_versions=[answers]) as parties:
        with pytest.raises(AnswerTimeout, match=speaks):
            await parties.alice.open_secure_channel(
                parties.route, parties.alices, trust=trust_everyone, timeout=30, protocol_version=speaks
            )
        assert parties.bob.counters == {DropReason.HANDSHAKE_REFUSED: 3}
        assert not parties.listener._pending
        # Three first messages, on their way to Bob, are all that the hub has seen: not one byte from him.
        assert len({CURRENT.decode(frame)[2] for frame in tap.held}) == 3
        assert {CURRENT.decode(frame)[0][-1] for frame in tap.held} == {local("listener")}


async def test_one_listener_answers_both_protocol_versions(autojump_clock: trio.testing.MockClock) -> None:
    async with open_parties("a hub", protocol_versions=PROTOCOL_VERSIONS) as parties:
        channels = [
            await parties.alice.open_secure_channel(
                parties.route, parties.alices, trust=trust_everyone, protocol_version=protocol_version
            )
            for protocol_version in PROTOCOL_VERSIONS * 3
        ]
        for channel, protocol_version in zip(channels, PROTOCOL_VERSIONS * 3, strict=True):
            assert channel.peer.identifier.classic is (protocol_version == "classic")
            answer = await parties.alice.ask(Route(channel, "echoer"), b"x")
            assert answer.origin.identifier == channel.peer.identifier.value
        assert len(parties.listener.channels) == 6
        assert len({side.peer.identifier for side in parties.listener.channels}) == 2


async def test_an_unknown_protocol_version_is_a_config_error() -> None:
    async with open_node() as node:
        identity = await Identity.create(node.vault)
        with pytest.raises(ConfigError, match="'modern'"):
            await node.open_secure_channel(Route("x"), identity, trust=trust_everyone, protocol_version="modern")
        with pytest.raises(ConfigError, match="'modern'"):
            await node.serve_secure_channels(
                "x", identity, trust=trust_everyone, protocol_versions=["classic", "modern"]
            )
        with pytest.raises(ConfigError, match="this is none"):
            await node.serve_secure_channels("x", identity, trust=trust_everyone, protocol_versions=[])
        assert local("x") not in node._router


async def test_each_side_is_warned_once_a_channel(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_parties(protocol_versions=PROTOCOL_VERSIONS) as parties:
        await parties.open()
        assert not [record for record in caplog.records if record.levelname == "WARNING"]
        parties.protocol_version = "classic"
        await parties.open()
        warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert len(warnings) == 2
        assert all("replayed" in text and "keys never change" in text for text in warnings)


# -- trust -------------------------------------------------------------------------------------------------------------


async def test_an_initiator_that_refuses_names_the_identity_of_its_peer_threat_13(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_parties(protocol_version="classic") as parties:
        entries = len(parties.alice._router._table)
        # The current classic of Bob is not his classic one.
        with pytest.raises(HandshakeError, match=str(parties.bobs_identifier)):
            await parties.open(trust=trust_only(parties.bobs.identifier))
        assert len(parties.alice._router._table) == entries + 1  # the link
        assert not parties.listener.channels
        await parties.open(trust=trust_only(str(parties.bobs_identifier)))


async def test_a_responder_that_refuses_sends_nothing_threat_25(autojump_clock: trio.testing.MockClock) -> None:
    async with open_parties(
        protocol_version="classic", trust=trust_only(Identifier(bytes(32), classic=True))
    ) as parties:
        channel = await parties.alice.open_secure_channel(
            parties.route, parties.alices, trust=trust_everyone, protocol_version="classic"
        )
        with pytest.raises(AnswerTimeout):
            await parties.alice.ask(Route(channel, "echoer"), b"x", timeout=10)
        assert not parties.listener.channels
        assert not parties.listener._pending
        assert not parties.bob_handler.messages


async def test_our_own_identity_is_refused_threat_12(autojump_clock: trio.testing.MockClock) -> None:
    async with open_parties(protocol_version="classic") as parties:
        with pytest.raises(AnswerTimeout):
            await parties.bob.open_secure_channel(
                Route("listener"), parties.bobs, trust=trust_everyone, timeout=30, protocol_version="classic"
            )
        assert not parties.listener.channels
        assert parties.bob.counters == {DropReason.HANDSHAKE_REFUSED: 3}


async def test_an_initiator_that_times_out_leaves_nothing_behind(autojump_clock: trio.testing.MockClock) -> None:
    async with open_node(Loopback()) as node:
        begun: list[float] = []

        async def silent(mailbox: Mailbox) -> None:
            async for message in mailbox:
                assert len(message.payload) == 69
                begun.append(trio.current_time())

        await node.start_worker("listener", silent)
        identity = await Identity.create(node.vault)
        await identity.classic()
        start = trio.current_time()
        keys, entries = len(node.vault._keys), len(node._router._table)  # type: ignore[attr-defined]
        with pytest.raises(AnswerTimeout):
            await node.open_secure_channel(
                Route("listener"), identity, trust=trust_everyone, timeout=60, protocol_version="classic"
            )
        assert [at - start for at in begun] == [0, 5, 15, 35, 55]
        assert (len(node.vault._keys), len(node._router._table)) == (keys, entries)  # type: ignore[attr-defined]


# -- routes that end at the channel, and the end of the channel --------------------------------------------------------


async def test_message_that_ends_at_the_channel_is_not_sent(autojump_clock: trio.testing.MockClock) -> None:
    async with open_parties(protocol_version="classic") as parties:
        alices, bobs = await parties.open()
        before = alices._hops.cipher.session._next, bobs._hops.cipher.session._next
        with trio.fail_after(STALL_TIMEOUT):
            await parties.alice.send(Route(alices), b"for no address")
            # A node's own messages have no return route: the echo would have no address.
            await parties.alice.send(Route(alices, "echoer"), b"no answer wanted")
            await parties.alice.send(Route(alices, "handler"), b"after")
            await parties.bob_handler.until(b"after")
            await trio.testing.wait_all_tasks_blocked()
        assert parties.alice.counters == {DropReason.ENDS_AT_CHANNEL: 1}
        assert parties.bob.counters == {DropReason.ENDS_AT_CHANNEL: 1}
        assert (alices._hops.cipher.session._next, bobs._hops.cipher.session._next) == (before[0] + 2, before[1])
        assert bobs.refused == 0


async def test_received_message_that_ends_at_the_channel_is_dropped_and_counted(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_parties(protocol_version="classic") as parties:
        alices, bobs = await parties.open()
        plaintext = alices._hops.cipher.encode((local("handler"),), (), b"")
        (bobs_self, handler), _, _ = CLASSIC.decode(plaintext)
        with trio.fail_after(STALL_TIMEOUT):
            for onward in ((bobs_self,), (), (handler,), (handler, bobs_self), (bobs._hops.encryptor, handler)):
                wrong = alices._hops.cipher.encrypt(CLASSIC.encode(onward, (local("x"),), b"wrong"))
                parties.alice._router.deliver(Message(alices._hops.route, (), wrong))
            await parties.alice.send(Route(alices, "handler"), b"after")
            await parties.bob_handler.until(b"after")
        assert parties.bob_handler.payloads == [b"after"]
        assert bobs.refused == 5
        assert parties.bob.counters == {DropReason.DECRYPT_FAILED: 5}


async def test_a_repeated_last_message_of_the_handshake_is_dropped(autojump_clock: trio.testing.MockClock) -> None:
    tap = Wiretap(Loopback())
    tap.accepted = lambda frame: [frame, frame]
    tap.connected = lambda frame: [frame, frame]
    async with open_parties("a hub", tap=tap, protocol_version="classic") as parties:
        alices, bobs = await parties.open()
        tap.accepted = tap.connected = honest
        # Two message 1 make two message 2, of which one counts; from then on all that came twice is refused once.
        assert (await parties.alice.ask(Route(alices, "echoer"), b"x")).payload == b"x"
        assert parties.listener.channels == {bobs}
        assert alices.refused > 0
        assert bobs.refused > 0


async def test_closing_ends_this_side_alone_and_there_is_nothing_to_refresh(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_parties(protocol_version="classic") as parties:
        alices, bobs = await parties.open()
        before = alices._hops.cipher.session._next
        with pytest.raises(LocalError, match="protocol_version='current'"):
            await alices.refresh_credentials(parties.alices)
        await alices.aclose()
        await alices.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert alices._hops.cipher.session._next == before
        assert alices.closed.is_set()
        assert not bobs.closed.is_set()
        # What still comes is for an address that is gone; Bob's side ends with its route, at the next sweep.
        await parties.bob.send(Route(bobs, "handler"), b"late")
        await parties.alice.aclose_links()
        with trio.fail_after(3 * SWEEP_SECONDS):
            await bobs.closed.wait()
        assert parties.alice.counters == {DropReason.UNKNOWN_ADDRESS: 1}


async def test_route_of_a_classic_responder_stays_threat_20(autojump_clock: trio.testing.MockClock) -> None:
    tap = Wiretap(Loopback())
    async with open_parties("a hub", tap=tap, protocol_version="classic") as parties:
        alices, bobs = await parties.open()
        assert parties.hub is not None
        await parties.bob.listen("loopback:also_bob")
        await parties.hub.connect("loopback:also_bob", name="another way")
        way = bobs._hops.route

        def detour(frame: bytes) -> Sequence[bytes]:
            onward, _, _ = CURRENT.decode(frame)
            return [changed(frame, onward=(local("another way"), *onward[1:]))]

        tap.accepted = detour
        assert (await parties.alice.ask(Route(alices, "echoer"), b"x")).payload == b"x"
        assert bobs._hops.route == way


# -- behind and before message 5 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0.0, 3.0])
async def test_data_right_behind_message_5_arrive_in_order_once_the_policy_has_decided(
    seconds: float, autojump_clock: trio.testing.MockClock
) -> None:
    async def slow(_peer: Peer) -> bool:
        await trio.sleep(seconds)
        return True

    async with open_parties(trust=slow, protocol_version="classic") as parties:
        channel = await parties.alice.open_secure_channel(
            parties.route, parties.alices, trust=trust_everyone, protocol_version="classic"
        )
        sent = [b"%d" % n for n in range(2000)]
        with trio.fail_after(STALL_TIMEOUT):
            for payload in sent:
                await parties.alice.send(Route(channel, "handler"), payload)
            await parties.bob_handler.until_count(2000)
        assert parties.bob_handler.payloads == sent
        assert not +parties.bob.counters


async def test_data_before_message_5_are_lost_and_the_channel_opens_all_the_same(
    autojump_clock: trio.testing.MockClock,
) -> None:
    tap = Wiretap(Loopback())
    waiting: list[bytes] = []
    seen = 0

    def fifth_after_sixth(frame: bytes) -> Sequence[bytes]:
        nonlocal seen
        seen += 1
        if seen == 3:  # messages 1, 3 and 5 are the initiator's
            waiting.append(frame)
            return []
        return [frame, *waiting] if seen == 4 else [frame]

    tap.accepted = fifth_after_sixth
    async with open_parties("a hub", tap=tap, protocol_version="classic") as parties:
        channel = await parties.alice.open_secure_channel(
            parties.route, parties.alices, trust=trust_everyone, protocol_version="classic"
        )
        with trio.fail_after(STALL_TIMEOUT):
            await parties.alice.send(Route(channel, "handler"), b"early")
            await parties.alice.send(Route(channel, "handler"), b"later")
            await parties.bob_handler.until(b"later")
        assert parties.bob_handler.payloads == [b"later"]
        assert parties.bob.counters == {DropReason.HANDSHAKE_REFUSED: 1}


# -- half-open handshakes ----------------------------------------------------------------------------------------------


@attrs.define(eq=False)
class RawPeer:
    """A peer whose handshake messages the test sends one by one."""

    mailbox: Mailbox
    to_listener: Route
    identity: Identity

    async def half_open(self) -> tuple[ClassicExchange, Message]:
        """Start a handshake up to message 2; return the unfinished exchange and message 2."""
        classic = await self.identity.classic()
        exchange = ClassicExchange.create(
            Role.INITIATOR, classic.vault, classic.signing_key, classic.history, random_address()
        )
        await self.mailbox.send(self.to_listener, exchange.begin())
        with trio.fail_after(STALL_TIMEOUT):
            return exchange, await self.mailbox.receive()

    async def agreed(self) -> tuple[ClassicExchange, Route]:
        """Run a handshake up to message 4; return the exchange and the route for message 5."""
        exchange, second = await self.half_open()
        third = exchange.receive(second.payload, int(time.time()))
        assert third is not None
        await self.mailbox.send(second.return_route, third)
        with trio.fail_after(STALL_TIMEOUT):
            exchange.receive((await self.mailbox.receive()).payload, int(time.time()))
        return exchange, second.return_route


@asynccontextmanager
async def open_raw_peer(parties: Parties) -> AsyncIterator[RawPeer]:
    to_listener = Route(*(await parties.alice.connect("loopback:bob"),), "listener")
    async with parties.alice.open_mailbox(allow=from_anywhere) as mailbox:
        yield RawPeer(mailbox, to_listener, parties.alices)


@pytest.mark.parametrize("far", ["half_open", "agreed"])
async def test_half_open_handshakes_are_bounded_and_forgotten_threat_17(
    far: str, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_parties(protocol_version="classic") as parties, open_raw_peer(parties) as raw_peer:
        keys = len(parties.bob.vault._keys)  # type: ignore[attr-defined]
        for _ in range(PENDING_PER_SOURCE + 5):
            await getattr(raw_peer, far)()
        assert len(parties.listener._pending) == PENDING_PER_SOURCE
        await trio.sleep(HANDSHAKE_TIMEOUT + SWEEP_SECONDS + 1)
        assert not parties.listener._pending
        assert len(parties.bob.vault._keys) == keys  # type: ignore[attr-defined]
        assert len(parties.bob._router._table) == 4  # two workers, the listener and the link


async def test_a_bad_identity_ends_its_handshake_at_once_and_no_other_threat_25(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_parties(protocol_version="classic") as parties, open_raw_peer(parties) as raw_peer:
        bad, bad_route = await raw_peer.agreed()
        good, good_route = await raw_peer.agreed()
        assert bad._session is not None
        await raw_peer.mailbox.send(bad_route, bare.data(bad._session.encrypt(b"no identity")))
        await raw_peer.mailbox.send(good_route, b"junk")
        await trio.testing.wait_all_tasks_blocked()
        assert parties.bob.counters == {DropReason.HANDSHAKE_REFUSED: 2}
        assert len(parties.listener._pending) == 1
        last = good.accept()
        assert last is not None
        await raw_peer.mailbox.send(good_route, last)
        await trio.testing.wait_all_tasks_blocked()
        assert len(parties.listener.channels) == 1
        assert not parties.listener._pending


async def test_handshake_messages_without_a_return_route_are_dropped(autojump_clock: trio.testing.MockClock) -> None:
    async with open_parties(protocol_version="classic") as parties, open_raw_peer(parties) as raw_peer:
        exchange, second = await raw_peer.half_open()
        third = exchange.receive(second.payload, int(time.time()))
        assert third is not None
        (pending,) = parties.listener._pending.values()
        parties.bob._router.deliver(Message((pending.address,), (), third))
        assert parties.bob.counters == {DropReason.HANDSHAKE_REFUSED: 1}
        await raw_peer.mailbox.send(second.return_route, third)
        with trio.fail_after(STALL_TIMEOUT):
            exchange.receive((await raw_peer.mailbox.receive()).payload, int(time.time()))
        assert exchange.peer is not None


async def test_a_vault_without_the_key_refuses_and_does_not_end_the_node(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_parties(protocol_version="classic") as parties:
        classic = await parties.bobs.classic()
        parties.bob.vault.forget(classic.signing_key)
        with pytest.raises(RemoteError):
            await parties.alice.open_secure_channel(
                parties.route, parties.alices, trust=trust_everyone, timeout=4, protocol_version="classic"
            )
        assert parties.bob.counters == {DropReason.HANDSHAKE_REFUSED: 1}
