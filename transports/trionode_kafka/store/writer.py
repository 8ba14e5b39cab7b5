"""Pushes on their way into topics: in order, each stored once. The producer is replaced whenever it fails."""

from collections.abc import Sequence
from contextlib import suppress
from functools import partial

import attrs
import trio

from trionode.plugins import MAX_RECORD, Backoff, FinalError, Push, Stored, StoreError
from trionode_kafka.client import BrokerUnavailableError, KafkaClient, OutgoingRecord, RefusedByBrokerError, wait_for
from trionode_kafka.store.deduplication_index import DeduplicationIndex, KnownPushes
from trionode_kafka.store.streams import RETRY_SECONDS, Stream, Streams

#: Bytes of pushes that may be unconfirmed before `append` waits: kafka-python itself queues without bound for a dead
#: broker.
MAX_UNCONFIRMED_BYTES = 32 << 20
#: Seconds that one record which is not a push may be unconfirmed.
WRITE_SECONDS = 4.0
#: Seconds that other confirmations may still take after one has failed, before the producer is replaced.
CONFIRM_SECONDS = 2.0
#: What a record batch with one record costs beside value, producer and headers (measured 110), against
#: `max.message.bytes`.
BATCH_OVERHEAD = 256
#: Bytes of the longest producer address that fits into a record's headers.
MAX_PRODUCER = 1024


@attrs.define(eq=False)
class _Pending:
    """A push on its way, and its answer."""

    push: Push
    answer: Stored | StoreError | None = None
    answered: trio.Event = attrs.field(factory=trio.Event)


@attrs.define(eq=False)
class _Queue:
    """The pushes on their way into one stream, in order. One task stores them, batch by batch."""

    stream: Stream
    index: DeduplicationIndex
    pending: dict[tuple[bytes, int], _Pending] = attrs.field(factory=dict)
    #: Records with the present producer.
    unconfirmed: int = 0
    confirmed: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot)
    is_storing: bool = False


class Writer:
    """Stores pushes. `replace_producers` must run as long as it does."""

    def __init__(self, client: KafkaClient, nursery: trio.Nursery, streams: Streams) -> None:
        self._client = client
        self._nursery = nursery
        self._streams = streams
        self._known = KnownPushes()
        self._queues: dict[Stream, _Queue] = {}
        self._bytes = 0
        self._capacity = trio.lowlevel.ParkingLot()
        #: The number of producers before the present one.
        self._producer_epoch = 0
        self._producer_failed = trio.Event()
        self._replaced = trio.lowlevel.ParkingLot()
        self._replacing = Backoff(*RETRY_SECONDS)
        streams.on_close.append(self._close_stream)

    async def append(self, pushes: Sequence[Push]) -> Sequence[Stored | StoreError]:
        """Store a batch; it waits while the broker is away, and survives its restart."""
        while self._bytes > MAX_UNCONFIRMED_BYTES:
            await self._capacity.park()
        streams = {push.stream: await self._find(push.stream) for push in pushes}
        # No await from here to the queues, so that pushes keep the order in which they came.
        pending = [self._enqueue(push, streams[push.stream]) for push in pushes]
        for each in pending:
            await each.answered.wait()
        return [each.answer for each in pending if each.answer is not None]

    async def last_request(self, name: str, producer: bytes) -> int | None:
        """Return the last request id of a producer in a stream, whichever hub stored it."""
        queue = self._queue(await self._streams.find(name))
        queue.index.expire()
        return await queue.index.last_request(producer)

    async def write(self, topic: str, record: OutgoingRecord) -> int:
        """Write one record that is not a push. Returns its offset."""
        try:
            with trio.fail_after(WRITE_SECONDS):
                return await wait_for(self._client.producer.write(topic, record))
        except trio.TooSlowError:
            raise BrokerUnavailableError("Kafka did not confirm in time") from None
        except StoreError:
            self._producer_failed.set()
            raise

    def is_used(self, stream: Stream) -> bool:
        """Whether pushes wait for this stream."""
        queue = self._queues.get(stream)
        return queue is not None and bool(queue.pending)

    async def _find(self, name: str) -> Stream | StoreError:
        backoff = Backoff(*RETRY_SECONDS)
        while True:
            try:
                return await self._streams.find(name)
            except BrokerUnavailableError:
                await trio.sleep(backoff.failed())
            except StoreError as error:
                return error

    def _enqueue(self, push: Push, stream: Stream | StoreError) -> _Pending:
        refused = stream if isinstance(stream, StoreError) else _refusal(push, stream)
        if isinstance(stream, StoreError) or refused is not None:
            unsent = _Pending(push, refused)
            unsent.answered.set()
            return unsent
        queue = self._queue(stream)
        key = (push.producer, push.request_id)
        pending = queue.pending.get(key)
        if pending is None:
            pending = queue.pending[key] = _Pending(push)
            self._bytes += len(push.record)
            if not queue.is_storing:
                queue.is_storing = True
                self._nursery.start_soon(self._store, queue)
        return pending

    def _queue(self, stream: Stream) -> _Queue:
        queue = self._queues.get(stream)
        if queue is None:
            index = DeduplicationIndex(self._client, stream.topic, self._known)
            queue = self._queues[stream] = _Queue(stream, index)
        return queue

    # -- to the producer

    async def _store(self, queue: _Queue) -> None:
        """Store the pushes in a queue: look up which are stored, write the others, wait for confirmations, repeat."""
        backoff = Backoff(*RETRY_SECONDS)
        try:
            while queue.pending:
                epoch, batch = self._producer_epoch, list(queue.pending.values())
                try:
                    await queue.index.update([pending.push for pending in batch])
                except BrokerUnavailableError:
                    await trio.sleep(backoff.failed())
                except StoreError as error:
                    for pending in batch:
                        self._answer(queue, pending, error)
                else:
                    backoff.reset()
                    if epoch == self._producer_epoch and not self._producer_failed.is_set():
                        self._send(queue, batch)
                    while queue.unconfirmed and epoch == self._producer_epoch:
                        await queue.confirmed.park()
                while self._producer_failed.is_set():
                    await self._replaced.park()
        finally:
            queue.is_storing = False

    def _send(self, queue: _Queue, batch: Sequence[_Pending]) -> None:
        """Answer the pushes that are stored already, and write the others. It does not wait."""
        records = []
        timestamp = queue.index.as_of_ms()
        for pending in batch:
            push = pending.push
            if pending.answer is not None:
                continue  # confirmed late, or deleted
            if (index := queue.index.index(push)) is not None:
                self._answer(queue, pending, Stored(index))
            elif queue.index.is_superseded(push):
                self._answer(queue, pending, FinalError("this producer has stored later pushes already"))
            elif (refused := _refusal(push, queue.stream)) is not None:
                self._answer(queue, pending, refused)
            else:
                record = OutgoingRecord(timestamp, push.record, push.producer, push.request_id)
                records.append((record, partial(self._on_confirmed, queue, pending, self._producer_epoch)))
        queue.unconfirmed = len(records)
        if records:
            self._client.producer.send(queue.stream.topic, records)

    def _on_confirmed(self, queue: _Queue, pending: _Pending, epoch: int, answer: int | StoreError) -> None:
        if isinstance(answer, int):
            self._replacing.reset()
            # Also of an earlier producer.
            self._answer(queue, pending, Stored(queue.index.add(pending.push, answer)))
        elif epoch == self._producer_epoch:
            if isinstance(answer, RefusedByBrokerError):
                self._answer(queue, pending, answer)
            self._producer_failed.set()
        if epoch == self._producer_epoch:
            queue.unconfirmed -= 1
            if not queue.unconfirmed:
                queue.confirmed.unpark_all()

    def _answer(self, queue: _Queue, pending: _Pending, answer: Stored | StoreError) -> None:
        if pending.answer is None:
            pending.answer = answer
            pending.answered.set()
            queue.pending.pop((pending.push.producer, pending.push.request_id), None)
            self._bytes -= len(pending.push.record)
            if self._bytes <= MAX_UNCONFIRMED_BYTES:
                self._capacity.unpark_all()

    def _close_stream(self, stream: Stream) -> None:
        queue = self._queues.pop(stream, None)
        if queue is None:
            return
        if queue.unconfirmed:
            # The producer would try for ever to write them.
            self._producer_failed.set()
        for pending in list(queue.pending.values()):
            self._answer(queue, pending, stream.error())
        queue.unconfirmed = 0
        queue.confirmed.unpark_all()
        self._known.remove(queue.index)

    # -- the producer

    async def replace_producers(self) -> None:
        """Replace the producer whenever it has failed; the queues then look up what it left unknown, and go on."""
        while True:
            await self._producer_failed.wait()
            with trio.move_on_after(CONFIRM_SECONDS):
                for queue in list(self._queues.values()):
                    while queue.unconfirmed:
                        await queue.confirmed.park()
            self._producer_epoch += 1
            while True:
                try:
                    await self._client.producer.replace()
                except StoreError:
                    await trio.sleep(self._replacing.failed())
                else:
                    break
            for queue in list(self._queues.values()):
                queue.index.expire()
                queue.unconfirmed = 0
                if queue.pending:
                    # The topic's limit may be what has changed.
                    with suppress(StoreError):
                        limit = await self._client.admin.max_message_bytes(queue.stream.topic)
                        queue.stream.max_message_bytes = limit
                queue.confirmed.unpark_all()
            await trio.sleep(self._replacing.failed())
            self._producer_failed = trio.Event()
            self._replaced.unpark_all()


def _refusal(push: Push, stream: Stream) -> StoreError | None:
    """Return why a push can't be stored. If the broker refused it, that would end the producer."""
    if stream.deleted:
        return stream.error()
    if len(push.record) > MAX_RECORD:
        return FinalError(f"a record has at most {MAX_RECORD} bytes, this one has {len(push.record)}")
    if len(push.producer) > MAX_PRODUCER:
        return FinalError(f"a producer's address has at most {MAX_PRODUCER} bytes, this one has {len(push.producer)}")
    limit = stream.max_message_bytes
    if len(push.record) + len(push.producer) + BATCH_OVERHEAD > limit:
        return FinalError(f"the topic takes at most {limit} bytes (max.message.bytes); the record does not fit")
    return None
