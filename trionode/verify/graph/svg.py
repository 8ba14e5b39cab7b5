"""A topology drawn as an SVG file without scripts or external parts."""

from collections import Counter
from collections.abc import Iterator
from html import escape
from textwrap import wrap

import attrs

from trionode.verify.graph.layout import COLOURS, LEGEND, Box, ChannelArc, Drawing, Edge, lay_out
from trionode.verify.report import Report

#: Widths and heights in pixels. A character of the text font is about CHARACTER wide.
CHARACTER, LINE, PAD, GAP_X, GAP_Y, TITLE, MARGIN = 6.3, 15, 12, 130, 34, 24, 30
#: Characters in the longest line of a box.
LINE_LENGTH = 46
#: Pixels between two edges that join the same boxes, and between two channels.
EDGE_GAP, CHANNEL_GAP = 22, 26
NARROWEST_BOX, NARROWEST_DRAWING = 110, 760


@attrs.frozen
class _Shape:
    """A box with its lines, each with whether it is something that the box sees, and the position of the box."""

    box: Box
    lines: tuple[tuple[str, bool], ...]
    width: float
    height: float
    x: float = 0
    y: float = 0

    @property
    def middle(self) -> tuple[float, float]:
        return self.x + self.width / 2, self.y + self.height / 2

    def exit_towards(self, other: "_Shape") -> float:
        """Return at which height an edge leaves for another box: at that box's height, but within this one."""
        return min(max(other.middle[1], self.y + TITLE), self.y + self.height - PAD)


def as_svg(report: Report) -> str:
    """Draw a topology as an SVG file.

    Args:
      report: The report of the topology.

    Returns:
      The text of the file.
    """
    drawing = lay_out(report)
    shapes, width, height = _place(drawing)
    legend_y = height + CHANNEL_GAP * len(drawing.channels) + 14
    width, total = max(width, NARROWEST_DRAWING), legend_y + 34
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {total:.0f}" width="{width:.0f}" '
            f'height="{total:.0f}" font-family="ui-sans-serif, Helvetica, Arial, sans-serif" font-size="11">'
        ),
        (
            '<defs><marker id="to" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            'orient="auto-start-reverse"><path d="M0,0 L8,4 L0,8 z" fill="context-stroke"/></marker></defs>'
        ),
        f'<rect width="{width:.0f}" height="{total:.0f}" fill="#ffffff"/>',
    ]
    joined: Counter[frozenset[str]] = Counter()
    for edge in drawing.edges:
        pair = frozenset((edge.start, edge.end))
        parts.append(_edge(edge, shapes[edge.start], shapes[edge.end], joined[pair] * EDGE_GAP))
        joined[pair] += 1
    parts += (
        _channel(each, shapes, height + CHANNEL_GAP * number) for number, each in enumerate(drawing.channels, start=1)
    )
    parts += map(_box, shapes.values())
    parts += _legend(legend_y)
    return "\n".join((*parts, "</svg>")) + "\n"


def _shape(box: Box) -> _Shape:
    lines = tuple(
        (part, is_seen)
        for is_seen, texts in ((False, box.offers), (True, box.sees))
        for text in texts
        for part in wrap(text, LINE_LENGTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    )
    longest = max((len(line) for line, _ in lines), default=0)
    width = max(NARROWEST_BOX, 2 * PAD + CHARACTER * longest, 2 * PAD + 8.6 * len(box.name))
    return _Shape(box, lines, width, TITLE + PAD + LINE * len(lines) + (PAD if lines else 0))


def _place(drawing: Drawing) -> tuple[dict[str, _Shape], float, float]:
    """Return the boxes by their names, each with its position, and the width and height of them all."""
    columns = [[_shape(box) for box in column] for column in drawing.columns]
    heights = [sum(shape.height + GAP_Y for shape in column) - GAP_Y for column in columns]
    tallest = max(heights, default=0)
    placed: dict[str, _Shape] = {}
    x = float(MARGIN)
    for column, height in zip(columns, heights, strict=True):
        width = max(shape.width for shape in column)
        y = MARGIN + (tallest - height) / 2
        for shape in column:
            placed[shape.box.name] = attrs.evolve(shape, x=x + (width - shape.width) / 2, y=y)
            y += shape.height + GAP_Y
        x += width + GAP_X
    return placed, x - GAP_X + MARGIN, tallest + 2 * MARGIN


def _edge(edge: Edge, start: _Shape, end: _Shape, shift: float) -> str:
    """Draw an edge between the sides of two boxes that face each other."""
    _, stroke = COLOURS[edge.role]
    if start.x + start.width < end.x or end.x + end.width < start.x:
        forth = start.x < end.x
        x1, y1 = start.x + (start.width if forth else 0), start.exit_towards(end) + shift
        x2, y2 = end.x + (0 if forth else end.width), end.exit_towards(start) + shift
        bend = (x2 - x1) / 2
        path = f"M{x1:.0f},{y1:.0f} C{x1 + bend:.0f},{y1:.0f} {x2 - bend:.0f},{y2:.0f} {x2:.0f},{y2:.0f}"
        label_x, label_y, anchor = (x1 + x2) / 2, (y1 + y2) / 2 - 5, "middle"
    else:
        down = start.y < end.y
        x = max(start.x, end.x) + min(start.width, end.width) / 2 + shift
        y1, y2 = (start.y + start.height, end.y) if down else (start.y, end.y + end.height)
        path = f"M{x:.0f},{y1:.0f} L{x:.0f},{y2:.0f}"
        label_x, label_y, anchor = x + 6, (y1 + y2) / 2 + 4, "start"
    title = escape("\n".join(edge.sees) or edge.label)
    dash = ' stroke-dasharray="3 3"' if edge.role == "idle" else ""
    return (
        f'<g><title>{title}</title><path d="{path}" fill="none" stroke="{stroke}" stroke-width="1.6"{dash} '
        f'marker-end="url(#to)"/><text x="{label_x:.0f}" y="{label_y:.0f}" text-anchor="{anchor}" '
        f'fill="{stroke}">{escape(edge.label)}</text></g>'
    )


def _channel(channel: ChannelArc, shapes: dict[str, _Shape], low: float) -> str:
    """Draw a secure channel as an arc under all boxes; `low` is how far down it reaches."""
    start, end = shapes[channel.initiator], shapes[channel.responder]
    x1, x2 = start.middle[0] - 14, end.middle[0] + 14
    y1, y2 = start.y + start.height, end.y + end.height
    middle = (x1 + x2) / 2
    return (
        f'<path d="M{x1:.0f},{y1:.0f} C{x1:.0f},{low:.0f} {x1:.0f},{low:.0f} {middle:.0f},{low:.0f} '
        f'S{x2:.0f},{low:.0f} {x2:.0f},{y2:.0f}" fill="none" stroke="#7c3aed" stroke-width="1.6" '
        f'stroke-dasharray="6 4" marker-start="url(#to)" marker-end="url(#to)"/>'
        f'<text x="{middle:.0f}" y="{low - 5:.0f}" text-anchor="middle" fill="#7c3aed">'
        f"{escape(channel.name)}, a secure channel</text>"
    )


def _box(shape: _Shape) -> str:
    box, (fill, stroke) = shape.box, COLOURS[shape.box.role]
    radius = 14 if box.kind == "store" else 6
    dash = ' stroke-dasharray="5 4"' if box.kind == "outsider" else ""
    x = shape.x + PAD
    lines = [
        (
            f'<g><rect x="{shape.x:.0f}" y="{shape.y:.0f}" width="{shape.width:.0f}" height="{shape.height:.0f}" '
            f'rx="{radius}" fill="{fill}" stroke="{stroke}" stroke-width="1.6"{dash}/>'
        ),
        (
            f'<text x="{x:.0f}" y="{shape.y + 20:.0f}" font-size="14" font-weight="600" fill="#111827">'
            f"{escape(box.name)}</text>"
        ),
    ]
    for number, (line, is_seen) in enumerate(shape.lines):
        y = shape.y + TITLE + PAD + 4 + number * LINE
        colour = stroke if is_seen else "#4b5563"
        lines.append(f'<text x="{x:.0f}" y="{y:.0f}" fill="{colour}" xml:space="preserve">{escape(line)}</text>')
    return "\n".join((*lines, "</g>"))


def _legend(y: float) -> Iterator[str]:
    x = float(MARGIN)
    for role, text in LEGEND.items():
        fill, stroke = COLOURS[role]
        yield (
            f'<rect x="{x:.0f}" y="{y:.0f}" width="12" height="12" rx="3" fill="{fill}" stroke="{stroke}"/>'
            f'<text x="{x + 18:.0f}" y="{y + 10:.0f}" fill="#374151">{text}</text>'
        )
        x += 40 + CHARACTER * len(text)
