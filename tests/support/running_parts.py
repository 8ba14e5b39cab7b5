"""Topologies in memory for the tests of those that run, and the workers that they name."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, ClassVar, Never

import trio

from trionode import Mailbox, Route
from trionode.errors import ConnectionLost
from trionode.net.transport import Link
from trionode.topology import RunningTopology, TopologySpec, parse_topology, run_topology
from trionode.topology.run.setup import TransportOf
from trionode_loopback import Loopback

#: A hub in the middle, Bob behind streams, and Alice's channel over hers.
ALICE_BOB = """
[nodes.hub]
listen = "loopback:hub"
stream_services.stream_kafka.store = "memory"

[nodes.bob]
secure_channel_listeners.api.trust.nodes = "alice"
workers.echoer = "echoer"

[nodes.bob.streams.alice]
via = ["loopback:hub"]
sends = "bob_to_alice"
receives = "alice_to_bob"
client_id = "bob"

[nodes.alice.streams.hub]
via = ["loopback:hub"]
sends = "alice_to_bob"
receives = "bob_to_alice"

[nodes.alice.secure_channels.bob]
to = ["@hub", "api"]
trust.nodes = "bob"
"""

#: Alice and Bob, directly connected.
DIRECT = """
[nodes.bob]
listen = "loopback:bob"
secure_channel_listeners.api.trust.nodes = "alice"
workers.echoer = "echoer"

[nodes.alice.secure_channels.bob]
to = ["loopback:bob", "api"]
trust.nodes = "bob"
"""


@asynccontextmanager
async def running(
    spec: TopologySpec | str,
    *,
    nodes: Sequence[str] | None = None,
    transports: Mapping[str, TransportOf] | None = None,
    **options: Any,
) -> AsyncIterator[RunningTopology]:
    """Run a topology in a network of its own, unless it is given one."""
    parsed = parse_topology(spec, nodes=nodes) if isinstance(spec, str) else spec
    async with run_topology(
        parsed, nodes=nodes, transports={"loopback": Loopback()} if transports is None else transports, **options
    ) as topology:
        yield topology


class Counting(Loopback):
    """A network that counts connections, and can refuse them all."""

    name: ClassVar[str] = "loopback"

    def __init__(self) -> None:
        super().__init__()
        self.dialled: list[str] = []
        self.is_down = False

    async def connect(self, peer: str) -> Link:
        self.dialled.append(peer)
        if self.is_down:
            await trio.lowlevel.checkpoint()
            raise ConnectionLost("the network is down")
        return await super().connect(peer)


TAKEN: list[str] = []


async def noting(mailbox: Mailbox, *, prefix: str = "") -> None:
    async for message in mailbox:
        TAKEN.append(prefix + message.text)  # noqa: PERF401  # each is there when it came


async def passing(mailbox: Mailbox, *, sends: Sequence[Callable[[], Route]]) -> None:
    async for message in mailbox:
        for route in sends:
            await mailbox.send(route(), message.payload)


async def strict(mailbox: Mailbox) -> None:
    async for message in mailbox:
        if message.text == "wrong":
            raise ValueError(message.text)
        TAKEN.append(message.text)


async def failing(mailbox: Mailbox) -> Never:
    message = await mailbox.receive()
    raise ValueError(message.text)


def not_async(mailbox: Mailbox) -> None:
    del mailbox
