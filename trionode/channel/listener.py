"""The listening side of secure channels: half-open handshakes, bounded and timed, and the channels that came of them."""

import time
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial

import attrs
import trio

from trionode.channel.handshakers import Handshaker
from trionode.channel.secure_channel import SecureChannel
from trionode.counters import DropReason
from trionode.errors import HandshakeError, VaultError
from trionode.identity.identity import Identity
from trionode.identity.trust import TrustPolicy, is_trusted
from trionode.log import log
from trionode.protocol.handshake.exchange import Exchange, State
from trionode.protocol.rules.access import Access, from_anywhere
from trionode.protocol.wire.address import Address, Encoded
from trionode.protocol.wire.message import Message
from trionode.routing.byte_budget import ByteBudget
from trionode.routing.mailbox import STALL_TIMEOUT
from trionode.routing.memory_channel import MemoryChannel
from trionode.routing.router import Router, random_address

#: Seconds that a responder waits for the rest of a handshake, and for its trust policy (spec §14 allows 120).
HANDSHAKE_TIMEOUT = 60.0
#: Handshakes that one link or stream may have half-open, and all together; the oldest gives way, so that a replayed old
#: stream of first messages can't lock the real one out for longer than until its initiator begins again.
PENDING_PER_SOURCE = 32
PENDING_TOTAL = 1024
#: Channels that one listener keeps open: at some 10 KB each, 100 MB.
MAX_CHANNELS = 10_000
#: Bytes that wait for a channel while the trust policy still decides about its peer, before whoever brings more is asked to wait; no more
#: than the hard bound of such a room, 4 MiB, is ever held for one.
HELD_BYTES = 256 * 1024
#: Seconds between looks for channels whose way is gone; one that is found so twice in a row is closed.
SWEEP_SECONDS = 60.0


@attrs.define(eq=False)
class _Pending:
    """A handshake that has begun at a listener."""

    exchange: Exchange
    address: Encoded
    source: Encoded | None
    deadline: float
    #: The way to the peer: the return route of message 3, and of no later one (spec §8).
    back: tuple[Encoded, ...] = ()
    #: What came behind the last message, once that has come and the trust policy decides; closed when the patience of who brings more is over.
    held: MemoryChannel[Message] | None = None

    def hold_no_more(self) -> None:
        """Let go of whoever has waited too long for the decision: what he brings from now on is lost, his other messages go on."""
        if self.held is not None:
            self.held.close()


class SecureChannelListener:
    """Answers handshakes at one address and makes a channel of each that ends well; made by `serve_secure_channels`."""

    def __init__(
        self,
        router: Router,
        encoded: Encoded,
        identity: Identity,
        handshakers: Sequence[Handshaker],
        *,
        trust: TrustPolicy,
    ) -> None:
        self.encoded = encoded
        self.identity = identity
        #: The channels that are open.
        self.channels: set[SecureChannel] = set()
        self._router = router
        self._handshakers = handshakers
        self._trust = trust
        self._pending: OrderedDict[Encoded, _Pending] = OrderedDict()
        self._stirred = trio.Event()
        self._scope = trio.CancelScope()
        self._ended = trio.Event()
        self._nursery: trio.Nursery | None = None
        # Never full: to settle what is owed to it lets other tasks run. A handshake's message costs as much as a hundred others, and one
        # read can bring 700 of them.
        self._breath = ByteBudget()

    @property
    def address(self) -> Address:
        """The address that initiators name last in their route."""
        return Address.from_encoded(self.encoded)

    async def run(
        self, *, allow: Access, task_status: trio.TaskStatus["SecureChannelListener"] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve until `aclose`, or the end of the node."""
        self._router.register(self.encoded, self._first, allow=allow)
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    self._nursery = nursery
                    task_status.started(self)
                    try:
                        await self._sweep()
                    finally:
                        # Before it can close: links read on, and handshakes may not meet a closed one.
                        self._nursery = None
        finally:
            self._router.unregister(self.encoded)
            for pending in list(self._pending.values()):
                self._drop(pending)
            for channel in list(self.channels):
                channel.lose()
            self._ended.set()

    def _first(self, message: Message) -> ByteBudget | None:
        """Message 1: one responder and one answer for each (spec §14)."""
        if not message.back:
            return None
        source = message.origin.link or message.origin.stream
        handshaker = next((each for each in self._handshakers if each.begins(message.payload)), None)
        if handshaker is None:
            self._router.counters[DropReason.HANDSHAKE_REFUSED] += 1
            return self._breath
        try:
            exchange = handshaker.responder()
        except VaultError as error:
            # The identity expired, or its keys were revoked a moment ago: ours to mend, but no reason for strangers to end the node.
            log.error("can't answer a handshake: %s", error)
            return None
        try:
            second = exchange.receive(message.payload, int(time.time()))
        except HandshakeError:
            self._router.counters[DropReason.HANDSHAKE_REFUSED] += 1
            exchange.refuse()
            return self._breath
        assert second is not None
        if not self._make_room(source):
            self._router.counters[DropReason.TOO_MANY_HANDSHAKES] += 1
            exchange.refuse()
            return self._breath
        pending = _Pending(exchange, random_address(), source, trio.current_time() + HANDSHAKE_TIMEOUT)
        self._pending[pending.address] = pending
        self._stirred.set()
        self._router.register(pending.address, partial(self._next, pending), allow=from_anywhere)
        self._router.answer(message, pending.address, second)
        return self._breath

    def _make_room(self, source: Encoded | None) -> bool:
        """Let the oldest handshake that is not complete give way; False if there are none but those whose peers we decide about."""
        pending = list(self._pending.values())
        of_source = [each for each in pending if each.source == source]
        for crowd, bound in ((of_source, PENDING_PER_SOURCE), (pending, PENDING_TOTAL)):
            if len(crowd) >= bound:
                oldest = next((each for each in crowd if each.held is None), None)
                if oldest is not None:
                    self._drop(oldest)
                return oldest is not None
        return True

    def _drop(self, pending: _Pending) -> None:
        self._pending.pop(pending.address, None)
        self._router.unregister(pending.address)
        pending.exchange.refuse()
        pending.hold_no_more()

    def _next(self, pending: _Pending, message: Message) -> ByteBudget | None:
        """What follows message 1 until the peer is known, and the data that follow that while the trust policy decides."""
        held = pending.held
        if held is not None:
            if held.is_closed or held.size + len(message.payload) > held.hard_bound:
                self._router.counters[DropReason.BEFORE_TRUST_DECISION] += 1
                return None
            return held.put(message, len(message.payload))
        if not pending.back and not message.back:
            self._router.counters[DropReason.HANDSHAKE_REFUSED] += 1
            return self._breath
        exchange = pending.exchange
        try:
            answer = exchange.receive(message.payload, int(time.time()))
        except (HandshakeError, VaultError):  # VaultError: a key was revoked since message 1
            self._router.counters[DropReason.HANDSHAKE_REFUSED] += 1
            if exchange.state is State.REFUSED:
                self._drop(pending)
            return self._breath
        pending.back = pending.back or message.back
        if answer is not None:
            self._router.answer(message, pending.address, answer)
        if exchange.state is not State.DECIDING:
            return self._breath
        if len(self.channels) >= MAX_CHANNELS or self._nursery is None:
            self._router.counters[DropReason.TOO_MANY_CHANNELS] += 1
            self._drop(pending)
            return None
        pending.held = MemoryChannel(HELD_BYTES, stall_timeout=STALL_TIMEOUT, on_stall=pending.hold_no_more)
        self._nursery.start_soon(self._decide, pending, pending.held)
        return self._breath

    async def _decide(self, pending: _Pending, held: MemoryChannel[Message]) -> None:
        exchange = pending.exchange
        assert exchange.peer is not None
        trusted = False
        with trio.CancelScope(deadline=pending.deadline):
            try:
                trusted = await is_trusted(exchange.peer, self._trust, self.identity.vault.known_peers)
            except VaultError as error:
                # The vault's file is locked, or its disk full: as in `_first`, no reason for strangers to end the node.
                log.error("can't look up a peer: %s", error)
        if not trusted:
            self._drop(pending)
            return
        exchange.accept()
        channel = SecureChannel(
            self._router,
            exchange.cipher(),
            exchange.peer,
            ours=(random_address(), pending.address),
            route=pending.back,
            follows=True,
        )
        self.channels.add(channel)
        self._router.on_close(channel.encoded, partial(self.channels.discard, channel))
        while not channel.closed.is_set() and (message := held.take()) is not None:
            over_budget = channel.decrypt(message)
            if over_budget is not None:
                await over_budget.wait_or_stall()
        held.close()
        del self._pending[pending.address]
        if channel.closed.is_set():
            return
        # On the same node the peer's side hears of this address's end, and would take it for its own.
        self._router.replace(pending.address, channel.decrypt, allow=from_anywhere)
        self._stirred.set()
        log.info("secure channel with %s is open", channel.peer.identifier)

    async def _sweep(self) -> None:
        """Drop handshakes whose time is over, and channels that ended or whose way stayed gone."""
        suspects: set[SecureChannel] = set()
        while True:
            if not self._pending and not self.channels:
                self._stirred = trio.Event()
                await self._stirred.wait()
            await trio.sleep(SWEEP_SECONDS)
            now = trio.current_time()
            for pending in [each for each in self._pending.values() if each.deadline <= now and each.held is None]:
                self._drop(pending)
            gone = {channel for channel in self.channels if not channel.is_reachable}
            for channel in suspects & gone:
                channel.lose()
            suspects = gone

    async def aclose(self) -> None:
        """Close every channel of this listener, telling the peers, and answer no more handshakes."""
        for channel in list(self.channels):
            await channel.aclose()
        self._scope.cancel()
        await self._ended.wait()
