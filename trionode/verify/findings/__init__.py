"""Findings about a topology: parts that cannot work, and things that others can see, send and cause."""

from collections.abc import Iterator

from trionode.verify.analysis import Analysis
from trionode.verify.findings.broken import broken
from trionode.verify.findings.exposed import exposed
from trionode.verify.findings.finding import Finding, Severity, missing_here
from trionode.verify.findings.links import stalling_links

__all__ = ["Finding", "Severity", "find", "missing_here"]


def find(analysis: Analysis) -> Iterator[Finding]:
    """Yield all findings of a topology."""
    yield from broken(analysis)
    yield from exposed(analysis)
    yield from stalling_links(analysis)
