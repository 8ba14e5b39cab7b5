"""Pulls that wait for records at a hub, and the last answers before the hub ends (spec §11.6, 7)."""

from collections.abc import Callable

import trio

from trionode.protocol.stream.consumer import POLL_SECONDS
from trionode.protocol.wire.address import Encoded

#: Seconds that `finish` waits for consumers that are between two pulls. One that never repeats a request pulls again
#: after POLL_SECONDS and the time of its path.
FINISH_GRACE = POLL_SECONDS + 0.1
#: Seconds that `finish` waits until the answers have left.
ANSWER_GRACE = 1.0

#: A consumer of a stream: the stream's name, and the return route of its pulls.
Consumer = tuple[str, tuple[Encoded, ...]]


class LongPolls:
    """At most one waiting pull for each consumer, as the cancel scope whose end makes it be answered."""

    def __init__(self, is_connected: Callable[[Encoded], bool], changed: Callable[[], object]) -> None:
        """Begin without pulls.

        Args:
          is_connected: Whether the link that a consumer's pulls came by still exists.
          changed: Called whenever a pull has come or was answered.
        """
        self._is_connected = is_connected
        self._changed = changed
        self._scopes: dict[Consumer, trio.CancelScope] = {}
        # When consumers that never repeat a request got an answer, of those whose next pull has not come; the earliest
        # first.
        self._answered_at: dict[Consumer, float] = {}
        self._progress = trio.lowlevel.ParkingLot()
        self._is_finishing = False
        self._may_answer = trio.Event()

    def __len__(self) -> int:
        return len(self._scopes)

    def add(self, consumer: Consumer, scope: trio.CancelScope) -> None:
        """Let a pull wait. It replaces the former pull of the same consumer, which is answered now."""
        former = self._scopes.get(consumer)
        if former is not None:
            former.cancel()
        self._scopes[consumer] = scope
        self._answered_at.pop(consumer, None)
        if self._may_answer.is_set():
            scope.cancel()
        self._notify()

    async def wait_may_answer(self) -> None:
        """Wait while `finish` holds answers back; usually not at all."""
        if self._is_finishing:
            await self._may_answer.wait()

    def remove(self, consumer: Consumer, scope: trio.CancelScope) -> None:
        """Forget a pull that was answered."""
        if self._scopes.get(consumer) is scope:
            del self._scopes[consumer]
        self._notify()

    def expect_again(self, consumer: Consumer) -> None:
        """Note that a consumer that never repeats a request got an answer; it pulls again after POLL_SECONDS."""
        now = trio.current_time()
        self._answered_at.pop(consumer, None)
        self._answered_at[consumer] = now
        while now - next(iter(self._answered_at.values())) > FINISH_GRACE:
            del self._answered_at[next(iter(self._answered_at))]

    def _notify(self) -> None:
        self._progress.unpark_all()
        self._changed()

    async def finish(self) -> None:
        """Answer every pull; links may be closed once this has returned.

        A pull that is on its way when its link ends is lost, and so is a consumer that never repeats a request. So
        answers are held back for up to FINISH_GRACE seconds, until all those consumers have a pull waiting, and leave
        together. None of them has a pull on its way for the next POLL_SECONDS. Further pulls are answered at once.

        If cancelled, the answers leave at once.
        """
        self._is_finishing = True
        now = trio.current_time()
        recent = () if self._may_answer.is_set() else self._answered_at.items()
        due = {consumer for consumer, at in recent if now - at <= FINISH_GRACE and self._is_connected(consumer[1][0])}
        try:
            with trio.move_on_after(FINISH_GRACE):
                while not due <= self._scopes.keys():
                    await self._progress.park()
        finally:
            self._may_answer.set()
            scopes = set(self._scopes.values())
            for scope in scopes:
                scope.cancel()
        with trio.move_on_after(ANSWER_GRACE):
            while not scopes.isdisjoint(self._scopes.values()):
                await self._progress.park()
