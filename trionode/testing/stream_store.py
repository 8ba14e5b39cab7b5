"""The contract of a StreamStore as a test: what every store must do, memory's and yours."""

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final, TypeVar

import trio
import trio.testing

from trionode.protocol.stream import MAX_RECORD, RECORD_OVERHEAD, Record, unique
from trionode.stream_store import Position, Push, Stored, StoreError, StreamStore, UnknownStreamError

#: How long one check may take: a store that lost a wake-up is then told from one that is slow.
PATIENCE_SECONDS = 30.0

#: Streams that are used at once: enough to show one that waits for another.
MANY_STREAMS = 20

#: No limit by size that a test's records could meet.
_PLENTY: Final = 1 << 20
_LARGEST: Final = 2**64 - 1

T = TypeVar("T")
MakeStore = Callable[[], AbstractAsyncContextManager[StreamStore]]


async def check_stream_store(
    make: MakeStore, *, durable: bool = False, patience_seconds: float = PATIENCE_SECONDS
) -> None:
    """Raise AssertionError, saying what was demanded, unless what `make()` opens fulfils the contract of StreamStore.

    `make()` is called several times, one store open at a time. With `durable`, every one must have what the ones before it stored;
    then it opens the same place again, as after a restart. Streams get names that nobody has used, so the place need not be empty.
    """
    for check in _CHECKS:
        async with _patience(check, patience_seconds), make() as store:
            await check(store)
    if durable:
        async with _patience(_check_restart, patience_seconds):
            await _check_restart(make)


@asynccontextmanager
async def _patience(check: Callable[..., Awaitable[None]], seconds: float) -> AsyncIterator[None]:
    with trio.move_on_after(seconds) as scope:
        yield
    name = check.__name__.removeprefix("_check_").replace("_", " ")
    _demand(not scope.cancelled_caught, f"{name}: still waiting after {seconds} s")


def _demand(held: object, what: str) -> None:
    # Not the statement: that one is silent under `python -O`.
    if not held:
        raise AssertionError(what)


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
    _demand(len(answers) == len(pushes), f"append answers each of {len(pushes)} pushes, not {len(answers)}")
    for answer in answers:
        _demand(isinstance(answer, Stored), f"append stores a good push; it answered {answer!r}")
    return [answer.index for answer in answers if isinstance(answer, Stored)]


async def _read_all(store: StreamStore, stream: str, index: int, count: int) -> list[Record]:
    """As many records as there must be, read as a consumer does."""
    records: list[Record] = []
    while len(records) < count:
        read = await store.read(stream, index, limit=8, max_bytes=_PLENTY)
        _demand(read, "read returns at least one record")
        _demand(all(record.index >= index for record in read), "read returns no record below the index asked for")
        _demand(len(read) <= 8, "read returns at most `limit` records")
        records += read
        index = read[-1].index + 1
    return records


def _messages(records: Sequence[Record]) -> list[bytes]:
    return [record.message for record in records]


async def _check_order_of_records(store: StreamStore) -> None:
    stream, producer = await _stream(store), _producer()
    messages = [f"message {number}".encode() for number in range(30)] + [b"", b"\x00\xff" * 50]
    indexes = await _append(store, _pushes(stream, producer, messages[:10]))
    indexes += await _append(store, _pushes(stream, producer, messages[10:11], first=10))
    indexes += await _append(store, _pushes(stream, producer, messages[11:], first=11))
    _demand(indexes == sorted(set(indexes)), "indexes rise from record to record")
    _demand(indexes[0] >= 0, "indexes are not negative")
    records = await _read_all(store, stream, 0, len(messages))
    _demand(_messages(records) == messages, "read returns the records as they were pushed, in their order, once")
    _demand([record.index for record in records] == indexes, "a record is read at the index that append returned")
    _demand(list(await store.append([])) == [], "an empty batch is answered by nothing")


async def _check_reads_from_the_middle(store: StreamStore) -> None:
    stream = await _stream(store)
    indexes = await _append(store, _pushes(stream, _producer(), [b"%d" % number for number in range(10)]))
    for at, index in enumerate(indexes):
        records = await _read_all(store, stream, index, 10 - at)
        _demand(records[0] == Record(index, b"%d" % at), "read begins at the record with the index asked for")
        _demand(len(records) == 10 - at, "read returns the records from the index on, and no other")


async def _check_limits_of_a_read(store: StreamStore) -> None:
    stream = await _stream(store)
    await _append(store, _pushes(stream, _producer(), [bytes(100)] * 10))
    for limit in (1, 3):
        read = await store.read(stream, 0, limit=limit, max_bytes=_PLENTY)
        _demand(1 <= len(read) <= limit, f"read returns 1 to `limit` records, not {len(read)} for {limit}")
    for count in (1, 4):
        room = count * (100 + RECORD_OVERHEAD)
        for max_bytes in (room, room + 50):
            read = await store.read(stream, 0, limit=10, max_bytes=max_bytes)
            _demand(1 <= len(read) <= count, f"read keeps within `max_bytes`: {count} such records, not {len(read)}")
    read = await store.read(stream, 0, limit=10, max_bytes=1)
    _demand(len(read) == 1, "read returns one record, even if that alone exceeds `max_bytes`")


async def _check_a_read_that_waits(store: StreamStore) -> None:
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
    _demand(not early, "read waits until there is a record with the index asked for or a higher one")
    _demand(
        all(list(records) == [Record(second, b"second")] for records in results),
        "every read that waits is woken by the append, and returns what it waited for",
    )


async def _check_a_read_ahead_of_the_end(store: StreamStore) -> None:
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
    _demand(results[0][0].index >= first + 2, "read returns no record below the index asked for")


async def _check_a_cancelled_read(store: StreamStore) -> None:
    stream = await _stream(store)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:

            async def read(index: int) -> None:
                await store.read(stream, index, limit=1, max_bytes=_PLENTY)

            nursery.start_soon(read, 0)
            nursery.start_soon(read, _LARGEST)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    _demand(scope.cancelled_caught, "a read that waits can be cancelled")
    await _append(store, _pushes(stream, _producer(), [b"after"]))
    records = await _read_all(store, stream, 0, 1)
    _demand(_messages(records) == [b"after"], "a cancelled read takes nothing away")


async def _check_resends(store: StreamStore) -> None:
    stream, other = await _stream(store), await _stream(store)
    producer, stranger = _producer(), _producer()
    pushes = _pushes(stream, producer, [b"a", b"b", b"c"])
    indexes = await _append(store, pushes)
    _demand(await _append(store, pushes) == indexes, "a resend gets the indexes that its records have")
    more = [*pushes[1:], *_pushes(stream, producer, [b"d", b"d"], first=3)]
    again = await _append(store, [*more, more[-1]])
    _demand(again[:2] == indexes[1:], "a resend gets its old index in a batch with new records too")
    _demand(again[4] == again[3], "the same push twice in a batch is one record")
    (of_stranger,) = await _append(store, _pushes(stream, stranger, [b"a"]))
    (elsewhere,) = await _append(store, _pushes(other, producer, [b"a"]))
    (last,) = await _append(store, [Push(stream, producer, _LARGEST, b"last")])
    _demand(await _append(store, [Push(stream, producer, _LARGEST, b"last")]) == [last], "request ids have 64 bits")
    records = await _read_all(store, stream, 0, 7)
    _demand(
        _messages(records) == [b"a", b"b", b"c", b"d", b"d", b"a", b"last"] and records[5].index == of_stranger,
        "each push is pulled once, and another producer's push, or other request id, is another push",
    )
    _demand(
        await _read_all(store, other, 0, 1) == [Record(elsewhere, b"a")],
        "the same producer and request id in another stream is another push",
    )


async def _check_refusals(store: StreamStore) -> None:
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
    _demand(len(answers) == 5, "append answers each push")
    _demand(kinds[1] is UnknownStreamError, "a push to an unknown stream gets UnknownStreamError")
    _demand(isinstance(answers[3], StoreError), "a push longer than MAX_RECORD gets StoreError")
    _demand(kinds[0] is kinds[2] is kinds[4] is Stored, "a refused push harms no other in its batch")
    records = await _read_all(store, stream, 0, 3)
    _demand(
        [len(message) for message in _messages(records)] == [5, MAX_RECORD, 4],
        "what is refused is not stored, and records up to MAX_RECORD are",
    )
    try:
        await store.read(unknown, 0, limit=1, max_bytes=_PLENTY)
    except UnknownStreamError:
        return
    raise AssertionError("read of an unknown stream raises UnknownStreamError")


async def _check_positions(store: StreamStore) -> None:
    stream, other, unknown = await _stream(store), await _stream(store), _name("unknown")
    client, stranger = _name("client"), _name("client")
    _demand(await store.position(client, stream) is None, "a position that was never saved is None")
    await store.save_positions([Position(client, stream, 0)])
    _demand(await store.position(client, stream) == 0, "a position of 0 is kept, and is not None")
    await store.save_positions(
        [
            Position(client, stream, 7),
            Position(client, other, _LARGEST),
            Position(client, unknown, 1),
            Position(client, stream, 5),
        ]
    )
    _demand(await store.position(client, stream) == 5, "the later position of a batch is kept, also when it is lower")
    _demand(await store.position(stranger, stream) is None, "positions belong to one client")
    # Kafka has 63 bits; a store may bound what nobody reaches, as long as the rest of the batch is kept.
    _demand(await store.position(client, other) is not None, "positions belong to one stream")
    _demand(await store.position(client, unknown) is None, "an unknown stream has no position")
    await store.save_positions([])


async def _check_owners(store: StreamStore) -> None:
    stream, nobodys = _name(), _name()
    _demand(await store.create(stream, "alice") == "alice", "create returns the owner that it was given")
    await _append(store, _pushes(stream, _producer(), [b"kept"]))
    for owner in ("bob", "alice", ""):
        _demand(await store.create(stream, owner) == "alice", "a stream belongs to the first who created it")
    _demand(_messages(await _read_all(store, stream, 0, 1)) == [b"kept"], "create leaves an existing stream as it is")
    _demand(await store.create(nobodys) == "", 'a stream created for nobody has the owner ""')
    _demand(await store.create(nobodys, "bob") == "", "a stream of nobody's is not to be taken afterwards")


async def _check_many_streams_at_once(store: StreamStore) -> None:
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
    _demand(not wrong, "streams that are used at once keep their own records, in order")


async def _check_writers_of_one_stream(store: StreamStore) -> None:
    stream, created = _name(), list[str]()
    producers = [_producer() for _ in range(5)]

    async def write(producer: bytes) -> None:
        created.append(await store.create(stream, producer.decode()))
        for at in range(6):
            await _append(store, [Push(stream, producer, at, producer + b"%d" % at)])

    async with trio.open_nursery() as nursery:
        for producer in producers:
            nursery.start_soon(write, producer)
    _demand(len(set(created)) == 1, "of several who create a stream at once, one is its owner")
    records = await _read_all(store, stream, 0, 30)
    indexes = [record.index for record in records]
    _demand(indexes == sorted(set(indexes)), "no two records of a stream have one index")
    for producer in producers:
        mine = [message for message in _messages(records) if message.startswith(producer)]
        _demand(mine == [producer + b"%d" % at for at in range(6)], "each producer's records are in their order")


async def _check_restart(make: MakeStore) -> None:
    stream, client, producer = _name(), _name("client"), _producer()
    pushes = _pushes(stream, producer, [b"a", b"b", b"c"])
    async with make() as store:
        await store.create(stream, "alice")
        indexes = await _append(store, pushes[:2])
        await store.save_positions([Position(client, stream, indexes[1])])
    async with make() as store:
        _demand(await store.create(stream, "bob") == "alice", "a stream has its owner after a restart")
        _demand(await store.position(client, stream) == indexes[1], "a position is there after a restart")
        _demand(await _append(store, pushes[1:2]) == indexes[1:], "a resend is recognised after a restart")
        indexes += await _append(store, pushes[2:])
        _demand(indexes == sorted(set(indexes)), "indexes go on rising after a restart")
    async with make() as store:
        records = await _read_all(store, stream, 0, 3)
        _demand(
            records == [Record(index, push.record) for index, push in zip(indexes, pushes, strict=True)],
            "each push is pulled once, with its index, whatever was restarted in between",
        )


_CHECKS: Final[Sequence[Callable[[StreamStore], Awaitable[None]]]] = (
    _check_order_of_records,
    _check_reads_from_the_middle,
    _check_limits_of_a_read,
    _check_a_read_that_waits,
    _check_a_read_ahead_of_the_end,
    _check_a_cancelled_read,
    _check_resends,
    _check_refusals,
    _check_positions,
    _check_owners,
    _check_many_streams_at_once,
    _check_writers_of_one_stream,
)
