"""The example plugin: built as its author would publish it, installed, and tested by its own tests."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.test_purity import PUBLIC, imports
from trionode.testing import stream_store, transport

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = ROOT / "examples" / "unix_socket_plugin"
SOURCE = PLUGIN / "src" / "trionode_unix" / "__init__.py"
GUIDE = ROOT / "docs" / "plugins.md"

#: Seconds that each of the two programs may take. They take two.
RUN_SECONDS = 120


def run(*command: str | Path, where: Path, path: Path | None = None) -> str:
    search = os.pathsep.join(map(str, filter(None, [path, os.environ.get("PYTHONPATH")])))
    done = subprocess.run(
        command,
        cwd=where,
        env={**os.environ, "PYTHONPATH": search},
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_plugin_builds_installs_and_keeps_the_contract(tmp_path: Path) -> None:
    # A copy, because a build leaves folders behind.
    shutil.copytree(PLUGIN, tmp_path / "plugin", ignore=shutil.ignore_patterns("__pycache__", "build", "*.egg-info"))
    run(
        *(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path),
        where=tmp_path / "plugin",
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(tmp_path / "installed")
    shutil.rmtree(tmp_path / "plugin" / "src")  # so the installed package is tested
    said = run(
        *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
        where=tmp_path / "plugin",
        path=tmp_path / "installed",
    )
    assert re.search(r"^\d\d passed", said, re.MULTILINE), said


def test_the_plugin_imports_public_modules_only() -> None:
    used = {each.module for each in imports(SOURCE) if each.module.startswith("trionode")}
    assert used <= PUBLIC
    assert used


needs_guide = pytest.mark.skipif(
    not (GUIDE.exists() and (ROOT / "trionode").exists()),
    reason="the guide is tested in a checkout only",
)


@needs_guide
def test_the_guide_has_a_reason_for_each_check() -> None:
    for table in (transport.CHECKS, stream_store.CHECKS):
        for check in table:
            assert f"| `{check.__name__}` |" in GUIDE.read_text()


@needs_guide
def test_the_guide_names_the_public_modules() -> None:
    (named,) = re.findall(r"^Import from .*?\n\n", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    for module in PUBLIC:
        assert f"`{module.removeprefix('trionode.protocol.')}`" in named, module


def blocks() -> list[tuple[str, str]]:
    """Return the source file and the text of each block in the guide."""
    return re.findall(r"^<!-- (\S+) -->\n```\w+\n(.*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL)


@needs_guide
def test_each_block_of_the_guide_is_in_its_source_file() -> None:
    assert len(blocks()) == GUIDE.read_text().count("```") // 2, "a comment before each block names its source file"
    for name, code in blocks():
        assert code in (ROOT / name).read_text(), f"{name} does not hold:\n{code}"


@needs_guide
@pytest.mark.parametrize(
    "name", ["src/trionode_unix/__init__.py", "pyproject.toml", "tests/conftest.py", "tests/test_contract.py"]
)
def test_the_guide_shows_the_whole_plugin_in_order(name: str) -> None:
    path = PLUGIN / name
    shown = "".join(code for named, code in blocks() if ROOT / named == path)
    assert shown.replace("\n", "") == path.read_text().replace("\n", "")
