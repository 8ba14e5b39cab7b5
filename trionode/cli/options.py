"""The options that several commands share, and what a command gets for them."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import attrs
import click

from trionode.cli.state import State, load_identity, read_passphrase
from trionode.cli.terminal import say
from trionode.errors import IdentityError, LocalError
from trionode.identities import Identity
from trionode.node import Hub, Node, open_node
from trionode.protocol.address import Address, parse_host_port
from trionode.protocol.identity import Identifier
from trionode.protocol.route import Route
from trionode.secure_channel import SecureChannel
from trionode.trust import TrustPolicy, trust_everyone, trust_only

#: Where hubs listen and clients look for them, unless they are told otherwise.
DEFAULT_PLACE = "tcp:127.0.0.1:4000"

#: Seconds for the channel with one hub: less than a stream's opening may take, so that this error comes first, which says more.
HUB_CHANNEL_TIMEOUT = 15.0

C = TypeVar("C", bound=Callable[..., Any])


def place(text: str) -> str:
    """Return the text of a transport address, as an option's type."""
    try:
        address = Address.parse(text)
        if address.transport == "tcp":
            parse_host_port(address.value.decode())
    except LocalError as error:
        raise click.BadParameter(str(error)) from error
    if not address.transport:
        raise click.BadParameter(f"expected a transport address such as {DEFAULT_PLACE}, not {text!r}")
    return str(address)


def identifier(text: str) -> Identifier:
    """Return the identifier that a text names, as an option's type."""
    try:
        return Identifier.parse(text)
    except IdentityError as error:
        raise click.BadParameter(str(error)) from error


def transports(*places: str) -> set[str]:
    """Return the names of the transports that some places need."""
    return {Address.parse(place).transport for place in places}


@attrs.frozen
class Client:
    """What Alice and Bob are told alike: the hubs, whom to trust, who they are themselves, and what outlives them."""

    hubs: tuple[str, ...]
    hub_identities: tuple[Identifier, ...]
    trusted: tuple[Identifier, ...]
    identity_name: str
    state: State

    def trust(self, without: str) -> TrustPolicy:
        """Return the policy that the user chose; if he named nobody, he is told what that means: `without`."""
        if self.trusted:
            return trust_only(*self.trusted)
        say(f"no --trust IDENTIFIER: {without}")
        return trust_everyone

    @asynccontextmanager
    async def open_node(self) -> AsyncIterator[tuple[Node, Identity]]:
        """Open a node that can reach the hubs, and the identity that lives in its vault."""
        async with self.state.open_vault() as vault, open_node(*transports(*self.hubs), vault=vault) as node:
            yield node, await load_identity(vault, self.identity_name)

    def ways(self, node: Node, identity: Identity) -> list[Hub]:
        """Return one way for each hub, through a secure channel if the hubs' identifiers are known."""
        if not self.hub_identities:
            return [Route(hub) for hub in self.hubs]
        trust = trust_only(*self.hub_identities)
        return [_secured(node, hub, identity, trust) for hub in self.hubs]


def _secured(node: Node, hub: str, identity: Identity, trust: TrustPolicy) -> Hub:
    channel: SecureChannel | None = None

    async def open_way() -> Route:
        nonlocal channel
        if channel is not None:
            await channel.aclose()  # the old one, if it still is there
        channel = await node.open_secure_channel(
            Route(hub, "listener"), identity, trust=trust, timeout=HUB_CHANNEL_TIMEOUT
        )
        return Route(channel)

    open_way.__name__ = f"{hub}, through a secure channel"
    return open_way


def client_options(whom: str) -> Callable[[C], C]:
    """Add what Alice and Bob are told alike: the command gets a `client`; `whom` is the help of --trust."""

    def add(command: C) -> C:
        @wraps(command)
        def with_client(
            *,
            hubs: tuple[str, ...],
            hub_identities: tuple[Identifier, ...],
            trusted: tuple[Identifier, ...],
            identity_name: str,
            state: State,
            **options: Any,
        ) -> object:
            return command(client=Client(hubs, hub_identities, trusted, identity_name, state), **options)

        decorated: Any = state_options()(with_client)
        for option in reversed(_CLIENT_OPTIONS):
            decorated = option(decorated)
        trust = click.option(
            "--trust",
            "trusted",
            type=identifier,
            multiple=True,
            metavar="IDENTIFIER",
            help=f"{whom} May be given several times.",
        )
        result: C = trust(decorated)
        return result

    return add


_CLIENT_OPTIONS = (
    click.option(
        "--hub",
        "hubs",
        type=place,
        multiple=True,
        default=(DEFAULT_PLACE,),
        show_default=True,
        metavar="PLACE",
        help="Where the hub listens. May be given several times: the next one is tried when one is gone.",
    ),
    click.option(
        "--hub-identity",
        "hub_identities",
        type=identifier,
        multiple=True,
        metavar="IDENTIFIER",
        help="The hub's identifier: talk to it by a secure channel of its own. For a hub that was started with --identity.",
    ),
    click.option(
        "--identity",
        "identity_name",
        default="default",
        show_default=True,
        metavar="NAME",
        help="The identity in the file of --state; made if that file has none.",
    ),
)


def state_options(*, required: bool = False) -> Callable[[C], C]:
    """Add where the program keeps its keys: the command gets a `state`."""

    def add(command: C) -> C:
        @wraps(command)
        def with_state(
            *, state_path: Path | None, passphrase_file: Path | None, unsealed: bool, **options: Any
        ) -> object:
            passphrase = read_passphrase(state_path, passphrase_file, unsealed=unsealed)
            return command(state=State(state_path, passphrase), **options)

        decorated: Any = with_state
        for option in (
            click.option(
                "--unsealed", is_flag=True, help="Keep the keys in the open: whoever can read the file has them."
            ),
            click.option(
                "--passphrase-file",
                type=click.Path(path_type=Path, dir_okay=False),
                metavar="FILE",
                help="Read the passphrase from FILE, and not from TRIONODE_PASSPHRASE or the terminal.",
            ),
            click.option(
                "--state",
                "state_path",
                type=click.Path(path_type=Path, dir_okay=False),
                required=required,
                metavar="PATH",
                help="Keep identity and streams over restarts: a file at PATH, sealed with a passphrase, and one beside it.",
            ),
        ):
            decorated = option(decorated)
        result: C = decorated
        return result

    return add
