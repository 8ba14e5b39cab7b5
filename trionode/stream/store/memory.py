"""Streams in memory: bounded, refused when full, gone with the process."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import attrs
import trio

from trionode.protocol.stream import MAX_RECORD, Record
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
    fitting,
    with_store_info,
)

#: Bytes of all streams together: a hub on a small machine lives with that; whoever needs more has a disk.
MAX_BYTES = 64 << 20
#: What a stored record costs beside its message and its producer's name: three objects and a place in a list and in a dictionary.
RECORD_COST = 400


@attrs.define(eq=False)
class _Stream:
    owner: str
    records: list[Record] = attrs.Factory(list)
    #: (producer, request id) -> index
    known: dict[tuple[bytes, int], int] = attrs.Factory(dict)
    arrived: trio.lowlevel.ParkingLot = attrs.Factory(trio.lowlevel.ParkingLot)


class MemoryStore:
    """A StreamStore in memory; `append` that was cancelled has stored nothing."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._room = max_bytes
        self._streams: dict[str, _Stream] = {}
        self._positions: dict[tuple[str, str], int] = {}

    async def create(self, stream: str, owner: str = "") -> str:
        """Make the stream unless it exists; the owner that it has."""
        await trio.lowlevel.checkpoint()
        if stream not in self._streams:
            if len(self._streams) >= MAX_STREAMS:
                raise FinalError(f"the store holds {MAX_STREAMS} streams already")
            self._streams[stream] = _Stream(owner)
        return self._streams[stream].owner

    async def append(self, pushes: Sequence[Push]) -> Sequence[Stored | StoreError]:
        """Store a batch in its order; one answer a push."""
        await trio.lowlevel.checkpoint()
        return [self._append(push) for push in pushes]

    def _append(self, push: Push) -> Stored | StoreError:
        stream = self._streams.get(push.stream)
        if stream is None:
            return UnknownStreamError("no such stream")
        key = (push.producer, push.request_id)
        index = stream.known.get(key)
        if index is not None:
            return Stored(index)
        cost = len(push.record) + len(push.producer) + RECORD_COST
        if len(push.record) > MAX_RECORD:
            return FinalError(f"a record of {len(push.record)} bytes: {MAX_RECORD} are allowed")
        if cost > self._room:
            return FinalError("the store is full")
        self._room -= cost
        index = len(stream.records)
        stream.records.append(Record(index, push.record))
        stream.known[key] = index
        stream.arrived.unpark_all()
        return Stored(index)

    async def read(self, stream: str, index: int, *, limit: int, max_bytes: int) -> Sequence[Record]:
        """Wait until there is a record from `index` on; then what is there, within the limits."""
        await trio.lowlevel.checkpoint()
        found = self._streams.get(stream)
        if found is None:
            raise UnknownStreamError("no such stream")
        while index >= len(found.records):
            await found.arrived.park()
        end = min(index + max(limit, 1), len(found.records))
        return fitting((found.records[at] for at in range(index, end)), limit=limit, max_bytes=max_bytes)

    async def position(self, client_id: str, stream: str) -> int | None:
        """Look up the position last saved by this client for this stream."""
        await trio.lowlevel.checkpoint()
        return self._positions.get((client_id, stream))

    async def save_positions(self, positions: Sequence[Position]) -> None:
        """Keep a batch of positions; the one saved longest ago gives way where there are too many."""
        await trio.lowlevel.checkpoint()
        for position in positions:
            if position.stream not in self._streams:
                continue
            key = (position.client_id, position.stream)
            # A dictionary keeps the order of insertion, so that its first key is the one saved longest ago.
            self._positions.pop(key, None)
            self._positions[key] = position.index
            if len(self._positions) > MAX_POSITIONS:
                del self._positions[next(iter(self._positions))]


@with_store_info(LOCAL_STORE)
@asynccontextmanager
async def open_memory_store(where: str = "", *, max_bytes: int = MAX_BYTES) -> AsyncIterator[StreamStore]:
    """Open an empty store; `where` is of no meaning, since memory is in no place."""
    del where
    await trio.lowlevel.checkpoint()
    yield MemoryStore(max_bytes)
