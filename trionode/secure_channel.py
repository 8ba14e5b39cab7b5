"""Secure channels: the handshake carried over a route, then a hop that encrypts, one that decrypts, and the peer's proven identity."""

import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import chain, repeat

import attrs
import trio

from trionode.access import from_anywhere, from_here
from trionode.errors import (
    ClosedError,
    HandshakeError,
    IdentityError,
    LinkLostError,
    MessageTooLargeError,
    NoAnswerError,
    RefusedError,
    UnknownAddressError,
    WireError,
)
from trionode.identities import Identity
from trionode.memory_channel import MemoryChannel
from trionode.observe import log
from trionode.protocol import current
from trionode.protocol.address import Address, Encoded
from trionode.protocol.credential import PresentedCredential
from trionode.protocol.identity import Relation, relation, verify_history
from trionode.protocol.identity_payload import MAX_CREDENTIALS
from trionode.protocol.key_exchange import KeyExchange, Peer
from trionode.protocol.message import HERE, Facts, Message
from trionode.protocol.route import MAX_HOPS, Route
from trionode.protocol.session import OVERHEAD, Session
from trionode.room import Room
from trionode.router import Router, random_address
from trionode.trust import TrustPolicy, is_trusted

#: Seconds after which an initiator begins again with a new handshake; the last one repeats until the caller's deadline.
RETRIES = (5.0, 10.0, 20.0)

#: What the CBOR around a message costs beside its routes and its payload: three array heads of up to two bytes and a five-byte length.
_HEADS = 12
#: What the plaintext of an application message has beside the message itself (spec §7.2).
_PLAINTEXT_OVERHEAD = 5


class SecureChannel:
    """One side of an open channel: routable, `Route(channel, "echoer")`. Made by `open_secure_channel`, or by a listener.

    `peer` is who is at the other end, as proven by the handshake. What the channel's way changes, forges, replays or reorders
    beyond 32 messages is refused and counted in `refused`; the channel goes on with the next good message.
    """

    def __init__(
        self,
        router: Router,
        session: Session,
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
        self._session = session
        self._route = route
        self._theirs = route[-1]
        #: Whether the route follows the peer to a new link: a responder's does, an initiator's never (spec §7.2).
        self._follows = follows
        self._identifier = peer.identifier.value
        self._facts: dict[Facts, Facts] = {}
        self._max_plaintext: int | None = None
        self._measure()
        router.register(self.encoded, self.encrypt, allow=from_here, limit=self._limit)

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
        outer = sum(map(len, self._route[1:])) + _HEADS + OVERHEAD
        self._max_plaintext = None if limit is None else limit - outer

    @property
    def _limit(self) -> int | None:
        return None if self._max_plaintext is None else self._max_plaintext - _PLAINTEXT_OVERHEAD

    def encrypt(self, message: Message) -> Room | None:
        """The hop that seals: whatever it can't send it refuses before a nonce is used (spec §7.2)."""
        return self._send(
            current.seal_payload(message.onward[1:], message.back, message.payload), (), message.deliveries
        )

    def _send(self, plaintext: bytes, back: tuple[Encoded, ...], deliveries: int = 0) -> Room | None:
        route, limit = self._route, self._max_plaintext
        if limit is not None and len(plaintext) + sum(map(len, back)) > limit:
            raise MessageTooLargeError(
                f"the way to {self.peer.identifier} carries messages of at most {limit - _PLAINTEXT_OVERHEAD} bytes with their routes, "
                f"this one has {len(plaintext) - _PLAINTEXT_OVERHEAD}: send it in parts"
            )
        if route[0] not in self._router:
            # The error of every address that is gone: whoever answers a peer that went away drops the answer, and goes on.
            raise UnknownAddressError(
                f"the way to {self.peer.identifier} is gone: its link or stream ended. Open the channel again"
            )
        return self._router.deliver(Message(route, back, self._session.encrypt(plaintext), HERE, deliveries))

    def decrypt(self, message: Message) -> Room | None:
        """The hop that opens; nothing that does not verify has any effect (spec §7.3, §7.4)."""
        session = self._session
        try:
            opened = current.open_plaintext(session.decrypt(message.payload))
        except (RefusedError, WireError):
            self.refused += 1
            self._router.counters["blob refused"] += 1
            return None
        if type(opened) is tuple:
            onward, back, payload = opened
            if self._follows and session.newest and message.back != self._route[:-1] and message.back:
                self._route = (*message.back, self._theirs)
                self._measure()
            if len(onward) + len(back) >= MAX_HOPS:
                self._router.counters["route too long"] += 1
                return None
            facts = self._facts.get(message.facts) or self._know(message.facts)
            return self._router.deliver(Message(onward, (self.encoded, *back), payload, facts, message.deliveries))
        if isinstance(opened, current.RefreshCredentials):
            self._refresh(opened)
        else:
            self._end("the peer closed it")
        return None

    def _know(self, outer: Facts) -> Facts:
        # One object for all messages of one origin; the origin changes only when the peer moves to a new link.
        self._facts = {outer: attrs.evolve(outer, identifier=self._identifier)}
        return self._facts[outer]

    def _refresh(self, refresh: current.RefreshCredentials) -> None:
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
        """Present new credentials of the identity that made this channel (spec §7.2); nothing is answered."""
        refresh = current.RefreshCredentials(identity.history.encoded, tuple(each.encode() for each in credentials))
        self._send(current.seal_refresh(refresh), (self.encoded,))

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
        """Tell the peer, if its way is still there, and end this side; a second time it does nothing."""
        if not self.closed.is_set():
            # A peer that can't be told finds out by its own means.
            with suppress(UnknownAddressError, ClosedError):
                self._send(current.seal_close(), (self.encoded,))
            self._end("this side closed it")
        await trio.lowlevel.checkpoint()

    def __repr__(self) -> str:
        return f"<SecureChannel with {self.peer.identifier} at {self.address}>"


async def open_secure_channel(
    router: Router, route: tuple[Encoded, ...], identity: Identity, *, trust: TrustPolicy, deadline: float
) -> SecureChannel:
    """The initiator's side (spec §7.1): handshakes until one ends, each with its own address and ephemeral key."""
    handshakes = _Handshakes(router, route, identity)
    try:
        with trio.CancelScope(deadline=deadline):
            exchange, address, message = await handshakes.first_answered()
            assert exchange.peer is not None
            if not await is_trusted(exchange.peer, trust, identity.vault.known_peers):
                raise HandshakeError(
                    f"the peer is {exchange.peer.identifier}, who is refused: check which identifier you expect, and whom you have reached"
                )
            return handshakes.finish(exchange, address, message)
    finally:
        handshakes.give_up()
    raise NoAnswerError(
        f"nobody completed a handshake along [{Route.from_encoded(route)}] in time. The listener may be gone, the route may be wrong, or the "
        f"peer refuses this identity, {identity.identifier}: an initiator can't tell these apart"
    )


class _Handshakes:
    """The handshakes of one initiator: the first that is answered counts, also when it is not the newest."""

    def __init__(self, router: Router, route: tuple[Encoded, ...], identity: Identity) -> None:
        self._router = router
        self._route = route
        self._identity = identity
        self._arrived: MemoryChannel[tuple[KeyExchange, Encoded, Message]] = MemoryChannel()
        self._attempts: dict[Encoded, KeyExchange] = {}

    def _begin(self) -> None:
        identity = self._identity
        exchange = KeyExchange.initiator(identity.vault, identity.purpose_key, identity.payload())
        address = random_address()

        def take(message: Message) -> None:
            if not self._arrived.is_full:
                self._arrived.put((exchange, address, message), len(message.payload))

        self._attempts[address] = exchange
        self._router.register(address, take, allow=from_anywhere)
        self._router.deliver(Message(self._route, (address,), exchange.begin()))

    async def first_answered(self) -> tuple[KeyExchange, Encoded, Message]:
        """Begin handshakes, one after the other, until a good message 2 arrives."""
        for wait in chain(RETRIES, repeat(RETRIES[-1])):
            if self._attempts:
                self._require(self._route[0])
            self._begin()
            with trio.move_on_after(wait):
                while True:
                    exchange, address, message = await self._arrived.receive()
                    try:
                        exchange.receive(message.payload, int(time.time()))
                    except HandshakeError:
                        self._router.counters["handshake refused"] += 1
                        continue
                    if message.back:
                        return exchange, address, message
            log.info("no answer to a handshake within %g s: beginning another", wait)
        raise AssertionError  # the loop above has no end

    def _require(self, first: Encoded) -> None:
        """LinkLostError if the first hop of the way, which was there, is gone: no mistake of this program's."""
        if first not in self._router:
            raise LinkLostError(
                "the way to the peer was lost during the handshake: its link ended. Open the channel again"
            )

    def finish(self, exchange: KeyExchange, address: Encoded, message: Message) -> SecureChannel:
        """Send message 3; the channel is ready before anything can answer it."""
        router = self._router
        self._require(message.back[0])
        third = exchange.accept()
        assert third is not None
        assert exchange.peer is not None
        del self._attempts[address]
        router.unregister(address)
        ours = (random_address(), address)
        channel = SecureChannel(router, exchange.session(), exchange.peer, ours=ours, route=message.back, follows=False)
        router.register(address, channel.decrypt, allow=from_anywhere)
        router.deliver(Message(message.back, (address,), third))
        # The peer learns of a new way only from messages that reach it, and those need the old one: without it the channel is over.
        router.on_gone(message.back[0], channel.lose)
        return channel

    def give_up(self) -> None:
        """Forget the handshakes that are not finished."""
        for address, exchange in self._attempts.items():
            self._router.unregister(address)
            exchange.refuse()
