"""`trionode hub`: a node that keeps streams for clients, and never has a key to their content."""

import os
from inspect import signature
from ipaddress import ip_address
from pathlib import Path

import click
import trio

from trionode.cli.certificates import Certificates, certificate_options
from trionode.cli.options import DEFAULT_ENDPOINT, endpoint, state_options, transports
from trionode.cli.runner import run
from trionode.cli.socket_activation import Listening
from trionode.cli.state import State
from trionode.cli.stores import open_store, store_options
from trionode.cli.terminal import Output, say
from trionode.cli.trust import Trusted, trust_options
from trionode.errors import ConfigError, LocalError
from trionode.identity.identity import Identity
from trionode.net.transport import transport_class
from trionode.node.closing import close_in_order
from trionode.node.node import open_node
from trionode.protocol.rules.access import Access, from_anywhere
from trionode.protocol.wire.address import Address
from trionode.protocol.wire.message import Origin
from trionode.workers import echo

#: Bytes in the largest frame that a hub reads: a push of the longest record (64,000), its routes and a channel around
#: them. Otherwise every unauthenticated peer could make the hub hold 16 MiB, the limit of the wire.
MAX_FRAME = 128 * 1024


@click.command()
@click.option(
    "--listen",
    type=endpoint,
    default=DEFAULT_ENDPOINT,
    show_default=True,
    metavar="ENDPOINT",
    help="The address to listen at: tcp:HOST:PORT, or that of another transport (tls:, ws:, wss:). Port 0 takes a free one.",
)
@click.option(
    "--store",
    "store_spec",
    metavar="STORE",
    help="Where to store the streams: memory, sqlite:PATH, or kafka:HOST:PORT. By default in an SQLite file, which the hub names when it starts.",
)
@store_options
@click.option(
    "--identity",
    "identity_name",
    metavar="NAME",
    help="Serve only through secure channels, as this identity in the file of --state.",
)
@trust_options("With --identity: let this identifier use the hub.")
@certificate_options(dials=False, listens=True)
@state_options()
def hub(
    *,
    listen: str,
    store_spec: str | None,
    store_options: dict[str, object],
    identity_name: str | None,
    trusted: Trusted,
    certificates: Certificates,
    state: State,
) -> None:
    """Store streams for clients until stopped.

    The hub stores what clients push into a stream, and returns it to clients that pull. If the clients talk through a
    secure channel, as bob and alice do, the hub sees only ciphertext. It prints `listening on tcp:HOST:PORT` when it
    listens.

    SIGHUP restarts the hub with the same options and reads their files again. The listening socket stays open, so
    clients never get connection refused. A listening socket that systemd passes (LISTEN_PID, LISTEN_FDS) replaces the
    address of --listen; only its transport, such as tcp: or tls:, still counts.
    """
    if not bool(identity_name) == bool(trusted) == (state.path is not None):
        raise click.UsageError(
            "use --identity NAME, --state PATH and at least one --trust IDENTIFIER or --authority together, or none of them"
        )
    if store_options and store_spec is None:
        raise click.UsageError("--store-option needs --store")
    listening = Listening()

    async def serve(working: trio.CancelScope) -> bool:
        inherited = listening.inherit()
        spec = store_spec or f"sqlite:{default_path()}"
        (transport,) = transports(listen)
        kind = transport_class(transport)
        if inherited and not kind.takes_sockets:
            raise ConfigError(
                f"LISTEN_FDS passes listening sockets, and the transport of --listen {listen} takes none: use one that does, such as tcp or tls"
            )
        options: dict[str, object] = {"max_frame": MAX_FRAME} if "max_frame" in signature(kind).parameters else {}
        if kind.takes_sockets:
            options["sockets"] = listening.sockets  # the list itself, which is filled before the transport listens
        async with (
            state.open_vault() as vault,
            open_store(spec, store_options) as store,
            open_node(*certificates.load([transport], **options), vault=vault) as node,
        ):
            allow: Access = from_anywhere
            if identity_name:
                identity = await Identity.load_or_create(vault, identity_name)
                await node.serve_secure_channels("listener", identity, trust=trusted.policy)
                allow = from_channels
                say(f"this hub is {identity.identifier}: clients give it by --hub-identity")
            service = await node.serve_streams(store, allow=allow)
            await node.serve_relays(allow=allow)
            await node.start_worker("echo", echo, allow=allow)
            if not inherited and kind.takes_sockets:
                await listening.open(listen.removeprefix(f"{transport}:"))
            bound = await node.listen(f"{transport}:127.0.0.1:0" if inherited else listen)
            say(f"streams are stored in {spec}")
            warn_beyond_loopback(bound, authenticated=identity_name is not None, certificates=certificates)
            with working:
                await Output().line(f"listening on {bound}")
                await trio.sleep_forever()
            await close_in_order(node, [service])
        return True

    run(serve, restart=listening.restart)


def from_channels(origin: Origin) -> bool:
    """Admit only peers that a secure channel has authenticated."""
    return origin.identifier is not None


def warn_beyond_loopback(bound: Address, *, authenticated: bool, certificates: Certificates) -> None:
    """Print a warning if other machines can reach the address, with who can use the service."""
    kind = transport_class(bound.transport)
    if not kind.binds_tcp_port:
        return
    host = kind.parse_address(bound.value.decode()).host
    if ip_address(host.partition("%")[0]).is_loopback:
        return
    if authenticated:
        access = "only peers that --trust or --authority names can use it"
    elif certificates.client_ca_file is not None:
        access = "only clients with a certificate of --client-ca-file can use it"
    else:
        access = "everyone who reaches it can use it: restrict that with --identity and --trust, or listen at 127.0.0.1"
    say(f"warning: {bound} is reachable from beyond this machine, and {access}")


def default_path() -> Path:
    """Return the default SQLite file of a hub. Its folder is created, and only its owner can read it."""
    home = Path(os.environ.get("XDG_STATE_HOME", ""))
    folder = (home if home.is_absolute() else Path.home() / ".local" / "state") / "trionode"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise LocalError(
            f"the folder {folder} can't be created: {error.strerror}. Give a store: --store sqlite:PATH"
        ) from error
    return folder / "hub.db"
