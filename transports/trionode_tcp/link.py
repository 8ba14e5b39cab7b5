"""Links over a byte stream in both protocol versions (spec §3): prefaces, recognition, frames, and orderly ends."""

from collections.abc import Sequence

import trio

from trionode.plugins import (
    ByteStream,
    ConnectionLost,
    FrameDecoder,
    MessageTooLargeError,
    ProtocolVersion,
    WireError,
    drain,
    join_frames,
    recognise,
)

#: Seconds in which a new connection has to show its protocol version and complete a frame that it began. The TLS
#: handshake counts.
HANDSHAKE_TIMEOUT = 10.0
#: Seconds after which a lone `01` means the current protocol version: its peer may be waiting for our preface (spec
#: §3.3).
LONE_BYTE_SECONDS = 1.0
#: Seconds from the first to the last byte of a frame: a partial frame holds up to `max_frame` bytes of memory. The
#: largest frame, 16 MiB, needs 140 KB/s to arrive in that time.
FRAME_TIMEOUT = 120.0
#: Seconds that `aclose` takes to end this direction and to read to the peer's end.
CLOSE_GRACE = 1.0
#: How a TLS listener answers a dialer without TLS: an alert (RFC 8446 §5.1).
_TLS_ALERT = b"\x15\x03"


class TCPLink:
    """Frames over a byte stream. A burst is written in one piece, and a read returns all frames that have arrived."""

    def __init__(self, stream: ByteStream, protocol_version: ProtocolVersion, *, max_frame: int) -> None:
        """Make a link that still has to `exchange_prefaces` or to `recognise` its peer.

        Args:
          stream: The stream; the link closes it.
          protocol_version: What to dial with; a listener learns it from the peer.
          max_frame: Bytes in the largest frame.
        """
        self.peer = stream.peer
        self._stream = stream
        self._max_read = max_frame
        self._early: Sequence[bytes] = ()
        self._sent_eof = False
        self._wrong = ""
        self._use(protocol_version)

    def _use(self, protocol_version: ProtocolVersion) -> None:
        self.protocol_version = protocol_version
        self.max_frame = min(self._max_read, protocol_version.max_sent)
        self._decoder = FrameDecoder(protocol_version, max_frame=self._max_read)

    async def exchange_prefaces(self) -> None:
        """Dial: send the preface and wait for the peer's (spec §3.2). Frames that come with it are kept for `receive`.

        A heartbeat follows the preface at once. So the peer knows the protocol version without waiting, and can't take
        a large first frame for classic (spec §3.3). A classic link has no preface and may stay silent afterwards.

        Raises:
          ConnectionLost: There is no answer within HANDSHAKE_TIMEOUT, or the peer hangs up.
          WireError: The answer is not a preface.

        If cancelled, the stream is still to be closed.
        """
        version = self.protocol_version
        with trio.move_on_after(HANDSHAKE_TIMEOUT):
            await self._stream.handshake()
            await self._stream.send(version.preface + join_frames(version, [_heartbeat(version)]))
            while not self._decoder.has_preface:
                data = await self._more("closed the connection before it sent its preface")
                if data.startswith(_TLS_ALERT):
                    raise ConnectionLost(f"{self.peer} speaks TLS: dial it as tls:HOST:PORT")
                self._early = self._decoder.receive(data)
            return
        raise ConnectionLost(
            f"{self.peer} accepted the connection but sent no preface within {HANDSHAKE_TIMEOUT:g} s: "
            "is it a trionode or Ockam node?"
        )

    async def recognise(self) -> None:
        """Accept: learn the protocol version from the first bytes, and answer a preface (spec §3.3).

        If a frame was begun, wait until it is complete.

        Raises:
          ConnectionLost: That did not happen within HANDSHAKE_TIMEOUT, or the peer hangs up.
          WireError: The peer speaks neither protocol version.

        If cancelled, the stream is still to be closed.
        """
        start = b""
        with trio.move_on_after(HANDSHAKE_TIMEOUT):
            await self._stream.handshake()
            version = None
            while version is None:
                data = b""
                with trio.move_on_after(LONE_BYTE_SECONDS if start else float("inf")) as pause:
                    data = await self._more("closed the connection before it showed its protocol version")
                start += data
                version = recognise(start, quiet=pause.cancelled_caught)
            self._use(version)
            if version.preface:
                await self._stream.send(version.preface)
            self._early = self._decoder.receive(start)
            while not self._early and not self._decoder.is_between_frames:
                self._early = self._decoder.receive(
                    await self._more("ended the connection in the middle of its first frame")
                )
            if self._early and self._early[0] == _heartbeat(version):
                self._early = self._early[1:]  # part of the opening that `exchange_prefaces` sends
            return
        began = f"it began with {start[:16].hex()}" if start else "it sent nothing"
        raise ConnectionLost(f"{self.peer} did not send a complete frame within {HANDSHAKE_TIMEOUT:g} s: {began}")

    async def _more(self, otherwise: str) -> bytes:
        """Return the bytes of the next read; raise ConnectionLost with this text at the end of the stream."""
        if data := await self._stream.receive():
            return data
        raise ConnectionLost(f"{self.peer} {otherwise}")

    async def receive(self) -> Sequence[bytes]:
        """Return all frames that one read brought, at least one; () at the peer's orderly end."""
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
            while True:
                if frames := self._decode(await self._more("ended the connection in the middle of a frame")):
                    return frames
        raise ConnectionLost(f"{self.peer} did not complete a frame within {FRAME_TIMEOUT:g} s")

    def _decode(self, data: bytes) -> Sequence[bytes]:
        try:
            return self._decoder.receive(data)
        except WireError as error:
            self._wrong = str(error)  # frame boundaries are lost, so nothing after this can be read
            raise

    async def send(self, frames: Sequence[bytes]) -> None:
        """Write a burst in one piece."""
        data = join_frames(self.protocol_version, frames)
        # The first comparison is all that most bursts cost: it holds for every burst with a frame that is too large.
        if len(data) > self.max_frame and (largest := max(map(len, frames))) > self.max_frame:
            raise MessageTooLargeError(
                f"the link to {self.peer} carries frames of at most {self.max_frame} bytes, this one has {largest}"
            )
        await self._stream.send(data)

    async def send_eof(self) -> None:
        """End this direction; `receive` goes on."""
        if self._sent_eof:
            await trio.lowlevel.checkpoint()
            return
        self._sent_eof = True
        await self._stream.send_eof()

    async def aclose(self) -> None:
        """End this direction, read to the peer's end for at most CLOSE_GRACE, and close.

        Closing at once could destroy what is on its way.

        After `send_eof` it closes at once, because the caller has read on.
        """
        try:
            if not self._sent_eof:
                self._sent_eof = True
                with trio.move_on_after(CLOSE_GRACE):
                    await drain(self._stream)
        finally:
            self._stream.close()


def _heartbeat(protocol_version: ProtocolVersion) -> bytes:
    return protocol_version.encode((), (), b"")
