"""The contract of a StreamStore, as checks that any store can run against itself.

The file is long because it is one list: each function is one promise, and the order is that of `CHECKS`.
"""

import os
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial, wraps
from typing import Final

import attrs
import trio
import trio.testing

from trionode.protocol.stream.messages import MAX_LIFE, MAX_RECORD, RECORD_OVERHEAD, Extent, Record
from trionode.protocol.stream.names import unique
from trionode.stream.store.base import (
    Position,
    Push,
    RecordsGoneError,
    Stored,
    StoreError,
    StreamStore,
    UnknownStreamError,
)
from trionode.testing.contract import Held, cancelled_after, demand

#: Seconds that one check may take. A store that lost a wake-up exceeds it; a slow store does not.
STALL_TIMEOUT = 30.0

#: Streams that are used at once: enough to reveal a stream that waits for another.
MANY_STREAMS = 20

#: Task steps after which an append is cancelled, from 0 to so many. It ends earlier if the append is done by then.
STAGES = 12

#: A size limit that the records of a check never reach, bytes.
_PLENTY: Final = 1 << 20
_LARGEST: Final = 2**64 - 1

MakeStore = Callable[[], AbstractAsyncContextManager[StreamStore]]
#: (store, stream, index): removes the records of a stream below an index, as the store's own retention does.
Expire = Callable[[StreamStore, str, int], Awaitable[None]]


@attrs.frozen
class Harness:
    """A store to check.

    Attributes:
      make: Opens the store; called several times, one store at a time. The store need not be empty, since checks use
          new stream names.
      durable: Whether `make` opens the same store again, which must then hold everything, as after a restart.
      expire: Removes old records, for a store that does so by itself: an async function of the store, a stream and the
          first index to keep.
      stall_timeout: Seconds that one check may take.
    """

    make: MakeStore
    durable: bool = False
    expire: Expire | None = None
    stall_timeout: float = STALL_TIMEOUT


#: One promise of the contract. It raises AssertionError, or another error, if the store breaks it.
Check = Callable[[Harness], Awaitable[None]]


async def check_stream_store(
    make: MakeStore, *, durable: bool = False, expire: Expire | None = None, stall_timeout: float = STALL_TIMEOUT
) -> None:
    """Run every check.

    Args:
      make: Opens the store; called several times, one store at a time.
      durable: Whether `make` opens the same store again, which must then hold everything, as after a restart.
      expire: Removes old records, for a store that does so by itself: an async function of the store, a stream and the
          first index to keep.
      stall_timeout: Seconds that one check may take.

    Raises:
      AssertionError: A promise is broken; the text says which. Other errors of the store are raised as they are,
          perhaps in a group.

    If cancelled, the check that runs ends.
    """
    for check in CHECKS:
        await run_check(check, Harness(make, durable, expire, stall_timeout))


async def run_check(check: Check, harness: Harness) -> None:
    """Run one check. No task, thread or open file may be left.

    Args:
      check: One of CHECKS.
      harness: What to check.

    Raises:
      AssertionError: The promise is broken, or the check took more than the stall timeout.

    If cancelled, the check ends.
    """
    before = Held.now()
    with trio.move_on_after(harness.stall_timeout) as scope:
        await check(harness)
    name = check.__name__.replace("_", " ")
    demand(not scope.cancelled_caught, f"{name}: still waiting after {harness.stall_timeout} s")
    before.require_back()


def _name(of: str = "contract") -> str:
    return unique(of, os.urandom(16))


def _producer() -> bytes:
    return os.urandom(16).hex().encode()


async def _stream(store: StreamStore) -> str:
    stream = _name()
    await store.create(stream)
    return stream


def _pushes(stream: str, producer: bytes, records: Sequence[bytes], first: int = 0) -> list[Push]:
    return [Push(stream, producer, first + at, record) for at, record in enumerate(records)]


async def _append(store: StreamStore, pushes: Sequence[Push]) -> list[int]:
    answers = await store.append(pushes)
    demand(len(answers) == len(pushes), f"append answers each of {len(pushes)} pushes, not {len(answers)}")
    for answer in answers:
        demand(isinstance(answer, Stored), f"append stores a good push; it answered {answer!r}")
    return [answer.index for answer in answers if isinstance(answer, Stored)]


async def _read_all(store: StreamStore, stream: str, index: int, count: int) -> list[Record]:
    """Read so many records, as a consumer does."""
    records: list[Record] = []
    while len(records) < count:
        read = await store.read(stream, index, limit=8, max_bytes=_PLENTY)
        demand(read, "read returns at least one record")
        demand(all(record.index >= index for record in read), "read returns no record below the index asked for")
        demand(len(read) <= 8, "read returns at most `limit` records")
        records += read
        index = read[-1].index + 1
    return records


def _messages(records: Sequence[Record]) -> list[bytes]:
    return [record.message for record in records]


def _with_store(check: Callable[[StreamStore], Awaitable[None]]) -> Check:
    @wraps(check)
    async def with_open_store(harness: Harness) -> None:
        async with harness.make() as store:
            await check(store)

    return with_open_store


@_with_store
async def records_are_read_as_they_were_pushed(store: StreamStore) -> None:
    """Indexes rise, from 0 or more. Records are read once, in order, each at the index that append returned."""
    stream, producer = await _stream(store), _producer()
    messages = [f"message {number}".encode() for number in range(30)] + [b"", b"\x00\xff" * 50]
    indexes = await _append(store, _pushes(stream, producer, messages[:10]))
    indexes += await _append(store, _pushes(stream, producer, messages[10:11], first=10))
    indexes += await _append(store, _pushes(stream, producer, messages[11:], first=11))
    demand(indexes == sorted(set(indexes)), "indexes rise from record to record")
    demand(indexes[0] >= 0, "indexes are not negative")
    records = await _read_all(store, stream, 0, len(messages))
    demand(_messages(records) == messages, "read returns the records as they were pushed, in their order, once")
    demand([record.index for record in records] == indexes, "a record is read at the index that append returned")
    demand(list(await store.append([])) == [], "an empty batch gets an empty answer")


@_with_store
async def a_read_begins_at_its_index(store: StreamStore) -> None:
    """A read from any index returns that record first, and none below."""
    stream = await _stream(store)
    indexes = await _append(store, _pushes(stream, _producer(), [b"%d" % number for number in range(10)]))
    for at, index in enumerate(indexes):
        records = await _read_all(store, stream, index, 10 - at)
        demand(records[0] == Record(index, b"%d" % at), "read begins at the record with the index asked for")
        demand(len(records) == 10 - at, "read returns the records from the index on, and no other")


@_with_store
async def a_read_keeps_within_its_limits(store: StreamStore) -> None:
    """A read returns at most `limit` records of at most `max_bytes` with their overhead, and always at least one."""
    stream = await _stream(store)
    await _append(store, _pushes(stream, _producer(), [bytes(100)] * 10))
    for limit in (1, 3):
        read = await store.read(stream, 0, limit=limit, max_bytes=_PLENTY)
        demand(1 <= len(read) <= limit, f"read returns 1 to `limit` records, not {len(read)} for {limit}")
    for count in (1, 4):
        size = count * (100 + RECORD_OVERHEAD)
        for max_bytes in (size, size + 50):
            read = await store.read(stream, 0, limit=10, max_bytes=max_bytes)
            demand(1 <= len(read) <= count, f"read keeps within `max_bytes`: {count} such records, not {len(read)}")
    read = await store.read(stream, 0, limit=10, max_bytes=1)
    demand(len(read) == 1, "read returns one record, even if that alone exceeds `max_bytes`")


@_with_store
async def a_read_waits_for_its_record(store: StreamStore) -> None:
    """A read at the end of a stream waits. An append wakes every read of its stream, and none of another."""
    stream, other, producer = await _stream(store), await _stream(store), _producer()
    (first,) = await _append(store, _pushes(stream, producer, [b"first"]))
    results: list[Sequence[Record]] = []

    async def read() -> None:
        results.append(await store.read(stream, first + 1, limit=8, max_bytes=_PLENTY))

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        early = list(results)
        await _append(store, _pushes(other, producer, [b"elsewhere"]))
        (second,) = await _append(store, _pushes(stream, producer, [b"second"], first=1))
    demand(not early, "read waits until there is a record with the index asked for or a higher one")
    demand(
        all(list(records) == [Record(second, b"second")] for records in results),
        "an append wakes every read that waits, and each returns the new record",
    )


@_with_store
async def a_read_ahead_of_the_end_waits_for_its_index(store: StreamStore) -> None:
    """A record below the index asked for ends no read."""
    stream, producer = await _stream(store), _producer()
    (first,) = await _append(store, _pushes(stream, producer, [b"0"]))
    results: list[Sequence[Record]] = []

    async def read() -> None:
        results.append(await store.read(stream, first + 2, limit=8, max_bytes=_PLENTY))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        # Two appends; the second has that index or a higher one.
        for number in (1, 2):
            await trio.testing.wait_all_tasks_blocked()
            await _append(store, _pushes(stream, producer, [b"%d" % number], first=number))
    demand(results[0][0].index >= first + 2, "read returns no record below the index asked for")


@_with_store
async def a_cancelled_read_takes_nothing(store: StreamStore) -> None:
    """A waiting read can be cancelled, and the next read gets the records that come later."""
    stream = await _stream(store)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:

            async def read(index: int) -> None:
                await store.read(stream, index, limit=1, max_bytes=_PLENTY)

            nursery.start_soon(read, 0)
            nursery.start_soon(read, _LARGEST)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    demand(scope.cancelled_caught, "a waiting read can be cancelled")
    await _append(store, _pushes(stream, _producer(), [b"after"]))
    records = await _read_all(store, stream, 0, 1)
    demand(_messages(records) == [b"after"], "a cancelled read removes nothing")


@_with_store
async def a_resend_is_stored_once(store: StreamStore) -> None:
    """(stream, producer, request id) names a push for ever: a resend gets its old index, in any batch."""
    stream, other = await _stream(store), await _stream(store)
    producer, other_producer = _producer(), _producer()
    pushes = _pushes(stream, producer, [b"a", b"b", b"c"])
    indexes = await _append(store, pushes)
    demand(await _append(store, pushes) == indexes, "a resend gets the indexes that its records have")
    more = [*pushes[1:], *_pushes(stream, producer, [b"d", b"d"], first=3)]
    again = await _append(store, [*more, more[-1]])
    demand(again[:2] == indexes[1:], "a resend gets its old index in a batch with new records too")
    demand(again[4] == again[3], "the same push twice in a batch is one record")
    (of_other,) = await _append(store, _pushes(stream, other_producer, [b"a"]))
    (elsewhere,) = await _append(store, _pushes(other, producer, [b"a"]))
    (last,) = await _append(store, [Push(stream, producer, _LARGEST, b"last")])
    demand(await _append(store, [Push(stream, producer, _LARGEST, b"last")]) == [last], "request ids have 64 bits")
    records = await _read_all(store, stream, 0, 7)
    demand(
        _messages(records) == [b"a", b"b", b"c", b"d", b"d", b"a", b"last"] and records[5].index == of_other,
        "each push is read once; a push of another producer or with another request id is another push",
    )
    demand(
        await _read_all(store, other, 0, 1) == [Record(elsewhere, b"a")],
        "the same producer and request id in another stream is another push",
    )


@_with_store
async def the_last_push_of_a_producer_is_known(store: StreamStore) -> None:
    """`last_request` returns the highest request id of a producer, and None for one that has stored nothing."""
    stream, other, producer = await _stream(store), await _stream(store), _producer()
    demand(await store.last_request(stream, producer) is None, "nothing is known of a producer that stored nothing")
    for first in (5, 6):
        await _append(store, _pushes(stream, producer, [b"a", b"b"], first))
        last = await store.last_request(stream, producer)
        demand(last == first + 1, f"the last request of a producer is the highest: {first + 1}, not {last}")
    demand(await store.last_request(stream, _producer()) is None, "each producer has a last request of its own")
    demand(await store.last_request(other, producer) is None, "a producer has a last request in each stream")
    try:
        await store.last_request(_name(), producer)
    except UnknownStreamError:
        return
    raise AssertionError("last_request raises UnknownStreamError for a stream that does not exist")


@_with_store
async def a_refused_push_harms_no_other(store: StreamStore) -> None:
    """A push to an unknown stream or beyond MAX_RECORD gets its own error and is not stored.

    Reading an unknown stream raises.
    """
    stream, unknown, producer = await _stream(store), _name("unknown"), _producer()
    batch = [
        Push(stream, producer, 0, b"first"),
        Push(unknown, producer, 0, b"nowhere"),
        Push(stream, producer, 1, bytes(MAX_RECORD)),
        Push(stream, producer, 2, bytes(MAX_RECORD + 1)),
        Push(stream, producer, 3, b"last"),
    ]
    answers = await store.append(batch)
    kinds = [type(answer) for answer in answers]
    demand(len(answers) == 5, "append answers each push")
    demand(kinds[1] is UnknownStreamError, "a push to an unknown stream gets UnknownStreamError")
    demand(isinstance(answers[3], StoreError), "a push longer than MAX_RECORD gets StoreError")
    demand(kinds[0] is kinds[2] is kinds[4] is Stored, "a refused push does not affect others in its batch")
    records = await _read_all(store, stream, 0, 3)
    demand(
        [len(message) for message in _messages(records)] == [5, MAX_RECORD, 4],
        "refused pushes are not stored, and records up to MAX_RECORD are",
    )
    try:
        await store.read(unknown, 0, limit=1, max_bytes=_PLENTY)
    except UnknownStreamError:
        return
    raise AssertionError("read of an unknown stream raises UnknownStreamError")


@_with_store
async def positions_are_kept_for_a_client_and_a_stream(store: StreamStore) -> None:
    """The later position counts, 0 is a position, and an unknown stream has none."""
    stream, other, unknown = await _stream(store), await _stream(store), _name("unknown")
    client, other_client = _name("client"), _name("client")
    demand(await store.position(client, stream) is None, "a position that was never saved is None")
    await store.save_positions([Position(client, stream, 0)])
    demand(await store.position(client, stream) == 0, "a position of 0 is kept, and is not None")
    await store.save_positions(
        [
            Position(client, stream, 7),
            Position(client, other, _LARGEST),
            Position(client, unknown, 1),
            Position(client, stream, 5),
        ]
    )
    demand(await store.position(client, stream) == 5, "the later position of a batch is kept, also when it is lower")
    demand(await store.position(other_client, stream) is None, "positions belong to one client")
    # Kafka has 63 bits. A store may cap so high a position, but must keep the rest of the batch.
    demand(await store.position(client, other) is not None, "positions belong to one stream")
    demand(await store.position(client, unknown) is None, "an unknown stream has no position")
    await store.save_positions([])


@_with_store
async def a_stream_belongs_to_its_first_creator(store: StreamStore) -> None:
    """Creating a stream again changes neither its owner nor its records."""
    stream, shared = _name(), _name()
    demand(await store.create(stream, "alice") == "alice", "create returns the owner that it was given")
    await _append(store, _pushes(stream, _producer(), [b"record"]))
    for owner in ("bob", "alice", ""):
        demand(await store.create(stream, owner) == "alice", "a stream belongs to its first creator")
    demand(_messages(await _read_all(store, stream, 0, 1)) == [b"record"], "create leaves an existing stream as it is")
    demand(await store.create(shared) == "", 'a stream created without an owner has the owner ""')
    demand(await store.create(shared, "bob") == "", "a stream without an owner gets none later")


@_with_store
async def concurrent_streams_do_not_mix(store: StreamStore) -> None:
    """Many writers and readers, each pair with a stream of its own."""
    wrong: list[str] = []

    async def talk(number: int) -> None:
        stream, producer = _name(), _producer()
        await store.create(stream)
        messages = [f"{number}.{at}".encode() for at in range(12)]

        async def write() -> None:
            for at in range(0, len(messages), 3):
                await _append(store, _pushes(stream, producer, messages[at : at + 3], first=at))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            records = await _read_all(store, stream, 0, len(messages))
        if _messages(records) != messages:
            wrong.append(stream)

    async with trio.open_nursery() as nursery:
        for number in range(MANY_STREAMS):
            nursery.start_soon(talk, number)
    demand(not wrong, "each of several concurrent streams keeps its own records, in order")


@_with_store
async def concurrent_writers_of_one_stream_get_different_indexes(store: StreamStore) -> None:
    """Records of concurrent producers get different indexes, each producer's in order; the stream has one owner."""
    stream, created = _name(), list[str]()
    producers = [_producer() for _ in range(5)]

    async def write(producer: bytes) -> None:
        created.append(await store.create(stream, producer.decode()))
        for at in range(6):
            await _append(store, [Push(stream, producer, at, producer + b"%d" % at)])

    async with trio.open_nursery() as nursery:
        for producer in producers:
            nursery.start_soon(write, producer)
    demand(len(set(created)) == 1, "if several clients create a stream at once, one of them owns it")
    records = await _read_all(store, stream, 0, 30)
    indexes = [record.index for record in records]
    demand(indexes == sorted(set(indexes)), "no two records of a stream have one index")
    for producer in producers:
        mine = [message for message in _messages(records) if message.startswith(producer)]
        demand(mine == [producer + b"%d" % at for at in range(6)], "each producer's records are in their order")


@_with_store
async def a_cancelled_append_can_be_sent_again(store: StreamStore) -> None:
    """It is unknown whether a cancelled append happened. A resend stores each push once."""
    stream, producer = await _stream(store), _producer()
    pushes = _pushes(stream, producer, [b"%d" % number for number in range(3 * STAGES)])
    indexes = list[int]()
    for stage in range(STAGES):
        batch = pushes[3 * stage : 3 * stage + 3]
        cancelled = await cancelled_after(stage, partial(store.append, batch))
        indexes += await _append(store, batch)
        if not cancelled:
            break
    demand(
        await _read_all(store, stream, 0, len(indexes))
        == [Record(index, push.record) for index, push in zip(indexes, pushes, strict=False)],
        "a push whose append was cancelled and that is sent again is stored once, at the index of the second answer",
    )


@_with_store
async def a_reader_learns_that_it_lost_its_place(store: StreamStore) -> None:
    """`lost` returns None for a reader that has lost nothing; else the extent of the stream."""
    stream, other = await _stream(store), await _stream(store)
    life = await store.life(stream)
    demand(0 < len(life) <= MAX_LIFE, f"a life has 1 to {MAX_LIFE} bytes, not {len(life)}")
    demand(await store.life(other) != life, "each stream has a life of its own")
    demand(await store.lost(stream, 0, life) is None, "a reader of a new stream has lost nothing")
    indexes = await _append(store, _pushes(stream, _producer(), [b"0", b"1", b"2"]))
    for index in (*indexes, indexes[-1] + 1):
        demand(await store.lost(stream, index, life) is None, "a reader within the stream has lost nothing")
    extent = await store.lost(stream, indexes[-1] + 5, life)
    demand(extent is not None, "a reader behind the end of the stream has lost its place")
    demand(
        extent == Extent(life, indexes[0], indexes[-1] + 1) == await store.lost(stream, 0, b"another"),
        f"lost returns life, first index and end of the stream; it returned {extent}",
    )
    for call in (partial(store.life, _name()), partial(store.lost, _name(), 0, life)):
        try:
            answer = await call()
        except UnknownStreamError:
            continue
        raise AssertionError(f"life and lost raise UnknownStreamError for a stream that does not exist, not {answer!r}")


async def a_restart_loses_nothing(harness: Harness) -> None:
    """Streams, owners, records, positions and the knowledge of resends survive, if the store is durable."""
    if not harness.durable:
        return
    stream, client, producer = _name(), _name("client"), _producer()
    pushes = _pushes(stream, producer, [b"a", b"b", b"c"])
    async with harness.make() as store:
        await store.create(stream, "alice")
        indexes = await _append(store, pushes[:2])
        await store.save_positions([Position(client, stream, indexes[1])])
        life = await store.life(stream)
    async with harness.make() as store:
        if await store.create(stream, "bob") == "alice":
            demand(await store.lost(stream, indexes[1], life) is None, "a stream has its life after a restart")
        demand(await store.create(stream, "bob") == "alice", "a stream has its owner after a restart")
        demand(await store.position(client, stream) == indexes[1], "a position is there after a restart")
        demand(await _append(store, pushes[1:2]) == indexes[1:], "a resend is recognised after a restart")
        indexes += await _append(store, pushes[2:])
        demand(indexes == sorted(set(indexes)), "indexes keep rising after a restart")
    async with harness.make() as store:
        records = await _read_all(store, stream, 0, 3)
        demand(
            records == [Record(index, push.record) for index, push in zip(indexes, pushes, strict=True)],
            "each push is read once, at its index, after restarts in between",
        )


async def reading_removed_records_is_an_error(harness: Harness) -> None:
    """A read below the first remaining index raises RecordsGoneError.

    It does not wait or return later records, which stay as they are.
    """
    if harness.expire is None:
        return
    async with harness.make() as store:
        stream, producer = await _stream(store), _producer()
        pushes = _pushes(stream, producer, [b"%d" % number for number in range(6)])
        indexes = await _append(store, pushes[:5])
        await harness.expire(store, stream, indexes[2])
        life = await store.life(stream)
        for index in (0, indexes[1]):
            extent = await store.lost(stream, index, life)
            demand(
                extent == Extent(life, indexes[2], indexes[-1] + 1),
                f"a reader of removed records learns what is left: {indexes[2]} to below {indexes[-1] + 1}, not {extent}",
            )
            try:
                got = await store.read(stream, index, limit=8, max_bytes=_PLENTY)
            except StoreError as error:
                demand(
                    isinstance(error, RecordsGoneError) and error.first == indexes[2],
                    f"reading removed records raises RecordsGoneError with the first index that is left, not {error!r}",
                )
            else:
                raise AssertionError(f"reading removed records raises RecordsGoneError; it returned {got!r}")
        demand(await store.lost(stream, indexes[2], life) is None, "a reader of what is left has lost nothing")
        demand(
            await _append(store, pushes[4:5]) == indexes[4:],
            "a resend of a remaining record is recognised after an expiry",
        )
        indexes += await _append(store, pushes[5:])
        demand(indexes == sorted(set(indexes)), "indexes keep rising after an expiry")
        demand(
            await _read_all(store, stream, indexes[2], 4)
            == [Record(index, push.record) for index, push in zip(indexes[2:], pushes[2:], strict=True)],
            "the remaining records are read as before",
        )


CHECKS: tuple[Check, ...] = (
    records_are_read_as_they_were_pushed,
    a_read_begins_at_its_index,
    a_read_keeps_within_its_limits,
    a_read_waits_for_its_record,
    a_read_ahead_of_the_end_waits_for_its_index,
    a_cancelled_read_takes_nothing,
    a_resend_is_stored_once,
    the_last_push_of_a_producer_is_known,
    a_refused_push_harms_no_other,
    positions_are_kept_for_a_client_and_a_stream,
    a_stream_belongs_to_its_first_creator,
    concurrent_streams_do_not_mix,
    concurrent_writers_of_one_stream_get_different_indexes,
    a_cancelled_append_can_be_sent_again,
    a_reader_learns_that_it_lost_its_place,
    a_restart_loses_nothing,
    reading_removed_records_is_an_error,
)
