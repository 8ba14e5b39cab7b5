"""The one module that imports kafka-python: its threaded clients behind a small typed interface for Trio.

kafka-python's clients block and keep threads of their own, so each lives in a lane: a thread with a queue of jobs. Batches cross
between Trio and the lanes, never single records; what comes back is drained in the Trio thread once a burst.
"""

import contextlib
import itertools
import socket
import threading
import time
import warnings
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from queue import Empty, SimpleQueue
from typing import Any, ClassVar, Final, Generic, TypeVar
from weakref import WeakSet

import attrs
import trio

from trionode.errors import LinkLostError, LocalError
from trionode.stream_store import StoreError

with warnings.catch_warnings():
    # Loading kafka-python 3.0.12 warns of its own use of importlib.resources, which a program that makes warnings errors should survive.
    warnings.simplefilter("ignore", DeprecationWarning)
    from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
    from kafka.admin import ConfigResource, ConfigResourceType
    from kafka.errors import (
        AuthorizationError,
        KafkaError,
        KafkaTimeoutError,
        OffsetOutOfRangeError,
        TopicAlreadyExistsError,
        UnknownTopicOrPartitionError,
    )
    from kafka.net.inet import KafkaNetSocket
    from kafka.protocol.consumer import OffsetSpec
    from kafka.structs import OffsetAndMetadata, TopicPartition

#: Seconds for a TCP connection and for a client's first exchange, before a wrong address is called wrong.
CONNECT_SECONDS = 4.0
#: Seconds that one request may take; a broker back from a kill needs 3.5-7 s, and whoever waited tries again.
REQUEST_SECONDS = 5.0
#: Seconds for which the producer looks for a topic that it does not know, while what others write waits: it was asked for (`prepare`)
#: before, so that only one deleted since is unknown.
BLOCK_SECONDS = 2.0
#: Seconds for one go of fetches of records that are there; whoever went without asks again.
PAGE_SECONDS = 2.0
#: Topics of one go: their records are in memory together, FETCH_BYTES each.
FETCHES_AT_ONCE = 32
#: Milliseconds that the broker holds back an empty fetch. A stream that joins the shared consumer waits for the end of the fetch that is
#: out, so this is what its first record may be late; an idle hub with a waiting reader asks so often.
FETCH_WAIT_MS = 25
#: Bytes of one partition in one fetch: 4 records of the longest kind, or some 2,000 short ones, which cost the Trio thread 5 ms.
FETCH_BYTES = 256 << 10
#: Bytes of all partitions in one fetch.
FETCH_BYTES_TOTAL = 4 << 20
#: Records of one poll: all that one fetch can hold, since a poll that leaves some behind loses them at the next `assign`.
POLL_RECORDS = 100_000
#: Batches, of one topic each, that the shared consumer may be ahead of Trio.
BATCHES_AHEAD = 4
#: Confirmations that the Trio thread takes in one turn, some 2 ms.
DRAIN_AT_ONCE = 256
#: Lanes for requests to the controller and the group coordinators: each is a round trip or two, and they do not depend on each other.
ADMIN_LANES = 8
#: Seconds between two looks whether a new topic has its leader.
LEADER_SECONDS = 0.01
#: Seconds between two tries of a request: a coordinator that was being made took 0.1-0.5 s.
AGAIN_SECONDS = 0.1
#: Seconds until whoever closes stops waiting for a thread of kafka-python; it measured 0.1 s at most.
CLOSE_SECONDS = 2.0

_CLIENT: Final[Mapping[str, object]] = {
    "bootstrap_timeout_ms": int(CONNECT_SECONDS * 1000),
    "request_timeout_ms": int(REQUEST_SECONDS * 1000),
    # The default of 30 s makes clients resume 6-31 s after the broker is back.
    "reconnect_backoff_max_ms": 500,
    # Also the least time between two looks at the metadata, for which the first use of a topic waits.
    "retry_backoff_ms": 20,
}
_ADMIN: Final[Mapping[str, object]] = {
    **_CLIENT,
    # The default of 5 makes a sixth request fail at once, instead of waiting.
    "max_in_flight_requests_per_connection": 100,
}
_CONSUMER: Final[Mapping[str, object]] = {
    **_CLIENT,
    "metrics_enabled": False,
    "enable_auto_commit": False,
    "allow_auto_create_topics": False,
    # Retention or deletion must be an error, not a silent jump.
    "auto_offset_reset": "none",
    "fetch_min_bytes": 1,
    "fetch_max_wait_ms": FETCH_WAIT_MS,
    "max_partition_fetch_bytes": FETCH_BYTES,
    "fetch_max_bytes": FETCH_BYTES_TOTAL,
    "max_poll_records": POLL_RECORDS,
}
_PRODUCER: Final[Mapping[str, object]] = {
    **_CLIENT,
    "metrics_enabled": False,
    "allow_auto_create_topics": False,
    "acks": "all",
    "enable_idempotence": True,
    "linger_ms": 0,
    # One batch is in flight a partition: larger ones are what raises the rate.
    "batch_size": 262_144,
    # A batch that reaches this while it is retried wedges an idempotent producer of 3.0.12 for ever; deadlines are Trio's.
    "delivery_timeout_ms": 2_147_483_647,
    "max_block_ms": int(BLOCK_SECONDS * 1000),
}

_PRODUCER_HEADER = "producer"
_REQUEST_HEADER = "request_id"
_STREAM_HEADER = "stream"

T = TypeVar("T")

_numbers = itertools.count()


class AwayError(StoreError):
    """The broker does not answer, or not yet; the same may succeed later."""


class RefusedByBrokerError(StoreError):
    """The broker says no, and will say so again."""


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


class _Sockets(KafkaNetSocket):  # type: ignore[misc]
    """kafka-python's way to connect, as a "proxy" of our own that remembers the sockets of each client.

    3.0.12 leaves to the garbage collector the sockets that could not connect, one a try while the broker is away, and those
    with something left to send when their client is closed.
    """

    SCHEMES = ("trionode",)
    _opened: ClassVar[dict[str, WeakSet[socket.socket]]] = {}

    def __init__(self, proxy_url: str) -> None:
        self._client = proxy_url

    async def sock_connect(self, net: Any, sock: socket.socket, sockaddr: Any, timeout_at: float | None = None) -> Any:
        self._opened.setdefault(self._client, WeakSet()).add(sock)
        try:
            return await super().sock_connect(net, sock, sockaddr, timeout_at=timeout_at)
        except BaseException:
            sock.close()
            raise

    @classmethod
    def close_all(cls, client: str) -> None:
        """Close what a client that has ended left open."""
        for left in cls._opened.pop(client, ()):
            left.close()


class _Slot(Generic[T]):
    """Where one job's result arrives, from any thread, for the task that waits for it."""

    __slots__ = ("_done", "_error", "_result", "_token")

    def __init__(self, token: trio.lowlevel.TrioToken) -> None:
        self._done = trio.Event()
        self._token = token
        self._result: T
        self._error: BaseException | None = None

    def give(self, result: T) -> None:
        self._result = result
        self._wake()

    def fail(self, error: BaseException) -> None:
        self._error = error
        self._wake()

    async def answer(self) -> T:
        await self._done.wait()
        if self._error is not None:
            raise self._error
        return self._result

    def _wake(self) -> None:
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._done.set)


class _Lane:
    """Threads that do jobs in order of arrival; the jobs of one thread never overlap, which is what a consumer demands."""

    def __init__(self, name: str, token: trio.lowlevel.TrioToken, *, threads: int = 1) -> None:
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._token = token
        self._threads = [threading.Thread(target=self._work, name=f"kafka {name}", daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def put(self, job: Callable[[], None]) -> None:
        """Leave a job that answers by other means."""
        self._jobs.put(job)

    def run(self, job: Callable[[], T]) -> _Slot[T]:
        """Do a job; if nobody waits for its result any more, the lane finishes it all the same."""
        slot: _Slot[T] = _Slot(self._token)

        def work() -> None:
            try:
                slot.give(job())
            except BaseException as error:  # noqa: BLE001 - it is raised again in the task that waits
                slot.fail(error)

        self._jobs.put(work)
        return slot

    def end(self, deadline: float) -> None:
        """Let the threads end after the job that each is at; called when those jobs can't block any more. Blocks until the deadline."""
        with contextlib.suppress(Empty):
            while True:
                self._jobs.get_nowait()
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()


class _Drain:
    """Calls from other threads, made in the Trio thread, all that wait in one go."""

    def __init__(self, token: trio.lowlevel.TrioToken) -> None:
        self._calls: deque[Callable[[], None]] = deque()
        self._token = token

    def put(self, call: Callable[[], None]) -> None:
        self._calls.append(call)
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._drain, idempotent=True)

    def _drain(self) -> None:
        for _ in range(min(len(self._calls), DRAIN_AT_ONCE)):
            self._calls.popleft()()
        if self._calls:
            # Other tasks have their turn first.
            self._token.run_sync_soon(self._drain, idempotent=True)


class _Pages:
    """The consumer for whoever is behind the end of a topic: it fetches for all that wait in one go."""

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer
        self._asked: deque[tuple[TopicPartition, int, _Slot[Page]]] = deque()
        self._known: set[TopicPartition] = set()

    def ask(self, topic: str, offset: int, slot: _Slot[Page]) -> None:
        self._asked.append((TopicPartition(topic, 0), offset, slot))

    def fetch(self) -> None:
        """Serve what was asked; every `ask` is followed by a `fetch`, so that what one leaves another takes."""
        wanted: dict[TopicPartition, tuple[int, _Slot[Page]]] = {}
        later: list[tuple[TopicPartition, int, _Slot[Page]]] = []
        while self._asked and len(wanted) < FETCHES_AT_ONCE:
            topic, offset, slot = self._asked.popleft()
            if topic in wanted:
                # A consumer has one position a partition.
                later.append((topic, offset, slot))
            else:
                wanted[topic] = (offset, slot)
        self._asked.extendleft(reversed(later))
        if not wanted:
            return
        try:
            self._fetch(wanted)
        except BaseException as error:  # noqa: BLE001 - it is raised again in the tasks that wait
            for _, slot in wanted.values():
                slot.fail(error)
        else:
            for _, slot in wanted.values():
                slot.fail(AwayError("no records came from Kafka in time"))

    def _fetch(self, wanted: dict[TopicPartition, tuple[int, _Slot[Page]]]) -> None:
        new = [topic for topic in wanted if topic not in self._known]
        if new:
            # `assign` of a topic that the consumer does not know makes it forget all others; this question adds it to them.
            with contextlib.suppress(KafkaTimeoutError):
                self._consumer.end_offsets(new, timeout_ms=int(PAGE_SECONDS * 1000))
                self._known.update(new)
        self._consumer.assign(list(wanted))
        for topic, (offset, _) in wanted.items():
            self._consumer.seek(topic, offset)
        deadline = time.monotonic() + PAGE_SECONDS
        while wanted and (left := deadline - time.monotonic()) > 0:
            self._consumer.assign(list(wanted))
            try:
                batches = self._consumer.poll(timeout_ms=int(left * 1000))
            except OffsetOutOfRangeError as error:
                for topic in _out_of_range(error, wanted):
                    _, slot = wanted.pop(topic)
                    slot.fail(RefusedByBrokerError("records that were to be read are gone from the topic"))
                continue
            for topic, records in batches.items():
                if topic in wanted:
                    _, slot = wanted.pop(topic)
                    fetched = [_fetched(record) for record in records]
                    slot.give(Page(fetched, max(self._consumer.highwater(topic) or 0, fetched[-1].offset + 1)))


class _Tails:
    """The shared consumer of all topics with a waiting reader, and the thread that polls it."""

    def __init__(self, consumer: Any, token: trio.lowlevel.TrioToken) -> None:
        self._consumer = consumer
        self._drain = _Drain(token)
        self._orders: SimpleQueue[tuple[str, int, Arrive | None] | None] = SimpleQueue()
        self._following: dict[TopicPartition, Arrive] = {}
        self._ahead = threading.Semaphore(BATCHES_AHEAD)
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="kafka tails", daemon=True)
        self._thread.start()

    def order(self, topic: str, offset: int, arrive: Arrive | None) -> None:
        self._orders.put((topic, offset, arrive))

    def end(self) -> None:
        self._closed = True
        self._orders.put(None)
        self._consumer.close(autocommit=False, timeout_ms=0)
        self._thread.join(CLOSE_SECONDS)

    def _work(self) -> None:
        while not self._closed:
            try:
                self._obey()
                if self._following and not self._closed:
                    self._poll()
            # Whatever it is, readers must hear of it; a consumer that is closed raises errors of several kinds.
            except Exception as error:  # noqa: BLE001
                if not self._closed:
                    self._fail_all(error)

    def _obey(self) -> None:
        """Take all orders that wait; with nothing to follow, wait for one."""
        changed: dict[TopicPartition, int] = {}
        dropped = False
        while not self._closed:
            try:
                order = self._orders.get(block=not self._following and not changed)
            except Empty:
                break
            if order is None:
                return
            name, offset, arrive = order
            topic = TopicPartition(name, 0)
            if arrive is None:
                dropped |= self._following.pop(topic, None) is not None
                changed.pop(topic, None)
            else:
                self._following[topic] = arrive
                changed[topic] = offset
        if changed or dropped:
            self._consumer.assign(list(self._following))
            for topic, offset in changed.items():
                self._consumer.seek(topic, offset)

    def _poll(self) -> None:
        try:
            batches = self._consumer.poll(timeout_ms=FETCH_WAIT_MS)
        except OffsetOutOfRangeError as error:
            for topic in _out_of_range(error, self._following):
                self._fail(topic, RefusedByBrokerError("records that were to be read are gone from the topic"))
            return
        for topic, records in batches.items():
            arrive = self._following.get(topic)
            if arrive is not None:
                self._hand_over(arrive, [_fetched(record) for record in records])

    def _hand_over(self, arrive: Arrive, records: Sequence[Fetched]) -> None:
        while not self._ahead.acquire(timeout=FETCH_WAIT_MS / 1000):
            if self._closed:
                return

        def call() -> None:
            self._ahead.release()
            arrive(records)

        self._drain.put(call)

    def _fail_all(self, error: Exception) -> None:
        for topic in list(self._following):
            self._fail(topic, _store_error(error))

    def _fail(self, topic: TopicPartition, error: StoreError) -> None:
        arrive = self._following.pop(topic, None)
        self._consumer.assign(list(self._following))
        if arrive is not None:
            self._drain.put(lambda: arrive(error))


class Bridge:
    """The four clients of one Kafka; made by `open_bridge`.

    Every method raises AwayError when the broker does not answer in time and RefusedByBrokerError when it says no.
    """

    def __init__(self, bootstrap: Sequence[str], token: trio.lowlevel.TrioToken) -> None:
        self._settings: dict[str, object] = {"bootstrap_servers": list(bootstrap)}
        self._token = token
        self._drain = _Drain(token)
        self._requests = _Lane("requests", token, threads=ADMIN_LANES)
        self._reading = _Lane("reading", token)
        self._writing = _Lane("writing", token)
        self._admin: Any = None
        self._producer: Any = None
        self._pages: _Pages | None = None
        self._tails: _Tails | None = None
        self._guard = threading.Lock()
        self._closed = False
        self._ends: dict[int, Callable[[], None]] = {}

    async def connect(self) -> None:
        """Make the clients; a kafka error here says that the address is no Kafka's."""

        async def admin() -> None:
            self._admin = await self._requests.run(lambda: self._made(KafkaAdminClient, _ADMIN)).answer()

        async def pages() -> None:
            self._pages = _Pages(await self._reading.run(lambda: self._made(KafkaConsumer, _CONSUMER)).answer())

        async def producer() -> None:
            self._producer = await self._writing.run(lambda: self._made(KafkaProducer, _PRODUCER)).answer()

        async def tails() -> None:
            consumer = await self._requests.run(lambda: self._made(KafkaConsumer, _CONSUMER)).answer()
            self._tails = _Tails(consumer, self._token)

        async with trio.open_nursery() as nursery:
            for make in (admin, pages, producer, tails):
                nursery.start_soon(make)

    def _made(self, kind: Any, settings: Mapping[str, object]) -> Any:
        """A client that `close` ends, at once if it has passed. Runs in a lane."""
        client, end = _made(kind, {**settings, **self._settings})
        with self._guard:
            if not self._closed:
                self._ends[id(client)] = end
                return client
        end()
        raise AwayError("the store was closed")

    # -- topics ----------------------------------------------------------------------------------------------------------------------

    async def create_topic(self, name: str, *, replication_factor: int, settings: Mapping[str, str]) -> None:
        """Make a topic with one partition unless it exists, and wait until it has a leader."""

        def create() -> None:
            topic = {"num_partitions": 1, "replication_factor": replication_factor, "configs": dict(settings)}
            with contextlib.suppress(TopicAlreadyExistsError):
                self._admin.create_topics({name: topic}, timeout_ms=int(REQUEST_SECONDS * 1000))

        await self._ask(create)
        deadline = trio.current_time() + REQUEST_SECONDS
        # Not kafka-python's own wait, which looks every 0.1 s: the leader was there after 10-20 ms.
        while name not in await self.describe([name]):
            if trio.current_time() > deadline:
                raise AwayError(f"the topic {name} has no leader yet")
            await trio.sleep(LEADER_SECONDS)

    async def describe(self, names: Iterable[str]) -> Mapping[str, Topic]:
        """What there is of these topics; those that are not there, or have no leader yet, are left out."""

        def describe() -> dict[str, Topic]:
            return {
                topic["name"]: Topic(topic["name"], str(topic["topic_id"]), len(topic["partitions"]))
                for topic in self._admin.describe_topics(list(names))
                if not topic["error_code"] and all(part["leader_id"] >= 0 for part in topic["partitions"])
            }

        return await self._ask(describe)

    async def max_message_bytes(self, name: str) -> int:
        """The longest record batch that the topic takes."""
        return await self._ask(lambda: self._max_message_bytes(name))

    def _max_message_bytes(self, name: str) -> int:
        answer = self._admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name)], config_filter="all")
        return int(answer["topic"][name]["max.message.bytes"]["value"])

    # -- positions -------------------------------------------------------------------------------------------------------------------

    async def committed(self, group: str, topic: str) -> int | None:
        """The offset that the group committed for the topic; None if it has none."""
        partition = TopicPartition(topic, 0)

        def ask() -> int | None:
            answer = self._admin.list_group_offsets({group: [partition]})
            found = answer.get(group, {}).get(partition)
            return None if found is None or found.offset < 0 else int(found.offset)

        return await self._ask(ask)

    async def commit(self, group: str, offsets: Mapping[str, int]) -> None:
        """Commit offsets for a group; topics that don't exist are passed over."""
        wanted = {TopicPartition(topic, 0): OffsetAndMetadata(offset, "", -1) for topic, offset in offsets.items()}

        def ask() -> None:
            for kind in self._admin.alter_group_offsets(group, wanted).values():
                if kind.errno and kind is not UnknownTopicOrPartitionError:
                    raise kind

        await self._ask(ask)

    # -- reading ---------------------------------------------------------------------------------------------------------------------

    async def first_offset(self, topic: str) -> int:
        """The first offset that retention has left."""
        return (await self._offset(topic, OffsetSpec.EARLIEST)) or 0

    async def end_offset(self, topic: str) -> int:
        """The offset that the next record gets."""
        return (await self._offset(topic, OffsetSpec.LATEST)) or 0

    async def offset_at(self, topic: str, milliseconds: int) -> int | None:
        """The offset of the first record that is as young as this time (Unix milliseconds) by its writer; None if none is."""
        return await self._offset(topic, max(milliseconds, 0))

    async def _offset(self, topic: str, of: object) -> int | None:
        partition = TopicPartition(topic, 0)

        def ask() -> int | None:
            # Through the admin client, which asks at once and for any topic; a consumer waits for its own next look at the metadata.
            offset = self._admin.list_partition_offsets({partition: of})[partition].offset
            return None if offset < 0 else int(offset)

        return await self._ask(ask)

    async def fetch(self, topic: str, offset: int) -> Page:
        """The records at this offset and behind it, at most FETCH_BYTES or one record; for an offset where there is something."""
        assert self._pages is not None
        pages = self._pages
        slot: _Slot[Page] = _Slot(self._token)
        pages.ask(topic, offset, slot)
        self._reading.put(pages.fetch)
        return await self._answered(slot)

    def follow(self, topic: str, offset: int, arrive: Arrive) -> None:
        """Hand every record from this offset on to `arrive`, until `unfollow`; a topic has one follower."""
        assert self._tails is not None
        self._tails.order(topic, offset, arrive)

    def unfollow(self, topic: str) -> None:
        """Hand over nothing more, but for what is on its way already."""
        assert self._tails is not None
        self._tails.order(topic, 0, None)

    # -- writing ---------------------------------------------------------------------------------------------------------------------

    def send(self, topic: str, batch: Sequence[tuple[Outgoing, Confirm]]) -> None:
        """Write records in this order; each is confirmed when all in-sync replicas have it. Never waits: whoever calls bounds what is out."""
        drain = self._drain

        def confirm(call: Confirm, answer: int | StoreError) -> None:
            drain.put(lambda: call(answer))

        def write() -> None:
            producer = self._producer
            for record, call in batch:
                try:
                    future = producer.send(
                        topic, value=record.value, headers=record.headers(), partition=0, timestamp_ms=record.timestamp
                    )
                # kafka-python raises assertions and attribute errors too when it was closed meanwhile: whatever it is, this record is unconfirmed.
                except Exception as error:  # noqa: BLE001
                    confirm(call, _store_error(error))
                    continue
                future.add_callback(lambda metadata, call=call: confirm(call, metadata.offset))
                future.add_errback(lambda error, call=call: confirm(call, _store_error(error)))

        self._writing.put(write)

    async def prepare(self, topic: str) -> int:
        """Let the producer know a topic, which otherwise the first `send` does while all others wait; its `max_message_bytes`."""

        def ask() -> int:
            if self._producer is not None:
                self._producer.partitions_for(topic)
            return self._max_message_bytes(topic)

        return await self._ask(ask)

    async def renew_producer(self) -> None:
        """Replace the producer: after one refusal by the broker it would fail everything for ever. What was unconfirmed fails."""

        def renew() -> None:
            old, self._producer = self._producer, None
            with self._guard:
                end = self._ends.pop(id(old), None)
            if end is not None:
                end()
            self._producer = self._made(KafkaProducer, _PRODUCER)

        await self._answered(self._writing.run(renew))

    # -- the rest --------------------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End every client and thread, whatever the broker does. Blocks, for a tenth of a second if the broker is well."""
        with self._guard:
            self._closed = True
            ends = list(self._ends.values())
        if self._tails is not None:
            self._tails.end()
        for end in ends:
            end()
        deadline = time.monotonic() + CLOSE_SECONDS
        for lane in (self._writing, self._reading, self._requests):
            lane.end(deadline)

    async def _ask(self, job: Callable[[], T]) -> T:
        """Ask, and ask again for some seconds where the client says that it may help: a coordinator or leader is being made or moved."""
        deadline = trio.current_time() + REQUEST_SECONDS
        while True:
            try:
                return await self._answered(self._requests.run(job))
            except AwayError as error:
                cause = error.__cause__
                again = isinstance(cause, KafkaError) and cause.retriable
                # Whoever asks for a topic that is gone should hear of it.
                if not again or isinstance(cause, UnknownTopicOrPartitionError) or trio.current_time() > deadline:
                    raise
            await trio.sleep(AGAIN_SECONDS)

    async def _answered(self, slot: _Slot[T]) -> T:
        """Wait for a result, in words of the store; a lane that hangs is left to itself, so that its caller is never stuck."""
        try:
            with trio.fail_after(2 * REQUEST_SECONDS):
                return await slot.answer()
        except trio.TooSlowError:
            raise AwayError("Kafka did not answer in time") from None
        except KafkaError as error:
            raise _store_error(error) from error


@contextlib.asynccontextmanager
async def open_bridge(where: str) -> AsyncIterator[Bridge]:
    """Connect to the Kafka at `where`, "host:port" or several with commas between.

    Raises LocalError for an address of another form, and LinkLostError within some seconds when nobody, or no Kafka, answers there.
    Closing ends every thread within some seconds whatever the broker does; it is not cancellable.
    """
    addresses = _addresses(where)
    await _probe(where, addresses)
    bridge = Bridge([f"{host}:{port}" for host, port in addresses], trio.lowlevel.current_trio_token())
    try:
        try:
            with trio.fail_after(2 * CONNECT_SECONDS):
                await bridge.connect()
        except* (KafkaError, trio.TooSlowError) as group:
            raise LinkLostError(
                f"something listens at {where}, but it did not speak Kafka's plaintext protocol within {CONNECT_SECONDS:.0f} s"
                f" ({_first(group)}): is it a Kafka broker, and is this its listener without TLS and password?"
            ) from None
        yield bridge
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(bridge.close)


def _addresses(where: str) -> list[tuple[str, int]]:
    addresses: list[tuple[str, int]] = []
    for part in where.split(","):
        host, colon, port = part.strip().rpartition(":")
        if not (colon and host and port.isdecimal() and 0 < int(port) < 1 << 16):
            raise LocalError(f"a Kafka is named by host:port, several with commas between, not {where!r}")
        addresses.append((host.strip("[]"), int(port)))
    return addresses


async def _probe(where: str, addresses: Sequence[tuple[str, int]]) -> None:
    """See whether anybody listens: kafka-python itself would say after half a minute that it timed out."""
    reasons: list[str] = []
    for host, port in addresses:
        try:
            with trio.fail_after(CONNECT_SECONDS / len(addresses)):
                stream = await trio.open_tcp_stream(host, port)
        except (OSError, trio.TooSlowError) as error:
            reasons.append(_first(error.__cause__ or error))
        else:
            await trio.aclose_forcefully(stream)
            return
    raise LinkLostError(f"no Kafka at {where} ({'; '.join(reasons)}): start the broker or correct the address")


def _made(kind: Any, settings: Mapping[str, object]) -> tuple[Any, Callable[[], None]]:
    """A client and what ends it at once, also while another thread uses it, and while its broker is away. Both block."""
    sockets = f"trionode://{next(_numbers)}"
    networks: list[Any] = []
    network = kind.DEFAULT_CONFIG["kafka_client"]

    def noted(*arguments: Any, **options: Any) -> Any:
        networks.append(network(*arguments, **options))
        return networks[-1]

    try:
        client = kind(**settings, proxy_url=sockets, kafka_client=noted)
    except BaseException:
        # A constructor that fails leaves its I/O thread behind.
        for made in networks:
            made.close()
        _Sockets.close_all(sockets)
        raise

    def end() -> None:
        if kind is KafkaProducer:
            # `close` alone waits for the broker, and leaves its thread when that fails; 3.0.12 has no public way.
            client._sender.force_close()  # noqa: SLF001
            client._sender.join(CLOSE_SECONDS)  # noqa: SLF001
            with contextlib.suppress(KafkaError):
                client.close(timeout=0)
        elif kind is KafkaConsumer:
            client.close(autocommit=False, timeout_ms=0)
        else:
            client.close()
        _Sockets.close_all(sockets)

    return client, end


def _fetched(record: Any) -> Fetched:
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


def _out_of_range(error: OffsetOutOfRangeError, among: Iterable[TopicPartition]) -> list[TopicPartition]:
    """The partitions that the error is about; all, should it not say."""
    about = error.args[0] if error.args and isinstance(error.args[0], dict) else {}
    return [topic for topic in among if topic in about or not about]


def _store_error(error: BaseException) -> StoreError:
    if isinstance(error, StoreError):
        return error
    text = f"Kafka: {type(error).__name__}: {error}"
    if isinstance(error, AuthorizationError):
        return RefusedByBrokerError(text)
    return AwayError(text)


def _first(leaf: BaseException) -> str:
    """What the first of a group of errors says."""
    while isinstance(leaf, BaseExceptionGroup):
        leaf = leaf.exceptions[0]
    return str(leaf) or type(leaf).__name__
