"""The options of stores that commands take, and the store that is opened with them."""

import os
import tomllib
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from functools import wraps
from typing import Any, TypeVar

import click

from trionode.errors import LocalError
from trionode.stream.store.base import StreamStore, load_store

#: Where the password for a Kafka may stand, if it is in no file.
VARIABLE = "TRIONODE_STORE_PASSWORD"

C = TypeVar("C", bound=Callable[..., Any])


def store_options(command: C) -> C:
    """Add options for the store: the command gets `store_options`, by their names."""

    @wraps(command)
    def with_options(*, store_options: tuple[tuple[str, object], ...], **options: Any) -> object:
        return command(store_options=dict(store_options), **options)

    decorated: Any = click.option(
        "--store-option",
        "store_options",
        type=_option,
        multiple=True,
        metavar="NAME=VALUE",
        help="An option of the store, such as replication_factor=3, or with a Kafka that demands it security=sasl_ssl, username=NAME and "
        f"password_file=FILE (or {VARIABLE} for the password). May be given several times.",
    )(with_options)
    result: C = decorated
    return result


def open_store(spec: str, options: Mapping[str, object]) -> AbstractAsyncContextManager[StreamStore]:
    """Return the store, to be opened by `async with`; LocalError if it has no such options."""
    given = dict(options)
    secret = os.environ.get(VARIABLE)
    if secret and "username" in given and "password_file" not in given:
        given["password"] = secret
    try:
        return load_store(spec, **given)
    except TypeError as error:
        if not options:
            raise
        raise LocalError(f"the store {spec} has no such option: {error}") from error


def _option(text: str) -> tuple[str, object]:
    """Return name and value of NAME=VALUE, where the value is TOML's, such as 3 or true, or else a text."""
    name, equals, value = text.partition("=")
    if not (equals and name.isidentifier()):
        raise click.BadParameter(f"expected NAME=VALUE, not {text!r}")
    if name == "password":
        raise click.BadParameter(
            f"others can see a password in a command: write it to a file and say password_file=FILE, or set {VARIABLE}"
        )
    try:
        return name, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name, value
