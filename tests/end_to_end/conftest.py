"""What the end-to-end tests show when a run is over: the swap matrix as a table."""

import pytest

#: The property by which a test tells its row and its column.
PROPERTY = "swap"
SIGNS = {"passed": "✓", "failed": "✗", "error": "✗", "skipped": "–"}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print which combinations of transport, store and generation passed (✓), failed (✗) or were skipped (–)."""
    cells: dict[tuple[str, str], str] = {}
    for outcome, sign in SIGNS.items():
        for report in terminalreporter.getreports(outcome):
            for name, value in report.user_properties:
                if name == PROPERTY:
                    cells[value] = sign
    if not cells:
        return
    rows = list(dict.fromkeys(sorted(row for row, _ in cells)))
    columns = list(dict.fromkeys(sorted(column for _, column in cells)))
    width = max(map(len, rows))
    terminalreporter.section("swap matrix: transport × store and generation")
    terminalreporter.line(" " * width + "  " + "  ".join(columns))
    for row in rows:
        signs = (cells.get((row, column), " ").center(len(column)) for column in columns)
        terminalreporter.line(row.ljust(width) + "  " + "  ".join(signs))
