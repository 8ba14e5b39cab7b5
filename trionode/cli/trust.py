"""The options that say which peers a command trusts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import attrs
import click

from trionode.cli.combine import combine
from trionode.errors import ConfigError, IdentityError
from trionode.identity.attributes import authority_history, trust_attributes
from trionode.identity.trust import TrustPolicy, trust_any, trust_only
from trionode.protocol.identity.identity import MAX_HISTORY, ChangeHistory, Identifier

C = TypeVar("C", bound=Callable[..., Any])


def identifier(text: str) -> Identifier:
    """Return an identifier, as the type of an option."""
    try:
        return Identifier.parse(text)
    except IdentityError as error:
        raise click.BadParameter(str(error)) from error


def authority(text: str) -> ChangeHistory:
    """Return the history of an authority, from its hex text or a file with it, as the type of an option."""
    try:
        path = Path(text)
        if len(text) < 256 and path.is_file():
            with path.open() as file:
                text = file.read(2 * MAX_HISTORY + 2)
        return authority_history(text)
    except (ConfigError, OSError, UnicodeDecodeError) as error:
        raise click.BadParameter(f"{error} (or FILE, a file with that text)") from error


def attribute(text: str) -> tuple[str, str | None]:
    """Return the name and the value in NAME=VALUE; the value is None for NAME alone. The type of an option."""
    name, equals, value = text.partition("=")
    if not name:
        raise click.BadParameter(f"expected NAME=VALUE, not {text!r}")
    return name, value if equals else None


@attrs.frozen
class Trusted:
    """Which peers the user trusts: those with these identifiers, and those with an authority's credential."""

    identifiers: tuple[Identifier, ...] = ()
    authority: ChangeHistory | None = None
    attributes: tuple[tuple[str, str | None], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.identifiers) or self.authority is not None

    @property
    def policy(self) -> TrustPolicy:
        """The policy that trusts exactly these peers; at least one is named."""
        policies = [trust_only(*self.identifiers)] if self.identifiers else []
        if self.authority is not None:
            policies.append(trust_attributes(self.authority, dict(self.attributes)))
        return trust_any(*policies)


def _make_trusted(
    *,
    identifiers: tuple[Identifier, ...],
    authority: ChangeHistory | None,
    attributes: tuple[tuple[str, str | None], ...],
) -> Trusted:
    if attributes and authority is None:
        raise click.UsageError("--trust-attribute needs --authority, whose credentials prove the attribute")
    return Trusted(identifiers, authority, attributes)


def trust_options(text: str) -> Callable[[C], C]:
    """Add the options that say which peers are trusted: the command gets `trusted`."""
    return combine(
        "trusted",
        _make_trusted,
        click.option(
            "--trust", "identifiers", type=identifier, multiple=True, metavar="IDENTIFIER", help=f"{text} Repeatable."
        ),
        click.option(
            "--authority",
            type=authority,
            metavar="HISTORY|FILE",
            help="Also trust peers with a credential of this identity: the output of `trionode identity export`, or a file with it.",
        ),
        click.option(
            "--trust-attribute",
            "attributes",
            type=attribute,
            multiple=True,
            metavar="NAME[=VALUE]",
            help="With --authority: its credential must have this attribute. Repeatable: all must match.",
        ),
    )
