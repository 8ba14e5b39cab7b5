"""Which pushes a topic holds: the last request id of each producer, and the indexes of recent pushes."""

import time
from collections import OrderedDict
from collections.abc import Sequence

import trio

from trionode.plugins import Push, uuid7_milliseconds
from trionode_kafka.client import KafkaClient

#: Seconds for which a hub relies on what it knows of a topic into which other hubs may write too.
KNOWN_SECONDS = 10
#: Seconds by which a producer's clock, which its address contains, may differ from the hubs'. It is also how far back a
#: hub reads for a producer whose address contains no time; such a producer never resends.
BIRTH_SKEW_SECONDS = 300
#: Producers, over all streams, whose last request id is kept; a forgotten one costs a read back to its birth.
MAX_PRODUCERS = 50_000
#: Pushes, over all streams, whose index is kept for a resend: 256 outstanding ones (MAX_PUSHES) of 400 producers.
MAX_RECENT = 100_000

_MAX_REQUEST = (1 << 64) - 1


class DeduplicationIndex:
    """The pushes of one topic. All records from `_since` to below `_end` were read, as of `_as_of` (Unix seconds)."""

    def __init__(self, client: KafkaClient, topic: str, known: "KnownPushes") -> None:
        self._client = client
        self._topic = topic
        self._known = known
        self._since = 0
        self._end: int | None = None
        self._as_of = 0.0
        self._updating = trio.Lock()

    async def update(self, pushes: Sequence[Push]) -> None:
        """Find out which of these pushes are stored, by reading what was not read of the topic yet."""
        async with self._updating:
            await self._update(pushes)

    async def last_request(self, producer: bytes) -> int | None:
        """Return the highest request id of a producer; None if it has stored nothing, as far as the topic remembers."""
        await self.update([Push("", producer, _MAX_REQUEST, b"")])
        last = self._known.last.get((self, producer), -1)
        return None if last < 0 else last

    async def _update(self, pushes: Sequence[Push]) -> None:
        now = time.time()
        if self._end is None or not 0 <= now - self._as_of <= KNOWN_SECONDS:
            end = await self._client.admin.end_offset(self._topic)
            if self._end is None:
                self._since = self._end = end
            elif end > self._end:
                await self._read(self._end, end)
                self._end = max(self._end, end)
            self._as_of = now
        unknown = [
            push for push in pushes if not self._known.has_producer(self, push.producer) or self.is_superseded(push)
        ]
        if not unknown:
            return
        # A resend of a push that was stored so long ago that its index is forgotten: only its producer's whole past
        # shows it.
        end = self._end if any(self.is_superseded(push) for push in unknown) else self._since
        birth = min(_birth_ms(push.producer, now) for push in unknown)
        start = await self._client.admin.offset_at(self._topic, birth - BIRTH_SKEW_SECONDS * 1000)
        if start is not None and start < end:
            await self._read(start, end)
            self._since = min(self._since, start)
        for push in unknown:
            self._known.add_producer(self, push.producer, -1)

    def index(self, push: Push) -> int | None:
        """Return the push's index, if it is stored and a recent one."""
        return self._known.recent.get((self, push.producer, push.request_id))

    def is_superseded(self, push: Push) -> bool:
        """Whether its producer has stored a later push, and this one is not among the recent ones."""
        return (
            push.request_id <= self._known.last.get((self, push.producer), -1)
            and self.index(push) is None
            and uuid7_milliseconds(push.producer) is not None
        )

    def as_of_ms(self) -> int:
        """Return the time at which all this was known (Unix milliseconds), not the present time.

        A record carries it, so that the broker refuses a record of a hub that was suspended before it sent it.
        """
        return int(min(time.time(), self._as_of + KNOWN_SECONDS) * 1000)

    def add(self, push: Push, offset: int) -> int:
        """Note that a push was stored. Returns its index: an earlier one if this is a copy."""
        index = self._known.add(self, push.producer, push.request_id, offset)
        if offset == self._end:
            self._end = offset + 1
        return index

    def expire(self) -> None:
        """Let the next `update` read what other hubs wrote."""
        self._as_of = 0.0

    def forget_unknown(self) -> None:
        """Let `update` read back again for producers that are not known."""
        self._since = self._end or 0

    async def _read(self, start: int, end: int) -> None:
        async for records in self._client.fetcher.scan(self._topic, start, end):
            for record in records:
                if record.producer is not None and record.request_id is not None:
                    self._known.add(self, record.producer, record.request_id, record.offset)


class KnownPushes:
    """What producers stored, over all topics, least recently used first: last request ids, and recent pushes."""

    __slots__ = ("last", "recent")

    def __init__(self) -> None:
        self.last: OrderedDict[tuple[DeduplicationIndex, bytes], int] = OrderedDict()
        self.recent: OrderedDict[tuple[DeduplicationIndex, bytes, int], int] = OrderedDict()

    def has_producer(self, of: DeduplicationIndex, producer: bytes) -> bool:
        """Whether the producer's last request id is known."""
        return (of, producer) in self.last

    def add(self, of: DeduplicationIndex, producer: bytes, request_id: int, offset: int) -> int:
        """Add a stored push. Returns its index, the lowest that was added."""
        self.add_producer(of, producer, request_id)
        key = (of, producer, request_id)
        index = self.recent[key] = min(offset, self.recent.get(key, offset))
        self.recent.move_to_end(key)
        if len(self.recent) > MAX_RECENT:
            self.recent.popitem(last=False)
        return index

    def add_producer(self, of: DeduplicationIndex, producer: bytes, request_id: int) -> None:
        """Note that a producer's last request id is this or a higher one; -1 for a producer that stored nothing."""
        key = (of, producer)
        self.last[key] = max(request_id, self.last.get(key, -1))
        self.last.move_to_end(key)
        if len(self.last) > MAX_PRODUCERS:
            (index, _), _ = self.last.popitem(last=False)
            index.forget_unknown()

    def remove(self, of: DeduplicationIndex) -> None:
        """Forget a topic that is deleted."""
        for producer in [key for key in self.last if key[0] is of]:
            del self.last[producer]
        for push in [key for key in self.recent if key[0] is of]:
            del self.recent[push]


def _birth_ms(producer: bytes, now: float) -> int:
    born = uuid7_milliseconds(producer)
    return int(now * 1000) if born is None else min(born, int(now * 1000))
