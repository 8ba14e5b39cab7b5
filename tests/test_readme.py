"""The code in the README runs unchanged."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from trionode.topology import parse_topology
from trionode.verify import verify

pytest_plugins = ["pytester"]

README = Path(__file__).resolve().parents[1] / "README.md"
if not README.exists():
    pytest.skip("no checkout around these tests: the README is tested there", allow_module_level=True)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)


PROGRAMS = [code for code in blocks("python") if "trio.run(" in code]
PRINTED = [
    "Bob received: Hello, Bob!\nAlice received an echo: Hello, Bob!\n",
    "Hello through the hub!\n",
]


def test_every_python_block_is_a_program_or_a_test() -> None:
    assert len(PROGRAMS) == len(PRINTED)
    assert [code for code in blocks("python") if code not in PROGRAMS and "async def test_" not in code] == []


@pytest.mark.parametrize(("code", "printed"), list(zip(PROGRAMS, PRINTED, strict=True)), ids=["channel", "stream"])
def test_a_program_prints_what_it_promises(code: str, printed: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, printed, "")


def test_the_topology_holds_what_it_asserts() -> None:
    (text,) = blocks("toml")
    assert verify(parse_topology(text)).holds


def test_the_test_of_the_topology_passes(pytester: pytest.Pytester) -> None:
    (text,) = blocks("toml")
    (code,) = (block for block in blocks("python") if "async def test_" in block)
    pytester.path.joinpath("topology.toml").write_text(text)
    pytester.makeini("[pytest]\ntrio_mode = true\n")
    pytester.makepyfile(code)
    pytester.runpytest_inprocess("-p", "no:cacheprovider", "-p", "no:randomly").assert_outcomes(passed=1)
