"""Writing records: one idempotent producer, replaced when it has failed."""

from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

from kafka import KafkaProducer

from trionode.plugins import StoreError
from trionode_kafka.client import kafka_internals
from trionode_kafka.client.clients import Clients
from trionode_kafka.client.errors import store_error
from trionode_kafka.client.records import OnConfirmed, OutgoingRecord
from trionode_kafka.client.settings import PRODUCER
from trionode_kafka.client.threads import CallbackQueue, WorkerThreads, wait_for, wait_for_answer


class Producer:
    """Writes records in the order of the calls; a record is confirmed when all in-sync replicas have it."""

    def __init__(self, clients: Clients, requests: WorkerThreads, callbacks: CallbackQueue) -> None:
        self._clients = clients
        self._requests = requests
        self._callbacks = callbacks
        self.thread = WorkerThreads("writing")
        self._client: Any = None

    async def connect(self) -> None:
        """Make the client; a KafkaError means that no Kafka is at this address."""
        await wait_for(self.thread.run(self._replace))

    def send(self, topic: str, batch: Sequence[tuple[OutgoingRecord, OnConfirmed]]) -> None:
        """Write records. It never waits; the caller bounds what is unconfirmed, because kafka-python does not."""
        callbacks = self._callbacks

        def confirm(confirmed: OnConfirmed, answer: int | StoreError) -> None:
            callbacks.put(partial(confirmed, answer))

        def write() -> None:
            client = self._client
            for record, confirmed in batch:
                try:
                    future = client.send(
                        topic, value=record.value, headers=record.headers(), partition=0, timestamp_ms=record.timestamp
                    )
                except Exception as error:  # noqa: BLE001  # assertions too once it is closed
                    confirm(confirmed, store_error(error))
                    continue
                future.add_callback(lambda metadata, confirmed=confirmed: confirm(confirmed, metadata.offset))
                future.add_errback(lambda error, confirmed=confirmed: confirm(confirmed, store_error(error)))

        self.thread.put(write)

    def write(self, topic: str, record: OutgoingRecord) -> Future[int]:
        """Write one record. The future has its offset, or a StoreError."""
        written: Future[int] = Future()

        def confirmed(answer: int | StoreError) -> None:
            if isinstance(answer, int):
                written.set_result(answer)
            else:
                written.set_exception(answer)

        self.send(topic, [(record, confirmed)])
        return written

    async def load_metadata(self, *topics: str) -> None:
        """Look up topics, which otherwise the first record of each does while all other records wait."""

        def load(topic: str) -> None:
            if (client := self._client) is not None:
                client.partitions_for(topic)

        for loading in [self._requests.run(partial(load, topic)) for topic in topics]:
            await wait_for_answer(loading)

    def forget_topics(self, topics: Iterable[str]) -> None:
        """Forget topics that are deleted, or will be. Else the producer asks for them fifty times a second."""
        deleted = set(topics)

        def forget() -> None:
            if self._client is not None:
                kafka_internals.forget_topics(self._client, deleted)

        self.thread.put(forget)

    async def replace(self) -> None:
        """Replace the client: after one refusal by the broker it fails every record. All unconfirmed records fail."""
        await wait_for_answer(self.thread.run(self._replace))

    def _replace(self) -> None:
        old, self._client = self._client, None
        if (close := self._clients.remove(old)) is not None:
            close()
        self._client = self._clients.make(KafkaProducer, PRODUCER)
