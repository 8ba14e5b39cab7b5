"""The driver itself: its schedules, its clock, its full disk, and its oracle, which sees what went wrong."""

import json
import struct
from pathlib import Path

import pytest

from tests.faults.driver import CLOCK, full_disk, open_scenario, schedule
from tests.faults.oracle import Happened, judge
from tests.faults.programs.notes import open_handled
from tests.support.processes import Commands
from trionode import Route, open_node, unique
from trionode.errors import AnswerTimeout, ServiceError


def test_a_seed_makes_the_same_schedule_and_each_fault_equally_often() -> None:
    one = schedule(7, ["a", "b", "c"], 30, after=(10, 20), seconds=(1, 2))
    assert one == schedule(7, ["a", "b", "c"], 30, after=(10, 20), seconds=(1, 2))
    assert one != schedule(8, ["a", "b", "c"], 30, after=(10, 20), seconds=(1, 2))
    assert [sum(step.fault == name for step in one) for name in "abc"] == [10, 10, 10]
    assert all(10 <= step.after <= 20 and 1 <= step.seconds <= 2 for step in one)


def write_down(folder: Path, sent: str, handled: list[tuple[int, float]]) -> None:
    (folder / "sent.log").write_text("\n".join(sent.split(", ")))
    with open_handled(folder / "handled.db") as database:
        database.executemany("INSERT INTO handled VALUES (?, ?)", handled)


CLEAN = "intent 1 1.0, accepted 1 1.1, intent 2 2.0, accepted 2 2.1, intent 3 3.0, accepted 3 3.1"


@pytest.mark.parametrize(
    ("sent", "handled", "verdict"),
    [
        (CLEAN, [1, 2, 3], {"accepted": 3, "lost": (), "doubled": 0, "disordered": 0, "unknown": 0, "invented": 0}),
        (CLEAN, [1, 3], {"lost": (2,), "disordered": 0}),
        (CLEAN, [1, 2, 2, 3, 2], {"lost": (), "doubled": 2, "disordered": 0}),
        (CLEAN, [2, 1, 3], {"lost": (), "doubled": 0, "disordered": 1}),
        (CLEAN, [1, 2, 3, 4], {"invented": 1}),
        (f"{CLEAN}, intent 4 4.0", [1, 2, 3], {"accepted": 3, "lost": (), "unknown": 1}),
        (f"{CLEAN}, intent 4 4.0", [1, 2, 3, 4], {"accepted": 3, "lost": (), "unknown": 1, "invented": 0}),
    ],
)
def test_the_oracle_sees_what_went_wrong(
    sent: str, handled: list[int], verdict: dict[str, object], tmp_path: Path
) -> None:
    write_down(tmp_path, sent, [(number, 5.0) for number in handled])
    report = judge(tmp_path, [], seed=0)
    assert {name: getattr(report, name) for name in verdict} == verdict


def test_a_conversation_has_resumed_when_a_number_was_handled_that_was_sent_after_the_fault(tmp_path: Path) -> None:
    write_down(tmp_path, CLEAN, [(1, 1.5), (2, 9.0), (3, 8.0)])
    report = judge(tmp_path, [Happened("x", 0.5), Happened("x", 1.4), Happened("y", 3.5)], seed=0)
    assert report.resumed == {"x": [1.0, pytest.approx(6.6)]}
    assert report.p95("x") == pytest.approx(6.6)


async def test_the_wall_clock_of_a_process_jumps_and_its_monotonic_clock_does_not(tmp_path: Path) -> None:
    clock = tmp_path / "clock"
    clock.write_bytes(struct.pack("=d", 0.0))
    program = "import json, time\nfor _ in iter(input, 'end'): print(json.dumps([time.time(), time.time_ns() / 1e9, time.monotonic()]), flush=True)"
    async with Commands(tmp_path, {"PYTHONPATH": str(CLOCK), "FAULT_CLOCK": str(clock)}) as commands:
        running = await commands.start(program=["-c", program])

        async def read() -> list[float]:
            await running.write("")
            times: list[float] = json.loads(await running.line())
            return times

        before = await read()
        clock.write_bytes(struct.pack("=d", -3600.0))
        after = await read()
    moved = [later - earlier for earlier, later in zip(before, after, strict=True)]
    assert moved[0] == pytest.approx(-3600, abs=60)
    assert moved[1] == pytest.approx(-3600, abs=60)
    assert 0 <= moved[2] < 60


async def test_a_hub_whose_disk_is_full_stores_nothing_until_there_is_room(tmp_path: Path) -> None:
    async with open_scenario(tmp_path, 0) as scenario, open_node("tcp") as node:
        hub = Route(scenario.hubs[0].endpoint)

        async def open_one(seconds: float) -> None:
            await node.open_stream(hub, sends=unique("a"), receives=unique("b"), timeout=seconds)

        await open_one(10)
        with full_disk(scenario.hubs[0].pid), pytest.raises((ServiceError, AnswerTimeout)):
            await open_one(2)
        await open_one(10)
