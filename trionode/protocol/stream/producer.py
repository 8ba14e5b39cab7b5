"""The state machine of a producer: it pushes records in order and resends each until it is confirmed (spec §11.5)."""

from collections.abc import Sequence

from trionode.errors import LocalError, MessageTooLargeError
from trionode.protocol.stream.machine import Event, Machine, State, Table
from trionode.protocol.stream.messages import ANSWER_SECONDS, MAX_RECORD, PushRequest, PushResponse, Request

#: Unconfirmed pushes: enough for a hub that syncs to disk once a batch, yet little to resend.
MAX_PUSHES = 256
#: Bytes of unconfirmed records, before one record more.
MAX_PUSH_BYTES = 1 << 20


class Producer(Machine):
    """Pushes records in order.

    After anything that may have lost a push, it resends all unconfirmed ones with their old request ids.

    A hub that recognises resends by (producer, request id) stores each record exactly once. The order holds if neither
    the route nor the hub lets a later push overtake a lost one. A connection does not: it loses only its tail.
    """

    __slots__ = ("_bytes", "_next", "_pushes")

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._pushes: dict[int, bytes] = {}
        self._bytes = 0
        self._next = 0

    def _make_table(self) -> Table:
        return {
            **dict.fromkeys([(state, Event.BEGUN) for state in State], (self._create, State.CREATING)),
            (State.CREATING, Event.CREATED): (self._push_all, State.PUSHING),
            (State.CREATING, Event.OVERDUE): (self._create_again, State.CREATING),
            (State.PUSHING, Event.PUSHED): (self._push_last, State.PUSHING),
            (State.PUSHING, Event.REFUSED): (self._rest, State.RESTING),
            (State.PUSHING, Event.OVERDUE): (self._create_again, State.CREATING),
            (State.RESTING, Event.OVERDUE): (self._create_again, State.CREATING),
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

    def push(self, record: bytes, now: float) -> Sequence[Request]:
        """Take a record under the next request id; MessageTooLargeError beyond MAX_RECORD, LocalError while `full`."""
        if len(record) > MAX_RECORD:
            raise MessageTooLargeError(f"a record has at most {MAX_RECORD} bytes, this one has {len(record)}")
        if self.full:
            raise LocalError("the producer is full: wait until `full` is false before the next push")
        self._pushes[self._next] = record
        self._bytes += len(record)
        self._next += 1
        return self._fire(Event.PUSHED, now)

    def confirmed(self, answer: PushResponse, now: float) -> Sequence[Request]:
        """Take the answer to a push. Answers may come out of order or twice; an unknown request id changes nothing."""
        if answer.request_id not in self._pushes:
            return ()
        if not answer.ok:
            return self._fire(Event.REFUSED, now)
        was_oldest = answer.request_id == self.oldest
        self._bytes -= len(self._pushes.pop(answer.request_id))
        self._wait = ANSWER_SECONDS
        if was_oldest and self._state is State.PUSHING:
            self._watch(now)
        return ()

    def _watch(self, now: float) -> None:
        self._deadline = now + self._wait if self._pushes else None

    def _push_all(self, now: float) -> Sequence[Request]:
        self._watch(now)
        return [PushRequest(request_id, record) for request_id, record in self._pushes.items()]

    def _push_last(self, now: float) -> Sequence[Request]:
        if self._deadline is None:
            self._watch(now)
        last = self._next - 1
        return (PushRequest(last, self._pushes[last]),)

    def _rest(self, now: float) -> Sequence[Request]:
        self._deadline = now + self._wait
        return ()
