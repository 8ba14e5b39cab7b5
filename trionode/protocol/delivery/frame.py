"""The delivery frame: the payload of a channel message between two delivery layers."""

import struct
from collections.abc import Sequence
from typing import Self

import attrs

from trionode.errors import WireError
from trionode.protocol.delivery.terms import HASH_SIZE, MAX_NUMBER, Position, Terms

#: The parts of a frame, and its flags, as bits of the first byte.
_ACK, _END, _MESSAGES, _ACCEPTED, _REFUSED, _LEAVING = (1 << bit for bit in range(6))
_ALL = (1 << 6) - 1

#: Ranges in one acknowledgement. A receiver with more holes reports the lowest ones; the others are reported later.
MAX_RANGES = 16
#: Messages in one frame. With 60,000 bytes it bounds how long one frame keeps a receiver busy.
MAX_ITEMS = 1024
#: Bytes of messages that are put into one frame. A larger message has a frame of its own.
BUNDLE = 60_000

_HEAD = struct.Struct(">BHI")
_ACK_PART = struct.Struct(f">IQ{HASH_SIZE}sQQB")
_RANGE = struct.Struct(">QQ")
_POSITION = struct.Struct(f">Q{HASH_SIZE}s")
_TERMS_PART = struct.Struct(f">{HASH_SIZE}sQ{HASH_SIZE}s?{HASH_SIZE}sQ{HASH_SIZE}s")
_FIRST = struct.Struct(f">Q{HASH_SIZE}sH")
_LENGTH = struct.Struct(">I")

#: Bytes of a frame around one message, at most.
OVERHEAD = _HEAD.size + _ACK_PART.size + MAX_RANGES * _RANGE.size + _POSITION.size + _TERMS_PART.size + _FIRST.size + 4


@attrs.frozen
class Ack:
    """What the sender of the frame has received.

    Args:
      echo: The time stamp of the frame that is acknowledged.
      received: The position up to which it has received all messages: its own count and running hash.
      handled: The number up to which its workers have handled all messages.
      limit: The peer may send while the cost of its messages of this session is below this.
      ranges: The numbers (first, last) that have arrived beyond the position.
    """

    echo: int
    received: Position
    handled: int
    limit: int
    ranges: Sequence[tuple[int, int]] = ()


@attrs.frozen
class Frame:
    """A delivery frame.

    Args:
      delay: Seconds within which the next frame follows. Twice that without a frame is silence.
      stamp: The sender's time in microseconds, modulo 2^32; the acknowledgement echoes it.
      ack: The acknowledgement.
      end: The position after the newest message that the sender has numbered.
      first: The number of the first of `items`.
      before: The running hash before it.
      items: Encoded messages, with numbers one after the other.
      accepted: The responder's terms: it has accepted the initiator.
      refused: The responder has refused the initiator.
      leaving: The sender's node ends. It may come back.
    """

    delay: int
    stamp: int
    ack: Ack | None = None
    end: Position | None = None
    first: int = 0
    before: bytes = b""
    items: Sequence[bytes] = ()
    accepted: Terms | None = None
    refused: bool = False
    leaving: bool = False

    def encode(self) -> bytes:
        """Return the bytes of the frame."""
        flags = self.refused * _REFUSED | self.leaving * _LEAVING
        parts = [b""]
        if (ack := self.ack) is not None:
            flags |= _ACK
            received = ack.received
            parts.append(
                _ACK_PART.pack(ack.echo, received.count, received.head, ack.handled, ack.limit, len(ack.ranges))
            )
            parts.extend(_RANGE.pack(*each) for each in ack.ranges)
        if self.end is not None:
            flags |= _END
            parts.append(_POSITION.pack(self.end.count, self.end.head))
        if (terms := self.accepted) is not None:
            flags |= _ACCEPTED
            base, received = terms.base, terms.received
            known = terms.peer_id is not None
            peer_id = terms.peer_id or bytes(HASH_SIZE)
            parts.append(
                _TERMS_PART.pack(terms.sender_id, base.count, base.head, known, peer_id, received.count, received.head)
            )
        if self.items:
            flags |= _MESSAGES
            parts.append(_FIRST.pack(self.first, self.before, len(self.items)))
            for item in self.items:
                parts += (_LENGTH.pack(len(item)), item)
        parts[0] = _HEAD.pack(flags, self.delay, self.stamp)
        return b"".join(parts)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read a frame; WireError if it is not valid."""
        try:
            return cls._decode(data)
        except struct.error as error:
            raise WireError(f"a delivery frame of {len(data)} bytes is too short for its parts") from error

    @classmethod
    def _decode(cls, data: bytes) -> Self:
        flags, delay, stamp = _HEAD.unpack_from(data)
        if flags & ~_ALL:
            raise WireError(f"a delivery frame with unknown flags {flags:#x}")
        at = _HEAD.size
        ack = end = accepted = None
        if flags & _ACK:
            echo, count, head, handled, limit, number = _ACK_PART.unpack_from(data, at)
            at += _ACK_PART.size
            if number > MAX_RANGES:
                raise WireError(f"an acknowledgement has at most {MAX_RANGES} ranges, this one {number}")
            ranges = [_RANGE.unpack_from(data, at + _RANGE.size * each) for each in range(number)]
            at += _RANGE.size * number
            ack = Ack(echo, Position(count, head), handled, limit, ranges)
        if flags & _END:
            end = Position(*_POSITION.unpack_from(data, at))
            at += _POSITION.size
        if flags & _ACCEPTED:
            sender_id, base, base_head, known, peer_id, count, head = _TERMS_PART.unpack_from(data, at)
            if max(base, count) > MAX_NUMBER:
                raise WireError(f"messages are numbered from 1 to {MAX_NUMBER}")
            accepted = Terms(sender_id, Position(base, base_head), peer_id if known else None, Position(count, head))
            at += _TERMS_PART.size
        first, before = 0, b""
        items: Sequence[bytes] = ()
        if flags & _MESSAGES:
            first, before, number = _FIRST.unpack_from(data, at)
            items, at = _items(data, at + _FIRST.size, number)
            if not 0 < first <= MAX_NUMBER - number:
                raise WireError(f"messages are numbered from 1 to {MAX_NUMBER}")
        if at != len(data):
            raise WireError(f"a delivery frame with {len(data) - at} bytes behind its parts")
        refused, leaving = bool(flags & _REFUSED), bool(flags & _LEAVING)
        return cls(delay, stamp, ack, end, first, before, items, accepted, refused, leaving)


def _items(data: bytes, at: int, number: int) -> tuple[list[bytes], int]:
    if not 0 < number <= MAX_ITEMS:
        raise WireError(f"a delivery frame has 1 to {MAX_ITEMS} messages, this one {number}")
    unpack = _LENGTH.unpack_from
    items = []
    for _ in range(number):
        (length,) = unpack(data, at)
        at += 4
        items.append(data[at : at + length])
        at += length
    if at > len(data):
        raise WireError("a delivery frame whose last message is cut off")
    return items, at
