import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing

from trionode import Message, Node, Route, open_node, unique
from trionode.counters import DropReason
from trionode.errors import AddressInUseError
from trionode.net.transport import Link
from trionode.protocol.rules.access import from_anywhere
from trionode.protocol.stream.messages import (
    LONG_POLL_SECONDS,
    MAX_ANSWER,
    MAX_RECORD,
    CreateRequest,
    CreateResponse,
    ErrorResponse,
    IndexGet,
    IndexResponse,
    IndexSave,
    PullRequest,
    PullResponse,
    PushRequest,
    PushResponse,
    Record,
    Request,
    Response,
    StreamLife,
    decode_response,
    encode,
)
from trionode.protocol.stream.names import uuid7_hex
from trionode.protocol.wire.address import Encoded, decode_address, encode_address, local
from trionode.protocol.wire.current_codec import CURRENT
from trionode.protocol.wire.message import Origin
from trionode.routing.router import random_address
from trionode.stream.clients import StreamLimits
from trionode.stream.push_queue import STUCK_SECONDS
from trionode.stream.service import StreamService
from trionode.stream.store.base import Push, Stored, StoreError, StreamStore
from trionode.stream.store.memory import MemoryStore
from trionode.stream.store.sqlite import open_sqlite_store
from trionode_loopback import Loopback

SERVICE, INDEX_SERVICE = "stream_kafka", "stream_kafka_index"
CREATE = bytes.fromhex("0d 73747265616d5f637265617465")  # "stream_create"
PUSH = bytes.fromhex("0b 73747265616d5f70757368")  # "stream_push"
PULL = bytes.fromhex("0b 73747265616d5f70756c6c")  # "stream_pull"
INDEX = bytes.fromhex("0c 73747265616d5f696e646578")  # "stream_index"
ERROR = bytes.fromhex("05 6572726f72")  # "error"

#: Seconds (virtual) after which an answer does not come any more.
LONG = 3 * LONG_POLL_SECONDS


def body(text: str) -> bytes:
    """A `data` of fewer than 128 bytes."""
    content = bytes.fromhex(text)
    return bytes([len(content)]) + content


def is_life(payload: bytes) -> bool:
    return payload.startswith(b"\x0bstream_life")


class Client:
    """A client that sends and receives raw bytes."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._frames: list[bytes] = []
        self.lives: list[bytes] = []

    async def tell(self, to: str | Encoded, payload: bytes, *, back: Sequence[str] = ("c",)) -> None:
        address = local(to) if isinstance(to, str) else to
        await self._link.send([CURRENT.encode((address,), tuple(map(local, back)), payload)])

    async def frame(self) -> bytes:
        """Return the next frame with an onward route."""
        while True:
            while not self._frames:
                self._frames = list(await self._link.receive())
                assert self._frames
            frame = self._frames.pop(0)
            onward, _, payload = CURRENT.decode(frame)
            if is_life(payload):
                self.lives.append(payload)  # not an answer: older clients drop it
            elif onward:
                return frame

    async def hear(self) -> tuple[str, str, bytes]:
        """Return onward route, return route and payload."""
        onward, back, payload = CURRENT.decode(await self.frame())
        (to,), (sender,) = onward, back
        return decode_address(to)[1].decode(), decode_address(sender)[1].decode(), payload

    async def hears_nothing(self, seconds: float = LONG) -> bool:
        with trio.move_on_after(seconds):
            await self.hear()
            return False
        return True

    async def ask(self, to: str | Encoded, request: Request, *, back: Sequence[str] = ("c",)) -> Response:
        await self.tell(to, encode(request), back=back)
        _, _, payload = await self.hear()
        return decode_response(payload)


@attrs.define
class Scene:
    network: Loopback
    node: Node
    service: StreamService
    store: StreamStore

    async def client(self) -> Client:
        return Client(await self.network.connect("hub"))


@asynccontextmanager
async def open_scene(store: StreamStore | None = None, limits: StreamLimits | None = None) -> AsyncIterator[Scene]:
    network, store = Loopback(), store or MemoryStore()
    async with open_node(network) as node:
        service = await node.serve_streams(store, limits=limits or StreamLimits())
        await node.listen("loopback:hub")
        yield Scene(network, node, service, store)


# -- byte for byte (spec §11.1) ----------------------------------------------------------------------------------------


async def test_create_is_answered_by_the_streams_worker(autojump_clock: trio.testing.MockClock) -> None:
    async with open_scene() as scene:
        client = await scene.client()
        await client.tell(SERVICE, CREATE + bytes.fromhex("03 01 01 73"))
        assert await client.hear() == ("c", "stream_kafka.s", CREATE + bytes.fromhex("02 01 73"))
        assert await client.hears_nothing()


async def test_pushes_are_answered_with_their_ids_and_indexes(autojump_clock: trio.testing.MockClock) -> None:
    async with open_scene() as scene:
        client = await scene.client()
        await client.ask(SERVICE, CreateRequest("s"))
        await client.tell("stream_kafka.s", PUSH + body("00 03 616263"))
        assert await client.hear() == ("c", "stream_kafka.s", PUSH + body("00 00 00"))
        await client.tell("stream_kafka.s", PUSH + body("8001 00"))  # request 128, an empty record
        assert await client.hear() == ("c", "stream_kafka.s", PUSH + body("8001 00 01"))
        assert await client.hears_nothing()


async def test_pulls_are_answered_with_records_from_their_index_on(autojump_clock: trio.testing.MockClock) -> None:
    async with open_scene() as scene:
        client = await scene.client()
        await client.ask(SERVICE, CreateRequest("s"))
        for request_id, record in enumerate((b"a", b"bc", b"")):
            await client.ask("stream_kafka.s", PushRequest(request_id, record))
        await client.tell("stream_kafka.s", PULL + body("05 00 08"))
        assert await client.hear() == ("c", "stream_kafka.s", PULL + body("05 03 00 01 61 01 02 6263 02 00"))
        await client.tell("stream_kafka.s", PULL + body("06 01 01"))
        assert await client.hear() == ("c", "stream_kafka.s", PULL + body("06 01 01 02 6263"))
        await client.tell("stream_kafka.s", PULL + body("07 03 08"))
        before = trio.current_time()
        assert await client.hear() == ("c", "stream_kafka.s", PULL + body("07 00"))
        assert trio.current_time() - before == pytest.approx(LONG_POLL_SECONDS)
        assert await client.hears_nothing()


async def test_saving_a_position_is_not_answered_and_getting_it_is(autojump_clock: trio.testing.MockClock) -> None:
    async with open_scene() as scene:
        client = await scene.client()
        await client.ask(SERVICE, CreateRequest("s"))
        await client.tell(INDEX_SERVICE, INDEX + body("00 01 69 01 73"))
        assert await client.hear() == ("c", INDEX_SERVICE, INDEX + body("01 69 01 73 00"))
        await client.tell(INDEX_SERVICE, INDEX + body("01 01 69 01 73 ac02"))
        assert await client.hears_nothing()
        await client.tell(INDEX_SERVICE, INDEX + body("00 01 69 01 73"))
        assert await client.hear() == ("c", INDEX_SERVICE, INDEX + body("01 69 01 73 01 ac02"))
        assert await client.hears_nothing()


async def test_a_position_can_be_read_right_after_it_was_saved(autojump_clock: trio.testing.MockClock) -> None:
    async with open_scene() as scene:
        client = await scene.client()
        await client.ask(SERVICE, CreateRequest("s"))
        await client.tell(INDEX_SERVICE, encode(IndexSave("i", "s", 5)))
        assert await client.ask(INDEX_SERVICE, IndexGet("i", "s")) == IndexResponse("i", "s", 5)


async def test_an_invalid_stream_name_is_an_error(autojump_clock: trio.testing.MockClock) -> None:
    async with open_scene() as scene:
        client = await scene.client()
        for request in ("00", "01 00", "01 01 2f", "01 02 2e2e"):  # no name, an empty one, "/", ".."
            await client.tell(SERVICE, CREATE + body(request))
            to, sender, payload = await client.hear()
            assert (to, sender) == ("c", SERVICE)
            assert payload.startswith(ERROR)
        assert await client.hears_nothing()


@pytest.mark.parametrize(
    ("to", "payload"),
    [
        (SERVICE, b""),
        (SERVICE, b"\xff" * 20),
        (SERVICE, CREATE + bytes.fromhex("03 01 01 73 00")),  # a byte too many
        (SERVICE, CREATE + bytes.fromhex("02 01 01")),  # a byte too few
        (SERVICE, bytes.fromhex("0f 696e7465726e616c2e73747265616d") + body("00")),  # internal.stream
        (SERVICE, PULL + body("00 00 08")),  # at the wrong address
        (SERVICE, PUSH + body("00 00")),
        (INDEX_SERVICE, CREATE + bytes.fromhex("03 01 01 73")),
        (INDEX_SERVICE, INDEX + body("02 01 69 01 73")),
        ("stream_kafka.s", b"\x00"),
        ("stream_kafka.s", PUSH + body("00 05 61")),
        ("stream_kafka.s", PULL + body("00 00")),
        ("stream_kafka.s", CREATE + bytes.fromhex("03 01 01 73")),
        ("stream_kafka.s", ERROR + body("00")),
        ("stream_kafka.a/b", PULL + body("00 00 08")),
        ("stream_kafka.", PULL + body("00 00 08")),
        ("stream_kafka.\u00e4", PUSH + body("00 00")),
    ],
)
async def test_undecodable_requests_are_not_answered(
    to: str, payload: bytes, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_scene() as scene:
        client = await scene.client()
        assert await client.ask(SERVICE, CreateRequest("s")) == CreateResponse("s")
        await client.tell(to, payload)
        assert await client.hears_nothing()
        assert await client.ask("stream_kafka.s", PushRequest(0, b"x")) == PushResponse(0, ok=True, index=0)


@pytest.mark.parametrize(
    "request_", [CreateRequest("s"), PushRequest(0, b"x"), PullRequest(0, 0, 8), IndexGet("i", "s")]
)
async def test_a_request_without_a_return_route_is_ignored(
    request_: Request, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_scene() as scene:
        client = await scene.client()
        await client.ask(SERVICE, CreateRequest("s"))
        for to in (SERVICE, INDEX_SERVICE, "stream_kafka.s"):
            await client.tell(to, encode(request_), back=())
        await trio.sleep(LONG)
        assert await client.ask(SERVICE, CreateRequest("s")) == CreateResponse("s")


# -- pulls (spec §11.6, 1 to 4, 8 and 9) -------------------------------------------------------------------------------


async def test_a_pending_pull_delays_no_other_frames_and_is_answered_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_scene() as scene:
        client = await scene.client()
        await client.ask(SERVICE, CreateRequest("s"))
        await client.tell("stream_kafka.s", encode(PullRequest(0, 0, 8)), back=("consumer",))
        before = trio.current_time()
        assert await client.ask(SERVICE, CreateRequest("t")) == CreateResponse("t")
        assert await client.ask("stream_kafka.t", PushRequest(0, b"x")) == PushResponse(0, ok=True, index=0)
        assert await client.ask(INDEX_SERVICE, IndexGet("i", "s")) == IndexResponse("i", "s", None)
        await client.tell("stream_kafka.s", encode(PushRequest(0, b"now")), back=("producer",))
        answers = {to: payload for to, _, payload in [await client.hear(), await client.hear()]}
        assert answers == {
            "producer": encode(PushResponse(0, ok=True, index=0)),
            "consumer": encode(PullResponse(0, (Record(0, b"now"),))),
        }
        assert trio.current_time() == before
        assert await client.hears_nothing()


async def test_a_second_pull_of_a_consumer_answers_only_its_first_one_empty(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_scene() as scene:
        client = await scene.client()
        await client.ask(SERVICE, CreateRequest("s"))
        await client.tell("stream_kafka.s", encode(PullRequest(0, 0, 8)), back=("other",))
        await client.tell("stream_kafka.s", encode(PullRequest(4, 0, 8)))
        await client.tell("stream_kafka.s", encode(PullRequest(5, 0, 8)))
        assert await client.hear() == ("c", "stream_kafka.s", encode(PullResponse(4, ())))
        assert trio.current_time() == 0
        await trio.sleep(1)
        await client.ask(SERVICE, CreateRequest("t"))  # there was no other answer
        await client.tell("stream_kafka.s", encode(PushRequest(0, b"x")), back=("p",))
        heard = [await client.hear() for _ in range(3)]
        record = (Record(0, b"x"),)
        assert ("c", "stream_kafka.s", encode(PullResponse(5, record))) in heard
        assert ("other", "stream_kafka.s", encode(PullResponse(0, record))) in heard
        assert await client.hears_nothing()


async def test_an_answer_has_at_most_65000_bytes_and_at_least_one_record(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_scene() as scene:
        client = await scene.client()
        await client.ask(SERVICE, CreateRequest("s"))
        sizes = [MAX_RECORD, 30_000, 30_000, 30_000, *[0] * 1500]
        for request_id, size in enumerate(sizes):
            answer = await client.ask("stream_kafka.s", PushRequest(request_id, bytes(size)))
            assert answer == PushResponse(request_id, ok=True, index=request_id)
        index, seen = 0, []
        while index < len(sizes):
            # The longest return route of a client, over several hubs.
            await client.tell(
                "stream_kafka.s", encode(PullRequest(0, index, 1 << 40)), back=("x" * 32, "y" * 32, "c" * 32)
            )
            frame = await client.frame()
            assert len(frame) <= MAX_ANSWER
            answer = decode_response(CURRENT.decode(frame)[2])
            assert isinstance(answer, PullResponse)
            index = answer.records[-1].index + 1
            seen.append(len(answer.records))
        assert sum(seen) == len(sizes)
        assert seen[:2] == [1, 2]
        assert max(seen) <= 1000


async def test_a_pull_with_limit_zero_returns_one_record(autojump_clock: trio.testing.MockClock) -> None:
    async with open_scene() as scene:
        client = await scene.client()
        await client.ask(SERVICE, CreateRequest("s"))
        await client.ask("stream_kafka.s", PushRequest(0, b"x"))
        answer = await client.ask("stream_kafka.s", PullRequest(0, 0, 0))
        assert answer == PullResponse(0, (Record(0, b"x"),))


async def test_the_answer_to_a_closed_link_is_dropped(autojump_clock: trio.testing.MockClock) -> None:
    async with open_scene() as scene:
        client = await scene.client()
        await client.ask(SERVICE, CreateRequest("s"))
        await client.tell("stream_kafka.s", encode(PullRequest(0, 0, 8)))
        await trio.testing.wait_all_tasks_blocked()
        await client._link.aclose()
        await trio.sleep(LONG)
        assert scene.node.counters[DropReason.REPLY_PATH_GONE] == 1
        other = await scene.client()
        assert await other.ask(SERVICE, CreateRequest("s")) == CreateResponse("s")


# -- pushes ------------------------------------------------------------------------------------------------------------


async def test_a_record_that_fits_into_no_answer_is_refused(autojump_clock: trio.testing.MockClock) -> None:
    async with open_scene() as scene:
        client = await scene.client()
        await client.ask(SERVICE, CreateRequest("s"))
        refused = await client.ask("stream_kafka.s", PushRequest(0, bytes(MAX_RECORD + 1)))
        assert refused == PushResponse(0, ok=False, index=0)
        assert await client.ask("stream_kafka.s", PushRequest(1, b"x")) == PushResponse(1, ok=True, index=0)


class FailingStore(MemoryStore):
    """A store whose batches fail on demand."""

    def __init__(self) -> None:
        super().__init__()
        self.failing = False
        self.stored: list[int] = []

    async def append(self, pushes: Sequence[Push]) -> Sequence[Stored | StoreError]:
        if self.failing:
            raise StoreError("the disk is full")
        self.stored += [push.request_id for push in pushes]
        return await super().append(pushes)


@pytest.mark.parametrize("resends", [True, False])
async def test_later_pushes_do_not_overtake_a_refused_push_of_a_producer_that_resends(
    resends: bool, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    producer = uuid7_hex(1_700_000_000_000, bytes(10)) if resends else "c"
    store = FailingStore()
    async with open_scene(store) as scene:
        client = await scene.client()
        await client.ask(SERVICE, CreateRequest("s"))

        async def push(request_id: int) -> bool:
            answer = await client.ask("stream_kafka.s", PushRequest(request_id, b"x"), back=(producer,))
            assert isinstance(answer, PushResponse)
            assert answer.request_id == request_id
            return answer.ok

        assert await push(0)
        store.failing = True
        assert not await push(1)
        store.failing = False
        # Classic clients never resend, so later pushes must not wait.
        assert await push(2) is not resends
        if resends:
            assert [await push(request_id) for request_id in (0, 1, 2, 3)] == [True] * 4
            assert store.stored == [0, 0, 1, 2, 3]
            records = await store.read("s", 0, limit=10, max_bytes=10_000)
            assert len(records) == 4
        assert await push(3)
    assert "the disk is full" in caplog.text


async def test_a_copy_of_a_stored_push_that_the_store_refuses_makes_no_later_push_wait(
    autojump_clock: trio.testing.MockClock,
) -> None:
    producer = uuid7_hex(1_700_000_000_000, bytes(10))
    store = FailingStore()
    async with open_scene(store) as scene:
        client = await scene.client()
        await client.ask(SERVICE, CreateRequest("s"))
        for request_id, failing in ((0, False), (1, False), (0, True), (1, True), (2, False), (3, False)):
            store.failing = failing
            answer = await client.ask("stream_kafka.s", PushRequest(request_id, b"x"), back=(producer,))
            assert isinstance(answer, PushResponse)
            assert answer.ok is not failing


async def test_a_producer_that_never_sends_the_missing_push_goes_on_after_a_while(
    autojump_clock: trio.testing.MockClock,
) -> None:
    # A false confirmation has told it that push 1 is stored.
    producer = uuid7_hex(1_700_000_000_000, bytes(10))
    async with open_scene() as scene:
        client = await scene.client()
        await client.ask(SERVICE, CreateRequest("s"))

        async def push(request_id: int) -> bool:
            answer = await client.ask("stream_kafka.s", PushRequest(request_id, b"x"), back=(producer,))
            assert isinstance(answer, PushResponse)
            return answer.ok

        assert await push(0)
        assert not await push(2)
        await trio.sleep(STUCK_SECONDS - 0.1)
        assert not await push(2)
        await trio.sleep(0.2)
        assert [await push(request_id) for request_id in (2, 3, 5)] == [True, True, False]


async def test_late_pushes_of_a_lost_link_do_not_overtake_resends(
    autojump_clock: trio.testing.MockClock,
) -> None:
    producer = uuid7_hex(1_700_000_000_000, bytes(10))
    async with open_scene() as scene:
        old, new = await scene.client(), await scene.client()
        await old.ask(SERVICE, CreateRequest("s"))
        for client, request_id, ok in ((old, 0, True), (new, 0, True), (old, 2, False), (new, 1, True), (old, 2, True)):
            answer = await client.ask("stream_kafka.s", PushRequest(request_id, b"%d" % request_id), back=(producer,))
            assert isinstance(answer, PushResponse)
            assert answer.ok is ok
        records = await scene.store.read("s", 0, limit=10, max_bytes=10_000)
        assert [record.message for record in records] == [b"0", b"1", b"2"]


async def test_a_resent_push_is_stored_once(autojump_clock: trio.testing.MockClock) -> None:
    async with open_scene() as scene:
        one, two = await scene.client(), await scene.client()
        await one.ask(SERVICE, CreateRequest("s"))
        for client in (one, two, one):
            answer = await client.ask("stream_kafka.s", PushRequest(7, b"x"), back=("producer",))
            assert answer == PushResponse(7, ok=True, index=0)
        answer = await two.ask("stream_kafka.s", PushRequest(7, b"x"), back=("another",))
        assert answer == PushResponse(7, ok=True, index=1)


async def test_a_push_resent_after_a_restart_is_stored_once(tmp_path: Path) -> None:
    producer = uuid7_hex(1_700_000_000_000, bytes(10))
    with trio.fail_after(20):
        for run in range(3):
            async with open_sqlite_store(str(tmp_path / "streams")) as store, open_scene(store) as scene:
                client = await scene.client()
                if run == 0:
                    await client.ask(SERVICE, CreateRequest("s"))
                for request_id in range(50):
                    answer = await client.ask(
                        "stream_kafka.s", PushRequest(request_id, b"%d" % request_id), back=(producer,)
                    )
                    assert answer == PushResponse(request_id, ok=True, index=request_id)
                pulled = await client.ask("stream_kafka.s", PullRequest(0, 0, 1000))
                assert isinstance(pulled, PullResponse)
                assert [record.message for record in pulled.records] == [b"%d" % number for number in range(50)]
                await scene.service.aclose()


# -- limits ------------------------------------------------------------------------------------------------------------


async def test_the_streams_of_a_client_are_limited(autojump_clock: trio.testing.MockClock) -> None:
    async with open_scene(limits=StreamLimits(streams=2)) as scene:
        client, other = await scene.client(), await scene.client()
        for name in ("a", "b", "a"):
            assert await client.ask(SERVICE, CreateRequest(name)) == CreateResponse(name)
        refused = ErrorResponse("this hub lets a client use 2 streams")
        assert await client.ask(SERVICE, CreateRequest("c")) == refused
        assert await client.ask("stream_kafka.d", PushRequest(0, b"x")) == PushResponse(0, ok=False, index=0)
        assert await client.ask("stream_kafka.d", PullRequest(0, 0, 8)) == PullResponse(0, ())
        assert await other.ask(SERVICE, CreateRequest("c")) == CreateResponse("c")


async def test_concurrent_creates_do_not_pass_the_limit_together(
    autojump_clock: trio.testing.MockClock,
) -> None:
    class SlowStore(MemoryStore):
        async def create(self, stream: str, owner: str = "") -> str:
            await trio.sleep(1)
            return await super().create(stream, owner)

    async with open_scene(SlowStore(), StreamLimits(streams=2)) as scene:
        client = await scene.client()
        for number in range(10):
            await client.tell(SERVICE, encode(CreateRequest(f"s{number}")))
        answers = [decode_response((await client.hear())[2]) for _ in range(10)]
        assert sum(isinstance(answer, CreateResponse) for answer in answers) == 2


class GatedStore(MemoryStore):
    def __init__(self) -> None:
        super().__init__()
        self.gate = trio.Event()

    async def append(self, pushes: Sequence[Push]) -> Sequence[Stored | StoreError]:
        await self.gate.wait()
        return await super().append(pushes)


async def test_pushes_beyond_the_limit_block_only_the_reader_of_their_link(
    autojump_clock: trio.testing.MockClock,
) -> None:
    store = GatedStore()
    async with open_scene(store, StreamLimits(push_bytes=10_000)) as scene:
        client, other = await scene.client(), await scene.client()
        await client.ask(SERVICE, CreateRequest("s"))
        count = 2000

        async def flood() -> None:
            for request_id in range(count):
                await client.tell("stream_kafka.s", encode(PushRequest(request_id, bytes(488))))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood)
            await trio.sleep(100)
            (budget,) = (each.budget for each in scene.service._clients._clients.values() if each.budget.size)
            assert 10_000 < budget.size <= 11_000
            assert await other.ask(SERVICE, CreateRequest("t")) == CreateResponse("t")
            store.gate.set()
            for request_id in range(count):
                _, _, payload = await client.hear()
                assert payload == encode(PushResponse(request_id, ok=True, index=request_id))
            assert budget.size == 0


async def test_pushes_over_a_link_that_drops_when_full_are_refused_at_the_hard_limit(
    autojump_clock: trio.testing.MockClock,
) -> None:
    store = GatedStore()
    async with open_scene(store, StreamLimits(push_bytes=10_000)) as scene:
        await scene.node.listen("loopback:hub_to_hub", drop_when_full=True)
        client = Client(await scene.network.connect("hub_to_hub"))
        await client.ask(SERVICE, CreateRequest("s"))
        for request_id in range(1000):
            await client.tell("stream_kafka.s", encode(PushRequest(request_id, bytes(488))))
        refusals = [decode_response((await client.hear())[2]) for _ in range(1000 - 160)]
        assert all(isinstance(each, PushResponse) and not each.ok for each in refusals)
        store.gate.set()
        for request_id in range(160):
            assert (await client.hear())[2] == encode(PushResponse(request_id, ok=True, index=request_id))


async def test_beyond_the_limit_pulls_are_answered_empty_and_other_requests_dropped(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_scene(limits=StreamLimits(requests=3)) as scene:
        client, other = await scene.client(), await scene.client()
        await client.ask(SERVICE, CreateRequest("s"))
        for number in range(5):
            await client.tell("stream_kafka.s", encode(PullRequest(number, 0, 8)), back=(f"c{number}",))
        for number in (3, 4):
            assert await client.hear() == (f"c{number}", "stream_kafka.s", encode(PullResponse(number, ())))
        await client.tell(SERVICE, encode(CreateRequest("t")))
        await client.tell(INDEX_SERVICE, encode(IndexGet("i", "s")))
        assert await client.hears_nothing(1)
        assert scene.node.counters[DropReason.TOO_MANY_STREAM_REQUESTS] == 4
        assert await other.ask(SERVICE, CreateRequest("t")) == CreateResponse("t")
        assert {await client.hear() for _ in range(3)} == {
            (f"c{number}", "stream_kafka.s", encode(PullResponse(number, ()))) for number in range(3)
        }
        assert await client.ask(SERVICE, CreateRequest("t")) == CreateResponse("t")


async def test_disconnected_clients_are_forgotten(autojump_clock: trio.testing.MockClock) -> None:
    async with open_scene() as scene:
        for _ in range(600):
            client = await scene.client()
            await client.ask(SERVICE, CreateRequest("s"))
            await client._link.aclose()
        assert len(scene.service._clients._clients) <= 257


async def test_position_saves_beyond_the_limit_are_dropped(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trionode.stream.service.MAX_SAVES", 10)
    async with open_scene() as scene:
        client = await scene.client()
        await client.ask(SERVICE, CreateRequest("s"))
        link = client._link
        save = [
            CURRENT.encode((local(INDEX_SERVICE),), (local("c"),), encode(IndexSave(f"i{number}", "s", 1)))
            for number in range(100)
        ]
        await link.send(save)
        await trio.sleep(1)
        known = [await client.ask(INDEX_SERVICE, IndexGet(f"i{number}", "s")) for number in range(100)]
        assert sum(isinstance(each, IndexResponse) and each.index == 1 for each in known) == 10
        assert not scene.service._saves


# -- over restarts -----------------------------------------------------------------------------------------------------


async def test_a_worker_is_valid_on_a_new_hub_over_the_same_store_without_a_create(
    autojump_clock: trio.testing.MockClock,
) -> None:
    store = MemoryStore()
    async with open_scene(store) as scene:
        client = await scene.client()
        await client.ask(SERVICE, CreateRequest("s"))
        await client.ask("stream_kafka.s", PushRequest(0, b"before"))
    async with open_scene(store) as scene:
        client = await scene.client()
        assert await client.ask("stream_kafka.s", PushRequest(1, b"after")) == PushResponse(1, ok=True, index=1)
    async with open_scene(store) as scene:
        client = await scene.client()
        pulled = await client.ask("stream_kafka.s", PullRequest(0, 0, 8))
        assert pulled == PullResponse(0, (Record(0, b"before"), Record(1, b"after")))


async def test_pushes_to_a_stream_that_is_new_to_this_hub_keep_their_order(
    autojump_clock: trio.testing.MockClock,
) -> None:
    store = MemoryStore()
    async with open_scene(store) as scene:
        client = await scene.client()
        for request_id in range(100):
            await client.tell("stream_kafka.s", encode(PushRequest(request_id, b"x")))
        for request_id in range(100):
            assert (await client.hear())[2] == encode(PushResponse(request_id, ok=True, index=request_id))


async def test_closing_answers_all_requests_and_accepts_no_more(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_scene() as scene:
        client = await scene.client()
        for name in ("s", "t"):
            await client.ask(SERVICE, CreateRequest(name))
        await client.tell("stream_kafka.s", encode(PullRequest(1, 0, 8)), back=("c1",))
        await client.tell("stream_kafka.t", encode(PullRequest(2, 0, 8)), back=("c2",))
        await client.tell(INDEX_SERVICE, encode(IndexSave("i", "s", 9)))
        await trio.testing.wait_all_tasks_blocked()
        before = trio.current_time()
        await scene.service.aclose()
        assert trio.current_time() == before
        heard = {await client.hear() for _ in range(2)}
        assert heard == {
            ("c1", "stream_kafka.s", encode(PullResponse(1, ()))),
            ("c2", "stream_kafka.t", encode(PullResponse(2, ()))),
        }
        assert await scene.store.position("i", "s") == 9
        await client.tell("stream_kafka.s", encode(PullRequest(3, 0, 8)))
        assert await client.hears_nothing()
        await scene.service.aclose()  # a second time does nothing


async def test_closing_ends_in_time_although_the_store_hangs(autojump_clock: trio.testing.MockClock) -> None:
    async with open_scene(GatedStore()) as scene:
        client = await scene.client()
        await client.ask(SERVICE, CreateRequest("s"))
        await client.tell("stream_kafka.s", encode(PushRequest(0, b"x")))
        await trio.testing.wait_all_tasks_blocked()
        before = trio.current_time()
        await scene.service.aclose()
        assert trio.current_time() - before <= 1.0
        assert await client.hears_nothing()


class SlowStore(MemoryStore):
    """A store that needs a second to create a stream, like a thread that can't be cancelled."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds

    async def create(self, stream: str, owner: str = "") -> str:
        with trio.CancelScope(shield=True):
            await trio.sleep(self._seconds)
        return await super().create(stream, owner)


@pytest.mark.parametrize(("seconds", "answered"), [(0.5, True), (2.0, False)])
async def test_closing_while_a_stream_is_opened_waits_for_its_pushes(
    seconds: float, *, answered: bool, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_scene(SlowStore(seconds)) as scene:
        client = await scene.client()
        await client.tell("stream_kafka.s", encode(PushRequest(0, b"x")))
        await trio.testing.wait_all_tasks_blocked()
        await scene.service.aclose()
        if answered:
            assert await client.hear() == ("c", "stream_kafka.s", encode(PushResponse(0, ok=True, index=0)))
        assert await client.hears_nothing()


async def test_closing_ends_although_requests_keep_coming() -> None:
    async with open_scene() as scene:
        closed = trio.Event()

        async def ask_on() -> None:
            request, origin = encode(CreateRequest("s")), Origin(link=local("link"))
            while not closed.is_set():
                scene.node._router.deliver(Message((local(SERVICE),), (local("c"),), request, origin))
                await trio.lowlevel.checkpoint()

        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask_on)
                await trio.lowlevel.checkpoint()
                await scene.service.aclose()
                closed.set()


async def test_a_service_name_can_be_used_once_on_a_node(autojump_clock: trio.testing.MockClock) -> None:
    async with open_scene() as scene:
        with pytest.raises(AddressInUseError):
            await scene.node.serve_streams(MemoryStore())
        await scene.node.serve_streams(MemoryStore(), service="streams", index_service="streams_index")


# -- whose a stream is -------------------------------------------------------------------------------------------------


class Visitor:
    """A client that the hub knows by an authenticated identifier, or only by a link."""

    def __init__(self, node: Node, identifier: bytes | None) -> None:
        self._node = node
        self._way = random_address()
        self._origin = Origin(link=self._way, identifier=identifier)
        self._send, self._heard = trio.open_memory_channel[Message](100)
        node._router.register(self._way, self._take, allow=from_anywhere)

    def _take(self, message: Message) -> None:
        if not is_life(message.payload):
            self._send.send_nowait(message)

    def tell(self, to: str, request: Request) -> None:
        self._node._router.deliver(Message((local(to),), (self._way, local("c")), encode(request), self._origin))

    async def ask(self, to: str, request: Request) -> Response:
        self.tell(to, request)
        return decode_response((await self._heard.receive()).payload)

    async def may_use(self, stream: str) -> bool:
        """Return whether pushes are stored and pulls return them."""
        pushed = await self.ask(f"stream_kafka.{stream}", PushRequest(0, b"x"))
        pulled = await self.ask(f"stream_kafka.{stream}", PullRequest(0, 0, 8))
        assert isinstance(pushed, PushResponse)
        assert isinstance(pulled, PullResponse)
        assert pushed.ok is bool(pulled.records)
        return pushed.ok


A, B = b"A" * 32, b"B" * 32


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_stream_belongs_to_the_identity_that_created_it(
    restarted: bool, autojump_clock: trio.testing.MockClock
) -> None:
    store = MemoryStore()
    async with open_scene(store) as scene:
        made = await Visitor(scene.node, A).ask(SERVICE, CreateRequest("mine"))
        assert made == CreateResponse("mine")
        if not restarted:
            await check_ownership(scene.node)
    if restarted:
        # The new hub has seen no client yet; the first one finds the same owner.
        async with open_scene(store) as scene:
            await check_ownership(scene.node)


async def check_ownership(node: Node) -> None:
    a, b, unauthenticated = (Visitor(node, identifier) for identifier in (A, B, None))
    for other in (b, unauthenticated):
        assert not await other.may_use("mine")
        refused = await other.ask(SERVICE, CreateRequest("mine"))
        assert refused == ErrorResponse("the stream belongs to another identity")
        assert not await other.may_use("mine")
    assert await a.may_use("mine")
    assert await Visitor(node, A).may_use("mine")  # by another link


@pytest.mark.parametrize("restarted", [False, True])
async def test_an_unguessable_name_is_a_capability_for_other_identities(
    restarted: bool, autojump_clock: trio.testing.MockClock
) -> None:
    store, name = MemoryStore(), unique("shared")
    async with open_scene(store) as scene:
        await Visitor(scene.node, A).ask(SERVICE, CreateRequest(name))
        if not restarted:
            assert await Visitor(scene.node, B).may_use(name)
    if restarted:
        async with open_scene(store) as scene:
            assert await Visitor(scene.node, B).may_use(name)
            assert not await Visitor(scene.node, None).may_use(name)


async def test_streams_of_unauthenticated_clients_are_shared(autojump_clock: trio.testing.MockClock) -> None:
    async with open_scene() as scene:
        await Visitor(scene.node, None).ask(SERVICE, CreateRequest("open"))
        for identifier in (None, A, B):
            assert await Visitor(scene.node, identifier).may_use("open")


async def test_positions_are_separate_for_each_identity(autojump_clock: trio.testing.MockClock) -> None:
    async with open_scene() as scene:
        visitors = [Visitor(scene.node, identifier) for identifier in (None, A, B)]
        await visitors[0].ask(SERVICE, CreateRequest("open"))
        for index, visitor in enumerate(visitors):
            visitor.tell(INDEX_SERVICE, IndexSave("same", "open", index))
        await trio.sleep(1)
        for index, visitor in enumerate(visitors):
            answer = await visitor.ask(INDEX_SERVICE, IndexGet("same", "open"))
            assert answer == IndexResponse("same", "open", index)
            again = await Visitor(scene.node, visitor._origin.identifier).ask(INDEX_SERVICE, IndexGet("same", "open"))
            assert again == answer


async def test_the_longest_client_ids_are_separate_for_each_identity(autojump_clock: trio.testing.MockClock) -> None:
    async with open_scene() as scene:
        visitor = Visitor(scene.node, A)
        await visitor.ask(SERVICE, CreateRequest("s"))
        for last in "xy":
            visitor.tell(INDEX_SERVICE, IndexSave("i" * 199 + last, "s", ord(last)))
        await trio.sleep(1)
        for last in "xy":
            client_id = "i" * 199 + last
            answer = await visitor.ask(INDEX_SERVICE, IndexGet(client_id, "s"))
            assert answer == IndexResponse(client_id, "s", ord(last))


async def test_the_limits_of_an_identity_hold_over_all_its_links(autojump_clock: trio.testing.MockClock) -> None:
    async with open_scene(limits=StreamLimits(streams=1)) as scene:
        assert await Visitor(scene.node, A).ask(SERVICE, CreateRequest("a")) == CreateResponse("a")
        assert isinstance(await Visitor(scene.node, A).ask(SERVICE, CreateRequest("b")), ErrorResponse)
        assert await Visitor(scene.node, B).ask(SERVICE, CreateRequest("b")) == CreateResponse("b")


async def test_stream_names_chosen_by_peers_are_sanitized_in_the_log(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "trionode")
    async with open_scene() as scene:
        client = await scene.client()
        name = "a\x1b[31m\n" + "b" * 5000
        await client.ask(SERVICE, CreateRequest(name))
        await client.tell(encode_address(0, b"stream_kafka.\x1b\n"), encode(PullRequest(0, 0, 8)))
        await client.hears_nothing()
    assert "\x1b" not in caplog.text
    assert all(len(entry.getMessage()) < 1000 for entry in caplog.records)


async def test_a_channel_that_closes_with_a_pull_outstanding_does_not_end_the_hub(
    autojump_clock: trio.testing.MockClock,
) -> None:
    from trionode import Identity, trust_everyone

    async with open_scene() as scene, open_node(scene.network) as alice:
        hub_identity = await Identity.create(scene.node.vault)
        await scene.node.serve_secure_channels("hub", hub_identity, trust=trust_everyone)
        channel = await alice.open_secure_channel(
            Route("loopback:hub", "hub"), await Identity.create(alice.vault), trust=trust_everyone, delivery="off"
        )
        answer = await alice.ask(Route(channel, SERVICE), encode(CreateRequest("s")))
        assert decode_response(answer.payload).__class__ is StreamLife  # the answer itself comes after it
        async with alice.open_mailbox() as mailbox:
            await mailbox.send(Route(channel, "stream_kafka.s"), encode(PullRequest(0, 0, 8)))
            await trio.testing.wait_all_tasks_blocked()
        await alice.aclose_links()
        await trio.sleep(LONG)
        client = await scene.client()
        assert isinstance(await client.ask(SERVICE, CreateRequest("t")), CreateResponse)
        assert scene.node.counters[DropReason.REPLY_PATH_GONE] == 1
