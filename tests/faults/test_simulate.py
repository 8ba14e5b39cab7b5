"""Simulations: what a seed decides, what is injected, and what a run counts on a good and on a broken library."""

import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import attrs
import pytest
import trio

from trionode import Message, Route
from trionode.errors import ConfigError
from trionode.routing.mailbox import Mailbox
from trionode.testing import STANDARD_MIX, FaultMix, Outcome, Simulation
from trionode.testing.simulation.oracle import REPORTED_WITHIN, Flow, Ledger, Oracle, number_of, payload_of
from trionode.testing.simulation.outcome import combine
from trionode.topology import load_topology, parse_topology

ROOT = Path(__file__).parents[2]
SMALL = Simulation(mix=FaultMix(), hours=0.1, messages=60)
FRAMES = ("drop", "duplicate", "reorder", "delay", "corrupt")


# -- what a seed decides -----------------------------------------------------------------------------------------------

SHOW_DIGESTS = """
import attrs
from trionode.testing import STANDARD_MIX, Simulation
if __name__ == "__main__":
    # What a changed bit does can depend on the random key or address that it is in.
    mix = attrs.evolve(STANDARD_MIX, corrupt=0.0)
    print([Simulation(mix=mix, hours=0.2, messages=100).run(seed).digest for seed in (1, 2)])
"""


def test_the_same_seed_gives_the_same_run_in_every_process() -> None:
    shown = {
        subprocess.run(
            [sys.executable, "-c", SHOW_DIGESTS],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(shown) == 1
    one, other = shown.pop().strip("[]\n").split(", ")
    assert one != other


def test_a_trace_lists_the_faults_and_repeats_them() -> None:
    simulation = attrs.evolve(SMALL, mix=FaultMix(drop=0.05, cuts=20.0))
    first, second = (simulation.run(3, trace=True) for _ in range(2))
    faults = [line for line in first.trace if "fault:" in line]
    assert faults == [line for line in second.trace if "fault:" in line]
    assert len(faults) == sum(first.faults.values()) > 0
    assert first.digest == second.digest == simulation.run(3).digest
    assert simulation.run(3).trace == ()


def test_a_simulation_leaves_time_and_chance_as_they_were() -> None:
    import random
    import time

    before = time.time, time.time_ns, trio.to_thread.run_sync, random.getstate()
    SMALL.run(1)
    assert before == (time.time, time.time_ns, trio.to_thread.run_sync, random.getstate())


# -- what is injected --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*FRAMES, "forget"])
def test_each_kind_of_fault_is_injected_and_no_other(kind: str) -> None:
    mix: dict[str, Any] = {kind: 0.05}
    assert attrs.evolve(SMALL, mix=FaultMix(**mix)).run(1).faults.keys() == {kind}


def test_the_standard_mix_injects_every_kind() -> None:
    total = combine(attrs.evolve(SMALL, hours=1.0, mix=STANDARD_MIX).run(seed) for seed in range(3))
    assert total.faults.keys() == {*FRAMES, "forget", "cut", "partition", "heal", "crash", "restart", "clock jump"}


def test_only_the_named_nodes_crash() -> None:
    outcome = attrs.evolve(SMALL, mix=FaultMix(crashes=60.0, crashing=("bob",))).run(2, trace=True)
    crashes = [line for line in outcome.trace if "fault: crash" in line]
    assert len(crashes) == outcome.faults["crash"] > 0
    assert all(line.endswith("crash: bob") for line in crashes)


def test_a_crashed_sender_goes_on_with_what_it_has_not_sent() -> None:
    outcome = attrs.evolve(SMALL, hours=0.5, mix=FaultMix(crashes=20.0, crashing=("alice",))).run(2)
    assert outcome.faults["crash"] > 2
    assert outcome.is_good, outcome.examples
    assert outcome.accepted > 110


# -- what a good library shows -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("store", ["memory", "sqlite"])
def test_without_faults_everything_arrives_once_in_order_at_once(store: Literal["memory", "sqlite"]) -> None:
    outcome = attrs.evolve(SMALL, store=store).run(1)
    assert outcome.is_good
    assert (outcome.accepted, outcome.received, outcome.reports) == (120, 120, {})
    assert outcome.slowest < 0.1
    assert outcome.burst_messages == 60


@pytest.mark.parametrize("mix", [FaultMix(drop=0.02, duplicate=0.05), FaultMix(delay=0.02)])
def test_faults_that_streams_repair_lose_nothing(mix: FaultMix) -> None:
    outcome = attrs.evolve(SMALL, mix=mix).run(1)
    assert outcome.is_good, outcome.examples
    assert outcome.received == 120


# -- what a broken library shows: each bug is planted where a message reaches the worker -------------------------------

#: Takes a message and its number, and returns what the worker receives in its place.
Plant = Callable[[Message, int], list[Message]]


def lose(message: Message, number: int) -> list[Message]:
    return [] if number == 30 else [message]


def double(message: Message, number: int) -> list[Message]:
    return [message, message] if number == 30 else [message]


def garble(message: Message, number: int) -> list[Message]:
    if number == 30:
        message.payload = message.payload[:-1] + b"?"
    return [message]


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Callable[[Plant], None]:
    """Change what the worker receives."""

    def planted(bug: Plant) -> None:
        receive, waiting = Mailbox.receive, deque[Message]()

        async def changed(mailbox: Mailbox) -> Message:
            if mailbox.address.value != b"echoer":
                return await receive(mailbox)
            while not waiting:
                message = await receive(mailbox)
                known = number_of(message.payload)
                assert known is not None
                waiting.extend(bug(message, known[1]))
            return waiting.popleft()

        monkeypatch.setattr(Mailbox, "receive", changed)

    return planted


@pytest.mark.parametrize(
    ("bug", "findings"),
    [
        (lose, {"lost": 1, "undetected": 1}),
        (double, {"doubled": 1}),
        (garble, {"wrong": 1, "lost": 1, "undetected": 1}),
    ],
)
def test_a_planted_bug_is_found(plant: Callable[[Plant], None], bug: Plant, findings: dict[str, int]) -> None:
    plant(bug)
    outcome = SMALL.run(1)
    assert outcome.findings == findings
    assert not outcome.is_good
    assert len(outcome.examples) == sum(findings.values())


def test_a_swapped_pair_is_found(plant: Callable[[Plant], None]) -> None:
    held: list[Message] = []

    def swap(message: Message, number: int) -> list[Message]:
        if number == 30:
            held.append(message)
            return []
        return [message, held.pop()] if held else [message]

    plant(swap)
    assert SMALL.run(1).findings["reordered"] >= 1


def test_a_sender_that_cannot_send_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    send = Mailbox.send

    async def hanging(mailbox: Mailbox, route: Route, body: bytes) -> None:
        if number_of(body) == ("mission", 7):
            await trio.sleep_forever()
        await send(mailbox, route, body)

    monkeypatch.setattr(Mailbox, "send", hanging)
    assert SMALL.run(1).findings == {"stuck": 1}


def test_an_exception_of_the_library_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(mailbox: Mailbox, message: Message, body: bytes) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr(Mailbox, "reply", broken)
    outcome = SMALL.run(1)
    assert outcome.findings["error"] == 1
    assert any("planted" in example for example in outcome.examples)


# -- the oracle --------------------------------------------------------------------------------------------------------


@pytest.fixture
def ledger() -> Ledger:
    return Ledger("flow", frozenset({"alice"}), frozenset({"bob"}))


def sent(ledger: Ledger, count: int) -> None:
    for _ in range(count):
        ledger.accept(ledger.begin(), 1.0)


def concluded(ledger: Ledger, *, back: Ledger | None = None) -> dict[str, int]:
    oracle = Oracle({"flow": Flow(ledger, back)})
    oracle.conclude()
    return dict(oracle.found)


def test_a_crashed_sender_excuses_what_was_on_the_way_and_nothing_after(ledger: Ledger) -> None:
    async def main() -> dict[str, int]:
        oracle = Oracle({"flow": Flow(ledger, None)})
        sent(ledger, 3)
        oracle.crashed("alice")
        sent(ledger, 1)
        oracle.conclude()
        return dict(oracle.found)

    assert trio.run(main) == {"lost": 1, "undetected": 1}
    assert ledger.forgotten == 3


def test_a_crashed_receiver_may_see_again_what_it_had_received_and_nothing_after(ledger: Ledger) -> None:
    sent(ledger, 3)
    ledger.receive(0, 2.0)
    ledger.may_repeat()
    assert not ledger.receive(0, 3.0)
    assert ledger.receive(1, 3.0)
    assert not ledger.receive(1, 3.0)
    ledger.receive(2, 3.0)
    assert ledger.repeated == 1
    assert concluded(ledger) == {"doubled": 1}


def test_a_loss_that_an_end_reports_in_time_is_detected_and_no_other(ledger: Ledger) -> None:
    async def main() -> dict[str, int]:
        oracle, now = Oracle({"flow": Flow(ledger, None)}), trio.current_time()
        ledger.accept(ledger.begin(), now - REPORTED_WITHIN - 1)
        ledger.accept(ledger.begin(), now - 1)
        oracle.report("bob", "Gap")
        ledger.accept(ledger.begin(), now + 1)
        oracle.report("hub", "an event elsewhere")
        oracle.conclude()
        return dict(oracle.found)

    assert trio.run(main) == {"lost": 3, "undetected": 2}


def test_a_message_that_arrives_before_its_sender_knows_is_received(ledger: Ledger) -> None:
    number = ledger.begin()
    ledger.receive(number, 1.0)
    ledger.accept(number, 2.0)
    assert concluded(ledger) == {}


@pytest.mark.parametrize("number", range(8))
def test_a_payload_shows_every_change(number: int) -> None:
    payload = payload_of("a flow", number)
    assert number_of(payload) == ("a flow", number)
    for index in range(len(payload)):
        changed = bytearray(payload)
        changed[index] ^= 1
        assert number_of(bytes(changed)) is None or index < len("a flow")  # another flow is not known
    assert number_of(payload[:-1]) is None
    assert number_of(payload + b"x") is None


def test_the_slowest_delivery_does_not_count_outages(ledger: Ledger) -> None:
    oracle = Oracle({"flow": Flow(ledger, None)})
    ledger.accept(ledger.begin(), 0.0)
    ledger.receive(0, 20.0)
    oracle.outages += [(5.0, 10.0), (8.0, 12.0), (30.0, 40.0), (-9.0, -1.0)]
    assert oracle.slowest() == 13.0


def test_outcomes_add_up() -> None:
    parts = [
        Outcome(seed=1, seconds=10.0, accepted=3, faults={"drop": 1}, slowest=2.0, burst_messages=4, burst_seconds=2.0),
        Outcome(seed=2, seconds=5.0, accepted=1, faults={"drop": 2, "cut": 1}, findings={"lost": 1}, slowest=1.0),
    ]
    total = combine(parts)
    assert (total.seconds, total.accepted, total.slowest, total.goodput) == (15.0, 4, 2.0, 2.0)
    assert total.faults == {"drop": 3, "cut": 1}
    assert not total.is_good
    assert parts[0].is_good


# -- topologies of users -----------------------------------------------------------------------------------------------


EXAMPLES = sorted((ROOT / "examples" / "topologies").glob("*.toml"))


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_each_example_can_be_simulated(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(file.parent)
    topology = load_topology(file)
    outcome = Simulation(topology=topology, mix=FaultMix(), hours=0.02, messages=20).run(1)
    assert outcome.is_good, outcome.examples
    assert outcome.received == sum(20 * (1 + flow.answered) for flow in topology.flows.values())


DIRECT = """
[nodes.bob]
listen = "tcp:127.0.0.1:4000"
workers.inbox = { run = "echoer", allow = "anyone" }

[nodes.alice]
"""


def test_messages_can_be_sent_along_a_route_that_is_no_flow() -> None:
    simulation = Simulation(
        topology=parse_topology(DIRECT),
        sender="alice",
        to=["tcp:127.0.0.1:4000", "inbox"],
        mix=FaultMix(),
        hours=0.02,
        messages=10,
    )
    assert simulation.run(1).received == 20


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "no flow"),
        ({"sender": "carol", "to": ["inbox"]}, "no such node"),
        ({"sender": "alice", "to": ["tcp:127.0.0.1:4000", "inlet"]}, "no worker"),
        ({"sender": "alice", "to": []}, "no worker"),
    ],
)
def test_a_topology_without_a_sender_and_a_receiver_is_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Simulation(topology=parse_topology(DIRECT), **options)


@pytest.mark.parametrize(
    "wrong", [{"hours": 0.0}, {"messages": 0}, {"interval": -1.0}, {"mix": FaultMix(crashing=("carol",))}]
)
def test_a_simulation_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Simulation(**wrong)


@pytest.mark.parametrize("wrong", [{"drop": 1.5}, {"latency": -1.0}, {"cuts": -1.0}, {"crashes": -0.5}])
def test_a_mix_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        FaultMix(**wrong)
