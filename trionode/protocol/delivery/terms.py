"""What both sides of a channel say about delivery in the handshake: an extra item of the identity payload."""

import hashlib
from typing import Self

import attrs

from trionode.errors import WireError
from trionode.protocol.wire import cbor

#: The text before the item. A peer that does not know it skips it; an item without it is not ours.
_TAG = "trionode.delivery"
#: The version of the delivery frames.
_VERSION = 1
#: Bytes of a sender id and of a running hash: 128 bits, beyond the reach of a search for collisions within the life of
#: a channel. The frames are authenticated besides.
HASH_SIZE = 16


#: The largest number of a message. No side sends so many; a peer that claims more is refused before its numbers reach an
#: acknowledgement, whose fields have 64 bits.
MAX_NUMBER = 2**63


def first_head(sender_id: bytes) -> bytes:
    """Return the running hash before the first message of a sender."""
    return hashlib.sha256(sender_id).digest()[:HASH_SIZE]


def next_head(head: bytes, item: bytes) -> bytes:
    """Return the running hash after a message."""
    return hashlib.sha256(head + item).digest()[:HASH_SIZE]


@attrs.frozen
class Position:
    """A place in one direction: the number of messages up to it, and the running hash of all of them."""

    count: int
    head: bytes = attrs.field(repr=bytes.hex)


@attrs.frozen
class Terms:
    """Where one side stands in both directions when a session begins.

    Args:
      sender_id: Names the numbering of the messages that this side sends: 16 random bytes, made with its outbox.
      base: The position before the oldest message that this side can still send.
      peer_id: The sender id of the peer whose messages this side has received; None: this side remembers none.
      received: The position up to which it has received them.
    """

    sender_id: bytes = attrs.field(repr=bytes.hex)
    base: Position
    peer_id: bytes | None
    received: Position

    def item(self) -> cbor.Value:
        """Return the item for the identity payload of message 3, and for the first frame of the responder."""
        return [
            _TAG,
            _VERSION,
            self.sender_id,
            self.base.count,
            self.base.head,
            self.peer_id or b"",
            self.received.count,
            self.received.head,
        ]


@attrs.frozen
class Offer:
    """The peer has the delivery layer; its message 2 says so."""

    def item(self) -> cbor.Value:
        """Return the item for the identity payload of message 2."""
        return [_TAG, _VERSION]

    @classmethod
    def of(cls, item: object) -> "Self | Terms | None":
        """Read the item of a payload; None if it is absent or not ours. WireError if it is ours and not valid."""
        if not isinstance(item, list) or len(item) < 2 or item[0] != _TAG:
            return None
        if cbor.uint(item[1]) < _VERSION:
            raise WireError(f"delivery has version {_VERSION} or later, not {item[1]}")
        return cls() if len(item) == 2 else _terms(item)


def _terms(item: list[object]) -> Terms:
    _, _, sender_id, base_count, base_head, peer_id, count, head = cbor.fields(item, 8)
    return Terms(
        _bytes(sender_id),
        Position(cbor.uint(base_count, MAX_NUMBER), _bytes(base_head)),
        _bytes(peer_id) if peer_id else None,
        Position(cbor.uint(count, MAX_NUMBER), _bytes(head)),
    )


def _bytes(value: object) -> bytes:
    if not isinstance(value, bytes) or len(value) != HASH_SIZE:
        raise WireError(f"a sender id and a running hash have {HASH_SIZE} bytes")
    return value
