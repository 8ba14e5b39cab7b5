"""The cases of docs/architecture.md, "Backpressure". Memory is bounded in all of them.

The case of a decryptor that feeds a hung worker is in the tests of secure channels.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress

import pytest
import trio
from trio.testing import MockClock

from trionode import Mailbox, Message, Node, Route, open_node
from trionode.counters import DropReason
from trionode.errors import ConnectionLost
from trionode.net.transport import Link, Transport
from trionode.protocol.rules.access import from_anywhere
from trionode.protocol.wire.address import local
from trionode.protocol.wire.current_codec import CURRENT
from trionode.routing.link import STALL_TIMEOUT as LINK_STALL_TIMEOUT
from trionode.routing.link import NodeLink
from trionode.routing.mailbox import STALL_TIMEOUT, Worker
from trionode.routing.memory_channel import ITEM_OVERHEAD, MemoryChannel
from trionode.workers import echoer
from trionode_loopback import Loopback
from trionode_tcp import TCP

BODY = bytes(1000)
#: What one message costs in a queue, at most: payload, routes, overhead.
COST = len(BODY) + 400 + ITEM_OVERHEAD


class Watch:
    """The largest size that each mailbox and outbox ever had."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.highest: dict[MemoryChannel[object], int] = {}
        put = MemoryChannel.put

        def watched(channel: MemoryChannel[object], item: object, size: int) -> object:
            over_budget = put(channel, item, size)
            if isinstance(item, Message | bytes):
                self.highest[channel] = max(self.highest.get(channel, 0), channel.size)
            return over_budget

        monkeypatch.setattr(MemoryChannel, "put", watched)

    def assert_bounded(self, *, owing: int) -> None:
        """Every queue held its bound and one message for each waiting task."""
        assert self.highest
        for channel, highest in self.highest.items():
            assert highest <= channel.bound + owing * COST

    def assert_hard_bounded(self, *, owing: int) -> None:
        """Every queue held at most its hard bound and one message for each waiting task."""
        assert self.highest
        for channel, highest in self.highest.items():
            assert highest <= channel.hard_bound + owing * COST


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    return Watch(monkeypatch)


async def silent(_: Mailbox) -> None:
    """A worker that never takes a message."""
    await trio.sleep_forever()


def counter(counted: list[int], *, pause: float = 0) -> Worker:
    """A worker that counts messages in `counted[0]`, and sleeps between them if it is slow."""

    async def work(mailbox: Mailbox) -> None:
        async for _ in mailbox:
            counted[0] += 1
            if pause:
                await trio.sleep(pause)

    return work


def link_of(node: Node) -> NodeLink:
    (link,) = node._links._all
    return link


async def never_read(_: Link) -> None:
    """A peer that neither reads nor writes, and stays."""
    await trio.sleep_forever()


# 1


async def test_a_worker_that_asks_over_the_link_that_feeds_it_while_its_mailbox_is_full(
    watch: Watch, autojump_clock: MockClock
) -> None:
    network, asked, bound = Loopback(), 0, 20 * COST
    async with open_node(network) as bob, open_node(network) as alice:
        at = await bob.listen("loopback:bob")
        await alice.start_worker("oracle", echoer, allow=from_anywhere)

        async def curious(mailbox: Mailbox) -> None:
            nonlocal asked
            async for message in mailbox:
                answer = await bob.ask(Route(message.return_route.hops[0], "oracle"), b"?")
                assert answer.payload == b"?"
                asked += 1

        await bob.start_worker("curious", curious, allow=from_anywhere, bound=bound)
        link = await alice.connect(str(at))
        async with alice.open_mailbox() as box:
            for _ in range(2000):
                await box.send(Route(link, "curious"), BODY)
        await trio.sleep(60)
        assert asked >= 20, "the worker got its answers although its own mailbox stopped the link that carries them"
        assert asked + bob.counters[DropReason.MAILBOX_STALLED] == 2000
        assert link_of(bob).is_open
        assert trio.current_time() < 60 + 20 * STALL_TIMEOUT
    watch.assert_bounded(owing=2)


# 2


@pytest.mark.parametrize("pause", [0.005])
async def test_a_hub_with_a_fast_a_slow_and_a_stopped_receiver(
    pause: float, watch: Watch, autojump_clock: MockClock
) -> None:
    network, rounds = Loopback(), 2000
    fast, slow = [0], [0]
    async with (
        trio.open_nursery() as nursery,
        open_node(network) as quick,
        open_node(network) as tardy,
        open_node(network, forwards=True) as hub,
        open_node(network) as sender,
    ):
        await quick.start_worker("sink", counter(fast), allow=from_anywhere)
        await tardy.start_worker("sink", counter(slow, pause=pause), allow=from_anywhere)
        await nursery.start(network.serve, "silent", never_read)
        await hub.connect(str(await quick.listen("loopback:quick")), name="fast")
        await hub.connect(str(await tardy.listen("loopback:tardy")), name="slow")
        mute = await hub.connect("loopback:silent", name="silent")
        link = await sender.connect(str(await hub.listen("loopback:hub")))
        async with sender.open_mailbox() as box:
            for _ in range(rounds):
                for name in ("fast", "slow", "silent"):
                    await box.send(Route(link, name, "sink"), BODY)
        await quiet(fast, slow)
        assert fast == slow == [rounds], "only the silent one is lost"
        assert mute.ended.is_set()
        assert not tardy.counters + quick.counters
        assert hub.counters[DropReason.UNKNOWN_ADDRESS] > 0
        # The sender was held up once for the stall timeout of the stopped worker, and no longer than the slow one takes anyway.
        assert trio.current_time() < LINK_STALL_TIMEOUT + rounds * pause + 60
        nursery.cancel_scope.cancel()
    watch.assert_bounded(owing=2)


# 3


@pytest.mark.parametrize("reader", [silent, None], ids=["into unread mailboxes", "to no address"])
async def test_two_nodes_that_only_send(reader: Worker | None, watch: Watch, autojump_clock: MockClock) -> None:
    network, count, done = Loopback(), 3000, 0
    async with open_node(network) as one, open_node(network) as other:
        at = await one.listen("loopback:one")
        there = await other.connect(str(at))
        await trio.testing.wait_all_tasks_blocked()
        back = link_of(one)
        if reader is not None:
            for node in (one, other):
                await node.start_worker("sink", reader, allow=from_anywhere)

        async def send(node: Node, link: NodeLink) -> None:
            nonlocal done
            async with node.open_mailbox() as box:
                for _ in range(count):
                    await box.send(Route(link, "sink"), BODY)
            done += 1

        with trio.fail_after(3 * STALL_TIMEOUT):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send, one, back)
                nursery.start_soon(send, other, there)
        assert done == 2
        assert there.is_open
        assert back.is_open
    watch.assert_bounded(owing=2)


async def test_two_nodes_that_only_send_over_real_sockets(watch: Watch) -> None:
    count, done = 20_000, 0
    with trio.fail_after(10):
        async with open_node("tcp") as one, open_node("tcp") as other:
            at = await one.listen("tcp:127.0.0.1:0")
            there = await other.connect(str(at))
            while not one._links._all:
                await trio.lowlevel.checkpoint()
            back = link_of(one)
            for node in (one, other):
                await node.start_worker("sink", silent, allow=from_anywhere, stall_timeout=0.1)

            async def send(node: Node, link: NodeLink) -> None:
                nonlocal done
                async with node.open_mailbox() as box:
                    for _ in range(count):
                        await box.send(Route(link, "sink"), BODY)
                done += 1

            async with trio.open_nursery() as nursery:
                nursery.start_soon(send, one, back)
                nursery.start_soon(send, other, there)
            assert done == 2
    watch.assert_bounded(owing=2)


# 5


def public_service(served: list[int]) -> Worker:
    async def work(mailbox: Mailbox) -> None:
        async for message in mailbox:
            served[0] += 1
            mailbox.reply_nowait(message, message.payload)

    return work


@pytest.mark.parametrize("make", [Loopback, TCP], ids=["loopback", "tcp"])
async def test_a_client_that_never_reads_is_closed_and_others_are_served(
    make: Callable[[], Transport], watch: Watch
) -> None:
    transport, served = make(), [0]
    frame = CURRENT.encode((local("service"),), (local("greedy"),), BODY)
    with trio.fail_after(10):
        async with open_node(transport) as hub, open_node(transport) as friend:
            at = await hub.listen("tcp:127.0.0.1:0" if transport.name == "tcp" else "loopback:hub")
            await hub.start_worker("service", public_service(served), allow=from_anywhere)
            link = await friend.connect(str(at))
            while not hub._links._all:
                await trio.lowlevel.checkpoint()
            friends = link_of(hub)
            client = await transport.connect(at.value.decode())

            async def flood() -> None:
                try:
                    with suppress(ConnectionLost):
                        while True:
                            await client.send([frame] * 50)
                finally:
                    await client.aclose()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(flood)
                while len(hub._links._all) < 2:
                    await trio.lowlevel.checkpoint()
                (greedy,) = set(hub._links._all) - {friends}
                while not greedy.ended.is_set():
                    assert (await friend.ask(Route(link, "service"), "still here?")).text == "still here?"
                nursery.cancel_scope.cancel()
            assert (await friend.ask(Route(link, "service"), "and now?")).text == "and now?"
            assert friends.is_open
    watch.assert_hard_bounded(owing=2)


@pytest.mark.parametrize("drop_when_full", [False, True], ids=["default", "drop_when_full"])
async def test_peer_that_never_reads_its_own_echoes_is_bounded(
    watch: Watch, autojump_clock: MockClock, *, drop_when_full: bool
) -> None:
    network = Loopback()
    async with open_node(network, forwards=True) as hub, hub.open_mailbox("tell", allow=from_anywhere) as tell:
        await hub.listen("loopback:hub", drop_when_full=drop_when_full)
        peer = await network.connect("hub")
        await peer.send([CURRENT.encode((local("tell"),), (), b"")])
        u_turn = CURRENT.encode(((await tell.receive()).back[0], local("me")), (), BODY)
        link = link_of(hub)
        with suppress(ConnectionLost):
            for _ in range(1000):
                await peer.send([u_turn] * 10)
        await trio.testing.wait_all_tasks_blocked()
        if drop_when_full:
            assert link.is_open
            assert hub.counters[DropReason.OUTBOX_FULL] > 0
        else:
            assert link.ended.is_set()
        await peer.aclose()
    watch.assert_hard_bounded(owing=2)


# 6 and 7: trunks


async def flows(senders: Sequence[tuple[Node, Route]], *, count: int) -> None:
    """Each of the nodes sends so many messages by its route, all at the same time."""

    async def send(node: Node, route: Route) -> None:
        async with node.open_mailbox() as box:
            for _ in range(count):
                await box.send(route, BODY)

    async with trio.open_nursery() as nursery:
        for node, route in senders:
            nursery.start_soon(send, node, route)


async def quiet(*counted: list[int]) -> None:
    """Wait until nothing has been counted for a while."""
    before = None
    while before != (now := [c[0] for c in counted]):
        before = now
        await trio.sleep(LINK_STALL_TIMEOUT + STALL_TIMEOUT)


@pytest.mark.parametrize("pause", [0, 0.001], ids=["fast", "slow"])
async def test_two_hubs_with_u_turn_flows(pause: float, watch: Watch, autojump_clock: MockClock) -> None:
    network, count = Loopback(), 3000
    at_west, at_east = [0], [0]
    async with (
        open_node(network) as west_client,
        open_node(network) as east_client,
        open_node(network, forwards=True) as west,
        open_node(network, forwards=True) as east,
        open_node(network) as west_sender,
        open_node(network) as east_sender,
    ):
        await west_client.start_worker("sink", counter(at_west, pause=pause), allow=from_anywhere)
        await east_client.start_worker("sink", counter(at_east, pause=pause), allow=from_anywhere)
        await west.connect(str(await west_client.listen("loopback:west_client")), name="client")
        await east.connect(str(await east_client.listen("loopback:east_client")), name="client")
        await east.listen("loopback:east", drop_when_full=True)
        drop_when_full = await west.connect("loopback:east", name="east", drop_when_full=True)
        await trio.testing.wait_all_tasks_blocked()
        (eastern,) = (link for link in east._links._all if link.origin.drop_when_full)
        to_west = await west_sender.connect(str(await west.listen("loopback:west")))
        to_east = await east_sender.connect(str(await east.listen("loopback:east_too")))
        senders = [
            # Each flow goes over the link between hubs and back again, out by the link that it came by.
            (west_sender, Route(to_west, "east", eastern.address, "client", "sink")),
            (east_sender, Route(to_east, eastern.address, "east", "client", "sink")),
        ]
        with trio.fail_after(count * pause + 100):
            await flows(senders, count=count)
            await quiet(at_west, at_east)
        lost = sum((west.counters + east.counters + west_client.counters + east_client.counters).values())
        assert at_west[0] + at_east[0] + lost == 2 * count, "what did not arrive was dropped and counted"
        assert at_west[0] > 0
        assert at_east[0] > 0
        assert drop_when_full.is_open
        assert eastern.is_open
    watch.assert_hard_bounded(owing=3)


async def test_drop_when_full_link_to_a_hanging_hub_drops_and_stays(watch: Watch, autojump_clock: MockClock) -> None:
    network, count, near = Loopback(), 8000, [0]
    async with (
        trio.open_nursery() as nursery,
        open_node(network, forwards=True) as hub,
        open_node(network) as neighbour,
    ):
        await nursery.start(network.serve, "hung", never_read)
        drop_when_full = await hub.connect("loopback:hung", name="hung", drop_when_full=True)
        await hub.listen("loopback:hub", drop_when_full=True)
        await hub.start_worker("sink", counter(near), allow=from_anywhere)
        other = await neighbour.connect("loopback:hub", drop_when_full=True)
        with trio.fail_after(100):
            await flows([(neighbour, Route(other, "hung", "x")), (neighbour, Route(other, "sink"))], count=count)
            await quiet(near)
        assert near == [count], "a hung hub holds up nothing that is not for it"
        assert hub.counters[DropReason.OUTBOX_FULL] > 0
        assert drop_when_full.is_open
        nursery.cancel_scope.cancel()
    watch.assert_hard_bounded(owing=3)


@pytest.mark.parametrize("pause", [0, 0.001], ids=["fast", "slow"])
async def test_a_ring_of_three_hubs(pause: float, watch: Watch, autojump_clock: MockClock) -> None:
    network, count = Loopback(), 2000
    counted: list[list[int]] = [[0], [0], [0]]
    async with (
        open_node(network, forwards=True) as hub0,
        open_node(network, forwards=True) as hub1,
        open_node(network, forwards=True) as hub2,
        open_node(network) as client0,
        open_node(network) as client1,
        open_node(network) as client2,
    ):
        hubs, clients = (hub0, hub1, hub2), (client0, client1, client2)
        for i, hub in enumerate(hubs):
            await hub.listen(f"loopback:hub{i}", drop_when_full=True)
            await hub.listen(f"loopback:client{i}")
            await hub.start_worker("sink", counter(counted[i], pause=pause), allow=from_anywhere)
        trunks = [
            await hub.connect(f"loopback:hub{(i + 1) % 3}", name="next", drop_when_full=True)
            for i, hub in enumerate(hubs)
        ]
        senders = [
            (client, Route(await client.connect(f"loopback:client{i}"), "next", "next", "next", "next", "sink"))
            for i, client in enumerate(clients)
        ]
        with trio.fail_after(count * pause + 100):
            await flows(senders, count=count)
            await quiet(*counted)
        lost = sum((hub0.counters + hub1.counters + hub2.counters).values())
        assert sum(c[0] for c in counted) + lost == 3 * count, "what did not arrive was dropped and counted"
        assert all(c[0] > 0 for c in counted)
        assert all(drop_when_full.is_open for drop_when_full in trunks)
    watch.assert_hard_bounded(owing=3)
