"""What one generation of the wire is: its framing and its codec, chosen once for a link and then never asked about again."""

from collections.abc import Callable

import attrs

from trionode.protocol.wire.address import Encoded
from trionode.protocol.wire.message import TransportMessage

#: Onward route, return route, payload, as the router takes them.
Decoded = tuple[tuple[Encoded, ...], tuple[Encoded, ...], bytes]


@attrs.frozen
class ProtocolVersion:
    """A generation of the wire (spec §2, §3): `trionode.protocol.wire.current_codec.CURRENT` or `trionode.protocol.wire.classic_codec.CLASSIC`."""

    name: str
    #: What each side sends directly after connecting, and expects from the other (spec §3.2); empty where there is no greeting.
    preface: bytes
    #: Bytes of the big-endian length before each frame.
    length_size: int
    #: Bytes in the largest frame that the generation allows, and so the largest that is read.
    max_frame: int
    #: Bytes in the largest frame that may be sent: less than `max_frame` where known peers refuse what the generation allows (spec §3.1).
    max_sent: int
    #: How many undecodable frames of its peer a link lives through (spec §3.1); 0: the first ends it. An empty frame is one of them.
    tolerated: int
    #: Whether its clients send an unanswered request again, and understand `error` (spec §11.6).
    resends: bool
    #: bytes -> onward, return, payload; raises WireError.
    decode: Callable[[bytes], Decoded]
    #: onward, return, payload -> bytes.
    encode: Callable[[tuple[Encoded, ...], tuple[Encoded, ...], bytes], bytes]
    #: The same with all that a transport message can hold, for tools and tests.
    decode_full: Callable[[bytes], TransportMessage]
