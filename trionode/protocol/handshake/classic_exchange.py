"""The classic handshake: a channel between fresh keys, and inside it two identities that sign what was agreed, as a table (spec §8)."""

import copy
import enum
from collections.abc import Mapping
from typing import Self

import attrs

from trionode.errors import DecryptError, HandshakeError, IdentityError, LocalError, WireError
from trionode.protocol.handshake import noise
from trionode.protocol.handshake.exchange import REFUSED, Event, Peer, State
from trionode.protocol.identity.classic_identity import ClassicHistory, verify_classic_history
from trionode.protocol.identity.identity import MAX_HISTORY
from trionode.protocol.identity.keys import KeyHandle, KeyKind, Vault
from trionode.protocol.identity.signatures import verify_ed25519
from trionode.protocol.session.cipher import ClassicCipher
from trionode.protocol.session.session import Session
from trionode.protocol.wire import bare
from trionode.protocol.wire.address import MAX_VALUE, Encoded, decode_address, encode_address
from trionode.protocol.wire.classic_codec import CLASSIC

#: Bytes of the three Noise messages, whose payloads are empty (spec §6.1).
_FIRST, _SECOND, _THIRD = 32, 96, 64
#: Bytes in a sealed identity message: the largest history, two addresses, a signature, and their lengths. A longer one is not opened.
MAX_IDENTITY_MESSAGE = MAX_HISTORY + 2 * MAX_VALUE + 256
#: How a sealed identity message begins: each is the first of its direction, so that one which came late is not taken for it.
_FIRST_NONCE = bytes(8)


class Action(enum.Enum):
    """What is done on the way from one state to the next; an action that fails leaves the exchange where it was, or ends it (see `ClassicKeyExchange`)."""

    WRITE_FIRST = "write message 1 with our address"
    ANSWER_FIRST = "read message 1, write message 2"
    ANSWER_SECOND = "read message 2, write message 3, make the session"
    ANSWER_THIRD = "read message 3, make the session, write message 4 with our identity"
    READ_IDENTITY = "open message 4 or 5, verify the identity in it"
    WRITE_LAST = "write message 5 with our identity"
    FORGET = "forget the keys"
    NOTHING = "nothing"


Table = Mapping[tuple[State, Event], tuple[Action, State]]

_GIVE_UP: Table = {
    (State.READY, Event.REFUSE): (Action.FORGET, State.REFUSED),
    (State.AGREEING, Event.REFUSE): (Action.FORGET, State.REFUSED),
    (State.AWAITING, Event.REFUSE): (Action.NOTHING, State.REFUSED),
    (State.DECIDING, Event.REFUSE): (Action.NOTHING, State.REFUSED),
    (State.REFUSED, Event.REFUSE): (Action.NOTHING, State.REFUSED),
    (State.OPEN, Event.REFUSE): (Action.NOTHING, State.OPEN),
}

#: What follows from what, on each side.
TABLES: Mapping[noise.Role, Table] = {
    noise.Role.INITIATOR: {
        (State.READY, Event.BEGIN): (Action.WRITE_FIRST, State.AGREEING),
        (State.AGREEING, Event.RECEIVE): (Action.ANSWER_SECOND, State.AWAITING),
        (State.AWAITING, Event.RECEIVE): (Action.READ_IDENTITY, State.DECIDING),
        (State.DECIDING, Event.ACCEPT): (Action.WRITE_LAST, State.OPEN),
        **_GIVE_UP,
    },
    noise.Role.RESPONDER: {
        (State.READY, Event.RECEIVE): (Action.ANSWER_FIRST, State.AGREEING),
        (State.AGREEING, Event.RECEIVE): (Action.ANSWER_THIRD, State.AWAITING),
        (State.AWAITING, Event.RECEIVE): (Action.READ_IDENTITY, State.DECIDING),
        (State.DECIDING, Event.ACCEPT): (Action.NOTHING, State.OPEN),
        **_GIVE_UP,
    },
}


class IdentityKind(enum.IntEnum):
    """Which of the two identity messages one is, by its variant on the wire: the responder requests, the initiator responds."""

    REQUEST = 0
    RESPONSE = 1


@attrs.define(eq=False)
class ClassicKeyExchange:
    """One side of one classic exchange (spec §8), on the payloads of its messages; made by `initiator` or `responder`, used once.

    The initiator: `begin()` gives message 1; `receive(message 2)` gives message 3; `receive(message 4)` sets `peer`; `accept()` gives message 5. The
    responder: `receive(message 1)` gives message 2; `receive(message 3)` gives message 4; `receive(message 5)` sets `peer`; `accept()`. For the rest it is
    used as `KeyExchange` is.

    Whatever is not acceptable raises HandshakeError, with one text for all causes. If it is junk, out of turn, or does not verify, nothing has
    changed. But message 4 or 5 is sealed with the keys just agreed on: if what comes out is no good identity, the peer has failed, no other message will
    come, and the exchange is REFUSED.
    """

    _role: noise.Role
    _vault: Vault = attrs.field(repr=False)
    _signing_key: KeyHandle = attrs.field(repr=False)
    _history: ClassicHistory = attrs.field(repr=lambda history: str(history.identifier))
    #: Our *self* address, and the peer's, which whatever is inside the channel is addressed to.
    _ours: Encoded = attrs.field(repr=False)
    _keys: tuple[KeyHandle, KeyHandle] = attrs.field(repr=False)
    _noise: noise.HandshakeState = attrs.field(repr=False)
    state: State = State.READY
    peer: Peer | None = None
    _theirs: Encoded | None = attrs.field(default=None, repr=False)
    _session: Session | None = attrs.field(default=None, repr=False)

    @classmethod
    def initiator(
        cls,
        vault: Vault,
        signing_key: KeyHandle,
        history: ClassicHistory,
        ours: Encoded,
        *,
        keys: tuple[KeyHandle, KeyHandle] | None = None,
    ) -> Self:
        """Return the exchange of the side that opens the channel.

        `signing_key` is the root key of `history`, our identity; `ours` is a random address that nobody else has. The static and the ephemeral
        key of the handshake are generated, unless a test brings its own: `keys`, in this order.
        """
        return cls._of(noise.Role.INITIATOR, vault, signing_key, history, ours, keys=keys)

    @classmethod
    def responder(
        cls,
        vault: Vault,
        signing_key: KeyHandle,
        history: ClassicHistory,
        ours: Encoded,
        *,
        keys: tuple[KeyHandle, KeyHandle] | None = None,
    ) -> Self:
        """Return the exchange of the side that was asked; the arguments are those of `initiator`."""
        return cls._of(noise.Role.RESPONDER, vault, signing_key, history, ours, keys=keys)

    @classmethod
    def _of(
        cls,
        role: noise.Role,
        vault: Vault,
        signing_key: KeyHandle,
        history: ClassicHistory,
        ours: Encoded,
        *,
        keys: tuple[KeyHandle, KeyHandle] | None,
    ) -> Self:
        if signing_key.public != history.root_key:
            raise LocalError("the signing key is not the root key of the history: take both from one identity")
        static, ephemeral = keys or (
            vault.generate(KeyKind.X25519, ephemeral=True),
            vault.generate(KeyKind.X25519, ephemeral=True),
        )
        handshake = noise.HandshakeState(role, vault, static, ephemeral, noise.CLASSIC)
        return cls(role, vault, signing_key, history, ours, (static, ephemeral), handshake)

    def begin(self) -> bytes:
        """Return message 1; only the initiator begins."""
        message = self._on(Event.BEGIN)
        assert message is not None
        return message

    def receive(self, message: bytes, now: int) -> bytes | None:
        """Take the peer's next message; return the answer, if one goes out at once.

        HandshakeError for whatever is not the message that is waited for, or is no good one. VaultError if our own signing key is gone; then
        nothing has changed. Classic identities do not expire, so the time makes no difference.
        """
        del now
        return self._on(Event.RECEIVE, message)

    def accept(self) -> bytes | None:
        """Take the peer for good, after it was found trustworthy; return message 5, if this side writes it."""
        return self._on(Event.ACCEPT)

    def refuse(self) -> None:
        """End the exchange and forget its keys; a second time, or on an open exchange, it does nothing."""
        self._on(Event.REFUSE)

    def cipher(self) -> ClassicCipher:
        """Return what the channel reads and writes by, always around the same session; LocalError before `accept`."""
        if self.state is not State.OPEN:
            raise LocalError(f"the exchange is {self.state.value}: only an open one has a cipher")
        assert self._session is not None
        assert self._theirs is not None
        return ClassicCipher(self._session, self._ours, self._theirs)

    @property
    def handshake_hash(self) -> bytes:
        """The 32 bytes that name this channel and no other, the same on both sides; LocalError before the keys are agreed on."""
        return self._noise.handshake_hash

    def _on(self, event: Event, message: bytes = b"") -> bytes | None:
        step = TABLES[self._role].get((self.state, event))
        if step is None and event is Event.RECEIVE:
            raise HandshakeError(REFUSED)
        if step is None:
            raise LocalError(f"{event.value}() has no place here: the {self._role.value} is {self.state.value}")
        action, state = step
        try:
            answer = self._do(action, message)
        except (WireError, DecryptError) as error:
            raise HandshakeError(REFUSED) from error
        self.state = state
        return answer

    def _do(self, action: Action, message: bytes) -> bytes | None:
        match action:
            case Action.WRITE_FIRST:
                return write_first(self._noise.write_message(), self._ours)
            case Action.ANSWER_FIRST:
                return self._answer_first(message)
            case Action.ANSWER_SECOND:
                return self._answer_second(message)
            case Action.ANSWER_THIRD:
                return self._answer_third(message)
            case Action.READ_IDENTITY:
                self._read_identity(message)
            case Action.WRITE_LAST:
                return self._introduce(IdentityKind.RESPONSE, self._sign(self._noise))
            case Action.FORGET:
                self._forget()
            case Action.NOTHING:
                pass
        return None

    # What comes from the peer is read by a copy of the handshake, as in `KeyExchange`: one that can't be answered must not cost us the right one.

    def _answer_first(self, message: bytes) -> bytes:
        first, theirs = read_first(message)
        attempt = copy.copy(self._noise)
        attempt.read_message(first)
        second = attempt.write_message()
        self._noise, self._theirs = attempt, theirs
        return bare.data(second)

    def _answer_second(self, message: bytes) -> bytes:
        attempt = copy.copy(self._noise)
        attempt.read_message(_sized(bare.only_data(message), _SECOND))
        third = attempt.write_message()
        self._agree(attempt)
        return bare.data(third)

    def _answer_third(self, message: bytes) -> bytes:
        attempt = copy.copy(self._noise)
        attempt.read_message(_sized(bare.only_data(message), _THIRD))
        signature = self._sign(attempt)  # the last thing that can fail
        self._agree(attempt)
        return self._introduce(IdentityKind.REQUEST, signature)

    def _agree(self, handshake: noise.HandshakeState) -> None:
        to_initiator, to_responder = handshake.split()
        initiates = self._role is noise.Role.INITIATOR
        ours, theirs = (to_responder, to_initiator) if initiates else (to_initiator, to_responder)
        self._noise, self._session = handshake, Session(ours, theirs, rekey=False)
        self._forget()

    def _forget(self) -> None:
        for key in self._keys:
            self._vault.forget(key)

    def _sign(self, handshake: noise.HandshakeState) -> bytes:
        return self._vault.sign(self._signing_key, handshake.handshake_hash)

    def _introduce(self, kind: IdentityKind, signature: bytes) -> bytes:
        assert self._session is not None
        assert self._theirs is not None
        said = bare.uint(kind) + bare.data(self._history.encoded) + bare.data(signature)
        return bare.data(self._session.encrypt(CLASSIC.encode((self._theirs,), (self._ours,), said)))

    def _read_identity(self, message: bytes) -> None:
        assert self._session is not None
        blob = bare.only_data(message)
        if len(blob) > MAX_IDENTITY_MESSAGE or not blob.startswith(_FIRST_NONCE):
            raise WireError("no sealed identity message")
        plaintext = self._session.decrypt(blob)
        try:
            self._theirs, self.peer = self._verified(plaintext)
        except (WireError, IdentityError) as error:
            self.refuse()
            raise HandshakeError(REFUSED) from error

    def _verified(self, plaintext: bytes) -> tuple[Encoded, Peer]:
        onward, back, said = CLASSIC.decode(plaintext)
        # Message 4 is the first that names the responder's address; message 5 names the initiator's once more.
        if onward != (self._ours,) or len(back) != 1 or self._theirs not in (None, *back):
            raise WireError("an identity message that is not between the two sides of this channel")
        reader = bare.Reader(said)
        expected = IdentityKind.REQUEST if self._role is noise.Role.INITIATOR else IdentityKind.RESPONSE
        if reader.variant(len(IdentityKind)) != expected:
            raise WireError(f"no identity {expected.name}")
        history, signature = verify_classic_history(reader.data()), reader.data()
        reader.end()
        # Both sides sign the same bytes, so that ours, sent back to us, would verify (spec §8, "Reflection").
        if history.identifier == self._history.identifier:
            raise IdentityError("the peer shows our own identity: a reflection, or one identity at both ends")
        if not verify_ed25519(history.root_key, self._noise.handshake_hash, signature):
            raise IdentityError("the identity's current root key did not sign this handshake")
        return back[0], Peer(history)


def write_first(first: bytes, ours: Encoded) -> bytes:
    """Return the payload of message 1: the Noise message, and the BARE address that the peer is to write to inside the channel."""
    kind, value = decode_address(ours)
    return bare.data(first) + bare.optional(bare.data(bare.u8(kind) + bare.data(value)))


def read_first(payload: bytes) -> tuple[bytes, Encoded]:
    """Return what `write_first` was given; WireError for all that is not exactly so, message 1 without an address included."""
    reader = bare.Reader(payload)
    first = _sized(reader.data(), _FIRST)
    if not reader.optional():
        raise WireError("a first message without an address")
    address = bare.Reader(reader.data())
    reader.end()
    kind, value = address.u8(), address.data()
    address.end()
    if len(value) > MAX_VALUE:
        raise WireError(f"an address of {len(value)} bytes, where at most {MAX_VALUE} are allowed")
    return first, encode_address(kind, value)


def is_classic(first: bytes) -> bool:
    """Whether the payload of a first message has the form of this generation: a current one is not so long, and chooses none of its bytes."""
    try:
        read_first(first)
    except WireError:
        return False
    return True


def _sized(message: bytes, size: int) -> bytes:
    if len(message) != size:
        raise WireError(f"a Noise message of {len(message)} bytes, where {size} are expected")
    return message
