"""`trionode bob`: two streams on a hub, a secure channel listener behind them, and a worker that echoes."""

import click
import trio

from trionode.cli.options import Client, client_options
from trionode.cli.runner import run_async
from trionode.cli.state import Conversation
from trionode.cli.terminal import Output, payload_text
from trionode.routing.mailbox import Mailbox, Worker


@click.command()
@client_options("Accept only channels of this identifier. Without it, channels of every peer are accepted.")
@run_async
async def bob(working: trio.CancelScope, *, client: Client) -> bool:
    """Serve an echo, end to end encrypted, until stopped.

    Bob creates two streams on the hub. He prints their addresses for Alice to type in, and then his identifier for her
    --trust. For each message from her secure channel he prints a line and sends the message back.
    """
    output = Output()
    trust = client.trust("everyone who knows the two addresses can open a channel and use the echoer")
    async with client.open_node() as (node, identity):
        listener = await node.serve_secure_channels(
            "listener", identity, trust=trust, protocol_versions=(client.protocol_version,)
        )
        stream = None
        with working:
            await node.start_worker("echoer", echo_and_print(output))
            new = Conversation.create("bob_to_alice", "alice_to_bob")
            stream, names = await client.open_kept_stream(node, identity, new)
            await output.line(f"bob_to_alice stream address is: {names.bob_to_alice}")
            await output.line(f"alice_to_bob stream address is: {names.alice_to_bob}")
            await output.line(str(await client.identifier(identity)))
            await trio.sleep_forever()
        await listener.aclose()
        if stream is not None:
            await stream.aclose()
    return True


def echo_and_print(output: Output) -> Worker:
    """Return the worker that sends every payload back, text or not, and prints it."""

    async def echo(mailbox: Mailbox) -> None:
        async for message in mailbox:
            # The echo first, so that slow output delays it as little as possible.
            await mailbox.reply(message, message.payload)
            await output.line(f"[✓] Address: {mailbox.address}, Received: {payload_text(message)}")

    return echo
