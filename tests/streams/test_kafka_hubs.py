"""Several hubs over one Kafka: interchangeable, and without a state of their own."""

import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from trionode import Node, Route, Stream, open_node
from trionode.protocol.stream.names import unique
from trionode.testing import KafkaBroker
from trionode_kafka.store import KafkaStore, open_kafka_store
from trionode_loopback import Loopback

pytestmark = pytest.mark.kafka

#: Seconds for everything that a test waits for, also under load.
TIMEOUT = 60.0
HUBS = [Route("loopback:hub0"), Route("loopback:hub1")]


@asynccontextmanager
async def open_hubs(network: Loopback, bootstrap: str, **options: object) -> AsyncIterator[list[KafkaStore]]:
    """Open two hubs, each with a store of its own over the same Kafka."""
    async with (
        open_kafka_store(bootstrap, **options) as one,  # type: ignore[arg-type]  # as open_kafka_store has them
        open_kafka_store(bootstrap, **options) as two,  # type: ignore[arg-type]
        open_node(network) as first,
        open_node(network) as second,
    ):
        for number, (node, store) in enumerate([(first, one), (second, two)]):
            await node.serve_streams(store)
            await node.listen(f"loopback:hub{number}")
        yield [one, two]


async def receive(stream: Stream, count: int, got: list[int]) -> None:
    while len(got) < count:
        message = await stream.receive()
        got.append(int(message.payload))


async def send(node: Node, stream: Stream, count: int) -> None:
    for number in range(count):
        await node.send(Route(stream), b"%d" % number)
        if not number % 8:
            await trio.sleep(0.01)  # or all are in the window before the first change of hubs


@pytest.mark.faults
async def test_client_that_alternates_between_hubs_is_stored_once_and_in_order(kafka_broker: KafkaBroker) -> None:
    network, chance, count = Loopback(), random.Random(3), 1500
    sends, receives = (unique("test", os.urandom(16)) for _ in range(2))
    got: list[int] = []
    with trio.fail_after(TIMEOUT):
        async with (
            open_hubs(network, kafka_broker.bootstrap) as stores,
            open_node(network) as alice,
            open_node(network) as bob,
        ):
            to_bob = await alice.open_stream(HUBS, sends=sends, receives=receives)
            at_bob = await bob.open_stream(HUBS[::-1], sends=receives, receives=sends, client_id="bob")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(receive, at_bob, count, got)
                nursery.start_soon(send, alice, to_bob, count)
                while len(got) < count:
                    await trio.sleep(chance.uniform(0.05, 0.25))
                    for stream in chance.choice([(to_bob,), (at_bob,), (to_bob, at_bob)]):
                        stream._client._hub.drop(next_hub=True)
            assert got == list(range(count))
            # Bob's position, which one of the hubs saved, is known to both.
            while {await store.position("bob", sends) for store in stores} != {at_bob.position}:
                pass  # a save has no answer, and is repeated after a lost link; each time is a round trip
            await at_bob.aclose()
            assert [verdict async for verdict in at_bob.verdicts()] == []
            again = await bob.open_stream(HUBS, sends=receives, receives=sends, client_id="bob")
            await alice.send(Route(to_bob), b"-1")
            assert int((await again.receive()).payload) == -1
