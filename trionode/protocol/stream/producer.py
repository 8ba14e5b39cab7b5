"""The state machine of a producer: it pushes records in order and resends each until it is confirmed (spec §11.5)."""

from collections.abc import Sequence

import attrs

from trionode.errors import LocalError, MessageTooLargeError
from trionode.protocol.stream.machine import Event, Machine, State, Table
from trionode.protocol.stream.messages import (
    ANSWER_SECONDS,
    MAX_ANSWER_SECONDS,
    MAX_RECORD,
    PushRequest,
    PushResponse,
    Request,
)

#: Unconfirmed pushes: enough for a hub that syncs to disk once a batch, yet little to resend.
MAX_PUSHES = 256
#: Bytes of unconfirmed records, before one record more.
MAX_PUSH_BYTES = 1 << 20
#: Shortest time in seconds that an answer may come after those to later pushes before its push is sent again. Answers
#: that a hub sends together are handled within it.
MIN_REORDERING = 0.01
#: Seconds of the first rest after the hub could not store a push; they double up to MAX_ANSWER_SECONDS. A hub itself
#: tries its store again after as long.
REST_SECONDS = 0.5


@attrs.define(eq=False)
class _Push:
    """An unconfirmed push."""

    record: bytes = attrs.field(repr=False)
    #: When it was sent last, and how often it was sent.
    sent_at: float = 0.0
    tries: int = 0
    #: Whether it was the oldest unconfirmed push then.
    was_oldest: bool = False
    #: Whether the hub refused it since, as it waits for an earlier one.
    is_refused: bool = False


class Producer(Machine):
    """Pushes records in order, and resends what was lost, under the old request ids.

    A hub that recognises resends by (producer, request id) stores each record exactly once. It also keeps the order on
    a way that loses and reorders pushes, since it refuses a push that overtakes an earlier one. For that it has to know
    the first one: so after each create only one push is under way until it is confirmed.

    A push is sent again when its answer is overdue (RFC 6298), or soon after a push that was sent later has been
    answered (RFC 8985). Without any confirmation for ANSWER_SECONDS, the producer creates the stream again: the stream's
    worker may have moved.

    On other hubs the order holds if neither the route nor the hub lets a later push overtake a lost one. A connection
    does not: it loses only its tail.
    """

    __slots__ = (
        "_bytes",
        "_flight",
        "_is_known",
        "_late",
        "_next",
        "_pushes",
        "_rest_seconds",
        "_retry_at",
        "_since",
        "_unsent",
    )

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._pushes: dict[int, _Push] = {}
        self._bytes = 0
        self._next = 0
        # Of the current create: the first request id that was not sent yet, those that are not answered yet in the order
        # of sending, and whether the hub has confirmed one, so that it knows where the others belong.
        self._unsent = 0
        self._flight: dict[int, None] = {}
        self._is_known = False
        # When a push is sent again: one that later pushes have overtaken, and the oldest one.
        self._late: dict[int, float] = {}
        self._retry_at: float | None = None
        self._rest_seconds = REST_SECONDS
        # The last confirmation, or the time since which one is awaited.
        self._since = 0.0

    def _make_table(self) -> Table:
        return {
            **dict.fromkeys([(state, Event.BEGUN) for state in State], (self._create, State.CREATING)),
            (State.CREATING, Event.CREATED): (self._start, State.PUSHING),
            (State.CREATING, Event.OVERDUE): (self._create_again, State.CREATING),
            (State.PUSHING, Event.PUSHED): (self._push_new, State.PUSHING),
            (State.PUSHING, Event.CONFIRMED): (self._push_more, State.PUSHING),
            (State.PUSHING, Event.REFUSED): (self._rest, State.RESTING),
            (State.PUSHING, Event.OVERDUE): (self._resend, State.PUSHING),
            (State.PUSHING, Event.STUCK): (self._create_again, State.CREATING),
            (State.RESTING, Event.OVERDUE): (self._create, State.CREATING),
        }

    @property
    def full(self) -> bool:
        """Whether senders must wait for confirmations."""
        return len(self._pushes) >= MAX_PUSHES or self._bytes >= MAX_PUSH_BYTES

    @property
    def next_id(self) -> int:
        """The request id of the next push."""
        return self._next

    @property
    def oldest(self) -> int:
        """The lowest request id that is not confirmed. All records below it are stored."""
        return next(iter(self._pushes), self._next)

    @property
    def unconfirmed(self) -> int:
        """How many pushes are not confirmed."""
        return len(self._pushes)

    def push(self, record: bytes, now: float) -> Sequence[Request]:
        """Take a record under the next request id; MessageTooLargeError beyond MAX_RECORD, LocalError while `full`."""
        if len(record) > MAX_RECORD:
            raise MessageTooLargeError(f"a record has at most {MAX_RECORD} bytes, this one has {len(record)}")
        if self.full:
            raise LocalError("the producer is full: wait until `full` is false before the next push")
        if not self._pushes:
            self._since = now
        self._pushes[self._next] = _Push(record)
        self._bytes += len(record)
        self._next += 1
        return self._fire(Event.PUSHED, now)

    def confirmed(self, answer: PushResponse, now: float) -> Sequence[Request]:
        """Take the answer to a push. Answers may come out of order or twice; an unknown request id changes nothing."""
        request_id = answer.request_id
        push = self._pushes.get(request_id)
        if push is None:
            return ()
        if not answer.ok:
            return self._refused(request_id, push, now)
        if push.tries == 1 and request_id in self._flight:
            self.round_trip.sample(now - push.sent_at)
        self._overtaken(request_id, push, now)
        del self._pushes[request_id]
        self._late.pop(request_id, None)
        self._bytes -= len(push.record)
        self._expect_refused(push, now)
        self._wait, self._rest_seconds = ANSWER_SECONDS, REST_SECONDS
        self._since = now
        self.overdue_since = None
        self._is_known = True
        return self._fire(Event.CONFIRMED, now)

    def _refused(self, request_id: int, push: _Push, now: float) -> Sequence[Request]:
        if self._state is not State.PUSHING or request_id not in self._flight:
            return ()  # the answer to an earlier copy
        if push.was_oldest or not self.recognises:
            return self._fire(Event.REFUSED, now)
        # The hub waits for an earlier push.
        self._overtaken(request_id, push, now)
        push.is_refused = True
        self._expect_refused(push, now)
        self._watch()
        return ()

    def _overtaken(self, request_id: int, push: _Push, now: float) -> None:
        """Note that a push has arrived: those that were sent before it are late."""
        if request_id not in self._flight:
            return
        if self.recognises:
            for each in self._flight:
                if each == request_id:
                    break
                self._late.setdefault(each, now + self._reordering(push))
        del self._flight[request_id]

    def _reordering(self, push: _Push) -> float:
        """Return how long answers may still come after this one, as in RFC 8985 §6.2.

        Longer if it may answer an earlier copy of the push: those of pushes that were sent after that copy follow.
        """
        seconds = (self.round_trip.shortest or 0.0) / 4 if push.tries == 1 else self.round_trip.smoothed or 0.0
        return max(seconds, MIN_REORDERING)

    def _expect_refused(self, push: _Push, now: float) -> None:
        """Send refused pushes again that wait for no earlier one any more, unless the hub has kept and confirms them."""
        for request_id, each in self._pushes.items():
            if not each.is_refused:
                break
            self._late.setdefault(request_id, now + self._reordering(push))

    def _watch(self) -> None:
        """Set the time at which a push is sent again."""
        self._deadline = min(self._late.values(), default=None)
        if self._retry_at is not None and (self._deadline is None or self._retry_at < self._deadline):
            self._deadline = self._retry_at

    def _start_waiting(self, now: float) -> None:
        self._retry_at = now + (self._timeout if self.recognises else self._wait) if self._pushes else None

    def _transmit(self, request_id: int, now: float) -> PushRequest:
        push = self._pushes[request_id]
        push.sent_at = now
        push.tries += 1
        push.was_oldest = request_id == self.oldest
        push.is_refused = False
        self._late.pop(request_id, None)
        self._flight.pop(request_id, None)
        self._flight[request_id] = None
        return PushRequest(request_id, push.record)

    def _transmit_unsent(self, now: float) -> list[Request]:
        requests: list[Request] = []
        while self._unsent < self._next and (self._is_known or not self._flight):
            if self._unsent in self._pushes:
                requests.append(self._transmit(self._unsent, now))
            self._unsent += 1
        return requests

    # Actions

    def _start(self, now: float) -> Sequence[Request]:
        self._unsent = self.oldest
        self._flight.clear()
        self._late.clear()
        self._is_known = False
        self._since = now
        requests = self._transmit_unsent(now)
        self._start_waiting(now)
        self._watch()
        return requests

    def _push_new(self, now: float) -> Sequence[Request]:
        if self._retry_at is None:
            self._start_waiting(now)
            self._watch()
        return self._transmit_unsent(now)

    def _push_more(self, now: float) -> Sequence[Request]:
        requests = self._transmit_unsent(now)
        self._start_waiting(now)
        self._watch()
        return requests

    def _resend(self, now: float) -> Sequence[Request]:
        late = sorted(request_id for request_id, due in self._late.items() if due <= now)
        if not late:
            self._note_overdue(now)
            if not self.recognises or now - self._since >= ANSWER_SECONDS:
                return self._fire(Event.STUCK, now)
            self.round_trip.backoff()
            late = [self.oldest]
        requests = [self._transmit(request_id, now) for request_id in late]
        self._start_waiting(now)
        self._watch()
        return requests

    def _rest(self, now: float) -> Sequence[Request]:
        self._retry_at = None
        self._late.clear()
        self._deadline = now + self._rest_seconds
        self._rest_seconds = min(2 * self._rest_seconds, MAX_ANSWER_SECONDS)
        return ()
