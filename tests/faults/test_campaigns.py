"""Long conversations under random faults of real processes: nothing is lost.

    pytest -m faults --fault-seed N

repeats a run with its seed, which each run prints.
"""

from pathlib import Path

import pytest

from tests.faults.conftest import Record
from tests.faults.driver import open_scenario, schedule
from trionode.testing import KafkaBroker

pytestmark = pytest.mark.faults

MESSAGES = 10_000
#: Seconds for one conversation: far more than it takes with all its faults.
SECONDS = 580.0

#: Numbers handled between two faults.
BETWEEN = (50, 400)


@pytest.mark.parametrize("role", ["hub", "bob", "alice"])
async def test_10_000_numbers_although_one_role_is_killed_20_times(
    role: str, tmp_path: Path, fault_seed: int, record: Record
) -> None:
    steps = schedule(fault_seed, [f"kill {role}"], 20, after=BETWEEN)
    async with open_scenario(tmp_path, MESSAGES) as scenario:
        report = record(await scenario.run(fault_seed, steps, within=SECONDS))
    assert (report.lost, report.disordered, report.invented) == ((), 0, 0), report.text


@pytest.mark.kafka
async def test_10_000_numbers_over_kafka_although_the_broker_is_killed_20_times(
    tmp_path: Path, fault_seed: int, record: Record, kafka_broker: KafkaBroker
) -> None:
    steps = schedule(fault_seed, ["kill broker"], 20, after=BETWEEN)
    async with open_scenario(
        tmp_path, MESSAGES, store=f"kafka:{kafka_broker.bootstrap}", broker=kafka_broker
    ) as scenario:
        report = record(await scenario.run(fault_seed, steps, within=SECONDS))
    assert (report.lost, report.disordered, report.invented) == ((), 0, 0), report.text


@pytest.mark.kafka
async def test_10_000_numbers_over_two_hubs_and_one_kafka_although_one_is_killed_every_few_seconds(
    tmp_path: Path, fault_seed: int, record: Record, kafka_broker: KafkaBroker
) -> None:
    steps = schedule(fault_seed, ["kill hub 0", "kill hub 1"], 20, after=(0, 100), pause=(1.0, 4.0))
    async with open_scenario(
        tmp_path, MESSAGES, store=f"kafka:{kafka_broker.bootstrap}", hubs=2, pause=0.012
    ) as scenario:
        report = record(await scenario.run(fault_seed, steps, within=SECONDS))
    assert (report.lost, report.disordered, report.invented) == ((), 0, 0), report.text


async def test_10_000_numbers_although_everything_happens_to_everyone(
    tmp_path: Path, fault_seed: int, record: Record
) -> None:
    faults = [f"kill {role}" for role in ("hub", "alice", "bob")]
    faults += [f"freeze {role}" for role in ("hub", "alice", "bob")]
    faults += [
        f"{what} {whose}'s way"
        for what in ("reset", "cut", "corrupt", "half-open", "hold", "delay")
        for whose in ("alice", "bob")
    ]
    faults += ["clock ahead", "clock behind", "clock right", "hub's disk full"]
    steps = schedule(fault_seed, faults, 2 * len(faults), after=(50, 200))
    async with open_scenario(tmp_path, MESSAGES) as scenario:
        report = record(await scenario.run(fault_seed, steps, within=SECONDS))
    # A corrupted connection loses records, and what Alice's program sends again comes after later numbers.
    assert (report.lost, report.invented) == ((), 0), report.text
