"""The initiator of secure channels: handshakes along a route until one of them is answered."""

import time
from itertools import chain, repeat

import attrs
import trio

from trionode.channel.handshakers import Handshaker
from trionode.channel.hops import ChannelHops
from trionode.channel.secure_channel import SecureChannel
from trionode.counters import DropReason
from trionode.errors import AnswerTimeout, ConnectionLost, HandshakeError
from trionode.identity.known_peers import KnownPeers
from trionode.identity.trust import TrustPolicy, is_trusted
from trionode.log import log
from trionode.protocol.handshake.exchange import Exchange, State
from trionode.protocol.rules.access import from_anywhere
from trionode.protocol.wire.address import Encoded
from trionode.protocol.wire.message import Message
from trionode.protocol.wire.route import Route
from trionode.routing.memory_channel import MemoryChannel
from trionode.routing.router import Router, random_address

#: Seconds after which an initiator begins a new handshake; the last one repeats until the caller's deadline.
RETRIES = (5.0, 10.0, 20.0)


async def open_secure_channel(
    router: Router,
    route: tuple[Encoded, ...],
    handshaker: Handshaker,
    *,
    trust: TrustPolicy,
    known_peers: KnownPeers,
    deadline: float,
) -> SecureChannel:
    """Open a channel (spec §7.1, §8).

    Each handshake has its own address and fresh keys; the first that is answered counts.
    """
    handshakes = _Handshakes(router, route, handshaker)
    try:
        with trio.CancelScope(deadline=deadline):
            attempt = await handshakes.first_answered()
            assert attempt.exchange.peer is not None
            if not await is_trusted(attempt.exchange.peer, trust, known_peers):
                raise HandshakeError(
                    f"the peer is {attempt.exchange.peer.identifier}, which is refused: check which identifier you expect, "
                    f"and the route. The log says whether the trust policy refused it, or its history contradicts a known one"
                )
            return handshakes.finish(attempt)
    finally:
        handshakes.abandon()
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

    async def first_answered(self) -> _Attempt:
        """Begin handshakes, one after the other, until one has a peer."""
        for wait in chain(RETRIES, repeat(RETRIES[-1])):
            if self._attempts:
                self._require(self._route[0])
            self._begin()
            with trio.move_on_after(wait):
                while True:
                    attempt, message = await self._arrived.receive()
                    self._take(attempt, message)
                    if attempt.exchange.state is State.DECIDING:
                        return attempt
            log.info("no answer to a handshake within %g s: beginning another", wait)
        raise AssertionError  # the loop above has no end

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

    def finish(self, attempt: _Attempt) -> SecureChannel:
        """Send the last message; the channel is ready before any message can arrive for it."""
        router, exchange = self._router, attempt.exchange
        self._require(attempt.route[0])
        last = exchange.accept()
        assert last is not None
        assert exchange.peer is not None
        del self._attempts[attempt.address]
        addresses = (random_address(), attempt.address)
        hops = ChannelHops(
            router, exchange.cipher(), exchange.peer, addresses=addresses, route=attempt.route, follows=False
        )
        router.replace(attempt.address, hops.decrypt, allow=from_anywhere)
        self._send(attempt, last)
        # The peer learns of a new route only from messages that reach it by the old one. Without it the channel is
        # over.
        router.on_close(attempt.route[0], hops.abort)
        return SecureChannel(hops)

    def abandon(self) -> None:
        """Remove the handshakes that are not finished."""
        for attempt in self._attempts.values():
            self._router.unregister(attempt.address)
            attempt.exchange.refuse()
