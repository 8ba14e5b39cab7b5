"""The two hops of an open secure channel: one encrypts, one decrypts. Users get them as a `SecureChannel`."""

import trio

from trionode.counters import DropReason
from trionode.errors import DecryptError, IdentityError, MessageTooLargeError, UnknownAddressError, WireError
from trionode.identity.attributes import PeerOrigin
from trionode.log import log
from trionode.protocol.handshake.exchange import Peer
from trionode.protocol.identity.credential import PresentedCredential
from trionode.protocol.identity.history import Relation, relation
from trionode.protocol.identity.identity import verify_history
from trionode.protocol.identity.payload import MAX_CREDENTIALS
from trionode.protocol.rules.access import from_local
from trionode.protocol.session.cipher import ChannelCipher
from trionode.protocol.wire.address import Encoded
from trionode.protocol.wire.current_codec import RefreshCredentials
from trionode.protocol.wire.message import LOCAL, Message, Origin
from trionode.protocol.wire.route import MAX_HOPS
from trionode.routing.byte_budget import ByteBudget
from trionode.routing.router import Router
from trionode.routing.verdict_queue import VerdictQueue

#: Bytes of CBOR around a message beside its routes and its payload: three array heads of up to two bytes and a
#: five-byte length. BARE never needs more.
_HEADS = 12


class ChannelHops:
    """The encrypting hop at `encryptor` and the decrypting hop at `decryptor`, with the route to the peer."""

    def __init__(
        self,
        router: Router,
        cipher: ChannelCipher,
        peer: Peer,
        *,
        addresses: tuple[Encoded, Encoded],
        route: tuple[Encoded, ...],
        follows: bool,
    ) -> None:
        self.peer = peer
        #: Messages that did not decrypt or could not be decoded.
        self.refused = 0
        self.closed = trio.Event()
        #: What was found out about messages, for the program to take.
        self.verdicts = VerdictQueue()
        self.encryptor, self.decryptor = addresses
        self.route = route
        self.cipher = cipher
        self._router = router
        self._session = cipher.session
        self._peer_decryptor = route[-1]
        #: Whether the route follows the peer to a new link: a responder's may, an initiator's never does (spec §7.2).
        self._follows = follows and cipher.follows_peer
        #: The outer return route. Classic names the address that the peer writes to anyway (spec §8).
        self._back: tuple[Encoded, ...] = () if cipher.follows_peer else (self.decryptor,)
        self._origin: dict[Origin, Origin] = {}
        self._max_plaintext: int | None = None
        self._measure()
        router.register(self.encryptor, self.encrypt, allow=from_local, limit=self._limit)
        router.on_verdict(route[0], self.verdicts.put)
        if cipher.warning:
            log.warning("secure channel with %s: %s", peer.identifier, cipher.warning)

    @property
    def has_route(self) -> bool:
        """Whether the first hop to the peer still exists."""
        return self.route[0] in self._router

    @property
    def is_reachable(self) -> bool:
        """Whether messages can reach the peer, as far as this side knows."""
        return self.has_route

    def _measure(self) -> None:
        limit = self._router.limit(self.route[0])
        outer = sum(map(len, self.route[1:])) + _HEADS + self.cipher.encryption_overhead
        self._max_plaintext = None if limit is None else limit - outer

    @property
    def _overhead(self) -> int:
        """Bytes of an application message that are neither its own routes nor its payload."""
        return self.cipher.encoding_overhead + sum(map(len, self._back))

    @property
    def _limit(self) -> int | None:
        return None if self._max_plaintext is None else self._max_plaintext - self._overhead

    def encrypt(self, message: Message) -> ByteBudget | None:
        """Encrypt a message and deliver it towards the peer.

        A message that can't be sent is refused before a nonce is used (spec §7.2).
        """
        onward = message.onward[1:]
        if not onward:
            # For example the reply to a message with an empty return route. Classic Rust peers panic on it (spec §8).
            self._router.counters[DropReason.ENDS_AT_CHANNEL] += 1
            return None
        plaintext = self.cipher.encode(onward, message.back, message.payload)
        return self._send(plaintext, self._back, message.deliveries, promised=message.is_promised)

    def send_control(self, plaintext: bytes) -> ByteBudget | None:
        """Send a message of the channel itself (spec §7.2)."""
        return self._send(plaintext, (self.encryptor,))

    def _send(
        self, plaintext: bytes, back: tuple[Encoded, ...], deliveries: int = 0, *, promised: bool = False
    ) -> ByteBudget | None:
        route, limit = self.route, self._max_plaintext
        if limit is not None and len(plaintext) + sum(map(len, back)) > limit:
            raise MessageTooLargeError(
                f"the route to {self.peer.identifier} carries messages of at most {limit - self._overhead} bytes "
                f"with their routes, this one has {len(plaintext) - self.cipher.encoding_overhead}: send it in parts"
            )
        if route[0] not in self._router:
            # The error of every address that is gone: a worker that replies to a peer that left drops the reply.
            raise UnknownAddressError(
                f"the route to {self.peer.identifier} is gone: its link or stream ended. Open the channel again"
            )
        return self._router.deliver(
            Message(route, back, self.cipher.encrypt(plaintext), LOCAL, deliveries, None, promised)
        )

    def decrypt(self, message: Message) -> ByteBudget | None:
        """Decrypt a message and deliver it. A message that does not verify has no effect (spec §7.3, §7.4)."""
        cipher = self.cipher
        try:
            opened = cipher.decode(cipher.decrypt(message.payload))
        except (DecryptError, WireError):
            self.refused += 1
            self._router.counters[DropReason.DECRYPT_FAILED] += 1
            return None
        if type(opened) is tuple:
            onward, back, payload = opened
            if self._follows and self._session.newest and message.back != self.route[:-1] and message.back:
                self.route = (*message.back, self._peer_decryptor)
                self._measure()
            if len(onward) + len(back) >= MAX_HOPS:
                self._router.counters[DropReason.ROUTE_TOO_LONG] += 1
                return None
            origin = self._origin.get(message.origin) or self._peer_origin(message.origin)
            return self._router.deliver(Message(onward, (self.encryptor, *back), payload, origin, message.deliveries))
        if isinstance(opened, RefreshCredentials):
            self._take_credentials(opened)
        else:
            self.end("the peer closed it")
        return None

    def _peer_origin(self, outer: Origin) -> Origin:
        # One object for all messages of one origin. It changes only when the peer moves to a new link, or presents
        # credentials.
        self._origin = {outer: PeerOrigin.through(outer, self.peer)}
        return self._origin[outer]

    def _take_credentials(self, refresh: RefreshCredentials) -> None:
        """Accept credentials of the same identity.

        Like Rust, keep the older ones: the newest that verifies counts (spec §10.2).
        """
        try:
            history = verify_history(refresh.history)
            credentials = tuple(map(PresentedCredential.decode, refresh.credentials[: MAX_CREDENTIALS + 1]))
        except (IdentityError, WireError):
            self.refused += 1
            return
        # The history of another identity conflicts too: it begins with another change.
        continues = relation(self.peer.history, history) in (Relation.SAME, Relation.NEWER)
        if not continues or len(credentials) > MAX_CREDENTIALS:
            self.refused += 1
            return
        self.peer = Peer(history, (*self.peer.credentials, *credentials)[-MAX_CREDENTIALS:])
        self._origin = {}

    def abort(self) -> None:
        """End this side without a message to the peer: the route to it is gone."""
        self.end("its route is gone")

    def end(self, reason: str) -> None:
        """End this side; a second time it does nothing."""
        if not self.closed.is_set():
            self.closed.set()
            self._router.unregister(self.encryptor)
            self._router.unregister(self.decryptor)
            self._router.forget(self.route[0], self.abort)
            self._router.ignore_verdicts(self.route[0], self.verdicts.put)
            self.verdicts.close()
            log.info("secure channel with %s ended: %s", self.peer.identifier, reason)
