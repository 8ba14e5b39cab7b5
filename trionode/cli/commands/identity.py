"""`trionode identity`: create, show, list, export and rotate the identities in a state file, and their credentials."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import wraps
from typing import Any

import click
import trio

from trionode.cli.options import state_options
from trionode.cli.runner import run
from trionode.cli.state import State
from trionode.cli.terminal import Output, printable, say
from trionode.cli.trust import attribute, identifier
from trionode.errors import ConfigError
from trionode.identity.attributes import readable
from trionode.identity.identity import Identity
from trionode.identity.stored import IdentityVault
from trionode.protocol.identity.credential import Credential, read_credential
from trionode.protocol.identity.identity import Identifier

_name = click.argument("name", default="default")
_classic = click.option(
    "--classic", is_flag=True, help="Use the identity's classic form, for classic peers. It is created if missing."
)


@click.group()
def identity() -> None:
    """Create, show, list, export and rotate the identities in a state file.

    Peers know an identity by its identifier, I and 64 hex digits, which stays the same when the key is rotated. Classic
    peers know it by another identifier, P and 64 hex digits. NAME is the local name of the identity, by default
    `default`.
    """


def _with_vault(work: Callable[..., Awaitable[None]]) -> Any:
    """Make the command of a function that takes the open vault, the output, and the command's own options."""

    @state_options(required=True)
    @wraps(work)
    def command(*, state: State, **options: Any) -> None:
        async def in_vault(working: trio.CancelScope) -> bool:
            with working:
                async with state.open_vault() as vault:
                    await work(vault, Output(), **options)
            return True

        run(in_vault)

    return command


async def _load(vault: IdentityVault, name: str, *, classic: bool) -> Any:
    loaded = await Identity.load(vault, name)
    return await loaded.classic() if classic else loaded


@identity.command()
@_name
@_with_vault
async def create(vault: IdentityVault, output: Output, *, name: str) -> None:
    """Create an identity and print its identifier."""
    await output.line(str((await Identity.create(vault, name)).identifier))


@identity.command()
@_name
@_classic
@_with_vault
async def show(vault: IdentityVault, output: Output, *, name: str, classic: bool) -> None:
    """Print the identifier of an identity."""
    await output.line(str((await _load(vault, name, classic=classic)).identifier))


@identity.command("list")
@_with_vault
async def list_(vault: IdentityVault, output: Output) -> None:
    """Print every identity, one a line: its identifier, then its name."""
    for stored in await vault.identities.all():
        await output.line(f"{stored.identifier} {printable(stored.name)}")


@identity.command()
@_name
@_classic
@_with_vault
async def export(vault: IdentityVault, output: Output, *, name: str, classic: bool) -> None:
    """Print the public history of an identity in hex, which peers need to verify it. It holds no secret."""
    await output.line((await _load(vault, name, classic=classic)).history.export())


@identity.command()
@_name
@click.option(
    "--revoke-purpose-key",
    is_flag=True,
    help="Also replace the key for handshakes. Use this if the file may have been stolen.",
)
@_with_vault
async def rotate(vault: IdentityVault, output: Output, *, name: str, revoke_purpose_key: bool) -> None:
    """Give an identity a new key. Print its identifier, which stays the same."""
    loaded = await Identity.load(vault, name)
    await loaded.rotate(revoke_purpose_key=revoke_purpose_key)
    say(f"{printable(name)} has a new key: peers that have seen the new history refuse the old key")
    await output.line(str(loaded.identifier))


@identity.command()
@_name
@click.option(
    "--subject", type=identifier, required=True, metavar="IDENTIFIER", help="The identity that gets the credential."
)
@click.option(
    "--attribute",
    "attributes",
    type=attribute,
    multiple=True,
    metavar="NAME=VALUE",
    help="An attribute of the credential. Repeatable.",
)
@click.option(
    "--days", type=click.FloatRange(min=0, min_open=True), default=30, show_default=True, help="How long it is valid."
)
@_with_vault
async def issue(
    vault: IdentityVault,
    output: Output,
    *,
    name: str,
    subject: Identifier,
    attributes: tuple[tuple[str, str | None], ...],
    days: float,
) -> None:
    """Issue a credential as an authority, and print it in hex.

    The subject stores it with `trionode identity add-credential`. Peers accept it if they know this authority by
    --authority.
    """
    values = {key: value for key, value in attributes if value is not None}
    if len(values) < len(attributes):
        raise ConfigError("give each --attribute once, as NAME=VALUE")
    authority = await Identity.load(vault, name)
    await output.line(authority.issue_credential(subject, values, lifetime=days * 86_400))


@identity.command("add-credential")
@click.argument("credential")
@_name
@_with_vault
async def add_credential(vault: IdentityVault, output: Output, *, name: str, credential: str) -> None:
    """Store a credential of an identity, which presents it in all further handshakes.

    CREDENTIAL is the hex text that `trionode identity issue` printed. It replaces an earlier one of the same authority.
    """
    loaded = await Identity.load(vault, name)
    await output.line(_described(await loaded.add_credential(credential)))


@identity.command()
@_name
@_with_vault
async def credentials(vault: IdentityVault, output: Output, *, name: str) -> None:
    """Print each credential of an identity: its issuer, when it expires, and its attributes."""
    for each in (await Identity.load(vault, name)).credentials:
        await output.line(_described(read_credential(each)))


def _described(credential: Credential) -> str:
    expiry = datetime.fromtimestamp(credential.expires_at, UTC).isoformat()
    attributes = [f"{printable(name)}={printable(value)}" for name, value in readable(credential).items()]
    return " ".join([str(credential.issuer), expiry, *attributes])
