"""Measure in alternating rounds and print one table: `python -m benchmarks [--quick] [--kafka HOST:PORT]`."""

import argparse
import logging
import os
import platform
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from importlib.metadata import version
from statistics import median, quantiles

import attrs
import trio

from benchmarks import bare, channel, forwarding, handshakes, plain, streams
from benchmarks.measure import EchoPath, in_flight, latencies, rate
from benchmarks.processes import pin

#: Bytes of a body: a small message, a medium one, and the largest that a stream carries.
SIZES = {"100 B": 100, "1 KiB": 1024, "60 KB": 60_000}
#: Messages in flight over the streams of a hub: about as many as a stream's push window holds.
STREAM_IN_FLIGHT = 64

#: The figures of one measurement: a rate, or p50 and p99 in µs.
Figures = tuple[float, ...]


@attrs.frozen
class Length:
    """How many rounds, and how many seconds each measurement of a round takes."""

    rounds: int
    flood: float
    single: float


FULL = Length(rounds=11, flood=0.6, single=0.3)
QUICK = Length(rounds=3, flood=0.25, single=0.15)


@attrs.frozen(eq=False)
class Cell:
    """A cell of the table: what is measured in each round, and the cell of the plain peer."""

    measure: Callable[[], Awaitable[Figures]]
    plain: "Cell | None" = None
    rounds: list[Figures] = attrs.field(factory=list)

    def __str__(self) -> str:
        text = " / ".join(f"{median(figures):,.0f}" for figures in zip(*self.rounds, strict=True))
        if self.plain is None:
            return text
        # Compared within a round, because the machine's speed changes more between rounds than the difference to
        # measure.
        shares = [ours[0] / theirs[0] for ours, theirs in zip(self.rounds, self.plain.rounds, strict=True)]
        return f"{text} ({median(shares):.2f})"


@attrs.frozen
class Row:
    """A row of the table. None: nothing is measured."""

    name: str
    cells: Sequence[Cell | None]


async def _flood(path: EchoPath, size: int, most: int, seconds: float) -> Figures:
    return (await rate(path, bytes(size), min(in_flight(size), most), seconds),)


async def _single(path: EchoPath, size: int, seconds: float) -> Figures:
    percentiles = quantiles(await latencies(path, bytes(size), seconds), n=100, method="inclusive")
    return percentiles[49] * 1e6, percentiles[98] * 1e6


async def _openings(opening: handshakes.Opening, seconds: float) -> Figures:
    return (await handshakes.rate(opening, seconds),)


def _echo_row(name: str, echo: EchoPath, length: Length, beside: Row | None = None, *, most: int = 1_000_000) -> Row:
    measures = [
        *(partial(_flood, echo, size, most, length.flood) for size in SIZES.values()),
        *(partial(_single, echo, size, length.single) for size in SIZES.values()),
    ]
    return Row(
        name, [Cell(measure, None if beside is None else beside.cells[at]) for at, measure in enumerate(measures)]
    )


async def _rows(stack: AsyncExitStack, length: Length, kafka: str | None) -> list[Row]:
    """Start all peers, and return the rows to measure, echoes first."""
    enter = stack.enter_async_context
    limit = _echo_row("plain framed Trio TCP", await enter(plain.open_echo()), length)
    rows = [
        limit,
        _echo_row("between nodes, no channel", await enter(bare.open_echo()), length, limit),
        _echo_row("secure channel", await enter(channel.open_echo()), length, limit),
    ]
    for name, where in [("sqlite", None), *([("kafka", kafka)] if kafka else [])]:
        echo = await enter(streams.open_echo(where))
        rows.append(_echo_row(f"secure channel, hub on {name}", echo, length, limit, most=STREAM_IN_FLIGHT))
    hub = await enter(forwarding.open_forwarding())
    measure = partial(_flood, hub, SIZES["100 B"], 1000, length.flood)
    rows.append(Row("one way through a hub", [Cell(measure, limit.cells[0])]))
    connections = Cell(partial(_openings, await enter(handshakes.open_connections()), length.flood))
    channels = partial(_openings, await enter(handshakes.open_channels()), length.flood)
    rows.append(Row("plain connections opened, one echo", [connections]))
    rows.append(Row("secure channels opened", [Cell(channels, connections)]))
    return rows


async def _measure(length: Length, kafka: str | None) -> list[Row]:
    async with AsyncExitStack() as stack:
        rows = await _rows(stack, length, kafka)
        for _ in range(length.rounds):
            for column in range(2 * len(SIZES)):
                for row in rows:
                    cell = row.cells[column] if column < len(row.cells) else None
                    if cell is not None:
                        cell.rounds.append(await cell.measure())
        return rows


def _table(rows: Sequence[Row]) -> str:
    heads = [f"{unit} {size}" for unit in ("1/s", "µs") for size in SIZES]
    lines = [["", *heads], *([row.name, *("" if cell is None else str(cell) for cell in row.cells)] for row in rows)]
    widths = [max(len(line[at]) for line in lines if at < len(line)) for at in range(len(heads) + 1)]
    return "\n".join(
        "  ".join(
            text.rjust(width) if at else text.ljust(width)
            for at, (text, width) in enumerate(zip(line, widths, strict=False))
        )
        for line in lines
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="trionode beside plain framed Trio TCP, in one run"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="fewer and shorter rounds: twenty seconds instead of two and a half minutes",
    )
    parser.add_argument("--kafka", metavar="HOST:PORT", help="measure streams on this Kafka too")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    cores = os.cpu_count()
    pin(0)
    length = QUICK if options.quick else FULL
    rows = trio.run(_measure, length, options.kafka)
    print(
        f"Python {platform.python_version()}, Trio {version('trio')}, {platform.system()} {platform.machine()}, {cores} cores; "
        f"client and peer are two processes; medians of {length.rounds} alternating rounds."
    )
    print(
        f"1/s: echoes per second with {in_flight(100):,} bodies in flight ({in_flight(60_000)} at 60 KB, at most {STREAM_IN_FLIGHT} through a hub), or as the row says. "
        f"µs: p50 / p99 of one echo alone. (of plain)"
    )
    print()
    print(_table(rows))


if __name__ == "__main__":
    main()
