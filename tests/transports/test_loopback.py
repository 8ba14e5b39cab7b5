import pytest
import trio

from trionode import Route, open_node
from trionode.errors import LocalError, MessageTooLargeError
from trionode.net.transport import Transport, load_transport
from trionode.protocol.rules.access import from_anywhere
from trionode.testing import transport
from trionode.testing.transport import (
    CHECKS,
    SMALL,
    Check,
    Harness,
    an_unreachable_address_is_connection_lost,
    check_transport,
    run_check,
)
from trionode.workers import echoer
from trionode_loopback import NETWORK, Loopback, Network, link_pair


@pytest.fixture(autouse=True)
def _no_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "QUIET", 0)  # nothing is under way in a kernel: who is blocked is so at once


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_loopback_keeps_the_contract_in_virtual_time(
    check: Check, autojump_clock: trio.testing.MockClock
) -> None:
    network = Network()
    small = Loopback(max_frame=SMALL, network=network)
    await run_check(check, Harness(Loopback(network=network), "hub:0", "nobody", small))


async def test_the_contract_runs_as_a_whole_for_plugins_that_want_it_so(autojump_clock: trio.testing.MockClock) -> None:
    await check_transport(Loopback, at="", unreachable="nobody")


def test_the_entry_point_gives_every_node_of_this_process_the_same_network() -> None:
    assert load_transport("loopback") is NETWORK
    assert isinstance(NETWORK, Transport)


async def test_an_option_of_the_entry_point_bounds_the_frames_of_nodes_in_the_same_network(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_node("loopback") as bob, open_node(load_transport("loopback", max_frame=300)) as alice:
        route = Route(await bob.listen("loopback:bob"), "echoer")
        await bob.start_worker("echoer", echoer, allow=from_anywhere)
        assert (await alice.ask(route, "hello")).text == "hello"
        with pytest.raises(MessageTooLargeError, match="at most 300 bytes"):
            await alice.send(route, bytes(300))


def test_a_transport_that_is_not_installed_is_answered_with_those_that_are() -> None:
    with pytest.raises(LocalError, match=r"no transport 'pigeon' is installed; installed are: .*loopback.*tcp"):
        load_transport("pigeon")


async def test_two_networks_do_not_see_each_other(autojump_clock: trio.testing.MockClock) -> None:
    ground = Harness(Loopback(), "hub", "nobody")
    other = Harness(Loopback(), "hub", "hub")
    async with trio.open_nursery() as nursery:

        async def accept(_: object) -> None: ...

        await nursery.start(ground.transport.serve, ground.at, accept)
        await run_check(an_unreachable_address_is_connection_lost, other)
        nursery.cancel_scope.cancel()


async def test_the_window_bounds_what_is_under_way_to_a_peer_that_does_not_read() -> None:
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
