"""What a hub answers to a pull: the records, and what the reader has lost (spec §11.1, §11.3)."""

from collections.abc import Sequence

import attrs
import trio

from trionode.protocol.stream.messages import MAX_ANSWER, NO_LIFE, Extent, PullRequest, Record
from trionode.stream.owners import RETRY_SECONDS, StoreLog
from trionode.stream.store.base import RecordsGoneError, StreamStore, UnknownStreamError

#: Bytes that a pull answer needs of its frame beside the records: addresses, heads, protocol name (spec §11.6, 9: about
#: 150 bytes, and more in a channel), extent.
ANSWER_MARGIN = 600
#: Records in one answer, whatever the client asks for.
MAX_PULL_LIMIT = 1000
#: Times that the store is asked for a stream, RETRY_SECONDS apart, before its readers are told that it is gone: a
#: broker that has just started may not know it yet.
GONE_TRIES = 3


@attrs.frozen
class Found:
    """The records for a pull; and the extent of the stream, if the reader has lost records or its place."""

    records: Sequence[Record] = ()
    extent: Extent | None = None


async def read_for(store: StreamStore, store_log: StoreLog, stream: str, request: PullRequest) -> Found:
    """Wait for records of a stream, or find out what its reader has lost; StoreError if the store fails."""
    if request.life is None:
        return Found(await _read_what_is_left(store, store_log, stream, request))
    extent = await _lost(store, stream, request.index, request.life)
    if extent is None:
        return Found(await _read(store, stream, request, request.index))
    if extent.life == request.life and request.index < extent.first < extent.end:
        return Found(await _read(store, stream, request, extent.first), extent)
    return Found((), extent)


async def _lost(store: StreamStore, stream: str, index: int, life: bytes) -> Extent | None:
    tries = 0
    while True:
        try:
            return await store.lost(stream, index, life)
        except UnknownStreamError:
            tries += 1
            # A reader that knows that its stream is gone waits until it is created again.
            if life != NO_LIFE and tries >= GONE_TRIES:
                return Extent(NO_LIFE, 0, 0)
        await trio.sleep(RETRY_SECONDS)


async def _read_what_is_left(
    store: StreamStore, store_log: StoreLog, stream: str, request: PullRequest
) -> Sequence[Record]:
    """Read for a client that can't be told what it has lost: it gets what there is from its index on (spec §11.3)."""
    try:
        return await _read(store, stream, request, request.index)
    except RecordsGoneError as error:
        store_log.failed("a reader of the stream %s goes on behind removed records: %s", stream, error)
        return await _read(store, stream, request, max(error.first, request.index))


async def _read(store: StreamStore, stream: str, request: PullRequest, index: int) -> Sequence[Record]:
    limit = max(1, min(request.limit, MAX_PULL_LIMIT))
    return await store.read(stream, index, limit=limit, max_bytes=MAX_ANSWER - ANSWER_MARGIN)
