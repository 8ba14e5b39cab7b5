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

#: The Noise protocol names of both protocol versions (spec §6). Noise pads the classic one to 32 bytes.
OCKAM_CURRENT = b"OCKAM_XX_25519_AES256_GCM_SHA256"
CLASSIC = b"Noise_XX_25519_AESGCM_SHA256"

#: Bytes in the longest handshake message (Noise §3). A longer one is refused before anything is computed over it.
MAX_MESSAGE = 65535

KEY_SIZE = 32
TAG_SIZE = 16
HASH_SIZE = 32

_IV = struct.Struct(">4xQ")
#: The text of every HandshakeError, for every cause, so neither a peer nor a log learns which check failed.
REFUSED = "a handshake message that does not verify"


class Role(enum.Enum):
    """The two sides of a handshake: the initiator writes the first message."""

    INITIATOR = "initiator"
    RESPONDER = "responder"


class Token(enum.Enum):
    """A step of a message: send a key, or mix in the shared secret of two keys, the initiator's named first."""

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
    """Return two 32-byte outputs of HKDF-SHA-256 (RFC 5869) with the chaining key as salt and no info (Noise §4.3)."""
    secret = hmac.digest(chaining_key, material, "sha256")
    first = hmac.digest(secret, b"\x01", "sha256")
    return first, hmac.digest(secret, first + b"\x02", "sha256")


@attrs.frozen
class CipherState:
    """A 32-byte key and the next nonce. Each use returns the next state."""

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
    """The running hash h of all messages (`transcript`), the chaining key, and the cipher once there is one.

    It is a value: every step returns the next state, so a message that fails half-way changes nothing.
    """

    chaining_key: bytes = attrs.field(repr=False)
    transcript: bytes
    cipher: CipherState | None = None

    @classmethod
    def start(cls, protocol_name: bytes, prologue: bytes) -> "SymmetricState":
        """Return the state before the first message (Noise §5.2); spec §6.1 has an empty prologue."""
        name = protocol_name.ljust(HASH_SIZE, b"\0")
        chaining_key = name if len(name) == HASH_SIZE else hashlib.sha256(name).digest()
        return cls(chaining_key, chaining_key).mix_hash(prologue)

    def mix_hash(self, data: bytes) -> "SymmetricState":
        """Add bytes that were sent unencrypted to the transcript."""
        return attrs.evolve(self, transcript=hashlib.sha256(self.transcript + data).digest())

    def mix_key(self, agreed: bytes) -> "SymmetricState":
        """Add a shared secret; everything after it is encrypted with a new key."""
        chaining_key, key = hkdf(self.chaining_key, agreed)
        return attrs.evolve(self, chaining_key=chaining_key, cipher=CipherState(key))

    def encrypt_and_hash(self, plaintext: bytes) -> tuple["SymmetricState", bytes]:
        """Return the next state and the bytes to send: the ciphertext, or the plaintext while there is no key."""
        if self.cipher is None:
            return self.mix_hash(plaintext), plaintext
        cipher, ciphertext = self.cipher.encrypt(self.transcript, plaintext)
        return attrs.evolve(self.mix_hash(ciphertext), cipher=cipher), ciphertext

    def decrypt_and_hash(self, ciphertext: bytes) -> tuple["SymmetricState", bytes]:
        """Return the next state and the plaintext of the received bytes; InvalidTag if they do not verify."""
        if self.cipher is None:
            return self.mix_hash(ciphertext), ciphertext
        cipher, plaintext = self.cipher.decrypt(self.transcript, ciphertext)
        return attrs.evolve(self.mix_hash(ciphertext), cipher=cipher), plaintext


@attrs.define(eq=False)
class HandshakeState:
    """One side of one XX handshake.

    `static` and `ephemeral` are X25519 keys of `vault`. The ephemeral key must be new; the caller that generated it
    forgets it after the handshake. A message that does not verify raises HandshakeError and changes nothing: drop it,
    and the right one is still accepted. A call out of turn raises LocalError.
    """

    role: Role
    _vault: Vault = attrs.field(repr=False)
    _static: KeyHandle
    _ephemeral: KeyHandle
    _protocol_name: bytes = OCKAM_CURRENT
    _prologue: bytes = b""
    _symmetric: SymmetricState = attrs.field(init=False)
    _done: int = attrs.field(init=False, default=0)  # messages so far
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
        """The 32 bytes of h, which name this handshake; LocalError before it is finished."""
        self._require_finished("handshake_hash")
        return self._symmetric.transcript

    @property
    def remote_static(self) -> bytes:
        """The peer's static public key, 32 bytes; LocalError before it has arrived.

        The responder has proven that it holds its key with message 2, the initiator with message 3.
        """
        if not self._remote_static:
            raise LocalError("remote_static is known only after the message that contains it: read that first")
        return self._remote_static

    def split(self) -> tuple[bytes, bytes]:
        """Return the two session keys (k1, k2), 32 bytes each; LocalError before the handshake is finished.

        In Noise the initiator sends with k1. In Ockam it is reversed: k1 is for responder to initiator, k2 for
        initiator to responder (spec §6.1, "Direction"). The caller assigns them.
        """
        self._require_finished("split")
        return hkdf(self._symmetric.chaining_key, b"")

    def write_message(self, payload: bytes = b"") -> bytes:
        """Return the next message with `payload`, which only messages 2 and 3 encrypt.

        HandshakeError if the secret shared with the peer's key is all zero, MessageTooLargeError over 65,535 bytes.
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
                f"a handshake message has at most {MAX_MESSAGE} bytes, this one has {len(message)}: shorten the payload"
            )
        self._symmetric = symmetric
        self._done += 1
        return message

    def read_message(self, message: bytes) -> bytes:
        """Return the payload of the peer's next message.

        If it does not verify, HandshakeError, and nothing has changed.
        """
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
        """Return the tokens of the next message; LocalError if it is the other side's turn."""
        if self.finished:
            raise LocalError("this handshake is finished: split() returns the keys of the session")
        if writing != ((self.role is Role.INITIATOR) == (self._done % 2 == 0)):
            verb, other = ("write", "read") if writing else ("read", "write")
            raise LocalError(
                f"it is not this side's turn to {verb} message {self._done + 1} of the handshake: {other} it"
            )
        return XX[self._done]

    def _agree(self, token: Token, remote_ephemeral: bytes, remote_static: bytes) -> bytes:
        """Return the shared secret of the two keys that the token names."""
        ours, theirs = (0, 1) if self.role is Role.INITIATOR else (1, 0)
        own = self._ephemeral if token.value[ours] == "e" else self._static
        try:
            return self._vault.x25519(own, remote_ephemeral if token.value[theirs] == "e" else remote_static)
        except HandshakeError:
            raise HandshakeError(REFUSED) from None

    def _require_finished(self, what: str) -> None:
        if not self.finished:
            raise LocalError(
                f"{what} exists only after message {len(XX)}, and only {self._done} are done: finish the handshake"
            )


def _cut(data: bytes, size: int) -> tuple[bytes, bytes]:
    if len(data) < size:
        raise HandshakeError(REFUSED)
    return data[:size], data[size:]
