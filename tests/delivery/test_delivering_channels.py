"""Channels with the delivery layer on real nodes: nothing is lost, and what a route does to messages is reported."""

import pytest
import trio
import trio.testing

from tests.support.channel_parties import Handler, open_parties
from tests.support.failures import undelivered
from trionode import (
    Gap,
    Identity,
    Mailbox,
    Repaired,
    Route,
    TailSilence,
    open_node,
    trust_everyone,
    trust_only,
    unique,
)
from trionode.errors import ConfigError, HandshakeError, IdentityRefused, Undelivered
from trionode.protocol.wire.address import local
from trionode.stream.store.memory import MemoryStore
from trionode.testing import Fate, Faults, FaultyNetwork, Frame

COUNT = 1000
PAYLOADS = [b"%d" % number for number in range(COUNT)]
#: Seconds of virtual time after which a test has failed.
STALL_TIMEOUT = 600.0


@pytest.mark.parametrize("way", ["loopback", "a hub", "streams"])
async def test_what_was_sent_arrives_although_the_block_is_left_at_once(
    way: str, autojump_clock: trio.testing.MockClock
) -> None:
    with trio.fail_after(STALL_TIMEOUT):
        async with open_parties(way, delivery="on") as parties:
            channel, _ = await parties.open()
            for payload in PAYLOADS:
                await parties.alice.send(Route(channel, "handler"), payload)
            handler = parties.bob_handler
    assert handler.payloads == PAYLOADS


async def test_a_program_that_leaves_its_block_has_delivered_everything(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The first finding: `node.send` over a stream and a channel, then the end of the block of Alice alone."""
    from trionode_loopback import Loopback

    network, handler = Loopback(), Handler()
    to_alice, to_bob = unique("to_alice"), unique("to_bob")
    with trio.fail_after(STALL_TIMEOUT):
        async with open_node(network) as hub, open_node(network) as bob:
            await hub.serve_streams(MemoryStore())
            await hub.listen("loopback:hub")
            await bob.start_worker("handler", handler.work)
            await bob.serve_secure_channels("listener", await Identity.create(bob.vault), trust=trust_everyone)
            await bob.open_stream("loopback:hub", sends=to_alice, receives=to_bob)
            async with open_node(network) as alice:
                stream = await alice.open_stream("loopback:hub", sends=to_bob, receives=to_alice)
                channel = await alice.open_secure_channel(
                    Route(stream, "listener"), await Identity.create(alice.vault), trust=trust_everyone
                )
                for payload in PAYLOADS:
                    await alice.send(Route(channel, "handler"), payload)
            await trio.testing.wait_all_tasks_blocked()
            assert handler.payloads == PAYLOADS


@pytest.mark.parametrize("network", range(6), indirect=True)
@pytest.mark.parametrize(
    "faults", [Faults(drop=0.05, duplicate=0.05, reorder=0.1, delay=0.1), Faults(drop=0.3), Faults(reorder=0.5)]
)
async def test_everything_arrives_once_and_in_order_on_a_faulty_network(
    faults: Faults, network: FaultyNetwork, autojump_clock: trio.testing.MockClock
) -> None:
    handler = Handler()
    with trio.fail_after(STALL_TIMEOUT):
        async with open_node(network.transport("bob")) as bob, open_node(network.transport("alice")) as alice:
            await bob.start_worker("handler", handler.work)
            await bob.serve_secure_channels("listener", await Identity.create(bob.vault), trust=trust_everyone)
            await bob.listen("loopback:bob")
            channel = await alice.open_secure_channel(
                Route("loopback:bob", "listener"), await Identity.create(alice.vault), trust=trust_everyone
            )
            network.set_faults(faults)
            for payload in PAYLOADS[:200]:
                await alice.send(Route(channel, "handler"), payload)
                await trio.sleep(0.01)
            await alice.send(Route(channel, "handler"), b"last", until="handled")
            network.clear_faults()
    assert handler.payloads == [*PAYLOADS[:200], b"last"]
    assert network.log


async def test_a_dropped_message_is_a_gap_and_its_arrival_a_repair(
    network: FaultyNetwork, autojump_clock: trio.testing.MockClock
) -> None:
    handler = Handler()
    with trio.fail_after(STALL_TIMEOUT):
        async with open_node(network.transport("bob")) as bob, open_node(network.transport("alice")) as alice:
            await bob.start_worker("handler", handler.work)
            listener = await bob.serve_secure_channels(
                "listener", await Identity.create(bob.vault), trust=trust_everyone
            )
            await bob.listen("loopback:bob")
            channel = await alice.open_secure_channel(
                Route("loopback:bob", "listener"), await Identity.create(alice.vault), trust=trust_everyone
            )
            (bobs,) = listener.channels
            await alice.send(Route(channel, "handler"), b"small", until="handled")

            def is_large(frame: Frame) -> Fate | None:
                return frame.dropped() if len(frame.data) > 5000 else None

            network.set_faults(Faults(rule=is_large), sender="alice")
            await alice.send(Route(channel, "handler"), bytes(5000))
            await trio.sleep(0.01)
            await alice.send(Route(channel, "handler"), b"behind it")
            assert await bobs.verdicts().receive() == Gap(2, 2)
            network.clear_faults()
            assert await bobs.verdicts().receive() == Repaired(2, 2)
    assert handler.payloads == [b"small", bytes(5000), b"behind it"]


async def test_a_route_that_drops_everything_is_silence_and_not_reachable(
    network: FaultyNetwork, autojump_clock: trio.testing.MockClock
) -> None:
    handler = Handler()
    with undelivered(1), trio.fail_after(STALL_TIMEOUT * 10):
        async with open_node(network.transport("bob")) as bob, open_node(network.transport("alice")) as alice:
            await bob.start_worker("handler", handler.work)
            await bob.serve_secure_channels("listener", await Identity.create(bob.vault), trust=trust_everyone)
            await bob.listen("loopback:bob")
            channel = await alice.open_secure_channel(
                Route("loopback:bob", "listener"), await Identity.create(alice.vault), trust=trust_everyone
            )
            was_reachable = channel.is_reachable
            network.set_faults(Faults(drop=1.0))
            await alice.send(Route(channel, "handler"), b"lost")
            begun = trio.current_time()
            assert isinstance(await channel.verdicts().receive(), TailSilence)
            assert trio.current_time() - begun <= 60
            assert was_reachable
            assert not channel.is_reachable
            await channel.closed.wait()
            assert trio.current_time() - begun <= 60 + 900 + 60


async def test_send_returns_at_acknowledgement_or_when_the_handler_is_done(
    autojump_clock: trio.testing.MockClock,
) -> None:
    gate = trio.Event()
    seen: list[bytes] = []

    async def work(mailbox: Mailbox) -> None:
        async for message in mailbox:
            seen.append(message.payload)
            await gate.wait()

    with trio.fail_after(STALL_TIMEOUT):
        async with open_parties(delivery="on") as parties:
            await parties.bob.start_worker("slow", work)
            channel, _ = await parties.open()
            await parties.alice.send(Route(channel, "slow"), b"x", until="acknowledged")
            assert seen == [b"x"]
            with trio.move_on_after(5) as scope:
                await parties.alice.send(Route(channel, "slow"), b"y", until="handled")
            assert scope.cancelled_caught
            gate.set()
            await parties.alice.send(Route(channel, "slow"), b"z", until="handled")
            assert seen == [b"x", b"y", b"z"]
            assert channel.unacknowledged == 0


async def test_until_needs_a_channel_with_the_delivery_layer(autojump_clock: trio.testing.MockClock) -> None:
    async with open_parties(delivery="off") as parties:
        channel, _ = await parties.open()
        assert not channel.has_delivery
        with pytest.raises(ConfigError, match="needs a route that begins with a secure channel"):
            await parties.alice.send(Route(channel, "handler"), b"x", until="acknowledged")
        with pytest.raises(ConfigError, match="until is one of"):
            await parties.alice.send(Route(channel, "handler"), b"x", until="sent")  # type: ignore[arg-type]


@pytest.mark.parametrize("way", ["loopback", "streams"])
async def test_a_refused_identity_hears_it_at_once(way: str, autojump_clock: trio.testing.MockClock) -> None:
    async with open_parties(way, trust=trust_only("I" + "00" * 32), delivery="on") as parties:
        begun = trio.current_time()
        with pytest.raises(IdentityRefused, match="refuses this identity"):
            await parties.alice.open_secure_channel(parties.route, parties.alices, trust=trust_everyone)
        assert trio.current_time() - begun < 2


async def test_an_initiator_that_requires_delivery_refuses_a_peer_without_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_parties(delivery="off") as parties:
        with pytest.raises(HandshakeError, match="has no delivery layer"):
            await parties.alice.open_secure_channel(
                parties.route, parties.alices, trust=trust_everyone, delivery="required"
            )


async def test_a_listener_that_requires_delivery_refuses_a_peer_without_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_parties(delivery="required") as parties:
        # The refusal is silent: a peer without the layer has no way to hear it.
        channel = await parties.alice.open_secure_channel(
            parties.route, parties.alices, trust=trust_everyone, delivery="off"
        )
        await parties.alice.send(Route(channel, "handler"), b"x")
        await trio.sleep(1)
        assert not parties.listener.channels
        assert parties.bob_handler.payloads == []


async def test_a_dropped_answer_does_not_switch_delivery_off(
    network: FaultyNetwork, autojump_clock: trio.testing.MockClock
) -> None:
    """The first frame of the responder is dropped for 20 s: the channel opens later, with the delivery layer."""
    with trio.fail_after(STALL_TIMEOUT):
        async with open_node(network.transport("bob")) as bob, open_node(network.transport("alice")) as alice:
            await bob.serve_secure_channels("listener", await Identity.create(bob.vault), trust=trust_everyone)
            await bob.listen("loopback:bob")
            identity = await Identity.create(alice.vault)

            def is_answer(frame: Frame) -> Fate | None:
                # After message 2 of each handshake, which is the largest.
                is_frame = len(frame.data) < 300
                return frame.dropped() if is_frame and trio.current_time() < 20 else None

            network.set_faults(Faults(rule=is_answer), sender="bob")
            channel = await alice.open_secure_channel(
                Route("loopback:bob", "listener"), identity, trust=trust_everyone, timeout=60
            )
            assert channel.has_delivery
            assert 15 <= trio.current_time() < 60


async def test_an_orderly_end_of_the_peers_node_is_seen_at_once(autojump_clock: trio.testing.MockClock) -> None:
    from trionode_loopback import Loopback

    network = Loopback()
    to_alice, to_bob = unique("to_alice"), unique("to_bob")
    with trio.fail_after(STALL_TIMEOUT):
        async with open_node(network) as hub, open_node(network) as alice:
            await hub.serve_streams(MemoryStore())
            await hub.listen("loopback:hub")
            stream = await alice.open_stream("loopback:hub", sends=to_bob, receives=to_alice)
            async with open_node(network) as bob:
                await bob.serve_secure_channels("listener", await Identity.create(bob.vault), trust=trust_everyone)
                await bob.open_stream("loopback:hub", sends=to_alice, receives=to_bob)
                channel = await alice.open_secure_channel(
                    Route(stream, "listener"), await Identity.create(alice.vault), trust=trust_everyone
                )
                assert channel.is_reachable
            begun = trio.current_time()
            await channel.closed.wait()
            assert trio.current_time() - begun < 2
            assert not channel.is_reachable


async def test_closing_a_channel_waits_for_acknowledgements_or_raises(
    network: FaultyNetwork, autojump_clock: trio.testing.MockClock
) -> None:
    handler = Handler()
    async with open_node(network.transport("bob")) as bob, open_node(network.transport("alice")) as alice:
        await bob.start_worker("handler", handler.work)
        await bob.serve_secure_channels("listener", await Identity.create(bob.vault), trust=trust_everyone)
        await bob.listen("loopback:bob")
        identity = await Identity.create(alice.vault)
        route = Route("loopback:bob", "listener")
        channel = await alice.open_secure_channel(route, identity, trust=trust_everyone)
        for payload in PAYLOADS[:50]:
            await alice.send(Route(channel, "handler"), payload)
        await channel.aclose()
        assert handler.payloads == PAYLOADS[:50]
        channel = await alice.open_secure_channel(route, identity, trust=trust_everyone)
        network.set_faults(Faults(drop=1.0), sender="alice")
        for payload in PAYLOADS[:3]:
            await alice.send(Route(channel, "handler"), payload)
        begun = trio.current_time()
        with pytest.raises(Undelivered) as caught:
            await channel.aclose(grace=2)
        assert caught.value.count == 3
        assert trio.current_time() - begun == pytest.approx(2, abs=0.1)
        network.clear_faults()
    # The node's end does not raise again what `aclose` has told.


async def test_a_slow_worker_holds_its_sender_and_loses_nothing(autojump_clock: trio.testing.MockClock) -> None:
    seen = 0

    async def work(mailbox: Mailbox) -> None:
        nonlocal seen
        async for _ in mailbox:
            seen += 1
            await trio.sleep(1)

    with trio.fail_after(STALL_TIMEOUT):
        async with open_parties("a hub", delivery="on") as parties:
            await parties.bob.start_worker("slow", work)
            channel, _ = await parties.open()
            begun = trio.current_time()
            for _ in range(100):
                await parties.alice.send(Route(channel, "slow"), bytes(60_000))
            assert trio.current_time() - begun > 40
            await parties.alice.send(Route(channel, "slow"), b"last", until="handled")
    assert seen == 101


async def test_messages_beside_the_frames_are_refused(autojump_clock: trio.testing.MockClock) -> None:
    """A peer that has agreed on delivery sends a message without a number."""
    async with open_parties(delivery="on") as parties:
        channel, bobs = await parties.open()
        hops = channel._hops
        hops.send_control(hops.cipher.encode((local("handler"),), (), b"without a number"))
        await trio.sleep(1)
        assert parties.bob_handler.payloads == []
        assert bobs.refused == 1
        await parties.alice.send(Route(channel, "handler"), b"with one", until="handled")
        assert parties.bob_handler.payloads == [b"with one"]


async def test_a_route_that_comes_back_after_minutes_has_lost_nothing(
    network: FaultyNetwork, autojump_clock: trio.testing.MockClock
) -> None:
    handler = Handler()
    with trio.fail_after(STALL_TIMEOUT * 10):
        async with open_node(network.transport("bob")) as bob, open_node(network.transport("alice")) as alice:
            await bob.start_worker("handler", handler.work)
            listener = await bob.serve_secure_channels(
                "listener", await Identity.create(bob.vault), trust=trust_everyone
            )
            await bob.listen("loopback:bob")
            channel = await alice.open_secure_channel(
                Route("loopback:bob", "listener"), await Identity.create(alice.vault), trust=trust_everyone
            )
            (bobs,) = listener.channels
            network.set_faults(Faults(drop=1.0))
            for payload in PAYLOADS[:10]:
                await alice.send(Route(channel, "handler"), payload)
            await trio.sleep(600)
            was_reachable = channel.is_reachable or bobs.is_reachable
            network.clear_faults()
            await alice.send(Route(channel, "handler"), b"last", until="handled")
            assert not was_reachable
            assert channel.is_reachable
            assert bobs.is_reachable
            assert listener.channels == {bobs}
    assert handler.payloads == [*PAYLOADS[:10], b"last"]


async def test_a_frame_of_a_channel_under_way_at_the_end_is_no_lost_message(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The hub ends between the acknowledgement of the last message and the close of the channel."""
    from trionode_loopback import Loopback

    network, handler = Loopback(), Handler()
    to_alice, to_bob = unique("to_alice"), unique("to_bob")
    with trio.fail_after(STALL_TIMEOUT):
        async with open_node(network) as bob, open_node(network) as alice:
            async with open_node(network) as hub:
                await hub.serve_streams(MemoryStore())
                await hub.listen("loopback:hub")
                await bob.start_worker("handler", handler.work)
                await bob.serve_secure_channels("listener", await Identity.create(bob.vault), trust=trust_everyone)
                await bob.open_stream("loopback:hub", sends=to_alice, receives=to_bob)
                stream = await alice.open_stream("loopback:hub", sends=to_bob, receives=to_alice)
                channel = await alice.open_secure_channel(
                    Route(stream, "listener"), await Identity.create(alice.vault), trust=trust_everyone
                )
                await alice.send(Route(channel, "handler"), b"x", until="handled")
            await channel.aclose()
    assert handler.payloads == [b"x"]


async def test_a_promise_passes_a_channel_without_the_layer_to_the_stream_below(
    autojump_clock: trio.testing.MockClock,
) -> None:
    from trionode_loopback import Loopback

    network = Loopback()
    to_alice, to_bob = unique("to_alice"), unique("to_bob")
    with undelivered(2), trio.fail_after(STALL_TIMEOUT):
        async with open_node(network) as bob, open_node(network) as alice:
            async with open_node(network) as hub:
                await hub.serve_streams(MemoryStore())
                await hub.listen("loopback:hub")
                await bob.serve_secure_channels("listener", await Identity.create(bob.vault), trust=trust_everyone)
                await bob.open_stream("loopback:hub", sends=to_alice, receives=to_bob)
                stream = await alice.open_stream("loopback:hub", sends=to_bob, receives=to_alice)
                channel = await alice.open_secure_channel(
                    Route(stream, "listener"), await Identity.create(alice.vault), trust=trust_everyone, delivery="off"
                )
                await trio.sleep(1)
            for payload in PAYLOADS[:2]:
                await alice.send(Route(channel, "handler"), payload)
