"""Tables as TOML has them made into the classes of a spec: unknown keys, missing keys and wrong types are told, all of them."""

import re
from collections.abc import Mapping
from functools import cache

from trionode.topology.errors import KeyPath, Problem, closest, describe, dotted_keys, quoted, suggest
from trionode.topology.positions import Positions
from trionode.topology.spec import Option, TopologySpec, ValueKind
from trionode.topology.types import Choice, Form, Key, ListOf, PluginOption, Record, Scalar, TableOf, record_of

#: How a text of each meaning looks, for messages that say what was expected.
EXAMPLES: Mapping[ValueKind | None, str] = {
    None: "a text in quotes",
    ValueKind.ENDPOINT: 'a transport address such as "tcp:127.0.0.1:4000"',
    ValueKind.LISTENING_ENDPOINT: 'a transport address such as "tcp:127.0.0.1:4000"',
    ValueKind.HOST_PORT: 'a host and port such as "127.0.0.1:8080"',
    ValueKind.IDENTIFIER: 'an identifier such as "I0123…", as `trionode identity show` prints it',
    ValueKind.NODE: "the name of a node in quotes",
    ValueKind.IDENTIFIED_NODE: "the name of a node in quotes",
    ValueKind.WATCHER: 'the name of a node, "network" or "stores"',
    ValueKind.ADDRESS_OF_NODE: 'a node and an address there, such as "bob/echoer"',
    ValueKind.OWNER: "the name of a node, or an identifier, in quotes",
    ValueKind.WORKER: 'a worker such as "package.module:name", or one that ships with trionode, such as "echoer"',
    ValueKind.STORE: 'a store such as "memory" or "sqlite:streams.db"',
    ValueKind.VAULT: '"memory" or "sqlite:PATH"',
    ValueKind.STREAM: "the name of a stream in quotes",
    ValueKind.FLOW: "the name of a flow in quotes",
}
_TYPES = {bool: "true or false", int: "a whole number", float: "a number"}
#: Words for everybody, of which a table knows one.
_EVERYBODY = {"everyone", "anyone", "everybody", "anybody", "all", "public", "*"}
A_ROUTE = 'a route, which is a list of hops such as ["tcp:127.0.0.1:4000", "echoer"]'


class _Broken:
    """Stands for a value that could not be read, of which a problem tells."""


_BROKEN = _Broken()


def structure(tables: Mapping[str, object], positions: Positions) -> tuple[TopologySpec, list[Problem]]:
    """Return what could be read of a topology, and all that could not; what is broken is left out as far as its table needs it."""
    reader = _Structure(positions)
    spec = reader.read(record_of(TopologySpec), {"nodes": {}, **tables}, ())
    return spec if isinstance(spec, TopologySpec) else TopologySpec({}), reader.problems


class _Structure:
    def __init__(self, positions: Positions) -> None:
        self.problems: list[Problem] = []
        self._positions = positions

    def _tell(self, path: KeyPath, text: str, *, of_key: bool = False) -> _Broken:
        span = self._positions.get(path)
        self.problems.append(Problem(path, text, None if span is None else span.key if of_key else span.value))
        return _BROKEN

    def read(self, form: Form, value: object, path: KeyPath) -> object:
        """Return the value in its form, or _BROKEN."""
        match form:
            case Record():
                return self._record(form, value, path)
            case TableOf():
                if not isinstance(value, dict):
                    return self._wrong(form, value, path)
                read = {name: self.read(form.each, each, (*path, name)) for name, each in value.items()}
                return {name: each for name, each in read.items() if each is not _BROKEN}
            case ListOf():
                return self._list(form, value, path)
            case Choice():
                if isinstance(value, str) and value in form.words:
                    return value
                return self._wrong(form, value, path)
            case Scalar():
                return self._scalar(form, value, path)
            case PluginOption():
                return self._option(value, path)

    def _record(self, form: Record, value: object, path: KeyPath) -> object:
        if isinstance(value, str) and value in form.words:
            return form.words[value]
        if isinstance(value, str) and form.short is not None:
            value = {form.short: value}
        if not isinstance(value, dict):
            return self._wrong(form, value, path)
        arguments: dict[str, object] = {}
        is_broken = False
        meant = set()
        for name, each in value.items():
            key = form.keys.get(name)
            if key is None:
                meant.add(closest(name, form.keys))
                self._tell((*path, name), _unknown(name, form), of_key=True)
                continue
            read = self.read(key.form, each, (*path, name) if (*path, name) in self._positions else path)
            if read is not _BROKEN:
                arguments[key.attribute] = read
            elif key.is_required:
                is_broken = True
        for key in form.keys.values():
            if key.is_required and key.name not in value:
                is_broken = True
                if key.name not in meant:
                    self._tell(path, f"the key {quoted(key.name)} is missing: {_told(key)}", of_key=True)
        return _BROKEN if is_broken else form.cls(**arguments)

    def _list(self, form: ListOf, value: object, path: KeyPath) -> object:
        is_one = isinstance(value, str) and form.may_be_one
        items = [value] if is_one else value
        is_flat = (
            isinstance(form.each, ListOf) and isinstance(items, list) and any(isinstance(each, str) for each in items)
        )
        if is_flat or not isinstance(items, list):
            return self._wrong(form, value, path)
        # An item that is broken breaks the list, since the others would no longer stand where they are looked for.
        read = tuple(self.read(form.each, each, path if is_one else (*path, index)) for index, each in enumerate(items))
        return _BROKEN if _BROKEN in read else read

    def _scalar(self, form: Scalar, value: object, path: KeyPath) -> object:
        if form.type is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        return value if type(value) is form.type else self._wrong(form, value, path)

    def _option(self, value: object, path: KeyPath) -> Option | _Broken:
        if isinstance(value, str | int | float | bool):
            return value
        if isinstance(value, list):
            texts = tuple(each for each in value if isinstance(each, str))
            if len(texts) == len(value):
                return texts
        return self._tell(path, f"expected a text, a number, true, false or a list of texts; this is {describe(value)}")

    def _wrong(self, form: Form, value: object, path: KeyPath) -> _Broken:
        todo = _remedy(form, value, path)
        return self._tell(path, f"expected {expected(form)}; this is {describe(value)}" + (f". {todo}" if todo else ""))


@cache
def all_tables() -> tuple[tuple[str, Record], ...]:
    """Return every table of a topology, with how its header reads."""
    found: list[tuple[str, Record]] = []

    def walk(form: Form, header: str) -> None:
        if isinstance(form, Record):
            found.append((header, form))
            for key in form.keys.values():
                walk(key.form, f"{header}.{key.name}" if header else key.name)
        elif isinstance(form, TableOf):
            walk(form.each, f"{header}.NAME")
        elif isinstance(form, ListOf):
            walk(form.each, header if isinstance(form.each, ListOf) else f"[{header}]")

    walk(record_of(TopologySpec), "")
    return tuple(found)


def _unknown(name: str, form: Record) -> str:
    text = f"unknown key; {suggest(name, form.keys)}"
    if closest(name, form.keys) is None:
        elsewhere = [header for header, record in all_tables() if name in record.keys and record.cls is not form.cls]
        if elsewhere:
            text += f". There is such a key in {' and in '.join(f'[{header}]' for header in elsewhere[:2])}"
    return text


def _told(key: Key) -> str:
    says = key.help[0].lower() + key.help[1:].rstrip(".")
    return f"{says}. Expected {expected(key.form)}"


def expected(form: Form) -> str:
    """Say in words what a form takes."""
    match form:
        case Record():
            ways = [quoted(word) for word in form.words]
            if form.short is not None:
                ways.append(expected(form.keys[form.short].form))
            table = 'a table such as { nodes = ["bob"] }' if form.words else "a table"
            return ", ".join([*ways, f"or {table}"]) if ways else table
        case TableOf():
            return "a table"
        case ListOf(value_kind=ValueKind.ROUTE):
            return A_ROUTE
        case ListOf(each=ListOf()):
            return 'a list of routes, each of them a list of hops, such as [["@bob", "echoer"], ["audit"]]'
        case ListOf():
            return f"a list, each item {expected(form.each)}"
        case Choice():
            return " or ".join(map(quoted, form.words))
        case Scalar():
            return _TYPES.get(form.type) or EXAMPLES.get(form.value_kind, EXAMPLES[None])
        case PluginOption():
            return "a text, a number, true, false or a list of texts"


def _remedy(form: Form, value: object, path: KeyPath) -> str:
    """Say what to write, where what came shows what was meant; "" where it doesn't."""
    match form, value:
        case Scalar(type=scalar), str() if scalar is not str and re.fullmatch(r"true|false|[+-]?[0-9][0-9_.]*", value):
            return f"Write {value} without quotes"
        case Scalar(), [only] if isinstance(only, form.type):
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
            return f"Each has a name and a table, [{dotted_keys(path)}.NAME]"
        case Record(words=words), str() if words:
            meant = closest(value, words) or next((word for word in words if {word, value} <= _EVERYBODY), None)
            if meant:
                return f"Did you mean {quoted(meant)}?"
            kind = "identifiers" if re.fullmatch(r"[IP][0-9a-f]{6,}", value) else "nodes"
            return f"Name them in a table: {{ {kind} = [{quoted(value)}] }}"
        case Record(words=words), [*items] if words and all(isinstance(each, str) for each in items):
            return f"Name them in a table: {{ nodes = [{', '.join(quoted(str(each)) for each in items)}] }}"
        case Choice(words=words), str():
            meant = closest(value, words)
            return f"Did you mean {quoted(meant)}?" if meant else ""
        case _:
            return ""
