"""The installed package equals this checkout: packages, files, versions, entry points, and the README's commands."""

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from configparser import ConfigParser
from importlib.metadata import EntryPoint, distribution
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
if not (ROOT / "setup.cfg").exists():
    pytest.skip("no checkout around these tests: packaging is tested there", allow_module_level=True)

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
README = (ROOT / "README.md").read_text()

#: Seconds for a build, which takes three: longer means that it waits for something.
BUILD_SECONDS = 120


class Built(NamedTuple):
    """The two things that are published, built from a clean copy, the wheel out of the sdist."""

    sdist: Path
    wheel: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    # A copy, because a build leaves build/lib behind, and the next one packs what has been deleted meanwhile.
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in (
        "pyproject.toml",
        "setup.cfg",
        "MANIFEST.in",
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "trionode",
        "transports",
        "pytest_plugin",
        "tests",
    ):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(ROOT / name, source / name)
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", out, source],
        capture_output=True,
        text=True,
        timeout=BUILD_SECONDS,
        check=False,
    )
    assert done.returncode == 0, (
        f"the build failed; `pip install -e .[test]` brings what it needs\n{done.stdout}{done.stderr}"
    )
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return Built(sdist, wheel)


def setup_cfg(section: str) -> dict[str, str]:
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    return dict(config[section])


def setup_cfg_folder(name: str) -> str:
    """The folder of the second source roots, with a slash behind it."""
    if not name.startswith("trionode_"):
        return ""
    return "pytest_plugin/" if name.startswith("trionode_pytest") else "transports/"


def sources() -> set[str]:
    """Every file that a wheel has to hold, by its path in there."""
    roots = {"trionode": ROOT, "transports": ROOT / "transports", "pytest_plugin": ROOT / "pytest_plugin"}
    paths = {path.relative_to(base) for name, base in roots.items() for path in (ROOT / name).rglob("*")}
    return {str(path) for path in paths if path.suffix == ".py" or path.name == "py.typed"}


def packages() -> set[str]:
    return {name.removesuffix("/__init__.py").replace("/", ".") for name in sources() if name.endswith("/__init__.py")}


def test_setup_cfg_lists_every_package_of_both_roots() -> None:
    assert set(setup_cfg("options")["packages"].split()) == packages()


def test_every_module_is_in_a_package() -> None:
    assert {name.rpartition("/")[0].replace("/", ".") for name in sources()} == packages()


def test_every_plugin_is_mapped_to_its_folder() -> None:
    lines = setup_cfg("options")["package_dir"].strip().splitlines()
    mapped = dict(line.replace(" ", "").split("=") for line in lines)
    assert mapped == {
        path.parent.name: f"{root}/{path.parent.name}"
        for root in ("transports", "pytest_plugin")
        for path in (ROOT / root).glob("*/__init__.py")
    }


def test_every_top_level_package_ships_its_types() -> None:
    top = {name for name in packages() if "." not in name}
    assert setup_cfg("options.package_data") == dict.fromkeys(top, "py.typed")
    assert {f"{name}/py.typed" for name in top} <= sources()


def test_the_wheel_holds_every_module_of_both_roots_and_nothing_else(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        assert "Apache License" in wheel.read(f"trionode-{PROJECT['version']}.dist-info/licenses/LICENSE").decode()
    assert names == sources()


def test_the_sdist_holds_its_tests_and_documents(built: Built) -> None:
    with tarfile.open(built.sdist) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert {"LICENSE", "README.md", "CHANGELOG.md", "tests/test_packaging.py", "tests/support/vectors.py"} <= names
    assert {f"{setup_cfg_folder(name)}{name}" for name in sources()} <= names


def entry_points() -> dict[tuple[str, str], str]:
    groups: dict[str, dict[str, str]] = {"console_scripts": PROJECT["scripts"], **PROJECT["entry-points"]}
    return {(group, name): value for group, entries in groups.items() for name, value in entries.items()}


@pytest.mark.parametrize(("group", "name"), entry_points())
def test_an_entry_point_names_something_that_can_be_called(group: str, name: str) -> None:
    loaded = EntryPoint(name, entry_points()[group, name], group).load()
    # Plugins of pytest are modules.
    assert callable(loaded) or group == "pytest11"


def test_the_installed_package_has_the_entry_points_and_the_version_of_this_checkout() -> None:
    installed = distribution("trionode")
    assert {(e.group, e.name): e.value for e in installed.entry_points} == entry_points(), (
        "install again: pip install -e '.[test]'"
    )
    assert installed.version == PROJECT["version"]


def test_the_changelog_begins_with_this_version() -> None:
    newest = re.search(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == PROJECT["version"]


def test_the_first_two_commands_of_the_readme_are_one_line_each_and_set_up_their_own_environment() -> None:
    demo, tests = re.findall(r"^```(?:sh|bash|console)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)[:2]
    for command, extra, last in (demo, "'.[kafka]'", "trionode demo"), (tests, "-e '.[test]'", "pytest"):
        assert command.count("\n") == 1
        assert command.startswith("python3 -m venv .venv && ")
        assert f"pip install -q {extra} && " in command
        assert command.rstrip().endswith(f"&& .venv/bin/{last}")


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=lambda path: path.name
)
def test_every_link_in_a_document_leads_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", path.read_text())
    assert [link for link in links if not (path.parent / link).exists()] == []


def test_every_section_of_the_wire_that_the_sources_cite_is_described() -> None:
    cited = {
        section
        for root in ("trionode", "transports")
        for path in (ROOT / root).rglob("*.py")
        for citation in re.findall(r"spec (§[\d.]+(?:, §[\d.]+)*)", path.read_text())
        for section in re.findall(r"\d+(?:\.\d+)?", citation)
    }
    described = set(re.findall(r"^#+ (\d+(?:\.\d+)?)\.? ", (ROOT / "docs" / "wire.md").read_text(), re.MULTILINE))
    assert cited <= described
