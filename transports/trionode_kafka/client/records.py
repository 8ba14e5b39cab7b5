"""What crosses between this package and Kafka: records, topics, and the callbacks that take them."""

from collections.abc import Callable, Sequence
from typing import Any

import attrs

from trionode.plugins import StoreError

_PRODUCER_HEADER = "producer"
_REQUEST_HEADER = "request_id"
_STREAM_HEADER = "stream"


@attrs.frozen
class FetchedRecord:
    """One record of a topic. `producer`, `request_id` and `stream` are None if the record has no such header."""

    offset: int
    #: Unix milliseconds by its writer's clock.
    timestamp: int
    value: bytes = attrs.field(repr=False)
    producer: bytes | None = None
    request_id: int | None = None
    stream: str | None = None


@attrs.frozen
class FetchResult:
    """Consecutive records of a topic, and the topic's end offset at that time.

    There may be none, if only markers of transactions stand between the offset that was asked for and `next`.
    """

    records: Sequence[FetchedRecord]
    #: The offset to fetch next.
    next: int
    end: int


@attrs.frozen
class OutgoingRecord:
    """One record for partition 0 of a topic. `timestamp` is in Unix milliseconds."""

    timestamp: int
    value: bytes = attrs.field(repr=False)
    producer: bytes | None = None
    request_id: int | None = None
    stream: str | None = None

    def headers(self) -> list[tuple[str, bytes]]:
        """Return the headers. The value is the message and nothing else."""
        headers: list[tuple[str, bytes]] = []
        if self.producer is not None and self.request_id is not None:
            headers = [(_PRODUCER_HEADER, self.producer), (_REQUEST_HEADER, self.request_id.to_bytes(8, "big"))]
        if self.stream is not None:
            headers.append((_STREAM_HEADER, self.stream.encode()))
        return headers


@attrs.frozen
class TopicInfo:
    """What the broker reports about a topic. `topic_id` changes when the topic is deleted and created again."""

    name: str
    topic_id: str
    partitions: int
    has_leader: bool = True


#: Called in the Trio thread with the record's offset, or with the error after which it is unknown whether the record
#: was written.
OnConfirmed = Callable[[int | StoreError], None]
#: Called in the Trio thread with the next records of a followed topic, or with the error after which no more come.
OnRecords = Callable[[Sequence[FetchedRecord] | StoreError], None]


def fetched_record(record: Any) -> FetchedRecord:
    """Convert a record of kafka-python's consumers."""
    producer: bytes | None = None
    request_id: int | None = None
    stream: str | None = None
    for name, value in record.headers:
        if name == _PRODUCER_HEADER:
            producer = value
        elif name == _REQUEST_HEADER and value is not None and len(value) == 8:
            request_id = int.from_bytes(value, "big")
        elif name == _STREAM_HEADER and value is not None:
            stream = value.decode(errors="replace")
    return FetchedRecord(record.offset, record.timestamp, record.value or b"", producer, request_id, stream)
