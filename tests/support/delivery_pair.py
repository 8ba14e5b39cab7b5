"""Two delivery layers with a route between them, in virtual time and without Trio."""

import heapq
from collections.abc import Callable, Sequence
from itertools import count

from trionode.protocol.delivery.delivery import Delivery
from trionode.protocol.delivery.frame import Frame
from trionode.protocol.rules.verdicts import Verdict

#: Seconds that a frame is under way.
DELAY = 0.01

#: Decides what becomes of a frame: the seconds after which each of its copies arrives; none if it is dropped.
Fate = Callable[[str, Frame], Sequence[float]]


def arrives(_sender: str, _frame: Frame) -> Sequence[float]:
    """Deliver every frame once, in order."""
    return (DELAY,)


class Side:
    """One side: its layer, what was delivered to it, and its verdicts."""

    def __init__(self, name: str, sender_id: bytes) -> None:
        self.name = name
        self.delivery = Delivery(sender_id)
        self.received: list[bytes] = []
        self.verdicts: list[Verdict] = []
        #: Whether the addresses behind the channel take messages.
        self.takes = True


class Pair:
    """Alice, the initiator, and Bob, the responder. Bob handles every message as soon as it is delivered."""

    def __init__(self, fate: Fate = arrives) -> None:
        self.now = 100.0
        self.fate = fate
        self.alice, self.bob = Side("alice", b"A" * 16), Side("bob", b"B" * 16)
        self._queue: list[tuple[float, int, Side, bytes]] = []
        self._order = count()
        self.frames = 0
        self.open()

    def open(self) -> None:
        """Begin a session."""
        self._queue.clear()
        alice, bob = self.alice.delivery, self.bob.delivery
        alice.initiate(self.now)
        bob.respond(alice.terms, self.now)
        self._flush()

    def send(self, *items: bytes, by: Side | None = None) -> None:
        """Send messages, each in a frame of its own if nothing is under way."""
        for item in items:
            (by or self.alice).delivery.send(item, self.now)
        self._flush()

    def run(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        while True:
            sides = (self.alice, self.bob)
            due = min(side.delivery.next_deadline() for side in sides)
            arrival = self._queue[0][0] if self._queue else float("inf")
            at = min(due, arrival)
            if at > end:
                break
            self.now = max(self.now, at)
            if arrival <= due:
                _, _, receiver, data = heapq.heappop(self._queue)
                self._receive(receiver, data)
            for side in sides:
                if side.delivery.next_deadline() <= self.now:
                    side.delivery.tick(self.now)
            self._flush()
        self.now = end

    def _receive(self, side: Side, data: bytes) -> None:
        delivery = side.delivery
        for number, item in delivery.receive(data, self.now):
            side.received.append(item)
            if side.takes:
                delivery.inbox.delivered(item, self.now)
            delivery.inbox.was_handled(delivery.inbox.epoch, number, self.now)

    def _flush(self) -> None:
        for side, other in ((self.alice, self.bob), (self.bob, self.alice)):
            side.verdicts += side.delivery.verdicts
            side.delivery.verdicts.clear()
            while (data := side.delivery.frame(self.now)) is not None:
                self.frames += 1
                for delay in self.fate(side.name, Frame.decode(data)):
                    heapq.heappush(self._queue, (self.now + delay, next(self._order), other, data))
