import pytest
import trio

from trionode import Route, open_node
from trionode.errors import ConnectionLost, LocalError, MessageTooLargeError
from trionode.net.transport import load_transport
from trionode.protocol.rules.access import from_anywhere
from trionode.testing import transport
from trionode.testing.transport import (
    CHECKS,
    SMALL,
    Check,
    Harness,
    check_transport,
    run_check,
)
from trionode.workers import echoer
from trionode_loopback import Loopback, Network, link_pair


@pytest.fixture(autouse=True)
def _no_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "QUIET", 0)  # nothing is under way in a kernel: who is blocked is so at once


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_loopback_keeps_the_contract_in_virtual_time(
    check: Check, autojump_clock: trio.testing.MockClock
) -> None:
    network = Network()
    small = Loopback(max_frame=SMALL, network=network)
    await run_check(check, Harness(Loopback(network=network), "hub:0", "unreachable", small))


async def test_check_transport_runs_the_whole_contract(autojump_clock: trio.testing.MockClock) -> None:
    await check_transport(Loopback, at="", unreachable="unreachable")


async def test_all_nodes_of_a_process_can_connect_unless_they_have_their_own_network() -> None:
    own = Loopback(network=Network())
    async with open_node("loopback") as bob, open_node("loopback") as alice, open_node(own) as other:
        at = str(await bob.listen("loopback:bob"))
        await alice.connect(at)
        with pytest.raises(ConnectionLost, match="nothing listens at loopback:bob"):
            await other.connect(at)


async def test_max_frame_bounds_frames_within_a_shared_network(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_node("loopback") as bob, open_node(load_transport("loopback", max_frame=300)) as alice:
        route = Route(await bob.listen("loopback:bob"), "echoer")
        await bob.start_worker("echoer", echoer, allow=from_anywhere)
        assert (await alice.ask(route, "hello")).text == "hello"
        with pytest.raises(MessageTooLargeError, match="at most 300 bytes"):
            await alice.send(route, bytes(300))


def test_an_unknown_transport_is_an_error_that_lists_the_installed_ones() -> None:
    with pytest.raises(LocalError, match=r"no transport 'pigeon' is installed; installed are: .*loopback.*tcp"):
        load_transport("pigeon")


async def test_the_window_bounds_the_bytes_in_flight() -> None:
    one, other = link_pair("one", "other")
    with trio.move_on_after(1) as scope:
        await trio.testing.wait_all_tasks_blocked()
        sent = 0
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                nonlocal sent
                while True:
                    await one.send([bytes(10_000)])
                    sent += 1

            nursery.start_soon(send)
            await trio.testing.wait_all_tasks_blocked()
            assert sent == 256 * 1024 // 10_512 + 1
            assert len(await other.receive()) == sent
            nursery.cancel_scope.cancel()
    assert not scope.cancelled_caught
