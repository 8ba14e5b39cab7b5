"""Each fault once, in a short conversation: nothing is lost. The long schedules are in test_campaigns."""

from pathlib import Path

import pytest

from tests.faults.conftest import Record
from tests.faults.driver import Step, open_scenario

#: Seconds for one conversation, far more than it takes.
SECONDS = 60.0
MESSAGES = 2000

SCHEDULES = {
    "processes and clocks": [
        Step("kill hub", 30),
        Step("clock ahead", 30),
        Step("kill bob", 30),
        Step("clock behind", 30),
        Step("kill alice", 30),
        Step("freeze hub", 30, seconds=0.3),
        Step("freeze bob", 30, seconds=0.3),
        Step("freeze alice", 30, seconds=0.3),
    ],
    "ways": [
        Step("reset alice's way", 30),
        Step("cut bob's way", 30),
        Step("corrupt alice's way", 30),
        Step("hold bob's way", 30, seconds=0.3),
        Step("delay alice's way", 30, seconds=0.3),
    ],
}


@pytest.mark.parametrize("steps", SCHEDULES.values(), ids=SCHEDULES)
async def test_nothing_is_lost_and_the_conversation_goes_on(
    steps: list[Step], tmp_path: Path, fault_seed: int, record: Record
) -> None:
    async with open_scenario(tmp_path, MESSAGES) as scenario:
        report = record(await scenario.run(fault_seed, steps, within=SECONDS))
    assert (report.lost, report.disordered, report.invented) == ((), 0, 0), report.text
