"""Pushes on their way into topics: in order, each stored once, through producers that are replaced whenever they fail."""

import contextlib
from collections import deque
from collections.abc import Sequence

import attrs
import trio

from trionode.plugins import MAX_RECORD, FinalError, Push, Stored, StoreError, UnknownStreamError
from trionode_kafka.client import AwayError, Bridge, Outgoing, RefusedByBrokerError
from trionode_kafka.store.deduplication_index import Knowledge, Memory
from trionode_kafka.store.retry import RETRY_SECONDS, Pause
from trionode_kafka.store.streams import Stream, Streams

#: Bytes of pushes that may await confirmation before append waits: kafka-python itself queues without bound to a dead broker.
MAX_OUTSTANDING_BYTES = 32 << 20
#: Seconds that confirmations may take to come in once one has failed, before the producer is replaced and asks no more.
SETTLE_SECONDS = 2.0
#: What a record batch with one record costs beside value, producer and headers (measured 110), against `max.message.bytes`.
BATCH_OVERHEAD = 256
#: Longest producer address that fits into a record's headers with everything else.
MAX_PRODUCER = 1024

_PushKey = tuple[bytes, int]


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
class _Line:
    """The pushes on their way into one stream, and what is known of those that are there."""

    stream: Stream
    known: Knowledge
    #: Pushes that no producer has yet, in order; those that the producer has, in order.
    queue: deque[_Pending] = attrs.field(factory=deque)
    sent: dict[_PushKey, _Pending] = attrs.field(factory=dict)
    pending: dict[_PushKey, _Pending] = attrs.field(factory=dict)
    pumping: bool = False


class Pushing:
    """All pushes on their way, and the producer that has some of them; `renew` runs as long as it does."""

    def __init__(self, bridge: Bridge, nursery: trio.Nursery, streams: Streams) -> None:
        self._bridge = bridge
        self._nursery = nursery
        self._streams = streams
        self._memory = Memory()
        self._lines: dict[Stream, _Line] = {}
        self._outstanding = 0
        self._room = trio.Event()
        # Pushes with the producer of this generation.
        self._protocol_version = 0
        self._unconfirmed = 0
        self._failed = trio.Event()
        self._settled = trio.Event()
        self._renewing = False
        self._between_renewals = Pause()
        streams.when_closed.append(self._let_go)

    async def append(self, pushes: Sequence[Push]) -> Sequence[Stored | StoreError]:
        """Store a batch; waits while the broker is away, and survives its restart."""
        while self._outstanding > MAX_OUTSTANDING_BYTES:
            await self._room.wait()
        streams = {push.stream: await self._patiently_find(push.stream) for push in pushes}
        # From here to the queues nothing waits, so that pushes keep the order in which they came.
        answers = [self._accept(push, streams[push.stream]) for push in pushes]
        for answer in answers:
            if isinstance(answer, _Pending):
                await answer.done.wait()
        return [_settled(answer) for answer in answers]

    async def write(self, topic: str, record: Outgoing) -> int:
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

    def under_way(self, stream: Stream) -> bool:
        """Whether pushes wait for this stream."""
        line = self._lines.get(stream)
        return line is not None and bool(line.sent or line.queue)

    # -- into the queue --------------------------------------------------------------------------------------------------------------

    async def _patiently_find(self, name: str) -> Stream | StoreError:
        pause = Pause()
        while True:
            try:
                return await self._streams.find(name)
            except AwayError:
                await pause.wait()
            except StoreError as error:
                return error

    def _accept(self, push: Push, stream: Stream | StoreError) -> Stored | StoreError | _Pending:
        if isinstance(stream, StoreError):
            return stream
        if stream.gone:
            return _gone(stream)
        refused = _refusal(push, stream.max_message)
        if refused is not None:
            return refused
        line = self._lines.get(stream)
        if line is None:
            line = self._lines[stream] = _Line(stream, Knowledge(self._bridge, stream.topic, self._memory))
        pending = line.pending.get((push.producer, push.request_id))
        if pending is None:
            pending = _Pending(push)
            line.pending[pending.key] = pending
            line.queue.append(pending)
            self._outstanding += len(push.record)
            self._pump_soon(line)
        return pending

    # -- to the producer -------------------------------------------------------------------------------------------------------------

    def _pump_soon(self, line: _Line) -> None:
        if line.queue and not line.pumping and not self._renewing:
            line.pumping = True
            self._nursery.start_soon(self._pump, line)

    async def _pump(self, line: _Line) -> None:
        """Hand what waits in one stream's queue to the producer, in order, after a look whether it is stored already."""
        pause = Pause()
        try:
            while line.queue and self._may_send(line):
                try:
                    await line.known.learn(lambda: [pending.push for pending in line.queue])
                except AwayError:
                    await pause.wait()
                except StoreError as error:
                    for pending in list(line.queue):
                        self._settle(line, pending, error)
                    line.queue.clear()
                else:
                    if self._may_send(line):
                        self._send(line)
        finally:
            line.pumping = False

    def _may_send(self, line: _Line) -> bool:
        return not self._renewing and not line.stream.gone

    def _send(self, line: _Line) -> None:
        """Answer what is stored already and hand the rest to the producer; nothing waits in here."""
        batch = []
        known_ms = line.known.sure_ms()
        while line.queue:
            pending = line.queue.popleft()
            push = pending.push
            index = line.known.index(push)
            refused = _refusal(push, line.stream.max_message)
            if index is not None:
                self._settle(line, pending, Stored(index))
            elif line.known.superseded(push):
                self._settle(line, pending, FinalError("this producer has stored later pushes already"))
            elif refused is not None:
                self._settle(line, pending, refused)
            else:
                line.sent[pending.key] = pending
                self._unconfirmed += 1
                batch.append(
                    (
                        Outgoing(known_ms, push.record, push.producer, push.request_id),
                        _Confirmation(self, line, pending, self._protocol_version),
                    )
                )
        if batch:
            self._bridge.send(line.stream.topic, batch)

    def confirm(self, line: _Line, pending: _Pending, protocol_version: int, answer: int | StoreError) -> None:
        """Take what the producer says of one push."""
        if protocol_version == self._protocol_version:
            self._unconfirmed -= 1
            if not self._unconfirmed:
                self._settled.set()
        if isinstance(answer, int):
            self._between_renewals = Pause()
            index = line.known.stored(pending.push, answer)
            if pending.answer is None:
                line.sent.pop(pending.key, None)
                self._settle(line, pending, Stored(index))
        elif protocol_version == self._protocol_version:
            if isinstance(answer, RefusedByBrokerError):
                line.sent.pop(pending.key, None)
                self._settle(line, pending, answer)
            self._failed.set()

    def _settle(self, line: _Line, pending: _Pending, answer: Stored | StoreError) -> None:
        if pending.answer is not None:
            return
        pending.answer = answer
        pending.done.set()
        line.pending.pop(pending.key, None)
        self._outstanding -= len(pending.push.record)
        if self._outstanding <= MAX_OUTSTANDING_BYTES:
            self._room.set()
            self._room = trio.Event()

    def _let_go(self, stream: Stream) -> None:
        line = self._lines.pop(stream, None)
        if line is None:
            return
        if line.sent:
            # The producer would try them for ever.
            self._failed.set()
        for pending in list(line.pending.values()):
            self._settle(line, pending, _gone(stream))
        self._memory.drop(line.known)

    # -- the producer ----------------------------------------------------------------------------------------------------------------

    async def renew(self) -> None:
        """Replace the producer whenever it has failed, and send again what it left unknown, after a look at what is stored."""
        while True:
            await self._failed.wait()
            self._renewing = True
            self._settled = trio.Event()
            if self._unconfirmed:
                with trio.move_on_after(SETTLE_SECONDS):
                    await self._settled.wait()
            self._protocol_version += 1
            self._unconfirmed = 0
            self._failed = trio.Event()
            await self._renew_producer()
            for line in list(self._lines.values()):
                unknown = [pending for pending in line.sent.values() if pending.answer is None]
                line.queue.extendleft(reversed(unknown))
                line.sent.clear()
                line.known.doubt()
                if unknown:
                    # The limit on records may be what has changed.
                    with contextlib.suppress(StoreError):
                        line.stream.max_message = await self._bridge.max_message_bytes(line.stream.topic)
            await self._between_renewals.wait()
            self._renewing = False
            for line in list(self._lines.values()):
                self._pump_soon(line)

    async def _renew_producer(self) -> None:
        pause = Pause()
        while True:
            try:
                await self._bridge.renew_producer()
            except AwayError:
                await pause.wait()
            else:
                return


@attrs.frozen(eq=False)
class _Confirmation:
    """What the bridge calls for one push."""

    pushing: Pushing
    line: _Line
    pending: _Pending
    protocol_version: int

    def __call__(self, answer: int | StoreError) -> None:
        self.pushing.confirm(self.line, self.pending, self.protocol_version, answer)


def _gone(stream: Stream) -> UnknownStreamError:
    return UnknownStreamError(f"the stream {stream.name} was deleted")


def _refusal(push: Push, max_message: int) -> StoreError | None:
    # The broker must not be the one who refuses: its refusal ends the producer.
    if len(push.record) > MAX_RECORD:
        return FinalError(f"a record has at most {MAX_RECORD} bytes, this one has {len(push.record)}")
    if len(push.producer) > MAX_PRODUCER:
        return FinalError(f"a producer's address has at most {MAX_PRODUCER} bytes, this one has {len(push.producer)}")
    if len(push.record) + len(push.producer) + BATCH_OVERHEAD > max_message:
        return FinalError(f"the topic takes at most {max_message} bytes (max.message.bytes); the record does not fit")
    return None


def _settled(answer: Stored | StoreError | _Pending) -> Stored | StoreError:
    if isinstance(answer, _Pending):
        assert answer.answer is not None
        return answer.answer
    return answer
