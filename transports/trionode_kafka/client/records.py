"""What crosses between the store and Kafka: records, topics, and the calls that hand them over."""

from collections.abc import Callable, Sequence
from typing import Any

import attrs

from trionode.plugins import StoreError

_PRODUCER_HEADER = "producer"
_REQUEST_HEADER = "request_id"
_STREAM_HEADER = "stream"


@attrs.frozen
class Fetched:
    """One record of a topic; `producer` and `request_id` are None where whoever wrote it gave none, `stream` likewise."""

    offset: int
    #: Unix milliseconds by its writer's clock.
    timestamp: int
    value: bytes = attrs.field(repr=False)
    producer: bytes | None = None
    request_id: int | None = None
    stream: str | None = None


@attrs.frozen
class Page:
    """Consecutive records of a topic, at least one, and the offset that its next record had then."""

    records: Sequence[Fetched]
    end: int


@attrs.frozen
class Outgoing:
    """One record to be written to partition 0 of a topic, with the time (Unix milliseconds) at which its writer was sure of it."""

    timestamp: int
    value: bytes = attrs.field(repr=False)
    producer: bytes | None = None
    request_id: int | None = None
    stream: str | None = None

    def headers(self) -> list[tuple[str, bytes]]:
        """What stands beside the value, which is the record and nothing else."""
        headers: list[tuple[str, bytes]] = []
        if self.producer is not None and self.request_id is not None:
            headers = [(_PRODUCER_HEADER, self.producer), (_REQUEST_HEADER, self.request_id.to_bytes(8, "big"))]
        if self.stream is not None:
            headers.append((_STREAM_HEADER, self.stream.encode()))
        return headers


@attrs.frozen
class Topic:
    """What the broker says of a topic; `identity` changes when it is deleted and made anew."""

    name: str
    identity: str
    partitions: int


#: Called in the Trio thread with the record's offset, or with why nothing is known of it.
Confirm = Callable[[int | StoreError], None]
#: Called in the Trio thread with a followed topic's next records, or with why there are no more.
Arrive = Callable[[Sequence[Fetched] | StoreError], None]


def fetched(record: Any) -> Fetched:
    """A record as kafka-python's consumers give it."""
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
    return Fetched(record.offset, record.timestamp, record.value or b"", producer, request_id, stream)
