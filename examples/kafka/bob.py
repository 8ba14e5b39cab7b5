"""Bob: two streams on a hub, a listener for secure channels behind them, and a worker that echoes.

`python bob.py [HUB]`.
"""

import sys

import trio

from trionode import Identity, Mailbox, Route, WireError, open_node, sanitize, trust_everyone, unique


async def echoer(mailbox: Mailbox) -> None:
    async for message in mailbox:
        try:
            text = message.text
        except WireError:
            continue  # a message that is not text must not end Bob
        print(f"[✓] Address: {mailbox.address}, Received: {sanitize(text)}", flush=True)
        await mailbox.reply(message, text)


async def main(hub: str) -> None:
    async with open_node("tcp") as node:
        bob = await Identity.create(node.vault)
        await node.start_worker("echoer", echoer)
        await node.serve_secure_channels("listener", bob, trust=trust_everyone)
        stream = await node.open_stream(Route(hub), sends=unique("bob_to_alice"), receives=unique("alice_to_bob"))
        print(f"bob_to_alice stream address is: {stream.sends}")
        print(f"alice_to_bob stream address is: {stream.receives}")
        print(bob.identifier, flush=True)
        await trio.sleep_forever()


trio.run(main, sys.argv[1] if len(sys.argv) > 1 else "tcp:127.0.0.1:4000")
