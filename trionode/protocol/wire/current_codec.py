"""The codec of the current version: transport messages and channel plaintexts, in CBOR (spec §2, §3.2, §7.2)."""

import struct
from typing import cast

import attrs

from trionode.errors import WireError
from trionode.protocol.wire import cbor
from trionode.protocol.wire.address import MAX_VALUE, Encoded, encode_address
from trionode.protocol.wire.route import MAX_HOPS
from trionode.protocol.wire.version import Codec, Decoded, ProtocolVersion

#: Bytes in the largest frame (spec §3.2).
MAX_FRAME = 16 * 1024 * 1024

_ARRAY_HEADS = tuple(bytes((0x80 | n,)) if n < 24 else bytes((0x98, n)) for n in range(2 * MAX_HOPS + 1))
_BYTES_HEADS = tuple(bytes((0x40 | n,)) if n < 24 else bytes((0x58, n)) for n in range(256))
_U16_HEAD = struct.Struct(">BH").pack
_U32_HEAD = struct.Struct(">BI").pack

_MESSAGE = b"\x83"
_PLAINTEXT = b"\x82\x82\x00\x81" + _MESSAGE
_NO_PADDING = b"\x40"
_NO_TRACING = b"\x62{}"

#: The plaintext that reports the close of this side of the channel to the peer (spec §7.2).
CLOSE_PLAINTEXT = b"\x82\x82\x02\x80" + _NO_PADDING


@attrs.frozen
class Close:
    """The peer has closed the channel. It expects no answer (spec §7.2)."""


@attrs.frozen
class RefreshCredentials:
    """New credentials of the peer (spec §7.2): its encoded change history and its encoded credentials."""

    history: bytes
    credentials: tuple[bytes, ...]


class _UncommonError(Exception):
    """The fast decoder does not know this form. The strict CBOR decoder decides whether it is a message."""


class CurrentCodec(Codec):
    """Encodes and decodes transport messages, and the plaintext of one secure channel (spec §2.2, §7.2)."""

    __slots__ = ("_last",)

    def __init__(self) -> None:
        #: The bytes of the two routes that were decoded last, and the routes.
        self._last: tuple[bytes, tuple[Encoded, ...], tuple[Encoded, ...]] = (b"\x80\x80", (), ())

    def encode(self, onward: tuple[Encoded, ...], back: tuple[Encoded, ...], payload: bytes) -> bytes:
        """Return the bytes of a transport message of three items."""
        return _encode(_MESSAGE, onward, back, payload, b"")

    def decode(self, data: bytes) -> Decoded:
        """Return the onward route, the return route and the payload; WireError if `data` is not a message.

        Peers accept three items, four, an explicit null and further items, so this does too.
        """
        try:
            if data[0] in (0x83, 0x84):
                onward, back, payload, end = self._decode_common(data, 1)
                if (data[0] == 0x83 and end == len(data)) or (data[0] == 0x84 and data[end:] == _NO_TRACING):
                    return onward, back, payload
        except (_UncommonError, IndexError):
            pass
        return _message_of(cbor.decode(data))

    def encode_plaintext(self, onward: tuple[Encoded, ...], back: tuple[Encoded, ...], payload: bytes) -> bytes:
        """Return the plaintext of an application message (spec §7.2)."""
        return _encode(_PLAINTEXT, onward, back, payload, _NO_PADDING)

    def decode_plaintext(self, data: bytes) -> Decoded | Close | RefreshCredentials:
        """Return the content of a channel message (spec §7.2) without its padding; WireError if it can't be decoded."""
        try:
            if data[4] == 0x83 and data.startswith(_PLAINTEXT):
                onward, back, payload, end = self._decode_common(data, 5)
                if data[end:] == _NO_PADDING:
                    return onward, back, payload
        except (_UncommonError, IndexError):
            pass
        return _decode_any_plaintext(data)

    def _decode_common(self, data: bytes, at: int) -> tuple[tuple[Encoded, ...], tuple[Encoded, ...], bytes, int]:
        """Return the routes, the payload and the offset behind it, if all is in the form that peers send."""
        encoded, onward, back = self._last
        if data.startswith(encoded, at):
            at += len(encoded)
        else:
            onward, middle = _decode_route(data, at)
            back, end = _decode_route(data, middle)
            if end >= len(data):
                raise _UncommonError  # A truncated message must not be remembered: its last address is incomplete.
            self._last = (data[at:end], onward, back)
            at = end
        head = data[at]
        if 0x40 <= head < 0x58:
            length, at = head - 0x40, at + 1
        elif head == 0x58:
            length, at = data[at + 1], at + 2
        elif head == 0x59:
            length, at = int.from_bytes(data[at + 1 : at + 3], "big"), at + 3
        elif head == 0x5A:
            length, at = int.from_bytes(data[at + 1 : at + 5], "big"), at + 5
        else:
            raise _UncommonError
        end = at + length
        if end > len(data):
            raise WireError(f"a payload of {length} bytes, but {len(data) - at} bytes are left")
        return onward, back, data[at:end], end


def _encode(
    start: bytes, onward: tuple[Encoded, ...], back: tuple[Encoded, ...], payload: bytes, padding: bytes
) -> bytes:
    length = len(payload)
    head = _BYTES_HEADS[length] if length < 256 else _long_head(length)
    return b"".join((start, _ARRAY_HEADS[len(onward)], *onward, _ARRAY_HEADS[len(back)], *back, head, payload, padding))


def _long_head(length: int) -> bytes:
    return _U16_HEAD(0x59, length) if length < 65536 else _U32_HEAD(0x5A, length)


def _decode_route(data: bytes, at: int) -> tuple[tuple[Encoded, ...], int]:
    count = data[at] - 0x80
    at += 1
    if not 0 <= count < 24:
        raise _UncommonError
    hops = []
    for _ in range(count):
        start = at
        head = data[at + 2]
        if data[at] != 0x82 or data[at + 1] > 0x17:
            raise _UncommonError
        if 0x40 <= head < 0x58:
            at += head - 0x3D
        elif head == 0x58 and data[at + 3] >= 24:
            at += 4 + data[at + 3]
        else:
            raise _UncommonError
        hops.append(data[start:at])
    return tuple(hops), at


def _message_of(value: object) -> Decoded:
    onward, back, payload, tracing = cbor.fields(value, 3, 1)
    if not isinstance(payload, bytes) or not (tracing is None or isinstance(tracing, str)):
        raise WireError("a transport message is [onward route, return route, payload bytes, tracing text or null]")
    return _route_of(onward), _route_of(back), payload


def _route_of(value: object) -> tuple[Encoded, ...]:
    if not isinstance(value, list) or len(value) > MAX_HOPS:
        raise WireError(f"a route is an array of at most {MAX_HOPS} addresses")
    hops = []
    for item in value:
        kind, name = cbor.fields(item, 2)
        if not isinstance(name, bytes) or len(name) > MAX_VALUE:
            raise WireError(f"an address is [type below 256, at most {MAX_VALUE} bytes]")
        hops.append(encode_address(cbor.uint(kind, 255), name))
    return tuple(hops)


def encode_refresh(refresh: RefreshCredentials) -> bytes:
    """Return the plaintext that carries new credentials (spec §7.2)."""
    credentials = _ARRAY_HEADS[len(refresh.credentials)] + b"".join(refresh.credentials)
    return b"\x82\x82\x01\x81\x82" + refresh.history + credentials + _NO_PADDING


def _decode_any_plaintext(data: bytes) -> Decoded | Close | RefreshCredentials:
    message, padding = cbor.fields(cbor.decode(data), 2)
    if not isinstance(padding, bytes):
        raise WireError("a channel's plaintext is [message, padding bytes]")
    variant, items = cbor.variant(message)
    match variant:
        case 0:
            return _message_of(cbor.fields(items, 1)[0])
        case 1:
            history, credentials = cbor.fields(cbor.fields(items, 1)[0], 2)
            if not isinstance(credentials, list):
                raise WireError("refreshed credentials are [change history, array of credentials]")
            return RefreshCredentials(cbor.encode(cast("cbor.Value", history)), tuple(map(cbor.encode, credentials)))
        case 2:
            return Close()
        case _:
            raise WireError(f"a channel message has variant 0, 1 or 2, not {variant}")


CURRENT = ProtocolVersion(
    name="current",
    preface=b"\x01",
    length_size=4,
    max_frame=MAX_FRAME,
    max_sent=MAX_FRAME,
    tolerated=0,
    resends=True,
    codec=CurrentCodec,
)
