"""A stream store in memory: bounded, it refuses when full, and ends with the process."""

import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import attrs
import trio

from trionode.protocol.stream.messages import MAX_RECORD, Extent, Record
from trionode.stream.store.base import (
    LOCAL_STORE,
    MAX_POSITIONS,
    MAX_STREAMS,
    FinalError,
    Position,
    Push,
    Stored,
    StoreError,
    StreamStore,
    UnknownStreamError,
    limit_records,
    with_store_info,
)

#: Bytes of all streams together, as much as a hub on a small machine can spare. If you need more, use a store on disk.
MAX_BYTES = 64 << 20
#: Bytes that a stored record costs beside its message and its producer: three objects and a place in a list and in a
#: dictionary.
RECORD_COST = 400


@attrs.define(eq=False)
class _Stream:
    owner: str
    life: bytes = attrs.Factory(lambda: secrets.token_bytes(16))
    records: list[Record] = attrs.Factory(list)
    #: (producer, request id) -> index
    indexes: dict[tuple[bytes, int], int] = attrs.Factory(dict)
    #: producer -> its highest request id
    last_requests: dict[bytes, int] = attrs.Factory(dict)
    arrived: trio.lowlevel.ParkingLot = attrs.Factory(trio.lowlevel.ParkingLot)


class MemoryStore:
    """A StreamStore in memory. A cancelled `append` has stored nothing."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._free = max_bytes
        self._streams: dict[str, _Stream] = {}
        self._positions: dict[tuple[str, str], int] = {}

    async def create(self, stream: str, owner: str = "") -> str:
        """Create a stream, unless it exists; see StreamStore."""
        await trio.lowlevel.checkpoint()
        if stream not in self._streams:
            if len(self._streams) >= MAX_STREAMS:
                raise FinalError(f"the store holds {MAX_STREAMS} streams already")
            self._streams[stream] = _Stream(owner)
        return self._streams[stream].owner

    async def append(self, pushes: Sequence[Push]) -> Sequence[Stored | StoreError]:
        """Store a batch in order; see StreamStore."""
        await trio.lowlevel.checkpoint()
        return [self._append(push) for push in pushes]

    def _append(self, push: Push) -> Stored | StoreError:
        stream = self._streams.get(push.stream)
        if stream is None:
            return UnknownStreamError("the stream does not exist")
        if len(push.record) > MAX_RECORD:
            return FinalError(f"the record has {len(push.record)} bytes; at most {MAX_RECORD} are allowed")
        key = (push.producer, push.request_id)
        index = stream.indexes.get(key)
        if index is not None:
            return Stored(index)
        cost = len(push.record) + len(push.producer) + RECORD_COST
        if cost > self._free:
            return FinalError("the store is full")
        self._free -= cost
        index = len(stream.records)
        stream.records.append(Record(index, push.record))
        stream.indexes[key] = index
        stream.last_requests[push.producer] = max(push.request_id, stream.last_requests.get(push.producer, 0))
        stream.arrived.unpark_all()
        return Stored(index)

    def _find(self, stream: str) -> _Stream:
        found = self._streams.get(stream)
        if found is None:
            raise UnknownStreamError("the stream does not exist")
        return found

    async def life(self, stream: str) -> bytes:
        """Return the random bytes that were made with the stream."""
        await trio.lowlevel.checkpoint()
        return self._find(stream).life

    async def lost(self, stream: str, index: int, life: bytes) -> Extent | None:
        """Find out whether a reader has lost records, or its place; see StreamStore."""
        await trio.lowlevel.checkpoint()
        found = self._find(stream)
        extent = Extent(found.life, 0, len(found.records))
        return None if extent.contains(life, index) else extent

    async def read(self, stream: str, index: int, *, limit: int, max_bytes: int) -> Sequence[Record]:
        """Wait for a record and return it with those that follow; see StreamStore."""
        await trio.lowlevel.checkpoint()
        found = self._find(stream)
        while index >= len(found.records):
            await found.arrived.park()
        end = min(index + max(limit, 1), len(found.records))
        return limit_records((found.records[at] for at in range(index, end)), limit=limit, max_bytes=max_bytes)

    async def last_request(self, stream: str, producer: bytes) -> int | None:
        """Look up the last push of a producer; see StreamStore."""
        await trio.lowlevel.checkpoint()
        return self._find(stream).last_requests.get(producer)

    async def position(self, client_id: str, stream: str) -> int | None:
        """Look up a position; see StreamStore."""
        await trio.lowlevel.checkpoint()
        return self._positions.get((client_id, stream))

    async def save_positions(self, positions: Sequence[Position]) -> None:
        """Save a batch of positions. Beyond MAX_POSITIONS the one saved longest ago is forgotten."""
        await trio.lowlevel.checkpoint()
        for position in positions:
            if position.stream not in self._streams:
                continue
            key = (position.client_id, position.stream)
            # A dictionary keeps the order of insertion, so its first key is the one saved longest ago.
            self._positions.pop(key, None)
            self._positions[key] = position.index
            if len(self._positions) > MAX_POSITIONS:
                del self._positions[next(iter(self._positions))]


@with_store_info(LOCAL_STORE)
@asynccontextmanager
async def open_memory_store(where: str = "", *, max_bytes: int = MAX_BYTES) -> AsyncIterator[StreamStore]:
    """Open an empty store in memory.

    Args:
      where: Ignored.
      max_bytes: Bytes of all streams together; further pushes are refused.

    If cancelled, nothing stays open.
    """
    del where
    await trio.lowlevel.checkpoint()
    yield MemoryStore(max_bytes)
