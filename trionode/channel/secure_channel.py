"""Secure channels: the handshake carried over a route, then a hop that encrypts, one that decrypts, and the peer's proven identity."""

import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import chain, repeat

import attrs
import trio

from trionode.channel.handshakers import Handshaker
from trionode.counters import DropReason
from trionode.errors import (
    AnswerTimeout,
    ClosedError,
    ConnectionLost,
    DecryptError,
    HandshakeError,
    IdentityError,
    MessageTooLargeError,
    UnknownAddressError,
    WireError,
)
from trionode.identity.identity import Identity
from trionode.identity.known_peers import KnownPeers
from trionode.identity.trust import TrustPolicy, is_trusted
from trionode.log import log
from trionode.protocol.handshake.exchange import Exchange, Peer, State
from trionode.protocol.identity.credential import PresentedCredential
from trionode.protocol.identity.history import Relation, relation
from trionode.protocol.identity.identity import verify_history
from trionode.protocol.identity.payload import MAX_CREDENTIALS
from trionode.protocol.rules.access import from_anywhere, from_local
from trionode.protocol.session.cipher import ChannelCipher
from trionode.protocol.wire.address import Address, Encoded
from trionode.protocol.wire.current_codec import RefreshCredentials
from trionode.protocol.wire.message import LOCAL, Message, Origin
from trionode.protocol.wire.route import MAX_HOPS, Route
from trionode.routing.byte_budget import ByteBudget
from trionode.routing.memory_channel import MemoryChannel
from trionode.routing.router import Router, random_address

#: Seconds after which an initiator begins again with a new handshake; the last one repeats until the caller's deadline.
RETRIES = (5.0, 10.0, 20.0)

#: What the CBOR around a message costs beside its routes and its payload: three array heads of up to two bytes and a five-byte length.
#: BARE never costs more.
_HEADS = 12


class SecureChannel:
    """One side of an open channel: routable, `Route(channel, "echoer")`. Made by `open_secure_channel`, or by a listener.

    `peer` is who is at the other end, as proven by the handshake. What the channel's way changes, forges, replays or reorders
    beyond 32 messages is refused and counted in `refused`; the channel goes on with the next good message.
    """

    def __init__(
        self,
        router: Router,
        cipher: ChannelCipher,
        peer: Peer,
        *,
        ours: tuple[Encoded, Encoded],
        route: tuple[Encoded, ...],
        follows: bool,
    ) -> None:
        self.peer = peer
        #: Blobs that were refused, and plaintexts that could not be read.
        self.refused = 0
        #: Set when either side has closed the channel.
        self.closed = trio.Event()
        self.encoded, self.decryptor = ours
        self._router = router
        self._cipher = cipher
        self._session = cipher.session
        self._route = route
        self._theirs = route[-1]
        #: Whether the route follows the peer to a new link: a responder's may, an initiator's never does (spec §7.2).
        self._follows = follows and cipher.follows_peer
        #: The outer return route of what is sent; where peers ignore it, it names the address that they write to anyway (spec §8).
        self._back: tuple[Encoded, ...] = () if cipher.follows_peer else (self.decryptor,)
        self._identifier = peer.identifier.value
        self._origin: dict[Origin, Origin] = {}
        self._max_plaintext: int | None = None
        self._measure()
        router.register(self.encoded, self.encrypt, allow=from_local, limit=self._limit)
        if cipher.warning:
            log.warning("secure channel with %s: %s", peer.identifier, cipher.warning)

    @property
    def address(self) -> Address:
        """The address of the encryptor: what goes there goes to the peer."""
        return Address.from_encoded(self.encoded)

    @property
    def is_reachable(self) -> bool:
        """Whether the first hop to the peer is still there."""
        return self._route[0] in self._router

    def _measure(self) -> None:
        limit = self._router.limit(self._route[0])
        outer = sum(map(len, self._route[1:])) + _HEADS + self._cipher.encryption_overhead
        self._max_plaintext = None if limit is None else limit - outer

    @property
    def _beside(self) -> int:
        """Bytes of an application message that are neither its own routes nor its payload."""
        return self._cipher.encoding_overhead + sum(map(len, self._back))

    @property
    def _limit(self) -> int | None:
        return None if self._max_plaintext is None else self._max_plaintext - self._beside

    def encrypt(self, message: Message) -> ByteBudget | None:
        """The hop that seals: whatever it can't send it refuses before a nonce is used (spec §7.2)."""
        onward = message.onward[1:]
        if not onward:
            # The answer to a message with an empty return route, for one. It is for nobody, and classic Rust peers panic on it (spec §8).
            self._router.counters[DropReason.ENDS_AT_CHANNEL] += 1
            return None
        return self._send(self._cipher.encode(onward, message.back, message.payload), self._back, message.deliveries)

    def _send(self, plaintext: bytes, back: tuple[Encoded, ...], deliveries: int = 0) -> ByteBudget | None:
        route, limit = self._route, self._max_plaintext
        if limit is not None and len(plaintext) + sum(map(len, back)) > limit:
            raise MessageTooLargeError(
                f"the way to {self.peer.identifier} carries messages of at most {limit - self._beside} bytes with their routes, "
                f"this one has {len(plaintext) - self._cipher.encoding_overhead}: send it in parts"
            )
        if route[0] not in self._router:
            # The error of every address that is gone: whoever answers a peer that went away drops the answer, and goes on.
            raise UnknownAddressError(
                f"the way to {self.peer.identifier} is gone: its link or stream ended. Open the channel again"
            )
        return self._router.deliver(Message(route, back, self._cipher.encrypt(plaintext), LOCAL, deliveries))

    def decrypt(self, message: Message) -> ByteBudget | None:
        """The hop that opens; nothing that does not verify has any effect (spec §7.3, §7.4)."""
        cipher = self._cipher
        try:
            opened = cipher.decode(cipher.decrypt(message.payload))
        except (DecryptError, WireError):
            self.refused += 1
            self._router.counters[DropReason.DECRYPT_FAILED] += 1
            return None
        if type(opened) is tuple:
            onward, back, payload = opened
            if self._follows and self._session.newest and message.back != self._route[:-1] and message.back:
                self._route = (*message.back, self._theirs)
                self._measure()
            if len(onward) + len(back) >= MAX_HOPS:
                self._router.counters[DropReason.ROUTE_TOO_LONG] += 1
                return None
            origin = self._origin.get(message.origin) or self._know(message.origin)
            return self._router.deliver(Message(onward, (self.encoded, *back), payload, origin, message.deliveries))
        if isinstance(opened, RefreshCredentials):
            self._refresh(opened)
        else:
            self._end("the peer closed it")
        return None

    def _know(self, outer: Origin) -> Origin:
        # One object for all messages of one origin; the origin changes only when the peer moves to a new link.
        self._origin = {outer: attrs.evolve(outer, identifier=self._identifier)}
        return self._origin[outer]

    def _refresh(self, refresh: RefreshCredentials) -> None:
        try:
            history = verify_history(refresh.history)
            credentials = tuple(map(PresentedCredential.decode, refresh.credentials[: MAX_CREDENTIALS + 1]))
        except (IdentityError, WireError):
            self.refused += 1
            return
        # Another identity's history conflicts too: it begins with another change.
        goes_on = relation(self.peer.history, history) in (Relation.SAME, Relation.NEWER)
        if not goes_on or len(credentials) > MAX_CREDENTIALS:
            self.refused += 1
            return
        self.peer = Peer(history, credentials)

    def refresh(self, identity: Identity, credentials: Sequence[PresentedCredential]) -> None:
        """Present new credentials of the identity that made this channel (spec §7.2); nothing is answered.

        LocalError for a channel of a generation that has no credentials.
        """
        refresh = RefreshCredentials(identity.history.encoded, tuple(each.encode() for each in credentials))
        self._send(self._cipher.encode_refresh(refresh), (self.encoded,))

    def lose(self) -> None:
        """End this side without a word to the peer: the way to it is gone."""
        self._end("its way is gone")

    def _end(self, reason: str) -> None:
        if not self.closed.is_set():
            self.closed.set()
            self._router.unregister(self.encoded)
            self._router.unregister(self.decryptor)
            self._router.forget(self._route[0], self.lose)
            log.info("secure channel with %s ended: %s", self.peer.identifier, reason)

    async def aclose(self) -> None:
        """Tell the peer, if its way is still there and its generation can be told, and end this side; a second time it does nothing."""
        if not self.closed.is_set():
            # A peer that can't be told finds out by its own means.
            if self._cipher.close_plaintext is not None:
                with suppress(UnknownAddressError, ClosedError):
                    self._send(self._cipher.close_plaintext, (self.encoded,))
            self._end("this side closed it")
        await trio.lowlevel.checkpoint()

    def __repr__(self) -> str:
        return f"<SecureChannel with {self.peer.identifier} at {self.address}>"


async def open_secure_channel(
    router: Router,
    route: tuple[Encoded, ...],
    handshaker: Handshaker,
    *,
    trust: TrustPolicy,
    known_peers: KnownPeers,
    deadline: float,
) -> SecureChannel:
    """The initiator's side (spec §7.1, §8): handshakes until one ends, each with its own address and fresh keys."""
    handshakes = _Handshakes(router, route, handshaker)
    try:
        with trio.CancelScope(deadline=deadline):
            attempt = await handshakes.first_answered()
            assert attempt.exchange.peer is not None
            if not await is_trusted(attempt.exchange.peer, trust, known_peers):
                raise HandshakeError(
                    f"the peer is {attempt.exchange.peer.identifier}, who is refused: check which identifier you expect, and whom you have reached"
                )
            return handshakes.finish(attempt)
    finally:
        handshakes.give_up()
    raise AnswerTimeout(
        f"nobody completed a handshake along [{Route.from_encoded(route)}] in time. The listener may be gone, the route may be wrong, the listener may "
        f"speak another generation than {handshaker.protocol_version!r}, or the peer refuses this identity, {handshaker.identifier}: an initiator can't tell "
        f"these apart"
    )


@attrs.define(eq=False)
class _Attempt:
    """One handshake: its address, and the route to the peer once the first good message has told it."""

    exchange: Exchange
    address: Encoded
    route: tuple[Encoded, ...] = ()


class _Handshakes:
    """The handshakes of one initiator: the first that learns who the peer is counts, also when it is not the newest."""

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
        """Give the exchange a message, and send at once what it answers."""
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
        """ConnectionLost if the first hop of the way, which was there, is gone: no mistake of this program's."""
        if first not in self._router:
            raise ConnectionLost(
                "the way to the peer was lost during the handshake: its link ended. Open the channel again"
            )

    def _send(self, attempt: _Attempt, payload: bytes) -> None:
        self._require(attempt.route[0])
        self._router.deliver(Message(attempt.route, (attempt.address,), payload))

    def finish(self, attempt: _Attempt) -> SecureChannel:
        """Send the last message; the channel is ready before anything can answer it."""
        router, exchange = self._router, attempt.exchange
        self._require(attempt.route[0])
        last = exchange.accept()
        assert last is not None
        assert exchange.peer is not None
        del self._attempts[attempt.address]
        ours = (random_address(), attempt.address)
        channel = SecureChannel(router, exchange.cipher(), exchange.peer, ours=ours, route=attempt.route, follows=False)
        router.replace(attempt.address, channel.decrypt, allow=from_anywhere)
        self._send(attempt, last)
        # The peer learns of a new way only from messages that reach it, and those need the old one: without it the channel is over.
        router.on_close(attempt.route[0], channel.lose)
        return channel

    def give_up(self) -> None:
        """Forget the handshakes that are not finished."""
        for attempt in self._attempts.values():
            self._router.unregister(attempt.address)
            attempt.exchange.refuse()
