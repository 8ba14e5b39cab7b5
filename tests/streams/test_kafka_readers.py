"""What a reader of a Kafka stream knows of earlier pushes, without a broker."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trionode_kafka.client import FetchedRecord
from trionode_kafka.store import reader
from trionode_kafka.store.deduplicator import Deduplicator
from trionode_kafka.store.reader import _FollowedEnd

#: Two producers with addresses that carry a time, as ours have, and one without.
PRODUCERS = [b"01890a5d-ac96-774b-bcce-b302099a8057", b"01890a5d-ac96-774b-bcce-b302099a8058", None]


def record(offset: int, producer: int, request_id: int) -> FetchedRecord:
    return FetchedRecord(offset, 0, b"%d" % offset, PRODUCERS[producer], request_id)


@given(
    pushes=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 6)), min_size=1, max_size=40),
    size=st.integers(1, 20),
    batch=st.integers(1, 7),
)
def test_a_reader_that_fell_behind_tells_copies_as_one_that_read_everything(
    pushes: list[tuple[int, int]], size: int, batch: int
) -> None:
    records = [record(offset, *push) for offset, push in enumerate(pushes)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "HISTORY_RECORDS", size)
        followed = _FollowedEnd(0, 0, Deduplicator(), 0.0)
        for first in range(0, len(records), batch):
            followed.on_records(records[first : first + batch])
    assert len(followed.history) == min(size, len(records))
    for index in range(len(records) + 1):
        known = followed.known_at(index)
        assert (known is None) == (index < followed.history_start)
        if known is not None:
            complete = Deduplicator()
            for each in records[:index]:
                complete.is_new(each)
            assert [known.is_new(each) for each in records[index:]] == [
                complete.is_new(each) for each in records[index:]
            ]
    assert all(not each.value for each in followed.history)
