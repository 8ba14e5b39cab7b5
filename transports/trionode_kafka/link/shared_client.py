"""One Kafka client that all links and listeners of a node share, and the replacement of its producer."""

from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress

import trio

from trionode.plugins import Backoff, StoreError
from trionode_kafka.client import KafkaClient, OutgoingRecord, wait_for

#: Seconds without a link or listener after which the client is closed: it holds 4 connections and some 15 threads.
IDLE_SECONDS = 60.0
#: Seconds that a record may be unconfirmed after its writer was cancelled, before its topic counts as deleted.
CONFIRM_SECONDS = 10.0
#: Topics of closed links that are remembered until they are deleted, which takes 5-20 ms: each is read once.
MAX_CLOSED = 1000
#: Seconds between two tries to replace the producer: the first, and the longest.
REPLACE_SECONDS = (0.1, 2.0)


class SharedClient:
    """A client whose producer `run` replaces whenever it has failed. Links resend then what is unconfirmed."""

    def __init__(self, client: KafkaClient, nursery: trio.Nursery) -> None:
        self.client = client
        #: The tasks of the links. It ends before the client closes.
        self.nursery = nursery
        #: The number of producers before the present one.
        self.producer_epoch = 0
        #: The topics of endpoints that listeners hold through this client. It can follow each once.
        self.endpoints: set[str] = set()
        #: Topics that were deleted since the producer was made.
        self.deleted_topics: set[str] = set()
        self._resend: dict[str, Callable[[], None]] = {}
        self._closed: OrderedDict[str, None] = OrderedDict()
        self._producer_failed = trio.Event()
        self._replaced = trio.lowlevel.ParkingLot()

    async def run(self) -> None:
        """Replace the producer whenever it has failed, until nothing has used the client for IDLE_SECONDS."""
        while True:
            with trio.move_on_after(IDLE_SECONDS) as idle:
                await self._producer_failed.wait()
            if not idle.cancelled_caught:
                await self._replace_producer()
            elif not self.nursery.child_tasks:
                return

    async def _replace_producer(self) -> None:
        backoff = Backoff(*REPLACE_SECONDS)
        while True:
            try:
                await self.client.producer.replace()
            except StoreError:
                await trio.sleep(backoff.failed())
            else:
                break
        self.producer_epoch += 1
        self.deleted_topics.clear()
        self._producer_failed = trio.Event()
        self._replaced.unpark_all()
        for resend in list(self._resend.values()):
            resend()

    async def prepare_to_create(self, topic: str) -> None:
        """Replace the producer if it knew a deleted topic of this name: it could not write into the new one."""
        if topic in self.deleted_topics:
            self.producer_failed()
            await self._replaced.park()

    @asynccontextmanager
    async def in_use(self) -> AsyncIterator[None]:
        """Keep the client open for the length of a block, also while the node ends."""
        released = trio.Event()

        async def hold() -> None:
            with trio.CancelScope(shield=True):
                await released.wait()

        self.nursery.start_soon(hold)
        try:
            yield
        finally:
            released.set()

    @property
    def is_replacing(self) -> bool:
        """Whether the producer has failed; what is written now is resent to the next one."""
        return self._producer_failed.is_set()

    def producer_failed(self) -> None:
        """Have the producer replaced."""
        self._producer_failed.set()

    def add_link(self, topic: str, resend: Callable[[], None]) -> None:
        """Add a link by the topic that it reads."""
        self._resend[topic] = resend

    def remove_link(self, topic: str) -> None:
        """Remove a link that has ended."""
        self._resend.pop(topic, None)
        self._closed[topic] = None
        if len(self._closed) > MAX_CLOSED:
            self._closed.popitem(last=False)

    def has_read(self, topic: str) -> bool:
        """Whether a link reads this topic, or read it lately."""
        return topic in self._resend or topic in self._closed

    async def write(self, topic: str, value: bytes) -> int:
        """Write one record and return its offset; StoreError if that fails. If cancelled, it may be written."""
        written = self.client.producer.write(topic, OutgoingRecord(0, value))
        try:
            return await wait_for(written)
        except StoreError:
            self.producer_failed()
            raise
        except trio.Cancelled:
            self.nursery.start_soon(self._replace_unless_confirmed, written)
            raise

    async def _replace_unless_confirmed(self, written: Future[int]) -> None:
        with trio.move_on_after(CONFIRM_SECONDS) as deadline, suppress(StoreError):
            await wait_for(written)
        if deadline.cancelled_caught:
            # Its topic is deleted, and the producer would try for ever.
            self.producer_failed()
