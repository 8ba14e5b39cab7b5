"""Which records of a log are copies of pushes that stand in it before: readers drop them, in log order."""

from collections import OrderedDict

from trionode.plugins import born_at
from trionode_kafka.client import Bridge, Fetched
from trionode_kafka.store.deduplication_index import KNOWN_SECONDS
from trionode_kafka.store.streams import OUTAGE_SECONDS

#: Seconds by which clocks of hubs may differ.
HUB_SKEW_SECONDS = 20
#: Seconds of a topic that a reader looks at before the record at which it starts. Two copies arrive within KNOWN_SECONDS and OUTAGE_SECONDS
#: of each other, and the first's timestamp is at most OUTAGE_SECONDS older than its arrival.
LOOK_BACK_SECONDS = 2 * OUTAGE_SECONDS + KNOWN_SECONDS + HUB_SKEW_SECONDS
#: Producers that a reader of one stream keeps apart, those that wrote last.
MAX_READ_PRODUCERS = 4096


class Seen:
    """What was read of one log so far: the last request id of each producer that may resend."""

    __slots__ = ("_last",)

    def __init__(self) -> None:
        self._last: OrderedDict[bytes, int] = OrderedDict()

    def first_time(self, record: Fetched) -> bool:
        """Whether the record is the first copy of its push; to be asked once for every record, in log order."""
        producer, request_id = record.producer, record.request_id
        if producer is None or request_id is None or born_at(producer) is None:
            return True
        if request_id <= self._last.get(producer, -1):
            return False
        self._last[producer] = request_id
        self._last.move_to_end(producer)
        if len(self._last) > MAX_READ_PRODUCERS:
            self._last.popitem(last=False)
        return True


async def look_back(bridge: Bridge, topic: str, first: int, at: int, timestamp: int) -> Seen:
    """What is to be known of producers by a reader that starts at `at`, where the record is of `timestamp` (Unix milliseconds)."""
    seen = Seen()
    if at > first:
        back = await bridge.offset_at(topic, timestamp - LOOK_BACK_SECONDS * 1000)
        if back is not None and back < at:
            async for records in bridge.scan(topic, max(back, first), at):
                for record in records:
                    seen.first_time(record)
    return seen
