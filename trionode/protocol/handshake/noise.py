"""The Noise handshake XX as a table of tokens, with X25519, AES-256-GCM and SHA-256 (Noise revision 34, spec §6.1)."""

import enum
import hashlib
import hmac
import struct

import attrs
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from trionode.errors import HandshakeError, LocalError, MessageTooLargeError
from trionode.protocol.identity.keys import KeyHandle, Vault

#: Protocol names of the two generations (spec §6); the classic one is Noise's own, padded to 32 bytes by Noise's own rule.
OCKAM_CURRENT = b"OCKAM_XX_25519_AES256_GCM_SHA256"
CLASSIC = b"Noise_XX_25519_AESGCM_SHA256"

#: The longest handshake message (Noise §3); a longer one is refused before anything is computed over it.
MAX_MESSAGE = 65535

KEY_SIZE = 32
TAG_SIZE = 16
HASH_SIZE = 32

_IV = struct.Struct(">4xQ")
#: The text of every HandshakeError, for every cause, so neither a peer nor a log learns which check failed.
REFUSED = "a handshake message that does not verify"


class Role(enum.Enum):
    """Who wrote the first message, and who answers."""

    INITIATOR = "initiator"
    RESPONDER = "responder"


class Token(enum.Enum):
    """What a message does: send a key, or mix in what two keys agree on, the initiator's named first."""

    E = "e"
    S = "s"
    EE = "ee"
    ES = "es"
    SE = "se"


#: The messages of XX in order; the initiator writes the first, and then they take turns (Noise §7.5).
XX = (
    (Token.E,),
    (Token.E, Token.EE, Token.S, Token.ES),
    (Token.S, Token.SE),
)


def hkdf(chaining_key: bytes, material: bytes) -> tuple[bytes, bytes]:
    """Two 32-byte outputs of HKDF-SHA-256 (RFC 5869) with the chaining key as salt and no info (Noise §4.3)."""
    secret = hmac.digest(chaining_key, material, "sha256")
    first = hmac.digest(secret, b"\x01", "sha256")
    return first, hmac.digest(secret, first + b"\x02", "sha256")


@attrs.frozen
class CipherState:
    """A 32-byte key and the nonce it is to be used with next; each use gives the state to go on with."""

    key: bytes = attrs.field(repr=False)
    nonce: int = 0

    def encrypt(self, associated: bytes, plaintext: bytes) -> tuple["CipherState", bytes]:
        """Return the next state and the ciphertext, 16 bytes longer than the plaintext."""
        return self._used(), AESGCM(self.key).encrypt(_IV.pack(self.nonce), plaintext, associated)

    def decrypt(self, associated: bytes, ciphertext: bytes) -> tuple["CipherState", bytes]:
        """Return the next state and the plaintext; InvalidTag if it does not verify."""
        return self._used(), AESGCM(self.key).decrypt(_IV.pack(self.nonce), ciphertext, associated)

    def _used(self) -> "CipherState":
        return attrs.evolve(self, nonce=self.nonce + 1)


@attrs.frozen
class SymmetricState:
    """What both sides have seen (`transcript`, the running hash h) and agreed on (the chaining key, and a cipher if any).

    It is a value: every step gives the next state, so that a message which fails half-way has changed nothing.
    """

    chaining_key: bytes = attrs.field(repr=False)
    transcript: bytes
    cipher: CipherState | None = None

    @classmethod
    def start(cls, protocol_name: bytes, prologue: bytes) -> "SymmetricState":
        """Return the state before the first message (Noise §5.2); spec §6.1's start is the one with an empty prologue."""
        name = protocol_name.ljust(HASH_SIZE, b"\0")
        chaining_key = name if len(name) == HASH_SIZE else hashlib.sha256(name).digest()
        return cls(chaining_key, chaining_key).mix_hash(prologue)

    def mix_hash(self, data: bytes) -> "SymmetricState":
        """Add what was sent in the open to the transcript."""
        return attrs.evolve(self, transcript=hashlib.sha256(self.transcript + data).digest())

    def mix_key(self, agreed: bytes) -> "SymmetricState":
        """Add an agreed secret; what follows is sealed with a new key."""
        chaining_key, key = hkdf(self.chaining_key, agreed)
        return attrs.evolve(self, chaining_key=chaining_key, cipher=CipherState(key))

    def encrypt_and_hash(self, plaintext: bytes) -> tuple["SymmetricState", bytes]:
        """Return the next state and what to send: the ciphertext, or the plaintext as long as nothing is agreed."""
        if self.cipher is None:
            return self.mix_hash(plaintext), plaintext
        cipher, ciphertext = self.cipher.encrypt(self.transcript, plaintext)
        return attrs.evolve(self.mix_hash(ciphertext), cipher=cipher), ciphertext

    def decrypt_and_hash(self, ciphertext: bytes) -> tuple["SymmetricState", bytes]:
        """Return the next state and the plaintext of what came; InvalidTag if it does not verify."""
        if self.cipher is None:
            return self.mix_hash(ciphertext), ciphertext
        cipher, plaintext = self.cipher.decrypt(self.transcript, ciphertext)
        return attrs.evolve(self.mix_hash(ciphertext), cipher=cipher), plaintext


@attrs.define(eq=False)
class HandshakeState:
    """One side of one XX handshake.

    `static` and `ephemeral` are X25519 keys of `vault`; the ephemeral one must be fresh, and whoever generated it forgets it when the
    handshake is over. A message that does not verify raises HandshakeError and changes nothing: it can be dropped, and the right one
    is still accepted afterwards. A call out of turn is the caller's mistake, a LocalError.
    """

    role: Role
    _vault: Vault = attrs.field(repr=False)
    _static: KeyHandle
    _ephemeral: KeyHandle
    _protocol_name: bytes = OCKAM_CURRENT
    _prologue: bytes = b""
    _symmetric: SymmetricState = attrs.field(init=False)
    _done: int = attrs.field(init=False, default=0)  # messages of XX so far
    _remote_ephemeral: bytes = attrs.field(init=False, default=b"")
    _remote_static: bytes = attrs.field(init=False, default=b"")

    def __attrs_post_init__(self) -> None:
        self._symmetric = SymmetricState.start(self._protocol_name, self._prologue)

    @property
    def finished(self) -> bool:
        """Whether all three messages have been written or read."""
        return self._done == len(XX)

    @property
    def handshake_hash(self) -> bytes:
        """The 32 bytes of h that name this handshake and no other; LocalError before it is finished."""
        self._require_finished("handshake_hash")
        return self._symmetric.transcript

    @property
    def remote_static(self) -> bytes:
        """The peer's static public key, 32 bytes, which it has proven to hold; LocalError before it has come.

        The responder's is proven once message 2 is read, the initiator's once message 3 is.
        """
        if not self._remote_static:
            raise LocalError("remote_static is known only after the message that brings it: read that first")
        return self._remote_static

    def split(self) -> tuple[bytes, bytes]:
        """Return the two session keys (k1, k2), 32 bytes each; LocalError before the handshake is finished.

        Noise's document lets k1 encrypt what the initiator sends. Ockam has it the other way round: k1 is for responder to initiator, k2
        for initiator to responder (spec §6.1, "Direction"). The caller chooses.
        """
        self._require_finished("split")
        return hkdf(self._symmetric.chaining_key, b"")

    def write_message(self, payload: bytes = b"") -> bytes:
        """Return the next message, carrying `payload` (which only messages 2 and 3 encrypt).

        HandshakeError if the peer's key makes an all-zero secret, MessageTooLargeError over 65,535 bytes.
        """
        symmetric = self._symmetric
        parts: list[bytes] = []
        for token in self._tokens(writing=True):
            if token is Token.E:
                symmetric, part = symmetric.mix_hash(self._ephemeral.public), self._ephemeral.public
                parts.append(part)
            elif token is Token.S:
                symmetric, part = symmetric.encrypt_and_hash(self._static.public)
                parts.append(part)
            else:
                symmetric = symmetric.mix_key(self._agree(token, self._remote_ephemeral, self._remote_static))
        symmetric, part = symmetric.encrypt_and_hash(payload)
        message = b"".join((*parts, part))
        if len(message) > MAX_MESSAGE:
            raise MessageTooLargeError(
                f"a handshake message takes {MAX_MESSAGE} bytes, this one has {len(message)}: shorten the payload"
            )
        self._symmetric = symmetric
        self._done += 1
        return message

    def read_message(self, message: bytes) -> bytes:
        """Return the payload of the peer's next message; HandshakeError, and nothing changed, if it does not verify."""
        tokens = self._tokens(writing=False)
        symmetric, rest = self._symmetric, message
        ephemeral, static = self._remote_ephemeral, self._remote_static
        if len(message) > MAX_MESSAGE:
            raise HandshakeError(REFUSED)
        try:
            for token in tokens:
                if token is Token.E:
                    ephemeral, rest = _cut(rest, KEY_SIZE)
                    symmetric = symmetric.mix_hash(ephemeral)
                elif token is Token.S:
                    sealed, rest = _cut(rest, KEY_SIZE if symmetric.cipher is None else KEY_SIZE + TAG_SIZE)
                    symmetric, static = symmetric.decrypt_and_hash(sealed)
                else:
                    symmetric = symmetric.mix_key(self._agree(token, ephemeral, static))
            symmetric, payload = symmetric.decrypt_and_hash(rest)
        except InvalidTag:
            raise HandshakeError(REFUSED) from None
        self._symmetric, self._remote_ephemeral, self._remote_static = symmetric, ephemeral, static
        self._done += 1
        return payload

    def _tokens(self, *, writing: bool) -> tuple[Token, ...]:
        """Return the tokens of the next message, if it is ours to write, or the peer's to be read."""
        if self.finished:
            raise LocalError("this handshake is finished: split() gives the keys for what follows")
        if writing != ((self.role is Role.INITIATOR) == (self._done % 2 == 0)):
            verb, other = ("write", "read") if writing else ("read", "write")
            raise LocalError(
                f"it is not this side's turn to {verb} message {self._done + 1} of the handshake: {other} it"
            )
        return XX[self._done]

    def _agree(self, token: Token, remote_ephemeral: bytes, remote_static: bytes) -> bytes:
        """Return what the two keys that the token names agree on."""
        ours, theirs = (0, 1) if self.role is Role.INITIATOR else (1, 0)
        own = self._ephemeral if token.value[ours] == "e" else self._static
        try:
            return self._vault.x25519(own, remote_ephemeral if token.value[theirs] == "e" else remote_static)
        except HandshakeError:
            raise HandshakeError(REFUSED) from None

    def _require_finished(self, what: str) -> None:
        if not self.finished:
            raise LocalError(
                f"{what} exists only after the last of {len(XX)} messages, and {self._done} are done: finish the handshake"
            )


def _cut(data: bytes, size: int) -> tuple[bytes, bytes]:
    if len(data) < size:
        raise HandshakeError(REFUSED)
    return data[:size], data[size:]
