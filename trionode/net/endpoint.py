"""The properties of an address that a transport knows without a connection: its parts, and who can read the bytes."""

from enum import Flag, auto

import attrs

from trionode.protocol.wire.address import parse_host_port


class Exposure(Flag):
    """Who observes the bytes of a connection between its two ends.

    The exposure of a connection is the union of what its two ends say, for instance if only one of two Kafka clients
    encrypts.
    """

    #: Nobody: the bytes never leave the machine.
    NONE = 0
    #: The network can read the bytes.
    NETWORK = auto()
    #: The network sees that encrypted bytes pass, and cannot read them.
    ENCRYPTED = auto()
    #: Brokers that carry the bytes can read them.
    BROKERS = auto()


@attrs.frozen
class AddressParts:
    """The parts of a transport's address.

    Attributes:
      host: "" if the address has none, or has several.
      port: The TCP port, None if the address has none, or has several.
      path: What follows host and port, or the whole address if it has neither.
    """

    host: str = ""
    port: int | None = None
    path: str = ""


def parse_host_port_path(address: str) -> AddressParts:
    """Return the parts of `HOST:PORT` or `HOST:PORT/PATH`.

    Args:
      address: The text behind `name:` of a transport address.

    Raises:
      LocalError: The text is something else.
    """
    host_port, _, path = address.partition("/")
    return AddressParts(*parse_host_port(host_port), path.strip("/"))
