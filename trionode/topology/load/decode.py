"""Decode tables of TOML into the classes of a spec, and report every unknown key, missing key and wrong type."""

import re
from collections.abc import Mapping
from functools import cache

from trionode.topology.errors import KeyPath, Problem, closest, describe, dotted_keys, quoted, suggest
from trionode.topology.positions import Positions
from trionode.topology.spec import Option, TopologySpec, ValueKind
from trionode.topology.types import Choice, FieldType, Key, ListOf, PluginOption, Record, Scalar, TableOf, record_of

#: Phrases for what was expected, by value kind.
EXAMPLES: Mapping[ValueKind | None, str] = {
    None: "a text in quotes",
    ValueKind.ENDPOINT: 'a transport address such as "tcp:127.0.0.1:4000"',
    ValueKind.LISTENING_ENDPOINT: 'a transport address such as "tcp:127.0.0.1:4000"',
    ValueKind.HOST_PORT: 'a host and port such as "127.0.0.1:8080"',
    ValueKind.IDENTIFIER: 'an identifier such as "I0123…", as `trionode identity show` prints it',
    ValueKind.AUTHORITY: "hex text, as `trionode identity export` prints it",
    ValueKind.CREDENTIAL: "hex text, as `trionode identity issue` prints it",
    ValueKind.NODE: "the name of a node in quotes",
    ValueKind.IDENTIFIED_NODE: "the name of a node in quotes",
    ValueKind.OBSERVER: 'the name of a node, "network" or "stores"',
    ValueKind.ADDRESS_OF_NODE: 'a node and an address there, such as "bob/echoer"',
    ValueKind.OWNER: "the name of a node, or an identifier, in quotes",
    ValueKind.WORKER: 'a worker such as "package.module:name", or one that ships with trionode, such as "echoer"',
    ValueKind.STORE: 'a store such as "memory" or "sqlite:streams.db"',
    ValueKind.VAULT: '"memory" or "sqlite:PATH"',
    ValueKind.STREAM: "the name of a stream in quotes",
    ValueKind.FLOW: "the name of a flow in quotes",
}
_TYPES = {bool: "true or false", int: "a whole number", float: "a number"}
#: Words for all peers. A record knows one of them.
_EVERYONE = {"everyone", "anyone", "everybody", "anybody", "all", "public", "*"}
A_ROUTE = 'a route, which is a list of hops such as ["tcp:127.0.0.1:4000", "echoer"]'


class _Broken:
    """Replaces a value that could not be decoded, and has a problem."""


_BROKEN = _Broken()


def decode(tables: Mapping[str, object], positions: Positions) -> tuple[TopologySpec, list[Problem]]:
    """Return the parts of a topology that could be decoded, and the problems of all others."""
    decoder = _Decoder(positions)
    spec = decoder.decode(record_of(TopologySpec), {"nodes": {}, **tables}, ())
    return spec if isinstance(spec, TopologySpec) else TopologySpec({}), decoder.problems


class _Decoder:
    def __init__(self, positions: Positions) -> None:
        self.problems: list[Problem] = []
        self._positions = positions

    def _report(self, path: KeyPath, text: str, *, of_key: bool = False) -> _Broken:
        span = self._positions.get(path)
        self.problems.append(Problem(path, text, None if span is None else span.key if of_key else span.value))
        return _BROKEN

    def decode(self, type_: FieldType, value: object, path: KeyPath) -> object:
        """Return the value as its type, or _BROKEN."""
        match type_:
            case Record():
                return self._record(type_, value, path)
            case TableOf():
                if not isinstance(value, dict):
                    return self._wrong(type_, value, path)
                decoded = {name: self.decode(type_.each, each, (*path, name)) for name, each in value.items()}
                return {name: each for name, each in decoded.items() if each is not _BROKEN}
            case ListOf():
                return self._list(type_, value, path)
            case Choice():
                if isinstance(value, str) and value in type_.choices:
                    return value
                return self._wrong(type_, value, path)
            case Scalar():
                return self._scalar(type_, value, path)
            case PluginOption():
                return self._option(value, path)

    def _record(self, type_: Record, value: object, path: KeyPath) -> object:
        if isinstance(value, str) and value in type_.keywords:
            return type_.keywords[value]
        if isinstance(value, str) and type_.text_key is not None:
            value = {type_.text_key: value}
        if not isinstance(value, dict):
            return self._wrong(type_, value, path)
        arguments: dict[str, object] = {}
        is_broken = False
        misspelt = set()
        for name, each in value.items():
            key = type_.keys.get(name)
            if key is None:
                misspelt.add(closest(name, type_.keys))
                self._report((*path, name), _unknown(name, type_), of_key=True)
                continue
            decoded = self.decode(key.type, each, (*path, name) if (*path, name) in self._positions else path)
            if decoded is not _BROKEN:
                arguments[key.attribute] = decoded
            elif key.is_required:
                is_broken = True
        for key in type_.keys.values():
            if key.is_required and key.name not in value:
                is_broken = True
                if key.name not in misspelt:
                    self._report(path, f"the key {quoted(key.name)} is missing: {_describe_key(key)}", of_key=True)
        return _BROKEN if is_broken else type_.cls(**arguments)

    def _list(self, type_: ListOf, value: object, path: KeyPath) -> object:
        is_one = isinstance(value, str) and type_.may_be_one
        items = [value] if is_one else value
        is_flat = (
            isinstance(type_.each, ListOf) and isinstance(items, list) and any(isinstance(each, str) for each in items)
        )
        if is_flat or not isinstance(items, list):
            return self._wrong(type_, value, path)
        # A broken item breaks the list, since the other items would have wrong indices.
        decoded = tuple(
            self.decode(type_.each, each, path if is_one else (*path, index)) for index, each in enumerate(items)
        )
        return _BROKEN if _BROKEN in decoded else decoded

    def _scalar(self, type_: Scalar, value: object, path: KeyPath) -> object:
        if type_.python_type is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        return value if type(value) is type_.python_type else self._wrong(type_, value, path)

    def _option(self, value: object, path: KeyPath) -> Option | _Broken:
        if isinstance(value, str | int | float | bool):
            return value
        if isinstance(value, list):
            texts = tuple(each for each in value if isinstance(each, str))
            if len(texts) == len(value):
                return texts
        return self._report(
            path, f"expected a text, a number, true, false or a list of texts; this is {describe(value)}"
        )

    def _wrong(self, type_: FieldType, value: object, path: KeyPath) -> _Broken:
        todo = _advice(type_, value, path)
        return self._report(
            path, f"expected {expected(type_)}; this is {describe(value)}" + (f". {todo}" if todo else "")
        )


@cache
def all_tables() -> tuple[tuple[str, Record], ...]:
    """Return every table of a topology with the text of its header."""
    found: list[tuple[str, Record]] = []

    def walk(type_: FieldType, header: str) -> None:
        if isinstance(type_, Record):
            found.append((header, type_))
            for key in type_.keys.values():
                walk(key.type, f"{header}.{key.name}" if header else key.name)
        elif isinstance(type_, TableOf):
            walk(type_.each, f"{header}.NAME")
        elif isinstance(type_, ListOf):
            walk(type_.each, header if isinstance(type_.each, ListOf) else f"[{header}]")

    walk(record_of(TopologySpec), "")
    return tuple(found)


def _unknown(name: str, type_: Record) -> str:
    text = f"unknown key; {suggest(name, type_.keys)}"
    if closest(name, type_.keys) is None:
        elsewhere = [header for header, record in all_tables() if name in record.keys and record.cls is not type_.cls]
        if elsewhere:
            text += f". That key exists in {' and in '.join(f'[{header}]' for header in elsewhere[:2])}"
    return text


def _describe_key(key: Key) -> str:
    return f"{key.doc} Expected {expected(key.type)}"


def expected(type_: FieldType) -> str:
    """Return a phrase for the values of a type."""
    match type_:
        case Record():
            alternatives = [quoted(word) for word in type_.keywords]
            if type_.text_key is not None:
                alternatives.append(expected(type_.keys[type_.text_key].type))
            table = 'a table such as { nodes = ["bob"] }' if type_.keywords else "a table"
            return ", ".join([*alternatives, f"or {table}"]) if alternatives else table
        case TableOf():
            return "a table"
        case ListOf(value_kind=ValueKind.ROUTE):
            return A_ROUTE
        case ListOf(each=ListOf()):
            return 'a list of routes, each of them a list of hops, such as [["@bob", "echoer"], ["audit"]]'
        case ListOf():
            return f"a list, each item {expected(type_.each)}"
        case Choice():
            return " or ".join(map(quoted, type_.choices))
        case Scalar():
            return _TYPES.get(type_.python_type) or EXAMPLES.get(type_.value_kind, EXAMPLES[None])
        case PluginOption():
            return "a text, a number, true, false or a list of texts"


def _advice(type_: FieldType, value: object, path: KeyPath) -> str:
    """Say what to write if the value shows what was meant, else return ""."""
    match type_, value:
        case Scalar(python_type=scalar), str() if scalar is not str and re.fullmatch(
            r"true|false|[+-]?[0-9][0-9_.]*", value
        ):
            return f"Write {value} without quotes"
        case Scalar(), [only] if isinstance(only, type_.python_type):
            return "Write it without the brackets"
        case ListOf(value_kind=ValueKind.ROUTE), str():
            hops = [each.strip() for each in re.split(r"=>|->|,", value) if each.strip()]
            return f"Write [{', '.join(map(quoted, hops or [value]))}]"
        case ListOf(each=ListOf()), [*hops] if hops and all(isinstance(hop, str) for hop in hops):
            return f"For one route write [[{', '.join(quoted(str(hop)) for hop in hops)}]]"
        case ListOf(each=Record()), dict():
            return f"Write its header with double brackets, [[{dotted_keys(path)}]]"
        case ((Record() | TableOf()), [dict(), *_]):
            return f"Write its header with single brackets, [{dotted_keys(path)}]"
        case TableOf(each=Record()), _:
            return f"Each entry has a name and a table, [{dotted_keys(path)}.NAME]"
        case Record(keywords=words), str() if words:
            meant = closest(value, words) or next((word for word in words if {word, value} <= _EVERYONE), None)
            if meant:
                return f"Did you mean {quoted(meant)}?"
            kind = "identifiers" if re.fullmatch(r"[IP][0-9a-f]{6,}", value) else "nodes"
            return f"Name them in a table: {{ {kind} = [{quoted(value)}] }}"
        case Record(keywords=words), [*items] if words and all(isinstance(each, str) for each in items):
            return f"Name them in a table: {{ nodes = [{', '.join(quoted(str(each)) for each in items)}] }}"
        case Choice(choices=words), str():
            meant = closest(value, words)
            return f"Did you mean {quoted(meant)}?" if meant else ""
        case _:
            return ""
