"""Pictures of a topology, with what each hop can see of its flows: text, Mermaid and SVG."""

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from itertools import pairwise
from typing import Literal

import attrs

from trionode.topology.endpoints import is_within_machine
from trionode.verify.paths import Passed, clients_of
from trionode.verify.render import may, sees
from trionode.verify.report import Report

#: What somebody is to the flows: one who reads because he is meant to, one who could read what is not for him, one who carries what is
#: sealed, one by whom nothing comes, and one who is not described.
Role = Literal["end", "reads", "carries", "idle", "outside"]


@attrs.frozen
class Box:
    """A node, a store, or somebody outside, with what he holds and what he sees."""

    name: str
    kind: Literal["node", "store", "outsider"]
    role: Role
    #: What he offers, one a line.
    holds: tuple[str, ...]
    #: What he sees and could do, one line for each flow.
    sees: tuple[str, ...]


@attrs.frozen
class Edge:
    """A link between two boxes, or that a store belongs to a node."""

    start: str
    end: str
    label: str
    role: Role
    sees: tuple[str, ...] = ()


@attrs.frozen
class Drawing:
    """What is to be drawn: boxes by their columns, from those who send to those who receive, and edges."""

    columns: tuple[tuple[Box, ...], ...]
    edges: tuple[Edge, ...]
    #: Channels as lines of text: who with whom, by whom.
    channels: tuple[str, ...]

    @property
    def boxes(self) -> tuple[Box, ...]:
        """All boxes."""
        return tuple(box for column in self.columns for box in column)


def draw(report: Report) -> Drawing:
    """Lay a topology out."""
    world = report.proof.world
    boxes: dict[str, Box] = {}
    for name, node in world.nodes.items():
        spec = node.spec
        holds = (
            *(f"listens at {listener.address}" for listener in spec.listen),
            *(f"worker {key}" for key in spec.workers),
            *(f"channel listener {key}" for key in spec.secure_channel_listeners),
            *(f"stream service {key}" for key in spec.stream_services),
            *(("relay service",) if spec.relay_service is not None else ()),
            *(f"inlet {key} at {inlet.listen}" for key, inlet in spec.inlets.items()),
            *(f"outlet {key} to {outlet.target}" for key, outlet in spec.outlets.items()),
            *(("forwards",) if spec.forwards else ()),
        )
        boxes[name] = _box(report, name, "node", holds)
    edges: dict[tuple[str, str, str], Edge] = {}
    for name, node in world.nodes.items():
        for link in node.links.values():
            end = link.listener or str(link.endpoint)
            if link.listener is None:
                boxes.setdefault(end, _box(report, end, "outsider", ()))
            label = link.endpoint.transport
            told, role = _of_watcher(report, "connection", link.name)
            edges.setdefault((name, end, label), Edge(name, end, label, role, told))
        for key in node.spec.stream_services:
            at = world.services[name, key].at
            boxes.setdefault(at, _box(report, at, "store", ()))
            edges.setdefault((name, at, key), Edge(name, at, key, "idle"))
    for name, node in world.nodes.items():
        for key, outlet in node.spec.outlets.items():
            boxes.setdefault(outlet.target, _box(report, outlet.target, "outsider", ()))
            edges.setdefault((name, outlet.target, key), Edge(name, outlet.target, f"outlet {key}", "idle"))
        for key, inlet in node.spec.inlets.items():
            clients = clients_of(name, key).name
            if not is_within_machine(inlet.listen):
                boxes.setdefault(clients, _box(report, clients, "outsider", ()))
                edges.setdefault((clients, name, key), Edge(clients, name, f"inlet {key}", "idle"))
    channels = [
        f"@{channel.name}: {name} ⇄ {channel.responder.name}"
        for name, node in world.nodes.items()
        for channel in node.channels.values()
    ]
    return Drawing(_columns(report, boxes, list(edges.values())), tuple(edges.values()), tuple(channels))


def _passed(report: Report, kind: str, name: str) -> Iterator[tuple[str, Passed, bool]]:
    """Each flow that somebody carries, and whether he is one of its ends."""
    for flow in report.flows:
        for each in flow.passed:
            if (each.at.kind, each.at.name) == (kind, name):
                ends = {flow.spec.node, *(end.node for end in flow.path.there.ends)}
                is_end = kind == "node" and name in ends
                yield flow.name, each, is_end


def _of_watcher(report: Report, kind: str, name: str) -> tuple[tuple[str, ...], Role]:
    lines = []
    role: Role = "idle"
    for flow, each, is_end in _passed(report, kind, name):
        could = may(each)
        lines.append(f"{flow}: {sees(each)}" + ("" if could == "-" else f"; may {could}"))
        if is_end:
            role = "end" if role == "idle" else role
        elif each.seen.payload == "plaintext" or each.may_read:
            role = "reads"
        elif role != "reads":
            role = "carries"
    return tuple(lines), role


def _box(report: Report, name: str, kind: Literal["node", "store", "outsider"], holds: tuple[str, ...]) -> Box:
    told, role = _of_watcher(report, kind, name)
    return Box(name, kind, "outside" if kind == "outsider" and role != "reads" else role, holds, told)


def _columns(report: Report, boxes: dict[str, Box], edges: Sequence[Edge]) -> tuple[tuple[Box, ...], ...]:
    """Put each box into a column: behind those that come before it in a flow, beside its neighbours where no flow tells."""
    after: set[tuple[str, str]] = set()
    for flow in report.flows:
        order = [each.at.name for each in flow.path.there.passed if each.at.kind in {"node", "outsider"}]
        for before, behind in pairwise(order):
            if before != behind and not _leads(after, behind, before):
                after.add((before, behind))
    column = dict.fromkeys(boxes, 0)
    for _ in boxes:
        for before, behind in after:
            column[behind] = max(column[behind], column[before] + 1)
    placed = {name for pair in after for name in pair}
    for _ in boxes:
        for edge in edges:
            for near, far in ((edge.start, edge.end), (edge.end, edge.start)):
                if near in placed and far not in placed:
                    column[far] = column[near] + (0 if boxes[far].kind == "store" else 1)
                    placed.add(far)
        rest = [name for name in boxes if name not in placed]
        if rest and not any(name in placed for edge in edges for name in (edge.start, edge.end)):
            placed.add(rest[0])
    rows = [[name for name in boxes if column[name] == each] for each in range(max(column.values(), default=0) + 1)]
    for _ in range(4):  # each column by where its neighbours stand; a few rounds settle small pictures
        at = {name: row / max(1, len(names) - 1) for names in rows for row, name in enumerate(names)}
        for names in rows:
            names.sort(key=lambda name: (_middle(name, edges, at), boxes[name].kind == "store"))
    return tuple(tuple(boxes[name] for name in names) for names in rows if names)


def _middle(name: str, edges: Sequence[Edge], at: dict[str, float]) -> float:
    near = [at[edge.end if edge.start == name else edge.start] for edge in edges if name in {edge.start, edge.end}]
    return sum(near) / len(near) if near else at[name]


def _leads(after: Iterable[tuple[str, str]], start: str, end: str) -> bool:
    known, waiting = {start}, [start]
    while waiting:
        here = waiting.pop()
        if here == end:
            return True
        for before, behind in after:
            if before == here and behind not in known:
                known.add(behind)
                waiting.append(behind)
    return False


# Text

_MARKS = {"end": "◆", "reads": "✗", "carries": "●", "idle": "○", "outside": "?"}


def as_text(report: Report) -> Iterator[str]:
    """Draw for a terminal: boxes in the order of the flows, what each holds and sees, and its links."""
    drawing = draw(report)
    yield "◆ an end of a flow   ● carries what is sealed   ✗ can read what is not for it   ○ carries nothing   ? not described"
    for box in drawing.boxes:
        yield ""
        yield f"{_MARKS[box.role]} {box.name}" + ("" if box.kind == "node" else f" ({box.kind})")
        for line in box.holds:
            yield f"│   {line}"
        for line in box.sees:
            yield f"│   sees {line}"
        for edge in drawing.edges:
            if edge.start == box.name:
                yield f"├── {edge.label} ──▶ {edge.end}"
                for line in edge.sees:
                    yield f"│     the network sees {line}"
    if drawing.channels:
        yield ""
        yield from (f"secure channel {channel}" for channel in drawing.channels)


# Mermaid

_CLASSES = {
    "end": "fill:#dbeafe,stroke:#1d4ed8,color:#111827",
    "reads": "fill:#fee2e2,stroke:#b91c1c,color:#111827",
    "carries": "fill:#dcfce7,stroke:#15803d,color:#111827",
    "idle": "fill:#f3f4f6,stroke:#6b7280,color:#111827",
    "outside": "fill:#fef3c7,stroke:#b45309,color:#111827",
}


def as_mermaid(report: Report) -> str:
    """Draw as a flowchart of Mermaid."""
    drawing = draw(report)
    ids = {box.name: f"n{number}" for number, box in enumerate(drawing.boxes)}
    lines = ["flowchart LR"]
    for box in drawing.boxes:
        text = "<br/>".join(map(_quoted, (f"<b>{escape(box.name)}</b>", *map(escape, (*box.holds, *box.sees)))))
        left, right = {"node": ('["', '"]'), "store": ('[("', '")]'), "outsider": ('(["', '"])')}[box.kind]
        lines.append(f"    {ids[box.name]}{left}{text}{right}:::is_{box.role}")
    lines += [f'    {ids[edge.start]} -->|"{_quoted(escape(edge.label))}"| {ids[edge.end]}' for edge in drawing.edges]
    world = report.proof.world
    for name, node in world.nodes.items():
        lines += [
            f'    {ids[name]} <-. "{_quoted(escape("@" + channel.name))}" .-> {ids[channel.responder.name]}'
            for channel in node.channels.values()
        ]
    lines += [f"    classDef is_{role} {style}" for role, style in _CLASSES.items()]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return text.replace('"', "#quot;").replace("\n", " ")


# SVG

#: Widths and heights in pixels; a character of the text font is about CHARACTER wide.
CHARACTER, LINE, PAD, GAP_X, GAP_Y, TITLE, MARGIN, WIDEST = 6.3, 15, 12, 130, 34, 24, 30, 46
_FILLS = {
    "end": ("#dbeafe", "#1d4ed8"),
    "reads": ("#fee2e2", "#b91c1c"),
    "carries": ("#dcfce7", "#15803d"),
    "idle": ("#f3f4f6", "#6b7280"),
    "outside": ("#fef3c7", "#b45309"),
}
_LEGEND = (
    ("end", "an end of a flow"),
    ("carries", "carries what is sealed"),
    ("reads", "can read what is not for it"),
    ("idle", "carries nothing"),
    ("outside", "not described"),
)


@attrs.frozen
class _Laid:
    box: Box
    x: float
    y: float
    width: float
    height: float
    lines: tuple[tuple[str, bool], ...]

    @property
    def middle(self) -> tuple[float, float]:
        return self.x + self.width / 2, self.y + self.height / 2


def _wrapped(text: str, indent: str = "") -> Iterator[str]:
    """Break a line at spaces, so that boxes stay narrow."""
    line = ""
    for word in text.split(" "):
        if line and len(line) + 1 + len(word) > WIDEST:
            yield line
            line = indent + word
        else:
            line = f"{line} {word}" if line else word
    yield line


def _lay_out(drawing: Drawing) -> tuple[list[_Laid], float, float]:
    laid: list[_Laid] = []
    x = float(MARGIN)
    sizes: dict[str, tuple[float, float, tuple[tuple[str, bool], ...]]] = {}
    for box in drawing.boxes:
        lines = tuple(
            (part, is_seen)
            for is_seen, texts in ((False, box.holds), (True, box.sees))
            for text in texts
            for part in _wrapped(text, "  ")
        )
        widest = max((len(line) for line, _ in lines), default=0)
        width = max(110.0, 2 * PAD + CHARACTER * widest, 2 * PAD + 8.6 * len(box.name))
        sizes[box.name] = width, TITLE + PAD + LINE * len(lines) + (PAD if lines else 0), lines
    heights = [sum(sizes[box.name][1] + GAP_Y for box in column) - GAP_Y for column in drawing.columns]
    tallest = max(heights, default=0)
    for column, height in zip(drawing.columns, heights, strict=True):
        width = max(sizes[box.name][0] for box in column)
        y = MARGIN + (tallest - height) / 2
        for box in column:
            own, high, lines = sizes[box.name]
            laid.append(_Laid(box, x + (width - own) / 2, y, own, high, lines))
            y += high + GAP_Y
        x += width + GAP_X
    return laid, x - GAP_X + MARGIN, tallest + 2 * MARGIN


def as_svg(report: Report) -> str:
    """Draw as an SVG of its own, without script or outside parts."""
    drawing = draw(report)
    laid, width, height = _lay_out(drawing)
    at = {each.box.name: each for each in laid}
    arcs = list(_arcs(report, at, height))
    depth = max((low for _, low in arcs), default=height)
    legend_y = depth + 14
    width = max(width, 760.0)
    total = legend_y + 34
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {total:.0f}" width="{width:.0f}" height="{total:.0f}" '
            'font-family="ui-sans-serif, Helvetica, Arial, sans-serif" font-size="11">'
        ),
        (
            '<defs><marker id="to" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto-start-reverse">'
            '<path d="M0,0 L8,4 L0,8 z" fill="context-stroke"/></marker></defs>'
        ),
        f'<rect width="{width:.0f}" height="{total:.0f}" fill="#ffffff"/>',
    ]
    numbers: dict[tuple[str, str], int] = {}
    for edge in drawing.edges:
        pair = (min(edge.start, edge.end), max(edge.start, edge.end))
        numbers[pair] = numbers.get(pair, -1) + 1
        parts.append(_edge(edge, at[edge.start], at[edge.end], numbers[pair]))
    parts += [arc for arc, _ in arcs]
    parts += [_box_svg(each) for each in laid]
    x = float(MARGIN)
    for role, text in _LEGEND:
        fill, stroke = _FILLS[role]
        parts.append(
            f'<rect x="{x:.0f}" y="{legend_y:.0f}" width="12" height="12" rx="3" fill="{fill}" stroke="{stroke}"/>'
            f'<text x="{x + 18:.0f}" y="{legend_y + 10:.0f}" fill="#374151">{escape(text)}</text>'
        )
        x += 40 + CHARACTER * len(text)
    parts.append("</svg>")
    return "\n".join(parts) + "\n"


def _edge(edge: Edge, start: _Laid, end: _Laid, number: int) -> str:
    """Draw a link between the sides of two boxes that face each other; several between the same two stand apart."""
    _, stroke = _FILLS[edge.role]
    shift = number * 22.0
    if start.x + start.width < end.x or end.x + end.width < start.x:
        forth = start.x < end.x
        x1, y1 = start.x + (start.width if forth else 0), _facing(start, end) + shift
        x2, y2 = end.x + (0 if forth else end.width), _facing(end, start) + shift
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
    dash = ' stroke-dasharray="3 3"' if at_rest(edge) else ""
    return (
        f'<g><title>{title}</title><path d="{path}" fill="none" stroke="{stroke}" stroke-width="1.6"{dash} marker-end="url(#to)"/>'
        f'<text x="{label_x:.0f}" y="{label_y:.0f}" text-anchor="{anchor}" fill="{stroke}">{escape(edge.label)}</text></g>'
    )


def at_rest(edge: Edge) -> bool:
    """Whether no flow passes by an edge, as far as the network could see."""
    return edge.role == "idle"


def _facing(one: _Laid, other: _Laid) -> float:
    """Return where a line leaves a box towards another: at that one's height, but within its own."""
    return min(max(other.middle[1], one.y + TITLE), one.y + one.height - PAD)


def _arcs(report: Report, at: dict[str, _Laid], height: float) -> Iterator[tuple[str, float]]:
    """Draw secure channels as arcs under all boxes, from end to end; each with how far down it comes."""
    low = height
    for name, node in report.proof.world.nodes.items():
        for channel in node.channels.values():
            start, end = at[name], at[channel.responder.name]
            x1, x2 = start.middle[0] - 14, end.middle[0] + 14
            y1, y2 = start.y + start.height, end.y + end.height
            low += 26
            text = escape(f"@{channel.name}, a secure channel")
            drawn = (
                f'<path d="M{x1:.0f},{y1:.0f} C{x1:.0f},{low:.0f} {x1:.0f},{low:.0f} {(x1 + x2) / 2:.0f},{low:.0f} '
                f'S{x2:.0f},{low:.0f} {x2:.0f},{y2:.0f}" fill="none" stroke="#7c3aed" stroke-width="1.6" stroke-dasharray="6 4" '
                f'marker-start="url(#to)" marker-end="url(#to)"/>'
                f'<text x="{(x1 + x2) / 2:.0f}" y="{low - 5:.0f}" text-anchor="middle" fill="#7c3aed">{text}</text>'
            )
            yield drawn, low


def _box_svg(laid: _Laid) -> str:
    box, (fill, stroke) = laid.box, _FILLS[laid.box.role]
    x, y, width, height = laid.x, laid.y, laid.width, laid.height
    radius = 14 if box.kind == "store" else 6
    dash = ' stroke-dasharray="5 4"' if box.kind == "outsider" else ""
    lines = [
        (
            f'<g><rect x="{x:.0f}" y="{y:.0f}" width="{width:.0f}" height="{height:.0f}" rx="{radius}" fill="{fill}" stroke="{stroke}" '
            f'stroke-width="1.6"{dash}/>'
        ),
        f'<text x="{x + PAD:.0f}" y="{y + 20:.0f}" font-size="14" font-weight="600" fill="#111827">{escape(box.name)}</text>',
    ]
    text_y = y + TITLE + PAD + 4
    for line, is_seen in laid.lines:
        colour = stroke if is_seen else "#4b5563"
        lines.append(
            f'<text x="{x + PAD:.0f}" y="{text_y:.0f}" fill="{colour}" xml:space="preserve">{escape(line)}</text>'
        )
        text_y += LINE
    return "\n".join((*lines, "</g>"))
