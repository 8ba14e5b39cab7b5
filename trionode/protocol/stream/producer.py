"""The producer's machine: pushes in order, each until it is confirmed; whatever went unanswered begins again at create (spec §11.5).

It takes events, with the time in monotonic seconds as an argument, and returns the requests that are to be sent now.
"""

# ruff: noqa: SLF001 - the table stands behind the class whose private actions it names

import enum
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from trionode.errors import LocalError, MessageTooLargeError
from trionode.protocol.stream.messages import (
    ANSWER_SECONDS,
    MAX_ANSWER_SECONDS,
    MAX_RECORD,
    CreateRequest,
    CreateResponse,
    PushRequest,
    PushResponse,
    Request,
)
from trionode.protocol.stream.names import valid_stream_name
from trionode.protocol.wire.address import Encoded

#: Pushes that may await confirmation: enough for a hub that syncs to disk once a batch, yet little to send again.
MAX_PUSHES = 256
#: Bytes of records that may await confirmation, and one record more.
MAX_PUSH_BYTES = 1 << 20


class _Producing(enum.Enum):
    IDLE = enum.auto()  #: not begun
    CREATING = enum.auto()  #: create is unanswered; pushes wait
    PUSHING = enum.auto()  #: every push is on its way
    RESTING = enum.auto()  #: the hub refused a push: nothing leaves, lest a later record overtake it


class _Produced(enum.Enum):
    BEGUN = enum.auto()
    CREATED = enum.auto()
    PUSHED = enum.auto()
    REFUSED = enum.auto()
    OVERDUE = enum.auto()


class Producer:
    """Pushes records in order, each until it is confirmed, and again under its old request id after whatever may have lost it.

    A hub that knows resends by (producer, request id) stores each exactly once; in order where neither the path nor the hub
    lets a later push overtake a lost one, as a connection does, which loses only its tail.
    """

    __slots__ = ("_bytes", "_deadline", "_next", "_pushes", "_state", "_wait", "stream", "worker")

    def __init__(self, stream: str) -> None:
        if not valid_stream_name(stream):
            raise LocalError(f"a stream is named by 1 to 200 of A-Z a-z 0-9 . _ -, not {stream!r:.100}")
        #: The name of the stream.
        self.stream = stream
        #: The route to the stream's worker, as the newest create answer had it; () before the first.
        self.worker: tuple[Encoded, ...] = ()
        self._pushes: dict[int, bytes] = {}
        self._bytes = 0
        self._next = 0
        self._state = _Producing.IDLE
        self._wait = ANSWER_SECONDS
        self._deadline: float | None = None

    @property
    def full(self) -> bool:
        """Whether senders must wait: as much is outstanding as may be."""
        return len(self._pushes) >= MAX_PUSHES or self._bytes >= MAX_PUSH_BYTES

    @property
    def next_id(self) -> int:
        """The request id of the next push."""
        return self._next

    @property
    def oldest(self) -> int:
        """The lowest request id that is not confirmed; all below are stored."""
        return next(iter(self._pushes), self._next)

    def next_deadline(self) -> float | None:
        """When `tick` is due; None while nothing is awaited."""
        return self._deadline

    def begin(self, now: float) -> Sequence[Request]:
        """Start, or start again after the link was lost or its hub restarted."""
        self._wait = ANSWER_SECONDS
        return self._fire(_Produced.BEGUN, now)

    def created(self, answer: CreateResponse, worker: tuple[Encoded, ...], now: float) -> Sequence[Request]:
        """Take the answer to create, which came from `worker`; one that was not asked for, or about another stream, changes nothing."""
        if answer.name != self.stream or self._state is not _Producing.CREATING:
            return ()
        self.worker = worker
        return self._fire(_Produced.CREATED, now)

    def push(self, record: bytes, now: float) -> Sequence[Request]:
        """Take a record under the next request id; MessageTooLargeError beyond MAX_RECORD, LocalError while `full`."""
        if len(record) > MAX_RECORD:
            raise MessageTooLargeError(f"a record has at most {MAX_RECORD} bytes, this one has {len(record)}")
        if self.full:
            raise LocalError("the producer is full: wait until `full` is false before the next push")
        self._pushes[self._next] = record
        self._bytes += len(record)
        self._next += 1
        return self._fire(_Produced.PUSHED, now)

    def confirmed(self, answer: PushResponse, now: float) -> Sequence[Request]:
        """Take the answer to a push; out of order, doubled or for an unknown id it does no harm."""
        if answer.request_id not in self._pushes:
            return ()
        if not answer.ok:
            return self._fire(_Produced.REFUSED, now)
        was_oldest = answer.request_id == self.oldest
        self._bytes -= len(self._pushes.pop(answer.request_id))
        self._wait = ANSWER_SECONDS
        if was_oldest and self._state is _Producing.PUSHING:
            self._watch(now)
        return ()

    def tick(self, now: float) -> Sequence[Request]:
        """Do what is due at this time."""
        if self._deadline is None or now < self._deadline:
            return ()
        return self._fire(_Produced.OVERDUE, now)

    def _fire(self, event: _Produced, now: float) -> Sequence[Request]:
        row = _PRODUCER.get((self._state, event))
        if row is None:
            return ()
        action, self._state = row
        return action(self, now)

    def _watch(self, now: float) -> None:
        self._deadline = now + self._wait if self._pushes else None

    def _create(self, now: float) -> Sequence[Request]:
        self._deadline = now + self._wait
        return (CreateRequest(self.stream),)

    def _create_again(self, now: float) -> Sequence[Request]:
        self._wait = min(2 * self._wait, MAX_ANSWER_SECONDS)
        return self._create(now)

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


_PRODUCER: Final[
    Mapping[tuple[_Producing, _Produced], tuple[Callable[[Producer, float], Sequence[Request]], _Producing]]
] = {
    (_Producing.IDLE, _Produced.BEGUN): (Producer._create, _Producing.CREATING),
    (_Producing.CREATING, _Produced.BEGUN): (Producer._create, _Producing.CREATING),
    (_Producing.CREATING, _Produced.CREATED): (Producer._push_all, _Producing.PUSHING),
    (_Producing.CREATING, _Produced.OVERDUE): (Producer._create_again, _Producing.CREATING),
    (_Producing.PUSHING, _Produced.BEGUN): (Producer._create, _Producing.CREATING),
    (_Producing.PUSHING, _Produced.PUSHED): (Producer._push_last, _Producing.PUSHING),
    (_Producing.PUSHING, _Produced.REFUSED): (Producer._rest, _Producing.RESTING),
    (_Producing.PUSHING, _Produced.OVERDUE): (Producer._create_again, _Producing.CREATING),
    (_Producing.RESTING, _Produced.BEGUN): (Producer._create, _Producing.CREATING),
    (_Producing.RESTING, _Produced.OVERDUE): (Producer._create_again, _Producing.CREATING),
}
