"""The listener of secure channels: a bounded number of handshakes with deadlines, and the channels that they open."""

import secrets
import time
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial

import attrs
import trio

from trionode.channel.deliveries import Deliveries
from trionode.channel.delivering import DeliveringHops, refuse
from trionode.channel.handshakers import Handshaker
from trionode.channel.hops import ChannelHops
from trionode.channel.initiator import DeliveryMode
from trionode.channel.secure_channel import SecureChannel
from trionode.counters import DropReason
from trionode.errors import HandshakeError, VaultError
from trionode.identity.identity import Identity
from trionode.identity.trust import TrustPolicy, is_trusted
from trionode.log import log
from trionode.protocol.delivery.delivery import Delivery
from trionode.protocol.delivery.terms import HASH_SIZE, Terms
from trionode.protocol.handshake.exchange import Exchange, Peer, State
from trionode.protocol.rules.access import Access, from_anywhere
from trionode.protocol.wire.address import Address, Encoded
from trionode.protocol.wire.message import Message
from trionode.routing.byte_budget import ByteBudget
from trionode.routing.mailbox import STALL_TIMEOUT
from trionode.routing.memory_channel import MemoryChannel
from trionode.routing.router import Router, random_address
from trionode.routing.service import Service

#: Seconds for the rest of a handshake and the trust policy (spec §14 allows 120).
HANDSHAKE_TIMEOUT = 60.0
#: Unfinished handshakes of one link or stream, and of the listener. At the bound the oldest is dropped: replayed first
#: messages of an old stream can't lock out a real initiator for longer than until its next try.
PENDING_PER_SOURCE = 32
PENDING_TOTAL = 1024
#: Channels that one listener keeps open: at some 10 KB each, 100 MB.
MAX_CHANNELS = 10_000
#: Bytes that wait for a channel while the trust policy decides, before the task that delivers them waits too. The hard
#: bound of such a queue is 4 MiB.
HELD_BYTES = 256 * 1024
#: Seconds between searches for channels whose route is gone. A channel that is found twice in a row is closed.
SWEEP_SECONDS = 60.0


@attrs.define(eq=False)
class _Pending:
    """An unfinished handshake."""

    exchange: Exchange
    address: Encoded
    source: Encoded | None
    deadline: float
    #: The route to the peer: the return route of message 3, and of no later one (spec §8).
    back: tuple[Encoded, ...] = ()
    #: While the trust policy decides: the messages that arrive after the last handshake message. Closed at the stall
    #: timeout.
    held: MemoryChannel[Message] | None = None

    def close_held(self) -> None:
        """Drop further messages for this channel, so that the link that brings them can go on with others."""
        if self.held is not None:
            self.held.close()


class SecureChannelListener(Service):
    """An address that answers handshakes, and the channels that they opened; made by `Node.serve_secure_channels`."""

    def __init__(
        self,
        router: Router,
        encoded: Encoded,
        identity: Identity,
        handshakers: Sequence[Handshaker],
        *,
        trust: TrustPolicy,
        delivery: DeliveryMode,
        deliveries: Deliveries,
    ) -> None:
        super().__init__()
        self._delivery = delivery
        self._deliveries = deliveries
        self._encoded = encoded
        self._identity = identity
        self._channels: dict[ChannelHops, SecureChannel] = {}
        self._router = router
        self._handshakers = handshakers
        self._trust = trust
        self._pending: OrderedDict[Encoded, _Pending] = OrderedDict()
        self._not_idle = trio.Event()
        # Never full: waiting for it lets other tasks run. A handshake message costs as much as a hundred others, and
        # one read of a link can bring 700 of them.
        self._yield_budget = ByteBudget()

    @property
    def address(self) -> Address:
        """The address that initiators name last in their route."""
        return Address.from_encoded(self._encoded)

    @property
    def channels(self) -> set[SecureChannel]:
        """The channels that are open now."""
        return set(self._channels.values())

    async def _run(
        self, *, allow: Access, task_status: trio.TaskStatus["SecureChannelListener"] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve until `aclose`, or the end of the node."""
        self._router.register(self._encoded, self._first, allow=allow)
        try:
            async with self._serving():
                task_status.started(self)
                await self._sweep()
        finally:
            self._router.unregister(self._encoded)
            for pending in list(self._pending.values()):
                self._drop(pending)
            for channel in list(self._channels):
                channel.abort()

    def _first(self, message: Message) -> ByteBudget | None:
        """Message 1: one responder and one answer for each (spec §14)."""
        if not message.back:
            return None
        source = message.origin.link or message.origin.stream
        handshaker = next((each for each in self._handshakers if each.begins(message.payload)), None)
        if handshaker is None:
            self._router.counters[DropReason.HANDSHAKE_REFUSED] += 1
            return self._yield_budget
        try:
            exchange = handshaker.responder()
        except VaultError as error:
            # The identity expired, or its keys were revoked a moment ago. A peer's message must not end the node.
            log.error("can't answer a handshake: %s", error)
            return None
        try:
            second = exchange.receive(message.payload, int(time.time()))
        except HandshakeError:
            self._router.counters[DropReason.HANDSHAKE_REFUSED] += 1
            exchange.refuse()
            return self._yield_budget
        assert second is not None
        if not self._drop_oldest(source):
            self._router.counters[DropReason.TOO_MANY_HANDSHAKES] += 1
            exchange.refuse()
            return self._yield_budget
        pending = _Pending(exchange, random_address(), source, trio.current_time() + HANDSHAKE_TIMEOUT)
        self._pending[pending.address] = pending
        self._not_idle.set()
        self._router.register(pending.address, partial(self._next, pending), allow=from_anywhere)
        self._router.answer(message, pending.address, second)
        return self._yield_budget

    def _drop_oldest(self, source: Encoded | None) -> bool:
        """Drop the oldest handshake at the bound. False if all wait for the trust policy, so none can be dropped."""
        pending = list(self._pending.values())
        of_source = [each for each in pending if each.source == source]
        for candidates, bound in ((of_source, PENDING_PER_SOURCE), (pending, PENDING_TOTAL)):
            if len(candidates) >= bound:
                oldest = next((each for each in candidates if each.held is None), None)
                if oldest is not None:
                    self._drop(oldest)
                return oldest is not None
        return True

    def _drop(self, pending: _Pending) -> None:
        self._pending.pop(pending.address, None)
        self._router.unregister(pending.address)
        pending.exchange.refuse()
        pending.close_held()

    def _next(self, pending: _Pending, message: Message) -> ByteBudget | None:
        """Take the handshake messages after message 1, and the data that follow them while the trust policy decides."""
        held = pending.held
        if held is not None:
            if held.is_closed or held.size + len(message.payload) > held.hard_bound:
                self._router.counters[DropReason.BEFORE_TRUST_DECISION] += 1
                return None
            return held.put(message, len(message.payload))
        if not pending.back and not message.back:
            self._router.counters[DropReason.HANDSHAKE_REFUSED] += 1
            return self._yield_budget
        exchange = pending.exchange
        try:
            answer = exchange.receive(message.payload, int(time.time()))
        except (HandshakeError, VaultError):  # VaultError: a key was revoked since message 1
            self._router.counters[DropReason.HANDSHAKE_REFUSED] += 1
            if exchange.state is State.REFUSED:
                self._drop(pending)
            return self._yield_budget
        pending.back = pending.back or message.back
        if answer is not None:
            self._router.answer(message, pending.address, answer)
        if exchange.state is not State.DECIDING:
            return self._yield_budget
        held = MemoryChannel[Message](HELD_BYTES, stall_timeout=STALL_TIMEOUT, on_stall=pending.close_held)
        if len(self._channels) >= MAX_CHANNELS or not self._start_soon(self._decide, pending, held):
            self._router.counters[DropReason.TOO_MANY_CHANNELS] += 1
            self._drop(pending)
            return None
        pending.held = held
        return self._yield_budget

    async def _decide(self, pending: _Pending, held: MemoryChannel[Message]) -> None:
        exchange = pending.exchange
        assert exchange.peer is not None
        trusted = False
        with trio.CancelScope(deadline=pending.deadline):
            try:
                trusted = await is_trusted(exchange.peer, self._trust, self._identity.vault.known_peers)
            except VaultError as error:
                # The vault's file is locked, or its disk is full. As in `_first`, a peer's message must not end the
                # node.
                log.error("can't look up a peer: %s", error)
        terms = exchange.delivery if isinstance(exchange.delivery, Terms) and self._delivery != "off" else None
        if trusted and terms is None and self._delivery == "required":
            log.warning("refused %s: it has no delivery layer, and this listener requires it", exchange.peer.identifier)
            trusted = False
        if not trusted:
            if terms is not None:
                exchange.accept()
                refuse(self._router, exchange.cipher(), pending.back)
            self._drop(pending)
            return
        exchange.accept()
        channel = self._open(pending, exchange.peer, terms)
        self._channels[channel] = SecureChannel(channel)
        self._router.on_close(channel.encryptor, partial(self._forget, channel))
        while not channel.closed.is_set() and (message := held.take()) is not None:
            over_budget = channel.decrypt(message)
            if over_budget is not None:
                await over_budget.wait_or_stall()
        held.close()
        del self._pending[pending.address]
        if channel.closed.is_set():
            return
        # Not unregistered first: on the same node the peer's side would take that for the end of the channel.
        self._router.replace(pending.address, channel.decrypt, allow=from_anywhere)
        self._not_idle.set()
        log.info("secure channel with %s is open", channel.peer.identifier)

    def _open(self, pending: _Pending, peer: Peer, terms: Terms | None) -> ChannelHops:
        addresses = (random_address(), pending.address)
        cipher = pending.exchange.cipher()
        if terms is None:
            return ChannelHops(self._router, cipher, peer, addresses=addresses, route=pending.back, follows=True)
        delivery = Delivery(secrets.token_bytes(HASH_SIZE))
        delivery.respond(terms, trio.current_time())
        hops = DeliveringHops(
            self._router,
            cipher,
            peer,
            addresses=addresses,
            route=pending.back,
            follows=True,
            delivery=delivery,
            deliveries=self._deliveries,
        )
        self._deliveries.flush_soon(hops)
        return hops

    def _forget(self, channel: ChannelHops) -> None:
        self._channels.pop(channel, None)

    async def _sweep(self) -> None:
        """Drop handshakes that are past their deadline, and close channels whose route stayed gone."""
        suspects: set[ChannelHops] = set()
        while True:
            if not self._pending and not self._channels:
                self._not_idle = trio.Event()
                await self._not_idle.wait()
            await trio.sleep(SWEEP_SECONDS)
            now = trio.current_time()
            for pending in [each for each in self._pending.values() if each.deadline <= now and each.held is None]:
                self._drop(pending)
            gone = {channel for channel in self._channels if not channel.has_route}
            for channel in suspects & gone:
                channel.abort()
            suspects = gone

    async def aclose(self) -> None:
        """Close every channel of this listener and answer no more handshakes.

        If cancelled, some channels may still be open, and the listener still answers.
        """
        for channel in list(self._channels.values()):
            await channel.aclose()
        await super().aclose()
