"""Data with a signature over its hash, and the keys that make and verify such signatures (spec §9.2)."""

import enum
from hashlib import sha256
from typing import Self

import attrs

from trionode.errors import IdentityError, LocalError
from trionode.protocol.identity.keys import KeyHandle, KeyKind, Vault
from trionode.protocol.identity.signatures import verify_ed25519, verify_p256
from trionode.protocol.wire import cbor

_VERSION = 1
_HASH_SIZE = 32
_SIGNATURE_SIZE = 64


class SignatureKind(enum.IntEnum):
    """The signature algorithms of identities, by their variant on the wire (spec §9.2)."""

    ED25519 = 0
    P256 = 1


_KEY_SIZES = {SignatureKind.ED25519: 32, SignatureKind.P256: 65}


class DataKind(enum.IntEnum):
    """What signed data says it is (spec §9.2), so that a signature for one purpose is none for another."""

    CHANGE = 1
    ATTESTATION = 2
    CREDENTIAL = 3


@attrs.frozen
class Signature:
    """A 64-byte signature and the algorithm that made it."""

    kind: SignatureKind
    value: bytes = attrs.field(repr=bytes.hex)

    @classmethod
    def of(cls, item: object) -> Self:
        """Return a signature from its decoded CBOR (spec §9.2)."""
        kind, value = _kind_and_bytes(item, "a signature")
        if len(value) != _SIGNATURE_SIZE:
            raise IdentityError(f"a signature has 64 bytes, this one {len(value)}")
        return cls(kind, value)

    @property
    def item(self) -> cbor.Value:
        """What `of` reads."""
        return [int(self.kind), [self.value]]


@attrs.frozen
class PublicKey:
    """A key that verifies signatures: 32 bytes of Ed25519, or 65 of P-256 (SEC1, uncompressed)."""

    kind: SignatureKind
    value: bytes = attrs.field(repr=bytes.hex)

    @classmethod
    def of(cls, item: object) -> Self:
        """Return a key from its decoded CBOR (spec §9.2)."""
        kind, value = _kind_and_bytes(item, "a public key")
        if len(value) != _KEY_SIZES[kind]:
            raise IdentityError(f"a public key of kind {kind.name} has {_KEY_SIZES[kind]} bytes, this one {len(value)}")
        return cls(kind, value)

    @property
    def item(self) -> cbor.Value:
        """What `of` reads."""
        return [int(self.kind), [self.value]]

    def verifies(self, signature: Signature, message: bytes) -> bool:
        """Whether this key signed the message; a signature of the other algorithm never verifies."""
        if signature.kind is not self.kind:
            return False
        verify = verify_ed25519 if self.kind is SignatureKind.ED25519 else verify_p256
        return verify(self.value, message, signature.value)


@attrs.frozen
class Signed:
    """Data exactly as it was received, and the signature over its SHA-256 (spec §9.2)."""

    data: bytes = attrs.field(repr=bytes.hex)
    signature: Signature

    @classmethod
    def of(cls, item: object) -> Self:
        """Signed data from its decoded CBOR `[data bytes, signature]`; nothing is verified yet."""
        data, signature = cbor.fields(item, 2)
        return cls(cbor.narrow(data, bytes), Signature.of(signature))

    @classmethod
    def make(cls, kind: DataKind, inner: cbor.Value, vault: Vault, key: KeyHandle) -> Self:
        """Return the fields as data of that kind, signed by an Ed25519 key of the vault."""
        data = cbor.encode([_VERSION, int(kind), cbor.encode(inner)])
        return cls(data, sign(vault, key, sha256(data).digest()))

    @property
    def hash(self) -> bytes:
        """SHA-256 of the data: what is signed, and what names a change."""
        return sha256(self.data).digest()

    @property
    def item(self) -> cbor.Value:
        """What `of` reads."""
        return [self.data, self.signature.item]

    def fields(self, kind: DataKind, count: int) -> list[object]:
        """Return the fields inside; IdentityError for another version or kind of data, WireError for fewer fields."""
        version, claimed, inner = cbor.fields(cbor.decode(self.data), 3)
        if (cbor.uint(version), cbor.uint(claimed)) != (_VERSION, kind):
            raise IdentityError(f"expected version 1 of {kind.name} ({int(kind)}), came version {version} of {claimed}")
        return cbor.fields(cbor.decode(cbor.narrow(inner, bytes)), count)

    def verifies(self, key: PublicKey) -> bool:
        """Whether that key signed it."""
        return key.verifies(self.signature, self.hash)


def public_key_of(key: KeyHandle) -> PublicKey:
    """The public half of a key in a vault; LocalError unless it is an Ed25519 key."""
    if key.kind is not KeyKind.ED25519:
        raise LocalError(
            f"an identity signs with Ed25519 keys, this one is {key.kind.value}: generate(KeyKind.ED25519)"
        )
    return PublicKey(SignatureKind.ED25519, key.public)


def sign(vault: Vault, key: KeyHandle, message: bytes) -> Signature:
    """Sign a message with an Ed25519 key of the vault."""
    return Signature(public_key_of(key).kind, vault.sign(key, message))


def _kind_and_bytes(item: object, what: str) -> tuple[SignatureKind, bytes]:
    variant, fields = cbor.variant(item)
    (value,) = cbor.fields(fields, 1)
    try:
        return SignatureKind(variant), cbor.narrow(value, bytes)
    except ValueError:
        raise IdentityError(f"{what} has variant 0 (Ed25519) or 1 (P-256), this one {variant}") from None


def read_hash(value: object) -> bytes:
    """Return a change hash from its decoded CBOR; IdentityError if it has not 32 bytes."""
    digest = cbor.narrow(value, bytes)
    if len(digest) != _HASH_SIZE:
        raise IdentityError(f"a change hash has {_HASH_SIZE} bytes, this one {len(digest)}")
    return digest
