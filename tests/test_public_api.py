"""The public names are those that the list says, and each docstring has the sections of Trio's form."""

import importlib
import inspect
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

#: Every module that users may import from. All other modules are private.
PUBLIC_MODULES = (
    "trionode",
    "trionode.plugins",
    "trionode.testing",
    "trionode.topology",
    "trionode.verify",
    "trionode.workers",
)

#: The public names, one a line. Write the list anew with: TRIONODE_REWRITE=1 pytest tests/test_public_api.py
LIST = Path(__file__).with_name("public_names.txt")


def exported(module: str) -> list[str]:
    loaded = importlib.import_module(module)
    return [f"{module}.{name}" for name in sorted(loaded.__all__)]


def public_names() -> list[str]:
    return [name for module in PUBLIC_MODULES for name in exported(module)]


def object_of(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def callables() -> Iterator[tuple[str, Any]]:
    """Each public function, and each public method that a public class is the first to define, once."""
    seen: set[int] = set()
    for name in public_names():
        found = object_of(name)
        if not getattr(found, "__module__", "").startswith("trionode") or id(found) in seen:
            continue
        seen.add(id(found))
        if inspect.isfunction(found):
            yield name, found
        elif inspect.isclass(found):
            for attribute, member in vars(found).items():
                function = member.__func__ if isinstance(member, classmethod | staticmethod) else member
                inherited = any(attribute in vars(base) for base in found.__mro__[1:])
                if not attribute.startswith("_") and inspect.isfunction(function) and not inherited:
                    yield f"{name}.{attribute}", function


def sections(function: Any) -> set[str]:
    return set(re.findall(r"^(Args|Returns|Raises|Yields):$", inspect.getdoc(function) or "", re.MULTILINE))


def parameters(function: Any) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name not in {"self", "cls"}]


def test_the_public_names_are_those_of_the_list() -> None:
    names = public_names()
    if os.environ.get("TRIONODE_REWRITE"):
        LIST.write_text("".join(f"{name}\n" for name in names))
    assert names == LIST.read_text().split()


@pytest.mark.parametrize("name", public_names())
def test_a_public_name_has_a_docstring(name: str) -> None:
    found = object_of(name)
    if inspect.isclass(found) or inspect.isfunction(found):
        assert inspect.getdoc(found), f"{name} has no docstring"


@pytest.mark.parametrize(
    ("name", "function"), list(callables()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_public_function_documents_what_it_takes_and_what_a_cancellation_does(name: str, function: Any) -> None:
    text = inspect.getdoc(function) or ""
    assert text, f"{name} has no docstring"
    if parameters(function):
        assert "Args" in sections(function), f"{name}: add an Args: section"
        for parameter in parameters(function):
            assert re.search(rf"^\s+\*{{0,2}}{parameter}\b.*:", text, re.MULTILINE), f"{name}: Args: lacks {parameter}"
    if re.search(r"^\s+raise \w+", inspect.getsource(function), re.MULTILINE):
        assert "Raises" in sections(function), f"{name}: add a Raises: section"
    wrapped = inspect.unwrap(function)
    if inspect.iscoroutinefunction(wrapped):
        assert re.search(r"cancel", text, re.IGNORECASE), f"{name}: say what holds if it is cancelled"
