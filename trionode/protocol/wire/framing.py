"""Frames out of a byte stream and into it: a length, then a message; lengths are checked before anything is kept (spec §3)."""

from collections.abc import Sequence
from typing import Final

from trionode.errors import WireError
from trionode.protocol.wire.version import ProtocolVersion


class FrameDecoder:
    """Bytes in, whole frames out, for one direction of one connection. `max_frame` bounds them below what the wire allows.

    The peer's preface is expected first, where the generation has one. What is kept never exceeds one frame and one read. An error
    is final: the stream has lost its place, and the connection is to be closed. An empty frame is an error, but where the generation
    tolerates undecodable frames it is one of those (spec §3.1), and handed out like any other.
    """

    __slots__ = ("_buffer", "_expected", "_length_size", "_max_frame", "_name", "_smallest")

    def __init__(self, protocol_version: ProtocolVersion, *, max_frame: int | None = None) -> None:
        self._buffer: bytes | bytearray = b""
        self._expected = protocol_version.preface
        self._length_size: Final = protocol_version.length_size
        self._max_frame: Final = min(protocol_version.max_frame, max_frame or protocol_version.max_frame)
        self._smallest: Final = 0 if protocol_version.tolerated else 1
        self._name: Final = protocol_version.name

    def receive(self, data: bytes) -> Sequence[bytes]:
        """Return the frames that `data` completes, in order, perhaps none. WireError at a wrong preface, an empty or too long frame."""
        if self._expected:
            data = self._greet(data)
        buffer: bytes | bytearray
        if self._buffer:
            # A large frame arrives in many reads: a bytearray grows in place where bytes would be copied each time.
            if isinstance(self._buffer, bytes):
                self._buffer = bytearray(self._buffer)
            self._buffer += data
            buffer = self._buffer
            size = self._length_size
            if len(buffer) < size or len(buffer) < size + self._checked(int.from_bytes(buffer[:size], "big")):
                return ()
            buffer = bytes(buffer)
        else:
            buffer = data
        return self._split(buffer)

    def _split(self, buffer: bytes) -> list[bytes]:
        frames = []
        size, smallest, limit, available = self._length_size, self._smallest, self._max_frame, len(buffer)
        start = 0
        while (body := start + size) <= available:
            length = int.from_bytes(buffer[start:body], "big")
            if not smallest <= length <= limit:
                self._checked(length)
            end = body + length
            if end > available:
                break
            frames.append(buffer[body:end])
            start = end
        self._buffer = buffer[start:]
        return frames

    def _checked(self, length: int) -> int:
        if not self._smallest <= length <= self._max_frame:
            msg = f"a frame of {length} bytes, where {self._smallest} to {self._max_frame} are allowed"
            raise WireError(msg)
        return length

    def _greet(self, data: bytes) -> bytes:
        greeting = data[: len(self._expected)]
        if not self._expected.startswith(greeting):
            msg = f"the peer does not speak the wire's generation {self._name}: it began with {greeting.hex()}, expected {self._expected.hex()}"
            raise WireError(msg)
        self._expected = self._expected[len(greeting) :]
        return data[len(greeting) :]

    @property
    def greeted(self) -> bool:
        """Whether the peer's preface has arrived."""
        return not self._expected

    @property
    def is_between_frames(self) -> bool:
        """Whether no part of a frame is waiting for its rest, so that an end of the stream here is an orderly one."""
        return not self._buffer


def join_frames(protocol_version: ProtocolVersion, frames: Sequence[bytes]) -> bytes:
    """Return the bytes of a burst of frames, each behind its length."""
    size = protocol_version.length_size
    parts = []
    for frame in frames:
        parts.append(len(frame).to_bytes(size, "big"))
        parts.append(frame)
    return b"".join(parts)
