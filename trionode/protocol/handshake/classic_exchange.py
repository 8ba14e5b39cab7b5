"""The classic handshake: a channel between fresh keys, and in it two identities that sign the handshake (spec §8)."""

import copy
import enum
from collections.abc import Mapping
from typing import ClassVar, Self

import attrs

from trionode.errors import IdentityError, LocalError, WireError
from trionode.protocol.handshake import noise
from trionode.protocol.handshake.exchange import REFUSE_ROWS, Action, Event, Exchange, Peer, State, Table
from trionode.protocol.identity.classic_identity import ClassicHistory, verify_classic_history
from trionode.protocol.identity.identity import MAX_HISTORY
from trionode.protocol.identity.keys import KeyHandle, KeyKind, Vault
from trionode.protocol.identity.signatures import verify_ed25519
from trionode.protocol.session.cipher import ClassicCipher
from trionode.protocol.wire import bare
from trionode.protocol.wire.address import MAX_VALUE, Encoded, decode_address, encode_address
from trionode.protocol.wire.classic_codec import CLASSIC

#: Bytes of the three Noise messages, whose payloads are empty (spec §6.1).
_FIRST, _SECOND, _THIRD = 32, 96, 64
#: Bytes in an encrypted identity message: the largest history, two addresses, a signature, and their lengths. A longer
#: one is not decrypted.
MAX_IDENTITY_MESSAGE = MAX_HISTORY + 2 * MAX_VALUE + 256
#: The nonce of an encrypted identity message: it is the first of its direction, so a late message is not mistaken for
#: it.
_FIRST_NONCE = bytes(8)


class IdentityKind(enum.IntEnum):
    """The two identity messages, by their variant. The responder sends the request, the initiator the response."""

    REQUEST = 0
    RESPONSE = 1


@attrs.define(eq=False)
class ClassicExchange(Exchange):
    """One side of one classic handshake (spec §8), see `Exchange`; made by `create`.

    The initiator: `begin()` returns message 1; `receive(message 2)` returns message 3; `receive(message 4)` sets
    `peer`; `accept()` returns message 5. The responder: `receive(message 1)` returns message 2; `receive(message 3)`
    returns message 4; `receive(message 5)` sets `peer`; `accept()`. Classic identities do not expire, so the time given
    to `receive` makes no difference.

    A message that is junk, out of turn, or does not verify changes nothing. But messages 4 and 5 are encrypted with the
    keys just agreed on. If the identity in one is not valid, the peer has failed and sends no other, so the exchange is
    REFUSED.
    """

    TABLES: ClassVar[Mapping[noise.Role, Table]] = {
        noise.Role.INITIATOR: {
            (State.READY, Event.BEGIN): (Action.WRITE_FIRST, State.AGREEING),
            (State.AGREEING, Event.RECEIVE): (Action.ANSWER_SECOND, State.AWAITING),
            (State.AWAITING, Event.RECEIVE): (Action.READ_IDENTITY, State.DECIDING),
            (State.DECIDING, Event.ACCEPT): (Action.WRITE_LAST, State.OPEN),
            **REFUSE_ROWS,
        },
        noise.Role.RESPONDER: {
            (State.READY, Event.RECEIVE): (Action.ANSWER_FIRST, State.AGREEING),
            (State.AGREEING, Event.RECEIVE): (Action.ANSWER_THIRD, State.AWAITING),
            (State.AWAITING, Event.RECEIVE): (Action.READ_IDENTITY, State.DECIDING),
            (State.DECIDING, Event.ACCEPT): (Action.ACCEPT, State.OPEN),
            **REFUSE_ROWS,
        },
    }

    _signing_key: KeyHandle = attrs.field(repr=False)
    _history: ClassicHistory = attrs.field(repr=lambda history: str(history.identifier))
    #: Our *self* address. Messages inside the channel are addressed to the *self* addresses of both sides.
    _ours: Encoded = attrs.field(repr=False)
    #: The peer's *self* address, once it is known.
    _theirs: Encoded | None = attrs.field(init=False, default=None, repr=False)

    @classmethod
    def create(
        cls,
        role: noise.Role,
        vault: Vault,
        signing_key: KeyHandle,
        history: ClassicHistory,
        ours: Encoded,
        *,
        keys: tuple[KeyHandle, KeyHandle] | None = None,
    ) -> Self:
        """Return the exchange of one side.

        `signing_key` is the root key of `history`, our identity; `ours` is a new random address. A test may bring its
        own static and ephemeral key in `keys`; otherwise new ones are generated.
        """
        if signing_key.public != history.root_key:
            raise LocalError("the signing key is not the root key of the history: take both from one identity")
        static, ephemeral = keys or [vault.generate(KeyKind.X25519, ephemeral=True) for _ in range(2)]
        handshake = noise.HandshakeState(role, vault, static, ephemeral, noise.CLASSIC)
        return cls(vault, handshake, (static, ephemeral), signing_key, history, ours)

    def cipher(self) -> ClassicCipher:
        """Return a new cipher around the session."""
        session = self.session()
        assert self._theirs is not None
        return ClassicCipher(session, self._ours, self._theirs)

    def _do(self, action: Action, message: bytes, now: int) -> bytes | None:
        del now
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
                return self._write_identity(IdentityKind.RESPONSE, self._sign(self._noise))
            case Action.FORGET:
                self._forget_keys()
            case _:
                pass
        return None

    # A copy of the handshake reads what the peer sent, as in `CurrentExchange`: after a message that we can't answer,
    # the right message must still be accepted.

    def _answer_first(self, message: bytes) -> bytes:
        first, theirs = read_first(message)
        attempt = self._read_noise(first)
        second = attempt.write_message()
        self._noise, self._theirs = attempt, theirs
        return bare.data(second)

    def _answer_second(self, message: bytes) -> bytes:
        attempt = self._read_noise(_sized(bare.only_data(message), _SECOND))
        third = attempt.write_message()
        self._agree(attempt)
        return bare.data(third)

    def _answer_third(self, message: bytes) -> bytes:
        attempt = self._read_noise(_sized(bare.only_data(message), _THIRD))
        signature = self._sign(attempt)  # the last step that can fail
        self._agree(attempt)
        return self._write_identity(IdentityKind.REQUEST, signature)

    def _read_noise(self, message: bytes) -> noise.HandshakeState:
        attempt = copy.copy(self._noise)
        attempt.read_message(message)
        return attempt

    def _agree(self, handshake: noise.HandshakeState) -> None:
        self._noise = handshake
        self._session = self._make_session(rekey=False)
        self._forget_keys()

    def _sign(self, handshake: noise.HandshakeState) -> bytes:
        return self._vault.sign(self._signing_key, handshake.handshake_hash)

    def _write_identity(self, kind: IdentityKind, signature: bytes) -> bytes:
        assert self._session is not None
        assert self._theirs is not None
        identity = bare.uint(kind) + bare.data(self._history.encoded) + bare.data(signature)
        return bare.data(self._session.encrypt(CLASSIC.encode((self._theirs,), (self._ours,), identity)))

    def _read_identity(self, message: bytes) -> None:
        assert self._session is not None
        ciphertext = bare.only_data(message)
        if len(ciphertext) > MAX_IDENTITY_MESSAGE or not ciphertext.startswith(_FIRST_NONCE):
            raise WireError("not an encrypted identity message")
        plaintext = self._session.decrypt(ciphertext)
        try:
            self._theirs, self.peer = self._verified(plaintext)
        except (WireError, IdentityError):
            self.refuse()
            raise

    def _verified(self, plaintext: bytes) -> tuple[Encoded, Peer]:
        onward, back, identity = CLASSIC.decode(plaintext)
        # Message 4 is the first that names the responder's address; message 5 names the initiator's once more.
        if onward != (self._ours,) or len(back) != 1 or self._theirs not in (None, *back):
            raise WireError("an identity message that is not between the two sides of this channel")
        reader = bare.Reader(identity)
        expected = IdentityKind.REQUEST if self._noise.role is noise.Role.INITIATOR else IdentityKind.RESPONSE
        if reader.variant(len(IdentityKind)) != expected:
            raise WireError(f"not an identity {expected.name}")
        history, signature = verify_classic_history(reader.data()), reader.data()
        reader.end()
        # Both sides sign the same bytes, so our own identity message, reflected to us, would verify (spec §8).
        if history.identifier == self._history.identifier:
            raise IdentityError("the peer presents our own identity: a reflection, or one identity at both ends")
        if not verify_ed25519(history.root_key, self._noise.handshake_hash, signature):
            raise IdentityError("the identity's current root key did not sign this handshake")
        return back[0], Peer(history)


def write_first(first: bytes, ours: Encoded) -> bytes:
    """Return the payload of message 1: the Noise message, and our *self* address in BARE."""
    kind, value = decode_address(ours)
    return bare.data(first) + bare.optional(bare.data(bare.u8(kind) + bare.data(value)))


def read_first(payload: bytes) -> tuple[bytes, Encoded]:
    """Return the arguments of `write_first`; WireError if the payload is not exactly that, or has no address."""
    reader = bare.Reader(payload)
    first = _sized(reader.data(), _FIRST)
    if not reader.optional():
        raise WireError("a first message without an address")
    address = bare.Reader(reader.data())
    reader.end()
    kind, value = address.u8(), address.data()
    address.end()
    if len(value) > MAX_VALUE:
        raise WireError(f"an address of {len(value)} bytes, at most {MAX_VALUE} are allowed")
    return first, encode_address(kind, value)


def is_classic(first: bytes) -> bool:
    """Whether the payload of a first message is classic. A current one is shorter, and consists of random bytes."""
    try:
        read_first(first)
    except WireError:
        return False
    return True


def _sized(message: bytes, size: int) -> bytes:
    if len(message) != size:
        raise WireError(f"a Noise message of {len(message)} bytes, expected {size}")
    return message
