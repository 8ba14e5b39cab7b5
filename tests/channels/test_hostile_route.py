from collections.abc import Sequence
from contextlib import suppress
from random import Random

import attrs
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.channel_parties import (
    PROTOCOL_VERSIONS,
    STALL_TIMEOUT,
    Handler,
    Parties,
    known_as,
    open_parties,
    serve,
)
from tests.support.scripted_hub import FAULTS, Fault, Tamper, Wiretap, changed, flipped, honest, mixed, nothing
from trionode import Node, Route, SecureChannel, trust_everyone, trust_only
from trionode.counters import DropReason
from trionode.errors import AnswerTimeout, HandshakeError
from trionode.protocol.wire.current_codec import CURRENT
from trionode_loopback import Loopback

PAYLOADS = [b"message %d" % n for n in range(1000)]


@attrs.frozen(eq=False)
class Direction:
    """One direction of a channel: its sender, its reader, and the side that refuses."""

    sender: Node
    sends_by: SecureChannel
    handler: Handler
    reader: SecureChannel

    async def send(self, payload: bytes) -> None:
        await self.sender.send(Route(self.sends_by, "handler"), payload)


def directions(parties: Parties, alices: SecureChannel, bobs: SecureChannel) -> dict[str, Direction]:
    return {
        "to Bob": Direction(parties.alice, alices, parties.bob_handler, bobs),
        "to Alice": Direction(parties.bob, bobs, parties.alice_handler, alices),
    }


def set_script(tap: Wiretap, direction: str, tamper: Tamper) -> None:
    if direction == "to Bob":
        tap.accepted = tamper
    else:
        tap.connected = tamper


class Counted:
    """A script that tells when it has seen so many messages."""

    def __init__(self, tamper: Tamper, messages: int) -> None:
        self.done = trio.Event()
        self._tamper = tamper
        self._left = messages

    def __call__(self, message: bytes) -> Sequence[bytes]:
        self._left -= 1
        if not self._left:
            self.done.set()
        return self._tamper(message)


@pytest.mark.parametrize("protocol_version", PROTOCOL_VERSIONS)
@pytest.mark.parametrize("direction", ["to Bob", "to Alice"])
@pytest.mark.parametrize("fault", FAULTS, ids=str)
async def test_no_invalid_message_reaches_a_handler_and_the_next_valid_message_arrives(
    fault: Fault, direction: str, protocol_version: str, autojump_clock: trio.testing.MockClock
) -> None:
    tap = Wiretap(Loopback())
    async with open_parties("a hub", tap=tap, protocol_version=protocol_version) as parties:
        alices, bobs = await parties.open()
        way = directions(parties, alices, bobs)[direction]
        sent = PAYLOADS[: fault.messages]
        with trio.fail_after(STALL_TIMEOUT):
            await way.send(b"before")
            await way.handler.until(b"before")
            script = Counted(fault.start(Random(1)), fault.messages)
            set_script(tap, direction, script)
            for payload in sent:
                await way.send(payload)
            await script.done.wait()
            set_script(tap, direction, honest)
            await way.send(b"after")
            await way.handler.until(b"after")
            # Both directions go on.
            assert (await parties.alice.ask(Route(alices, "echoer"), b"still there")).payload == b"still there"
            assert (await parties.bob.ask(Route(bobs, "echoer"), b"still there")).payload == b"still there"
        assert sorted(way.handler.payloads[1:-1]) == (sorted(sent) if fault.arrives else [])
        assert bool(way.reader.refused) is fault.refuses
        assert (
            way.reader.refused
            == (parties.alice, parties.bob)[direction == "to Bob"].counters[DropReason.DECRYPT_FAILED]
        )
        assert not alices.closed.is_set()
        assert not bobs.closed.is_set()


@pytest.mark.parametrize("protocol_version", PROTOCOL_VERSIONS)
async def test_a_splice_between_two_channels_is_refused_threat_10(
    protocol_version: str, autojump_clock: trio.testing.MockClock
) -> None:
    tap = Wiretap(Loopback())
    async with open_parties("a hub", tap=tap, protocol_version=protocol_version) as parties:
        one, bobs_one = await parties.open()
        other, bobs_other = await parties.open()
        swapped = {
            bobs_one._hops.decryptor: bobs_other._hops.decryptor,
            bobs_other._hops.decryptor: bobs_one._hops.decryptor,
        }

        def splice(frame: bytes) -> Sequence[bytes]:
            (to_bob, decryptor), _, _ = CURRENT.decode(frame)
            return [changed(frame, onward=(to_bob, swapped[decryptor])), frame]

        tap.accepted = splice
        with trio.fail_after(STALL_TIMEOUT):
            for n, channel in enumerate([one, other] * 20):
                await parties.alice.send(Route(channel, "handler"), PAYLOADS[n])
            await parties.bob_handler.until_count(40)
        assert parties.bob_handler.payloads == PAYLOADS[:40]
        assert (bobs_one.refused, bobs_other.refused) == (20, 20)


@pytest.mark.parametrize("protocol_version", PROTOCOL_VERSIONS)
async def test_a_message_sent_back_to_its_sender_is_refused_threat_12(
    protocol_version: str, autojump_clock: trio.testing.MockClock
) -> None:
    tap = Wiretap(Loopback())
    async with open_parties("a hub", tap=tap, protocol_version=protocol_version) as parties:
        alices, bobs = await parties.open()
        blobs: list[bytes] = []

        def keep(frame: bytes) -> Sequence[bytes]:
            blobs.append(CURRENT.decode(frame)[2])
            return [frame]

        def reflect(frame: bytes) -> Sequence[bytes]:
            return [*(changed(frame, payload=blob) for blob in blobs), frame]

        tap.accepted, tap.connected = keep, reflect
        with trio.fail_after(STALL_TIMEOUT):
            for payload in PAYLOADS[:40]:
                await parties.alice.send(Route(alices, "handler"), payload)
            await parties.bob_handler.until_count(40)
            await parties.bob.send(Route(bobs, "handler"), b"mine")
            await parties.alice_handler.until(b"mine")
        assert parties.alice_handler.payloads == [b"mine"]
        assert alices.refused == 40


@pytest.mark.parametrize("protocol_version", PROTOCOL_VERSIONS)
async def test_messages_of_an_earlier_channel_are_refused_by_a_later_one_threat_6(
    protocol_version: str,
    autojump_clock: trio.testing.MockClock,
) -> None:
    tap = Wiretap(Loopback())
    async with open_parties("a hub", tap=tap, protocol_version=protocol_version) as parties:
        earlier, bobs_earlier = await parties.open()
        kept: list[bytes] = []

        def keep(frame: bytes) -> Sequence[bytes]:
            kept.append(frame)
            return [frame]

        tap.accepted = keep
        with trio.fail_after(STALL_TIMEOUT):
            for payload in PAYLOADS[:40]:
                await parties.alice.send(Route(earlier, "handler"), payload)
            await parties.bob_handler.until_count(40)
            tap.accepted = honest
            await earlier.aclose()
            await trio.testing.wait_all_tasks_blocked()
            await bobs_earlier.aclose()  # a classic peer is not notified
            later, bobs_later = await parties.open()

            def replay(frame: bytes) -> Sequence[bytes]:
                onward, _, _ = CURRENT.decode(frame)
                return [*kept, *(changed(old, onward=onward) for old in kept), frame]

            tap.accepted = replay
            await parties.alice.send(Route(later, "handler"), b"new")
            await parties.bob_handler.until(b"new")
        assert parties.bob_handler.payloads == [*PAYLOADS[:40], b"new"]
        assert bobs_later.refused == 40
        assert parties.bob.counters[DropReason.UNKNOWN_ADDRESS] == 40


@pytest.mark.parametrize(
    ("protocol_version", "number"),
    [*(("current", number) for number in (1, 2, 3)), *(("classic", number) for number in (1, 2, 3, 4, 5))],
)
async def test_a_changed_handshake_message_moves_no_state_threat_3(
    protocol_version: str, number: int, autojump_clock: trio.testing.MockClock
) -> None:
    # The changed one comes first, fifty times over, then the right one: the same handshake succeeds.
    tap = Wiretap(Loopback())
    seen = 0
    random = Random(number)

    def bad_then_good(frame: bytes) -> Sequence[bytes]:
        nonlocal seen
        seen += 1
        if seen != (number + 1) // 2:
            return [frame]
        bad = [flipped(random)(frame)[0] for _ in range(20 if number == 1 else 50)]
        if number == 1:
            # Message 1 of classic carries an address behind its 33 bytes of Noise, and a copy with another one is a
            # message 1 too.
            bad = [each for each in bad if CURRENT.decode(each)[2][33:] == CURRENT.decode(frame)[2][33:]]
        return [*bad, frame]

    async with open_parties("a hub", tap=tap, protocol_version=protocol_version) as parties:
        set_script(tap, "to Bob" if number % 2 else "to Alice", bad_then_good)
        begun = trio.current_time()
        alices, bobs = await parties.open()
        assert trio.current_time() == begun
        assert (alices.refused, bobs.refused) == (0, 0)
        assert len(parties.listener.channels) == 1


async def test_a_first_message_of_classic_with_another_address_costs_one_retry_threat_3(
    autojump_clock: trio.testing.MockClock,
) -> None:
    tap = Wiretap(Loopback())
    seen = 0

    def another_address_first(frame: bytes) -> Sequence[bytes]:
        nonlocal seen
        seen += 1
        payload = CURRENT.decode(frame)[2]
        return [changed(frame, payload=payload[:-1] + bytes([payload[-1] ^ 1])), frame] if seen == 1 else [frame]

    async with open_parties("a hub", tap=tap, protocol_version="classic") as parties:
        # The transcript of the handshake does not cover the address, but what comes to the wrong one inside the channel
        # ends that handshake.
        tap.accepted = another_address_first
        begun = trio.current_time()
        await parties.open()
        assert trio.current_time() - begun == 5


@pytest.mark.parametrize(
    ("protocol_version", "number"), [("current", 1), ("current", 2), *(("classic", number) for number in (1, 2, 3, 4))]
)
async def test_a_lost_handshake_message_costs_one_retry_threat_8(
    protocol_version: str, number: int, autojump_clock: trio.testing.MockClock
) -> None:
    tap = Wiretap(Loopback())
    seen = 0

    def lose_it(frame: bytes) -> Sequence[bytes]:
        nonlocal seen
        seen += 1
        return [] if seen == (number + 1) // 2 else [frame]

    async with open_parties("a hub", tap=tap, protocol_version=protocol_version) as parties:
        set_script(tap, "to Bob" if number % 2 else "to Alice", lose_it)
        begun = trio.current_time()
        await parties.open()
        assert trio.current_time() - begun == 5


@pytest.mark.parametrize("protocol_version", PROTOCOL_VERSIONS)
async def test_replayed_handshake_messages_make_no_second_channel_threat_6(
    protocol_version: str,
    autojump_clock: trio.testing.MockClock,
) -> None:
    tap = Wiretap(Loopback())
    kept: list[bytes] = []

    def keep(frame: bytes) -> Sequence[bytes]:
        kept.append(frame)
        return [frame, frame]

    tap.accepted = keep
    async with open_parties("a hub", tap=tap, protocol_version=protocol_version) as parties:
        alices, bobs = await parties.open()
        tap.accepted = lambda frame: [*kept, frame]
        with trio.fail_after(STALL_TIMEOUT):
            await parties.alice.send(Route(alices, "handler"), b"after")
            await parties.bob_handler.until(b"after")
        assert parties.listener.channels == {bobs}
        assert parties.bob_handler.payloads == [b"after"]


@pytest.mark.parametrize("protocol_version", PROTOCOL_VERSIONS)
async def test_a_man_in_the_middle_gets_no_application_byte_threat_13(
    protocol_version: str,
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_parties("a hub", protocol_version=protocol_version) as parties:
        assert parties.hub is not None
        mallory, overheard = await serve(parties.hub)
        await parties.hub.serve_secure_channels(
            "listener", mallory, trust=trust_everyone, protocol_versions=PROTOCOL_VERSIONS
        )
        # The hub answers handshakes that were meant for Bob, and would hand them on in a channel of its own.
        to_the_hub = Route(*list(parties.route)[:1], "listener")
        with pytest.raises(HandshakeError, match=str(await known_as(mallory, protocol_version))):
            await parties.alice.open_secure_channel(
                to_the_hub, parties.alices, trust=trust_only(parties.bobs_identifier), protocol_version=protocol_version
            )
        assert overheard.payloads == []
        await parties.open(trust=trust_only(parties.bobs_identifier))


@pytest.mark.parametrize("protocol_version", PROTOCOL_VERSIONS)
@pytest.mark.parametrize("way", ["a hub", "two hubs"])
async def test_no_hop_ever_holds_a_payload_or_an_inner_address_threat_1(
    way: str, protocol_version: str, autojump_clock: trio.testing.MockClock
) -> None:
    tap = Wiretap(Loopback())
    async with open_parties(way, tap=tap, protocol_version=protocol_version) as parties:
        alices, bobs = await parties.open()
        secret, inner = b"the quick brown fox", b"an inner address"
        await parties.bob.start_worker(inner.decode(), Handler().work)
        with trio.fail_after(STALL_TIMEOUT):
            for size in (0, 1, 1000, 60_000):
                body = secret + bytes(size)
                await parties.alice.send(Route(alices, inner.decode()), body)
                assert (await parties.alice.ask(Route(alices, "echoer"), body)).payload == body
                await parties.bob.send(Route(bobs, "handler"), body)
            await parties.alice_handler.until_count(4)
        held = b"\0".join(tap.held)
        assert len(tap.held) > 30
        for plain in (
            secret,
            inner,
            b"echoer",
            b"handler",
            alices.peer.history.encoded,
            bobs.peer.history.encoded,
            parties.alices_identifier.value,
            parties.bobs_identifier.value,
        ):
            assert plain not in held


# -- any mixture of faults ---------------------------------------------------------------------------------------------


async def converse_over_a_hostile_route(seed: int, protocol_version: str) -> None:
    random = Random(seed)
    tap = Wiretap(Loopback())
    async with open_parties("a hub", tap=tap, protocol_version=protocol_version) as parties:
        # Also the handshake goes over the hostile route; what it makes may be no channel on Bob's side.
        tap.accepted, tap.connected = mixed(random), mixed(random)
        with suppress(AnswerTimeout):
            await parties.alice.open_secure_channel(
                parties.route,
                parties.alices,
                trust=trust_only(parties.bobs_identifier),
                protocol_version=protocol_version,
            )
        tap.accepted, tap.connected = honest, honest
        with trio.fail_after(STALL_TIMEOUT):
            alices, bobs = await parties.open()
            ways = list(directions(parties, alices, bobs).values())
            tap.accepted, tap.connected = mixed(random), mixed(random)
            for payload in PAYLOADS[:60]:
                for way in ways:
                    await way.send(payload)
                if random.random() < 0.2:
                    await trio.testing.wait_all_tasks_blocked()
            await trio.testing.wait_all_tasks_blocked()
            tap.accepted, tap.connected = honest, honest
            for way in ways:
                await way.send(b"after")
                await way.handler.until(b"after")
        for way in ways:
            received = way.handler.payloads
            assert len(received) == len(set(received))
            assert set(received) <= {*PAYLOADS[:60], b"after"}
            assert not way.reader.closed.is_set()


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32), protocol_version=st.sampled_from(PROTOCOL_VERSIONS))
def test_with_any_route_handlers_get_only_sent_messages_and_each_once(seed: int, protocol_version: str) -> None:
    # Threats 3 to 8 in any mixture, the handshake included.
    trio.run(converse_over_a_hostile_route, seed, protocol_version, clock=trio.testing.MockClock(autojump_threshold=0))


async def test_a_route_that_only_drops_raises_answer_timeout_threat_8(autojump_clock: trio.testing.MockClock) -> None:
    tap = Wiretap(Loopback())
    tap.accepted = nothing
    async with open_parties("a hub", tap=tap) as parties:
        with pytest.raises(AnswerTimeout):
            await parties.alice.open_secure_channel(parties.route, parties.alices, trust=trust_everyone, timeout=30)
