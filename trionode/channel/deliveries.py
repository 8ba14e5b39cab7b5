"""The channels of one node that have the delivery layer: one task sends what waits in them and keeps their deadlines."""

import heapq
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Protocol

import trio


class DeliveringChannel(Protocol):
    """What this module needs of a channel."""

    #: The earliest time for which the channel is scheduled.
    scheduled_at: float

    def flush(self) -> None:
        """Send everything that may be sent now."""

    def on_time(self) -> None:
        """Do what is due."""

    @property
    def promised(self) -> int:
        """The number of messages that were accepted and not acknowledged."""
        ...

    def say_goodbye(self) -> None:
        """Send the last acknowledgement, and report the end of this node to the peer."""

    async def drain(self) -> None:
        """Wait until the peer has acknowledged everything, or the channel has ended."""


class Deliveries:
    """Sends what waits in the channels of one node, and wakes them at their deadlines."""

    def __init__(self) -> None:
        #: The open channels.
        self.channels: dict[DeliveringChannel, None] = {}
        #: Messages of ended channels that were accepted and never acknowledged.
        self.undelivered = 0
        self._nursery: trio.Nursery | None = None
        self._flushing: dict[DeliveringChannel, None] = {}
        #: Deadlines, and the keys of the channels that they are for: an ended channel is not kept alive by them.
        self._deadlines: list[tuple[float, int]] = []
        self._scheduled: dict[int, DeliveringChannel] = {}
        self._order = count()
        self._parked = trio.lowlevel.ParkingLot()
        self._sleep = trio.CancelScope()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run until the node ends."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            try:
                while True:
                    await self._wait()
                    flushing, self._flushing = self._flushing, {}
                    for channel in flushing:
                        channel.flush()
                    now = trio.current_time()
                    while self._deadlines and self._deadlines[0][0] <= now:
                        at, key = heapq.heappop(self._deadlines)
                        channel = self._scheduled.pop(key)
                        if channel.scheduled_at == at:
                            channel.scheduled_at = float("inf")
                            channel.on_time()
            finally:
                self._nursery = None

    async def _wait(self) -> None:
        """Wait for a channel to flush, or the next deadline; let other tasks run in any case."""
        if self._flushing:
            await trio.lowlevel.checkpoint()
            return
        deadline = self._deadlines[0][0] if self._deadlines else float("inf")
        with trio.CancelScope(deadline=deadline) as self._sleep:
            await self._parked.park()

    def flush_soon(self, channel: DeliveringChannel) -> None:
        """Send what waits in a channel, after the tasks that run now have added what they have."""
        self._flushing[channel] = None
        self._parked.unpark_all()

    def schedule(self, channel: DeliveringChannel, at: float) -> None:
        """Call the channel's `on_time` at that time, or earlier."""
        if at < channel.scheduled_at:
            channel.scheduled_at = at
            key = next(self._order)
            self._scheduled[key] = channel
            heapq.heappush(self._deadlines, (at, key))
            self._sleep.deadline = min(self._sleep.deadline, at)

    def remove(self, channel: DeliveringChannel) -> None:
        """Forget a channel that has ended, and the deadlines of all ended ones once they are the most."""
        self.channels.pop(channel, None)
        self._flushing.pop(channel, None)
        if len(self._deadlines) > 2 * len(self.channels) + 64:
            self._deadlines = [
                (at, key)
                for at, key in self._deadlines
                if self._scheduled[key] in self.channels and self._scheduled[key].scheduled_at == at
            ]
            self._scheduled = {key: self._scheduled[key] for _, key in self._deadlines}
            heapq.heapify(self._deadlines)

    def start_soon(self, task: Callable[..., Awaitable[object]], *args: object) -> None:
        """Start a task of a channel, unless the node has ended."""
        if self._nursery is not None:
            self._nursery.start_soon(task, *args)

    async def drain(self) -> None:
        """Wait until every channel is drained."""
        async with trio.open_nursery() as nursery:
            for channel in list(self.channels):
                nursery.start_soon(channel.drain)
