"""The options that several commands share, and what a command gets for them."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import attrs
import click

from trionode.channel.secure_channel import SecureChannel
from trionode.cli.certificates import Certificates, certificate_options
from trionode.cli.state import State, read_passphrase
from trionode.cli.terminal import say
from trionode.errors import IdentityError, LocalError
from trionode.identity.identity import Identity
from trionode.identity.trust import TrustPolicy, trust_everyone, trust_only
from trionode.net.transport import transport_class
from trionode.node.node import Hub, Node, open_node
from trionode.protocol.identity.identity import Identifier
from trionode.protocol.wire.address import Address, parse_host_port
from trionode.protocol.wire.route import Route
from trionode.relay.service import is_relay_name

#: Where hubs listen and clients look for them, unless they are told otherwise.
DEFAULT_ENDPOINT = "tcp:127.0.0.1:4000"

#: Seconds for the channel with one hub: less than a stream's opening may take, so that this error comes first, which says more.
HUB_CHANNEL_TIMEOUT = 15.0

#: The generations of the wire that a program can be told to speak.
PROTOCOL_VERSIONS = ("current", "classic")

C = TypeVar("C", bound=Callable[..., Any])


def endpoint(text: str) -> str:
    """Return the text of a transport address, as an option's type."""
    try:
        address = Address.parse(text)
        transport_class(address.transport).parse_address(address.value.decode())
    except LocalError as error:
        raise click.BadParameter(str(error)) from error
    if not address.transport:
        raise click.BadParameter(f"expected a transport address such as {DEFAULT_ENDPOINT}, not {text!r}")
    return str(address)


def host_and_port(text: str) -> str:
    """Return the text HOST:PORT, as an option's type."""
    try:
        parse_host_port(text)
    except LocalError as error:
        raise click.BadParameter(str(error)) from error
    return text


def route(text: str) -> Route:
    """Return a route that begins at a transport address, its hops joined by =>, as an option's type."""
    first, *rest = (hop.strip() for hop in text.split("=>"))
    try:
        return Route(endpoint(first), *rest)
    except LocalError as error:
        raise click.BadParameter(str(error)) from error


def relay_name(text: str) -> str:
    """Return a name that a relay may have, as an option's type."""
    if not is_relay_name(text):
        raise click.BadParameter(f"a relay's name is 1 to 64 of A-Z a-z 0-9 . _ -, this is {text!r}")
    return text


def identifier(text: str) -> Identifier:
    """Return the identifier that a text names, as an option's type."""
    try:
        return Identifier.parse(text)
    except IdentityError as error:
        raise click.BadParameter(str(error)) from error


def transports(*endpoints: str) -> set[str]:
    """Return the names of the transports that some places need."""
    return {Address.parse(endpoint).transport for endpoint in endpoints}


@attrs.frozen
class Client:
    """What Alice and Bob are told alike: the hubs, whom to trust, who they are themselves, what they speak, and what outlives them."""

    hubs: tuple[str, ...]
    hub_identities: tuple[Identifier, ...]
    trusted: tuple[Identifier, ...]
    identity_name: str
    protocol_version: str
    state: State
    certificates: Certificates

    async def identifier(self, identity: Identity) -> Identifier:
        """Return what peers of the chosen generation know an identity by."""
        return (await identity.classic()).identifier if self.protocol_version == "classic" else identity.identifier

    @property
    def endpoints(self) -> list[str]:
        """Where the hubs are, as a node of the chosen generation dials them."""
        return [_classic(hub) if self.protocol_version == "classic" else hub for hub in self.hubs]

    def trust(self, without: str) -> TrustPolicy:
        """Return the policy that the user chose; if he named nobody, he is told what that means: `without`."""
        if self.trusted:
            return trust_only(*self.trusted)
        say(f"no --trust IDENTIFIER: {without}")
        return trust_everyone

    @asynccontextmanager
    async def open_node(self, *others: str, hubs: bool = True) -> AsyncIterator[tuple[Node, Identity]]:
        """Open a node with the transports that reach the hubs, and others by name, and the identity that lives in its vault."""
        names = {*others, *(transports(*self.endpoints) if hubs else ())}
        transports_of = self.certificates.load(names)
        async with self.state.open_vault() as vault, open_node(*transports_of, vault=vault) as node:
            yield node, await Identity.load_or_create(vault, self.identity_name)

    async def open_channel(self, node: Node, identity: Identity, way: Route, trust: TrustPolicy) -> SecureChannel:
        """Open a channel of the chosen generation."""
        return await node.open_secure_channel(way, identity, trust=trust, protocol_version=self.protocol_version)

    def ways(self, node: Node, identity: Identity) -> list[Hub]:
        """Return one way for each hub, through a secure channel if the hubs' identifiers are known."""
        if not self.hub_identities:
            return [Route(hub) for hub in self.endpoints]
        trust = trust_only(*self.hub_identities)
        return [_secured(node, hub, identity, trust) for hub in self.endpoints]


def _classic(endpoint: str) -> str:
    """Return the address by which the same listener is reached with the classic protocol version."""
    name, _, where = endpoint.partition(":")
    return f"{transport_class(name).classic_name or name}:{where}"


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


def client_options(whom: str | None, *, anyone: str | None = None, listens: bool = False) -> Callable[[C], C]:
    """Add what Alice, Bob and the other clients of hubs are told alike: the command gets a `client`.

    `whom` is the help of --trust, None for a command that makes no channel of its own. Where `anyone` says what strangers could do, nobody is
    trusted unless --trust names somebody, or --trust-everyone says so. Where it `listens`, it can demand certificates.
    """

    def add(command: C) -> C:
        @wraps(command)
        def with_client(
            *,
            hubs: tuple[str, ...],
            hub_identities: tuple[Identifier, ...],
            identity_name: str,
            protocol_version: str,
            state: State,
            certificates: Certificates,
            trusted: tuple[Identifier, ...] = (),
            everyone: bool = False,
            **options: Any,
        ) -> object:
            if anyone is not None and bool(trusted) == everyone:
                raise click.UsageError(
                    f"say who may {anyone}: give --trust IDENTIFIER, or --trust-everyone to let whoever gets there do it"
                )
            client = Client(hubs, hub_identities, trusted, identity_name, protocol_version, state, certificates)
            return command(client=client, **options)

        decorated: Any = state_options()(certificate_options(dials=True, listens=listens)(with_client))
        for option in reversed(_CLIENT_OPTIONS):
            decorated = option(decorated)
        if anyone is not None:
            decorated = click.option(
                "--trust-everyone", "everyone", is_flag=True, help=f"Let whoever gets there {anyone}."
            )(decorated)
        if whom is not None:
            decorated = click.option(
                "--trust",
                "trusted",
                type=identifier,
                multiple=True,
                metavar="IDENTIFIER",
                help=f"{whom} May be given several times.",
            )(decorated)
        result: C = decorated
        return result

    return add


_CLIENT_OPTIONS = (
    click.option(
        "--hub",
        "hubs",
        type=endpoint,
        multiple=True,
        default=(DEFAULT_ENDPOINT,),
        show_default=True,
        metavar="ENDPOINT",
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
    click.option(
        "--protocol-version",
        type=click.Choice(PROTOCOL_VERSIONS),
        default=PROTOCOL_VERSIONS[0],
        show_default=True,
        help="The wire to speak: current, or classic for Ockam programs of 0.76 to 0.81. Classic channels have no rekeying, and such peers no "
        "protection from replays.",
    ),
)


def state_options(*, required: bool = False) -> Callable[[C], C]:
    """Add where the program keeps its keys: the command gets a `state`."""

    def add(command: C) -> C:
        @wraps(command)
        def with_state(
            *, state_path: Path | None, passphrase_file: Path | None, unencrypted: bool, **options: Any
        ) -> object:
            passphrase = read_passphrase(state_path, passphrase_file, unencrypted=unencrypted)
            return command(state=State(state_path, passphrase), **options)

        decorated: Any = with_state
        for option in (
            click.option(
                "--unencrypted", is_flag=True, help="Keep the keys in the open: whoever can read the file has them."
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
