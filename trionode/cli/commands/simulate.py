"""`trionode simulate`: a topology under seeded faults in virtual time, thousands of schedules, each of them replayable."""

import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NoReturn

import attrs
import click
from click.core import ParameterSource

from trionode.cli.terminal import print_out, printable, say
from trionode.errors import LocalError
from trionode.testing import STANDARD_MIX, FaultMix, Outcome, Simulation
from trionode.testing.simulation.mix import CAMPAIGN_MIX, RATES
from trionode.testing.simulation.oracle import FINDINGS
from trionode.testing.simulation.outcome import combine
from trionode.topology.load.loader import load_topology

#: Seeds without --seed or --campaign.
SEEDS = 10
#: The campaign: a thousand hours, together a million messages and answers, and more than 100,000 of each fault of frames.
CAMPAIGN_SEEDS = 1000
CAMPAIGN_OPTIONS: Mapping[str, Any] = {"messages": 500, "interval": 0.02}
#: Seeds that run a second time without faults, to compare the rate.
COMPARED = 4
#: Failing seeds that the report names.
NAMED = 20
#: Failing seeds whose findings are printed.
DETAILED = 3
#: Options that don't change what happens in a run.
_NOT_REPEATED = {"seed", "seeds", "jobs", "is_json", "trace"}

_PROBABILITIES = {
    "drop": "The probability that a frame is dropped.",
    "duplicate": "The probability that a frame is delivered twice.",
    "reorder": "The probability that other frames overtake a frame.",
    "delay": "The probability that a frame is late, by up to a second.",
    "corrupt": "The probability that a bit of a frame is flipped.",
    "forget": "The probability that a hub confirms a record and does not keep it.",
}
_RATES = {
    "cut": "How often in an hour a link is lost.",
    "partition": "How often in an hour a node is separated from the others for a while.",
    "clock_jump": "How often in an hour the wall clock jumps, by up to two hours.",
}


def _fault_options(command: Any) -> Any:
    for name, text in reversed(_RATES.items()):
        option = f"--{name.replace('_', '-')}"
        command = click.option(option, name, type=click.FloatRange(0), metavar="RATE", help=text)(command)
    for name, text in reversed(_PROBABILITIES.items()):
        command = click.option(f"--{name}", type=click.FloatRange(0, 1), metavar="P", help=text)(command)
    return command


@click.command()
@click.argument("files", type=click.Path(path_type=Path, dir_okay=False), nargs=-1, metavar="FILE...")
@_fault_options
@click.option("--crash", "crashing", multiple=True, metavar="NODE", help="A node that crashes. Repeatable.")
@click.option(
    "--crash-rate", type=click.FloatRange(0), metavar="RATE", help="How often in an hour a node crashes. By default 2."
)
@click.option(
    "--latency",
    type=click.FloatRange(0),
    default=STANDARD_MIX.latency,
    show_default=True,
    metavar="SECONDS",
    help="How long each frame takes.",
)
@click.option("--seed", type=int, metavar="S", help="The first seed, by default 0. Without --seeds the only one.")
@click.option("--seeds", type=click.IntRange(1), metavar="N", help=f"How many seeds to run. By default {SEEDS}.")
@click.option(
    "--hours",
    type=click.FloatRange(0, min_open=True),
    default=1.0,
    show_default=True,
    metavar="H",
    help="The virtual hours of each run.",
)
@click.option(
    "--messages",
    type=click.IntRange(1),
    default=1000,
    show_default=True,
    metavar="N",
    help="The messages of each flow in each run.",
)
@click.option(
    "--interval",
    type=click.FloatRange(0),
    default=0.2,
    show_default=True,
    metavar="SECONDS",
    help="The time between two messages of a burst.",
)
@click.option("--from", "sender", metavar="NODE", help="Send from this node, instead of along the flows of FILEs.")
@click.option("--to", metavar="ROUTE", help="The route for --from, its hops joined by =>.")
@click.option(
    "--store",
    type=click.Choice(("memory", "sqlite")),
    default="memory",
    show_default=True,
    help="The store of the streams.",
)
@click.option(
    "--campaign",
    is_flag=True,
    help=f"Run {CAMPAIGN_SEEDS} seeds: {CAMPAIGN_SEEDS} hours, a million messages and answers, and more than 100,000 of "
    "each fault of frames.",
)
@click.option("--jobs", type=click.IntRange(1), metavar="N", help="Processes. By default one for each processor.")
@click.option("--trace", is_flag=True, help="Print the faults, reports and log lines of each run.")
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
@click.pass_context
def simulate(
    context: click.Context,
    /,
    *,
    files: tuple[Path, ...],
    seed: int | None,
    seeds: int | None,
    campaign: bool,
    jobs: int | None,
    trace: bool,
    is_json: bool,
    **options: Any,
) -> None:
    """Run a topology in virtual time under seeded faults, and count every message.

    Without FILEs it is the mission scene: Alice sends messages to Bob over a hub, through a secure channel over two
    streams, and Bob echoes them. FILEs describe a topology of your own: its flows get numbered messages, and the workers
    at their ends are replaced by ones that count. All transports are replaced by a network in memory.

    A seed decides all faults and their order. The report gives the command that repeats a failing seed. Without any
    option for faults all kinds happen.

    Exit codes: 0 nothing was lost, undetected, doubled, reordered, wrong or stuck, 1 otherwise, 2 wrong options.
    """
    first = seed or 0
    count = seeds or (1 if seed is not None else CAMPAIGN_SEEDS if campaign else SEEDS)
    if campaign:
        options.update((name, value) for name, value in CAMPAIGN_OPTIONS.items() if not _is_given(context, name))
    try:
        simulation = _simulation(files, CAMPAIGN_MIX if campaign else STANDARD_MIX, **options)
        began = time.monotonic()
        processes = min(jobs or os.cpu_count() or 1, count)
        report = _Report(simulation, _replay(context))
        progress = sys.stderr.isatty()
        for done, outcome in enumerate(_outcomes(simulation, range(first, first + count), processes, trace=trace), 1):
            report.add(outcome, verbose=not is_json)
            if progress:
                click.echo(f"\r{done:,} of {count:,} seeds", err=True, nl=done == count)
        compared = list(_outcomes(simulation.faultless(), range(first, first + min(count, COMPARED)), processes))
        report.compare(compared)
        seconds = time.monotonic() - began
        if is_json:
            print_out(json.dumps(report.as_json(seconds), indent=2))
        else:
            for line in report.lines(seconds, processes):
                print_out(printable(line))
    except LocalError as error:
        for line in str(error).splitlines():
            say(printable(line))
        context.exit(1)
    context.exit(0 if report.is_good else 1)


def _simulation(
    files: tuple[Path, ...],
    default: FaultMix,
    *,
    crashing: tuple[str, ...],
    crash_rate: float | None,
    latency: float,
    to: str | None,
    sender: str | None,
    **options: Any,
) -> Simulation:
    """Make the simulation that the options describe."""
    if (sender is None) != (to is None):
        raise click.UsageError("--from NODE and --to ROUTE go together")
    faults = {name: options.pop(name) for name in (*_PROBABILITIES, *_RATES)}
    given: dict[str, Any] = {RATES.get(name, name): value for name, value in faults.items() if value is not None}
    if crashing or crash_rate is not None:
        given.update(crashing=crashing, crashes=STANDARD_MIX.crashes if crash_rate is None else crash_rate)
    mix = FaultMix(latency=latency, **given) if given else attrs.evolve(default, latency=latency)
    if files:
        for folder in dict.fromkeys(str(file.resolve().parent) for file in files):
            sys.path.append(folder)  # workers are imported from there, as `trionode run` does
        options["topology"] = load_topology(*files)
    route = () if to is None else tuple(hop.strip() for hop in to.split("=>"))
    return Simulation(mix=mix, sender=sender, to=route, **options)


def _is_given(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) is ParameterSource.COMMANDLINE


def _replay(context: click.Context) -> str:
    """Return the command line that repeats a run, without its seed."""
    words = ["trionode", "simulate"]
    for parameter in context.command.params:
        name = parameter.name or ""
        if name in _NOT_REPEATED or not _is_given(context, name):
            continue
        value = context.params[name]
        if value is True:
            words.append(parameter.opts[0])
            continue
        for each in value if isinstance(value, tuple) else (value,):
            words += [str(each)] if isinstance(parameter, click.Argument) else [parameter.opts[0], str(each)]
    return shlex.join(words)


def _outcomes(
    simulation: Simulation, seeds: Iterable[int], processes: int, *, trace: bool = False
) -> Iterator[Outcome]:
    """Yield the outcome of each seed as it is there."""
    if processes == 1:
        yield from (simulation.run(seed, trace=trace) for seed in seeds)
        return
    before = signal.signal(signal.SIGTERM, _terminated)
    pool = ProcessPoolExecutor(processes, mp_context=get_context("spawn"))
    try:
        for each in as_completed([pool.submit(simulation.run, seed, trace=trace) for seed in seeds]):
            yield each.result()
    finally:
        pool.shutdown(cancel_futures=True)
        signal.signal(signal.SIGTERM, before)


def _terminated(number: int, _: object) -> NoReturn:
    sys.exit(128 + number)


class _Report:
    """What all runs have shown."""

    def __init__(self, simulation: Simulation, replay: str) -> None:
        self._simulation = simulation
        self._replay = replay
        self._outcomes: dict[int, Outcome] = {}
        self._share: float | None = None

    @property
    def is_good(self) -> bool:
        """Whether nothing happened that should not."""
        return all(outcome.is_good for outcome in self._outcomes.values())

    def add(self, outcome: Outcome, *, verbose: bool) -> None:
        """Count a run; print it if it was traced or has failed."""
        self._outcomes[outcome.seed] = attrs.evolve(outcome, trace=())
        if verbose:
            for line in outcome.trace:
                print_out(printable(line))
            if not outcome.is_good:
                say(f"seed {outcome.seed}: {_counts(outcome.findings, FINDINGS)}; replay: {self.replay(outcome.seed)}")
                shown = len(self._failing()) <= DETAILED
                for example in outcome.examples if shown else ():
                    for line in example.splitlines():
                        say(f"  {printable(line)}")

    def replay(self, seed: int) -> str:
        """Return the command that repeats a run."""
        return f"{self._replay} --seed {seed}"

    def compare(self, faultless: Iterable[Outcome]) -> None:
        """Compare the rate of some seeds with that of the same seeds without faults."""
        runs = list(faultless)
        ideal, real = combine(runs).goodput, combine(self._outcomes[run.seed] for run in runs).goodput
        self._share = real / ideal if ideal else None

    def _failing(self) -> list[Outcome]:
        return [outcome for _, outcome in sorted(self._outcomes.items()) if not outcome.is_good]

    def lines(self, seconds: float, processes: int) -> Iterator[str]:
        """Yield the lines of the report."""
        total, failing = combine(self._outcomes.values()), self._failing()
        share = "" if self._share is None else f", {self._share:.0%} of the faultless rate"
        rows = {
            "schedules": f"{len(self._outcomes):,} with {total.seconds / 3600:,.1f} virtual hours, in {seconds:,.1f} s on {processes} process{'es' * (processes > 1)}",
            "messages": f"{total.accepted:,} accepted, {total.received:,} received",
            "faults": _counts(total.faults) or "none",
            "reports": _counts(total.reports) or "none",
            "crashed senders": f"{total.forgotten:,} messages gone with them",
            "crashed receivers": f"{total.repeated:,} messages received again",
            "goodput": f"{total.goodput:,.2f} messages a second in bursts{share}",
            "slowest delivery": f"{total.slowest:,.1f} s, outages not counted",
            "findings": _counts({each: total.findings.get(each, 0) for each in FINDINGS}, FINDINGS, zeros=True),
        }
        if len(self._outcomes) == 1:
            rows["trace hash"] = next(iter(self._outcomes.values())).digest
        for name, text in rows.items():
            yield f"{name:<18} {text}"
        if failing:
            named = ", ".join(str(outcome.seed) for outcome in failing[:NAMED])
            yield f"{'failing seeds':<18} {len(failing):,}: {named}{', …' * (len(failing) > NAMED)}"
            yield f"{'replay':<18} {self.replay(failing[0].seed)} --trace"

    def as_json(self, seconds: float) -> dict[str, object]:
        """Return the report for programs."""
        total = combine(self._outcomes.values())
        return {
            "schedules": len(self._outcomes),
            "virtual_seconds": total.seconds,
            "real_seconds": seconds,
            "accepted": total.accepted,
            "received": total.received,
            "faults": dict(sorted(total.faults.items())),
            "reports": dict(sorted(total.reports.items())),
            "findings": {each: total.findings.get(each, 0) for each in FINDINGS},
            "forgotten": total.forgotten,
            "repeated": total.repeated,
            "goodput": total.goodput,
            "goodput_of_faultless": self._share,
            "slowest": total.slowest,
            "digests": {str(seed): outcome.digest for seed, outcome in sorted(self._outcomes.items())},
            "failing": [
                {
                    "seed": outcome.seed,
                    "findings": dict(outcome.findings),
                    "examples": outcome.examples,
                    "replay": self.replay(outcome.seed),
                }
                for outcome in self._failing()
            ],
        }


def _counts(counted: Mapping[str, int], order: Iterable[str] = (), *, zeros: bool = False) -> str:
    names = [*order] or sorted(counted)
    return ", ".join(f"{name} {counted.get(name, 0):,}" for name in names if zeros or counted.get(name))
