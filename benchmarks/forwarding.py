"""How many messages per second a hub forwards from link to link.

Sender and sink are bare links, so the hub is the bottleneck.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Never

import trio

from benchmarks.processes import Announce, open_peer
from trionode import Link, load_transport, open_node
from trionode.protocol.wire.address import local

#: Messages that the sender gives its link at once, as many as a mailbox sends before it yields.
BURST = 64


async def serve(announce: Announce, sink: str) -> Never:
    """The peer: a hub with a link to the sink, under a name for routes."""
    async with open_node("tcp", forwards=True) as hub:
        await hub.connect(sink, name="sink")
        announce(str(await hub.listen("tcp:127.0.0.1:0")))
        await trio.sleep_forever()


class Forwarding:
    """A link into the hub and the link that comes out of it."""

    def __init__(self, source: Link, sink: Link) -> None:
        self._source = source
        self._sink = sink

    async def send(self, body: bytes, count: int) -> None:
        """Send the same body `count` times, in bursts, as the owner of a mailbox does."""
        source = self._source
        frame = source.protocol_version.encode((local("sink"), local("worker")), (local("sender"),), body)
        for sent in range(0, count, BURST):
            await source.send([frame] * min(BURST, count - sent))

    async def receive(self, most: int) -> int:  # noqa: ARG002  # one read brings at most what is in flight
        """Wait for at least one message, take all that have arrived, and return how many."""
        return len(await self._sink.receive())


@asynccontextmanager
async def open_forwarding() -> AsyncIterator[Forwarding]:
    """Start the hub between a sender and a sink in this process."""
    transport = load_transport("tcp")
    accepted, links = trio.open_memory_channel[Link](1)

    async def accept(link: Link) -> None:
        await accepted.send(link)
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        bound = await nursery.start(transport.serve, "127.0.0.1:0", accept)
        async with open_peer("forwarding", f"tcp:{bound}") as at:
            source = await transport.connect(at.removeprefix("tcp:"))
            yield Forwarding(source, await links.receive())
            await source.aclose()
        nursery.cancel_scope.cancel()
