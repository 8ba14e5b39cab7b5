"""`trionode inlet`: a local TCP port whose connections leave through an outlet elsewhere, over a secure channel."""

import secrets
from collections.abc import Awaitable, Callable
from functools import partial

import click
import trio

from trionode.channel.secure_channel import SecureChannel
from trionode.cli.options import Client, client_options, host_and_port, route, transports
from trionode.cli.runner import run_async
from trionode.cli.terminal import Output, say
from trionode.portal import Inlet
from trionode.protocol.wire.route import Route


@click.command()
@click.argument("at", type=host_and_port, metavar="HOST:PORT")
@click.option(
    "--to",
    type=route,
    metavar="ROUTE",
    help="The route to the outlet's node: tcp:HOST:PORT, or 'tcp:HOST:PORT => forward_to_NAME' behind a relay.",
)
@click.option(
    "--streams",
    nargs=2,
    metavar="NAME NAME",
    help="The two streams on the hub, as `trionode outlet --streams` prints them.",
)
@click.option("--name", default="outlet", show_default=True, help="The outlet's address behind the channel listener.")
@click.option("--listener", default="listener", show_default=True, help="The channel listener's address.")
@client_options("The outlet's identifier, as the outlet prints it.", everyone_may="act as the outlet")
@run_async
async def inlet(
    working: trio.CancelScope,
    *,
    at: str,
    to: Route | None,
    streams: tuple[str, str] | None,
    name: str,
    listener: str,
    client: Client,
) -> bool:
    """Listen at HOST:PORT, and carry each connection to an outlet through a secure channel, until stopped.

    The outlet is given by its route (--to), or by a pair of streams on a hub (--streams). The command prints `listening
    on HOST:PORT` when it listens.
    """
    if (to is None) == (streams is None):
        raise click.UsageError("give exactly one of --to ROUTE and --streams NAME NAME")
    output = Output()
    trust = client.trust("every peer that answers is trusted as the outlet")
    async with client.open_node(*(transports(str(to.hops[0])) if to else ()), hubs=to is None) as (node, identity):
        say(f"this inlet is {await client.identifier(identity)}")
        channel: _ChannelOnDemand | None = None
        opened: Inlet | None = None
        with working:
            if streams is not None:
                receives, sends = streams
                client_id = secrets.token_hex(16)
                to = Route(await client.open_stream(node, identity, client_id, sends=sends, receives=receives))
            assert to is not None
            channel = _ChannelOnDemand(partial(client.open_channel, node, identity, Route(to, listener), trust), name)
            opened = await node.open_inlet(at, channel.route)
            await output.line(f"listening on {opened.bound}")
            await trio.sleep_forever()
        if opened is not None:
            await opened.aclose()  # before the channel: the outlet is notified through it
        if channel is not None:
            await channel.aclose()
    return True


class _ChannelOnDemand:
    """The channel to the outlet's node. The first connection after a loss opens it again."""

    def __init__(self, open_channel: Callable[[], Awaitable[SecureChannel]], name: str) -> None:
        self._open_channel = open_channel
        self._name = name
        self._channel: SecureChannel | None = None
        self._lock = trio.Lock()

    async def route(self) -> Route:
        """Return the route to the outlet."""
        async with self._lock:
            channel = self._channel
            if channel is None or channel.closed.is_set() or not channel.is_reachable:
                await self.aclose()
                self._channel = channel = await self._open_channel()
                say(f"secure channel with {channel.peer.identifier}")
            return Route(channel, self._name)

    async def aclose(self) -> None:
        """Close the channel, if it is open."""
        if self._channel is not None:
            await self._channel.aclose()
