"""The order in which the parts of a topology are opened, so that each part finds what its route leads through."""

from collections.abc import Collection, Iterator, Mapping
from typing import Literal

import attrs

from trionode.topology.spec import NodeSpec, RouteSpec, TopologySpec

Kind = Literal["links", "streams", "relays", "secure_channels", "inlets", "sends"]


@attrs.frozen
class Part:
    """A part that a node opens and keeps open, by its keys in the spec.

    For `sends` of workers the name is the transport address.
    """

    node: str
    kind: Kind
    name: str

    def __str__(self) -> str:
        return f"nodes.{self.node}.{self.kind}.{self.name}"


def routes_of(name: str, node: NodeSpec) -> Iterator[tuple[Part, RouteSpec]]:
    """Yield the parts of a node that are opened over a route, each with its route."""
    for key, stream in node.streams.items():
        yield Part(name, "streams", key), stream.via
    for key, relay in node.relays.items():
        yield Part(name, "relays", key), relay.via
    for key, channel in node.secure_channels.items():
        yield Part(name, "secure_channels", key), channel.to
    for key, inlet in node.inlets.items():
        yield Part(name, "inlets", key), inlet.to


def dependencies(spec: TopologySpec, nodes: Collection[str]) -> Mapping[Part, frozenset[Part]]:
    """Return the parts of some nodes that need a route, each with the parts that have to be open before it.

    A route depends on the channel or stream that it begins with, and on the links and relays that its hops name. A
    channel over a stream depends on the stream at the other end, too. A name does not always show whose link or relay
    is meant, so a part may wait for more than it needs. A dependency that would close a cycle is left out.
    """
    routes = {part: route for name in nodes for part, route in routes_of(name, spec.nodes[name])}
    found: dict[Part, set[Part]] = {part: set() for part in routes}
    for part, route in routes.items():
        if first := _first_part(spec, part.node, route[0]):
            found[part].add(first)
    for part, route in routes.items():
        for other in _passed(spec, part, route, nodes):
            if not _depends_on(found, other, part):
                found[part].add(other)
    return {part: frozenset(others) for part, others in found.items()}


def _first_part(spec: TopologySpec, node: str, hop: str) -> Part | None:
    """Return the channel or stream that a route begins with by `@name`."""
    if not hop.startswith("@"):
        return None
    name = hop.removeprefix("@")
    return Part(node, "streams" if name in spec.nodes[node].streams else "secure_channels", name)


def _passed(spec: TopologySpec, part: Part, route: RouteSpec, nodes: Collection[str]) -> Iterator[Part]:
    prefixes = [node.relay_service.prefix for node in spec.nodes.values() if node.relay_service is not None]
    stream = None
    if part.kind == "secure_channels" and route[0].startswith("@"):
        stream = spec.nodes[part.node].streams.get(route[0].removeprefix("@"))
    for name in nodes:
        node = spec.nodes[name]
        for index, hop in enumerate(route):
            if hop in node.links and (index or name == part.node):
                yield Part(name, "links", hop)
            for prefix in prefixes:
                relay = hop.removeprefix(prefix)
                if relay != hop and relay in node.relays:
                    yield Part(name, "relays", relay)
        if stream is not None:
            yield from (
                Part(name, "streams", key) for key, each in node.streams.items() if each.receives == stream.sends
            )


def _depends_on(found: Mapping[Part, Collection[Part]], part: Part, other: Part) -> bool:
    """Return whether a part depends on another, directly or not, or is that other."""
    seen, left = {part}, [part]
    while left:
        new = set(found.get(left.pop(), ())) - seen
        seen |= new
        left += new
    return other in seen
