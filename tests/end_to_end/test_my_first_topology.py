"""The example that users copy, outside of the repository as they have it."""

import re
import shutil
import sys
from pathlib import Path

import pytest
import trio

from tests.support.processes import ROOT
from trionode.testing import KafkaBroker

EXAMPLE = ROOT / "examples" / "my_first_topology"
if not EXAMPLE.is_dir():
    pytest.skip("no checkout around these tests: the example is tested there", allow_module_level=True)


async def passes(folder: Path, *arguments: str) -> float:
    """Run its tests in a copy, and return the seconds that pytest says it took."""
    copy = folder / "my_first_topology"
    if not copy.exists():
        shutil.copytree(EXAMPLE, copy, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    with trio.fail_after(120):
        done = await trio.run_process(
            [sys.executable, "-m", "pytest", *arguments],
            cwd=copy,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
    said = (done.stdout + done.stderr).decode()
    assert done.returncode == 0, said
    taken = re.search(r"2 passed in ([0-9.]+)s", said)
    assert taken, said
    return float(taken[1])


@pytest.mark.parametrize("arguments", [[], ["--trionode-swap", "tcp=tcp"]], ids=["in memory", "over TCP"])
async def test_its_tests_pass_within_a_second(arguments: list[str], tmp_path: Path) -> None:
    # A machine that is busy may take its time once.
    assert await passes(tmp_path, *arguments) < 1 or await passes(tmp_path, *arguments) < 3


@pytest.mark.kafka
async def test_one_argument_runs_the_examples_over_tcp_and_kafka(tmp_path: Path, kafka_broker: KafkaBroker) -> None:
    """A plain `store=kafka` starts a broker, which takes its time; there is one already."""
    await passes(tmp_path, "--trionode-swap", f"tcp=tcp,store=kafka:{kafka_broker.bootstrap}")
