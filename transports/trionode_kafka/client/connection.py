"""One Kafka, connected: its four clients behind one object, from the first look at its address to the last thread's end."""

import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import trio
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import (
    KafkaError,
    TopicAlreadyExistsError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
)
from kafka.protocol.consumer import OffsetSpec
from kafka.structs import OffsetAndMetadata, TopicPartition

from trionode.plugins import ConnectionLost, LocalError, StoreError, reason_of
from trionode_kafka.client.clients import (
    ADMIN,
    CLOSE_SECONDS,
    CONNECT_SECONDS,
    CONSUMER,
    PRODUCER,
    REQUEST_SECONDS,
    made,
)
from trionode_kafka.client.errors import AwayError, store_error
from trionode_kafka.client.fetcher import Pages
from trionode_kafka.client.follower import Tails
from trionode_kafka.client.probe import Probe
from trionode_kafka.client.records import Arrive, Confirm, Fetched, Outgoing, Page, Topic
from trionode_kafka.client.security import PLAINTEXT, Security
from trionode_kafka.client.worker_thread import Drain, Lane, Slot

#: Lanes for requests to the controller and the group coordinators: each is a round trip or two, and they do not depend on each other.
ADMIN_LANES = 8
#: Seconds between two looks whether a new topic has its leader.
LEADER_SECONDS = 0.01
#: Seconds between two tries of a request: a coordinator that was being made took 0.1-0.5 s.
AGAIN_SECONDS = 0.1

#: Seconds that topics which are to be deleted are given when the bridge is closed: a request took 5-20 ms.
FAREWELL_SECONDS = 1.0

T = TypeVar("T")


class Tried:
    """A try to make topics, in a lane."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.made = False


class Bridge:
    """The four clients of one Kafka; made by `open_bridge`.

    Every method raises AwayError when the broker does not answer in time and RefusedByBrokerError when it says no.
    """

    def __init__(self, bootstrap: Sequence[str], security: Security, token: trio.lowlevel.TrioToken) -> None:
        self._security = security
        self._settings: dict[str, object] = {"bootstrap_servers": list(bootstrap), **security_settings(security)}
        self._token = token
        self._drain = Drain(token)
        self._requests = Lane("requests", token, threads=ADMIN_LANES)
        self._reading = Lane("reading", token)
        self._writing = Lane("writing", token)
        self._admin: Any = None
        self._producer: Any = None
        self._pages: Pages | None = None
        self._tails: Tails | None = None
        self._beating: threading.Thread | None = None
        self._guard = threading.Lock()
        self._closed = False
        self._over = threading.Event()
        self._farewell = threading.Condition()
        self._farewells = 0
        self._ends: dict[int, Callable[[], None]] = {}

    async def look(self, at: str) -> None:
        """See whether a broker at one address lets us in; ConnectionLost says why not."""

        def look() -> None:
            probe = Probe(at, self._security, {**ADMIN, **self._settings})
            with self._guard:
                if self._closed:
                    return
                self._ends[id(probe)] = probe.end
            try:
                probe.look()
            finally:
                with self._guard:
                    self._ends.pop(id(probe), None)

        await self._requests.run(look).answer()

    async def connect(self) -> None:
        """Make the clients; a kafka error here says that the address is no Kafka's."""

        async def admin() -> None:
            self._admin = await self._requests.run(lambda: self._made(KafkaAdminClient, ADMIN)).answer()

        async def pages() -> None:
            self._pages = Pages(await self._reading.run(lambda: self._made(KafkaConsumer, CONSUMER)).answer())

        async def producer() -> None:
            self._producer = await self._writing.run(lambda: self._made(KafkaProducer, PRODUCER)).answer()

        async def tails() -> None:
            consumer = await self._requests.run(lambda: self._made(KafkaConsumer, CONSUMER)).answer()
            self._tails = Tails(consumer, self._token)

        async with trio.open_nursery() as nursery:
            for make in (admin, pages, producer, tails):
                nursery.start_soon(make)

    def _made(self, kind: Any, settings: Mapping[str, object]) -> Any:
        """A client that `close` ends, at once if it has passed. Runs in a lane."""
        client, end = made(kind, {**settings, **self._settings})
        with self._guard:
            if not self._closed:
                self._ends[id(client)] = end
                return client
        end()
        raise AwayError("the store was closed")

    # -- topics ----------------------------------------------------------------------------------------------------------------------

    async def create_topic(self, name: str, *, replication_factor: int, settings: Mapping[str, str]) -> None:
        """Make a topic with one partition unless it exists, and wait until it has a leader."""
        await self.create_topics([name], replication_factor=replication_factor, settings=settings)

    async def create_topics(
        self, names: Sequence[str], *, replication_factor: int, settings: Mapping[str, str], keep: bool = True
    ) -> bool:
        """Make topics with one partition each unless they exist, and wait until they have a leader; False if any of them existed.

        Unless they are to be kept, those that were made are deleted again if this is cancelled or fails.
        """
        # Whatever the brokers do by default: what is compressed is not read.
        configs = {"compression.type": "producer", **settings}
        topic = {"num_partitions": 1, "replication_factor": replication_factor, "configs": configs}
        tried = Tried()

        def create() -> bool:
            try:
                self._admin.create_topics(dict.fromkeys(names, topic), timeout_ms=int(REQUEST_SECONDS * 1000))
                tried.made = True
            except TopicAlreadyExistsError:
                pass
            finally:
                tried.over.set()
            return tried.made

        try:
            made = await self._ask(create)
            await self._led(names)
        except BaseException:  # whatever ends it, cancellation too
            if not keep:
                deleted = self.delete_topics(names, tried=tried)
                with trio.CancelScope(shield=True), trio.move_on_after(FAREWELL_SECONDS):
                    await deleted.answer()
            raise
        return made

    async def _led(self, names: Sequence[str]) -> None:
        deadline = trio.current_time() + REQUEST_SECONDS
        # Not kafka-python's own wait, which looks every 0.1 s: the leader was there after 10-20 ms.
        while len(await self.describe(names)) < len(names):
            if trio.current_time() > deadline:
                raise AwayError(f"the topic {names[0]} has no leader yet")
            await trio.sleep(LEADER_SECONDS)

    def delete_topics(self, names: Iterable[str], *, tried: Tried | None = None) -> Slot[None]:
        """Delete topics, in time also if the bridge is closed directly afterwards; those that don't exist are passed over.

        With the try to make them: when that is over, if it has made them.
        """
        gone = list(names)
        self.unlearn(gone)
        with self._farewell:
            self._farewells += 1

        def delete() -> None:
            try:
                if tried is None or (tried.over.wait(REQUEST_SECONDS) and tried.made):
                    self._admin.delete_topics(gone, timeout_ms=int(REQUEST_SECONDS * 1000), raise_errors=False)
            finally:
                with self._farewell:
                    self._farewells -= 1
                    self._farewell.notify_all()

        return self._requests.run(delete)

    async def topics(self, prefix: str) -> Sequence[str]:
        """The names of all topics that begin so."""
        return await self._ask(lambda: [name for name in self._admin.list_topics() if name.startswith(prefix)])

    async def last_written(self, topics: Sequence[str]) -> Mapping[str, int]:
        """When the youngest record of each topic was written (Unix milliseconds); topics without a record are left out."""
        wanted = {TopicPartition(name, 0): OffsetSpec.MAX_TIMESTAMP for name in topics}

        def ask() -> dict[str, int]:
            found = self._admin.list_partition_offsets(wanted)
            return {topic.topic: int(at.timestamp) for topic, at in found.items() if at.timestamp >= 0}

        return await self._ask(ask)

    async def describe(self, names: Iterable[str]) -> Mapping[str, Topic]:
        """What there is of these topics; those that are not there, or have no leader yet, are left out."""

        def describe() -> dict[str, Topic]:
            answers = self._admin.describe_topics(list(names))
            if any(topic["error_code"] == TopicAuthorizationFailedError.errno for topic in answers):
                raise TopicAuthorizationFailedError
            return {
                topic["name"]: Topic(topic["name"], str(topic["topic_id"]), len(topic["partitions"]))
                for topic in answers
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
        slot: Slot[Page] = Slot(self._token)
        pages.ask(topic, offset, slot)
        self._reading.put(pages.fetch)
        return await self._answered(slot)

    async def scan(self, topic: str, start: int, end: int) -> AsyncIterator[Sequence[Fetched]]:
        """All records from one offset to below another, a fetch at a time, so that a long scan lets other readers in between."""
        while start < end:
            page = await self.fetch(topic, start)
            start = page.records[-1].offset + 1
            yield [record for record in page.records if record.offset < end]

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
                except Exception as error:  # noqa: BLE001  # closed meanwhile, it raises assertions too: whatever it is, this record is unconfirmed
                    confirm(call, store_error(error))
                    continue
                future.add_callback(lambda metadata, call=call: confirm(call, metadata.offset))
                future.add_errback(lambda error, call=call: confirm(call, store_error(error)))

        self._writing.put(write)

    async def introduce(self, *topics: str) -> None:
        """Let the producer know topics, which otherwise the first `send` to each does while all others wait."""

        def ask(topic: str) -> None:
            if self._producer is not None:
                self._producer.partitions_for(topic)

        slots = [self._requests.run(partial(ask, topic)) for topic in topics]
        for slot in slots:
            await self._answered(slot)

    def unlearn(self, topics: Iterable[str]) -> None:
        """Let the producer forget topics that are, or will be, gone: for each that it misses it asks the broker fifty times a second."""
        gone = set(topics)

        def unlearn() -> None:
            if self._producer is not None:
                # Where it is changed, in the client's own thread; 3.0.12 has no public way.
                metadata = self._producer._metadata  # noqa: SLF001
                with contextlib.suppress(RuntimeError, ReferenceError):  # it is being closed
                    metadata._manager.call_soon(metadata._topics.difference_update, gone)  # noqa: SLF001

        self._writing.put(unlearn)

    async def prepare(self, topic: str) -> int:
        """Let the producer know a topic, which otherwise the first `send` does while all others wait; its `max_message_bytes`."""

        def ask() -> int:
            if self._producer is not None:
                self._producer.partitions_for(topic)
            return self._max_message_bytes(topic)

        return await self._ask(ask)

    async def renew_producer(self) -> None:
        """Replace the producer: after one refusal by the broker it would fail everything for ever. What was unconfirmed fails."""
        await self._answered(self._writing.run(self._renew))

    def renew_producer_soon(self, then: Callable[[], None]) -> None:
        """Replace the producer, as long as that takes, while what is sent waits; `then` is called behind the last failed confirmation."""

        def renew() -> None:
            while not self._over.is_set():
                try:
                    self._renew()
                except KafkaError:  # it tried for CONNECT_SECONDS
                    self._over.wait(AGAIN_SECONDS)
                else:
                    self._drain.put(then)
                    return

        self._writing.put(renew)

    def _renew(self) -> None:
        old, self._producer = self._producer, None
        with self._guard:
            end = self._ends.pop(id(old), None)
        if end is not None:
            end()
        self._producer = self._made(KafkaProducer, PRODUCER)

    # -- the rest --------------------------------------------------------------------------------------------------------------------

    def beat(self, seconds: float, call: Callable[[], None]) -> None:
        """Call something in the Trio thread again and again, until the bridge is closed: links have no task of their own."""

        def work() -> None:
            while not self._over.wait(seconds):
                self._drain.put(call)

        self._beating = threading.Thread(target=work, name="kafka beat", daemon=True)
        self._beating.start()

    def close(self) -> None:
        """End every client and thread, whatever the broker does. Blocks, for a tenth of a second if the broker is well."""
        with self._farewell:
            self._farewell.wait_for(lambda: not self._farewells, FAREWELL_SECONDS)
        self._over.set()
        if self._beating is not None:
            self._beating.join(CLOSE_SECONDS)
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

    async def _answered(self, slot: Slot[T]) -> T:
        """Wait for a result, in words of the store; a lane that hangs is left to itself, so that its caller is never stuck."""
        try:
            with trio.fail_after(2 * REQUEST_SECONDS):
                return await slot.answer()
        except trio.TooSlowError:
            raise AwayError("Kafka did not answer in time") from None
        except KafkaError as error:
            raise store_error(error) from error


async def connect_bridge(where: str, security: Security = PLAINTEXT) -> Bridge:
    """Connect to the Kafka at `where`, "host:port" or several with commas between; whoever does has to `close_bridge`.

    Raises LocalError for an address of another form, or files that can't be read, and ConnectionLost within some seconds that says why when
    nobody, no Kafka, or one that does not let us in answers there.
    """
    addresses = parse_addresses(where)
    bridge = Bridge([f"{host}:{port}" for host, port in addresses], security, trio.lowlevel.current_trio_token())
    try:
        host, port = await _somebody(where, addresses)
        await bridge.look(f"{host}:{port}")
        try:
            with trio.fail_after(2 * CONNECT_SECONDS):
                await bridge.connect()
        except* (KafkaError, trio.TooSlowError) as group:
            raise ConnectionLost(
                f"a Kafka answers at {where}, but not at the addresses that it names for its brokers: is its advertised.listeners right, and "
                f"can they be reached from here? ({_first(group)})"
            ) from None
    except BaseException:  # whatever ends it, cancellation too: nothing stays open
        await close_bridge(bridge)
        raise
    return bridge


async def close_bridge(bridge: Bridge) -> None:
    """End every thread within some seconds, whatever the broker does; not cancellable."""
    with trio.CancelScope(shield=True):
        await trio.to_thread.run_sync(bridge.close)


@contextlib.asynccontextmanager
async def open_bridge(where: str, security: Security = PLAINTEXT) -> AsyncIterator[Bridge]:
    """Connect, as `connect_bridge` does, and close."""
    bridge = await connect_bridge(where, security)
    try:
        yield bridge
    finally:
        await close_bridge(bridge)


def security_settings(security: Security) -> Mapping[str, object]:
    """What kafka-python calls it all."""
    settings: dict[str, object] = {"security_protocol": security.protocol.upper()}
    if security.has_tls:
        settings["ssl_context"] = security.tls_context()
    if security.has_password:
        settings["sasl_mechanism"] = security.mechanism
        settings["sasl_plain_username"] = security.username
        settings["sasl_plain_password"] = security.secret()
    return settings


def parse_addresses(where: str) -> list[tuple[str, int]]:
    """The hosts and ports of a text; LocalError if it is none of that form."""
    addresses: list[tuple[str, int]] = []
    for part in where.split(","):
        host, colon, port = part.strip().rpartition(":")
        if not (colon and host and port.isdecimal() and 0 < int(port) < 1 << 16):
            raise LocalError(f"a Kafka is named by host:port, several with commas between, not {where!r}")
        addresses.append((host.strip("[]"), int(port)))
    return addresses


async def _somebody(where: str, addresses: Sequence[tuple[str, int]]) -> tuple[str, int]:
    """The first address at which anybody listens: kafka-python itself would say after half a minute that it timed out."""
    reasons: list[str] = []
    for host, port in addresses:
        try:
            with trio.fail_after(CONNECT_SECONDS / len(addresses)):
                stream = await trio.open_tcp_stream(host, port)
        except (OSError, trio.TooSlowError) as error:
            reasons.append(reason_of(error) if isinstance(error, OSError) else "no answer")
        else:
            await trio.aclose_forcefully(stream)
            return host, port
    raise ConnectionLost(f"no Kafka at {where} ({'; '.join(reasons)}): start the broker or correct the address")


def _first(leaf: BaseException) -> str:
    """What the first of a group of errors says."""
    while isinstance(leaf, BaseExceptionGroup):
        leaf = leaf.exceptions[0]
    return str(leaf) or type(leaf).__name__
