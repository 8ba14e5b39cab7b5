"""Relays on a hub that forwards nothing else: owners, clients, and attacks (spec §13.2)."""

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.support.vectors import load
from trionode import Identity, Message, Node, Route, open_node, trust_everyone
from trionode.counters import DropReason
from trionode.errors import AddressInUseError, AnswerTimeout, ConnectionLost, LocalError
from trionode.net.transport import Link
from trionode.protocol.rules.access import from_anywhere, from_local
from trionode.protocol.rules.return_path import MAX_WRITERS
from trionode.protocol.wire import bare
from trionode.protocol.wire.address import Address, Encoded, local
from trionode.protocol.wire.current_codec import CURRENT
from trionode.protocol.wire.message import LOCAL, Origin
from trionode.relay.return_path import PathEntry, ReturnPaths
from trionode.relay.service import MAX_PATH_SIZE, RelayLimits, RelayService
from trionode.routing.byte_budget import ByteBudget
from trionode.routing.router import Router
from trionode.workers import echo, echoer
from trionode_loopback import Loopback

HUB = Route("loopback:hub")
LIMITS = RelayLimits()
STATIC, EPHEMERAL = "static_forwarding_service", "forwarding_service"


@attrs.define(eq=False)
class Scene:
    """A hub that forwards only for its relays, an owner and a client, each on a link of its own."""

    network: Loopback
    hub: Node
    relays: RelayService
    owner: Node
    caller: Node


@asynccontextmanager
async def open_scene(limits: RelayLimits = LIMITS) -> AsyncIterator[Scene]:
    network = Loopback()
    async with open_node(network) as hub, open_node(network) as owner, open_node(network) as caller:
        await hub.listen("loopback:hub")
        relays = await hub.serve_relays(limits=limits)
        await owner.start_worker("echoer", echo, allow=from_anywhere)
        yield Scene(network, hub, relays, owner, caller)


async def secured(node: Node) -> Route:
    """Return a route to the hub through a secure channel with it, with a new identity each time."""
    identity = await Identity.create(node.vault, secrets.token_hex(4))
    return Route(await node.open_secure_channel(Route(HUB, "listener"), identity, trust=trust_everyone))


async def serve_channels(node: Node) -> Identity:
    identity = await Identity.create(node.vault)
    await node.serve_secure_channels("listener", identity, trust=trust_everyone)
    return identity


def register(node: Node, route: tuple[Encoded, ...], name: str, *, back: tuple[str, ...] = ("worker",)) -> None:
    """Send a registration as a client that makes up its return route."""
    payload = bare.string(name)
    node._router.deliver(Message((*route, local(STATIC)), tuple(map(local, back)), payload))


async def raw(network: Loopback) -> Link:
    return await network.connect("hub")


async def say(link: Link, onward: tuple[Encoded, ...], back: tuple[Encoded, ...], payload: bytes) -> None:
    await link.send([CURRENT.encode(onward, back, payload)])


async def heard(link: Link) -> tuple[tuple[Encoded, ...], tuple[Encoded, ...], bytes]:
    (frame,) = await link.receive()
    return CURRENT.decode(frame)


# What relays are for


async def test_an_echo_goes_through_a_relay_of_a_hub_that_forwards_nothing(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        relay = await scene.owner.open_relay(HUB, "bob")
        assert str(relay.remote) == "0#forward_to_bob"
        answer = await scene.caller.ask(Route(HUB, relay.remote, "echoer"), b"hello")
        assert answer.payload == b"hello"


async def test_name_that_the_hub_chooses_is_random(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        one, other = await scene.owner.open_relay(HUB), await scene.owner.open_relay(HUB)
        assert one.remote != other.remote
        assert len(one.remote.value) == len("forward_to_") + 32
        assert (await scene.caller.ask(Route(HUB, other.remote, "echoer"), b"hello")).payload == b"hello"


async def test_a_whole_secure_channel_runs_over_the_hub_past_the_relay(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        await serve_channels(scene.owner)
        await scene.owner.start_worker("for channels", echoer)
        relay = await scene.owner.open_relay(HUB, "bob")
        alice = await Identity.create(scene.caller.vault)
        channel = await scene.caller.open_secure_channel(
            Route(HUB, relay.remote, "listener"), alice, trust=trust_everyone
        )
        await relay.aclose()
        scene.relays._relays["bob"].on_close()  # as if the name were gone
        for n in range(100):
            assert (await scene.caller.ask(Route(channel, "for channels"), b"%d" % n)).payload == b"%d" % n


async def test_a_worker_of_the_hub_itself_reaches_the_owner(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        relay = await scene.owner.open_relay(HUB, "bob")
        assert (await scene.hub.ask(Route(relay.remote, "echoer"), b"from here")).payload == b"from here"


async def test_a_worker_of_the_hub_itself_can_own_a_relay(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        await scene.hub.start_worker("open", echo, allow=from_anywhere)
        await scene.hub.start_worker("vault", echo, allow=from_local)
        register(scene.hub, (), "open", back=("open",))
        register(scene.hub, (), "vault", back=("vault",))
        assert (await scene.caller.ask(Route(HUB, "forward_to_open"), b"hello")).payload == b"hello"
        with pytest.raises(AnswerTimeout):
            await scene.caller.ask(Route(HUB, "forward_to_vault"), b"hello", timeout=1)
        assert scene.hub.counters[DropReason.ACCESS_DENIED] == 1


async def test_owner_and_client_connect_through_channels_with_the_hub(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        await serve_channels(scene.hub)
        await serve_channels(scene.owner)
        await scene.owner.start_worker("for channels", echoer)

        async def route_of_owner() -> Route:
            return await secured(scene.owner)

        relay = await scene.owner.open_relay(route_of_owner, "bob")
        route = await secured(scene.caller)
        assert (await scene.caller.ask(Route(route, relay.remote, "echoer"), b"hello")).payload == b"hello"
        alice = await Identity.create(scene.caller.vault)
        channel = await scene.caller.open_secure_channel(
            Route(route, relay.remote, "listener"), alice, trust=trust_everyone
        )
        for n in range(100):
            assert (await scene.caller.ask(Route(channel, "for channels"), b"%d" % n)).payload == b"%d" % n
        assert scene.hub.counters[DropReason.ACCESS_DENIED] == 0


@pytest.mark.parametrize("in_a_channel", [False, True])
async def test_flood_back_out_by_its_own_link_blocks_no_other(in_a_channel: bool, autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        await serve_channels(scene.hub)
        node = scene.owner
        route = await secured(node) if in_a_channel else HUB

        async def hub() -> Route:
            return route

        relay = await node.open_relay(hub, "bob")
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for _ in range(4):
                    nursery.start_soon(_flood, node, Route(route, relay.remote, "nowhere"))
        other = await scene.caller.open_relay(HUB, "alice")
        await scene.caller.start_worker("echoer", echo, allow=from_anywhere)
        assert (await scene.caller.ask(Route(HUB, other.remote, "echoer"), b"alive")).payload == b"alive"


async def _flood(node: Node, route: Route) -> None:
    for _ in range(100):
        await node.send(route, bytes(20_000))


async def test_a_relay_leads_to_a_node_behind_its_owner(autojump_clock: MockClock) -> None:
    async with open_scene() as scene, open_node(scene.network) as inside:
        await inside.listen("loopback:inside")
        await serve_channels(inside)
        await inside.start_worker("for channels", echoer)
        relay = await scene.owner.open_relay(HUB, "bob", to=Route("loopback:inside"))
        alice = await Identity.create(scene.caller.vault)
        channel = await scene.caller.open_secure_channel(
            Route(HUB, relay.remote, "listener"), alice, trust=trust_everyone
        )
        assert (await scene.caller.ask(Route(channel, "for channels"), b"inside")).payload == b"inside"
        # The node in between offers nothing of its own by it.
        with pytest.raises(AnswerTimeout):
            await scene.caller.ask(Route(HUB, relay.remote, "echoer"), b"?", timeout=1)


async def test_a_relay_reaches_the_node_behind_its_owner_again(autojump_clock: MockClock) -> None:
    async with open_scene() as scene, open_node(scene.network) as inside:
        await inside.listen("loopback:inside")
        await inside.start_worker("echoer", echo, allow=from_anywhere)
        relay = await scene.owner.open_relay(HUB, "bob", to=Route("loopback:inside"))
        there = Route(HUB, relay.remote, "echoer")
        await (await scene.owner.connect("loopback:inside")).aclose()
        with pytest.raises(AnswerTimeout):
            await scene.caller.ask(there, b"too soon", timeout=0.01)
        assert scene.owner.counters[DropReason.RELAY_TARGET_AWAY] == 1
        await trio.sleep(1)  # virtual: longer than the first pause
        assert (await scene.caller.ask(there, b"again")).payload == b"again"


async def test_a_relay_to_a_node_that_is_not_there_raises_at_once(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        with pytest.raises(ConnectionLost):
            await scene.owner.open_relay(HUB, "bob", to=Route("loopback:unreachable"))
        with pytest.raises(LocalError, match="`to` begins with a transport address"):
            await scene.owner.open_relay(HUB, "bob", to=Route("echoer"))


# Whose a name is


async def test_a_name_without_a_channel_is_free_once_its_link_is_gone(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        link = await scene.owner.connect("loopback:hub")
        register(scene.owner, (link.encoded,), "bob")
        await wait_all_tasks_blocked()
        assert len(scene.relays) == 1
        await link.aclose()
        await wait_all_tasks_blocked()
        assert len(scene.relays) == 0
        await scene.caller.open_relay(HUB, "bob")


async def test_name_of_an_identity_is_reserved_while_it_is_away(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        await serve_channels(scene.hub)
        bob = await Identity.create(scene.owner.vault)
        at_hub = Route(HUB, "listener")
        channel = await scene.owner.open_secure_channel(at_hub, bob, trust=trust_everyone)
        register(scene.owner, (channel._hops.encryptor,), "bob")
        await wait_all_tasks_blocked()
        await channel.aclose()
        await wait_all_tasks_blocked()
        assert len(scene.relays) == 1

        async def route_of_mallory() -> Route:
            return await secured(scene.caller)

        for route in (HUB, route_of_mallory):
            with pytest.raises(AnswerTimeout):
                await scene.caller.open_relay(route, "bob", timeout=3)
        with pytest.raises(AnswerTimeout):
            await scene.owner.open_relay(HUB, "bob", timeout=3)

        async def route_to_bob() -> Route:
            return Route(await scene.owner.open_secure_channel(at_hub, bob, trust=trust_everyone))

        relay = await scene.owner.open_relay(route_to_bob, "bob")
        assert (await scene.caller.ask(Route(HUB, relay.remote, "echoer"), b"Bob")).payload == b"Bob"


async def test_the_same_link_moves_its_relay(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        link = await scene.owner.connect("loopback:hub")
        for worker in ("first", "second"):
            async with scene.owner.open_mailbox(worker, allow=from_anywhere) as mailbox:
                register(scene.owner, (link.encoded,), "bob", back=(worker,))
                assert (await mailbox.receive()).text == "bob"
                await scene.caller.send(Route(HUB, "forward_to_bob"), worker)
                assert (await mailbox.receive()).text == worker
        assert len(scene.relays) == 1


# Being lost


async def test_an_owner_registers_again_when_its_link_was_lost(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        relay = await scene.owner.open_relay(HUB, "bob")
        for n in range(3):
            await (await scene.owner.connect("loopback:hub")).aclose()
            await trio.sleep(10)  # virtual: the longest pause before it connects again is half of it
            assert (await scene.caller.ask(Route(HUB, relay.remote, "echoer"), b"%d" % n)).payload == b"%d" % n


async def test_client_gets_its_name_when_the_hub_notices_the_end_of_its_old_link(
    autojump_clock: MockClock,
) -> None:
    async with open_scene() as scene:
        old = await scene.caller.connect("loopback:hub")
        register(scene.caller, (old.encoded,), "bob")
        await wait_all_tasks_blocked()
        async with trio.open_nursery() as nursery:

            async def end() -> None:
                await trio.sleep(7)
                await old.aclose()

            nursery.start_soon(end)
            await scene.owner.open_relay(HUB, "bob")


async def test_return_paths_end_with_their_link_and_with_the_service(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        before = len(scene.hub._router._table)
        relay = await scene.owner.open_relay(HUB, "bob")
        await scene.caller.ask(Route(HUB, relay.remote, "echoer"), b"?")
        # Two links with an alias each, and the relay.
        assert len(scene.hub._router._table) == before + 5
        await (await scene.caller.connect("loopback:hub")).aclose()
        await wait_all_tasks_blocked()
        assert len(scene.hub._router._table) == before + 3
        await scene.relays.aclose()
        assert len(scene.hub._router._table) == before + 1 - 2
        assert not len(scene.relays._return_paths)
        assert not any(scene.hub._router._close_callbacks.values())


async def test_hub_without_relay_service_times_out(autojump_clock: MockClock) -> None:
    network = Loopback()
    async with open_node(network) as hub, open_node(network) as owner:
        await hub.listen("loopback:hub")
        with pytest.raises(AnswerTimeout, match="may not offer the service 0#static_forwarding_service"):
            await owner.open_relay(HUB, "bob", timeout=3)
        with pytest.raises(ConnectionLost):
            await owner.open_relay(Route("loopback:unreachable"), "bob")


async def test_a_second_hub_is_tried_when_the_first_is_away(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        relay = await scene.owner.open_relay([Route("loopback:unreachable"), HUB], "bob")
        assert (await scene.caller.ask(Route(HUB, relay.remote, "echoer"), b"hello")).payload == b"hello"


# What clients may ask for


BAD = [
    b"",
    b"\x05abc",
    b"\x02\xff\xfe",
    bare.string(""),
    bare.string("a#b"),
    bare.string("a/b"),
    bare.string("x" * 65),
    bare.string("a\n"),
    bare.string("bob") + b"\x00",
]


@pytest.mark.parametrize("payload", BAD)
async def test_invalid_registration_gets_no_answer(payload: bytes, autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        with pytest.raises(AnswerTimeout):
            await scene.owner.ask(Route(HUB, STATIC), payload, timeout=1)
        assert scene.hub.counters == {DropReason.REGISTRATION_REFUSED: 1}
        assert len(scene.relays) == 0


async def test_relays_of_a_client_and_of_all_are_limited(
    autojump_clock: MockClock,
) -> None:
    async with open_scene(limits=RelayLimits(relays_per_client=3, relays=5)) as scene:
        for node in (scene.owner, scene.caller):
            link = await node.connect("loopback:hub")
            for n in range(10):
                register(node, (link.encoded,), f"{n}-{id(node)}")
                register(node, (link.encoded,), "register")
        await wait_all_tasks_blocked()
        assert len(scene.relays) == 5
        await (await scene.owner.connect("loopback:hub")).aclose()
        await (await scene.caller.connect("loopback:hub")).aclose()
        await wait_all_tasks_blocked()
        assert len(scene.relays) == 0
        assert not scene.relays._per_owner


async def test_too_long_return_route_is_refused(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        link = await scene.owner.connect("loopback:hub")
        register(scene.owner, (link.encoded,), "bob", back=("x" * MAX_PATH_SIZE,))
        await wait_all_tasks_blocked()
        assert len(scene.relays) == 0


async def test_name_of_a_worker_is_refused(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        await scene.hub.start_worker("forward_to_bob", echo, allow=from_local)
        with pytest.raises(AnswerTimeout):
            await scene.owner.open_relay(HUB, "bob", timeout=3)
        assert len(scene.relays) == 0


async def test_a_prefix_keeps_relays_apart_from_workers() -> None:
    async with open_node() as node:
        with pytest.raises(LocalError, match="the prefix of relay addresses"):
            await node.serve_relays(prefix="")
        await node.start_worker(EPHEMERAL, echo)
        with pytest.raises(AddressInUseError):
            await node.serve_relays(services=(STATIC, EPHEMERAL))
        await node.start_worker(STATIC, echo)  # nothing of the failed one is left


# Attacks by unauthenticated peers


async def test_forged_return_route_leads_back_to_its_sender_only(autojump_clock: MockClock) -> None:
    """Threat 20: neither a registration nor a message can aim at a worker, a link or an encryptor of the hub."""
    async with open_scene() as scene:
        reached: list[Message] = []

        scene.hub._router.register(local("vault"), reached.append, allow=from_local)
        await scene.caller.connect("loopback:hub")
        await wait_all_tasks_blocked()
        (victim_link,) = scene.hub._links._all
        mallory = await raw(scene.network)
        for aim in (local("vault"), victim_link.encoded):
            name = secrets.token_hex(4)
            await say(mallory, (local(STATIC),), (aim,), bare.string(name))
            assert await heard(mallory) == ((aim,), (local(f"forward_to_{name}"),), bare.string(name))
            await say(mallory, (local(f"forward_to_{name}"), aim), (aim,), b"aimed")
            onward, back, payload = await heard(mallory)
            assert (onward, payload) == ((aim, aim), b"aimed")
            # Its own alias, by which it reaches only itself.
            await say(mallory, (back[0], aim), (), b"again")
            assert (await heard(mallory))[0] == (aim,)
        assert not reached
        await mallory.aclose()


async def test_links_of_the_hub_are_unreachable_even_by_their_address(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        relay = await scene.owner.open_relay(HUB, "bob")
        (link,) = scene.hub._links._all
        for route in (Route(HUB), Route(HUB, relay.remote)):
            with pytest.raises(AnswerTimeout):
                await scene.caller.ask(Route(route, link.address, "echoer"), b"?", timeout=1)
        assert scene.hub.counters[DropReason.ACCESS_DENIED] == 1
        assert scene.owner.counters[DropReason.UNKNOWN_ADDRESS] == 1


async def test_clients_cannot_use_the_identity_of_the_hub(autojump_clock: MockClock) -> None:
    """Threat 22: a relayed message is unauthenticated to the owner, even if the owner trusts the identity of the hub."""
    async with open_scene() as scene:
        await serve_channels(scene.hub)
        await scene.owner.start_worker("for channels", echoer)

        async def route() -> Route:
            return await secured(scene.owner)

        relay = await scene.owner.open_relay(route, "bob")
        with pytest.raises(AnswerTimeout):
            await scene.caller.ask(Route(HUB, relay.remote, "for channels"), b"?", timeout=1)
        assert scene.owner.counters[DropReason.ACCESS_DENIED] == 1


async def test_only_answers_pass_into_the_channel_of_a_client(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        await serve_channels(scene.hub)
        await scene.caller.start_worker("for channels", echoer)
        route = await secured(scene.caller)
        async with scene.owner.open_mailbox("mallory", allow=from_anywhere) as mallory:
            relay = await scene.owner.open_relay(HUB, "mallory")
            async with scene.caller.open_mailbox() as asker:
                await asker.send(Route(route, relay.remote, "mallory"), b"hello")
                message = await mallory.receive()
                await mallory.reply(message, b"answer")
                assert (await asker.receive()).payload == b"answer"
            hops = message.return_route.hops
            await mallory.send(Route(*hops[:-1], "for channels"), b"as the hub")
            await mallory.send(Route(*hops[:-1]), b"unread")
            await wait_all_tasks_blocked()
        assert scene.hub.counters[DropReason.RELAY_RECEIVER_UNKNOWN] == 2


async def test_forged_answer_does_not_move_the_relay(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        relay = await scene.owner.open_relay(HUB, "bob")
        await scene.caller.send(Route(HUB, relay.remote), "mallory is not bob")
        await wait_all_tasks_blocked()
        assert str(relay.remote) == "0#forward_to_bob"
        assert scene.owner.counters[DropReason.REGISTRATION_ANSWER_UNEXPECTED] == 1


async def test_a_ring_of_relays_ends_when_the_route_is_full(autojump_clock: MockClock) -> None:
    async with open_scene() as scene, open_node(scene.network, forwards=True) as node:
        link = await node.connect("loopback:hub", name="hub")
        register(node, (link.encoded,), "ring", back=("hub", "forward_to_ring"))
        await wait_all_tasks_blocked()
        with trio.fail_after(10):
            await scene.caller.send(Route(HUB, "forward_to_ring"), b"round")
            await wait_all_tasks_blocked()
        counted = scene.hub.counters + node.counters
        assert counted[DropReason.ROUTE_TOO_LONG] == 2  # the message, and before it the answer to the registration


async def test_relay_to_itself_ends_after_32_local_deliveries(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        await scene.hub.start_worker("somewhere", echo)
        register(scene.hub, (), "one", back=("somewhere",))
        register(scene.hub, (), "other", back=("forward_to_one",))
        register(scene.hub, (), "one", back=("forward_to_other",))
        await wait_all_tasks_blocked()
        scene.hub.counters.clear()
        await scene.caller.send(Route(HUB, "forward_to_one"), b"round")
        await wait_all_tasks_blocked()
        assert scene.hub.counters == {DropReason.DELIVERY_LOOP: 1}


async def test_owner_that_reads_nothing_loses_its_link_and_the_client_continues(
    autojump_clock: MockClock,
) -> None:
    async with open_scene() as scene:
        hung = await raw(scene.network)
        await say(hung, (local(STATIC),), (local("hung"),), bare.string("hung"))
        await heard(hung)
        good = await scene.owner.open_relay(HUB, "bob")
        with trio.fail_after(120):
            for _ in range(100):
                await scene.caller.send(Route(HUB, "forward_to_hung"), bytes(20_000))
            assert (await scene.caller.ask(Route(HUB, good.remote, "echoer"), b"on")).payload == b"on"
        await hung.aclose()


async def test_drop_when_full_link_never_waits_for_a_relay(autojump_clock: MockClock) -> None:
    async with open_scene() as scene, open_node(scene.network) as far:
        await scene.hub.listen("loopback:hub2", drop_when_full=True)
        hung = await raw(scene.network)
        await say(hung, (local(STATIC),), (local("hung"),), bare.string("hung"))
        await heard(hung)
        good = await scene.owner.open_relay(HUB, "bob")
        began = trio.current_time()
        for _ in range(400):
            await far.send(Route("loopback:hub2", "forward_to_hung"), bytes(20_000))
        answer = await far.ask(Route("loopback:hub2", good.remote, "echoer"), b"on")
        assert answer.payload == b"on"
        assert trio.current_time() - began < 1
        assert scene.hub.counters[DropReason.RELAY_PATH_FULL]
        assert len(scene.relays) == 2
        await hung.aclose()


LINK, OTHER = Origin(link=local("a link")), Origin(link=local("another"))


@pytest.mark.parametrize(
    ("owner", "caller", "waits"),
    [
        (LINK, OTHER, True),
        (LINK, LOCAL, True),
        (LINK, LINK, False),
        (attrs.evolve(LINK, identifier=bytes(32)), LINK, False),
        (attrs.evolve(LINK, identifier=bytes(32)), OTHER, True),
        (LINK, attrs.evolve(OTHER, drop_when_full=True), False),
        (Origin(stream=local("a stream")), OTHER, False),
        (Origin(stream=local("a stream"), identifier=bytes(32)), OTHER, False),
    ],
)
def test_only_the_reader_of_another_ordinary_link_waits_for_a_relay(owner: Origin, caller: Origin, waits: bool) -> None:
    router = Router()
    budget = ByteBudget()
    seen: list[Message] = []

    def hop(message: Message) -> ByteBudget | None:
        seen.append(message)
        return budget.add(budget.hard_bound // 4)

    for first in ("owner", "caller"):
        router.register(local(first), hop, allow=from_local)
    return_paths = ReturnPaths(router)
    entry = return_paths.enter(local("owner"), owner)
    for _ in range(8):
        over_budget = return_paths.pass_on(
            Message((local("x"),), (local("caller"), local("app")), b"", caller), entry, ()
        )
        assert over_budget is (budget if waits else None)
    assert len(seen) == (8 if waits else 4)
    # What did not begin here would be an answer of its hub to a stream.
    assert all(message.origin.is_local for message in seen) == (
        caller is LOCAL or (owner.stream is not None and owner.identifier is None)
    )


def test_the_least_recently_active_sender_is_forgotten_first() -> None:
    entry = PathEntry(local("encryptor"), local("alias"), Origin(identifier=bytes(32)))
    for n in range(MAX_WRITERS):
        entry.note(local(str(n)))
    assert entry.admits((entry.alias, local("0")))
    entry.note(local("new"))
    assert len(entry.writers) == MAX_WRITERS
    assert entry.admits((entry.alias, local("0")))
    assert not entry.admits((entry.alias, local("1")))


# The captured conversations of ockam 0.150.0


async def test_the_captured_client_is_answered_and_reached(autojump_clock: MockClock) -> None:
    """Replay a transcript of a Rust service against ours: both clients send the recorded messages."""
    transcript = next(each for each in load("wire/relays.json") if each["kind"].endswith("transcript"))
    steps = [CURRENT.decode(bytes.fromhex(each["hex"])[4:]) for each in transcript["steps"]]
    async with open_scene() as scene:
        node, caller = await raw(scene.network), await raw(scene.network)
        await say(node, *steps[0])
        onward, back, payload = await heard(node)
        assert (onward, back) == steps[1][:2]
        assert payload == steps[0][2]  # the name as it came, which clients of both protocol versions take
        await say(caller, *steps[2])
        onward, back, payload = await heard(node)
        # The client's own address stays in front: it takes itself away.
        assert onward == (*steps[0][1], *steps[3][0])
        assert (back[1:], payload) == (steps[3][1][1:], steps[3][2])
        await say(node, (back[0], *steps[4][0][1:]), *steps[4][1:])
        onward, back, payload = await heard(caller)
        assert (onward, back[1:], payload) == (steps[5][0], steps[5][1][1:], steps[5][2])
        await node.aclose()
        await caller.aclose()


@pytest.mark.parametrize(("named", "request_at", "answer_at"), [(True, 0, 1), (False, 2, 3)])
async def test_our_client_takes_the_captured_answers(
    named: bool, request_at: int, answer_at: int, autojump_clock: MockClock
) -> None:
    transcript = load("wire/relays.json")[1]
    steps = [CURRENT.decode(bytes.fromhex(each["hex"])[4:]) for each in transcript["steps"]]
    network = Loopback()
    async with open_node(network) as owner, open_node(network) as hub:
        await hub.listen("loopback:hub")
        service = steps[request_at][0][0]

        def answer(message: Message) -> None:
            assert message.payload == steps[request_at][2]
            _, back, payload = steps[answer_at]
            hub._router.answer(message, back[0], payload)

        hub._router.register(service, answer, allow=from_anywhere)
        relay = await owner.open_relay(HUB, "rusty" if named else None)
        assert relay.remote == Address.from_encoded(steps[answer_at][1][-1])


@pytest.mark.parametrize("scheme", ["tcp", "tcp_classic"])
@pytest.mark.parametrize("callers", ["tcp", "tcp_classic"])
async def test_both_protocol_versions_use_one_hub_over_tcp(scheme: str, callers: str) -> None:
    transports = ("tcp", "tcp_classic")
    with trio.fail_after(20):
        async with open_node("tcp") as hub, open_node(*transports) as owner, open_node(*transports) as caller:
            endpoint = (await hub.listen("tcp:127.0.0.1:0")).value.decode()
            await hub.serve_relays()
            await serve_channels(owner)
            await owner.start_worker("echoer", echo, allow=from_anywhere)
            relay = await owner.open_relay(Route(f"{scheme}:{endpoint}"), "bob")
            route = Route(f"{callers}:{endpoint}", relay.remote)
            assert (await caller.ask(Route(route, "echoer"), b"plain")).payload == b"plain"
            alice = await Identity.create(caller.vault)
            channel = await caller.open_secure_channel(Route(route, "listener"), alice, trust=trust_everyone)
            assert (await caller.ask(Route(channel, "echoer"), b"sealed")).payload == b"sealed"
