"""An echo through a secure channel over TCP, with the public interface: a mailbox, and a worker that replies."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Never

import trio

from benchmarks.bare import MailboxEcho
from benchmarks.processes import Announce, open_peer
from trionode import Identity, Route, open_node, trust_everyone
from trionode.workers import echoer


async def serve(announce: Announce) -> Never:
    """The peer: a node with a worker that echoes messages from secure channels."""
    async with open_node("tcp") as node:
        identity = await Identity.create(node.vault)
        await node.start_worker("echoer", echoer)
        await node.serve_secure_channels("listener", identity, trust=trust_everyone)
        announce(str(await node.listen("tcp:127.0.0.1:0")))
        await trio.sleep_forever()


@asynccontextmanager
async def open_echo() -> AsyncIterator[MailboxEcho]:
    """Start the peer and open a secure channel with it."""
    async with open_peer("channel") as at, open_node("tcp") as node, node.open_mailbox() as mailbox:
        identity = await Identity.create(node.vault)
        channel = await node.open_secure_channel(Route(at, "listener"), identity, trust=trust_everyone)
        yield MailboxEcho(mailbox, Route(channel, "echoer"))
