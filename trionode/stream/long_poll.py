"""Pulls that wait for their answers at a hub, and how the last answers leave so that no consumer is lost (spec §11.6, 7)."""

from collections.abc import Callable

import trio

from trionode.protocol.stream import POLL_SECONDS
from trionode.protocol.wire.address import Encoded

#: Seconds that `finish` waits for consumers that are between two pulls: one that never asks again comes back after POLL_SECONDS and its way.
FINISH_GRACE = POLL_SECONDS + 0.1
#: Seconds that `finish` waits until the answers have left.
ANSWER_GRACE = 1.0

#: A consumer at a stream: the stream's name, and the return route of its pulls.
Consumer = tuple[str, tuple[Encoded, ...]]


class WaitingPulls:
    """At most one pull for each consumer, each as the scope whose end lets it be answered.

    `is_there` tells whether the link of a consumer is; `settled` is called whenever a pull has come or was answered.
    """

    def __init__(self, is_there: Callable[[Encoded], bool], settled: Callable[[], None]) -> None:
        self._is_there = is_there
        self._settled = settled
        self._scopes: dict[Consumer, trio.CancelScope] = {}
        # When consumers that never ask again were last answered, those whose next pull has not come, the longest first.
        self._resting: dict[Consumer, float] = {}
        self._changed = trio.lowlevel.ParkingLot()
        self._finishing = False
        self._answering = trio.Event()

    def __len__(self) -> int:
        return len(self._scopes)

    def take(self, consumer: Consumer, scope: trio.CancelScope) -> None:
        """Let a pull wait, in the place of the one that the same consumer sent before: that was given up, and is answered."""
        former = self._scopes.get(consumer)
        if former is not None:
            former.cancel()
        self._scopes[consumer] = scope
        self._resting.pop(consumer, None)
        if self._answering.is_set():
            scope.cancel()
        self._stir()

    async def turn(self) -> None:
        """Wait until an answer may leave: at once, but while `finish` holds them back."""
        if self._finishing:
            await self._answering.wait()

    def answered(self, consumer: Consumer, scope: trio.CancelScope) -> None:
        """Note that a pull was answered."""
        if self._scopes.get(consumer) is scope:
            del self._scopes[consumer]
        self._stir()

    def rest(self, consumer: Consumer) -> None:
        """Note when a consumer got an answer that never asks again for one that is lost: it will come back after POLL_SECONDS."""
        now = trio.current_time()
        self._resting.pop(consumer, None)
        self._resting[consumer] = now
        while now - next(iter(self._resting.values())) > FINISH_GRACE:
            del self._resting[next(iter(self._resting))]

    def _stir(self) -> None:
        self._changed.unpark_all()
        self._settled()

    async def finish(self) -> None:
        """Answer every pull: when this returns is the time to close links.

        A pull that is on its way when its link ends is lost, and with it a consumer that never asks again. So answers are held back for up to
        FINISH_GRACE seconds until all of those wait for one, and leave together: none of them has a pull on its way for POLL_SECONDS then.
        Further pulls are answered at once. Cancelled, the answers leave at once.
        """
        self._finishing = True
        now = trio.current_time()
        resting = () if self._answering.is_set() else self._resting.items()
        due = {consumer for consumer, at in resting if now - at <= FINISH_GRACE and self._is_there(consumer[1][0])}
        try:
            with trio.move_on_after(FINISH_GRACE):
                while not due <= self._scopes.keys():
                    await self._changed.park()
        finally:
            self._answering.set()
            answered = set(self._scopes.values())
            for scope in answered:
                scope.cancel()
        with trio.move_on_after(ANSWER_GRACE):
            while not answered.isdisjoint(self._scopes.values()):
                await self._changed.park()
