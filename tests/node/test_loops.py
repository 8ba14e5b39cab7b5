from typing import ClassVar

import pytest
from trio.testing import MockClock, wait_all_tasks_blocked

from trionode import Mailbox, Node, Route, open_node
from trionode.counters import DropReason
from trionode.net.transport import Link
from trionode.protocol.rules.access import from_anywhere
from trionode.protocol.wire.address import Address, local
from trionode.protocol.wire.current_codec import CURRENT
from trionode.protocol.wire.route import MAX_HOPS
from trionode.routing.mailbox import Worker
from trionode.routing.router import MAX_DELIVERIES
from trionode_loopback import Loopback


def forwarder(to: list[Route], handled: list[int]) -> Worker:
    """A worker that sends everything on by the route that `to` holds."""

    async def work(mailbox: Mailbox) -> None:
        async for message in mailbox:
            handled.append(len(message.back))
            await mailbox.forward(message, to[0])

    return work


async def two_that_forward(one: Node, other: Node, to_one: Route, to_other: Route, handled: list[int]) -> None:
    await one.start_worker("relay", forwarder([to_other], handled), allow=from_anywhere)
    await other.start_worker("relay", forwarder([to_one], handled), allow=from_anywhere)


async def test_forwarding_loop_of_two_workers_ends_after_32_local_deliveries(
    autojump_clock: MockClock,
) -> None:
    handled: list[int] = []
    async with open_node() as node:
        await node.start_worker("ping", forwarder([Route("pong")], handled))
        await node.start_worker("pong", forwarder([Route("ping")], handled))
        await node.send(Route("ping"), b"round")
        await wait_all_tasks_blocked()
        assert len(handled) == MAX_DELIVERIES
        assert node.counters == {DropReason.DELIVERY_LOOP: 1}


async def test_forwarding_loop_of_two_nodes_ends_when_the_route_is_full(
    autojump_clock: MockClock,
) -> None:
    handled: list[int] = []
    network = Loopback()
    async with open_node(network) as hub, open_node(network) as other:
        at = await hub.listen("loopback:hub")
        link = await other.connect(str(at))
        backwards: list[Route] = []

        async def learn(mailbox: Mailbox) -> None:
            message = await mailbox.receive()
            backwards.append(Route(message.return_route.hops[0], "relay"))

        await hub.start_worker("learn", learn, allow=from_anywhere)
        await other.send(Route(link, "learn"), b"")
        await wait_all_tasks_blocked()
        await two_that_forward(hub, other, Route(link, "relay"), backwards[0], handled)
        await other.send(Route("relay"), b"round")
        await wait_all_tasks_blocked()
        assert handled == list(range(MAX_HOPS))
        assert hub.counters + other.counters == {DropReason.ROUTE_TOO_LONG: 1}


async def test_route_back_and_forth_between_two_forwarding_nodes_is_used_up(
    autojump_clock: MockClock,
) -> None:
    network = Loopback()
    async with open_node(network, forwards=True) as hub, open_node(network, forwards=True) as other:
        at = await hub.listen("loopback:hub")
        link = await other.connect(str(at))
        async with hub.open_mailbox("learn", allow=from_anywhere) as learn:
            await other.send(Route(link, "learn"), b"")
            back = (await learn.receive()).return_route.hops[0]
        async with other.open_mailbox() as box:
            around = Route(link, back)
            to_and_fro = Route(*[around] * 9, link)
            async with hub.open_mailbox("end", allow=from_anywhere) as end:
                # The return route grows by two hops where the onward route loses two: 20 + 1 and more on the way than
                # 32 together never.
                await box.send(Route(to_and_fro, "end"), b"far")
                assert len((await end.receive()).back) == 20
                await box.send(Route(*[around] * 15, "end"), b"too far")
                await wait_all_tasks_blocked()
                assert not len(end._inbox)


@pytest.mark.parametrize(
    ("onward", "back", "arrives"), [(1, 30, True), (1, 31, False), (16, 15, True), (16, 16, False)]
)
async def test_message_with_more_than_32_hops_is_dropped(
    onward: int, back: int, *, arrives: bool, autojump_clock: MockClock
) -> None:
    network = Loopback()
    async with open_node(network) as node, node.open_mailbox("box", allow=from_anywhere) as box:
        await node.listen("loopback:node")
        link = await network.connect("node")
        await link.send([CURRENT.encode((local("box"), *[local("x")] * (onward - 1)), (local("y"),) * back, b"")])
        await wait_all_tasks_blocked()
        assert len(box._inbox) == arrives
        assert node.counters == ({} if arrives else {DropReason.ROUTE_TOO_LONG: 1})
        if arrives:
            message = await box.receive()
            assert len(message.onward) + len(message.back) == MAX_HOPS
            await box.reply(message, b"answer")
            (answer,) = await link.receive()
            assert answer == CURRENT.encode((local("y"),) * back, (local("box"),), b"answer")
        await link.aclose()


async def test_forwarding_worker_drops_message_with_too_many_hops_for_the_next_node(
    autojump_clock: MockClock,
) -> None:
    network = Loopback()
    async with open_node(network) as node, open_node(network) as far:
        at = await far.listen("loopback:far")
        link = await node.connect(str(at))
        await node.listen("loopback:node")
        await node.start_worker("relay", forwarder([Route(link, *["x"] * 10)], []), allow=from_anywhere)
        raw_peer = await network.connect("node")
        await raw_peer.send([CURRENT.encode((local("relay"),), (local("y"),) * 25, b"")])
        await wait_all_tasks_blocked()
        assert node.counters == {DropReason.ROUTE_TOO_LONG: 1}
        await raw_peer.aclose()


async def test_remote_message_never_makes_the_node_dial(autojump_clock: MockClock) -> None:
    network = Loopback()
    async with open_node(network, forwards=True) as hub:
        await hub.listen("loopback:hub")
        dialled: list[str] = []

        class Watching(Loopback):
            name: ClassVar[str] = "tcp"

            async def connect(self, peer: str) -> Link:
                dialled.append(peer)
                return await super().connect(peer)

        hub._links._transports["tcp"] = Watching()
        raw_peer = await network.connect("hub")
        tcp = Address("127.0.0.1:4000", "tcp").encoded
        await raw_peer.send([CURRENT.encode((tcp, local("echoer")), (), b"")])
        await wait_all_tasks_blocked()
        assert not dialled
        assert hub.counters == {DropReason.UNKNOWN_ADDRESS: 1}
        await raw_peer.aclose()
