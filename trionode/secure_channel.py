"""Secure channels: the handshake carried over a route, then a hop that encrypts, one that decrypts, and the peer's proven identity."""

import time
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from itertools import chain, repeat

import attrs
import trio

from trionode.access import Access, from_anywhere, from_here
from trionode.errors import (
    ClosedError,
    HandshakeError,
    IdentityError,
    LinkLostError,
    MessageTooLargeError,
    NoAnswerError,
    RefusedError,
    UnknownAddressError,
    VaultError,
    WireError,
)
from trionode.identities import Identity
from trionode.mailbox import PATIENCE
from trionode.memory_channel import MemoryChannel
from trionode.observe import log, shown
from trionode.protocol import current
from trionode.protocol.address import Address, Encoded
from trionode.protocol.identity import MAX_CREDENTIALS, PresentedCredential, Relation, relation, verify_history
from trionode.protocol.key_exchange import KeyExchange, Peer
from trionode.protocol.message import HERE, Facts, Message
from trionode.protocol.route import MAX_HOPS, Route
from trionode.protocol.session import OVERHEAD, Session
from trionode.room import Room
from trionode.router import Router, random_address
from trionode.trust import TrustPolicy

#: Seconds after which an initiator begins again with a new handshake; the last one repeats until the caller's deadline.
RETRIES = (5.0, 10.0, 20.0)
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
            if not await _is_trusted(exchange.peer, identity, trust):
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


async def _is_trusted(peer: Peer, identity: Identity, trust: TrustPolicy) -> bool:
    if not await trust(peer):
        log.warning("refused %s: the trust policy says no", peer.identifier)
        return False
    try:
        await identity.vault.known_peers.check(peer.history)
    except IdentityError as error:
        log.warning("refused %s: %s", peer.identifier, shown(error))
        return False
    return True


@attrs.define(eq=False)
class _Pending:
    """A handshake that has begun at a listener."""

    exchange: KeyExchange
    address: Encoded
    source: Encoded | None
    deadline: float
    back: tuple[Encoded, ...] = ()
    #: What came behind message 3, once that has come and the trust policy decides; closed when the patience of who brings more is over.
    held: MemoryChannel[Message] | None = None

    def hold_no_more(self) -> None:
        """Let go of whoever has waited too long for the decision: what he brings from now on is lost, his other messages go on."""
        if self.held is not None:
            self.held.close()


class SecureChannelListener:
    """Answers handshakes at one address and makes a channel of each that ends well; made by `serve_secure_channels`."""

    def __init__(self, router: Router, encoded: Encoded, identity: Identity, trust: TrustPolicy) -> None:
        self.encoded = encoded
        self.identity = identity
        #: The channels that are open.
        self.channels: set[SecureChannel] = set()
        self._router = router
        self._trust = trust
        self._pending: OrderedDict[Encoded, _Pending] = OrderedDict()
        self._stirred = trio.Event()
        self._scope = trio.CancelScope()
        self._ended = trio.Event()
        self._nursery: trio.Nursery | None = None

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
                async with trio.open_nursery() as self._nursery:
                    task_status.started(self)
                    await self._sweep()
        finally:
            self._router.unregister(self.encoded)
            for pending in list(self._pending.values()):
                self._drop(pending)
            for channel in list(self.channels):
                channel.lose()
            self._ended.set()

    def _first(self, message: Message) -> Room | None:
        """Message 1: one responder and one answer for each (spec §14)."""
        if not message.back:
            return None
        source = message.facts.link or message.facts.stream
        try:
            exchange = KeyExchange.responder(self.identity.vault, self.identity.purpose_key, self.identity.payload())
        except VaultError as error:
            # The identity expired, or its keys were revoked a moment ago: ours to mend, but no reason for strangers to end the node.
            log.error("can't answer a handshake: %s", error)
            return None
        try:
            second = exchange.receive(message.payload, int(time.time()))
        except HandshakeError:
            self._router.counters["handshake refused"] += 1
            exchange.refuse()
            return None
        assert second is not None
        if not self._make_room(source):
            self._router.counters["handshake refused, too many"] += 1
            exchange.refuse()
            return None
        pending = _Pending(exchange, random_address(), source, trio.current_time() + HANDSHAKE_TIMEOUT)
        self._pending[pending.address] = pending
        self._stirred.set()
        self._router.register(pending.address, partial(self._third, pending), allow=from_anywhere)
        return self._answer(message, pending.address, second)

    def _answer(self, message: Message, address: Encoded, payload: bytes) -> Room | None:
        try:
            debt = self._router.deliver(Message(message.back, (address,), payload, HERE, message.deliveries))
        except (UnknownAddressError, MessageTooLargeError):
            return None  # the way back, and how long it is, was the peer's choice
        # Back out by the way it came: its reader may not wait for itself.
        if debt is not None and debt.is_full:
            debt.give_up()
        return None

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

    def _third(self, pending: _Pending, message: Message) -> Room | None:
        """Message 3, and the data that follow it while the trust policy decides."""
        held = pending.held
        if held is not None:
            if held.is_closed or held.size + len(message.payload) > held.hard_bound:
                self._router.counters["data before the trust decision"] += 1
                return None
            return held.put(message, len(message.payload))
        try:
            pending.exchange.receive(message.payload, int(time.time()))
        except (HandshakeError, VaultError):  # VaultError: the purpose key was revoked since message 1
            self._router.counters["handshake refused"] += 1
            return None
        if not message.back or len(self.channels) >= MAX_CHANNELS or self._nursery is None:
            self._router.counters["channel refused, too many"] += 1
            self._drop(pending)
            return None
        pending.back = message.back
        pending.held = MemoryChannel(HELD_BYTES, patience=PATIENCE, give_up=pending.hold_no_more)
        self._nursery.start_soon(self._decide, pending, pending.held)
        return None

    async def _decide(self, pending: _Pending, held: MemoryChannel[Message]) -> None:
        exchange = pending.exchange
        assert exchange.peer is not None
        trusted = False
        with trio.CancelScope(deadline=pending.deadline):
            trusted = await _is_trusted(exchange.peer, self.identity, self._trust)
        if not trusted:
            self._drop(pending)
            return
        exchange.accept()
        channel = SecureChannel(
            self._router,
            exchange.session(),
            exchange.peer,
            ours=(random_address(), pending.address),
            route=pending.back,
            follows=True,
        )
        self.channels.add(channel)
        self._router.on_gone(channel.encoded, partial(self.channels.discard, channel))
        while not channel.closed.is_set() and (message := held.take()) is not None:
            debt = channel.decrypt(message)
            if debt is not None:
                await debt.settle()
        held.close()
        del self._pending[pending.address]
        if channel.closed.is_set():
            return
        self._router.unregister(pending.address)
        self._router.register(pending.address, channel.decrypt, allow=from_anywhere)
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
