"""The forms that values have in a topology file, read off the classes' type hints: what the reader, the checks and the schema follow."""

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

#: What the limits mean, whose classes stand where they are kept and so know nothing of this file.
LIMITS: Mapping[type, Mapping[str, str]] = {
    StreamLimits: {
        "streams": "Streams that one client may create or open.",
        "push_bytes": "Bytes of one client's pushes that wait for the store; over it the client's link is not read on.",
        "requests": "Pulls, creates and index requests of one client that wait for an answer.",
    },
    RelayLimits: {
        "relays_per_client": "Relays of one client.",
        "relays": "Relays in all; once there are so many, new names are refused.",
    },
    PortalLimits: {
        "connections": "Connections of this inlet or outlet.",
        "per_client": "Connections that one client may have at an outlet.",
        "window": "Bytes that the peer may send ahead of the socket.",
    },
}


@attrs.frozen
class Scalar:
    """A text, a number, or true or false."""

    type: type[str | int | float | bool]
    value_kind: ValueKind | None = None


@attrs.frozen
class Choice:
    """One of some texts."""

    words: tuple[str, ...]


@attrs.frozen
class PluginOption:
    """Whatever an option of a plugin may be; only the plugin knows more."""


@attrs.frozen
class ListOf:
    """A list, or a text in place of a list of one, but not for a route."""

    each: "Form"
    value_kind: ValueKind | None = None

    @property
    def may_be_one(self) -> bool:
        """Whether a text may stand in place of a list of one."""
        is_text = isinstance(self.each, Scalar | Choice) or (
            isinstance(self.each, Record) and self.each.short is not None
        )
        return is_text and self.value_kind is not ValueKind.ROUTE


@attrs.frozen
class TableOf:
    """A table whose keys are names of the user's choice."""

    names: Scalar
    each: "Form"


@attrs.frozen(eq=False)
class Record:
    """A table with the keys of a class; in its place may stand a word for a whole value, or a text for its key `short`."""

    cls: type
    keys: Mapping[str, "Key"]
    words: Mapping[str, object]
    short: str | None


Form = Scalar | Choice | PluginOption | ListOf | TableOf | Record


@attrs.frozen(eq=False)
class Key:
    """A key of a table and what it is for."""

    name: str
    attribute: str
    form: Form
    help: str
    is_required: bool
    default: object


@cache
def record_of(cls: type) -> Record:
    """Return the form of a class."""
    hints = get_type_hints(cls, include_extras=True)
    keys: dict[str, Key] = {}
    for field in attrs.fields(cls):
        hint = hints[field.name]
        marks = hint.__metadata__ if get_origin(hint) is Annotated else ()
        if any(isinstance(mark, NotInFile) for mark in marks):
            continue
        if cls in LIMITS:
            hint, told = Annotated[hint, ValueKind.POSITIVE], Doc(LIMITS[cls][field.name])
        else:
            (told,) = (mark for mark in marks if isinstance(mark, Doc))
        name = told.key or field.name
        default = field.default.factory() if isinstance(field.default, attrs.Factory) else field.default  # type: ignore[arg-type]
        keys[name] = Key(name, field.name, form_of(hint), told.text, default is attrs.NOTHING, default)
    words = {word: cls.from_word(word) for word in cls.WORDS} if issubclass(cls, TrustSpec | AccessSpec) else {}
    return Record(cls, keys, words, getattr(cls, "SHORT", None))


def form_of(hint: Any, value_kind: ValueKind | None = None) -> Form:
    """Return the form of a type hint; TypeError for one that no value of a file has."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        marks = [mark for mark in hint.__metadata__ if isinstance(mark, ValueKind)]
        return form_of(inner[0], marks[0] if marks else value_kind)
    if hint == Option:
        return PluginOption()
    if origin in {Union, types.UnionType}:
        (hint,) = (each for each in inner if each is not type(None))  # what a file leaves out is None
        return form_of(hint, value_kind)
    if origin is Literal:
        return Choice(inner)
    if origin is tuple:
        return ListOf(form_of(inner[0]), value_kind)
    if origin is Mapping:
        names = form_of(inner[0])
        assert isinstance(names, Scalar)
        return TableOf(names, form_of(inner[1]))
    if hint in {str, int, float, bool}:
        return Scalar(hint, value_kind)
    if attrs.has(hint):
        return record_of(hint)
    raise TypeError(f"{hint} has no form in a file")


@attrs.frozen
class Leaf:
    """A value that is no table, or a list with a meaning as a whole, or a name of the user's choice, and the way to it."""

    path: KeyPath
    form: Form
    value: object


def leaves(value: object, form: Form, path: KeyPath = ()) -> Iterator[Leaf]:
    """Walk through all that a value holds, in the order of the classes."""
    if isinstance(form, Record):
        for key in form.keys.values():
            each = getattr(value, key.attribute)
            if each is not None:
                yield from leaves(each, key.form, (*path, key.name))
    elif isinstance(form, TableOf):
        assert isinstance(value, Mapping)
        for name, each in value.items():
            yield Leaf((*path, name), form.names, name)
            yield from leaves(each, form.each, (*path, name))
    elif isinstance(form, ListOf):
        assert isinstance(value, tuple)
        if form.value_kind is not None:
            yield Leaf(path, form, value)
        for index, each in enumerate(value):
            yield from leaves(each, form.each, (*path, index))
    else:
        yield Leaf(path, form, value)
