"""The stream under trio-websocket: it bounds incomplete messages, splits input, and never blocks a write."""

from collections.abc import Awaitable, Callable
from typing import Never, TypeVar

import trio

from trionode.plugins import ByteStream, ConnectionLost, RemoteError, drain

#: Bytes handed to trio-websocket at a time. It parses a piece without a checkpoint: the smallest frames in 4 KiB take
#: some milliseconds.
PIECE = 4_096
#: Bytes that a message may take beside its content: the headers of 16 MiB in fragments of 1 KiB. Empty fragments have
#: headers only.
OVERHEAD = 262_144
#: Bytes of an incomplete message that may stay for any time: as much as one read holds. Unsolicited pongs count as such
#: bytes.
FREE = 65_536
#: Seconds that a message may take from there to its end. The largest message, 16 MiB, needs 140 KB/s to arrive in that
#: time.
MESSAGE_TIMEOUT = 120.0
#: Bytes of pongs that may be due to a peer that does not read: 290 pongs to our own pings, of which an honest peer
#: sends one in 15 s.
MAX_ANSWERS = 4_096

T = TypeVar("T")


class NotOpenedError(Exception):
    """The stream ended before the WebSocket was open."""


class CountingStream(trio.abc.Stream):
    """A ByteStream as trio-websocket takes it. trio-websocket's reader task is the only one that receives.

    It counts the bytes that arrived since the last whole message. It can't see frames, but it sees trio-websocket
    answer a ping in the reader task, and the link reports pongs to it, so the count is free of control frames.
    """

    def __init__(self, below: ByteStream, *, max_message: int, is_client: bool) -> None:
        self.below = below
        #: Why the stream ended, if not by the peer's end.
        self.failure: RemoteError | None = None
        #: Set once nothing more is read.
        self.ended = trio.Event()
        #: The first bytes from the peer, until the WebSocket is open.
        self.opening = b""
        self._is_enough: Callable[[bytes], bool] = lambda _: False
        self._is_open = False
        self._is_finished = False
        self._opening_scope = trio.CancelScope()
        self._max_message = max_message
        # A client masks its frames: they are 4 bytes longer than a server's (RFC 6455 §5.2).
        self._own_mask, self._peer_mask = (4, 0) if is_client else (0, 4)
        self._rest = memoryview(b"")
        self._reader: trio.lowlevel.Task | None = None
        self._waits_since: float | None = None
        self._count = 0
        self._deadline = float("inf")
        self._answers = 0

    async def opened(self, opening: Awaitable[T], is_enough: Callable[[bytes], bool]) -> T:
        """Wait for a handshake of trio-websocket, which by itself waits for ever if the peer sends something else.

        `is_enough` is asked about the peer's first bytes and says that they will not become a WebSocket. NotOpenedError
        if it does, or if the stream ends.
        """
        self._is_enough = is_enough
        with self._opening_scope:
            return await opening
        raise NotOpenedError

    def start(self) -> None:
        """Count from here on: the WebSocket is open, or is about to be accepted."""
        self._is_open, self.opening, self._count = True, b"", 0

    def feed(self, data: bytes) -> None:
        """Hand these bytes over before all others."""
        self._rest = memoryview(data)

    def took_message(self) -> None:
        """Count anew, because a whole message was taken.

        What the reader task has read behind it belongs to one piece.
        """
        self._count, self._deadline = 0, float("inf")

    def took_pong(self, payload: int) -> None:
        """Subtract a pong with so many bytes of payload."""
        self._uncount(2 + self._peer_mask + payload)

    def _uncount(self, size: int) -> None:
        self._count = max(0, self._count - size)
        if self._count <= FREE:
            self._deadline = float("inf")

    @property
    def silent_since(self) -> float:
        """When the reader task began to wait for bytes; now, if it does not wait for any."""
        return trio.current_time() if self._waits_since is None else self._waits_since

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return the next piece, or b"" at the end."""
        del max_bytes
        self._reader = trio.lowlevel.current_task()
        if self._rest:
            await trio.lowlevel.checkpoint()
        elif not self.ended.is_set():
            self._rest = memoryview(await self._read())
        piece, self._rest = bytes(self._rest[:PIECE]), self._rest[PIECE:]
        if not self._is_open:
            self.opening += piece
        if not piece or (not self._is_open and self._is_enough(self.opening)):
            self._end()
            return b""
        self._count += len(piece)
        if self._count > self._max_message + OVERHEAD:
            self._fail(f"sent {self._count} bytes without a whole message, which has at most {self._max_message}")
        if self._count > FREE:
            self._deadline = min(self._deadline, trio.current_time() + MESSAGE_TIMEOUT)
        return piece

    async def _read(self) -> bytes:
        data = None
        self._waits_since = trio.current_time()
        try:
            with trio.move_on_at(self._deadline):
                data = await self.below.receive()
        except ConnectionLost as error:
            self.failure = self.failure or error
            self._end()
            raise trio.BrokenResourceError from error
        finally:
            self._waits_since = None
        if data is None:
            self._fail(f"did not complete a message within {MESSAGE_TIMEOUT:g} s")
        return data

    def _fail(self, what: str) -> Never:
        self.failure = self.failure or ConnectionLost(f"{self.below.peer} {what}")
        self._end()
        raise trio.BrokenResourceError

    def _end(self) -> None:
        self.ended.set()
        self._opening_scope.cancel()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Write without waiting.

        trio-websocket holds a lock meanwhile; a wait would keep the reader task from answering a ping.

        A failed write raises nothing: what has arrived can still be read. The link looks at `failure`.
        """
        if trio.lowlevel.current_task() is self._reader:
            if not self._is_open:
                return  # trio-websocket's refusal; ours says why
            self._uncount(len(data) - self._own_mask + self._peer_mask)  # it answers a ping of this size
            self._answers = self._answers + len(data) if self.below.is_clogged else 0
            if self._answers > MAX_ANSWERS:
                self._fail("sends pings and does not read the answers")
        try:
            self.below.write(bytes(data))
        except ConnectionLost as error:
            self.failure = self.failure or error

    async def wait_send_all_might_not_block(self) -> None:
        """Wait for nothing: `send_all` never waits."""
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """End this direction. The reader task then reads to the peer's end, and the link closes the stream below."""
        if not self._is_open:
            self._end()
        elif trio.lowlevel.current_task() is self._reader:
            await drain(self.below)
            self._end()
        elif not self._is_finished:
            self._is_finished = True
            await self.below.send_eof()

    async def finish(self) -> None:
        """End this direction and wait for the peer's end."""
        await self.aclose()
        await self.ended.wait()
