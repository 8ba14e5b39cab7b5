"""The state machine of a consumer: it pulls records in order and saves its position (spec §11.4)."""

from collections import deque
from collections.abc import Sequence

from trionode.errors import ConfigError
from trionode.protocol.rules.round_trip import RoundTrip
from trionode.protocol.rules.verdicts import Rollback, Truncated, Verdict
from trionode.protocol.stream.machine import Event, Machine, State, Table, require_name
from trionode.protocol.stream.messages import (
    ANSWER_SECONDS,
    LONG_POLL_SECONDS,
    MAX_ANSWER,
    Extent,
    IndexGet,
    IndexResponse,
    IndexSave,
    PullRequest,
    PullResponse,
    Record,
    Request,
    StreamLife,
)
from trionode.protocol.wire import bare

#: Shortest time between two pulls that bring nothing, for a hub without long polls. The classic client has the same.
POLL_SECONDS = 0.25
#: Shortest time between two saves of the position. A lost save costs reading again, not messages.
SAVE_SECONDS = 0.1
#: Records per pull: 100 of 500 bytes fill an answer. Shorter records come in several answers.
PULL_LIMIT = 100
#: Pull answers that were handed out and not handled yet: one in work, and one ahead of it.
MAX_BATCHES = 2
#: Lives of the stream whose position is remembered, so that a hub which goes back to one of them repeats no record. A
#: stream is deleted rarely, so more of them are a hub's invention.
MAX_LIVES = 8


class Consumer(Machine):
    """Pulls the records of a stream in order, each once, at most MAX_BATCHES answers ahead of the program.

    A hub answers a pull when there are records, or after a long poll. So a missing answer does not show that it was
    lost, and the consumer pulls again, at first after a round trip (RFC 6298), then after twice as long each time, up
    to the end of a long poll. The hub then answers the former pull at once. A lost answer thus delays records by no
    more than the time since those before.

    Unexpected, late or repeated answers and records out of order change nothing. So a hub can starve the consumer, but
    it can't make it deliver a record twice or out of order. Only the start is up to the hub: see `hint`.

    A hub of ours says when it does not hold what the consumer wants. The consumer then goes on with what the hub holds,
    and adds a verdict. That is the hub's word too: by a new life of the stream, it can make the consumer begin again.
    The consumer does so at most once in POLL_SECONDS, and within one life it goes back only behind a stream's end.
    """

    __slots__ = (
        "_asked",
        "_asked_at",
        "_batches",
        "_life",
        "_lives",
        "_next",
        "_patience",
        "_read",
        "_reads",
        "_request",
        "_save_at",
        "_save_seconds",
        "_saved",
        "_taken",
        "_takes_lives",
        "_verdicts",
        "client_id",
        "hint",
        "limit",
    )

    def __init__(
        self,
        stream: str,
        client_id: str,
        *,
        start: int | None = None,
        limit: int = PULL_LIMIT,
        save_seconds: float = SAVE_SECONDS,
        first_request: int = 0,
    ) -> None:
        """`start` is the first index; None asks the hub for the position that this client saved.

        `limit` is in records per pull. `first_request` is the request id of the first pull: a random one, below 2^32,
        tells the answers to this client from those to others (threat 24).
        """
        super().__init__(stream)
        require_name(client_id)
        if limit < 1:
            raise ConfigError(f"a pull asks for at least 1 record, not {limit}")
        #: The id under which the position is saved.
        self.client_id = client_id
        #: Most records of one answer.
        self.limit = limit
        #: The saved position of this client, as the hub said; None before that, or if there was none. It is only a
        #: hint: after a false one, far ahead, no record comes. Only a program that counts the peer's messages notices
        #: what was skipped.
        self.hint: int | None = None
        self._next = start
        # The index behind the last record that was handed out in this life of the stream.
        self._read = start or 0
        self._life: bytes | None = None
        self._lives: dict[bytes, int] = {}
        self._takes_lives = False
        self._verdicts: list[Verdict] = []
        self._taken: int | None = None
        self._saved: int | None = None
        self._save_at = 0.0
        self._save_seconds = save_seconds
        self._batches: deque[int] = deque()
        self._request = first_request
        self._asked: int | None = None
        self._asked_at = 0.0
        # Seconds until the next pull if this one is not answered.
        self._patience = 0.0
        # The time that a pull takes whose records wait at the hub: more than the round trip if its store is slow.
        self._reads = RoundTrip()

    def _make_table(self) -> Table:
        return {
            **dict.fromkeys([(state, Event.BEGUN) for state in State], (self._create, State.CREATING)),
            (State.CREATING, Event.CREATED): (self._get, State.GETTING),
            (State.CREATING, Event.OVERDUE): (self._create_again, State.CREATING),
            (State.GETTING, Event.POSITIONED): (self._hold, State.HOLDING),
            (State.GETTING, Event.OVERDUE): (self._create_again, State.CREATING),
            (State.HOLDING, Event.CAPACITY): (self._pull, State.PULLING),
            (State.PULLING, Event.PULLED): (self._hold, State.HOLDING),
            (State.PULLING, Event.EMPTY): (self._pause, State.PAUSING),
            (State.PULLING, Event.OVERDUE): (self._pull_again, State.PULLING),
            (State.PULLING, Event.STUCK): (self._create_again, State.CREATING),
            (State.PAUSING, Event.OVERDUE): (self._pull, State.PULLING),
        }

    @property
    def position(self) -> int | None:
        """The next index to ask for; None before it is known."""
        return self._next

    def next_deadline(self) -> float | None:
        """Return the time at which `tick` is due; None while nothing is awaited."""
        if self._deadline is None or (self._unsaved and self._save_at < self._deadline):
            return self._save_at if self._unsaved else None
        return self._deadline

    def announced(self, answer: StreamLife) -> None:
        """Take the life of the stream. From now on pulls carry it, until the consumer begins again."""
        if answer.stream == self.stream:
            self._takes_lives = True
            if self._life is None:
                self._life = answer.life

    def take_verdicts(self) -> Sequence[Verdict]:
        """Return what was found out about lost records since the last call."""
        found, self._verdicts = self._verdicts, []
        return found

    def positioned(self, answer: IndexResponse, now: float) -> Sequence[Request]:
        """Take the saved position. An unexpected answer, or one about another client or stream, changes nothing."""
        if (answer.client_id, answer.stream) != (self.client_id, self.stream) or self._state is not State.GETTING:
            return ()
        self.hint = answer.index
        self._next = answer.index or 0
        return self._fire(Event.POSITIONED, now)

    def pulled(self, answer: PullResponse, now: float) -> tuple[Sequence[Record], Sequence[Request]]:
        """Take the answer to the newest pull; return the records to hand out, in order, and the requests to send.

        Another answer changes nothing.
        """
        if self._state is not State.PULLING or answer.request_id != self._asked:
            return (), ()
        assert self._next is not None
        self._asked = None
        self.overdue_since = None
        self._wait = ANSWER_SECONDS
        if answer.extent is not None and not self._accept(answer.extent):
            return (), self._fire(Event.EMPTY, now)
        records: list[Record] = []
        for record in answer.records[: self.limit]:
            # After the largest index there is no next one to ask for.
            if self._next <= record.index < bare.MAX_UINT:
                records.append(record)
                self._next = record.index + 1
        if records:
            self._read = self._next
            self._set_patience(answer, now)
            self._batches.append(records[-1].index)
            return records, self._fire(Event.PULLED, now)
        if now - self._asked_at >= LONG_POLL_SECONDS:
            self._patience = LONG_POLL_SECONDS + self._timeout
        return (), self._fire(Event.EMPTY, now)

    def _set_patience(self, answer: PullResponse, now: float) -> None:
        if len(answer.records) >= self.limit or sum(record.size for record in answer.records) > MAX_ANSWER // 2:
            self._reads.sample(now - self._asked_at)
        self._patience = self._timeout if self._reads.smoothed is None else max(self._timeout, self._reads.timeout)

    def _accept(self, extent: Extent) -> bool:
        """Move to what the hub holds; return False if the answer's records are of no use."""
        assert self._next is not None
        if self._life is None or not self._takes_lives or extent.contains(self._life, self._next):
            return True
        if extent.life == self._life and extent.first > self._next:
            self._truncate(extent.first)
            return True
        # Records of before are handled first, so that none of them moves the new position. The next answer is the same.
        if not self._batches:
            self._go_back(self._life, extent)
        return False

    def _truncate(self, first: int) -> None:
        assert self._next is not None
        self._verdicts.append(Truncated(self.stream, self._next, first - 1))
        self._next = first

    def _go_back(self, life: bytes, extent: Extent) -> None:
        assert self._next is not None
        if self._next > 0:
            self._verdicts.append(Rollback(self.stream, self._next, extent.end))
        if extent.life != life:
            self._lives.pop(life, None)
            self._lives[life] = self._read
            if len(self._lives) > MAX_LIVES:
                del self._lives[next(iter(self._lives))]
            self._life, self._read = extent.life, self._lives.get(extent.life, 0)
        self._next = self._taken = self._read = min(self._read, extent.end)
        if extent.first > self._next:
            self._truncate(extent.first)

    def taken(self, index: int, now: float) -> Sequence[Request]:
        """Note that the records up to this index were handled. Their position is saved soon."""
        while self._batches and self._batches[0] <= index:
            self._batches.popleft()
        self._taken = max(index + 1, self._taken or 0)
        return [*self._save(now), *self._go_on(now)]

    def finish(self) -> Sequence[Request]:
        """Save the position now, if it is unsaved: send this before the link closes."""
        return self._save(self._save_at)

    def tick(self, now: float) -> Sequence[Request]:
        """Do what is due now."""
        return [*self._save(now), *super().tick(now)]

    @property
    def _unsaved(self) -> bool:
        # While create is unanswered the route may be dead. A save has no answer, so its loss would not be noticed.
        return self._taken is not None and self._taken != self._saved and self._state is not State.CREATING

    def _save(self, now: float) -> Sequence[Request]:
        if not self._unsaved or now < self._save_at:
            return ()
        assert self._taken is not None
        self._saved = self._taken
        self._save_at = now + self._save_seconds
        return (IndexSave(self.client_id, self.stream, self._taken),)

    def _fire(self, event: Event, now: float) -> Sequence[Request]:
        return [*super()._fire(event, now), *self._go_on(now)]

    def _go_on(self, now: float) -> Sequence[Request]:
        if self._state is State.HOLDING and len(self._batches) < MAX_BATCHES:
            return self._fire(Event.CAPACITY, now)
        return ()

    def _create(self, now: float) -> Sequence[Request]:
        self._asked = None
        self._takes_lives = False
        # Save again what was saved over the route that may be dead.
        self._saved = None
        return super()._create(now)

    def _get(self, now: float) -> Sequence[Request]:
        self._patience = self._timeout
        if self._next is not None:
            return self._fire(Event.POSITIONED, now)
        self._deadline = now + (self._timeout if self.recognises else self._wait)
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
        longest = LONG_POLL_SECONDS + (self._timeout if self.recognises else self._wait)
        self._deadline = now + (min(self._patience, longest) if self.recognises else longest)
        return (PullRequest(self._asked, self._next, self.limit, self._life if self._takes_lives else None),)

    def _pull_again(self, now: float) -> Sequence[Request]:
        self._note_overdue(now)
        assert self.overdue_since is not None
        if not self.recognises or now - self.overdue_since >= ANSWER_SECONDS:
            return self._fire(Event.STUCK, now)
        # After a whole long poll the answer was lost. To the next pull the hub answers at once.
        self._patience = 2 * self._patience if self._patience < LONG_POLL_SECONDS else self._timeout
        return self._pull(now)
