"""An address: one hop of a route, as an object in the public interface and as encoded bytes inside the library."""

from typing import Self

import attrs

from trionode.errors import ConfigError

#: Bytes in one address value (spec §14). The longest of known peers have 65.
MAX_VALUE = 1024

#: The type of a local worker on the wire (spec §2.1).
LOCAL_TYPE = 0
#: The type of a TCP address on the wire (spec §2.1). No other transport has a number there.
TCP = 1

#: An address inside the library: the array `[type, bytes]` in CBOR with shortest heads (spec §2.1). Objects in place of
#: these bytes would cost half the throughput of a node, so `Address` objects are made only on request.
Encoded = bytes


def encode_address(kind: int, value: bytes) -> Encoded:
    """Return the canonical bytes of an address, which are the keys of the router's table (spec §2.1, current)."""
    length = len(value)
    if length > MAX_VALUE:
        msg = f"an address value has at most {MAX_VALUE} bytes, this one has {length}"
        raise ConfigError(msg)
    if length < 24:
        head = bytes((0x40 | length,))
    elif length < 256:
        head = bytes((0x58, length))
    else:
        head = b"\x59" + length.to_bytes(2, "big")
    if not 0 <= kind < 256:
        msg = f"an address type is a number from 0 to 255, not {kind}"
        raise ConfigError(msg)
    return (bytes((0x82, kind)) if kind < 24 else bytes((0x82, 0x18, kind))) + head + value


def decode_address(encoded: Encoded) -> tuple[int, bytes]:
    """Return type and value of the canonical bytes of an address."""
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

    Args:
      value: The name of a worker, or what a transport connects to. Any bytes or text.
      transport: The name of the transport that reaches it, such as "tcp"; empty for a local worker.
      kind: The type on the wire (spec §2.1): 0 local, 1 TCP. Other numbers of peers are kept unchanged. By default it
        follows from `transport`.
    """

    value: bytes = attrs.field(converter=_as_bytes)
    transport: str = ""
    kind: int = attrs.field(default=attrs.Factory(_kind_of, takes_self=True))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse an address (spec §2.1).

        Args:
          text: `echoer`, `0#echoer`, `1#127.0.0.1:4000` or `tcp:127.0.0.1:4000`.

        Returns:
          The address.

        Raises:
          ConfigError: The text is empty, or its type is not a number from 0 to 255.
        """
        kind, mark, value = text.partition("#")
        if mark:
            if "#" in value or not kind.isdecimal() or len(kind) > 3 or int(kind) > 255:
                msg = f"expected an address TYPE#VALUE with a number before the only #, such as 0#echoer; this is {text!r:.200}"
                raise ConfigError(msg)
            number = int(kind)
            return cls(value, "tcp" if number == TCP else "", number)
        transport, mark, value = text.partition(":")
        if mark and transport.isidentifier() and value:
            return cls(value, transport)
        if not text:
            msg = "expected an address: a name such as echoer, or a transport address such as tcp:127.0.0.1:4000; this is empty"
            raise ConfigError(msg)
        return cls(text)

    @classmethod
    def from_encoded(cls, encoded: Encoded) -> Self:
        """Decode an address.

        Args:
          encoded: The canonical bytes, as in `encoded`.

        Returns:
          The address.
        """
        kind, value = decode_address(encoded)
        return cls(value, "tcp" if kind == TCP else "", kind)

    @property
    def encoded(self) -> Encoded:
        """The canonical bytes (spec §2.1).

        Raises:
          ConfigError: The transport has no number on the wire, so the address can't be encoded. Or the value is too
            long.
        """
        if self.transport and self.kind == LOCAL_TYPE:
            msg = (
                f"{self} can only be the first hop of a route that you give to a node, which then connects. For a mailbox, "
                f"connect first and start the route with the link. Only tcp addresses can be sent to other nodes (spec §2.1)"
            )
            raise ConfigError(msg)
        return encode_address(self.kind, self.value)

    def __str__(self) -> str:
        text = self.value.decode(errors="backslashreplace")
        return f"{self.transport}:{text}" if self.transport else f"{self.kind}#{text}"


def parse_host_port(peer: str) -> tuple[str, int]:
    """Split an address of a host and a port.

    Args:
      peer: Text such as `127.0.0.1:4000` or `[::1]:4000`.

    Returns:
      The host, without brackets, and the port.

    Raises:
      ConfigError: The text has another form.
    """
    host, mark, port = peer.rpartition(":")
    if not mark or not host or not port.isdecimal() or len(port) > 5 or int(port) > 65535:
        msg = f"expected HOST:PORT, such as 127.0.0.1:4000 or [::1]:4000; this is {peer!r}"
        raise ConfigError(msg)
    return host.removeprefix("[").removesuffix("]"), int(port)
