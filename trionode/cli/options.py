"""The options that several commands share, and the values that commands get for them."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import reduce, wraps
from pathlib import Path
from typing import Any, TypeVar

import attrs
import click

from trionode.channel.secure_channel import SecureChannel
from trionode.cli.certificates import Certificates, certificate_options
from trionode.cli.combine import combine
from trionode.cli.state import Conversation, State, read_passphrase
from trionode.cli.terminal import say
from trionode.cli.trust import Trusted, identifier, trust_options
from trionode.errors import ConfigError, TrionodeError
from trionode.identity.identity import Identity
from trionode.identity.trust import TrustPolicy, trust_everyone, trust_only
from trionode.net.transport import transport_class
from trionode.node.node import Hub, Node, open_node
from trionode.protocol.identity.identity import Identifier
from trionode.protocol.wire.address import Address, parse_host_port
from trionode.protocol.wire.route import Route
from trionode.relay.service import is_relay_name
from trionode.stream.client import Stream

#: Where hubs listen and clients connect by default.
DEFAULT_ENDPOINT = "tcp:127.0.0.1:4000"

#: Seconds to open the channel with one hub. It is less than the timeout of a stream, since this error says more.
HUB_CHANNEL_TIMEOUT = 15.0

#: The protocol versions that a program can speak.
PROTOCOL_VERSIONS = ("current", "classic")

C = TypeVar("C", bound=Callable[..., Any])
T = TypeVar("T")


def _option_type(parse: Callable[[str], T]) -> Callable[[str], T]:
    """Make a parser the type of an option: its errors are errors of the command line."""

    @wraps(parse)
    def convert(text: str) -> T:
        try:
            return parse(text)
        except TrionodeError as error:
            raise click.BadParameter(str(error)) from error

    return convert


@_option_type
def endpoint(text: str) -> str:
    """Return the text of a transport address."""
    address = Address.parse(text)
    if not address.transport:
        raise ConfigError(f"expected a transport address such as {DEFAULT_ENDPOINT}, not {text!r}")
    transport_class(address.transport).parse_address(address.value.decode())
    return str(address)


@_option_type
def host_and_port(text: str) -> str:
    """Return the text HOST:PORT."""
    parse_host_port(text)
    return text


@_option_type
def route(text: str) -> Route:
    """Return a route that begins with a transport address, its hops joined by =>."""
    first, *rest = (hop.strip() for hop in text.split("=>"))
    return Route(endpoint(first), *rest)


@_option_type
def relay_name(text: str) -> str:
    """Return the name of a relay."""
    if not is_relay_name(text):
        raise ConfigError(f"a relay's name is 1 to 64 of A-Z a-z 0-9 . _ -, this is {text!r}")
    return text


def transports(*endpoints: str) -> set[str]:
    """Return the names of the transports of some addresses."""
    return {Address.parse(endpoint).transport for endpoint in endpoints}


@attrs.frozen
class Client:
    """The shared options of Alice, Bob and the other clients of hubs."""

    hubs: tuple[str, ...]
    hub_identities: tuple[Identifier, ...]
    trusted: Trusted
    identity_name: str
    protocol_version: str
    state: State
    certificates: Certificates

    async def identifier(self, identity: Identity) -> Identifier:
        """Return the identifier that an identity has for peers of the chosen protocol version."""
        return (await identity.classic()).identifier if self.protocol_version == "classic" else identity.identifier

    @property
    def endpoints(self) -> list[str]:
        """The addresses of the hubs, as a node of the chosen protocol version connects to them."""
        return [_classic(hub) if self.protocol_version == "classic" else hub for hub in self.hubs]

    def trust(self, without: str) -> TrustPolicy:
        """Return the trust policy that the user chose.

        If the user named no identifier, print what that means: `without`.
        """
        if self.trusted:
            return self.trusted.policy
        say(f"no --trust IDENTIFIER: {without}")
        return trust_everyone

    @asynccontextmanager
    async def open_node(self, *others: str, hubs: bool = True) -> AsyncIterator[tuple[Node, Identity]]:
        """Open a node with the transports of the hubs, and others by name, and the identity in its vault."""
        loaded = self.certificates.load({*others, *(transports(*self.endpoints) if hubs else ())})
        async with self.state.open_vault() as vault, open_node(*loaded, vault=vault) as node:
            yield node, await Identity.load_or_create(vault, self.identity_name)

    async def open_channel(self, node: Node, identity: Identity, route: Route, trust: TrustPolicy) -> SecureChannel:
        """Open a channel of the chosen protocol version."""
        return await node.open_secure_channel(route, identity, trust=trust, protocol_version=self.protocol_version)

    async def open_stream(self, node: Node, identity: Identity, client_id: str, *, sends: str, receives: str) -> Stream:
        """Open a stream over the hubs, in the chosen protocol version."""
        return await node.open_stream(
            self.hub_routes(node, identity),
            sends=sends,
            receives=receives,
            client_id=client_id,
            protocol_version=self.protocol_version,
        )

    async def open_kept_stream(self, node: Node, identity: Identity, new: Conversation) -> tuple[Stream, Conversation]:
        """Open a stream as Bob, by the names in the state file, or by new names that are written there."""
        stored = self.state.conversation()
        names = stored or new
        stream = await self.open_stream(
            node, identity, names.client_id, sends=names.bob_to_alice, receives=names.alice_to_bob
        )
        if stored is None:
            self.state.keep(names)
        return stream, names

    def hub_routes(self, node: Node, identity: Identity) -> list[Hub]:
        """Return one route for each hub, through a secure channel if the hubs' identifiers are given."""
        if not self.hub_identities:
            return [Route(hub) for hub in self.endpoints]
        trust = trust_only(*self.hub_identities)
        return [_secured(node, hub, identity, trust) for hub in self.endpoints]


def _classic(endpoint: str) -> str:
    """Return the address of the same listener for the classic protocol version."""
    name, _, where = endpoint.partition(":")
    return f"{transport_class(name).classic_name or name}:{where}"


def _secured(node: Node, hub: str, identity: Identity, trust: TrustPolicy) -> Hub:
    channel: SecureChannel | None = None

    async def open_hub_route() -> Route:
        nonlocal channel
        if channel is not None:
            await channel.aclose()
        channel = await node.open_secure_channel(
            Route(hub, "listener"), identity, trust=trust, timeout=HUB_CHANNEL_TIMEOUT
        )
        return Route(channel)

    open_hub_route.__name__ = f"{hub}, through a secure channel"
    return open_hub_route


def client_options(
    trust_help: str | None, *, everyone_may: str | None = None, listens: bool = False
) -> Callable[[C], C]:
    """Add the options that clients of hubs share: the command gets a `client`.

    Args:
      trust_help: The help of --trust, None for a command that opens no channel of its own.
      everyone_may: What unauthenticated peers could do, for a command that requires --trust or --trust-everyone.
      listens: Whether the command can listen, and so can require certificates.
    """

    def make(
        *,
        hubs: tuple[str, ...],
        hub_identities: tuple[Identifier, ...],
        identity_name: str,
        protocol_version: str,
        state: State,
        certificates: Certificates,
        trusted: Trusted | None = None,
        everyone: bool = False,
    ) -> Client:
        if everyone_may is not None and bool(trusted) == everyone:
            raise click.UsageError(
                f"give --trust IDENTIFIER or --authority, or --trust-everyone to let everyone {everyone_may}"
            )
        return Client(hubs, hub_identities, trusted or Trusted(), identity_name, protocol_version, state, certificates)

    options = list(_CLIENT_OPTIONS)
    if everyone_may is not None:
        text = f"Let everyone who can connect {everyone_may}."
        options.insert(0, click.option("--trust-everyone", "everyone", is_flag=True, help=text))
    decorators: list[Callable[[Any], Any]] = [combine("client", make, *options)]
    if trust_help is not None:
        decorators.append(trust_options(trust_help))
    decorators += [certificate_options(dials=True, listens=listens), state_options()]
    return lambda command: reduce(lambda decorated, decorate: decorate(decorated), decorators, command)


_CLIENT_OPTIONS = (
    click.option(
        "--hub",
        "hubs",
        type=endpoint,
        multiple=True,
        default=(DEFAULT_ENDPOINT,),
        show_default=True,
        metavar="ENDPOINT",
        help="The address of the hub. Repeatable: if one hub does not answer, the next is tried.",
    ),
    click.option(
        "--hub-identity",
        "hub_identities",
        type=identifier,
        multiple=True,
        metavar="IDENTIFIER",
        help="The identifier of a hub that was started with --identity: connect to it through a secure channel.",
    ),
    click.option(
        "--identity",
        "identity_name",
        default="default",
        show_default=True,
        metavar="NAME",
        help="The name of the identity in the file of --state. A missing identity is created.",
    ),
    click.option(
        "--protocol-version",
        type=click.Choice(PROTOCOL_VERSIONS),
        default=PROTOCOL_VERSIONS[0],
        show_default=True,
        help="The protocol version: current, or classic for Ockam programs of 0.76 to 0.81. Classic channels have no "
        "rekeying, and such peers accept replays.",
    ),
)


def _make_state(*, state_path: Path | None, passphrase_file: Path | None, unencrypted: bool) -> State:
    return State(state_path, read_passphrase(state_path, passphrase_file, unencrypted=unencrypted))


def state_options(*, required: bool = False) -> Callable[[C], C]:
    """Add the options for the keys of the program: the command gets a `state`."""
    return combine(
        "state",
        _make_state,
        click.option(
            "--state",
            "state_path",
            type=click.Path(path_type=Path, dir_okay=False),
            required=required,
            metavar="PATH",
            help="Keep the identity in an encrypted file at PATH, and stream names in a file beside it, across restarts.",
        ),
        click.option(
            "--passphrase-file",
            type=click.Path(path_type=Path, dir_okay=False),
            metavar="FILE",
            help="Read the passphrase from FILE instead of TRIONODE_PASSPHRASE or the terminal.",
        ),
        click.option(
            "--unencrypted",
            is_flag=True,
            help="Do not encrypt the keys: everyone who can read the file has them.",
        ),
    )
