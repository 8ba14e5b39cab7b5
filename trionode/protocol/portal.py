"""TCP portals: what an inlet and an outlet say to each other, and the machine of one end of one connection (spec §13.3)."""

import enum
from collections import deque
from collections.abc import Mapping
from typing import Final, Self

import attrs

from trionode.errors import WireError
from trionode.protocol.wire import bare
from trionode.protocol.wire.bare import Reader

#: Bytes of data in one Payload: the bound of classic, which fits into every stream record and every classic frame (spec §13.3, §11.6).
MAX_DATA = 48 * 1024
#: Bytes that a peer may send ahead of the socket that takes them: between our own nodes. It bounds one connection's memory, and its speed to
#: WINDOW a round trip: 10 MB/s where that takes 100 ms, as over the streams of a busy hub. A quarter of it made those three times slower.
WINDOW = 1024 * 1024
#: Credit is given back when so many parts of the window were taken: fewer messages for smaller parts, no standstill for the last.
CREDIT_PARTS = 4
#: Bytes that may wait for the socket from a peer that speaks no credit and so can't be asked to wait; beyond it the connection ends.
MAX_UNPACED = 1024 * 1024
#: Whether an inlet says that it speaks credit: by bytes behind its Ping, which Rust peers of both generations read over.
TELLS_CREDIT: Final = True
#: Counters of Payloads go round after so many (spec §13.3: u16).
_COUNTERS = 1 << 16


@attrs.frozen
class Ping:
    """An inlet has a client. `window`: it speaks credit, and this many bytes may be sent to it; None: it is a peer as the specification has it."""

    window: int | None = None


@attrs.frozen
class Pong:
    """The outlet has its target; `window` as in Ping, and only in answer to one that had it."""

    window: int | None = None


@attrs.frozen
class Disconnect:
    """The connection is over. Between peers that speak credit: it broke."""


@attrs.frozen
class Payload:
    """Bytes of the connection; `counter` counts Payloads, so that none is missing or out of turn: between our own nodes only."""

    data: bytes = attrs.field(repr=False)
    counter: int | None = None


@attrs.frozen
class Credit:
    """So many bytes in all, since the beginning, may have been sent to who says this. Ours, not Ockam's."""

    total: int


@attrs.frozen
class EndOfInput:
    """Nothing more comes in this direction, after so many bytes in all; the other direction goes on. Ours, not Ockam's."""

    total: int


PortalMessage = Ping | Pong | Disconnect | Payload | Credit | EndOfInput


def encode(message: PortalMessage) -> bytes:
    """Encode the payload of a portal's message (spec §13.3)."""
    match message:
        case Payload(data, counter):
            tail = b"" if counter is None else b"\x01" + counter.to_bytes(2, "little")
            return b"".join((b"\x03", bare.uint(len(data)), data, tail))
        case Ping(window):
            return b"\x00" + (b"" if window is None else bare.uint(window))
        case Pong(window):
            return b"\x01" + (b"" if window is None else bare.uint(window))
        case Disconnect():
            return b"\x02"
        case Credit(total):
            return b"\x04" + bare.uint(total)
        case EndOfInput(total):
            return b"\x05" + bare.uint(total)


def decode(payload: bytes) -> PortalMessage:
    """Read the payload of a portal's message; WireError if it is none. Bytes behind it are ignored, as all peers do."""
    reader = Reader(payload)
    match reader.u8():
        case 0:
            return Ping(_window(reader))
        case 1:
            return Pong(_window(reader))
        case 2:
            return Disconnect()
        case 3:
            data = reader.data()
            counted = reader.left >= 3 and reader.u8() == 1
            return Payload(data, int.from_bytes(reader.fixed(2), "little") if counted else None)
        case 4:
            return Credit(reader.uint())
        case 5:
            return EndOfInput(reader.uint())
        case other:
            raise WireError(f"a portal's message that begins with {other:#04x}")


def _window(reader: Reader) -> int | None:
    # Whatever else stands there is another's extension, and none of ours.
    try:
        return reader.uint() if reader.left else None
    except WireError:
        return None


class State(enum.Enum):
    """How far one end of a connection has come."""

    CONNECTING = "connecting the target"  # outlets only
    WAITING = "waiting for the outlet"  # inlets only
    ABANDONED = "given up before the outlet answered"  # inlets only
    OPEN = "open"
    SPOKEN = "our input has ended, the peer's goes on"
    HEARD = "the peer's input has ended, ours goes on"
    CLOSED = "closed"


class Event(enum.Enum):
    """What happens to an end: messages of the peer, and what its own socket or its way does."""

    PONG = "the outlet has its target"
    DATA = "data of the peer"
    CREDIT = "credit of the peer"
    PEER_ENDS = "the peer's input has ended"
    PEER_LEAVES = "the peer is gone"
    CONNECT = "our target is connected"
    END = "our input has ended"
    LEAVE = "our socket is gone, or we give up"
    LOSE = "the way is gone"


class Action(enum.Enum):
    """What is done on the way from one state to the next."""

    AGREE = "take the peer's window"
    ANSWER = "send Pong"
    DECLINE = "send Disconnect, behind a Pong if the peer understands it only then"
    KEEP = "keep the data for the socket, or give up if they are too many or not the next"
    GAIN = "take the credit"
    HEAR_OUT = "see whether all data came"
    SAY_END = "send EndOfInput"
    SAY_GONE = "send Disconnect"
    PART = "send nothing more; whether it was an orderly end depends on what the peer speaks"
    BREAK = "send nothing more, the connection broke"
    NOTHING = "nothing"


#: What is not in it has no effect: the portal goes on (spec §13.3).
_TABLE: Mapping[tuple[State, Event], tuple[Action, State]] = {
    (State.CONNECTING, Event.CONNECT): (Action.ANSWER, State.OPEN),
    (State.CONNECTING, Event.LEAVE): (Action.DECLINE, State.CLOSED),
    (State.CONNECTING, Event.PEER_LEAVES): (Action.BREAK, State.CLOSED),
    (State.CONNECTING, Event.LOSE): (Action.BREAK, State.CLOSED),
    (State.WAITING, Event.PONG): (Action.AGREE, State.OPEN),
    (State.WAITING, Event.LEAVE): (Action.NOTHING, State.ABANDONED),
    (State.WAITING, Event.PEER_LEAVES): (Action.BREAK, State.CLOSED),
    (State.WAITING, Event.LOSE): (Action.BREAK, State.CLOSED),
    (State.ABANDONED, Event.PONG): (Action.SAY_GONE, State.CLOSED),
    (State.ABANDONED, Event.PEER_LEAVES): (Action.NOTHING, State.CLOSED),
    (State.ABANDONED, Event.LOSE): (Action.NOTHING, State.CLOSED),
    (State.OPEN, Event.DATA): (Action.KEEP, State.OPEN),
    (State.OPEN, Event.CREDIT): (Action.GAIN, State.OPEN),
    (State.OPEN, Event.PEER_ENDS): (Action.HEAR_OUT, State.HEARD),
    (State.OPEN, Event.PEER_LEAVES): (Action.PART, State.CLOSED),
    (State.OPEN, Event.END): (Action.SAY_END, State.SPOKEN),
    (State.OPEN, Event.LEAVE): (Action.SAY_GONE, State.CLOSED),
    (State.OPEN, Event.LOSE): (Action.BREAK, State.CLOSED),
    (State.SPOKEN, Event.DATA): (Action.KEEP, State.SPOKEN),
    (State.SPOKEN, Event.PEER_ENDS): (Action.HEAR_OUT, State.CLOSED),
    (State.SPOKEN, Event.PEER_LEAVES): (Action.PART, State.CLOSED),
    (State.SPOKEN, Event.LEAVE): (Action.SAY_GONE, State.CLOSED),
    (State.SPOKEN, Event.LOSE): (Action.BREAK, State.CLOSED),
    (State.HEARD, Event.CREDIT): (Action.GAIN, State.HEARD),
    (State.HEARD, Event.PEER_LEAVES): (Action.PART, State.CLOSED),
    (State.HEARD, Event.END): (Action.SAY_END, State.CLOSED),
    (State.HEARD, Event.LEAVE): (Action.SAY_GONE, State.CLOSED),
    (State.HEARD, Event.LOSE): (Action.BREAK, State.CLOSED),
}

_EVENTS: Mapping[type[PortalMessage], Event] = {
    Pong: Event.PONG,
    Disconnect: Event.PEER_LEAVES,
    Payload: Event.DATA,
    Credit: Event.CREDIT,
    EndOfInput: Event.PEER_ENDS,
}


@attrs.define(eq=False)
class PortalEnd:
    """One end of one connection through a portal; made by `inlet` or `outlet`.

    What is to be sent stands in `outgoing`, in order. The socket's side: `take` what has arrived, tell what was `written`, read at most `room`
    bytes and `send` them, tell its `end`, or `leave` when it broke. The way's side: `receive` messages, `lose` when it is gone.
    """

    state: State
    #: Bytes that a peer which speaks credit may send ahead.
    _window: int
    #: What the peer lets us send in all; None while it speaks no credit.
    _allowed: int | None = None
    #: Bytes of data in one Payload, less than MAX_DATA where the way demands.
    max_data: int = MAX_DATA
    #: What is to be sent to the peer.
    outgoing: deque[PortalMessage] = attrs.Factory(deque)
    #: Whether the connection ended otherwise than by both ends of input, or a Disconnect of a peer that has nothing else to say.
    is_broken: bool = False
    _arrived: bytearray = attrs.field(factory=bytearray, repr=False)
    _sent: int = 0
    _received: int = 0
    _written: int = 0
    _granted: int = 0
    _counted_out: int = 0
    _counted_in: int = 0

    @classmethod
    def inlet(cls, window: int = WINDOW) -> Self:
        """Return the end that a client has connected to; its Ping is to be sent."""
        end = cls(State.WAITING, window)
        end._granted = window
        end.outgoing.append(Ping(window if TELLS_CREDIT else None))
        return end

    @classmethod
    def outlet(cls, ping: Ping, window: int = WINDOW) -> Self:
        """Return the end that a Ping asked for, while its target is being connected."""
        end = cls(State.CONNECTING, window, ping.window)
        end._granted = window
        return end

    @property
    def speaks_credit(self) -> bool:
        """Whether the peer is known to: then both directions end by themselves, and neither is sent more than it has room for."""
        return self._allowed is not None

    @property
    def has_opened(self) -> bool:
        """Whether the time before data is over."""
        return self.state not in (State.CONNECTING, State.WAITING)

    @property
    def is_heard_out(self) -> bool:
        """Whether nothing more arrives."""
        return self.state in (State.HEARD, State.CLOSED)

    @property
    def speaks(self) -> bool:
        """Whether our socket's input still goes to the peer."""
        return self.state in (State.OPEN, State.HEARD)

    @property
    def room(self) -> int:
        """How many bytes may be sent now; 0: wait for credit, or for ever."""
        if not self.speaks:
            return 0
        return self.max_data if self._allowed is None else max(0, min(self.max_data, self._allowed - self._sent))

    @property
    def waiting(self) -> int:
        """Bytes that arrived and that the socket has not taken."""
        return self._received - self._written

    # The socket's side

    def connected(self) -> None:
        """The target is there: the peer is told."""
        self._on(Event.CONNECT)

    def take(self) -> bytearray:
        """Return all that has arrived since the last time, in order; it counts as waiting until it is `written`."""
        taken, self._arrived = self._arrived, bytearray()
        return taken

    def written(self, count: int) -> None:
        """The socket has taken so many bytes: the peer gets its credit back in parts of the window."""
        self._written += count
        due = self._written + self._window
        if self._allowed is not None and not self.is_heard_out and due - self._granted >= self._window // CREDIT_PARTS:
            self._granted = due
            self.outgoing.append(Credit(due))

    def send(self, data: bytes) -> None:
        """Send what was read from the socket, at most `room` bytes; without effect once our direction has ended."""
        if not self.speaks:
            return
        self._sent += len(data)
        counter = None
        if self._allowed is not None:
            counter = self._counted_out % _COUNTERS
            self._counted_out += 1
        self.outgoing.append(Payload(data, counter))

    def end(self) -> None:
        """The socket's input has ended: half of the connection, or, with a peer that knows no halves, all of it."""
        self._on(Event.LEAVE if self._allowed is None else Event.END)

    def leave(self) -> None:
        """The socket broke, could not be had, or is given up."""
        if self.state is not State.CLOSED:
            self.is_broken = True
            self._on(Event.LEAVE)

    # The way's side

    def receive(self, message: PortalMessage) -> None:
        """Take a message of the peer; one that has no place now has no effect."""
        event = _EVENTS.get(type(message))
        if event is None or (isinstance(message, Credit | EndOfInput) and self._allowed is None):
            return
        self._on(event, message)

    def lose(self) -> None:
        """The way to the peer is gone: nothing more can be sent, and what arrived is all."""
        self._on(Event.LOSE)

    def _on(self, event: Event, message: PortalMessage | None = None) -> None:
        step = _TABLE.get((self.state, event))
        if step is None:
            return
        action, self.state = step
        match action, message:
            case Action.AGREE, Pong(window):
                self._allowed = window if TELLS_CREDIT else None
            case Action.ANSWER, _:
                self.outgoing.append(self._pong())
            case Action.DECLINE, _:
                # A Rust inlet hears nothing but a Pong, and leaves its client hanging without one.
                self.outgoing.extend((Disconnect(),) if self._allowed is not None else (self._pong(), Disconnect()))
            case Action.KEEP, Payload(data, counter):
                self._keep(data, counter)
            case Action.GAIN, Credit(total):
                self._allowed = max(self._allowed or 0, total)
            case Action.HEAR_OUT, EndOfInput(total):
                if total != self._received:
                    self._break_off()
            case Action.SAY_END, _:
                self.outgoing.append(EndOfInput(self._sent))
            case Action.SAY_GONE, _:
                self.outgoing.append(Disconnect())
            case Action.PART, _:
                self.outgoing.clear()
                self.is_broken |= self._allowed is not None
            case Action.BREAK, _:
                self.outgoing.clear()
                self.is_broken = True
            case _:
                pass

    def _pong(self) -> Pong:
        return Pong(None if self._allowed is None else self._window)

    def _keep(self, data: bytes, counter: int | None) -> None:
        if counter is not None:
            expected = self._counted_in % _COUNTERS
            self._counted_in += 1
            if counter != expected:
                self._break_off()
                return
        self._received += len(data)
        if (self._received > self._granted) if self._allowed is not None else (self.waiting > MAX_UNPACED):
            self._break_off()
            return
        self._arrived += data

    def _break_off(self) -> None:
        """Data are missing, or too many: what came before is good, what comes behind is not."""
        self.state = State.CLOSED
        self.is_broken = True
        self.outgoing.append(Disconnect())
