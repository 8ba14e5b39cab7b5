"""Links over a stream of bytes in both generations of the wire (spec §3): greeting, recognition, whole frames, and an orderly end in both directions."""

from collections.abc import Sequence

import trio

from trionode.plugins import (
    ConnectionLost,
    FrameDecoder,
    MessageTooLargeError,
    ProtocolVersion,
    RemoteError,
    WireError,
    join_frames,
    recognise,
)
from trionode_tcp.stream import ByteStream

#: Seconds that a new connection has to show which wire it speaks, and to end the frame that it began with; TLS's handshake is within them.
GREETING_TIMEOUT = 10.0
#: Seconds after which one lone `01` shows the current generation: its peer may be waiting for ours (spec §3.3).
LONE_BYTE_SECONDS = 1.0
#: Seconds that a frame may take from its beginning to its end while it is read: a part of one holds up to `max_frame` bytes of memory. The
#: largest frame of all, 16 MiB, then needs 140 KB/s.
FRAME_TIMEOUT = 120.0
#: Seconds that `aclose` takes to tell the peer, and to read on for the peer's own end.
CLOSE_GRACE = 1.0
#: How a listener with TLS answers who does not speak it: an alert (RFC 8446 §5.1).
_TLS_ALERT = b"\x15\x03"


class TCPLink:
    """Frames over a stream of bytes, sent in one piece a burst and read as many as there are."""

    def __init__(self, stream: ByteStream, protocol_version: ProtocolVersion, *, max_frame: int) -> None:
        self.peer = stream.peer
        self._stream = stream
        self._max_read = max_frame
        self._early: Sequence[bytes] = ()
        self._said_end = False
        self._wrong = ""
        self._speak(protocol_version)

    def _speak(self, protocol_version: ProtocolVersion) -> None:
        self.protocol_version = protocol_version
        self.max_frame = min(self._max_read, protocol_version.max_sent)
        self._decoder = FrameDecoder(protocol_version, max_frame=self._max_read)

    async def greet(self) -> None:
        """Send the preface of the wire and wait for the peer's (spec §3.2); frames that come with it are kept for `receive`.

        A heartbeat follows the preface at once, so that the peer need not wait to know which wire it is, nor can take a large first frame for
        classic (spec §3.3), and a classic link, which has no preface, may stay silent afterwards.
        """
        with trio.move_on_after(GREETING_TIMEOUT):
            await self._stream.handshake()
            await self._stream.send(
                self.protocol_version.preface + join_frames(self.protocol_version, [_heartbeat(self.protocol_version)])
            )
            while not self._decoder.greeted:
                data = await self._stream.receive()
                if not data:
                    msg = f"{self.peer} closed the connection before it said which wire it speaks"
                    raise ConnectionLost(msg)
                if data.startswith(_TLS_ALERT):
                    msg = f"{self.peer} speaks TLS: dial it as tls:HOST:PORT"
                    raise ConnectionLost(msg)
                self._early = self._decoder.receive(data)
            return
        msg = f"{self.peer} accepted the connection but did not say within {GREETING_TIMEOUT:g} s which wire it speaks: is it a trionode or Ockam node?"
        raise ConnectionLost(msg)

    async def recognise(self) -> None:
        """Learn from the first bytes which wire the peer speaks, answer its preface, and wait for the end of a frame that it began (spec §3.3).

        ConnectionLost or WireError if that does not come to be.
        """
        start = b""
        with trio.move_on_after(GREETING_TIMEOUT):
            await self._stream.handshake()
            protocol_version = None
            while protocol_version is None:
                data = b""
                with trio.move_on_after(LONE_BYTE_SECONDS if start else float("inf")) as pause:
                    data = await self._stream.receive()
                    if not data:
                        msg = f"{self.peer} closed the connection before it said which wire it speaks"
                        raise ConnectionLost(msg)
                start += data
                protocol_version = recognise(start, quiet=pause.cancelled_caught)
            self._speak(protocol_version)
            if protocol_version.preface:
                await self._stream.send(protocol_version.preface)
            self._early = self._decoder.receive(start)
            while not self._early and not self._decoder.is_between_frames:
                data = await self._stream.receive()
                if not data:
                    msg = f"{self.peer} ended the connection in the middle of its first frame"
                    raise ConnectionLost(msg)
                self._early = self._decoder.receive(data)
            if self._early and self._early[0] == _heartbeat(protocol_version):
                self._early = self._early[1:]  # what `greet` sends: part of the greeting, and no frame of anybody's
            return
        began = f"it began with {start[:16].hex()}" if start else "it sent nothing"
        msg = f"{self.peer} did not send a frame of the wire within {GREETING_TIMEOUT:g} s: {began}"
        raise ConnectionLost(msg)

    async def receive(self) -> Sequence[bytes]:
        """All frames that one read brought, at least one; () at the peer's orderly end."""
        if self._early:
            await trio.lowlevel.checkpoint()
            early, self._early = self._early, ()
            return early
        if self._wrong:
            await trio.lowlevel.checkpoint()
            raise WireError(self._wrong)
        if self._decoder.is_between_frames:
            data = await self._stream.receive()
            if not data:
                return ()
            if frames := self._decode(data):
                return frames
        with trio.move_on_after(FRAME_TIMEOUT):
            while data := await self._stream.receive():
                if frames := self._decode(data):
                    return frames
            msg = f"{self.peer} ended the connection in the middle of a frame"
            raise ConnectionLost(msg)
        msg = f"{self.peer} did not end a frame within {FRAME_TIMEOUT:g} s"
        raise ConnectionLost(msg)

    def _decode(self, data: bytes) -> Sequence[bytes]:
        try:
            return self._decoder.receive(data)
        except WireError as error:
            self._wrong = str(error)  # the stream has lost its place: what comes behind is nobody's
            raise

    async def send(self, frames: Sequence[bytes]) -> None:
        """Write a burst; ConnectionLost if the connection is gone, MessageTooLargeError for a frame over `max_frame`. Cancelled half-way, the stream is broken."""
        data = join_frames(self.protocol_version, frames)
        # The first comparison, which is all that most bursts pay, holds for every burst with such a frame.
        if len(data) > self.max_frame and (largest := max(map(len, frames))) > self.max_frame:
            msg = f"the link to {self.peer} carries frames of at most {self.max_frame} bytes, this one has {largest}"
            raise MessageTooLargeError(msg)
        await self._stream.send(data)

    async def send_eof(self) -> None:
        """End this direction; `receive` goes on."""
        if self._said_end:
            await trio.lowlevel.checkpoint()
            return
        self._said_end = True
        await self._stream.send_eof()

    async def aclose(self) -> None:
        """End this direction, read on until the peer's end or CLOSE_GRACE is over, close: a plain close can destroy what is on its way.

        After `send_eof` it closes at once: whoever called that has read on.
        """
        try:
            if not self._said_end:
                self._said_end = True
                with trio.move_on_after(CLOSE_GRACE):
                    await self._stream.send_eof()
                    while await self._stream.receive():
                        pass
        except RemoteError:
            pass  # whatever state the peer is in, the stream is closed below
        finally:
            self._stream.close()


def _heartbeat(protocol_version: ProtocolVersion) -> bytes:
    return protocol_version.encode((), (), b"")
