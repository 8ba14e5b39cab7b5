"""`trionode outlet`: make a TCP service reachable for inlets, directly, behind a relay, or through two streams."""

import click
import trio

from trionode.cli.commands.hub import warn_beyond_loopback
from trionode.cli.options import Client, client_options, endpoint, host_and_port, relay_name, transports
from trionode.cli.runner import run_async
from trionode.cli.state import Conversation
from trionode.cli.terminal import Output


@click.command()
@click.argument("target", type=host_and_port, metavar="HOST:PORT")
@click.option("--listen", type=endpoint, metavar="ENDPOINT", help="Listen for inlets; port 0 takes a free one.")
@click.option("--relay", type=relay_name, metavar="NAME", help="Be reachable at the hub as forward_to_NAME.")
@click.option("--streams", is_flag=True, help="Be reachable through two streams on the hub; their names are printed.")
@click.option("--name", default="outlet", show_default=True, help="The outlet's address behind the channel listener.")
@click.option("--listener", default="listener", show_default=True, help="The channel listener's address.")
@client_options(
    "Let this identifier use the outlet, as `trionode inlet` prints it.", everyone_may="use the outlet", listens=True
)
@run_async
async def outlet(
    working: trio.CancelScope,
    *,
    target: str,
    listen: str | None,
    relay: str | None,
    streams: bool,
    name: str,
    listener: str,
    client: Client,
) -> bool:
    """Let inlets reach the TCP service at HOST:PORT through secure channels, until stopped.

    The outlet is reachable in one of three ways: at its own address (--listen), behind a hub that relays (--relay
    NAME), or through a pair of streams on a hub (--streams). It prints what the inlet needs, and then its identifier
    for the inlet's --trust.
    """
    if (listen is not None) + (relay is not None) + streams != 1:
        raise click.UsageError("give exactly one of --listen ENDPOINT, --relay NAME and --streams")
    output = Output()
    trust = client.trust("everyone who reaches this outlet can use the service behind it")
    listens = () if listen is None else transports(listen)
    async with client.open_node(*listens, hubs=listen is None) as (node, identity):
        channels = await node.serve_secure_channels(
            listener, identity, trust=trust, protocol_versions=(client.protocol_version,)
        )
        served = await node.serve_outlet(name, target)
        with working:
            if listen is not None:
                bound = await node.listen(listen)
                warn_beyond_loopback(bound, authenticated=bool(client.trusted), certificates=client.certificates)
                await output.line(f"listening on {bound}")
            elif relay is not None:
                opened = await node.open_relay(client.hub_routes(node, identity), relay)
                await output.line(f"relay: {opened.remote}")
            else:
                new = Conversation.create("outlet_to_inlet", "inlet_to_outlet")
                _, names = await client.open_kept_stream(node, identity, new)
                await output.line(f"streams: {names.bob_to_alice} {names.alice_to_bob}")
            await output.line(str(await client.identifier(identity)))
            await trio.sleep_forever()
        await served.aclose()  # before the channels: the inlets are notified through them
        await channels.aclose()
    return True
