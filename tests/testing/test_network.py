import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from random import Random

import pytest
import trio
import trio.testing

from trionode import Route, open_node
from trionode.errors import ConnectionLost, LocalError
from trionode.net.transport import Link
from trionode.node.node import Node
from trionode.protocol.rules.access import from_anywhere
from trionode.testing import OVERTAKEN_WITHIN, Event, Fate, Faults, FaultyNetwork, Frame, transport
from trionode.testing.transport import CHECKS, SMALL, Check, Harness, run_check
from trionode.workers import echoer

LINES = [b"line %d of them" % n for n in range(40)]


@pytest.fixture(autouse=True)
def _no_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "QUIET", 0)  # no kernel buffers hold anything: a blocked writer blocks at once


@asynccontextmanager
async def joined(network: FaultyNetwork, one: str = "alice", other: str = "bob") -> AsyncIterator[tuple[Link, Link]]:
    """The ends of a link that one node has made to another."""
    links, accepted = trio.open_memory_channel[Link](1)
    async with trio.open_nursery() as nursery:
        at = await nursery.start(partial(network.transport(other).serve, f"{other}:0", links.send))
        link = await network.transport(one).connect(at)
        yield link, await accepted.receive()
        nursery.cancel_scope.cancel()


async def arrived(link: Link, sender: Link) -> list[bytes]:
    """Return everything that arrives until all sent messages were delivered."""
    await sender.send_eof()
    frames: list[bytes] = []
    while burst := await link.receive():
        frames += burst
    return frames


async def passed(network: FaultyNetwork, frames: list[bytes]) -> list[bytes]:
    """What becomes of frames from Alice to Bob, one after the other."""
    async with joined(network) as (alice, bob):
        for frame in frames:
            await alice.send([frame])
        return await arrived(bob, alice)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_network_without_faults_keeps_the_contract(check: Check, autojump_clock: trio.testing.MockClock) -> None:
    network = FaultyNetwork()
    small = network.transport("small", max_frame=SMALL)
    await run_check(check, Harness(network.transport("node"), "hub:0", "missing", small))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_slow_network_keeps_the_contract(check: Check, autojump_clock: trio.testing.MockClock) -> None:
    network = FaultyNetwork()
    network.set_faults(Faults(latency=0.01, rate=50e6))
    small = network.transport("small", max_frame=SMALL)
    await run_check(check, Harness(network.transport("node"), "hub:0", "missing", small))


ALL = {
    "drop": Faults(drop=0.3),
    "duplicate": Faults(duplicate=0.3),
    "reorder": Faults(reorder=0.3),
    "delay": Faults(delay=0.3),
    "corrupt": Faults(corrupt=0.3),
}


@pytest.mark.parametrize("what", ALL)
async def test_same_seed_gives_the_same_faults(what: str, autojump_clock: trio.testing.MockClock) -> None:
    async def faults(seed: int) -> tuple[list[bytes], list[Event]]:
        network = FaultyNetwork(seed)
        network.set_faults(ALL[what])
        return await passed(network, LINES), network.log

    frames, log = await faults(1)
    assert (frames, log) == await faults(1)
    assert frames != LINES
    assert {event.what for event in log} == {what}
    assert log != (await faults(2))[1]
    assert len(frames) == len(LINES) + len(log) * {"drop": -1, "duplicate": 1}.get(what, 0)
    if what in {"reorder", "delay"}:
        assert sorted(frames) == sorted(LINES)


async def test_a_fault_hits_the_same_frames_with_other_faults_set(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def dropped(faults: Faults) -> set[int]:
        network = FaultyNetwork(3)
        network.set_faults(faults)
        await passed(network, LINES)
        return {event.number for event in network.log if event.what == "drop"}

    assert await dropped(Faults(drop=0.2)) == await dropped(Faults(drop=0.2, duplicate=0.5, delay=0.5, latency=1))


async def test_faults_apply_to_one_direction(autojump_clock: trio.testing.MockClock) -> None:
    network = FaultyNetwork()
    async with joined(network) as (alice, bob):
        network.set_faults(Faults(drop=1), sender="alice", receiver="bob")
        await alice.send([b"lost"])
        await bob.send([b"back"])
        assert await alice.receive() == [b"back"]
        assert await arrived(bob, alice) == []
        assert [str(event).split(maxsplit=1)[1] for event in network.log] == ["drop: alice → bob, link 1, frame 1"]


async def test_the_narrower_direction_limits_a_path(autojump_clock: trio.testing.MockClock) -> None:
    network = FaultyNetwork()
    for name in ("alice", "bob"):
        network.transport(name)
    every = [Faults(latency=n) for n in (1, 2, 3, 4)]
    network.set_faults(every[0])
    network.set_faults(every[1], receiver="bob")
    network.set_faults(every[2], sender="alice")
    network.set_faults(every[3], sender="alice", receiver="bob")
    pairs = [("carol", "dave"), ("carol", "bob"), ("alice", "dave"), ("alice", "bob")]
    assert [network.faults(*pair) for pair in pairs] == every
    network.clear_faults()
    assert network.faults("alice", "bob") == Faults()


@pytest.mark.parametrize(
    ("fate", "frames"),
    [
        (Frame.dropped, "0134"),
        (Frame.duplicated, "012234"),
        (lambda frame: frame.replaced(b"x", b"y"), "01xy34"),
        (lambda frame: frame.corrupted(1), "01034"),
        (lambda frame: frame.overtaken(1), "01324"),
        (lambda frame: frame.overtaken(9), "01342"),
        (lambda frame: frame.delayed(1), "01342"),
        (lambda frame: None, "01234"),
    ],
)
async def test_a_rule_decides_what_becomes_of_a_frame(
    fate: Callable[[Frame], Fate | None], frames: str, autojump_clock: trio.testing.MockClock
) -> None:
    network = FaultyNetwork()
    network.set_faults(Faults(rule=lambda frame: fate(frame) if frame.number == 3 else None))
    assert b"".join(await passed(network, [b"0", b"1", b"2", b"3", b"4"])).decode() == frames


async def test_reordered_last_frame_arrives_late(autojump_clock: trio.testing.MockClock) -> None:
    network = FaultyNetwork()
    network.set_faults(Faults(rule=lambda frame: frame.overtaken(1)))
    async with joined(network) as (alice, bob):
        await alice.send([b"last"])
        assert await bob.receive() == [b"last"]
        assert trio.current_time() == OVERTAKEN_WITHIN


async def test_latency_and_rate_take_virtual_time_and_keep_the_order(autojump_clock: trio.testing.MockClock) -> None:
    network = FaultyNetwork()
    network.set_faults(Faults(latency=2, rate=1000))
    async with joined(network) as (alice, bob):
        await alice.send([bytes(1000), bytes(3000)])
        assert await bob.receive() == [bytes(1000)]
        assert trio.current_time() == pytest.approx(3)
        network.clear_faults()  # for frames that are sent from now on; they do not overtake frames in flight
        await alice.send([b"next"])
        assert await bob.receive() == [bytes(3000), b"next"]
        assert trio.current_time() == pytest.approx(6)


async def test_cut_loses_the_link_and_frames_in_flight(autojump_clock: trio.testing.MockClock) -> None:
    network = FaultyNetwork()
    async with joined(network) as (alice, bob), joined(network, "carol", "dave") as (carol, dave):
        await alice.send([b"arrived"])
        network.set_faults(Faults(latency=1))
        await alice.send([b"in flight"])
        network.cut("bob", "alice")
        assert await bob.receive() == [b"arrived"]
        for end in (alice, bob):
            with pytest.raises(ConnectionLost, match="cut"):
                await end.receive()
            assert await end.receive() == []
            with pytest.raises(ConnectionLost, match="cut"):
                await end.send([b"more"])
        await carol.send([b"elsewhere"])
        assert await dave.receive() == [b"elsewhere"]
    assert network.log == [Event("cut", "bob | alice")]


@pytest.mark.parametrize("other", [["bob"], "bob", ()], ids=str)
async def test_frames_wait_for_the_end_of_a_partition(
    other: str | list[str], autojump_clock: trio.testing.MockClock
) -> None:
    network = FaultyNetwork()
    async with joined(network) as (alice, bob):
        network.partition("alice", other)
        await alice.send([b"held"])
        with trio.move_on_after(1000) as scope:
            await bob.receive()
        assert scope.cancelled_caught
        with pytest.raises(ConnectionLost, match="blocks everything to bob"):
            await network.transport("alice").connect("bob:1")
        network.heal()
        assert await bob.receive() == [b"held"]
    assert [event.what for event in network.log] == ["partition", "heal"]


async def test_end_of_a_link_is_hidden_by_a_partition(autojump_clock: trio.testing.MockClock) -> None:
    network = FaultyNetwork()
    async with joined(network) as (alice, bob):
        network.partition("alice")
        await bob.aclose()
        await alice.send([b"to a closed link"])
        network.heal()
        assert await alice.receive() == []
        with pytest.raises(ConnectionLost):
            await alice.send([b"to a closed link"])


NAMING: dict[str, Callable[[FaultyNetwork, str], object]] = {
    "disturb a sender": lambda network, name: network.set_faults(Faults(), sender=name),
    "disturb a receiver": lambda network, name: network.set_faults(Faults(), sender="alice", receiver=name),
    "cut": lambda network, name: network.cut(name),
    "cut from others": lambda network, name: network.cut("bob", ["alice", name]),
    "partition": lambda network, name: network.partition(name),
    "partition from others": lambda network, name: network.partition("bob", ["alice", name]),
    "crash": lambda network, name: network.crash(name),
    "revive": lambda network, name: network.revive(name),
}


@pytest.mark.parametrize("naming", NAMING)
def test_unknown_name_is_refused_until_its_transport_is_made(naming: str) -> None:
    network = FaultyNetwork()
    for name in ("alice", "bob"):
        network.transport(name)
    with pytest.raises(
        LocalError, match=r"called 'alyce': did you mean .?alice.?\? .*alice, bob.*network\.transport\('alyce'\)"
    ):
        NAMING[naming](network, "alyce")
    assert network.log == []
    network.transport("alyce")
    NAMING[naming](network, "alyce")


async def test_crash_with_an_unknown_name_leaves_the_node_running(
    autojump_clock: trio.testing.MockClock,
) -> None:
    network = FaultyNetwork()
    async with network.crashable("bobb", lambda: an_echoer(network, [])) as bob:
        with pytest.raises(LocalError, match="bobb"):
            await bob.crash()
        assert (await bob.node.ask(Route("echoer"), "still here")).text == "still here"


@pytest.mark.parametrize("probability", [-0.1, 1.1, math.nan])
def test_faults_refuse_a_wrong_probability(probability: float) -> None:
    with pytest.raises(LocalError, match="drop is a probability, from 0 to 1"):
        Faults(drop=probability)


def test_faults_refuse_a_wrong_amount() -> None:
    with pytest.raises(LocalError, match="rate has to be more than 0"):
        Faults(rate=0)
    with pytest.raises(LocalError, match="latency has to be 0 or more"):
        Faults(latency=-1)


@asynccontextmanager
async def an_echoer(network: FaultyNetwork, ends: list[str]) -> AsyncIterator[Node]:
    async with open_node(network.transport("bob")) as node:
        await node.listen("loopback:bob")
        await node.start_worker("echoer", echoer, allow=from_anywhere)
        yield node
        ends.append("in good order")


ECHOER = Route("loopback:bob", "echoer")


async def test_a_node_crashes_and_starts_again(autojump_clock: trio.testing.MockClock) -> None:
    network, ends = FaultyNetwork(), list[str]()
    async with open_node(network.transport("alice")) as alice:
        async with network.crashable("bob", lambda: an_echoer(network, ends)) as bob:
            link = await alice.connect("loopback:bob")
            assert (await alice.ask(ECHOER, "before")).text == "before"
            first = bob.node
            await bob.crash()
            await link.ended.wait()
            assert "bob has crashed" in link._reason
            for wrong in (lambda: bob.node, None):
                with pytest.raises(LocalError, match="bob is down"):
                    await bob.crash() if wrong is None else wrong()
            with pytest.raises(ConnectionLost):
                await alice.ask(ECHOER, "meanwhile")
            assert await bob.restart() is bob.node is not first
            assert (await alice.ask(ECHOER, "after")).text == "after"
            with pytest.raises(LocalError, match="bob runs"):
                await bob.restart()
        assert ends == ["in good order"]
    assert [event.what for event in network.log] == ["crash", "restart"]


async def test_silent_crash_is_noticed_when_the_node_is_back(autojump_clock: trio.testing.MockClock) -> None:
    network, ends = FaultyNetwork(), list[str]()
    async with (
        open_node(network.transport("alice")) as alice,
        network.crashable("bob", lambda: an_echoer(network, ends)) as bob,
    ):
        link = await alice.connect("loopback:bob")
        await bob.crash(silent=True)
        with trio.move_on_after(1000):
            await link.ended.wait()
        assert link.is_open
        await bob.restart()
        await link.ended.wait()
        assert "bob has restarted" in link._reason
        assert (await alice.ask(ECHOER, "again")).text == "again"


async def test_crashed_node_has_no_effect(autojump_clock: trio.testing.MockClock) -> None:
    network = FaultyNetwork()
    async with joined(network) as (alice, bob):
        network.crash("bob", silent=True)
        await bob.send([b"a last word"])
        await bob.aclose()
        with trio.move_on_after(1000) as scope:
            await alice.receive()
        assert scope.cancelled_caught
        with trio.move_on_after(1000) as scope:
            await bob.receive()
        assert scope.cancelled_caught


async def test_exception_of_a_crashable_node_leaves_the_block(autojump_clock: trio.testing.MockClock) -> None:
    async def fail(_: object) -> None:
        raise ValueError("from a worker")

    network = FaultyNetwork()
    with pytest.RaisesGroup(pytest.RaisesGroup(ValueError)):
        async with network.crashable("bob", lambda: open_node(network.transport("bob"))) as bob:
            await bob.node.start_worker("failing", fail)
            await trio.sleep_forever()


async def test_closed_links_are_forgotten(autojump_clock: trio.testing.MockClock) -> None:
    network = FaultyNetwork()
    for _ in range(3):
        async with joined(network) as ends:
            for end in ends:
                await end.aclose()
    assert len(network._pairs) == 1


def test_fate_depends_on_the_frame_only() -> None:
    frame = Frame("alice", "bob", 1, 1, b"data")
    assert Faults().fate(frame, Random(0)) is None
    assert Faults(drop=1).fate(frame, Random(0)) == frame.dropped()
    assert "data" not in repr(frame)
