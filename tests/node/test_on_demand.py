"""Links that are dialled by the first message; tests/topology/test_running.py has them in their places."""

from typing import ClassVar

import attrs
import pytest
import trio
import trio.testing

from trionode import Node, Route, open_node
from trionode.access import from_anywhere
from trionode.errors import AddressInUseError, LinkLostError, LocalError
from trionode.on_demand import DIAL_SECONDS, GRACE
from trionode.protocol.classic import CLASSIC
from trionode.transport import Link
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
    largest: int = 1 << 20
    dialled: list[LoopbackLink] = attrs.Factory(list)

    async def connect(self, peer: str) -> Link:
        if self.is_silent:
            await trio.sleep_forever()
        link = await super().connect(peer)
        assert isinstance(link, LoopbackLink)
        if self.is_classic:
            link.wire = CLASSIC
        link.max_frame = self.largest
        self.dialled.append(link)
        return link


async def serve(node: Node) -> None:
    await node.start_worker("echoer", echoer, allow=from_anywhere)
    await node.listen("loopback:bob")


async def test_nothing_is_dialled_until_there_is_something_to_send(autojump_clock: trio.testing.MockClock) -> None:
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
        with pytest.raises(LocalError, match="not with 'tcp'"):
            alice.dial_on_demand("tcp:127.0.0.1:1", name="other")
        await link.aclose()
        assert link.ended.is_set()
    assert not +alice.counters


async def test_a_connection_that_was_lost_is_made_again_by_the_next_message(
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
            await trio.testing.wait_all_tasks_blocked()
            assert link.is_open


async def test_who_does_not_answer_keeps_nobody_waiting_for_long(autojump_clock: trio.testing.MockClock) -> None:
    network = Dialler(is_silent=True)
    async with open_node(network) as alice:
        link = alice.dial_on_demand("loopback:bob", name="bob")
        await alice.send(Route("bob", "echoer"), "hello")
        await trio.sleep(DIAL_SECONDS + 1)
        assert +alice.counters == {"dialled in vain": 1}
        assert link.is_open
        await alice.send(Route("bob", "echoer"), "hello")
        began = trio.current_time()
        await link.aclose()  # while it is dialled
        assert trio.current_time() - began <= GRACE
        assert link.ended.is_set()


async def test_another_generation_is_told_and_not_spoken_to(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    network = Dialler(is_classic=True)
    async with open_node(network) as bob, open_node(network) as alice:
        await serve(bob)
        alice.dial_on_demand("loopback:bob", name="bob")
        await alice.send(Route("bob", "echoer"), "hello")
        await trio.testing.wait_all_tasks_blocked()
        assert +alice.counters == {"dialled in vain": 1}
    assert "speaks the classic generation, links on demand speak current" in caplog.text


async def test_a_frame_that_the_transport_does_not_carry_is_left_out(autojump_clock: trio.testing.MockClock) -> None:
    network = Dialler(largest=1000)
    async with open_node(network) as bob, open_node(network) as alice:
        await serve(bob)
        alice.dial_on_demand("loopback:bob", name="bob")
        await alice.send(Route("bob", "echoer"), bytes(2000))
        assert (await alice.ask(Route("bob", "echoer"), "hello")).text == "hello"
        assert +alice.counters == {"frame too large for the next link": 1}


async def test_what_was_under_way_when_the_peer_went_is_counted(autojump_clock: trio.testing.MockClock) -> None:
    network = Dialler()
    async with open_node(network) as alice:
        alice.dial_on_demand("loopback:bob", name="bob")
        async with open_node(network) as bob:
            await serve(bob)
            assert (await alice.ask(Route("bob", "echoer"), "hello")).text == "hello"
            (link,) = network.dialled

            async def lost(frames: object) -> None:
                raise LinkLostError("gone")

            link.send = lost  # type: ignore[method-assign]
            await alice.send(Route("bob", "echoer"), "hello")
            await trio.testing.wait_all_tasks_blocked()
            assert +alice.counters == {"link lost while sending": 1}


async def test_a_peer_that_ends_without_taking_a_burst_is_left(autojump_clock: trio.testing.MockClock) -> None:
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
            assert +alice.counters == {"link lost while sending": 1}
            await alice.send(Route("bob", "echoer"), "hello")
            await trio.testing.wait_all_tasks_blocked()
            assert len(accepted) == 2
            nursery.cancel_scope.cancel()
