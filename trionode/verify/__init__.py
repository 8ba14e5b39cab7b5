"""The verifier: proves from the spec of a topology which hops can read, drop or inject messages."""

from trionode.verify.analysis import Analysis, Flow
from trionode.verify.assertions import Verdict, Violation
from trionode.verify.findings import Finding
from trionode.verify.model.messages import Observer
from trionode.verify.paths import Direction, Observation, Path, Visible
from trionode.verify.reachability import Dial, Reachability, Reached
from trionode.verify.report import Report, verify

__all__ = [
    "Analysis",
    "Dial",
    "Direction",
    "Finding",
    "Flow",
    "Observation",
    "Observer",
    "Path",
    "Reachability",
    "Reached",
    "Report",
    "Verdict",
    "Violation",
    "Visible",
    "verify",
]
