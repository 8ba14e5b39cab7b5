"""Two hubs over three brokers with replication 3: leaders are killed, and every message comes once and in order."""

import logging
import os
from collections.abc import Iterator

import pytest
import trio

from tests.streams.test_kafka_hubs import HUBS, open_hubs
from tests.support.kafka_cluster import KafkaCluster, run_cluster
from trionode import Node, Route, Stream, open_node
from trionode.protocol.stream.names import unique
from trionode_kafka.store import KafkaStore
from trionode_loopback import Loopback

pytestmark = [pytest.mark.kafka, pytest.mark.soak]

#: Seconds for everything that a test waits for, also under load.
TIMEOUT = 180.0
#: Messages between two kills.
MESSAGES = 400


@pytest.fixture(scope="module")
def cluster() -> Iterator[KafkaCluster]:
    with run_cluster() as running:
        yield running


async def leader_of(store: KafkaStore, stream: str) -> int:
    def ask() -> int:
        (topic,) = store._client.admin._client.describe_topics(["trionode_" + stream])
        return int(topic["partitions"][0]["leader_id"])

    return await trio.to_thread.run_sync(ask)


async def send(node: Node, stream: Stream, is_over: trio.Event) -> int:
    """Send numbers until it is over. Returns how many."""
    number = 0
    while not is_over.is_set():
        await node.send(Route(stream), b"%d" % number)
        number += 1
        if not number % 8:
            await trio.sleep(0.02)
    return number


async def test_killed_leaders_lose_double_and_reorder_nothing(cluster: KafkaCluster) -> None:
    network = Loopback()
    sends, receives = (unique("test", os.urandom(16)) for _ in range(2))
    got: list[int] = []
    pauses: list[float] = []
    with trio.fail_after(TIMEOUT):
        async with (
            open_hubs(network, cluster.bootstrap, replication_factor=3) as stores,
            open_node(network) as alice,
            open_node(network) as bob,
        ):
            to_bob = await alice.open_stream(HUBS, sends=sends, receives=receives, timeout=30)
            at_bob = await bob.open_stream(HUBS[::-1], sends=receives, receives=sends, client_id="bob", timeout=30)

            async def receive(up_to: int) -> None:
                while len(got) < up_to:
                    message = await at_bob.receive()
                    got.append(int(message.payload))

            is_over, sent = trio.Event(), [0]

            async def send_all() -> None:
                sent[0] = await send(alice, to_bob, is_over)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(send_all)
                for _ in range(3):
                    await receive(len(got) + MESSAGES)
                    killed = cluster.broker(await leader_of(stores[0], sends))
                    await trio.to_thread.run_sync(killed.kill)
                    began = trio.current_time()
                    # More than what the hubs and clients had already.
                    await receive(len(got) + 2 * MESSAGES)
                    pauses.append(trio.current_time() - began)
                    for stream in (to_bob, at_bob):
                        stream._client._hub.drop(next_hub=True)
                    await trio.to_thread.run_sync(killed.start)
                is_over.set()
            await receive(sent[0])
            assert got == list(range(sent[0]))
            while await stores[0].position("bob", sends) != at_bob.position:
                pass  # its coordinator may have moved, too; each time is a round trip
            await at_bob.aclose()
            assert [verdict async for verdict in at_bob.verdicts()] == []
    logging.getLogger(__name__).info("seconds from each kill to 800 more messages: %s", pauses)
