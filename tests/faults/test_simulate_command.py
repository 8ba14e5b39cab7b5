import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from trionode.cli import main
from trionode.testing import Simulation

SMALL = ("--hours", "0.05", "--messages", "20", "--jobs", "1")


def simulate(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["simulate", *arguments])


def test_a_good_run_prints_its_report_and_succeeds() -> None:
    result = simulate("--drop", "0", "--seed", "3", *SMALL)
    assert result.exit_code == 0, result.output
    lines = dict(line.split("  ", 1) for line in result.stdout.splitlines())
    assert lines["messages"].strip() == "40 accepted, 40 received"
    assert lines["faults"].strip() == "none"
    assert lines["goodput"].strip().endswith("100% of the faultless rate")
    assert lines["findings"].strip() == ("lost 0, undetected 0, doubled 0, reordered 0, wrong 0, stuck 0, error 0")
    assert result.stderr == ""


@pytest.fixture
def losing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every run look as if its first message were never received."""
    run = Simulation.run

    def losing_run(simulation: Simulation, seed: int, *, trace: bool = False) -> object:
        outcome = run(simulation, seed, trace=trace)
        object.__setattr__(outcome, "findings", {"lost": 1})
        object.__setattr__(outcome, "examples", ("lost: mission 0, accepted at 1.000",))
        return outcome

    monkeypatch.setattr(Simulation, "run", losing_run)


@pytest.mark.usefixtures("losing")
def test_a_failing_seed_is_printed_with_the_command_that_repeats_it() -> None:
    result = simulate("--drop", "0.01", "--crash", "bob", "--crash-rate", "1", "--seed", "5", "--seeds", "2", *SMALL)
    assert result.exit_code == 1
    replay = "trionode simulate --drop 0.01 --crash bob --crash-rate 1.0 --hours 0.05 --messages 20 --seed"
    assert f"seed 6: lost 1; replay: {replay} 6\n  lost: mission 0, accepted at 1.000\n" in result.stderr
    assert f"failing seeds      2: 5, 6\nreplay             {replay} 5 --trace\n" in result.stdout


@pytest.mark.usefixtures("losing")
def test_json_has_the_same(tmp_path: Path) -> None:
    result = simulate("--drop", "0.05", "--json", "--seed", "1", *SMALL)
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert report["schedules"] == 1
    assert report["faults"].keys() == {"drop"}
    assert report["findings"]["lost"] == 1
    assert report["failing"][0]["seed"] == 1
    assert report["failing"][0]["replay"].endswith("--seed 1")


def test_the_replay_repeats_the_trace_whatever_the_number_of_processes() -> None:
    arguments = ["--json", "--drop", "0.03", "--cut", "20", "--hours", "0.05", "--messages", "20"]
    # In a process of its own, since `multiprocessing` leaves a tracker behind in this one.
    command = [sys.executable, "-m", "trionode", "simulate", *arguments, "--seeds", "2", "--jobs", "2"]
    both = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=60).stdout)["digests"]
    assert both.keys() == {"0", "1"}
    assert json.loads(simulate(*arguments, "--seed", "1").stdout)["digests"] == {"1": both["1"]}


def test_a_seed_of_the_campaign_is_repeated_as_a_seed_of_the_campaign() -> None:
    result = simulate("--campaign", "--json", "--hours", "0.05", "--messages", "20", "--seed", "1")
    report = json.loads(result.stdout)
    assert report["schedules"] == 1
    assert {"drop", "duplicate", "reorder", "delay", "corrupt"} <= report["faults"].keys()
    for failing in report["failing"]:
        assert failing["replay"] == "trionode simulate --hours 0.05 --messages 20 --campaign --seed 1"


def test_a_trace_shows_the_faults() -> None:
    result = simulate("--cut", "60", "--seed", "2", "--trace", *SMALL)
    assert " fault: cut: alice | hub" in result.stdout
    assert " log: the link to the hub loopback:127.0.0.1:4000 was lost" in result.stdout


def test_a_file_is_simulated_and_its_folder_has_the_workers(tmp_path: Path) -> None:
    (tmp_path / "team.py").write_text(
        "async def pass_on(mailbox, sends):\n    async for message in mailbox:\n        await mailbox.send(sends[0](), message.payload)\n"
    )
    file = tmp_path / "topology.toml"
    file.write_text("""
[nodes.bob]
listen = "tcp:127.0.0.1:4000"
workers.inbox = { run = "echoer", allow = "anyone" }

[nodes.carol]
listen = "tcp:127.0.0.1:4001"
workers.between = { run = "team:pass_on", allow = "anyone", sends = [["tcp:127.0.0.1:4000", "inbox"]] }

[nodes.alice]

[flows.direct]
from = "alice"
to = ["tcp:127.0.0.1:4000", "inbox"]
answered = false
""")
    result = simulate(str(file), "--drop", "0", "--seed", "1", *SMALL)
    assert result.exit_code == 0, result.output
    assert "messages           20 accepted, 20 received\n" in result.stdout
    route = simulate(
        str(file), "--from", "carol", "--to", "tcp:127.0.0.1:4000 => inbox", "--drop", "0", *SMALL, "--seeds", "2"
    )
    assert "messages           80 accepted, 80 received\n" in route.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--drop", "2"], 2, "2.0 is not in the range"),
        (["--from", "alice"], 2, "--from NODE and --to ROUTE go together"),
        (["--crash", "carol"], 1, "no node 'carol' of this topology can crash"),
        (["missing.toml"], 1, "missing.toml"),
        (["--seeds", "0"], 2, "--seeds"),
    ],
)
def test_wrong_options_are_refused(arguments: list[str], code: int, text: str) -> None:
    result = simulate(*arguments)
    assert result.exit_code == code
    assert text in result.stderr
