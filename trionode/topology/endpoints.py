"""Transport and store addresses: their parts, the listener that they reach, and who observes the bytes."""

from collections.abc import Callable, Mapping

import attrs

from trionode.errors import LocalError
from trionode.net.endpoint import AddressParts, Exposure, parse_host_port_path
from trionode.net.transport import transport_class
from trionode.protocol.wire.address import Address
from trionode.stream.store.base import store_info

#: Hosts by which a listener takes every address of its machine.
WILDCARDS = frozenset({"0.0.0.0", "::"})  # noqa: S104  # they are compared, and nothing is bound
#: Hosts that only programs of the same machine reach.
_OWN_MACHINE = frozenset({"127.0.0.1", "::1", "localhost"})


@attrs.frozen
class Endpoint:
    """The address of a transport or a store, parsed."""

    #: The name of the transport or store.
    transport: str
    where: str
    #: The parts of `where`; all of it is the path if the transport cannot parse it.
    parts: AddressParts = attrs.field(eq=False, repr=False)
    #: Who observes the bytes between this program and the endpoint.
    exposure: Exposure = attrs.field(eq=False)

    def __str__(self) -> str:
        return f"{self.transport}:{self.where}"

    @property
    def host(self) -> str:
        """The host, "" if the address has none or several."""
        return self.parts.host

    def takes(self, dialled: "Endpoint") -> bool:
        """Return whether a listener at this endpoint receives connections to another one."""
        if _listener_kind(self.transport) != _listener_kind(dialled.transport):
            return False
        if self.where == dialled.where:
            return True
        same_host = self.host in WILDCARDS or {self.host, dialled.host} <= _OWN_MACHINE
        return (
            bool(self.host and dialled.host)
            and same_host
            and ((self.parts.port, self.parts.path) == (dialled.parts.port, dialled.parts.path))
        )

    @property
    def is_of_machine(self) -> bool:
        """Whether only programs of the same machine can connect to it."""
        return not self.exposure or self.host in _OWN_MACHINE

    @property
    def is_seen_by_network(self) -> bool:
        """Whether the network can read the bytes."""
        return Exposure.NETWORK in self.exposure


def _listener_kind(transport: str) -> str:
    """Return the same text for transports that connect to the same listeners."""
    return transport_class(transport).classic_name or transport


def parse_endpoint(text: str, options: Mapping[str, object] | None = None) -> Endpoint | None:
    """Return the endpoint that a hop or a listener names, None for the address of a node.

    Args:
      text: A hop of a route or a transport address.
      options: The options of the transport, on which the exposure can depend.
    """
    if text.startswith("@"):
        return None
    try:
        address = Address.parse(text)
    except LocalError:
        return None
    if not address.transport:
        return None
    transport, where = transport_class(address.transport), address.value.decode(errors="replace")
    parts = _parsed(transport.parse_address, where)
    return Endpoint(address.transport, where, parts, transport.exposure_with(options or {}))


def _parsed(parse: Callable[[str], AddressParts], where: str) -> AddressParts:
    try:
        return parse(where)
    except LocalError:
        return AddressParts(path=where)


def service_endpoint(host_port: str) -> Endpoint:
    """Return the endpoint of a TCP service at HOST:PORT, such as the target of an outlet."""
    return Endpoint("", host_port, _parsed(parse_host_port_path, host_port), Exposure.NETWORK)


def store_endpoint(at: str, options: Mapping[str, object]) -> Endpoint:
    """Return the endpoint of a stream store, with its options."""
    name, _, where = at.partition(":")
    return Endpoint(name, where, AddressParts(path=where), store_info(name).exposure(options))


def is_within_machine(host_port: str) -> bool:
    """Return whether only programs of the same machine connect to a TCP service at HOST:PORT."""
    return service_endpoint(host_port).is_of_machine
