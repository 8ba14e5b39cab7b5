"""`trionode relay`: make a node that accepts no connections reachable at a hub, under a name."""

import click
import trio

from trionode.cli.options import Client, client_options, endpoint, relay_name, transports
from trionode.cli.runner import run_async
from trionode.cli.terminal import Output
from trionode.protocol.wire.route import Route


@click.command()
@click.argument("name", type=relay_name)
@click.option(
    "--to",
    type=endpoint,
    required=True,
    metavar="ENDPOINT",
    help="Where the node listens, such as tcp:127.0.0.1:4001.",
)
@client_options(None)
@run_async
async def relay(working: trio.CancelScope, *, name: str, to: str, client: Client) -> bool:
    """Make the node at ENDPOINT reachable at the hub as forward_to_NAME, until stopped.

    The hub does not connect to that node: this program connects to both, and forwards messages from the hub. The name
    belongs to the first client that registers it: to its identity if the hub is given by --hub-identity, else to its
    connection. Messages pass unchanged: let the two ends talk through a secure channel.
    """
    async with client.open_node(*transports(to)) as (node, identity):
        with working:
            opened = await node.open_relay(client.hub_routes(node, identity), name, to=Route(to))
            await Output().line(f"relay: {opened.remote}")
            await trio.sleep_forever()
    return True
