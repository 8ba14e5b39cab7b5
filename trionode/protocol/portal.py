"""TCP portals: the messages between inlet and outlet, and the state machine of one end of a connection (spec §13.3)."""

import enum
from collections import deque
from collections.abc import Mapping
from typing import Final, Self

import attrs

from trionode.errors import WireError
from trionode.protocol.wire import bare
from trionode.protocol.wire.bare import Reader

#: Bytes of data in one Payload: the classic limit, which fits into every stream record and every classic frame
#: (spec §13.3, §11.6).
MAX_DATA = 48 * 1024
#: Bytes that a peer may send ahead of our socket, between our own nodes. It bounds the memory of one connection, and
#: its speed to WINDOW bytes per round trip: 10 MB/s if that takes 100 ms, as over the streams of a busy hub. A quarter
#: of it made those three times slower.
WINDOW = 1024 * 1024
#: Credit is returned when 1/CREDIT_PARTS of the window was taken. Fewer parts mean fewer messages; with one, the sender
#: would stand still.
CREDIT_PARTS = 4
#: Bytes that may wait for our socket if the peer does not support credit, so can't be made to wait. Beyond that the
#: connection ends.
MAX_UNPACED = 1024 * 1024
#: Whether an inlet offers credit, by bytes behind its Ping. Rust peers of both protocol versions ignore those bytes.
OFFERS_CREDIT: Final = True
#: Counters of Payloads wrap around after this many (spec §13.3: u16).
_COUNTERS = 1 << 16


@attrs.frozen
class Ping:
    """An inlet has a client. With `window` it supports credit, and may be sent that many bytes.

    None: the peer does not speak credit.
    """

    window: int | None = None


@attrs.frozen
class Pong:
    """The outlet has connected its target. `window` as in Ping, and only in answer to a Ping that had one."""

    window: int | None = None


@attrs.frozen
class Disconnect:
    """The connection has ended. Between peers that speak credit it means that the connection broke."""


@attrs.frozen
class Payload:
    """Bytes of the connection.

    `counter` numbers Payloads, between our own nodes only, so that loss and reordering are detected.
    """

    data: bytes = attrs.field(repr=False)
    counter: int | None = None


@attrs.frozen
class Credit:
    """The sender of this may be sent `total` bytes, counted from the beginning. Ours, not Ockam's."""

    total: int


@attrs.frozen
class EndOfInput:
    """This direction has ended after `total` bytes; the other goes on (half-close). Ours, not Ockam's."""

    total: int


PortalMessage = Ping | Pong | Disconnect | Payload | Credit | EndOfInput


def encode(message: PortalMessage) -> bytes:
    """Encode a portal message (spec §13.3)."""
    match message:
        case Payload(data, counter):
            tail = b"" if counter is None else b"\x01" + counter.to_bytes(2, "little")
            return b"".join((b"\x03", bare.uint(len(data)), data, tail))
        case Ping(window) | Pong(window):
            start = b"\x00" if isinstance(message, Ping) else b"\x01"
            return start + (b"" if window is None else bare.uint(window))
        case Disconnect():
            return b"\x02"
        case Credit(total):
            return b"\x04" + bare.uint(total)
        case EndOfInput(total):
            return b"\x05" + bare.uint(total)


def decode(payload: bytes) -> PortalMessage:
    """Decode a portal message; WireError if it is not one. Like all peers, ignore bytes behind it."""
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
            raise WireError(f"a portal message of unknown type {other:#04x}")


def _window(reader: Reader) -> int | None:
    # Any other bytes are an extension of another implementation.
    try:
        return reader.uint() if reader.left else None
    except WireError:
        return None


class State(enum.Enum):
    """The states of one end of a connection."""

    CONNECTING = "connecting the target"  # outlets only
    WAITING = "waiting for the outlet"  # inlets only
    ABANDONED = "aborted before the outlet answered"  # inlets only
    OPEN = "open"
    INPUT_ENDED = "our input has ended, the peer's goes on"
    PEER_INPUT_ENDED = "the peer's input has ended, ours goes on"
    CLOSED = "closed"


class Event(enum.Enum):
    """The events at one end: messages of the peer, and events of its own socket or of the route to the peer."""

    PONG = "the outlet has connected its target"
    DATA = "data of the peer"
    CREDIT = "credit of the peer"
    PEER_INPUT_ENDS = "the peer's input has ended"
    PEER_DISCONNECTS = "the peer has disconnected"
    CONNECTED = "our target is connected"
    INPUT_ENDS = "our input has ended"
    ABORT = "our socket broke, or this program aborts"
    ROUTE_LOST = "the route to the peer is gone"


class Action(enum.Enum):
    """What an end does on the way to the next state."""

    TAKE_WINDOW = "take the peer's window"
    SEND_PONG = "send Pong"
    DECLINE = "send Disconnect, after a Pong if the peer understands it only then"
    STORE = "store the data for the socket; abort if they are too many or out of order"
    TAKE_CREDIT = "take the credit"
    CHECK_TOTAL = "check that all data have arrived"
    SEND_END = "send EndOfInput"
    SEND_DISCONNECT = "send Disconnect"
    STOP = "send nothing more; it is broken if the peer supports credit"
    BREAK = "send nothing more; it is broken"
    NOTHING = "nothing"


def _close(event: Event, action: Action, *states: State) -> dict[tuple[State, Event], tuple[Action, State]]:
    return {(state, event): (action, State.CLOSED) for state in states}


_CONNECTED = (State.OPEN, State.INPUT_ENDED, State.PEER_INPUT_ENDED)

#: An event without a row has no effect, and the portal goes on (spec §13.3).
_TABLE: Mapping[tuple[State, Event], tuple[Action, State]] = {
    (State.CONNECTING, Event.CONNECTED): (Action.SEND_PONG, State.OPEN),
    (State.CONNECTING, Event.ABORT): (Action.DECLINE, State.CLOSED),
    (State.WAITING, Event.PONG): (Action.TAKE_WINDOW, State.OPEN),
    (State.WAITING, Event.ABORT): (Action.NOTHING, State.ABANDONED),
    (State.ABANDONED, Event.PONG): (Action.SEND_DISCONNECT, State.CLOSED),
    (State.OPEN, Event.DATA): (Action.STORE, State.OPEN),
    (State.OPEN, Event.CREDIT): (Action.TAKE_CREDIT, State.OPEN),
    (State.OPEN, Event.PEER_INPUT_ENDS): (Action.CHECK_TOTAL, State.PEER_INPUT_ENDED),
    (State.OPEN, Event.INPUT_ENDS): (Action.SEND_END, State.INPUT_ENDED),
    (State.INPUT_ENDED, Event.DATA): (Action.STORE, State.INPUT_ENDED),
    (State.INPUT_ENDED, Event.PEER_INPUT_ENDS): (Action.CHECK_TOTAL, State.CLOSED),
    (State.PEER_INPUT_ENDED, Event.CREDIT): (Action.TAKE_CREDIT, State.PEER_INPUT_ENDED),
    (State.PEER_INPUT_ENDED, Event.INPUT_ENDS): (Action.SEND_END, State.CLOSED),
    **_close(Event.ABORT, Action.SEND_DISCONNECT, *_CONNECTED),
    **_close(Event.PEER_DISCONNECTS, Action.STOP, *_CONNECTED),
    **_close(Event.PEER_DISCONNECTS, Action.BREAK, State.CONNECTING, State.WAITING),
    **_close(Event.PEER_DISCONNECTS, Action.NOTHING, State.ABANDONED),
    **_close(Event.ROUTE_LOST, Action.BREAK, State.CONNECTING, State.WAITING, *_CONNECTED),
    **_close(Event.ROUTE_LOST, Action.NOTHING, State.ABANDONED),
}

_EVENTS: Mapping[type[PortalMessage], Event] = {
    Pong: Event.PONG,
    Disconnect: Event.PEER_DISCONNECTS,
    Payload: Event.DATA,
    Credit: Event.CREDIT,
    EndOfInput: Event.PEER_INPUT_ENDS,
}


@attrs.define(eq=False)
class PortalEnd:
    """One end of one connection through a portal; made by `inlet` or `outlet`.

    Send the messages in `outgoing` to the peer, in order. For the socket: `take` the data that have arrived and report
    with `written` how many the socket took; read at most `sendable` bytes and `send` them; call `input_ended` at the
    end of its input, and `abort` if it breaks. For the route: `receive` messages, and call `route_lost` when it is
    gone.
    """

    state: State
    #: Bytes that a peer with credit may send ahead.
    _window: int
    #: Bytes that the peer allows us to send, counted from the beginning; None if it does not speak credit.
    _allowed: int | None = None
    #: Bytes of data in one Payload: less than MAX_DATA if the route needs that.
    max_data: int = MAX_DATA
    #: The messages to send to the peer.
    outgoing: deque[PortalMessage] = attrs.Factory(deque)
    #: Whether the connection broke: it ended without the end of both inputs, and without a Disconnect of a peer that
    #: does not speak credit.
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
        """Return the end of an inlet, whose client has connected. Its first message is a Ping."""
        end = cls(State.WAITING, window)
        end._granted = window
        end.outgoing.append(Ping(window if OFFERS_CREDIT else None))
        return end

    @classmethod
    def outlet(cls, ping: Ping, window: int = WINDOW) -> Self:
        """Return the end of an outlet that has received a Ping, while it connects its target."""
        end = cls(State.CONNECTING, window, ping.window)
        end._granted = window
        return end

    @property
    def speaks_credit(self) -> bool:
        """Whether the peer supports credit.

        Then each direction ends on its own, and neither side is sent more than it can buffer.
        """
        return self._allowed is not None

    @property
    def has_opened(self) -> bool:
        """Whether the connection has been opened, or will not be."""
        return self.state not in (State.CONNECTING, State.WAITING)

    @property
    def can_receive(self) -> bool:
        """Whether more data may arrive."""
        return self.state not in (State.PEER_INPUT_ENDED, State.CLOSED)

    @property
    def can_send(self) -> bool:
        """Whether the input of our socket still goes to the peer."""
        return self.state in (State.OPEN, State.PEER_INPUT_ENDED)

    @property
    def sendable(self) -> int:
        """How many bytes may be sent now. At 0, wait for credit; none comes after the end."""
        if not self.can_send:
            return 0
        return self.max_data if self._allowed is None else max(0, min(self.max_data, self._allowed - self._sent))

    @property
    def waiting(self) -> int:
        """Bytes that have arrived and that the socket has not taken."""
        return self._received - self._written

    # Called for the socket

    def connected(self) -> None:
        """Note that the target is connected, and report it to the peer."""
        self._on(Event.CONNECTED)

    def take(self) -> bytearray:
        """Return the data that have arrived since the last call. They count as waiting until they are `written`."""
        taken, self._arrived = self._arrived, bytearray()
        return taken

    def written(self, count: int) -> None:
        """Note that the socket has taken `count` bytes, and return credit to the peer in parts of the window."""
        self._written += count
        due = self._written + self._window
        if self._allowed is not None and self.can_receive and due - self._granted >= self._window // CREDIT_PARTS:
            self._granted = due
            self.outgoing.append(Credit(due))

    def send(self, data: bytes) -> None:
        """Send data of the socket, at most `sendable` bytes. Once our direction has ended this has no effect."""
        if not self.can_send:
            return
        self._sent += len(data)
        counter = None
        if self._allowed is not None:
            counter = self._counted_out % _COUNTERS
            self._counted_out += 1
        self.outgoing.append(Payload(data, counter))

    def input_ended(self) -> None:
        """Note that the input of the socket has ended.

        That closes our direction; without credit, it closes the connection.
        """
        self._on(Event.ABORT if self._allowed is None else Event.INPUT_ENDS)

    def abort(self) -> None:
        """Abort the connection: the socket broke, or the target could not be connected."""
        if self.state is not State.CLOSED:
            self.is_broken = True
            self._on(Event.ABORT)

    # Called for the route

    def receive(self, message: PortalMessage) -> None:
        """Take a message of the peer. A message out of turn has no effect."""
        event = _EVENTS.get(type(message))
        if event is None or (isinstance(message, Credit | EndOfInput) and self._allowed is None):
            return
        self._on(event, message)

    def route_lost(self) -> None:
        """Note that the route to the peer is gone: nothing more is sent, and nothing more arrives."""
        self._on(Event.ROUTE_LOST)

    def _on(self, event: Event, message: PortalMessage | None = None) -> None:
        step = _TABLE.get((self.state, event))
        if step is None:
            return
        action, self.state = step
        match action, message:
            case Action.TAKE_WINDOW, Pong(window):
                self._allowed = window if OFFERS_CREDIT else None
            case Action.SEND_PONG, _:
                self.outgoing.append(self._pong())
            case Action.DECLINE, _:
                # A Rust inlet ignores everything before a Pong, and its client would hang without one.
                self.outgoing.extend((Disconnect(),) if self._allowed is not None else (self._pong(), Disconnect()))
            case Action.STORE, Payload(data, counter):
                self._store(data, counter)
            case Action.TAKE_CREDIT, Credit(total):
                self._allowed = max(self._allowed or 0, total)
            case Action.CHECK_TOTAL, EndOfInput(total):
                if total != self._received:
                    self._fail()
            case Action.SEND_END, _:
                self.outgoing.append(EndOfInput(self._sent))
            case Action.SEND_DISCONNECT, _:
                self.outgoing.append(Disconnect())
            case Action.STOP, _:
                self.outgoing.clear()
                self.is_broken |= self._allowed is not None
            case Action.BREAK, _:
                self.outgoing.clear()
                self.is_broken = True
            case _:
                pass

    def _pong(self) -> Pong:
        return Pong(None if self._allowed is None else self._window)

    def _store(self, data: bytes, counter: int | None) -> None:
        if counter is not None:
            expected = self._counted_in % _COUNTERS
            self._counted_in += 1
            if counter != expected:
                self._fail()
                return
        self._received += len(data)
        if (self._received > self._granted) if self._allowed is not None else (self.waiting > MAX_UNPACED):
            self._fail()
            return
        self._arrived += data

    def _fail(self) -> None:
        """End the connection because data are missing, or too many. The data before that are valid."""
        self.state = State.CLOSED
        self.is_broken = True
        self.outgoing.append(Disconnect())
