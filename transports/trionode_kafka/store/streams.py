"""The streams that this hub has opened, each a topic: found at their first use, closed with their topic."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from uuid import UUID

import attrs
import trio

from trionode.plugins import FinalError, UnknownStreamError, valid_stream_name
from trionode_kafka.client import BrokerUnavailableError, KafkaClient

#: Seconds after which the broker refuses a record by its timestamp: how long an outage or a suspension may last before
#: a hub reads again whether another one stored the push meanwhile.
OUTAGE_SECONDS = 60
#: The stream name whose topic would be that of the owners.
OWNERS = "_owners"
#: Seconds in which each broker of a cluster learns of a new topic: one may be asked before that.
KNOWN_TO_ALL_SECONDS = 2.0
#: Seconds between two tries while the broker is away: the first delay, and the longest.
RETRY_SECONDS = (0.1, 2.0)

_SETTINGS: Mapping[str, str] = {
    "cleanup.policy": "delete",
    "message.timestamp.type": "CreateTime",
    "message.timestamp.before.max.ms": str(OUTAGE_SECONDS * 1000),
}


@attrs.define(eq=False)
class Stream:
    """A stream whose topic existed. Once deleted, it stays `deleted`; a new stream of that name is another object."""

    name: str
    topic: str
    topic_id: str
    max_message_bytes: int
    deleted: bool = False

    @property
    def life(self) -> bytes:
        """The topic's id, which the brokers make with the topic."""
        return UUID(self.topic_id).bytes

    def error(self) -> UnknownStreamError:
        """Return the error for a deleted stream."""
        return UnknownStreamError(f"the stream {self.name} was deleted")


class Streams:
    """All open streams, by name."""

    def __init__(self, client: KafkaClient, *, prefix: str, replication_factor: int) -> None:
        self._client = client
        self._prefix = prefix
        self._replication_factor = replication_factor
        self._open: dict[str, Stream] = {}
        self._opening: dict[str, trio.Lock] = {}
        #: Called with each stream that was deleted.
        self.on_close: list[Callable[[Stream], None]] = []

    def all(self) -> list[Stream]:
        """Return the open streams. Their topics exist, as far as is known."""
        return list(self._open.values())

    def get(self, name: str) -> Stream | None:
        """Return a stream if it is open, without asking the broker."""
        return self._open.get(name)

    async def create(self, name: str) -> None:
        """Create a stream's topic, unless it exists."""
        await self._client.admin.create_topics(
            self._prefix + name, replication_factor=self._replication_factor, settings=_SETTINGS
        )
        with trio.move_on_after(KNOWN_TO_ALL_SECONDS):
            while True:
                with contextlib.suppress(UnknownStreamError):
                    await self.find(name)
                    return
                await trio.sleep(RETRY_SECONDS[0])
        await self.find(name)

    async def find(self, name: str) -> Stream:
        """Return a stream; UnknownStreamError if its topic does not exist."""
        known = self._open.get(name)
        if known is not None:
            return known
        if name == OWNERS or not valid_stream_name(name):
            raise UnknownStreamError(f"there is no stream {name!r:.100}")
        opening = self._opening.setdefault(name, trio.Lock())
        try:
            # In order of arrival: a push must not overtake one that waits for the same stream.
            async with opening:
                if name not in self._open:
                    self._open[name] = await self._find(name)
                return self._open[name]
        finally:
            if not opening.locked():
                self._opening.pop(name, None)

    async def check(self, streams: Sequence[Stream]) -> None:
        """Close the streams whose topics were deleted: readers and pushes get UnknownStreamError."""
        # While its leader moves, a topic has none: then it is not deleted.
        found = await self._client.admin.describe_topics([stream.topic for stream in streams], leaderless=True)
        for stream in streams:
            topic = found.get(stream.topic)
            if (topic is None or topic.topic_id != stream.topic_id) and self._open.get(stream.name) is stream:
                del self._open[stream.name]
                stream.deleted = True
                self._client.producer.forget_topics([stream.topic])
                for closed in self.on_close:
                    closed(stream)

    async def _find(self, name: str) -> Stream:
        topic = self._prefix + name
        info = (await self._client.admin.describe_topics([topic], leaderless=True)).get(topic)
        if info is None:
            raise UnknownStreamError(f"there is no stream {name!r:.100}")
        if not info.has_leader:
            raise BrokerUnavailableError(f"the topic {topic} has no leader now")
        if info.partitions != 1:
            raise FinalError(f"the topic {topic} has {info.partitions} partitions; a stream has one")
        await self._client.producer.load_metadata(topic)
        return Stream(name, topic, info.topic_id, await self._client.admin.max_message_bytes(topic))
