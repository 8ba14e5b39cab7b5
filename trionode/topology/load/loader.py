"""Load topology files, and report all problems at once, with positions and advice."""

import ast
import re
import tomllib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import attrs

from trionode.topology.check.checks import check_spec
from trionode.topology.errors import KeyPath, Position, Problem, SpecError, quoted
from trionode.topology.load.decode import decode
from trionode.topology.positions import Positions, Span, find_positions
from trionode.topology.spec import TopologySpec

_LINE = "a line reads KEY = VALUE, [TABLE] or [[TABLE IN A LIST]]; in a key other characters than A-Z a-z 0-9 _ - stand in quotes"
_ONCE = "a table is opened once, and holds all its keys"
#: Advice for the messages of tomllib, by their beginnings.
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
    "Expected newline or end of document after a statement": "a line holds one KEY = VALUE; a text with spaces or colons needs quotes",
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
    """A topology, and the positions of its parts in the files."""

    spec: TopologySpec
    positions: Positions


def load_topology(*paths: str | Path, nodes: Collection[str] | None = None) -> TopologySpec:
    """Return the topology that one or several files describe.

    Several files are one topology, so each operator can keep a separate file. A node is described in one file, and the
    others can describe it as external.

    Args:
      paths: The files.
      nodes: The names of the nodes that run here, by default all that are not external. Only their plugins must be
          installed.

    Raises:
      SpecError: The topology is not valid; the error has all problems.
    """
    return read_topology(*paths, nodes=nodes).spec


def parse_topology(text: str, name: str = "topology.toml", *, nodes: Collection[str] | None = None) -> TopologySpec:
    """Return the topology that a text describes.

    Args:
      text: The content of a topology file.
      name: The name of the file in messages.
      nodes: The names of the nodes that run here, by default all that are not external. Only their plugins must be
          installed.

    Raises:
      SpecError: The topology is not valid; the error has all problems.
    """
    return _read([(name, text)], nodes, []).spec


def read_topology(*paths: str | Path, nodes: Collection[str] | None = None) -> Reading:
    """Return the topology of `load_topology`, and the position of each key and value."""
    texts: list[tuple[str, str]] = []
    problems: list[Problem] = []
    for path in paths:
        try:
            texts.append((str(path), Path(path).read_bytes().decode("utf-8-sig")))
        except UnicodeDecodeError as error:
            problems.append(_of_file(str(path), f"is not UTF-8 at byte {error.start}: save it as UTF-8"))
        except (OSError, ValueError) as error:  # ValueError: a path with a NUL in it
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
            problems.append(_of_file(str(path), f"can't be read: {reason}"))
    return _read(texts, nodes, problems)


def _read(texts: Sequence[tuple[str, str]], nodes: Collection[str] | None, problems: list[Problem]) -> Reading:
    parsed: list[tuple[dict[str, object], Positions]] = []
    is_whole = not problems
    for name, text in texts:
        # tomllib converts line ends, too. Some editors write a byte order mark first.
        plain = text.removeprefix("\ufeff").replace("\r\n", "\n")
        try:
            tables, positions = tomllib.loads(plain), find_positions(plain, name)
        except RecursionError:
            problems.append(_of_file(name, "is nested too deeply: a topology has only a few levels"))
        except ValueError as error:  # a TOMLDecodeError, or an integer with too many digits
            problems.append(_of_syntax(str(error), plain, name))
        else:
            parsed.append((tables, positions))
            continue
        is_whole = False
    merged = _Merged()
    own = {name for tables, _ in parsed for name, node in _nodes(tables).items() if not _is_external(node)}
    for tables, positions in parsed:
        problems += merged.add(tables, _without_duplicates(tables, positions, own))
    files = [name for name, _ in texts]
    spec, wrong = decode(merged.tables, merged.positions)
    problems += wrong
    if is_whole:
        problems += check_spec(spec, nodes=nodes, positions=merged.positions, broken=[each.path for each in wrong])
        if not problems and not spec.nodes:
            problems.append(_of_file(files[0] if files else "", "it has no nodes: a node begins with [nodes.NAME]"))
    if problems:
        raise SpecError(sorted(problems, key=lambda problem: _order(problem, files)))
    return Reading(spec, merged.positions)


def _nodes(tables: Mapping[str, object]) -> dict[str, object]:
    nodes = tables.get("nodes")
    return nodes if isinstance(nodes, dict) else {}


def _is_external(node: object) -> bool:
    return isinstance(node, dict) and node.get("external") is True


def _without_duplicates(tables: Mapping[str, object], positions: Positions, own: Collection[str]) -> Positions:
    """Remove the external nodes that another file describes as its own; return the positions of the rest."""
    nodes = _nodes(tables)
    others = [name for name, node in nodes.items() if name in own and _is_external(node)]
    for name in others:
        del nodes[name]
    removed = {("nodes", name) for name in others}
    return {path: span for path, span in positions.items() if path[:2] not in removed}


def _of_file(name: str, text: str) -> Problem:
    return Problem((), text, Position(name, 1, 1))


def _order(problem: Problem, files: Sequence[str]) -> tuple[int, int, int]:
    at = problem.position
    return (len(files), 0, 0) if at is None else (files.index(at.file) if at.file in files else -1, at.line, at.column)


class _Merged:
    """The tables of several files as one."""

    def __init__(self) -> None:
        self.tables: dict[str, object] = {}
        self.positions: dict[KeyPath, Span] = {}

    def add(self, tables: Mapping[str, object], positions: Positions) -> list[Problem]:
        """Add a file's tables. A name that exists already keeps its first table, and the second is a problem."""
        problems: list[Problem] = []
        shifts: dict[str | int, int] = {}
        for root, here in tables.items():
            there = self.tables.setdefault(root, type(here)())
            if isinstance(here, dict) and isinstance(there, dict):
                for name in here.keys() & there.keys():
                    if root == "nodes" and _is_external(here[name]) and here[name] == there[name]:
                        continue  # two files describe the same external node
                    span = self.positions[root, name]
                    text = f"is described at {span.key} already: describe each node and flow in one file"
                    problems.append(Problem((root, name), text, positions[root, name].key))
                self.tables[root] = here | there
            elif isinstance(here, list) and isinstance(there, list):
                shifts[root] = len(there)
                self.tables[root] = there + here
            else:  # a value of a wrong type, which the decoder reports
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
    """Return the problem for an error of tomllib, with advice and the line."""
    lines = text.split("\n")
    at = _AT.search(message)
    line, column = (int(at[1]), int(at[2])) if at and at[1] else (len(lines), len(lines[-1]) + 1)
    reason = _AT.sub("", message)
    advice = next((text for begin, text in _SYNTAX.items() if reason.startswith(begin)), "")
    here = lines[line - 1][column - 1 :]
    if reason.startswith("Invalid value") and (word := re.match(r"[^\s,\]}#\"']+", here)):
        meant = word[0].lower() if word[0].lower() in {"true", "false"} else quoted(word[0])
        advice += f": did you mean {meant}?"
    if twice := re.match(r"Cannot declare (\(.*\)) twice", reason):
        first = find_positions("\n".join(lines[: line - 1]), name).get(ast.literal_eval(twice[1]))
        advice += f": it was opened at {first.key}" if first else ""
    if reason.startswith("Cannot"):  # tomllib reports the end of the line
        column = len(lines[line - 1]) - len(lines[line - 1].lstrip()) + 1
    text = lines[line - 1].strip()
    where = f"; the line is {quoted(text)}" if text else ""
    return Problem((), f"this is not valid TOML: {advice or reason}{where}", Position(name, line, column))
