"""Promises of channels, streams and portals on a network that drops, duplicates, reorders, delays and corrupts."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Literal

import pytest
import trio
import trio.testing

from trionode import Identity, Mailbox, Node, Route, SecureChannel, Stream, open_node, trust_everyone
from trionode.errors import AnswerTimeout, ConnectionLost, HandshakeError, Undelivered, UnknownAddressError
from trionode.stream.store.memory import MemoryStore
from trionode.testing import Fate, Faults, FaultyNetwork, Frame
from trionode.vault import MemoryVault
from trionode.workers import echoer

#: Seconds of virtual time: many times what all retries take.
STALL_TIMEOUT = 600.0
MESSAGES = [b"message %d" % n for n in range(60)]
SEEDS = range(6)
#: All but changes, which a link without a secure channel does not see.
HONEST = Faults(drop=0.05, duplicate=0.1, reorder=0.1, delay=0.05)
HOSTILE = Faults(drop=0.05, duplicate=0.1, reorder=0.1, delay=0.05, corrupt=0.05)


class Inbox:
    """A worker that keeps the payloads that reach it."""

    def __init__(self) -> None:
        self.payloads: list[bytes] = []
        self._arrived = trio.lowlevel.ParkingLot()

    async def work(self, mailbox: Mailbox) -> None:
        async for message in mailbox:
            self.payloads.append(message.payload)
            self._arrived.unpark_all()

    async def has(self, count: int) -> None:
        while len(self.payloads) < count:
            await self._arrived.park()


async def serve(node: Node, identity: Identity, inbox: Inbox | None = None) -> Inbox:
    inbox = inbox or Inbox()
    await node.start_worker("inbox", inbox.work)
    await node.start_worker("echoer", echoer)
    await node.serve_secure_channels("listener", identity, trust=trust_everyone)
    return inbox


async def open_surely(node: Node, route: Route, identity: Identity) -> SecureChannel:
    """A channel that has carried a message and its answer, however many frames are lost before."""
    while True:
        with suppress(ConnectionLost, AnswerTimeout, HandshakeError, UnknownAddressError):
            channel = await node.open_secure_channel(route, identity, trust=trust_everyone)
            for _ in range(3):
                with suppress(AnswerTimeout):
                    await node.ask(Route(channel, "echoer"), b"are you there?", timeout=5)
                    return channel
        await trio.sleep(1)


@pytest.mark.parametrize("network", SEEDS, indirect=True)
async def test_channel_delivers_only_what_was_sent_and_only_once(
    network: FaultyNetwork, autojump_clock: trio.testing.MockClock
) -> None:
    route = Route("loopback:bob", "listener")
    inbox = Inbox()
    try:
        async with open_node(network.transport("bob")) as bob, open_node(network.transport("alice")) as alice:
            await serve(bob, await Identity.create(bob.vault), inbox)
            await bob.listen("loopback:bob")
            identity = await Identity.create(alice.vault)
            network.set_faults(HOSTILE)
            with trio.fail_after(STALL_TIMEOUT):
                channel = await open_surely(alice, route, identity)
                for message in MESSAGES:
                    try:
                        await alice.send(Route(channel, "inbox"), message)
                    except UnknownAddressError:  # a change in its routes has cost the link
                        channel = await open_surely(alice, route, identity)
                    await trio.sleep(0.01)
                network.clear_faults()
                channel = await open_surely(alice, route, identity)
                assert (await alice.ask(Route(channel, "echoer"), b"still there")).payload == b"still there"
    except* Undelivered:  # of channels that their links took with them
        pass
    assert len(set(inbox.payloads)) == len(inbox.payloads) > len(MESSAGES) // 3
    assert set(inbox.payloads) <= set(MESSAGES)
    assert len({event.what for event in network.log}) > 3


@asynccontextmanager
async def streaming(network: FaultyNetwork) -> AsyncIterator[tuple[Node, Stream, Node, Stream]]:
    """Alice, Bob, and each one's end of a conversation over a hub."""
    async with open_node(network.transport("hub")) as hub:
        await hub.serve_streams(MemoryStore())
        at = Route(await hub.listen("loopback:hub"))
        async with open_node(network.transport("alice")) as alice, open_node(network.transport("bob")) as bob:
            alices = await alice.open_stream(at, sends="to_bob", receives="to_alice", client_id="alice")
            bobs = await bob.open_stream(at, sends="to_alice", receives="to_bob", client_id="bob")
            yield alice, alices, bob, bobs


@pytest.mark.parametrize("network", SEEDS, indirect=True)
async def test_stream_delivers_everything_once_and_in_order(
    network: FaultyNetwork, autojump_clock: trio.testing.MockClock
) -> None:
    with trio.fail_after(STALL_TIMEOUT):
        async with streaming(network) as (alice, alices, bob, _):
            inbox = Inbox()
            await bob.start_worker("inbox", inbox.work, allow=lambda origin: True)
            network.set_faults(HONEST)
            for message in MESSAGES:
                await alice.send(Route(alices, "inbox"), message)
                await trio.sleep(0.01)
            await inbox.has(len(MESSAGES))
            network.clear_faults()
    assert inbox.payloads == MESSAGES


@pytest.mark.parametrize("network", SEEDS, indirect=True)
async def test_channel_over_streams_delivers_only_what_was_sent_and_only_once(
    network: FaultyNetwork, autojump_clock: trio.testing.MockClock
) -> None:
    with trio.fail_after(STALL_TIMEOUT):
        async with streaming(network) as (alice, alices, bob, _):
            inbox = await serve(bob, await Identity.create(bob.vault))
            identity = await Identity.create(alice.vault)
            channel = await open_surely(alice, Route(alices, "listener"), identity)
            network.set_faults(HOSTILE)
            for message in MESSAGES:
                await alice.send(Route(channel, "inbox"), message)
                await trio.sleep(0.01)
            network.clear_faults()
            channel = await open_surely(alice, Route(alices, "listener"), identity)
            assert (await alice.ask(Route(channel, "echoer"), b"still there")).payload == b"still there"
    # A changed bit in the address of a producer makes it another one for the hub, so it can change the order.
    assert len(set(inbox.payloads)) == len(inbox.payloads) > len(MESSAGES) // 3
    assert set(inbox.payloads) <= set(MESSAGES)


@pytest.mark.parametrize("silent", [False, True])
async def test_stream_continues_after_its_hub_crashes(
    silent: bool, network: FaultyNetwork, autojump_clock: trio.testing.MockClock
) -> None:
    store = MemoryStore()

    @asynccontextmanager
    async def run_hub() -> AsyncIterator[Node]:
        async with open_node(network.transport("hub")) as hub:
            await hub.serve_streams(store)
            await hub.listen("loopback:hub")
            yield hub

    at = Route("loopback:hub")
    with trio.fail_after(STALL_TIMEOUT):
        async with (
            network.crashable("hub", run_hub) as hub,
            open_node(network.transport("bob")) as bob,
            open_node(network.transport("alice")) as alice,
        ):
            inbox = Inbox()
            await bob.start_worker("inbox", inbox.work, allow=lambda origin: True)
            await bob.open_stream(at, sends="to_alice", receives="to_bob", client_id="bob")
            stream = await alice.open_stream(at, sends="to_bob", receives="to_alice", client_id="alice")
            for n, message in enumerate(MESSAGES):
                await alice.send(Route(stream, "inbox"), message)
                if n % 20 == 10:
                    await hub.crash(silent=silent)
                    await trio.sleep(3)
                    await hub.restart()
            await inbox.has(len(MESSAGES))
    assert inbox.payloads == MESSAGES


async def test_restarted_node_has_its_identity_with_its_vault(
    network: FaultyNetwork, autojump_clock: trio.testing.MockClock
) -> None:
    vault = MemoryVault()
    bobs = await Identity.create(vault)

    @asynccontextmanager
    async def run_bob() -> AsyncIterator[Node]:
        async with open_node(network.transport("bob"), vault=vault) as bob:
            await serve(bob, bobs)
            await bob.listen("loopback:bob")
            yield bob

    route = Route("loopback:bob", "listener")
    async with network.crashable("bob", run_bob) as bob, open_node(network.transport("alice")) as alice:
        identity = await Identity.create(alice.vault)
        for _ in range(2):
            channel = await alice.open_secure_channel(route, identity, trust=trust_everyone)
            assert channel.peer.identifier == bobs.identifier
            await bob.crash()
            await channel.closed.wait()
            await bob.restart()


async def test_partition_loses_nothing(network: FaultyNetwork, autojump_clock: trio.testing.MockClock) -> None:
    with trio.fail_after(STALL_TIMEOUT):
        async with streaming(network) as (alice, alices, bob, _):
            inbox = Inbox()
            await bob.start_worker("inbox", inbox.work, allow=lambda origin: True)
            network.partition("bob", "hub")
            for message in MESSAGES:
                await alice.send(Route(alices, "inbox"), message)
            await trio.sleep(60)
            assert not inbox.payloads
            network.heal()
            await inbox.has(len(MESSAGES))
    assert inbox.payloads == MESSAGES


async def answer_everything(stream: trio.SocketStream) -> None:
    with suppress(trio.BrokenResourceError):
        async with stream:
            async for data in stream:
                await stream.send_all(data)


PARTS = [bytes((n,)) * 1000 for n in range(30)]


@pytest.mark.parametrize(
    ("fate", "delivery", "whole"),
    [
        (Frame.duplicated, "off", True),
        (Frame.dropped, "off", False),
        (lambda frame: frame.overtaken(1), "off", False),
        (lambda frame: frame.corrupted(len(frame.data) * 8 - 1), "off", False),
        (Frame.duplicated, "on", True),
        (Frame.dropped, "on", True),
        (lambda frame: frame.overtaken(1), "on", True),
        (lambda frame: frame.corrupted(len(frame.data) * 8 - 1), "on", True),
    ],
)
async def test_portal_delivers_the_right_bytes_or_closes_the_connection(
    fate: Callable[[Frame], Fate], delivery: Literal["on", "off"], whole: bool, network: FaultyNetwork
) -> None:
    async with (
        open_node(network.transport("bob")) as bob,
        open_node(network.transport("alice")) as alice,
        trio.open_nursery() as nursery,
    ):
        listeners = await nursery.start(trio.serve_tcp, answer_everything, 0)
        await serve(bob, await Identity.create(bob.vault))
        await bob.serve_outlet("outlet", f"127.0.0.1:{listeners[0].socket.getsockname()[1]}")
        await bob.listen("loopback:bob")
        identity = await Identity.create(alice.vault)
        route = Route("loopback:bob", "listener")
        channel = await alice.open_secure_channel(route, identity, trust=trust_everyone, delivery=delivery)
        inlet = await alice.open_inlet("127.0.0.1:0", Route(channel, "outlet"))
        host, _, port = inlet.bound.partition(":")
        received, struck = b"", trio.Event()

        def strike(frame: Frame) -> Fate | None:
            if struck.is_set() or len(frame.data) < len(PARTS[0]):
                return None
            struck.set()
            return fate(frame)

        client = await trio.open_tcp_stream(host, int(port))
        with trio.fail_after(10), suppress(trio.BrokenResourceError):
            async with client:
                for n, part in enumerate(PARTS):
                    if n == 10:
                        network.set_faults(Faults(rule=strike), sender="alice")
                    await client.send_all(part)
                    if n == 10:
                        await struck.wait()
                    else:
                        received += await client.receive_some()
                while len(received) < sum(map(len, PARTS)) and (more := await client.receive_some()):
                    received += more
        nursery.cancel_scope.cancel()
    assert b"".join(PARTS).startswith(received)
    assert (len(received) == sum(map(len, PARTS))) is whole
    assert len(network.log) == 1
