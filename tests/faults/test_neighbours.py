"""Failures that other systems shipped, each on real processes: see docs/threat_model.md.

The replay window that moved too early, the channel that wedged after lost messages, and the memory of handshakes that
never end are in protocol/test_session and channels/test_listener.
"""

import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from tests.faults.proxy import open_proxy
from tests.faults.test_killed_hubs import MESSAGES, open_conversation
from tests.support.processes import HubProcess, open_hub
from trionode import Node, Route, Stream, open_node, unique
from trionode.errors import Undelivered
from trionode.testing import KafkaBroker

#: Seconds for one test, far more than it takes.
SECONDS = 60.0
#: Seconds in which a hub ends after SIGTERM, whatever its store does.
END_SECONDS = 10.0

#: Ends what keeps the records as a power cut would, and starts it again.
Kill = Callable[[], Awaitable[None]]


async def write(node: Node, hub: HubProcess, stream: str, count: int) -> None:
    """Push numbers; return when the hub has acknowledged all of them."""
    writer = await node.open_stream(Route(hub.endpoint), sends=stream, receives=unique("unused"))
    for number in range(count):
        await node.send(Route(writer), b"%d" % number)
    while writer._client._unconfirmed:
        writer._client._flushed = trio.Event()
        await writer._client._flushed.wait()


async def read(node: Node, hub: HubProcess, stream: str, count: int) -> list[bytes]:
    reader = await node.open_stream(Route(hub.endpoint), sends=unique("unused"), receives=stream)
    return [(await reader.receive()).payload for _ in range(count)]


async def check_acknowledged_are_kept(hub: HubProcess, kill: Kill) -> None:
    stream, count = unique("s"), 500
    with trio.fail_after(SECONDS):
        async with open_node("tcp") as node:
            await write(node, hub, stream, count)
            await kill()
            assert await read(node, hub, stream, count) == [b"%d" % number for number in range(count)]


async def test_acknowledged_messages_outlive_a_killed_hub(tmp_path: Path) -> None:
    async with open_hub(f"sqlite:{tmp_path / 'streams'}") as hub:

        async def kill() -> None:
            await hub.kill()
            await hub.start()

        await check_acknowledged_are_kept(hub, kill)


@pytest.mark.kafka
async def test_acknowledged_messages_outlive_a_killed_broker(kafka_broker: KafkaBroker) -> None:
    async with open_hub(f"kafka:{kafka_broker.bootstrap}") as hub:

        async def kill() -> None:
            await trio.to_thread.run_sync(kafka_broker.kill)
            await trio.to_thread.run_sync(kafka_broker.start)

        await check_acknowledged_are_kept(hub, kill)


@pytest.mark.kafka
async def test_closing_ends_in_time_while_the_broker_is_gone(kafka_broker: KafkaBroker) -> None:
    with trio.fail_after(SECONDS), pytest.RaisesGroup(Undelivered, allow_unwrapped=True):
        async with open_hub(f"kafka:{kafka_broker.bootstrap}") as hub, open_node("tcp") as node:
            writer = await node.open_stream(Route(hub.endpoint), sends=unique("a"), receives=unique("b"))
            await trio.to_thread.run_sync(kafka_broker.kill)
            try:
                await node.send(Route(writer), b"under way")
                with trio.fail_after(END_SECONDS):
                    assert await hub.stop() == 128 + signal.SIGTERM
            finally:
                await trio.to_thread.run_sync(kafka_broker.start)


async def test_a_consumer_goes_on_after_a_lost_answer(tmp_path: Path) -> None:
    with trio.fail_after(SECONDS):
        async with open_hub("memory") as hub, open_proxy(hub.endpoint) as proxy, open_node("tcp") as node:
            stream = unique("s")
            reader = await node.open_stream(Route(proxy.endpoint), sends=unique("unused"), receives=stream)
            proxy.answers_to_lose = 1
            await write(node, hub, stream, 1)
            assert (await reader.receive()).payload == b"0"
            assert proxy.swallowed > 0


async def test_every_echo_comes_once_and_in_order_over_reset_connections(tmp_path: Path) -> None:
    async with (
        open_hub(f"sqlite:{tmp_path / 'streams'}") as hub,
        open_proxy(hub.endpoint) as to_alice,
        open_proxy(hub.endpoint) as to_bob,
        open_conversation([to_alice], [to_bob]) as conversation,
    ):

        async def reset_alices() -> None:
            await trio.lowlevel.checkpoint()
            to_alice.reset()

        async def reset_bobs() -> None:
            await trio.lowlevel.checkpoint()
            to_bob.reset()

        every = MESSAGES // 7
        await conversation.echo({number * every: reset_alices if number % 2 else reset_bobs for number in range(1, 7)})
        assert to_alice.accepted == to_bob.accepted == 4


async def test_a_hub_keeps_no_socket_of_clients_that_have_left(tmp_path: Path) -> None:
    def open_files(hub: HubProcess) -> int:
        return len(list(Path(f"/proc/{hub.pid}/fd").iterdir()))

    async def visit(hub: HubProcess, stream: str) -> None:
        async with open_node("tcp") as node:
            ours: Stream = await node.open_stream(Route(hub.endpoint), sends=stream, receives=stream)
            await node.send(Route(ours), b"x")

    with trio.fail_after(SECONDS):
        async with open_hub(f"sqlite:{tmp_path / 'streams'}") as hub, open_proxy(hub.endpoint) as proxy:
            await visit(hub, "first")
            before = open_files(hub)
            for number in range(30):
                await visit(hub, f"s{number}")
            for _ in range(30):
                async with open_node("tcp") as node:
                    await node.connect(proxy.endpoint)
                    proxy.reset()
            await visit(hub, "last")
            while open_files(hub) > before:  # noqa: ASYNC110  # another process has no event
                await trio.sleep(0.05)
            assert await hub.stop() == 128 + signal.SIGTERM
            await hub.start()  # at the same port
