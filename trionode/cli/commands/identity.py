"""`trionode identity`: the identities in the file of a state, made, shown, exported and rotated."""

from collections.abc import Awaitable, Callable
from functools import partial

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
    "--classic", is_flag=True, help="What peers of the classic generation know it by; made the first time."
)


@click.group()
def identity() -> None:
    """Make, show, list, export and rotate the identities in a file.

    An identity is known to its peers by its identifier, I and 64 hex digits, which stays the same when its key is rotated; to peers of the
    classic generation by another one, P and 64 hex digits. NAME is what this machine calls it, and is `default` unless you say otherwise.
    """


def _run(work: Callable[[IdentityVault, Output], Awaitable[None]], state: State) -> None:
    async def command(working: trio.CancelScope) -> bool:
        with working:
            async with state.open_vault() as vault:
                await work(vault, Output())
        return True

    run(command)


@identity.command()
@_name
@state_options(required=True)
def create(name: str, state: State) -> None:
    """Make an identity and print its identifier."""

    async def work(vault: IdentityVault, output: Output) -> None:
        await output.line(str((await Identity.create(vault, name)).identifier))

    _run(work, state)


@identity.command()
@_name
@_classic
@state_options(required=True)
def show(name: str, *, classic: bool, state: State) -> None:
    """Print the identifier of an identity."""

    async def work(vault: IdentityVault, output: Output) -> None:
        shown = await Identity.load(vault, name)
        await output.line(str((await shown.classic() if classic else shown).identifier))

    _run(work, state)


@identity.command("list")
@state_options(required=True)
def list_(state: State) -> None:
    """Print every identity, one a line: its identifier, then its name."""

    async def work(vault: IdentityVault, output: Output) -> None:
        for stored in await vault.identities.all():
            await output.line(f"{stored.identifier} {printable(stored.name)}")

    _run(work, state)


@identity.command()
@_name
@_classic
@state_options(required=True)
def export(name: str, *, classic: bool, state: State) -> None:
    """Print the public history of an identity in hex: what others need to verify it. It holds no secret."""

    async def work(vault: IdentityVault, output: Output) -> None:
        exported = await Identity.load(vault, name)
        await output.line((await exported.classic() if classic else exported).history.export())

    _run(work, state)


@identity.command()
@_name
@click.option(
    "--revoke-purpose-key",
    is_flag=True,
    help="Also replace the key that handshakes use: say this if the file may have been stolen.",
)
@state_options(required=True)
def rotate(name: str, *, revoke_purpose_key: bool, state: State) -> None:
    """Give an identity a new key; print its identifier, which stays."""
    _run(partial(_rotate, name, revoke_purpose_key), state)


async def _rotate(name: str, revoke: bool, vault: IdentityVault, output: Output) -> None:  # noqa: FBT001  # bound by position, just above
    changed = await Identity.load(vault, name)
    await changed.rotate(revoke_purpose_key=revoke)
    say(f"{printable(name)} has a new key: peers that have met the new history refuse the old one")
    await output.line(str(changed.identifier))
