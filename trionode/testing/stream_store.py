"""The contract of a StreamStore as checks that any store can run against itself, memory's and yours."""

import os
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial, wraps
from typing import Final

import attrs
import trio
import trio.testing

from trionode.protocol.stream import MAX_RECORD, RECORD_OVERHEAD, Record, unique
from trionode.stream.store.base import Position, Push, Stored, StoreError, StreamStore, UnknownStreamError
from trionode.testing.contract import Held, cancelled_after, demand

#: How long one check may take: a store that lost a wake-up is then told from one that is slow.
STALL_TIMEOUT = 30.0

#: Streams that are used at once: enough to show one that waits for another.
MANY_STREAMS = 20

#: Steps of tasks after which an append is cancelled: more than it takes in memory, or until it is done.
STAGES = 12

#: No limit by size that a test's records could meet.
_PLENTY: Final = 1 << 20
_LARGEST: Final = 2**64 - 1

MakeStore = Callable[[], AbstractAsyncContextManager[StreamStore]]
#: (store, stream, index): makes the records of a stream below an index vanish, as the store's own retention does.
Expire = Callable[[StreamStore, str, int], Awaitable[None]]


@attrs.frozen
class Ground:
    """Where a store is checked: what opens it, several times, one at a time; the place need not be empty, for streams get names that nobody has used.

    With `durable`, every one must have what the ones before it stored: then `make` opens the same place again, as after a restart.
    With `expire`, for a store that removes old records, what it must say of those is checked.
    """

    make: MakeStore
    durable: bool = False
    expire: Expire | None = None
    stall_timeout: float = STALL_TIMEOUT


#: One promise of the contract; AssertionError that says what was demanded, or another error, if the store breaks it.
Check = Callable[[Ground], Awaitable[None]]


async def check_stream_store(
    make: MakeStore, *, durable: bool = False, expire: Expire | None = None, stall_timeout: float = STALL_TIMEOUT
) -> None:
    """Run every check against what `make()` opens; AssertionError, saying what was demanded, at the first broken promise.

    See Ground for the arguments.
    """
    for check in CHECKS:
        await run_check(check, Ground(make, durable, expire, stall_timeout))


async def run_check(check: Check, ground: Ground) -> None:
    """Run one check, as long as the ground's patience lasts, and see that it leaves no task, no thread and no open file behind."""
    before = Held.now()
    with trio.move_on_after(ground.stall_timeout) as scope:
        await check(ground)
    name = check.__name__.replace("_", " ")
    demand(not scope.cancelled_caught, f"{name}: still waiting after {ground.stall_timeout} s")
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
    """As many records as there must be, read as a consumer does."""
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


def _of_a_store(check: Callable[[StreamStore], Awaitable[None]]) -> Check:
    @wraps(check)
    async def of_a_ground(ground: Ground) -> None:
        async with ground.make() as store:
            await check(store)

    return of_a_ground


@_of_a_store
async def records_are_read_as_they_were_pushed(store: StreamStore) -> None:
    """Indexes rise from 0 or more, records come in their order, once, each at the index that append returned."""
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
    demand(list(await store.append([])) == [], "an empty batch is answered by nothing")


@_of_a_store
async def a_read_begins_at_its_index(store: StreamStore) -> None:
    """From any index on, and nothing below it."""
    stream = await _stream(store)
    indexes = await _append(store, _pushes(stream, _producer(), [b"%d" % number for number in range(10)]))
    for at, index in enumerate(indexes):
        records = await _read_all(store, stream, index, 10 - at)
        demand(records[0] == Record(index, b"%d" % at), "read begins at the record with the index asked for")
        demand(len(records) == 10 - at, "read returns the records from the index on, and no other")


@_of_a_store
async def a_read_keeps_within_its_limits(store: StreamStore) -> None:
    """At most `limit` records, at most `max_bytes` with their overhead, and always one."""
    stream = await _stream(store)
    await _append(store, _pushes(stream, _producer(), [bytes(100)] * 10))
    for limit in (1, 3):
        read = await store.read(stream, 0, limit=limit, max_bytes=_PLENTY)
        demand(1 <= len(read) <= limit, f"read returns 1 to `limit` records, not {len(read)} for {limit}")
    for count in (1, 4):
        room = count * (100 + RECORD_OVERHEAD)
        for max_bytes in (room, room + 50):
            read = await store.read(stream, 0, limit=10, max_bytes=max_bytes)
            demand(1 <= len(read) <= count, f"read keeps within `max_bytes`: {count} such records, not {len(read)}")
    read = await store.read(stream, 0, limit=10, max_bytes=1)
    demand(len(read) == 1, "read returns one record, even if that alone exceeds `max_bytes`")


@_of_a_store
async def a_read_waits_for_its_record(store: StreamStore) -> None:
    """At the end of a stream it waits, and every one that waits is woken by the append; nobody is by another stream's."""
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
        "every read that waits is woken by the append, and returns what it waited for",
    )


@_of_a_store
async def a_read_ahead_of_the_end_waits_for_its_index(store: StreamStore) -> None:
    """A record below the index asked for wakes nobody."""
    stream, producer = await _stream(store), _producer()
    (first,) = await _append(store, _pushes(stream, producer, [b"0"]))
    results: list[Sequence[Record]] = []

    async def read() -> None:
        results.append(await store.read(stream, first + 2, limit=8, max_bytes=_PLENTY))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        # Two, of which the second has that index or a higher one.
        for number in (1, 2):
            await trio.testing.wait_all_tasks_blocked()
            await _append(store, _pushes(stream, producer, [b"%d" % number], first=number))
    demand(results[0][0].index >= first + 2, "read returns no record below the index asked for")


@_of_a_store
async def a_cancelled_read_takes_nothing(store: StreamStore) -> None:
    """A read that waits can be cancelled, and what comes after it is there for the next."""
    stream = await _stream(store)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:

            async def read(index: int) -> None:
                await store.read(stream, index, limit=1, max_bytes=_PLENTY)

            nursery.start_soon(read, 0)
            nursery.start_soon(read, _LARGEST)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    demand(scope.cancelled_caught, "a read that waits can be cancelled")
    await _append(store, _pushes(stream, _producer(), [b"after"]))
    records = await _read_all(store, stream, 0, 1)
    demand(_messages(records) == [b"after"], "a cancelled read takes nothing away")


@_of_a_store
async def a_resend_is_stored_once(store: StreamStore) -> None:
    """(stream, producer, request id) names a push for ever: it gets its old index, in whatever batch."""
    stream, other = await _stream(store), await _stream(store)
    producer, stranger = _producer(), _producer()
    pushes = _pushes(stream, producer, [b"a", b"b", b"c"])
    indexes = await _append(store, pushes)
    demand(await _append(store, pushes) == indexes, "a resend gets the indexes that its records have")
    more = [*pushes[1:], *_pushes(stream, producer, [b"d", b"d"], first=3)]
    again = await _append(store, [*more, more[-1]])
    demand(again[:2] == indexes[1:], "a resend gets its old index in a batch with new records too")
    demand(again[4] == again[3], "the same push twice in a batch is one record")
    (of_stranger,) = await _append(store, _pushes(stream, stranger, [b"a"]))
    (elsewhere,) = await _append(store, _pushes(other, producer, [b"a"]))
    (last,) = await _append(store, [Push(stream, producer, _LARGEST, b"last")])
    demand(await _append(store, [Push(stream, producer, _LARGEST, b"last")]) == [last], "request ids have 64 bits")
    records = await _read_all(store, stream, 0, 7)
    demand(
        _messages(records) == [b"a", b"b", b"c", b"d", b"d", b"a", b"last"] and records[5].index == of_stranger,
        "each push is pulled once, and another producer's push, or other request id, is another push",
    )
    demand(
        await _read_all(store, other, 0, 1) == [Record(elsewhere, b"a")],
        "the same producer and request id in another stream is another push",
    )


@_of_a_store
async def a_refused_push_harms_no_other(store: StreamStore) -> None:
    """Unknown streams and records beyond MAX_RECORD are answered one by one, and not stored; reading an unknown stream raises."""
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
    demand(kinds[0] is kinds[2] is kinds[4] is Stored, "a refused push harms no other in its batch")
    records = await _read_all(store, stream, 0, 3)
    demand(
        [len(message) for message in _messages(records)] == [5, MAX_RECORD, 4],
        "what is refused is not stored, and records up to MAX_RECORD are",
    )
    try:
        await store.read(unknown, 0, limit=1, max_bytes=_PLENTY)
    except UnknownStreamError:
        return
    raise AssertionError("read of an unknown stream raises UnknownStreamError")


@_of_a_store
async def positions_are_kept_for_a_client_and_a_stream(store: StreamStore) -> None:
    """The later one counts, 0 is one, and there is none of an unknown stream."""
    stream, other, unknown = await _stream(store), await _stream(store), _name("unknown")
    client, stranger = _name("client"), _name("client")
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
    demand(await store.position(stranger, stream) is None, "positions belong to one client")
    # Kafka has 63 bits; a store may bound what nobody reaches, as long as the rest of the batch is kept.
    demand(await store.position(client, other) is not None, "positions belong to one stream")
    demand(await store.position(client, unknown) is None, "an unknown stream has no position")
    await store.save_positions([])


@_of_a_store
async def a_stream_belongs_to_who_created_it_first(store: StreamStore) -> None:
    """Creating again changes neither the owner nor the records."""
    stream, nobodys = _name(), _name()
    demand(await store.create(stream, "alice") == "alice", "create returns the owner that it was given")
    await _append(store, _pushes(stream, _producer(), [b"kept"]))
    for owner in ("bob", "alice", ""):
        demand(await store.create(stream, owner) == "alice", "a stream belongs to the first who created it")
    demand(_messages(await _read_all(store, stream, 0, 1)) == [b"kept"], "create leaves an existing stream as it is")
    demand(await store.create(nobodys) == "", 'a stream created for nobody has the owner ""')
    demand(await store.create(nobodys, "bob") == "", "a stream of nobody's is not to be taken afterwards")


@_of_a_store
async def streams_that_are_used_at_once_do_not_mix(store: StreamStore) -> None:
    """Many writers and readers, each with a stream of his own."""
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
    demand(not wrong, "streams that are used at once keep their own records, in order")


@_of_a_store
async def writers_of_one_stream_get_an_index_each(store: StreamStore) -> None:
    """At once, each producer's records in their order, and one owner."""
    stream, created = _name(), list[str]()
    producers = [_producer() for _ in range(5)]

    async def write(producer: bytes) -> None:
        created.append(await store.create(stream, producer.decode()))
        for at in range(6):
            await _append(store, [Push(stream, producer, at, producer + b"%d" % at)])

    async with trio.open_nursery() as nursery:
        for producer in producers:
            nursery.start_soon(write, producer)
    demand(len(set(created)) == 1, "of several who create a stream at once, one is its owner")
    records = await _read_all(store, stream, 0, 30)
    indexes = [record.index for record in records]
    demand(indexes == sorted(set(indexes)), "no two records of a stream have one index")
    for producer in producers:
        mine = [message for message in _messages(records) if message.startswith(producer)]
        demand(mine == [producer + b"%d" % at for at in range(6)], "each producer's records are in their order")


@_of_a_store
async def a_cancelled_append_can_be_sent_again(store: StreamStore) -> None:
    """Whether it happened is unknown then, and a resend settles it: each push is stored once."""
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
        "a push whose append was cancelled, and which is sent again, is stored once, at the index of the second answer",
    )


async def a_restart_loses_nothing(ground: Ground) -> None:
    """Streams, owners, records, positions, and which push is a resend; only where the store is durable."""
    if not ground.durable:
        return
    stream, client, producer = _name(), _name("client"), _producer()
    pushes = _pushes(stream, producer, [b"a", b"b", b"c"])
    async with ground.make() as store:
        await store.create(stream, "alice")
        indexes = await _append(store, pushes[:2])
        await store.save_positions([Position(client, stream, indexes[1])])
    async with ground.make() as store:
        demand(await store.create(stream, "bob") == "alice", "a stream has its owner after a restart")
        demand(await store.position(client, stream) == indexes[1], "a position is there after a restart")
        demand(await _append(store, pushes[1:2]) == indexes[1:], "a resend is recognised after a restart")
        indexes += await _append(store, pushes[2:])
        demand(indexes == sorted(set(indexes)), "indexes go on rising after a restart")
    async with ground.make() as store:
        records = await _read_all(store, stream, 0, 3)
        demand(
            records == [Record(index, push.record) for index, push in zip(indexes, pushes, strict=True)],
            "each push is pulled once, with its index, whatever was restarted in between",
        )


async def what_retention_removed_is_an_error(ground: Ground) -> None:
    """StoreError, and not the next record or a wait, below the first index that is left; what is left is untouched; only where `expire` is given."""
    if ground.expire is None:
        return
    async with ground.make() as store:
        stream, producer = await _stream(store), _producer()
        pushes = _pushes(stream, producer, [b"%d" % number for number in range(6)])
        indexes = await _append(store, pushes[:5])
        await ground.expire(store, stream, indexes[2])
        for index in (0, indexes[1]):
            try:
                got = await store.read(stream, index, limit=8, max_bytes=_PLENTY)
            except StoreError as error:
                demand(
                    not isinstance(error, UnknownStreamError),
                    "reading what retention has removed is no UnknownStreamError: the stream is there",
                )
            else:
                raise AssertionError(f"reading what retention has removed raises StoreError; it brought {got!r}")
        demand(
            await _append(store, pushes[4:5]) == indexes[4:], "a resend of what is left is recognised after an expiry"
        )
        indexes += await _append(store, pushes[5:])
        demand(indexes == sorted(set(indexes)), "indexes go on rising after an expiry")
        demand(
            await _read_all(store, stream, indexes[2], 4)
            == [Record(index, push.record) for index, push in zip(indexes[2:], pushes[2:], strict=True)],
            "what retention has left is read as before",
        )


CHECKS: tuple[Check, ...] = (
    records_are_read_as_they_were_pushed,
    a_read_begins_at_its_index,
    a_read_keeps_within_its_limits,
    a_read_waits_for_its_record,
    a_read_ahead_of_the_end_waits_for_its_index,
    a_cancelled_read_takes_nothing,
    a_resend_is_stored_once,
    a_refused_push_harms_no_other,
    positions_are_kept_for_a_client_and_a_stream,
    a_stream_belongs_to_who_created_it_first,
    streams_that_are_used_at_once_do_not_mix,
    writers_of_one_stream_get_an_index_each,
    a_cancelled_append_can_be_sent_again,
    a_restart_loses_nothing,
    what_retention_removed_is_an_error,
)
