"""A topology drawn as text for a terminal."""

from collections.abc import Iterator

from trionode.verify.graph.layout import LEGEND, Role, lay_out
from trionode.verify.report import Report

_MARKS: dict[Role, str] = {"end": "◆", "carries": "●", "reads": "✗", "idle": "○", "outside": "?"}


def as_text(report: Report) -> Iterator[str]:
    """Draw a topology for a terminal: boxes in the order of the flows, what each offers and sees, and its connections.

    Args:
      report: The report of the topology.

    Returns:
      The lines of the drawing.
    """
    drawing = lay_out(report)
    yield "   ".join(f"{_MARKS[role]} {text}" for role, text in LEGEND.items())
    for box in drawing.boxes:
        yield ""
        yield f"{_MARKS[box.role]} {box.name}" + ("" if box.kind == "node" else f" ({box.kind})")
        yield from (f"│   {line}" for line in box.offers)
        yield from (f"│   sees {line}" for line in box.sees)
        for edge in drawing.edges:
            if edge.start == box.name:
                yield f"├── {edge.label} ──▶ {edge.end}"
                yield from (f"│     the network sees {line}" for line in edge.sees)
    if drawing.channels:
        yield ""
        yield from (f"secure channel {each.name}: {each.initiator} ⇄ {each.responder}" for each in drawing.channels)
