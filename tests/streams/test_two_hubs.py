"""Two hubs over one store, and a producer that alternates between them."""

import trio
import trio.testing

from tests.streams.test_stream_service import Client, open_scene
from trionode.protocol.stream.messages import CreateRequest, PushRequest, PushResponse
from trionode.stream.push_queue import ASK_SECONDS
from trionode.stream.store.base import StoreError
from trionode.stream.store.memory import MemoryStore

#: The services of two hubs, which are on one node here.
FIRST, SECOND = "stream_kafka", "second"
#: The address of a producer that sends again.
PRODUCER = "018f3a1b2c3d7abc8def0123456789ab"


async def push(client: Client, hub: str, request_id: int) -> bool:
    answer = await client.ask(f"{hub}.s", PushRequest(request_id, b"%d" % request_id), back=(PRODUCER,))
    assert isinstance(answer, PushResponse)
    assert answer.request_id == request_id
    return answer.ok


class CountingStore(MemoryStore):
    def __init__(self) -> None:
        super().__init__()
        self.asked = 0
        self.fails = False

    async def last_request(self, stream: str, producer: bytes) -> int | None:
        self.asked += 1
        if self.fails:
            raise StoreError("away")
        return await super().last_request(stream, producer)


async def test_a_producer_goes_on_at_a_hub_that_it_used_before(autojump_clock: trio.testing.MockClock) -> None:
    store = CountingStore()
    async with open_scene(store) as scene:
        await scene.node.serve_streams(store, service=SECOND, index_service="second_index")
        client = await scene.client()
        for hub in (FIRST, SECOND):
            await client.ask(hub, CreateRequest("s"), back=(PRODUCER,))
        for start in range(0, 60, 20):
            for hub, at in ((FIRST, start), (SECOND, start + 10)):
                await trio.sleep(ASK_SECONDS)
                assert all([await push(client, hub, number) for number in range(at, at + 10)])
        assert store.asked == 5 - 1  # the second hub met the producer for the first time
        read = await store.read("s", 0, limit=100, max_bytes=10_000)
        assert [int(record.message) for record in read] == list(range(60))


async def test_a_push_that_overtakes_another_is_refused_though_two_hubs_serve(
    autojump_clock: trio.testing.MockClock,
) -> None:
    store = CountingStore()
    async with open_scene(store) as scene:
        await scene.node.serve_streams(store, service=SECOND, index_service="second_index")
        client = await scene.client()
        for hub in (FIRST, SECOND):
            await client.ask(hub, CreateRequest("s"), back=(PRODUCER,))
        assert await push(client, FIRST, 0)
        assert await push(client, SECOND, 1)
        assert not await push(client, FIRST, 3)  # 2 is nowhere
        assert not await push(client, FIRST, 3)
        assert store.asked == 1  # once in a while
        assert await push(client, FIRST, 2)
        assert await push(client, FIRST, 3)
        await trio.sleep(ASK_SECONDS)
        store.fails = True
        assert not await push(client, FIRST, 9)
        store.fails = False
        # A stream that was created again holds nothing of the producer: nothing is waited for.
        del store._streams["s"]
        await store.create("s")
        await trio.sleep(ASK_SECONDS)
        assert await push(client, FIRST, 9)
        assert await push(client, FIRST, 10)
