"""The handshake of a secure channel as a state machine: what both protocol versions share (spec §7.1, §8)."""

import enum
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import attrs

from trionode.errors import DecryptError, HandshakeError, IdentityError, LocalError, WireError
from trionode.protocol.delivery.terms import Offer, Terms
from trionode.protocol.handshake import noise
from trionode.protocol.identity.credential import Credential, PresentedCredential, newest_credential
from trionode.protocol.identity.history import History
from trionode.protocol.identity.identity import ChangeHistory, Identifier
from trionode.protocol.identity.keys import KeyHandle, Vault
from trionode.protocol.session.cipher import ChannelCipher
from trionode.protocol.session.session import Session


class State(enum.Enum):
    """The states of an exchange."""

    READY = "ready"
    AGREEING = "awaiting the peer's keys"  # classic only: there the identities come afterwards
    AWAITING = "awaiting the peer's identity"
    DECIDING = "deciding whether the peer is trusted"
    OPEN = "open"
    REFUSED = "refused"


class Event(enum.Enum):
    """The events of an exchange: a message arrives, or this program calls the method of that name."""

    BEGIN = "begin"
    RECEIVE = "receive"
    ACCEPT = "accept"
    REFUSE = "refuse"


class Action(enum.Enum):
    """What an exchange does on the way to the next state. If it fails, the state does not change."""

    WRITE_FIRST = "write message 1"
    ANSWER_FIRST = "read message 1, write message 2"
    ANSWER_SECOND = "read message 2, write message 3"  # classic only
    ANSWER_THIRD = "read message 3, write message 4"  # classic only
    READ_IDENTITY = "read and verify the peer's identity"
    WRITE_LAST = "write the last message, with our identity"
    ACCEPT = "accept the peer; there is no message to write"
    FORGET = "forget the keys of the handshake"
    NOTHING = "nothing"


Table = Mapping[tuple[State, Event], tuple[Action, State]]

#: An exchange can be refused in every state.
REFUSE_ROWS: Table = {
    (State.READY, Event.REFUSE): (Action.FORGET, State.REFUSED),
    (State.AGREEING, Event.REFUSE): (Action.FORGET, State.REFUSED),
    (State.AWAITING, Event.REFUSE): (Action.FORGET, State.REFUSED),
    (State.DECIDING, Event.REFUSE): (Action.FORGET, State.REFUSED),
    (State.REFUSED, Event.REFUSE): (Action.NOTHING, State.REFUSED),
    (State.OPEN, Event.REFUSE): (Action.NOTHING, State.OPEN),
}


@attrs.frozen
class Peer:
    """The identity at the other end, which the handshake has proven.

    Its credentials are as presented, not yet verified.
    """

    history: History
    credentials: tuple[PresentedCredential, ...] = attrs.field(default=(), repr=False)
    #: The verified credentials, or None, by the hash of the authority's latest change. This program names the
    #: authorities.
    _verified: dict[bytes, Credential | None] = attrs.field(factory=dict, init=False, eq=False, repr=False)

    @property
    def identifier(self) -> Identifier:
        """The identifier of the peer, by which trust policies decide."""
        return self.history.identifier

    def credential_by(self, authority: ChangeHistory, now: int) -> Credential | None:
        """Return the newest valid credential that an authority issued for this peer.

        The signatures are verified at the first call. Later calls only check the expiry.

        Args:
          authority: The change history of the authority.
          now: The time at which the credential must be valid, in seconds since 1970.

        Returns:
          The credential, or None if the peer presented no valid one.
        """
        key = authority.latest.hash
        if key not in self._verified:
            self._verified[key] = newest_credential(self.credentials, self.identifier, authority, now)
        found = self._verified[key]
        return found if found is not None and found.expires_at > now else None


@attrs.define(eq=False)
class Exchange(ABC):
    """One side of one handshake. It takes and returns the payloads of messages, and is used once.

    `begin` (initiator only) and `receive` return the messages to send. When the state is DECIDING, `peer` is set, and
    the caller asks its trust policy. Then it calls `accept`, or `refuse`. After `accept` the caller takes the `cipher`
    and drops the exchange, which still holds the first keys. A caller that gives up earlier calls `refuse`, which
    forgets the keys of the handshake.

    A message that is not acceptable raises HandshakeError. Its text is the same for every cause, so neither a peer nor
    a log learns which check failed; the cause is its `__cause__`. A method that is called out of turn raises
    LocalError.
    """

    #: The transitions of each role.
    TABLES: ClassVar[Mapping[noise.Role, Table]]

    _vault: Vault = attrs.field(repr=False)
    _noise: noise.HandshakeState = attrs.field(repr=lambda handshake: handshake.role.value)
    #: The keys that only this handshake uses.
    _keys: tuple[KeyHandle, ...] = attrs.field(repr=False)
    state: State = attrs.field(init=False, default=State.READY)
    peer: Peer | None = attrs.field(init=False, default=None)
    #: What the peer says about delivery; None if it has no delivery layer.
    delivery: Offer | Terms | None = attrs.field(init=False, default=None)
    _terms: Terms | None = attrs.field(init=False, default=None, repr=False)
    _session: Session | None = attrs.field(init=False, default=None, repr=False)

    def begin(self) -> bytes:
        """Return message 1; only the initiator begins."""
        message = self._on(Event.BEGIN)
        assert message is not None
        return message

    def receive(self, message: bytes, now: int) -> bytes | None:
        """Take the peer's next message at `now`, seconds since 1970; return the answer, if there is one.

        HandshakeError if it is not the expected message, or is not valid. VaultError if our own key is gone. Nothing
        has changed then, but for a classic peer whose identity is not valid: the exchange is REFUSED.
        """
        return self._on(Event.RECEIVE, message, now)

    def accept(self, terms: Terms | None = None) -> bytes | None:
        """Accept the peer, which is trusted; return the last message, if this side writes it.

        `terms` go into it, if the peer has offered delivery.
        """
        self._terms = terms if isinstance(self.delivery, Offer) else None
        return self._on(Event.ACCEPT)

    def refuse(self) -> None:
        """End the exchange and forget its keys. On an exchange that is open or refused already it does nothing."""
        self._on(Event.REFUSE)

    def session(self) -> Session:
        """Return the keys of the channel, always the same object, so no nonce is used twice.

        LocalError before `accept`.
        """
        if self.state is not State.OPEN or self._session is None:
            raise LocalError(f"the exchange is {self.state.value}: only an open one has a session")
        return self._session

    @abstractmethod
    def cipher(self) -> ChannelCipher:
        """Return a new cipher around the session; LocalError before `accept`."""

    @property
    def handshake_hash(self) -> bytes:
        """The 32 bytes that name this channel, the same on both sides; LocalError before the last Noise message."""
        return self._noise.handshake_hash

    def _on(self, event: Event, message: bytes = b"", now: int = 0) -> bytes | None:
        step = self.TABLES[self._noise.role].get((self.state, event))
        if step is None and event is Event.RECEIVE:
            raise HandshakeError(noise.REFUSED)
        if step is None:
            raise LocalError(f"{event.value}() is out of turn: the {self._noise.role.value} is {self.state.value}")
        action, state = step
        try:
            answer = self._do(action, message, now)
        except (WireError, DecryptError, IdentityError) as error:
            raise HandshakeError(noise.REFUSED) from error
        self.state = state
        return answer

    @abstractmethod
    def _do(self, action: Action, message: bytes, now: int) -> bytes | None:
        """Do what the table says, and return the message to send, if any."""

    def _forget_keys(self) -> None:
        for key in self._keys:
            self._vault.forget(key)

    def _make_session(self, *, rekey: bool) -> Session:
        to_initiator, to_responder = self._noise.split()
        if self._noise.role is noise.Role.INITIATOR:
            return Session(to_responder, to_initiator, rekey=rekey)
        return Session(to_initiator, to_responder, rekey=rekey)
