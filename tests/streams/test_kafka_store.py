"""Streams in a real Kafka: the contract, exactly once over kills, suspensions and two hubs, and deleted streams."""

import functools
import os
import threading
import time
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import trio
import trio.testing

from tests.support.foreign_producer import write_foreign_record
from tests.support.kafka_records import delete_records
from trionode.errors import ConnectionLost, LocalError
from trionode.protocol.stream.messages import Record
from trionode.protocol.stream.names import unique, uuid7_hex
from trionode.stream.store.base import Position, Push, RecordsGoneError, Stored, StoreError, UnknownStreamError
from trionode.testing import KafkaBroker
from trionode.testing.stream_store import check_stream_store
from trionode_kafka.client import FetchedRecord, OutgoingRecord
from trionode_kafka.store import KafkaStore, deduplication_index, open_kafka_store

pytestmark = pytest.mark.kafka

#: Seconds for everything that a test waits for, also under load; a killed broker is back after 3.5-7 s.
TIMEOUT = 30.0


def a_name() -> str:
    return unique("test", os.urandom(16))


def a_producer() -> bytes:
    return uuid7_hex(int(time.time() * 1000), os.urandom(10)).encode()


async def append(
    store: KafkaStore, stream: str, producer: bytes, messages: Sequence[bytes], first: int = 0
) -> list[int]:
    answers = await store.append([Push(stream, producer, first + at, m) for at, m in enumerate(messages)])
    indexes = []
    for answer in answers:
        assert isinstance(answer, Stored), answer
        indexes.append(answer.index)
    return indexes


async def read_all(store: KafkaStore, stream: str, index: int, count: int) -> list[Record]:
    records: list[Record] = []
    while len(records) < count:
        records += await store.read(stream, index, limit=8, max_bytes=65_000)
        index = records[-1].index + 1
    return records


async def nothing_more(store: KafkaStore, stream: str, index: int) -> bool:
    """Whether the next record from an index on is one that is pushed now."""
    (marker,) = await append(store, stream, a_producer(), [b"marker"])
    return list(await store.read(stream, index, limit=1, max_bytes=100)) == [Record(marker, b"marker")]


async def everything_in(store: KafkaStore, stream: str) -> list[FetchedRecord]:
    result = await store._client.fetcher.fetch("trionode_" + stream, 0)
    assert len(result.records) == result.end
    return list(result.records)


async def write_raw(store: KafkaStore, stream: str, push: Push) -> int:
    """Store a push without looking whether it is stored."""
    return await store._writer.write(
        "trionode_" + stream, OutgoingRecord(int(time.time() * 1000), push.record, push.producer, push.request_id)
    )


def kafka_threads() -> set[threading.Thread]:
    mine = {thread for thread in threading.enumerate() if not thread.name.startswith("Trio thread")}
    return mine - {threading.main_thread()}


async def test_contract_of_stream_stores(kafka_broker: KafkaBroker) -> None:
    make = functools.partial(open_kafka_store, kafka_broker.bootstrap)
    await check_stream_store(make, durable=True, expire=delete_records)


async def test_record_value_is_the_message_and_headers_name_the_push(kafka_broker: KafkaBroker) -> None:
    stream, producer, record = a_name(), a_producer(), bytes(range(256))
    async with open_kafka_store(kafka_broker.bootstrap) as store:
        await store.create(stream)
        assert await append(store, stream, producer, [record], first=7) == [0]
        (found,) = await everything_in(store, stream)
    assert (found.value, found.producer, found.request_id) == (record, producer, 7)


async def test_killed_broker_loses_and_doubles_no_push(
    kafka_broker: KafkaBroker,
) -> None:
    stream, producer, batch, batches = a_name(), a_producer(), 20, 40
    messages = [b"%d" % number for number in range(batch * batches)]
    pulled: list[Record] = []
    async with open_kafka_store(kafka_broker.bootstrap) as store:
        await store.create(stream)
        with trio.fail_after(TIMEOUT):
            async with trio.open_nursery() as nursery:

                async def pull() -> None:
                    pulled.extend(await read_all(store, stream, 0, len(messages)))

                async def push(first: int) -> None:
                    await append(store, stream, producer, messages[first : first + batch], first)

                nursery.start_soon(pull)
                for number in range(batches):
                    if number == batches // 2:
                        kafka_broker.kill()
                        nursery.start_soon(trio.to_thread.run_sync, kafka_broker.start)
                    # Not awaited one by one, so that some are with the producer when the broker dies.
                    nursery.start_soon(push, number * batch)
                    await trio.testing.wait_all_tasks_blocked()
            assert await nothing_more(store, stream, pulled[-1].index + 1)
    assert [record.message for record in pulled] == messages


async def test_suspended_broker_delays_neither_cancellation_nor_closing(kafka_broker: KafkaBroker) -> None:
    stream, producer, before = a_name(), a_producer(), kafka_threads()
    answers: list[int] = []
    async with open_kafka_store(kafka_broker.bootstrap) as store, open_kafka_store(kafka_broker.bootstrap) as other:
        await store.create(stream)
        await append(store, stream, producer, [b"0"])
        kafka_broker.pause()
        try:
            async with trio.open_nursery() as nursery:

                async def push() -> None:
                    answers.extend(await append(store, stream, producer, [b"1"], first=1))

                nursery.start_soon(push)
                for waiting in (
                    functools.partial(store.read, stream, 1, limit=1, max_bytes=100),
                    functools.partial(other.read, stream, 0, limit=1, max_bytes=100),
                    functools.partial(store.create, a_name()),
                    functools.partial(store.position, "client", stream),
                    functools.partial(store.save_positions, [Position("client", stream, 1)]),
                    functools.partial(other.append, [Push(stream, producer, 1, b"1")]),
                ):
                    with trio.move_on_after(0.2) as scope:
                        await waiting()
                    assert scope.cancelled_caught
                    assert trio.current_time() - scope.deadline < 1
                assert not answers
                kafka_broker.resume()
        finally:
            kafka_broker.resume()
        assert [record.message for record in await read_all(store, stream, 0, 2)] == [b"0", b"1"]
        assert await nothing_more(store, stream, 2) or await nothing_more(other, stream, 3)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                kafka_broker.pause()
                nursery.start_soon(store.append, [Push(stream, producer, 9, b"unknown")])
                nursery.start_soon(functools.partial(other.read, stream, 99, limit=1, max_bytes=100))
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        began = trio.current_time()
    try:
        assert trio.current_time() - began < 2
        assert kafka_threads() <= before
    finally:
        kafka_broker.resume()


async def test_closing_ends_every_thread(kafka_broker: KafkaBroker) -> None:
    before = kafka_threads()
    async with open_kafka_store(kafka_broker.bootstrap) as store:
        await store.create(a_name())
        assert len(kafka_threads() - before) > 4
    assert kafka_threads() <= before


async def test_push_that_two_hubs_stored_is_pulled_once(
    kafka_broker: KafkaBroker,
) -> None:
    stream, producer = a_name(), a_producer()
    async with open_kafka_store(kafka_broker.bootstrap) as a, open_kafka_store(kafka_broker.bootstrap) as b:
        await a.create(stream)
        assert await append(a, stream, producer, [b"0", b"1"]) == [0, 1]
        assert await write_raw(b, stream, Push(stream, producer, 1, b"1")) == 2
        assert await write_raw(b, stream, Push(stream, producer, 0, b"0")) == 3
        assert await append(a, stream, producer, [b"2"], first=2) == [4]
        for store in (a, b):
            assert [record.index for record in await read_all(store, stream, 0, 3)] == [0, 1, 4]
        for index in (2, 3, 4):
            # A hub that meets the stream in the middle has only its look back to know the copies by.
            async with open_kafka_store(kafka_broker.bootstrap) as fresh:
                assert list(await fresh.read(stream, index, limit=8, max_bytes=1000)) == [Record(4, b"2")]
        # Readers at the end get no copy either.
        async with open_kafka_store(kafka_broker.bootstrap) as fresh:
            waiting: list[Record] = []

            async def wait() -> None:
                waiting.extend(await fresh.read(stream, 5, limit=8, max_bytes=1000))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait)
                await trio.testing.wait_all_tasks_blocked()
                assert await write_raw(b, stream, Push(stream, producer, 2, b"2")) == 5
                assert await append(b, stream, a_producer(), [b"last"]) == [6]
            assert waiting == [Record(6, b"last")]


async def test_resend_to_another_hub_gets_the_first_index(kafka_broker: KafkaBroker) -> None:
    stream, producer = a_name(), a_producer()
    messages = [b"%d" % number for number in range(600)]
    async with open_kafka_store(kafka_broker.bootstrap) as a:
        await a.create(stream)
        indexes = await append(a, stream, producer, messages)
        async with open_kafka_store(kafka_broker.bootstrap) as b:
            # b has never seen the stream or the producer.
            assert await append(b, stream, producer, [*messages[500:], b"new"], first=500) == [*indexes[500:], 600]
            assert await append(b, stream, producer, messages[:3]) == indexes[:3]
        assert await append(a, stream, a_producer(), [b"other"]) == [601]


async def test_hub_reads_what_others_wrote_when_its_knowledge_is_old(
    kafka_broker: KafkaBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, producer = a_name(), a_producer()
    monkeypatch.setattr(deduplication_index, "KNOWN_SECONDS", 0)
    async with open_kafka_store(kafka_broker.bootstrap) as a, open_kafka_store(kafka_broker.bootstrap) as b:
        await a.create(stream)
        assert await append(a, stream, producer, [b"0"]) == [0]
        assert await append(b, stream, producer, [b"1"], first=1) == [1]
        assert await append(a, stream, producer, [b"1", b"2"], first=1) == [1, 2]
        assert await append(b, stream, producer, [b"0", b"2", b"3"][1:], first=2) == [2, 3]
        assert len(await everything_in(a, stream)) == 4


async def test_push_of_a_hub_that_resumed_too_late_is_looked_up_and_stored_once(
    kafka_broker: KafkaBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, other, producer = a_name(), a_name(), a_producer()
    slow = [0.0]
    monkeypatch.setattr(deduplication_index, "time", SimpleNamespace(time=lambda: time.time() - slow[0]))
    async with open_kafka_store(kafka_broker.bootstrap) as a, open_kafka_store(kafka_broker.bootstrap) as b:
        await a.create(stream)
        await a.create(other)
        assert await append(a, stream, producer, [b"0"]) == [0]
        assert await append(b, stream, producer, [b"1"], first=1) == [1]
        replace = a._client.producer.replace

        async def replace_on_time() -> None:
            slow[0] = 0.0
            await replace()

        monkeypatch.setattr(a._client.producer, "replace", replace_on_time)
        slow[0] = 120.0
        with trio.fail_after(TIMEOUT):
            # 1 was stored by b meanwhile, 2 was not; both, and another stream's, were refused by the broker.
            async with trio.open_nursery() as nursery:
                nursery.start_soon(append, a, other, producer, [b"elsewhere"])
                assert await append(a, stream, producer, [b"1", b"2"], first=1) == [1, 2]
        assert slow[0] == 0.0
        assert [record.message for record in await read_all(b, stream, 0, 3)] == [b"0", b"1", b"2"]


async def test_record_too_long_for_its_topic_is_refused_alone(kafka_broker: KafkaBroker) -> None:
    small, other, producer = a_name(), a_name(), a_producer()
    async with open_kafka_store(kafka_broker.bootstrap) as store:
        await store.create(other)
        await store._client.admin.create_topics(
            "trionode_" + small, replication_factor=1, settings={"max.message.bytes": "2000"}
        )
        longer, fits = await store.append(
            [Push(small, producer, 0, bytes(2000)), Push(small, producer, 1, bytes(1000))]
        )
        assert isinstance(longer, StoreError)
        assert isinstance(fits, Stored)
        # The limit is lowered behind the store's back: the broker refuses, and with that would have ended the producer.
        from kafka.admin import ConfigResource, ConfigResourceType

        resource = ConfigResource(ConfigResourceType.TOPIC, "trionode_" + small, {"max.message.bytes": "500"})
        store._client.admin._client.alter_configs([resource])
        with trio.fail_after(TIMEOUT):
            (refused,) = await store.append([Push(small, producer, 2, bytes(1000))])
            assert isinstance(refused, StoreError)
            assert await append(store, other, producer, [b"elsewhere"]) == [0]
            assert await append(store, small, producer, [bytes(100)], first=3) == [1]


async def test_deleted_stream_is_an_error_until_it_is_created_again(
    kafka_broker: KafkaBroker,
) -> None:
    stream, producer = a_name(), a_producer()
    async with open_kafka_store(kafka_broker.bootstrap) as store, open_kafka_store(kafka_broker.bootstrap) as other:
        await store.create(stream, "alice")
        await append(store, stream, producer, [b"0"])
        for reader in (store, other):
            await read_all(reader, stream, 0, 1)
        errors: list[UnknownStreamError] = []

        async def wait(of: KafkaStore, index: int) -> None:
            with pytest.raises(UnknownStreamError) as raised:
                await of.read(stream, index, limit=1, max_bytes=100)
            errors.append(raised.value)

        with trio.fail_after(TIMEOUT):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait, store, 1)
                nursery.start_soon(wait, other, 5)
                await trio.testing.wait_all_tasks_blocked()
                store._client.admin._client.delete_topics(["trionode_" + stream])
            assert len(errors) == 2
            (answer,) = await store.append([Push(stream, producer, 1, b"1")])
            assert isinstance(answer, UnknownStreamError)
            # Its name stays its owner's.
            assert await store.create(stream, "mallory") == "alice"
            assert await append(store, stream, producer, [b"1"], first=1) == [0]


async def test_reading_below_retention_is_an_error(kafka_broker: KafkaBroker) -> None:
    stream = a_name()
    async with open_kafka_store(kafka_broker.bootstrap) as store:
        await store.create(stream)
        await append(store, stream, a_producer(), [b"0", b"1", b"2"])
        await delete_records(store, stream, 2)
        with pytest.raises(RecordsGoneError, match="below 2 are gone"):
            await store.read(stream, 1, limit=1, max_bytes=100)
        assert list(await store.read(stream, 2, limit=1, max_bytes=100)) == [Record(2, b"2")]


async def test_store_touches_only_names_with_its_prefix(kafka_broker: KafkaBroker) -> None:
    prefix, stream = "hub_" + os.urandom(4).hex() + ".", a_name()
    async with open_kafka_store(kafka_broker.bootstrap, prefix=prefix) as store:
        admin = store._client.admin._client
        before = set(admin.list_topics())
        await store.create(stream)
        await store.save_positions([Position("client", stream, 3), Position("client", "_owners", 3)])
        assert {t for t in set(admin.list_topics()) - before if not t.startswith("__")} == {
            prefix + "_owners",
            prefix + stream,
        }
        assert await store.position("client", stream) == 3
        assert [o.offset for o in admin.list_group_offsets(prefix + "client")[prefix + "client"].values()] == [3]
        for refused in ("_owners", "a/b", ".."):
            with pytest.raises(StoreError, match="no stream"):
                await store.create(refused)
            with pytest.raises(UnknownStreamError):
                await store.read(refused, 0, limit=1, max_bytes=100)


async def test_missing_kafka_is_reported_within_seconds() -> None:
    with trio.fail_after(6), pytest.raises(ConnectionLost, match=r"no Kafka at 127\.0\.0\.1:1 .*refused"):
        async with open_kafka_store("127.0.0.1:1"):
            pass
    for wrong in ("nonsense", "host:", "host:99999", ""):
        with pytest.raises(LocalError, match="host:port"):
            async with open_kafka_store(wrong):
                pass


@pytest.mark.parametrize(("at_the_end", "compressed"), [(True, True), (False, True), (True, False)])
async def test_unreadable_record_is_an_error_for_readers_of_its_stream_only(
    kafka_broker: KafkaBroker, at_the_end: bool, compressed: bool
) -> None:
    bad, good = a_name(), a_name()
    async with open_kafka_store(kafka_broker.bootstrap) as store:
        for stream in (bad, good):
            await store.create(stream)
            await append(store, stream, a_producer(), [b"first"])
        with trio.fail_after(TIMEOUT):
            async with trio.open_nursery() as nursery:
                if at_the_end:
                    nursery.start_soon(read_all, store, good, 0, 2)
                    assert await read_all(store, bad, 0, 1) == [Record(0, b"first")]
                strange = functools.partial(write_foreign_record, compressed=compressed)
                await trio.to_thread.run_sync(strange, kafka_broker.bootstrap, "trionode_" + bad)
                with pytest.raises(StoreError, match=f"the topic trionode_{bad} holds records that can't be read"):
                    await read_all(store, bad, 1, 1)
                await append(store, good, a_producer(), [b"second"])
            assert await read_all(store, good, 0, 2) == [Record(0, b"first"), Record(1, b"second")]
