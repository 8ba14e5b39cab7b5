"""A link in a node: an address, an outbox, a task that reads frames and delivers them, and one that writes."""

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

#: Seconds that the reader of one link waits for another link that takes nothing, before that other link is closed.
STALL_TIMEOUT = 10.0
#: Seconds to flush the outbox, read what the peer still sends, and see its end, when a link is closed.
GRACE = 1.0
#: Seconds without a frame after which a link ends when answers are missing that should have come by it. Its connection
#: may be half open: a proxy or a load balancer on the way can take all bytes, and never say that the peer is gone.
SILENCE = 5.0


class NodeLink:
    """A link of a node, which can stand in a route: `Route(link, "echoer")`.

    It ends with its peer, with `aclose`, or with its node.

    Its reader waits for the queues that its messages fill, so backpressure reaches the peer. With `drop_when_full`, for
    links between hubs, it never waits but drops and counts at the hard limit, so waits between nodes form no cycle.

    A peer that takes nothing, or sends invalid frames, ends the link. With `hang_up`, that is called with the reason,
    and the link lives on.
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
        #: The origin of every message that comes in by this link.
        self.origin = Origin(link=encoded, drop_when_full=drop_when_full, resends=link.protocol_version.resends)
        #: Set when the link has ended.
        self.ended = trio.Event()
        self._router = router
        self._link = link
        self._hang_up = hang_up
        codec = link.protocol_version.codec()
        self._encode, self._decode = codec.encode, codec.decode
        self._max_frame = min(link.max_frame, link.protocol_version.max_sent)
        self._undecodable = 0
        self._outbox: MemoryChannel[bytes] = MemoryChannel(stall_timeout=STALL_TIMEOUT, on_stall=self._on_stall)
        self._scope = trio.CancelScope()
        self._reason = "the peer ended it"
        self._close_by = math.inf
        self._heard_at = trio.current_time()
        router.register(encoded, self._hop, allow=allow, limit=self._max_frame, suspect=self._suspect)

    @property
    def address(self) -> Address:
        """The link's address on its node; without a given name it is random, and never used again."""
        return Address.from_encoded(self.encoded)

    def _hop(self, message: Message) -> ByteBudget | None:
        """Encode a message for the peer, without this link's own address, and put it into the outbox (spec §4.2)."""
        outbox, origin = self._outbox, message.origin
        if len(message.onward) + len(message.back) > MAX_HOPS:
            # A worker that forwards can make a peer's long route longer, so this is no error of the program.
            self._router.counters[DropReason.ROUTE_TOO_LONG] += 1
            return None
        frame = self._encode(message.onward[1:], message.back, message.payload)
        if len(frame) > self._max_frame:
            if origin is LOCAL:
                raise MessageTooLargeError(
                    f"the link to {self.peer} carries frames of at most {self._max_frame} bytes, "
                    f"this message makes {len(frame)}: send it in parts"
                )
            self._router.counters[DropReason.FRAME_TOO_LARGE] += 1
            return None
        if (origin.drop_when_full or self.origin.drop_when_full) and outbox.is_full:
            self._router.counters[DropReason.OUTBOX_FULL] += 1
            return None
        over_budget = outbox.put(frame, len(frame))
        if origin.link == self.encoded:
            # It goes back out by the link that it came by, whose reader may not wait for itself.
            if outbox.is_full:
                self._on_stall()
            return None
        return over_budget

    def _on_stall(self) -> None:
        if self.origin.drop_when_full:
            return
        reason = (
            f"the peer took nothing for {STALL_TIMEOUT:g} s, or left {self._outbox.hard_bound} bytes of answers unread"
        )
        if self._hang_up is None:
            self._end(reason)
        else:
            self._hang_up(reason)
            self._router.counters[DropReason.LINK_STALLED] += self._outbox.discard()

    def _suspect(self) -> None:
        if trio.current_time() - self._heard_at < SILENCE:
            return
        reason = f"requests by it were not answered, and nothing came by it for {SILENCE:g} s"
        if self._hang_up is None:
            self._end(reason)
        else:
            self._hang_up(reason)

    @property
    def is_open(self) -> bool:
        """Whether messages can still leave by this link."""
        return not self._outbox.is_closed

    def _shut(self) -> None:
        """Let no more messages in: a sender gets UnknownAddressError from now on."""
        self._router.unregister(self.encoded)
        self._outbox.close()

    def _end(self, reason: str) -> None:
        if not self._scope.cancel_called:
            self._reason = reason
            self._shut()  # at once, so nothing more is queued until the tasks notice
            self._scope.cancel()

    async def _run(self) -> None:
        """Read and write until the link ends. No error of its peer leaves this method."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write)
                    await self._read()
                    # The peer has ended. The outbox is flushed, within a deadline.
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
        decode, deliver, drop_when_full = self._decode, router.deliver, origin.drop_when_full
        latest: tuple[Encoded, ...] = ()
        returning: tuple[Encoded, ...] = (encoded,)
        try:
            while frames := await link.receive():
                self._heard_at = trio.current_time()
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
        """Skip an undecodable frame, unless the protocol version allows no more of them (spec §3.1, §3.2)."""
        self._undecodable += 1
        if self._undecodable > self._link.protocol_version.tolerated:
            if self._hang_up is None:
                raise error
            self._hang_up(str(error))
        self._router.counters[DropReason.FRAME_UNDECODABLE] += 1
        if self._undecodable == 1:
            log.warning(
                "skipped a frame from %s: %s; further ones are only counted", sanitize(self.peer), sanitize(error)
            )

    async def _write(self) -> None:
        outbox, send = self._outbox, self._link.send
        try:
            while await outbox.ready():
                await send(outbox.take_all())
            await self._link.send_eof()
        except ConnectionLost as error:
            # Nothing can be sent any more, but frames that the peer sent before are still to be read, to the end.
            self._reason = str(error)
            self._shut()
            outbox.discard()

    async def aclose(self) -> None:
        """Close the link in order, and wait until it has ended: at most one second.

        It accepts no more messages, flushes its outbox, sends its end, and delivers what the peer sends until its end.
        So nothing is lost that the peer had under way (spec §11.6, 7), unless it goes on for longer.

        If cancelled, the link ends at once.
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
