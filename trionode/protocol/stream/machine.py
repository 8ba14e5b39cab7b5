"""The state machine of a client of a stream: what producer and consumer share (spec §11.4, §11.5)."""

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from trionode.errors import ConfigError
from trionode.protocol.rules.round_trip import RoundTrip
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
    STUCK = enum.auto()  #: answers were missing for so long that the stream's worker may have moved
    # Producer
    PUSHED = enum.auto()
    CONFIRMED = enum.auto()
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

    __slots__ = (
        "_created_once",
        "_deadline",
        "_state",
        "_table",
        "_wait",
        "overdue_since",
        "recognises",
        "round_trip",
        "stream",
        "worker",
    )

    def __init__(self, stream: str) -> None:
        require_name(stream)
        #: The name of the stream.
        self.stream: Final = stream
        #: The route to the stream's worker, from the newest answer to create; () before the first.
        self.worker: tuple[Encoded, ...] = ()
        #: The round trip to the hub. Both machines of a client share one.
        self.round_trip = RoundTrip()
        #: Whether the hub recognises a push that it gets again, and answers a pull when the next one comes, as ours do.
        #: Other hubs are asked again only after ANSWER_SECONDS, since they store such a push twice.
        self.recognises = True
        #: Since when an answer is overdue; None if none is. The owner sets it to None when the hub answers anything.
        self.overdue_since: float | None = None
        self._state = State.IDLE
        self._wait = ANSWER_SECONDS
        # When create was sent; None if it was sent again since, so that its answer shows no round trip.
        self._created_once: float | None = None
        self._deadline: float | None = None
        self._table = self._make_table()

    @abstractmethod
    def _make_table(self) -> Table:
        """Return the transitions: the action, and the state that is entered before it."""

    def next_deadline(self) -> float | None:
        """Return the time at which `tick` is due; None while nothing is awaited."""
        return self._deadline

    def begin(self, now: float, round_trip: RoundTrip | None = None) -> Sequence[Request]:
        """Start, or start again after the link was lost or the hub restarted; `round_trip` is that of the new route."""
        self.round_trip = round_trip or RoundTrip()
        self._wait = ANSWER_SECONDS
        self.overdue_since = None
        return self._fire(Event.BEGUN, now)

    def created(self, answer: CreateResponse, worker: tuple[Encoded, ...], now: float) -> Sequence[Request]:
        """Take the answer to create, which came from `worker`.

        An unexpected answer, or one about another stream, changes nothing.
        """
        if answer.name != self.stream or self._state is not State.CREATING:
            return ()
        self.worker = worker
        self.overdue_since = None
        if self._created_once is not None:
            self.round_trip.sample(now - self._created_once)
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

    @property
    def _timeout(self) -> float:
        return min(self.round_trip.timeout, MAX_ANSWER_SECONDS)

    def _note_overdue(self, now: float) -> None:
        if self.overdue_since is None:
            self.overdue_since = now

    def _create(self, now: float) -> Sequence[Request]:
        self._created_once = now
        self._deadline = now + self._timeout
        return (CreateRequest(self.stream),)

    def _create_again(self, now: float) -> Sequence[Request]:
        """Create without an answer to the last request: to an earlier create, or to the stream's worker."""
        self._note_overdue(now)
        self.round_trip.backoff()
        self._wait = min(2 * self._wait, MAX_ANSWER_SECONDS)
        requests = self._create(now)
        self._created_once = None
        return requests


def require_name(name: str) -> None:
    """ConfigError unless a stream or a client may have this name."""
    if not valid_stream_name(name):
        raise ConfigError(f"streams and clients are named by 1 to 200 of A-Z a-z 0-9 . _ -, not {name!r:.100}")
