"""The codec of the classic protocol version: transport messages in BARE (spec §2, §3.1)."""

from trionode.errors import WireError
from trionode.protocol.wire import bare
from trionode.protocol.wire.address import LOCAL_TYPE, MAX_VALUE, Encoded, decode_address, encode_address
from trionode.protocol.wire.route import MAX_HOPS
from trionode.protocol.wire.version import Codec, Decoded, ProtocolVersion

#: Bytes in the largest frame: the maximum of its u16 length (spec §3.1).
MAX_FRAME = 65_535
#: Bytes in the largest frame that is sent: old hubs refuse larger ones (spec §3.1).
MAX_SENT = 65_000
#: Undecodable frames after which a link goes on. Peers skip any number of them (spec §3.1), but a peer that sends
#: nothing else is out of step.
TOLERATED = 8

#: The only message version that is sent or accepted (spec §2.2).
VERSION = 1

#: The first bytes of an encoded local address whose value is shorter than 128 bytes, by that length.
_LOCAL_HEADS = tuple(encode_address(LOCAL_TYPE, bytes(length))[: 3 if length < 24 else 4] for length in range(0x80))

#: The bytes of two routes, behind the version, and the routes.
_Routes = tuple[bytes, tuple[Encoded, ...], tuple[Encoded, ...]]
_NO_ROUTES: _Routes = (bytes((VERSION, 0, 0)), (), ())


class ClassicCodec(Codec):
    """Encodes and decodes transport messages of version 1 (spec §2.2)."""

    __slots__ = ("_last_decoded", "_last_encoded")

    def __init__(self) -> None:
        self._last_decoded = self._last_encoded = _NO_ROUTES

    def encode(self, onward: tuple[Encoded, ...], back: tuple[Encoded, ...], payload: bytes) -> bytes:
        """Return the bytes of a transport message."""
        encoded, last_onward, last_back = self._last_encoded
        if onward != last_onward or back != last_back:
            encoded = b"".join((bytes((VERSION,)), _encode_route(onward), _encode_route(back)))
            self._last_encoded = (encoded, onward, back)
        return b"".join((encoded, bare.uint(len(payload)), payload))

    def decode(self, data: bytes) -> Decoded:
        """Return the onward route, the return route and the payload; WireError if `data` is not a message.

        Peers ignore bytes behind the payload, so this does too (spec §1.1).
        """
        try:
            encoded, onward, back = self._last_decoded
            if data.startswith(encoded):
                at = len(encoded)
            else:
                if data[0] != VERSION:
                    raise WireError(f"a transport message of version {data[0]}, expected {VERSION}")
                onward, middle = _decode_route(data, 1)
                back, at = _decode_route(data, middle)
                # A truncated message must not be remembered: its last address is incomplete.
                if at < len(data):
                    self._last_decoded = (data[:at], onward, back)
            length, at = (data[at], at + 1) if data[at] < 0x80 else _decode_uint(data, at)
        except IndexError:
            raise WireError("a transport message that ends too early") from None
        end = at + length
        if end > len(data):
            raise WireError(f"a payload of {length} bytes, but {len(data) - at} bytes are left")
        return onward, back, data[at:end]


def _decode_uint(data: bytes, at: int) -> tuple[int, int]:
    reader = bare.Reader(data, at)
    return reader.uint(), reader.at


def _decode_route(data: bytes, at: int) -> tuple[tuple[Encoded, ...], int]:
    # A length below 128 has one byte and is read here. The Reader, for all others, takes three times as long.
    count, at = (data[at], at + 1) if data[at] < 0x80 else _decode_uint(data, at)
    if count > MAX_HOPS:
        raise WireError(f"a route of {count} addresses, at most {MAX_HOPS} are allowed")
    hops = []
    for _ in range(count):
        kind, length = data[at], data[at + 1]
        length, at = (length, at + 2) if length < 0x80 else _decode_uint(data, at + 1)
        if length > MAX_VALUE:
            raise WireError(f"an address of {length} bytes, at most {MAX_VALUE} are allowed")
        end = at + length
        value = data[at:end]
        is_short = kind == LOCAL_TYPE and length < 0x80
        hops.append(_LOCAL_HEADS[length] + value if is_short else encode_address(kind, value))
        at = end
    return tuple(hops), at


def _encode_route(route: tuple[Encoded, ...]) -> bytes:
    parts = [bare.uint(len(route))]
    for hop in route:
        kind, value = decode_address(hop)
        parts += (bare.u8(kind), bare.data(value))
    return b"".join(parts)


CLASSIC = ProtocolVersion(
    name="classic",
    preface=b"",
    length_size=2,
    max_frame=MAX_FRAME,
    max_sent=MAX_SENT,
    tolerated=TOLERATED,
    resends=False,
    codec=ClassicCodec,
)
