"""The types that values have in a topology file, derived from the type hints of the spec classes.

The decoder, the checks, the JSON schema and `swap` walk through a topology by these types.
"""

import types
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import attrs

from trionode.portal import PortalLimits
from trionode.relay.service import RelayLimits
from trionode.stream.clients import StreamLimits
from trionode.topology.errors import KeyPath
from trionode.topology.spec import AccessSpec, Doc, NotInFile, Option, TrustSpec, ValueKind

#: The docs of the limits, whose classes belong to lower layers and have no Doc annotations.
LIMITS: Mapping[type, Mapping[str, str]] = {
    StreamLimits: {
        "streams": "Streams that one client can create or open.",
        "push_bytes": "Bytes of one client's pushes that wait for the store. Above it the client's link is not read.",
        "requests": "Pulls, creates and index requests of one client that wait for an answer.",
    },
    RelayLimits: {
        "relays_per_client": "Relays of one client.",
        "relays": "Relays of all clients. Above it new names are refused.",
    },
    PortalLimits: {
        "connections": "Connections of this inlet or outlet.",
        "per_client": "Connections of one client at an outlet.",
        "window": "Bytes that the peer can send before the socket takes them.",
    },
}


@attrs.frozen
class Scalar:
    """A text, a number, or true or false."""

    python_type: type[str | int | float | bool]
    value_kind: ValueKind | None = None


@attrs.frozen
class Choice:
    """One of some texts."""

    choices: tuple[str, ...]


@attrs.frozen
class PluginOption:
    """The option of a plugin, of any type that an option can have. Only the plugin knows more."""


@attrs.frozen
class ListOf:
    """A list. A text can replace a list of one text, except for a route."""

    each: "FieldType"
    value_kind: ValueKind | None = None

    @property
    def may_be_one(self) -> bool:
        """Whether a text can replace a list of one item."""
        is_text = isinstance(self.each, Scalar | Choice) or (
            isinstance(self.each, Record) and self.each.text_key is not None
        )
        return is_text and self.value_kind is not ValueKind.ROUTE


@attrs.frozen
class TableOf:
    """A table whose keys are names that the user chooses."""

    names: Scalar
    each: "FieldType"


@attrs.frozen(eq=False)
class Record:
    """A table with the keys of a class.

    A keyword can replace the whole table, or a text the table with the one key `text_key`.
    """

    cls: type
    keys: Mapping[str, "Key"]
    keywords: Mapping[str, object]
    text_key: str | None


FieldType = Scalar | Choice | PluginOption | ListOf | TableOf | Record


@attrs.frozen(eq=False)
class Key:
    """A key of a table."""

    name: str
    attribute: str
    type: FieldType
    doc: str
    is_required: bool
    default: object


@cache
def record_of(cls: type) -> Record:
    """Return the type of a spec class."""
    hints = get_type_hints(cls, include_extras=True)
    keys: dict[str, Key] = {}
    for field in attrs.fields(cls):
        hint = hints[field.name]
        marks = hint.__metadata__ if get_origin(hint) is Annotated else ()
        if any(isinstance(mark, NotInFile) for mark in marks):
            continue
        if cls in LIMITS:
            hint, doc = Annotated[hint, ValueKind.POSITIVE], Doc(LIMITS[cls][field.name])
        else:
            (doc,) = (mark for mark in marks if isinstance(mark, Doc))
        name = doc.key or field.name
        default = field.default.factory() if isinstance(field.default, attrs.Factory) else field.default  # type: ignore[arg-type]
        keys[name] = Key(name, field.name, type_of(hint), doc.text, default is attrs.NOTHING, default)
    keywords: dict[str, object] = {}
    if issubclass(cls, TrustSpec | AccessSpec):
        keywords = {each: cls.from_keyword(each) for each in cls.KEYWORDS}
    return Record(cls, keys, keywords, getattr(cls, "TEXT_KEY", None))


def type_of(hint: Any, value_kind: ValueKind | None = None) -> FieldType:
    """Return the type for a type hint; TypeError if no value of a file can have it."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        kinds = [mark for mark in hint.__metadata__ if isinstance(mark, ValueKind)]
        return type_of(inner[0], kinds[0] if kinds else value_kind)
    if hint == Option:
        return PluginOption()
    if origin in {Union, types.UnionType}:
        (hint,) = (each for each in inner if each is not type(None))  # a key that is not in the file is None
        return type_of(hint, value_kind)
    if origin is Literal:
        return Choice(inner)
    if origin is tuple:
        return ListOf(type_of(inner[0]), value_kind)
    if origin is Mapping:
        names = type_of(inner[0])
        assert isinstance(names, Scalar)
        return TableOf(names, type_of(inner[1]))
    if hint in {str, int, float, bool}:
        return Scalar(hint, value_kind)
    if attrs.has(hint):
        return record_of(hint)
    raise TypeError(f"no value of a topology file has the type {hint}")


@attrs.frozen
class Leaf:
    """A value that is checked by itself: a scalar, a list with a value kind, or a name that the user chose."""

    path: KeyPath
    type: FieldType
    value: object


def leaves(value: object, type_: FieldType, path: KeyPath = ()) -> Iterator[Leaf]:
    """Yield every leaf of a value, in the order of the classes."""
    if isinstance(type_, Record):
        for key in type_.keys.values():
            each = getattr(value, key.attribute)
            if each is not None:
                yield from leaves(each, key.type, (*path, key.name))
    elif isinstance(type_, TableOf):
        assert isinstance(value, Mapping)
        for name, each in value.items():
            yield Leaf((*path, name), type_.names, name)
            yield from leaves(each, type_.each, (*path, name))
    elif isinstance(type_, ListOf):
        assert isinstance(value, tuple)
        if type_.value_kind is not None:
            yield Leaf(path, type_, value)
        for index, each in enumerate(value):
            yield from leaves(each, type_.each, (*path, index))
    else:
        yield Leaf(path, type_, value)


def records(value: object, type_: FieldType, path: KeyPath = ()) -> Iterator[tuple[KeyPath, object]]:
    """Yield every table within a value that has a class, with its path."""
    if isinstance(type_, Record):
        yield path, value
        for key in type_.keys.values():
            each = getattr(value, key.attribute)
            if each is not None:
                yield from records(each, key.type, (*path, key.name))
    elif isinstance(type_, TableOf) and isinstance(value, Mapping):
        for name, each in value.items():
            yield from records(each, type_.each, (*path, name))
    elif isinstance(type_, ListOf) and isinstance(value, tuple):
        for index, each in enumerate(value):
            yield from records(each, type_.each, (*path, index))
