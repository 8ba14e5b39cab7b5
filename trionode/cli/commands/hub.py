"""`trionode hub`: a node that keeps streams for others, and never has a key to what is in them."""

import os
from functools import partial
from inspect import signature
from ipaddress import ip_address
from pathlib import Path

import click
import trio

from trionode.cli.certificates import Certificates, certificate_options
from trionode.cli.options import DEFAULT_ENDPOINT, endpoint, identifier, state_options, transports
from trionode.cli.runner import run
from trionode.cli.socket_activation import Listening
from trionode.cli.state import State
from trionode.cli.stores import open_store, store_options
from trionode.cli.terminal import Output, say
from trionode.errors import ConfigError, LocalError
from trionode.identity.identity import Identity
from trionode.identity.trust import trust_only
from trionode.net.transport import transport_class
from trionode.node.node import Node, open_node
from trionode.protocol.identity.identity import Identifier
from trionode.protocol.rules.access import Access, from_anywhere
from trionode.protocol.wire.address import Address
from trionode.protocol.wire.message import Origin
from trionode.stream.service import StreamService
from trionode.workers import echo

#: Bytes in the largest frame that a hub reads: a push of the longest record (64,000), its routes and a channel around them. What the wire
#: allows, 16 MiB, is what any stranger could otherwise make it hold.
MAX_FRAME = 128 * 1024
#: Seconds for what peers still send when the hub closes its links: less than the whole end may take, since the store comes last.
DRAIN_SECONDS = 0.25


@click.command()
@click.option(
    "--listen",
    type=endpoint,
    default=DEFAULT_ENDPOINT,
    show_default=True,
    metavar="ENDPOINT",
    help="Where to listen, tcp:HOST:PORT or by another transport (tls:, ws:, wss:); port 0 takes a free one.",
)
@click.option(
    "--store",
    metavar="STORE",
    help="Where to keep the streams: memory, sqlite:PATH, or kafka:HOST:PORT. By default in an SQLite file of yours, named when the hub starts.",
)
@store_options
@click.option(
    "--identity",
    "identity_name",
    metavar="NAME",
    help="Serve through secure channels only, as this identity in the file of --state.",
)
@click.option(
    "--trust",
    "trusted",
    type=identifier,
    multiple=True,
    metavar="IDENTIFIER",
    help="With --identity: who may use the hub. May be given several times.",
)
@certificate_options(dials=False, listens=True)
@state_options()
def hub(
    *,
    listen: str,
    store: str | None,
    store_options: dict[str, object],
    identity_name: str | None,
    trusted: tuple[Identifier, ...],
    certificates: Certificates,
    state: State,
) -> None:
    """Keep streams for others, until stopped.

    The hub stores what clients push into a stream, and hands it to whoever pulls. Where they talk through a secure channel, as bob and
    alice do, it sees ciphertext only. It prints `listening on tcp:HOST:PORT` when it listens.

    On SIGHUP it begins anew, with the same options and what their files hold then, and goes on listening meanwhile: clients that connect then are served a moment later.
    A listening socket that systemd passes on (LISTEN_PID, LISTEN_FDS) takes the place of --listen, which says only whether it is tcp: or tls:.
    """
    if not bool(identity_name) == bool(trusted) == (state.path is not None):
        raise click.UsageError(
            "a hub with an identity takes --identity NAME, --state PATH and at least one --trust IDENTIFIER; without, none of them"
        )
    if store_options and store is None:
        raise click.UsageError("--store-option is for --store, which is not given")
    listening = Listening()
    run(
        partial(
            _hub,
            listening=listening,
            listen=listen,
            store_spec=store,
            store_options=store_options,
            identity_name=identity_name,
            trusted=trusted,
            certificates=certificates,
            state=state,
        ),
        begin_anew=listening.begin_anew,
    )


async def _hub(
    working: trio.CancelScope,
    *,
    listening: Listening,
    listen: str,
    store_spec: str | None,
    store_options: dict[str, object],
    identity_name: str | None,
    trusted: tuple[Identifier, ...],
    certificates: Certificates,
    state: State,
) -> bool:
    inherited = listening.inherit()
    spec = store_spec or f"sqlite:{default_path()}"
    (transport,) = transports(listen)
    kind = transport_class(transport)
    if inherited and not kind.takes_sockets:
        raise ConfigError(
            f"LISTEN_FDS passes listening sockets, and the transport of --listen {listen} takes none: use one that does, such as tcp or tls"
        )
    options_of: dict[str, object] = {"max_frame": MAX_FRAME} if "max_frame" in signature(kind).parameters else {}
    if kind.takes_sockets:
        # The list itself: it is filled before the transport listens.
        options_of["sockets"] = listening.sockets
    async with (
        state.open_vault() as vault,
        open_store(spec, store_options) as store,
        open_node(*certificates.load([transport], **options_of), vault=vault) as node,
    ):
        allow: Access = from_anywhere
        if identity_name:
            identity = await Identity.load_or_create(vault, identity_name)
            await node.serve_secure_channels("listener", identity, trust=trust_only(*trusted))
            allow = from_channels
            say(f"this hub is {identity.identifier}: clients name it with --hub-identity")
        service = await node.serve_streams(store, allow=allow)
        await node.serve_relays(allow=allow)
        await node.start_worker("echo", echo, allow=allow)
        if not inherited and kind.takes_sockets:
            await listening.open(listen.removeprefix(f"{transport}:"))
        bound = await node.listen(f"{transport}:127.0.0.1:0" if inherited else listen)
        say(f"streams are kept in {spec}")
        warn_beyond_loopback(bound, authenticated=identity_name is not None, certificates=certificates)
        with working:
            await Output().line(f"listening on {bound}")
            await trio.sleep_forever()
        await _close(node, service)
    return True


async def _close(node: Node, service: StreamService) -> None:
    """End in the order in which nothing is lost that its client would not send again (spec §11.6, 7).

    Nobody new; every pull answered; links closed at once then, with what they still bring; and the store has what came.
    """
    node.stop_listening()
    await service.finish()
    with trio.move_on_after(DRAIN_SECONDS):
        await node.aclose_links()
    await service.aclose()


def from_channels(origin: Origin) -> bool:
    """Admit peers whom a secure channel has authenticated, and nobody else."""
    return origin.identifier is not None


def warn_beyond_loopback(bound: Address, *, authenticated: bool, certificates: Certificates) -> None:
    """Say what it means that others than this machine can reach the hub."""
    kind = transport_class(bound.transport)
    if not kind.binds_tcp_port:
        return
    host = kind.parse_address(bound.value.decode()).host
    if ip_address(host.partition("%")[0]).is_loopback:
        return
    if authenticated:
        who = "only those whom --trust names may use it"
    elif certificates.client_ca_file is not None:
        who = "only those to whom --client-ca-file has given a certificate may use it"
    else:
        who = "whoever reaches it may use it: restrict that with --identity and --trust, or listen at 127.0.0.1"
    say(f"warning: {bound} is reachable from beyond this machine, and {who}")


def default_path() -> Path:
    """Return the SQLite file that a hub uses unless it is told otherwise, in a folder for its owner alone, which is made."""
    home = Path(os.environ.get("XDG_STATE_HOME", ""))
    folder = (home if home.is_absolute() else Path.home() / ".local" / "state") / "trionode"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise LocalError(
            f"the folder {folder} can't be made: {error.strerror}. Name a store: --store sqlite:PATH"
        ) from error
    return folder / "hub.db"
