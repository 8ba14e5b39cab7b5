import signal
from pathlib import Path

import pytest

from tests.support.processes import Commands, Running
from trionode import Identity
from trionode.topology import load_topology, swap
from trionode.topology.load.loader import read_topology
from trionode.vault.sqlite import open_sqlite_vault

TOPOLOGY = """
[nodes.hub]
listen = "{hub}"
stream_services.stream_kafka.store = "memory"

[nodes.bob]
identity = {{ vault = "sqlite:{folder}/bob.db", unencrypted = true, identifier = "{bob}" }}
secure_channel_listeners.api.trust.nodes = "alice"
workers.echoer = "echoer"
streams.alice = {{ via = ["{hub}"], sends = "bob_to_alice", receives = "alice_to_bob" }}

[nodes.alice]
identity = {{ vault = "sqlite:{folder}/alice.db", unencrypted = true, identifier = "{alice}" }}
streams.hub = {{ via = ["{hub}"], sends = "alice_to_bob", receives = "bob_to_alice" }}
secure_channels.bob = {{ to = ["@hub", "api"], trust.nodes = "bob" }}
# What is imported from the folder of this file.
workers.talking = {{ run = "talking:talk", sends = [["@bob", "echoer"]] }}
"""
TALKING = """
import trio
from trionode.errors import ConnectionLost

async def talk(mailbox, sends):
    to_bob, = sends
    while True:
        try:
            await mailbox.send(to_bob(), "hello")
            break
        except ConnectionLost:
            await trio.sleep(0.02)
    print((await mailbox.receive()).text, flush=True)
    await mailbox.receive()
"""
#: Modules that can't be imported, or whose worker fails.
MODULES = {
    "not_python": "def mine(:\n",
    "raising": "\n\nraise RuntimeError('no')\n",
    "failing": 'async def fail(mailbox):\n    raise ValueError("boom")\n',
}


async def topology(folder: Path) -> Path:
    """Write the topology, at a free port, with identities that are there already."""
    names = {}
    for name in ("alice", "bob"):
        async with open_sqlite_vault(folder / f"{name}.db", unencrypted=True) as vault:
            names[name] = (await Identity.create(vault)).identifier
    file = folder / "topology.toml"
    text = TOPOLOGY.format(hub="tcp:127.0.0.1:4000", folder=folder, **names)
    file.write_text(text)
    endpoint = swap(load_topology(file), tcp="tcp").nodes["hub"].listen[0].address
    file.write_text(text.replace("tcp:127.0.0.1:4000", endpoint))
    (folder / "talking.py").write_text(TALKING)
    return file


async def lines_until_open(running: Running) -> list[str]:
    lines = [await running.line()]
    while lines[-1] != "all is open":
        lines.append(await running.line())
    return lines


async def test_nodes_of_one_file_run_in_processes_of_their_own_and_come_in_any_order(tmp_path: Path) -> None:
    file = await topology(tmp_path)
    spec = read_topology(file).spec
    async with Commands(tmp_path) as commands:
        alice = await commands.start("run", file, "--node", "alice")
        assert await alice.line() == f"alice: identifier {spec.nodes['alice'].identity.identifier}"
        bob = await commands.start("run", file, "--node", "bob")
        assert await bob.line() == f"bob: identifier {spec.nodes['bob'].identity.identifier}"
        hub = await commands.start("run", file, "--node", "hub")
        assert (await lines_until_open(hub))[1:] == [
            f"hub: listening on {spec.nodes['hub'].listen[0].address}",
            "all is open",
        ]
        assert await bob.line() == "all is open"
        assert {await alice.line(), await alice.line()} == {"all is open", "hello"}
        code, seconds = await alice.stopped_by(signal.SIGTERM)
        assert (code, seconds < 2) == (143, True)
        code, seconds = await bob.stopped_by(signal.SIGINT)
        assert (code, seconds < 2) == (130, True)
        code, seconds = await hub.stopped_by(signal.SIGTERM)
        assert (code, seconds < 2) == (143, True)
        assert hub.complaints == ""
        logged = [line.partition(":")[0] for line in alice.complaints.splitlines()]
        assert logged[0] == "nodes.alice.streams.hub is not open, and is retried"
        assert "nodes.alice.streams.hub is open" in logged


async def test_all_nodes_of_a_file_run_in_one_process(tmp_path: Path) -> None:
    file = await topology(tmp_path)
    async with Commands(tmp_path) as commands:
        running = await commands.start("run", file)
        lines = await lines_until_open(running)
        assert [line.partition(":")[0] for line in lines if line != "hello"] == [
            "hub",
            "hub",
            "bob",
            "alice",
            "all is open",
        ]
        assert (await running.stopped_by(signal.SIGHUP))[0] == 129
        assert running.complaints == ""


@pytest.mark.parametrize(
    ("text", "complaints"),
    [
        (
            '[nodes.bob]\nlistn = "tcp:127.0.0.1:4000"\nworkers.echoer = "echo-er"\n',
            ["topology.toml:2:1: nodes.bob.listn: unknown key; did you mean", "topology.toml:3:"],
        ),
        (
            '[nodes.bob.workers]\nmine = "nowhere_to_be_found:mine"\n',
            ["error: nodes.bob.workers.mine.run: the worker"],
        ),
        (
            '[nodes.bob.workers]\nmine = "not_python:mine"\n',
            [
                'error: nodes.bob.workers.mine.run: the worker "not_python:mine" can\'t be imported: SyntaxError: ',
            ],
        ),
        (
            '[nodes.bob.workers]\nmine = "raising:mine"\n',
            ["raising.py:3"],
        ),
        (
            '[nodes.bob.workers]\nmine = "failing:failed"\n',
            ["has no attribute 'failed'; did you mean \"fail\"? its async functions are: fail"],
        ),
        (
            '[nodes.bob.workers]\nmine = "failing:fail"\n',
            [
                "error: nodes.bob.workers.mine: ValueError: boom",
                "Traceback (most recent call last):",
                "failing.py",
                'raise ValueError("boom")',
                "ValueError: boom",
                "raised by nodes.bob.workers.mine",
            ],
        ),
    ],
)
async def test_problems_are_printed_one_a_line(text: str, complaints: list[str], tmp_path: Path) -> None:
    file = tmp_path / "topology.toml"
    file.write_text(text)
    for name, code in MODULES.items():
        (tmp_path / f"{name}.py").write_text(code)
    async with Commands(tmp_path) as commands:
        running = await commands.start("run", file)
        assert await running.end() == 1
        lines = running.complaints.splitlines()
        assert len(lines) == len(complaints)
        for line, expected in zip(lines, complaints, strict=True):
            assert expected in line
