"""Alice: a secure channel to Bob through two streams of a hub, then every line as a message.

`python alice.py [HUB]`.
"""

import os
import sys
from collections.abc import AsyncIterator
from contextlib import suppress

import trio

from trionode import Identity, Route, open_node, sanitize, trust_everyone


async def read_lines() -> AsyncIterator[str]:
    """Read lines of standard input without a thread: `input()` in a thread can't be cancelled by Ctrl-C."""
    buffer = b""
    while True:
        with suppress(PermissionError):  # a regular file is always ready
            await trio.lowlevel.wait_readable(0)
        data = os.read(0, 65536)
        *lines, buffer = (buffer + data).split(b"\n")
        for line in lines:
            yield line.decode()
        if not data:
            return


async def main(hub: str) -> None:
    lines = read_lines()
    print("Enter the bob_to_alice stream address:", file=sys.stderr)
    to_alice = await anext(lines)
    print("Enter the alice_to_bob stream address:", file=sys.stderr)
    to_bob = await anext(lines)
    async with open_node("tcp") as node:
        alice = await Identity.create(node.vault)
        stream = await node.open_stream(Route(hub), sends=to_bob, receives=to_alice)
        # If you have Bob's identifier, use trust_only(Identifier.parse("I…")) here to accept only Bob.
        channel = await node.open_secure_channel(Route(stream, "listener"), alice, trust=trust_everyone)
        print(f"[✓] End-to-end encrypted secure channel was established with {channel.peer.identifier}.", flush=True)
        async for line in lines:
            echo = await node.ask(Route(channel, "echoer"), line)
            print(f"Alice received an echo: {sanitize(echo.text)}", flush=True)
        await channel.aclose()
        await stream.aclose()


trio.run(main, sys.argv[1] if len(sys.argv) > 1 else "tcp:127.0.0.1:4000")
