"""Who owns a stream: a topic of its own, `<prefix>_owners`, where the first record about a stream wins.

An owner record in the stream's topic would be simpler, but would move the indexes, go with retention, and leave the name of a deleted
stream to whoever comes first.
"""

import time
from collections.abc import Awaitable, Callable, Mapping

import trio

from trionode.plugins import MAX_STREAMS, FinalError
from trionode_kafka.client import Bridge, Outgoing

_SETTINGS: Mapping[str, str] = {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"}


class Owners:
    """The owners of all streams, as far as their topic was read."""

    def __init__(
        self, bridge: Bridge, write: Callable[[str, Outgoing], Awaitable[int]], *, topic: str, replication_factor: int
    ) -> None:
        self._bridge = bridge
        self._write = write
        self._topic = topic
        self._replication_factor = replication_factor
        self._owners: dict[str, str] = {}
        self._read_to: int | None = None
        self._claiming = trio.Lock()

    def get(self, stream: str) -> str | None:
        """The owner of a stream, if it was read already."""
        return self._owners.get(stream)

    async def claim(self, stream: str, owner: str) -> str:
        """Make `owner` the owner of a stream that has none; the one it has."""
        async with self._claiming:
            await self._read()
            if stream not in self._owners and len(self._owners) >= MAX_STREAMS:
                raise FinalError(f"there are {MAX_STREAMS} streams already")
            if stream not in self._owners:
                await self._write(self._topic, Outgoing(int(time.time() * 1000), owner.encode(), stream=stream))
                await self._read()
        return self._owners[stream]

    async def _read(self) -> None:
        if self._read_to is None:
            await self._bridge.create_topic(
                self._topic, replication_factor=self._replication_factor, settings=_SETTINGS
            )
            self._read_to = 0
        end = await self._bridge.end_offset(self._topic)
        async for records in self._bridge.scan(self._topic, self._read_to, end):
            for record in records:
                if record.stream is not None:
                    self._owners.setdefault(record.stream, record.value.decode(errors="replace"))
        self._read_to = end
