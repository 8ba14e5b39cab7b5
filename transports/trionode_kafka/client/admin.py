"""Requests to a Kafka's controller, leaders and group coordinators: topics, offsets, and positions of groups."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from typing import Any, TypeVar

import trio
from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import (
    KafkaError,
    TopicAlreadyExistsError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
)
from kafka.protocol.consumer import OffsetSpec
from kafka.structs import OffsetAndMetadata, TopicPartition

from trionode.plugins import StoreError
from trionode_kafka.client.clients import Clients
from trionode_kafka.client.errors import BrokerUnavailableError
from trionode_kafka.client.kafka_internals import forget_coordinators
from trionode_kafka.client.records import TopicInfo
from trionode_kafka.client.settings import ADMIN, REQUEST_SECONDS
from trionode_kafka.client.threads import WorkerThreads, wait_for, wait_for_answer

#: Seconds between two checks whether a new topic has its leader. It had after 10-20 ms; kafka-python's own wait checks
#: every 0.1 s.
LEADER_SECONDS = 0.01
#: Seconds between two tries of a request: a new coordinator is ready after 0.1-0.5 s.
RETRY_SECONDS = 0.1
#: Seconds that deletions of topics may take when the client closes: a request took 5-20 ms.
DELETE_SECONDS = 1.0

T = TypeVar("T")


class Admin:
    """Sends requests that need no position in a topic.

    Every method raises BrokerUnavailableError if the broker does not answer in time, and RefusedByBrokerError if it
    refuses.
    """

    def __init__(self, clients: Clients, threads: WorkerThreads) -> None:
        self._clients = clients
        self._threads = threads
        self._client: Any = None
        self._deletions: set[Future[None]] = set()

    async def connect(self) -> None:
        """Make the client; a KafkaError means that no Kafka is at this address."""
        self._client = await wait_for(self._threads.run(lambda: self._clients.make(KafkaAdminClient, ADMIN)))

    # -- topics

    async def create_topics(
        self, *names: str, replication_factor: int, settings: Mapping[str, str], keep: bool = True
    ) -> bool:
        """Create topics with one partition each, unless they exist, and wait until they have a leader.

        Returns False if any of them existed. Without `keep`, topics that were created are deleted if this is cancelled
        or fails.
        """
        # Whatever the brokers' default is: compressed records are not read.
        configs = {"compression.type": "producer", **settings}
        topic = {"num_partitions": 1, "replication_factor": replication_factor, "configs": configs}
        attempts: list[Future[bool]] = []

        def create() -> bool:
            try:
                self._client.create_topics(dict.fromkeys(names, topic), timeout_ms=int(REQUEST_SECONDS * 1000))
            except TopicAlreadyExistsError:
                return False
            return True

        try:
            created = await self._request(create, attempts)
            await self._wait_for_leaders(names)
        except BaseException:  # whatever it is, cancellation too
            if not keep and attempts:
                deletion = self.delete_topics(names, after=attempts[-1])
                with trio.CancelScope(shield=True), trio.move_on_after(DELETE_SECONDS), suppress(StoreError):
                    await wait_for_answer(deletion)
            raise
        return created

    async def _wait_for_leaders(self, names: Sequence[str]) -> None:
        deadline = trio.current_time() + REQUEST_SECONDS
        while len(await self.describe_topics(names)) < len(names):
            if trio.current_time() > deadline:
                raise BrokerUnavailableError(f"the topic {names[0]} has no leader yet")
            await trio.sleep(LEADER_SECONDS)

    def delete_topics(self, names: Iterable[str], *, after: Future[bool] | None = None) -> Future[None]:
        """Delete topics, those that exist. `close` waits for it.

        Args:
          names: The topics.
          after: Wait for this attempt to create them, and do nothing if it did not.
        """
        deleted = list(names)

        def delete() -> None:
            if after is None or _succeeded(after):
                self._client.delete_topics(deleted, timeout_ms=int(REQUEST_SECONDS * 1000), raise_errors=False)

        deletion = self._threads.run(delete)
        self._deletions.add(deletion)
        deletion.add_done_callback(self._deletions.discard)
        return deletion

    def finish_deletions(self) -> None:
        """Block until topics are deleted, for DELETE_SECONDS at most."""
        wait(self._deletions.copy(), DELETE_SECONDS)

    async def list_topics(self, prefix: str) -> Sequence[str]:
        """Return the names of all topics with this prefix."""
        return await self._request(lambda: [name for name in self._client.list_topics() if name.startswith(prefix)])

    async def describe_topics(self, names: Iterable[str], *, leaderless: bool = False) -> Mapping[str, TopicInfo]:
        """Return what exists of these topics; unless `leaderless`, without those that have no leader now."""
        wanted = list(names)

        def describe() -> dict[str, TopicInfo]:
            answers = self._client.describe_topics(wanted)
            if any(topic["error_code"] == TopicAuthorizationFailedError.errno for topic in answers):
                raise TopicAuthorizationFailedError
            found = [
                TopicInfo(
                    topic["name"],
                    str(topic["topic_id"]),
                    len(topic["partitions"]),
                    has_leader=all(part["leader_id"] >= 0 for part in topic["partitions"]),
                )
                for topic in answers
                if not topic["error_code"]
            ]
            return {topic.name: topic for topic in found if topic.has_leader or leaderless}

        return await self._request(describe)

    async def max_message_bytes(self, topic: str) -> int:
        """Return the size of the largest record batch that the topic takes."""
        resource = ConfigResource(ConfigResourceType.TOPIC, topic)

        def ask() -> int:
            answer = self._client.describe_configs([resource], config_filter="all")
            return int(answer["topic"][topic]["max.message.bytes"]["value"])

        return await self._request(ask)

    # -- offsets: a consumer would wait for its next metadata request, this client asks at once and for any topic

    async def first_offset(self, topic: str) -> int:
        """Return the first offset that retention has left."""
        return (await self._offset(topic, OffsetSpec.EARLIEST)) or 0

    async def end_offset(self, topic: str) -> int:
        """Return the offset of the next record."""
        return (await self._offset(topic, OffsetSpec.LATEST)) or 0

    async def offset_at(self, topic: str, milliseconds: int) -> int | None:
        """Return the offset of the first record with this timestamp (Unix milliseconds) or a later one, or None."""
        return await self._offset(topic, max(milliseconds, 0))

    async def last_timestamps(self, topics: Sequence[str]) -> Mapping[str, int]:
        """Return the latest timestamp (Unix milliseconds) in each topic that has a record."""
        found = await self._offsets(topics, OffsetSpec.MAX_TIMESTAMP)
        return {partition.topic: int(at.timestamp) for partition, at in found.items() if at.timestamp >= 0}

    async def _offset(self, topic: str, of: object) -> int | None:
        (found,) = (await self._offsets([topic], of)).values()
        return None if found.offset < 0 else int(found.offset)

    async def _offsets(self, topics: Sequence[str], of: object) -> Mapping[TopicPartition, Any]:
        wanted = {TopicPartition(topic, 0): of for topic in topics}
        return await self._request(lambda: dict(self._client.list_partition_offsets(wanted)))

    # -- positions

    async def committed_offset(self, group: str, topic: str) -> int | None:
        """Return the offset that the group committed for the topic; None if it committed none."""
        partition = TopicPartition(topic, 0)

        def ask() -> int | None:
            found = self._client.list_group_offsets({group: [partition]}).get(group, {}).get(partition)
            return None if found is None or found.offset < 0 else int(found.offset)

        return await self._request(ask)

    async def commit_offsets(self, group: str, offsets: Mapping[str, int]) -> None:
        """Commit offsets of topics for a group, except for topics that don't exist."""
        wanted = {TopicPartition(topic, 0): OffsetAndMetadata(offset, "", -1) for topic, offset in offsets.items()}

        def ask() -> None:
            for kind in self._client.alter_group_offsets(group, wanted).values():
                if kind.errno and kind is not UnknownTopicOrPartitionError:
                    raise kind

        await self._request(ask)

    async def _request(self, job: Callable[[], T], attempts: list[Future[T]] | None = None) -> T:
        """Run a request, and repeat it for REQUEST_SECONDS if its error is retriable, as when a leader moves."""
        deadline = trio.current_time() + REQUEST_SECONDS
        while True:
            attempt = self._threads.run(job)
            if attempts is not None:
                attempts.append(attempt)
            try:
                return await wait_for_answer(attempt)
            except BrokerUnavailableError as error:
                cause = error.__cause__
                retriable = isinstance(cause, KafkaError) and cause.retriable
                # A request about a deleted topic must fail at once.
                if not retriable or isinstance(cause, UnknownTopicOrPartitionError) or trio.current_time() > deadline:
                    raise
                forget_coordinators(self._client)
            await trio.sleep(RETRY_SECONDS)


def _succeeded(attempt: Future[bool]) -> bool:
    """Block until an attempt is over, for REQUEST_SECONDS at most; whether it created topics."""
    wait([attempt], REQUEST_SECONDS)
    return attempt.done() and attempt.exception() is None and attempt.result()
