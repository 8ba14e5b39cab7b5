"""A link as its node holds it: an address, an outbox, one task that reads frames and delivers, and one that writes."""

import math
from collections.abc import Callable

import trio

from trionode.counters import DropReason
from trionode.errors import ConnectionLost, MessageTooLargeError, RemoteError, WireError
from trionode.log import log, sanitize
from trionode.net.transport import Link
from trionode.protocol.rules.access import Access
from trionode.protocol.wire.address import Address, Encoded
from trionode.protocol.wire.message import LOCAL, Message, Origin
from trionode.protocol.wire.route import MAX_HOPS
from trionode.routing.byte_budget import ByteBudget
from trionode.routing.memory_channel import MemoryChannel
from trionode.routing.router import Router

#: Seconds that the reader of one link waits for another link that takes nothing, before that one is closed.
STALL_TIMEOUT = 10.0
#: Seconds that what still waits in the outbox, what the peer still sends, and its own end are given when a link is closed.
GRACE = 1.0


class NodeLink:
    """A link in a node: routable, `Route(link, "echoer")`. It ends with its peer, with `aclose`, or with its node.

    A leaf's reader waits for the queues that its messages fill, so that backpressure reaches the peer. A trunk, declared between
    hubs, never waits: it drops and counts at the hard bound, so that waits between nodes form no cycle. A peer that takes nothing, or sends
    nonsense, ends it; or, where there is `hang_up`, that is called with the reason instead, and the link lives on.
    """

    def __init__(
        self,
        router: Router,
        encoded: Encoded,
        link: Link,
        *,
        allow: Access,
        drop_when_full: bool = False,
        hang_up: Callable[[str], None] | None = None,
    ) -> None:
        self.encoded = encoded
        #: The other end, as its transport names it.
        self.peer = link.peer
        #: The facts of every message that comes in by this link.
        self.origin = Origin(link=encoded, drop_when_full=drop_when_full, resends=link.protocol_version.resends)
        #: Set when the link has ended.
        self.ended = trio.Event()
        self._router = router
        self._link = link
        self._hang_up = hang_up
        self._codec = link.protocol_version.codec()
        self._max_frame = min(link.max_frame, link.protocol_version.max_sent)
        self._undecodable = 0
        self._outbox: MemoryChannel[bytes] = MemoryChannel(stall_timeout=STALL_TIMEOUT, on_stall=self._on_stall)
        self._scope = trio.CancelScope()
        self._reason = "the peer ended it"
        self._close_by = math.inf
        router.register(encoded, self.hop, allow=allow, limit=self._max_frame)

    @property
    def address(self) -> Address:
        """The address that stands for this link on its node: random, and never used again."""
        return Address.from_encoded(self.encoded)

    def hop(self, message: Message) -> ByteBudget | None:
        """Encode a message for the peer, without this link's own address, and queue it (spec §4.2)."""
        outbox, origin = self._outbox, message.origin
        if len(message.onward) + len(message.back) > MAX_HOPS:
            # A worker that forwards can make a peer's long route longer: no error of this program.
            self._router.counters[DropReason.ROUTE_TOO_LONG] += 1
            return None
        frame = self._codec.encode(message.onward[1:], message.back, message.payload)
        if len(frame) > self._max_frame:
            if origin is LOCAL:
                msg = f"the link to {self.peer} carries frames of at most {self._max_frame} bytes, this message makes {len(frame)}"
                raise MessageTooLargeError(msg)
            self._router.counters[DropReason.FRAME_TOO_LARGE] += 1
            return None
        if (origin.drop_when_full or self.origin.drop_when_full) and outbox.is_full:
            self._router.counters[DropReason.OUTBOX_FULL] += 1
            return None
        over_budget = outbox.put(frame, len(frame))
        if origin.link == self.encoded:
            # Back out by the link that it came by: its reader may not wait for itself.
            if outbox.is_full:
                self._on_stall()
            return None
        return over_budget

    def _on_stall(self) -> None:
        if self.origin.drop_when_full:
            return
        reason = f"it took nothing for {STALL_TIMEOUT:g} s, or let {self._outbox.hard_bound} bytes of answers wait"
        if self._hang_up is None:
            self._end(reason)
        else:
            self._hang_up(reason)
            self._router.counters[DropReason.LINK_STALLED] += self._outbox.discard()

    @property
    def is_open(self) -> bool:
        """Whether messages can still leave by this link."""
        return not self._outbox.is_closed

    def _shut(self) -> None:
        """Let no more messages in: whoever sends one from now on hears that nobody has this address."""
        self._router.unregister(self.encoded)
        self._outbox.close()

    def _end(self, reason: str) -> None:
        if not self._scope.cancel_called:
            self._reason = reason
            self._shut()  # at once: nothing more is queued until the tasks notice
            self._scope.cancel()

    async def run(self) -> None:
        """Read and write until the link ends; whatever its peer does ends here."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write)
                    await self._read()
                    # The peer's end: what still waits for it is flushed, but not for ever.
                    nursery.cancel_scope.deadline = trio.current_time() + GRACE
                    self._shut()
        finally:
            self._shut()
            self._outbox.discard()
            log.info("link with %s ended: %s", sanitize(self.peer), sanitize(self._reason))
            try:
                with trio.CancelScope(shield=True, deadline=min(self._close_by, trio.current_time() + GRACE)):
                    await self._link.aclose()
            finally:
                self.ended.set()

    async def _read(self) -> None:
        link, router, origin, encoded = self._link, self._router, self.origin, self.encoded
        decode, deliver, drop_when_full = self._codec.decode, router.deliver, origin.drop_when_full
        latest: tuple[Encoded, ...] = ()
        returning: tuple[Encoded, ...] = (encoded,)
        try:
            while frames := await link.receive():
                for frame in frames:
                    try:
                        onward, back, payload = decode(frame)
                    except WireError as error:
                        self._tolerate(error)
                        continue
                    if not onward:
                        continue  # a heartbeat (spec §3)
                    if len(onward) + len(back) >= MAX_HOPS:
                        router.counters[DropReason.ROUTE_TOO_LONG] += 1
                        continue
                    if back is not latest:
                        latest, returning = back, (encoded, *back)
                    over_budget = deliver(Message(onward, returning, payload, origin))
                    if over_budget is not None and not drop_when_full:
                        await over_budget.wait_or_stall()
        except RemoteError as error:
            self._end(str(error))

    def _tolerate(self, error: WireError) -> None:
        """Live through an undecodable frame, where the generation wants that and it is not one too many (spec §3.1, §3.2)."""
        self._undecodable += 1
        if self._undecodable > self._link.protocol_version.tolerated:
            if self._hang_up is None:
                raise error
            self._hang_up(str(error))
        self._router.counters[DropReason.FRAME_UNDECODABLE] += 1
        if self._undecodable == 1:
            log.warning(
                "skipped a frame from %s: %s; more are counted, not shown", sanitize(self.peer), sanitize(error)
            )

    async def _write(self) -> None:
        outbox, send = self._outbox, self._link.send
        try:
            while await outbox.ready():
                await send(outbox.take_all())
            await self._link.send_eof()
        except ConnectionLost as error:
            # Nothing can be sent any more, but what the peer sent before it went is still to be read, to the end.
            self._reason = str(error)
            self._shut()
            outbox.discard()

    async def aclose(self) -> None:
        """Let nothing more out, flush what waits, tell the peer, and deliver what it sends until its own end, all within GRACE seconds.

        Returns when the link has ended. What a peer had under way is not lost (spec §11.6, 7), unless it goes on for longer. Cancelled, the link ends at once.
        """
        if self._close_by == math.inf:
            self._reason, self._close_by = "this side closed it", trio.current_time() + GRACE
        self._shut()
        try:
            with trio.CancelScope(deadline=self._close_by):
                await self.ended.wait()
        finally:
            self._end(self._reason)
        await self.ended.wait()
