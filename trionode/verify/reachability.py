"""How far a stranger gets, who knows the spec but has no key in it: from every listener on, by whatever lets him pass."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Literal

import attrs

from trionode.topology.endpoints import is_within_machine
from trionode.topology.spec import InletSpec
from trionode.verify.model.messages import RANDOM, Clear, Message, Origin, Record, Step
from trionode.verify.model.network import UnopenedError, World

#: What is behind the address that a stranger tries: nobody, so that it shows where he gets to.
PROBE = f"{RANDOM}probe"
#: The identity of a stranger, where anybody's is taken.
ANYBODY = f"{RANDOM}anybody"

#: Notes that strangers get to a place, and how.
Enter = Callable[["_Endpoint", tuple[str, ...]], None]
Manner = Literal["by an inlet", "by a bare link", "by a bare stream", "through a secure channel"]
#: Those that need no identity, in the order in which they are told.
BARE: Sequence[Manner] = ("by a bare link", "by a bare stream", "by an inlet")


@attrs.frozen
class Reached:
    """An address that strangers reach, and how: hop by hop, for people."""

    node: str
    address: str
    manner: Manner
    way: tuple[str, ...]


@attrs.frozen
class Dial:
    """Something that strangers can make a node connect to."""

    node: str
    #: Keys of what connects, within the node's table.
    by: tuple[str, str]
    to: str
    way: tuple[str, ...]
    #: Whether it only does what an inlet, which is told of itself, is there for.
    is_by_inlet: bool = False


@attrs.frozen
class _Endpoint:
    node: str
    origin: Origin

    @property
    def manner(self) -> Manner:
        if self.origin.identifier is not None:
            return "through a secure channel"
        return "by a bare link" if self.origin.stream is None else "by a bare stream"


@attrs.define
class Strangers:
    """All that strangers reach, and what they can cause."""

    reached: dict[tuple[str, str, Manner], Reached] = attrs.Factory(dict)
    dials: dict[tuple[str, tuple[str, str]], Dial] = attrs.Factory(dict)

    def reach(self, node: str, address: str, *, bare: bool) -> Reached | None:
        """Return how strangers reach an address, without a secure channel or by any means; None if they don't."""
        manners: tuple[Manner, ...] = (*BARE, *(() if bare else ("through a secure channel",)))
        for manner in manners:
            if (node, address, manner) in self.reached:
                return self.reached[node, address, manner]
        return None


def strangers_in(world: World) -> Strangers:
    """Return how far strangers get in a topology."""
    found = Strangers()
    waiting: deque[tuple[_Endpoint, tuple[str, ...]]] = deque()
    known: set[tuple[str, Manner]] = set()

    def enter(endpoint: _Endpoint, way: tuple[str, ...]) -> None:
        if (endpoint.node, endpoint.manner) not in known:
            known.add((endpoint.node, endpoint.manner))
            waiting.append((endpoint, way))

    for name, spec in world.spec.nodes.items():
        for listener in spec.listen:
            enter(
                _Endpoint(name, Origin(link=f"{RANDOM}stranger at {name}")),
                (f"connects to {name} at {listener.address}",),
            )
        for key, inlet in spec.inlets.items():
            if not is_within_machine(inlet.listen):
                way = (f"connects to the inlet {name}/{key} at {inlet.listen}",)
                found.dials[name, ("inlets", key)] = Dial(name, ("inlets", key), " => ".join(inlet.to), way)
                _follow_inlet(world, name, inlet, way, found)
    while waiting:
        here, way_here = waiting.popleft()
        _look_around(world, here, way_here, found, enter)
    return found


def _follow_inlet(world: World, name: str, inlet: InletSpec, way: tuple[str, ...], found: Strangers) -> None:
    """Note what whoever connects to an inlet reaches as the inlet's own node."""
    node = world.nodes[name]
    try:
        onward = world.resolve(node, inlet.to)
    except UnopenedError:
        return
    way = (*way, f"is carried on to {' => '.join(inlet.to)} as {name}")
    for end in world.run(node, Message(onward, (f"{RANDOM}stranger",), Clear())):
        if end.what != "arrived":
            continue
        here = (*way, f"comes to {end.node}/{end.address}")
        key: tuple[str, str, Manner] = (end.node, end.address, "by an inlet")
        found.reached.setdefault(key, Reached(*key, here))
        outlet = world.spec.nodes[end.node].outlets.get(end.address)
        if outlet is not None:
            by = ("outlets", end.address)
            found.dials.setdefault((end.node, by), Dial(end.node, by, outlet.target, here, is_by_inlet=True))


def _look_around(world: World, endpoint: _Endpoint, way: tuple[str, ...], found: Strangers, enter: Enter) -> None:
    node = world.nodes[endpoint.node]
    back = (endpoint.origin.link or endpoint.origin.stream or RANDOM, f"{RANDOM}stranger")
    for address, entry in list(node.table.items()):
        if address.startswith(RANDOM) or not entry.allow(endpoint.origin):
            continue
        here = (*way, f"addresses {endpoint.node}/{address}")
        key = (endpoint.node, address, endpoint.manner)
        found.reached.setdefault(key, Reached(*key, here))
        if entry.kind == "listener" and node.spec.secure_channel_listeners[address].trust.everyone:
            origin = attrs.evolve(endpoint.origin, identifier=ANYBODY)
            enter(_Endpoint(endpoint.node, origin), (*here, "opens a secure channel under any identity"))
        if entry.kind == "outlet":
            outlet = node.spec.outlets[address]
            by = ("outlets", address)
            known = found.dials.get((endpoint.node, by))
            if known is None or known.is_by_inlet:
                found.dials[endpoint.node, by] = Dial(endpoint.node, by, outlet.target, here)
        if entry.kind not in {"link", "relay"}:
            continue
        for end in world.run(node, Message((address, PROBE), back, Clear(), endpoint.origin)):
            _note_dials(world, end.message.trail, here, found)
            if end.address == PROBE and end.what == "dropped":
                enter(_Endpoint(end.node, end.message.origin), (*here, f"comes to {end.node}"))
    for prefix, entry in list(node.prefixes.items()):
        if not entry.allow(endpoint.origin):
            continue
        service = prefix.removesuffix(".")
        for stream in world.streams(endpoint.node, service):
            push = Message((prefix + stream,), back, Record(stream, (PROBE,), (), Clear()), endpoint.origin)
            for end in world.run(node, push):
                if end.address == PROBE and end.what == "dropped":
                    text = f"writes the stream {stream} at {endpoint.node}/{service}"
                    enter(_Endpoint(end.node, end.message.origin), (*way, text, f"is read by {end.node}"))


def _note_dials(world: World, trail: tuple[Step, ...], way: tuple[str, ...], found: Strangers) -> None:
    for step in trail:
        link = step.link
        if link is None or link.key is None:
            continue
        node, by = link.dialler, ("links", link.key)
        if world.spec.nodes[node].links[link.key].dial == "on_demand":
            found.dials.setdefault((node, by), Dial(node, by, str(link.endpoint), way))
