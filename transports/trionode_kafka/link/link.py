"""A link over two topics, one for each direction: the wire's stream of frames cut into numbered records, with its own flow control, heartbeat and end.

Kafka keeps what is written, in order, and may be read late or twice; so what TCP gives a link for nothing is made here: a window, within which
data may wait unread, the numbers by which a double is dropped and a gap ends the link, and the knowledge that the peer has gone.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence

import attrs
import trio

from trionode.plugins import (
    CURRENT,
    ConnectionLost,
    FrameDecoder,
    MessageTooLargeError,
    ProtocolVersion,
    RemoteError,
    StoreError,
    WireError,
    join_frames,
)
from trionode_kafka.client import Fetched, Outgoing, RefusedByBrokerError
from trionode_kafka.link.frames import RECORD_BYTES, Kind, Record
from trionode_kafka.link.shared_client import BEAT_SECONDS, SharedKafka

#: Bytes under way to a peer that doesn't take them, before a sender waits: at 10 ms there and back, 100 MB/s.
WINDOW = 1024 * 1024
#: Bytes after whose taking the peer is told at once.
TELL_BYTES = WINDOW // 4
#: Seconds of silence after which a peer is taken for dead, as long as Kafka itself confirms what is written.
SILENCE_SECONDS = 30.0
#: Seconds that a frame may take from its beginning to its end: a part of one holds up to `max_frame` bytes of memory. As with TCP.
FRAME_SECONDS = 120.0
#: Seconds for which a link lives on while Kafka confirms nothing: a broker that was killed is back after 3.5-7 s, a rolling restart takes longer.
STALL_TIMEOUT = 60.0
#: Seconds that `aclose` waits until all that was sent lies in Kafka.
CLOSE_GRACE = 1.0
#: The same once it is cancelled: what it wrote last took 5-20 ms where Kafka is well, and without it the peer waits SILENCE_SECONDS for its end.
CANCELLED_GRACE = 0.25


@attrs.define(eq=False)
class _Unconfirmed:
    value: bytes
    since: float


class KafkaLink:
    """One end of a link; `reads` and `writes` are its topics. It uses a Kafka until `aclose` has returned."""

    def __init__(self, shared: SharedKafka, *, peer: str, reads: str, writes: str, max_frame: int) -> None:
        self.peer = peer
        self.protocol_version: ProtocolVersion = CURRENT
        self.max_frame = min(max_frame, CURRENT.max_sent)
        self._shared = shared
        self.reads = reads
        self._writes = writes
        # What comes in.
        self._decoder = FrameDecoder(CURRENT, max_frame=max_frame)
        self._offset = 0
        self._expected = 0
        self._arrived = 0
        self._taken = 0
        self._told = 0
        self._ready: list[bytes] = []
        self._end: RemoteError | None = None
        self._ended = False
        self._changed = trio.lowlevel.ParkingLot()
        self._heard = trio.current_time()
        #: Since when the frame is under way of which a part has come.
        self._begun = math.inf
        # What goes out.
        self._number = 0
        self._sent = 0
        self._acknowledged = 0
        self._room = trio.lowlevel.ParkingLot()
        self._unconfirmed: deque[_Unconfirmed] = deque()
        self._confirmed = trio.lowlevel.ParkingLot()
        self._spoken = self._heard
        self._broken = ""
        self._said_end = False
        self._said_close = False
        # The end of it all.
        self._peer_closed = False
        self._peer_dead = False
        self._closed = False
        self._linger_until = math.inf
        shared.join(self)

    async def open(self) -> None:
        """Read the peer's topic, which has to exist, as has the other, and greet the peer with the wire's preface (spec §3.2)."""
        self._shared.bridge.follow(self.reads, 0, self.arrive)
        await self._shared.bridge.introduce(self._writes)
        self._write_stream(CURRENT.preface)

    async def greeted(self) -> None:
        """Wait for the peer's preface; ConnectionLost or WireError if the link ends before."""
        while not self._decoder.greeted:
            if self._ended:
                raise self._end or ConnectionLost(f"{self.peer} closed the link before it said which wire it speaks")
            await self._changed.park()
        await trio.lowlevel.checkpoint()

    # -- the link's interface ----------------------------------------------------------------------------------------------------------

    async def receive(self) -> Sequence[bytes]:
        """All frames that have come; () at the peer's orderly end. Cancelled, nothing is lost."""
        await trio.lowlevel.checkpoint()
        while not (self._ready or self._ended):
            await self._changed.park()
        if self._ready:
            frames, self._ready = self._ready, []
            self._take()
            return frames
        if self._end is not None:
            raise self._end
        return ()

    async def send(self, frames: Sequence[bytes]) -> None:
        """Write a burst, waiting while the peer has WINDOW bytes unread; ConnectionLost if it is gone. Cancelled half-way, the link is broken."""
        if (largest := max(map(len, frames), default=0)) > self.max_frame:
            msg = f"the link to {self.peer} carries frames of at most {self.max_frame} bytes, this one has {largest}"
            raise MessageTooLargeError(msg)
        await trio.lowlevel.checkpoint()
        await self._credit()
        stream = memoryview(join_frames(self.protocol_version, frames))
        for start in range(0, len(stream), RECORD_BYTES):
            if start:
                try:
                    await self._credit()
                except trio.Cancelled:
                    self._broken = "a send was cancelled in the middle of its frames"
                    raise
            self._write_stream(bytes(stream[start : start + RECORD_BYTES]))

    async def _credit(self) -> None:
        """Wait until one more record may be under way; ConnectionLost if none may any more."""
        while not (self._broken or self._said_end) and self._sent - self._acknowledged > WINDOW:
            await self._room.park()
        if self._broken or self._said_end:
            msg = f"nothing can be sent to {self.peer}: {self._broken or 'this end has said that nothing more comes'}"
            raise ConnectionLost(msg)

    async def send_eof(self) -> None:
        """End this direction; `receive` goes on."""
        if not (self._said_end or self._broken):
            self._said_end = True
            self._write(Kind.END)
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """Say that it is over, and wait for CLOSE_GRACE until all that was sent lies in Kafka, where the peer finds it; cancelled, for CANCELLED_GRACE."""
        if self._closed:
            await trio.lowlevel.checkpoint()
            return
        self._closed = True
        self._lose(ConnectionLost(f"the link to {self.peer} is closed"))
        self._ready.clear()
        self._say_close()
        grace = CANCELLED_GRACE
        try:
            with trio.move_on_after(CLOSE_GRACE):
                await trio.lowlevel.checkpoint()
                await self._all_confirmed()
            grace = 0.0
        finally:
            with trio.CancelScope(shield=True):
                with trio.move_on_after(grace):
                    await self._all_confirmed()
                if self._peer_dead:
                    self._drop(self.reads, self._writes)
                self._linger_until = trio.current_time() + SILENCE_SECONDS
                await self._shared.release()

    async def _all_confirmed(self) -> None:
        while self._unconfirmed:
            await self._confirmed.park()

    # -- what comes in -----------------------------------------------------------------------------------------------------------------

    def arrive(self, records: Sequence[Fetched] | StoreError) -> None:
        """Take what was read from the peer's topic; called by the bridge."""
        if isinstance(records, RefusedByBrokerError):
            self._lose(ConnectionLost(f"the link to {self.peer} can't be read any more: {records}"))
        elif isinstance(records, StoreError):
            self._shared.bridge.follow(self.reads, self._offset, self.arrive)
        else:
            for record in records:
                self._offset = record.offset + 1
                try:
                    self._arrived_one(Record.decode(record.value))
                except RemoteError as error:
                    self._lose(error)
            if self._arrived - self._told >= TELL_BYTES and not self._ready:
                self._take()
            self._changed.unpark_all()

    def _arrived_one(self, record: Record) -> None:
        if record.number > self._expected and not self._ended:
            msg = f"records {self._expected} to {record.number - 1} of {self.peer} are gone from Kafka, or somebody else writes into its topic"
            self._lose(ConnectionLost(msg))
        if record.kind is Kind.CLOSE:
            self._peer_closed = True
            self._lose(ConnectionLost(f"{self.peer} has closed the link"), orderly=True)
            self._say_close()
            # The peer has written its last, and all that is read: nobody needs this topic any more.
            self._drop(self.reads)
        if record.number < self._expected or self._ended:
            return  # a double of a record that was sent again, or nobody's business any more
        if record.taken > self._sent:
            msg = f"{self.peer} has taken {record.taken} bytes of {self._sent}"
            raise WireError(msg)
        self._expected += 1
        self._heard = trio.current_time()
        if record.taken > self._acknowledged:
            self._acknowledged = record.taken
            self._room.unpark_all()
        if record.kind is Kind.DATA:
            self._arrived += len(record.data)
            if self._arrived - self._taken > WINDOW + RECORD_BYTES:
                msg = f"{self.peer} sends more than the {WINDOW} bytes that may be under way"
                raise WireError(msg)
            frames = self._decoder.receive(record.data)
            if self._decoder.is_between_frames:
                self._begun = math.inf
            elif frames or self._begun == math.inf:
                self._begun = self._heard
            self._ready += frames
        elif record.kind is Kind.END:
            self._end_in_order()

    def _take(self) -> None:
        """All that has come is taken, but for a part of a frame, which `max_frame` bounds; tell the peer when it is worth it."""
        self._taken = self._arrived
        if self._taken - self._told >= TELL_BYTES:
            self._write(Kind.BEAT)

    def _end_in_order(self) -> None:
        if self._ended:
            return
        self._ended = True
        if not self._decoder.is_between_frames:
            self._end = ConnectionLost(f"{self.peer} ended the link in the middle of a frame")
        self._changed.unpark_all()

    def _lose(self, error: RemoteError, *, orderly: bool = False) -> None:
        """Nothing more can be sent, and behind what has come is the end: this error, or the orderly one."""
        self._broken = self._broken or str(error)
        if orderly:
            self._end_in_order()
        elif not self._ended:
            self._ended, self._end = True, error
        self._room.unpark_all()
        self._changed.unpark_all()

    # -- what goes out -----------------------------------------------------------------------------------------------------------------

    def _write_stream(self, data: bytes) -> None:
        self._sent += len(data)
        self._write(Kind.DATA, data)

    def _say_close(self) -> None:
        if not self._said_close:
            self._write(Kind.CLOSE)
            self._said_close = True

    def _write(self, kind: Kind, data: bytes = b"") -> None:
        if self._said_close:
            return
        self._told = self._taken
        self._spoken = trio.current_time()
        self._unconfirmed.append(_Unconfirmed(Record(kind, self._number, self._taken, data).encoded(), self._spoken))
        self._number += 1
        if not self._shared.renewing:
            self._hand_over(self._unconfirmed[-1])

    def _hand_over(self, *records: _Unconfirmed) -> None:
        confirm = _confirmation(self, self._shared.protocol_version)
        self._shared.bridge.send(self._writes, [(Outgoing(0, record.value), confirm) for record in records])

    def confirm(self, protocol_version: int, answer: int | StoreError) -> None:
        """Take what a producer says of the oldest record that it has."""
        if protocol_version != self._shared.protocol_version:
            return
        if isinstance(answer, int):
            if not self._unconfirmed:
                return  # it was given up
            oldest = self._unconfirmed.popleft()
            now = trio.current_time()
            if now - oldest.since > BEAT_SECONDS:
                self._heard = now  # the peer could not be heard either
            if not self._unconfirmed:
                self._confirmed.unpark_all()
            return
        # The first error of a producer is the fault of whom it names; all that it says behind that is about itself.
        if isinstance(answer, RefusedByBrokerError) and not self._shared.renewing:
            self._give_up(str(answer))
        self._shared.renew()

    def again(self) -> None:
        """Hand all that is unconfirmed to a new producer: the peer drops what it has already."""
        if self._unconfirmed:
            self._hand_over(*self._unconfirmed)

    def _give_up(self, reason: str) -> None:
        """Kafka takes nothing from us any more."""
        self._lose(ConnectionLost(f"the link to {self.peer} can't be written any more: {reason}"))
        self._unconfirmed.clear()
        self._said_close = True
        self._peer_dead = True
        self._confirmed.unpark_all()

    # -- time --------------------------------------------------------------------------------------------------------------------------

    @property
    def lingers(self) -> bool:
        """Whether this end is closed, and waits for the peer's last record only, which may come as long as Kafka takes ours."""
        return self._closed and not (self._peer_closed or self._unconfirmed)

    def beat(self) -> None:
        """See who is silent, and break our own silence; called twice in BEAT_SECONDS."""
        now = trio.current_time()
        if self._closed:
            if now > self._linger_until:
                self.part()
            return
        late = now - self._unconfirmed[0].since if self._unconfirmed else 0.0
        if late > STALL_TIMEOUT:
            self._lose(ConnectionLost(f"the link to {self.peer} is lost: Kafka has confirmed nothing for {late:.0f} s"))
        elif late < BEAT_SECONDS and now - self._heard > SILENCE_SECONDS:
            self._peer_dead = True
            self._lose(
                ConnectionLost(f"{self.peer} has said nothing for {now - self._heard:.0f} s, not even that it lives")
            )
        elif late < BEAT_SECONDS and now - self._begun > FRAME_SECONDS:
            self._lose(ConnectionLost(f"{self.peer} did not end a frame within {FRAME_SECONDS:g} s"))
        elif now - self._spoken >= BEAT_SECONDS / 2:
            self._write(Kind.BEAT)

    def abandon(self) -> None:
        """Linger no more; topics in which the peer has never spoken are nobody's."""
        if not self._decoder.greeted:
            self.part()

    def part(self) -> None:
        """Wait for the peer no more: both topics are nobody's."""
        if self._unconfirmed:
            # A producer tries for ever to write into a topic that is gone.
            self._unconfirmed.clear()
            self._shared.renew()
        self._drop(self.reads, self._writes)

    def _drop(self, *topics: str) -> None:
        self._shared.bridge.unfollow(self.reads)
        self._shared.bridge.delete_topics(topics)
        self._shared.leave(self)


def _confirmation(link: KafkaLink, protocol_version: int) -> Callable[[int | StoreError], None]:
    def confirm(answer: int | StoreError) -> None:
        link.confirm(protocol_version, answer)

    return confirm
