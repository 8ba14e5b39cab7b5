"""The outcome of a run of a simulation, and of many runs together."""

from collections import Counter
from collections.abc import Iterable, Mapping

import attrs

from trionode.testing.simulation.oracle import FINDINGS


@attrs.frozen(kw_only=True)
class Outcome:
    """What has become of the messages of one run, or of several together.

    Attributes:
      seed: The seed of the run; -1 for several.
      seconds: Virtual seconds.
      accepted: Messages and answers that were accepted from their senders.
      received: Messages and answers that were received, each counted once.
      faults: How often each kind of fault was injected.
      reports: How often nodes reported what to their applications.
      findings: How often something happened that should not: lost, undetected, doubled, reordered, wrong, stuck, error.
      examples: Some of them, with the numbers of the messages.
      forgotten: Messages whose sender has crashed before they were received.
      repeated: Messages that were received again after a crash of their receiver.
      slowest: The longest time from acceptance to receipt in seconds, without the time of partitions and crashes.
      burst_messages: Messages that were received, of bursts.
      burst_seconds: Seconds from the first message of a burst that is sent to the last that is received, of all bursts.
      digest: A hash over all faults, reports, acceptances and receipts with their times.
      trace: The faults, reports and lines of the log, if they were asked for.
    """

    seed: int = -1
    seconds: float = 0.0
    accepted: int = 0
    received: int = 0
    faults: Mapping[str, int] = attrs.Factory(dict)
    reports: Mapping[str, int] = attrs.Factory(dict)
    findings: Mapping[str, int] = attrs.Factory(dict)
    examples: tuple[str, ...] = ()
    forgotten: int = 0
    repeated: int = 0
    slowest: float = 0.0
    burst_messages: int = 0
    burst_seconds: float = 0.0
    digest: str = ""
    trace: tuple[str, ...] = attrs.field(default=(), repr=False)

    @property
    def is_good(self) -> bool:
        """Whether nothing happened that should not."""
        return not any(self.findings.get(finding) for finding in FINDINGS)

    @property
    def goodput(self) -> float:
        """Messages a second within bursts, 0 if there was none."""
        return self.burst_messages / self.burst_seconds if self.burst_seconds else 0.0


def combine(outcomes: Iterable[Outcome]) -> Outcome:
    """Return the sum of several outcomes, without their examples and traces.

    Args:
      outcomes: The outcomes of the runs.

    Returns:
      The sum; the slowest delivery is that of all.
    """
    runs = list(outcomes)

    def total(name: str) -> Counter[str]:
        counted: Counter[str] = Counter()
        for run in runs:
            counted.update(getattr(run, name))
        return counted

    return Outcome(
        seconds=sum(run.seconds for run in runs),
        accepted=sum(run.accepted for run in runs),
        received=sum(run.received for run in runs),
        faults=total("faults"),
        reports=total("reports"),
        findings=total("findings"),
        forgotten=sum(run.forgotten for run in runs),
        repeated=sum(run.repeated for run in runs),
        slowest=max((run.slowest for run in runs), default=0.0),
        burst_messages=sum(run.burst_messages for run in runs),
        burst_seconds=sum(run.burst_seconds for run in runs),
    )
