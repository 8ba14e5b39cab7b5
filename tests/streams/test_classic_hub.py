"""A hub with classic programs, which wait without end and send everything only once (spec §11.6, §12)."""

import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing

from tests.support.classic_client import Program, call, data, frame, message, open_pair, uint
from tests.support.vectors import load
from trionode import Node, Route, open_node, unique
from trionode.errors import LocalError
from trionode.protocol.stream.messages import (
    LONG_POLL_SECONDS,
    MAX_RECORD,
    CreateRequest,
    CreateResponse,
    IndexGet,
    IndexResponse,
    PullRequest,
    PullResponse,
    PushRequest,
    PushResponse,
    Record,
    Request,
    Response,
    decode_response,
    encode,
)
from trionode.protocol.stream.names import producer_name, resends_pushes, uuid7_hex
from trionode.protocol.wire.address import Encoded, local
from trionode.protocol.wire.classic_codec import CLASSIC
from trionode.protocol.wire.message import Message, Origin
from trionode.stream.service import StreamService
from trionode.stream.store.base import FinalError, Push, Stored, StoreError, StreamStore, load_store
from trionode.stream.store.memory import MemoryStore
from trionode_loopback import Loopback
from trionode_tcp import TCP, ClassicTCP

#: Seconds that a test over real sockets waits for anything.
STALL_TIMEOUT = 30.0

OpenStore = Callable[[], AbstractAsyncContextManager[StreamStore]]


@pytest.fixture(params=["memory", "sqlite", pytest.param("kafka", marks=pytest.mark.kafka)])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> OpenStore:
    """One of the stores that come with trionode."""
    if request.param == "kafka":
        bootstrap = request.getfixturevalue("kafka_broker").bootstrap
        return lambda: load_store(f"kafka:{bootstrap}")
    return lambda: load_store("memory" if request.param == "memory" else f"sqlite:{tmp_path / 'streams.db'}")


@asynccontextmanager
async def open_hub(open_store: OpenStore) -> AsyncIterator[int]:
    """A hub at a free port of this machine."""
    with trio.fail_after(2 * STALL_TIMEOUT):
        async with open_store() as store, open_node(TCP()) as node:
            service = await node.serve_streams(store)
            where = await node.listen("tcp:127.0.0.1:0")
            yield int(where.value.decode().rpartition(":")[2])
            await service.aclose()


# -- the captured session ----------------------------------------------------------------------------------------------


def readdressed(body: bytes, workers: dict[bytes, bytes]) -> bytes:
    """Return a frame with other workers in its routes; each side has its own names."""
    for theirs, ours in workers.items():
        body = body.replace(b"\0" + data(theirs), b"\0" + data(ours))
    return body


class Capture:
    """One connection of the captured session. It sends the captured bytes, except for the hub's own addresses."""

    def __init__(self, stream: trio.SocketStream, workers: dict[bytes, bytes]) -> None:
        self._stream = stream
        self._workers = workers
        self._buffer = b""

    async def send(self, captured: bytes) -> None:
        await self._stream.send_all(frame(readdressed(captured, self._workers)))

    async def hear(self) -> bytes:
        while len(self._buffer) < 2 or len(self._buffer) < 2 + int.from_bytes(self._buffer[:2], "big"):
            some = await self._stream.receive_some(65536)
            assert some
            self._buffer += some
        end = 2 + int.from_bytes(self._buffer[:2], "big")
        body, self._buffer = self._buffer[2:end], self._buffer[end:]
        return readdressed(body, {ours: theirs for theirs, ours in self._workers.items()})


def text(address: str) -> bytes:
    return address.removeprefix("0#").encode()


async def test_the_captured_session_gets_the_answers_of_the_captured_hub(open_store: OpenStore) -> None:
    session = [vector for vector in load("wire/classic_stream_frames.json") if vector["name"].startswith("session_")]
    names = {"ST_S_044d9ca92096b08a": "alice_to_bob_034c94e9", "ST_S_c365c96733c89930": "bob_to_alice_48dc9305"}
    # Streams in Kafka outlive a test.
    fresh = {name: name[:-8] + os.urandom(4).hex() for name in names.values()}
    workers = {theirs.encode(): f"stream_kafka.{name}".encode() for theirs, name in names.items()}

    def renamed(captured: str) -> bytes:
        body = bytes.fromhex(captured)[2:]
        for name, other in fresh.items():
            body = body.replace(name.encode(), other.encode())
        return body

    workers = {theirs.encode(): f"stream_kafka.{fresh[name]}".encode() for theirs, name in names.items()}
    async with open_hub(open_store) as port:
        streams = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(2)]
        peers = {peer: Capture(stream, workers) for peer, stream in zip(("alice", "bob"), streams, strict=True)}
        compared = 0
        replaced: set[bytes] = set()
        known = {
            (text(vector["fields"]["return"][0]), item["index"]): bytes.fromhex(item["message"])
            for vector in session
            if vector["kind"].endswith("pull.response")
            for item in vector["fields"]["body"]["messages"]
        }
        pushed: dict[bytes, int] = {}
        producers = {
            text(v["fields"]["onward"][0]): (v["fields"]["peer"], text(v["fields"]["return"][0]))
            for v in session
            if v["kind"].endswith("push.request")
        }

        async def push(worker: bytes, request_id: int, body: bytes) -> None:
            nonlocal compared
            peer, _ = producers[worker]
            await peers[peer].send(body)
            answer = await peers[peer].hear()
            pushed[worker] = request_id
            for vector in session:
                fields = vector["fields"]
                if (
                    vector["kind"] == "classic.stream.push.response"
                    and text(fields["return"][0]) == worker
                    and fields["body"]["request_id"] == request_id
                ):
                    assert answer == renamed(vector["hex"])
                    compared += 1

        async def push_up_to(worker: bytes, request_id: int) -> None:
            """Push the records that the capture left out."""
            for missing in range(pushed.get(worker, -1) + 1, request_id + 1):
                record = known.get((worker, missing), b"never pulled")
                body = call("stream_push", uint(missing) + data(record))
                await push(worker, missing, message([worker], [producers[worker][1]], body))

        for vector in session:
            fields, kind, captured = (
                vector["fields"],
                vector["kind"].removeprefix("classic.stream."),
                renamed(vector["hex"]),
            )
            peer, body = peers[fields["peer"]], fields["body"]
            if kind == "push.request":
                worker = text(fields["onward"][0])
                await push_up_to(worker, body["request_id"] - 1)
                await push(worker, body["request_id"], captured)
            elif kind in {"create.request", "index.get.request"}:
                await peer.send(captured)
                answer = await peer.hear()
                for response in session:
                    if (
                        response["fields"]["onward"] == fields["return"]
                        and response["kind"].endswith((".create.response", ".index.response"))
                        and response["fields"]["protocol"] == fields["protocol"]
                    ):
                        assert answer == renamed(response["hex"])
                        compared += 1
            elif kind == "index.save.request":
                await peer.send(captured)
            elif kind == "pull.response":
                consumer, worker = text(fields["onward"][0]), text(fields["return"][0])
                items = body["messages"]

                def pull(request_id: int, index: int, limit: int, to: bytes = worker, of: bytes = consumer) -> bytes:
                    return message([to], [of], call("stream_pull", uint(request_id) + uint(index) + uint(limit)))

                if items:
                    await push_up_to(worker, items[-1]["index"])
                    await peer.send(pull(body["request_id"], items[0]["index"], len(items)))
                    if consumer in replaced:
                        await peer.hear()
                        replaced.discard(consumer)
                    assert await peer.hear() == captured
                else:
                    # Nothing to read: the hub waits until the consumer's next pull replaces this one.
                    await peer.send(pull(body["request_id"], 1000, 8))
                    await peer.send(pull(body["request_id"] + 1, 1000, 8))
                    assert await peer.hear() == captured
                    replaced.add(consumer)
                compared += 1
        assert compared == 21
        for stream in streams:
            await stream.aclose()


# -- a pair of programs ------------------------------------------------------------------------------------------------


async def test_a_classic_pair_talks_through_the_hub_each_message_once(open_store: OpenStore) -> None:
    async with open_hub(open_store) as port, open_pair(port) as (alice, bob):
        sent = [b"%d" % number for number in range(100)]
        for payload in sent:
            alice.say(payload)
            bob.say(payload)
        await alice.has(100)
        await bob.has(100)
        await alice.has_confirmed(100)
        assert alice.arrived == bob.arrived == sent
        assert alice.statuses == bob.statuses == {0: 100}
        assert alice.connection.made == bob.connection.made == 1


async def test_the_largest_record_comes_out_and_one_byte_more_is_refused(open_store: OpenStore) -> None:
    async with open_hub(open_store) as port, open_pair(port) as (alice, bob):
        overhead = len(message([b"sink"], [b"app"], bytes(MAX_RECORD))) - MAX_RECORD
        alice.say(bytes(MAX_RECORD - overhead + 1))
        alice.say(bytes(MAX_RECORD - overhead))
        await bob.has(1)
        await alice.has_confirmed(2)
        assert [len(payload) for payload in bob.arrived] == [MAX_RECORD - overhead]
        assert alice.statuses == {0: 1, 1: 1}


async def test_a_classic_and_a_current_peer_talk_at_one_port(open_store: OpenStore) -> None:
    to_them, to_us = unique("to_them"), unique("to_us")
    async with open_hub(open_store) as port, open_node(TCP(), ClassicTCP()) as ours, trio.open_nursery() as nursery:
        theirs = Program(nursery, port, sends=to_us, receives=to_them)
        theirs.start()
        for scheme in ("tcp", "tcp_classic"):
            stream = await ours.open_stream(
                Route(f"{scheme}:127.0.0.1:{port}"),
                sends=to_them,
                receives=to_us,
                protocol_version="classic",
                start=len(theirs.arrived),
            )
            await ours.send(Route(stream), scheme.encode())
            theirs.say(scheme.encode(), onward=())
            assert (await stream.receive()).payload == scheme.encode()
            await theirs.has(len(theirs.arrived) + 1 if scheme.encode() not in theirs.arrived else len(theirs.arrived))
            await stream.aclose()
        assert theirs.arrived == [b"tcp", b"tcp_classic"]
        assert not theirs.strange
        nursery.cancel_scope.cancel()


# -- with virtual time --------------------------------------------------------------------------------------------


@attrs.define
class Scene:
    """A service, and clients that ask only once."""

    node: Node
    service: StreamService
    store: StreamStore

    def client(self, *, resends: bool = False) -> "Client":
        return Client(self.node, resends=resends)


class Client:
    """A client of the classic protocol version, without a link."""

    def __init__(self, node: Node, *, resends: bool) -> None:
        self.link = local("link_" + os.urandom(4).hex())
        self._origin = Origin(link=self.link, resends=resends)
        self._node = node
        self.heard: list[tuple[Encoded, Response]] = []
        self._news = trio.Event()
        node._router.register(self.link, self._hear, allow=lambda origin: True)

    def _hear(self, message: Message) -> None:
        self.heard.append((message.onward[-1], decode_response(message.payload)))
        self._news.set()
        self._news = trio.Event()

    async def has_heard(self, count: int) -> None:
        """Wait until so many answers have arrived."""
        while len(self.heard) < count:
            await self._news.wait()

    def tell(self, to: str, request: Request, *, back: str = "c") -> None:
        self._node._router.deliver(Message((local(to),), (self.link, local(back)), encode(request), self._origin))

    async def ask(self, to: str, request: Request, *, back: str = "c") -> Sequence[Response]:
        """Return the answers until all tasks are blocked."""
        before = len(self.heard)
        self.tell(to, request, back=back)
        await trio.testing.wait_all_tasks_blocked()
        return [response for _, response in self.heard[before:]]


@asynccontextmanager
async def open_scene(store: StreamStore | None = None) -> AsyncIterator[Scene]:
    store = store or MemoryStore()
    async with open_node(Loopback()) as node:
        yield Scene(node, await node.serve_streams(store), store)


class Failing(MemoryStore):
    """A store that fails on demand, and records the pushes that it got."""

    def __init__(self) -> None:
        super().__init__()
        self.error: StoreError | None = None
        self.asked: list[Sequence[Push]] = []

    def _fail(self) -> None:
        if self.error is not None:
            raise self.error

    async def create(self, stream: str, owner: str = "") -> str:
        self._fail()
        return await super().create(stream, owner)

    async def append(self, pushes: Sequence[Push]) -> Sequence[Stored | StoreError]:
        self.asked.append(pushes)
        if self.error is not None:
            return [self.error] * len(pushes)
        return await super().append(pushes)

    async def position(self, client_id: str, stream: str) -> int | None:
        self._fail()
        return await super().position(client_id, stream)


async def test_a_refused_create_is_not_answered_to_clients_that_would_push_the_answer(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_scene() as scene:
        client = scene.client()
        for _ in range(3):
            assert await client.ask("stream_kafka", CreateRequest("no/name")) == []
        assert len([entry for entry in caplog.records if "waits without end" in entry.getMessage()]) == 1


async def test_our_streams_get_a_refusal_over_any_link(autojump_clock: trio.testing.MockClock) -> None:
    async with open_scene() as scene:
        ours = producer_name(1_700_000_000_000, bytes(10))
        (answer,) = await scene.client().ask("stream_kafka", CreateRequest("no/name"), back=ours)
        assert "named by" in str(answer)


async def test_resends_of_our_streams_are_stored_once_over_any_link(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_scene() as scene:
        ours = producer_name(1_700_000_000_000, bytes(10))
        await scene.client().ask("stream_kafka", CreateRequest("s"))
        for _ in range(2):
            answers = await scene.client().ask("stream_kafka.s", PushRequest(0, b"x"), back=ours)
            assert answers == [PushResponse(0, ok=True, index=0)]


def test_only_our_producer_addresses_are_recognised() -> None:
    assert resends_pushes(producer_name(1_700_000_000_000, b"0123456789").encode())
    assert not resends_pushes(uuid7_hex(1_700_000_000_000, b"0123456789").encode())
    assert not resends_pushes(b"0" * 32)


async def test_create_and_get_are_answered_once_the_store_is_back(autojump_clock: trio.testing.MockClock) -> None:
    store = Failing()
    async with open_scene(store) as scene:
        client = scene.client()
        store.error = StoreError("away")
        client.tell("stream_kafka", CreateRequest("s"))
        client.tell("stream_kafka_index", IndexGet("i", "s"))
        await trio.sleep(60)
        assert client.heard == []
        store.error = None
        await trio.sleep(60)
        assert sorted(map(str, (response for _, response in client.heard))) == sorted(
            map(str, (CreateResponse("s"), IndexResponse("i", "s", None)))
        )


async def test_pushes_wait_for_the_store_in_order_and_are_stored_once(autojump_clock: trio.testing.MockClock) -> None:
    store = Failing()
    async with open_scene(store) as scene:
        client, other = scene.client(), scene.client(resends=True)
        await client.ask("stream_kafka", CreateRequest("s"))
        store.error = StoreError("the disk is full")
        for number in range(3):
            client.tell("stream_kafka.s", PushRequest(number, b"%d" % number))
        await trio.sleep(10)
        client.tell("stream_kafka.s", PushRequest(3, b"3"))
        other.tell("stream_kafka.s", PushRequest(0, b"of a client that sends again"))
        await trio.sleep(10)
        assert [response for _, response in other.heard] == [PushResponse(0, ok=False, index=0)]
        assert len(client.heard) == 1
        store.error = None
        await trio.sleep(10)
        assert [response for _, response in client.heard[1:]] == [
            PushResponse(number, ok=True, index=number) for number in range(4)
        ]
        assert [record.message for record in await store.read("s", 0, limit=10, max_bytes=1000)] == [
            b"0",
            b"1",
            b"2",
            b"3",
        ]


async def test_a_push_that_can_never_be_stored_is_refused_and_delays_no_other(
    autojump_clock: trio.testing.MockClock,
) -> None:
    store = Failing()
    async with open_scene(store) as scene:
        client = scene.client()
        await client.ask("stream_kafka", CreateRequest("s"))
        store.error = FinalError("never")
        assert await client.ask("stream_kafka.s", PushRequest(0, b"x")) == [PushResponse(0, ok=False, index=0)]
        store.error = None
        assert await client.ask("stream_kafka.s", PushRequest(1, b"y")) == [PushResponse(1, ok=True, index=0)]


async def test_waiting_pushes_fill_their_clients_budget_and_stop_reading_its_link(
    autojump_clock: trio.testing.MockClock,
) -> None:
    store = Failing()
    async with open_scene(store) as scene:
        client = scene.client()
        await client.ask("stream_kafka", CreateRequest("s"))
        store.error = StoreError("away")
        origin, route = Origin(link=client.link, resends=False), (client.link, local("c"))
        over_budgets = [
            scene.node._router.deliver(
                Message((local("stream_kafka.s"),), route, encode(PushRequest(number, bytes(60_000))), origin)
            )
            for number in range(20)
        ]
        assert over_budgets[0] is None
        over_budget = over_budgets[-1]
        assert over_budget is not None
        with trio.move_on_after(30) as waited:
            await over_budget.wait_for_capacity()
        assert waited.cancelled_caught
        store.error = None
        await over_budget.wait_for_capacity()


async def test_closing_refuses_unstored_pushes_and_logs_it(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    store = Failing()
    async with open_scene(store) as scene:
        client = scene.client()
        await client.ask("stream_kafka", CreateRequest("s"))
        store.error = StoreError("away")
        client.tell("stream_kafka.s", PushRequest(0, b"x"))
        await trio.testing.wait_all_tasks_blocked()
        await scene.service.aclose()
        assert client.heard[1:] == [(local("c"), PushResponse(0, ok=False, index=0))]
        assert "the service ends, and 1 pushes of clients that don't send again were not stored" in caplog.text


#: Random addresses, one of which looks like a UUIDv7 of the far future, and ids that repeat or go back.
LOOKS = ["c" * 32, uuid7_hex((1 << 48) - 1, bytes(10)), uuid7_hex(0, bytes(10)), "app"]


@pytest.mark.parametrize("look", LOOKS)
async def test_a_push_is_stored_once_for_any_form_of_producer_address(look: str, open_store: OpenStore) -> None:
    name = unique("s")
    async with open_store() as store, open_node(Loopback()) as node:
        await node.serve_streams(store)
        client = Client(node, resends=False)
        with trio.fail_after(STALL_TIMEOUT):
            for number, request_id in enumerate((5, 3, 3, 0)):
                client.tell(f"stream_kafka.{name}", PushRequest(request_id, b"%d" % number), back=look)
            await client.has_heard(4)
            assert [response for _, response in client.heard] == [
                PushResponse(request_id, ok=True, index=index) for index, request_id in enumerate((5, 3, 3, 0))
            ]
            found: list[Record] = []
            while len(found) < 4:
                found += await store.read(name, len(found), limit=8, max_bytes=1000)
            assert [record.message for record in found] == [b"0", b"1", b"2", b"3"]


async def test_a_return_route_that_leaves_no_space_for_a_record_still_gets_an_answer(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_scene() as scene:
        client = scene.client()
        await client.ask("stream_kafka", CreateRequest("s"))
        await client.ask("stream_kafka.s", PushRequest(0, bytes(MAX_RECORD)))
        scene.node._router.unregister(client.link)
        scene.node._router.register(client.link, client._hear, allow=lambda origin: True, limit=CLASSIC.max_sent)
        assert await client.ask("stream_kafka.s", PullRequest(0, 0, 8)) == [
            PullResponse(0, (Record(0, bytes(MAX_RECORD)),))
        ]
        assert await client.ask("stream_kafka.s", PullRequest(1, 0, 8), back="x" * 1000) == [PullResponse(1, ())]


async def test_a_pull_waits_on_its_own_link_and_is_answered_there_once(autojump_clock: trio.testing.MockClock) -> None:
    async with open_scene() as scene:
        old, new = scene.client(), scene.client()
        await old.ask("stream_kafka", CreateRequest("s"))
        old.heard.clear()
        old.tell("stream_kafka.s", PullRequest(0, 0, 8))
        await trio.sleep(1)
        new.tell("stream_kafka.s", PullRequest(1, 0, 8))
        await trio.sleep(LONG_POLL_SECONDS)
        assert [response for _, response in old.heard] == [PullResponse(0, ())]
        await trio.sleep(LONG_POLL_SECONDS)
        assert [response for _, response in new.heard] == [PullResponse(1, ())]


async def test_finishing_waits_for_consumers_between_two_pulls_and_answers_all_together(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_scene() as scene:
        client = scene.client()
        await client.ask("stream_kafka", CreateRequest("s"))
        client.tell("stream_kafka.s", PullRequest(0, 0, 8), back="waits")
        await client.ask("stream_kafka.s", PushRequest(0, b"x"))
        await trio.testing.wait_all_tasks_blocked()
        client.heard.clear()
        client.tell("stream_kafka.s", PullRequest(0, 1, 8), back="long polls")
        began = trio.current_time()

        async def next_pull() -> None:
            await trio.sleep(0.25)
            assert client.heard == []
            client.tell("stream_kafka.s", PullRequest(1, 1, 8), back="waits")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(next_pull)
            await scene.service.finish()
        assert trio.current_time() - began == pytest.approx(0.25)
        assert {address for address, _ in client.heard} == {local("waits"), local("long polls")}
        # Later requests are answered, and later pushes are stored.
        assert await client.ask("stream_kafka.s", PullRequest(2, 1, 8), back="waits") == [PullResponse(2, ())]
        assert await client.ask("stream_kafka.s", PushRequest(1, b"y")) == [PushResponse(1, ok=True, index=1)]


async def test_finishing_does_not_wait_for_a_disconnected_consumer(autojump_clock: trio.testing.MockClock) -> None:
    async with open_scene() as scene:
        client, mute = scene.client(), scene.client()
        await client.ask("stream_kafka", CreateRequest("s"))
        await client.ask("stream_kafka.s", PushRequest(0, b"x"))
        for each in (client, mute):
            await each.ask("stream_kafka.s", PullRequest(0, 0, 8))
        scene.node._router.unregister(client.link)
        began = trio.current_time()
        await scene.service.finish()
        assert 0.2 < trio.current_time() - began < 0.5
        await scene.service.aclose()
        assert trio.current_time() - began < 0.5


# -- the protocol version of records -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("ours", "theirs"), [("classic", "classic"), ("classic", "current"), ("current", "classic")])
async def test_streams_read_both_protocol_versions_and_write_the_chosen_one(
    ours: str, theirs: str, autojump_clock: trio.testing.MockClock
) -> None:
    network, store = Loopback(), MemoryStore()
    async with open_node(network) as hub, open_node(network) as one, open_node(network) as other:
        await hub.serve_streams(store)
        await hub.listen("loopback:hub")
        way = Route("loopback:hub")
        mine = await one.open_stream(way, sends="there", receives="back", protocol_version=ours)
        yours = await other.open_stream(way, sends="back", receives="there", protocol_version=theirs)

        await one.send(Route(mine), "hello")
        question = await yours.receive()
        assert question.text == "hello"
        await other.send(question.return_route, b"answer")
        await other.send(Route(yours), b"and more")
        assert [(await mine.receive()).payload for _ in range(2)] == [b"answer", b"and more"]
        for stream, protocol_version in (("there", ours), ("back", theirs)):
            records = await store.read(stream, 0, limit=10, max_bytes=10_000)
            assert {record.message[0] for record in records} == {0x01 if protocol_version == "classic" else 0x83}


async def test_an_unknown_protocol_version_is_refused(autojump_clock: trio.testing.MockClock) -> None:
    async with open_node(Loopback()) as node:
        with pytest.raises(LocalError, match="'current' or 'classic', not 'klassik'"):
            await node.open_stream(Route("loopback:hub"), sends="s", receives="r", protocol_version="klassik")
