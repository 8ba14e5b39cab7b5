"""The reference of the file in the docs; TRIONODE_REWRITE=1 writes its tables anew."""

import os
import re
from pathlib import Path

import pytest

from trionode.topology.load.decode import all_tables
from trionode.topology.load.loader import parse_topology
from trionode.topology.spec import TopologySpec, ValueKind
from trionode.topology.types import Choice, FieldType, Key, ListOf, PluginOption, Record, Scalar, TableOf, record_of

FILE = Path(__file__).parents[2] / "docs" / "topology.md"
MARK = "<!-- Generated from the classes from here on: TRIONODE_REWRITE=1 pytest tests/topology -->\n"


def takes(type_: FieldType) -> str:
    match type_:
        case Record():
            short = [f"`{word!r}`".replace("'", '"') for word in type_.keywords]
            if type_.text_key:
                short.append(takes(type_.keys[type_.text_key].type))
            return " or ".join(filter(None, [", ".join(short), "a table"]))
        case TableOf(each=Record(text_key=None)):
            return "tables by name"
        case TableOf(each=Record() as each):
            return f"by name: {takes(each)}"
        case TableOf():
            return "values by name"
        case ListOf(value_kind=ValueKind.ROUTE):
            return "a route"
        case ListOf(each=ListOf()):
            return "a list of routes"
        case ListOf(each=Record(text_key=None)):
            return "tables, each `[[…]]`"
        case ListOf():
            return f"a list, each item {takes(type_.each)}"
        case Choice():
            return ", ".join(f'`"{word}"`' for word in type_.choices)
        case Scalar(python_type=kind):
            return {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}[kind]
        case PluginOption():
            return "a value"


def default(key: Key) -> str:
    match key.default:
        case bool():
            return f"`{str(key.default).lower()}`"
        case str():
            return f'`"{key.default}"`'
        case int() | float():
            return f"`{key.default}`"
        case ("current",):
            return '`["current"]`'
        case _ if isinstance(key.type, Record) and key.type.keywords and not key.is_required:
            return next(f'`"{word}"`' for word, value in key.type.keywords.items() if value == key.default)
        case _:
            return ""


def reference() -> str:
    text = ""
    headers: dict[Record, list[str]] = {}
    for header, record in all_tables():
        headers.setdefault(record, []).append(header)
    for record, endpoints in headers.items():
        about = (record.cls.__doc__ or "").split("\n")[0]
        shown = ", ".join(f"`[{endpoint}]`" for endpoint in endpoints) if endpoints[0] else "The file"
        if len(endpoints) > 2:
            shown = f"`[….{endpoints[0].rpartition('.')[2]}]`"
        text += f"\n### {shown}\n\n{about}\n\n| key | takes | default | |\n|---|---|---|---|\n"
        for key in record.keys.values():
            name = f"**{key.name}**" if key.is_required else key.name
            text += f"| {name} | {takes(key.type)} | {default(key)} | {key.doc} |\n"
    return text


def test_the_tables_in_the_docs_are_made_from_the_classes() -> None:
    before, mark, _ = FILE.read_text().partition(MARK)
    assert mark
    whole = before + MARK + reference()
    if os.environ.get("TRIONODE_REWRITE"):
        FILE.write_text(whole)
    assert whole == FILE.read_text(), "run TRIONODE_REWRITE=1 pytest tests/topology"


def test_the_examples_in_the_docs_are_topologies() -> None:
    blocks = re.findall(r"```toml\n(.*?)```", FILE.read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        parse_topology(block)


def test_the_python_in_the_docs_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = FILE.read_text()
    (tmp_path / "topology.toml").write_text(re.findall(r"```toml\n(.*?)```", text, re.DOTALL)[0])
    monkeypatch.chdir(tmp_path)
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, {})


def test_every_key_has_its_help() -> None:
    for _, record in all_tables():
        assert all(key.doc.endswith(".") for key in record.keys.values())
    assert record_of(TopologySpec).keys
