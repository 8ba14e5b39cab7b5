"""Relays without time: the names of a hub, return paths, and the relay of a node.

It models trionode/relay/service.py, return_path.py and client.py there, and calls the same rules.
"""

from functools import partial

import attrs

from trionode.protocol.rules.access import client_of
from trionode.protocol.rules.relay import Refusal, origin_behind_relay, registration_refusal
from trionode.protocol.rules.return_path import PathEntry, PathTable
from trionode.relay.service import EPHEMERAL_SERVICE, NAMED_SERVICE
from trionode.topology.spec import RelayServiceSpec, RelaySpec
from trionode.verify.model.messages import LOCAL, Request, SymbolicMessage, SymbolicOrigin
from trionode.verify.model.network import CannotOpenError, SymbolicNetwork, SymbolicNode

_Entry = PathEntry[str, SymbolicOrigin]


class _ReturnPaths:
    """The return paths of a relay or a relay service in the symbolic network."""

    def __init__(self, network: SymbolicNetwork, node: SymbolicNode) -> None:
        self._network = network
        self._node = node
        self.table: PathTable[str, SymbolicOrigin] = PathTable(partial(network.random, "alias", node.name), self._add)

    def _add(self, entry: _Entry) -> None:
        self._node.add(entry.alias, "alias", partial(self._on_answer, entry))

    def _on_answer(self, entry: _Entry, message: SymbolicMessage) -> None:
        if entry.admits(message.onward):
            self.pass_on(message, entry, message.onward[1:])
        else:
            why = "a relay passes answers into a channel only to those that wrote through it"
            self._network.drop(self._node, message, why)

    def pass_on(self, message: SymbolicMessage, entry: _Entry, rest: tuple[str, ...]) -> None:
        """Deliver a message by an entry to the hops behind it, with an alias in front of its return route."""
        back = self.table.return_route(message.back, message.origin)
        origin = LOCAL if entry.arrives_as_local else message.origin
        out = attrs.evolve(message, onward=(entry.first, *rest), back=back, origin=origin)
        self._network.deliver(self._node, out, by_own_authority=True)


@attrs.frozen(eq=False)
class _Relay:
    owner: str
    entry: _Entry | None
    first: str
    rest: tuple[str, ...]


class RelayService:
    """The addresses that take registrations, and one address for each relay."""

    def __init__(self, network: SymbolicNetwork, node: SymbolicNode, spec: RelayServiceSpec) -> None:
        self._network = network
        self._node = node
        self._prefix = spec.prefix
        self._limits = spec.limits
        self._relays: dict[str, _Relay] = {}
        self._return_paths = _ReturnPaths(network, node)
        for service in (EPHEMERAL_SERVICE, NAMED_SERVICE):
            node.table[service] = network.service_entry("relay service", spec.allow, self._on_registration)

    def _on_registration(self, message: SymbolicMessage) -> None:
        body, origin, node = message.body, message.origin, self._node
        if not isinstance(body, Request) or body.what != "register" or not message.back:
            self._network.drop(node, message, f"the relay service of {node.name} accepts registrations only")
            return
        owner, address = client_of(origin) or "", self._prefix + body.name
        relay = self._relays.get(body.name)
        refusal = self._refusal(owner, relay)
        if refusal is not None:
            self._network.drop(node, message, self._describe(refusal, body.name))
            return
        if relay is None and address in node.table:
            self._network.drop(node, message, f"the address {address} at {node.name} is in use")
            return
        entry = None if origin.is_local else self._return_paths.table.arrive(message.back, origin)
        self._relays[body.name] = _Relay(owner, entry, message.back[0], message.back[1:])
        node.add(address, "relay", partial(self._on_message, body.name))
        self._network.deliver(node, SymbolicMessage(message.back, (address,), Request("answer", body.name)))

    def _refusal(self, owner: str, relay: _Relay | None) -> Refusal | None:
        return registration_refusal(
            owner,
            None if relay is None else relay.owner,
            relays=len(self._relays),
            owned=sum(each.owner == owner for each in self._relays.values()),
            max_relays=self._limits.relays,
            max_owned=self._limits.relays_per_client,
        )

    def _describe(self, refusal: Refusal, name: str) -> str:
        hub, limits = self._node.name, self._limits
        return {
            Refusal.NAME_TAKEN: f"the relay {name} at {hub} belongs to another client",
            Refusal.HUB_FULL: f"{hub} allows {limits.relays} relays in all, and this is one more "
            f"(relay_service.limits.relays)",
            Refusal.CLIENT_FULL: f"{hub} allows a client {limits.relays_per_client} relays, and this is one more "
            f"(relay_service.limits.relays_per_client)",
        }[refusal]

    def _on_message(self, name: str, message: SymbolicMessage) -> None:
        relay = self._relays[name]
        rest = (*relay.rest, *message.onward[1:])
        if relay.entry is not None:
            self._return_paths.pass_on(message, relay.entry, rest)
        else:
            self._network.deliver(self._node, attrs.evolve(message, onward=(relay.first, *rest)))


def open_relay(network: SymbolicNetwork, node: SymbolicNode, name: str, spec: RelaySpec) -> None:
    """Register a relay of a node at its hub; CannotOpenError says why that fails."""
    _RelayClient(network, node, name, spec).open()


class _RelayClient:
    def __init__(self, network: SymbolicNetwork, node: SymbolicNode, name: str, spec: RelaySpec) -> None:
        self._network = network
        self._node = node
        self._name = name
        self._hub = network.resolve(node, spec.via)
        self._address = network.random(f"relay {name} at", node.name)
        self._return_paths = _ReturnPaths(network, node)
        self._target: tuple[_Entry, tuple[str, ...]] | None = None
        self._is_open = False
        if spec.to is not None:
            first, *rest = network.resolve(node, spec.to)
            self._target = self._return_paths.table.enter(first, SymbolicOrigin(link=first)), tuple(rest)
        node.add(self._address, "relay", self._pass)

    def open(self) -> None:
        onward = (*self._hub, NAMED_SERVICE)
        request = SymbolicMessage(onward, (self._address,), Request("register", self._name))
        outcomes = self._network.run(self._node, request)
        if not self._is_open:
            del self._node.table[self._address]
            raise CannotOpenError(next((each.text for each in outcomes if each.text), "the hub does not answer"))

    def _pass(self, message: SymbolicMessage) -> None:
        rest = message.onward[1:]
        if not rest:
            if len(message.back) >= 2 and message.back[0] == self._hub[0] and isinstance(message.body, Request):
                self._is_open = True
            else:
                self._network.drop(self._node, message, "its route ends at a relay")
        elif self._target is None:
            origin = origin_behind_relay(message.origin, self._address)
            self._network.deliver(self._node, attrs.evolve(message, onward=rest, origin=origin))
        else:
            entry, hops = self._target
            self._return_paths.pass_on(message, entry, (*hops, *rest))
