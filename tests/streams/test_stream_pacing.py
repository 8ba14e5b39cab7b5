"""Streams on ways that drop, reorder, delay and double: how long it takes, and that the order holds from the start."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from trionode import Node, Route, Stream, open_node
from trionode.protocol.stream.messages import LONG_POLL_SECONDS
from trionode.stream.hub_client import SILENT_SECONDS
from trionode.stream.store.memory import MemoryStore
from trionode.testing import Faults, FaultyNetwork


@asynccontextmanager
async def streaming(network: FaultyNetwork, store: MemoryStore) -> AsyncIterator[tuple[Node, Stream, Node, Stream]]:
    """Alice, Bob, and each one's end of a conversation over the hubs one and two."""
    hubs = [Route("loopback:one"), Route("loopback:two")]
    async with open_node(network.transport("one")) as one, open_node(network.transport("two")) as two:
        for hub, at in ((one, "loopback:one"), (two, "loopback:two")):
            await hub.serve_streams(store)
            await hub.listen(at)
        async with open_node(network.transport("alice")) as alice, open_node(network.transport("bob")) as bob:
            alices = await alice.open_stream(hubs, sends="to_bob", receives="to_alice", client_id="alice")
            bobs = await bob.open_stream(hubs, sends="to_alice", receives="to_bob", client_id="bob")
            yield alice, alices, bob, bobs


FAULTS = {
    "none": Faults(),
    "reorder": Faults(reorder=0.1),
    "delay": Faults(delay=0.1),
    "drop": Faults(drop=0.05),
    "duplicate": Faults(duplicate=0.1),
    "all": Faults(drop=0.05, reorder=0.1, delay=0.1, duplicate=0.1),
}


@pytest.mark.parametrize("network", range(2), indirect=True)
@pytest.mark.parametrize("faults", FAULTS)
async def test_readings_arrive_in_their_own_time(
    faults: str, network: FaultyNetwork, autojump_clock: trio.testing.MockClock
) -> None:
    readings = [b"%d" % number for number in range(300)]
    async with streaming(network, MemoryStore()) as (alice, alices, _, bobs):
        network.set_faults(FAULTS[faults])

        async def send() -> None:
            for reading in readings:
                await alice.send(Route(alices), reading)
                await trio.sleep(0.2)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            with trio.fail_after(2 * 0.2 * len(readings)):
                assert [(await bobs.receive()).payload for _ in readings] == readings
        network.clear_faults()


@pytest.mark.parametrize("faults", FAULTS)
async def test_a_burst_arrives_in_order_from_its_first_record_on(
    faults: str, network: FaultyNetwork, autojump_clock: trio.testing.MockClock
) -> None:
    records = [b"%d" % number for number in range(10)]
    for conversation in range(12):
        async with streaming(network, MemoryStore()) as (alice, alices, _, bobs):
            network.set_faults(FAULTS[faults])
            for record in records:
                await alice.send(Route(alices), record)
            with trio.fail_after(60):
                assert [(await bobs.receive()).payload for _ in records] == records, conversation
            network.clear_faults()


@pytest.mark.parametrize("pushes", [True, False])
async def test_a_silent_link_is_left_for_the_next_hub_within_a_bound(
    pushes: bool, network: FaultyNetwork, autojump_clock: trio.testing.MockClock
) -> None:
    async with streaming(network, MemoryStore()) as (alice, alices, bob, bobs):
        await trio.sleep(30)
        # Alice's link to the hub one is half open: it takes everything, and nothing comes out at either end.
        network.set_faults(Faults(drop=1), sender="alice", receiver="one")
        network.set_faults(Faults(drop=1), sender="one", receiver="alice")
        before = trio.current_time()
        if pushes:
            await alice.send(Route(alices), b"by two")
            assert (await bobs.receive()).payload == b"by two"
            assert trio.current_time() - before < SILENT_SECONDS + 1
        else:
            await bob.send(Route(bobs), b"by two")
            assert (await alices.receive()).payload == b"by two"
            assert trio.current_time() - before < LONG_POLL_SECONDS + SILENT_SECONDS + 1
