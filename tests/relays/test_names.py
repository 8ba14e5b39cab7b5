"""Owners and limits of relay names, and attacks through a relay (spec §13.2, threats 19 to 22)."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
from trio.testing import MockClock

from tests.support.vectors import load
from trionode import Identity, Mailbox, Node, Route, open_node, trust_everyone
from trionode.counters import DropReason
from trionode.errors import AnswerTimeout, ConnectionLost, LocalError
from trionode.protocol.rules.access import from_anywhere
from trionode.protocol.wire import bare
from trionode.protocol.wire.address import local
from trionode.relay.service import RelayLimits
from trionode.routing.mailbox import Worker
from trionode.workers import echoer
from trionode_loopback import Loopback

HUB = Route("loopback:hub")


@attrs.define(eq=False)
class Scene:
    """A hub that relays and forwards nothing else, and a network on which nodes can be opened."""

    network: Loopback
    hub: Node

    @asynccontextmanager
    async def node(self) -> AsyncIterator[Node]:
        async with open_node(self.network) as node:
            yield node

    async def serve_channels(self) -> None:
        identity = await Identity.create(self.hub.vault)
        await self.hub.serve_secure_channels("listener", identity, trust=trust_everyone)


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    network = Loopback()
    async with open_node(network) as hub:
        await hub.serve_relays(limits=RelayLimits(relays_per_client=3, relays=5))
        await hub.listen("loopback:hub")
        yield Scene(network, hub)


def through(name: str, *rest: str) -> Route:
    return Route(HUB, f"forward_to_{name}", *rest)


def recording(recorded: list[str]) -> Worker:
    async def tell(mailbox: Mailbox) -> None:
        async for message in mailbox:
            recorded.append(message.text)  # noqa: PERF401  # it is looked at before the iteration ends

    return tell


async def secured(node: Node) -> tuple[Route, Identity]:
    """Return a route to the hub through a channel of its own."""
    me = await Identity.create(node.vault)
    return Route(await node.open_secure_channel(Route(HUB, "listener"), me, trust=trust_everyone)), me


async def test_a_classic_channel_runs_through_a_relay(scene: Scene, autojump_clock: MockClock) -> None:
    async with scene.node() as relay_owner, scene.node() as caller:
        theirs, ours = await Identity.create(relay_owner.vault), await Identity.create(caller.vault)
        await relay_owner.start_worker("echoer", echoer)
        await relay_owner.serve_secure_channels(
            "listener", theirs, trust=trust_everyone, protocol_versions=("classic",)
        )
        await relay_owner.open_relay(HUB, "bob")
        channel = await caller.open_secure_channel(
            through("bob", "listener"), ours, trust=trust_everyone, protocol_version="classic"
        )
        for number in range(100):
            assert (await caller.ask(Route(channel, "echoer"), f"{number}")).text == f"{number}"


async def test_owner_and_client_behind_channels_with_the_hub(scene: Scene, autojump_clock: MockClock) -> None:
    await scene.serve_channels()
    async with scene.node() as relay_owner, scene.node() as caller:
        their_route, theirs = await secured(relay_owner)
        our_route, ours = await secured(caller)
        await relay_owner.start_worker("echoer", echoer)
        await relay_owner.serve_secure_channels("inner", theirs, trust=trust_everyone)
        await relay_owner.open_relay(their_route, "bob")
        channel = await caller.open_secure_channel(
            Route(our_route, "forward_to_bob", "inner"), ours, trust=trust_everyone
        )
        for number in range(40):
            assert (await caller.ask(Route(channel, "echoer"), f"{number}")).text == f"{number}"


async def test_message_by_a_relay_counts_as_unauthenticated(scene: Scene, autojump_clock: MockClock) -> None:
    async with scene.node() as relay_owner, scene.node() as caller:
        recorded: list[str] = []
        await relay_owner.start_worker("private", recording(recorded))
        await relay_owner.open_relay(HUB, "bob")
        with pytest.raises(AnswerTimeout):
            await caller.ask(through("bob", "private"), "let me in")
        assert not recorded
        assert relay_owner.counters[DropReason.ACCESS_DENIED] == 1


async def test_name_without_an_identity_belongs_to_the_first_link(
    scene: Scene, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with scene.node() as caller:
        async with scene.node() as first:
            await first.start_worker("echoer", echoer, allow=from_anywhere)
            await first.open_relay(HUB, "bob")
            async with scene.node() as second:
                with pytest.raises(AnswerTimeout, match="may belong to another client"):
                    await second.open_relay(HUB, "bob", timeout=20)
            assert (await caller.ask(through("bob", "echoer"), "hi")).text == "hi"
            assert caplog.text.count("belongs to another") == 1
        async with scene.node() as third:  # the first one's link is gone
            await third.open_relay(HUB, "bob")


async def test_name_of_an_identity_stays_reserved(scene: Scene, autojump_clock: MockClock) -> None:
    await scene.serve_channels()
    async with scene.node() as owner:
        route, me = await secured(owner)
        first = await owner.open_relay(route, "bob")
        await first.aclose()
        await owner.aclose_links()
        async with scene.node() as thief:
            with pytest.raises(AnswerTimeout):
                await thief.open_relay(HUB, "bob", timeout=10)
            with pytest.raises(AnswerTimeout):
                await thief.open_relay((await secured(thief))[0], "bob", timeout=10)
        again = Route(await owner.open_secure_channel(Route(HUB, "listener"), me, trust=trust_everyone))
        await owner.open_relay(again, "bob")


async def test_an_owner_registers_again_when_its_link_was_lost(scene: Scene, autojump_clock: MockClock) -> None:
    async with scene.node() as relay_owner, scene.node() as caller:
        await relay_owner.start_worker("echoer", echoer, allow=from_anywhere)
        await relay_owner.open_relay(HUB, "bob")
        await (await relay_owner.connect("loopback:hub")).aclose()
        answers: list[str] = []
        with trio.fail_after(60):
            while not answers:
                try:
                    answers.append((await caller.ask(through("bob", "echoer"), "hi", timeout=1)).text)
                except AnswerTimeout:
                    continue
        assert answers == ["hi"]


async def test_messages_for_a_lost_owner_are_dropped(scene: Scene, autojump_clock: MockClock) -> None:
    async with scene.node() as caller:
        async with scene.node() as relay_owner:
            await relay_owner.open_relay(HUB, "bob")
        with pytest.raises(AnswerTimeout):
            await caller.ask(through("bob", "echoer"), "hi")
        assert scene.hub.counters[DropReason.UNKNOWN_ADDRESS] == 1


BAD = ["", "a b", "a#b", "x" * 65, "ünï", "a/b", "register "]


@pytest.mark.parametrize("name", BAD)
async def test_invalid_name_raises_here_and_gets_no_answer_from_the_hub(
    scene: Scene, autojump_clock: MockClock, name: str
) -> None:
    async with scene.node() as node:
        with pytest.raises(LocalError, match="1 to 64"):
            await node.open_relay(HUB, name)
        with pytest.raises(AnswerTimeout):
            await node.ask(Route(HUB, "static_forwarding_service"), name, timeout=5)
        assert scene.hub.counters[DropReason.REGISTRATION_REFUSED] == 1


async def test_undecodable_registrations_are_counted(scene: Scene, autojump_clock: MockClock) -> None:
    async with scene.node() as node:
        for payload in (b"", b"\xff", b"\x05abc", b"\x01a!"):
            await node.send(Route(HUB, "forwarding_service"), payload)
        with pytest.raises(AnswerTimeout):
            await node.ask(Route(HUB, "forwarding_service"), b"\x09abc", timeout=1)
        assert scene.hub.counters[DropReason.REGISTRATION_REFUSED] == 5


async def test_limits_of_a_client_and_of_the_hub(scene: Scene, autojump_clock: MockClock) -> None:
    async with scene.node() as one, scene.node() as other:
        for number in range(3):
            await one.open_relay(HUB, f"one{number}")
        with pytest.raises(AnswerTimeout):
            await one.open_relay(HUB, "one4", timeout=5)
        for number in range(2):
            await other.open_relay(HUB, f"other{number}")
        with pytest.raises(AnswerTimeout):
            await other.open_relay(HUB, "other3", timeout=5)


async def test_links_and_relays_reach_nothing_else_of_the_hub(scene: Scene, autojump_clock: MockClock) -> None:
    recorded: list[str] = []
    await scene.hub.start_worker("private", recording(recorded))
    async with scene.node() as relay_owner, scene.node() as caller:
        seen: list[Route] = []

        async def look(mailbox: Mailbox) -> None:
            async for message in mailbox:
                seen.append(message.return_route)
                await mailbox.reply(message, message.payload)

        await relay_owner.start_worker("look", look, allow=from_anywhere)
        await relay_owner.open_relay(HUB, "bob")
        await caller.ask(through("bob", "look"), "hi")
        links = [link.encoded for link in scene.hub._links._all]
        # The owner sees an alias as the return route and none of the hub's links. No link accepts unauthenticated
        # messages.
        assert not {hop.encoded for hop in seen[0]} & set(links)
        for link in scene.hub._links._all:
            with pytest.raises(AnswerTimeout):
                await caller.ask(Route(HUB, link.address, "look"), "hi", timeout=1)
        # A registration can't make a relay lead to a worker of the hub: its route back begins with the link that it came
        # by.
        with pytest.raises(AnswerTimeout):
            await caller.ask(Route(HUB, "forward_to_bob", "private"), "hi", timeout=1)
        assert not recorded


async def test_a_ring_through_a_relay_ends(scene: Scene, autojump_clock: MockClock) -> None:
    async with scene.node() as node:
        link = await node.connect("loopback:hub")

        async def back(mailbox: Mailbox) -> None:
            async for message in mailbox:
                await mailbox.forward(message, Route(link, "forward_to_ring"))

        async with node.open_mailbox() as asker:
            await node.start_worker("back", back, allow=from_anywhere)
            await asker.send(Route(link, "static_forwarding_service"), "ring")
            await asker.receive()
            with pytest.raises(AnswerTimeout):
                await node.ask(Route(link, "forward_to_ring", "back"), "round and round", timeout=5)


async def test_owner_and_client_on_one_link(scene: Scene, autojump_clock: MockClock) -> None:
    async with scene.node() as node:
        await node.start_worker("echoer", echoer, allow=from_anywhere)
        await node.open_relay(HUB, "self")
        for _ in range(100):
            assert (await node.ask(through("self", "echoer"), "x" * 10_000)).text == "x" * 10_000


async def test_a_relay_for_another_node(scene: Scene, autojump_clock: MockClock) -> None:
    async with scene.node() as inner, scene.node() as agent, scene.node() as caller:
        await inner.start_worker("echoer", echoer, allow=from_anywhere)
        await inner.listen("loopback:inner")
        await agent.open_relay(HUB, "inner", to=Route("loopback:inner"))
        assert (await caller.ask(through("inner", "echoer"), "hi")).text == "hi"
        with pytest.raises(ConnectionLost):
            await agent.open_relay(HUB, "nowhere", to=Route("loopback:nowhere"))


async def test_answers_of_the_service_suit_rust_peers_of_both_protocol_versions(
    scene: Scene, autojump_clock: MockClock
) -> None:
    wanted = {
        bytes.fromhex(step["payload"])
        for vector in load("wire/relays.json")
        for step in vector["steps"]
        if step.get("message") == "register"
    }
    assert wanted
    async with scene.node() as node:
        link = await node.connect("loopback:hub")
        async with node.open_mailbox() as relay_owner:
            for payload in sorted(wanted):
                await relay_owner.send(Route(link, "static_forwarding_service"), payload)
                answer = await relay_owner.receive()
                assert answer.payload == payload
                name = bare.Reader(payload).string()
                assert answer.back[-1] == local(f"forward_to_{name}") or name == "register"
