"""Dropping the copies of pushes: readers do it, in the order of the topic."""

from collections import OrderedDict

from trionode.plugins import uuid7_milliseconds
from trionode_kafka.client import FetchedRecord, KafkaClient
from trionode_kafka.store.deduplication_index import KNOWN_SECONDS
from trionode_kafka.store.streams import OUTAGE_SECONDS

#: Seconds by which clocks of hubs may differ.
HUB_SKEW_SECONDS = 20
#: Seconds of a topic that a reader reads before the record at which it starts. Two copies arrive within KNOWN_SECONDS
#: and OUTAGE_SECONDS of each other, and the first one's timestamp is at most OUTAGE_SECONDS older than its arrival.
LOOK_BACK_SECONDS = 2 * OUTAGE_SECONDS + KNOWN_SECONDS + HUB_SKEW_SECONDS
#: Producers of one stream that a reader knows, those that wrote last.
MAX_READ_PRODUCERS = 4096


class Deduplicator:
    """Knows the last request id of each producer that may resend, from the records of one topic so far."""

    __slots__ = ("_last",)

    def __init__(self) -> None:
        self._last: OrderedDict[bytes, int] = OrderedDict()

    def copy(self) -> "Deduplicator":
        """Return another one that knows the same."""
        other = Deduplicator()
        other._last = self._last.copy()
        return other

    def is_new(self, record: FetchedRecord) -> bool:
        """Whether the record is the first copy of its push. Call it once for every record, in order."""
        producer, request_id = record.producer, record.request_id
        if producer is None or request_id is None or uuid7_milliseconds(producer) is None:
            return True
        if request_id <= self._last.get(producer, -1):
            return False
        self._last[producer] = request_id
        self._last.move_to_end(producer)
        if len(self._last) > MAX_READ_PRODUCERS:
            self._last.popitem(last=False)
        return True


async def deduplicator_at(client: KafkaClient, topic: str, first: int, at: int, timestamp: int) -> Deduplicator:
    """Return the deduplicator for a reader that starts at an offset.

    Args:
      client: The Kafka.
      topic: The topic.
      first: Its first offset.
      at: The offset at which the reader starts.
      timestamp: The timestamp of the record there, Unix milliseconds.
    """
    deduplicator = Deduplicator()
    if at > first:
        start = await client.admin.offset_at(topic, timestamp - LOOK_BACK_SECONDS * 1000)
        if start is not None and start < at:
            async for records in client.fetcher.scan(topic, max(start, first), at):
                for record in records:
                    deduplicator.is_new(record)
    return deduplicator
