"""The order in which a node with stream services closes."""

from collections.abc import Sequence

import trio

from trionode.node.node import Node
from trionode.stream.service import StreamService

#: Seconds to wait for acknowledgements, and to read what peers still send while links close. It is less than the whole end may take, since stores close
#: last.
DRAIN_SECONDS = 0.25


async def close_in_order(node: Node, services: Sequence[StreamService]) -> None:
    """Close without losing anything that a client would not send again (spec §11.6, 7).

    Accept no new connections, wait a moment for acknowledgements, answer every pull, then close the links, and store
    what they still bring.
    """
    node.stop_listening()
    await node._drain(DRAIN_SECONDS)
    for service in services:
        await service.finish()
    with trio.move_on_after(DRAIN_SECONDS):
        await node.aclose_links()
    for service in services:
        await service.aclose()
