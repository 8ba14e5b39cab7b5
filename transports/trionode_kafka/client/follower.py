"""Following the end of topics: one consumer for all followed topics, and the thread that polls it."""

import threading
from collections.abc import Sequence
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

from kafka import KafkaConsumer
from kafka.errors import OffsetOutOfRangeError
from kafka.structs import TopicPartition

from trionode.plugins import StoreError
from trionode_kafka.client.clients import Clients
from trionode_kafka.client.errors import UnreadableError, out_of_range, records_are_gone, store_error
from trionode_kafka.client.records import FetchedRecord, OnRecords, fetched_record
from trionode_kafka.client.settings import CONSUMER, FETCH_WAIT_MS
from trionode_kafka.client.threads import CallbackQueue, WorkerThreads, wait_for

#: Seconds from a failure to the next poll: a lasting failure, such as a changed password, would spin.
FAILED_SECONDS = 0.1
#: Batches, of one topic each, that the consumer may be ahead of Trio.
BATCHES_AHEAD = 4


class Follower:
    """Calls back with the records of each followed topic as they arrive."""

    def __init__(self, clients: Clients, callbacks: CallbackQueue) -> None:
        self._clients = clients
        self._callbacks = callbacks
        self.thread = WorkerThreads("following")
        self._consumer: Any = None
        self._changes: SimpleQueue[tuple[str, int, OnRecords | None] | None] = SimpleQueue()
        self._followed: dict[TopicPartition, OnRecords] = {}
        self._ahead = threading.Semaphore(BATCHES_AHEAD)
        self._closed = threading.Event()

    async def connect(self) -> None:
        """Make the client; a KafkaError means that no Kafka is at this address."""
        self._consumer = await wait_for(self.thread.run(lambda: self._clients.make(KafkaConsumer, CONSUMER)))
        self.thread.put(self._run)

    def follow(self, topic: str, offset: int, on_records: OnRecords) -> None:
        """Pass every record from this offset on to `on_records`, until `unfollow`; a topic has one follower."""
        self._changes.put((topic, offset, on_records))

    def unfollow(self, topic: str) -> None:
        """Stop following a topic. Records that are on their way still arrive."""
        self._changes.put((topic, 0, None))

    def stop(self) -> None:
        """Let the thread end once the consumer is closed."""
        self._closed.set()
        self._changes.put(None)

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                self._apply_changes()
                if self._followed and not self._closed.is_set():
                    self._poll()
            except Exception as error:  # noqa: BLE001  # of several kinds once closed; readers must get it
                if not self._closed.is_set():
                    for topic in list(self._followed):
                        self._fail(topic, store_error(error))
                    self._closed.wait(FAILED_SECONDS)

    def _apply_changes(self) -> None:
        """Apply the calls of `follow` and `unfollow`; wait for one if nothing is followed."""
        added: dict[TopicPartition, int] = {}
        removed = False
        while not self._closed.is_set():
            try:
                change = self._changes.get(block=not self._followed and not added)
            except Empty:
                break
            if change is None:
                return
            name, offset, on_records = change
            topic = TopicPartition(name, 0)
            if on_records is None:
                removed |= self._followed.pop(topic, None) is not None
                added.pop(topic, None)
            else:
                self._followed[topic] = on_records
                added[topic] = offset
        if added or removed:
            self._consumer.assign(list(self._followed))
            for topic, offset in added.items():
                self._consumer.seek(topic, offset)

    def _poll(self) -> None:
        try:
            batches = self._consumer.poll(timeout_ms=FETCH_WAIT_MS)
        except OffsetOutOfRangeError as error:
            for topic in out_of_range(error, self._followed):
                self._fail(topic, records_are_gone())
            self._closed.wait(FAILED_SECONDS)
        except UnreadableError as error:
            self._fail(error.topic, error)
            self._closed.wait(FAILED_SECONDS)
        else:
            for topic, records in batches.items():
                if (on_records := self._followed.get(topic)) is not None:
                    self._pass_on(on_records, [fetched_record(record) for record in records])

    def _pass_on(self, on_records: OnRecords, records: Sequence[FetchedRecord]) -> None:
        while not self._ahead.acquire(timeout=FETCH_WAIT_MS / 1000):
            if self._closed.is_set():
                return

        def call() -> None:
            self._ahead.release()
            on_records(records)

        self._callbacks.put(call)

    def _fail(self, topic: TopicPartition, error: StoreError) -> None:
        on_records = self._followed.pop(topic, None)
        self._consumer.assign(list(self._followed))
        if on_records is not None:
            self._callbacks.put(partial(on_records, error))
