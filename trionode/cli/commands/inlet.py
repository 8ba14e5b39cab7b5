"""`trionode inlet`: a TCP port here whose connections come out of an outlet elsewhere, through a secure channel."""

import secrets
from collections.abc import Awaitable, Callable
from functools import partial

import click
import trio

from trionode.channel.secure_channel import SecureChannel
from trionode.cli.options import Client, client_options, host_and_port, route, transports
from trionode.cli.runner import run
from trionode.cli.terminal import Output, say
from trionode.identity.identity import Identity
from trionode.node.node import Node
from trionode.portal import Inlet
from trionode.protocol.wire.route import Route
from trionode.stream.client import Stream


@click.command()
@click.argument("at", type=host_and_port, metavar="HOST:PORT")
@click.option(
    "--to",
    type=route,
    metavar="ROUTE",
    help="The way to the outlet's node: tcp:HOST:PORT, or 'tcp:HOST:PORT => forward_to_NAME' where it is behind a relay.",
)
@click.option(
    "--streams",
    nargs=2,
    metavar="NAME NAME",
    help="The two streams on the hub, as `trionode outlet --streams` prints them.",
)
@click.option("--name", default="outlet", show_default=True, help="The outlet's address behind the channel listener.")
@click.option("--listener", default="listener", show_default=True, help="The channel listener's address.")
@client_options("The outlet's identifier, as it prints it.", anyone="be the outlet")
def inlet(
    *, at: str, to: Route | None, streams: tuple[str, str] | None, name: str, listener: str, client: Client
) -> None:
    """Listen at HOST:PORT, and carry each connection to an outlet through a secure channel, until stopped.

    The outlet is told by its route (--to), or by a pair of streams on a hub (--streams). It prints `listening on HOST:PORT` when it listens.
    """
    if (to is None) == (streams is None):
        raise click.UsageError("an inlet has one way to its outlet: give either --to ROUTE or --streams NAME NAME")
    run(partial(_inlet, at=at, to=to, streams=streams, name=name, listener=listener, client=client))


async def _inlet(
    working: trio.CancelScope,
    *,
    at: str,
    to: Route | None,
    streams: tuple[str, str] | None,
    name: str,
    listener: str,
    client: Client,
) -> bool:
    output = Output()
    trust = client.trust("whoever answers is taken for the outlet")
    async with client.open_node(*(transports(str(to.hops[0])) if to else ()), hubs=to is None) as (node, identity):
        say(f"this inlet is {await client.identifier(identity)}")
        way: _Way | None = None
        opened: Inlet | None = None
        with working:
            reach = Route(await _open_streams(node, identity, client, streams)) if streams else to
            assert reach is not None
            way = _Way(partial(client.open_channel, node, identity, Route(reach, listener), trust), name)
            opened = await node.open_inlet(at, way.open)
            await output.line(f"listening on {opened.bound}")
            await trio.sleep_forever()
        if opened is not None:
            await opened.aclose()  # before the channel, by which the other ends are told
        if way is not None:
            await way.aclose()
    return True


async def _open_streams(node: Node, identity: Identity, client: Client, streams: tuple[str, str]) -> Stream:
    receives, sends = streams
    return await node.open_stream(
        client.ways(node, identity),
        sends=sends,
        receives=receives,
        client_id=secrets.token_hex(16),
        protocol_version=client.protocol_version,
    )


class _Way:
    """The channel to the outlet's node, made anew once it was lost: by the first connection that needs it then."""

    def __init__(self, open_channel: Callable[[], Awaitable[SecureChannel]], name: str) -> None:
        self._open_channel = open_channel
        self._name = name
        self._channel: SecureChannel | None = None
        self._opening = trio.Lock()

    async def open(self) -> Route:
        """Return the route to the outlet."""
        async with self._opening:
            channel = self._channel
            if channel is None or channel.closed.is_set() or not channel.is_reachable:
                await self.aclose()
                self._channel = channel = await self._open_channel()
                say(f"secure channel with {channel.peer.identifier}")
            return Route(channel, self._name)

    async def aclose(self) -> None:
        """Close the channel, if there is one."""
        if self._channel is not None:
            await self._channel.aclose()
