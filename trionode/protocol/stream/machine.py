"""The state machine of a client of a stream: what producer and consumer share (spec §11.4, §11.5)."""

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from trionode.errors import ConfigError
from trionode.protocol.stream.messages import ANSWER_SECONDS, MAX_ANSWER_SECONDS, CreateRequest, CreateResponse, Request
from trionode.protocol.stream.names import valid_stream_name
from trionode.protocol.wire.address import Encoded


class State(enum.Enum):
    """The states of both machines."""

    IDLE = enum.auto()  #: not begun
    CREATING = enum.auto()  #: create is unanswered
    # Producer
    PUSHING = enum.auto()  #: every push has been sent
    RESTING = enum.auto()  #: the hub refused a push; nothing is sent, so no later record overtakes it
    # Consumer
    GETTING = enum.auto()  #: the request for the saved position is unanswered
    PULLING = enum.auto()  #: one pull is unanswered
    PAUSING = enum.auto()  #: an empty answer came too soon, the next pull waits
    HOLDING = enum.auto()  #: between two pulls; the next one is sent when its answer fits


class Event(enum.Enum):
    """The events of both machines."""

    BEGUN = enum.auto()
    CREATED = enum.auto()
    OVERDUE = enum.auto()
    # Producer
    PUSHED = enum.auto()
    REFUSED = enum.auto()
    # Consumer
    POSITIONED = enum.auto()
    PULLED = enum.auto()
    EMPTY = enum.auto()
    CAPACITY = enum.auto()


Table = Mapping[tuple[State, Event], tuple[Callable[[float], Sequence[Request]], State]]


class Machine(ABC):
    """A client of one stream.

    Its methods take events, with the time in monotonic seconds, and return the requests to send now.
    """

    __slots__ = ("_deadline", "_state", "_table", "_wait", "stream", "worker")

    def __init__(self, stream: str) -> None:
        require_name(stream)
        #: The name of the stream.
        self.stream: Final = stream
        #: The route to the stream's worker, from the newest answer to create; () before the first.
        self.worker: tuple[Encoded, ...] = ()
        self._state = State.IDLE
        self._wait = ANSWER_SECONDS
        self._deadline: float | None = None
        self._table = self._make_table()

    @abstractmethod
    def _make_table(self) -> Table:
        """Return the transitions: the action, and the state that is entered before it."""

    def next_deadline(self) -> float | None:
        """Return the time at which `tick` is due; None while nothing is awaited."""
        return self._deadline

    def begin(self, now: float) -> Sequence[Request]:
        """Start, or start again after the link was lost or the hub restarted."""
        self._wait = ANSWER_SECONDS
        return self._fire(Event.BEGUN, now)

    def created(self, answer: CreateResponse, worker: tuple[Encoded, ...], now: float) -> Sequence[Request]:
        """Take the answer to create, which came from `worker`.

        An unexpected answer, or one about another stream, changes nothing.
        """
        if answer.name != self.stream or self._state is not State.CREATING:
            return ()
        self.worker = worker
        return self._fire(Event.CREATED, now)

    def tick(self, now: float) -> Sequence[Request]:
        """Do what is due now."""
        if self._deadline is None or now < self._deadline:
            return ()
        return self._fire(Event.OVERDUE, now)

    def _fire(self, event: Event, now: float) -> Sequence[Request]:
        row = self._table.get((self._state, event))
        if row is None:
            return ()
        action, self._state = row
        return action(now)

    def _create(self, now: float) -> Sequence[Request]:
        self._deadline = now + self._wait
        return (CreateRequest(self.stream),)

    def _create_again(self, now: float) -> Sequence[Request]:
        self._wait = min(2 * self._wait, MAX_ANSWER_SECONDS)
        return self._create(now)


def require_name(name: str) -> None:
    """ConfigError unless a stream or a client may have this name."""
    if not valid_stream_name(name):
        raise ConfigError(f"streams and clients are named by 1 to 200 of A-Z a-z 0-9 . _ -, not {name!r:.100}")
