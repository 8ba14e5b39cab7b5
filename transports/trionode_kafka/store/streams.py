"""The streams that this hub has in hand, each a topic: found when they are first named, let go of when their topic is gone."""

from collections.abc import Callable, Mapping, Sequence

import attrs
import trio

from trionode.plugins import FinalError, UnknownStreamError, valid_stream_name
from trionode_kafka.client import Bridge

#: Seconds after which the broker refuses a record by its timestamp: how long an outage or a freeze may last before a hub looks again
#: whether another one stored the push meanwhile.
OUTAGE_SECONDS = 60
#: The stream name whose topic would be that of the owners.
OWNERS = "_owners"

_SETTINGS: Mapping[str, str] = {
    "cleanup.policy": "delete",
    "message.timestamp.type": "CreateTime",
    "message.timestamp.before.max.ms": str(OUTAGE_SECONDS * 1000),
}


@attrs.define(eq=False)
class Stream:
    """A stream whose topic was there; once that is deleted it is `gone` for ever, and one of the same name is another."""

    name: str
    topic: str
    identity: str
    max_message: int
    gone: bool = False


class Streams:
    """All streams in hand, by name."""

    def __init__(self, bridge: Bridge, *, prefix: str, replication_factor: int) -> None:
        self._bridge = bridge
        self._prefix = prefix
        self._replication_factor = replication_factor
        self._found: dict[str, Stream] = {}
        self._opening: dict[str, trio.Lock] = {}
        #: Called with each stream that is gone, so that whoever keeps something of it lets go.
        self.when_closed: list[Callable[[Stream], None]] = []

    def in_hand(self) -> list[Stream]:
        """The streams found so far whose topics are there, as far as is known."""
        return list(self._found.values())

    def get(self, name: str) -> Stream | None:
        """A stream in hand; nothing is asked."""
        return self._found.get(name)

    async def make(self, name: str) -> None:
        """Make a stream's topic unless it exists."""
        await self._bridge.create_topic(
            self._prefix + name, replication_factor=self._replication_factor, settings=_SETTINGS
        )
        await self.find(name)

    async def find(self, name: str) -> Stream:
        """A stream; UnknownStreamError if its topic does not exist."""
        known = self._found.get(name)
        if known is not None:
            return known
        if name == OWNERS or not valid_stream_name(name):
            raise UnknownStreamError(f"there is no stream {name!r:.100}")
        opening = self._opening.setdefault(name, trio.Lock())
        try:
            # In order of arrival: a push must not overtake one that waits for the same stream.
            async with opening:
                if name not in self._found:
                    self._found[name] = await self._open(name)
                return self._found[name]
        finally:
            if not opening.locked():
                self._opening.pop(name, None)

    async def check(self, streams: Sequence[Stream]) -> None:
        """Let go of streams whose topics are not what they were: readers and pushes get UnknownStreamError."""
        there = await self._bridge.describe([stream.topic for stream in streams])
        for stream in streams:
            found = there.get(stream.topic)
            if (found is None or found.identity != stream.identity) and self._found.get(stream.name) is stream:
                del self._found[stream.name]
                stream.gone = True
                self._bridge.unlearn([stream.topic])
                for let_go in self.when_closed:
                    let_go(stream)

    async def _open(self, name: str) -> Stream:
        topic = self._prefix + name
        there = (await self._bridge.describe([topic])).get(topic)
        if there is None:
            raise UnknownStreamError(f"there is no stream {name!r:.100}")
        if there.partitions != 1:
            raise FinalError(f"the topic {topic} has {there.partitions} partitions; a stream has one")
        return Stream(name, topic, there.identity, await self._bridge.prepare(topic))
