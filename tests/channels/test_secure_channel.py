from collections.abc import Sequence

import attrs
import pytest
import trio
import trio.testing

from tests.support.channel_parties import PROTOCOL_VERSIONS, STALL_TIMEOUT, Handler, open_parties
from tests.support.scripted_hub import Wiretap, changed
from trionode import Address, Identity, Mailbox, Node, Route, SecureChannel, open_node, trust_everyone, trust_only
from trionode.counters import DropReason
from trionode.errors import AnswerTimeout, ConnectionLost, HandshakeError, MessageTooLargeError, UnknownAddressError
from trionode.net.transport import Link
from trionode.protocol.handshake.exchange import Peer
from trionode.protocol.identity.credential import PresentedCredential
from trionode.protocol.identity.signed import DataKind, Signed
from trionode.protocol.rules.access import from_anywhere, from_identities
from trionode.protocol.stream.messages import MAX_RECORD
from trionode.protocol.wire import current_codec
from trionode.protocol.wire.address import local
from trionode.protocol.wire.current_codec import CURRENT
from trionode.protocol.wire.message import Message, Origin
from trionode.routing.byte_budget import HARD_LIMIT
from trionode_loopback import Loopback, LoopbackLink

WAYS = ["loopback", "a hub", "two hubs", "streams"]


# -- over any way ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
async def test_messages_pass_both_ways_with_the_peers_identifier_in_their_origin(
    way: str, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_parties(way) as parties:
        alices, bobs = await parties.open()
        assert (alices.peer.identifier, bobs.peer.identifier) == (parties.bobs.identifier, parties.alices.identifier)
        with trio.fail_after(STALL_TIMEOUT):
            for n in range(100):  # over several changes of the key
                await parties.alice.send(Route(alices, "handler"), b"%d" % n)
                await parties.bob.send(Route(bobs, "handler"), b"%d" % n)
            await parties.bob_handler.until(b"99")
            await parties.alice_handler.until(b"99")
        for handler, peer in (
            (parties.bob_handler, parties.alices.identifier),
            (parties.alice_handler, parties.bobs.identifier),
        ):
            assert handler.payloads == [b"%d" % n for n in range(100)]
            assert {message.origin.identifier for message in handler.messages} == {peer.value}
        answer = await parties.alice.ask(Route(alices, "echoer"), "Grüße")
        assert (answer.text, answer.origin.identifier) == ("Grüße", parties.bobs.identifier.value)
        assert not +parties.alice.counters
        assert not +parties.bob.counters


@pytest.mark.parametrize("protocol_version", PROTOCOL_VERSIONS)
async def test_two_identities_of_one_node_have_a_channel(
    protocol_version: str, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_parties(protocol_version=protocol_version) as parties:
        parties.alice, parties.route = parties.bob, Route("listener")
        parties.alices = await Identity.create(parties.bob.vault, "alice")
        initiators, responders = await parties.open()
        assert initiators.peer.identifier == parties.bobs_identifier
        await parties.bob.send(Route(responders, "handler"), b"hello")
        with trio.fail_after(STALL_TIMEOUT):
            await parties.bob_handler.until(b"hello")
        assert not initiators.closed.is_set()
        await initiators.aclose()
        assert protocol_version == "classic" or responders.closed.is_set()


async def test_messages_pass_both_ways_over_tcp() -> None:
    async with open_parties("tcp") as parties:
        alices, bobs = await parties.open(trust=trust_only(parties.bobs.identifier))
        with trio.fail_after(5):
            for n in range(1000):
                await parties.alice.send(Route(alices, "handler"), b"%d" % n)
                await parties.bob.send(Route(bobs, "handler"), b"%d" % n)
            await parties.bob_handler.until(b"999")
            await parties.alice_handler.until(b"999")
            await alices.aclose()
            await bobs.closed.wait()
        assert parties.bob_handler.payloads == parties.alice_handler.payloads == [b"%d" % n for n in range(1000)]


async def test_a_channel_in_a_channel_knows_the_innermost_peer(autojump_clock: trio.testing.MockClock) -> None:
    async with open_parties("a hub") as parties:
        carol = await Identity.create(parties.bob.vault, "carol")
        await parties.bob.serve_secure_channels("inner", carol, trust=trust_only(parties.alices.identifier))
        outer, _ = await parties.open()
        inner = await parties.alice.open_secure_channel(
            Route(outer, "inner"), parties.alices, trust=trust_only(carol.identifier)
        )
        innermost = await parties.alice.open_secure_channel(
            Route(inner, "inner"), parties.alices, trust=trust_only(carol.identifier)
        )
        for channel, peer in ((inner, carol), (innermost, carol), (outer, parties.bobs)):
            answer = await parties.alice.ask(Route(channel, "echoer"), b"x")
            assert answer.origin.identifier == peer.identifier.value
        # What ends below ends what is above it.
        await outer.aclose()
        assert inner.closed.is_set()
        assert innermost.closed.is_set()


# -- trust -------------------------------------------------------------------------------------------------------------


async def test_an_async_callable_decides_with_the_proven_peer(autojump_clock: trio.testing.MockClock) -> None:
    asked: list[Peer] = []

    async def ask_somebody(peer: Peer) -> bool:
        asked.append(peer)
        await trio.sleep(3)
        return True

    async with open_parties(trust=ask_somebody) as parties:
        await parties.open(trust=ask_somebody)
        assert [peer.identifier for peer in asked] == [parties.bobs.identifier, parties.alices.identifier]
        assert trio.current_time() > 0


async def test_an_initiator_that_refuses_names_the_identity_of_its_peer_threat_13(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_parties() as parties:
        before = set(parties.alice._router._table)
        with pytest.raises(HandshakeError, match=str(parties.bobs.identifier)):
            await parties.alice.open_secure_channel(
                parties.route, parties.alices, trust=trust_only(parties.alices.identifier)
            )
        # Only the link is new: no channel stays, and the ephemeral key is forgotten.
        assert len(parties.alice._router._table) == len(before) + 1
        assert len(parties.alice.vault.keys()) == 2
        assert not parties.listener.channels


async def test_a_responder_that_refuses_sends_nothing_threat_25(autojump_clock: trio.testing.MockClock) -> None:
    async def refuse(_peer: Peer) -> bool:
        return False

    async with open_parties(trust=refuse) as parties:
        # Message 3 is the last one, so the initiator learns of the refusal by silence only.
        channel = await parties.alice.open_secure_channel(parties.route, parties.alices, trust=trust_everyone)
        with pytest.raises(AnswerTimeout):
            await parties.alice.ask(Route(channel, "echoer"), b"x", timeout=10)
        assert not parties.listener.channels
        assert not parties.listener._pending
        assert not channel.closed.is_set()
        assert not +parties.alice.counters  # not even a message that does not decrypt
        assert not parties.bob_handler.messages


async def test_an_initiator_begins_again_after_5_10_and_20_seconds(autojump_clock: trio.testing.MockClock) -> None:
    async with open_node(Loopback()) as node:
        begun: list[float] = []

        async def silent(mailbox: Mailbox) -> None:
            async for message in mailbox:
                assert len(message.payload) == 32
                begun.append(trio.current_time())

        await node.start_worker("listener", silent)
        identity = await Identity.create(node.vault)
        start = trio.current_time()
        keys, entries = len(node.vault._keys), len(node._router._table)  # type: ignore[attr-defined]
        with pytest.raises(AnswerTimeout, match="listener"):
            await node.open_secure_channel(Route("listener"), identity, trust=trust_everyone, timeout=60)
        assert [time - start for time in begun] == [0, 5, 15, 35, 55]
        assert trio.current_time() - start == 60
        assert (len(node.vault._keys), len(node._router._table)) == (keys, entries)  # type: ignore[attr-defined]


async def test_a_late_answer_to_an_earlier_handshake_counts(autojump_clock: trio.testing.MockClock) -> None:
    tap = Wiretap(Loopback())
    answers: list[bytes] = []

    def hold_one(frame: bytes) -> Sequence[bytes]:
        # The first answer arrives when the second handshake has begun, and the second never does.
        answers.append(frame)
        return [answers[0]] if len(answers) == 2 else [] if len(answers) == 1 else [frame]

    tap.connected = hold_one
    async with open_parties("a hub", tap=tap) as parties:
        await parties.open()
        assert len(answers) > 2


async def test_a_link_lost_during_the_handshake_raises_connection_lost(autojump_clock: trio.testing.MockClock) -> None:
    network = Loopback()
    async with open_node(network) as alice, open_node(network) as bob:

        async def hang_up(mailbox: Mailbox) -> None:
            await mailbox.receive()
            await bob.aclose_links()

        identity = await Identity.create(alice.vault)
        at = await bob.listen("loopback:bob")
        await bob.start_worker("listener", hang_up, allow=from_anywhere)
        with pytest.raises(ConnectionLost):
            await alice.open_secure_channel(Route(at, "listener"), identity, trust=trust_everyone)


async def test_a_link_lost_while_the_initiator_decides_raises_connection_lost(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_parties() as parties:

        async def lose_the_link(_peer: Peer) -> bool:
            await parties.bob.aclose_links()
            await trio.sleep(1)
            return True

        entries = len(parties.alice._router._table)
        with pytest.raises(ConnectionLost):
            await parties.alice.open_secure_channel(parties.route, parties.alices, trust=lose_the_link)
        assert len(parties.alice._router._table) == entries


async def test_cancelled_no_channel_stays(autojump_clock: trio.testing.MockClock) -> None:
    async def never(_peer: Peer) -> bool:
        await trio.sleep_forever()
        raise AssertionError

    async with open_parties() as parties:
        with trio.move_on_after(1):
            await parties.alice.open_secure_channel(parties.route, parties.alices, trust=never)
        assert not parties.alice._router._close_callbacks
        keys = parties.alice.vault._keys  # type: ignore[attr-defined]
        assert len(keys) == 2


async def test_access_rules_ask_for_the_identifier_threat_22(autojump_clock: trio.testing.MockClock) -> None:
    async with open_parties() as parties:
        only_alice, only_carol, forbidden = Handler(), Handler(), Handler()
        carol = await Identity.create(parties.alice.vault, "carol")
        bob = parties.bob
        await bob.start_worker("for_alice", only_alice.work, allow=from_identities(parties.alices.identifier.value))
        await bob.start_worker("for_carol", only_carol.work, allow=from_identities(carol.identifier.value))
        await bob.start_worker("for_bob", forbidden.work, allow=lambda origin: origin.is_local)
        alices, bobs = await parties.open()
        carols = await parties.alice.open_secure_channel(parties.route, carol, trust=trust_everyone)
        with trio.fail_after(STALL_TIMEOUT):
            for channel, name in ((alices, b"alice"), (carols, b"carol")):
                for worker in ("for_alice", "for_carol", "for_bob", str(bobs.address)):
                    route = Route(channel, Address.parse(worker) if "#" in worker else worker)
                    await parties.alice.send(route, name)
                await parties.alice.send(Route(channel, "handler"), name)
            await parties.bob_handler.until_count(2)
            await trio.testing.wait_all_tasks_blocked()
        assert (only_alice.payloads, only_carol.payloads, forbidden.payloads) == ([b"alice"], [b"carol"], [])
        # The worker of this node alone, the other's worker, and the encryptor: three each.
        assert bob.counters[DropReason.ACCESS_DENIED] == 6


# -- the end -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("side", ["Alice", "Bob"])
async def test_closing_either_side_ends_both_and_later_sends_raise(
    way: str, side: str, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_parties(way) as parties:
        alices, bobs = await parties.open()
        with trio.fail_after(STALL_TIMEOUT):
            await (alices if side == "Alice" else bobs).aclose()
            await alices.closed.wait()
            await bobs.closed.wait()
            await alices.aclose()
            await bobs.aclose()
        for node, channel in ((parties.alice, alices), (parties.bob, bobs)):
            with pytest.raises(UnknownAddressError):
                await node.send(Route(channel, "handler"), b"late")
            for address in (channel._hops.encryptor, channel._hops.decryptor):
                assert address not in node._router
        assert not parties.listener.channels
        assert (await parties.open())[0].peer == alices.peer


async def test_an_initiators_channel_ends_when_its_link_is_lost(autojump_clock: trio.testing.MockClock) -> None:
    async with open_parties() as parties:
        alices, bobs = await parties.open()
        with trio.fail_after(STALL_TIMEOUT):
            await parties.bob.aclose_links()
            await alices.closed.wait()
        with pytest.raises(UnknownAddressError):
            await parties.alice.send(Route(alices, "handler"), b"late")
        # Bob's side waits for Alice to come by another link, but not for ever.
        assert not bobs.closed.is_set()
        with pytest.raises(UnknownAddressError):
            await parties.bob.send(Route(bobs, "handler"), b"late")
        with trio.fail_after(200):
            await bobs.closed.wait()
        assert not parties.listener.channels


async def test_a_peer_that_sends_and_goes_does_not_end_the_node_that_answers_threat_26(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_parties() as parties:
        alices, _ = await parties.open()
        answered = trio.Event()
        gone = trio.Event()

        async def slow(mailbox: Mailbox) -> None:
            message = await mailbox.receive()
            await gone.wait()
            await mailbox.reply(message, b"too late")
            mailbox.reply_nowait(message, b"too late")
            answered.set()

        await parties.bob.start_worker("slow", slow)
        with trio.fail_after(STALL_TIMEOUT):
            async with parties.alice.open_mailbox() as mailbox:
                await mailbox.send(Route(alices, "slow"), b"x")
            await parties.alice.aclose_links()
            await alices.closed.wait()
            await trio.testing.wait_all_tasks_blocked()
            gone.set()
            await answered.wait()
        assert parties.bob.counters[DropReason.REPLY_PATH_GONE] == 2


async def test_a_thousand_channels_leave_nothing_behind_threat_18(autojump_clock: trio.testing.MockClock) -> None:
    async with open_parties() as parties:
        await (await parties.open())[0].aclose()
        nodes = (parties.alice, parties.bob)
        await trio.testing.wait_all_tasks_blocked()
        entries = [set(node._router._table) for node in nodes]
        keys = [len(node.vault._keys) for node in nodes]  # type: ignore[attr-defined]
        for n in range(1000):
            channel = await parties.alice.open_secure_channel(parties.route, parties.alices, trust=trust_everyone)
            if n % 2:
                await channel.aclose()
            else:
                with trio.fail_after(STALL_TIMEOUT):
                    await parties.alice.ask(Route(channel, "echoer"), b"x")
                (bobs,) = parties.listener.channels
                await bobs.aclose()
                await channel.closed.wait()
        await trio.testing.wait_all_tasks_blocked()
        assert [set(node._router._table) for node in nodes] == entries
        assert [len(node.vault._keys) for node in nodes] == keys  # type: ignore[attr-defined]
        assert not parties.listener.channels
        assert not parties.listener._pending


async def test_ended_channels_leave_no_close_callbacks_threat_18(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_parties() as parties:
        for _ in range(10):
            await (await parties.open())[0].aclose()
        assert not parties.alice._router._close_callbacks


# -- credentials -------------------------------------------------------------------------------------------------------


def some_credentials(identity: Identity, count: int = 1) -> Sequence[PresentedCredential]:
    """What has the form of credentials: a channel keeps them unverified."""
    key = identity._signing_key
    signed = [Signed.make(DataKind.CREDENTIAL, n, identity.vault, key) for n in range(count)]
    return [PresentedCredential(each, each) for each in signed]


def hold(identity: Identity, credentials: Sequence[PresentedCredential]) -> None:
    """Let an identity present these credentials, which `add_credential` would refuse."""
    identity._stored = attrs.evolve(identity._stored, credentials=tuple(each.encode() for each in credentials))


async def test_refreshed_credentials_of_the_same_identity_are_taken(autojump_clock: trio.testing.MockClock) -> None:
    async with open_parties() as parties:
        alices, bobs = await parties.open()
        assert bobs.peer.credentials == ()
        fresh = some_credentials(parties.alices, 16)
        with trio.fail_after(STALL_TIMEOUT):
            hold(parties.alices, fresh)
            await alices.refresh_credentials(parties.alices)
            await parties.alice.send(Route(alices, "handler"), b"after")
            await parties.bob_handler.until(b"after")
            assert bobs.peer.credentials == tuple(fresh)
            # The history may have gone on meanwhile, and may not go back.
            hold(parties.alices, ())
            await parties.alices.rotate()
            hold(parties.alices, newer := some_credentials(parties.alices))
            await alices.refresh_credentials(parties.alices)
            await parties.alice.send(Route(alices, "handler"), b"again")
            await parties.bob_handler.until(b"again")
        # The older ones stay: one that verifies is not replaced by one that does not.
        assert bobs.peer.credentials == (*fresh[1:], *newer)
        assert bobs.refused == 0


async def test_refreshed_credentials_that_are_not_the_peers_are_refused_threat_15(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_parties() as parties:
        old = parties.alices.history
        await parties.alices.rotate()
        alices, bobs = await parties.open()
        other = await Identity.create(parties.alice.vault, "other")
        good = tuple(each.encode() for each in some_credentials(parties.alices))
        too_many = tuple(each.encode() for each in some_credentials(parties.alices, 17))
        history = parties.alices.history.encoded
        bad = [
            (other.history.encoded, good),
            (old.encoded, good),  # rolled back
            (b"\x80", good),
            (history[:-1] + bytes([history[-1] ^ 1]), good),
            (history, (b"\x80",)),
            (history, too_many),
        ]
        with trio.fail_after(STALL_TIMEOUT):
            for each in bad:
                sealed = current_codec.encode_refresh(current_codec.RefreshCredentials(*each))
                alices._hops._send(sealed, (alices._hops.encryptor,))
            await parties.alice.send(Route(alices, "handler"), b"after")
            await parties.bob_handler.until(b"after")
        assert bobs.refused == len(bad)
        assert bobs.peer.identifier == parties.alices.identifier
        assert bobs.peer.credentials == ()


# -- sizes -------------------------------------------------------------------------------------------------------------


def nonces(channel: SecureChannel) -> int:
    return channel._hops.cipher.session._next


async def longest(node: Node, channel: SecureChannel, limit: int) -> int:
    """Find the longest payload that a channel accepts for `handler`, by bisection. A longer one must use no nonce."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        before = nonces(channel)
        try:
            await node.send(Route(channel, "handler"), bytes(middle))
        except MessageTooLargeError:
            assert nonces(channel) == before
            high = middle - 1
        else:
            assert nonces(channel) == before + 1
            low = middle
    return low


class SmallFrames(Loopback):
    """A network whose links carry little in the direction in which they were made."""

    async def connect(self, peer: str) -> Link:
        link = await super().connect(peer)
        assert isinstance(link, LoopbackLink)
        link.max_frame = 5000
        return link


@pytest.mark.parametrize("protocol_version", PROTOCOL_VERSIONS)
@pytest.mark.parametrize(("way", "limit"), [("streams", MAX_RECORD), ("small frames", 5000), ("in a channel", 5000)])
async def test_a_message_too_large_for_its_path_raises_before_it_is_encrypted(
    way: str, limit: int, protocol_version: str, autojump_clock: trio.testing.MockClock
) -> None:
    tap = None if way == "streams" else SmallFrames()
    over = "streams" if way == "streams" else "loopback"
    async with open_parties(over, tap=tap, protocol_version=protocol_version) as parties:
        channel, bobs = await parties.open()
        if way == "in a channel":
            channel = await parties.alice.open_secure_channel(
                Route(channel, "listener"), parties.alices, trust=trust_everyone, protocol_version=protocol_version
            )
            await parties.alice.ask(Route(channel, "echoer"), b"")
            (bobs,) = parties.listener.channels - {bobs}
        with trio.fail_after(STALL_TIMEOUT):
            size = await longest(parties.alice, channel, limit + 1000)
            assert limit - 400 < size < limit
            await parties.alice.send(Route(channel, "handler"), b"the next one")
            await parties.bob_handler.until(b"the next one")
        # Whatever was sent came, and nothing was missed on the way: no nonce is lost.
        assert max(map(len, parties.bob_handler.payloads)) == size
        assert bobs.refused == 0
        assert nonces(channel) == bobs._hops.cipher.session._window.highest + 1


async def test_a_message_beyond_the_largest_frame_raises_over_a_link(autojump_clock: trio.testing.MockClock) -> None:
    async with open_parties() as parties:
        channel, _ = await parties.open()
        before = nonces(channel)
        with pytest.raises(MessageTooLargeError):
            await parties.alice.send(Route(channel, "handler"), bytes(current_codec.MAX_FRAME))
        assert nonces(channel) == before
        assert (await parties.alice.ask(Route(channel, "echoer"), b"next")).payload == b"next"


async def test_a_message_that_does_not_decrypt_gets_no_answer_threat_25(autojump_clock: trio.testing.MockClock) -> None:
    async with open_parties() as parties:
        _, bobs = await parties.open()
        answers: list[Message] = []
        parties.bob._router.register(local("spy"), answers.append, allow=from_anywhere)
        junk = Message((bobs._hops.decryptor,), (local("spy"),), bytes(40), Origin(link=local("somewhere")))
        parties.bob._router.deliver(junk)
        assert bobs.refused == 1
        assert answers == []


# -- a new link --------------------------------------------------------------------------------------------------------


async def test_the_responder_follows_the_initiator_to_a_new_link(autojump_clock: trio.testing.MockClock) -> None:
    tap = Wiretap(Loopback())
    async with open_parties("a hub", tap=tap) as parties:
        alices, bobs = await parties.open()
        assert parties.hub is not None
        (first,) = parties.hub._links._connected.values()
        await parties.bob.listen("loopback:also_bob")
        await parties.hub.connect("loopback:also_bob", name="another way")

        def detour(frame: bytes) -> Sequence[bytes]:
            onward, _, _ = CURRENT.decode(frame)
            return [changed(frame, onward=(local("another way"), *onward[1:]))]

        forged: list[bytes] = []

        def forged_detour(frame: bytes) -> Sequence[bytes]:
            onward, _, payload = CURRENT.decode(frame)
            forged.append(changed(frame, onward=(local("another way"), *onward[1:]), payload=payload[:-1]))
            return [forged[-1], frame]

        # What does not verify moves nothing (threat 20).
        way = bobs._hops.route
        tap.accepted = forged_detour
        assert (await parties.alice.ask(Route(alices, "echoer"), b"1")).payload == b"1"
        assert (bobs._hops.route, bobs.refused) == (way, 1)
        tap.accepted = detour
        with trio.fail_after(STALL_TIMEOUT):
            assert (await parties.alice.ask(Route(alices, "echoer"), b"2")).payload == b"2"
            assert bobs._hops.route != way
            # The old way may go now: Bob's own messages take the new one.
            await first.aclose()
            await trio.testing.wait_all_tasks_blocked()
            await parties.bob.send(Route(bobs, "handler"), b"3")
            await parties.alice_handler.until(b"3")
        assert bobs.is_reachable


async def test_a_late_message_by_another_way_moves_no_route_threat_7(autojump_clock: trio.testing.MockClock) -> None:
    tap = Wiretap(Loopback())
    async with open_parties("a hub", tap=tap) as parties:
        alices, bobs = await parties.open()
        assert parties.hub is not None
        await parties.bob.listen("loopback:also_bob")
        await parties.hub.connect("loopback:also_bob", name="another way")
        held: list[bytes] = []

        def overtake(frame: bytes) -> Sequence[bytes]:
            """Hold the first message; let the second pass, and then the first by another way."""
            if not held:
                held.append(frame)
                return []
            onward, _, _ = CURRENT.decode(held[0])
            return [frame, changed(held[0], onward=(local("another way"), *onward[1:]))]

        way = bobs._hops.route
        tap.accepted = overtake
        with trio.fail_after(STALL_TIMEOUT):
            await parties.alice.send(Route(alices, "handler"), b"1")
            await parties.alice.send(Route(alices, "handler"), b"2")
            await parties.bob_handler.until(b"1")
        assert bobs._hops.route == way


# -- data behind message 3 ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("way", "size", "count"),
    [
        ("loopback", 10, 2000),
        ("loopback", 60_000, 20),
        ("loopback", 1_000_000, 3),
        ("streams", 10, 500),
        ("streams", 60_000, 20),
    ],
)
@pytest.mark.parametrize("seconds", [0.0, 3.0])
async def test_data_right_behind_message_3_arrive_in_order_once_the_policy_has_decided(
    way: str, size: int, count: int, seconds: float, autojump_clock: trio.testing.MockClock
) -> None:
    async def slow(_peer: Peer) -> bool:
        await trio.sleep(seconds)
        return True

    async with open_parties(way, trust=slow) as parties:
        channel = await parties.alice.open_secure_channel(parties.route, parties.alices, trust=trust_everyone)
        sent = [b"%d" % n + bytes(size) for n in range(count)]
        with trio.fail_after(STALL_TIMEOUT):
            for payload in sent:
                await parties.alice.send(Route(channel, "handler"), payload)
            await parties.bob_handler.until_count(count)
        assert parties.bob_handler.payloads == sent
        assert not +parties.bob.counters


async def test_data_right_behind_message_3_fill_no_memory_while_the_policy_decides_threat_18(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def slow(_peer: Peer) -> bool:
        await trio.sleep(30)
        return False

    async with open_parties(trust=slow) as parties:
        channel = await parties.alice.open_secure_channel(parties.route, parties.alices, trust=trust_everyone)
        with trio.fail_after(STALL_TIMEOUT):
            for _ in range(200):
                await parties.alice.send(Route(channel, "handler"), bytes(100_000))
                held = [pending.held for pending in parties.listener._pending.values()]
                assert sum(each.size for each in held if each is not None) <= HARD_LIMIT
            await trio.sleep(60)
        assert not parties.bob_handler.messages
        assert not parties.listener._pending


async def test_nothing_is_delivered_behind_a_close_that_came_while_the_policy_decided(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def slow(_peer: Peer) -> bool:
        await trio.sleep(3)
        return True

    async with open_parties(trust=slow) as parties:
        channel = await parties.alice.open_secure_channel(parties.route, parties.alices, trust=trust_everyone)
        entries = len(parties.bob._router._table)
        await parties.alice.send(Route(channel, "handler"), b"before")
        # A peer that does not keep to the rules goes on behind its close.
        channel._hops._send(current_codec.CLOSE_PLAINTEXT, (channel._hops.encryptor,))
        await parties.alice.send(Route(channel, "handler"), b"after")
        await trio.sleep(10)
        assert parties.bob_handler.payloads == [b"before"]
        assert not parties.listener.channels
        assert not parties.listener._pending
        assert len(parties.bob._router._table) == entries - 1


# -- backpressure ---------------------------------------------------------------------------------------------------------


async def test_a_channel_that_feeds_a_hung_worker_lets_the_links_other_flows_go_on_threat_18(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_parties() as parties:
        channel, bobs = await parties.open()
        hung = trio.Event()

        async def hang(mailbox: Mailbox) -> None:
            await hung.wait()
            async for _ in mailbox:
                pass

        await parties.bob.start_worker("hung", hang)
        with trio.fail_after(STALL_TIMEOUT):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(flood, parties.alice, Route(channel, "hung"), 5000)
                await trio.testing.wait_all_tasks_blocked()
                begun = trio.current_time()
                for n in range(20):
                    body = b"%d" % n
                    assert (await parties.alice.ask(Route(channel, "echoer"), body)).payload == body
                # The stall timeout of the worker, once: not once a message.
                assert trio.current_time() - begun <= 10
        assert parties.bob.counters[DropReason.MAILBOX_STALLED] > 0
        # Dropped at the mailbox, where the channel has opened it already: nothing between encryptor and decryptor was.
        assert bobs._hops.cipher.session._window.highest + 1 == nonces(channel)
        assert bobs.refused == 0


async def flood(node: Node, route: Route, count: int) -> None:
    for _ in range(count):
        await node.send(route, bytes(1000))
