"""Imports go down the layers and never in a circle, imports for type checkers included."""

from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.test_purity import PLUGINS, imports, modules, ours

#: The layers of the library, from the bottom up. A module imports from its own layer and from the layers below it.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("trionode.errors", "trionode.log", "trionode.counters"),
    ("trionode.protocol",),
    ("trionode.net",),
    ("trionode.routing",),
    ("trionode.identity",),
    ("trionode.vault",),
    ("trionode.channel", "trionode.stream", "trionode.relay", "trionode.portal"),
    ("trionode.node",),
    ("trionode", "trionode.workers", "trionode.plugins"),
    ("trionode.topology",),
    ("trionode.verify",),
    ("trionode.testing", "trionode.cli", "trionode.__main__"),
)


def arrows(known: dict[str, Path]) -> dict[str, set[str]]:
    """Which modules each module imports."""
    return {
        name: {target for each in imports(path) if (target := ours(each, known)) in known and target != name}
        for name, path in known.items()
    }


def layer(module: str) -> int:
    """The number of the layer that names the module or the nearest package around it."""
    parts = module.split(".")
    for end in range(len(parts), 0, -1):
        for number, packages in enumerate(LAYERS):
            if ".".join(parts[:end]) in packages and (end > 1 or len(parts) == 1):
                return number
    raise AssertionError(f"{module} is in no layer: add its package to LAYERS")


@pytest.mark.parametrize("package", ["trionode", *PLUGINS])
def test_no_imports_form_a_circle(package: str) -> None:
    try:
        TopologicalSorter(arrows(modules(package))).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_no_module_imports_from_a_higher_layer() -> None:
    upward = [
        f"{name} imports {target}"
        for name, targets in arrows(modules("trionode")).items()
        for target in targets
        if layer(target) > layer(name)
    ]
    assert upward == []
