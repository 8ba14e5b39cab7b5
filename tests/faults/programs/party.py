"""What Alice and Bob have in common: a node with an identity in a file, and a stream that is opened until it opens."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from trionode import Identity, Node, Route, Stream, open_node, open_sqlite_vault
from trionode.errors import RemoteError

#: Seconds between two tries to open what needs a hub, while there is none.
PAUSE = 0.25
#: Seconds for one try.
TRY_SECONDS = 5.0


@asynccontextmanager
async def open_party(vault: Path) -> AsyncIterator[tuple[Node, Identity]]:
    """A node over TCP, and the identity in the vault, which is made at the first time."""
    async with open_sqlite_vault(vault, unencrypted=True) as keys, open_node("tcp", vault=keys) as node:
        yield node, await Identity.load_or_create(keys, "me")


async def open_their_stream(node: Node, hubs: Sequence[str], *, sends: str, receives: str, client_id: str) -> Stream:
    """Open the stream, whenever a hub is there."""
    while True:
        try:
            return await node.open_stream(
                [Route(hub) for hub in hubs], sends=sends, receives=receives, client_id=client_id, timeout=TRY_SECONDS
            )
        except RemoteError:
            await trio.sleep(PAUSE)
