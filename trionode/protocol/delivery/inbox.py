"""The receiving half of the delivery layer: puts messages in order, drops doubles, and finds out what is missing."""

from collections import deque
from collections.abc import Sequence

from trionode.protocol.delivery.frame import MAX_RANGES, Ack, Frame
from trionode.protocol.delivery.outbox import ITEM_COST, WINDOW, HistoryError
from trionode.protocol.delivery.terms import HASH_SIZE, Position, Terms, next_head
from trionode.protocol.rules.verdicts import Fork, Gap, Repaired, Rollback, TailSilence, Verdict

#: Seconds that an acknowledgement waits for a message of this side that carries it.
ACK_DELAY = 0.02
#: Seconds after which a missing message is reported as `Gap`. Until then it may only have been overtaken, or a lost
#: connection has dropped it and the peer sends it again.
GAP_SECONDS = 1.0
#: Seconds that one note of how far the peer has got stands for. So a gap may be reported that much earlier.
_NOTE_SECONDS = 0.1


class Inbox:
    """What one side has received from the other."""

    __slots__ = (
        "_ahead",
        "_ahead_cost",
        "_delivered",
        "_echo",
        "_echo_at",
        "_handled_ahead",
        "_notes",
        "_peer_end",
        "_promised_limit",
        "_received",
        "_reported",
        "ack_at",
        "count",
        "doubles",
        "epoch",
        "handled",
        "head",
        "heard_at",
        "is_silent",
        "peer_id",
        "reordered",
        "silence_at",
    )

    def __init__(self) -> None:
        #: Names the numbering of the peer; None before the first session.
        self.peer_id: bytes | None = None
        #: Counts the numberings of peers: a number of an earlier one means nothing any more.
        self.epoch = 0
        #: The number up to which everything was received, and the running hash there.
        self.count = 0
        self.head = bytes(HASH_SIZE)
        #: The number up to which everything was handled.
        self.handled = 0
        #: Messages that arrived twice, and those that arrived before an earlier one.
        self.doubles = 0
        self.reordered = 0
        #: When to acknowledge at the latest; None: there is nothing to acknowledge.
        self.ack_at: float | None = None
        #: When the peer was heard last, and when its silence is reported.
        self.heard_at = 0.0
        self.silence_at: float | None = None
        self.is_silent = False
        self._handled_ahead: set[int] = set()
        #: Messages beyond the position: the running hash before each one, and its bytes. WINDOW bounds their cost.
        self._ahead: dict[int, tuple[bytes, bytes]] = {}
        self._ahead_cost = 0
        #: The cost of this session's messages, received in order and delivered to their addresses.
        self._received = 0
        self._delivered = 0
        self._promised_limit = WINDOW
        self._echo, self._echo_at = 0, 0.0
        #: The number that the peer has sent, as far as it is known.
        self._peer_end = 0
        #: How far the peer had got at a time, while something was missing.
        self._notes: deque[tuple[float, int]] = deque()
        #: The gaps that were reported and not yet repaired, in order.
        self._reported: deque[tuple[int, int]] = deque()

    @property
    def position(self) -> Position:
        """The position up to which everything was received."""
        return Position(self.count, self.head)

    @property
    def is_reported_missing(self) -> bool:
        """Whether a `Gap` was reported that is not repaired."""
        return bool(self._reported)

    def ack(self, now: float) -> Ack:
        """Return the acknowledgement for a frame that is sent now."""
        self.ack_at = None
        self._promised_limit = self._delivered + WINDOW
        echo = self._echo + int((now - self._echo_at) * 1e6) & 0xFFFFFFFF
        return Ack(echo, self.position, self.handled, self._promised_limit, self._ranges())

    def _ranges(self) -> Sequence[tuple[int, int]]:
        if not self._ahead:
            return ()
        ranges: list[tuple[int, int]] = []
        for number in sorted(self._ahead):
            if ranges and ranges[-1][1] == number - 1:
                ranges[-1] = (ranges[-1][0], number)
            elif len(ranges) == MAX_RANGES:
                break
            else:
                ranges.append((number, number))
        return ranges

    def acknowledge_by(self, at: float) -> None:
        """Acknowledge at that time at the latest."""
        if self.ack_at is None or at < self.ack_at:
            self.ack_at = at

    def receive(self, frame: Frame, now: float) -> list[tuple[int, bytes]]:
        """Take the messages of a frame; return those to deliver, with their numbers, in order.

        HistoryError if the peer has sent other messages before than these.
        """
        self.heard_at, self.silence_at, self.is_silent = now, now + 2 * max(frame.delay, 1), False
        ready: list[tuple[int, bytes]] = []
        if frame.end is not None:
            self._peer_end = max(self._peer_end, frame.end.count)
            if frame.end.count == self.count and frame.end.head != self.head:
                raise HistoryError(Fork(self.count))
            if frame.end.count != self.count or self._received >= self._promised_limit:
                self.acknowledge_by(now)
        if frame.items:
            self._echo, self._echo_at = frame.stamp, now
            self._peer_end = max(self._peer_end, frame.first + len(frame.items) - 1)
            self.acknowledge_by(now + ACK_DELAY)
            if frame.first == self.count + 1 and not self._ahead:
                self._take_in_order(frame, ready)
            else:
                self._take(frame, ready)
                self.acknowledge_by(now)  # the sender learns at once what is missing, and what arrived twice
            if self._received + WINDOW // 4 > self._promised_limit:
                self.acknowledge_by(now)
        if self._peer_end <= self.count:
            self._notes.clear()
        else:
            recent = self._notes.pop()[0] if self._notes and now - self._notes[-1][0] < _NOTE_SECONDS else now
            self._notes.append((recent, self._peer_end))
        return ready

    def _take_in_order(self, frame: Frame, ready: list[tuple[int, bytes]]) -> None:
        if frame.before != self.head:
            raise HistoryError(Fork(self.count))
        for item in frame.items:
            if self._received >= self._delivered + WINDOW:
                return  # more than the limit allows: it is not acknowledged
            self._accept(item, ready)

    def _accept(self, item: bytes, ready: list[tuple[int, bytes]]) -> None:
        self.count += 1
        self.head = next_head(self.head, item)
        self._received += len(item) + ITEM_COST
        ready.append((self.count, item))

    def _take(self, frame: Frame, ready: list[tuple[int, bytes]]) -> None:
        number, before = frame.first, frame.before
        for item in frame.items:
            if number <= self.count or number in self._ahead:
                self.doubles += 1
            elif self._received + self._ahead_cost < self._delivered + WINDOW:
                self._ahead[number] = before, item
                self._ahead_cost += len(item) + ITEM_COST
                self.reordered += number > self.count + 1
            before = next_head(before, item)
            number += 1
        while (following := self._ahead.pop(self.count + 1, None)) is not None:
            before, item = following
            if before != self.head:
                raise HistoryError(Fork(self.count))
            self._ahead_cost -= len(item) + ITEM_COST
            self._accept(item, ready)

    def delivered(self, item: bytes, now: float) -> None:
        """Note that a message was delivered to its address, so the peer may send more."""
        self._delivered += len(item) + ITEM_COST
        if self._delivered + WINDOW - self._promised_limit >= WINDOW // 2:
            self.acknowledge_by(now)

    def was_handled(self, epoch: int, number: int, now: float) -> None:
        """Note that a message was handled by its worker; workers may finish in any order."""
        if epoch != self.epoch:
            return
        if number == self.handled + 1:
            self.handled = number
            while self.handled + 1 in self._handled_ahead:
                self.handled += 1
                self._handled_ahead.remove(self.handled)
            self.acknowledge_by(now + ACK_DELAY)
        elif number > self.handled:
            self._handled_ahead.add(number)

    def tick(self, now: float) -> list[Verdict]:
        """Report what is missing for too long."""
        verdicts: list[Verdict] = []
        if self.silence_at is not None and now >= self.silence_at:
            self.silence_at, self.is_silent = None, True
            verdicts.append(TailSilence(self.heard_at))
        horizon = 0
        while self._notes and self._notes[0][0] + GAP_SECONDS <= now:
            horizon = self._notes.popleft()[1]
        first = max(self.count, self._reported[-1][1] if self._reported else 0) + 1
        if first <= horizon:
            for number in sorted(self._ahead):
                if number > horizon:
                    break
                if number > first:
                    self._reported.append((first, number - 1))
                    verdicts.append(Gap(first, number - 1))
                first = max(first, number + 1)
            if first <= horizon:
                self._reported.append((first, horizon))
                verdicts.append(Gap(first, horizon))
        return verdicts

    def repaired(self) -> list[Verdict]:
        """Return the reported gaps that are filled."""
        verdicts: list[Verdict] = []
        while self._reported and self._reported[0][1] <= self.count:
            verdicts.append(Repaired(*self._reported.popleft()))
        return verdicts

    def next_deadline(self) -> float | None:
        """Return the time at which `tick` is due, or an acknowledgement; None while nothing is awaited."""
        missing_at = self._notes[0][0] + GAP_SECONDS if self._notes else None
        times = [at for at in (self.ack_at, self.silence_at, missing_at) if at is not None]
        return min(times) if times else None

    def resume(self, peer: Terms, now: float) -> list[Verdict]:
        """Begin a session: go on where the peer can go on. HistoryError if it has sent something else."""
        verdicts: list[Verdict] = []
        base = peer.base
        if peer.sender_id != self.peer_id:
            self.peer_id = peer.sender_id
            self._restart(base)
        elif base.count > self.count:
            # The peer believes that this side has handled messages that it does not know: this side went back.
            verdicts.append(Rollback(None, base.count, self.count))
            self._restart(base)
        elif base.count == self.count and base.head != self.head:
            raise HistoryError(Fork(self.count))
        self._ahead, self._ahead_cost = {}, 0
        self._received = self._delivered = 0
        self._promised_limit = WINDOW
        self._peer_end = self.count
        self._notes.clear()
        self.heard_at, self.silence_at, self.is_silent = now, None, False
        return verdicts

    def _restart(self, base: Position) -> None:
        self.epoch += 1
        self.count = self.handled = base.count
        self.head = base.head
        self._handled_ahead.clear()
        self._reported.clear()
