"""A listener's claim to an endpoint, which is a topic: listeners and dialers write announcements into it.

Several nodes may want to listen at one endpoint, also from several machines. The order of the topic decides. Each
writes LISTEN, and a node that already listens answers LISTENING. A node that hears no answer for CLAIM_SECONDS has the
endpoint. A node that was suspended meanwhile reads a LISTENING that answers no LISTEN from before its own, and so has
lost the endpoint. Anyone who may write into the topic can write these records, so they only ever make a listener claim
its endpoint again.
"""

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

import trio

from trionode.plugins import Backoff, ConfigError, StoreError
from trionode_kafka.client import FetchedRecord, OutgoingRecord, RefusedByBrokerError, wait_for
from trionode_kafka.link.records import Announcement, AnnouncementKind
from trionode_kafka.link.shared_client import SharedClient
from trionode_kafka.link.topics import ENDPOINT_SETTINGS, created_at, new_id

#: Seconds in which a living listener answers another one: a record there and back took 10-30 ms.
CLAIM_SECONDS = 2.0
#: Seconds in which Kafka must have made the claim possible.
LISTEN_SECONDS = 10.0
#: Seconds after which a listener announces itself again, so that its topic does not count as a leftover.
ANNOUNCE_SECONDS = 600.0
#: Seconds before a lost endpoint is claimed again: the first delay, and the longest while another listener has it. Each
#: try is two records.
RECLAIM_SECONDS = (1.0, 30.0)
#: Seconds that the end of a listener waits until its endpoint is free again, which took 0.1 s.
FREE_SECONDS = 1.0

#: Dialers that may wait until the listener handles them, a short text each.
MAX_DIALS = 1000
#: Dialers whose topics are looked up in one request, two each: it took 10 ms, also for topics that do not exist.
DIALS_AT_ONCE = 200
#: Seconds by which the time in a link's id may differ from this clock. An older id belongs to no dialer that still
#: waits.
DIAL_SECONDS = 3600.0
#: Rival listeners that are remembered until our answer to them is read, a round trip: nodes that start, not a flood.
MAX_RIVALS = 100


class Claim:
    """A listener's claim to the endpoint `address`, whose topic is `topic`. It collects the ids of dialers' links."""

    def __init__(self, shared: SharedClient, topic: str, address: str, *, replication_factor: int = 1) -> None:
        self.address = address
        self._topic = topic
        self._shared = shared
        self._replication_factor = replication_factor
        self._id = ""
        self._offset = 0
        self._read_own_listen = False
        self._has_claimed = False
        #: Whether this listener created the topic, or found it and has claimed it; then its end deletes the topic.
        self._owns_topic = False
        self._rivals: set[str] = set()
        self._lost = trio.Event()
        self._error: StoreError | None = None
        self._is_announcing = False
        self._announce_again = False
        self._add_dial, self._dials = trio.open_memory_channel[str](MAX_DIALS)

    @asynccontextmanager
    async def held(self) -> AsyncIterator["Claim"]:
        """Claim the endpoint for the length of a block; ConfigError if another listener has it, or Kafka refuses."""
        try:
            try:
                await self._claim()
            except (StoreError, trio.TooSlowError) as error:
                raise ConfigError(f"can't listen at {self.address}: {str(error) or 'Kafka does not answer'}") from error
            yield self
        finally:
            client = self._shared.client
            client.follower.unfollow(self._topic)
            if self._owns_topic and not self._lost.is_set():
                deleted = client.delete_topics([self._topic])
                self._shared.deleted_topics.add(self._topic)
                with trio.CancelScope(shield=True), trio.move_on_after(FREE_SECONDS), suppress(StoreError):
                    await wait_for(deleted)
                    while await client.admin.describe_topics([self._topic]):
                        pass  # the broker that was asked does not know it yet; each time is a round trip

    async def hold(self) -> str:
        """Announce this listener now and then until it loses the endpoint; return why it lost it."""
        while not self._lost.is_set():
            with trio.move_on_after(ANNOUNCE_SECONDS):
                await self._lost.wait()
                break
            self._announce()
        await trio.lowlevel.checkpoint()
        return str(self._error or "another listener answers there")

    async def reclaim(self) -> None:
        """Claim an endpoint that was lost, as soon as it is free."""
        backoff = Backoff(*RECLAIM_SECONDS)
        while True:
            await trio.sleep(backoff.failed())
            try:
                await self._claim()
            except (StoreError, ConfigError, trio.TooSlowError):
                self._lose()  # another listener answers, or Kafka does not
            else:
                return

    async def next_dials(self) -> Sequence[str]:
        """Wait for ids of links that dialers have created; returns each once, DIALS_AT_ONCE at most."""
        ids = {await self._dials.receive(): None}
        with suppress(trio.WouldBlock):
            while len(ids) < DIALS_AT_ONCE:
                ids[self._dials.receive_nowait()] = None
        return list(ids)

    async def _claim(self) -> None:
        """Create the topic unless it exists, and claim it."""
        client, topic = self._shared.client, self._topic
        self._owns_topic = False
        with trio.fail_after(LISTEN_SECONDS):
            while not self._owns_topic:
                await self._shared.prepare_to_create(topic)
                # If this is cancelled, the topic is deleted again. Else `_owns_topic` says what to do.
                self._owns_topic = await client.admin.create_topics(
                    topic, replication_factor=self._replication_factor, settings=ENDPOINT_SETTINGS, keep=False
                )
                before = await client.admin.describe_topics([topic])
                await client.producer.load_metadata(topic)
                await self._claim_topic(is_new=self._owns_topic)
                # The listener before may have deleted it meanwhile.
                self._owns_topic = bool(before) and await client.admin.describe_topics([topic]) == before
                if not self._owns_topic:
                    self._shared.deleted_topics.add(topic)

    async def _claim_topic(self, *, is_new: bool) -> None:
        self._lost, self._error = trio.Event(), None
        self._id, self._read_own_listen, self._has_claimed = new_id(), False, False
        self._is_announcing = self._announce_again = False
        self._rivals.clear()
        self._offset = 0 if is_new else await self._shared.client.admin.end_offset(self._topic)
        self._shared.client.follower.follow(self._topic, self._offset, self.on_records)
        first = await self._shared.write(self._topic, Announcement(AnnouncementKind.LISTEN, self._id).encode())
        if not (is_new and first == 0):
            with trio.move_on_after(CLAIM_SECONDS):
                await self._lost.wait()
                raise self._lost_error()
            self._announce()
        self._has_claimed = True

    def _lost_error(self) -> StoreError | ConfigError:
        return self._error or taken(self.address)

    def _lose(self, error: StoreError | None = None) -> None:
        """Stop holding the endpoint, and drop the dials that wait."""
        if not self._lost.is_set():
            self._error = error
            self._lost.set()
        with suppress(trio.WouldBlock):
            while True:
                self._dials.receive_nowait()

    def on_records(self, records: Sequence[FetchedRecord] | StoreError) -> None:
        """Take the next records of the topic; the follower calls it."""
        if isinstance(records, RefusedByBrokerError):
            # The topic was created again, or this reader was too slow: its announcements are gone.
            self._shared.deleted_topics.add(self._topic)
            self._lose(records)
        elif isinstance(records, StoreError):
            self._shared.client.follower.follow(self._topic, self._offset, self.on_records)
        else:
            for record in records:
                self._offset = record.offset + 1
                if (announcement := Announcement.decode(record.value)) is not None:
                    self._receive(announcement)

    def _receive(self, announcement: Announcement) -> None:
        if self._lost.is_set():
            return
        if announcement.id == self._id:
            self._read_own_listen = True
            self._rivals.clear()
        elif not self._read_own_listen:
            pass  # it is meant for other listeners, which answer our LISTEN
        elif announcement.kind is AnnouncementKind.DIAL:
            if abs(time.time() - (created_at(announcement.id) or 0.0)) < DIAL_SECONDS:
                with suppress(trio.WouldBlock):  # one more dialer would give up before its turn
                    self._add_dial.send_nowait(announcement.id)
        elif announcement.kind is AnnouncementKind.LISTEN:
            if len(self._rivals) < MAX_RIVALS:
                self._rivals.add(announcement.id)
            self._announce()
        elif not self._has_claimed or announcement.id in self._rivals:
            self._lose()

    def _announce(self) -> None:
        """Announce that this listener listens.

        One record answers all that ask while it is on its way, and one more any that missed it.
        """
        if self._is_announcing:
            self._announce_again = True
            return
        self._is_announcing, own_id = True, self._id

        def confirmed(answer: int | StoreError) -> None:
            if own_id != self._id:
                return  # it belongs to an earlier claim
            again, self._is_announcing, self._announce_again = self._announce_again, False, False
            if again and isinstance(answer, int) and not self._lost.is_set():
                self._announce()

        record = OutgoingRecord(0, Announcement(AnnouncementKind.LISTENING, own_id).encode())
        self._shared.client.producer.send(self._topic, [(record, confirmed)])


def taken(address: str) -> ConfigError:
    """Return the error for an endpoint that another listener has."""
    return ConfigError(f"{address} is taken: choose another name, or close the node that listens there")
