"""The value that every check of the verifier yields."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import attrs

from trionode.topology.errors import KeyPath, Problem, dotted_keys

#: error: it cannot work as written. warning: others can see, send or cause something, or something is missing. note: worth knowing.
Severity = Literal["error", "warning", "note"]
_SEVERITIES: Sequence[Severity] = ("error", "warning", "note")

FindingKind = Literal[
    "loop",
    "no route",
    "no return route",
    "cannot open",
    "unknown address",
    "ambiguous address",
    "claimed twice",
    "plaintext",
    "reachable without channel",
    "trusts everyone",
    "open listener",
    "unauthenticated dial",
    "forwards unauthenticated",
    "open service",
    "ring",
    "drop_when_full",
    "missing here",
]


@attrs.frozen
class Finding:
    """One thing that is wrong or risky: where the topology declares it, why, and what to do."""

    kind: FindingKind
    severity: Severity
    where: KeyPath
    text: str
    advice: str
    #: The path that shows it, hop by hop.
    trace: tuple[str, ...] = ()

    @property
    def rank(self) -> tuple[int, str, str]:
        """The sort key of findings: most serious first."""
        return _SEVERITIES.index(self.severity), self.kind, dotted_keys(self.where)

    def __str__(self) -> str:
        return f"{self.severity}: {dotted_keys(self.where)}: {self.text}. {self.advice}"


def missing_here(problems: Iterable[Problem]) -> Iterator[Finding]:
    """Yield a warning for each problem of `check_here`: what this machine lacks to run the nodes."""
    advice = "Correct it, or check the file where that node runs; write external = true if others run the node"
    for problem in problems:
        yield Finding("missing here", "warning", problem.path, problem.text, advice)
