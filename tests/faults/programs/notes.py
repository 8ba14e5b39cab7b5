"""What the programs of a scenario write down, in a form that survives kill -9, and how it is read again.

Times are `time.monotonic()`: one clock for all processes of a machine, which no test moves.
"""

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

#: What Alice notes about a number: she is about to send it; the library has accepted it; Bob has handled it.
INTENT, ACCEPTED, HANDLED = "intent", "accepted", "handled"


class Log:
    """A file of lines, one `write` each. What was written outlives the process; only a power cut could take it."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def note(self, what: str, number: int) -> None:
        """Append one line."""
        os.write(self._file, f"{what} {number} {time.monotonic():.6f}\n".encode())

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def read_log(path: Path) -> Iterator[tuple[str, int, float]]:
    """What, which number, and when, in the order of the file."""
    if path.exists():
        for line in path.read_text().splitlines():
            what, number, at = line.split()
            yield what, int(number), float(at)


@contextmanager
def open_handled(path: Path) -> Iterator[sqlite3.Connection]:
    """Bob's database: a row for each call of his handler."""
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("PRAGMA synchronous = OFF")  # kill -9 takes nothing from the kernel; only a power cut would
        database.execute("CREATE TABLE IF NOT EXISTS handled (number INTEGER, at REAL)")
        yield database


def read_handled(path: Path) -> list[tuple[int, float]]:
    """The numbers that Bob's handler took, in order, and when."""
    with open_handled(path) as database:
        return database.execute("SELECT number, at FROM handled ORDER BY rowid").fetchall()
