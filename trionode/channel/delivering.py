"""The hops of a secure channel with the delivery layer: messages are numbered, acknowledged, and sent again."""

import math
from collections import deque

import attrs
import trio

from trionode.channel.deliveries import Deliveries
from trionode.channel.hops import ChannelHops
from trionode.counters import DropReason
from trionode.errors import ClosedError, DecryptError, MessageTooLargeError, Undelivered, UnknownAddressError, WireError
from trionode.identity.attributes import PeerOrigin
from trionode.log import log
from trionode.protocol.delivery import frame as frames
from trionode.protocol.delivery.delivery import Delivery, refusal
from trionode.protocol.delivery.inbox import ACK_DELAY
from trionode.protocol.delivery.outbox import WINDOW, HistoryError
from trionode.protocol.handshake.exchange import Peer
from trionode.protocol.rules.verdicts import Verdict
from trionode.protocol.session.cipher import ChannelCipher
from trionode.protocol.wire.address import Encoded, local
from trionode.protocol.wire.current_codec import Close, CurrentCodec, RefreshCredentials
from trionode.protocol.wire.message import LOCAL, Message, Origin, Receipt
from trionode.protocol.wire.route import MAX_HOPS
from trionode.routing.byte_budget import ByteBudget
from trionode.routing.router import Router

#: The onward route of every delivery frame within the channel.
FRAMES = (local("delivery"),)
#: Seconds between two deadlines of one channel, at least. While its route is full or gone, what is due stays due.
SHORTEST_SLEEP = 0.005
#: Seconds after which a silent channel ends. Until then the route may come back, after the outage of a hub or a broker,
#: and the channel goes on with nothing lost. It bounds how long a channel of a peer that died is held.
SILENCE_SECONDS = 900.0


class SendReceipt(Receipt):
    """Follows a message that this program sends, to the acknowledgement and the handler of its receiver."""

    __slots__ = ("acknowledged", "handled", "is_lost")

    def __init__(self) -> None:
        super().__init__()
        self.acknowledged = trio.Event()
        self.handled = trio.Event()
        self.is_lost = False

    def done(self) -> None:
        """Note that the message was handled."""
        self.acknowledged.set()
        self.handled.set()

    def lost(self) -> None:
        """Note that the channel has ended before."""
        self.is_lost = True
        self.done()


class _ArrivalReceipt(Receipt):
    """Follows a message of the peer to its handler on this node."""

    __slots__ = ("_epoch", "_hops", "_number")

    def __init__(self, hops: "DeliveringHops", epoch: int, number: int) -> None:
        self.is_queued = False
        self._hops = hops
        self._epoch = epoch
        self._number = number

    def done(self) -> None:
        """Note that the message was handled."""
        self._hops.was_handled(self._epoch, self._number)


class DeliveringHops(ChannelHops):
    """The hops of a channel with the delivery layer.

    Messages pass `delivery`, which numbers them; what leaves and arrives are its frames.
    """

    def __init__(
        self,
        router: Router,
        cipher: ChannelCipher,
        peer: Peer,
        *,
        addresses: tuple[Encoded, Encoded],
        route: tuple[Encoded, ...],
        follows: bool,
        delivery: Delivery,
        deliveries: Deliveries,
    ) -> None:
        self.delivery = delivery
        self.scheduled_at = float("inf")
        #: Set when the responder has accepted or refused this side.
        self.decided = trio.Event()
        self._deliveries = deliveries
        self._codec = CurrentCodec()
        self._budget = ByteBudget(WINDOW)
        self._ready: deque[tuple[int, bytes]] = deque()
        self._is_delivering = False
        self._is_route_full = False
        #: Whether the last frame was sent: the peer answers no more.
        self._has_said_goodbye = False
        #: Since when the peer is silent.
        self._silent_since = math.inf
        self._local_deliveries = 0
        self._outer = LOCAL
        self._unacknowledged: deque[tuple[int, SendReceipt]] = deque()
        self._unhandled: deque[tuple[int, SendReceipt]] = deque()
        self._drained = trio.Event()
        super().__init__(router, cipher, peer, addresses=addresses, route=route, follows=follows)
        deliveries.channels[self] = None

    @property
    def _overhead(self) -> int:
        return self.cipher.encoding_overhead + frames.OVERHEAD + len(FRAMES[0])

    @property
    def is_reachable(self) -> bool:
        """Whether the first hop to the peer exists, and the peer is heard."""
        return not self.closed.is_set() and self.has_route and not self.delivery.is_silent

    def encrypt(self, message: Message) -> ByteBudget | None:
        """Number a message, and send it at once if nothing else is under way; otherwise with others that wait."""
        onward = message.onward[1:]
        if not onward:
            self._router.counters[DropReason.ENDS_AT_CHANNEL] += 1
            return None
        item = self._codec.encode(onward, message.back, message.payload)
        limit = self._limit
        if limit is not None and len(item) > limit:
            raise MessageTooLargeError(
                f"the route to {self.peer.identifier} carries messages of at most {limit} bytes with their routes, "
                f"this one has {len(item)}: send it in parts"
            )
        delivery = self.delivery
        is_alone = delivery.can_send_at_once
        entry = delivery.send(item, trio.current_time(), promised=message.is_promised)
        self._local_deliveries = max(self._local_deliveries, message.deliveries)
        receipt = message.receipt
        if isinstance(receipt, SendReceipt):
            receipt.is_queued = True
            self._unacknowledged.append((entry.number, receipt))
            self._unhandled.append((entry.number, receipt))
        over_budget = self._budget.add(entry.cost)
        if is_alone:
            self.flush()
        else:
            self._deliveries.flush_soon(self)
        return over_budget

    def flush(self) -> None:
        """Send every frame that may be sent now."""
        if self._is_route_full or not self.has_route or self.closed.is_set():
            return
        now = trio.current_time()
        while (frame := self.delivery.frame(now)) is not None:
            over_budget = self._send_frame(frame)
            if over_budget is not None:
                self._is_route_full = True
                self._deliveries.start_soon(self._wait_for_route, over_budget)
                break
        self._local_deliveries = 0
        self._schedule(now)

    def _send_frame(self, frame: bytes) -> ByteBudget | None:
        try:
            return self._send(self.cipher.encode(FRAMES, (), frame), self._back, self._local_deliveries)
        except UnknownAddressError:
            return None  # the route ended a moment ago: the frame is sent again by the next one
        except (MessageTooLargeError, ClosedError) as error:
            # The route now carries less than when the messages were accepted, or there is no nonce left.
            self.end(str(error))
            return None

    async def _wait_for_route(self, over_budget: ByteBudget) -> None:
        await over_budget.wait_or_stall()
        self._is_route_full = False
        self.flush()

    def on_time(self) -> None:
        """Do what is due: acknowledge, send again, report what is missing."""
        if self.closed.is_set():
            return
        now = trio.current_time()
        self.delivery.tick(now)
        self._report()
        if not self.delivery.is_silent:
            self._silent_since = math.inf
        elif self._silent_since == math.inf:
            self._silent_since = now
        elif now >= self._silent_since + SILENCE_SECONDS:
            self.end(f"the peer was silent for {SILENCE_SECONDS:g} s more than it may be")
            return
        self.flush()
        self._schedule(now)

    # Receiving

    def decrypt(self, message: Message) -> ByteBudget | None:
        """Decrypt a frame, and deliver its messages. A frame that does not verify has no effect (spec §7.3, §7.4)."""
        cipher = self.cipher
        try:
            opened = cipher.decode(cipher.decrypt(message.payload))
            if type(opened) is tuple:
                self._take_frame(opened, message)
                return None
        except (DecryptError, WireError):
            self.refused += 1
            self._router.counters[DropReason.DECRYPT_FAILED] += 1
            return None
        if isinstance(opened, RefreshCredentials):
            self._take_credentials(opened)
        elif isinstance(opened, Close):
            self.end("the peer closed it")
        return None

    def _take_frame(self, opened: tuple[tuple[Encoded, ...], tuple[Encoded, ...], bytes], message: Message) -> None:
        onward, _, payload = opened
        if onward != FRAMES:
            raise WireError("a message beside the delivery frames, which both sides have agreed on")
        delivery, now = self.delivery, trio.current_time()
        if self._follows and self._session.newest and message.back and message.back != self.route[:-1]:
            self.route = (*message.back, self._peer_decryptor)
            self._measure()
        self._outer = message.origin
        try:
            ready = delivery.receive(payload, now)
        except HistoryError as error:
            self._log(error.verdict)
            self.end("both sides remember different histories")
            return
        if ready:
            self._ready.extend(ready)
            self._deliver_ready(message.deliveries)
        self._after(now)

    def _after(self, now: float) -> None:
        """Let waiting tasks go on, and send what a frame of the peer allows or demands."""
        delivery, outbox = self.delivery, self.delivery.outbox
        if delivery.verdicts:
            self._report()
        if self._budget.size != outbox.unhandled_cost:
            self._budget.release(self._budget.size - outbox.unhandled_cost)
        while self._unacknowledged and self._unacknowledged[0][0] <= outbox.acknowledged:
            self._unacknowledged.popleft()[1].acknowledged.set()
        while self._unhandled and self._unhandled[0][0] <= outbox.handled:
            self._unhandled.popleft()[1].done()
        if not outbox.unacknowledged:
            self._drained.set()
        if delivery.is_accepted or delivery.is_refused:
            self.decided.set()
        if delivery.is_left and not self.closed.is_set():
            self.end("the peer's node has ended")
            return
        if outbox.has_frame or (delivery.inbox.ack_at is not None and delivery.inbox.ack_at <= now):
            self._deliveries.flush_soon(self)
        self._schedule(now)

    def _schedule(self, now: float) -> None:
        """Wake this channel at its next deadline; not at once again if the deadline can't be met now.

        Most calls end here: a channel that wakes within the delay of an acknowledgement looks at all deadlines then.
        """
        if self.scheduled_at <= now + ACK_DELAY or self.closed.is_set():
            return
        at = min(self.delivery.next_deadline(), self._silent_since + SILENCE_SECONDS)
        if self.delivery.is_silent and self._silent_since == math.inf:
            at = now
        self._deliveries.schedule(self, max(at, now + SHORTEST_SLEEP))

    def _deliver_ready(self, deliveries: int) -> None:
        """Deliver messages in order, until an address takes no more for now."""
        if self._is_delivering:
            return
        while self._ready:
            number, item = self._ready.popleft()
            over_budget = self._deliver(number, item, deliveries)
            if over_budget is not None:
                self._is_delivering = True
                self._deliveries.start_soon(self._deliver_later, over_budget)
                return

    async def _deliver_later(self, over_budget: ByteBudget) -> None:
        await over_budget.wait_for_capacity()
        self._is_delivering = False
        self._deliver_ready(0)
        self._after(trio.current_time())

    def _deliver(self, number: int, item: bytes, deliveries: int) -> ByteBudget | None:
        inbox, now = self.delivery.inbox, trio.current_time()
        inbox.delivered(item, now)
        receipt = _ArrivalReceipt(self, inbox.epoch, number)
        over_budget = None
        try:
            onward, back, payload = self._codec.decode(item)
        except WireError:
            self.refused += 1
            self._router.counters[DropReason.DECRYPT_FAILED] += 1
        else:
            if len(onward) + len(back) >= MAX_HOPS:
                self._router.counters[DropReason.ROUTE_TOO_LONG] += 1
            else:
                origin = self._origin.get(self._outer) or self._peer_origin(self._outer)
                message = Message(onward, (self.encryptor, *back), payload, origin, deliveries, receipt)
                over_budget = self._router.deliver(message)
        if not receipt.is_queued:
            inbox.was_handled(inbox.epoch, number, now)
        return over_budget

    def _peer_origin(self, outer: Origin) -> Origin:
        held = attrs.evolve(PeerOrigin.through(outer, self.peer), drop_when_full=False, is_held=True)
        self._origin = {outer: held}
        return held

    def was_handled(self, epoch: int, number: int) -> None:
        """Note that a worker has handled a message of the peer."""
        if not self.closed.is_set():
            now = trio.current_time()
            self.delivery.inbox.was_handled(epoch, number, now)
            self._schedule(now)

    # The end

    def _report(self) -> None:
        verdicts, self.delivery.verdicts = self.delivery.verdicts, []
        for verdict in verdicts:
            self._log(verdict)

    def _log(self, verdict: Verdict) -> None:
        self.verdicts.put(verdict)
        log.warning("secure channel with %s: %s", self.peer.identifier, verdict)

    @property
    def _can_send(self) -> bool:
        return self.has_route and not self.closed.is_set() and not self._has_said_goodbye

    async def drain(self) -> None:
        """Wait until the peer has acknowledged everything, or the channel or its route has ended."""
        while self.delivery.outbox.unacknowledged and self._can_send:
            self._drained = trio.Event()
            first, wake = self.route[0], self._drained.set
            self._router.on_close(first, wake)
            try:
                await self._drained.wait()
            finally:
                self._router.forget(first, wake)

    @property
    def promised(self) -> int:
        """The number of messages that were accepted and not acknowledged, without answers."""
        return self.delivery.outbox.promised()

    def undelivered(self) -> Undelivered | None:
        """Return the error for the messages that the peer has not acknowledged; None if there are none."""
        count = self.promised
        if not count:
            return None
        return Undelivered(
            count,
            f"{count} messages to {self.peer.identifier} were accepted and not acknowledged: the peer or the route to it "
            "is gone, or slower than the grace. Send them again when the peer is back, or allow more time",
        )

    def forgive(self) -> None:
        """Leave the lost messages of this channel to its closer, which raises the error for them."""
        self._deliveries.undelivered -= self.delivery.outbox.promised()

    def say_goodbye(self, *, is_leaving: bool = True) -> None:
        """Send the last acknowledgement, and whether it is this node that ends."""
        if self._can_send and self.delivery.is_accepted:
            self._send_frame(self.delivery.last_frame(trio.current_time(), is_leaving=is_leaving))
            self._has_said_goodbye = True

    def end(self, reason: str) -> None:
        """End this side; a second time it does nothing."""
        if self.closed.is_set():
            return
        super().end(reason)
        outbox, promised = self.delivery.outbox, self.promised
        self._deliveries.remove(self)
        self._deliveries.undelivered += promised
        # The others are answers, and what a part of this program sends that notices the end of the channel.
        self._router.counters[DropReason.REPLY_PATH_GONE] += outbox.unacknowledged - promised
        if promised:
            log.warning(
                "secure channel with %s ended with %d messages that the peer has not acknowledged",
                self.peer.identifier,
                promised,
            )
        for _, receipt in (*self._unacknowledged, *self._unhandled):
            receipt.lost()
        self._budget.close()
        self._drained.set()
        self.decided.set()


def refuse(router: Router, cipher: ChannelCipher, route: tuple[Encoded, ...]) -> None:
    """Tell an initiator with the delivery layer that its identity is refused."""
    payload = cipher.encrypt(cipher.encode(FRAMES, (), refusal(trio.current_time())))
    router.answer(Message((), route, b""), FRAMES[0], payload)
