"""A stream store in one SQLite file: acknowledged records are on the disk, and a restart keeps everything."""

import secrets
import sqlite3
import stat
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Final, TypeVar, TypeVarTuple

import attrs
import trio

from trionode.errors import ConfigError
from trionode.protocol.stream.messages import MAX_RECORD, Extent, Record
from trionode.stream.store.base import (
    LOCAL_STORE,
    MAX_POSITIONS,
    MAX_STREAMS,
    FinalError,
    Position,
    Push,
    RecordsGoneError,
    Stored,
    StoreError,
    StoreInfo,
    StreamStore,
    UnknownStreamError,
    limit_records,
    with_store_info,
)

#: The largest file, bytes; a full one refuses pushes. Records are kept for ever, and a full disk would stop other
#: services of the machine.
MAX_BYTES = 16 << 30

#: "trio": marks the file as ours (https://www.sqlite.org/pragma.html#pragma_application_id).
_APPLICATION: Final = 0x7472696F
_VERSION: Final = 2
_PAGE: Final = 4096
# Request ids and positions are unsigned 64-bit numbers, and SQLite's integers are signed: so they are stored as 8
# bytes, big endian.
_SCHEMA: Final = f"""
PRAGMA page_size = {_PAGE};
BEGIN;
CREATE TABLE streams (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, owner TEXT NOT NULL, life BLOB NOT NULL);
CREATE TABLE records (
    stream INTEGER NOT NULL REFERENCES streams, at INTEGER NOT NULL,
    producer BLOB NOT NULL, request BLOB NOT NULL, message BLOB NOT NULL,
    UNIQUE (stream, at), UNIQUE (stream, producer, request)
);
CREATE TABLE positions (
    client TEXT NOT NULL, stream INTEGER NOT NULL REFERENCES streams, next BLOB NOT NULL, saved INTEGER NOT NULL,
    PRIMARY KEY (client, stream)
);
CREATE INDEX positions_by_age ON positions (saved);
PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = {_VERSION};
COMMIT;
"""

# Version 1 had no lives.
_UPGRADE: Final = """
BEGIN;
ALTER TABLE streams ADD COLUMN life BLOB NOT NULL DEFAULT x'';
UPDATE streams SET life = randomblob(16);
PRAGMA user_version = 2;
COMMIT;
"""

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


@attrs.define(eq=False)
class _Stream:
    id: int
    owner: str
    life: bytes
    #: The index of the first record: 0, unless an operator has removed records while no hub had the file open.
    first: int = 0
    #: The index of the next record. The worker thread raises it after each commit.
    end: int = 0
    arrived: trio.lowlevel.ParkingLot = attrs.Factory(trio.lowlevel.ParkingLot)


class SQLiteStore:
    """A StreamStore in a file that no other process has open, so streams and their ends are cached in memory.

    All SQL runs in one worker thread at a time. A call that has begun is never abandoned: cancelling waits for it.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        """Open the file; call it in a worker thread. ConfigError if the file can't be such a store."""
        self._path = path
        self._max_bytes = max_bytes
        self._limiter = trio.CapacityLimiter(1)
        self._streams: dict[str, _Stream] = {}
        self._positions = 0
        self._saves = 0
        _make_private(path)
        self._sql = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=0)
        try:
            self._load()
        except BaseException as error:  # an interrupt too: the connection must not outlive a failed opening
            self._sql.close()
            if isinstance(error, sqlite3.Error):
                raise ConfigError(_opening_failed(path, error)) from None
            raise

    def _load(self) -> None:
        sql = self._sql.execute
        # Nothing is written before it is known that the file is new or ours.
        (application,), (version,) = sql("PRAGMA application_id").fetchone(), sql("PRAGMA user_version").fetchone()
        (tables,) = sql("SELECT count(*) FROM sqlite_master").fetchone()
        ours = application == _APPLICATION and version in (1, _VERSION)
        if not ours and (application, version, tables) != (0, 0, 0):
            raise ConfigError(
                f"{self._path} is a database, but no stream store of version {_VERSION}: choose another path"
            )
        # One process only: reads are woken in memory, so records of a second process would not be noticed.
        sql("PRAGMA locking_mode = EXCLUSIVE")
        sql("PRAGMA journal_mode = WAL")
        sql("PRAGMA synchronous = FULL")
        if not tables:
            self._sql.executescript(_SCHEMA)
        elif version == 1:
            self._sql.executescript(_UPGRADE)
        sql("BEGIN IMMEDIATE")
        sql("COMMIT")
        sql(f"PRAGMA max_page_count = {max(1, self._max_bytes // _PAGE)}")
        rows = sql(
            "SELECT id, name, owner, life, (SELECT coalesce(min(at), 0) FROM records WHERE stream = id),"
            " (SELECT coalesce(max(at) + 1, 0) FROM records WHERE stream = id) FROM streams"
        )
        self._streams = {name: _Stream(key, owner, life, first, end) for key, name, owner, life, first, end in rows}
        self._positions, self._saves = sql("SELECT count(*), coalesce(max(saved), 0) FROM positions").fetchone()

    async def create(self, stream: str, owner: str = "") -> str:
        """Create a stream, unless it exists; see StreamStore."""
        await trio.lowlevel.checkpoint()
        if stream not in self._streams:
            await self._run(self._create, stream, owner)
        return self._streams[stream].owner

    def _create(self, stream: str, owner: str) -> None:
        # Another task may have created it while this one waited for the thread.
        if stream in self._streams:
            return
        if len(self._streams) >= MAX_STREAMS:
            raise FinalError(f"the store holds {MAX_STREAMS} streams already")
        with self._transaction():
            values = (stream, owner, life := secrets.token_bytes(16))
            row = self._sql.execute("INSERT INTO streams (name, owner, life) VALUES (?, ?, ?)", values).lastrowid
        assert row is not None
        self._streams[stream] = _Stream(row, owner, life)

    async def append(self, pushes: Sequence[Push]) -> Sequence[Stored | StoreError]:
        """Store a batch in one transaction; see StreamStore. If the file fails, the whole batch is refused."""
        try:
            answers = await self._run(self._append, pushes)
        except StoreError as error:
            return [error] * len(pushes)
        for name in {push.stream for push in pushes} & self._streams.keys():
            self._streams[name].arrived.unpark_all()
        return answers

    def _append(self, pushes: Sequence[Push]) -> list[Stored | StoreError]:
        ends: dict[str, int] = {}
        with self._transaction():
            answers = [self._store(push, ends) for push in pushes]
        for name, end in ends.items():
            self._streams[name].end = end
        return answers

    def _store(self, push: Push, ends: dict[str, int]) -> Stored | StoreError:
        stream = self._streams.get(push.stream)
        if stream is None:
            return UnknownStreamError("the stream does not exist")
        if len(push.record) > MAX_RECORD:
            return FinalError(f"the record has {len(push.record)} bytes; at most {MAX_RECORD} are allowed")
        name = (stream.id, push.producer, _u64(push.request_id))
        index = ends.get(push.stream, stream.end)
        stored = self._sql.execute(
            "INSERT INTO records (stream, producer, request, at, message) VALUES (?, ?, ?, ?, ?)"
            " ON CONFLICT (stream, producer, request) DO NOTHING",
            (*name, index, push.record),
        )
        if stored.rowcount:
            ends[push.stream] = index + 1
            return Stored(index)
        (index,) = self._sql.execute(
            "SELECT at FROM records WHERE stream = ? AND producer = ? AND request = ?", name
        ).fetchone()
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
        extent = Extent(found.life, found.first, found.end)
        return None if extent.contains(life, index) else extent

    async def read(self, stream: str, index: int, *, limit: int, max_bytes: int) -> Sequence[Record]:
        """Wait for a record and return it with those that follow; see StreamStore."""
        await trio.lowlevel.checkpoint()
        found = self._find(stream)
        if index < found.first:
            raise RecordsGoneError(f"the records of {stream} below {found.first} were removed", found.first)
        while index >= found.end:
            await found.arrived.park()
        return await self._run(self._read, found.id, index, limit, max_bytes)

    def _read(self, stream: int, index: int, limit: int, max_bytes: int) -> list[Record]:
        query = "SELECT at, message FROM records WHERE stream = ? AND at >= ? ORDER BY at"
        # Rows are fetched one by one, so no more than the limits are read.
        with closing(self._sql.execute(query, (stream, index))) as rows:
            return limit_records((Record(at, message) for at, message in rows), limit=limit, max_bytes=max_bytes)

    async def last_request(self, stream: str, producer: bytes) -> int | None:
        """Look up the last push of a producer; see StreamStore."""
        return await self._run(self._last_request, self._find(stream).id, producer)

    def _last_request(self, stream: int, producer: bytes) -> int | None:
        query = "SELECT max(request) FROM records WHERE stream = ? AND producer = ?"
        (last,) = self._sql.execute(query, (stream, producer)).fetchone()
        return None if last is None else int.from_bytes(last, "big")

    async def position(self, client_id: str, stream: str) -> int | None:
        """Look up a position; see StreamStore."""
        await trio.lowlevel.checkpoint()
        found = self._streams.get(stream)
        return None if found is None else await self._run(self._position, client_id, found.id)

    def _position(self, client_id: str, stream: int) -> int | None:
        query = "SELECT next FROM positions WHERE client = ? AND stream = ?"
        row = self._sql.execute(query, (client_id, stream)).fetchone()
        return None if row is None else int.from_bytes(row[0], "big")

    async def save_positions(self, positions: Sequence[Position]) -> None:
        """Save a batch of positions in one transaction. Beyond MAX_POSITIONS those saved longest ago are forgotten."""
        await self._run(self._save, positions)

    def _save(self, positions: Sequence[Position]) -> None:
        sql, count, saves = self._sql.execute, self._positions, self._saves
        with self._transaction():
            for position in positions:
                stream = self._streams.get(position.stream)
                if stream is None:
                    continue
                saves += 1
                row = (_u64(position.index), saves, position.client_id, stream.id)
                if not sql("UPDATE positions SET next = ?, saved = ? WHERE client = ? AND stream = ?", row).rowcount:
                    sql("INSERT INTO positions (next, saved, client, stream) VALUES (?, ?, ?, ?)", row)
                    count += 1
            if count > MAX_POSITIONS:
                oldest = "SELECT rowid FROM positions ORDER BY saved LIMIT ?"
                sql(f"DELETE FROM positions WHERE rowid IN ({oldest})", (count - MAX_POSITIONS,))  # noqa: S608 - no input
                count = MAX_POSITIONS
        self._positions, self._saves = count, saves

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._sql.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._sql.execute("COMMIT")
        except BaseException:
            # On a full disk SQLite has rolled back already.
            if self._sql.in_transaction:
                self._sql.execute("ROLLBACK")
            raise

    async def _run(self, work: Callable[[*Ts], T], *args: *Ts) -> T:
        try:
            return await trio.to_thread.run_sync(work, *args, limiter=self._limiter)
        except sqlite3.Error as error:
            raise StoreError(f"the file of the stream store failed: {error}") from error

    async def aclose(self) -> None:
        """Close the file after the call that has begun, even if cancelled."""
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._sql.close, limiter=self._limiter)


def _u64(number: int) -> bytes:
    return number.to_bytes(8, "big")


def _make_private(path: Path) -> None:
    # An existing file is not opened here: closing any descriptor of a file drops all locks of this process on it.
    try:
        path.touch(0o600, exist_ok=False)
    except FileExistsError:
        if not path.is_file():
            raise ConfigError(f"{path} is not a file: the path of a store names a file in an existing folder") from None
        # SQLite gives its side files the mode of the main file.
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            path.chmod(0o600)
    except OSError as error:
        raise ConfigError(
            f"{path} can't be created: {error.strerror}; the path of a store names a file in an existing folder"
        ) from None


def _opening_failed(path: Path, error: sqlite3.Error) -> str:
    if error.sqlite_errorcode == sqlite3.SQLITE_BUSY:
        return f"{path} is open in another process: only one hub can use a store"
    if error.sqlite_errorcode == sqlite3.SQLITE_NOTADB:
        return f"{path} is no stream store, and is left unchanged: choose another path"
    return f"{path} can't be opened as a stream store: {error}"


def _check_address(where: str) -> None:
    if not where:
        raise ConfigError('the path of the file is missing: write "sqlite:PATH"')


@with_store_info(StoreInfo(_check_address, LOCAL_STORE.exposure))
@asynccontextmanager
async def open_sqlite_store(where: str, *, max_bytes: int = MAX_BYTES) -> AsyncIterator[StreamStore]:
    """Open the store in a file, and close it at the end of the block. Reads must have ended by then.

    Args:
      where: The path of the file. It is created with mode 0600 if it does not exist.
      max_bytes: The largest file; pushes that do not fit are refused.

    Raises:
      ConfigError: The file is something else, is open in another process, or can't be created.

    If cancelled, opening or closing that has begun is finished.
    """
    _check_address(where)
    store = await trio.to_thread.run_sync(SQLiteStore, Path(where), max_bytes)
    try:
        yield store
    finally:
        await store.aclose()
