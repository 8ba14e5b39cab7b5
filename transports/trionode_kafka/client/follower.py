"""Following the end of topics: one consumer for all that have a waiting reader, and the thread that polls it."""

import threading
from collections.abc import Sequence
from queue import Empty, SimpleQueue
from typing import Any

import trio
from kafka.errors import OffsetOutOfRangeError
from kafka.structs import TopicPartition

from trionode.plugins import StoreError
from trionode_kafka.client.clients import CLOSE_SECONDS, FETCH_WAIT_MS
from trionode_kafka.client.errors import RefusedByBrokerError, UnreadableError, out_of_range, store_error
from trionode_kafka.client.records import Arrive, Fetched, fetched
from trionode_kafka.client.worker_thread import Drain

#: Seconds after a failure until the next poll: what fails for long, such as a password that was changed, would spin.
FAILED_SECONDS = 0.1
#: Batches, of one topic each, that the shared consumer may be ahead of Trio.
BATCHES_AHEAD = 4


class Tails:
    """The shared consumer of all topics with a waiting reader, and the thread that polls it."""

    def __init__(self, consumer: Any, token: trio.lowlevel.TrioToken) -> None:
        self._consumer = consumer
        self._drain = Drain(token)
        self._orders: SimpleQueue[tuple[str, int, Arrive | None] | None] = SimpleQueue()
        self._following: dict[TopicPartition, Arrive] = {}
        self._ahead = threading.Semaphore(BATCHES_AHEAD)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="kafka tails", daemon=True)
        self._thread.start()

    def order(self, topic: str, offset: int, arrive: Arrive | None) -> None:
        """Follow a topic from an offset on, or with None no longer; from any thread."""
        self._orders.put((topic, offset, arrive))

    def end(self) -> None:
        """Close the consumer and end its thread. Blocks, for CLOSE_SECONDS at most beside the closing."""
        self._closed.set()
        self._orders.put(None)
        self._consumer.close(autocommit=False, timeout_ms=0)
        self._thread.join(CLOSE_SECONDS)

    def _work(self) -> None:
        while not self._closed.is_set():
            try:
                self._obey()
                if self._following and not self._closed.is_set():
                    self._poll()
            except Exception as error:  # noqa: BLE001  # of several kinds from a closed consumer: whatever it is, readers must hear of it
                if not self._closed.is_set():
                    self._fail_all(error)
                    self._closed.wait(FAILED_SECONDS)

    def _obey(self) -> None:
        """Take all orders that wait; with nothing to follow, wait for one."""
        changed: dict[TopicPartition, int] = {}
        dropped = False
        while not self._closed.is_set():
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
            for topic in out_of_range(error, self._following):
                self._fail(topic, RefusedByBrokerError("records that were to be read are gone from the topic"))
            self._closed.wait(FAILED_SECONDS)
            return
        except UnreadableError as error:
            self._fail(error.topic, error)
            self._closed.wait(FAILED_SECONDS)
            return
        for topic, records in batches.items():
            arrive = self._following.get(topic)
            if arrive is not None:
                self._hand_over(arrive, [fetched(record) for record in records])

    def _hand_over(self, arrive: Arrive, records: Sequence[Fetched]) -> None:
        while not self._ahead.acquire(timeout=FETCH_WAIT_MS / 1000):
            if self._closed.is_set():
                return

        def call() -> None:
            self._ahead.release()
            arrive(records)

        self._drain.put(call)

    def _fail_all(self, error: Exception) -> None:
        for topic in list(self._following):
            self._fail(topic, store_error(error))

    def _fail(self, topic: TopicPartition, error: StoreError) -> None:
        arrive = self._following.pop(topic, None)
        self._consumer.assign(list(self._following))
        if arrive is not None:
            self._drain.put(lambda: arrive(error))
