"""The options of stores that commands share, and the store that is opened with them."""

import os
import tomllib
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager

import click

from trionode.cli.combine import combine
from trionode.errors import ConfigError
from trionode.stream.store.base import StreamStore, load_store

#: The environment variable with the password for the store, if the password is not in a file.
PASSWORD_VARIABLE = "TRIONODE_STORE_PASSWORD"  # noqa: S105  # the name of the variable, not the password


def open_store(spec: str, options: Mapping[str, object]) -> AbstractAsyncContextManager[StreamStore]:
    """Return the store, to be opened by `async with`; ConfigError if it has no such options."""
    given = dict(options)
    secret = os.environ.get(PASSWORD_VARIABLE)
    if secret and "username" in given and "password_file" not in given:
        given["password"] = secret
    try:
        return load_store(spec, **given)
    except TypeError as error:
        if not options:
            raise
        raise ConfigError(f"the store {spec} has no such option: {error}") from error


def _option(text: str) -> tuple[str, object]:
    """Return name and value of NAME=VALUE. The value is TOML, such as 3 or true, or else a text."""
    name, equals, value = text.partition("=")
    if not (equals and name.isidentifier()):
        raise click.BadParameter(f"expected NAME=VALUE, not {text!r}")
    if name == "password":
        raise click.BadParameter(
            "other users can see a password in a command line: write it to a file and use password_file=FILE, "
            f"or set {PASSWORD_VARIABLE}"
        )
    try:
        return name, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name, value


def _as_dict(*, store_options: tuple[tuple[str, object], ...]) -> dict[str, object]:
    return dict(store_options)


#: Adds the options of the store: the command gets `store_options`, by their names.
store_options = combine(
    "store_options",
    _as_dict,
    click.option(
        "--store-option",
        "store_options",
        type=_option,
        multiple=True,
        metavar="NAME=VALUE",
        help="An option of the store, such as replication_factor=3. For Kafka with a password: security=sasl_ssl, "
        f"username=NAME and password_file=FILE, or {PASSWORD_VARIABLE} instead of the file. Repeatable.",
    ),
)
