"""A link over two topics, one for each direction: frames in numbered records, flow control, heartbeats, an end.

Kafka keeps what is written, in order, and may deliver it late or twice. So a link does itself what TCP does for others:
a window bounds the unread data, numbers show doubles (dropped) and gaps (which end the link), and silence shows that
the peer is dead.
"""

import math
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

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
from trionode_kafka.client import FetchedRecord, OutgoingRecord, RefusedByBrokerError
from trionode_kafka.link.records import RECORD_BYTES, LinkRecord, RecordKind
from trionode_kafka.link.shared_client import SharedClient

#: Bytes that may be on their way to a peer that has not consumed them, before a sender waits: 100 MB/s at 10 ms there
#: and back.
WINDOW = 1024 * 1024
#: The peer gets a report at once when this many more bytes were consumed.
ACKNOWLEDGE_BYTES = WINDOW // 4
#: Seconds without a record after which this end sends a heartbeat, at the latest.
HEARTBEAT_SECONDS = 10.0
#: Seconds of silence after which a peer counts as dead, if Kafka itself confirms what this end writes.
SILENCE_SECONDS = 30.0
#: Seconds that a frame may take from its first byte to its last: a part of one holds up to `max_frame` bytes of memory.
#: As with TCP.
FRAME_SECONDS = 120.0
#: Seconds that a link lasts while Kafka confirms nothing: a killed broker is back after 3.5-7 s, a rolling restart
#: takes longer.
STALL_TIMEOUT = 60.0
#: Seconds that the end of the node waits until Kafka has confirmed a link's last records.
CLOSE_SECONDS = 1.0
#: Seconds that it then waits for the peer's last record, to delete the topic that this end reads.
PEER_CLOSE_SECONDS = 0.5


class KafkaLink:
    """One end of a link; `reads` and `writes` are its topics. `open_link` makes one and starts its task `run`."""

    def __init__(self, shared: SharedClient, *, peer: str, reads: str, writes: str, max_frame: int) -> None:
        self.peer = peer
        self.protocol_version: ProtocolVersion = CURRENT
        self.max_frame = min(max_frame, CURRENT.max_sent)
        self.reads = reads
        self._writes = writes
        self._shared = shared
        # Receiving.
        self._decoder = FrameDecoder(CURRENT, max_frame=max_frame)
        self._offset = 0
        self._next_number = 0
        self._arrived = 0
        self._consumed = 0
        self._acknowledged = 0
        self._frames: list[bytes] = []
        self._ended = False
        self._error: RemoteError | None = None
        self._changed = trio.lowlevel.ParkingLot()
        self._heard_at = trio.current_time()
        #: When the frame began of which only a part has arrived.
        self._frame_began_at = math.inf
        # Sending.
        self._number = 0
        self._sent = 0
        self._peer_consumed = 0
        self._window_opened = trio.lowlevel.ParkingLot()
        #: Values of records, and when they were written.
        self._unconfirmed: deque[tuple[bytes, float]] = deque()
        self._all_confirmed = trio.lowlevel.ParkingLot()
        self._wrote_at = self._heard_at
        self._broken = ""
        self._wrote_end = False
        self._wrote_close = False
        # Closing.
        self._closing = trio.Event()
        self._peer_closed = trio.Event()
        self._peer_is_dead = False

    async def exchange_prefaces(self, announce: Callable[[], Awaitable[object]] | None = None) -> None:
        """Send the preface (spec §3.2), call `announce`, and wait for the peer's preface.

        Raises ConnectionLost or WireError if the link ends before, and whatever `announce` raises. The link is closed
        then, as when this is cancelled.
        """
        try:
            await self._shared.client.producer.load_metadata(self._writes)
            self._write_stream(CURRENT.preface)
            if announce is not None:
                await announce()
            await self._wait_for_preface()
        except BaseException:  # whatever it is, cancellation too
            self._close()
            raise

    async def _wait_for_preface(self) -> None:
        while not self._decoder.has_preface:
            if self._ended:
                reason = f"{self.peer} closed the link before it sent its protocol version"
                raise self._error or ConnectionLost(reason)
            await self._changed.park()

    # -- the interface of a link

    async def receive(self) -> Sequence[bytes]:
        """Return all frames that have arrived; () at the peer's orderly end. If cancelled, nothing is lost."""
        await trio.lowlevel.checkpoint()
        while not (self._frames or self._ended):
            await self._changed.park()
        if self._frames:
            frames, self._frames = self._frames, []
            self._consume()
            return frames
        if self._error is not None:
            raise self._error
        return ()

    async def send(self, frames: Sequence[bytes]) -> None:
        """Write a burst, waiting while WINDOW bytes are unread; ConnectionLost if the link has ended.

        If cancelled between two records of a burst, the link is broken.
        """
        if (largest := max(map(len, frames), default=0)) > self.max_frame:
            raise MessageTooLargeError(
                f"the link to {self.peer} carries frames of at most {self.max_frame} bytes, this one has {largest}"
            )
        await trio.lowlevel.checkpoint()
        await self._wait_for_window()
        stream = memoryview(join_frames(self.protocol_version, frames))
        for start in range(0, len(stream), RECORD_BYTES):
            if start:
                try:
                    await self._wait_for_window()
                except trio.Cancelled:
                    self._broken = "a send was cancelled in the middle of its frames"
                    raise
            self._write_stream(bytes(stream[start : start + RECORD_BYTES]))

    async def _wait_for_window(self) -> None:
        """Wait until one more record may be sent; ConnectionLost if none may be sent any more."""
        while not (self._broken or self._wrote_end) and self._sent - self._peer_consumed > WINDOW:
            await self._window_opened.park()
        if self._broken or self._wrote_end:
            raise ConnectionLost(
                f"nothing can be sent to {self.peer}: {self._broken or 'this end has ended its direction'}"
            )

    async def send_eof(self) -> None:
        """End this direction; `receive` goes on."""
        if not (self._wrote_end or self._broken):
            self._wrote_end = True
            self._write(RecordKind.END)
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """Close the link. The task of the link then sees to it that the peer gets all that was sent."""
        self._close()
        await trio.lowlevel.checkpoint()

    def _close(self) -> None:
        self._abort(ConnectionLost(f"the link to {self.peer} is closed"))
        self._frames.clear()
        self._write_close()
        self._closing.set()

    # -- the task of the link

    async def run(self) -> None:
        """Send heartbeats and watch the peer's until the link is closed; then wait for the peer and delete topics."""
        leftover: tuple[str, ...] = (self.reads, self._writes)
        try:
            while not self._closing.is_set():
                self._check_liveness()
                with trio.move_on_after(HEARTBEAT_SECONDS / 2):
                    await self._closing.wait()
            if self._peer_is_dead:
                await self._wait_for_end(CLOSE_SECONDS, 0.0)
            else:
                await self._wait_for_end(SILENCE_SECONDS, SILENCE_SECONDS)
        except trio.Cancelled:  # the node ends
            self._close()
            with trio.CancelScope(shield=True):
                await self._wait_for_end(CLOSE_SECONDS, PEER_CLOSE_SECONDS)
            if self._decoder.has_preface and not self._peer_is_dead:
                leftover = ()  # the peer still reads one topic, and deletes both
            raise
        finally:
            if self._peer_closed.is_set():
                leftover = (self.reads,)  # the peer deletes the other one
            if self._unconfirmed:
                # A producer tries for ever to write into a deleted topic.
                self._unconfirmed.clear()
                self._shared.producer_failed()
            self._shared.client.follower.unfollow(self.reads)
            self._shared.client.delete_topics(leftover)
            self._shared.remove_link(self.reads)

    async def _wait_for_end(self, confirm_seconds: float, close_seconds: float) -> None:
        """Wait until Kafka has confirmed all records, and then for the peer's last record."""
        with trio.move_on_after(confirm_seconds):
            while self._unconfirmed:
                await self._all_confirmed.park()
        if not self._unconfirmed:
            with trio.move_on_after(close_seconds):
                await self._peer_closed.wait()

    def _check_liveness(self) -> None:
        now = trio.current_time()
        late = now - self._unconfirmed[0][1] if self._unconfirmed else 0.0
        silent = now - self._heard_at
        if late > STALL_TIMEOUT:
            self._abort(
                ConnectionLost(f"the link to {self.peer} is lost: Kafka has confirmed nothing for {late:.0f} s")
            )
        elif late < HEARTBEAT_SECONDS and silent > SILENCE_SECONDS:
            self._peer_is_dead = True
            self._abort(ConnectionLost(f"{self.peer} has sent nothing for {silent:.0f} s, not even a heartbeat"))
        elif late < HEARTBEAT_SECONDS and now - self._frame_began_at > FRAME_SECONDS:
            self._abort(ConnectionLost(f"{self.peer} did not complete a frame within {FRAME_SECONDS:g} s"))
        elif now - self._wrote_at >= HEARTBEAT_SECONDS / 2:
            self._write(RecordKind.HEARTBEAT)

    # -- receiving

    def on_records(self, records: Sequence[FetchedRecord] | StoreError) -> None:
        """Take the next records of the peer's topic; the follower calls it."""
        if isinstance(records, RefusedByBrokerError):
            self._abort(ConnectionLost(f"the link to {self.peer} can't be read any more: {records}"))
        elif isinstance(records, StoreError):
            self._shared.client.follower.follow(self.reads, self._offset, self.on_records)
        else:
            for record in records:
                self._offset = record.offset + 1
                try:
                    self._receive_record(LinkRecord.decode(record.value))
                except RemoteError as error:
                    self._abort(error)
            if self._arrived - self._acknowledged >= ACKNOWLEDGE_BYTES and not self._frames:
                self._consume()
            self._changed.unpark_all()

    def _receive_record(self, record: LinkRecord) -> None:
        if record.number > self._next_number and not self._ended:
            missing = f"records {self._next_number} to {record.number - 1}"
            self._abort(
                ConnectionLost(f"{missing} of {self.peer} are missing, or another program writes into its topic")
            )
        if record.kind is RecordKind.CLOSE:
            self._abort(ConnectionLost(f"{self.peer} has closed the link"), orderly=True)
            self._write_close()
            self._peer_closed.set()
            self._closing.set()
        if record.number < self._next_number or self._ended:
            return  # a record that was resent, or one behind the end
        if record.consumed > self._sent:
            raise WireError(f"{self.peer} acknowledges {record.consumed} bytes of the {self._sent} that were sent")
        self._next_number += 1
        self._heard_at = trio.current_time()
        if record.consumed > self._peer_consumed:
            self._peer_consumed = record.consumed
            self._window_opened.unpark_all()
        if record.kind is RecordKind.DATA:
            self._receive_data(record.data)
        elif record.kind is RecordKind.END:
            self._end()

    def _receive_data(self, data: bytes) -> None:
        self._arrived += len(data)
        if self._arrived - self._consumed > WINDOW + RECORD_BYTES:
            raise WireError(f"{self.peer} sends more than the {WINDOW} bytes that may be unread")
        frames = self._decoder.receive(data)
        if self._decoder.is_between_frames:
            self._frame_began_at = math.inf
        elif frames or self._frame_began_at == math.inf:
            self._frame_began_at = self._heard_at
        self._frames += frames

    def _consume(self) -> None:
        """Count all data as consumed (`max_frame` bounds a part of a frame), and acknowledge larger amounts."""
        self._consumed = self._arrived
        if self._consumed - self._acknowledged >= ACKNOWLEDGE_BYTES:
            self._write(RecordKind.HEARTBEAT)

    def _end(self, error: RemoteError | None = None) -> None:
        """End the peer's direction: `receive` returns what has arrived, then raises the error or returns ()."""
        if not self._ended:
            self._ended = True
            if error is None and not self._decoder.is_between_frames:
                error = ConnectionLost(f"{self.peer} ended the link in the middle of a frame")
            self._error = error
        self._changed.unpark_all()

    def _abort(self, error: RemoteError, *, orderly: bool = False) -> None:
        """End both directions, the peer's without an error if it is orderly."""
        self._broken = self._broken or str(error)
        self._end(None if orderly else error)
        self._window_opened.unpark_all()

    # -- sending

    def _write_stream(self, data: bytes) -> None:
        self._sent += len(data)
        self._write(RecordKind.DATA, data)

    def _write_close(self) -> None:
        self._write(RecordKind.CLOSE)
        self._wrote_close = True

    def _write(self, kind: RecordKind, data: bytes = b"") -> None:
        if self._wrote_close:
            return
        self._acknowledged = self._consumed
        self._wrote_at = trio.current_time()
        value = LinkRecord(kind, self._number, self._consumed, data).encode()
        self._unconfirmed.append((value, self._wrote_at))
        self._number += 1
        if not self._shared.is_replacing:
            self._produce(self._unconfirmed[-1])

    def _produce(self, *records: tuple[bytes, float]) -> None:
        on_confirmed = partial(self._on_confirmed, self._shared.producer_epoch)
        self._shared.client.producer.send(
            self._writes, [(OutgoingRecord(0, value), on_confirmed) for value, _ in records]
        )

    def _on_confirmed(self, producer_epoch: int, answer: int | StoreError) -> None:
        """Take the answer for the oldest record that a producer has."""
        if producer_epoch != self._shared.producer_epoch:
            return
        if isinstance(answer, StoreError):
            # The first error of a producer names the record that it refused. All later ones are about the producer
            # itself.
            if isinstance(answer, RefusedByBrokerError) and not self._shared.is_replacing:
                self._abort(ConnectionLost(f"the link to {self.peer} can't be written any more: {answer}"))
                self._unconfirmed.clear()
                self._wrote_close = self._peer_is_dead = True
                self._all_confirmed.unpark_all()
            self._shared.producer_failed()
        elif self._unconfirmed:  # or it was given up
            _, written_at = self._unconfirmed.popleft()
            now = trio.current_time()
            if now - written_at > HEARTBEAT_SECONDS:
                self._heard_at = now  # Kafka was away, for the peer too
            if not self._unconfirmed:
                self._all_confirmed.unpark_all()

    def resend(self) -> None:
        """Write all unconfirmed records with a new producer; the peer drops those that it has already."""
        if self._unconfirmed:
            self._produce(*self._unconfirmed)


def open_link(shared: SharedClient, *, peer: str, reads: str, writes: str, max_frame: int) -> KafkaLink:
    """Start one end of a link, whose topics exist; its task runs until the link is closed and the peer knows it."""
    link = KafkaLink(shared, peer=peer, reads=reads, writes=writes, max_frame=max_frame)
    shared.add_link(reads, link.resend)
    shared.client.follower.follow(reads, 0, link.on_records)
    shared.nursery.start_soon(link.run)
    return link
