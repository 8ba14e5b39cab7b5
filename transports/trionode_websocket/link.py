"""A link over an open WebSocket: bursts as messages, an end in each direction, and pings to detect dead peers."""

from collections.abc import Iterator, Sequence
from contextlib import suppress

import trio
from trio_websocket import CloseReason, ConnectionClosed, WebSocketConnection

from trionode.plugins import (
    CURRENT,
    ConnectionLost,
    FrameDecoder,
    MessageTooLargeError,
    ProtocolVersion,
    RemoteError,
    WireError,
    join_frames,
    sanitize,
)
from trionode_websocket.handshake import BURSTS
from trionode_websocket.stream import CountingStream

#: Seconds of silence before a ping, and again before a peer that did not answer counts as dead: 30 s in all. Proxies
#: close connections on which nothing moved for 60 s.
PING_AFTER = 15.0
#: Bytes of a message that holds a burst; a larger frame gets a message of its own. It is what one read may hold.
MAX_BURST = 65_536
#: Seconds that `aclose` takes to read to the peer's end and to close.
CLOSE_GRACE = 1.0

#: A message that holds an empty frame only: its sender's direction has ended.
_END = bytes(CURRENT.length_size)
#: WebSocket's close codes (RFC 6455 §7.4.1).
_NORMAL, _UNSUPPORTED, _POLICY, _TOO_BIG = 1000, 1003, 1008, 1009
#: Codes by which a peer says that it has simply ended; 1005 stands for none.
_ORDERLY = frozenset({_NORMAL, 1001, 1005})
#: The code for an end without a Close frame.
_ABNORMAL = 1006
#: Codes that mean a wrong message: 1002 breaks the protocol, 1003 is text, 1007 is text that is not UTF-8, 1009 is too
#: large.
_WRONG = frozenset({1002, _UNSUPPORTED, 1007, _TOO_BIG})


def max_message(max_frame: int) -> int:
    """Bytes in the largest message that a link reads."""
    return max(MAX_BURST, CURRENT.length_size + max_frame)


class WebSocketLink:
    """An open WebSocket.

    With the subprotocol for bursts, one message carries a whole burst, and an empty frame ends a direction. Without it
    a message is a frame, and only a Close frame ends the link, in both directions.
    """

    def __init__(
        self,
        stream: CountingStream,
        connection: WebSocketConnection,
        scope: trio.CancelScope,
        peer: str,
        max_frame: int,
    ) -> None:
        self.peer = peer
        self.protocol_version: ProtocolVersion = CURRENT
        self.max_frame = min(max_frame, CURRENT.max_sent)
        self._stream = stream
        self._connection = connection
        self._scope = scope
        self._decoder: FrameDecoder | None = None
        if connection.subprotocol == BURSTS:
            self._decoder = FrameDecoder(CURRENT, max_frame=max_frame)
            self._decoder.receive(CURRENT.preface)  # the subprotocol stands for it
        self._is_over = False
        self._failure: RemoteError | None = None
        self._close: tuple[int, str | None] = (_NORMAL, None)
        self._sent_eof = False
        # What the peer has read: a ping carries the number of bursts that were sent before it, and its pong means that
        # they were read.
        self._bursts = 0
        self._bursts_read = 0
        self._pinged: int | None = None
        self._is_closed = False

    async def receive(self) -> Sequence[bytes]:
        """Return the frames of one message; () at the peer's end."""
        while not self._is_over and self._failure is None:
            try:
                message = await self._connection.get_message()
            except ConnectionClosed as closed:
                self._closed(closed.reason)
                break
            self._stream.took_message()
            if frames := self._frames(message):
                return frames
        await trio.lowlevel.checkpoint()
        if self._failure is not None:
            raise self._failure
        return ()

    def _frames(self, message: str | bytes) -> Sequence[bytes]:
        if isinstance(message, str):
            self._reject("sent a text message, and frames are binary", _UNSUPPORTED)
        elif self._decoder is None:
            if 1 <= len(message) <= self.max_frame:
                return (message,)
            code = _TOO_BIG if message else _POLICY
            self._reject(f"sent a frame of {len(message)} bytes, where 1 to {self.max_frame} are allowed", code)
        elif message == _END:
            self._is_over = True
        else:
            try:
                frames = self._decoder.receive(message)
            except WireError as error:
                self._reject(f"sent {error}", _POLICY)
            else:
                if frames and self._decoder.is_between_frames:
                    return frames
                part = "no" if self._decoder.is_between_frames else "part of a"
                self._reject(f"sent a message with {part} frame", _POLICY)
        return ()

    def _reject(self, what: str, code: int) -> None:
        self._failure = WireError(f"{self.peer} {what}")
        self._close = code, what

    def _closed(self, reason: CloseReason | None) -> None:
        """Note why trio-websocket has ended."""
        if self._stream.failure is not None:
            self._failure = self._stream.failure
        elif reason is None:  # trio-websocket's reader task failed
            self._failure = WireError(f"{self.peer} broke the WebSocket protocol")
        elif reason.code == _ABNORMAL:
            self._failure = ConnectionLost(f"{self.peer} ended the connection without saying so first")
        elif reason.code in _ORDERLY and self._decoder is None:
            self._is_over = True
        else:
            text = f"the WebSocket with {self.peer} was closed with code {reason.code}"
            text += f": {sanitize(reason.reason)}" if reason.reason else ""
            self._failure = WireError(text) if reason.code in _WRONG else ConnectionLost(text)

    def fail(self, failure: RemoteError) -> None:
        """End the link for a reason that trio-websocket does not know."""
        self._stream.failure = self._stream.failure or failure

    async def keep_alive(self) -> None:
        """Ping a silent peer, and return once it counts as dead or the WebSocket has ended.

        A peer answers a ping when it reads it. While its own queues hold it up it does not read, and TCP's timers
        decide. A peer that has nothing left to read and does not answer is dead. One ping is under way at a time.
        """
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            while True:
                silent_since = self._stream.silent_since
                due = max(began, silent_since) + PING_AFTER
                if trio.current_time() < due:
                    await trio.sleep_until(due)
                    continue
                if self._connection.closed:
                    return
                if self._pinged is None:
                    if not self._stream.below.is_clogged:
                        self._pinged = self._bursts
                        nursery.start_soon(self._ping, self._bursts)
                elif silent_since <= began and self._pinged == self._bursts == self._bursts_read:
                    self.fail(ConnectionLost(f"{self.peer} was silent for {2 * PING_AFTER:g} s and answers no ping"))
                    self._scope.cancel()
                began = trio.current_time()

    async def _ping(self, bursts: int) -> None:
        payload = bursts.to_bytes(8, "big")
        with suppress(ConnectionClosed):
            await self._connection.ping(payload)
            self._stream.took_pong(len(payload))
            self._bursts_read, self._pinged = bursts, None

    async def send(self, frames: Sequence[bytes]) -> None:
        """Send a burst: one message of up to MAX_BURST bytes, or more of them."""
        largest = max(map(len, frames), default=0)
        if largest > self.max_frame:
            raise MessageTooLargeError(
                f"the link to {self.peer} carries frames of at most {self.max_frame} bytes, this one has {largest}"
            )
        if self._sent_eof or not frames:
            await trio.lowlevel.checkpoint()
        if self._sent_eof:
            raise ConnectionLost(f"the link to {self.peer} was ended by this side")
        if frames:
            self._bursts += 1
            for message in self._messages(frames):
                await self._write(message)
                await self._flush()

    def _messages(self, frames: Sequence[bytes]) -> Iterator[bytes]:
        if self._decoder is None:
            yield from frames
            return
        start = size = 0
        for index, frame in enumerate(frames):
            length = CURRENT.length_size + len(frame)
            if size and size + length > MAX_BURST:
                yield join_frames(CURRENT, frames[start:index])
                start, size = index, 0
            size += length
        yield join_frames(CURRENT, frames[start:])

    async def _write(self, message: bytes) -> None:
        """Hand a message over; that does not wait for the peer."""
        try:
            await self._connection.send_message(message)
        except ConnectionClosed as closed:
            raise ConnectionLost(f"the WebSocket with {self.peer} is closed") from closed
        if self._stream.failure is not None:
            raise ConnectionLost(str(self._stream.failure))

    async def _flush(self) -> None:
        if self._stream.below.is_clogged:
            await self._stream.below.flush()

    async def send_eof(self) -> None:
        """Send an empty frame, if the subprotocol has one; `receive` goes on to the peer's."""
        with suppress(ConnectionLost):  # the peer is gone, or this side has closed
            await self._write_end()
            await self._flush()

    async def _write_end(self) -> None:
        if self._decoder is None or self._sent_eof:
            await trio.lowlevel.checkpoint()
            return
        self._sent_eof = True
        await self._write(_END)

    async def aclose(self) -> None:
        """End this direction, read to the peer's end, do the closing handshake, and close, all within CLOSE_GRACE."""
        if self._is_closed:
            await trio.lowlevel.checkpoint()
            return
        self._is_closed = True
        try:
            if self._failure is None:
                with trio.CancelScope(shield=True), suppress(ConnectionLost):  # it does not wait for the peer
                    await self._write_end()
            with trio.move_on_after(CLOSE_GRACE):
                with suppress(RemoteError):
                    await self._flush()
                    while self._decoder is not None and await self.receive():
                        pass
                await self._connection.aclose(*self._close)
                await self._stream.finish()
        finally:
            self._stream.below.close()
            self._scope.cancel()
