"""What the mission scene keeps under each kind of fault that streams repair, and how fast it stays."""

from typing import Any

import attrs
import pytest

from trionode.testing import FaultMix, Simulation
from trionode.testing.simulation.mix import CAMPAIGN_MIX
from trionode.testing.simulation.outcome import combine

SMALL = Simulation(mix=CAMPAIGN_MIX, hours=0.25, messages=150, interval=0.02)


@pytest.mark.parametrize(
    "options",
    [
        {"drop": 0.05},
        {"duplicate": 0.1},
        {"reorder": 0.1},
        {"delay": 0.1},
        {"cuts": 40.0},
        {"partitions": 20.0},
        {"crashes": 20.0, "crashing": ["hub"]},
        {"crashes": 20.0, "crashing": ["alice"]},
        {"clock_jumps": 20.0},
    ],
    ids=str,
)
def test_one_kind_of_fault_alone_finds_nothing(options: dict[str, Any]) -> None:
    outcome = attrs.evolve(SMALL, mix=FaultMix(**options)).run(1)
    assert outcome.is_good, outcome.examples
    assert outcome.faults


def test_goodput_under_reordering_delays_and_drops_is_at_least_half() -> None:
    faulty = Simulation(mix=FaultMix(reorder=0.1, delay=0.1, drop=0.05), hours=0.2, messages=300)
    ideal, real = (combine(each.run(seed) for seed in range(3)) for each in (faulty.faultless(), faulty))
    assert real.is_good
    assert real.goodput >= ideal.goodput / 2
