"""Every check of the store contract can fail: for each there is a store that breaks just that promise."""

import re
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
import trio.testing

from tests.support.failures import failures
from trionode.protocol.stream.messages import Extent, Record
from trionode.stream.store.base import (
    Position,
    Push,
    RecordsGoneError,
    Stored,
    StoreError,
    StreamStore,
    UnknownStreamError,
)
from trionode.stream.store.memory import MemoryStore
from trionode.testing.stream_store import (
    CHECKS,
    Check,
    Harness,
    a_cancelled_append_can_be_sent_again,
    a_cancelled_read_takes_nothing,
    a_read_ahead_of_the_end_waits_for_its_index,
    a_read_begins_at_its_index,
    a_read_keeps_within_its_limits,
    a_read_waits_for_its_record,
    a_reader_learns_that_it_lost_its_place,
    a_refused_push_harms_no_other,
    a_resend_is_stored_once,
    a_restart_loses_nothing,
    a_stream_belongs_to_its_first_creator,
    check_stream_store,
    concurrent_streams_do_not_mix,
    concurrent_writers_of_one_stream_get_different_indexes,
    positions_are_kept_for_a_client_and_a_stream,
    reading_removed_records_is_an_error,
    records_are_read_as_they_were_pushed,
    run_check,
    the_last_push_of_a_producer_is_known,
)


class Memory(MemoryStore):
    """A store that keeps the contract, and has a retention; the broken ones do one thing otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.first: dict[str, int] = {}

    async def expire(self, stream: str, index: int) -> None:
        await trio.lowlevel.checkpoint()
        self.first[stream] = index

    async def read(self, stream: str, index: int, *, limit: int, max_bytes: int) -> Sequence[Record]:
        if index < self.first.get(stream, 0):
            raise RecordsGoneError("retention removed it", self.first[stream])
        return await super().read(stream, index, limit=limit, max_bytes=max_bytes)

    async def lost(self, stream: str, index: int, life: bytes) -> Extent | None:
        extent = await super().lost(stream, -1, life)
        assert extent is not None
        extent = Extent(extent.life, self.first.get(stream, 0), extent.end)
        return None if extent.contains(life, index) else extent

    def is_at_the_end(self, stream: str, index: int) -> bool:
        return stream in self._streams and index >= len(self._streams[stream].records)


class StoresResendsAgain(Memory):
    calls = 0

    async def append(self, pushes: Sequence[Push]) -> Sequence[Stored | StoreError]:
        self.calls += 1
        return await super().append(
            [Push(push.stream, push.producer + b"%d" % self.calls, push.request_id, push.record) for push in pushes]
        )


class TakesResendsForAnyProducers(Memory):
    async def append(self, pushes: Sequence[Push]) -> Sequence[Stored | StoreError]:
        return await super().append([Push(push.stream, b"", push.request_id, push.record) for push in pushes])


class AnswersEmpty(Memory):
    async def read(self, stream: str, index: int, *, limit: int, max_bytes: int) -> Sequence[Record]:
        if self.is_at_the_end(stream, index):
            await trio.lowlevel.checkpoint()
            return ()
        return await super().read(stream, index, limit=limit, max_bytes=max_bytes)


class AnswersWithTheFirstThatComes(Memory):
    async def read(self, stream: str, index: int, *, limit: int, max_bytes: int) -> Sequence[Record]:
        end = len(self._streams[stream].records)
        return await super().read(stream, min(index, end), limit=limit, max_bytes=max_bytes)


class ReadsFromTheStart(Memory):
    async def read(self, stream: str, index: int, *, limit: int, max_bytes: int) -> Sequence[Record]:
        await super().read(stream, index, limit=limit, max_bytes=max_bytes)
        return await super().read(stream, 0, limit=limit, max_bytes=max_bytes)


class NeverWakes(Memory):
    async def read(self, stream: str, index: int, *, limit: int, max_bytes: int) -> Sequence[Record]:
        if self.is_at_the_end(stream, index):
            await trio.sleep_forever()
        return await super().read(stream, index, limit=limit, max_bytes=max_bytes)


class CantBeCancelled(Memory):
    async def read(self, stream: str, index: int, *, limit: int, max_bytes: int) -> Sequence[Record]:
        # Not for ever, so that the test ends.
        with trio.CancelScope(shield=True), trio.move_on_after(60):
            return await super().read(stream, index, limit=limit, max_bytes=max_bytes)
        return ()


class LosesWhatACancelledReadWaitedFor(Memory):
    async def read(self, stream: str, index: int, *, limit: int, max_bytes: int) -> Sequence[Record]:
        try:
            return await super().read(stream, index, limit=limit, max_bytes=max_bytes)
        except trio.Cancelled:
            self.first[stream] = 1
            raise


class KnowsNoLimit(Memory):
    async def read(self, stream: str, index: int, *, limit: int, max_bytes: int) -> Sequence[Record]:
        return await super().read(stream, index, limit=1000, max_bytes=max_bytes)


class KnowsNoSize(Memory):
    async def read(self, stream: str, index: int, *, limit: int, max_bytes: int) -> Sequence[Record]:
        return await super().read(stream, index, limit=limit, max_bytes=1 << 20)


class ReadsBackwards(Memory):
    async def read(self, stream: str, index: int, *, limit: int, max_bytes: int) -> Sequence[Record]:
        return (await super().read(stream, index, limit=limit, max_bytes=max_bytes))[::-1]


class RefusesWholeBatches(Memory):
    async def append(self, pushes: Sequence[Push]) -> Sequence[Stored | StoreError]:
        if any(push.stream not in self._streams for push in pushes):
            await trio.lowlevel.checkpoint()
            return [UnknownStreamError("all of them")] * len(pushes)
        return await super().append(pushes)


class MakesUnknownStreams(Memory):
    async def append(self, pushes: Sequence[Push]) -> Sequence[Stored | StoreError]:
        for push in pushes:
            await self.create(push.stream)
        return await super().append(pushes)


class WaitsForUnknownStreams(Memory):
    async def read(self, stream: str, index: int, *, limit: int, max_bytes: int) -> Sequence[Record]:
        if stream not in self._streams:
            await trio.sleep_forever()
        return await super().read(stream, index, limit=limit, max_bytes=max_bytes)


class ForgetsPositions(Memory):
    async def save_positions(self, positions: Sequence[Position]) -> None:
        await trio.lowlevel.checkpoint()


class SharesPositions(Memory):
    async def save_positions(self, positions: Sequence[Position]) -> None:
        await super().save_positions([Position("all", each.stream, each.index) for each in positions])

    async def position(self, client_id: str, stream: str) -> int | None:
        return await super().position("all", stream)


class KeepsTheHighestPosition(Memory):
    async def save_positions(self, positions: Sequence[Position]) -> None:
        await super().save_positions(sorted(positions, key=lambda each: each.index))


class TheLastOwnerWins(Memory):
    async def create(self, stream: str, owner: str = "") -> str:
        await super().create(stream, owner)
        self._streams[stream].owner = owner
        return owner


class CreatesAnew(Memory):
    async def create(self, stream: str, owner: str = "") -> str:
        known = self._streams.pop(stream, None)
        return await super().create(stream, owner if known is None else known.owner)


class MixesStreams(Memory):
    async def append(self, pushes: Sequence[Push]) -> Sequence[Stored | StoreError]:
        answers = await super().append(pushes)
        for stream in self._streams:
            if all(push.stream != stream for push in pushes):
                await super().append([Push(stream, push.producer, push.request_id, push.record) for push in pushes])
        return answers


class WorksOnOneStreamAtATime(Memory):
    def __init__(self) -> None:
        super().__init__()
        self.lock = trio.Lock()

    async def append(self, pushes: Sequence[Push]) -> Sequence[Stored | StoreError]:
        async with self.lock:
            return await super().append(pushes)

    async def read(self, stream: str, index: int, *, limit: int, max_bytes: int) -> Sequence[Record]:
        async with self.lock:
            return await super().read(stream, index, limit=limit, max_bytes=max_bytes)


class LooksBeforeItWrites(Memory):
    async def append(self, pushes: Sequence[Push]) -> Sequence[Stored | StoreError]:
        ends = {push.stream: len(self._streams[push.stream].records) for push in pushes}
        await trio.lowlevel.checkpoint()
        answers = list(await super().append(pushes))
        for push in pushes:
            records = self._streams[push.stream].records
            records[-1] = Record(ends[push.stream], records[-1].message)
        return answers


class RemembersBeforeItStores(Memory):
    async def append(self, pushes: Sequence[Push]) -> Sequence[Stored | StoreError]:
        for push in pushes:
            known = self._streams[push.stream].indexes
            known.setdefault((push.producer, push.request_id), len(known))
        await trio.lowlevel.checkpoint()
        for push in pushes:
            del self._streams[push.stream].indexes[push.producer, push.request_id]
        return await super().append(pushes)


class ReadsWhatIsLeft(Memory):
    async def read(self, stream: str, index: int, *, limit: int, max_bytes: int) -> Sequence[Record]:
        return await super().read(stream, max(index, self.first.get(stream, 0)), limit=limit, max_bytes=max_bytes)


class TakesAnEmptyStreamForNone(Memory):
    async def read(self, stream: str, index: int, *, limit: int, max_bytes: int) -> Sequence[Record]:
        try:
            return await super().read(stream, index, limit=limit, max_bytes=max_bytes)
        except StoreError as error:
            raise UnknownStreamError("gone") from error


class DoesNotSayWhatIsLeft(Memory):
    async def read(self, stream: str, index: int, *, limit: int, max_bytes: int) -> Sequence[Record]:
        try:
            return await super().read(stream, index, limit=limit, max_bytes=max_bytes)
        except RecordsGoneError:
            raise StoreError("gone") from None


class TellsNothingOfRetention(Memory):
    async def lost(self, stream: str, index: int, life: bytes) -> Extent | None:
        return await MemoryStore.lost(self, stream, index, life)


class KnowsNoProducers(Memory):
    async def last_request(self, stream: str, producer: bytes) -> int | None:
        await super().last_request(stream, producer)
        return None


class HasNoLives(Memory):
    async def life(self, stream: str) -> bytes:
        await super().life(stream)
        return b"always"


class TellsNothing(Memory):
    async def lost(self, stream: str, index: int, life: bytes) -> Extent | None:
        await super().lost(stream, index, life)
        return None


class CriesWolf(Memory):
    async def lost(self, stream: str, index: int, life: bytes) -> Extent | None:
        extent = await super().lost(stream, -1, life)
        return None if extent and index < extent.end else extent


class KnowsEveryLife(Memory):
    async def life(self, stream: str) -> bytes:
        return self._streams[stream].life if stream in self._streams else b"?"


class BeginsAnewWhenItExpires(Memory):
    async def expire(self, stream: str, index: int) -> None:
        await super().expire(stream, index)
        self._streams[stream].records.clear()


class Forgets(Memory):
    """A store that every opening makes anew."""


#: What is broken, the check that finds it, and what that says.
BROKEN: tuple[tuple[type[Memory], Check, str], ...] = (
    (ReadsBackwards, records_are_read_as_they_were_pushed, "once"),
    (ReadsFromTheStart, a_read_begins_at_its_index, "below the index asked for"),
    (KnowsNoLimit, a_read_keeps_within_its_limits, "1 to `limit` records, not 10 for 1"),
    (KnowsNoSize, a_read_keeps_within_its_limits, "read keeps within `max_bytes`"),
    (AnswersEmpty, a_read_waits_for_its_record, "read waits until there is a record"),
    (NeverWakes, a_read_waits_for_its_record, "still waiting after"),
    (AnswersWithTheFirstThatComes, a_read_ahead_of_the_end_waits_for_its_index, "below the index asked for"),
    (CantBeCancelled, a_cancelled_read_takes_nothing, "still waiting after|can be cancelled"),
    (LosesWhatACancelledReadWaitedFor, a_cancelled_read_takes_nothing, "retention removed it"),
    (StoresResendsAgain, a_resend_is_stored_once, "a resend gets the indexes that its records have"),
    (TakesResendsForAnyProducers, a_resend_is_stored_once, "each push is read once|still waiting"),
    (RefusesWholeBatches, a_refused_push_harms_no_other, "a push longer than MAX_RECORD|does not affect others"),
    (MakesUnknownStreams, a_refused_push_harms_no_other, "a push to an unknown stream"),
    (WaitsForUnknownStreams, a_refused_push_harms_no_other, "still waiting after"),
    (ForgetsPositions, positions_are_kept_for_a_client_and_a_stream, "a position of 0 is kept"),
    (SharesPositions, positions_are_kept_for_a_client_and_a_stream, "positions belong to one client"),
    (KeepsTheHighestPosition, positions_are_kept_for_a_client_and_a_stream, "also when it is lower"),
    (TheLastOwnerWins, a_stream_belongs_to_its_first_creator, "belongs to its first creator"),
    (CreatesAnew, a_stream_belongs_to_its_first_creator, "still waiting|leaves an existing stream"),
    (MixesStreams, concurrent_streams_do_not_mix, "keeps its own records"),
    (WorksOnOneStreamAtATime, concurrent_streams_do_not_mix, "still waiting after"),
    (
        LooksBeforeItWrites,
        concurrent_writers_of_one_stream_get_different_indexes,
        "one index|below the index|still waiting",
    ),
    (RemembersBeforeItStores, a_cancelled_append_can_be_sent_again, "is stored once"),
    (KnowsNoProducers, the_last_push_of_a_producer_is_known, "is the highest"),
    (HasNoLives, a_reader_learns_that_it_lost_its_place, "a life of its own"),
    (TellsNothing, a_reader_learns_that_it_lost_its_place, "behind the end of the stream has lost its place"),
    (CriesWolf, a_reader_learns_that_it_lost_its_place, "has lost nothing"),
    (KnowsEveryLife, a_reader_learns_that_it_lost_its_place, "raise UnknownStreamError"),
    (DoesNotSayWhatIsLeft, reading_removed_records_is_an_error, "raises RecordsGoneError with the first"),
    (TellsNothingOfRetention, reading_removed_records_is_an_error, "learns what is left"),
    (Forgets, a_restart_loses_nothing, "has its owner after a restart"),
    (ReadsWhatIsLeft, reading_removed_records_is_an_error, "raises RecordsGoneError; it returned"),
    (TakesAnEmptyStreamForNone, reading_removed_records_is_an_error, "raises RecordsGoneError with the first"),
    (
        BeginsAnewWhenItExpires,
        reading_removed_records_is_an_error,
        "learns what is left|is recognised|keep rising|is read as before|still",
    ),
)


def harness(of: type[Memory]) -> Harness:
    """One store for all openings, as if it were on a disk."""
    kept = of()

    @asynccontextmanager
    async def make() -> AsyncIterator[StreamStore]:
        await trio.lowlevel.checkpoint()
        yield of() if of is Forgets else kept

    async def expire(store: StreamStore, stream: str, index: int) -> None:
        assert isinstance(store, Memory)
        await store.expire(stream, index)

    return Harness(make, durable=True, expire=expire)


@pytest.mark.parametrize(("broken", "check", "says"), BROKEN, ids=lambda each: getattr(each, "__name__", ""))
async def test_a_broken_store_is_found(
    broken: type[Memory], check: Check, says: str, autojump_clock: trio.testing.MockClock
) -> None:
    with pytest.raises((Exception, ExceptionGroup)) as caught:
        await run_check(check, harness(broken))
    assert any(re.search(says, failure) for failure in failures(caught.value)), list(failures(caught.value))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_a_store_that_fulfils_the_contract_is_accepted(
    check: Check, autojump_clock: trio.testing.MockClock
) -> None:
    await run_check(check, harness(Memory))


def test_every_check_has_a_store_that_breaks_it() -> None:
    assert {check for _, check, _ in BROKEN} == set(CHECKS)
    assert len(set(CHECKS)) == len(CHECKS)


async def test_the_contract_as_a_whole_stops_at_the_first_broken_promise(
    autojump_clock: trio.testing.MockClock,
) -> None:
    await check_stream_store(harness(Memory).make, durable=True, expire=harness(Memory).expire)
    with pytest.raises(AssertionError, match="has its owner after a restart"):
        await check_stream_store(harness(Forgets).make, durable=True)
    await check_stream_store(harness(Forgets).make)


async def test_a_store_that_leaves_something_behind_is_found(autojump_clock: trio.testing.MockClock) -> None:
    over = threading.Event()

    @asynccontextmanager
    async def make() -> AsyncIterator[StreamStore]:
        threading.Thread(target=partial(over.wait, 60), name="left").start()
        await trio.lowlevel.checkpoint()
        yield Memory()

    try:
        with pytest.raises(AssertionError, match="are left behind: left"):
            await run_check(a_read_begins_at_its_index, Harness(make))
    finally:
        over.set()
