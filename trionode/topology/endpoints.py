"""Places as a topology names them: which transport, who else is meant by the same place, and who sees the bytes that go there."""

from collections.abc import Mapping
from typing import Literal

import attrs

from trionode.errors import LocalError
from trionode.protocol.wire.address import Address, parse_host_port

#: Hosts by which a listener takes every address of its machine.
WILDCARDS = frozenset({"0.0.0.0", "::"})  # noqa: S104  # they are compared, and nothing is bound
#: Hosts that only programs of the same machine reach.
_OWN_MACHINE = frozenset({"127.0.0.1", "::1", "localhost"})
#: Transports that carry the same frames: who dials one reaches who listens by the other.
_ALIKE: Mapping[str, str] = {"tcp_classic": "tcp"}

#: Who sees the bytes on a wire: the network all, the network only that something passes, the brokers all, or nobody beyond the machine.
Exposure = Literal["open", "hidden", "brokers", "private"]

_EXPOSURES: Mapping[str, Exposure] = {
    "tls": "hidden",
    "wss": "hidden",
    "kafka": "brokers",
    "loopback": "private",
    "unix": "private",
}


@attrs.frozen
class Endpoint:
    """A transport address, read."""

    transport: str
    where: str
    #: Whether the options of the transport have the bytes to Kafka's brokers encrypted.
    is_encrypted: bool = attrs.field(default=False, eq=False)

    def __str__(self) -> str:
        return f"{self.transport}:{self.where}"

    @property
    def host(self) -> str:
        """The host, "" where the transport has none, or has several."""
        authority, _, _ = self.where.partition("/")
        try:
            return parse_host_port(authority)[0]
        except LocalError:
            return ""

    def takes(self, dialled: "Endpoint") -> bool:
        """Whether who listens here is reached at another place: the same port, and all addresses of his machine or the same one."""
        mine, theirs = map(_split, (self.where, dialled.where))
        same_host = self.host in WILDCARDS or {self.host, dialled.host} <= _OWN_MACHINE
        alike = _ALIKE.get(self.transport, self.transport) == _ALIKE.get(dialled.transport, dialled.transport)
        if self.where == dialled.where:
            return alike
        return alike and bool(self.host and dialled.host) and same_host and mine == theirs

    @property
    def is_of_machine(self) -> bool:
        """Whether only programs of the same machine get there."""
        return self.exposure == "private" or self.host in _OWN_MACHINE

    @property
    def exposure(self) -> Exposure:
        """Who sees the bytes that go there; of a transport that is not ours the worst is assumed."""
        return _EXPOSURES.get(self.transport, "open")

    @property
    def is_seen_by_network(self) -> bool:
        """Whether the network sees what the bytes say."""
        return self.exposure == "open" or (self.exposure == "brokers" and not self.is_encrypted)


def _split(where: str) -> tuple[str, str]:
    """Return port and path of HOST:PORT/PATH."""
    authority, _, path = where.partition("/")
    return authority.rpartition(":")[2], path.strip("/")


def parse_endpoint(text: str, options: Mapping[str, object] | None = None) -> Endpoint | None:
    """Return the place that a hop, a listener or a store names; None for an address of a node."""
    if text.startswith("@"):
        return None
    try:
        address = Address.parse(text)
    except LocalError:
        return None
    if not address.transport:
        return None
    return Endpoint(address.transport, address.value.decode(errors="replace"), encrypts(options or {}))


def is_within_machine(host_port: str) -> bool:
    """Whether a TCP service at HOST:PORT is one that only programs of the same machine connect to."""
    endpoint = parse_endpoint(f"tcp:{host_port}")
    return endpoint is not None and endpoint.is_of_machine


def encrypts(options: Mapping[str, object]) -> bool:
    """Whether options for Kafka have the connection with its brokers under TLS."""
    return options.get("security") in {"ssl", "sasl_ssl"}
