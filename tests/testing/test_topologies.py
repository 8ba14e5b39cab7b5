"""The fixture `topology`: on other transports and stores, with faults, and with command-line options."""

import asyncio
import re
from pathlib import Path

import pytest
import trio
import trio.testing

from trionode.errors import LocalError
from trionode.testing import Faults, FaultyNetwork, KafkaBroker, Topologies
from trionode.topology.errors import SpecError
from trionode.topology.load.loader import parse_topology
from trionode.topology.run.topology import RunningTopology
from trionode.topology.spec import TopologySpec

pytest_plugins = ["pytester"]

HUB = """
[nodes.hub]
listen = "tcp:127.0.0.1:4000"
[nodes.hub.stream_services.stream_kafka]
store = "memory"
"""
BOB = """
[nodes.bob]
workers.echoer = "echoer"
secure_channel_listeners.api.trust = { nodes = ["alice"] }
[nodes.bob.streams.alice]
via = ["tcp:127.0.0.1:4000"]
sends = "to_alice"
receives = "to_bob"
client_id = "bob"
"""
ALICE = """
[nodes.alice.streams.hub]
via = ["tcp:127.0.0.1:4000"]
sends = "to_bob"
receives = "to_alice"
[nodes.alice.secure_channels.bob]
to = ["@hub", "api"]
trust = { nodes = ["bob"] }
"""


def spec() -> TopologySpec:
    return parse_topology(HUB + BOB + ALICE)


def made(folder: Path, bootstrap: str = "", **swaps: str) -> Topologies:
    return Topologies(swaps, bootstrap=lambda: bootstrap, folder=lambda: folder)


async def require_answer(running: RunningTopology) -> None:
    for n in range(3):
        assert (await running["alice"].ask(["@bob", "echoer"], f"hello {n}")).text == f"hello {n}"


def transports(running: RunningTopology) -> set[str]:
    return {endpoint.transport for node in running for endpoint in node.endpoints}


async def test_a_spec_runs_on_loopback(topology: Topologies, autojump_clock: trio.testing.MockClock) -> None:
    for _ in range(2):
        async with topology.start(spec(), tcp="loopback", store="memory") as running:
            await require_answer(running)
            assert transports(running) == {"loopback"}


async def test_start_reads_one_or_several_files(
    topology: Topologies, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    files = [tmp_path / name for name in ("hub.toml", "bob.toml", "alice.toml")]
    for file, text in zip(files, (HUB, BOB, ALICE), strict=True):
        file.write_text(text)
    async with topology.start(files, tcp="loopback") as running:
        await require_answer(running)
    (tmp_path / "all.toml").write_text(HUB + BOB + ALICE)
    async with topology.start(str(tmp_path / "all.toml"), tcp="loopback") as running:
        await require_answer(running)
    with pytest.raises(SpecError, match=r"alice\.toml"):
        async with topology.start(tmp_path / "alice.toml"):
            pass


async def test_command_line_takes_precedence(tmp_path: Path) -> None:
    async with made(tmp_path, tcp="tcp", store="sqlite").start(spec(), tcp="loopback", store="memory") as running:
        await require_answer(running)
        assert transports(running) == {"tcp"}
        (endpoint,) = running["hub"].endpoints
        assert endpoint.value != b"127.0.0.1:4000"
    assert len(list(tmp_path.glob("*.db"))) == 1  # noqa: ASYNC240  # a few names in memory


@pytest.mark.kafka
async def test_tests_share_a_kafka_but_no_streams(tmp_path: Path, kafka_broker: KafkaBroker) -> None:
    topology = made(tmp_path, kafka_broker.bootstrap, store="kafka")
    for _ in range(2):
        async with topology.start(spec(), tcp="loopback") as running:
            await require_answer(running)
            store = running.spec.nodes["hub"].stream_services["stream_kafka"].store
            assert store.address == f"kafka:{kafka_broker.bootstrap}"


@pytest.mark.parametrize("network", range(3), indirect=True)
async def test_faulty_network_replaces_the_transports_of_a_topology(
    topology: Topologies, network: FaultyNetwork, autojump_clock: trio.testing.MockClock
) -> None:
    async with topology.start(spec(), network=network) as running:
        await require_answer(running)
        network.set_faults(Faults(drop=0.1, duplicate=0.1, delay=0.1), sender="alice", receiver="hub")
        await require_answer(running)
        network.clear_faults()
        network.partition("bob")
        await running["alice"].send(["@bob", "echoer"], "held")
        network.heal()
        await require_answer(running)
    assert {event.target for event in network.log if event.number} <= {"alice → hub"}


@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.parametrize("name", ["hub", "bob"])
async def test_node_of_a_topology_crashes_and_restarts(
    name: str, silent: bool, topology: Topologies, network: FaultyNetwork, autojump_clock: trio.testing.MockClock
) -> None:
    async with topology.start(spec(), network=network) as running:
        await require_answer(running)
        network.crash(name, silent=silent)
        await running.crash(name)
        await trio.sleep(1)
        network.revive(name)
        await running.start(name)
        if name == "hub":
            with trio.fail_after(600):
                await require_answer(running)


async def test_command_line_does_not_replace_a_network(
    tmp_path: Path, network: FaultyNetwork, autojump_clock: trio.testing.MockClock
) -> None:
    async with made(tmp_path, tcp="tcp").start(spec(), network=network) as running:
        assert transports(running) == {"loopback"}


def test_start_without_trio_says_what_it_needs(tmp_path: Path) -> None:
    async def start() -> None:
        async with made(tmp_path).start(spec()):
            raise AssertionError

    with pytest.raises(LocalError, match="runs under Trio"):
        asyncio.run(start())


async def test_template_gives_a_third_party_transport_its_addresses(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with made(tmp_path).start(spec(), tcp="loopback:mini/{}", store="memory") as running:
        await require_answer(running)
        (endpoint,) = running["hub"].endpoints
        assert re.fullmatch(rb"mini/[0-9a-f]{16}", endpoint.value)


def test_one_option_runs_a_test_on_other_transports(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\ntrio_mode = true\n")
    pytester.makefile(".toml", topology=HUB + BOB + ALICE)
    pytester.makepyfile(
        """
        import sys

        async def test_it(topology, virtual_time, request):
            async with topology.start("topology.toml", tcp="loopback", store="memory") as running:
                assert (await running["alice"].ask(["@bob", "echoer"], "hello")).text == "hello"
                transport = "tcp" if request.config.option.trionode_swap else "loopback"
                assert {endpoint.transport for node in running for endpoint in node.endpoints} == {transport}
        """
    )
    for args in ((), ("--trionode-swap", "tcp=tcp,store=sqlite")):
        pytester.runpytest_inprocess("-p", "no:cacheprovider", *args).assert_outcomes(passed=1)
