"""A stream store in Kafka: one topic a stream, its offsets the indexes, each push pulled exactly once across restarts and hubs.

A record's value is the message and nothing else; the headers `producer` and `request_id` name the push (spec §11.3). A hub keeps no
state that Kafka does not have, so any number of hubs may share one Kafka. Two things together make a push appear once:

- Before a hub stores, it knows what every producer stored last, by reading the topic: back to a producer's birth when it is new to it,
  and again whatever others added since when its knowledge is older than KNOWN_SECONDS.
- What slips through (two hubs that store the same push at the same time, a hub that was frozen between knowing and storing) lies within
  LOOK_BACK_SECONDS of its first copy: a record carries the time at which its hub knew, and the broker refuses records that are older than
  OUTAGE_SECONDS (`message.timestamp.before.max.ms`). Readers drop, in log order, a UUIDv7 producer's record whose id is not above its last.

Who owns a stream stands in a topic of its own, `<prefix>_owners`, where the first record about a stream wins. An owner record in the
stream's topic would be simpler, but would move the indexes, go with retention, and leave the name of a deleted stream to whoever comes first.
"""

import contextlib
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Mapping, Sequence

import attrs
import trio

from trionode.errors import LocalError
from trionode.protocol.stream import MAX_RECORD, Record, born_at, valid_stream_name
from trionode.stream_store import MAX_STREAMS, Position, Push, Stored, StoreError, UnknownStreamError, fitting
from trionode_kafka.bridge import AwayError, Bridge, Fetched, Outgoing, RefusedByBrokerError, open_bridge

#: Seconds after which the broker refuses a record by its timestamp: how long an outage or a freeze may last before a hub looks again
#: whether another one stored the push meanwhile.
OUTAGE_SECONDS = 60
#: Seconds for which a hub relies on what it knows of a topic to which others may write too.
KNOWN_SECONDS = 10
#: Seconds by which clocks of hubs may differ.
HUB_SKEW_SECONDS = 20
#: Seconds of a topic that a reader looks at before the record at which it starts. Two copies arrive within KNOWN_SECONDS and OUTAGE_SECONDS
#: of each other, and the first's timestamp is at most OUTAGE_SECONDS older than its arrival.
LOOK_BACK_SECONDS = 2 * OUTAGE_SECONDS + KNOWN_SECONDS + HUB_SKEW_SECONDS
#: Seconds by which a producer's clock, which names its birth, may differ from the hubs'; also how far back a hub looks for the pushes of
#: producers whose address says nothing of their birth, and which never resend.
BIRTH_SKEW_SECONDS = 300
#: Producers, over all streams, of which the last request id is kept; one that is forgotten costs a look back to its birth.
MAX_PRODUCERS = 50_000
#: Pushes, over all streams, whose index is kept for a resend: 256 outstanding ones (MAX_PUSHES) of 400 producers.
MAX_RECENT = 100_000
#: Producers that a reader of one stream keeps apart, those that wrote last.
MAX_READ_PRODUCERS = 4096
#: Bytes of pushes that may await confirmation before append waits: kafka-python itself queues without bound to a dead broker.
MAX_OUTSTANDING_BYTES = 32 << 20
#: Bytes of records kept for the readers at the end of one stream, two pull answers; who falls behind them reads from the broker again.
TAIL_BYTES = 128 << 10
#: Bytes of records fetched for readers behind the end and not asked for yet, over all streams.
AHEAD_BYTES = 16 << 20
#: Readers behind the end whose place is kept, each with what is known of the producers before it.
MAX_PLACES = 1024
#: Seconds without a reader after which a stream's end is no longer followed; more than a long poll's pause, less than a reader's absence.
IDLE_SECONDS = 15.0
#: Seconds between two looks whether the topics in use still exist: Kafka itself answers nothing to whoever reads a deleted one.
WATCH_SECONDS = 1.0
#: Topics of one such look.
WATCHED_AT_ONCE = 500
#: Seconds to which the pause between two tries doubles while the broker is away or refuses.
RETRY_SECONDS = 2.0
#: Seconds that confirmations may take to come in once one has failed, before the producer is replaced and asks no more.
SETTLE_SECONDS = 2.0
#: What a record batch with one record costs beside value, producer and headers (measured 110), against `max.message.bytes`.
BATCH_OVERHEAD = 256
#: Longest producer address that fits into a record's headers with everything else.
MAX_PRODUCER = 1024
#: The stream name whose topic would be that of the owners.
OWNERS = "_owners"
#: The largest offset that Kafka has.
MAX_OFFSET = (1 << 63) - 1

_STREAM_SETTINGS: Mapping[str, str] = {
    "cleanup.policy": "delete",
    "message.timestamp.type": "CreateTime",
    "message.timestamp.before.max.ms": str(OUTAGE_SECONDS * 1000),
}
_OWNERS_SETTINGS: Mapping[str, str] = {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"}

_PushKey = tuple[bytes, int]


class _Seen:
    """Which records of a log, read in order, are copies: the last request id of each producer that may resend."""

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


@attrs.define(eq=False)
class _Place:
    """Records fetched ahead for a reader that is at `index`, and what is known of the producers before `end`; None if a tail has that."""

    index: int
    end: int
    seen: _Seen | None
    records: deque[Record] = attrs.field(factory=deque)
    size: int = 0


@attrs.define(eq=False)
class _Tail:
    """The newest records of a followed topic: none from `start` to `end` is missing, but for copies."""

    start: int
    end: int
    seen: _Seen
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


@attrs.define(eq=False)
class _Pending:
    """A push on its way: in its stream's queue, or with the producer."""

    push: Push
    answer: Stored | StoreError | None = None
    done: trio.Event = attrs.field(factory=trio.Event)

    @property
    def key(self) -> _PushKey:
        return self.push.producer, self.push.request_id


@attrs.define(eq=False)
class _Stream:
    """What this hub has in hand of one stream."""

    name: str
    topic: str
    identity: str
    max_message: int
    #: Pushes that no producer has yet, in order; those that the producer has, in order.
    queue: deque[_Pending] = attrs.field(factory=deque)
    sent: dict[_PushKey, _Pending] = attrs.field(factory=dict)
    pending: dict[_PushKey, _Pending] = attrs.field(factory=dict)
    pumping: bool = False
    #: Every record from `known_from` to `known_to` was looked at, at the time `known_at` (wall clock, Unix seconds).
    known_from: int = 0
    known_to: int | None = None
    known_at: float = 0.0
    tail: _Tail | None = None
    gone: bool = False


class KafkaStore:
    """The store that `open_kafka_store` opens; see `trionode.stream_store.StreamStore` for what its methods promise.

    While the broker is away, `append` and `read` wait, whatever else raises StoreError after some seconds. Reading below the first index
    that retention has left raises StoreError, and reading a deleted stream raises UnknownStreamError, so that neither looks like an empty
    stream. Positions are committed offsets of the group `<prefix><client id>`: the broker forgets those of clients that are away for
    `offsets.retention.minutes` (7 days).
    """

    def __init__(self, bridge: Bridge, nursery: trio.Nursery, *, prefix: str, replication_factor: int) -> None:
        self._bridge = bridge
        self._nursery = nursery
        self._prefix = prefix
        self._replication_factor = replication_factor
        self._streams: dict[str, _Stream] = {}
        self._opening: dict[str, trio.Lock] = {}
        # Owners, as far as their topic was read.
        self._owners: dict[str, str] = {}
        self._owners_to: int | None = None
        self._owning = trio.Lock()
        # What producers stored, over all streams, least recently used first.
        self._last: OrderedDict[tuple[str, bytes], int] = OrderedDict()
        self._recent: OrderedDict[tuple[str, bytes, int], int] = OrderedDict()
        # Pushes with the producer.
        self._generation = 0
        self._unconfirmed = 0
        self._outstanding = 0
        self._room = trio.Event()
        self._failed = trio.Event()
        self._settled = trio.Event()
        self._renewing = False
        self._between_renewals = _Pause()
        # Records fetched ahead, least recently used first.
        self._places: OrderedDict[tuple[str, int], _Place] = OrderedDict()
        self._ahead = 0
        # Positions not saved yet.
        self._unsaved: dict[str, dict[str, int]] = {}
        self._saving = trio.Lock()

    # -- streams and their owners ----------------------------------------------------------------------------------------------------

    async def create(self, stream: str, owner: str = "") -> str:
        """Make the topic unless it exists; the owner that stands first in the topic of owners."""
        if stream == OWNERS or not valid_stream_name(stream):
            raise StoreError(f"no stream can be named {stream!r:.100}")
        if stream in self._owners and stream in self._streams:
            return self._owners[stream]
        async with self._owning:
            await self._read_owners()
            if stream not in self._owners and len(self._owners) >= MAX_STREAMS:
                raise StoreError(f"there are {MAX_STREAMS} streams already")
            if stream not in self._owners:
                await self._write(self._prefix + OWNERS, Outgoing(_now_ms(), owner.encode(), stream=stream))
                await self._read_owners()
        await self._bridge.create_topic(
            self._prefix + stream, replication_factor=self._replication_factor, settings=_STREAM_SETTINGS
        )
        await self._stream(stream)
        return self._owners[stream]

    async def _read_owners(self) -> None:
        topic = self._prefix + OWNERS
        if self._owners_to is None:
            await self._bridge.create_topic(
                topic, replication_factor=self._replication_factor, settings=_OWNERS_SETTINGS
            )
            self._owners_to = 0
        end = await self._bridge.end_offset(topic)
        async for records in self._scan(topic, self._owners_to, end):
            for record in records:
                if record.stream is not None:
                    self._owners.setdefault(record.stream, record.value.decode(errors="replace"))
        self._owners_to = end

    async def _stream(self, name: str) -> _Stream:
        """What this hub has of a stream; UnknownStreamError if its topic does not exist."""
        known = self._streams.get(name)
        if known is not None:
            return known
        if name == OWNERS or not valid_stream_name(name):
            raise UnknownStreamError(f"there is no stream {name!r:.100}")
        opening = self._opening.setdefault(name, trio.Lock())
        try:
            # In order of arrival: a push must not overtake one that waits for the same stream.
            async with opening:
                if name not in self._streams:
                    self._streams[name] = await self._open(name)
                return self._streams[name]
        finally:
            if not opening.locked():
                self._opening.pop(name, None)

    async def _open(self, name: str) -> _Stream:
        topic = self._prefix + name
        there = (await self._bridge.describe([topic])).get(topic)
        if there is None:
            raise UnknownStreamError(f"there is no stream {name!r:.100}")
        if there.partitions != 1:
            raise StoreError(f"the topic {topic} has {there.partitions} partitions; a stream has one")
        return _Stream(name, topic, there.identity, await self._bridge.prepare(topic))

    # -- appending -------------------------------------------------------------------------------------------------------------------

    async def append(self, pushes: Sequence[Push]) -> Sequence[Stored | StoreError]:
        """Store a batch; waits while the broker is away, and survives its restart."""
        while self._outstanding > MAX_OUTSTANDING_BYTES:
            await self._room.wait()
        streams = {push.stream: await self._patiently_open(push.stream) for push in pushes}
        # From here to the queues nothing waits, so that pushes keep the order in which they came.
        answers = [self._accept(push, streams[push.stream]) for push in pushes]
        for answer in answers:
            if isinstance(answer, _Pending):
                await answer.done.wait()
        return [_settled(answer) for answer in answers]

    def _accept(self, push: Push, stream: _Stream | StoreError) -> "Stored | StoreError | _Pending":
        if isinstance(stream, StoreError):
            return stream
        refused = _refusal(push, stream.max_message)
        if refused is not None:
            return refused
        pending = stream.pending.get((push.producer, push.request_id))
        if pending is None:
            pending = _Pending(push)
            stream.pending[pending.key] = pending
            stream.queue.append(pending)
            self._outstanding += len(push.record)
            self._pump_soon(stream)
        return pending

    async def _patiently_open(self, name: str) -> _Stream | StoreError:
        pause = _Pause()
        while True:
            try:
                return await self._stream(name)
            except AwayError:
                await pause.wait()
            except StoreError as error:
                return error

    def _pump_soon(self, stream: _Stream) -> None:
        if stream.queue and not stream.pumping and not self._renewing:
            stream.pumping = True
            self._nursery.start_soon(self._pump, stream)

    async def _pump(self, stream: _Stream) -> None:
        """Hand what waits in one stream's queue to the producer, in order, after a look whether it is stored already."""
        pause = _Pause()
        try:
            while stream.queue and self._may_send(stream):
                try:
                    await self._learn(stream)
                except AwayError:
                    await pause.wait()
                except StoreError as error:
                    for pending in list(stream.queue):
                        self._settle(stream, pending, error)
                    stream.queue.clear()
                else:
                    if self._may_send(stream):
                        self._send(stream)
        finally:
            stream.pumping = False

    def _may_send(self, stream: _Stream) -> bool:
        return not self._renewing and not stream.gone

    async def _learn(self, stream: _Stream) -> None:
        """Know of every push in the queue whether it is stored, by reading what of the topic is not known yet."""
        began = time.time()
        if stream.known_to is None:
            end = await self._bridge.end_offset(stream.topic)
            stream.known_from = stream.known_to = end
            stream.known_at = began
        elif began - stream.known_at > KNOWN_SECONDS or began < stream.known_at:
            end = await self._bridge.end_offset(stream.topic)
            if end > stream.known_to:
                await self._look(stream, stream.known_to, end)
            stream.known_to = max(stream.known_to, end)
            stream.known_at = began
        looked: set[_PushKey] = set()
        # Pushes that come while this reads are looked up too: after the last look nothing waits before they are sent.
        while unknown := [
            pending
            for pending in stream.queue
            if pending.key not in looked
            and ((stream.name, pending.push.producer) not in self._last or self._stale(stream, pending))
        ]:
            looked.update(pending.key for pending in unknown)
            # A resend of something stored so long ago that its index is forgotten: only its producer's whole past can tell.
            stale = any(self._stale(stream, pending) for pending in unknown)
            births = [_birth_ms(pending.push.producer, began) for pending in unknown]
            back = await self._bridge.offset_at(stream.topic, min(births) - BIRTH_SKEW_SECONDS * 1000)
            upto = stream.known_to if stale else stream.known_from
            if back is not None and back < upto:
                await self._look(stream, back, upto)
                stream.known_from = min(stream.known_from, back)
            for pending in unknown:
                self._note_producer(stream, pending.push.producer, -1)

    def _stale(self, stream: _Stream, pending: _Pending) -> bool:
        """Whether the push is below its producer's last, yet not among the recent ones."""
        push = pending.push
        return (
            push.request_id <= self._last.get((stream.name, push.producer), -1)
            and (stream.name, *pending.key) not in self._recent
            and born_at(push.producer) is not None
        )

    async def _look(self, stream: _Stream, start: int, end: int) -> None:
        async for records in self._scan(stream.topic, start, end):
            for record in records:
                if record.producer is not None and record.request_id is not None:
                    self._note(stream, record.producer, record.request_id, record.offset)

    def _note(self, stream: _Stream, producer: bytes, request_id: int, offset: int) -> None:
        self._note_producer(stream, producer, request_id)
        key = (stream.name, producer, request_id)
        self._recent[key] = min(offset, self._recent.get(key, offset))
        self._recent.move_to_end(key)
        if len(self._recent) > MAX_RECENT:
            self._recent.popitem(last=False)

    def _note_producer(self, stream: _Stream, producer: bytes, request_id: int) -> None:
        key = (stream.name, producer)
        self._last[key] = max(request_id, self._last.get(key, -1))
        self._last.move_to_end(key)
        if len(self._last) > MAX_PRODUCERS:
            (forgotten, _), _ = self._last.popitem(last=False)
            if forgotten in self._streams:
                # Whoever is not in the table is no longer known to have stored nothing.
                other = self._streams[forgotten]
                other.known_from = other.known_to or 0

    def _send(self, stream: _Stream) -> None:
        """Answer what is stored already and hand the rest to the producer; nothing waits in here."""
        batch = []
        # The time at which all this was known, not the present one: a hub that freezes right here must be refused when it wakes late.
        known_ms = int(min(time.time(), stream.known_at + KNOWN_SECONDS) * 1000)
        while stream.queue:
            pending = stream.queue.popleft()
            index = self._recent.get((stream.name, *pending.key))
            refused = _refusal(pending.push, stream.max_message)
            if index is not None:
                self._settle(stream, pending, Stored(index))
            elif self._stale(stream, pending):
                self._settle(stream, pending, StoreError("this producer has stored later pushes already"))
            elif refused is not None:
                self._settle(stream, pending, refused)
            else:
                stream.sent[pending.key] = pending
                self._unconfirmed += 1
                push = pending.push
                batch.append(
                    (
                        Outgoing(known_ms, push.record, push.producer, push.request_id),
                        _Confirmation(self, stream, pending, self._generation),
                    )
                )
        if batch:
            self._bridge.send(stream.topic, batch)

    def confirm(self, stream: _Stream, pending: _Pending, generation: int, answer: int | StoreError) -> None:
        """Take what the producer says of one push."""
        if generation == self._generation:
            self._unconfirmed -= 1
            if not self._unconfirmed:
                self._settled.set()
        if isinstance(answer, int):
            self._between_renewals = _Pause()
            self._note(stream, pending.push.producer, pending.push.request_id, answer)
            if stream.known_to is not None and answer == stream.known_to:
                stream.known_to = answer + 1
            if pending.answer is None:
                index = self._recent[stream.name, *pending.key]
                stream.sent.pop(pending.key, None)
                self._settle(stream, pending, Stored(index))
        elif generation == self._generation:
            if isinstance(answer, RefusedByBrokerError):
                stream.sent.pop(pending.key, None)
                self._settle(stream, pending, answer)
            self._failed.set()

    def _settle(self, stream: _Stream, pending: _Pending, answer: Stored | StoreError) -> None:
        if pending.answer is not None:
            return
        pending.answer = answer
        pending.done.set()
        stream.pending.pop(pending.key, None)
        self._outstanding -= len(pending.push.record)
        if self._outstanding <= MAX_OUTSTANDING_BYTES:
            self._room.set()
            self._room = trio.Event()

    async def renew(self) -> None:
        """Replace the producer whenever it has failed, and send again what it left unknown, after a look at what is stored."""
        while True:
            await self._failed.wait()
            self._renewing = True
            self._settled = trio.Event()
            if self._unconfirmed:
                with trio.move_on_after(SETTLE_SECONDS):
                    await self._settled.wait()
            self._generation += 1
            self._unconfirmed = 0
            self._failed = trio.Event()
            await self._renew_producer()
            for stream in list(self._streams.values()):
                unknown = [pending for pending in stream.sent.values() if pending.answer is None]
                stream.queue.extendleft(reversed(unknown))
                stream.sent.clear()
                stream.known_at = 0.0
                if unknown:
                    # The limit on records may be what has changed.
                    with contextlib.suppress(StoreError):
                        stream.max_message = await self._bridge.max_message_bytes(stream.topic)
            await self._between_renewals.wait()
            self._renewing = False
            for stream in list(self._streams.values()):
                self._pump_soon(stream)

    async def _renew_producer(self) -> None:
        pause = _Pause()
        while True:
            try:
                await self._bridge.renew_producer()
            except AwayError:
                await pause.wait()
            else:
                return

    async def _write(self, topic: str, record: Outgoing) -> int:
        """Write one record that is nobody's push."""
        answers: list[int | StoreError] = []
        done = trio.Event()

        def confirm(answer: int | StoreError) -> None:
            answers.append(answer)
            done.set()

        self._bridge.send(topic, [(record, confirm)])
        with trio.move_on_after(2 * RETRY_SECONDS):
            await done.wait()
        if not answers:
            raise AwayError("Kafka did not confirm in time")
        (answer,) = answers
        if isinstance(answer, StoreError):
            self._failed.set()
            raise answer
        return answer

    # -- reading ---------------------------------------------------------------------------------------------------------------------

    async def read(self, stream: str, index: int, *, limit: int, max_bytes: int) -> Sequence[Record]:
        """Wait for records from an index on; waits while the broker is away."""
        pause = _Pause()
        while True:
            try:
                there = await self._stream(stream)
                if there.tail is not None and there.tail.start <= index:
                    records = await self._at_the_end(there, there.tail, index)
                else:
                    records = await self._behind(there, index, limit=limit, max_bytes=max_bytes)
            except AwayError:
                # Also what one gets who asks for a topic that was deleted.
                known = self._streams.get(stream)
                if known is not None:
                    with contextlib.suppress(AwayError):
                        await self._check([known])
                await pause.wait()
            else:
                if records:
                    return fitting(records, limit=limit, max_bytes=max_bytes)

    async def _at_the_end(self, stream: _Stream, tail: _Tail, index: int) -> Sequence[Record]:
        """What there is in a followed topic, once there is anything; nothing if the reader has to look elsewhere."""
        tail.readers += 1
        try:
            while stream.tail is tail and tail.start <= index:
                if stream.gone:
                    raise UnknownStreamError(f"the stream {stream.name} was deleted")
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

    async def _behind(self, stream: _Stream, index: int, *, limit: int, max_bytes: int) -> Sequence[Record]:
        """Records behind the end, fetched ahead of their reader; nothing if it is at the end, which is then followed."""
        place = self._places.pop((stream.name, index), None)
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
            self._places[stream.name, place.index] = place
            self._ahead += place.size
        while self._ahead > AHEAD_BYTES or len(self._places) > MAX_PLACES:
            _, oldest = self._places.popitem(last=False)
            self._ahead -= oldest.size
        return taken

    async def _fetch(self, stream: _Stream, index: int, place: _Place | None) -> _Place | None:
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
            timestamp = _now_ms() if page is None else page.records[0].timestamp
            place = _Place(at, at, await self._look_back(stream, first, at, timestamp))
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
            if stream.tail is None or (stream.tail.start > place.end and not stream.tail.readers):
                self._open_tail(stream, place.end, place.seen)
            place.seen = None
            if not place.records:
                return None
        return place

    def _open_tail(self, stream: _Stream, at: int, seen: _Seen) -> None:
        if stream.gone:
            return
        if stream.tail is not None:
            self._bridge.unfollow(stream.topic)
        stream.tail = _Tail(at, at, seen, trio.current_time())
        self._bridge.follow(stream.topic, at, stream.tail.arrive)

    async def _look_back(self, stream: _Stream, first: int, at: int, timestamp: int) -> _Seen:
        """What is to be known of producers by a reader that starts in the middle."""
        seen = _Seen()
        if at > first:
            back = await self._bridge.offset_at(stream.topic, timestamp - LOOK_BACK_SECONDS * 1000)
            if back is not None and back < at:
                async for records in self._scan(stream.topic, max(back, first), at):
                    for record in records:
                        seen.first_time(record)
        return seen

    async def _scan(self, topic: str, start: int, end: int) -> AsyncIterator[Sequence[Fetched]]:
        """All records from one offset to below another, a fetch at a time, so that a long scan lets other readers in between."""
        while start < end:
            page = await self._bridge.fetch(topic, start)
            start = page.records[-1].offset + 1
            yield [record for record in page.records if record.offset < end]

    async def watch(self) -> None:
        """Notice deleted topics, and follow no longer what nobody reads."""
        while True:
            await trio.sleep(WATCH_SECONDS / 2)
            now = trio.current_time()
            for stream in self._streams.values():
                tail = stream.tail
                if tail is not None and not tail.readers and (now - tail.used > IDLE_SECONDS or tail.error):
                    self._close_tail(stream)
            used = [s for s in self._streams.values() if s.sent or s.queue or (s.tail is not None and s.tail.readers)]
            for start in range(0, len(used), WATCHED_AT_ONCE):
                with contextlib.suppress(StoreError):
                    await self._check(used[start : start + WATCHED_AT_ONCE])
                await trio.sleep(WATCH_SECONDS)

    def _close_tail(self, stream: _Stream) -> None:
        if stream.tail is not None:
            self._bridge.unfollow(stream.topic)
            stream.tail = None

    async def _check(self, streams: Sequence[_Stream]) -> None:
        """Let go of streams whose topics are not what they were: readers and pushes get UnknownStreamError."""
        there = await self._bridge.describe([stream.topic for stream in streams])
        for stream in streams:
            found = there.get(stream.topic)
            if (found is None or found.identity != stream.identity) and self._streams.get(stream.name) is stream:
                self._forget(stream)

    def _forget(self, stream: _Stream) -> None:
        del self._streams[stream.name]
        stream.gone = True
        error = UnknownStreamError(f"the stream {stream.name} was deleted")
        if stream.sent:
            # The producer would try them for ever.
            self._failed.set()
        for pending in list(stream.pending.values()):
            self._settle(stream, pending, error)
        tail = stream.tail
        self._close_tail(stream)
        if tail is not None:
            tail.arrive(error)
        for key in [key for key in self._places if key[0] == stream.name]:
            self._ahead -= self._places.pop(key).size
        for producer in [key for key in self._last if key[0] == stream.name]:
            del self._last[producer]
        for push in [key for key in self._recent if key[0] == stream.name]:
            del self._recent[push]

    # -- positions -------------------------------------------------------------------------------------------------------------------

    async def position(self, client_id: str, stream: str) -> int | None:
        """The offset that the client's group committed."""
        return await self._bridge.committed(self._prefix + client_id, self._prefix + stream)

    async def save_positions(self, positions: Sequence[Position]) -> None:
        """Commit offsets, those of all callers that wait in one go, each client's in one request."""
        for position in positions:
            if position.stream != OWNERS:
                offsets = self._unsaved.setdefault(position.client_id, {})
                offsets[self._prefix + position.stream] = min(position.index, MAX_OFFSET)
        async with self._saving:
            unsaved, self._unsaved = self._unsaved, {}
            errors: list[StoreError] = []

            async def commit(client_id: str, offsets: Mapping[str, int]) -> None:
                try:
                    await self._bridge.commit(self._prefix + client_id, offsets)
                except StoreError as error:
                    errors.append(error)

            async with trio.open_nursery() as nursery:
                for client_id, offsets in unsaved.items():
                    nursery.start_soon(commit, client_id, offsets)
        if errors:
            raise errors[0]


@contextlib.asynccontextmanager
async def open_kafka_store(
    where: str, *, prefix: str = "trionode_", replication_factor: int = 1
) -> AsyncIterator[KafkaStore]:
    """Open the store in the Kafka at `where`, "host:port" or several with commas between; the entry point `kafka`.

    Only topics and groups whose names begin with `prefix` are ever touched. Topics are made with `replication_factor` replicas. Raises
    LocalError for what can't be meant and LinkLostError within some seconds when no Kafka answers at `where`. Closing ends every thread and connection
    within some seconds, also while the broker hangs; pushes that await confirmation then are unknown, as after a cancelled `append`.
    """
    if not valid_stream_name(prefix) or len(prefix) > 40:
        raise LocalError(f"a prefix is 1 to 40 of A-Z a-z 0-9 . _ -, not {prefix!r:.100}")
    async with open_bridge(where) as bridge, trio.open_nursery() as nursery:
        store = KafkaStore(bridge, nursery, prefix=prefix, replication_factor=replication_factor)
        nursery.start_soon(store.renew)
        nursery.start_soon(store.watch)
        yield store
        nursery.cancel_scope.cancel()


@attrs.frozen(eq=False)
class _Confirmation:
    """What the bridge calls for one push."""

    store: KafkaStore
    stream: _Stream
    pending: _Pending
    generation: int

    def __call__(self, answer: int | StoreError) -> None:
        self.store.confirm(self.stream, self.pending, self.generation, answer)


class _Pause:
    """Pauses between tries, each twice as long as the one before."""

    __slots__ = ("_seconds",)

    def __init__(self) -> None:
        self._seconds = RETRY_SECONDS / 32

    async def wait(self) -> None:
        await trio.sleep(self._seconds)
        self._seconds = min(2 * self._seconds, RETRY_SECONDS)


def _refusal(push: Push, max_message: int) -> StoreError | None:
    # The broker must not be the one who refuses: its refusal ends the producer.
    if len(push.record) > MAX_RECORD:
        return StoreError(f"a record has at most {MAX_RECORD} bytes, this one has {len(push.record)}")
    if len(push.producer) > MAX_PRODUCER:
        return StoreError(f"a producer's address has at most {MAX_PRODUCER} bytes, this one has {len(push.producer)}")
    if len(push.record) + len(push.producer) + BATCH_OVERHEAD > max_message:
        return StoreError(f"the topic takes at most {max_message} bytes (max.message.bytes); the record does not fit")
    return None


def _settled(answer: "Stored | StoreError | _Pending") -> Stored | StoreError:
    if isinstance(answer, _Pending):
        assert answer.answer is not None
        return answer.answer
    return answer


def _birth_ms(producer: bytes, now: float) -> int:
    born = born_at(producer)
    return int(now * 1000) if born is None else min(born, int(now * 1000))


def _now_ms() -> int:
    return int(time.time() * 1000)
