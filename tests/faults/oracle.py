"""What became of each number: reads what Alice and Bob have written, and reports what was lost, doubled, out of order,
and how long it took after each fault until numbers passed again.
"""

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

import attrs

from tests.faults.programs.notes import ACCEPTED, INTENT, read_handled, read_log


@attrs.frozen
class Happened:
    """A fault that happened, when it began, in seconds of `time.monotonic`."""

    fault: str
    began: float


@attrs.frozen
class Report:
    """The figures of one run."""

    seed: int
    #: How many numbers Alice's library accepted, and how many of them no handler took.
    accepted: int
    lost: tuple[int, ...]
    #: Calls of the handler beyond the first one for a number.
    doubled: int
    #: Numbers whose first handling came after that of a higher one.
    disordered: int
    #: Numbers of which a killed Alice did not learn whether they were accepted: at most one for each time she was
    #: killed. They may be handled or not.
    unknown: int
    #: Numbers handled that she never sent.
    invented: int
    seconds: float
    #: For each fault, the seconds from its beginning until the first number was handled that was sent after it.
    resumed: Mapping[str, Sequence[float]]

    def p95(self, fault: str) -> float:
        """The 95th percentile of the seconds to resume."""
        return _percentile(self.resumed[fault])

    @property
    def text(self) -> str:
        """The report in lines, and how to replay it."""
        summary = (
            f"seed {self.seed}: {self.accepted} accepted, {len(self.lost)} lost, {self.doubled} doubled, "
            f"{self.disordered} out of order, {self.unknown} unknown, {self.seconds:.1f} s"
        )
        resumed = [
            f"  {fault}: {len(seconds)} times; to resume p50 {median(seconds):.2f}, p95 {_percentile(seconds):.2f}, max {max(seconds):.2f} s"
            for fault, seconds in sorted(self.resumed.items())
        ]
        return "\n".join([summary, *resumed])


def _percentile(values: Sequence[float]) -> float:
    return sorted(values)[min(len(values) - 1, round(0.95 * (len(values) - 1)))]


def judge(folder: Path, happened: Sequence[Happened], seed: int) -> Report:
    """Read what is in the folder of a run."""
    intents: dict[int, float] = {}
    accepted: dict[int, float] = {}
    for what, number, at in read_log(folder / "sent.log"):
        if what == INTENT:
            intents[number] = at
        elif what == ACCEPTED:
            accepted[number] = at
    handled = read_handled(folder / "handled.db")
    times = Counter(number for number, _ in handled)
    first: dict[int, float] = {}
    disordered, highest = 0, 0
    for number, at in handled:
        if number not in first:
            first[number] = at
            disordered += number < highest
            highest = max(highest, number)
    return Report(
        seed=seed,
        accepted=len(accepted),
        lost=tuple(sorted(accepted.keys() - times.keys())),
        doubled=times.total() - len(times),
        disordered=disordered,
        unknown=len(intents.keys() - accepted.keys()),
        invented=len(times.keys() - intents.keys()),
        seconds=max(first.values(), default=0.0) - min(intents.values(), default=0.0),
        resumed=_resumed(intents, first, happened),
    )


def _resumed(
    intents: Mapping[int, float], first: Mapping[int, float], happened: Sequence[Happened]
) -> dict[str, list[float]]:
    """For each fault after which a number was sent: how long until one of those was handled."""
    sent = sorted((at, number) for number, at in intents.items() if number in first)
    moments = [at for at, _ in sent]
    #: The earliest handling of the numbers from there on.
    earliest = [0.0] * len(sent)
    best = float("inf")
    for position in reversed(range(len(sent))):
        best = earliest[position] = min(best, first[sent[position][1]])
    resumed: dict[str, list[float]] = defaultdict(list)
    for each in happened:
        position = bisect_right(moments, each.began)
        if position < len(sent):
            resumed[each.fault].append(earliest[position] - each.began)
    return dict(resumed)
