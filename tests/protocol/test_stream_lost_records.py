"""A consumer whose hub no longer holds what it wants: sans-IO, by tables and by a hostile hub of hypothesis."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trionode.errors import WireError
from trionode.protocol.rules.verdicts import Rollback, Truncated, Verdict
from trionode.protocol.stream.consumer import MAX_LIVES, POLL_SECONDS, Consumer
from trionode.protocol.stream.messages import (
    MAX_LIFE,
    NO_LIFE,
    CreateResponse,
    Extent,
    IndexResponse,
    IndexSave,
    PullRequest,
    PullResponse,
    Record,
    Request,
    StreamLife,
    decode_request,
    decode_response,
    encode,
)
from trionode.protocol.wire.address import local

A, B, C = b"A" * 16, b"B" * 16, b"C" * 16


class Reader:
    """A consumer in virtual time, whose records are handled at once unless a test says otherwise."""

    def __init__(self, start: int | None = None, life: bytes | None = A, saved: int | None = None) -> None:
        self.now = 0.0
        self.saves: list[int] = []
        self.got: list[int] = []
        self.consumer = Consumer("s", "c", start=start)
        self.asked: PullRequest | None = None
        self._sent(self.consumer.begin(self.now))
        if life is not None:
            self.consumer.announced(StreamLife("s", life))
        self._sent(self.consumer.created(CreateResponse("s"), (local("w"),), self.now))
        self._sent(self.consumer.positioned(IndexResponse("c", "s", saved), self.now))

    def _sent(self, requests: list[Request] | tuple[Request, ...] | object) -> None:
        assert isinstance(requests, list | tuple)
        for request in requests:
            if isinstance(request, PullRequest):
                self.asked = request
            elif isinstance(request, IndexSave):
                self.saves.append(request.index)

    def pull(self) -> PullRequest:
        """Return the next pull, as soon as it is sent."""
        if self.asked is None:
            self.now += POLL_SECONDS
            self._sent(self.consumer.tick(self.now))
        asked, self.asked = self.asked, None
        assert asked is not None
        return asked

    def answer(self, *indexes: int, extent: Extent | None = None, handled: bool = True) -> list[Verdict]:
        records = tuple(Record(index, b"r") for index in indexes)
        asked = self.pull()
        got, requests = self.consumer.pulled(PullResponse(asked.request_id, records, extent), self.now)
        self._sent(requests)
        self.got += [record.index for record in got]
        if handled:
            for record in got:
                self._sent(self.consumer.taken(record.index, self.now))
        return list(self.consumer.take_verdicts())


def test_a_pull_carries_the_life_only_for_a_hub_that_announced_one() -> None:
    assert Reader(life=None).pull() == PullRequest(0, 0, 100)
    reader = Reader()
    assert reader.pull() == PullRequest(0, 0, 100, A)
    reader.consumer.begin(1.0)  # another hub, perhaps an older one
    (pull,) = reader.consumer.created(CreateResponse("s"), (), 1.0)
    assert isinstance(pull, PullRequest)
    assert pull.life is None
    reader.consumer.announced(StreamLife("other", B))
    assert reader.consumer.begin(2.0)
    reader.consumer.announced(StreamLife("s", B))
    (pull,) = reader.consumer.created(CreateResponse("s"), (), 2.0)
    assert isinstance(pull, PullRequest)
    assert pull.life == A  # the one that it has read, which the hub compares


def test_removed_records_are_reported_and_the_rest_is_read() -> None:
    reader = Reader()
    assert reader.answer(0, 1) == []
    assert reader.answer(7, 8, extent=Extent(A, 7, 9)) == [Truncated("s", 2, 6)]
    assert reader.got == [0, 1, 7, 8]
    assert reader.answer(extent=Extent(A, 20, 20)) == [Truncated("s", 9, 19)]
    assert reader.pull().index == 20


def test_a_stream_that_was_created_again_is_reported_and_read_from_its_start() -> None:
    reader = Reader()
    reader.answer(0, 1, 2)
    assert reader.answer(extent=Extent(B, 0, 2)) == [Rollback("s", 3, 2)]
    reader.now += 1.0
    assert reader.pull() == PullRequest(2, 0, 100, B)
    reader.asked = PullRequest(2, 0, 100, B)
    assert reader.answer(0, 1) == []
    assert reader.got == [0, 1, 2, 0, 1]
    reader.now += 1.0
    reader._sent(reader.consumer.tick(reader.now))
    assert reader.saves[-1] == 2


def test_a_stream_that_was_created_again_and_lost_records_gives_two_verdicts() -> None:
    reader = Reader()
    reader.answer(0, 1, 2)
    assert reader.answer(extent=Extent(B, 5, 9)) == [Rollback("s", 3, 9), Truncated("s", 0, 4)]
    assert reader.pull().index == 5


def test_a_deleted_stream_is_reported_once() -> None:
    reader = Reader()
    reader.answer(0, 1, 2)
    assert reader.answer(extent=Extent(NO_LIFE, 0, 0)) == [Rollback("s", 3, 0)]
    assert reader.answer() == []
    assert reader.answer(extent=Extent(B, 0, 4)) == []
    assert reader.answer(0, 1) == []
    # An empty stream that is deleted has lost nothing.
    reader = Reader()
    assert reader.answer(extent=Extent(NO_LIFE, 0, 0)) == []


def test_a_restored_stream_is_read_from_its_new_end() -> None:
    reader = Reader()
    reader.answer(*range(10))
    assert reader.answer(extent=Extent(A, 0, 6)) == [Rollback("s", 10, 6)]
    assert reader.pull().index == 6


@pytest.mark.parametrize(("start", "saved"), [(None, 100), (100, None)])
def test_a_position_behind_the_end_is_reported(start: int | None, saved: int | None) -> None:
    reader = Reader(start, saved=saved)
    assert reader.answer(extent=Extent(A, 0, 6)) == [Rollback("s", 100, 6)]
    # What a hub saved is a hint, so all is read; what the program says that it has read, it has.
    assert reader.pull().index == (6 if start else 0)


def test_a_hub_that_goes_back_to_an_earlier_life_repeats_nothing() -> None:
    reader = Reader()
    reader.answer(0, 1, 2)
    reader.answer(extent=Extent(B, 0, 2))
    reader.answer(0, 1)
    assert reader.answer(extent=Extent(A, 0, 5)) == [Rollback("s", 2, 5)]
    assert reader.pull().index == 3


def test_a_lie_about_removed_records_loses_nothing_at_an_honest_hub() -> None:
    reader = Reader()
    reader.answer(0, 1, 2)
    assert reader.answer(extent=Extent(A, 10**9, 10**9)) == [Truncated("s", 3, 10**9 - 1)]
    assert reader.answer(extent=Extent(A, 0, 8)) == [Rollback("s", 10**9, 8)]
    assert reader.pull().index == 3


def test_nobody_goes_back_while_records_of_before_are_unhandled() -> None:
    reader = Reader()
    reader.answer(0, 1, handled=False)
    assert reader.answer(extent=Extent(B, 0, 5)) == []
    assert reader.pull().index == 2
    reader.asked = None
    reader._sent(reader.consumer.taken(1, reader.now))
    reader.now += 20
    reader.consumer.begin(reader.now)
    reader.consumer.announced(StreamLife("s", B))
    reader._sent(reader.consumer.created(CreateResponse("s"), (), reader.now))
    assert reader.answer(extent=Extent(B, 0, 5)) == [Rollback("s", 2, 5)]
    assert reader.pull().index == 0


def test_an_extent_that_was_not_asked_for_or_fits_changes_nothing() -> None:
    reader = Reader(life=None)
    assert reader.answer(0, 1, extent=Extent(B, 0, 0)) == []
    reader = Reader()
    assert reader.answer(0, 1, extent=Extent(A, 0, 2)) == []
    assert reader.got == [0, 1]
    assert reader.consumer.pulled(PullResponse(99, (), Extent(B, 0, 0)), reader.now) == ((), ())
    assert not reader.consumer.take_verdicts()


LIVES = st.sampled_from([NO_LIFE, A, B, C, b"D", b"E", b"F", b"G", b"H", b"I", b"J", b"K"])
INDEXES = st.integers(0, 30)


@given(
    st.lists(
        st.tuples(
            st.lists(INDEXES, max_size=4),
            st.none() | st.builds(lambda life, a, b: Extent(life, min(a, b), max(a, b)), LIVES, INDEXES, INDEXES),
        ),
        max_size=40,
    )
)
def test_a_hostile_hub_gets_one_pull_an_answer_and_repeats_nothing_within_a_life(
    answers: list[tuple[list[int], Extent | None]],
) -> None:
    reader = Reader()
    delivered: dict[bytes, int] = {}
    for indexes, extent in answers:
        before, at = len(reader.got), reader.now
        verdicts = reader.answer(*indexes, extent=extent)
        went_back = any(isinstance(verdict, Rollback) for verdict in verdicts)
        if went_back:
            assert len(reader.got) == before
            assert reader.pull() is not None
            assert reader.now >= at + POLL_SECONDS or reader.now > at
            reader.asked = PullRequest(reader.consumer._request - 1, reader.consumer.position or 0, 100)
        life = reader.consumer._life
        assert life is not None
        if extent is not None and extent.end < delivered.get(life, 0):
            delivered[life] = extent.end  # its store was restored: the hub's word, and reported
        for index in reader.got[before:]:
            assert index >= delivered.get(life, 0) or len(delivered) > MAX_LIVES
            delivered[life] = index + 1
        assert len(reader.consumer._lives) <= MAX_LIVES


MESSAGES = [
    PullRequest(1, 2, 3),
    PullRequest(1, 2, 3, A),
    PullRequest(1, 2, 3, NO_LIFE),
    PullResponse(1, (Record(5, b"x"),)),
    PullResponse(1, (Record(5, b"x"),), Extent(A, 5, 6)),
    PullResponse(1, (), Extent(NO_LIFE, 0, 0)),
    StreamLife("s", A),
]


@pytest.mark.parametrize("message", MESSAGES, ids=str)
def test_lives_and_extents_are_encoded(message: PullRequest | PullResponse | StreamLife) -> None:
    decode = decode_request if isinstance(message, PullRequest) else decode_response
    assert decode(encode(message)) == message


def test_what_older_peers_read_is_unchanged() -> None:
    assert encode(PullRequest(1, 2, 3)).hex() == "0b73747265616d5f70756c6c03010203"
    assert encode(PullResponse(1, ())).hex() == "0b73747265616d5f70756c6c020100"


@pytest.mark.parametrize(
    "wrong",
    [
        PullRequest(1, 2, 3, bytes(MAX_LIFE + 1)),
        PullResponse(1, (), Extent(bytes(MAX_LIFE + 1), 0, 0)),
        PullResponse(1, (), Extent(A, 2, 1)),
        StreamLife("s", bytes(MAX_LIFE + 1)),
    ],
    ids=str,
)
def test_a_long_life_and_a_stream_that_ends_before_it_begins_are_refused(
    wrong: PullRequest | PullResponse | StreamLife,
) -> None:
    with pytest.raises(WireError):
        (decode_request if isinstance(wrong, PullRequest) else decode_response)(encode(wrong))
    payload = encode(PullResponse(1, (), Extent(A, 1, 2)))
    assert decode_response(payload) == PullResponse(1, (), Extent(A, 1, 2))
    cut = payload[:12] + bytes([payload[12] - 1]) + payload[13:-1]
    with pytest.raises(WireError):
        decode_response(cut)
