"""A version of the Ockam wire protocol: its framing and its message codec.

A link chooses one and never branches on it again.
"""

from abc import ABC, abstractmethod

import attrs

from trionode.protocol.wire.address import Encoded

#: Onward route, return route and payload, as the router takes them.
Decoded = tuple[tuple[Encoded, ...], tuple[Encoded, ...], bytes]


class Codec(ABC):
    """Encodes and decodes the transport messages of one link (spec §2.2).

    Most messages of a burst have the same routes, and comparing their bytes costs a third of decoding them. So a codec
    remembers the last routes, and `decode` returns the same tuples for the same bytes.
    """

    __slots__ = ()

    @abstractmethod
    def encode(self, onward: tuple[Encoded, ...], back: tuple[Encoded, ...], payload: bytes) -> bytes:
        """Return the bytes of a transport message."""

    @abstractmethod
    def decode(self, data: bytes) -> Decoded:
        """Return the onward route, the return route and the payload of a transport message.

        WireError if `data` is not one.
        """


@attrs.frozen
class ProtocolVersion:
    """A version of the Ockam wire protocol (spec §2, §3): `CURRENT` or `CLASSIC`, both in `trionode.plugins`."""

    #: The name that options and errors use.
    name: str
    #: What each side sends directly after connecting, and expects from the other (spec §3.2). Empty if there is no
    #: preface.
    preface: bytes
    #: Bytes of the big-endian length before each frame.
    length_size: int
    #: Bytes in the largest frame that is read.
    max_frame: int
    #: Bytes in the largest frame that is sent. It is less than `max_frame` if known peers refuse larger frames
    #: (spec §3.1).
    max_sent: int
    #: Undecodable frames after which a link still goes on (spec §3.1). At 0 the first one ends the link. An empty frame
    #: counts as undecodable.
    tolerated: int
    #: Whether clients of this version resend an unanswered request and understand `error` (spec §11.6).
    resends: bool
    #: The class of the codec. Each link makes its own.
    codec: type[Codec] = attrs.field(repr=False)

    def encode(self, onward: tuple[Encoded, ...], back: tuple[Encoded, ...], payload: bytes) -> bytes:
        """Encode one transport message with a new codec.

        Args:
          onward: The encoded addresses of the onward route.
          back: The encoded addresses of the return route.
          payload: The payload.

        Returns:
          The bytes of the message, without the length of a frame.
        """
        return self.codec().encode(onward, back, payload)

    def decode(self, data: bytes) -> Decoded:
        """Decode one transport message with a new codec.

        Args:
          data: The bytes of the message, without the length of a frame.

        Returns:
          The onward route, the return route (both as tuples of encoded addresses) and the payload.

        Raises:
          WireError: `data` is not a transport message of this version.
        """
        return self.codec().decode(data)
