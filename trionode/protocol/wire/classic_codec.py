"""The codec of generation *classic*: transport messages in BARE, between their bytes and the canonical addresses of the router (spec §2, §3.1)."""

from trionode.errors import WireError
from trionode.protocol.wire import bare
from trionode.protocol.wire.address import LOCAL_TYPE, MAX_VALUE, Encoded, decode_address, encode_address
from trionode.protocol.wire.message import TransportMessage
from trionode.protocol.wire.route import MAX_HOPS
from trionode.protocol.wire.version import Decoded, ProtocolVersion

#: Bytes in the largest frame: what its u16 length can say (spec §3.1).
MAX_FRAME = 65_535
#: Bytes in the largest frame that is sent: a hub of the seed era refuses larger ones (spec §3.1).
MAX_SENT = 65_000
#: Undecodable frames that a link lives through: peers skip any number of them (spec §3.1), but one that sends nothing else has lost its place.
TOLERATED = 8

#: The only version that is sent or read (spec §2.2).
VERSION = 1
_VERSION = bytes((VERSION,))

#: What takes the place of the type and length of a short local address: the beginning of its canonical form.
_LOCAL_HEADS = tuple(encode_address(LOCAL_TYPE, bytes(length))[: 3 if length < 24 else 4] for length in range(0x80))


class _LastRoutes:
    """The two routes that were decoded last and those that were encoded last, with their bytes, version included.

    Most messages of a burst go one way, and comparing costs a third of reading. One tuple for each direction, replaced whole, so that two threads
    with a node each never see half of it.
    """

    __slots__ = ("read", "written")

    def __init__(self) -> None:
        self.read: tuple[bytes, tuple[Encoded, ...], tuple[Encoded, ...]] = (b"\x01\x00\x00", (), ())
        self.written: tuple[bytes, tuple[Encoded, ...], tuple[Encoded, ...]] = self.read


_last = _LastRoutes()


def _read_uint(data: bytes, at: int) -> tuple[int, int]:
    reader = bare.Reader(data, at)
    return reader.uint(), reader.at


def _read_route(data: bytes, at: int) -> tuple[tuple[Encoded, ...], int]:
    # Lengths below 128 have one byte; only others are left to the Reader, which costs three times as much.
    count, at = (data[at], at + 1) if data[at] < 0x80 else _read_uint(data, at)
    if count > MAX_HOPS:
        msg = f"a route of {count} addresses, where at most {MAX_HOPS} are allowed"
        raise WireError(msg)
    hops = []
    for _ in range(count):
        kind, length = data[at], data[at + 1]
        length, at = (length, at + 2) if length < 0x80 else _read_uint(data, at + 1)
        if length > MAX_VALUE:
            msg = f"an address of {length} bytes, where at most {MAX_VALUE} are allowed"
            raise WireError(msg)
        end = at + length
        value = data[at:end]
        hops.append(
            _LOCAL_HEADS[length] + value if kind == LOCAL_TYPE and length < 0x80 else encode_address(kind, value)
        )
        at = end
    return tuple(hops), at


def decode_message(data: bytes) -> Decoded:
    """Return onward route, return route and payload of a transport message (spec §2.2); WireError for all that is none.

    Bytes behind the payload are ignored, as peers do (spec §1.1); another version than 1 is refused.
    """
    try:
        encoded, onward, back = _last.read
        if data.startswith(encoded):
            at = len(encoded)
        else:
            if data[0] != VERSION:
                msg = f"a transport message of version {data[0]}, where {VERSION} is expected"
                raise WireError(msg)
            onward, middle = _read_route(data, 1)
            back, at = _read_route(data, middle)
            if at < len(
                data
            ):  # else it is cut short: the bytes of a part must never be remembered as those of the whole
                _last.read = (data[:at], onward, back)
        length, at = (data[at], at + 1) if data[at] < 0x80 else _read_uint(data, at)
    except IndexError:
        raise WireError("a transport message that ends too early") from None
    end = at + length
    if end > len(data):
        msg = f"a payload of {length} bytes is announced where {len(data) - at} are left"
        raise WireError(msg)
    return onward, back, data[at:end]


def decode_full(data: bytes) -> TransportMessage:
    """Return a transport message as a value; classic ones have no tracing context (spec §2.2)."""
    return TransportMessage(*decode_message(data))


def _route_bytes(route: tuple[Encoded, ...]) -> bytes:
    parts = [bare.uint(len(route))]
    for hop in route:
        if (
            hop[1] < 24 and hop[2] == 0x58 and hop[3] < 0x80
        ):  # only the CBOR head is dropped: the length behind it is BARE's too
            parts += (hop[1:2], hop[3:])
        else:
            kind, value = decode_address(hop)
            parts += (bare.u8(kind), bare.data(value))
    return b"".join(parts)


def encode_message(onward: tuple[Encoded, ...], back: tuple[Encoded, ...], payload: bytes) -> bytes:
    """Return a transport message of version 1 (spec §2.2)."""
    encoded, last_onward, last_back = _last.written
    if onward != last_onward or back != last_back:
        encoded = b"".join((_VERSION, _route_bytes(onward), _route_bytes(back)))
        _last.written = (encoded, onward, back)
    return b"".join((encoded, bare.uint(len(payload)), payload))


def encode_full(message: TransportMessage) -> bytes:
    """Return a transport message; its tracing context has no place in this generation (spec §2.2)."""
    return encode_message(message.onward, message.back, message.payload)


CLASSIC = ProtocolVersion(
    name="classic",
    preface=b"",
    length_size=2,
    max_frame=MAX_FRAME,
    max_sent=MAX_SENT,
    tolerated=TOLERATED,
    resends=False,
    decode=decode_message,
    encode=encode_message,
    decode_full=decode_full,
)
