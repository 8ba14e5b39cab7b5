"""10,000 channels and 1,000 reconnects leave nothing behind: no memory, task, socket, thread or address."""

import gc
import logging
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing

from tests.faults.proxy import open_proxy
from tests.streams.test_stream import HUB, Network
from tests.streams.test_stream import open_hub as open_hub_in_memory
from tests.support.processes import open_hub
from trionode import Identity, Node, Route, open_node, trust_everyone
from trionode.protocol.rules.access import from_anywhere
from trionode.stream.store.memory import MemoryStore
from trionode.workers import echoer
from trionode_loopback import Loopback

# The leak gate keeps the keys of each session, to find them in texts, and pytest keeps each line of the log.
pytestmark = [pytest.mark.soak, pytest.mark.leak_gate(False)]

CHANNELS = 10_000
RECONNECTS = 1_000
#: Blocks of memory that may stay for each channel or reconnect. One that leaks as little as one object keeps one.
BLOCKS_EACH = 0.2
#: Seconds for all, far more than it takes.
SECONDS = 550.0


@pytest.fixture(autouse=True)
def _no_log() -> Iterator[None]:
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@attrs.frozen
class Held:
    """What the process and its nodes hold."""

    addresses: int
    callbacks: int
    tasks: int
    files: int
    threads: int

    @classmethod
    def by(cls, *nodes: Node) -> "Held":
        return cls(
            addresses=sum(len(node._router._table) for node in nodes),
            callbacks=sum(len(each) for node in nodes for each in node._router._close_callbacks.values()),
            tasks=trio.lowlevel.current_statistics().tasks_living,
            files=len(list(Path("/proc/self/fd").iterdir())),
            threads=threading.active_count(),
        )

    def beyond(self, before: "Held") -> dict[str, int]:
        """Return what is more than before. Less is no leak: a thread of an earlier test may have ended meanwhile."""
        grown = {name: count - getattr(before, name) for name, count in attrs.asdict(self).items()}
        return {name: more for name, more in grown.items() if more > 0}


def blocks() -> int:
    gc.collect()
    return sys.getallocatedblocks()


async def test_10_000_channels_leave_nothing_behind(autojump_clock: trio.testing.MockClock) -> None:
    network = Loopback()
    async with open_node(network) as bob, open_node(network) as alice:
        await bob.start_worker("echoer", echoer)
        listener = await bob.serve_secure_channels("listener", await Identity.create(bob.vault), trust=trust_everyone)
        await bob.listen("loopback:bob")
        identity = await Identity.create(alice.vault)

        async def converse(count: int) -> None:
            for number in range(count):
                channel = await alice.open_secure_channel(
                    Route("loopback:bob", "listener"), identity, trust=trust_everyone
                )
                assert (await alice.ask(Route(channel, "echoer"), b"%d" % number)).payload == b"%d" % number
                # Either side closes.
                await (channel if number % 2 else next(iter(listener.channels))).aclose()
                await channel.closed.wait()
                await trio.testing.wait_all_tasks_blocked()

        await converse(2_000)  # Trio keeps up to 1,000 deadlines that are no longer needed
        held, before = Held.by(alice, bob), blocks()
        await converse(CHANNELS - 2_000)
        assert Held.by(alice, bob).beyond(held) == {}
        assert not listener.channels
        assert (blocks() - before) / CHANNELS < BLOCKS_EACH


async def test_1_000_reconnects_of_a_stream_leave_nothing_behind(autojump_clock: trio.testing.MockClock) -> None:
    network, store = Network(), MemoryStore()
    async with (
        open_hub_in_memory(network, store) as hub,
        open_node(network) as node,
        node.open_mailbox("here", allow=from_anywhere) as mailbox,
    ):
        stream = await node.open_stream(HUB, sends="echo", receives="echo")

        async def converse(count: int, *, cuts: bool) -> float:
            """Return the blocks that stay for each message: the store keeps its record."""
            before = blocks()
            for number in range(count):
                if cuts:
                    network.cut()
                await node.send(Route(stream, "here"), b"%d" % number)
                assert (await mailbox.receive()).payload == b"%d" % number
                await trio.testing.wait_all_tasks_blocked()
            return (blocks() - before) / count

        await converse(100, cuts=True)
        held = Held.by(node, hub)
        each = await converse(RECONNECTS, cuts=False)
        assert await converse(RECONNECTS, cuts=True) < each + BLOCKS_EACH
        assert Held.by(node, hub).beyond(held) == {}


async def test_1_000_connections_leave_no_socket_behind(tmp_path: Path) -> None:
    def files(of: int | str) -> int:
        return len(list(Path(f"/proc/{of}/fd").iterdir()))

    with trio.fail_after(SECONDS):
        async with open_hub("memory") as hub, open_proxy(hub.endpoint) as proxy, open_node("tcp") as node:

            async def reconnect(count: int) -> None:
                for number in range(count):
                    link = await node.connect(proxy.endpoint)
                    await node.ask(Route(link, "echo"), "hello")
                    if number % 3 == 0:
                        await link.aclose()
                    elif number % 3 == 1:
                        proxy.cut()
                    else:
                        proxy.reset()
                    await link.ended.wait()

            await reconnect(50)
            held, of_the_hub = Held.by(node), files(hub.pid)
            await reconnect(RECONNECTS - 50)
            # Those of the last connections may be closing.
            assert Held.by(node).addresses == held.addresses
            assert files("self") <= held.files + 4
            assert Held.by(node).tasks <= held.tasks + 4
            assert files(hub.pid) <= of_the_hub + 4
