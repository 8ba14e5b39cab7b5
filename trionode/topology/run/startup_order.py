"""In which order the parts of a topology are opened, so that each finds what its way leads through."""

from collections.abc import Collection, Iterator, Mapping
from typing import Literal

import attrs

from trionode.topology.spec import NodeSpec, RouteSpec, TopologySpec

Kind = Literal["links", "streams", "relays", "secure_channels", "inlets", "sends"]


@attrs.frozen
class Part:
    """Something that a node opens and keeps open, by its keys in the spec; of what workers send, by the place where their routes begin."""

    node: str
    kind: Kind
    name: str

    def __str__(self) -> str:
        return f"nodes.{self.node}.{self.kind}.{self.name}"


def needs(spec: TopologySpec, nodes: Collection[str]) -> Mapping[Part, frozenset[Part]]:
    """Return the parts of some nodes that open a way, each with those that have to be there before.

    A way leads through the channel or stream that it begins with, the links and relays that its hops name, and, for a channel over a stream, the
    stream of whoever reads there. By name alone it can't be told for sure whose link or relay is meant, so more may be waited for than is needed;
    what would wait for itself waits for less.
    """
    routes = {part: route for name in nodes for part, route in _routes(name, spec.nodes[name])}
    found: dict[Part, set[Part]] = {part: set() for part in routes}
    for part, route in routes.items():
        if own := _own(spec, part.node, route[0]):
            found[part].add(own)
    for part, route in routes.items():
        for other in _passed(spec, part, route, nodes):
            if not _waits_for(found, other, part):
                found[part].add(other)
    return {part: frozenset(others) for part, others in found.items()}


def _routes(name: str, node: NodeSpec) -> Iterator[tuple[Part, RouteSpec]]:
    for key, stream in node.streams.items():
        yield Part(name, "streams", key), stream.via
    for key, relay in node.relays.items():
        yield Part(name, "relays", key), relay.via
    for key, channel in node.secure_channels.items():
        yield Part(name, "secure_channels", key), channel.to
    for key, inlet in node.inlets.items():
        yield Part(name, "inlets", key), inlet.to


def _own(spec: TopologySpec, name: str, hop: str) -> Part | None:
    if not hop.startswith("@"):
        return None
    own = hop.removeprefix("@")
    return Part(name, "streams" if own in spec.nodes[name].streams else "secure_channels", own)


def _passed(spec: TopologySpec, part: Part, route: RouteSpec, nodes: Collection[str]) -> Iterator[Part]:
    for name in nodes:
        node = spec.nodes[name]
        for index, hop in enumerate(route):
            if hop in node.links and (index or name == part.node):
                yield Part(name, "links", hop)
            for service in (each.relay_service for each in spec.nodes.values()):
                relay = hop.removeprefix(service.prefix) if service is not None else hop
                if relay != hop and relay in node.relays:
                    yield Part(name, "relays", relay)
        stream = spec.nodes[part.node].streams.get(route[0].removeprefix("@"))
        if part.kind == "secure_channels" and route[0].startswith("@") and stream is not None:
            yield from (
                Part(name, "streams", key) for key, each in node.streams.items() if each.receives == stream.sends
            )


def _waits_for(found: Mapping[Part, Collection[Part]], part: Part, other: Part) -> bool:
    """Whether a part waits for another, directly or not, or is that other."""
    seen, left = {part}, [part]
    while left:
        for each in found.get(left.pop(), ()):
            if each not in seen:
                seen.add(each)
                left.append(each)
    return other in seen
