"""`trionode outlet`: one TCP service made reachable for those who are trusted, at a place of its own, behind a relay, or through two streams."""

import secrets
from functools import partial

import click
import trio

from trionode.cli.commands.hub import warn_beyond_loopback
from trionode.cli.options import Client, client_options, endpoint, host_and_port, relay_name, transports
from trionode.cli.runner import run
from trionode.cli.state import Conversation
from trionode.cli.terminal import Output
from trionode.identity.identity import Identity
from trionode.node.node import Node
from trionode.stream.client import unique


@click.command()
@click.argument("target", type=host_and_port, metavar="HOST:PORT")
@click.option(
    "--listen", type=endpoint, metavar="ENDPOINT", help="Listen for inlets at PLACE; port 0 takes a free one."
)
@click.option("--relay", "relay", type=relay_name, metavar="NAME", help="Be reachable at the hub as forward_to_NAME.")
@click.option("--streams", is_flag=True, help="Be reachable through two streams on the hub, whose names are printed.")
@click.option("--name", default="outlet", show_default=True, help="The outlet's address behind the channel listener.")
@click.option("--listener", default="listener", show_default=True, help="The channel listener's address.")
@client_options(
    "Who may use the outlet, by the identifier that `trionode inlet` prints.", anyone="use the outlet", listens=True
)
def outlet(
    *, target: str, listen: str | None, relay: str | None, streams: bool, name: str, listener: str, client: Client
) -> None:
    """Let inlets reach the TCP service at HOST:PORT through secure channels, until stopped.

    It is reachable in one of three ways: at a place of its own (--listen), behind a hub that relays (--relay NAME), or through a pair of
    streams on a hub (--streams). It prints what the inlet is to be told, and then its identifier for the inlet's --trust.
    """
    if (listen is not None) + (relay is not None) + streams != 1:
        raise click.UsageError(
            "an outlet is reachable in one of three ways: give one of --listen PLACE, --relay NAME and --streams"
        )
    run(
        partial(
            _outlet,
            target=target,
            listen=listen,
            relay=relay,
            streams=streams,
            name=name,
            listener=listener,
            client=client,
        )
    )


async def _outlet(
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
    output = Output()
    trust = client.trust("whoever reaches this outlet may use the service behind it")
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
                held = await node.open_relay(client.ways(node, identity), relay)
                await output.line(f"relay: {held.remote}")
            elif streams:
                await _open_streams(node, identity, client, output)
            await output.line(str(await client.identifier(identity)))
            await trio.sleep_forever()
        await served.aclose()  # before the channels, by which the other ends are told
        await channels.aclose()
    return True


async def _open_streams(node: Node, identity: Identity, client: Client, output: Output) -> None:
    kept = client.state.conversation()
    names = kept or Conversation(secrets.token_hex(16), unique("outlet_to_inlet"), unique("inlet_to_outlet"))
    await node.open_stream(
        client.ways(node, identity),
        sends=names.bob_to_alice,
        receives=names.alice_to_bob,
        client_id=names.client_id,
        protocol_version=client.protocol_version,
    )
    if kept is None:
        client.state.keep(names)
    await output.line(f"streams: {names.bob_to_alice} {names.alice_to_bob}")
