"""The delivery layer of one channel: both halves, the frames between them, and the sessions that carry these."""

from collections.abc import Sequence

from trionode.protocol.delivery.frame import Frame
from trionode.protocol.delivery.inbox import Inbox
from trionode.protocol.delivery.outbox import Entry, Outbox
from trionode.protocol.delivery.terms import Terms
from trionode.protocol.rules.round_trip import RoundTrip
from trionode.protocol.rules.verdicts import TailSilence, Verdict

#: Seconds until the next frame while there is traffic, and at most, while there is none. Each frame of an idle side
#: doubles the time.
BEACON_SECONDS = 30
MAX_BEACON_SECONDS = 600
#: Seconds without a frame of the peer, while it owes an acknowledgement, after which it is taken for gone.
ANSWER_SECONDS = 60.0


class Delivery:
    """The state of delivery of one side of a channel. It outlives the sessions of the channel.

    It reads no clock and sends nothing. After each call, send what `frame` returns until that is None, and call `tick`
    at `next_deadline`. `verdicts` collects what was found out. A HistoryError ends the channel.

    Args:
      sender_id: Names this side's numbering: 16 random bytes.
    """

    def __init__(self, sender_id: bytes) -> None:
        self.outbox = Outbox(sender_id)
        self.inbox = Inbox()
        #: What was found out and not yet taken from here.
        self.verdicts: list[Verdict] = []
        #: Whether the peer has accepted this side: the responder has from the beginning.
        self.is_accepted = False
        #: Whether the peer has refused this side, and whether the peer's node has ended.
        self.is_refused = False
        self.is_left = False
        self._accepting: Terms | None = None
        self._accept_at = 0.0
        self._accept_timeout = RoundTrip()
        self._delay = BEACON_SECONDS
        self._beacon_at: float | None = None
        self._is_active = False
        self._sends_end = False
        #: Since when the peer owes an acknowledgement, and whether it has done so for too long.
        self._owed_since: float | None = None
        self._is_unanswered = False

    @property
    def is_silent(self) -> bool:
        """Whether the peer is taken for gone."""
        return self.inbox.is_silent or self._is_unanswered

    @property
    def terms(self) -> Terms:
        """Where this side stands, for the handshake."""
        outbox, inbox = self.outbox, self.inbox
        return Terms(outbox.sender_id, outbox.base, inbox.peer_id, inbox.position)

    def initiate(self, now: float) -> None:
        """Begin a session as the initiator, whose last handshake message carries `terms`."""
        self.is_accepted = self.is_refused = self.is_left = False
        self._accepting = None
        self.inbox.heard_at, self.inbox.silence_at, self.inbox.is_silent = now, None, False
        self._owed_since = self._beacon_at = None
        self._is_unanswered = False

    def respond(self, peer: Terms, now: float) -> None:
        """Begin a session as the responder, which has accepted the initiator with these terms."""
        self.initiate(now)
        accepting = self.terms
        self._resume(peer, now)
        self._accepting, self._accept_timeout, self._accept_at = accepting, RoundTrip(), now
        self.is_accepted = True

    def _resume(self, peer: Terms, now: float) -> None:
        self.verdicts += self.outbox.resume(peer)
        self.verdicts += self.inbox.resume(peer, now)
        self._owed_since = now if self.outbox.unacknowledged else None
        self._delay = BEACON_SECONDS
        self._beacon_at = now + self._delay
        self.inbox.silence_at = now + 2 * self._delay

    def send(self, item: bytes, now: float, *, promised: bool = False) -> Entry:
        """Number a message. `frame` returns it when it may be sent."""
        self._is_active = True
        if self._owed_since is None:
            self._owed_since = now
        return self.outbox.add(item, promised=promised)

    def receive(self, payload: bytes, now: float) -> Sequence[tuple[int, bytes]]:
        """Take the payload of a delivery frame; return the messages to deliver, with their numbers, in order.

        WireError if it is not valid; nothing has changed then. HistoryError if both sides remember different histories.
        """
        frame = Frame.decode(payload)
        if not self.is_accepted:
            self._answered(frame, now)
            if not self.is_accepted:
                return ()
        if frame.ack is not None:
            self._accepting = None  # the initiator has heard that it is accepted
        inbox, outbox = self.inbox, self.outbox
        ready = inbox.receive(frame, now)
        if frame.ack is not None:
            before = outbox.acknowledged
            outbox.acknowledge(frame.ack, now, _stamp(now))
            if outbox.acknowledged != before or not outbox.unacknowledged:
                self._owed_since = now if outbox.unacknowledged else None
                self._is_unanswered = False
        if ready:
            self._is_active = True
            if inbox.is_reported_missing:
                self.verdicts += inbox.repaired()
        self.is_left = self.is_left or frame.leaving
        return ready

    def _answered(self, frame: Frame, now: float) -> None:
        """Take the responder's answer to the handshake. Other frames that arrive before it are sent again."""
        if frame.refused:
            self.is_refused = True
        elif frame.accepted is not None:
            self._resume(frame.accepted, now)
            self.is_accepted = True
            self.inbox.acknowledge_by(now)

    @property
    def can_send_at_once(self) -> bool:
        """Whether a message would be the only one under way, so nothing is gained by waiting for others."""
        return self.is_accepted and self.outbox.is_idle

    def frame(self, now: float) -> bytes | None:
        """Return the next frame to send now, or None."""
        if not self.is_accepted:
            return None
        entries = self.outbox.take(now)
        inbox = self.inbox
        is_beacon = self._beacon_at is not None and now >= self._beacon_at
        is_accept_due = self._accepting is not None and now >= self._accept_at
        is_ack_due = inbox.ack_at is not None and now >= inbox.ack_at
        if not (entries or is_beacon or is_accept_due or is_ack_due or self._sends_end):
            return None
        if is_accept_due:
            self._accept_at = now + self._accept_timeout.timeout
            self._accept_timeout.backoff()
        if self._is_active or entries:
            self._delay, self._is_active = BEACON_SECONDS, False
        elif is_beacon:
            self._delay = min(2 * self._delay, MAX_BEACON_SECONDS)
        if not entries or entries[-1].sends == 1:
            # A frame that is sent again may be dropped again, and must not put off the beacon that reveals it.
            self._beacon_at = now + self._delay
        # Only a beacon says how much was sent, and only messages and beacons are acknowledged: an acknowledgement that is
        # answered would never end.
        end = self.outbox.end if is_beacon or self._sends_end else None
        self._sends_end = False
        return Frame(
            self._delay,
            _stamp(now),
            inbox.ack(now),
            end,
            entries[0].number if entries else 0,
            entries[0].before if entries else b"",
            [entry.item for entry in entries],
            self._accepting,  # in every frame, until the peer is heard
        ).encode()

    def last_frame(self, now: float, *, is_leaving: bool) -> bytes:
        """Return the last frame of this side; `is_leaving` says that its node ends."""
        return Frame(0, _stamp(now), self.inbox.ack(now), self.outbox.end, leaving=is_leaving).encode()

    def next_deadline(self) -> float:
        """Return the time at which `tick` is due."""
        accept_at = None if self._accepting is None else self._accept_at
        times = (
            self.outbox.next_deadline(),
            self.inbox.next_deadline(),
            self._beacon_at,
            accept_at,
            self._owed_until,
        )
        return min(at for at in (*times, float("inf")) if at is not None)

    @property
    def _owed_until(self) -> float | None:
        """When a peer that owes an acknowledgement is taken for gone, whatever else it says."""
        return None if self._owed_since is None or self.is_silent else self._owed_since + ANSWER_SECONDS

    def tick(self, now: float) -> None:
        """Do what is due; then `frame` returns what is to be sent."""
        if not self.is_accepted:
            return
        self._sends_end = self.outbox.tick(now) or self._sends_end
        inbox = self.inbox
        if self._owed_since is not None and self._owed_until is not None and now >= self._owed_until:
            self._is_unanswered = True
            self.verdicts.append(TailSilence(self._owed_since))
        self.verdicts += inbox.tick(now)


def refusal(now: float) -> bytes:
    """Return the frame by which a responder refuses an initiator."""
    return Frame(0, _stamp(now), refused=True).encode()


def _stamp(now: float) -> int:
    return int(now * 1e6) & 0xFFFFFFFF
