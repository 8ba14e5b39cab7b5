"""Reading behind the end of topics: one consumer that fetches pages for all that wait, in one go."""

import contextlib
import time
from collections import deque
from typing import Any

from kafka.errors import KafkaTimeoutError, OffsetOutOfRangeError
from kafka.structs import TopicPartition

from trionode_kafka.client.errors import AwayError, RefusedByBrokerError, UnreadableError, out_of_range
from trionode_kafka.client.records import Page, fetched
from trionode_kafka.client.worker_thread import Slot

#: Seconds for one go of fetches of records that are there; whoever went without asks again.
PAGE_SECONDS = 2.0
#: Topics of one go: their records are in memory together, FETCH_BYTES each.
FETCHES_AT_ONCE = 32


class Pages:
    """The consumer for whoever is behind the end of a topic: it fetches for all that wait in one go."""

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer
        self._asked: deque[tuple[TopicPartition, int, Slot[Page]]] = deque()
        self._known: set[TopicPartition] = set()

    def ask(self, topic: str, offset: int, slot: Slot[Page]) -> None:
        """Want the page at an offset; from any thread."""
        self._asked.append((TopicPartition(topic, 0), offset, slot))

    def fetch(self) -> None:
        """Serve what was asked; every `ask` is followed by a `fetch`, so that what one leaves another takes."""
        wanted: dict[TopicPartition, tuple[int, Slot[Page]]] = {}
        later: list[tuple[TopicPartition, int, Slot[Page]]] = []
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

    def _fetch(self, wanted: dict[TopicPartition, tuple[int, Slot[Page]]]) -> None:
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
                for topic in out_of_range(error, wanted):
                    _, slot = wanted.pop(topic)
                    slot.fail(RefusedByBrokerError("records that were to be read are gone from the topic"))
                continue
            except UnreadableError as error:
                if error.topic in wanted:
                    _, slot = wanted.pop(error.topic)
                    slot.fail(error)
                continue
            for topic, records in batches.items():
                if topic in wanted:
                    _, slot = wanted.pop(topic)
                    page = [fetched(record) for record in records]
                    slot.give(Page(page, max(self._consumer.highwater(topic) or 0, page[-1].offset + 1)))
