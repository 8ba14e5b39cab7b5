import sqlite3
import stat
import subprocess
import sys
from functools import partial
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import trio
import trio.testing

from trionode.errors import LocalError
from trionode.protocol.stream.messages import RECORD_OVERHEAD, Record
from trionode.stream.store import memory, sqlite
from trionode.stream.store.base import Position, Push, Stored, StoreError, StreamStore, limit_records
from trionode.stream.store.memory import open_memory_store
from trionode.stream.store.sqlite import open_sqlite_store
from trionode.testing.stream_store import CHECKS, Check, Harness, run_check


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_the_memory_store_keeps_the_contract(check: Check, autojump_clock: trio.testing.MockClock) -> None:
    await run_check(check, Harness(open_memory_store))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_the_sqlite_store_keeps_the_contract(check: Check, tmp_path: Path) -> None:
    await run_check(check, Harness(partial(open_sqlite_store, str(tmp_path / "store")), durable=True))


# -- bounds ------------------------------------------------------------------------------------------------------------


async def test_a_full_memory_store_refuses_pushes_and_stays_usable() -> None:
    async with open_memory_store(max_bytes=5000) as store:
        await store.create("s")
        answers = await store.append([Push("s", b"p", number, bytes(1000)) for number in range(5)])
        assert [isinstance(answer, Stored) for answer in answers] == [True] * 3 + [False] * 2
        assert list(await store.append([Push("s", b"p", 1, bytes(1000))])) == [Stored(1)]
        assert len(await store.read("s", 0, limit=10, max_bytes=10_000)) == 3


async def test_a_full_sqlite_store_refuses_pushes_and_stays_usable(tmp_path: Path) -> None:
    path = str(tmp_path / "store")
    async with open_sqlite_store(path, max_bytes=1 << 20) as store:
        await store.create("s")
        stored = 0
        while True:
            (answer,) = await store.append([Push("s", b"p", stored, bytes(60_000))])
            if isinstance(answer, StoreError):
                break
            stored += 1
        assert 10 < stored < 20
        assert list(await store.append([Push("s", b"p", 0, bytes(60_000))])) == [Stored(0)]
        assert await store.position("c", "s") is None
    async with open_sqlite_store(path) as store:
        (answer,) = await store.append([Push("s", b"p", stored, bytes(60_000))])
        assert answer == Stored(stored)


async def _fill(store: StreamStore) -> None:
    for number in range(3):
        await store.create(f"s{number}")
    with pytest.raises(StoreError):
        await store.create("s3")
    assert await store.create("s0") == ""
    for number in range(5):
        await store.save_positions([Position(f"c{number}", "s0", number)])
        await store.save_positions([Position("c0", "s0", 10 + number)])
    assert [await store.position(f"c{number}", "s0") for number in range(5)] == [14, None, None, 3, 4]


async def test_streams_and_positions_have_a_bound_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MAX_STREAMS", 3)
    monkeypatch.setattr(memory, "MAX_POSITIONS", 3)
    async with open_memory_store() as store:
        await _fill(store)


async def test_streams_and_positions_have_a_bound_in_sqlite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "MAX_STREAMS", 3)
    monkeypatch.setattr(sqlite, "MAX_POSITIONS", 3)
    async with open_sqlite_store(str(tmp_path / "store")) as store:
        await _fill(store)
    # The count and the order of saving survive a restart.
    async with open_sqlite_store(str(tmp_path / "store")) as store:
        await store.save_positions([Position("c5", "s0", 5)])
        assert [await store.position(f"c{number}", "s0") for number in (0, 3, 4, 5)] == [14, None, 4, 5]


def test_records_are_limited_with_their_overhead() -> None:
    records = [Record(number, bytes(100)) for number in range(5)]
    one = 100 + RECORD_OVERHEAD
    assert len(limit_records(records, limit=9, max_bytes=3 * one)) == 3
    assert len(limit_records(records, limit=9, max_bytes=3 * one - 1)) == 2
    assert len(limit_records(records, limit=2, max_bytes=1000)) == 2
    assert len(limit_records(records, limit=9, max_bytes=0)) == 1
    assert limit_records([], limit=9, max_bytes=0) == []


# -- the file ----------------------------------------------------------------------------------------------------------


def _modes(folder: Path) -> set[int]:
    return {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()}


async def test_the_file_is_private(tmp_path: Path) -> None:
    path = tmp_path / "store"
    for _ in range(2):
        async with open_sqlite_store(str(path)) as store:
            await store.create("s")
            await store.append([Push("s", b"p", 0, b"record")])
            assert _modes(tmp_path) == {0o600}
        path.chmod(0o644)


async def test_a_file_that_is_no_store_is_left_unchanged(tmp_path: Path) -> None:
    text, other, newer = tmp_path / "text", tmp_path / "other", tmp_path / "newer"
    text.write_text("certainly no database, but long enough to be read as one" * 20)
    for path, statement in ((other, "CREATE TABLE t (x)"), (newer, "PRAGMA user_version = 99")):
        connection = sqlite3.connect(path)
        connection.execute(statement)
        connection.close()
    for path in (text, other, newer):
        before = path.read_bytes()
        with pytest.raises(LocalError, match=r"no stream store.*choose another path"):
            async with open_sqlite_store(str(path)):
                raise AssertionError
        assert path.read_bytes() == before


async def test_a_path_that_is_not_a_file_is_refused(tmp_path: Path) -> None:
    for where, message in (
        ("", "path"),
        (str(tmp_path), "is not a file"),
        (str(tmp_path / "no" / "folder"), "existing"),
    ):
        with pytest.raises(LocalError, match=message):
            async with open_sqlite_store(where):
                raise AssertionError


async def test_a_second_process_cannot_open_a_store(tmp_path: Path) -> None:
    path = str(tmp_path / "store")
    async with open_sqlite_store(path) as store:
        await store.create("s")
        with pytest.raises(LocalError, match="open in another process"):
            async with open_sqlite_store(path):
                raise AssertionError
        assert list(await store.append([Push("s", b"p", 0, b"")])) == [Stored(0)]


async def test_a_failing_file_refuses_pushes(tmp_path: Path) -> None:
    async with open_sqlite_store(str(tmp_path / "store")) as store:
        await store.create("s")
        assert isinstance(store, sqlite.SQLiteStore)
        store._sql.execute("PRAGMA query_only = ON")
        answers = await store.append([Push("s", b"p", number, b"") for number in range(2)])
        assert [type(answer) for answer in answers] == [StoreError, StoreError]
        with pytest.raises(StoreError):
            await store.save_positions([Position("c", "s", 1)])
        with pytest.raises(StoreError):
            await store.create("t")
        store._sql.execute("PRAGMA query_only = OFF")
        assert list(await store.append([Push("s", b"p", 0, b"")])) == [Stored(0)]


async def test_a_cancelled_append_stores_all_or_nothing(tmp_path: Path) -> None:
    async with open_sqlite_store(str(tmp_path / "store")) as store:
        await store.create("s")
        pushes = [Push("s", b"p", number, bytes(1000)) for number in range(200)]
        with trio.move_on_after(0.001):
            await store.append(pushes)
        assert list(await store.append(pushes)) == [Stored(number) for number in range(200)]
        assert len(await store.read("s", 0, limit=1000, max_bytes=1 << 20)) == 200


PUSHER = """
import itertools, sys, trio
from trionode.stream.store.base import Push
from trionode.stream.store.sqlite import open_sqlite_store

async def main():
    async with open_sqlite_store(sys.argv[1]) as store:
        await store.create("s")
        for batch in itertools.count():
            await store.append([Push("s", b"p", 3 * batch + number, b"%d" % (3 * batch + number)) for number in range(3)])
            print(batch, flush=True)

trio.run(main)
"""


def _push_until_killed(path: str) -> int:
    """Return the number of the last acknowledged batch."""
    said = 0
    process = subprocess.Popen([sys.executable, "-c", PUSHER, path], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process, process.stdout:
        while said < 20:
            said = int(process.stdout.readline())
        process.kill()
        return int([str(said), *process.stdout.read().split()][-1])


async def test_acknowledged_records_survive_a_kill(tmp_path: Path) -> None:
    path = str(tmp_path / "store")
    said = await trio.to_thread.run_sync(_push_until_killed, path)
    async with open_sqlite_store(path) as store:
        records = await store.read("s", 0, limit=100_000, max_bytes=1 << 30)
        # All acknowledged records, and only whole batches.
        assert len(records) % 3 == 0
        assert len(records) >= 3 * (said + 1)
        assert list(records) == [Record(number, b"%d" % number) for number in range(len(records))]


def test_entry_points_name_both_stores() -> None:
    for module, opener in (("memory", open_memory_store), ("sqlite", open_sqlite_store)):
        value = f"trionode.stream.store.{module}:open_{module}_store"
        assert EntryPoint(module, value, "trionode.stream_stores").load() is opener
