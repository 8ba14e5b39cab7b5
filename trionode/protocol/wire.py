"""What one generation of the wire is: its framing and its codec, chosen once for a link and then never asked about again."""

from collections.abc import Callable

import attrs

from trionode.protocol.address import Encoded
from trionode.protocol.message import TransportMessage

#: Onward route, return route, payload, as the router takes them.
Decoded = tuple[tuple[Encoded, ...], tuple[Encoded, ...], bytes]


@attrs.frozen
class Wire:
    """A generation of the wire (spec §2, §3); `trionode.protocol.current.CURRENT` is one."""

    name: str
    #: What each side sends directly after connecting, and expects from the other (spec §3.2); empty where there is no greeting.
    preface: bytes
    #: Bytes of the big-endian length before each frame.
    length_size: int
    #: Bytes in the largest frame that the generation allows.
    max_frame: int
    #: bytes -> onward, return, payload; raises WireError.
    decode: Callable[[bytes], Decoded]
    #: onward, return, payload -> bytes.
    encode: Callable[[tuple[Encoded, ...], tuple[Encoded, ...], bytes], bytes]
    #: The same with all that a transport message can hold, for tools and tests.
    decode_full: Callable[[bytes], TransportMessage]
