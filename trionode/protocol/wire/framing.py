"""Frames in a byte stream: a length and a message each. A length is checked before anything is buffered (spec §3)."""

from collections.abc import Sequence
from typing import Final

from trionode.errors import WireError
from trionode.protocol.wire.version import ProtocolVersion


class FrameDecoder:
    """Turns the bytes of one direction of a connection into frames.

    If the protocol version has a preface, it is expected first. The buffer never exceeds one frame and one read. After
    a WireError the position in the stream is lost: close the connection. An empty frame is an error, but in a version
    that tolerates undecodable frames it is returned like any other (spec §3.1).

    Args:
      protocol_version: The version that the peer speaks.
      max_frame: Bytes in the largest frame, if that is less than the version allows.
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
        """Take the next bytes of the stream.

        Args:
          data: What was read.

        Returns:
          The frames that are complete now, in order.

        Raises:
          WireError: A wrong preface, or a frame that is empty or too long.
        """
        if self._expected:
            data = self._check_preface(data)
        buffer: bytes | bytearray
        if self._buffer:
            # A large frame arrives in many reads. A bytearray grows in place; bytes would be copied each time.
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

    def _check_preface(self, data: bytes) -> bytes:
        preface = data[: len(self._expected)]
        if not self._expected.startswith(preface):
            msg = f"the peer does not speak the {self._name} protocol version: it began with {preface.hex()}, expected {self._expected.hex()}"
            raise WireError(msg)
        self._expected = self._expected[len(preface) :]
        return data[len(preface) :]

    @property
    def has_preface(self) -> bool:
        """Whether the peer's preface has arrived."""
        return not self._expected

    @property
    def is_between_frames(self) -> bool:
        """Whether no part of a frame is buffered, so the stream may end here in an orderly way."""
        return not self._buffer


def join_frames(protocol_version: ProtocolVersion, frames: Sequence[bytes]) -> bytes:
    """Encode frames for a byte stream.

    Args:
      protocol_version: The version that both sides speak.
      frames: The frames, without their lengths.

    Returns:
      The bytes to send: each frame behind its length.
    """
    size = protocol_version.length_size
    parts = []
    for frame in frames:
        parts.append(len(frame).to_bytes(size, "big"))
        parts.append(frame)
    return b"".join(parts)
