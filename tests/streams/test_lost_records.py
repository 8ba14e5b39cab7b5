"""A hub that lost records says so, and its readers go on: over stores in memory and in a file."""

import logging
import shutil
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from trionode import Node, Rollback, Route, Stream, Truncated, Verdict, open_node
from trionode.protocol.stream.messages import (
    LONG_POLL_SECONDS,
    CreateRequest,
    Extent,
    PullRequest,
    PullResponse,
    PushRequest,
    Record,
)
from trionode.stream.store.base import RecordsGoneError, StreamStore
from trionode.stream.store.memory import MemoryStore
from trionode.stream.store.sqlite import open_sqlite_store
from trionode_loopback import Loopback

HUB = Route("loopback:hub")
#: Real seconds, for tests with files.
TIMEOUT = 30.0


@asynccontextmanager
async def open_hub(network: Loopback, store: StreamStore) -> AsyncIterator[Node]:
    async with open_node(network) as hub:
        await hub.serve_streams(store)
        await hub.listen("loopback:hub")
        yield hub


async def open_pair(alice: Node, bob: Node) -> tuple[Stream, Stream]:
    return (
        await alice.open_stream(HUB, sends="to_bob", receives="to_alice"),
        await bob.open_stream(HUB, sends="to_alice", receives="to_bob"),
    )


async def send(node: Node, stream: Stream, first: int, count: int) -> None:
    for number in range(first, first + count):
        await node.send(Route(stream), b"%d" % number)


async def receive(stream: Stream, count: int) -> list[int]:
    return [int((await stream.receive()).payload) for _ in range(count)]


class Trimmed(MemoryStore):
    """A store that removes records, and forgets streams."""

    def __init__(self) -> None:
        super().__init__()
        self.first: dict[str, int] = {}

    async def read(self, stream: str, index: int, *, limit: int, max_bytes: int) -> list[Record]:
        if index < self.first.get(stream, 0):
            raise RecordsGoneError("removed", self.first[stream])
        return list(await super().read(stream, index, limit=limit, max_bytes=max_bytes))

    async def lost(self, stream: str, index: int, life: bytes) -> Extent | None:
        extent = await super().lost(stream, -1, life)
        assert extent is not None
        extent = Extent(extent.life, self.first.get(stream, 0), extent.end)
        return None if extent.contains(life, index) else extent

    def forget(self, stream: str) -> None:
        arrived = self._streams.pop(stream).arrived
        arrived.unpark_all()


async def test_removed_records_are_reported_with_their_indexes(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    network, store = Loopback(), Trimmed()
    async with open_hub(network, store), open_node(network) as alice, open_node(network) as bob:
        to_bob, _ = await open_pair(alice, bob)
        await send(alice, to_bob, 0, 10)
        await to_bob.aclose()
        store.first["to_bob"] = 4
        late = await bob.open_stream(HUB, sends="to_carol", receives="to_bob")
        heard: list[Verdict] = []
        bob._router.on_verdict(late._client.address, heard.append)
        assert await receive(late, 6) == [4, 5, 6, 7, 8, 9]
        assert await anext(late.verdicts()) == Truncated("to_bob", 0, 3)
        assert heard in ([Truncated("to_bob", 0, 3)], [])  # it may be found before the test asks
    assert [r.message for r in caplog.records if "are gone" in r.message] == [
        "the records 0 to 3 of the stream to_bob are gone"
    ]


async def test_a_stream_that_is_created_again_is_reported_to_program_and_channel_and_read_on(
    autojump_clock: trio.testing.MockClock,
) -> None:
    network, store = Loopback(), Trimmed()
    async with open_hub(network, store) as hub, open_node(network) as alice, open_node(network) as bob:
        to_bob, at_bob = await open_pair(alice, bob)
        heard: list[Verdict] = []
        bob._router.on_verdict(at_bob._client.address, heard.append)
        await send(alice, to_bob, 0, 10)
        assert await receive(at_bob, 10) == list(range(10))
        await trio.sleep(1)
        store.forget("to_bob")
        with trio.fail_after(60):
            await send(alice, to_bob, 10, 5)
            assert await receive(at_bob, 5) == [10, 11, 12, 13, 14]
            found = await anext(at_bob.verdicts())
        assert isinstance(found, Rollback)
        assert (found.stream, found.known) == ("to_bob", 10)
        assert heard == [found]
        assert at_bob.position == 5
        await trio.sleep(2 * LONG_POLL_SECONDS)
        assert len(at_bob._client.verdicts) == 0
        assert await store.position(at_bob._client.consumer.client_id, "to_bob") == 5
        assert not hub.counters


async def test_a_deleted_stream_is_reported_though_nobody_writes(autojump_clock: trio.testing.MockClock) -> None:
    network, store = Loopback(), Trimmed()
    async with open_hub(network, store), open_node(network) as alice, open_node(network) as bob:
        to_bob, at_bob = await open_pair(alice, bob)
        await send(alice, to_bob, 0, 3)
        assert await receive(at_bob, 3) == [0, 1, 2]
        await to_bob.aclose()
        store.forget("to_bob")
        with trio.fail_after(2 * LONG_POLL_SECONDS):
            assert await anext(at_bob.verdicts()) == Rollback("to_bob", 3, 0)
        await trio.sleep(10 * LONG_POLL_SECONDS)
        # A pull does not create it, and it is reported once.
        assert "to_bob" not in store._streams
        assert len(at_bob._client.verdicts) == 0
        again = await alice.open_stream(HUB, sends="to_bob", receives="to_alice")
        await send(alice, again, 7, 1)
        with trio.fail_after(2 * LONG_POLL_SECONDS):
            assert await receive(at_bob, 1) == [7]
        assert len(at_bob._client.verdicts) == 0


async def test_a_hub_that_forgot_everything_is_reported(autojump_clock: trio.testing.MockClock) -> None:
    network = Loopback()
    async with open_node(network) as alice, open_node(network) as bob:
        async with open_hub(network, MemoryStore()):
            to_bob, at_bob = await open_pair(alice, bob)
            await send(alice, to_bob, 0, 3)
            assert await receive(at_bob, 3) == [0, 1, 2]
        async with open_hub(network, MemoryStore()):
            # More than before, so that the position alone shows nothing.
            with trio.fail_after(120):
                await send(alice, to_bob, 3, 8)
                assert await receive(at_bob, 8) == list(range(3, 11))
                found = await anext(at_bob.verdicts())
            assert isinstance(found, Rollback)
            assert found.known == 3
            assert len(at_bob._client.verdicts) == 0


async def test_a_clean_run_has_no_verdict(autojump_clock: trio.testing.MockClock) -> None:
    network, store = Loopback(), MemoryStore()
    async with open_node(network) as alice, open_node(network) as bob:
        async with open_hub(network, store):
            to_bob, at_bob = await open_pair(alice, bob)
            await send(alice, to_bob, 0, 300)
            assert await receive(at_bob, 300) == list(range(300))
        async with open_hub(network, store):  # a hub that restarts over its store
            with trio.fail_after(60):
                await send(alice, to_bob, 300, 300)
                assert await receive(at_bob, 300) == list(range(300, 600))
        await at_bob.aclose()
        assert [verdict async for verdict in at_bob.verdicts()] == []


async def test_a_client_that_can_not_be_told_gets_what_is_left(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    from tests.streams.test_stream_service import open_scene

    store = Trimmed()
    async with open_scene(store) as scene:
        client = await scene.client()
        await client.ask("stream_kafka", CreateRequest("s"))
        for number in range(3):
            await client.ask("stream_kafka.s", PushRequest(number, b"%d" % number))
        store.first["s"] = 2
        answer = await client.ask("stream_kafka.s", PullRequest(0, 0, 8))
        assert answer == PullResponse(0, (Record(2, b"2"),))
        assert len(client.lives) == 1
        life = await store.life("s")
        assert await client.ask("stream_kafka.s", PullRequest(1, 0, 8, life)) == PullResponse(
            1, (Record(2, b"2"),), Extent(life, 2, 3)
        )
        assert await client.ask("stream_kafka.s", PullRequest(2, 9, 8, life)) == PullResponse(2, (), Extent(life, 2, 3))
        assert await client.ask("stream_kafka.s", PullRequest(3, 3, 8, life)) == PullResponse(3, ())
    assert "goes on behind removed records" in caplog.text


# -- the file ----------------------------------------------------------------------------------------------------------


def remove(folder: Path, name: str) -> None:
    for part in folder.glob(f"{name}*"):
        part.unlink()


async def test_a_file_restored_from_a_copy_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    network, file, copy = Loopback(), tmp_path / "store", tmp_path / "copy"
    caplog.set_level(logging.ERROR)
    with trio.fail_after(TIMEOUT):
        async with open_node(network) as alice, open_node(network) as bob:
            async with open_sqlite_store(str(file)) as store, open_hub(network, store):
                to_bob, at_bob = await open_pair(alice, bob)
                await send(alice, to_bob, 0, 5)
                assert await receive(at_bob, 5) == list(range(5))
            shutil.copy(file, copy)
            async with open_sqlite_store(str(file)) as store, open_hub(network, store):
                await send(alice, to_bob, 5, 5)
                assert await receive(at_bob, 5) == list(range(5, 10))
            remove(tmp_path, "store")
            shutil.copy(copy, file)
            async with open_sqlite_store(str(file)) as store, open_hub(network, store):
                assert await anext(at_bob.verdicts()) == Rollback("to_bob", 10, 5)
                await send(alice, to_bob, 10, 3)
                assert await receive(at_bob, 3) == [10, 11, 12]
            file.unlink()
            async with open_sqlite_store(str(file)) as store, open_hub(network, store):
                await send(alice, to_bob, 13, 3)
                assert await receive(at_bob, 3) == [13, 14, 15]
                found = await anext(at_bob.verdicts())
                assert isinstance(found, Rollback)
                assert found.known == 8


async def test_records_that_an_operator_removed_from_the_file_are_reported(tmp_path: Path) -> None:
    network, file = Loopback(), tmp_path / "store"
    with trio.fail_after(TIMEOUT):
        async with open_node(network) as alice, open_node(network) as bob:
            async with open_sqlite_store(str(file)) as store, open_hub(network, store):
                to_bob, _ = await open_pair(alice, bob)
                await send(alice, to_bob, 0, 5)
                await to_bob.aclose()
            with sqlite3.connect(file) as sql:
                sql.execute("DELETE FROM records WHERE at < 3")
            sql.close()
            async with open_sqlite_store(str(file)) as store, open_hub(network, store):
                late = await bob.open_stream(HUB, sends="to_carol", receives="to_bob")
                assert await receive(late, 2) == [3, 4]
                assert await anext(late.verdicts()) == Truncated("to_bob", 0, 2)


async def test_a_file_of_version_1_is_upgraded(tmp_path: Path) -> None:
    file = tmp_path / "store"
    async with open_sqlite_store(str(file)) as store:
        for name in ("a", "b"):
            await store.create(name, "alice")
    with sqlite3.connect(file) as sql:
        sql.executescript("ALTER TABLE streams DROP COLUMN life; PRAGMA user_version = 1;")
    sql.close()
    for _ in range(2):
        async with open_sqlite_store(str(file)) as store:
            assert await store.create("a", "bob") == "alice"
            lives = [await store.life(name) for name in ("a", "b")]
            assert len(lives[0]) == 16
            assert lives[0] != lives[1]
