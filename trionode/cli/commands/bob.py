"""`trionode bob`: two streams on a hub, a secure channel listener behind them, and a worker that echoes."""

import secrets
from functools import partial

import click
import trio

from trionode.cli.options import Client, client_options
from trionode.cli.runner import run
from trionode.cli.state import Conversation
from trionode.cli.terminal import Output, payload_text
from trionode.routing.mailbox import Mailbox, Worker
from trionode.stream.client import unique


@click.command()
@client_options("Whose channels to accept; without it everyone's.")
def bob(*, client: Client) -> None:
    """Serve an echo, end to end encrypted, until stopped.

    Bob makes two streams on the hub, prints their addresses for Alice to type in, and then his identifier for her --trust. For each
    message that comes through her secure channel he prints a line, and sends it back.
    """
    run(partial(_bob, client))


async def _bob(client: Client, working: trio.CancelScope) -> bool:
    output = Output()
    kept = client.state.conversation()
    names = kept or Conversation(secrets.token_hex(16), unique("bob_to_alice"), unique("alice_to_bob"))
    trust = client.trust("whoever is told the two addresses may open a channel and use the echoer")
    async with client.open_node() as (node, identity):
        listener = await node.serve_secure_channels(
            "listener", identity, trust=trust, protocol_versions=(client.protocol_version,)
        )
        stream = None
        with working:
            await node.start_worker("echoer", echo_and_tell(output))
            stream = await node.open_stream(
                client.ways(node, identity),
                sends=names.bob_to_alice,
                receives=names.alice_to_bob,
                client_id=names.client_id,
                protocol_version=client.protocol_version,
            )
            if kept is None:
                client.state.keep(names)
            await output.line(f"bob_to_alice stream address is: {names.bob_to_alice}")
            await output.line(f"alice_to_bob stream address is: {names.alice_to_bob}")
            await output.line(str(await client.identifier(identity)))
            await trio.sleep_forever()
        await listener.aclose()
        if stream is not None:
            await stream.aclose()
    return True


def echo_and_tell(output: Output) -> Worker:
    """Return the worker that sends every payload back, be it a text or not, and prints it."""

    async def echo(mailbox: Mailbox) -> None:
        async for message in mailbox:
            # The echo first: whoever does not read what Bob prints shall hold up as little as can be.
            await mailbox.reply(message, message.payload)
            await output.line(f"[✓] Address: {mailbox.address}, Received: {payload_text(message)}")

    return echo
