"""Options of the whole suite."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that replays a schedule of faults."""
    parser.addoption(
        "--fault-seed",
        type=int,
        metavar="NUMBER",
        help="the seed of the schedules in tests/faults; by default a new one in each run, which the run prints",
    )
