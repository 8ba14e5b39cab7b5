from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from random import Random

import attrs
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.channel_parties import STALL_TIMEOUT, Handler, Parties, open_parties
from tests.support.scripted_hub import (
    FAULTS,
    Fault,
    Reading,
    ScriptedStore,
    Tamper,
    Wiretap,
    answering,
    changed,
    honest,
    mixed,
)
from trionode import Node, Route, SecureChannel, trust_everyone, trust_only, unique
from trionode.errors import AnswerTimeout
from trionode.protocol.stream.messages import (
    CreateResponse,
    ErrorResponse,
    IndexResponse,
    PullResponse,
    PushResponse,
    Record,
    Response,
)
from trionode.protocol.wire.current_codec import CURRENT
from trionode_loopback import Loopback

PAYLOADS = [b"message %d" % n for n in range(1000)]


@attrs.frozen(eq=False)
class Direction:
    """One direction of a channel over streams: the sender, the reader, and the stream's name."""

    sender: Node
    sends_by: SecureChannel
    handler: Handler
    reader: SecureChannel
    stream: str

    async def send(self, payload: bytes) -> None:
        await self.sender.send(Route(self.sends_by, "handler"), payload)


@attrs.frozen(eq=False)
class Conversation:
    """Alice and Bob with a channel over the streams of a scripted hub."""

    parties: Parties
    store: ScriptedStore
    tap: Wiretap
    alices: SecureChannel
    bobs: SecureChannel

    @property
    def directions(self) -> dict[str, Direction]:
        parties, alices, bobs = self.parties, self.alices, self.bobs
        return {
            "to Bob": Direction(parties.alice, alices, parties.bob_handler, bobs, parties.alice_to_bob),
            "to Alice": Direction(parties.bob, bobs, parties.alice_handler, alices, parties.bob_to_alice),
        }

    async def answers_both_ways(self) -> None:
        parties = self.parties
        assert (await parties.alice.ask(Route(self.alices, "echoer"), b"still there")).payload == b"still there"
        assert (await parties.bob.ask(Route(self.bobs, "echoer"), b"still there")).payload == b"still there"


@asynccontextmanager
async def open_conversation() -> AsyncIterator[Conversation]:
    store, tap = ScriptedStore(), Wiretap(Loopback())
    async with open_parties("streams", tap=tap, store=store) as parties:
        yield Conversation(parties, store, tap, *await parties.open(trust=trust_only(parties.bobs.identifier)))


# -- what a hub does to records ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["to Bob", "to Alice"])
@pytest.mark.parametrize("fault", FAULTS, ids=str)
async def test_no_invalid_record_reaches_a_handler_and_the_next_valid_record_arrives(
    fault: Fault, direction: str, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_conversation() as talk:
        way = talk.directions[direction]
        sent = PAYLOADS[: fault.messages]
        with trio.fail_after(STALL_TIMEOUT):
            await way.send(b"before")
            await way.handler.until(b"before")
            talk.store.pushed[way.stream] = fault.start(Random(2))
            for payload in sent:
                await way.send(payload)
            await trio.testing.wait_all_tasks_blocked()
            talk.store.pushed[way.stream] = honest
            await way.send(b"after")
            await way.handler.until(b"after")
            await talk.answers_both_ways()
        assert sorted(way.handler.payloads[1:-1]) == (sorted(sent) if fault.arrives else [])
        assert bool(way.reader.refused) is fault.refuses


async def test_splicing_two_conversations_is_refused_threat_10(autojump_clock: trio.testing.MockClock) -> None:
    async with open_conversation() as talk:
        parties, store = talk.parties, talk.store
        # Another pair of streams and another channel between the same nodes.
        there, back = unique("there"), unique("back")
        hub = Route("loopback:hub")
        await parties.bob.open_stream(hub, sends=back, receives=there)
        stream = await parties.alice.open_stream(hub, sends=there, receives=back)
        other = await parties.alice.open_secure_channel(Route(stream, "listener"), parties.alices, trust=trust_everyone)
        await parties.alice.ask(Route(other, "echoer"), b"")
        (bobs_other,) = parties.listener.channels - {talk.bobs}
        addresses = {
            talk.bobs._hops.decryptor: bobs_other._hops.decryptor,
            bobs_other._hops.decryptor: talk.bobs._hops.decryptor,
        }
        reverse = {
            talk.bobs._hops.decryptor: other._hops.decryptor,
            bobs_other._hops.decryptor: talk.alices._hops.decryptor,
        }

        def splice_into(stream: str, opposite: str) -> Tamper:
            def tamper(record: bytes) -> Sequence[bytes]:
                (decryptor,), _, _ = CURRENT.decode(record)
                # Unchanged, and with the address of the channel that reads the stream; and the same in the other
                # direction.
                store.plant(opposite, changed(record, onward=(reverse[decryptor],)))
                store.plant(stream, changed(record, onward=(addresses[decryptor],)))
                return [record]

            return tamper

        store.pushed[parties.alice_to_bob] = splice_into(there, back)
        store.pushed[there] = splice_into(parties.alice_to_bob, parties.bob_to_alice)
        with trio.fail_after(STALL_TIMEOUT):
            for n, channel in enumerate([talk.alices, other] * 20):
                await parties.alice.send(Route(channel, "handler"), PAYLOADS[n])
            await parties.bob_handler.until_count(40)
            await trio.testing.wait_all_tasks_blocked()
            store.pushed.clear()
            await talk.answers_both_ways()
        assert sorted(parties.bob_handler.payloads) == sorted(PAYLOADS[:40])
        assert not parties.alice_handler.payloads
        assert [each.refused for each in (talk.bobs, bobs_other, talk.alices, other)] == [20, 20, 20, 20]


async def test_after_deleted_records_the_next_ones_arrive_threat_9(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_conversation() as talk:
        way = talk.directions["to Bob"]
        talk.store.reading[way.stream] = lambda records: [each for each in records if each.index % 64 >= 32]
        with trio.fail_after(STALL_TIMEOUT):
            for payload in PAYLOADS[:500]:
                await way.send(payload)
            await trio.testing.wait_all_tasks_blocked()
            talk.store.reading.clear()
            await way.send(b"after")
            await way.handler.until(b"after")
            await talk.answers_both_ways()
        arrived = way.handler.payloads[:-1]
        assert 200 < len(arrived) < 300
        assert arrived == [payload for payload in PAYLOADS if payload in set(arrived)]
        assert talk.bobs.refused == 0


# -- what a hub says about indexes -------------------------------------------------------------------------------------


def _shifted(by: int) -> Reading:
    return lambda records: [Record(max(0, each.index + by), each.message) for each in records]


READINGS: dict[str, Reading] = {
    "every record twice": lambda records: [each for each in records for _ in range(2)],
    "the latest first": lambda records: list(reversed(records)),
    "all at index 0": lambda records: [Record(0, each.message) for each in records],
    "each a little earlier": _shifted(-3),
    "the first at the last index of all": lambda records: [Record(2**64 - 1, records[0].message), *records[1:]],
    "nothing": lambda _: [],
}


@pytest.mark.parametrize("reading", READINGS)
async def test_false_indexes_deliver_nothing_twice_and_the_next_good_record_arrives_threat_23(
    reading: str, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_conversation() as talk:
        way = talk.directions["to Bob"]
        with trio.fail_after(STALL_TIMEOUT):
            talk.store.reading[way.stream] = READINGS[reading]
            for payload in PAYLOADS[:300]:
                await way.send(payload)
            await trio.sleep(20)
            talk.store.reading.clear()
            await way.send(b"after")
            await way.handler.until(b"after")
            await talk.answers_both_ways()
        received = way.handler.payloads
        assert received == [each for each in [*PAYLOADS[:300], b"after"] if each in set(received)]
        assert not way.reader.closed.is_set()


@pytest.mark.parametrize("by", [1, 10**6, 2**63])
async def test_false_indexes_far_ahead_only_starve_the_reader_threat_23(
    by: int, autojump_clock: trio.testing.MockClock
) -> None:
    # Only the hub knows a reader's position: a reader notices a gap only if it counts the peer's messages.
    async with open_conversation() as talk:
        way = talk.directions["to Bob"]
        talk.store.reading[way.stream] = _shifted(by)
        with trio.fail_after(STALL_TIMEOUT):
            for payload in PAYLOADS[:300]:
                await way.send(payload)
            await trio.sleep(20)
            talk.store.reading.clear()
            await way.send(b"after")
            await trio.sleep(20)
        received = way.handler.payloads
        assert received == [each for each in [*PAYLOADS[:300], b"after"] if each in set(received)]
        assert talk.bobs.refused == 0
        # Another reader of the same stream, from its start: delivered messages are refused, skipped ones arrive.
        bob, parties = talk.parties.bob, talk.parties
        before = len(received)
        await bob.open_stream(Route("loopback:hub"), sends=parties.bob_to_alice, receives=parties.alice_to_bob, start=0)
        with trio.fail_after(STALL_TIMEOUT):
            await way.send(b"after all")
            await way.handler.until(b"after all")
            await trio.sleep(20)
        assert len(set(received)) == len(received)
        assert talk.bobs.refused >= before


async def test_a_false_position_far_ahead_delivers_nothing_threat_23(autojump_clock: trio.testing.MockClock) -> None:
    store = ScriptedStore()
    store.false_position = 10**9
    async with open_parties("streams", store=store) as parties:
        with pytest.raises(AnswerTimeout):
            await parties.alice.open_secure_channel(parties.route, parties.alices, trust=trust_everyone, timeout=30)
        assert not parties.listener._pending


async def test_a_rolled_back_position_delivers_nothing_twice_threat_6(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_conversation() as talk:
        parties, way = talk.parties, talk.directions["to Bob"]
        with trio.fail_after(STALL_TIMEOUT):
            for payload in PAYLOADS[:100]:
                await way.send(payload)
            await way.handler.until_count(100)
            assert parties.bobs_stream is not None
            await parties.bobs_stream.aclose()
            # Bob continues at the position that the hub reports: the start.
            talk.store.false_position = 0
            await parties.bob.open_stream(
                Route("loopback:hub"), sends=parties.bob_to_alice, receives=parties.alice_to_bob, client_id="bob"
            )
            await way.send(b"after")
            await way.handler.until(b"after")
            # His side of the channel moves to the new stream.
            await talk.answers_both_ways()
        assert way.handler.payloads == [*PAYLOADS[:100], b"after"]
        assert talk.bobs.refused >= 100
        assert len(parties.listener.channels) == 1


# -- what a hub answers ------------------------------------------------------------------------------------------------


def _also(false_answers: Callable[[Response], Sequence[Response]]) -> Callable[[Response], Sequence[Response]]:
    return lambda response: [*false_answers(response), response]


def _another_id(response: Response) -> Sequence[Response]:
    match response:
        case PullResponse(number, records):
            return [PullResponse(n, records) for n in (number + 1, max(0, number - 1), 2**64 - 1) if n != number]
        case PushResponse(number, ok, index):
            return [PushResponse(n, ok, index) for n in (number + 10**6, 2**64 - 1)]
        case _:
            return [response]


def _false_index(response: Response) -> Sequence[Response]:
    match response:
        case PushResponse(number, ok, index):
            return [PushResponse(number, ok, (index + 2**63) % 2**64)]
        case IndexResponse(client, stream, _):
            return [IndexResponse(client, stream, 2**63)]
        case _:
            return [response]


def _not_asked_for(response: Response) -> Sequence[Response]:
    return [
        response,
        CreateResponse("another_stream"),
        IndexResponse("bob", "another_stream", 7),
        IndexResponse("another", "stream", 0),
        ErrorResponse("give up \x1b[31m"),
        PullResponse(2**32, (Record(0, b"x"), Record(10**9, b"\x83\x80\x80\x40"))),
        PushResponse(0, ok=False, index=0),
    ]


def _refused_once() -> Callable[[Response], Sequence[Response]]:
    refused: set[int] = set()

    def change(response: Response) -> Sequence[Response]:
        if isinstance(response, PushResponse) and response.request_id % 7 == 0 and response.request_id not in refused:
            refused.add(response.request_id)
            return [PushResponse(response.request_id, ok=False, index=0)]
        return [response]

    return change


def _earlier_again() -> Callable[[Response], Sequence[Response]]:
    earlier: list[Response] = []

    def change(response: Response) -> Sequence[Response]:
        earlier.append(response)
        return [response, *earlier[-5:]]

    return change


def _lost(every: int) -> Callable[[Response], Sequence[Response]]:
    seen = 0

    def change(response: Response) -> Sequence[Response]:
        nonlocal seen
        seen += 1
        return [] if seen % every == 0 else [response]

    return change


ANSWERS: dict[str, Callable[[], Callable[[Response], Sequence[Response]]]] = {
    "twice": lambda: lambda response: [response, response],
    "under a wrong id, and then the right one": lambda: _also(_another_id),
    "under a wrong id": lambda: _another_id,
    "with a false index": lambda: _false_index,
    "though not asked for": lambda: _not_asked_for,
    "refusing pushes once": _refused_once,
    "again and again": _earlier_again,
    "four times in five": lambda: _lost(5),
    "never": lambda: _lost(1),
}


@pytest.mark.parametrize("answers", ANSWERS)
async def test_false_answers_stall_nothing_and_act_only_once_threat_24(
    answers: str, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_conversation() as talk:
        way = talk.directions["to Bob"]
        sent = PAYLOADS[:300]
        with trio.fail_after(10 * STALL_TIMEOUT):
            talk.tap.sent = answering(ANSWERS[answers]())
            for payload in sent:
                await way.send(payload)
            await trio.sleep(30)
            talk.tap.sent = honest
            await way.send(b"after")
            await way.handler.until(b"after")
            await talk.answers_both_ways()
        # Pushes are kept until they are confirmed, and pulls repeated: nothing is lost, nothing arrives twice.
        assert way.handler.payloads == [*sent, b"after"]
        assert talk.bobs.refused == 0


@pytest.mark.parametrize("pulls", [False, True])
async def test_answers_given_to_another_client_deliver_nothing_wrong_threat_24(
    pulls: bool, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_conversation() as talk:
        answers: list[Response] = []

        def to_everybody(response: Response) -> Sequence[Response]:
            # Each client also gets the other's last answers.
            others = answers[-4:]
            if pulls or not isinstance(response, PullResponse):
                answers.append(response)
            return [*others, response]

        talk.tap.sent = answering(to_everybody)
        ways = list(talk.directions.values())
        with trio.fail_after(STALL_TIMEOUT):
            for payload in PAYLOADS[:100]:
                for way in ways:
                    await way.send(payload)
            await trio.sleep(30)
            talk.tap.sent = honest
            for way in ways:
                await way.send(b"after")
            if not pulls:  # another stream's records are false indexes in this one, which can starve it (above)
                for way in ways:
                    await way.handler.until(b"after")
                    assert way.handler.payloads == [*PAYLOADS[:100], b"after"]
            await trio.sleep(30)
        for way in ways:
            received = way.handler.payloads
            assert received == [each for each in [*PAYLOADS[:100], b"after"] if each in set(received)]
            assert not way.reader.closed.is_set()


# -- what a hub sees ---------------------------------------------------------------------------------------------------


async def test_no_bytes_at_a_hub_reveal_a_payload_or_an_inner_address_threat_1(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_conversation() as talk:
        parties = talk.parties
        secret, inner = b"the quick brown fox", b"an inner address"
        await parties.bob.start_worker(inner.decode(), Handler().work)
        with trio.fail_after(STALL_TIMEOUT):
            for size in (0, 1, 1000, 60_000):
                body = secret + bytes(size)
                await parties.alice.send(Route(talk.alices, inner.decode()), body)
                assert (await parties.alice.ask(Route(talk.alices, "echoer"), body)).payload == body
            await talk.alices.aclose()
        held = b"\0".join([*talk.store.held, *talk.tap.held])
        assert len(talk.store.held) > 10
        assert len(talk.tap.held) > 30
        histories = [identity.history.encoded for identity in (parties.alices, parties.bobs)]
        identifiers = [identity.identifier.value for identity in (parties.alices, parties.bobs)]
        for plain in (secret, inner, b"echoer", b"handler", *histories, *identifiers):
            assert plain not in held
        assert (
            b"listener" in held
        )  # the outer address of message 1 is not encrypted: it proves that the test searches the right bytes


# -- any mixture of all that -------------------------------------------------------------------------------------------


async def converse_over_a_hostile_hub(seed: int) -> None:
    random = Random(seed)
    store, tap = ScriptedStore(), Wiretap(Loopback())
    harmless = [each for name, each in READINGS.items() if name != "nothing"]

    def any_reading(records: Sequence[Record]) -> Sequence[Record]:
        return random.choice([list[Record], *harmless])(records)

    def be_hostile(parties: Parties) -> None:
        for stream in (parties.alice_to_bob, parties.bob_to_alice):
            store.pushed[stream] = mixed(random)
            store.reading[stream] = any_reading
        # Without the faults that starve a reader, and those that give a client the other's records (false indexes in
        # its stream).
        changes = [
            make() for name, make in ANSWERS.items() if name not in {"never", "under a wrong id", "again and again"}
        ]

        def any_change(response: Response) -> Sequence[Response]:
            return random.choice(changes)(response)

        tap.sent = answering(any_change)

    def be_honest() -> None:
        store.pushed.clear()
        store.reading.clear()
        tap.sent = honest

    async with open_parties("streams", tap=tap, store=store) as parties:
        be_hostile(parties)
        with suppress(AnswerTimeout):
            await parties.alice.open_secure_channel(
                parties.route, parties.alices, trust=trust_only(parties.bobs.identifier)
            )
        be_honest()
        with trio.fail_after(10 * STALL_TIMEOUT):
            talk = Conversation(parties, store, tap, *await parties.open())
            be_hostile(parties)
            for payload in PAYLOADS[:60]:
                for way in talk.directions.values():
                    await way.send(payload)
                if random.random() < 0.1:
                    await trio.sleep(random.choice([0.1, 6]))
            await trio.sleep(60)
            be_honest()
            for way in talk.directions.values():
                await way.send(b"after")
                await way.handler.until(b"after")
            await talk.answers_both_ways()
        for way in talk.directions.values():
            received = way.handler.payloads
            assert len(received) == len(set(received))
            assert set(received) <= {*PAYLOADS[:60], b"after"}
            assert not way.reader.closed.is_set()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_under_random_hub_actions_handlers_get_only_sent_messages_each_once(seed: int) -> None:
    # Threats 3 to 10, 23 and 24 in any mixture, the handshake included.
    trio.run(converse_over_a_hostile_hub, seed, clock=trio.testing.MockClock(autojump_threshold=0))
