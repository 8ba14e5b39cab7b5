"""The codec of generation *current*: transport messages and the plaintext of secure channels, in CBOR (spec §2, §3.2, §7.2)."""

import struct
from typing import cast

import attrs

from trionode.errors import WireError
from trionode.protocol.wire import cbor
from trionode.protocol.wire.address import MAX_VALUE, Encoded, encode_address
from trionode.protocol.wire.message import TransportMessage
from trionode.protocol.wire.route import MAX_HOPS
from trionode.protocol.wire.version import Decoded, ProtocolVersion

#: Bytes in the largest frame (spec §3.2).
MAX_FRAME = 16 * 1024 * 1024

_ARRAY_HEADS = tuple(bytes((0x80 | n,)) if n < 24 else bytes((0x98, n)) for n in range(2 * MAX_HOPS + 1))
_BYTES_HEADS = tuple(bytes((0x40 | n,)) if n < 24 else bytes((0x58, n)) for n in range(256))
_U16_HEAD = struct.Struct(">BH").pack
_U32_HEAD = struct.Struct(">BI").pack

_PAYLOAD_START = b"\x82\x82\x00\x81"
_NO_PADDING = b"\x40"
_NO_TRACING = b"\x62{}"
_CLOSE = b"\x82\x82\x02\x80\x40"


class _UncommonError(Exception):
    """Bytes that the fast reader does not know: the strict CBOR reader decides whether they are a message."""


def _bytes_head(length: int) -> bytes:
    if length < 256:
        return _BYTES_HEADS[length]
    if length < 65536:
        return _U16_HEAD(0x59, length)
    return _U32_HEAD(0x5A, length)


def _read_route(data: bytes, at: int) -> tuple[tuple[Encoded, ...], int]:
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


class _LastRoutes:
    """The two routes that were read last, and their bytes: most messages of a burst go one way, and comparing costs a third of reading.

    One tuple, replaced whole, so that two threads with a node each never see half of it.
    """

    __slots__ = ("read",)

    def __init__(self) -> None:
        self.read: tuple[bytes, tuple[Encoded, ...], tuple[Encoded, ...]] = (b"\x80\x80", (), ())


_frame_routes = _LastRoutes()
_plaintext_routes = _LastRoutes()


def _read_message(
    data: bytes, at: int, last: _LastRoutes
) -> tuple[tuple[Encoded, ...], tuple[Encoded, ...], bytes, int]:
    encoded, onward, back = last.read
    if data.startswith(encoded, at):
        at += len(encoded)
    else:
        onward, middle = _read_route(data, at)
        back, end = _read_route(data, middle)
        if end >= len(data):
            raise _UncommonError  # cut short: the bytes of a part must never be remembered as those of the whole
        last.read = (data[at:end], onward, back)
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
        msg = f"a payload of {length} bytes is announced where {len(data) - at} are left"
        raise WireError(msg)
    return onward, back, data[at:end], end


def decode_message(data: bytes) -> Decoded:
    """Return onward route, return route and payload of a transport message (spec §2.2); WireError for all that is none.

    Three items, four, an explicit null and further items are accepted, as peers do.
    """
    try:
        if data[0] in (0x83, 0x84):
            onward, back, payload, end = _read_message(data, 1, _frame_routes)
            if (data[0] == 0x83 and end == len(data)) or (data[0] == 0x84 and data[end:] == _NO_TRACING):
                return onward, back, payload
    except (_UncommonError, IndexError):
        pass
    full = decode_full(data)
    return full.onward, full.back, full.payload


def decode_full(data: bytes) -> TransportMessage:
    """Return a transport message with its tracing context, read by the strict CBOR reader (spec §2.2)."""
    return _message_of(cbor.decode(data))


def _message_of(value: object) -> TransportMessage:
    onward, back, payload, tracing = cbor.fields(value, 3, 1)
    if not isinstance(payload, bytes) or not (tracing is None or isinstance(tracing, str)):
        msg = "a transport message is [onward route, return route, payload bytes, tracing text or null]"
        raise WireError(msg)
    return TransportMessage(_route_of(onward), _route_of(back), payload, tracing)


def _route_of(value: object) -> tuple[Encoded, ...]:
    if not isinstance(value, list) or len(value) > MAX_HOPS:
        msg = f"a route is an array of at most {MAX_HOPS} addresses"
        raise WireError(msg)
    hops = []
    for item in value:
        kind, name = cbor.fields(item, 2)
        if not isinstance(name, bytes) or len(name) > MAX_VALUE:
            msg = f"an address is [type below 256, at most {MAX_VALUE} bytes]"
            raise WireError(msg)
        hops.append(encode_address(cbor.uint(kind, 255), name))
    return tuple(hops)


def encode_message(onward: tuple[Encoded, ...], back: tuple[Encoded, ...], payload: bytes) -> bytes:
    """Return a transport message of three items (spec §2.2)."""
    return b"".join(
        (
            b"\x83",
            _ARRAY_HEADS[len(onward)],
            *onward,
            _ARRAY_HEADS[len(back)],
            *back,
            _bytes_head(len(payload)),
            payload,
        )
    )


def encode_full(message: TransportMessage) -> bytes:
    """Return a transport message with its tracing context, if it has one (spec §2.2)."""
    plain = encode_message(message.onward, message.back, message.payload)
    return plain if message.tracing is None else b"\x84" + plain[1:] + cbor.encode(message.tracing)


CURRENT = ProtocolVersion(
    name="current",
    preface=b"\x01",
    length_size=4,
    max_frame=MAX_FRAME,
    max_sent=MAX_FRAME,
    tolerated=0,
    resends=True,
    decode=decode_message,
    encode=encode_message,
    decode_full=decode_full,
)


@attrs.frozen
class Close:
    """The sender of this channel message has stopped; nothing is to be answered (spec §7.2)."""


@attrs.frozen
class RefreshCredentials:
    """New credentials of the identity that made the channel (spec §7.2): the history and the encoded credentials."""

    history: bytes
    credentials: tuple[bytes, ...]


def seal_payload(onward: tuple[Encoded, ...], back: tuple[Encoded, ...], payload: bytes) -> bytes:
    """Return the plaintext of an application message (spec §7.2)."""
    return b"".join(
        (
            b"\x82\x82\x00\x81\x83",
            _ARRAY_HEADS[len(onward)],
            *onward,
            _ARRAY_HEADS[len(back)],
            *back,
            _bytes_head(len(payload)),
            payload,
            _NO_PADDING,
        )
    )


def seal_close() -> bytes:
    """Return the plaintext that tells the peer that this side has stopped (spec §7.2)."""
    return _CLOSE


def seal_refresh(refresh: RefreshCredentials) -> bytes:
    """Return the plaintext that carries new credentials (spec §7.2)."""
    credentials = b"".join(refresh.credentials)
    return (
        b"\x82\x82\x01\x81\x82" + refresh.history + _ARRAY_HEADS[len(refresh.credentials)] + credentials + _NO_PADDING
    )


def open_plaintext(data: bytes) -> Decoded | Close | RefreshCredentials:
    """Return what the plaintext of a channel's blob says (spec §7.2); any padding is skipped; WireError if it is undecodable."""
    try:
        if data[4] == 0x83 and data.startswith(_PAYLOAD_START):
            onward, back, payload, end = _read_message(data, 5, _plaintext_routes)
            if data[end:] == _NO_PADDING:
                return onward, back, payload
    except (_UncommonError, IndexError):
        pass
    message, padding = cbor.fields(cbor.decode(data), 2)
    if not isinstance(padding, bytes):
        msg = "a channel's plaintext is [message, padding bytes]"
        raise WireError(msg)
    variant, items = cbor.variant(message)
    match variant:
        case 0:
            inner = _message_of(cbor.fields(items, 1)[0])
            return inner.onward, inner.back, inner.payload
        case 1:
            history, credentials = cbor.fields(cbor.fields(items, 1)[0], 2)
            if not isinstance(credentials, list):
                msg = "refreshed credentials are [change history, array of credentials]"
                raise WireError(msg)
            return RefreshCredentials(cbor.encode(cast("cbor.Value", history)), tuple(map(cbor.encode, credentials)))
        case 2:
            return Close()
        case _:
            msg = f"a channel message has variant 0, 1 or 2, this one {variant}"
            raise WireError(msg)
