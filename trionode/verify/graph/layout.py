"""What every drawing shows: boxes in columns from senders to receivers, edges between them, and secure channels."""

from collections.abc import Iterator, Sequence
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from typing import Literal

import attrs

from trionode.topology.endpoints import is_within_machine
from trionode.verify.model.messages import Observer
from trionode.verify.model.network import SymbolicNode
from trionode.verify.paths import Observation, clients_of
from trionode.verify.render import can, sees
from trionode.verify.report import Report

#: What a box or edge does for the flows: it is an end of one, reads what is not meant for it, carries ciphertext,
#: carries nothing, or
#: is not described in the topology.
Role = Literal["end", "reads", "carries", "idle", "outside"]
BoxKind = Literal["node", "store", "outsider"]

#: The text of each role in a legend, in its order.
LEGEND: dict[Role, str] = {
    "end": "an end of a flow",
    "carries": "carries ciphertext",
    "reads": "can read what is not meant for it",
    "idle": "carries nothing",
    "outside": "not described",
}
#: Colours of each role: fill and stroke.
COLOURS: dict[Role, tuple[str, str]] = {
    "end": ("#dbeafe", "#1d4ed8"),
    "reads": ("#fee2e2", "#b91c1c"),
    "carries": ("#dcfce7", "#15803d"),
    "idle": ("#f3f4f6", "#6b7280"),
    "outside": ("#fef3c7", "#b45309"),
}


@attrs.frozen
class Box:
    """A node, a store, or an observer outside of the topology."""

    name: str
    kind: BoxKind
    role: Role
    #: What it offers, one line each.
    offers: tuple[str, ...]
    #: What it sees and can do, one line for each flow.
    sees: tuple[str, ...]


@attrs.frozen
class Edge:
    """A connection between two boxes, or from a node to the store that it uses."""

    start: str
    end: str
    label: str
    role: Role = "idle"
    sees: tuple[str, ...] = ()


@attrs.frozen
class ChannelArc:
    """A secure channel between two nodes."""

    initiator: str
    responder: str
    name: str


@attrs.frozen
class Drawing:
    """What a drawing shows. Columns go from senders to receivers."""

    columns: tuple[tuple[Box, ...], ...]
    edges: tuple[Edge, ...]
    channels: tuple[ChannelArc, ...]

    @property
    def boxes(self) -> tuple[Box, ...]:
        """All boxes, column by column."""
        return tuple(box for column in self.columns for box in column)


def lay_out(report: Report) -> Drawing:
    """Return the drawing of a topology.

    Args:
      report: The report of the topology, from `verify`.

    Returns:
      Boxes, edges and channels; `as_text`, `as_mermaid` and `as_svg` draw them.
    """
    nodes = report.analysis.network.nodes
    boxes = {name: _box(report, name, "node", tuple(_offers(node))) for name, node in nodes.items()}
    edges: dict[tuple[str, str, str], Edge] = {}
    for edge, kind in _edges(report):
        for end in (edge.start, edge.end):
            if end not in boxes:
                boxes[end] = _box(report, end, kind)
        edges.setdefault((edge.start, edge.end, edge.label), edge)
    channels = tuple(
        ChannelArc(name, channel.responder, f"@{channel.name}")
        for name, node in nodes.items()
        for channel in node.channels.values()
    )
    return Drawing(_columns(report, boxes, tuple(edges.values())), tuple(edges.values()), channels)


def _offers(node: SymbolicNode) -> Iterator[str]:
    spec = node.spec
    yield from (f"listens at {listener.address}" for listener in spec.listen)
    yield from (f"worker {key}" for key in spec.workers)
    yield from (f"channel listener {key}" for key in spec.secure_channel_listeners)
    yield from (f"stream service {key}" for key in spec.stream_services)
    if spec.relay_service is not None:
        yield "relay service"
    yield from (f"inlet {key} at {inlet.listen}" for key, inlet in spec.inlets.items())
    yield from (f"outlet {key} to {outlet.target}" for key, outlet in spec.outlets.items())
    if spec.forwards:
        yield "forwards"


def _edges(report: Report) -> Iterator[tuple[Edge, BoxKind]]:
    """Yield each edge with the kind of those of its boxes that are no nodes."""
    network = report.analysis.network
    for name, node in network.nodes.items():
        for link in node.links.values():
            lines, role = _activity(report, Observer("connection", link.name))
            end = link.listener or str(link.endpoint)
            yield Edge(name, end, link.endpoint.transport, role, lines), "outsider"
        for key in node.spec.stream_services:
            yield Edge(name, network.services[name, key].at, key), "store"
        for key, outlet in node.spec.outlets.items():
            yield Edge(name, outlet.target, f"outlet {key}"), "outsider"
        for key, inlet in node.spec.inlets.items():
            if not is_within_machine(inlet.listen):
                yield Edge(clients_of(name, key).name, name, f"inlet {key}"), "outsider"


def _observations(report: Report, observer: Observer) -> Iterator[tuple[str, Observation, bool]]:
    """Yield each flow that an observer carries, with its observation and whether it is an end of the flow."""
    for flow in report.flows:
        for each in flow.observations:
            if each.at == observer:
                ends = {flow.spec.node, *(outcome.node for outcome in flow.path.request.outcomes)}
                yield flow.name, each, observer.kind == "node" and observer.name in ends


#: The roles of an observer of flows, the gravest first.
_BY_GRAVITY: tuple[Role, ...] = ("reads", "carries", "end")


def _activity(report: Report, observer: Observer) -> tuple[tuple[str, ...], Role]:
    """Return what an observer sees of each flow, and its role."""
    lines = []
    roles: set[Role] = set()
    for flow, each, is_end in _observations(report, observer):
        ability = can(each)
        lines.append(f"{flow}: {sees(each)}" + ("" if ability == "-" else f"; can {ability}"))
        reads = each.visible.payload == "plaintext" or each.can_decrypt
        roles.add("end" if is_end else "reads" if reads else "carries")
    for role in _BY_GRAVITY:
        if role in roles:
            return tuple(lines), role
    return tuple(lines), "idle"


def _box(report: Report, name: str, kind: BoxKind, offers: tuple[str, ...] = ()) -> Box:
    lines, role = _activity(report, Observer(kind, name))
    return Box(name, kind, "outside" if kind == "outsider" and role != "reads" else role, offers, lines)


# Columns


def _columns(report: Report, boxes: dict[str, Box], edges: Sequence[Edge]) -> tuple[tuple[Box, ...], ...]:
    """Put each box into a column: right of those before it in a flow, or next to its neighbours without a flow."""
    column = _ranks(report)
    _place_neighbours(column, boxes, edges)
    rows = [[name for name in boxes if column[name] == each] for each in range(max(column.values(), default=0) + 1)]
    _order_rows(rows, boxes, edges)
    return tuple(tuple(boxes[name] for name in names) for names in rows if names)


def _ranks(report: Report) -> dict[str, int]:
    """Return a column for each box of a flow. A step that would close a cycle is left out."""
    before: dict[str, set[str]] = {}
    for flow in report.flows:
        order = [each.at.name for each in flow.path.request.observations if each.at.kind in {"node", "outsider"}]
        for one, next_ in pairwise(order):
            known = {**before, next_: before.get(next_, set()) | {one}}
            if _is_acyclic(known):
                before = known
    column: dict[str, int] = {}
    for name in TopologicalSorter(before).static_order():
        column[name] = max((column[each] + 1 for each in before.get(name, ())), default=0)
    return column


def _is_acyclic(graph: dict[str, set[str]]) -> bool:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError:
        return False
    return True


def _place_neighbours(column: dict[str, int], boxes: dict[str, Box], edges: Sequence[Edge]) -> None:
    """Give the boxes of no flow a column: a store that of its node, any other box the one right of its neighbour."""
    pairs = [pair for edge in edges for pair in ((edge.start, edge.end), (edge.end, edge.start))]
    for name in sorted(boxes, key=lambda each: each not in column):
        column.setdefault(name, 0)
        while new := [(near, far) for near, far in pairs if near in column and far not in column]:
            for near, far in new:
                column.setdefault(far, column[near] + (boxes[far].kind != "store"))


def _order_rows(rows: list[list[str]], boxes: dict[str, Box], edges: Sequence[Edge]) -> None:
    """Sort each column by where the neighbours of its boxes are. A few rounds are enough for small drawings."""
    near: dict[str, list[str]] = {name: [] for name in boxes}
    for edge in edges:
        near[edge.start].append(edge.end)
        near[edge.end].append(edge.start)
    for _ in range(4):
        height = {name: row / max(1, len(names) - 1) for names in rows for row, name in enumerate(names)}
        middle = {
            name: sum(height[each] for each in others) / len(others) if others else height[name]
            for name, others in near.items()
        }
        for names in rows:
            names.sort(key=lambda name: (middle[name], boxes[name].kind == "store"))
