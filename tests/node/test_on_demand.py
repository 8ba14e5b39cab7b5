"""Links that are dialled by the first message; tests/topology/test_running.py has them in their places."""

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import ClassVar

import attrs
import pytest
import trio
import trio.testing

from trionode import Node, Route, open_node
from trionode.counters import DropReason
from trionode.errors import AddressInUseError, ConnectionLost, LocalError
from trionode.net.backoff import LONGEST_DELAY, STEADY_SECONDS
from trionode.net.transport import Link
from trionode.protocol.rules.access import from_anywhere
from trionode.protocol.wire.address import Address
from trionode.protocol.wire.classic_codec import CLASSIC
from trionode.routing.link import STALL_TIMEOUT
from trionode.routing.on_demand_link import DIAL_SECONDS, GRACE, OnDemandLink
from trionode.workers import echoer
from trionode_loopback import Loopback, LoopbackLink


@attrs.define(eq=False)
class Dialler(Loopback):
    """A network in memory whose links are as a test wants them."""

    name: ClassVar[str] = "loopback"

    def __attrs_post_init__(self) -> None:
        super().__init__()

    is_silent: bool = False
    is_classic: bool = False
    error: Exception | None = None
    largest: int = 1 << 20
    dialled: list[LoopbackLink] = attrs.Factory(list)

    async def connect(self, peer: str) -> Link:
        if self.is_silent:
            await trio.sleep_forever()
        if self.error is not None:
            raise self.error
        link = await super().connect(peer)
        assert isinstance(link, LoopbackLink)
        if self.is_classic:
            link.protocol_version = CLASSIC
        link.max_frame = self.largest
        self.dialled.append(link)
        return link


async def serve(node: Node) -> None:
    await node.start_worker("echoer", echoer, allow=from_anywhere)
    await node.listen("loopback:bob")


@asynccontextmanager
async def accepting(network: Loopback, accept: Callable[[Link], Awaitable[None]]) -> AsyncIterator[None]:
    """A peer at loopback:bob that handles its connections with `accept`, and closes the rest at the end."""
    async with trio.open_nursery() as nursery:

        async def listen(*, task_status: trio.TaskStatus[str]) -> None:
            await network.serve("bob", accept, task_status=task_status)

        await nursery.start(listen)
        yield
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def client_at_a_hub(network: Dialler) -> AsyncIterator[tuple[Node, Address, Node]]:
    """A hub with a link on demand to loopback:bob that is called bob, its address, and a client whose links are not
    counted.
    """
    async with open_node(network, forwards=True) as hub, open_node(Loopback(network=network.network)) as client:
        at = await hub.listen("loopback:hub")
        yield hub, at, client


async def test_nothing_is_dialled_before_the_first_message(autojump_clock: trio.testing.MockClock) -> None:
    network = Dialler()
    async with open_node(network) as bob, open_node(network) as alice:
        await serve(bob)
        link = alice.dial_on_demand("loopback:bob", name="bob")
        await trio.sleep(100)
        assert network.dialled == []
        assert (await alice.ask(Route("bob", "echoer"), "hello")).text == "hello"
        assert (await alice.ask(Route(link, "echoer"), "hello")).text == "hello"
        assert len(network.dialled) == 1
        with pytest.raises(AddressInUseError):
            alice.dial_on_demand("loopback:bob", name="bob")
        with pytest.raises(LocalError, match="needs 'tcp'"):
            alice.dial_on_demand("tcp:127.0.0.1:1", name="other")
        await link.aclose()
        assert link.ended.is_set()
    assert not +alice.counters


async def test_lost_connection_is_dialled_again_by_the_next_message(
    autojump_clock: trio.testing.MockClock,
) -> None:
    network = Dialler()
    async with open_node(network) as alice:
        link = alice.dial_on_demand("loopback:bob", name="bob")
        for count in (1, 2, 3):
            async with open_node(network) as bob:
                await serve(bob)
                assert (await alice.ask(Route("bob", "echoer"), "hello")).text == "hello"
                assert len(network.dialled) == count
                await trio.sleep(STEADY_SECONDS)
            await trio.testing.wait_all_tasks_blocked()
            assert link.is_open


@pytest.mark.parametrize(
    ("error", "logged"),
    [
        (LocalError("expected host:port, and got \x1b"), r"expected host:port, and got \x1b"),
        (UnicodeError("label too long"), "UnicodeError('label too long')"),
        (ExceptionGroup("dials", [ValueError("port")]), "ExceptionGroup('dials', [ValueError('port')])"),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_failed_dial_drops_the_message_and_the_node_lives(
    error: Exception, logged: str, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    network = Dialler(error=error)
    async with client_at_a_hub(network) as (hub, at, client):
        link = hub.dial_on_demand("loopback:bob", name="bob")
        for count in (1, 2, 3):
            await client.send(Route(str(at), "bob", "echoer"), "hello")
            await trio.sleep(LONGEST_DELAY)
            assert +hub.counters == {DropReason.DIAL_FAILED: count}
        assert link.is_open
    assert caplog.text.count("dropped a message for loopback:bob") == 1
    assert logged in caplog.text


async def test_changing_error_texts_do_not_fill_the_log(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    network = Dialler()
    async with open_node(network) as alice:
        alice.dial_on_demand("loopback:bob", name="bob")
        for count in range(10):
            network.error = ConnectionLost(f"refused: {count}")
            await alice.send(Route("bob", "echoer"), "hello")
            await trio.sleep(LONGEST_DELAY)
        assert +alice.counters == {DropReason.DIAL_FAILED: 10}
    assert caplog.text.count("dropped a message for loopback:bob: refused") == 1


async def test_dial_on_demand_refuses_an_unknown_transport_at_once(autojump_clock: trio.testing.MockClock) -> None:
    async with open_node(Dialler()) as alice:
        for endpoint, match in (("tcp:127.0.0.1:1", "name it in open_node"), ("bob", "expected a transport address")):
            with pytest.raises(LocalError, match=match):
                alice.dial_on_demand(endpoint, name="bob")


async def test_peer_that_accepts_and_closes_is_dialled_seldom(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    network = Dialler()
    accepted = 0

    async def accept(link: Link) -> None:
        nonlocal accepted
        accepted += 1
        await link.aclose()

    async with accepting(network, accept), client_at_a_hub(network) as (hub, at, client):
        hub.dial_on_demand("loopback:bob", name="bob")
        began = trio.current_time()
        sent = 0
        while trio.current_time() < began + 60:
            await client.send(Route(str(at), "bob", "x"), "hello")
            sent += 1
            await trio.sleep(0.01)
        assert len(network.dialled) == accepted <= 6 + 60 / (LONGEST_DELAY / 2)
        assert +hub.counters <= Counter({DropReason.DIAL_FAILED: sent, DropReason.LINK_LOST: sent})
        assert sent - accepted <= hub.counters.total() <= sent
        assert caplog.text.count("link with loopback:bob ended") <= 2


async def test_no_pause_after_a_steady_connection(
    autojump_clock: trio.testing.MockClock,
) -> None:
    network = Dialler()

    async def accept(link: Link) -> None:
        await trio.sleep(STEADY_SECONDS + 0.1)
        await link.aclose()

    async with accepting(network, accept), open_node(network) as alice:
        alice.dial_on_demand("loopback:bob", name="bob")
        for _ in range(5):
            await alice.send(Route("bob", "x"), "hello")
            await trio.sleep(STEADY_SECONDS + 0.2)
        assert len(network.dialled) == 5
        assert not +alice.counters


@pytest.mark.parametrize("reads_for", [0, 3], ids=["at once", "later"])
async def test_peer_that_takes_nothing_is_hung_up_and_its_address_stays(
    autojump_clock: trio.testing.MockClock, reads_for: float
) -> None:
    network = Dialler()
    taken: list[bytes] = []
    is_stuck = True

    async def accept(link: Link) -> None:
        with trio.move_on_after(reads_for if is_stuck else float("inf")):
            while frames := await link.receive():
                taken.extend(frames)
        await trio.sleep_forever()

    async with accepting(network, accept), client_at_a_hub(network) as (hub, at, client):
        link = hub.dial_on_demand("loopback:bob", name="bob")
        with trio.move_on_after(reads_for + 1.5 * STALL_TIMEOUT):
            while True:
                await client.send(Route(str(at), "bob", "x"), bytes(60_000))
                await trio.sleep(0.01)
        assert link.is_open
        assert not link.ended.is_set()
        assert hub.counters[DropReason.LINK_STALLED] > 0
        assert hub.counters[DropReason.LINK_LOST] > 0
        assert len(network.dialled) == 2
        first, second = network.dialled
        assert first._outgoing.is_closed
        is_stuck = False
        await trio.sleep(2 * STALL_TIMEOUT)
        link._on_stall()  # the second has taken nothing either, but no task waited for it any more
        await trio.testing.wait_all_tasks_blocked()
        assert second._outgoing.is_closed
        taken.clear()
        await client.send(Route(str(at), "bob", "x"), "hello")
        await trio.sleep(1)
        assert len(taken) == 1


async def test_peer_that_sends_invalid_frames_is_hung_up_and_its_address_stays(
    autojump_clock: trio.testing.MockClock,
) -> None:
    network = Dialler()

    async def accept(link: Link) -> None:
        await trio.sleep(STEADY_SECONDS + 0.1)
        await link.send([b"\xff", b"\xff"])
        while await link.receive():
            pass
        await link.aclose()

    async with accepting(network, accept), open_node(network) as alice:
        link = alice.dial_on_demand("loopback:bob", name="bob")
        for count in (1, 2, 3):
            await alice.send(Route("bob", "x"), "hello")
            await trio.sleep(STEADY_SECONDS + 0.2)
            assert len(network.dialled) == count
            assert network.dialled[-1]._outgoing.is_closed
            assert link.is_open
            assert +alice.counters == {DropReason.FRAME_UNDECODABLE: 2 * count}


async def test_connection_no_longer_used_is_closed_although_its_reader_was_cancelled(
    autojump_clock: trio.testing.MockClock,
) -> None:
    network = Dialler()

    async def accept(link: Link) -> None:
        await trio.sleep(2)
        await link.send_eof()
        await trio.sleep_forever()

    async def send(link: OnDemandLink) -> None:
        while True:
            await link.send([bytes(500_000)])

    async with accepting(network, accept):
        link = OnDemandLink("bob", lambda: network.connect("bob"), Counter())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.receive)
            nursery.start_soon(send, link)
            await trio.sleep(2 + GRACE / 2)  # it waits for a burst that its peer does not take
            nursery.cancel_scope.cancel()
        await link.aclose()
        (dialled,) = network.dialled
        assert dialled._outgoing.is_closed


async def test_dial_without_an_answer_ends_in_time(autojump_clock: trio.testing.MockClock) -> None:
    network = Dialler(is_silent=True)
    async with open_node(network) as alice:
        link = alice.dial_on_demand("loopback:bob", name="bob")
        await alice.send(Route("bob", "echoer"), "hello")
        await trio.sleep(DIAL_SECONDS + 1)
        assert +alice.counters == {DropReason.DIAL_FAILED: 1}
        assert link.is_open
        await alice.send(Route("bob", "echoer"), "hello")
        began = trio.current_time()
        await link.aclose()  # while it is dialled
        assert trio.current_time() - began <= GRACE
        assert link.ended.is_set()


async def test_other_protocol_version_is_logged_and_closed(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    network = Dialler(is_classic=True)
    async with open_node(network) as bob, open_node(network) as alice:
        await serve(bob)
        alice.dial_on_demand("loopback:bob", name="bob")
        await alice.send(Route("bob", "echoer"), "hello")
        await trio.testing.wait_all_tasks_blocked()
        assert +alice.counters == {DropReason.DIAL_FAILED: 1}
    assert "speaks protocol version 'classic', links on demand speak 'current'" in caplog.text


async def test_frame_too_large_for_the_transport_is_dropped(autojump_clock: trio.testing.MockClock) -> None:
    network = Dialler(largest=1000)
    async with open_node(network) as bob, open_node(network) as alice:
        await serve(bob)
        alice.dial_on_demand("loopback:bob", name="bob")
        await alice.send(Route("bob", "echoer"), bytes(2000))
        assert (await alice.ask(Route("bob", "echoer"), "hello")).text == "hello"
        assert +alice.counters == {DropReason.FRAME_TOO_LARGE: 1}


async def test_frames_in_transit_when_a_link_is_lost_are_counted(autojump_clock: trio.testing.MockClock) -> None:
    network = Dialler()
    async with open_node(network) as alice:
        alice.dial_on_demand("loopback:bob", name="bob")
        async with open_node(network) as bob:
            await serve(bob)
            assert (await alice.ask(Route("bob", "echoer"), "hello")).text == "hello"
            (link,) = network.dialled

            async def lost(frames: object) -> None:
                raise ConnectionLost("gone")

            link.send = lost  # type: ignore[method-assign]
            await alice.send(Route("bob", "echoer"), "hello")
            await trio.testing.wait_all_tasks_blocked()
            assert +alice.counters == {DropReason.LINK_LOST: 1}


async def test_peer_that_ends_without_taking_a_burst_is_hung_up(autojump_clock: trio.testing.MockClock) -> None:
    network = Dialler()
    async with open_node(network) as alice:
        alice.dial_on_demand("loopback:bob", name="bob")
        async with trio.open_nursery() as nursery:
            accepted: list[Link] = []

            async def accept(link: Link) -> None:
                accepted.append(link)
                await trio.sleep_forever()

            async def listen() -> None:
                await network.serve("bob", accept)

            nursery.start_soon(listen)
            await trio.testing.wait_all_tasks_blocked()
            await alice.send(
                Route("bob", "echoer"), bytes(900_000)
            )  # more than the window, so that the second burst waits
            await trio.testing.wait_all_tasks_blocked()
            await alice.send(Route("bob", "echoer"), "hello")
            await trio.testing.wait_all_tasks_blocked()
            await accepted[0].send_eof()
            await trio.sleep(GRACE + 1)
            assert +alice.counters == {DropReason.LINK_LOST: 1}
            await alice.send(Route("bob", "echoer"), "hello")
            await trio.testing.wait_all_tasks_blocked()
            assert len(accepted) == 2
            nursery.cancel_scope.cancel()
