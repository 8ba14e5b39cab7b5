"""The seed of the schedules of faults, and the figures of each run at the end of the terminal's output."""

import secrets
from collections.abc import Callable, Generator
from typing import TypeAlias

import pytest

from tests.faults.oracle import Report

#: Notes the figures of a run for the terminal, and returns them.
Record: TypeAlias = Callable[[Report], Report]

_FIGURES = "figures under faults"


@pytest.fixture(scope="session")
def fault_seed(request: pytest.FixtureRequest) -> int:
    """The seed of --fault-seed, or a new one."""
    seed: int | None = request.config.getoption("--fault-seed")
    return secrets.randbelow(2**31) if seed is None else seed


@pytest.fixture
def record(record_property: Callable[[str, object], None]) -> Record:
    """See `Record`."""

    def note(report: Report) -> Report:
        record_property(_FIGURES, report.text)
        return report

    return note


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the figures of the runs."""
    reports = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]
    figures = [
        (report.nodeid, value)
        for report in reports
        for name, value in getattr(report, "user_properties", ())  # what could not be collected has none
        if name == _FIGURES and report.when == "call"
    ]
    if figures:
        terminalreporter.section(_FIGURES)
    for nodeid, value in figures:
        terminalreporter.line(nodeid)
        terminalreporter.line(value)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the seed with a failed test, and the command that replays it."""
    report = yield
    seed = getattr(item, "funcargs", {}).get("fault_seed")
    if report.failed and seed is not None:
        report.sections.append(("fault seed", f'replay: pytest "{item.nodeid}" -m "" --fault-seed {seed}'))
    return report
