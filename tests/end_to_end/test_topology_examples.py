"""The topologies in examples/ run as described."""

import importlib.util
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType

import pytest
import trio
import trio.testing

from tests.support.processes import ROOT, Commands, Running
from trionode import Identity, Route, open_node, trust_everyone
from trionode.errors import ServiceError
from trionode.testing import Topologies
from trionode.topology import RunningTopology, load_topology, parse_topology, run_topology, swap
from trionode.verify.report import verify

EXAMPLES = ROOT / "examples" / "topologies"
if not EXAMPLES.is_dir():
    pytest.skip("no checkout around these tests: the examples are tested there", allow_module_level=True)


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture
def passing_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "passing_on", module("passing_on"))


@pytest.mark.parametrize("name", ["four_transports", "fan_out", "balance"])
def test_assertions_of_the_examples_hold(name: str) -> None:
    report = verify(load_topology(EXAMPLES / f"{name}.toml"))
    assert report.holds
    assert [finding for finding in report.findings if finding.severity != "note"] == []


def topologies_in_the_docs() -> list[str]:
    text = (ROOT / "docs" / "topology.md").read_text(encoding="utf-8")
    return re.findall(r"^```toml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


async def test_examples_in_the_docs_run() -> None:
    first, processes, tenants = map(parse_topology, topologies_in_the_docs())
    assert verify(first).holds
    assert processes.nodes["bob"].identity.unencrypted
    assert tenants.nodes["hub"].stream_services["tenants"].owners == {"alice_notes": "alice", "bob_notes": "bob"}


async def test_tenants_of_a_hub_talk_by_unguessable_stream_names(autojump_clock: trio.testing.MockClock) -> None:
    *_, tenants = topologies_in_the_docs()
    async with run_topology(swap(parse_topology(tenants), tcp="loopback")) as running:
        bob = running["bob"]
        assert (await running["alice"].ask(["@bob", "echoer"], "hello")).text == "hello"
        with pytest.raises(ServiceError, match="belongs to another identity"):
            await bob.node.open_stream(
                bob.route("@hub"),
                sends="alice_notes",
                receives="alice_notes",
                service="tenants",
                index_service="tenants_index",
            )


@asynccontextmanager
async def four_transports(topology: Topologies, *, tcp: str, ws: str, kafka: str) -> AsyncIterator[RunningTopology]:
    async with topology.start(EXAMPLES / "four_transports.toml", tcp=tcp, ws=ws, kafka=kafka) as running:
        alice, bob = running["alice"], running["bob"]
        for channel in ("bob", "bob_within"):
            answer = await alice.ask([f"@{channel}", "echoer"], "hello")
            assert answer.text == "hello"
            assert answer.origin.identifier == bob.identity.identifier.value
        yield running


async def test_a_channel_leads_over_four_transports_and_another_within_a_channel(
    topology: Topologies, autojump_clock: trio.testing.MockClock
) -> None:
    async with four_transports(topology, tcp="loopback", ws="loopback", kafka="loopback") as running:
        for name in ("front", "middle", "hub"):
            assert not +running[name].node.counters


@pytest.mark.kafka
async def test_the_four_transports_are_real(topology: Topologies) -> None:
    with trio.fail_after(60):
        async with four_transports(topology, tcp="tcp", ws="ws", kafka="kafka") as running:
            endpoints = [endpoint.transport for node in running for endpoint in node.endpoints]
            assert endpoints == ["tcp", "ws", "kafka", "loopback"]


async def lines(capsys: pytest.CaptureFixture[str], count: int) -> list[str]:
    """What was printed, once it is that many lines."""
    printed = ""
    with trio.fail_after(10):
        while printed.count("\n") < count:
            await trio.testing.wait_all_tasks_blocked()
            printed += capsys.readouterr().out
    return printed.splitlines()


async def test_everyone_gets_a_copy(
    topology: Topologies, passing_on: None, capsys: pytest.CaptureFixture[str], autojump_clock: trio.testing.MockClock
) -> None:
    async with topology.start(EXAMPLES / "fan_out.toml", tcp="loopback") as running:
        author = running["author"]
        await author.send(["@desk", "news"], "one")
        assert sorted(await lines(capsys, 2)) == ["anna: one", "berta: one"]
        await running.stop("anna")
        await trio.testing.wait_all_tasks_blocked()
        await author.send(["@desk", "news"], "two")
        missed, arrived = sorted(await lines(capsys, 2), key=len, reverse=True)
        assert missed.startswith("one route missed a message: nodes.desk.secure_channels.anna is not open")
        assert arrived == "berta: two"


async def test_balance_takes_turns_and_skips_lost_routes(
    topology: Topologies, passing_on: None, capsys: pytest.CaptureFixture[str], autojump_clock: trio.testing.MockClock
) -> None:
    async with topology.start(EXAMPLES / "balance.toml", tcp="loopback") as running:

        async def jobs(*names: str) -> list[str]:
            for name in names:
                await running["client"].send(["@desk", "jobs"], name)
            return sorted(await lines(capsys, len(names)))

        assert await jobs("a", "b", "c", "d") == ["one: a", "one: d", "three: c", "two: b"]
        await trio.sleep(1)  # until the jobs are acknowledged
        await running.crash("two")
        await trio.testing.wait_all_tasks_blocked()
        assert await jobs("e", "f", "g") == ["one: f", "three: e", "three: g"]
        await running.start("two")
        await trio.sleep(10)
        assert await jobs("h", "i", "j") == ["one: h", "three: j", "two: i"]


async def test_a_trio_program_embeds_a_node(autojump_clock: trio.testing.MockClock) -> None:
    async with trio.open_nursery() as nursery, open_node("loopback") as node:
        at = await nursery.start(module("inside_trio").main, "loopback:thermometer")
        identity = await Identity.create(node.vault)
        channel = await node.open_secure_channel(Route(at, "api"), identity, trust=trust_everyone)
        assert (await node.ask(Route(channel, "thermometer"), "")).text == "20.1 °C"
        await trio.sleep(10)
        assert (await node.ask(Route(channel, "thermometer"), "")).text == "21.1 °C"
        nursery.cancel_scope.cancel()


async def test_an_asyncio_program_runs_a_node_in_guest_mode(tmp_path: Path) -> None:
    async with Commands(tmp_path) as commands:
        await visits_are_counted(commands)


async def visits_are_counted(commands: Commands) -> None:
    program = await commands.start("0", "tcp:127.0.0.1:0", program=[EXAMPLES / "inside_asyncio.py"])
    port, endpoint = (await program.line()).rpartition(" ")[2], (await program.line()).rpartition(" ")[2]
    with trio.fail_after(10):
        for _ in range(2):
            async with await trio.open_tcp_stream("127.0.0.1", int(port)) as stream:
                assert await stream.receive_some() == b"hello\n"
        async with open_node("tcp") as node:
            assert (await node.ask(Route(endpoint, "visits"), "")).payload == b"2"
    await ends_quietly(program)


async def ends_quietly(program: Running) -> None:
    code, _ = await program.stopped_by(signal.SIGINT)
    assert (code, program.complaints) == (0, "")


async def test_a_trio_program_ends_quietly_when_it_is_interrupted(tmp_path: Path) -> None:
    async with Commands(tmp_path) as commands:
        program = await commands.start("tcp:127.0.0.1:0", program=[EXAMPLES / "inside_trio.py"])
        assert (await program.line()).startswith("listening on tcp:")
        await ends_quietly(program)
