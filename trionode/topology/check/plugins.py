"""Installed transports and stores: whether they can be loaded, and which addresses and options they take."""

import inspect
import types
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from trionode.errors import LocalError
from trionode.net.endpoint import AddressParts, parse_host_port_path
from trionode.net.plugins import KINDS, STREAM_STORES, load_plugin, plugin_names
from trionode.net.transport import transport_class
from trionode.topology.errors import describe, quoted, suggest
from trionode.topology.spec import Option


@cache
def installed(group: str) -> tuple[str, ...]:
    """Return the names of the installed plugins of a group."""
    return tuple(plugin_names(group))


@cache
def _load(group: str, name: str) -> Callable[..., object] | str:
    """Return what makes the plugin, or the text of an error."""
    try:
        return load_plugin(group, name)
    except LocalError as error:
        return str(error)


def missing_plugin(group: str, name: str) -> str | None:
    """Return why a plugin can't be loaded, and what to do; None if it can."""
    if name not in installed(group):
        return (
            f"no {KINDS[group]} {quoted(name)} is installed; {suggest(name, installed(group), label='installed are')}"
        )
    made = _load(group, name)
    return made if isinstance(made, str) else None


def wrong_options(group: str, name: str, options: Mapping[str, Option]) -> Iterator[tuple[str, str, bool]]:
    """Yield each option that a plugin does not take, what is wrong, and whether the key is wrong."""
    make = _load(group, name)
    if isinstance(make, str):
        return
    known = {
        each.name: each
        for each in inspect.signature(make).parameters.values()
        if each.kind in {each.KEYWORD_ONLY, each.POSITIONAL_OR_KEYWORD}
    }
    if group == STREAM_STORES:  # the first parameter is the store's address
        known = dict(list(known.items())[1:])
    hints = _hints(make)
    in_file = [name for name in known if _phrase(hints.get(name, Any)) != _ONLY_PYTHON]
    for option, value in options.items():
        if option not in known:
            yield option, f"unknown option of the {KINDS[group]} {quoted(name)}; {suggest(option, in_file)}", True
        elif not _fits(value, hints.get(option, Any)):
            yield option, f"expected {_phrase(hints[option])}; this is {describe(value)}", False


def _hints(make: Callable[..., object]) -> Mapping[str, Any]:
    function = make.__init__ if isinstance(make, type) else inspect.unwrap(make)  # type: ignore[misc]  # of exactly this class
    try:
        return get_type_hints(function)
    except NameError:  # a name that is imported only for type checkers: the plugin itself checks its options
        return {}


_ONLY_PYTHON = "a value that only a Python program can give"
_LISTS = {tuple, list, set, frozenset}


def _fits(value: Option, hint_: Any) -> bool:
    origin, inner = get_origin(hint_), get_args(hint_)
    if hint_ in {Any, object}:
        return True
    if origin in {Union, types.UnionType}:
        return any(_fits(value, each) for each in inner)
    if origin is Literal:
        return value in inner
    if isinstance(value, tuple):
        return (
            origin in _LISTS
            or (isinstance(origin, type) and issubclass(origin, Collection) and origin not in {dict, Mapping})
        ) and (inner[:1] == (str,))
    if hint_ is float:
        return type(value) in {int, float}
    return type(value) is hint_


def _phrase(hint_: Any) -> str:
    words = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
    origin, inner = get_origin(hint_), get_args(hint_)
    if origin in {Union, types.UnionType}:
        phrases = [_phrase(each) for each in inner if each is not type(None)]
        return " or ".join(dict.fromkeys(phrases))
    if origin is Literal:
        return " or ".join(quoted(str(each)) for each in inner)
    if hint_ in words:
        return words[hint_]
    if inner[:1] == (str,):
        return "a list of texts"
    return "any value" if hint_ in {Any, object} else _ONLY_PYTHON


def wrong_address(name: str, where: str) -> str | None:
    """Return what is wrong with an address according to its transport, None if it is valid."""
    wrong = None
    try:
        has_port = transport_class(name).parse_address(where).port is not None
    except LocalError as error:
        has_port, wrong = True, str(error)
    if where.startswith("//") and has_port:
        return f"there are no slashes before the host: did you mean {quoted(f'{name}:{where[2:]}')}?"
    return wrong


def port_of(name: str, where: str) -> tuple[str, int] | None:
    """Return the host and TCP port that a listener at an address binds, None if there is none."""
    kind = transport_class(name)
    return host_port(where, kind.parse_address) if kind.binds_tcp_port else None


def host_port(text: str, parse: Callable[[str], AddressParts] = parse_host_port_path) -> tuple[str, int] | None:
    """Return host and port of an address, None if it has none or is wrong."""
    try:
        parts = parse(text)
    except LocalError:
        return None
    return None if parts.port is None else (parts.host, parts.port)
