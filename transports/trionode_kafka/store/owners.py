"""The owners of streams: a topic of its own, `<prefix>_owners`, in which the first record about a stream counts.

An owner record in the stream's own topic would be simpler, but it would shift the indexes, go with retention, and leave
the name of a deleted stream to the first client that creates it again.
"""

import time
from collections.abc import Awaitable, Callable, Mapping

import trio

from trionode.plugins import MAX_STREAMS, FinalError
from trionode_kafka.client import KafkaClient, OutgoingRecord

_SETTINGS: Mapping[str, str] = {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"}


class Owners:
    """The owners of all streams, as far as their topic was read."""

    def __init__(
        self,
        client: KafkaClient,
        write: Callable[[str, OutgoingRecord], Awaitable[int]],
        *,
        topic: str,
        replication_factor: int,
    ) -> None:
        self._client = client
        self._write = write
        self._topic = topic
        self._replication_factor = replication_factor
        self._owners: dict[str, str] = {}
        self._read_to: int | None = None
        self._claiming = trio.Lock()

    def get(self, stream: str) -> str | None:
        """Return the owner of a stream, if it was read already."""
        return self._owners.get(stream)

    async def claim(self, stream: str, owner: str) -> str:
        """Make `owner` the owner of a stream that has none. Returns the stream's owner."""
        async with self._claiming:
            await self._read()
            if stream not in self._owners and len(self._owners) >= MAX_STREAMS:
                raise FinalError(f"there are {MAX_STREAMS} streams already")
            if stream not in self._owners:
                await self._write(self._topic, OutgoingRecord(int(time.time() * 1000), owner.encode(), stream=stream))
                await self._read()
        return self._owners[stream]

    async def _read(self) -> None:
        if self._read_to is None:
            await self._client.admin.create_topics(
                self._topic, replication_factor=self._replication_factor, settings=_SETTINGS
            )
            self._read_to = 0
        end = await self._client.admin.end_offset(self._topic)
        async for records in self._client.fetcher.scan(self._topic, self._read_to, end):
            for record in records:
                if record.stream is not None:
                    self._owners.setdefault(record.stream, record.value.decode(errors="replace"))
        self._read_to = end
