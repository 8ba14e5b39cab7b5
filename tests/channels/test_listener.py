import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from random import Random

import attrs
import pytest
import trio
import trio.testing

from tests.support.channel_parties import STALL_TIMEOUT, Parties, open_parties
from tests.support.scripted_hub import Wiretap, changed, honest
from trionode import Identity, Mailbox, Message, Node, Route, open_node, trust_everyone, trust_only
from trionode.channel import listener
from trionode.channel.listener import HANDSHAKE_TIMEOUT, PENDING_PER_SOURCE, SWEEP_SECONDS
from trionode.counters import DropReason
from trionode.errors import AnswerTimeout, HandshakeError, VaultError
from trionode.identity.stored import StoredIdentity
from trionode.protocol.handshake.current_exchange import CurrentExchange
from trionode.protocol.handshake.exchange import Peer
from trionode.protocol.handshake.noise import Role
from trionode.protocol.identity.identity import ChangeHistory, create_history, rotate
from trionode.protocol.identity.keys import KeyKind
from trionode.protocol.wire.current_codec import CURRENT
from trionode.protocol.wire.message import Origin
from trionode.routing.byte_budget import HARD_LIMIT
from trionode_loopback import Loopback

#: Seconds after which an abandoned handshake is forgotten: its timeout and the time to the next sweep.
FORGOTTEN = HANDSHAKE_TIMEOUT + SWEEP_SECONDS + 1


@attrs.define(eq=False)
class RawPeer:
    """A peer whose handshake messages the test sends one by one."""

    mailbox: Mailbox
    to_listener: Route
    identity: Identity

    def begin(self) -> tuple[CurrentExchange, bytes]:
        identity = self.identity
        exchange = CurrentExchange.create(Role.INITIATOR, identity.vault, identity.purpose_key, identity.payload())
        return exchange, exchange.begin()

    async def first(self, message: bytes) -> None:
        await self.mailbox.send(self.to_listener, message)

    async def answer(self) -> Message:
        with trio.fail_after(STALL_TIMEOUT):
            return await self.mailbox.receive()

    async def half_open(self) -> tuple[CurrentExchange, Message]:
        """Start a handshake; return the unfinished exchange and the answer to its first message."""
        exchange, first = self.begin()
        await self.first(first)
        answer = await self.answer()
        exchange.receive(answer.payload, int(time.time()))
        return exchange, answer

    async def third(self, exchange: CurrentExchange, answer: Message) -> None:
        third = exchange.accept()
        assert third is not None
        await self.mailbox.send(answer.return_route, third)


async def decides_late(_peer: Peer) -> bool:
    await trio.sleep(30)
    return False


@asynccontextmanager
async def open_raw_peer(parties: Parties, node: Node | None = None) -> AsyncIterator[RawPeer]:
    node = parties.alice if node is None else node
    to_listener = Route(*(await node.connect("loopback:bob"),), "listener")
    async with node.open_mailbox() as mailbox:
        yield RawPeer(mailbox, to_listener, parties.alices)


# -- half-open handshakes ----------------------------------------------------------------------------------------------


async def test_the_oldest_half_open_handshake_of_one_source_is_dropped_threat_17(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_parties() as parties, open_raw_peer(parties) as raw_peer:
        begun = [await raw_peer.half_open() for _ in range(PENDING_PER_SOURCE + 5)]
        assert len(parties.listener._pending) == PENDING_PER_SOURCE
        addresses = [answer.back[-1] for _, answer in begun]
        assert list(parties.listener._pending) == addresses[5:]
        assert [address in parties.bob._router for address in addresses] == [False] * 5 + [True] * PENDING_PER_SOURCE
        await raw_peer.third(*begun[4])
        await raw_peer.third(*begun[5])
        await trio.testing.wait_all_tasks_blocked()
        assert len(parties.listener.channels) == 1
        assert parties.bob.counters == {DropReason.UNKNOWN_ADDRESS: 1}


async def test_the_oldest_of_all_half_open_handshakes_is_dropped_threat_17(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "PENDING_TOTAL", 50)
    network = Loopback()
    async with open_parties(tap=network) as parties, open_node(network) as carol, open_node(network) as dave:
        sources = [(node, 24) for node in (parties.alice, carol, dave)]
        for node, count in sources:
            async with open_raw_peer(parties, node) as raw_peer:
                for _ in range(count):
                    await raw_peer.half_open()
        pending = list(parties.listener._pending.values())
        assert len(pending) == 50
        assert sorted(Counter(each.source for each in pending).values()) == [2, 24, 24]


async def test_an_abandoned_handshake_is_forgotten_threat_17(autojump_clock: trio.testing.MockClock) -> None:
    async with open_parties() as parties, open_raw_peer(parties) as raw_peer:
        keys = len(parties.bob.vault._keys)  # type: ignore[attr-defined]
        exchange, answer = await raw_peer.half_open()
        assert len(parties.listener._pending) == 1
        await trio.sleep(FORGOTTEN)
        assert not parties.listener._pending
        assert answer.back[-1] not in parties.bob._router
        assert len(parties.bob.vault._keys) == keys  # type: ignore[attr-defined]
        await raw_peer.third(exchange, answer)
        await trio.testing.wait_all_tasks_blocked()
        assert not parties.listener.channels


async def test_a_policy_that_takes_too_long_is_cancelled_and_refuses(autojump_clock: trio.testing.MockClock) -> None:
    async def never(_peer: Peer) -> bool:
        await trio.sleep_forever()
        raise AssertionError

    async with open_parties(trust=never) as parties:
        channel = await parties.alice.open_secure_channel(parties.route, parties.alices, trust=trust_everyone)
        await parties.alice.send(Route(channel, "handler"), b"x")
        await trio.sleep(HANDSHAKE_TIMEOUT - 1)
        assert len(parties.listener._pending) == 1
        await trio.sleep(2)
        assert not parties.listener._pending
        assert not parties.listener.channels
        assert not parties.bob_handler.messages


async def test_peers_that_await_the_trust_decision_are_bounded_and_not_dropped_threat_17(
    autojump_clock: trio.testing.MockClock,
) -> None:
    decide = trio.Event()

    async def slow(_peer: Peer) -> bool:
        await decide.wait()
        return True

    async with open_parties(trust=slow) as parties, open_raw_peer(parties) as raw_peer:
        for _ in range(PENDING_PER_SOURCE):
            await raw_peer.third(*await raw_peer.half_open())
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(10):
            await raw_peer.first(raw_peer.begin()[1])
        await trio.testing.wait_all_tasks_blocked()
        assert len(parties.listener._pending) == PENDING_PER_SOURCE
        assert parties.bob.counters == {DropReason.TOO_MANY_HANDSHAKES: 10}
        decide.set()
        await trio.testing.wait_all_tasks_blocked()
        assert len(parties.listener.channels) == PENDING_PER_SOURCE
        assert not parties.listener._pending


async def test_messages_held_for_the_trust_decision_are_bounded_without_a_wait_threat_18(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_parties(trust=decides_late) as parties, open_raw_peer(parties) as raw_peer:
        await raw_peer.third(*await raw_peer.half_open())
        await trio.testing.wait_all_tasks_blocked()
        (pending,) = parties.listener._pending.values()
        assert pending.held is not None
        size = HARD_LIMIT // 8
        for _ in range(20):  # as a link that drops when full delivers: it never waits
            parties.bob._router.deliver(Message((pending.address,), (), bytes(size), Origin(link=pending.source)))
        assert HARD_LIMIT - size <= pending.held.size <= HARD_LIMIT
        assert parties.bob.counters[DropReason.BEFORE_TRUST_DECISION] > 10


@pytest.mark.parametrize("way", ["a hub", "streams"])
async def test_a_replayed_old_stream_of_first_messages_does_not_block_the_real_one_threat_6(
    way: str, autojump_clock: trio.testing.MockClock
) -> None:
    tap = Wiretap(Loopback())
    old: list[bytes] = []

    def flood(frame: bytes) -> Sequence[bytes]:
        # All at once in front of the first message, and nearly as many as may be half-open in front of each later one.
        burst = [*old[:200], frame]
        old[:] = old[: PENDING_PER_SOURCE - 1]
        return burst

    async with open_parties(way, tap=tap) as parties:
        if way == "streams":
            # They come by Bob's own stream, as its records do.
            async with parties.alice.open_mailbox() as mailbox:
                for _ in range(200):
                    exchange = CurrentExchange.create(
                        Role.INITIATOR, parties.alices.vault, parties.alices.purpose_key, parties.alices.payload()
                    )
                    await mailbox.send(parties.route, exchange.begin())
                channel, _ = await parties.open()
        else:
            identity = parties.alices
            listener = Route("onward", "listener").encoded
            for n in range(200):
                exchange = CurrentExchange.create(
                    Role.INITIATOR, identity.vault, identity.purpose_key, identity.payload()
                )
                old.append(
                    changed(
                        b"\x83\x80\x80\x40",
                        onward=listener,
                        back=Route(f"gone {n}").encoded,
                        payload=exchange.begin(),
                    )
                )
            tap.accepted = flood
            channel, _ = await parties.open()
            tap.accepted = honest
        assert trio.current_time() <= 20
        assert len(parties.listener._pending) <= PENDING_PER_SOURCE
        assert (await parties.alice.ask(Route(channel, "echoer"), b"x")).payload == b"x"
        await trio.sleep(FORGOTTEN)
        assert not parties.listener._pending


# -- messages out of place ---------------------------------------------------------------------------------------------


async def test_junk_instead_of_message_3_is_dropped_and_the_right_one_is_awaited(
    autojump_clock: trio.testing.MockClock,
) -> None:
    random = Random(3)
    async with open_parties() as parties, open_raw_peer(parties) as raw_peer:
        exchange, answer = await raw_peer.half_open()
        other, others_answer = await raw_peer.half_open()
        third, others_third = exchange.accept(), other.accept()
        assert third is not None
        assert others_third is not None
        junk = [
            b"",
            raw_peer.begin()[1],
            answer.payload,
            others_third,
            third[:-1],
            third + b"\0",
            *(random.randbytes(size) for size in (1, 31, 32, 33, 100, 1000)),
            *(third[:at] + bytes([third[at] ^ 1]) + third[at + 1 :] for at in range(0, len(third), 7)),
        ]
        for each in junk:
            await raw_peer.mailbox.send(answer.return_route, each)
        await raw_peer.mailbox.send(answer.return_route, third)
        await trio.testing.wait_all_tasks_blocked()
        assert len(parties.listener.channels) == 1
        assert parties.bob.counters == {DropReason.HANDSHAKE_REFUSED: len(junk)}
        assert list(parties.listener._pending) == [others_answer.back[-1]]


async def test_junk_instead_of_message_1_makes_no_handshake_threat_14(autojump_clock: trio.testing.MockClock) -> None:
    small_order = [bytes(32), b"\1" + bytes(31), b"\xec" + b"\xff" * 30 + b"\x7f"]
    async with open_parties() as parties, open_raw_peer(parties) as raw_peer:
        keys = len(parties.bob.vault._keys)  # type: ignore[attr-defined]
        junk = [b"", b"x", bytes(31), *small_order]
        for each in junk:
            await raw_peer.first(each)
        await trio.testing.wait_all_tasks_blocked()
        assert parties.bob.counters == {DropReason.HANDSHAKE_REFUSED: len(junk)}
        assert not parties.listener._pending
        assert len(parties.bob.vault._keys) == keys  # type: ignore[attr-defined]


async def test_a_first_message_without_a_return_route_makes_no_handshake(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_parties() as parties:
        _, first = RawPeer(None, Route("listener"), parties.alices).begin()  # type: ignore[arg-type]
        await parties.bob.send(Route("listener"), first)
        assert not parties.listener._pending


async def test_our_own_identity_is_refused_at_either_end_threat_12(autojump_clock: trio.testing.MockClock) -> None:
    async with open_parties() as parties:
        with pytest.raises(AnswerTimeout):
            await parties.bob.open_secure_channel(Route("listener"), parties.bobs, trust=trust_everyone, timeout=30)
        assert not parties.listener.channels
        # Three handshakes, at 0, 5 and 15 s, each answered by ourselves, which is no answer.
        assert parties.bob.counters == {DropReason.HANDSHAKE_REFUSED: 3}


async def test_our_own_reflected_handshake_messages_are_refused_threat_12(
    autojump_clock: trio.testing.MockClock,
) -> None:
    tap = Wiretap(Loopback())
    firsts: list[bytes] = []

    def keep(frame: bytes) -> Sequence[bytes]:
        firsts.append(CURRENT.decode(frame)[2])
        return [frame]

    def reflect(frame: bytes) -> Sequence[bytes]:
        # In front of the answer, and addressed as it: what Alice herself has sent.
        return [*(changed(frame, payload=first) for first in firsts), frame]

    tap.accepted, tap.connected = keep, reflect
    async with open_parties("a hub", tap=tap) as parties:
        await parties.open()
        assert parties.alice.counters[DropReason.HANDSHAKE_REFUSED] == 1


# -- known peers ------------------------------------------------------------------------------------------------------


def two_ages(node: Node) -> tuple[Identity, Identity]:
    """The same identity twice: with a history of one change, and of two."""
    vault = node.vault
    first, second, static = (vault.generate(kind) for kind in (KeyKind.ED25519, KeyKind.ED25519, KeyKind.X25519))
    now = int(time.time()) - 10
    old = create_history(vault, first, now)
    new = rotate(old, vault, first, second, now + 5)
    young, grown = (Identity(vault, StoredIdentity("aged", history, static.public)) for history in (old, new))
    return young, grown


async def test_a_history_that_was_rolled_back_is_refused_threat_15(autojump_clock: trio.testing.MockClock) -> None:
    async with open_parties(trust=trust_everyone) as parties:
        young, grown = two_ages(parties.alice)
        for identity in (young, grown, grown):
            channel = await parties.alice.open_secure_channel(parties.route, identity, trust=trust_everyone)
            assert (await parties.alice.ask(Route(channel, "echoer"), b"x")).payload == b"x"
        known = len(parties.listener.channels)
        channel = await parties.alice.open_secure_channel(parties.route, young, trust=trust_everyone)
        with pytest.raises(AnswerTimeout):
            await parties.alice.ask(Route(channel, "echoer"), b"x", timeout=5)
        assert len(parties.listener.channels) == known


async def test_an_initiator_refuses_a_listener_whose_history_was_rolled_back_threat_15(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_parties() as parties:
        young, grown = two_ages(parties.bob)
        await parties.bob.serve_secure_channels("grown", grown, trust=trust_everyone)
        await parties.bob.serve_secure_channels("young", young, trust=trust_everyone)
        at = Route(*list(parties.route)[:-1])
        await parties.alice.open_secure_channel(Route(at, "grown"), parties.alices, trust=trust_only(grown.identifier))
        with pytest.raises(HandshakeError, match=str(young.identifier)):
            await parties.alice.open_secure_channel(Route(at, "young"), parties.alices, trust=trust_everyone)


async def test_the_history_of_a_peer_that_the_policy_refuses_is_not_remembered(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def refuse(_peer: Peer) -> bool:
        return False

    async with open_parties(trust=refuse) as parties:
        young, grown = two_ages(parties.alice)
        await parties.alice.open_secure_channel(parties.route, grown, trust=trust_everyone)
        await trio.testing.wait_all_tasks_blocked()
        await parties.bob.vault.known_peers.check(young.history)  # nothing newer is known


async def test_a_policy_that_raises_ends_the_node(autojump_clock: trio.testing.MockClock) -> None:
    class BrokenPolicyError(Exception):
        pass

    async def broken(_peer: Peer) -> bool:
        raise BrokenPolicyError

    network = Loopback()
    async with open_node(network) as alice:
        identity = await Identity.create(alice.vault)
        with pytest.RaisesGroup(BrokenPolicyError, flatten_subgroups=True):
            async with open_node(network) as bob:
                at = await bob.listen("loopback:bob")
                await bob.serve_secure_channels("listener", await Identity.create(bob.vault), trust=broken)
                await alice.open_secure_channel(Route(at, "listener"), identity, trust=trust_everyone)
                await trio.sleep_forever()
        # The initiator's own raises at its caller, as it is.
        async with open_node(network) as bob:
            at = await bob.listen("loopback:also_bob")
            await bob.serve_secure_channels("listener", await Identity.create(bob.vault), trust=trust_everyone)
            entries = len(alice._router._table)
            with pytest.raises(BrokenPolicyError):
                await alice.open_secure_channel(Route(at, "listener"), identity, trust=broken)
            assert len(alice._router._table) == entries + 1


class LockedKnownPeers:
    """Known peers in a file that another program holds."""

    async def check(self, history: ChangeHistory) -> None:
        raise VaultError("the vault can't be used: database is locked")


async def test_a_vault_that_can_not_be_used_refuses_the_peer_and_does_not_end_the_node(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_parties() as parties:
        known_peers = parties.bobs.vault.known_peers
        vars(parties.bobs.vault)["known_peers"] = LockedKnownPeers()
        channel = await parties.alice.open_secure_channel(parties.route, parties.alices, trust=trust_everyone)
        with pytest.raises(AnswerTimeout):
            await parties.alice.ask(Route(channel, "echoer"), b"x", timeout=5)
        assert "database is locked" in caplog.text
        assert not parties.listener._pending
        vars(parties.bobs.vault)["known_peers"] = known_peers
        await parties.open()


async def test_a_flood_of_first_messages_in_one_read_lets_other_tasks_run_threat_17() -> None:
    async with open_parties() as parties:
        link = await parties.alice.connect("loopback:bob")
        count = 50
        async with parties.alice.open_mailbox() as mailbox:
            for _ in range(count):
                first = CurrentExchange.create(
                    Role.INITIATOR, parties.alices.vault, parties.alices.purpose_key, parties.alices.payload()
                ).begin()
                parties.alice._router.deliver(Message(Route(link, "listener").encoded, (mailbox.encoded,), first))
            turns = 0
            with trio.fail_after(STALL_TIMEOUT):
                while len(mailbox._inbox) < count:
                    turns += 1
                    await trio.lowlevel.checkpoint()
            assert turns >= count


# -- open channels -----------------------------------------------------------------------------------------------------


async def test_a_listener_bounds_its_channels_and_accepts_another_when_one_has_closed_threat_17(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "MAX_CHANNELS", 2)
    async with open_parties() as parties:
        one, bobs_one = await parties.open()
        two, _ = await parties.open()
        third = await parties.alice.open_secure_channel(parties.route, parties.alices, trust=trust_everyone)
        with pytest.raises(AnswerTimeout):
            await parties.alice.ask(Route(third, "echoer"), b"x", timeout=5)
        assert parties.bob.counters[DropReason.TOO_MANY_CHANNELS] == 1
        assert not parties.listener._pending
        await one.aclose()
        with trio.fail_after(STALL_TIMEOUT):
            await bobs_one.closed.wait()
        fourth, _ = await parties.open()
        for channel in (two, fourth):
            assert (await parties.alice.ask(Route(channel, "echoer"), b"x")).payload == b"x"


async def test_closing_a_listener_closes_its_channels_and_notifies_their_peers(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_parties() as parties, open_raw_peer(parties) as raw_peer:
        channels = [(await parties.open())[0] for _ in range(3)]
        await raw_peer.half_open()
        with trio.fail_after(STALL_TIMEOUT):
            await parties.listener.aclose()
            for channel in channels:
                await channel.closed.wait()
        assert not parties.listener.channels
        assert not parties.listener._pending
        assert parties.listener._encoded not in parties.bob._router
        assert len(parties.bob._router._table) == 3  # two workers and the link
