"""The links of a faulty network. No task carries frames: each has a time at which it may be received."""

import heapq
import itertools
import math
from collections.abc import Callable, Sequence
from hashlib import blake2b
from struct import Struct

import attrs
import trio

from trionode.errors import ConnectionLost, MessageTooLargeError, WireError
from trionode.protocol.wire.current_codec import CURRENT
from trionode.protocol.wire.version import ProtocolVersion
from trionode.routing.byte_budget import ByteBudget
from trionode.routing.memory_channel import ITEM_OVERHEAD
from trionode.testing.faults import OVERTAKEN_WITHIN, Event, Fate, Faults, Frame

#: Bytes in flight in one direction before a writer waits, about the size of the socket buffers of a real connection.
WINDOW = 256 * 1024


#: The 64 bytes of a hash as eight integers.
_EIGHT = Struct("<8Q")


@attrs.define
class _Held:
    """A frame that waits to be overtaken."""

    left: int
    until: float
    data: bytes


@attrs.frozen
class Conditions:
    """What a network says about one direction between two nodes."""

    faults: Callable[[], Faults]
    is_partitioned: Callable[[], bool]
    log: Callable[[Event], None]


class FrameQueue(ByteBudget):
    """The frames in flight in one direction of a link. Its bound makes the sender wait, as socket buffers do."""

    def __init__(self, sender: str, receiver: str, link: int, seed: str, conditions: Conditions) -> None:
        super().__init__(WINDOW)
        #: Why the link was lost; empty if it was not.
        self.lost = ""
        #: Whether the receiver knows of the end or the loss.
        self.is_over = False
        #: Whether nothing arrives any more, not even the end.
        self.is_silent = False
        self._ends = sender, receiver
        self._link = link
        self._seed = seed
        self._conditions = conditions
        self._sent = 0
        self._in_flight: list[tuple[float, int, bytes]] = []
        self._order = itertools.count()
        self._held: list[_Held] = []
        self._latest = self._free = -math.inf
        self._eof_sent = self._receiver_closed = False
        self._changed = trio.lowlevel.ParkingLot()
        #: The scope of the receiver that waits; its deadline is when the next frame is due.
        self._waiting_scope = trio.CancelScope()

    @property
    def is_blocked(self) -> bool:
        """Whether nothing passes now."""
        return self.is_silent or self._conditions.is_partitioned()

    # The sender

    def put(self, data: bytes) -> None:
        """Send a frame."""
        self._sent += 1
        faults = self._conditions.faults()
        frame = Frame(*self._ends, self._link, self._sent, data)
        fate = faults._fate(frame, self._numbers)
        if fate is None:
            fate = Fate("", (data,))
        else:
            self._conditions.log(Event(fate.what, " → ".join(self._ends), self._link, self._sent))
        now = trio.current_time()
        self._free = max(now, self._free) + len(data) / faults.rate
        due = max(self._latest, self._free + faults.latency)
        overtaken, self._held = self._held, []
        for each in fate.frames:
            self.add(len(each) + ITEM_OVERHEAD)
            if fate.overtaken_by:
                self._held.append(_Held(fate.overtaken_by, due + OVERTAKEN_WITHIN, each))
            else:
                self._push(due + fate.delay, each)
        if fate.frames:
            self._latest = due
            for held in overtaken:
                held.left -= 1
                if not held.left:
                    self._push(due, held.data)
        self._held += [held for held in overtaken if held.left]
        self._hasten()

    def _numbers(self) -> list[float]:
        """Return eight numbers from 0 to 1 for the frame that is sent now; a hash is faster than a new generator."""
        digest = blake2b(f"{self._seed} {self._sent}".encode()).digest()
        return [number / 2**64 for number in _EIGHT.unpack(digest)]

    def finish(self) -> None:
        """End the direction in good order."""
        if not self._eof_sent:
            self._eof_sent = True
            self.close()
            for held in self._held:  # no frame comes that could overtake them
                self._push(self._latest, held.data)
            self._held.clear()
            self.wake()

    # The receiver

    def _push(self, due: float, data: bytes) -> None:
        heapq.heappush(self._in_flight, (due, next(self._order), data))

    def _take(self, now: float) -> list[bytes]:
        """Remove and return all frames that are due."""
        for held in [each for each in self._held if each.until <= now]:
            self._held.remove(held)
            self._push(held.until, held.data)
        frames = []
        while self._in_flight and self._in_flight[0][0] <= now:
            frames.append(heapq.heappop(self._in_flight)[2])
            self.release(len(frames[-1]) + ITEM_OVERHEAD)
        return frames

    async def receive(self) -> list[bytes]:
        """Return all frames that are due, at least one; [] at the end. ConnectionLost if the link was lost."""
        if self._next_due() > trio.current_time():
            await self._wait()
        else:
            await trio.lowlevel.checkpoint()
        while not self.is_over:
            if not self.is_blocked or self.lost:
                if frames := self._take(trio.current_time()):
                    return frames
                if self.lost:
                    self.is_over = True
                    raise ConnectionLost(self.lost)
                if self._eof_sent and not self._in_flight and not self._held:
                    self.is_over = True
                    break
            await self._wait()
        return []

    def _next_due(self) -> float:
        """Return when the receiver has to look again: when a frame is due, or now at the end of the link."""
        if self.is_over or self.lost:
            return -math.inf
        if self.is_blocked:
            return math.inf
        due = self._in_flight[0][0] if self._in_flight else math.inf
        if self._held:
            return min(due, *(each.until for each in self._held))
        return -math.inf if self._eof_sent and not self._in_flight else due

    async def _wait(self) -> None:
        with trio.CancelScope(deadline=self._next_due()) as self._waiting_scope:
            await self._changed.park()

    def _hasten(self) -> None:
        """Let a receiver that waits look again when the next frame is due, without waking it before."""
        if self._changed:
            due = self._next_due()
            if due <= trio.current_time():
                self._changed.unpark_all()
            elif due < self._waiting_scope.deadline:
                self._waiting_scope.deadline = due

    def stop_receiving(self) -> None:
        """Discard all frames. The sender notices once nothing blocks the link."""
        self._receiver_closed = self.is_over = True
        self._discard()
        self.wake()

    # The network

    def wake(self) -> None:
        """Let the receiver check again what is due."""
        if self._receiver_closed and not self.is_blocked:
            self.close()
        self._changed.unpark_all()

    def abort(self, reason: str) -> None:
        """Lose the link. The receiver still gets the frames that are due; those in flight are lost."""
        if not self.is_over and not self.lost:
            arrived = [] if self.is_blocked else self._take(trio.current_time())
            self._discard()
            for each in arrived:
                self._push(-math.inf, each)
                self.add(len(each) + ITEM_OVERHEAD)
        self.lost = self.lost or reason
        self.close()
        self.wake()

    def _discard(self) -> None:
        self._held.clear()
        self._in_flight.clear()
        self.size = 0


class FaultyLink:
    """One end of a link in a `FaultyNetwork` (see `trionode.plugins.Link`)."""

    def __init__(self, peer: str, incoming: FrameQueue, outgoing: FrameQueue, max_frame: int) -> None:
        self.peer = peer
        self.protocol_version: ProtocolVersion = CURRENT
        self.max_frame = max_frame
        self.incoming = incoming
        self.outgoing = outgoing
        #: Whether the node of this end has crashed: then it can do nothing, and receives nothing.
        self.is_dead = False

    async def receive(self) -> Sequence[bytes]:
        """Return all frames that are due, at least one; () at the end."""
        try:
            frames = await self.incoming.receive()
        except ConnectionLost:
            if self.is_dead:
                await trio.sleep_forever()
            raise
        if too_large := max((len(frame) for frame in frames if len(frame) > self.max_frame), default=0):
            self.incoming.stop_receiving()
            raise WireError(f"{self.peer} sent a frame of {too_large} bytes, where 1 to {self.max_frame} are allowed")
        return frames

    async def send(self, frames: Sequence[bytes]) -> None:
        """Send a burst. Waits while WINDOW bytes are in flight. If cancelled, nothing of it was sent."""
        largest = max(map(len, frames), default=0)
        if largest > self.max_frame:
            raise MessageTooLargeError(
                f"the link to {self.peer} carries frames of at most {self.max_frame} bytes, this one has {largest}"
            )
        await self.outgoing.wait_for_capacity()
        if self.is_dead:
            return
        if self.outgoing.is_closed:
            raise ConnectionLost(self.outgoing.lost or f"the link to {self.peer} is closed")
        for frame in frames:
            self.outgoing.put(bytes(frame))

    async def send_eof(self) -> None:
        """End the outgoing direction."""
        if not self.is_dead:
            self.outgoing.finish()
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """End both directions. What was sent still arrives."""
        self.close()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """Do the same as `aclose`, without a checkpoint."""
        if not self.is_dead:
            self.outgoing.finish()
            self.incoming.stop_receiving()
