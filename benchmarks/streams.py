"""An echo through a secure channel over the two streams of a hub.

Hub and Bob are the peer. The store is SQLite or Kafka.
"""

import tempfile
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Never

import trio

from benchmarks.bare import MailboxEcho
from benchmarks.processes import Announce, open_peer
from trionode import Identity, Route, StreamStore, open_node, trust_everyone, unique
from trionode.stream.store.sqlite import open_sqlite_store
from trionode.workers import echoer


def _open_store(kind: str, where: str) -> AbstractAsyncContextManager[StreamStore]:
    if kind == "kafka":
        from trionode_kafka import open_kafka_store  # noqa: PLC0415  # only this benchmark needs Kafka's client

        return open_kafka_store(where)
    return open_sqlite_store(where)


async def serve(announce: Announce, kind: str, where: str, to_bob: str, to_alice: str) -> Never:
    """The peer: a hub over a store (`sqlite` and a path, `kafka` and HOST:PORT), and Bob, one of its clients."""
    async with _open_store(kind, where) as streams, open_node("tcp") as hub, open_node("tcp") as bob:
        await hub.serve_streams(streams)
        at = await hub.listen("tcp:127.0.0.1:0")
        identity = await Identity.create(bob.vault)
        await bob.start_worker("echoer", echoer)
        await bob.serve_secure_channels("listener", identity, trust=trust_everyone)
        await bob.open_stream(Route(at), sends=to_alice, receives=to_bob)
        announce(str(at))
        await trio.sleep_forever()


@asynccontextmanager
async def open_echo(kafka: str | None = None) -> AsyncIterator[MailboxEcho]:
    """Start hub and Bob, on SQLite or on the Kafka at HOST:PORT, and open a secure channel through the streams."""
    to_bob, to_alice = unique("to_bob"), unique("to_alice")
    with tempfile.TemporaryDirectory() as folder:
        kind, where = ("kafka", kafka) if kafka else ("sqlite", str(Path(folder) / "streams.db"))
        async with (
            open_peer("streams", kind, where, to_bob, to_alice) as hub,
            open_node("tcp") as node,
            node.open_mailbox() as mailbox,
        ):
            identity = await Identity.create(node.vault)
            stream = await node.open_stream(Route(hub), sends=to_bob, receives=to_alice)
            channel = await node.open_secure_channel(Route(stream, "listener"), identity, trust=trust_everyone)
            yield MailboxEcho(mailbox, Route(channel, "echoer"))
