"""The handshake that ends with two parties who know each other's identity and share session keys, as a table of (state, event) -> (action, state)."""

import copy
import enum
from collections.abc import Mapping
from typing import Protocol, Self

import attrs

from trionode.errors import HandshakeError, IdentityError, LocalError
from trionode.protocol.handshake import noise
from trionode.protocol.identity.credential import PresentedCredential
from trionode.protocol.identity.history import History
from trionode.protocol.identity.identity import Identifier
from trionode.protocol.identity.keys import KeyHandle, KeyKind, Vault
from trionode.protocol.identity.payload import IdentityPayload
from trionode.protocol.session.cipher import ChannelCipher, CurrentCipher
from trionode.protocol.session.session import Session

#: What every failed message raises, whatever its cause: what the peer sees of it, and what a log says of it, is no oracle.
REFUSED = "a handshake message that does not verify"


class State(enum.Enum):
    """How far an exchange has come."""

    READY = "ready"
    AGREEING = "awaiting the peer's keys"  # classic only: there the identities come afterwards
    AWAITING = "awaiting the peer's identity"
    DECIDING = "deciding whether the peer is trusted"
    OPEN = "open"
    REFUSED = "refused"


class Event(enum.Enum):
    """What happens to an exchange: a message arrives, the others are verbs of this program."""

    BEGIN = "begin"
    RECEIVE = "receive"
    ACCEPT = "accept"
    REFUSE = "refuse"


class Action(enum.Enum):
    """What is done on the way from one state to the next; an action that fails leaves the exchange where it was."""

    WRITE_FIRST = "write message 1"
    ANSWER_FIRST = "read message 1, write message 2 with our identity"
    READ_IDENTITY = "read message 2 or 3, verify the identity in it"
    WRITE_LAST = "write message 3 with our identity, make the session"
    MAKE_SESSION = "make the session"
    FORGET = "forget the ephemeral key"
    NOTHING = "nothing"


_Table = Mapping[tuple[State, Event], tuple[Action, State]]

_GIVE_UP: _Table = {
    (State.READY, Event.REFUSE): (Action.FORGET, State.REFUSED),
    (State.AWAITING, Event.REFUSE): (Action.FORGET, State.REFUSED),
    (State.DECIDING, Event.REFUSE): (Action.NOTHING, State.REFUSED),
    (State.REFUSED, Event.REFUSE): (Action.NOTHING, State.REFUSED),
    (State.OPEN, Event.REFUSE): (Action.NOTHING, State.OPEN),
}


@attrs.frozen
class Part:
    """One side of the exchange: which Noise role and protocol it plays, and what follows from what."""

    role: noise.Role
    protocol_name: bytes
    table: _Table = attrs.field(repr=False)


#: The current generation (spec §7.1), the side that opens the channel.
CURRENT_INITIATOR = Part(
    noise.Role.INITIATOR,
    noise.OCKAM_CURRENT,
    {
        (State.READY, Event.BEGIN): (Action.WRITE_FIRST, State.AWAITING),
        (State.AWAITING, Event.RECEIVE): (Action.READ_IDENTITY, State.DECIDING),
        (State.DECIDING, Event.ACCEPT): (Action.WRITE_LAST, State.OPEN),
        **_GIVE_UP,
    },
)

#: The current generation, the side that was asked.
CURRENT_RESPONDER = Part(
    noise.Role.RESPONDER,
    noise.OCKAM_CURRENT,
    {
        (State.READY, Event.RECEIVE): (Action.ANSWER_FIRST, State.AWAITING),
        (State.AWAITING, Event.RECEIVE): (Action.READ_IDENTITY, State.DECIDING),
        (State.DECIDING, Event.ACCEPT): (Action.MAKE_SESSION, State.OPEN),
        **_GIVE_UP,
    },
)


@attrs.frozen
class Peer:
    """Who is at the other end: proven to hold the identity. Its credentials are as presented, not verified."""

    history: History
    credentials: tuple[PresentedCredential, ...] = attrs.field(default=(), repr=False)

    @property
    def identifier(self) -> Identifier:
        """The identity's name, which trust policies decide by."""
        return self.history.identifier


class Exchange(Protocol):
    """One side of one exchange, of whatever generation: what the shell carries messages to and from."""

    @property
    def state(self) -> State:
        """How far it has come: in DECIDING the peer is known, and REFUSED is the end."""
        ...

    @property
    def peer(self) -> Peer | None:
        """Who is at the other end, once that is proven."""
        ...

    def begin(self) -> bytes:
        """Return message 1; only the initiator begins."""
        ...

    def receive(self, message: bytes, now: int) -> bytes | None:
        """Take the peer's next message, and return the answer if one goes out at once; HandshakeError for whatever does not verify."""
        ...

    def accept(self) -> bytes | None:
        """Take the peer for good, and return the last message if this side writes it."""
        ...

    def refuse(self) -> None:
        """End the exchange and forget its keys; on an open one it does nothing."""
        ...

    def cipher(self) -> ChannelCipher:
        """Return what the channel reads and writes by; LocalError before `accept`."""
        ...


@attrs.define(eq=False)
class KeyExchange:
    """One side of one exchange (spec §7.1); made by `initiator` or `responder`, used once.

    The initiator: `begin()` gives message 1; `receive(message 2)` sets `peer`; `accept()` gives message 3. The responder: `receive(message 1)`
    gives message 2; `receive(message 3)` sets `peer`; `accept()`. Between `receive` and `accept` the shell asks its trust policy, in its own
    time; then `session()` gives the ciphers, and the exchange, which still knows their first keys, is let go. Whoever gives it up before that,
    at any point, calls `refuse()`: it forgets the ephemeral key.

    A message that is junk, does not verify or comes out of turn raises HandshakeError, with one text for all causes (the cause in words
    is its `__cause__`), and changes nothing: the exchange goes on waiting for the right one. A verb out of turn is a LocalError.
    """

    _vault: Vault = attrs.field(repr=False)
    _part: Part = attrs.field(repr=lambda part: part.role.value)
    _payload: bytes = attrs.field(repr=False)
    _own: Identifier = attrs.field(repr=str)
    _ephemeral: KeyHandle = attrs.field(repr=False)
    _noise: noise.HandshakeState = attrs.field(repr=False)
    state: State = State.READY
    peer: Peer | None = None
    _session: Session | None = attrs.field(default=None, repr=False)

    @classmethod
    def initiator(
        cls, vault: Vault, static: KeyHandle, payload: IdentityPayload, ephemeral: KeyHandle | None = None
    ) -> Self:
        """Return the exchange of the side that opens the channel.

        `static` is the X25519 purpose key and `payload` says who we are and attests that key. A fresh ephemeral key is generated,
        unless a test brings its own.
        """
        return cls._of(CURRENT_INITIATOR, vault, static, payload, ephemeral)

    @classmethod
    def responder(
        cls, vault: Vault, static: KeyHandle, payload: IdentityPayload, ephemeral: KeyHandle | None = None
    ) -> Self:
        """Return the exchange of the side that was asked; the arguments are those of `initiator`."""
        return cls._of(CURRENT_RESPONDER, vault, static, payload, ephemeral)

    @classmethod
    def _of(
        cls, part: Part, vault: Vault, static: KeyHandle, payload: IdentityPayload, ephemeral: KeyHandle | None
    ) -> Self:
        if payload.attestation.key != static.public:
            raise LocalError("the payload attests another key than `static`: take both from one identity, at one time")
        ephemeral = vault.generate(KeyKind.X25519, ephemeral=True) if ephemeral is None else ephemeral
        handshake = noise.HandshakeState(part.role, vault, static, ephemeral, part.protocol_name)
        return cls(vault, part, payload.encode(), payload.history.identifier, ephemeral, handshake)

    def begin(self) -> bytes:
        """Return message 1; only the initiator begins."""
        message = self._on(Event.BEGIN)
        assert message is not None
        return message

    def receive(self, message: bytes, now: int) -> bytes | None:
        """Take the peer's next message at `now`, seconds since 1970; return the answer, if one goes out at once.

        HandshakeError, and nothing has changed, if the message is not the one that is waited for or does not verify.
        """
        return self._on(Event.RECEIVE, message, now)

    def accept(self) -> bytes | None:
        """Take the peer for good, after it was found trustworthy; return message 3, if this side writes it."""
        return self._on(Event.ACCEPT)

    def refuse(self) -> None:
        """End the exchange and forget its key; a second time, or on an open exchange, it does nothing."""
        self._on(Event.REFUSE)

    def session(self) -> Session:
        """Return the ciphers of the channel, always the same object, so that no nonce is used twice; LocalError before `accept`."""
        if self._session is None:
            raise LocalError(f"the exchange is {self.state.value}: only an open one has a session")
        return self._session

    def cipher(self) -> ChannelCipher:
        """Return what the channel reads and writes by, around that session; LocalError before `accept`."""
        return CurrentCipher(self.session())

    @property
    def handshake_hash(self) -> bytes:
        """The 32 bytes that name this channel and no other, the same on both sides; LocalError before `accept`."""
        self.session()
        return self._noise.handshake_hash

    def _on(self, event: Event, message: bytes = b"", now: int = 0) -> bytes | None:
        step = self._part.table.get((self.state, event))
        if step is None and event is Event.RECEIVE:
            raise HandshakeError(REFUSED)
        if step is None:
            raise LocalError(f"{event.value}() has no place here: the {self._part.role.value} is {self.state.value}")
        action, state = step
        answer = self._do(action, message, now)
        self.state = state
        return answer

    def _do(self, action: Action, message: bytes, now: int) -> bytes | None:
        match action:
            case Action.WRITE_FIRST:
                return self._noise.write_message()
            case Action.ANSWER_FIRST:
                return self._answer_first(message)
            case Action.READ_IDENTITY:
                self._read_identity(message, now)
            case Action.WRITE_LAST:
                last = self._noise.write_message(self._payload)
                self._make_session()
                return last
            case Action.MAKE_SESSION:
                self._make_session()
            case Action.FORGET:
                self._vault.forget(self._ephemeral)
            case Action.NOTHING:
                pass
        return None

    # What comes from the peer is read by a copy of the handshake: a message that is good Noise around a bad identity, or one that
    # can't be answered, may be anybody's and must not cost us the right one.

    def _answer_first(self, message: bytes) -> bytes:
        attempt = copy.copy(self._noise)
        attempt.read_message(message)
        answer = attempt.write_message(self._payload)
        self._noise = attempt
        return answer

    def _read_identity(self, message: bytes, now: int) -> None:
        attempt = copy.copy(self._noise)
        payload = attempt.read_message(message)
        try:
            self.peer = self._verified(payload, attempt.remote_static, now)
        except IdentityError as error:
            raise HandshakeError(REFUSED) from error
        self._noise = attempt
        self._vault.forget(self._ephemeral)  # all that it agrees on is mixed in by now

    def _verified(self, payload: bytes, static: bytes, now: int) -> Peer:
        said = IdentityPayload.decode(payload)
        said.verify(static, now)
        if said.history.identifier == self._own:
            raise IdentityError("the peer shows our own identity: a reflection, or one identity at both ends")
        return Peer(said.history, said.credentials)

    def _make_session(self) -> None:
        to_initiator, to_responder = self._noise.split()
        initiates = self._part.role is noise.Role.INITIATOR
        self._session = Session(to_responder, to_initiator) if initiates else Session(to_initiator, to_responder)
