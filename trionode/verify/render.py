"""A report in words: tables for a terminal, and plain values for JSON."""

from collections.abc import Iterable, Iterator, Sequence

from trionode.topology.errors import keys_of
from trionode.verify.analysis import Flow
from trionode.verify.assertions import Verdict
from trionode.verify.findings import Finding
from trionode.verify.model.messages import RANDOM, Watcher
from trionode.verify.paths import Passed, Path
from trionode.verify.report import Report

#: What a report is made of as JSON.
Json = str | int | bool | None | list["Json"] | dict[str, "Json"]

#: Addresses of one hop that a table names before it says that there are more.
SHOWN_ADDRESSES = 6


def tell(report: Report) -> Iterator[str]:
    """Write a report line by line: for each flow who sees and may what, then findings, then assertions."""
    for flow in report.flows:
        yield from tell_flow(flow)
        yield ""
    if not report.flows:
        yield "no flows: nothing to prove of messages. [flows.NAME] declares one"
        yield ""
    for finding in report.findings:
        yield from _tell_finding(finding)
    if report.findings:
        yield ""
    for verdict in report.verdicts:
        yield from _tell_verdict(verdict)


def tell_flow(flow: Flow) -> Iterator[str]:
    """Write a flow's table: a line for each who carries it, in order."""
    yield f"{flow.name}: {flow.spec.node} => {' => '.join(flow.spec.to)}"
    yield f"  {outcome(flow)}"
    if not flow.passed:
        return
    rows = [("hop", "sees", "may", "addresses in the clear")]
    rows += [(hop_of(each.at), sees(each), may(each), _addresses(each)) for each in flow.passed]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        yield (
            "  " + "  ".join((*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3])).rstrip()
        )


def outcome(flow: Flow) -> str:
    """Say whether a flow arrives, who is proven to be its sender there, and whether answers come back."""
    path = flow.path
    if path.receiver is None:
        return f"does not arrive: {path.there.trouble}"
    node, address = path.receiver
    told = f"arrives at {node}/{address}, {_proof(path)}"
    if not flow.spec.answered:
        return told
    return f"{told}; answers {'come back' if path.returns else 'do not come back: ' + path.back.trouble}"


def _proof(path: Path) -> str:
    if path.receiver is not None and path.receiver[0] == path.node:
        return "which is the sender's own node"
    return "from nobody in particular" if path.proven is None else f"as proven by {path.proven}"


def hop_of(watcher: Watcher) -> str:
    """Name somebody in a table."""
    return f"  {watcher.name}" if watcher.kind == "connection" else str(watcher)


def sees(passed: Passed) -> str:
    """Say what somebody sees of a payload."""
    sight = "that something passes" if passed.seen.payload == "nothing" else passed.seen.payload
    return f"{sight}, could read" if passed.may_read and passed.seen.payload == "ciphertext" else sight


def may(passed: Passed) -> str:
    """Say what somebody could do with a flow."""
    could = ["drop"] if passed.may_drop else []
    if passed.may_inject is not None:
        could.append(f"inject {passed.may_inject}")
    if passed.may_pose:
        could.append(f"be the other end of {', '.join(passed.may_pose)}")
    return ", ".join(could) or "-"


def _addresses(passed: Passed) -> str:
    named = [each for each in passed.seen.addresses if not each.startswith(RANDOM)]
    return ", ".join(named[:SHOWN_ADDRESSES]) + (", …" if len(named) > SHOWN_ADDRESSES else "") or "-"


def _tell_finding(finding: Finding) -> Iterator[str]:
    yield f"{finding.severity}: {keys_of(finding.where)}: {finding.text}"
    yield f"    {finding.advice}."


def _tell_verdict(verdict: Verdict) -> Iterator[str]:
    yield f"{'✓' if verdict.holds else '✗'} {keys_of(('assert', verdict.index))}: {verdict.what}"
    for violation in verdict.violations:
        yield f"    {violation.text}"
        for line in violation.way:
            yield f"        {line}"


# JSON


def as_json(report: Report) -> dict[str, Json]:
    """Return a report as plain values."""
    return {
        "flows": [_flow(flow) for flow in report.flows],
        "findings": [
            {
                "kind": finding.kind,
                "severity": finding.severity,
                "where": keys_of(finding.where),
                "text": finding.text,
                "advice": finding.advice,
                "way": texts(finding.way),
            }
            for finding in report.findings
        ],
        "assertions": [
            {
                "what": verdict.what,
                "holds": verdict.holds,
                "violations": [{"text": each.text, "way": texts(each.way)} for each in verdict.violations],
            }
            for verdict in report.verdicts
        ],
    }


def texts(values: Iterable[str]) -> list[Json]:
    """Return texts as a list for JSON."""
    return [*values]


def _flow(flow: Flow) -> dict[str, Json]:
    path = flow.path
    return {
        "name": flow.name,
        "from": flow.spec.node,
        "to": texts(flow.spec.to),
        "is_declared": flow.is_declared,
        "receiver": None if path.receiver is None else "/".join(path.receiver),
        "arrives": path.arrives,
        "returns": path.returns,
        "why_not": path.there.trouble or (path.back.trouble if flow.spec.answered else ""),
        "there": _passed(path.there.passed),
        "back": _passed(path.back.passed if flow.spec.answered else ()),
    }


def _passed(passed: Sequence[Passed]) -> list[Json]:
    return [
        {
            "kind": each.at.kind,
            "name": each.at.name,
            "payload": each.seen.payload,
            "addresses": texts(address for address in each.seen.addresses if not address.startswith(RANDOM)),
            "may_drop": each.may_drop,
            "may_inject": each.may_inject,
            "may_read": each.may_read,
            "may_pose": texts(each.may_pose),
            "proven": texts(each.proven),
        }
        for each in passed
    ]
