"""Records of a link's topics, and announcements in an endpoint's topic."""

import re
from enum import IntEnum
from struct import Struct
from typing import Self

import attrs

from trionode.plugins import WireError

#: Bytes of the stream of frames in one record. With its overhead, a record fits into one fetch of a topic (256 KiB).
RECORD_BYTES = 192 * 1024
_HEAD = Struct(">BQQ")
_ANNOUNCEMENT = re.compile(rb"([LHD])([0-9a-f]{32})")


class RecordKind(IntEnum):
    """The purpose of a record."""

    #: The next bytes of the stream of frames (spec §3).
    DATA = 1
    #: Shows that this end is alive, and what it has consumed.
    HEARTBEAT = 2
    #: No more data follows.
    END = 3
    #: The last record of an end: it sends nothing more and reads nothing more.
    CLOSE = 4


@attrs.frozen
class LinkRecord:
    """One record of a link: kind, number (from 0 on), and the bytes of the other direction that its writer consumed."""

    kind: RecordKind
    number: int
    consumed: int
    data: bytes = attrs.field(default=b"", repr=False)

    def encode(self) -> bytes:
        """Return the record's value in the topic."""
        return _HEAD.pack(self.kind, self.number, self.consumed) + self.data

    @classmethod
    def decode(cls, value: bytes) -> Self:
        """Parse a record's value; WireError if no link of trionode wrote it."""
        if len(value) < _HEAD.size or value[0] not in RecordKind.__members__.values():
            raise WireError(f"expected a record of a link, got one that begins with {value[:16].hex()}")
        kind, number, consumed = _HEAD.unpack_from(value)
        return cls(RecordKind(kind), number, consumed, value[_HEAD.size :])


class AnnouncementKind(IntEnum):
    """What an announcement says, by its first byte."""

    #: A node wants to listen here.
    LISTEN = ord("L")
    #: A node listens here.
    LISTENING = ord("H")
    #: A node has created the two topics of a link, and wants to connect.
    DIAL = ord("D")


@attrs.frozen
class Announcement:
    """One record in an endpoint's topic: its kind, and the id of the listener, or of the link (32 hex characters)."""

    kind: AnnouncementKind
    id: str

    def encode(self) -> bytes:
        """Return the record's value in the topic."""
        return bytes((self.kind,)) + self.id.encode()

    @classmethod
    def decode(cls, value: bytes) -> Self | None:
        """Parse a record's value; None if it is no announcement."""
        match = _ANNOUNCEMENT.fullmatch(value)
        return cls(AnnouncementKind(match[1][0]), match[2].decode()) if match else None
