"""Topology files read: all that is wrong with them is told at once, with where it stands and what to do."""

import ast
import re
import tomllib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import attrs

from trionode.topology.check.checks import check_spec
from trionode.topology.errors import KeyPath, Position, Problem, SpecError, quoted
from trionode.topology.load.decode import structure
from trionode.topology.positions import Positions, Span, find_positions
from trionode.topology.spec import TopologySpec

_LINE = "a line reads KEY = VALUE, [TABLE] or [[TABLE IN A LIST]]; in a key other characters than A-Z a-z 0-9 _ - stand in quotes"
_ONCE = "a table is opened once, and holds all its keys"
#: What to do about a message of tomllib, by how it begins.
_SYNTAX = {
    r"Illegal character '\n'": "a text ends in its line, with the quotes that it began with",
    r"Found invalid character '\n'": "a text ends in its line, with the quotes that it began with",
    "Unterminated string": "a text ends with the quotes that it began with",
    "Unescaped": "in double quotes a backslash is written twice",
    "Invalid value": "a value is a text in quotes, a number, true, false, a list in [ ] or a table in { }",
    "Invalid statement": _LINE,
    "Invalid initial character for a key part": _LINE,
    "Expected '=' after a key": _LINE,
    "Expected ']'": _LINE,
    "Expected newline or end of document after a statement": "a line holds one KEY = VALUE; a text with spaces or colons stands in quotes",
    "Unclosed array": "a list ends with ], and has commas between its items",
    "Unclosed inline table": "a table in braces ends with }, and has commas between its pairs",
    "Cannot declare": _ONCE,
    "Cannot redefine": _ONCE,
    "Cannot overwrite": "a key is given once",
    "Duplicate inline table key": "a key is given once",
    "Cannot mutate immutable namespace": "a table in braces holds all its keys between them",
}
_AT = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")


@attrs.frozen
class Reading:
    """A topology and where its parts stand in the files."""

    spec: TopologySpec
    positions: Positions


def load_topology(*paths: str | Path, nodes: Collection[str] | None = None) -> TopologySpec:
    """Return the topology that one file, or several together, describe; SpecError with all that is wrong.

    Every operator may have a file of his own; a node is described in one of them, beside which others may describe it as external. `nodes` are the
    nodes that are to run here: only their transports and stores have to be installed.
    """
    return read_topology(*paths, nodes=nodes).spec


def parse_topology(text: str, name: str = "topology.toml", *, nodes: Collection[str] | None = None) -> TopologySpec:
    """Return the topology that a text describes, as `load_topology` does; `name` stands for the file in messages."""
    return _read([(name, text)], nodes, []).spec


def read_topology(*paths: str | Path, nodes: Collection[str] | None = None) -> Reading:
    """Do what `load_topology` does, and tell as well where each key and value stands."""
    texts: list[tuple[str, str]] = []
    problems: list[Problem] = []
    for path in paths:
        try:
            texts.append((str(path), Path(path).read_bytes().decode("utf-8-sig")))
        except UnicodeDecodeError as error:
            problems.append(_of_file(str(path), f"is no text in UTF-8, at byte {error.start}: save it as UTF-8"))
        except (OSError, ValueError) as error:  # ValueError: a path with a NUL in it
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
            problems.append(_of_file(str(path), f"can't be read: {reason}"))
    return _read(texts, nodes, problems)


def _read(texts: Sequence[tuple[str, str]], nodes: Collection[str] | None, problems: list[Problem]) -> Reading:
    parsed: list[tuple[dict[str, object], Positions]] = []
    is_whole = not problems
    for name, text in texts:
        # tomllib does the same to line ends; a byte order mark is what some editors put first.
        plain = text.removeprefix("\ufeff").replace("\r\n", "\n")
        try:
            tables, positions = tomllib.loads(plain), find_positions(plain, name)
        except RecursionError:
            problems.append(_of_file(name, "is nested too deeply: a topology has a handful of levels"))
        except ValueError as error:  # TOMLDecodeError is one; so is what int makes of too many digits
            problems.append(_of_syntax(str(error), plain, name))
        else:
            parsed.append((tables, positions))
            continue
        is_whole = False
    merged = _Merged()
    own = {name for tables, _ in parsed for name, node in _nodes(tables).items() if not _is_external(node)}
    for tables, positions in parsed:
        problems += merged.add(tables, _left(tables, positions, own))
    files = [name for name, _ in texts]
    spec, wrong = structure(merged.tables, merged.positions)
    problems += wrong
    if is_whole:
        problems += check_spec(spec, nodes=nodes, positions=merged.positions, broken=[each.path for each in wrong])
        if not problems and not spec.nodes:
            problems.append(
                _of_file(files[0] if files else "", "no node is described: a node begins with [nodes.NAME]")
            )
    if problems:
        raise SpecError(sorted(problems, key=lambda problem: _order(problem, files)))
    return Reading(spec, merged.positions)


def _nodes(tables: Mapping[str, object]) -> dict[str, object]:
    nodes = tables.get("nodes")
    return nodes if isinstance(nodes, dict) else {}


def _is_external(node: object) -> bool:
    return isinstance(node, dict) and node.get("external") is True


def _left(tables: Mapping[str, object], positions: Positions, own: Collection[str]) -> Positions:
    """Take out of a file's tables what it says of somebody else's nodes that are described as their `own` as well, and return the positions of the rest."""
    nodes = _nodes(tables)
    others = [name for name, node in nodes.items() if name in own and _is_external(node)]
    for name in others:
        del nodes[name]
    gone = {("nodes", name) for name in others}
    return {path: span for path, span in positions.items() if path[:2] not in gone}


def _of_file(name: str, text: str) -> Problem:
    return Problem((), text, Position(name, 1, 1))


def _order(problem: Problem, files: Sequence[str]) -> tuple[int, int, int]:
    at = problem.position
    return (len(files), 0, 0) if at is None else (files.index(at.file) if at.file in files else -1, at.line, at.column)


class _Merged:
    """The tables of several files as if they stood in one."""

    def __init__(self) -> None:
        self.tables: dict[str, object] = {}
        self.positions: dict[KeyPath, Span] = {}

    def add(self, tables: Mapping[str, object], positions: Positions) -> list[Problem]:
        """Add a file's tables; what is described already stays, and is a problem."""
        problems: list[Problem] = []
        shifts: dict[str | int, int] = {}
        for root, here in tables.items():
            there = self.tables.setdefault(root, type(here)())
            if isinstance(here, dict) and isinstance(there, dict):
                for name in here.keys() & there.keys():
                    if root == "nodes" and _is_external(here[name]) and here[name] == there[name]:
                        continue  # two who reach the same node of somebody else
                    span = self.positions[root, name]
                    told = f"is described at {span.key} already: each node and flow stands in one file"
                    problems.append(Problem((root, name), told, positions[root, name].key))
                self.tables[root] = here | there
            elif isinstance(here, list) and isinstance(there, list):
                shifts[root] = len(there)
                self.tables[root] = there + here
            else:  # what can't be merged is of a wrong type, which is told when it is read
                self.tables[root] = here
        for path, span in positions.items():
            self.positions.setdefault(_shifted(path, shifts), span)
        return problems


def _shifted(path: KeyPath, shifts: Mapping[str | int, int]) -> KeyPath:
    match path:
        case (root, int(index), *rest):
            return (root, index + shifts.get(root, 0), *rest)
        case _:
            return path


def _of_syntax(message: str, text: str, name: str) -> Problem:
    """Make a problem of what tomllib says: its position in front, what to do in place of what it said, and the line."""
    lines = text.split("\n")
    at = _AT.search(message)
    line, column = (int(at[1]), int(at[2])) if at and at[1] else (len(lines), len(lines[-1]) + 1)
    said = _AT.sub("", message)
    told = next((told for begin, told in _SYNTAX.items() if said.startswith(begin)), "")
    here = lines[line - 1][column - 1 :]
    if said.startswith("Invalid value") and (word := re.match(r"[^\s,\]}#\"']+", here)):
        meant = word[0].lower() if word[0].lower() in {"true", "false"} else quoted(word[0])
        told += f": did you mean {meant}?"
    if twice := re.match(r"Cannot declare (\(.*\)) twice", said):
        first = find_positions("\n".join(lines[: line - 1]), name).get(ast.literal_eval(twice[1]))
        told += f": it was opened at {first.key}" if first else ""
    if said.startswith("Cannot"):  # which is noticed at the end of the line
        column = len(lines[line - 1]) - len(lines[line - 1].lstrip()) + 1
    shown = lines[line - 1].strip()
    where = f"; the line is {quoted(shown)}" if shown else ""
    return Problem((), f"this is no TOML: {told or said}{where}", Position(name, line, column))
