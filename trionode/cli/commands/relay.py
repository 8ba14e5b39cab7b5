"""`trionode relay`: a node that nobody can dial, made reachable at a hub under a name."""

from functools import partial

import click
import trio

from trionode.cli.options import Client, client_options, endpoint, relay_name, transports
from trionode.cli.runner import run
from trionode.cli.terminal import Output
from trionode.protocol.wire.route import Route


@click.command()
@click.argument("name", type=relay_name)
@click.option(
    "--to",
    "to",
    type=endpoint,
    required=True,
    metavar="ENDPOINT",
    help="Where the node listens that is to be reached, such as tcp:127.0.0.1:4001.",
)
@client_options(None)
def relay(*, name: str, to: str, client: Client) -> None:
    """Make the node at PLACE reachable at the hub as forward_to_NAME, until stopped.

    The hub needs no way to that node: this program connects to both, and passes on what comes from the hub. The name belongs to who took it
    first: on a hub that this program knows by --hub-identity to its identity, otherwise to its connection. What passes is whatever the two
    ends make of it: let them talk through a secure channel.
    """
    run(partial(_relay, name, to, client))


async def _relay(name: str, to: str, client: Client, working: trio.CancelScope) -> bool:
    async with client.open_node(*transports(to)) as (node, identity):
        with working:
            held = await node.open_relay(client.ways(node, identity), name, to=Route(to))
            await Output().line(f"relay: {held.remote}")
            await trio.sleep_forever()
    return True
