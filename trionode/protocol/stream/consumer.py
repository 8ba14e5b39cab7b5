"""The consumer's machine: create, Get, then one pull after the other, and saves of what was taken (spec §11.4).

It takes events, with the time in monotonic seconds as an argument, and returns the requests that are to be sent now.
"""

# ruff: noqa: SLF001 - the table stands behind the class whose private actions it names

import enum
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from trionode.errors import LocalError
from trionode.protocol.stream.messages import (
    ANSWER_SECONDS,
    LONG_POLL_SECONDS,
    MAX_ANSWER_SECONDS,
    CreateRequest,
    CreateResponse,
    IndexGet,
    IndexResponse,
    IndexSave,
    PullRequest,
    PullResponse,
    Record,
    Request,
)
from trionode.protocol.stream.names import valid_stream_name
from trionode.protocol.wire import bare
from trionode.protocol.wire.address import Encoded

#: Shortest time from pull to pull while they bring nothing: what the classic client polls at, for a hub that does not hold pulls back.
POLL_SECONDS = 0.25
#: Shortest time between two saves of a consumer's position: a position that is lost costs re-reading, not messages.
SAVE_SECONDS = 0.1
#: Records asked for in one pull: 100 of 500 bytes fill an answer; shorter ones come in several.
PULL_LIMIT = 100
#: Pull answers handed out and not taken yet: one that is worked on and one that is on its way.
MAX_BATCHES = 2


class _Consuming(enum.Enum):
    IDLE = enum.auto()  #: not begun
    CREATING = enum.auto()  #: create is unanswered
    GETTING = enum.auto()  #: the stored position is unanswered
    PULLING = enum.auto()  #: one pull is unanswered
    PAUSING = enum.auto()  #: an empty answer came too soon; the next pull waits
    HOLDING = enum.auto()  #: between two pulls; the next leaves as soon as there is room for its answer


class _Consumed(enum.Enum):
    BEGUN = enum.auto()
    CREATED = enum.auto()
    CREATED_AGAIN = enum.auto()
    POSITIONED = enum.auto()
    PULLED = enum.auto()
    EMPTY = enum.auto()
    ROOM = enum.auto()
    OVERDUE = enum.auto()


class Consumer:
    """Pulls a stream's records in order, each once, at most MAX_BATCHES answers ahead of whoever takes them.

    Answers that were not asked for, doubled or late answers and records out of order change nothing, so that a hub can starve the
    consumer but not make it deliver twice or backwards. Where it begins is the hub's word alone: see `hint`.
    """

    __slots__ = (
        "_asked",
        "_asked_at",
        "_batches",
        "_deadline",
        "_next",
        "_request",
        "_save_at",
        "_save_seconds",
        "_saved",
        "_state",
        "_taken",
        "_wait",
        "client_id",
        "hint",
        "limit",
        "stream",
        "worker",
    )

    def __init__(
        self,
        stream: str,
        client_id: str,
        *,
        start: int | None = None,
        limit: int = PULL_LIMIT,
        save_seconds: float = SAVE_SECONDS,
    ) -> None:
        """`start` is the index to begin at; None asks the hub for the position that this client saved. `limit` is in records a pull."""
        for name in (stream, client_id):
            if not valid_stream_name(name):
                raise LocalError(f"streams and clients are named by 1 to 200 of A-Z a-z 0-9 . _ -, not {name!r:.100}")
        if limit < 1:
            raise LocalError(f"a pull asks for at least 1 record, not {limit}")
        #: The name of the stream and the id under which the position is saved.
        self.stream = stream
        self.client_id = client_id
        #: Most records of one answer.
        self.limit = limit
        #: The route to the stream's worker, as the newest create answer had it; () before the first.
        self.worker: tuple[Encoded, ...] = ()
        #: The position that the hub said this client had saved; None before, or if it had none. Only a hint: a false one, far ahead,
        #: shows as silence, and what was skipped is known only to whoever counts what the peer sent.
        self.hint: int | None = None
        self._next = start
        self._taken: int | None = None
        self._saved: int | None = None
        self._save_at = 0.0
        self._save_seconds = save_seconds
        self._batches: deque[int] = deque()
        self._request = 0
        self._asked: int | None = None
        self._asked_at = 0.0
        self._state = _Consuming.IDLE
        self._wait = ANSWER_SECONDS
        self._deadline: float | None = None

    @property
    def position(self) -> int | None:
        """The next index to ask for; None before it is known."""
        return self._next

    def next_deadline(self) -> float | None:
        """When `tick` is due; None while nothing is awaited."""
        if self._deadline is None or (self._unsaved and self._save_at < self._deadline):
            return self._save_at if self._unsaved else None
        return self._deadline

    def begin(self, now: float) -> Sequence[Request]:
        """Start, or start again after the link was lost or its hub restarted: then from its own position, not from the stored one."""
        self._wait = ANSWER_SECONDS
        return self._fire(_Consumed.BEGUN, now)

    def created(self, answer: CreateResponse, worker: tuple[Encoded, ...], now: float) -> Sequence[Request]:
        """Take the answer to create, which came from `worker`; one that was not asked for, or about another stream, changes nothing."""
        if answer.name != self.stream or self._state is not _Consuming.CREATING:
            return ()
        self.worker = worker
        return self._fire(_Consumed.CREATED if self._next is None else _Consumed.CREATED_AGAIN, now)

    def positioned(self, answer: IndexResponse, now: float) -> Sequence[Request]:
        """Take the answer to Get; one that was not asked for, or about another client or stream, changes nothing."""
        if (answer.client_id, answer.stream) != (self.client_id, self.stream) or self._state is not _Consuming.GETTING:
            return ()
        self.hint = answer.index
        self._next = answer.index or 0
        return self._fire(_Consumed.POSITIONED, now)

    def pulled(self, answer: PullResponse, now: float) -> tuple[Sequence[Record], Sequence[Request]]:
        """Take the answer to the pull: the records to hand out, in order, and the requests to send; another answer brings neither."""
        if self._state is not _Consuming.PULLING or answer.request_id != self._asked:
            return (), ()
        assert self._next is not None
        self._asked = None
        self._wait = ANSWER_SECONDS
        records: list[Record] = []
        for record in answer.records[: self.limit]:
            # The last index of all has no next one that could be asked for.
            if self._next <= record.index < bare.MAX_UINT:
                records.append(record)
                self._next = record.index + 1
        if not records:
            return (), self._fire(_Consumed.EMPTY, now)
        self._batches.append(records[-1].index)
        return records, self._fire(_Consumed.PULLED, now)

    def taken(self, index: int, now: float) -> Sequence[Request]:
        """Learn that the records up to this index were handled: their position is saved soon, and there is room for more."""
        while self._batches and self._batches[0] <= index:
            self._batches.popleft()
        self._taken = max(index + 1, self._taken or 0)
        return [*self._save(now), *self._go_on(now)]

    def finish(self) -> Sequence[Request]:
        """Save what is not saved yet, without regard to the time: at the end, to be sent before the link closes."""
        return self._save(self._save_at)

    def tick(self, now: float) -> Sequence[Request]:
        """Do what is due at this time."""
        requests = [*self._save(now)]
        if self._deadline is not None and now >= self._deadline:
            requests += self._fire(_Consumed.OVERDUE, now)
        return requests

    @property
    def _unsaved(self) -> bool:
        # While create is unanswered the path is in doubt, and a save, which nobody answers, would be lost unnoticed.
        return self._taken is not None and self._taken != self._saved and self._state is not _Consuming.CREATING

    def _save(self, now: float) -> Sequence[Request]:
        if not self._unsaved or now < self._save_at:
            return ()
        assert self._taken is not None
        self._saved = self._taken
        self._save_at = now + self._save_seconds
        return (IndexSave(self.client_id, self.stream, self._taken),)

    def _fire(self, event: _Consumed, now: float) -> Sequence[Request]:
        row = _CONSUMER.get((self._state, event))
        if row is None:
            return ()
        action, self._state = row
        return [*action(self, now), *self._go_on(now)]

    def _go_on(self, now: float) -> Sequence[Request]:
        if self._state is _Consuming.HOLDING and len(self._batches) < MAX_BATCHES:
            return self._fire(_Consumed.ROOM, now)
        return ()

    def _create(self, now: float) -> Sequence[Request]:
        self._asked = None
        # What was saved on the way that is in doubt is saved again.
        self._saved = None
        self._deadline = now + self._wait
        return (CreateRequest(self.stream),)

    def _create_again(self, now: float) -> Sequence[Request]:
        self._wait = min(2 * self._wait, MAX_ANSWER_SECONDS)
        return self._create(now)

    def _get(self, now: float) -> Sequence[Request]:
        self._deadline = now + self._wait
        return (IndexGet(self.client_id, self.stream),)

    def _hold(self, now: float) -> Sequence[Request]:
        self._deadline = None
        return self._save(now)

    def _pause(self, now: float) -> Sequence[Request]:
        self._deadline = max(now, self._asked_at + POLL_SECONDS)
        return ()

    def _pull(self, now: float) -> Sequence[Request]:
        assert self._next is not None
        self._asked, self._asked_at = self._request, now
        self._request += 1
        self._deadline = now + LONG_POLL_SECONDS + self._wait
        return (PullRequest(self._asked, self._next, self.limit),)


_CONSUMER: Final[
    Mapping[tuple[_Consuming, _Consumed], tuple[Callable[[Consumer, float], Sequence[Request]], _Consuming]]
] = {
    (_Consuming.IDLE, _Consumed.BEGUN): (Consumer._create, _Consuming.CREATING),
    (_Consuming.CREATING, _Consumed.BEGUN): (Consumer._create, _Consuming.CREATING),
    (_Consuming.CREATING, _Consumed.CREATED): (Consumer._get, _Consuming.GETTING),
    (_Consuming.CREATING, _Consumed.CREATED_AGAIN): (Consumer._hold, _Consuming.HOLDING),
    (_Consuming.CREATING, _Consumed.OVERDUE): (Consumer._create_again, _Consuming.CREATING),
    (_Consuming.GETTING, _Consumed.BEGUN): (Consumer._create, _Consuming.CREATING),
    (_Consuming.GETTING, _Consumed.POSITIONED): (Consumer._hold, _Consuming.HOLDING),
    (_Consuming.GETTING, _Consumed.OVERDUE): (Consumer._create_again, _Consuming.CREATING),
    (_Consuming.HOLDING, _Consumed.BEGUN): (Consumer._create, _Consuming.CREATING),
    (_Consuming.HOLDING, _Consumed.ROOM): (Consumer._pull, _Consuming.PULLING),
    (_Consuming.PULLING, _Consumed.BEGUN): (Consumer._create, _Consuming.CREATING),
    (_Consuming.PULLING, _Consumed.PULLED): (Consumer._hold, _Consuming.HOLDING),
    (_Consuming.PULLING, _Consumed.EMPTY): (Consumer._pause, _Consuming.PAUSING),
    (_Consuming.PULLING, _Consumed.OVERDUE): (Consumer._create_again, _Consuming.CREATING),
    (_Consuming.PAUSING, _Consumed.BEGUN): (Consumer._create, _Consuming.CREATING),
    (_Consuming.PAUSING, _Consumed.OVERDUE): (Consumer._pull, _Consuming.PULLING),
}
