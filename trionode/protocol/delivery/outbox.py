"""The sending half of the delivery layer: numbers messages, and sends them again until the peer has handled them."""

from collections import deque
from collections.abc import Iterable
from itertools import chain

from trionode.protocol.delivery.frame import BUNDLE, MAX_ITEMS, Ack
from trionode.protocol.delivery.terms import Position, Terms, first_head, next_head
from trionode.protocol.rules.round_trip import RoundTrip
from trionode.protocol.rules.verdicts import Fork, Restarted, Rollback, Verdict

#: The cost of a message beside its bytes: the objects around it. It bounds how many tiny messages are under way.
ITEM_COST = 512
#: The cost of the messages that may be under way in one direction: a megabyte, or some 2,000 tiny messages. The peer
#: holds that much for a channel at most.
WINDOW = 1024 * 1024
#: Shortest time in seconds by which a message that was sent later must overtake an earlier one, before that one is
#: taken for lost. It is a quarter of the round trip if that is longer (RFC 8985 §6.2).
REORDERING = 0.005


class HistoryError(Exception):
    """Both sides remember different histories: the channel can't go on. `verdict` says what differs."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(str(verdict))
        self.verdict = verdict


class Entry:
    """A message that the peer has not handled yet."""

    __slots__ = ("arrived", "before", "cost", "item", "number", "promised", "sends", "sent_at", "start")

    def __init__(self, number: int, item: bytes, before: bytes, start: int, *, promised: bool) -> None:
        self.number = number
        self.item = item
        #: The running hash before it.
        self.before = before
        self.cost = len(item) + ITEM_COST
        #: The cost of all messages of this session before it.
        self.start = start
        #: Whether the program is told if it can't be delivered.
        self.promised = promised
        self.sends = 0
        self.sent_at = 0.0
        #: Whether the peer has received it beyond its position.
        self.arrived = False


class Outbox:
    """The messages of one side, from the oldest that the peer has not handled to the newest."""

    __slots__ = (
        "_lost",
        "_newest_sent",
        "_pending",
        "_reorder_at",
        "_total",
        "_under_way",
        "_unhandled",
        "acknowledged",
        "count",
        "handled",
        "head",
        "is_resumed",
        "limit",
        "resend_at",
        "resent",
        "round_trip",
        "sender_id",
        "unhandled_cost",
    )

    def __init__(self, sender_id: bytes) -> None:
        self.sender_id = sender_id
        #: The number of the newest message, and the running hash after it.
        self.count = 0
        self.head = first_head(sender_id)
        #: The numbers up to which the peer has received and handled everything.
        self.acknowledged = 0
        self.handled = 0
        #: The cost of the messages that the peer has not handled.
        self.unhandled_cost = 0
        #: Messages that were sent again.
        self.resent = 0
        #: The cost that the peer takes in this session.
        self.limit = WINDOW
        self.round_trip = RoundTrip()
        #: When to send again, or to ask the peer for its limit; None: nothing is awaited.
        self.resend_at: float | None = None
        #: Whether a session has begun before.
        self.is_resumed = False
        self._total = 0
        # A message moves from one queue to the next: not sent yet, under way, received but not handled.
        self._pending: deque[Entry] = deque()
        self._under_way: deque[Entry] = deque()
        self._unhandled: deque[Entry] = deque()
        #: Those under way that are taken for lost, in order.
        self._lost: deque[Entry] = deque()
        self._newest_sent = 0.0
        self._reorder_at: float | None = None

    @property
    def end(self) -> Position:
        """The position after the newest message that was sent."""
        return Position(self._sent, self._pending[0].before if self._pending else self.head)

    @property
    def base(self) -> Position:
        """The position before the oldest message that can still be sent."""
        for queue in (self._unhandled, self._under_way, self._pending):
            if queue:
                return Position(queue[0].number - 1, queue[0].before)
        return Position(self.count, self.head)

    @property
    def unacknowledged(self) -> int:
        """The number of messages that the peer has not acknowledged."""
        return self.count - self.acknowledged

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits and nothing is under way, so that a message can leave at once."""
        return not self._under_way and not self._pending

    @property
    def has_frame(self) -> bool:
        """Whether `take` would return messages."""
        return bool(self._lost) or bool(self._pending and self._pending[0].start < self.limit)

    def promised(self) -> int:
        """Return the number of unacknowledged messages whose loss the program is told."""
        return sum(entry.promised for entry in chain(self._under_way, self._pending))

    def add(self, item: bytes, *, promised: bool = False) -> Entry:
        """Give a message the next number."""
        before = self.head
        self.count += 1
        entry = Entry(self.count, item, before, self._total, promised=promised)
        self.head = next_head(before, item)
        self._total += entry.cost
        self.unhandled_cost += entry.cost
        self._pending.append(entry)
        return entry

    def take(self, now: float) -> list[Entry]:
        """Return the messages of the next frame, one after the other; none if nothing may be sent now."""
        while self._lost and self._lost[0].arrived:  # taken for lost, and has arrived after all
            self._lost.popleft()
        queue = self._lost or self._pending
        is_again = queue is self._lost
        taken: list[Entry] = []
        size = 0
        while queue and len(taken) < MAX_ITEMS:
            entry = queue[0]
            if taken and (size + len(entry.item) > BUNDLE or entry.number != taken[-1].number + 1):
                break
            if entry.arrived or (not is_again and entry.start >= self.limit):
                break
            queue.popleft()
            size += len(entry.item)
            self.resent += entry.sends > 0
            entry.sends += 1
            entry.sent_at = now
            taken.append(entry)
        if not is_again:
            self._under_way.extend(taken)
        if self.resend_at is None and (taken or self._pending):
            self.resend_at = now + self.round_trip.timeout
        return taken

    def acknowledge(self, ack: Ack, now: float, stamp: int) -> None:
        """Take an acknowledgement; HistoryError if the peer acknowledges other messages than these.

        `stamp` is the time now as in frames.
        """
        count = ack.received.count
        if count > self.count:
            raise HistoryError(Rollback(None, count, self.count))
        self.limit = max(self.limit, ack.limit)
        under_way = self._under_way
        round_trip = (stamp - ack.echo & 0xFFFFFFFF) / 1e6
        # A copy that was sent later than this can't be the one that is answered (stamps are whole microseconds).
        latest = now - round_trip + 5e-6
        newest, is_news = self._newest_sent, False
        while under_way and under_way[0].number <= count:
            entry = under_way.popleft()
            is_news = True
            entry.arrived = True
            if newest < entry.sent_at <= latest:
                newest = entry.sent_at
            self._unhandled.append(entry)
        if is_news or count > self.acknowledged:
            following = under_way[0] if under_way else (self._pending[0] if self._pending else None)
            if count > self._sent or ack.received.head != (self.head if following is None else following.before):
                raise HistoryError(Fork(count))
            self.acknowledged = count
        ranges = iter(ack.ranges)
        first, last = next(ranges, (self.count + 1, self.count + 1))
        for entry in under_way if ack.ranges else ():
            while entry.number > last:
                first, last = next(ranges, (self.count + 1, self.count + 1))
            if entry.number >= first and not entry.arrived:
                entry.arrived = is_news = True
                if newest < entry.sent_at <= latest:
                    newest = entry.sent_at
        handled = min(ack.handled, self.acknowledged)
        while self._unhandled and self._unhandled[0].number <= handled:
            self.unhandled_cost -= self._unhandled.popleft().cost
        self.handled = max(self.handled, handled)
        if is_news:
            self.round_trip.sample(round_trip)
            self._newest_sent = newest
            waits = any(not entry.arrived for entry in under_way) if ack.ranges else bool(under_way)
            self.resend_at = now + self.round_trip.timeout if waits or self._pending else None
            self._find_lost(now)

    @property
    def _sent(self) -> int:
        """The number of the newest message that was sent."""
        return self.count - len(self._pending)

    def _find_lost(self, now: float) -> None:
        """Take for lost what was overtaken for too long by messages that were sent later (RFC 8985)."""
        self._reorder_at = None
        if not self._under_way or self._under_way[0].sent_at >= self._newest_sent:
            return
        patience = max((self.round_trip.smoothed or 0.0) / 4, REORDERING)
        lost = []
        for entry in self._under_way:
            if entry.arrived or entry.sent_at >= self._newest_sent:
                continue
            overdue_at = entry.sent_at + patience + (self.round_trip.smoothed or 0.0)
            if overdue_at <= now:
                lost.append(entry)
            elif self._reorder_at is None or overdue_at < self._reorder_at:
                self._reorder_at = overdue_at
        self._lose(lost)

    def _lose(self, lost: Iterable[Entry]) -> None:
        known = {entry.number for entry in self._lost}
        new = [entry for entry in lost if entry.number not in known]
        if new:
            self._lost = deque(sorted((*self._lost, *new), key=lambda entry: entry.number))

    def next_deadline(self) -> float | None:
        """Return the time at which `tick` is due; None while nothing is awaited."""
        if self.resend_at is None or self._reorder_at is None:
            return self.resend_at if self._reorder_at is None else self._reorder_at
        return min(self.resend_at, self._reorder_at)

    def tick(self, now: float) -> bool:
        """Do what is due. Return whether to ask the peer for its limit, since it takes no more for now."""
        if self._reorder_at is not None and now >= self._reorder_at:
            self._find_lost(now)
        if self.resend_at is None or now < self.resend_at:
            return False
        self.round_trip.backoff()
        missing = [entry for entry in self._under_way if not entry.arrived]
        self.resend_at = now + self.round_trip.timeout if missing or self._pending else None
        # One frame: if it is acknowledged, `_find_lost` finds what else was lost with it. A route that is only slow is
        # not filled further.
        size = 0
        first: list[Entry] = []
        for entry in missing:
            if first and size + len(entry.item) > BUNDLE:
                break
            size += len(entry.item)
            first.append(entry)
        self._lose(first)
        return not missing and bool(self._pending)

    def resume(self, peer: Terms) -> list[Verdict]:
        """Begin a session: send again what the peer does not know. HistoryError if it knows something else."""
        verdicts: list[Verdict] = []
        base, position = self.base, peer.received
        if peer.peer_id != self.sender_id:
            if self.is_resumed:
                verdicts.append(Restarted(self.count - base.count))
            position = base
        elif position.count > self.count:
            raise HistoryError(Rollback(None, position.count, self.count))
        elif position.count < self.acknowledged:
            verdicts.append(Rollback(None, self.acknowledged, position.count))
            position = position if position.count >= base.count else base
        self.is_resumed = True
        entries = [*self._unhandled, *self._under_way, *self._pending]
        known = position.count - base.count
        if position.head != (entries[known].before if known < len(entries) else self.head):
            raise HistoryError(Fork(position.count))
        self._unhandled, self._under_way, self._lost = deque(entries[:known]), deque(), deque()
        self._pending = deque(entries[known:])
        self.acknowledged = position.count
        self.limit, self._total = WINDOW, 0
        for entry in self._pending:
            entry.arrived, entry.start = False, self._total
            self._total += entry.cost
        self.round_trip, self.resend_at, self._reorder_at, self._newest_sent = RoundTrip(), None, None, 0.0
        return verdicts
