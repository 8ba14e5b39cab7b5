"""A stream store that confirms pushes and does not keep them, as a hostile hub or a broken disk does."""

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from random import Random
from unittest.mock import patch

from trionode.protocol.stream.messages import Extent, Record
from trionode.stream.store.base import Position, Push, Stored, StoreError, StreamStore, load_store
from trionode.topology.run import setup


class ForgetfulStore:
    """A StreamStore that forgets some pushes. It confirms a resend of such a push as it confirmed the first."""

    def __init__(
        self, store: StreamStore, probability: Callable[[], float], random: Random, note: Callable[[str], None]
    ) -> None:
        self._store = store
        self._probability = probability
        self._random = random
        self._note = note
        self._forgotten: dict[tuple[str, bytes, int], int] = {}
        self._kept: set[tuple[str, bytes, int]] = set()
        self._latest: dict[str, int] = {}

    async def create(self, stream: str, owner: str = "") -> str:
        """Create a stream; see StreamStore."""
        return await self._store.create(stream, owner)

    async def append(self, pushes: Sequence[Push]) -> Sequence[Stored | StoreError]:
        """Store a part of a batch, and confirm all of it; see StreamStore."""
        keys = [(push.stream, push.producer, push.request_id) for push in pushes]
        for push, key in zip(pushes, keys, strict=True):
            if key in self._forgotten or key in self._kept:
                continue
            if self._random.random() < self._probability():
                self._forgotten[key] = self._latest.get(push.stream, 0)
                self._note(f"push {push.request_id} to {push.stream}")
            else:
                self._kept.add(key)
        kept = [push for push, key in zip(pushes, keys, strict=True) if key in self._kept]
        answers = iter(await self._store.append(kept) if kept else ())
        merged: list[Stored | StoreError] = []
        for push, key in zip(pushes, keys, strict=True):
            answer = next(answers) if key in self._kept else Stored(self._forgotten[key])
            if isinstance(answer, Stored):
                self._latest[push.stream] = max(self._latest.get(push.stream, 0), answer.index)
            merged.append(answer)
        return merged

    async def read(self, stream: str, index: int, *, limit: int, max_bytes: int) -> Sequence[Record]:
        """Read records; see StreamStore."""
        return await self._store.read(stream, index, limit=limit, max_bytes=max_bytes)

    async def life(self, stream: str) -> bytes:
        """Return the life of a stream; see StreamStore."""
        return await self._store.life(stream)

    async def lost(self, stream: str, index: int, life: bytes) -> Extent | None:
        """Find out what a reader has lost; see StreamStore. It knows nothing of what it forgot."""
        return await self._store.lost(stream, index, life)

    async def last_request(self, stream: str, producer: bytes) -> int | None:
        """Look up the last push of a producer, stored or forgotten; see StreamStore."""
        forgotten = [request for of, by, request in self._forgotten if (of, by) == (stream, producer)]
        last = await self._store.last_request(stream, producer)
        return max([*forgotten, *([] if last is None else [last])], default=None)

    async def position(self, client_id: str, stream: str) -> int | None:
        """Look up a position; see StreamStore."""
        return await self._store.position(client_id, stream)

    async def save_positions(self, positions: Sequence[Position]) -> None:
        """Save positions; see StreamStore."""
        await self._store.save_positions(positions)


@contextmanager
def forgetting(probability: Callable[[], float], random: Random, note: Callable[[str], None]) -> Iterator[None]:
    """Let all stores that topologies open forget pushes with the probability of the moment; `note` is told of each."""

    @asynccontextmanager
    async def load(spec: str, **options: object) -> AsyncIterator[StreamStore]:
        async with load_store(spec, **options) as store:
            yield ForgetfulStore(store, probability, random, note)

    with patch.object(setup, "load_store", load):
        yield
