"""The initiator of secure channels: handshakes along a route until one of them is answered."""

import secrets
import time
from itertools import chain, repeat
from typing import Literal, TypeAlias

import attrs
import trio

from trionode.channel.deliveries import Deliveries
from trionode.channel.delivering import DeliveringHops
from trionode.channel.handshakers import Handshaker
from trionode.channel.hops import ChannelHops
from trionode.channel.secure_channel import SecureChannel
from trionode.counters import DropReason
from trionode.errors import AnswerTimeout, ConnectionLost, HandshakeError, IdentityRefused
from trionode.identity.known_peers import KnownPeers
from trionode.identity.trust import TrustPolicy, is_trusted
from trionode.log import log
from trionode.protocol.delivery.delivery import Delivery
from trionode.protocol.delivery.terms import HASH_SIZE, Terms
from trionode.protocol.handshake.exchange import Exchange, Peer, State
from trionode.protocol.rules.access import from_anywhere
from trionode.protocol.session.cipher import ChannelCipher
from trionode.protocol.wire.address import Encoded
from trionode.protocol.wire.message import Message
from trionode.protocol.wire.route import Route
from trionode.routing.memory_channel import MemoryChannel
from trionode.routing.router import Router, random_address

#: Seconds after which an initiator begins a new handshake; the last one repeats until the caller's deadline.
RETRIES = (5.0, 10.0, 20.0)


#: Whether the channel has the delivery layer: if the peer has it; or else the channel does not open; or not at all.
DeliveryMode: TypeAlias = Literal["on", "required", "off"]


async def open_secure_channel(
    router: Router,
    route: tuple[Encoded, ...],
    handshaker: Handshaker,
    *,
    trust: TrustPolicy,
    known_peers: KnownPeers,
    deadline: float,
    delivery: DeliveryMode,
    deliveries: Deliveries,
) -> SecureChannel:
    """Open a channel (spec §7.1, §8).

    Each handshake has its own address and fresh keys; the first that is answered counts. A peer with the delivery layer
    says whether it accepts this side; without an answer, the handshakes begin again.
    """
    handshakes = _Handshakes(router, route, handshaker)
    hops: ChannelHops | None = None
    try:
        with trio.CancelScope(deadline=deadline):
            for wait in chain(RETRIES, repeat(RETRIES[-1])):
                attempt = await handshakes.answered_within(wait)
                if attempt is None:
                    continue
                peer, exchange = attempt.exchange.peer, attempt.exchange
                assert peer is not None
                if not await is_trusted(peer, trust, known_peers):
                    raise HandshakeError(
                        f"the peer is {peer.identifier}, which is refused: check which identifier you expect, "
                        f"and the route. The log says whether the trust policy refused it, or its history contradicts a "
                        f"known one"
                    )
                if delivery == "required" and exchange.delivery is None:
                    raise HandshakeError(
                        f"the peer {peer.identifier} has no delivery layer, and this channel requires it: "
                        f'open it with delivery="on", or update the peer'
                    )
                if delivery == "off" or exchange.delivery is None:
                    return SecureChannel(handshakes.finish(attempt))
                if hops is not None:
                    hops.end("its handshake was not answered")
                hops = handshakes.finish_delivering(attempt, deliveries)
                with trio.move_on_after(wait):
                    await hops.decided.wait()
                if hops.delivery.is_accepted:
                    channel, hops = SecureChannel(hops), None
                    return channel
                if hops.delivery.is_refused:
                    raise IdentityRefused(
                        f"the peer {peer.identifier} refuses this identity, {handshaker.identifier}: "
                        f"its trust policy has to name it"
                    )
                handshakes.require_route()
    finally:
        handshakes.abandon()
        if hops is not None:
            hops.end("it was not opened")
    raise AnswerTimeout(
        f"no handshake along [{Route.from_encoded(route)}] was completed in time. An initiator can't distinguish the causes "
        f"apart: there is no listener, the route is wrong, the listener does not answer protocol version "
        f"{handshaker.protocol_version!r}, or it refuses this identity, {handshaker.identifier}"
    )


@attrs.define(eq=False)
class _Attempt:
    """One handshake: its address, and the route to the peer, which the first good answer carries."""

    exchange: Exchange
    address: Encoded
    route: tuple[Encoded, ...] = ()


class _Handshakes:
    """The handshakes of one initiator.

    The first that proves the peer's identity counts, even if a newer one has begun.
    """

    def __init__(self, router: Router, route: tuple[Encoded, ...], handshaker: Handshaker) -> None:
        self._router = router
        self._route = route
        self._handshaker = handshaker
        self._arrived: MemoryChannel[tuple[_Attempt, Message]] = MemoryChannel()
        self._attempts: dict[Encoded, _Attempt] = {}

    def _begin(self) -> None:
        attempt = _Attempt(self._handshaker.initiator(), random_address())

        def take(message: Message) -> None:
            if not self._arrived.is_full:
                self._arrived.put((attempt, message), len(message.payload))

        self._attempts[attempt.address] = attempt
        self._router.register(attempt.address, take, allow=from_anywhere)
        self._router.deliver(Message(self._route, (attempt.address,), attempt.exchange.begin()))

    async def answered_within(self, wait: float) -> _Attempt | None:
        """Begin a handshake; return the first one that has a peer, or None if none has within `wait` seconds."""
        if self._attempts:
            self.require_route()
        self._begin()
        with trio.move_on_after(wait):
            return await self._next_answered()
        log.info("no answer to a handshake within %g s: beginning another", wait)
        return None

    async def _next_answered(self) -> _Attempt:
        while True:
            attempt, message = await self._arrived.receive()
            self._take(attempt, message)
            if attempt.exchange.state is State.DECIDING:
                return attempt

    def require_route(self) -> None:
        """ConnectionLost if the first hop of the route is gone."""
        self._require(self._route[0])

    def _take(self, attempt: _Attempt, message: Message) -> None:
        """Give the exchange a message, and send its answer at once."""
        if not attempt.route and not message.back:
            self._router.counters[DropReason.HANDSHAKE_REFUSED] += 1
            return
        try:
            answer = attempt.exchange.receive(message.payload, int(time.time()))
        except HandshakeError:
            self._router.counters[DropReason.HANDSHAKE_REFUSED] += 1
            return
        attempt.route = attempt.route or message.back
        if answer is not None:
            self._send(attempt, answer)

    def _require(self, first: Encoded) -> None:
        """ConnectionLost if the first hop of the route, which existed before, is gone: no mistake of this program."""
        if first not in self._router:
            raise ConnectionLost(
                "the route to the peer was lost during the handshake: its link ended. Open the channel again"
            )

    def _send(self, attempt: _Attempt, payload: bytes) -> None:
        self._require(attempt.route[0])
        self._router.deliver(Message(attempt.route, (attempt.address,), payload))

    def finish(self, attempt: _Attempt) -> ChannelHops:
        """Send the last message; the channel is ready before any message can arrive for it."""
        self._require(attempt.route[0])
        last, cipher, peer = _accept(attempt.exchange)
        addresses = (random_address(), attempt.address)
        hops = ChannelHops(self._router, cipher, peer, addresses=addresses, route=attempt.route, follows=False)
        self._start(attempt, hops, last)
        return hops

    def finish_delivering(self, attempt: _Attempt, deliveries: Deliveries) -> DeliveringHops:
        """Send the last message with the terms of delivery; the peer answers it."""
        self._require(attempt.route[0])
        delivery = Delivery(secrets.token_bytes(HASH_SIZE))
        delivery.initiate(trio.current_time())
        last, cipher, peer = _accept(attempt.exchange, delivery.terms)
        hops = DeliveringHops(
            self._router,
            cipher,
            peer,
            addresses=(random_address(), attempt.address),
            route=attempt.route,
            follows=False,
            delivery=delivery,
            deliveries=deliveries,
        )
        self._start(attempt, hops, last)
        return hops

    def _start(self, attempt: _Attempt, hops: ChannelHops, last: bytes) -> None:
        del self._attempts[attempt.address]
        self._router.replace(attempt.address, hops.decrypt, allow=from_anywhere)
        self._send(attempt, last)
        # The peer learns of a new route only from messages that reach it by the old one. Without it the channel is
        # over.
        self._router.on_close(attempt.route[0], hops.abort)

    def abandon(self) -> None:
        """Remove the handshakes that are not finished."""
        for attempt in self._attempts.values():
            self._router.unregister(attempt.address)
            attempt.exchange.refuse()


def _accept(exchange: Exchange, terms: Terms | None = None) -> tuple[bytes, ChannelCipher, Peer]:
    last = exchange.accept(terms)
    assert last is not None
    assert exchange.peer is not None
    return last, exchange.cipher(), exchange.peer
