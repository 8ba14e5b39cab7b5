import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing

from tests.support.failures import undelivered
from trionode import Identity, Mailbox, Node, Route, Stream, open_node, trust_only, unique
from trionode.channel.initiator import DeliveryMode
from trionode.counters import DropReason
from trionode.errors import AnswerTimeout, ConnectionLost
from trionode.net.transport import Link
from trionode.protocol.rules.access import from_anywhere
from trionode.protocol.stream.messages import CreateRequest, PullRequest, PushRequest, encode
from trionode.protocol.wire.address import local
from trionode.protocol.wire.current_codec import CURRENT
from trionode.routing.byte_budget import DEFAULT_BOUND, HARD_LIMIT, ByteBudget
from trionode.stream.clients import StreamLimits
from trionode.stream.hub_client import HubClient
from trionode.stream.service import StreamService
from trionode.stream.store.base import StreamStore
from trionode.stream.store.memory import MemoryStore
from trionode.stream.store.sqlite import open_sqlite_store
from trionode.workers import echoer
from trionode_loopback import Loopback

HUB = Route("loopback:hub")
SERVICE = "stream_kafka"
#: One item more than a bound may hold: the largest answer of a hub and what an item costs.
ONE_MORE = 66_000


@attrs.define
class Scene:
    """A hub with a store. Alice asks Bob's echoer through a channel over streams."""

    network: Loopback
    hub: Node
    service: StreamService
    alice: Node
    bob: Node
    ours: Stream
    theirs: Stream
    echoes: Route

    def budgets(self) -> dict[str, ByteBudget]:
        """Return every queue and byte budget, by its place."""
        found: dict[str, ByteBudget] = {}
        for name, node in (("hub", self.hub), ("alice", self.alice), ("bob", self.bob)):
            for link in node._links._all:
                found[f"{name}'s outbox to {link.peer}"] = link._outbox
            for entry in node._router._table.values():
                owner = getattr(entry.hop, "__self__", None)
                if isinstance(owner, Mailbox):
                    found[f"{name}'s mailbox {owner.address}"] = owner._inbox
                if isinstance(owner, HubClient):
                    found[f"what {owner.address!r} of {name} sends"] = owner._queued
                    found[f"what {owner.address!r} of {name} pulled"] = owner._arrived
                    found[f"what came out of {owner.address!r} of {name}"] = owner._inbox
        for number, client in enumerate(self.service._clients._clients.values()):
            found[f"pushes of client {number}"] = client.budget
        return found


@asynccontextmanager
async def open_scene(
    store: StreamStore | None = None, limits: StreamLimits | None = None, *, delivery: DeliveryMode = "on"
) -> AsyncIterator[Scene]:
    network = Loopback()
    async with open_node(network) as hub, open_node(network) as bob, open_node(network) as alice:
        service = await hub.serve_streams(store or MemoryStore(), limits=limits or StreamLimits())
        await hub.listen("loopback:hub")
        alice_id, bob_id = await Identity.create(alice.vault), await Identity.create(bob.vault)
        await bob.start_worker("echoer", echoer)
        await bob.serve_secure_channels("listener", bob_id, trust=trust_only(alice_id.identifier))
        a2b, b2a = unique("a2b"), unique("b2a")
        theirs = await bob.open_stream(HUB, sends=b2a, receives=a2b)
        ours = await alice.open_stream(HUB, sends=a2b, receives=b2a)
        channel = await alice.open_secure_channel(
            Route(ours, "listener"), alice_id, trust=trust_only(bob_id.identifier), delivery=delivery
        )
        yield Scene(network, hub, service, alice, bob, ours, theirs, Route(channel, "echoer"))


async def others_go_on(scene: Scene, count: int = 200, *, seconds: float = 1.0) -> None:
    """Check that Alice keeps getting echoes, each in time."""
    for number in range(count):
        with trio.fail_after(seconds):
            assert (await scene.alice.ask(scene.echoes, f"{number}")).text == f"{number}"


class Watch(trio.abc.Instrument):
    """Checks every byte budget regularly while tasks run, also while virtual time stands still."""

    #: Task steps between two checks. A check takes as long as some ten steps.
    STEPS = 200

    def __init__(self, scene: Scene, bound: Callable[[ByteBudget], int]) -> None:
        self._scene = scene
        self._bound = bound
        self._steps = 0
        self.overfull: dict[str, int] = {}

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self._steps += 1
        if self._steps % self.STEPS == 0:
            for name, budget in self._scene.budgets().items():
                if budget.size > self._bound(budget):
                    self.overfull[name] = budget.size


@asynccontextmanager
async def watched(scene: Scene, bound: Callable[[ByteBudget], int]) -> AsyncIterator[None]:
    """Check that no byte budget exceeds its bound."""
    watch = Watch(scene, bound)
    trio.lowlevel.add_instrument(watch)
    try:
        yield
    finally:
        trio.lowlevel.remove_instrument(watch)
    assert not watch.overfull


def slowed(budget: ByteBudget) -> int:
    """The bound if all senders wait: one more item for each of a few."""
    return budget.bound + 4 * ONE_MORE


def unauthenticated(budget: ByteBudget) -> int:
    """The bound if unauthenticated clients are served, which may leave their answers unread."""
    return max(budget.bound, HARD_LIMIT) + ONE_MORE


def frame(to: str, payload: bytes, back: str = "c") -> bytes:
    return CURRENT.encode((local(to),), (local(back),), payload)


async def send_until_closed(link: Link, frames: list[bytes]) -> bool:
    """Return whether the hub closed the link before all frames were sent."""
    try:
        for each in frames:
            await link.send([each])
    except ConnectionLost:
        return True
    return False


# -- clients that take nothing -----------------------------------------------------------------------------------------


async def test_a_client_that_pulls_and_never_reads_blocks_no_other(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_scene() as scene, watched(scene, slowed):
        silent = await scene.network.connect("hub")
        await silent.send([frame(SERVICE, encode(CreateRequest("s")))])
        await silent.send([frame("stream_kafka.s", encode(PullRequest(0, 0, 100)))])
        await others_go_on(scene)
        # Its unread answers stop growing, however much it asks for.
        async with scene.alice.open_mailbox() as mailbox:
            link = await scene.alice.connect("loopback:hub")
            for request_id in range(500):
                await mailbox.send(Route(link, "stream_kafka.s"), encode(PushRequest(request_id, bytes(10_000))))
            for _ in range(500):
                await mailbox.receive()
        await others_go_on(scene)
        await trio.sleep(60)
        await others_go_on(scene)


async def test_a_client_that_floods_pulls_and_never_reads_is_closed_at_a_bound(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_scene() as scene, watched(scene, unauthenticated):
        silent = await scene.network.connect("hub")
        await silent.send([frame(SERVICE, encode(CreateRequest("s")))])
        for request_id in range(10):
            await silent.send([frame("stream_kafka.s", encode(PushRequest(request_id, bytes(60_000))))])
        links = set(scene.hub._links._all)
        pulls = [frame("stream_kafka.s", encode(PullRequest(0, 0, 1)), f"c{number}") for number in range(1000)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_until_closed, silent, pulls)
            await others_go_on(scene)
        await trio.sleep(60)
        # 256 KiB that loopback holds, 4 MiB in the outbox: some 70 answers of 60,000 bytes.
        (closed,) = links - set(scene.hub._links._all)
        assert "bytes of answers unread" in closed._reason
        await others_go_on(scene)


async def test_a_client_that_floods_pushes_and_never_reads_is_closed_at_a_bound(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_scene() as scene, watched(scene, unauthenticated):
        silent = await scene.network.connect("hub")
        await silent.send([frame(SERVICE, encode(CreateRequest("s")))])
        pushes = [frame("stream_kafka.s", encode(PushRequest(number, b"x"))) for number in range(30_000)]
        async with trio.open_nursery() as nursery:

            async def flood() -> None:
                assert await send_until_closed(silent, pushes)

            nursery.start_soon(flood)
            await others_go_on(scene)
        await others_go_on(scene)


async def test_a_client_that_floods_pushes_and_reads_is_slowed_and_blocks_no_other(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_scene(limits=StreamLimits(push_bytes=50_000)) as scene, watched(scene, slowed):
        busy = await scene.network.connect("hub")
        await busy.send([frame(SERVICE, encode(CreateRequest("s")))])
        pushes = [frame("stream_kafka.s", encode(PushRequest(number, bytes(1000)))) for number in range(10_000)]
        answered = 0

        async def read() -> None:
            nonlocal answered
            while answered < len(pushes) + 1:
                answered += len(await busy.receive())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            nursery.start_soon(send_until_closed, busy, pushes)
            await others_go_on(scene)


async def test_a_full_store_refuses_all_pushes_and_nothing_grows(
    autojump_clock: trio.testing.MockClock,
) -> None:
    with undelivered():
        async with open_scene(MemoryStore(max_bytes=2_000_000)) as scene, watched(scene, slowed):
            stored = await scene.alice.open_stream(HUB, sends=unique("x"), receives=unique("y"))
            async with trio.open_nursery() as nursery:

                async def fill() -> None:
                    for _ in range(5000):
                        await scene.alice.send(Route(stored), bytes(1000))

                nursery.start_soon(fill)
                await trio.sleep(100)
                # Both are blocked, the client that filled the store and the other one; nothing has grown.
                with pytest.raises(AnswerTimeout):
                    await scene.alice.ask(scene.echoes, "x", timeout=30)
                nursery.cancel_scope.cancel()


# -- a worker that asks back -------------------------------------------------------------------------------------------


@attrs.define
class AsksBack:
    """A worker that asks its sender before it takes the next message."""

    node: Node
    seconds: float
    answered: int = 0
    unanswered: int = 0

    async def work(self, mailbox: Mailbox) -> None:
        async for message in mailbox:
            back = Route(*message.return_route.hops[:-1], "name")
            try:
                answer = await self.node.ask(back, "who are you?", timeout=self.seconds)
            except AnswerTimeout:
                self.unanswered += 1
            else:
                assert answer.text == "Alice"
                self.answered += 1


async def says_name(mailbox: Mailbox) -> None:
    async for message in mailbox:
        await mailbox.reply(message, "Alice")


async def test_a_worker_that_asks_over_the_stream_that_feeds_it_is_answered(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_scene() as scene, watched(scene, slowed):
        worker = AsksBack(scene.bob, 5)
        await scene.bob.start_worker("asker", worker.work, allow=from_anywhere)
        await scene.alice.start_worker("name", says_name, allow=from_anywhere)
        async with scene.alice.open_mailbox() as mailbox:
            for _ in range(100):
                await mailbox.send(Route(scene.ours, "asker"), "hello")
            await others_go_on(scene)
            await trio.sleep(10)
        assert (worker.answered, worker.unanswered) == (100, 0)


async def test_a_worker_with_a_full_mailbox_that_asks_over_its_own_stream_goes_on_at_its_deadline(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_scene() as scene, watched(scene, slowed):
        count = 300
        worker = AsksBack(scene.bob, 1)
        await scene.bob.start_worker("asker", worker.work, allow=from_anywhere, bound=20_000)
        await scene.alice.start_worker("name", says_name, allow=from_anywhere)
        # This conversation stops, since its records arrive in order. Another one between the same nodes does not.
        a2b, b2a = unique("a2b"), unique("b2a")
        await scene.bob.open_stream(HUB, sends=b2a, receives=a2b)
        second = await scene.alice.open_stream(HUB, sends=a2b, receives=b2a)
        async with scene.alice.open_mailbox() as mailbox:
            for _ in range(count):
                await mailbox.send(Route(second, "asker"), "hello")
            await others_go_on(scene)
            # The worst case: each ask ends by its deadline.
            await trio.sleep(count * 1.5)
        assert worker.answered + worker.unanswered == count
        assert worker.answered > 0
        assert scene.bob.counters[DropReason.MAILBOX_STALLED] == 0


async def test_a_worker_with_a_full_mailbox_that_asks_over_its_own_link_blocks_no_other(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_scene() as scene, watched(scene, slowed):
        count = 2000
        worker = AsksBack(scene.bob, 30)
        await scene.bob.start_worker("asker", worker.work, allow=from_anywhere, bound=20_000)
        await scene.alice.start_worker("name", says_name, allow=from_anywhere)
        await scene.bob.listen("loopback:bob")
        link = await scene.alice.connect("loopback:bob")
        async with scene.alice.open_mailbox() as mailbox:
            async with trio.open_nursery() as nursery:

                async def flood() -> None:
                    for _ in range(count):
                        await mailbox.send(Route(link, "asker"), "hello")

                nursery.start_soon(flood)
                await others_go_on(scene)
            await trio.sleep(100)
        # The reader waits for the mailbox, with the answer behind it, until the stall timeout. Then it drops, and the
        # answer arrives.
        assert worker.answered + scene.bob.counters[DropReason.MAILBOX_STALLED] == count
        assert worker.answered > 0


# -- everything sent before anything is read ---------------------------------------------------------------------------


@pytest.mark.soak
async def test_a_hundred_thousand_messages_are_sent_before_the_first_echo_is_read(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    # With the delivery layer Bob, whose echoes nobody takes, would hold Alice.
    count = 100_000
    began = time.perf_counter()
    async with (
        open_sqlite_store(str(tmp_path / "streams")) as store,
        open_scene(store, delivery="off") as scene,
        watched(scene, slowed),
        scene.alice.open_mailbox() as mailbox,
    ):
        for number in range(count):
            await mailbox.send(scene.echoes, b"%d" % number)
        record_property("seconds to send", time.perf_counter() - began)
        # Alice's own mailbox is full, so messages of this stream wait behind it; those of others do not.
        assert mailbox._inbox.size > DEFAULT_BOUND
        with trio.fail_after(5):
            a2b, b2a = unique("a2b"), unique("b2a")
            await scene.bob.open_stream(HUB, sends=b2a, receives=a2b)
            other = await scene.alice.open_stream(HUB, sends=a2b, receives=b2a)
            await scene.bob.start_worker("anyone", echoer, allow=from_anywhere)
            assert (await scene.alice.ask(Route(other, "anyone"), "still here")).text == "still here"
        for number in range(count):
            assert (await mailbox.receive()).payload == b"%d" % number
    record_property("seconds", time.perf_counter() - began)
