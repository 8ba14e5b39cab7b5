"""A report as text for a terminal, and as plain values for JSON."""

from collections.abc import Iterable, Iterator, Sequence

from trionode.topology.errors import dotted_keys
from trionode.verify.analysis import Flow
from trionode.verify.assertions import Verdict
from trionode.verify.model.messages import RANDOM, Observer
from trionode.verify.paths import Observation, Path
from trionode.verify.report import Report

#: A JSON value of a report.
Json = str | int | bool | None | list["Json"] | dict[str, "Json"]

#: Addresses of one hop that a table names before it says that there are more.
SHOWN_ADDRESSES = 6


def render(report: Report) -> Iterator[str]:
    """Yield a report line by line: a table for each flow, then findings, then assertions."""
    for flow in report.flows:
        yield from render_flow(flow)
        yield ""
    if not report.flows:
        yield "no flows, so nothing to prove about messages: declare one with [flows.NAME]"
        yield ""
    for finding in report.findings:
        yield f"{finding.severity}: {dotted_keys(finding.where)}: {finding.text}"
        yield f"    {finding.advice}."
    if report.findings:
        yield ""
    for verdict in report.verdicts:
        yield from _render_verdict(verdict)


def render_flow(flow: Flow) -> Iterator[str]:
    """Yield a flow's table: one line for each observer, in order."""
    yield f"{flow.name}: {flow.spec.node} => {' => '.join(flow.spec.to)}"
    yield f"  {_result(flow)}"
    if not flow.observations:
        return
    rows = [("hop", "sees", "can", "addresses in the clear")]
    rows += [(_hop(each.at), sees(each), can(each), _addresses(each)) for each in flow.observations]
    widths = [max(map(len, column)) for column in list(zip(*rows, strict=True))[:3]]
    for *cells, last in rows:
        yield "  ".join(("", *map(str.ljust, cells, widths), last)).rstrip()


def _result(flow: Flow) -> str:
    """Return whether a flow arrives, which sender is authenticated there, and whether answers come back."""
    path = flow.path
    if path.receiver is None:
        return f"does not arrive: {path.request.trouble}"
    text = f"arrives at {'/'.join(path.receiver)}, {_sender(path)}"
    if not flow.spec.answered:
        return text
    return f"{text}; answers {'come back' if path.returns else 'do not come back: ' + path.reply.trouble}"


def _sender(path: Path) -> str:
    if path.receiver is not None and path.receiver[0] == path.node:
        return "which is the sender's own node"
    sender = path.authenticated_sender
    return "sender not authenticated" if sender is None else f"sender authenticated as {sender}"


def _hop(observer: Observer) -> str:
    return f"  {observer.name}" if observer.kind == "connection" else str(observer)


def sees(observation: Observation) -> str:
    """Return what an observer sees of a payload, in words."""
    payload = observation.visible.payload
    if payload == "ciphertext" and observation.can_decrypt:
        return "ciphertext, could read"
    return "traffic only" if payload == "nothing" else payload


def can(observation: Observation) -> str:
    """Return what an observer can do with a flow, in words."""
    abilities = ["drop"] if observation.can_drop else []
    if observation.can_inject is not None:
        abilities.append(f"inject {observation.can_inject}")
    if observation.can_impersonate:
        abilities.append(f"impersonate the peer of {', '.join(observation.can_impersonate)}")
    return ", ".join(abilities) or "-"


def _named(observation: Observation) -> list[str]:
    return [each for each in observation.visible.addresses if not each.startswith(RANDOM)]


def _addresses(observation: Observation) -> str:
    named = _named(observation)
    return ", ".join(named[:SHOWN_ADDRESSES]) + (", …" if len(named) > SHOWN_ADDRESSES else "") or "-"


def _render_verdict(verdict: Verdict) -> Iterator[str]:
    yield f"{'✓' if verdict.holds else '✗'} {dotted_keys(('assert', verdict.index))}: {verdict.what}"
    for violation in verdict.violations:
        yield f"    {violation.text}"
        yield from (f"        {line}" for line in violation.trace)


# JSON


def as_json(report: Report) -> dict[str, Json]:
    """Return a report as plain values."""
    return {
        "flows": [_flow(flow) for flow in report.flows],
        "findings": [
            {
                "kind": finding.kind,
                "severity": finding.severity,
                "where": dotted_keys(finding.where),
                "text": finding.text,
                "advice": finding.advice,
                "trace": texts(finding.trace),
            }
            for finding in report.findings
        ],
        "assertions": [
            {
                "what": verdict.what,
                "holds": verdict.holds,
                "violations": [{"text": each.text, "trace": texts(each.trace)} for each in verdict.violations],
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
        "why_not": path.request.trouble or (path.reply.trouble if flow.spec.answered else ""),
        "request": _observations(path.request.observations),
        "reply": _observations(path.reply.observations if flow.spec.answered else ()),
    }


def _observations(observations: Sequence[Observation]) -> list[Json]:
    return [
        {
            "kind": each.at.kind,
            "name": each.at.name,
            "payload": each.visible.payload,
            "addresses": texts(_named(each)),
            "can_drop": each.can_drop,
            "can_inject": each.can_inject,
            "can_decrypt": each.can_decrypt,
            "can_impersonate": texts(each.can_impersonate),
            "authenticated": texts(each.authenticated),
        }
        for each in observations
    ]
