"""Shared parts of the end-to-end tests: signals for the programs that they start, and the table of the swap matrix."""

import signal
from collections.abc import Iterator

import pytest

#: The property by which a test tells its row and its column.
PROPERTY = "swap"
SIGNS = {"passed": "✓", "failed": "✗", "error": "✗", "skipped": "–"}


@pytest.fixture(scope="package", autouse=True)
def signals_that_programs_hear() -> Iterator[None]:
    """A run that began with a signal ignored, by nohup or in a shell's background, would start programs that ignore it
    as well.
    """
    ignored = [each for each in (signal.SIGINT, signal.SIGHUP) if signal.getsignal(each) is signal.SIG_IGN]
    for each in ignored:
        signal.signal(each, signal.SIG_DFL)
    yield
    for each in ignored:
        signal.signal(each, signal.SIG_IGN)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print which combinations of transport, store and protocol version passed (✓), failed (✗) or were skipped (–)."""
    cells: dict[tuple[str, str], str] = {}
    for outcome, sign in SIGNS.items():
        for report in terminalreporter.getreports(outcome):
            for name, value in getattr(report, "user_properties", ()):  # what could not be collected has none
                if name == PROPERTY:
                    cells[value] = sign
    if not cells:
        return
    rows = sorted({row for row, _ in cells})
    columns = sorted({column for _, column in cells})
    width = max(map(len, rows))
    terminalreporter.section("swap matrix: transport × store and protocol version")
    terminalreporter.line(" " * width + "  " + "  ".join(columns))
    for row in rows:
        signs = (cells.get((row, column), " ").center(len(column)) for column in columns)
        terminalreporter.line(row.ljust(width) + "  " + "  ".join(signs))
