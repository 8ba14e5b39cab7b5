"""Relays without time: a hub's names, passages by which conversations go on, and the holder's side.

Behind it stand trionode/relay_service.py, trionode/passage.py and trionode/relay.py.
"""

from functools import partial

import attrs

from trionode.relay.service import EPHEMERAL_SERVICE, NAMED_SERVICE
from trionode.topology.spec import RelayServiceSpec, RelaySpec
from trionode.verify.model.messages import LOCAL, Message, Origin, Request
from trionode.verify.model.network import Entry, Node, UnopenedError, World, describe


@attrs.define(eq=False)
class _PathEntry:
    first: str
    alias: str
    origin: Origin
    writers: set[str] = attrs.Factory(set)

    @property
    def speaks_as_node(self) -> bool:
        return self.origin.identifier is not None


class _ReturnPaths:
    def __init__(self, world: World, node: Node) -> None:
        self._world = world
        self._node = node
        self._ways: dict[str, _PathEntry] = {}

    def meet(self, message: Message) -> _PathEntry:
        way = self.lead(message.back[0], message.origin)
        if message.back[0] == way.first:
            way.origin = message.origin
        return way

    def lead(self, first: str, origin: Origin) -> _PathEntry:
        way = self._ways.get(first)
        if way is None:
            way = _PathEntry(first, self._world.random("alias", self._node.name), origin)
            self._ways[first] = self._ways[way.alias] = way
            self._node.table[way.alias] = Entry("alias", partial(self._through, way))
        return way

    def _through(self, way: _PathEntry, message: Message) -> None:
        onward = message.onward
        if way.speaks_as_node and (len(onward) < 2 or onward[1] not in way.writers):
            self._world.drop(self._node, message, "into a channel a passage leads only to those who wrote by it")
            return
        self.pass_on(message, way, onward[1:])

    def pass_on(self, message: Message, way: _PathEntry, rest: tuple[str, ...]) -> None:
        origin, back = message.origin, message.back
        if not origin.is_local:
            source = self.meet(message)
            if len(back) > 1 and source.speaks_as_node:
                source.writers.add(back[1])
            back = (source.alias, *back[1:])
        outward = LOCAL if way.origin.stream is not None and not way.speaks_as_node else origin
        self._world.deliver(
            self._node,
            attrs.evolve(message, onward=(way.first, *rest), back=back, origin=outward),
            by_own_authority=True,
        )


@attrs.define(eq=False)
class _Relay:
    owner: str
    way: _PathEntry | None
    first: str
    rest: tuple[str, ...]


class RelayService:
    """The addresses by which relays are registered, and one for each that is."""

    def __init__(self, world: World, node: Node, spec: RelayServiceSpec) -> None:
        self._world = world
        self._node = node
        self._prefix = spec.prefix
        self._limits = spec.limits
        self._relays: dict[str, _Relay] = {}
        self._return_paths = _ReturnPaths(world, node)
        for service in (EPHEMERAL_SERVICE, NAMED_SERVICE):
            node.table[service] = Entry(
                "relay service", self._on_registration, world.allow(spec.allow), describe(spec.allow)
            )

    def _on_registration(self, message: Message) -> None:
        body = message.body
        if not isinstance(body, Request) or body.what != "register" or not message.back:
            self._world.drop(self._node, message, f"the relay service of {self._node.name} takes registrations only")
            return
        origin, address = message.origin, self._prefix + body.name
        owner = origin.identifier or origin.link or origin.stream or ""
        relay = self._relays.get(body.name)
        if relay is None and address in self._node.table:
            self._world.drop(self._node, message, f"the address {address} at {self._node.name} is taken already")
            return
        if relay is not None and relay.owner != owner:
            self._world.drop(
                self._node, message, f"the relay {body.name} at {self._node.name} belongs to another already"
            )
            return
        full = self._full(owner) if relay is None else None
        if full is not None:
            self._world.drop(self._node, message, full)
            return
        way = None if origin.is_local else self._return_paths.meet(message)
        relay = self._relays[body.name] = _Relay(owner, way, message.back[0], message.back[1:])
        self._node.table[address] = Entry("relay", partial(self._on_message, body.name))
        self._world.deliver(self._node, Message(message.back, (address,), Request("answer", body.name)))

    def _full(self, owner: str) -> str | None:
        """Say that there is no room for one relay more, if so; those who come first have it."""
        limits, owned = self._limits, sum(each.owner == owner for each in self._relays.values())
        if len(self._relays) >= limits.relays:
            return f"{self._node.name} gives {limits.relays} relays in all, and this is one more (relay_service.limits.relays)"
        if owned >= limits.relays_per_client:
            return f"{self._node.name} gives a client {limits.relays_per_client} relays, and this is one more (relay_service.limits.relays_per_client)"
        return None

    def _on_message(self, name: str, message: Message) -> None:
        relay = self._relays[name]
        rest = (*relay.rest, *message.onward[1:])
        if relay.way is not None:
            self._return_paths.pass_on(message, relay.way, rest)
        else:
            self._world.deliver(self._node, attrs.evolve(message, onward=(relay.first, *rest)))


def open_relay(world: World, node: Node, name: str, spec: RelaySpec) -> None:
    """Register a relay of a node at its hub; UnopenedError says why that can't be."""
    _Holder(world, node, name, spec).open()


class _Holder:
    def __init__(self, world: World, node: Node, name: str, spec: RelaySpec) -> None:
        self._world = world
        self._node = node
        self._name = name
        self._way = world.resolve(node, spec.via)
        self._encoded = world.random(f"relay {name} at", node.name)
        self._return_paths = _ReturnPaths(world, node)
        self._target: tuple[_PathEntry, tuple[str, ...]] | None = None
        self._is_open = False
        if spec.to is not None:
            to = world.resolve(node, spec.to)
            self._target = self._return_paths.lead(to[0], Origin(link=to[0])), to[1:]
        node.table[self._encoded] = Entry("relay", self._pass)

    def open(self) -> None:
        onward = (*self._way, NAMED_SERVICE)
        ends = self._world.run(self._node, Message(onward, (self._encoded,), Request("register", self._name)))
        if not self._is_open:
            del self._node.table[self._encoded]
            raise UnopenedError(next((end.text for end in ends if end.text), "the hub does not answer"))

    def _pass(self, message: Message) -> None:
        onward, origin = message.onward, message.origin
        if len(onward) == 1:
            if len(message.back) >= 2 and message.back[0] == self._way[0] and isinstance(message.body, Request):
                self._is_open = True
            else:
                self._world.drop(self._node, message, "its route ends at a relay")
            return
        if not origin.is_local:
            bare = origin.link is None and origin.stream is None
            origin = attrs.evolve(origin, identifier=None, link=self._encoded if bare else origin.link)
        if self._target is None:
            self._world.deliver(self._node, attrs.evolve(message, onward=onward[1:], origin=origin))
            return
        way, rest = self._target
        self._return_paths.pass_on(message, way, (*rest, *onward[1:]))
