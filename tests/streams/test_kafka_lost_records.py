"""What readers learn about records that Kafka lost: delete_records, retention, topics deleted and created again."""

import os
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import attrs
import pytest
import trio

from tests.support.kafka_records import delete_records
from trionode import Node, Rollback, Route, Stream, Truncated, open_node
from trionode.protocol.stream.names import unique
from trionode.stream.store.base import Position, Push, Stored
from trionode.testing import KafkaBroker
from trionode_kafka.store import KafkaStore, open_kafka_store
from trionode_loopback import Loopback

pytestmark = pytest.mark.kafka

#: Seconds for everything that a test waits for, also under load.
TIMEOUT = 60.0
HUB = Route("loopback:hub")


@attrs.define
class Scene:
    """A hub over a Kafka, and Alice and Bob, who know each other's streams."""

    store: KafkaStore
    alice: Node
    bob: Node
    to_bob: str
    to_alice: str

    @property
    def topic(self) -> str:
        return "trionode_" + self.to_bob

    async def alices(self) -> Stream:
        return await self.alice.open_stream(HUB, sends=self.to_bob, receives=self.to_alice)

    async def bobs(self, **options: object) -> Stream:
        return await self.bob.open_stream(
            HUB,
            sends=self.to_alice,
            receives=self.to_bob,
            **options,  # type: ignore[arg-type]  # as open_stream has them
        )

    async def send(self, stream: Stream, first: int, count: int) -> None:
        for number in range(first, first + count):
            await self.alice.send(Route(stream), b"%d" % number)

    async def stored(self, count: int) -> None:
        """Wait until the topic has so many records. Each time is a round trip."""
        while await self.store._client.admin.end_offset(self.topic) < count:
            pass

    async def delete_topic(self) -> None:
        await trio.to_thread.run_sync(self.store._client.admin._client.delete_topics, [self.topic])

    async def delete_records(self, below: int) -> None:
        await delete_records(self.store, self.to_bob, below)

    async def configure(self, settings: Mapping[str, str]) -> None:
        from kafka.admin import ConfigResource, ConfigResourceType

        resource = ConfigResource(ConfigResourceType.TOPIC, self.topic, dict(settings))
        await trio.to_thread.run_sync(self.store._client.admin._client.alter_configs, [resource])


async def receive(stream: Stream, count: int) -> list[int]:
    return [int((await stream.receive()).payload) for _ in range(count)]


@asynccontextmanager
async def open_scene(broker: KafkaBroker) -> AsyncIterator[Scene]:
    network = Loopback()
    with trio.fail_after(TIMEOUT):
        async with (
            open_kafka_store(broker.bootstrap) as store,
            open_node(network) as hub,
            open_node(network) as alice,
            open_node(network) as bob,
        ):
            await hub.serve_streams(store)
            await hub.listen("loopback:hub")
            yield Scene(store, alice, bob, *(unique("test", os.urandom(16)) for _ in range(2)))


async def test_deleted_records_are_reported_with_their_indexes(kafka_broker: KafkaBroker) -> None:
    async with open_scene(kafka_broker) as scene:
        to_bob = await scene.alices()
        await scene.send(to_bob, 0, 10)
        await scene.stored(10)
        await scene.delete_records(4)
        at_bob = await scene.bobs()
        assert await receive(at_bob, 6) == [4, 5, 6, 7, 8, 9]
        assert await anext(at_bob.verdicts()) == Truncated(scene.to_bob, 0, 3)
        # Records that this reader has read are no loss to it.
        await scene.delete_records(10)
        await scene.send(to_bob, 10, 2)
        assert await receive(at_bob, 2) == [10, 11]
        await at_bob.aclose()
        assert [verdict async for verdict in at_bob.verdicts()] == []


async def test_retention_is_reported(kafka_broker: KafkaBroker) -> None:
    async with open_scene(kafka_broker) as scene:
        to_bob = await scene.alices()
        await scene.send(to_bob, 0, 5)
        await scene.stored(5)
        await scene.configure({"retention.ms": "1"})
        while await scene.store._client.admin.first_offset(scene.topic) < 5:
            pass  # each time is a round trip
        await scene.configure({"retention.ms": "-1"})
        at_bob = await scene.bobs()
        await scene.send(to_bob, 5, 3)
        assert await receive(at_bob, 3) == [5, 6, 7]
        assert await anext(at_bob.verdicts()) == Truncated(scene.to_bob, 0, 4)


@pytest.mark.faults
async def test_topic_that_is_deleted_and_created_again_is_reported_and_used_on(kafka_broker: KafkaBroker) -> None:
    async with open_scene(kafka_broker) as scene:
        to_bob, at_bob = await scene.alices(), await scene.bobs()
        await scene.send(to_bob, 0, 10)
        assert await receive(at_bob, 10) == list(range(10))
        await scene.delete_topic()
        # Nobody writes: the reader learns it all the same, and its pulls do not create the topic.
        assert await anext(at_bob.verdicts()) == Rollback(scene.to_bob, 10, 0)
        assert not await scene.store._client.admin.describe_topics([scene.topic])
        # More records than before, so that positions alone show nothing.
        await scene.send(to_bob, 10, 20)
        assert await receive(at_bob, 20) == list(range(10, 30))
        assert at_bob.position == 20
        await at_bob.aclose()
        assert [verdict async for verdict in at_bob.verdicts()] == []


@pytest.mark.faults
async def test_topic_that_another_hub_creates_again_at_once_is_reported(kafka_broker: KafkaBroker) -> None:
    async with open_scene(kafka_broker) as scene, open_kafka_store(kafka_broker.bootstrap) as other:
        to_bob, at_bob = await scene.alices(), await scene.bobs()
        await scene.send(to_bob, 0, 3)
        assert await receive(at_bob, 3) == [0, 1, 2]
        await scene.delete_topic()
        while await other._client.admin.describe_topics([scene.topic]):
            pass
        await other.create(scene.to_bob)
        found = await anext(at_bob.verdicts())
        assert isinstance(found, Rollback)
        assert found.known == 3
        await scene.send(to_bob, 3, 5)
        assert await receive(at_bob, 5) == [3, 4, 5, 6, 7]


async def test_stored_offsets_that_were_reset_stop_no_reader(kafka_broker: KafkaBroker) -> None:
    async with open_scene(kafka_broker) as scene:
        to_bob = await scene.alices()
        await scene.send(to_bob, 0, 4)
        await scene.stored(4)
        # Ahead of the end: the reader learns it, and starts at the first record.
        await scene.store.save_positions([Position("bob", scene.to_bob, 10**6)])
        at_bob = await scene.bobs(client_id="bob")
        assert await receive(at_bob, 4) == [0, 1, 2, 3]
        assert await anext(at_bob.verdicts()) == Rollback(scene.to_bob, 10**6, 4)
        await at_bob.aclose()
        while await scene.store.position("bob", scene.to_bob) != 4:
            pass  # its last save has no answer; each time is a round trip
        # Back to the start: it reads again, which a channel refuses.
        await scene.store.save_positions([Position("bob", scene.to_bob, 0)])
        again = await scene.bobs(client_id="bob")
        assert await receive(again, 4) == [0, 1, 2, 3]
        await again.aclose()
        assert [verdict async for verdict in again.verdicts()] == []


def write_transactions(bootstrap: str, topic: str) -> None:
    """Write a transaction that is committed and one that is aborted, as a Kafka client does that is not trionode."""
    from kafka import KafkaProducer

    producer = KafkaProducer(bootstrap_servers=bootstrap, transactional_id=topic)
    try:
        producer.init_transactions()
        for end in (producer.commit_transaction, producer.abort_transaction):
            producer.begin_transaction()
            producer.send(topic, value=b"foreign", partition=0, timestamp_ms=int(time.time() * 1000)).get(30)
            end()
    finally:
        producer.close()


async def test_gaps_that_transactions_leave_are_no_loss(kafka_broker: KafkaBroker) -> None:
    async with open_scene(kafka_broker) as scene:
        to_bob, at_bob = await scene.alices(), await scene.bobs()
        await scene.send(to_bob, 0, 3)
        assert await receive(at_bob, 3) == [0, 1, 2]
        await trio.to_thread.run_sync(write_transactions, kafka_broker.bootstrap, scene.topic)
        await scene.stored(7)
        await scene.send(to_bob, 3, 3)
        assert await receive(at_bob, 3) == [3, 4, 5]
        late = await scene.bobs()
        assert await receive(late, 6) == [0, 1, 2, 3, 4, 5]
        await trio.to_thread.run_sync(write_transactions, kafka_broker.bootstrap, scene.topic)
        # A hub that meets the markers at the end of the topic, for a writer and for a reader.
        async with open_kafka_store(kafka_broker.bootstrap) as other:
            await other.create(scene.to_bob)
            with trio.move_on_after(1):
                await other.read(scene.to_bob, 11, limit=1, max_bytes=100)
            alice = to_bob._client.address
            (answer,) = await other.append([Push(scene.to_bob, alice[2:], 99, b"x")])
            assert isinstance(answer, Stored)
        for stream in (at_bob, late):
            await stream.aclose()
            assert [verdict async for verdict in stream.verdicts()] == []
