"""Which package may import which modules, read from the installed sources."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest

PLUGINS = ("trionode_tcp", "trionode_websocket", "trionode_loopback", "trionode_kafka")

#: What would let clocks, chance or the outside world into the sans-IO layer.
CLOCKS = frozenset({"datetime", "time"})
CHANCE = frozenset({"nacl.utils", "random", "secrets", "uuid"})
OUTSIDE = frozenset({"os", "select", "selectors", "signal", "socket", "sqlite3", "ssl", "subprocess", "kafka"})
TASKS = frozenset({"asyncio", "concurrent", "multiprocessing", "threading", "trio"})
IMPURE = CLOCKS | CHANCE | OUTSIDE | TASKS

#: All that a plugin may import from trionode.
PUBLIC = frozenset({"trionode", "trionode.plugins"})


class Import(NamedTuple):
    """One imported module, or name of a module, and the line that asks for it."""

    module: str
    name: str
    line: int


def root_of(package: str) -> Path:
    spec = find_spec(package)
    assert spec is not None, f"{package} is not installed: pip install -e '.[test]'"
    assert spec.origin is not None
    return Path(spec.origin).parent


def modules(package: str) -> dict[str, Path]:
    """The modules of a package and its subpackages, by dotted name."""
    root = root_of(package)
    found = {}
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join((package, *(parts[:-1] if parts[-1] == "__init__" else parts)))] = path
    return found


def imports(path: Path) -> Iterator[Import]:
    """Return every import in a file, also under TYPE_CHECKING, because signatures depend on it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, "", node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute here, so that they can be checked"
            assert node.module is not None
            yield from (Import(node.module, alias.name, node.lineno) for alias in node.names)


def within(module: str, packages: frozenset[str]) -> bool:
    parts = module.split(".")
    return any(".".join(parts[:end]) in packages for end in range(1, len(parts) + 1))


def ours(found: Import, known: dict[str, Path]) -> str:
    """The module that an import of ours leads to: `from trionode.protocol import bare` leads to
    trionode.protocol.wire.bare.
    """
    inner = f"{found.module}.{found.name}"
    return inner if inner in known else found.module


TRIONODE = modules("trionode")
PROTOCOL = sorted(name for name in TRIONODE if name.startswith("trionode.protocol."))


@pytest.mark.parametrize("name", PROTOCOL)
def test_a_protocol_module_imports_no_clock_randomness_or_io(name: str) -> None:
    wanted, seen = [name], {name}
    while wanted:
        module = wanted.pop()
        for found in imports(TRIONODE[module]):
            target = ours(found, TRIONODE)
            endpoint = f"{module}:{found.line} imports {target}"
            assert not within(target, IMPURE), endpoint
            assert not within(f"{found.module}.{found.name}", IMPURE), endpoint
            if target.startswith("trionode"):
                assert target == "trionode.errors" or target.startswith("trionode.protocol"), (
                    f"{endpoint}, of the shell"
                )
                if target not in seen:
                    seen.add(target)
                    wanted.append(target)


def test_the_purity_test_finds_the_protocol_modules() -> None:
    assert len(PROTOCOL) > 10


def test_kafka_is_imported_in_one_package_only() -> None:
    everything = {**TRIONODE, **{name: path for plugin in PLUGINS for name, path in modules(plugin).items()}}
    importers = {
        name
        for name, path in everything.items()
        for found in imports(path)
        if within(found.module, frozenset({"kafka"}))
    }
    assert {name for name in importers if not within(name, frozenset({"trionode_kafka.client"}))} == set()


def test_the_library_knows_no_plugin() -> None:
    plugins = frozenset(PLUGINS)
    assert [
        (name, found) for name, path in TRIONODE.items() for found in imports(path) if within(found.module, plugins)
    ] == []


@pytest.mark.parametrize("plugin", PLUGINS)
def test_a_plugin_builds_on_public_modules_only(plugin: str) -> None:
    known = modules(plugin)
    for name, path in known.items():
        for found in imports(path):
            target = ours(found, {**TRIONODE, **known})
            if target.startswith("trionode") and not within(target, frozenset({plugin})):
                assert target in PUBLIC, f"{name}:{found.line} imports {target}"
                assert not found.name.startswith("_"), f"{name}:{found.line} imports the private {found.name}"


def loaded_by(statement: str) -> set[str]:
    """The top-level modules that a fresh interpreter has loaded after a statement."""
    program = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_importing_the_library_loads_neither_kafka_nor_the_command_line_nor_a_plugin() -> None:
    assert loaded_by("import trionode").isdisjoint({"kafka", "click", *PLUGINS})
