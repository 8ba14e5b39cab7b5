"""The same topology somewhere else: its places on other transports, its streams in another store, its keys in another vault."""

import secrets
import socket
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import attrs

from trionode.errors import LocalError
from trionode.net.transport import transport_class
from trionode.topology.endpoints import Endpoint, parse_endpoint
from trionode.topology.spec import AccessSpec, IdentitySpec, NodeSpec, TopologySpec, TrustSpec, ValueKind
from trionode.topology.types import Form, ListOf, Record, Scalar, TableOf, record_of

#: What stands in a template for a text that is used for one place only.
_EACH = "{}"


def swap(
    spec: TopologySpec, *, store: str | None = None, vault: str | None = "memory", **transports: str
) -> TopologySpec:
    """Return a topology with other transports and stores in place of its own: `swap(spec, tcp="loopback", store="memory")`.

    Each keyword is the name of a transport and the one that takes its place, in listeners, links and routes alike, so that whoever was reached
    is reached. `tcp`, `tcp_classic`, `tls`, `ws` and `wss` get free ports of 127.0.0.1, which `tcp="tcp"` does as well, so that two runs
    don't collide. Others, but for `loopback`, have to be told where: `tcp="kafka:127.0.0.1:9092/{}"`, in which `{}` becomes a text of its own for
    each place. `store` is what `load_store` takes, with `{}` as well; the store's options are left out. Every node gets its keys from `vault`, unless
    that is None; whoever is meant by an identifier that such a node had is then meant by the node's name. External nodes keep both.

    With `tcp` inlets get free ports too. Options of transports and stores that are no longer there are left out. Nothing is opened. LocalError for a
    transport that is not told where.
    """
    with ExitStack() as held:
        swapped: TopologySpec = _Swap(spec, transports, store, vault, held).changed(spec, record_of(TopologySpec))
    return swapped


class _Swap:
    """What becomes of each part of one topology."""

    def __init__(
        self, spec: TopologySpec, transports: Mapping[str, str], store: str | None, vault: str | None, held: ExitStack
    ) -> None:
        self._transports = transports
        self._store = store
        self._vault = vault
        #: Places that were met, listeners' first, and what they become.
        self._known: list[tuple[Endpoint, str]] = []
        #: The ports that were handed out stay held until all are, so that no two places get the same.
        self._held = held
        self._owners = {
            node.identity.identifier: name
            for name, node in spec.nodes.items()
            if vault is not None and node.identity.identifier is not None and not node.external
        }
        for node in spec.nodes.values():
            for listener in node.listen:
                self._moved(listener.address)
        #: Where inlets listen, and what that becomes.
        self._inlets = (
            {
                inlet.listen: f"127.0.0.1:{self._free_port()}"
                for node in spec.nodes.values()
                for inlet in node.inlets.values()
            }
            if any(transport_class(name).binds_tcp_port for name in transports)
            else {}
        )

    def changed(self, value: Any, form: Form) -> Any:
        """Return a value of the spec as it is after the swap."""
        if value is None:
            return None
        if isinstance(form, Record):
            inner = {key.attribute: self.changed(getattr(value, key.attribute), key.form) for key in form.keys.values()}
            return self._of_record(attrs.evolve(value, **inner))
        if isinstance(form, TableOf):
            return {name: self.changed(each, form.each) for name, each in value.items()}
        if isinstance(form, ListOf):
            if form.value_kind is ValueKind.ROUTE:
                return tuple(map(self._moved, value))
            return tuple(self.changed(each, form.each) for each in value)
        if isinstance(form, Scalar) and form.value_kind in {ValueKind.ENDPOINT, ValueKind.LISTENING_ENDPOINT}:
            return self._moved(value)
        if isinstance(form, Scalar) and form.value_kind is ValueKind.HOST_PORT:
            return self._inlets.get(value, value)
        if isinstance(form, Scalar) and form.value_kind is ValueKind.OWNER:
            return self._owners.get(value, value)
        return value

    def _of_record(self, value: Any) -> Any:
        if isinstance(value, TrustSpec | AccessSpec):
            return self._named(value)
        if isinstance(value, NodeSpec):
            kept = {name: each for name, each in value.transports.items() if self._becomes(name) == name}
            moved = attrs.evolve(value, transports=kept)
            return moved if value.external else self._of_own(moved)
        return value

    def _of_own(self, node: NodeSpec) -> NodeSpec:
        """Return a node that runs here, with its keys and streams where they shall be."""
        services = {
            name: each if self._store is None else attrs.evolve(each, store=_filled(self._store))
            for name, each in node.stream_services.items()
        }
        return attrs.evolve(node, identity=self._moved_identity(node.identity), stream_services=services)

    def _becomes(self, transport: str) -> str:
        return self._transports.get(transport, transport).partition(":")[0]

    def _moved_identity(self, identity: IdentitySpec) -> IdentitySpec:
        if self._vault is None:
            return identity
        if self._vault == "memory":
            return IdentitySpec(name=identity.name)
        return attrs.evolve(identity, vault=_filled(self._vault), identifier=None)

    def _free_port(self) -> int:
        port: int = self._held.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
        return port

    def _named(self, named: TrustSpec | AccessSpec) -> TrustSpec | AccessSpec:
        """Return who is trusted, or let in, by the nodes' names where those had the identifiers."""
        moved = [self._owners[each] for each in named.identifiers if each in self._owners]
        left = [each for each in named.identifiers if each not in self._owners]
        return attrs.evolve(named, identifiers=left, nodes=dict.fromkeys((*named.nodes, *moved)))

    def _moved(self, text: str) -> str:
        """Return what takes the place of a place; of any other text the text."""
        endpoint = parse_endpoint(text)
        if endpoint is None or endpoint.transport not in self._transports:
            return text
        if endpoint.where.endswith(":0"):  # each is a place of its own, which no route can name
            return self._new(endpoint)
        for known, new in self._known:
            if known == endpoint or known.takes(endpoint):
                return new
        self._known.append((endpoint, self._new(endpoint)))
        return self._known[-1][1]

    def _new(self, endpoint: Endpoint) -> str:
        name, _, template = self._transports[endpoint.transport].partition(":")
        if template:
            new = f"{name}:{_filled(template)}"
            if new not in {other for _, other in self._known}:
                return new
        elif (where := transport_class(name).local_address(endpoint.where, self._free_port)) is not None:
            return f"{name}:{where}"
        raise LocalError(
            f"where {endpoint} shall be on the transport {name!r} can't be guessed: say it, with {_EACH} for what differs from place to place, such as "
            f'{endpoint.transport}="{name}:WHERE/{_EACH}"'
        )


def _filled(template: str) -> str:
    return template.replace(_EACH, secrets.token_hex(8))
