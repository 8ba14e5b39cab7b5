import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
import trio.testing

from tests.support.failures import undelivered
from trionode import Identity, Mailbox, Message, Node, Route, Stream, open_node, trust_only, unique
from trionode.counters import DropReason
from trionode.errors import AnswerTimeout, ConnectionLost, LocalError, MessageTooLargeError, ServiceError, Undelivered
from trionode.net.transport import Link
from trionode.protocol.rules.access import from_anywhere
from trionode.protocol.stream.messages import (
    ANSWER_SECONDS,
    LONG_POLL_SECONDS,
    MAX_RECORD,
    CreateRequest,
    CreateResponse,
    ErrorResponse,
    IndexGet,
    IndexResponse,
    PullRequest,
    PullResponse,
    PushRequest,
    PushResponse,
    Record,
    Request,
    Response,
    decode_request,
    encode,
)
from trionode.protocol.stream.producer import MAX_PUSHES
from trionode.protocol.wire.address import local
from trionode.protocol.wire.current_codec import CURRENT
from trionode.stream.hub_client import SILENT_SECONDS
from trionode.stream.store.base import Push, Stored, StoreError
from trionode.stream.store.memory import MemoryStore
from trionode.workers import echoer
from trionode_loopback import Loopback, LoopbackLink

HUB = Route("loopback:hub")
SERVICE, INDEX_SERVICE = "stream_kafka", "stream_kafka_index"


class Network(Loopback):
    """A loopback network whose links can be cut like a cable. Frames on their way are lost."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[LoopbackLink] = []
        self._half_open: set[LoopbackLink] = set()

    async def connect(self, peer: str) -> Link:
        link = await super().connect(peer)
        assert isinstance(link, LoopbackLink)
        self.links.append(link)
        send = link.send

        async def send_or_swallow(frames: Sequence[bytes]) -> None:
            if link in self._half_open:
                await trio.lowlevel.checkpoint()
            else:
                await send(frames)

        link.send = send_or_swallow  # type: ignore[method-assign]  # an instance of its own
        return link

    def cut(self) -> None:
        for link in self.links:
            for channel in (link._incoming, link._outgoing):
                channel.discard()
                channel.close()
        self.links.clear()

    def half_open(self) -> None:
        """Let the links take everything and bring nothing, as a proxy does whose other side is gone."""

        self._half_open.update(self.links)


@asynccontextmanager
async def open_hub(network: Loopback, store: MemoryStore, at: str = "loopback:hub") -> AsyncIterator[Node]:
    async with open_node(network) as hub:
        await hub.serve_streams(store)
        await hub.listen(at)
        yield hub


@asynccontextmanager
async def open_scene() -> AsyncIterator[tuple[Network, MemoryStore, Node, Node]]:
    """Open a network, a hub with a store, and the nodes of Alice and Bob."""
    network, store = Network(), MemoryStore()
    async with open_hub(network, store), open_node(network) as alice, open_node(network) as bob:
        yield network, store, alice, bob


async def open_pair(alice: Node, bob: Node, hub: Route = HUB) -> tuple[Stream, Stream]:
    return (
        await alice.open_stream(hub, sends="to_bob", receives="to_alice"),
        await bob.open_stream(hub, sends="to_alice", receives="to_bob"),
    )


async def send_all(node: Node, route: Route, bodies: Sequence[bytes]) -> None:
    for body in bodies:
        await node.send(route, body)


async def receive(stream: Stream, count: int) -> list[bytes]:
    return [(await stream.receive()).payload for _ in range(count)]


def numbered(count: int, size: int = 8) -> list[bytes]:
    return [b"%08d" % number + bytes(size - 8) for number in range(count)]


def record(onward: Sequence[str], payload: bytes = b"", back: Sequence[str] = ()) -> bytes:
    return CURRENT.encode(tuple(map(local, onward)), tuple(map(local, back)), payload)


async def put(store: MemoryStore, stream: str, records: Sequence[bytes], *, start: int = 0) -> None:
    """Put records into a stream as another client would."""
    await store.create(stream)
    await store.append([Push(stream, b"another", start + number, each) for number, each in enumerate(records)])


# -- a hub that does what a test says ----------------------------------------------------------------------------------

#: Returns the responses of the scripted hub to a request, or none.
Script = Callable[[Request], Sequence[Response]]


def good_manners(request: Request) -> Sequence[Response]:
    """Answer requests that open a stream, and leave pulls and pushes unanswered."""
    match request:
        case CreateRequest(name):
            return (CreateResponse(name or ""),)
        case IndexGet(client_id, stream):
            return (IndexResponse(client_id, stream, None),)
        case _:
            return ()


class ScriptedHub:
    """Answers every request by its script, all from one address. `heard` holds the requests with their times."""

    def __init__(self, node: Node, script: Script) -> None:
        self.node = node
        self.script = script
        self.heard: list[tuple[float, Request]] = []

    async def work(self, mailbox: Mailbox) -> None:
        async for message in mailbox:
            request = decode_request(message.payload)
            self.heard.append((trio.current_time(), request))
            for response in self.script(request):
                await mailbox.reply(message, encode(response))

    def times(self, kind: type[Request]) -> list[float]:
        return [at for at, request in self.heard if isinstance(request, kind)]


@asynccontextmanager
async def open_scripted(network: Loopback, script: Script, at: str = "loopback:hub") -> AsyncIterator[ScriptedHub]:
    async with open_node(network) as node:
        hub = ScriptedHub(node, script)
        for name in (SERVICE, INDEX_SERVICE):
            await node.start_worker(name, hub.work, allow=from_anywhere)
        await node.listen(at)
        yield hub


# -- opening, closing, names -------------------------------------------------------------------------------------------


async def test_messages_arrive_in_the_peers_iteration_until_it_closes(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_scene() as (_, _, alice, bob):
        ours, theirs = await open_pair(alice, bob)
        assert (ours.sends, ours.receives) == ("to_bob", "to_alice")
        await alice.send(Route(ours), b"one")
        await alice.send(Route(ours), b"two")
        assert await receive(theirs, 2) == [b"one", b"two"]
        await theirs.aclose()
        assert [message async for message in theirs] == []
        assert theirs._client.address not in bob._router
        await theirs.aclose()  # a second time does nothing


async def test_closing_waits_until_pushes_are_confirmed(autojump_clock: trio.testing.MockClock) -> None:
    async with open_scene() as (_, store, alice, bob):
        ours, _ = await open_pair(alice, bob)
        await send_all(alice, Route(ours), numbered(400))
        assert await ours._client.flush(trio.current_time() + 5) == 0
        await send_all(alice, Route(ours), numbered(400))
        await ours.aclose()
        assert len(await store.read("to_bob", 799, limit=1, max_bytes=1000)) == 1


async def test_closing_ends_in_time_without_a_hub(autojump_clock: trio.testing.MockClock) -> None:
    network = Network()
    async with open_node(network) as alice:
        async with open_hub(network, MemoryStore()):
            ours = await alice.open_stream(HUB, sends="to_bob", receives="to_alice")
        await alice.send(Route(ours), b"never confirmed")
        before = trio.current_time()
        assert await ours._client.flush(before + 0.5) == 1
        with pytest.raises(Undelivered, match="not confirmed 1 messages to the stream to_bob") as caught:
            await ours.aclose()
        assert caught.value.count == 1
        assert trio.current_time() - before == pytest.approx(1.5)
        await ours.aclose()  # a second time does nothing


async def test_stream_names_have_one_alphabet(autojump_clock: trio.testing.MockClock) -> None:
    async with open_scene() as (_, _, alice, _):
        for bad in ("", "a b", "ä", "a/b", "x" * 201, ".."):
            with pytest.raises(LocalError, match="named by 1 to 200"):
                await alice.open_stream(HUB, sends=bad, receives="to_alice")
            with pytest.raises(LocalError, match="named by 1 to 200"):
                await alice.open_stream(HUB, sends="to_bob", receives=bad)
            if bad:
                with pytest.raises(LocalError, match="named by 1 to 200"):
                    await alice.open_stream(HUB, sends="to_bob", receives="to_alice", client_id=bad)


async def test_opening_without_a_hub_raises_connection_lost_at_once(autojump_clock: trio.testing.MockClock) -> None:
    async with open_node(Network()) as alice:
        before = trio.current_time()
        with pytest.raises(ConnectionLost, match="nothing listens at loopback:hub"):
            await alice.open_stream(HUB, sends="to_bob", receives="to_alice")
        assert trio.current_time() == before
        assert len(alice._router._table) == 0


async def test_a_hub_without_the_service_is_an_answer_timeout(autojump_clock: trio.testing.MockClock) -> None:
    network = Network()
    async with open_node(network) as hub, open_node(network) as alice:
        await hub.listen("loopback:hub")
        with pytest.raises(AnswerTimeout, match=r"check that it offers the service 0#stream_kafka"):
            await alice.open_stream(HUB, sends="to_bob", receives="to_alice", timeout=30)
        assert trio.current_time() == pytest.approx(30, abs=1.5)


async def test_a_refusal_of_the_hub_is_raised_with_its_reason_sanitized(
    autojump_clock: trio.testing.MockClock,
) -> None:
    network = Network()

    def refuse(request: Request) -> Sequence[Response]:
        return (ErrorResponse("not for you\x1b[31m"),)

    async with open_scripted(network, refuse), open_node(network) as alice:
        with pytest.raises(ServiceError, match=r"refused the streams to_bob and to_alice: not for you\\x1b\[31m"):
            await alice.open_stream(HUB, sends="to_bob", receives="to_alice")


async def test_a_cancelled_opening_leaves_no_stream_behind(autojump_clock: trio.testing.MockClock) -> None:
    network = Network()
    async with open_scripted(network, lambda _: ()), open_node(network) as alice:
        with trio.move_on_after(3) as scope:
            await alice.open_stream(HUB, sends="to_bob", receives="to_alice")
        assert scope.cancelled_caught
        assert len(alice._router._table) == 1  # the link


# -- sending -----------------------------------------------------------------------------------------------------------


async def test_a_message_too_large_raises_at_the_caller_and_the_stream_goes_on(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_scene() as (_, _, alice, bob):
        ours, theirs = await open_pair(alice, bob)
        largest = bytes(MAX_RECORD - len(CURRENT.encode((), (), bytes(MAX_RECORD))) + MAX_RECORD)
        with pytest.raises(MessageTooLargeError, match="at most 64000 bytes with their routes, this one has 64001"):
            await alice.send(Route(ours), largest + b"x")
        await alice.send(Route(ours), largest)
        assert await receive(theirs, 1) == [largest]


class GatedStore(MemoryStore):
    """A store that stores nothing until its gate is open."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = trio.Event()

    async def append(self, pushes: Sequence[Push]) -> Sequence[Stored | StoreError]:
        await self.gate.wait()
        return await super().append(pushes)


@pytest.mark.parametrize(("size", "count"), [(8, 2000), (1000, 2000), (60_000, 300)])
async def test_a_full_window_blocks_the_sender_until_pushes_are_confirmed(
    size: int, count: int, autojump_clock: trio.testing.MockClock
) -> None:
    network, store = Network(), GatedStore()
    async with open_hub(network, store), open_node(network) as alice, open_node(network) as bob:
        ours, theirs = await open_pair(alice, bob)
        sent = 0
        bodies = numbered(count, size)

        async def send() -> None:
            nonlocal sent
            for body in bodies:
                await alice.send(Route(ours), body)
                sent += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await trio.sleep(3)  # virtual
            held = sent
            # A window of pushes or of bytes, the queue's bound, and one message more for each.
            assert held <= MAX_PUSHES + 256 * 1024 // (512 + size) + 2
            assert ours._client._queued.size <= ours._client._queued.bound + size + 1024
            await trio.sleep(120)
            assert sent == held
            store.gate.set()
            assert await receive(theirs, len(bodies)) == bodies
        assert sent == len(bodies)


async def test_a_sender_cancelled_while_blocked_has_sent_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    network, store = Network(), GatedStore()
    async with open_hub(network, store), open_node(network) as alice, open_node(network) as bob:
        ours, theirs = await open_pair(alice, bob)
        sent: list[bytes] = []
        with trio.move_on_after(3):
            for body in numbered(3000):
                await alice.send(Route(ours), body)
                sent.append(body)
        store.gate.set()
        await alice.send(Route(ours), b"last")
        assert await receive(theirs, len(sent) + 1) == [*sent, b"last"]


async def test_unconfirmed_pushes_are_resent_under_their_ids(
    autojump_clock: trio.testing.MockClock,
) -> None:
    network = Network()
    with undelivered(2):
        async with open_scripted(network, good_manners) as hub, open_node(network) as alice:
            ours = await alice.open_stream(HUB, sends="to_bob", receives="to_alice")
            await alice.send(Route(ours), b"a")
            await alice.send(Route(ours), b"b")
            await trio.sleep(1)
            # The first one alone: the hub does not know yet that there is none before it.
            pushes = [request for _, request in hub.heard if isinstance(request, PushRequest)]
            assert len(pushes) == 3
            assert {push.request_id for push in pushes} == {0}
            assert len(set(pushes)) == 1


# -- links that break, hubs that go ------------------------------------------------------------------------------------


async def test_over_lost_links_every_message_arrives_once_in_order(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "trionode")
    async with open_scene() as (network, _, alice, bob):
        ours, theirs = await open_pair(alice, bob)
        bodies = numbered(2000)
        arrived: list[bytes] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_all, alice, Route(ours), bodies)
            while len(arrived) < len(bodies):
                arrived.append((await theirs.receive()).payload)
                if len(arrived) % 300 == 0:
                    network.cut()
        assert arrived == bodies
        assert ours.skipped_records == theirs.skipped_records == 0
    said = [entry.getMessage() for entry in caplog.records]
    lost = [line for line in said if "was lost, connecting again" in line]
    assert len(lost) >= 3
    assert any("unconfirmed pushes" in line for line in lost)
    assert any(
        line.startswith("connected to the hub 0#") or "connected to the hub loopback:hub again" in line for line in said
    )


async def test_while_the_hub_is_away_both_sides_retry_with_growing_delays(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    network, store = Network(), MemoryStore()
    async with open_node(network) as alice, open_node(network) as bob:
        async with open_hub(network, store):
            ours, theirs = await open_pair(alice, bob)
        await alice.send(Route(ours), b"meanwhile")
        await trio.sleep(60)
        tries = [entry for entry in caplog.records if entry.getMessage().startswith("no connection to the hub")]
        assert 16 <= len(tries) <= 60  # both sides together: 0.1, 0.2, 0.5, 1, 2, then every 5 s
        async with open_hub(network, store):
            before = trio.current_time()
            assert await receive(theirs, 1) == [b"meanwhile"]
            assert trio.current_time() - before < 7


async def test_a_hub_that_closes_links_at_once_is_retried_with_growing_delays(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def close(link: Link) -> None:
        await link.aclose()

    network, store = Network(), MemoryStore()
    async with open_node(network) as alice, open_node(network) as bob, trio.open_nursery() as nursery:
        async with open_hub(network, store):
            ours = await alice.open_stream([HUB, Route("loopback:two")], sends="to_bob", receives="to_alice")
        await nursery.start(partial(network.serve, "hub", close))
        network.links.clear()
        await trio.sleep(60)
        assert 6 <= len(network.links) <= 20
        async with open_hub(network, store, "loopback:two"):
            theirs = await bob.open_stream(Route("loopback:two"), sends="to_alice", receives="to_bob")
            await alice.send(Route(ours), b"meanwhile")
            with trio.fail_after(15):
                assert await receive(theirs, 1) == [b"meanwhile"]
        nursery.cancel_scope.cancel()


async def test_a_hub_that_answers_and_then_closes_links_is_retried_with_growing_delays(
    autojump_clock: trio.testing.MockClock,
) -> None:
    network, store = Network(), MemoryStore()
    async with open_node(network) as alice, open_hub(network, store):
        await alice.open_stream(HUB, sends="to_bob", receives="to_alice")
        network.cut()
        dials = 0
        with trio.move_on_after(60):
            while True:
                await trio.sleep(0.05)  # virtual; long enough for every answer
                dials += len(network.links)
                network.cut()
        assert 6 <= dials <= 20


async def test_the_next_of_several_hubs_is_tried_when_one_is_gone(
    autojump_clock: trio.testing.MockClock,
) -> None:
    network, store = Network(), MemoryStore()
    one, two, three = (Route(f"loopback:{name}") for name in ("one", "two", "three"))
    async with open_node(network) as alice, open_node(network) as bob, open_hub(network, store, "loopback:three"):
        async with open_hub(network, store, "loopback:two"):
            ours = await alice.open_stream([one, two, three], sends="to_bob", receives="to_alice")
            theirs = await bob.open_stream([two, three], sends="to_alice", receives="to_bob")
            assert trio.current_time() < 1
            await alice.send(Route(ours), b"by two")
            assert await receive(theirs, 1) == [b"by two"]
        await alice.send(Route(ours), b"by three")
        assert await receive(theirs, 1) == [b"by three"]
        assert trio.current_time() < 5


async def test_opening_raises_at_once_when_all_hubs_are_unreachable(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_node(Network()) as alice:
        with pytest.raises(ConnectionLost, match="nothing listens"):
            await alice.open_stream([Route("loopback:one"), Route("loopback:two")], sends="a", receives="b")
        assert trio.current_time() < 1


async def test_a_hub_that_never_answers_is_replaced_by_the_next(
    autojump_clock: trio.testing.MockClock,
) -> None:
    network, store = Network(), MemoryStore()
    hubs = [Route("loopback:silent"), HUB]
    async with (
        open_scripted(network, lambda _: (), "loopback:silent"),
        open_hub(network, store),
        open_node(network) as alice,
    ):
        ours = await alice.open_stream(hubs, sends="echo", receives="echo")
        assert trio.current_time() <= SILENT_SECONDS + 2
        await alice.send(Route(ours), b"after all")
        assert await receive(ours, 1) == [b"after all"]


async def test_a_hub_that_stops_answering_is_replaced_without_loss(
    autojump_clock: trio.testing.MockClock,
) -> None:
    network, store = Network(), MemoryStore()
    async with (
        open_scripted(network, good_manners, "loopback:weak") as weak,
        open_hub(network, store),
        open_node(network) as alice,
    ):
        ours = await alice.open_stream([Route("loopback:weak"), HUB], sends="echo", receives="echo")
        weak.script = lambda _: ()
        bodies = numbered(300)
        before = trio.current_time()
        await send_all(alice, Route(ours), bodies)
        assert await receive(ours, 300) == bodies
        assert trio.current_time() - before < LONG_POLL_SECONDS + 4 * ANSWER_SECONDS


async def test_a_hub_that_does_not_answer_for_long_is_retried_without_growth(
    autojump_clock: trio.testing.MockClock,
) -> None:
    network = Network()
    with undelivered(1):
        async with open_scripted(network, good_manners) as hub, open_node(network) as alice:
            ours = await alice.open_stream(HUB, sends="echo", receives="echo")
            await alice.send(Route(ours), b"x")
            hub.script = lambda _: ()
            await trio.sleep(3600)
            asked = len(hub.times(CreateRequest))
            assert 100 < asked < 3000
            assert sum(map(len, alice._router._close_callbacks.values())) <= 1
            hub.script = good_manners
            await trio.sleep(30)
            assert [request for _, request in hub.heard[-10:] if isinstance(request, PushRequest)]


async def test_a_half_open_link_to_the_hub_is_replaced_without_loss(
    autojump_clock: trio.testing.MockClock,
) -> None:
    network, store = Network(), MemoryStore()
    async with open_hub(network, store), open_node(network) as alice:
        ours = await alice.open_stream(HUB, sends="echo", receives="echo")
        for times in range(1, 4):
            network.half_open()
            bodies = numbered(30)
            await send_all(alice, Route(ours), bodies)
            with trio.fail_after(LONG_POLL_SECONDS + 4 * ANSWER_SECONDS):
                assert await receive(ours, 30) == bodies
            assert len(network.links) == 1 + times
            assert len(alice._links._all) == 1


async def test_an_unanswered_request_does_not_end_a_link_that_brings_other_messages(
    autojump_clock: trio.testing.MockClock,
) -> None:
    network = Network()
    with undelivered(1):
        async with open_scripted(network, good_manners) as hub, open_node(network) as alice:
            await hub.node.start_worker("echoer", echoer, allow=from_anywhere)
            ours = await alice.open_stream(HUB, sends="echo", receives="echo")
            (link,) = alice._links._all
            hub.script = lambda _: ()
            await alice.send(Route(ours), b"x")
            for _ in range(60):
                await trio.sleep(1)
                await alice.ask(Route(link, "echoer"), b"")
            assert link.is_open


async def test_answers_that_do_not_come_from_the_hub_are_counted_and_change_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_scene() as (network, _, alice, bob):
        ours, theirs = await open_pair(alice, bob)
        forged = encode(PullResponse(0, (Record(0, record([], b"forged")),)))
        await alice.listen("loopback:alice")
        for target in (ours._client._receiving.address, ours._client.address):
            link = await network.connect("alice")
            await link.send([CURRENT.encode((target,), (local("x"),), forged)])
        await trio.testing.wait_all_tasks_blocked()
        assert alice.counters[DropReason.STREAM_ANSWER_NOT_FROM_HUB] == 2
        await bob.send(Route(theirs), b"real")
        assert await receive(ours, 1) == [b"real"]


# -- positions ---------------------------------------------------------------------------------------------------------


async def test_a_new_stream_with_the_same_client_id_continues_reading(autojump_clock: trio.testing.MockClock) -> None:
    async with open_scene() as (_, _, alice, bob):
        ours = await alice.open_stream(HUB, sends="to_bob", receives="to_alice")
        await send_all(alice, Route(ours), numbered(150))
        first = await bob.open_stream(HUB, sends="to_alice", receives="to_bob", client_id="bob")
        assert await receive(first, 150) == numbered(150)
        await first.aclose()
        await alice.send(Route(ours), b"later")
        second = await bob.open_stream(HUB, sends="to_alice", receives="to_bob", client_id="bob")
        assert await receive(second, 1) == [b"later"]
        other = await bob.open_stream(HUB, sends="to_alice", receives="to_bob", client_id="another")
        assert await receive(other, 1) == [b"00000000"]
        late = await bob.open_stream(HUB, sends="to_alice", receives="to_bob", start=149)
        assert await receive(late, 2) == [b"00000149", b"later"]
        assert late.position == 151


async def test_a_position_is_saved_only_after_the_mailbox_has_the_message(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_scene() as (_, store, alice, bob):
        opened = trio.Event()
        taken: list[bytes] = []

        async def sleepy(mailbox: Mailbox) -> None:
            await opened.wait()
            async for message in mailbox:
                taken.append(message.payload)  # noqa: PERF401  # one after the other, so the test can look meanwhile

        await bob.start_worker("sleepy", sleepy, allow=from_anywhere, bound=10 * (512 + 8))
        ours = await alice.open_stream(HUB, sends="to_bob", receives="to_alice")
        await bob.open_stream(HUB, sends="to_alice", receives="to_bob", client_id="bob")
        await send_all(alice, Route(ours, "sleepy"), numbered(200))
        await trio.sleep(100)
        # The mailbox holds nine or ten and the one that filled it. The stream waits without a timeout, and drops
        # nothing.
        assert await store.position("bob", "to_bob") in {9, 10}
        opened.set()
        await trio.sleep(1)
        assert taken == numbered(200)
        assert await store.position("bob", "to_bob") == 200
        assert bob.counters[DropReason.MAILBOX_STALLED] == 0


# -- receiving ---------------------------------------------------------------------------------------------------------


async def test_a_received_message_can_be_answered_along_its_return_route(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_scene() as (_, _, alice, bob):
        ours, theirs = await open_pair(alice, bob)

        async def answer(message: Message) -> None:
            await bob.send(message.return_route, message.payload.upper())

        async with trio.open_nursery() as nursery:

            async def serve() -> None:
                async for message in theirs:
                    assert message.back[0] == theirs._client.address
                    await answer(message)

            nursery.start_soon(serve)
            assert (await alice.ask(Route(ours), b"hello")).payload == b"HELLO"
            nursery.cancel_scope.cancel()


async def test_records_of_ended_sessions_are_counted_logged_once_and_skipped(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_scene() as (_, store, _, bob):
        await put(store, "to_bob", [record([f"decryptor{n}\x1b"], b"old") for n in range(250)] + [record([], b"new")])
        theirs = await bob.open_stream(HUB, sends="to_alice", receives="to_bob")
        assert await receive(theirs, 1) == [b"new"]
        assert theirs.skipped_records == 250
    said = [entry.getMessage() for entry in caplog.records if "skipped a record" in entry.getMessage()]
    assert len(said) == 1
    assert "0#decryptor0\\x1b no longer exists on this node" in said[0]


@pytest.mark.parametrize(
    "strange", [b"", b"\x01", b"\x01\x00\x01", b"\x02\x00\x00\x00", b"\x83", b"\x83\xff\xff", b"\xff" * 100]
)
async def test_records_of_unknown_protocol_versions_are_skipped(
    strange: bytes, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_scene() as (_, store, _, bob):
        await put(store, "to_bob", [strange, record([], b"ours")])
        theirs = await bob.open_stream(HUB, sends="to_alice", receives="to_bob")
        assert await receive(theirs, 1) == [b"ours"]
        assert theirs.skipped_records == 1


async def test_a_record_cannot_reach_a_local_only_worker(autojump_clock: trio.testing.MockClock) -> None:
    async with open_scene() as (_, store, _, bob):

        async def private(mailbox: Mailbox) -> None:
            async for message in mailbox:
                pytest.fail(f"an unauthenticated peer's message came: {message}")

        await bob.start_worker("private", private)
        theirs = await bob.open_stream(HUB, sends="to_alice", receives="to_bob")
        sender = theirs._client.address
        await put(
            store,
            "to_bob",
            [record(["private"], b"x"), CURRENT.encode((sender,), (), b"x"), record([], b"end")],
        )
        assert await receive(theirs, 1) == [b"end"]
        assert bob.counters[DropReason.ACCESS_DENIED] == 1
        assert bob.counters[DropReason.STREAM_ANSWER_NOT_FROM_HUB] == 1


async def test_a_record_with_too_long_a_route_is_dropped(autojump_clock: trio.testing.MockClock) -> None:
    async with open_scene() as (_, store, _, bob):
        await put(store, "to_bob", [record([], b"x", ["a"] * 32), record([], b"end")])
        theirs = await bob.open_stream(HUB, sends="to_alice", receives="to_bob")
        assert await receive(theirs, 1) == [b"end"]
        assert bob.counters[DropReason.ROUTE_TOO_LONG] == 1


async def test_there_is_no_polling_interval_between_a_push_and_its_arrival(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_scene() as (_, _, alice, bob):
        ours, theirs = await open_pair(alice, bob)
        for pause in (0, 0.1, 1, LONG_POLL_SECONDS - 0.1, LONG_POLL_SECONDS + 0.1, 100):
            await trio.sleep(pause)
            before = trio.current_time()
            await alice.send(Route(ours), b"now")
            await theirs.receive()
            assert trio.current_time() - before < 0.05


async def test_a_lost_answer_to_a_pull_costs_a_round_trip_and_not_a_long_poll(
    autojump_clock: trio.testing.MockClock,
) -> None:
    network = Network()
    answered = 0

    def script(request: Request) -> Sequence[Response]:
        nonlocal answered
        if not isinstance(request, PullRequest):
            return good_manners(request)
        answered += 1
        if answered % 2:  # every other answer is lost
            return ()
        index = request.index
        return (PullResponse(request.request_id, (Record(index, record([], b"%d" % index)),)),)

    async with open_scripted(network, script) as hub, open_node(network) as alice:
        ours = await alice.open_stream(HUB, sends="to_bob", receives="to_alice")
        before = trio.current_time()
        assert await receive(ours, 20) == [b"%d" % index for index in range(20)]
        assert trio.current_time() - before < 20 * 0.25
        pulls = [request.request_id for _, request in hub.heard if isinstance(request, PullRequest)]
        assert pulls == list(range(pulls[0], pulls[0] + len(pulls)))


async def test_a_hub_that_answers_pulls_empty_at_once_gets_at_most_four_a_second(
    autojump_clock: trio.testing.MockClock,
) -> None:
    network = Network()

    def hasty(request: Request) -> Sequence[Response]:
        return (PullResponse(request.request_id, ()),) if isinstance(request, PullRequest) else good_manners(request)

    async with open_scripted(network, hasty) as hub, open_node(network) as alice:
        await alice.open_stream(HUB, sends="to_bob", receives="to_alice")
        await trio.sleep(10)
        assert 35 <= len(hub.times(PullRequest)) <= 42


async def test_undecodable_answers_of_the_hub_are_counted_and_change_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_scene() as (_, _, alice, bob):
        ours, theirs = await open_pair(alice, bob)
        (link,) = alice._links._all
        for target in (ours._client.address, ours._client._receiving.address):
            alice._router.deliver(Message((target,), (link.encoded, local("x")), b"\xff\xff", link.origin))
        assert alice.counters[DropReason.STREAM_ANSWER_UNDECODABLE] == 2
        await alice.send(Route(ours), b"on")
        assert await receive(theirs, 1) == [b"on"]


async def test_a_refused_push_is_repeated_in_order(autojump_clock: trio.testing.MockClock) -> None:
    network = Network()
    refusing = True
    stored: list[int] = []

    def script(request: Request) -> Sequence[Response]:
        if isinstance(request, PushRequest):
            if not refusing:
                stored.append(request.request_id)
            return (PushResponse(request.request_id, not refusing, 0),)
        return good_manners(request)

    async with open_scripted(network, script), open_node(network) as alice:
        ours = await alice.open_stream(HUB, sends="to_bob", receives="to_alice")
        await send_all(alice, Route(ours), numbered(5))
        await trio.sleep(3)
        refusing = False
        await send_all(alice, Route(ours), numbered(5))
        await trio.sleep(3)
        assert stored == list(range(10))
        assert ours._client._unconfirmed == 0


# -- a hub behind a secure channel -------------------------------------------------------------------------------------


async def test_a_hub_is_reached_through_a_secure_channel_and_again_after_its_link_was_lost(
    autojump_clock: trio.testing.MockClock,
) -> None:
    network, store = Network(), MemoryStore()
    async with open_node(network) as hub, open_node(network) as alice, open_node(network) as bob:
        hub_identity = await Identity.create(hub.vault)
        identities = {node: await Identity.create(node.vault) for node in (alice, bob)}
        known = trust_only(*(each.identifier for each in identities.values()))
        await hub.serve_secure_channels("hub", hub_identity, trust=known)
        await hub.serve_streams(store, allow=lambda origin: origin.identifier is not None)
        await hub.listen("loopback:hub")
        opened = 0

        def way(node: Node) -> Callable[[], Awaitable[Route]]:
            async def through_a_channel() -> Route:
                nonlocal opened
                opened += 1
                channel = await node.open_secure_channel(
                    Route(HUB, "hub"), identities[node], trust=trust_only(hub_identity.identifier)
                )
                return Route(channel)

            return through_a_channel

        to_bob, to_alice = unique("to_bob"), unique("to_alice")
        ours = await alice.open_stream(way(alice), sends=to_bob, receives=to_alice)
        theirs = await bob.open_stream(way(bob), sends=to_alice, receives=to_bob)
        for bodies in (numbered(100), numbered(200), numbered(300)):
            await send_all(alice, Route(ours), bodies)
            assert await receive(theirs, len(bodies)) == bodies
            network.cut()
        assert opened == 6
        assert hub.counters[DropReason.ACCESS_DENIED] == 0


async def test_a_secure_channel_over_streams_outlives_the_hub(autojump_clock: trio.testing.MockClock) -> None:
    network, store = Network(), MemoryStore()
    async with open_node(network) as alice, open_node(network) as bob:
        ours_id, theirs_id = await Identity.create(alice.vault), await Identity.create(bob.vault)
        await bob.start_worker("echoer", echoer)
        await bob.serve_secure_channels("listener", theirs_id, trust=trust_only(ours_id.identifier))
        async with open_hub(network, store):
            ours, _ = await open_pair(alice, bob)
            channel = await alice.open_secure_channel(
                Route(ours, "listener"), ours_id, trust=trust_only(theirs_id.identifier)
            )
            assert (await alice.ask(Route(channel, "echoer"), "before")).text == "before"
        answers: list[str] = []

        async def ask(body: str) -> None:
            answers.append((await alice.ask(Route(channel, "echoer"), body)).text)

        async with trio.open_nursery() as serving:
            async with trio.open_nursery() as asking:
                for number in range(10):
                    asking.start_soon(ask, f"meanwhile {number}")
                await trio.sleep(5)  # virtual
                assert answers == []
                await serving.start(serve_again, network, store)
            serving.cancel_scope.cancel()
        assert sorted(answers) == [f"meanwhile {number}" for number in range(10)]


async def serve_again(
    network: Network, store: MemoryStore, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    async with open_hub(network, store):
        task_status.started()
        await trio.sleep_forever()


async def test_records_that_end_at_the_stream_do_not_stop_a_stream_that_is_never_read(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_scene() as (_, _, alice, bob):
        ours, theirs = await open_pair(alice, bob)
        async with bob.open_mailbox("worker", allow=from_anywhere) as worker:
            for number in range(20):
                await alice.send(Route(ours), b"%02d" % number + bytes(30_000))
            await alice.send(Route(ours, "worker"), b"good")
            with trio.fail_after(60):
                assert (await worker.receive()).payload == b"good"
        dropped = bob.counters[DropReason.STREAM_NOT_READ]
        kept = [body[:2] for body in await receive(theirs, 20 - dropped)]
        assert kept == [b"%02d" % number for number in range(20 - dropped)]
        assert 0 < dropped < 20
