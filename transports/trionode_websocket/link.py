"""A link over an open WebSocket: one binary message a frame, the Close frame as the end of one direction, pings that tell whether the peer lives."""

import math
from collections.abc import Sequence
from contextlib import suppress

import trio
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, Pong, TextMessage
from wsproto.frame_protocol import CloseReason

from trionode.plugins import (
    CURRENT,
    ConnectionLost,
    MessageTooLargeError,
    ProtocolVersion,
    RemoteError,
    WireError,
    sanitize,
)
from trionode_websocket.stream import ByteStream

#: Seconds without a byte before a ping, and again before a peer that did not answer it counts as dead: that is noticed in 30 s. Proxies end
#: connections on which nothing moved for 60 s.
PING_AFTER = 15.0
#: Seconds that a frame may take from its beginning to its end while it is read: a part of one holds up to `max_frame` bytes of memory. The
#: largest frame of all, 16 MiB, then needs 140 KB/s.
FRAME_TIMEOUT = 120.0
#: Fragments in one message: enough for 16 MiB in the kilobytes that the most cautious libraries send. An empty one costs no memory, but time.
MAX_FRAGMENTS = 16_384
#: Messages, parts of them and control frames that are worked off before others have their turn: 2 ms. One read may bring ten thousand.
MAX_EVENTS = 256
#: Seconds that `aclose` reads on for the peer's own end.
CLOSE_GRACE = 1.0

#: Codes of a Close frame by which a peer says that it has simply ended (RFC 6455 §7.4.1); 1005 stands for none.
ORDERLY = frozenset({CloseReason.NORMAL_CLOSURE, CloseReason.GOING_AWAY, CloseReason.NO_STATUS_RCVD})


class WebSocketLink:
    """An open WebSocket. A burst leaves in one system call, and a read brings as many frames as there are.

    A Close frame ends the direction that it is sent in: its receiver may still send until it sends its own (RFC 6455 §5.5.1 lets an endpoint
    finish what it is sending), and its sender reads on until then.
    """

    def __init__(self, stream: ByteStream, incoming: Connection, *, max_frame: int) -> None:
        self.peer = stream.peer
        self.protocol_version: ProtocolVersion = CURRENT
        self.max_frame = min(max_frame, CURRENT.max_sent)
        self._stream = stream
        # One machine for each direction, because they end one after the other.
        self._incoming = incoming
        self._outgoing = Connection(ConnectionType.CLIENT if incoming.client else ConnectionType.SERVER)
        self._begun: bytearray | None = None
        self._fragments = 0
        self._is_over = False
        self._failure: RemoteError | None = None
        self._said_end = False
        self._pinged_by: bytes | None = None
        self._over_budget: bytes | None = None
        # What the peer must have taken off its connection to have answered: a ping carries the first number, its pong brings it back.
        self._bursts = 0
        self._bursts_read = 0
        self._doubted = False
        self._has_more = False
        self._early: Sequence[bytes] = self._take(b"")

    async def receive(self) -> Sequence[bytes]:
        """Frames that one read brought, at least one and up to MAX_EVENTS; () once the peer has said that it ends."""
        if self._early:
            await trio.lowlevel.checkpoint()
            early, self._early = self._early, ()
            return early
        give_up = math.inf
        while not self._is_over and self._failure is None:
            if self._has_more:
                await trio.lowlevel.checkpoint()
                if frames := self._take(b""):
                    return frames
                continue
            self._answer()
            now = trio.current_time()
            if self._begun is not None:
                give_up = min(give_up, now + FRAME_TIMEOUT)
            data = None
            with trio.move_on_at(min(give_up, now + PING_AFTER)):
                data = await self._stream.read()
            if data:
                self._doubted = False
                if frames := self._take(data):
                    return frames
            elif data is not None:
                self._failure = ConnectionLost(f"{self.peer} ended the connection without saying so first")
            elif trio.current_time() >= give_up:
                self._fail(
                    f"did not end a frame within {FRAME_TIMEOUT:g} s", CloseReason.POLICY_VIOLATION, ConnectionLost
                )
            else:
                self._ask()
        await trio.lowlevel.checkpoint()
        if self._failure is not None:
            raise self._failure
        return ()

    def _take(self, data: bytes) -> list[bytes]:
        """Work off up to MAX_EVENTS of what has been read, `data` behind what is left of it; the frames among them."""
        frames: list[bytes] = []
        self._incoming.receive_data(data)
        self._has_more = False
        for count, event in enumerate(self._incoming.events(), 1):
            if isinstance(event, BytesMessage):
                self._piece(event, frames)
            elif isinstance(event, Ping):
                self._pinged_by = bytes(event.payload)
            elif isinstance(event, Pong):
                self._answered(bytes(event.payload))
            elif isinstance(event, CloseConnection):
                self._end(event)
            elif isinstance(event, TextMessage):
                self._fail("sent a text message, where each is binary, and one frame", CloseReason.UNSUPPORTED_DATA)
            self._has_more = count == MAX_EVENTS
            if self._has_more or self._is_over or self._failure is not None:
                break
        return frames

    def _piece(self, event: BytesMessage, frames: list[bytes]) -> None:
        """Put a whole message, or what completes one, to the frames, and keep a part; a length is checked before anything is kept."""
        frame: bytes | bytearray = event.data
        if self._begun is not None:
            frame = self._begun
            frame += event.data
        if len(frame) > self.max_frame or (event.message_finished and not frame):
            size = f"{len(frame)} bytes" if event.message_finished else f"{len(frame)} bytes and more"
            self._fail(
                f"sent a frame of {size}, where 1 to {self.max_frame} are allowed",
                CloseReason.MESSAGE_TOO_BIG if frame else CloseReason.POLICY_VIOLATION,
            )
        elif event.message_finished:
            frames.append(bytes(frame))
            self._begun, self._fragments = None, 0
        else:
            self._begun = frame if isinstance(frame, bytearray) else bytearray(frame)
            self._fragments += event.frame_finished
            if self._fragments > MAX_FRAGMENTS:
                self._fail(f"sent one message in more than {MAX_FRAGMENTS} fragments", CloseReason.POLICY_VIOLATION)

    def _end(self, event: CloseConnection) -> None:
        if self._incoming.state is ConnectionState.OPEN:
            # No Close frame moved the machine: it speaks of what it could not parse.
            self._fail(f"broke the WebSocket protocol: {event.reason}", event.code)
        elif event.code not in ORDERLY:
            reason = f": {sanitize(event.reason)}" if event.reason else ""
            self._failure = ConnectionLost(f"{self.peer} closed the WebSocket with code {int(event.code)}{reason}")
        elif self._begun is not None:
            self._failure = ConnectionLost(f"{self.peer} ended the connection in the middle of a frame")
        else:
            self._is_over = True

    def _fail(self, what: str, code: int, kind: type[RemoteError] = WireError) -> None:
        """End because of what the peer did, and tell it: the same words, but not where this side sees it."""
        self._failure, self._begun = kind(f"{self.peer} {what}"), None
        with suppress(ConnectionLost):  # a peer that is gone needs no reason
            self._say_end(code, what)

    # Whether the peer lives. It answers a ping when it reads on, so a pong says that it is done with all that was sent before. Whoever has still
    # something to read may be held up by its own queues for as long as those like; whoever has not, and does not answer, is gone.

    def _ask(self) -> None:
        if self._doubted and self._bursts == self._bursts_read:
            msg = f"{self.peer} has been silent for {2 * PING_AFTER:g} s and answers no ping"
            self._failure = ConnectionLost(msg)
        elif not self._said_end and not self._stream.is_clogged:
            self._doubted = self._bursts == self._bursts_read
            self._control(Ping(self._bursts.to_bytes(8, "big")))

    def _answered(self, payload: bytes) -> None:
        bursts = int.from_bytes(payload, "big")
        if len(payload) == 8 and self._bursts_read <= bursts <= self._bursts:
            self._bursts_read = bursts

    def _answer(self) -> None:
        """Owe an answer to the latest ping (RFC 6455 §5.5.3), now that all that came before it has been handed on."""
        if self._pinged_by is not None:
            self._over_budget, self._pinged_by = self._pinged_by, None
        self._pay()

    def _pay(self) -> None:
        if self._over_budget is not None and not self._stream.is_clogged and not self._said_end:
            self._control(Pong(self._over_budget))
            self._over_budget = None

    def _control(self, event: Event) -> None:
        with suppress(ConnectionLost):  # what is still to be read is read first, and then the end
            self._stream.write(self._outgoing.send(event))

    async def send(self, frames: Sequence[bytes]) -> None:
        """Write a burst; ConnectionLost if the connection is gone. Cancelled, all of it has been sent or will be with the next, or nothing."""
        largest = max(map(len, frames), default=0)
        if largest > self.max_frame:
            raise MessageTooLargeError(
                f"the link to {self.peer} carries frames of at most {self.max_frame} bytes, this one has {largest}"
            )
        await self._stream.flush()
        if self._said_end:
            msg = f"the link to {self.peer} was ended by this side"
            raise ConnectionLost(msg)
        if frames:
            self._pay()  # a peer that keeps this side busy gets its answers, too
            self._bursts += 1
            say = self._outgoing.send
            self._stream.write(b"".join([say(BytesMessage(frame)) for frame in frames]))
            if self._stream.is_clogged:
                await self._stream.flush()

    def _say_end(self, code: int = CloseReason.NORMAL_CLOSURE, reason: str | None = None) -> None:
        if not self._said_end:
            self._said_end = True
            self._stream.write(self._outgoing.send(CloseConnection(code, reason)))

    async def send_eof(self) -> None:
        """Send the Close frame; `receive` goes on until the peer's own."""
        with suppress(ConnectionLost):  # the peer is gone, or this side has closed
            self._say_end()
            await self._stream.flush()
            return
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """Send the Close frame, read on until the peer's own or CLOSE_GRACE is over, close."""
        try:
            with trio.move_on_after(CLOSE_GRACE):
                await self.send_eof()
                try:
                    while await self.receive():
                        pass
                except RemoteError:
                    await self._stream.drain()
        finally:
            self._stream.close()
