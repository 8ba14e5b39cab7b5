"""The verdicts of one stream or channel that its program has not taken yet."""

from collections import deque

import trio

from trionode.protocol.rules.verdicts import Verdict
from trionode.routing.memory_channel import Receiver

#: Verdicts that wait for a program. A hub can cause any number of them, and the newest say the most.
MAX_VERDICTS = 64


class VerdictQueue(Receiver[Verdict]):
    """Keeps the newest MAX_VERDICTS. Each one is received once, also if several tasks iterate."""

    __slots__ = ("_closed", "_receivers", "_verdicts", "dropped")

    def __init__(self) -> None:
        self._verdicts: deque[Verdict] = deque()
        self._receivers = trio.lowlevel.ParkingLot()
        self._closed = False
        #: Verdicts that were dropped because the program did not take them.
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._verdicts)

    def __bool__(self) -> bool:
        return True

    def put(self, verdict: Verdict) -> None:
        """Add a verdict without waiting; drop the oldest beyond MAX_VERDICTS. A closed queue takes none."""
        if self._closed:
            return
        if len(self._verdicts) >= MAX_VERDICTS:
            self._verdicts.popleft()
            self.dropped += 1
        self._verdicts.append(verdict)
        self._receivers.unpark()

    async def receive(self) -> Verdict:
        """Wait for the next verdict and return it; EndOfChannel once the queue is closed and empty.

        If cancelled, no verdict is lost.
        """
        await trio.lowlevel.checkpoint()
        while not self._verdicts:
            if self._closed:
                raise trio.EndOfChannel
            await self._receivers.park()
        return self._verdicts.popleft()

    def close(self) -> None:
        """Accept no more verdicts. Those that wait can still be received."""
        self._closed = True
        self._receivers.unpark_all()
