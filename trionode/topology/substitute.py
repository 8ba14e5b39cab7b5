"""The same topology elsewhere: on other transports, with its streams and keys in other stores and vaults."""

import secrets
import socket
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import attrs

from trionode.errors import ConfigError
from trionode.net.transport import transport_class
from trionode.topology.credentials import is_held
from trionode.topology.endpoints import Endpoint, parse_endpoint
from trionode.topology.spec import AccessSpec, IdentitySpec, NodeSpec, TopologySpec, TrustSpec, ValueKind
from trionode.topology.types import FieldType, ListOf, Record, Scalar, TableOf, record_of

#: The part of a template that is replaced by a different text each time.
PLACEHOLDER = "{}"


def swap(
    spec: TopologySpec, *, store: str | None = None, vault: str | None = "memory", **transports: str
) -> TopologySpec:
    """Return a topology on other transports and stores: `swap(spec, tcp="loopback", store="memory")`.

    Nothing is opened.

    Listeners, links and routes change together, so every route still reaches the same listener. A transport over TCP
    gets free ports of 127.0.0.1. `tcp="tcp"` does that too, so two runs do not collide; inlets then get free ports as
    well. `loopback` keeps the texts. For any other transport write a template, `tcp="kafka:127.0.0.1:9092/{}"`. Options
    of transports and stores that are replaced are removed.

    Args:
      spec: The topology.
      store: Replaces every store, such as `memory`. It can be a template. None keeps the stores.
      vault: Replaces every vault of nodes that are not external. A node that is trusted by its old identifier is then
          trusted by its name. None keeps the vaults.
      transports: For the name of a transport, the transport that replaces it, or a template with `{}` for a text that
          differs for each address.

    Returns:
      The new topology.

    Raises:
      ConfigError: A transport needs a template.
    """
    with ExitStack() as held:
        swapped: TopologySpec = _Swap(spec, transports, store, vault, held).replace(spec, record_of(TopologySpec))
    return swapped


class _Swap:
    """The replacements of the parts of one topology."""

    def __init__(
        self, spec: TopologySpec, transports: Mapping[str, str], store: str | None, vault: str | None, held: ExitStack
    ) -> None:
        self._spec = spec
        self._transports = transports
        self._store = store
        self._vault = vault
        #: The endpoints that were met, those of listeners first, and their replacements.
        self._known: list[tuple[Endpoint, str]] = []
        #: Holds the free ports until all are chosen, so that no two addresses get the same.
        self._held = held
        self._owners = {
            node.identity.identifier: name
            for name, node in spec.nodes.items()
            if vault is not None and node.identity.identifier is not None and not node.external
        }
        for node in spec.nodes.values():
            for listener in node.listen:
                self._address(listener.address)
        inlets = [inlet.listen for node in spec.nodes.values() for inlet in node.inlets.values()]
        over_tcp = any(transport_class(name).binds_tcp_port for name in transports)
        self._inlets = {each: f"127.0.0.1:{self._free_port()}" for each in inlets if over_tcp}

    def replace(self, value: Any, type_: FieldType) -> Any:
        """Return the replacement of a part of the spec."""
        if value is None:
            return None
        match type_:
            case Record():
                inner = {
                    key.attribute: self.replace(getattr(value, key.attribute), key.type) for key in type_.keys.values()
                }
                return self._record(attrs.evolve(value, **inner))
            case TableOf():
                return {name: self.replace(each, type_.each) for name, each in value.items()}
            case ListOf(value_kind=ValueKind.ROUTE):
                return tuple(map(self._address, value))
            case ListOf():
                return tuple(self.replace(each, type_.each) for each in value)
            case Scalar(value_kind=ValueKind.ENDPOINT | ValueKind.LISTENING_ENDPOINT):
                return self._address(value)
            case Scalar(value_kind=ValueKind.HOST_PORT):
                return self._inlets.get(value, value)
            case Scalar(value_kind=ValueKind.OWNER):
                return self._owners.get(value, value)
            case _:
                return value

    def _record(self, value: Any) -> Any:
        if isinstance(value, TrustSpec | AccessSpec):
            # Peers by name instead of the identifiers that are replaced.
            owners = [self._owners[each] for each in value.identifiers if each in self._owners]
            others = [each for each in value.identifiers if each not in self._owners]
            if self._vault is None:
                return attrs.evolve(value, identifiers=others, nodes=dict.fromkeys((*value.nodes, *owners)))
            # New identities have no credentials: name the nodes that hold the required one.
            holders = [name for name, node in self._spec.nodes.items() if is_held(value, node.identity)]
            nodes = dict.fromkeys((*value.nodes, *owners, *holders))
            return attrs.evolve(value, identifiers=others, nodes=nodes, authority=None, attributes={})
        if not isinstance(value, NodeSpec):
            return value
        kept = {name: each for name, each in value.transports.items() if self._replacement(name)[0] == name}
        node = attrs.evolve(value, transports=kept)
        if node.external:
            return node
        services = {
            name: each if self._store is None else attrs.evolve(each, store=_fill(self._store))
            for name, each in node.stream_services.items()
        }
        return attrs.evolve(node, identity=self._identity(node.identity), stream_services=services)

    def _identity(self, identity: IdentitySpec) -> IdentitySpec:
        if self._vault is None:
            return identity
        if self._vault == "memory":
            return IdentitySpec(name=identity.name)
        return attrs.evolve(identity, vault=_fill(self._vault), identifier=None, credentials=())

    def _free_port(self) -> int:
        port: int = self._held.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
        return port

    def _replacement(self, transport: str) -> tuple[str, str]:
        """Return the transport that replaces another one, and its template, "" if it has none."""
        name, _, template = self._transports.get(transport, transport).partition(":")
        return name, template

    def _address(self, text: str) -> str:
        """Return the replacement of a transport address; any other text stays."""
        endpoint = parse_endpoint(text)
        if endpoint is None or endpoint.transport not in self._transports:
            return text
        if endpoint.where.endswith(":0"):  # each is a different listener, which no route can name
            return self._new(endpoint)
        for known, new in self._known:
            if known == endpoint or known.takes(endpoint):
                return new
        self._known.append((endpoint, self._new(endpoint)))
        return self._known[-1][1]

    def _new(self, endpoint: Endpoint) -> str:
        name, template = self._replacement(endpoint.transport)
        if template:
            new = f"{name}:{_fill(template)}"
            if new not in {other for _, other in self._known}:
                return new
        elif (where := transport_class(name).local_address(endpoint.where, self._free_port)) is not None:
            return f"{name}:{where}"
        raise ConfigError(
            f"no address of the transport {name!r} for {endpoint}: write a template, with {PLACEHOLDER} for the part that differs "
            f'for each address, such as {endpoint.transport}="{name}:ADDRESS/{PLACEHOLDER}"'
        )


def _fill(template: str) -> str:
    return template.replace(PLACEHOLDER, secrets.token_hex(8))
