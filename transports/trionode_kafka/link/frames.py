"""What a link writes into its topics: numbered records, in each how much of the other direction has been taken."""

import re
from enum import IntEnum
from struct import Struct
from typing import Self

import attrs

from trionode.plugins import WireError

#: Bytes of the stream of frames in one record: with what surrounds it below what one fetch brings of a topic (256 KiB).
RECORD_BYTES = 192 * 1024
_HEAD = Struct(">BQQ")
_INVITATION = re.compile(rb"([LHD])([0-9a-f]{32})")


class Kind(IntEnum):
    """What a record is for."""

    #: The next bytes of the stream of frames (spec §3).
    DATA = 1
    #: Only to say that this end lives, and what it has taken.
    BEAT = 2
    #: No more data comes.
    END = 3
    #: Nothing comes any more, and nothing is taken; both ends' last record.
    CLOSE = 4


@attrs.frozen
class Record:
    """One record of a link: its kind, its number from 0 on, and how many bytes of the other direction its writer has taken."""

    kind: Kind
    number: int
    taken: int
    data: bytes = attrs.field(default=b"", repr=False)

    def encoded(self) -> bytes:
        """Return it as it lies in the topic."""
        return _HEAD.pack(self.kind, self.number, self.taken) + self.data

    @classmethod
    def decode(cls, value: bytes) -> Self:
        """Return what lies in the topic; WireError if that is none of these."""
        if len(value) < _HEAD.size or value[0] not in Kind.__members__.values():
            msg = f"a record that is none of a link's: it begins with {value[:16].hex()}"
            raise WireError(msg)
        kind, number, taken = _HEAD.unpack_from(value)
        return cls(Kind(kind), number, taken, value[_HEAD.size :])


class Word(IntEnum):
    """What a record at a place says, by its first byte."""

    #: Somebody wants to listen here.
    LISTEN = ord("L")
    #: Somebody listens here.
    LOCAL = ord("H")
    #: Somebody has made the two topics of a link, and would talk.
    DIAL = ord("D")


@attrs.frozen
class Invitation:
    """One record at a place: what is said, and the 32 hex characters of the listener, or of the link."""

    word: Word
    who: str

    def encoded(self) -> bytes:
        """Return it as it lies in the topic."""
        return bytes((self.word,)) + self.who.encode()

    @classmethod
    def decode(cls, value: bytes) -> Self | None:
        """Return what lies in the topic; None if that is nothing of ours."""
        match = _INVITATION.fullmatch(value)
        return cls(Word(match[1][0]), match[2].decode()) if match else None
