"""Reading at any offset of a topic: one consumer that fetches for all waiting readers at once."""

import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future
from typing import Any

from kafka import KafkaConsumer
from kafka.errors import KafkaTimeoutError, OffsetOutOfRangeError
from kafka.structs import TopicPartition

from trionode_kafka.client.clients import Clients
from trionode_kafka.client.errors import BrokerUnavailableError, UnreadableError, out_of_range, records_are_gone
from trionode_kafka.client.records import FetchedRecord, FetchResult, fetched_record
from trionode_kafka.client.settings import CONSUMER
from trionode_kafka.client.threads import WorkerThreads, wait_for, wait_for_answer

#: Seconds for one round of fetches of records that exist; readers that got nothing ask again.
FETCH_SECONDS = 2.0
#: Seconds of one poll, after which it is seen that there are only markers of transactions; records come at once.
POLL_SECONDS = 0.1
#: Topics of one round: their records are in memory together, FETCH_BYTES each.
TOPICS_AT_ONCE = 32

_Waiting = dict[TopicPartition, tuple[int, Future[FetchResult]]]


class Fetcher:
    """Fetches records for readers that are behind the end of their topic."""

    def __init__(self, clients: Clients) -> None:
        self._clients = clients
        self.thread = WorkerThreads("fetching")
        self._consumer: Any = None
        self._requests: deque[tuple[TopicPartition, int, Future[FetchResult]]] = deque()
        self._known: set[TopicPartition] = set()

    async def connect(self) -> None:
        """Make the client; a KafkaError means that no Kafka is at this address."""
        self._consumer = await wait_for(self.thread.run(lambda: self._clients.make(KafkaConsumer, CONSUMER)))

    async def fetch(self, topic: str, offset: int) -> FetchResult:
        """Return the records from an offset below the topic's end on, FETCH_BYTES or one record at most.

        There may be none before the result's `next`.
        """
        future: Future[FetchResult] = Future()
        self._requests.append((TopicPartition(topic, 0), offset, future))
        # One job for each request: requests that one job leaves are served by the next.
        self.thread.put(self._serve)
        return await wait_for_answer(future)

    async def scan(self, topic: str, start: int, end: int) -> AsyncIterator[Sequence[FetchedRecord]]:
        """Yield all records from `start` to below `end`, one fetch at a time: other readers are served in between."""
        while start < end:
            result = await self.fetch(topic, start)
            start = result.next
            yield [record for record in result.records if record.offset < end]

    def _serve(self) -> None:
        waiting: _Waiting = {}
        later: list[tuple[TopicPartition, int, Future[FetchResult]]] = []
        while self._requests and len(waiting) < TOPICS_AT_ONCE:
            topic, offset, future = self._requests.popleft()
            if topic in waiting:
                # A consumer has one position for each partition.
                later.append((topic, offset, future))
            else:
                waiting[topic] = (offset, future)
        self._requests.extendleft(reversed(later))
        if not waiting:
            return
        failure: BaseException = BrokerUnavailableError("no records came from Kafka in time")
        try:
            self._fetch(waiting)
        except BaseException as error:  # noqa: BLE001 - the tasks that wait raise it again
            failure = error
        for _, future in waiting.values():
            future.set_exception(failure)

    def _fetch(self, waiting: _Waiting) -> None:
        """Fetch records and take the readers that were served out of `waiting`."""
        new = [topic for topic in waiting if topic not in self._known]
        if new:
            # `assign` of an unknown topic makes the consumer forget all others. This request adds it to the known ones.
            with contextlib.suppress(KafkaTimeoutError):
                self._consumer.end_offsets(new, timeout_ms=int(FETCH_SECONDS * 1000))
                self._known.update(new)
        self._consumer.assign(list(waiting))
        for topic, (offset, _) in waiting.items():
            self._consumer.seek(topic, offset)
        deadline = time.monotonic() + FETCH_SECONDS
        while waiting and (left := deadline - time.monotonic()) > 0:
            self._consumer.assign(list(waiting))
            try:
                batches = self._consumer.poll(timeout_ms=int(min(left, POLL_SECONDS) * 1000))
            except OffsetOutOfRangeError as error:
                for topic in out_of_range(error, waiting):
                    waiting.pop(topic)[1].set_exception(records_are_gone())
                continue
            except UnreadableError as error:
                if error.topic in waiting:
                    waiting.pop(error.topic)[1].set_exception(error)
                continue
            for topic, records in batches.items():
                if topic in waiting:
                    found = [fetched_record(record) for record in records]
                    following = found[-1].offset + 1
                    end = max(self._consumer.highwater(topic) or 0, following)
                    waiting.pop(topic)[1].set_result(FetchResult(found, following, end))
            for topic, (offset, future) in list(waiting.items()):
                # Markers of transactions, which other programs wrote, take offsets and are no records.
                following = self._consumer.position(topic, timeout_ms=0) or offset
                if following > offset:
                    waiting.pop(topic)
                    future.set_result(FetchResult((), following, max(self._consumer.highwater(topic) or 0, following)))
