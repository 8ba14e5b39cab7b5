"""An echo between two nodes over TCP without a channel: the cost of router, mailboxes, links and codec."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Never

import trio

from benchmarks.processes import Announce, open_peer
from trionode import Mailbox, Route, from_anywhere, open_node
from trionode.workers import echoer

#: Messages that the receiver takes before as many are sent. A mailbox gives one at a time.
STRIDE = 50


async def serve(announce: Announce) -> Never:
    """The peer: a node with a worker that echoes."""
    async with open_node("tcp") as node:
        await node.start_worker("echoer", echoer, allow=from_anywhere)
        announce(str(await node.listen("tcp:127.0.0.1:0")))
        await trio.sleep_forever()


class MailboxEcho:
    """A mailbox and the route to the peer's echoer."""

    def __init__(self, mailbox: Mailbox, route: Route) -> None:
        self._mailbox = mailbox
        self._route = route

    async def send(self, body: bytes, count: int) -> None:
        """Send the same body `count` times."""
        send, route = self._mailbox.send, self._route
        for _ in range(count):
            await send(route, body)

    async def receive(self, most: int) -> int:
        """Take STRIDE bodies, or a part of `most` if that is less, and return how many."""
        receive, count = self._mailbox.receive, min(STRIDE, (most + 3) // 4)
        for _ in range(count):
            await receive()
        return count


@asynccontextmanager
async def open_echo() -> AsyncIterator[MailboxEcho]:
    """Start the peer and connect a node to it."""
    async with open_peer("bare") as at, open_node("tcp") as node, node.open_mailbox() as mailbox:
        link = await node.connect(at)
        yield MailboxEcho(mailbox, Route(link, "echoer"))
