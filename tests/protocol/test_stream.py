import heapq
import uuid
from collections.abc import Callable, Sequence
from itertools import pairwise
from random import Random
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.vectors import load
from trionode.errors import LocalError, MessageTooLargeError, WireError
from trionode.protocol.stream import consumer as streams
from trionode.protocol.stream.consumer import MAX_BATCHES, POLL_SECONDS, Consumer
from trionode.protocol.stream.machine import Event, Machine, State
from trionode.protocol.stream.messages import (
    ANSWER_SECONDS,
    LONG_POLL_SECONDS,
    MAX_ANSWER,
    MAX_ANSWER_SECONDS,
    MAX_RECORD,
    CreateRequest,
    CreateResponse,
    ErrorResponse,
    IndexGet,
    IndexResponse,
    IndexSave,
    PullRequest,
    PullResponse,
    PushRequest,
    PushResponse,
    Record,
    Request,
    Response,
    decode_request,
    decode_response,
    encode,
)
from trionode.protocol.stream.names import unique, uuid7_hex, uuid7_milliseconds, valid_client_id, valid_stream_name
from trionode.protocol.stream.producer import MAX_PUSH_BYTES, MAX_PUSHES, MIN_REORDERING, Producer
from trionode.protocol.wire.bare import Reader, data, string

# -- messages ----------------------------------------------------------------------------------------------------------


def _payload(frame: bytes) -> bytes:
    """The payload of a classic frame (spec §2.2, §3.1), read with as little as that takes."""
    reader = Reader(frame, 3)  # the length, the version
    for _ in range(2):
        for _ in range(reader.uint()):
            reader.u8()
            reader.data()
    payload = reader.data()
    reader.end()
    return payload


def _expected(kind: str, body: dict[str, Any]) -> Request | Response:
    match kind:
        case "classic.stream.create.request":
            return CreateRequest(body["stream_name"])
        case "classic.stream.create.response":
            return CreateResponse(body["stream_name"])
        case "classic.stream.push.request":
            return PushRequest(body["request_id"], bytes.fromhex(body["message"]))
        case "classic.stream.push.response":
            return PushResponse(body["request_id"], body["status"] == 0, body["index"])
        case "classic.stream.pull.request":
            return PullRequest(body["request_id"], body["index"], body["limit"])
        case "classic.stream.pull.response":
            messages = [Record(each["index"], bytes.fromhex(each["message"])) for each in body["messages"]]
            return PullResponse(body["request_id"], tuple(messages))
        case "classic.stream.index.get.request":
            return IndexGet(body["client_id"], body["stream_name"])
        case "classic.stream.index.save.request":
            return IndexSave(body["client_id"], body["stream_name"], body["index"])
        case "classic.stream.index.response":
            return IndexResponse(body["client_id"], body["stream_name"], body["index"])
        case "classic.stream.error":
            return ErrorResponse(body["reason"])
    raise AssertionError(kind)


def test_stream_frame_vectors_decode_and_encode_again() -> None:
    vectors = load("wire/classic_stream_frames.json")
    assert len({vector["kind"] for vector in vectors}) == 10
    for vector in vectors:
        payload = _payload(bytes.fromhex(vector["hex"]))
        decode: Callable[[bytes], Request | Response] = (
            decode_request if vector["fields"]["direction"] == "client->hub" else decode_response
        )
        message = decode(payload)
        assert message == _expected(vector["kind"], vector["fields"]["body"])
        assert encode(message) == payload


U64 = st.integers(0, 2**64 - 1)
NAMES = st.text(max_size=30)
REQUESTS: st.SearchStrategy[Request] = st.one_of(
    st.builds(CreateRequest, st.none() | NAMES),
    st.builds(PushRequest, U64, st.binary(max_size=100)),
    st.builds(PullRequest, U64, U64, U64),
    st.builds(IndexGet, NAMES, NAMES),
    st.builds(IndexSave, NAMES, NAMES, U64),
)
RECORDS = st.lists(st.builds(Record, U64, st.binary(max_size=20)), max_size=5).map(tuple)
RESPONSES: st.SearchStrategy[Response] = st.one_of(
    st.builds(CreateResponse, NAMES),
    st.builds(PushResponse, U64, st.booleans(), U64),
    st.builds(PullResponse, U64, RECORDS),
    st.builds(IndexResponse, NAMES, NAMES, st.none() | U64),
    st.builds(ErrorResponse, NAMES),
)


@given(REQUESTS, RESPONSES)
def test_messages_round_trip_and_are_refused_if_cut_or_extended(request: Request, response: Response) -> None:
    assert decode_request(encode(request)) == request
    assert decode_response(encode(response)) == response
    for encoded, decode in ((encode(request), decode_request), (encode(response), decode_response)):
        for wrong in (encoded[:-1], encoded + b"\x00", encoded[: len(encoded) // 2], b""):
            with pytest.raises(WireError):
                decode(wrong)


@given(
    st.binary(max_size=60), st.sampled_from(["stream_create", "stream_push", "stream_pull", "stream_index", "error"])
)
def test_arbitrary_bytes_are_decoded_or_raise_wire_error(body: bytes, protocol: str) -> None:
    for decode in (decode_request, decode_response):
        for payload in (body, string(protocol) + data(body)):
            try:
                decode(payload)
            except WireError:
                continue


@pytest.mark.parametrize(
    ("protocol", "body"),
    [
        ("internal.stream.fetch", "00"),
        ("stream_create_partitioned", "00"),
        ("stream_create", "020173"),
        ("stream_create", "01017300"),
        ("stream_index", "0201610162"),
        ("stream_push", "00"),
        ("error", "0161"),
    ],
)
def test_nonsense_in_a_request_is_refused(protocol: str, body: str) -> None:
    with pytest.raises(WireError):
        decode_request(string(protocol) + data(bytes.fromhex(body)))


@pytest.mark.parametrize(
    ("protocol", "body"),
    [
        ("stream_push", "000200"),  # a third status
        ("stream_pull", "00ffffffffffffffffff01"),  # 2^64-1 records
        ("stream_pull", "000100"),
        ("stream_index", "016101620200"),
    ],
)
def test_nonsense_in_a_response_is_refused(protocol: str, body: str) -> None:
    with pytest.raises(WireError):
        decode_response(string(protocol) + data(bytes.fromhex(body)))


def test_the_longest_record_and_two_long_addresses_fit_into_one_answer() -> None:
    answer = encode(PullResponse(2**64 - 1, (Record(2**64 - 2, bytes(MAX_RECORD)),)))
    assert len(answer) + 150 <= MAX_ANSWER
    # What a store counts for a record is never less than what it takes.
    for record in (Record(2**64 - 1, bytes(MAX_RECORD)), Record(0, b""), Record(300, bytes(300))):
        assert record.size >= len(encode(PullResponse(0, (record,)))) - len(encode(PullResponse(0, ()))) - 2


# -- names -------------------------------------------------------------------------------------------------------------


def test_names_of_streams_are_those_of_kafka_topics() -> None:
    for name in ("a", "alice_to_bob_0123", "A.b-c_9", "x" * 200):
        assert valid_stream_name(name)
        assert valid_client_id(name)
    for name in ("", ".", "..", "x" * 201, "a b", "a/b", "ä", "a\n", "\n", "a#b", "a\x00"):
        assert not valid_stream_name(name)
        assert not valid_client_id(name)


def test_a_unique_name_has_128_bits() -> None:
    assert unique("alice_to_bob", bytes(range(16))) == "alice_to_bob_000102030405060708090a0b0c0d0e0f"
    with pytest.raises(LocalError, match="16 random bytes"):
        unique("a", bytes(8))


@given(st.integers(0, 2**48 - 1), st.binary(min_size=10, max_size=10))
def test_the_address_of_a_producer_contains_its_time(milliseconds: int, entropy: bytes) -> None:
    text = uuid7_hex(milliseconds, entropy)
    parsed = uuid.UUID(text)
    assert (parsed.hex, parsed.version, parsed.variant) == (text, 7, uuid.RFC_4122)
    assert uuid7_milliseconds(text.encode()) == milliseconds


def test_the_example_of_rfc_9562_is_a_uuid7() -> None:
    # Appendix A.6: 017F22E2-79B0-7CC3-98C4-DC0C0C07398F
    entropy = bytes.fromhex("0cc318c4dc0c0c07398f")
    assert uuid7_hex(0x017F22E279B0, entropy) == "017f22e279b07cc398c4dc0c0c07398f"


def test_other_addresses_contain_no_time() -> None:
    good = uuid7_hex(1_700_000_000_000, bytes(10)).encode()
    for other in (b"", b"app", good[:-1], good + b"0", good.upper().replace(b"0", b"A"), good + b"\n", bytes(32)):
        assert uuid7_milliseconds(other) is None
    assert uuid7_milliseconds(b"fb00425962c7170fd9c0e8be99de74f5") is None
    with pytest.raises(LocalError):
        uuid7_hex(2**48, bytes(10))


# -- the producer ------------------------------------------------------------------------------------------------------

WORKER = (b"worker",)


def _open_producer(*, recognises: bool = True) -> Producer:
    """A producer whose hub was asked and has answered at time 0, and has confirmed the push 0."""
    producer = Producer("s")
    assert producer.begin(0) == (CreateRequest("s"),)
    producer.recognises = recognises
    assert not producer.created(CreateResponse("s"), WORKER, 0)
    assert _ids(producer.push(b"first", 0)) == [0]
    assert not producer.confirmed(PushResponse(0, ok=True, index=0), 0)
    return producer


def _ids(requests: Sequence[Request]) -> list[int]:
    return [request.request_id for request in requests if isinstance(request, PushRequest)]


def test_pushes_wait_for_create_and_then_leave_in_order() -> None:
    producer = Producer("s")
    assert not producer.push(b"a", 0)
    producer.begin(0)
    assert not producer.push(b"b", 0)
    # One alone, until the hub knows which one is the first.
    assert producer.created(CreateResponse("s"), WORKER, 1) == [PushRequest(0, b"a")]
    assert producer.worker == WORKER
    assert not producer.push(b"c", 1)
    assert producer.confirmed(PushResponse(0, ok=True, index=0), 1) == [PushRequest(1, b"b"), PushRequest(2, b"c")]
    assert producer.push(b"d", 1) == [PushRequest(3, b"d")]


def test_an_unexpected_answer_to_create_changes_nothing() -> None:
    producer = Producer("s")
    assert not producer.created(CreateResponse("s"), WORKER, 0)
    producer.begin(0)
    assert not producer.created(CreateResponse("another"), WORKER, 0)
    assert not producer.worker
    producer.push(b"a", 0)
    assert producer.created(CreateResponse("s"), WORKER, 0)
    assert not producer.created(CreateResponse("s"), (b"thief",), 0)
    assert producer.worker == WORKER


def test_confirmations_may_be_repeated_unknown_and_out_of_order() -> None:
    producer = _open_producer()
    for number in range(3):
        producer.push(b"%d" % number, 0)
    for request_id, oldest in ((2, 1), (2, 1), (99, 1), (1, 3), (1, 3), (3, 4), (3, 4)):
        assert not producer.confirmed(PushResponse(request_id, ok=True, index=7), 0)
        assert producer.oldest == oldest
    assert producer.next_deadline() is None
    assert producer.next_id == 4
    assert producer.unconfirmed == 0


def test_unconfirmed_pushes_are_resent_with_their_request_ids() -> None:
    producer = _open_producer()
    for number in range(1, 5):
        producer.push(b"%d" % number, 0)
    producer.confirmed(PushResponse(2, ok=True, index=1), 0)
    assert producer.begin(1) == (CreateRequest("s"),)
    assert producer.created(CreateResponse("s"), (b"moved",), 1) == [PushRequest(1, b"1")]
    assert producer.worker == (b"moved",)
    assert producer.confirmed(PushResponse(1, ok=True, index=0), 1) == [PushRequest(3, b"3"), PushRequest(4, b"4")]


def test_without_answers_a_producer_resends_the_oldest_push_ever_more_rarely_and_then_creates_again() -> None:
    producer = _open_producer()
    producer.push(b"a", 0)
    producer.push(b"b", 0)
    now, waits, sent = 0.0, list[float](), list[Request]()
    while not sent or isinstance(sent[-1], PushRequest):
        deadline = producer.next_deadline()
        assert deadline is not None
        assert not producer.tick(deadline - 0.001)
        waits.append(deadline - now)
        assert len(waits) < 10
        now = deadline
        sent += producer.tick(now)
    assert waits == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2])
    assert sent == [*4 * [PushRequest(1, b"a")], CreateRequest("s")]
    assert producer.overdue_since == 0.2
    assert _ids(producer.created(CreateResponse("s"), WORKER, now)) == [1]
    assert _ids(producer.confirmed(PushResponse(1, ok=True, index=0), now)) == [2]


def test_on_a_hub_that_stores_resends_twice_a_producer_is_patient_and_creates_before_it_resends() -> None:
    producer = _open_producer(recognises=False)
    producer.push(b"a", 0)
    producer.push(b"b", 0)
    assert not producer.confirmed(PushResponse(2, ok=True, index=0), 0)
    now, waits = 0.0, list[float]()
    for _ in range(6):
        deadline = producer.next_deadline()
        assert deadline is not None
        waits.append(deadline - now)
        now = deadline
        assert producer.tick(now) == (CreateRequest("s"),)
        assert _ids(producer.created(CreateResponse("s"), WORKER, now)) == [1]
    assert waits == [5, 10, 20, 30, 30, 30]
    producer.confirmed(PushResponse(1, ok=True, index=0), now)
    producer.push(b"c", now)
    assert producer.next_deadline() == now + ANSWER_SECONDS


def test_a_push_is_resent_soon_after_a_later_one_was_confirmed() -> None:
    producer = _open_producer()
    for _ in range(3):
        producer.push(b"", 0)
    assert not producer.confirmed(PushResponse(2, ok=True, index=0), 0.1)
    assert producer.next_deadline() == 0.1 + MIN_REORDERING
    assert _ids(producer.tick(0.1 + MIN_REORDERING)) == [1]
    # Only pushes that were sent before the confirmed one are late: 3 is not, nor is 1 a second time.
    assert not producer.confirmed(PushResponse(3, ok=True, index=0), 0.12)
    deadline = producer.next_deadline()
    assert deadline is not None
    assert deadline > 0.3


def test_confirmations_that_change_places_cause_no_resend() -> None:
    producer = _open_producer()
    for _ in range(3):
        producer.push(b"", 0)
    for request_id in (3, 1, 2):
        assert not producer.confirmed(PushResponse(request_id, ok=True, index=0), 0.1)
    assert producer.next_deadline() is None


def test_the_round_trip_is_measured_by_pushes_that_were_sent_once() -> None:
    producer = _open_producer()
    for _ in range(2):
        producer.push(b"", 1)
    producer.tick(1.2)  # resends the first one
    before = producer.round_trip.smoothed
    producer.confirmed(PushResponse(1, ok=True, index=0), 9)
    assert producer.round_trip.smoothed == before
    producer.confirmed(PushResponse(2, ok=True, index=0), 9)
    assert producer.round_trip.smoothed == 1.0  # 8 s, weighed by 1/8


def test_pushes_that_the_hub_refuses_since_an_earlier_one_is_missing_follow_that_one() -> None:
    producer = _open_producer()
    for number in range(1, 5):
        producer.push(b"%d" % number, 0)
    # 1 is on its way; the hub waits for it.
    for request_id in (2, 3, 4):
        assert not producer.confirmed(PushResponse(request_id, ok=False, index=0), 0.1)
    assert producer.next_deadline() == 0.1 + MIN_REORDERING
    assert _ids(producer.tick(0.11)) == [1]
    assert not producer.confirmed(PushResponse(1, ok=True, index=0), 0.15)
    # A hub that has kept them confirms them now; another one gets them again.
    assert not producer.confirmed(PushResponse(2, ok=True, index=0), 0.15)
    deadline = producer.next_deadline()
    assert deadline is not None
    assert deadline < 0.2
    assert _ids(producer.tick(deadline)) == [3, 4]


def test_refusals_in_turn_with_resends_come_to_an_end() -> None:
    # Without time between: a hub that refuses all and answers at once makes a producer rest.
    producer = _open_producer()
    for _ in range(3):
        producer.push(b"", 0)
    sent = 0
    now = 0.0
    while now < 60:
        pending = [1, 2, 3]
        while pending:
            for request_id in pending:
                requests = producer.confirmed(PushResponse(request_id, ok=False, index=0), now)
                pending = _ids(requests)
                sent += len(pending)
        deadline = producer.next_deadline()
        assert deadline is not None
        assert deadline > now
        now = deadline
        for request in producer.tick(now):
            if isinstance(request, CreateRequest):
                sent += len(producer.created(CreateResponse("s"), WORKER, now))
    assert sent < 100


def test_an_unanswered_create_is_sent_again() -> None:
    producer = Producer("s")
    producer.begin(0)
    now = 0.0
    for wait in (1.0, 2.0, 4.0, 8.0, 16.0, MAX_ANSWER_SECONDS, MAX_ANSWER_SECONDS):
        assert producer.next_deadline() == now + wait
        now += wait
        assert producer.tick(now) == (CreateRequest("s"),)
    assert producer.overdue_since == 1.0


def test_the_timeout_starts_again_with_each_confirmation() -> None:
    producer = _open_producer()
    producer.push(b"a", 0)
    producer.push(b"b", 0.1)
    assert producer.next_deadline() == 0.2
    producer.confirmed(PushResponse(1, ok=True, index=0), 0.15)
    assert producer.next_deadline() == pytest.approx(0.15 + producer.round_trip.timeout)


def test_after_the_hub_could_not_store_a_push_nothing_is_sent_until_all_is_resent_in_order() -> None:
    producer = _open_producer()
    for number in range(1, 4):
        producer.push(b"%d" % number, 0)
    # The push 1 was the oldest when it was sent: the hub waits for no other.
    assert not producer.confirmed(PushResponse(1, ok=False, index=0), 1)
    assert not producer.push(b"4", 1)
    now, rests = 1.0, list[float]()
    for _ in range(8):
        deadline = producer.next_deadline()
        assert deadline is not None
        rests.append(deadline - now)
        now = deadline
        assert producer.tick(now) == (CreateRequest("s"),)
        assert _ids(producer.created(CreateResponse("s"), WORKER, now)) == [1]
        assert not producer.confirmed(PushResponse(1, ok=False, index=0), now)
    assert rests == [0.5, 1, 2, 4, 8, 16, 30, 30]
    producer.tick(now + 30)
    producer.created(CreateResponse("s"), WORKER, now)
    assert _ids(producer.confirmed(PushResponse(1, ok=True, index=0), now)) == [2, 3, 4]


def test_the_window_is_bounded_by_number() -> None:
    producer = _open_producer()
    for _ in range(MAX_PUSHES):
        assert not producer.full
        producer.push(b"", 0)
    with pytest.raises(LocalError, match="full"):
        producer.push(b"", 0)
    producer.confirmed(PushResponse(5, ok=True, index=0), 0)
    assert not producer.full


def test_the_window_is_bounded_by_size() -> None:
    producer, pushed = _open_producer(), 0
    while not producer.full:
        producer.push(bytes(MAX_RECORD), 0)
        pushed += MAX_RECORD
    assert MAX_PUSH_BYTES <= pushed < MAX_PUSH_BYTES + MAX_RECORD
    with pytest.raises(MessageTooLargeError, match="64000"):
        _open_producer().push(bytes(MAX_RECORD + 1), 0)


def test_machines_refuse_invalid_names() -> None:
    with pytest.raises(LocalError, match="named by"):
        Producer("a b")
    for stream, client_id in (("", "c"), ("s", "#")):
        with pytest.raises(LocalError, match="named by"):
            Consumer(stream, client_id)
    with pytest.raises(LocalError, match="at least 1"):
        Consumer("s", "c", limit=0)


# -- the consumer ------------------------------------------------------------------------------------------------------


def _open_consumer(stored: int | None = None) -> Consumer:
    """A consumer whose pull 0 is out since time 0."""
    consumer = Consumer("s", "c", limit=8)
    assert list(consumer.begin(0)) == [CreateRequest("s")]
    assert list(consumer.created(CreateResponse("s"), WORKER, 0)) == [IndexGet("c", "s")]
    assert list(consumer.positioned(IndexResponse("c", "s", stored), 0)) == [PullRequest(0, stored or 0, 8)]
    return consumer


def _records(*indexes: int) -> tuple[Record, ...]:
    return tuple(Record(index, b"%d" % index) for index in indexes)


def test_a_consumer_starts_at_its_saved_position() -> None:
    assert _open_consumer().hint is None
    consumer = _open_consumer(2**60)
    assert consumer.hint == consumer.position == 2**60


def test_a_consumer_with_a_start_does_not_ask_for_its_position() -> None:
    consumer = Consumer("s", "c", start=5, limit=8)
    consumer.begin(0)
    assert list(consumer.created(CreateResponse("s"), WORKER, 0)) == [PullRequest(0, 5, 8)]


def test_the_next_pull_is_sent_at_once_up_to_two_answers_ahead() -> None:
    consumer = _open_consumer()
    records, requests = consumer.pulled(PullResponse(0, _records(0, 1, 5)), 0)
    assert (tuple(records), list(requests)) == (_records(0, 1, 5), [PullRequest(1, 6, 8)])
    records, requests = consumer.pulled(PullResponse(1, _records(6)), 0)
    assert (tuple(records), list(requests)) == (_records(6), [])
    assert MAX_BATCHES == 2
    assert consumer.next_deadline() is None
    # Half of a batch makes no room.
    assert list(consumer.taken(1, 0)) == [IndexSave("c", "s", 2)]
    assert list(consumer.taken(5, 1)) == [IndexSave("c", "s", 6), PullRequest(2, 7, 8)]
    assert list(consumer.taken(6, 2)) == [IndexSave("c", "s", 7)]


def test_only_the_first_answer_to_the_current_pull_counts() -> None:
    consumer = _open_consumer()
    for unknown in (1, 7, 2**64 - 1):
        assert consumer.pulled(PullResponse(unknown, _records(0)), 0) == ((), ())
    answer = PullResponse(0, _records(0))
    assert consumer.pulled(answer, 0)[0]
    assert consumer.pulled(answer, 0) == ((), ())
    assert consumer.position == 1


def test_records_out_of_order_or_repeated_are_skipped() -> None:
    consumer = _open_consumer(3)
    records, requests = consumer.pulled(PullResponse(0, _records(1, 4, 4, 3, 6, 5, 6, 9)), 0)
    assert tuple(records) == _records(4, 6, 9)
    assert list(requests) == [PullRequest(1, 10, 8)]


def test_records_beyond_the_limit_or_at_the_last_index_are_skipped() -> None:
    consumer = _open_consumer()
    records, _ = consumer.pulled(PullResponse(0, _records(*range(20))), 0)
    assert len(records) == 8
    assert consumer.position == 8
    records, _ = consumer.pulled(PullResponse(1, _records(2**64 - 1)), 0)
    assert not records
    records, _ = consumer.pulled(PullResponse(1, _records(2**64 - 1)), 0)
    assert consumer.position == 8


def test_an_empty_answer_after_the_long_poll_is_followed_by_the_next_pull_at_once() -> None:
    consumer = _open_consumer()
    assert consumer.pulled(PullResponse(0, ()), LONG_POLL_SECONDS) == ((), [])
    assert consumer.next_deadline() == LONG_POLL_SECONDS
    assert list(consumer.tick(LONG_POLL_SECONDS)) == [PullRequest(1, 0, 8)]


def test_a_hub_without_long_polls_is_polled_slowly() -> None:
    consumer = _open_consumer()
    now = 0.0
    for request_id in range(1, 5):
        assert consumer.pulled(PullResponse(request_id - 1, ()), now + 0.001) == ((), [])
        assert consumer.next_deadline() == now + POLL_SECONDS
        now += POLL_SECONDS
        assert list(consumer.tick(now)) == [PullRequest(request_id, 0, 8)]


def test_an_unanswered_pull_is_sent_again_ever_more_rarely_with_a_new_id() -> None:
    consumer = _open_consumer()
    now, waits = 0.0, list[float]()
    for request_id in range(1, 8):
        deadline = consumer.next_deadline()
        assert deadline is not None
        assert not consumer.tick(deadline - 0.001)
        waits.append(deadline - now)
        now = deadline
        assert list(consumer.tick(now)) == [PullRequest(request_id, 0, 8)]
        consumer.overdue_since = None  # our hubs answer the former pull at once, and any answer does that
    assert waits == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, 6.4, LONG_POLL_SECONDS + 0.2])
    assert consumer.next_deadline() == pytest.approx(now + 0.2)
    assert consumer.pulled(PullResponse(6, _records(0)), now) == ((), ())
    assert consumer.pulled(PullResponse(7, _records(0)), now)[0] == list(_records(0))
    assert consumer.next_deadline() == pytest.approx(now + 0.2)


def test_a_consumer_that_hears_nothing_creates_again() -> None:
    consumer = _open_consumer()
    now, sent = 0.0, list[Request]()
    while not sent or isinstance(sent[-1], PullRequest):
        deadline = consumer.next_deadline()
        assert deadline is not None
        now = deadline
        sent += consumer.tick(now)
    assert sent[-1] == CreateRequest("s")
    assert ANSWER_SECONDS <= now < 2 * ANSWER_SECONDS
    pull = PullRequest(len(sent), 0, 8)
    assert list(consumer.created(CreateResponse("s"), (b"moved",), now)) == [pull]
    assert consumer.worker == (b"moved",)


def test_a_quiet_hub_is_asked_once_a_long_poll() -> None:
    consumer = _open_consumer()
    now = 0.0
    consumer.tick(0.2)
    for request_id in range(1, 5):
        now += LONG_POLL_SECONDS + (0.2 if request_id == 1 else 0)
        assert consumer.pulled(PullResponse(request_id, ()), now) == ((), [])
        assert list(consumer.tick(now)) == [PullRequest(request_id + 1, 0, 8)]
        assert consumer.next_deadline() == pytest.approx(now + LONG_POLL_SECONDS + 0.2)


def test_a_hub_whose_store_is_slow_is_given_the_time_that_full_answers_take() -> None:
    consumer = _open_consumer()
    assert consumer.pulled(PullResponse(0, _records(*range(8))), 0.15)[0]
    consumer.taken(7, 0.15)
    deadline = consumer.next_deadline()
    assert deadline is not None
    assert deadline > 0.15 + 2 * 0.15


def test_a_hub_that_does_not_answer_replaced_pulls_is_asked_after_the_long_poll_only() -> None:
    consumer = Consumer("s", "c", start=0)
    consumer.begin(0)
    consumer.recognises = False
    consumer.created(CreateResponse("s"), WORKER, 0)
    deadline = LONG_POLL_SECONDS + ANSWER_SECONDS
    assert consumer.next_deadline() == deadline
    assert list(consumer.tick(deadline)) == [CreateRequest("s")]


def test_unanswered_create_and_get_are_sent_again_with_growing_timeouts() -> None:
    consumer = Consumer("s", "c")
    consumer.begin(0)
    now = 0.0
    for wait in (1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0):
        assert consumer.next_deadline() == now + wait
        now += wait
        assert list(consumer.tick(now)) == [CreateRequest("s")]
    assert list(consumer.created(CreateResponse("s"), WORKER, now)) == [IndexGet("c", "s")]
    now += MAX_ANSWER_SECONDS
    assert list(consumer.tick(now)) == [CreateRequest("s")]


def test_repeated_or_foreign_answers_start_no_second_loop() -> None:
    consumer = Consumer("s", "c")
    consumer.begin(0)
    assert not consumer.created(CreateResponse("another"), WORKER, 0)
    assert not consumer.positioned(IndexResponse("c", "s", 9), 0)
    consumer.created(CreateResponse("s"), WORKER, 0)
    assert not consumer.created(CreateResponse("s"), (b"thief",), 0)
    assert not consumer.positioned(IndexResponse("another", "s", 9), 0)
    assert not consumer.positioned(IndexResponse("c", "another", 9), 0)
    assert consumer.pulled(PullResponse(0, _records(0)), 0) == ((), ())
    assert len(consumer.positioned(IndexResponse("c", "s", 2), 0)) == 1
    assert not consumer.positioned(IndexResponse("c", "s", 9), 0)
    assert (consumer.position, consumer.worker) == (2, WORKER)


def test_after_a_loss_a_consumer_continues_from_its_own_position() -> None:
    consumer = _open_consumer()
    consumer.pulled(PullResponse(0, _records(0, 1)), 0)
    consumer.taken(1, 0)
    assert list(consumer.begin(1)) == [CreateRequest("s")]
    assert consumer.pulled(PullResponse(1, _records(2)), 1) == ((), ())
    # No Get; and the save, which may have been lost with the link, is said again.
    assert list(consumer.created(CreateResponse("s"), WORKER, 1)) == [IndexSave("c", "s", 2), PullRequest(2, 2, 8)]


def test_saves_are_throttled_and_the_last_one_is_sent_at_the_end() -> None:
    consumer = _open_consumer()
    consumer.pulled(PullResponse(0, _records(*range(8))), 0)
    saves = [*consumer.taken(0, 1.0)]
    for index in range(1, 5):
        saves += consumer.taken(index, 1.01)
    assert saves == [IndexSave("c", "s", 1)]
    deadline = 1.0 + streams.SAVE_SECONDS
    assert list(consumer.tick(deadline - 0.01)) == [PullRequest(2, 8, 8)]  # the pull 1 was not answered
    assert consumer.next_deadline() == deadline
    assert list(consumer.tick(deadline)) == [IndexSave("c", "s", 5)]
    consumer.taken(6, 1.11)
    assert list(consumer.finish()) == [IndexSave("c", "s", 7)]
    assert list(consumer.finish()) == []
    # What is taken twice or late moves nothing back.
    assert list(consumer.taken(2, 9)) == []
    assert list(consumer.finish()) == []


@pytest.mark.parametrize("machine", [Producer("s"), Consumer("s", "c")], ids=["producer", "consumer"])
def test_each_state_can_return_to_creating(machine: Machine) -> None:
    for _, state in machine._table.values():
        assert machine._table[state, Event.BEGUN][1] is State.CREATING


# -- both against a hub and a network that do their worst --------------------------------------------------------------

#: After this the network is well, so that what is promised for "eventually" can be seen.
CALM = 100.0


@attrs.define
class Hub:
    """The rules of spec §11.6 over a list.

    `gapless` hubs refuse a push whose predecessor they have not stored. The first one that comes is the first one for
    them: they don't know where the numbers of a producer begin.
    """

    random: Random
    gapless: bool
    records: list[Record] = attrs.Factory(list)
    known: dict[int, int] = attrs.Factory(dict)
    next_id: int | None = None
    position: int | None = None
    waiting: list[tuple[float, PullRequest]] = attrs.Factory(list)

    def ask(self, request: Request, now: float) -> Response | None:
        match request:
            case CreateRequest(name):
                assert name == "s"
                return CreateResponse("s")
            case IndexGet(client_id, stream):
                return IndexResponse(client_id, stream, self.position)
            case IndexSave(_, _, index):
                self.position = index
                return None
            case PushRequest(request_id, record):
                return self.push(request_id, record, now)
            case PullRequest():
                self.waiting.append((now + LONG_POLL_SECONDS, request))
                return None

    def push(self, request_id: int, record: bytes, now: float) -> PushResponse:
        if request_id not in self.known:
            refused = now < CALM and self.random.random() < 0.1
            if self.gapless and (refused or request_id != (request_id if self.next_id is None else self.next_id)):
                return PushResponse(request_id, ok=False, index=0)
            self.next_id = request_id + 1
            last = self.records[-1].index if self.records else -1
            self.known[request_id] = last + self.random.choice((1, 1, 3))
            self.records.append(Record(self.known[request_id], record))
        return PushResponse(request_id, ok=True, index=self.known[request_id])

    def answers(self, now: float) -> list[PullResponse]:
        """The pulls that can be answered now, or must be."""
        answers: list[PullResponse] = []
        waiting, self.waiting = self.waiting, []
        for until, pull in waiting:
            found = [record for record in self.records if record.index >= pull.index][: pull.limit]
            if found or now >= until:
                answers.append(PullResponse(pull.request_id, tuple(found)))
            else:
                self.waiting.append((until, pull))
        return answers


class Simulation:
    """Producer, consumer, hub and a network in virtual time. `connection` loses only messages in flight, and reports it."""

    def __init__(self, random: Random, count: int, *, gapless: bool, connection: bool) -> None:
        self.random, self.count, self.connection = random, count, connection
        self.hub = Hub(random, gapless)
        self.producer, self.consumer = Producer("s"), Consumer("s", "c", limit=random.choice((1, 4, 100)))
        self.pushed: list[bytes] = []
        self.delivered: list[Record] = []
        self.now, self.epoch, self.serial = 0.0, 0, 0
        self.agenda: list[tuple[float, int, Callable[[], None]]] = []

    def at(self, when: float, what: Callable[[], None]) -> None:
        self.serial += 1
        heapq.heappush(self.agenda, (when, self.serial, what))

    def transit(self, what: Callable[[], None]) -> None:
        if self.connection:
            epoch = self.epoch
            self.at(self.now + 0.05, lambda: what() if self.epoch == epoch else None)
            return
        well = self.now >= CALM
        for _ in range(1 if well else self.random.choice((0, 1, 1, 1, 2))):
            self.at(self.now + (0.01 if well else self.random.choice((0.01, 0.01, 0.1, 3, 17))), what)

    def send(self, requests: Sequence[Request], answer: Callable[[Response], None]) -> None:
        for request in requests:
            self.transit(lambda request=request: self.arrive(request, answer))  # type: ignore[misc]

    def arrive(self, request: Request, answer: Callable[[Response], None]) -> None:
        response = self.hub.ask(decode_request(encode(request)), self.now)
        if response is not None:
            self.transit(lambda: answer(response))
        self.answer_pulls()
        if isinstance(request, PullRequest):
            self.at(self.now + LONG_POLL_SECONDS, self.answer_pulls)

    def answer_pulls(self) -> None:
        for pull in self.hub.answers(self.now):
            self.transit(lambda pull=pull: self.to_consumer(pull))  # type: ignore[misc]

    def to_producer(self, response: Response) -> None:
        match response:
            case CreateResponse():
                self.produce(self.producer.created(response, WORKER, self.now))
            case PushResponse():
                self.produce(self.producer.confirmed(response, self.now))
            case _:
                raise AssertionError(response)

    def to_consumer(self, response: Response) -> None:
        match response:
            case CreateResponse():
                self.consume(self.consumer.created(response, WORKER, self.now))
            case IndexResponse():
                self.consume(self.consumer.positioned(response, self.now))
            case PullResponse():
                records, requests = self.consumer.pulled(response, self.now)
                self.consume(requests)
                if records:
                    self.delivered += records
                    wait = self.random.choice((0, 0.01, 1, 12))
                    self.at(self.now + wait, lambda: self.consume(self.consumer.taken(records[-1].index, self.now)))
            case _:
                raise AssertionError(response)

    def produce(self, requests: Sequence[Request]) -> None:
        self.send(requests, self.to_producer)

    def consume(self, requests: Sequence[Request]) -> None:
        pulls = [request for request in requests if isinstance(request, PullRequest)]
        assert len(pulls) <= 1
        self.send(requests, self.to_consumer)

    def push(self) -> None:
        if self.producer.full:
            self.at(self.now + 1, self.push)
            return
        record = b"record %d" % len(self.pushed)
        self.pushed.append(record)
        self.produce(self.producer.push(record, self.now))

    def cut(self) -> None:
        self.epoch += 1
        self.hub.waiting.clear()
        self.produce(self.producer.begin(self.now))
        self.consume(self.consumer.begin(self.now))

    def tick(self, now: float) -> None:
        self.now = now
        self.produce(self.producer.tick(now))
        self.consume(self.consumer.tick(now))
        for machine in (self.producer, self.consumer):
            deadline = machine.next_deadline()
            assert deadline is None or deadline > now

    def run(self) -> None:
        # Bursts, and cuts in the midst of them.
        bursts = [self.random.uniform(0, CALM / 2) for _ in range(3)]
        for _ in range(self.count):
            self.at(self.random.choice(bursts) + self.random.uniform(0, 0.3), self.push)
        if self.connection:
            for _ in range(self.random.randrange(8)):
                self.at(self.random.choice(bursts) + self.random.uniform(0, 0.5), self.cut)
        self.cut()
        while not (len(self.delivered) >= self.count and self.producer.oldest == self.count and self.now > CALM):
            deadlines = [self.producer.next_deadline(), self.consumer.next_deadline()]
            due = min((each for each in deadlines if each is not None), default=None)
            if self.agenda and (due is None or self.agenda[0][0] <= due):
                self.now, _, what = heapq.heappop(self.agenda)
                what()
            else:
                assert due is not None, "nothing is awaited, and not all is done"
                self.tick(max(self.now, due))
            assert self.now < CALM + 300, "not all is done long after the network was well again"
            assert self.serial < 100_000, "more messages than there is reason for"


def _check_delivery(simulation: Simulation) -> None:
    assert [record.message for record in simulation.delivered] == [record.message for record in simulation.hub.records]
    assert all(earlier.index < later.index for earlier, later in pairwise(simulation.delivered))
    assert sorted(simulation.pushed) == sorted(record.message for record in simulation.hub.records)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 40))
def test_a_lossy_network_loses_and_repeats_nothing_if_the_hub_refuses_gaps(seed: int, count: int) -> None:
    simulation = Simulation(Random(seed), count, gapless=True, connection=False)
    simulation.run()
    _check_delivery(simulation)
    assert [record.message for record in simulation.hub.records] == simulation.pushed


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 40))
def test_cut_connections_lose_repeat_and_reorder_nothing(seed: int, count: int) -> None:
    simulation = Simulation(Random(seed), count, gapless=False, connection=True)
    simulation.run()
    _check_delivery(simulation)
    assert [record.message for record in simulation.hub.records] == simulation.pushed


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 40))
def test_a_reordering_network_loses_and_repeats_nothing_even_if_the_hub_accepts_gaps(seed: int, count: int) -> None:
    simulation = Simulation(Random(seed), count, gapless=False, connection=False)
    simulation.run()
    _check_delivery(simulation)


@given(st.lists(st.one_of(RESPONSES, st.floats(0, 50), st.integers(0, 9)), max_size=40))
def test_with_any_hub_a_consumer_delivers_in_order_and_has_one_pull_unanswered(
    script: list[Response | float],
) -> None:
    consumer, now, pulls = Consumer("s", "c", limit=3), 0.0, list[int]()
    delivered: list[int] = []

    def note(requests: Sequence[Request]) -> None:
        for request in requests:
            encode(request)
            if isinstance(request, PullRequest):
                pulls.append(request.request_id)

    note(consumer.begin(now))
    for step in script:
        match step:
            case CreateResponse():
                note(consumer.created(CreateResponse("s"), WORKER, now))
            case IndexResponse(_, _, index):
                note(consumer.positioned(IndexResponse("c", "s", index), now))
            case PullResponse(_, records):
                got, requests = consumer.pulled(PullResponse(max(pulls, default=0), records), now)
                delivered += [record.index for record in got]
                note(requests)
            case float():
                now += step
                note(consumer.tick(now))
            case int():
                if delivered:
                    note(consumer.taken(delivered[min(step, len(delivered) - 1)], now))
            case _:
                pass
        assert consumer.hint is None or consumer.hint < 2**64
    assert all(earlier < later for earlier, later in pairwise(delivered))
    assert pulls == list(range(len(pulls)))
