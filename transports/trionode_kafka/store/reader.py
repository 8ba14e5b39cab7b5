"""Reading streams: what is at the end of a topic is followed for all who wait there, what is behind it is fetched ahead of each reader."""

import contextlib
import time
from collections import OrderedDict, deque
from collections.abc import Sequence

import attrs
import trio

from trionode.plugins import Record, StoreError, UnknownStreamError, fitting
from trionode_kafka.client import AwayError, Bridge, Fetched
from trionode_kafka.store.deduplicator import Seen, look_back
from trionode_kafka.store.retry import Pause
from trionode_kafka.store.streams import Stream, Streams

#: Bytes of records kept for the readers at the end of one stream, two pull answers; who falls behind them reads from the broker again.
TAIL_BYTES = 128 << 10
#: Bytes of records fetched for readers behind the end and not asked for yet, over all streams.
AHEAD_BYTES = 16 << 20
#: Readers behind the end whose place is kept, each with what is known of the producers before it.
MAX_PLACES = 1024
#: Seconds without a reader after which a stream's end is no longer followed; more than a long poll's pause, less than a reader's absence.
IDLE_SECONDS = 15.0


@attrs.define(eq=False)
class _Place:
    """Records fetched ahead for a reader that is at `index`, and what is known of the producers before `end`; None if a tail has that."""

    index: int
    end: int
    seen: Seen | None
    records: deque[Record] = attrs.field(factory=deque)
    size: int = 0


@attrs.define(eq=False)
class _Tail:
    """The newest records of a followed topic: none from `start` to `end` is missing, but for copies."""

    start: int
    end: int
    seen: Seen
    used: float
    records: deque[Record] = attrs.field(factory=deque)
    size: int = 0
    readers: int = 0
    error: StoreError | None = None
    news: trio.Event = attrs.field(factory=trio.Event)

    def arrive(self, answer: Sequence[Fetched] | StoreError) -> None:
        """Take the next records, drop the oldest beyond TAIL_BYTES, and wake the readers."""
        if isinstance(answer, StoreError):
            self.error = answer
        else:
            for fetched in answer:
                if fetched.offset >= self.end and self.seen.first_time(fetched):
                    record = Record(fetched.offset, fetched.value)
                    self.records.append(record)
                    self.size += record.size
            self.end = max(self.end, answer[-1].offset + 1)
            while self.size > TAIL_BYTES and len(self.records) > 1:
                oldest = self.records.popleft()
                self.size -= oldest.size
                self.start = oldest.index + 1
        self.news.set()
        self.news = trio.Event()

    def since(self, index: int) -> list[Record]:
        """What is here from an index on."""
        if not self.records or index > self.records[-1].index:
            return []
        if index <= self.records[0].index:
            return list(self.records)
        newer: list[Record] = []
        for record in reversed(self.records):
            if record.index < index:
                break
            newer.append(record)
        newer.reverse()
        return newer


class Reading:
    """All readers: the tails of the topics that are followed, and the places of those behind the end, least recently used first."""

    def __init__(self, bridge: Bridge, streams: Streams) -> None:
        self._bridge = bridge
        self._streams = streams
        self._tails: dict[Stream, _Tail] = {}
        self._places: OrderedDict[tuple[Stream, int], _Place] = OrderedDict()
        self._ahead = 0
        streams.when_closed.append(self._let_go)

    async def read(self, stream: str, index: int, *, limit: int, max_bytes: int) -> Sequence[Record]:
        """Wait for records from an index on; waits while the broker is away."""
        pause = Pause()
        while True:
            try:
                there = await self._streams.find(stream)
                tail = self._tails.get(there)
                if tail is not None and tail.start <= index:
                    records = await self._at_the_end(there, tail, index)
                else:
                    records = await self._behind(there, index, limit=limit, max_bytes=max_bytes)
            except AwayError:
                # Also what one gets who asks for a topic that was deleted.
                known = self._streams.get(stream)
                if known is not None:
                    with contextlib.suppress(AwayError):
                        await self._streams.check([known])
                await pause.wait()
            else:
                if records:
                    return fitting(records, limit=limit, max_bytes=max_bytes)

    async def _at_the_end(self, stream: Stream, tail: _Tail, index: int) -> Sequence[Record]:
        """What there is in a followed topic, once there is anything; nothing if the reader has to look elsewhere."""
        tail.readers += 1
        try:
            while self._tails.get(stream) is tail and tail.start <= index:
                if tail.error is not None:
                    self._close_tail(stream)
                    raise tail.error
                records = tail.since(index)
                if records:
                    return records
                await tail.news.wait()
            return ()
        finally:
            tail.readers -= 1
            tail.used = trio.current_time()

    async def _behind(self, stream: Stream, index: int, *, limit: int, max_bytes: int) -> Sequence[Record]:
        """Records behind the end, fetched ahead of their reader; nothing if it is at the end, which is then followed."""
        place = self._places.pop((stream, index), None)
        if place is not None:
            self._ahead -= place.size
        if place is None or not place.records:
            place = await self._fetch(stream, index, place)
        if place is None:
            return ()
        taken = fitting(place.records, limit=limit, max_bytes=max_bytes)
        for record in taken:
            place.records.popleft()
            place.size -= record.size
        place.index = taken[-1].index + 1 if taken else place.end
        if place.records or place.seen is not None:
            self._places[stream, place.index] = place
            self._ahead += place.size
        while self._ahead > AHEAD_BYTES or len(self._places) > MAX_PLACES:
            _, oldest = self._places.popitem(last=False)
            self._ahead -= oldest.size
        return taken

    async def _fetch(self, stream: Stream, index: int, place: _Place | None) -> _Place | None:
        """Go on at a place, or find one for an index; None at the end, which is followed then."""
        if place is None or place.seen is None:
            # The end first: what is there then is above a first offset that is asked for later.
            end = await self._bridge.end_offset(stream.topic)
            first = await self._bridge.first_offset(stream.topic)
            if index < first:
                raise StoreError(
                    f"the records of {stream.name} below {first} are gone: its topic's retention removed them"
                )
            at = min(index, end)
            page = await self._bridge.fetch(stream.topic, at) if at < end else None
            timestamp = int(time.time() * 1000) if page is None else page.records[0].timestamp
            place = _Place(at, at, await look_back(self._bridge, stream.topic, first, at, timestamp))
        else:
            page = await self._bridge.fetch(stream.topic, place.end)
        assert place.seen is not None
        if page is not None:
            for record in page.records:
                if place.seen.first_time(record) and record.offset >= index:
                    place.records.append(Record(record.offset, record.value))
                    place.size += place.records[-1].size
            place.end = page.records[-1].offset + 1
        if page is None or place.end >= page.end:
            # At the end, as of then. The tail goes on from here, with what is known of the producers.
            tail = self._tails.get(stream)
            if tail is None or (tail.start > place.end and not tail.readers):
                self._open_tail(stream, place.end, place.seen)
            place.seen = None
            if not place.records:
                return None
        return place

    def _open_tail(self, stream: Stream, at: int, seen: Seen) -> None:
        if stream.gone:
            return
        if stream in self._tails:
            self._bridge.unfollow(stream.topic)
        tail = self._tails[stream] = _Tail(at, at, seen, trio.current_time())
        self._bridge.follow(stream.topic, at, tail.arrive)

    def _close_tail(self, stream: Stream) -> _Tail | None:
        tail = self._tails.pop(stream, None)
        if tail is not None:
            self._bridge.unfollow(stream.topic)
        return tail

    def close_idle(self) -> None:
        """Follow no longer what nobody reads."""
        now = trio.current_time()
        for stream, tail in list(self._tails.items()):
            if not tail.readers and (now - tail.used > IDLE_SECONDS or tail.error):
                self._close_tail(stream)

    def under_way(self, stream: Stream) -> bool:
        """Whether readers wait at the end of this stream."""
        tail = self._tails.get(stream)
        return tail is not None and tail.readers > 0

    def _let_go(self, stream: Stream) -> None:
        tail = self._close_tail(stream)
        if tail is not None:
            tail.arrive(UnknownStreamError(f"the stream {stream.name} was deleted"))
        for key in [key for key in self._places if key[0] is stream]:
            self._ahead -= self._places.pop(key).size
