"""Tests of Alice and Bob."""

from pathlib import Path

from trionode.testing import Topologies
from trionode.topology import load_topology
from trionode.verify import verify

TOPOLOGY = Path(__file__).with_name("topology.toml")


async def test_bob_answers_alice(topology: Topologies) -> None:
    async with topology.start(TOPOLOGY, tcp="loopback", store="memory") as running:
        alice, bob = running["alice"], running["bob"]
        answer = await alice.ask(["@bob", "echoer"], "hello")
        assert answer.text == "hello"
        assert answer.origin.identifier == bob.identity.identifier.value


def test_no_hop_between_them_can_read() -> None:
    assert verify(load_topology(TOPOLOGY)).holds
