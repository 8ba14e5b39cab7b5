"""Reading streams: all readers at the end of a topic share a follower, and each other reader fetches."""

import contextlib
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import attrs
import trio

from trionode.plugins import Backoff, Extent, Record, RecordsGoneError, StoreError, limit_records
from trionode_kafka.client import BrokerUnavailableError, FetchedRecord, FetchResult, KafkaClient
from trionode_kafka.store.deduplicator import Deduplicator, deduplicator_at
from trionode_kafka.store.streams import RETRY_SECONDS, Stream, Streams

#: Bytes of records kept at the end of one stream, two pull answers; a reader that falls behind them reads from the
#: broker again.
END_BYTES = 128 << 10
#: Records of a followed topic whose producers are remembered, without their bytes. A reader that falls behind by no more
#: needs no scan of the topic, which in a long and fast stream would take longer than a reader waits.
HISTORY_RECORDS = 1024
#: Bytes of records that were fetched and not read yet, over all streams and readers.
PREFETCHED_BYTES = 16 << 20
#: Readers behind the end whose cursor is kept, each with what is known of the producers before it.
MAX_CURSORS = 1024
#: Seconds without a reader after which a topic is not followed any more: longer than the pause of a long poll, shorter
#: than an absence.
IDLE_SECONDS = 15.0

T = TypeVar("T")


@attrs.define(eq=False)
class _Cursor:
    """The records that were fetched for the reader at `index`. Without a deduplicator, the followed end has it."""

    index: int
    end: int
    deduplicator: Deduplicator | None
    records: deque[Record] = attrs.field(factory=deque)
    size: int = 0

    def add(self, result: FetchResult) -> None:
        """Add records, except copies and those before the reader."""
        assert self.deduplicator is not None
        for record in result.records:
            if self.deduplicator.is_new(record) and record.offset >= self.index:
                self.records.append(Record(record.offset, record.value))
                self.size += self.records[-1].size
        self.end = result.next

    def take(self, *, limit: int, max_bytes: int) -> Sequence[Record]:
        """Remove the records that fit into one answer, and advance; stay if there were only copies."""
        taken = limit_records(self.records, limit=limit, max_bytes=max_bytes)
        for record in taken:
            self.records.popleft()
            self.size -= record.size
        if taken:
            self.index = taken[-1].index + 1
        return taken


@attrs.define(eq=False)
class _FollowedEnd:
    """The newest records of a followed topic: all from `start` to below `end`, except copies."""

    start: int
    end: int
    deduplicator: Deduplicator
    used_at: float
    records: deque[Record] = attrs.field(factory=deque)
    size: int = 0
    readers: int = 0
    error: StoreError | None = None
    #: The last HISTORY_RECORDS without their values, the offset from which on they are complete, and what was known
    #: there.
    history: deque[FetchedRecord] = attrs.field(factory=deque)
    history_start: int = attrs.field(init=False)
    known_before: Deduplicator = attrs.field(init=False)
    changed: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot)

    def __attrs_post_init__(self) -> None:
        self.history_start, self.known_before = self.end, self.deduplicator.copy()

    def known_at(self, index: int) -> Deduplicator | None:
        """Return the deduplicator for a reader at an index; None if that is too long ago."""
        if not self.history_start <= index <= self.end:
            return None
        known = self.known_before.copy()
        for record in self.history:
            if record.offset >= index:
                break
            known.is_new(record)
        return known

    def _remember(self, record: FetchedRecord) -> None:
        self.history.append(attrs.evolve(record, value=b""))
        if len(self.history) > HISTORY_RECORDS:
            oldest = self.history.popleft()
            self.known_before.is_new(oldest)
            self.history_start = oldest.offset + 1

    def on_records(self, records: Sequence[FetchedRecord] | StoreError) -> None:
        """Add the next records, drop the oldest beyond END_BYTES, and wake the readers."""
        if isinstance(records, StoreError):
            self.error = records
        else:
            for record in records:
                if record.offset < self.end:
                    continue
                self._remember(record)
                if self.deduplicator.is_new(record):
                    self.records.append(Record(record.offset, record.value))
                    self.size += self.records[-1].size
            self.end = max(self.end, records[-1].offset + 1)
            while self.size > END_BYTES and len(self.records) > 1:
                oldest = self.records.popleft()
                self.size -= oldest.size
                self.start = oldest.index + 1
        self.changed.unpark_all()

    def since(self, index: int) -> list[Record]:
        """Return the records from an index on."""
        newer: list[Record] = []
        # A reader is near the end, so this is short.
        for record in reversed(self.records):
            if record.index < index:
                break
            newer.append(record)
        newer.reverse()
        return newer


class Reader:
    """Serves all readers. Cursors of readers behind the end are kept least recently used first."""

    def __init__(self, client: KafkaClient, streams: Streams) -> None:
        self._client = client
        self._streams = streams
        self._followed: dict[Stream, _FollowedEnd] = {}
        self._cursors: OrderedDict[tuple[Stream, int], _Cursor] = OrderedDict()
        self._prefetched = 0
        streams.on_close.append(self._close_stream)

    async def read(self, name: str, index: int, *, limit: int, max_bytes: int) -> Sequence[Record]:
        """Wait for records from an index on, also while the broker is away."""

        async def read() -> Sequence[Record]:
            stream = await self._streams.find(name)
            followed = self._followed.get(stream)
            if followed is not None and followed.start <= index:
                return await self._read_end(stream, followed, index)
            return await self._read_behind(stream, index, limit=limit, max_bytes=max_bytes)

        while not (records := await self._until_available(name, read)):
            pass
        return limit_records(records, limit=limit, max_bytes=max_bytes)

    async def lost(self, name: str, index: int, life: bytes) -> Extent | None:
        """Return what the topic holds, unless it is in this life and holds what follows the index."""

        async def compare() -> Extent | None:
            stream = await self._streams.find(name)
            followed = self._followed.get(stream)
            is_near = (stream, index) in self._cursors or (
                followed is not None and followed.start <= index <= followed.end
            )
            if is_near and life == stream.life:
                return None
            # The end before the first offset: retention may delete records in between.
            end = await self._client.admin.end_offset(stream.topic)
            first = await self._client.admin.first_offset(stream.topic)
            extent = Extent(stream.life, first, max(first, end))
            return None if extent.contains(life, index) else extent

        return await self._until_available(name, compare)

    async def _until_available(self, name: str, call: Callable[[], Awaitable[T]]) -> T:
        """Call until the broker answers; UnknownStreamError if the topic was deleted."""
        backoff = Backoff(*RETRY_SECONDS)
        while True:
            try:
                return await call()
            except BrokerUnavailableError:
                # Kafka also answers so for a topic that was deleted.
                if (known := self._streams.get(name)) is not None:
                    with contextlib.suppress(BrokerUnavailableError):
                        await self._streams.check([known])
                await trio.sleep(backoff.failed())

    async def _read_end(self, stream: Stream, followed: _FollowedEnd, index: int) -> Sequence[Record]:
        """Wait for records at the end; returns none if the reader has to read elsewhere."""
        followed.readers += 1
        try:
            while self._followed.get(stream) is followed and followed.start <= index:
                if followed.error is not None:
                    self._unfollow(stream)
                    raise followed.error
                if records := followed.since(index):
                    return records
                await followed.changed.park()
            return ()
        finally:
            followed.readers -= 1
            followed.used_at = trio.current_time()

    async def _read_behind(self, stream: Stream, index: int, *, limit: int, max_bytes: int) -> Sequence[Record]:
        """Return records behind the end; returns none at the end, which is followed then."""
        cursor = self._cursors.pop((stream, index), None)
        if cursor is not None:
            self._prefetched -= cursor.size
        if cursor is None or not cursor.records:
            try:
                fetched = await self._fetch(stream, index, cursor)
            except BaseException:  # whatever it is; mostly a reader that pulls again, and a new cursor costs a scan
                if cursor is not None:
                    self._keep(stream, cursor)
                raise
            if fetched is None:
                return ()
            cursor = fetched
        taken = cursor.take(limit=limit, max_bytes=max_bytes)
        if cursor.records or cursor.deduplicator is not None:
            self._keep(stream, cursor)
        return taken

    def _keep(self, stream: Stream, cursor: _Cursor) -> None:
        self._cursors[stream, cursor.index] = cursor
        self._prefetched += cursor.size
        while self._prefetched > PREFETCHED_BYTES or len(self._cursors) > MAX_CURSORS:
            _, oldest = self._cursors.popitem(last=False)
            self._prefetched -= oldest.size

    async def _fetch(self, stream: Stream, index: int, cursor: _Cursor | None) -> _Cursor | None:
        """Fetch records for a cursor, or for a new one; returns None at the end, which is followed then."""
        followed = self._followed.get(stream)
        if (cursor is None or cursor.deduplicator is None) and followed is not None:
            known = followed.known_at(index)
            cursor = cursor if known is None else _Cursor(index, index, known)
        if cursor is None or cursor.deduplicator is None:
            # The end before the first offset: retention may delete records in between.
            end = await self._client.admin.end_offset(stream.topic)
            first = await self._client.admin.first_offset(stream.topic)
            if index < first:
                raise RecordsGoneError(
                    f"the records of {stream.name} below {first} are gone: its topic's retention removed them", first
                )
            at = min(index, end)
            result = await self._client.fetcher.fetch(stream.topic, at) if at < end else None
            timestamp = int(time.time() * 1000) if result is None or not result.records else result.records[0].timestamp
            deduplicator = await deduplicator_at(self._client, stream.topic, first, at, timestamp)
            cursor = _Cursor(index, at, deduplicator)
        else:
            result = await self._client.fetcher.fetch(stream.topic, cursor.end)
        if result is not None:
            cursor.add(result)
        if result is None or cursor.end >= result.end:
            # The cursor is at the end as of then. The followed end continues from here, with the same deduplicator.
            assert cursor.deduplicator is not None
            followed = self._followed.get(stream)
            if followed is None or (followed.start > cursor.end and not followed.readers):
                self._follow(stream, cursor.end, cursor.deduplicator)
            cursor.deduplicator = None
            if not cursor.records:
                return None
        return cursor

    def _follow(self, stream: Stream, at: int, deduplicator: Deduplicator) -> None:
        if stream.deleted:
            return
        if stream in self._followed:
            self._client.follower.unfollow(stream.topic)
        followed = self._followed[stream] = _FollowedEnd(at, at, deduplicator, trio.current_time())
        self._client.follower.follow(stream.topic, at, followed.on_records)

    def _unfollow(self, stream: Stream) -> _FollowedEnd | None:
        followed = self._followed.pop(stream, None)
        if followed is not None:
            self._client.follower.unfollow(stream.topic)
        return followed

    def close_idle(self) -> None:
        """Stop following the topics that have no readers."""
        now = trio.current_time()
        for stream, followed in list(self._followed.items()):
            if not followed.readers and (now - followed.used_at > IDLE_SECONDS or followed.error):
                self._unfollow(stream)

    def is_used(self, stream: Stream) -> bool:
        """Whether readers wait at the end of this stream."""
        followed = self._followed.get(stream)
        return followed is not None and followed.readers > 0

    def _close_stream(self, stream: Stream) -> None:
        followed = self._unfollow(stream)
        if followed is not None:
            followed.on_records(stream.error())
        for key in [key for key in self._cursors if key[0] is stream]:
            self._prefetched -= self._cursors.pop(key).size
