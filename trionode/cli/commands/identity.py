"""`trionode identity`: create, show, list, export and rotate the identities in a state file."""

from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any

import click
import trio

from trionode.cli.options import state_options
from trionode.cli.runner import run
from trionode.cli.state import State
from trionode.cli.terminal import Output, printable, say
from trionode.identity.identity import Identity
from trionode.identity.stored import IdentityVault

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
