"""A topology drawn as a flowchart of Mermaid."""

from html import escape

from trionode.verify.graph.layout import COLOURS, BoxKind, lay_out
from trionode.verify.report import Report

_BRACKETS: dict[BoxKind, tuple[str, str]] = {"node": ('["', '"]'), "store": ('[("', '")]'), "outsider": ('(["', '"])')}


def as_mermaid(report: Report) -> str:
    """Draw a topology as a flowchart of Mermaid.

    Args:
      report: The report of the topology.

    Returns:
      The text of the flowchart.
    """
    drawing = lay_out(report)
    ids = {box.name: f"n{number}" for number, box in enumerate(drawing.boxes)}
    lines = ["flowchart LR"]
    for box in drawing.boxes:
        text = "<br/>".join((f"<b>{_escape(box.name)}</b>", *map(_escape, (*box.offers, *box.sees))))
        left, right = _BRACKETS[box.kind]
        lines.append(f"    {ids[box.name]}{left}{text}{right}:::is_{box.role}")
    lines += [f'    {ids[edge.start]} -->|"{_escape(edge.label)}"| {ids[edge.end]}' for edge in drawing.edges]
    lines += [
        f'    {ids[each.initiator]} <-. "{_escape(each.name)}" .-> {ids[each.responder]}' for each in drawing.channels
    ]
    lines += [
        f"    classDef is_{role} fill:{fill},stroke:{stroke},color:#111827" for role, (fill, stroke) in COLOURS.items()
    ]
    return "\n".join(lines) + "\n"


def _escape(text: str) -> str:
    """Escape a text for a label: HTML entities, as Mermaid takes them, and no line break."""
    return escape(text, quote=False).replace('"', "#quot;").replace("\n", " ")
