"""What an unauthenticated peer reaches: it knows the topology, has no key in it, and connects to every listener."""

from collections import deque
from collections.abc import Sequence
from typing import Literal

import attrs

from trionode.topology.endpoints import is_within_machine
from trionode.topology.spec import InletSpec
from trionode.verify.model.messages import RANDOM, Clear, Outcome, Record, Step, SymbolicMessage, SymbolicOrigin
from trionode.verify.model.network import CannotOpenError, SymbolicNetwork

#: An address that no node has. The peer sends to it through each link, relay and stream to see which node drops the
#: message.
PROBE = f"{RANDOM}probe"
#: The identity of the peer where a listener trusts everyone.
ANY_IDENTITY = f"{RANDOM}any identity"
#: The peer's own address, in its return routes.
_PEER = f"{RANDOM}peer"

Manner = Literal["by an inlet", "by a bare link", "by a bare stream", "through a secure channel"]
#: Those that need no identity, in the order of preference.
BARE: Sequence[Manner] = ("by a bare link", "by a bare stream", "by an inlet")


@attrs.frozen
class Reached:
    """An address that an unauthenticated peer reaches, with the steps to it."""

    node: str
    address: str
    manner: Manner
    trace: tuple[str, ...]


@attrs.frozen
class Dial:
    """A connection that an unauthenticated peer can make a node open."""

    node: str
    #: Where the spec declares it: keys within the node's table.
    by: tuple[str, str]
    to: str
    trace: tuple[str, ...]
    #: True if it follows only from an inlet, which has a dial of its own.
    is_by_inlet: bool = False


@attrs.frozen
class _Position:
    """A node that the peer has reached, and the origin that its messages have there."""

    node: str
    origin: SymbolicOrigin
    trace: tuple[str, ...]

    @property
    def manner(self) -> Manner:
        if self.origin.identifier is not None:
            return "through a secure channel"
        return "by a bare link" if self.origin.stream is None else "by a bare stream"


@attrs.define
class Reachability:
    """All addresses that unauthenticated peers reach, and all connections that they can cause."""

    reached: dict[tuple[str, str, Manner], Reached] = attrs.Factory(dict)
    dials: dict[tuple[str, tuple[str, str]], Dial] = attrs.Factory(dict)

    def reach(self, node: str, address: str, *, bare: bool) -> Reached | None:
        """Return how unauthenticated peers reach an address.

        Args:
          node: The node's name.
          address: The address there.
          bare: True to leave out secure channels of listeners that trust everyone.

        Returns:
          The first manner in the order of `BARE`, then a secure channel; None if they don't reach it.
        """
        manners: tuple[Manner, ...] = (*BARE, *(() if bare else ("through a secure channel",)))
        return next((self.reached[key] for manner in manners if (key := (node, address, manner)) in self.reached), None)


def find_reachable(network: SymbolicNetwork) -> Reachability:
    """Return what unauthenticated peers reach in a network."""
    search = _Search(network)
    for name, spec in network.spec.nodes.items():
        for listener in spec.listen:
            origin = SymbolicOrigin(link=f"{RANDOM}peer at {name}")
            search.enter(_Position(name, origin, (f"connects to {name} at {listener.address}",)))
        for key, inlet in spec.inlets.items():
            if not is_within_machine(inlet.listen):
                search.follow_inlet(name, key, inlet)
    while search.waiting:
        search.explore(search.waiting.popleft())
    return search.found


class _Search:
    """A breadth-first search from every listener over what lets unauthenticated messages pass."""

    def __init__(self, network: SymbolicNetwork) -> None:
        self.found = Reachability()
        self.waiting: deque[_Position] = deque()
        self._network = network
        self._known: set[tuple[str, Manner]] = set()

    def enter(self, position: _Position) -> None:
        """Explore a position later, unless its node was reached in this manner before."""
        key = position.node, position.manner
        if key not in self._known:
            self._known.add(key)
            self.waiting.append(position)

    def follow_inlet(self, name: str, key: str, inlet: InletSpec) -> None:
        """Note what a client of an inlet reaches. It sends as the inlet's own node."""
        route = " => ".join(inlet.to)
        trace: tuple[str, ...] = (f"connects to the inlet {name}/{key} at {inlet.listen}",)
        self.found.dials[name, ("inlets", key)] = Dial(name, ("inlets", key), route, trace)
        node = self._network.nodes[name]
        try:
            onward = self._network.resolve(node, inlet.to)
        except CannotOpenError:
            return
        for outcome in self._network.run(node, SymbolicMessage(onward, (_PEER,), Clear())):
            if outcome.what == "arrived":
                steps = (*trace, f"is forwarded to {route} as {name}", f"arrives at {outcome.node}/{outcome.address}")
                self._reach(outcome.node, outcome.address, "by an inlet", steps)
                self._note_outlet(outcome.node, outcome.address, steps, is_by_inlet=True)

    def explore(self, position: _Position) -> None:
        """Note what a peer reaches from a position, and enter those behind it."""
        node = self._network.nodes[position.node]
        back = (position.origin.link or position.origin.stream or RANDOM, _PEER)
        for address, entry in list(node.table.items()):
            if address.startswith(RANDOM) or not entry.allow(position.origin):
                continue
            trace = (*position.trace, f"addresses {node.name}/{address}")
            self._reach(node.name, address, position.manner, trace)
            match entry.kind:
                case "listener" if node.spec.secure_channel_listeners[address].trust.everyone:
                    origin = attrs.evolve(position.origin, identifier=ANY_IDENTITY)
                    self.enter(_Position(node.name, origin, (*trace, "opens a secure channel with any identity")))
                case "outlet":
                    self._note_outlet(node.name, address, trace)
                case "link" | "relay":
                    message = SymbolicMessage((address, PROBE), back, Clear(), position.origin)
                    for outcome in self._probe(position.node, message, trace, "arrives at"):
                        self._note_dials(outcome.message.trail, trace)
        for prefix, entry in list(node.prefixes.items()):
            service = prefix.removesuffix(".")
            for stream in self._network.streams(node.name, service) if entry.allow(position.origin) else ():
                push = SymbolicMessage((prefix + stream,), back, Record(stream, (PROBE,), (), Clear()), position.origin)
                trace = (*position.trace, f"writes the stream {stream} at {node.name}/{service}")
                self._probe(position.node, push, trace, "is read by")

    def _probe(self, node: str, message: SymbolicMessage, trace: tuple[str, ...], verb: str) -> tuple[Outcome, ...]:
        """Send a message to an address that no node has, enter each node that drops it, and return all outcomes."""
        outcomes = self._network.run(self._network.nodes[node], message)
        for outcome in outcomes:
            if outcome.address == PROBE and outcome.what == "dropped":
                self.enter(_Position(outcome.node, outcome.message.origin, (*trace, f"{verb} {outcome.node}")))
        return outcomes

    def _reach(self, node: str, address: str, manner: Manner, trace: tuple[str, ...]) -> None:
        self.found.reached.setdefault((node, address, manner), Reached(node, address, manner, trace))

    def _note_outlet(self, node: str, address: str, trace: tuple[str, ...], *, is_by_inlet: bool = False) -> None:
        """Note that an outlet connects. A dial that does not need an inlet replaces one that does."""
        outlet = self._network.spec.nodes[node].outlets.get(address)
        if outlet is None:
            return
        by = ("outlets", address)
        known = self.found.dials.get((node, by))
        if known is None or (known.is_by_inlet and not is_by_inlet):
            self.found.dials[node, by] = Dial(node, by, outlet.target, trace, is_by_inlet)

    def _note_dials(self, trail: Sequence[Step], trace: tuple[str, ...]) -> None:
        """Note the links of a trail that a node dials only when a message needs them."""
        for step in trail:
            link = step.link
            if link is None or link.key is None:
                continue
            by = ("links", link.key)
            if self._network.spec.nodes[link.dialler].links[link.key].dial == "on_demand":
                key = link.dialler, by
                self.found.dials.setdefault(key, Dial(link.dialler, by, str(link.endpoint), trace))
