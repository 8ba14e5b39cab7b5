"""One hop of a route: a type and a value, as an object at the public interface and as encoded bytes inside."""

from typing import Self

import attrs

from trionode.errors import LocalError

#: Bytes in one address value; the longest that peers make have 65 (spec §14 suggests this bound).
MAX_VALUE = 1024

#: The type of a local worker on the wire (spec §2.1).
LOCAL_TYPE = 0
#: The type of a TCP address on the wire (spec §2.1), and the only transport that has a number there.
TCP = 1

#: An address as the router, the mailboxes and the links hold it: the array `[type, bytes]` in CBOR with shortest heads (spec §2.1).
#: Half the throughput of a node is lost where objects take the place of these bytes, so objects are made only when asked for.
Encoded = bytes


def encode_address(kind: int, value: bytes) -> Encoded:
    """Return the canonical bytes of an address: what the router's table is keyed by (spec §2.1, current)."""
    length = len(value)
    if length > MAX_VALUE:
        msg = f"an address value has at most {MAX_VALUE} bytes, this one has {length}"
        raise LocalError(msg)
    if length < 24:
        head = bytes((0x40 | length,))
    elif length < 256:
        head = bytes((0x58, length))
    else:
        head = b"\x59" + length.to_bytes(2, "big")
    if not 0 <= kind < 256:
        msg = f"an address type is a number from 0 to 255, not {kind}"
        raise LocalError(msg)
    return (bytes((0x82, kind)) if kind < 24 else bytes((0x82, 0x18, kind))) + head + value


def decode_address(encoded: Encoded) -> tuple[int, bytes]:
    """Return type and value of canonical address bytes, as `encode_address` made them."""
    start = 2 if encoded[1] < 24 else 3
    head = encoded[start]
    skip = 1 if head < 0x58 else 2 if head == 0x58 else 3
    return encoded[start - 1], encoded[start + skip :]


def local(value: bytes | str) -> Encoded:
    """Return the canonical bytes of a local address, `0#value`."""
    return encode_address(LOCAL_TYPE, value.encode() if isinstance(value, str) else value)


def _as_bytes(value: bytes | str) -> bytes:
    return value.encode() if isinstance(value, str) else bytes(value)


def _kind_of(address: "Address") -> int:
    return TCP if address.transport == "tcp" else LOCAL_TYPE


@attrs.frozen
class Address:
    """One hop of a route.

    `value` is any byte string, text in practice. `transport` names the transport that reaches it ("tcp", "loopback"), or is
    empty for a local worker. `kind` is the number on the wire: 0 local, 1 TCP; others are kept as they came (spec §2.1).
    """

    value: bytes = attrs.field(converter=_as_bytes)
    transport: str = ""
    kind: int = attrs.field(default=attrs.Factory(_kind_of, takes_self=True))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `echoer`, `0#echoer`, `1#127.0.0.1:4000` or `tcp:127.0.0.1:4000` (spec §2.1)."""
        kind, mark, value = text.partition("#")
        if mark:
            if "#" in value or not kind.isdecimal() or len(kind) > 3 or int(kind) > 255:
                msg = f"an address reads TYPE#VALUE with a number before the only #, such as 0#echoer; this is {text!r}"
                raise LocalError(msg)
            number = int(kind)
            return cls(value, "tcp" if number == TCP else "", number)
        transport, mark, value = text.partition(":")
        if mark and transport.isidentifier() and value:
            return cls(value, transport)
        if not text:
            msg = "an address can't be empty: expected a name such as echoer, or a transport address such as tcp:127.0.0.1:4000"
            raise LocalError(msg)
        return cls(text)

    @classmethod
    def from_encoded(cls, encoded: Encoded) -> Self:
        """Return the object of canonical address bytes."""
        kind, value = decode_address(encoded)
        return cls(value, "tcp" if kind == TCP else "", kind)

    @property
    def encoded(self) -> Encoded:
        """The canonical bytes; LocalError for a transport that has no number on the wire and so can't be any hop but the first."""
        if self.transport and self.kind == LOCAL_TYPE:
            msg = (
                f"{self} can only be the first hop of a route that a node sends by, which connects to it (a mailbox does not: connect first, "
                f"and begin the route with the link): of all transports only tcp can be named to others (spec §2.1)"
            )
            raise LocalError(msg)
        return encode_address(self.kind, self.value)

    def __str__(self) -> str:
        text = self.value.decode(errors="backslashreplace")
        return f"{self.transport}:{text}" if self.transport else f"{self.kind}#{text}"


def parse_host_port(peer: str) -> tuple[str, int]:
    """Return host and port of `127.0.0.1:4000` or `[::1]:4000`; LocalError says what was expected."""
    host, mark, port = peer.rpartition(":")
    if not mark or not host or not port.isdecimal() or len(port) > 5 or int(port) > 65535:
        msg = f"expected HOST:PORT, such as 127.0.0.1:4000 or [::1]:4000; this is {peer!r}"
        raise LocalError(msg)
    return host.removeprefix("[").removesuffix("]"), int(port)
