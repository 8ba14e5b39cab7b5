"""Signed data: a signature over its hash, and the keys that make and verify signatures (spec §9.2)."""

import enum
from collections.abc import Mapping
from hashlib import sha256
from types import MappingProxyType
from typing import ClassVar, Self

import attrs

from trionode.errors import ConfigError, IdentityError
from trionode.protocol.identity.keys import KeyHandle, KeyKind, Vault
from trionode.protocol.identity.signatures import verify_ed25519, verify_p256
from trionode.protocol.wire import cbor

_VERSION = 1
_HASH_SIZE = 32


class SignatureKind(enum.IntEnum):
    """The signature algorithms of identities, by their variant on the wire (spec §9.2)."""

    ED25519 = 0
    P256 = 1


class DataKind(enum.IntEnum):
    """The kinds of signed data (spec §9.2). A signature for one kind is not valid for another."""

    CHANGE = 1
    ATTESTATION = 2
    CREDENTIAL = 3


@attrs.frozen
class _Tagged:
    """Bytes with the algorithm that they belong to: on the wire `[variant, [bytes]]` (spec §9.2)."""

    SIZES: ClassVar[Mapping[SignatureKind, int]]
    WHAT: ClassVar[str]

    kind: SignatureKind
    value: bytes = attrs.field(repr=bytes.hex)

    @classmethod
    def of(cls, item: object) -> Self:
        """Read the decoded CBOR; IdentityError for an unknown algorithm or a wrong size."""
        variant, fields = cbor.variant(item)
        (value,) = cbor.fields(fields, 1)
        value = cbor.narrow(value, bytes)
        if variant not in cls.SIZES:
            raise IdentityError(f"{cls.WHAT} has variant 0 (Ed25519) or 1 (P-256), this one {variant}")
        kind = SignatureKind(variant)
        if len(value) != cls.SIZES[kind]:
            raise IdentityError(f"{cls.WHAT} of kind {kind.name} has {cls.SIZES[kind]} bytes, this one {len(value)}")
        return cls(kind, value)

    @property
    def item(self) -> cbor.Value:
        """The value to encode in CBOR, which `of` reads."""
        return [int(self.kind), [self.value]]


@attrs.frozen
class Signature(_Tagged):
    """A signature and the algorithm that made it."""

    SIZES = MappingProxyType({SignatureKind.ED25519: 64, SignatureKind.P256: 64})
    WHAT = "a signature"


@attrs.frozen
class PublicKey(_Tagged):
    """A key that verifies signatures: 32 bytes of Ed25519, or 65 of P-256 (SEC1, uncompressed)."""

    SIZES = MappingProxyType({SignatureKind.ED25519: 32, SignatureKind.P256: 65})
    WHAT = "a public key"

    def verifies(self, signature: Signature, message: bytes) -> bool:
        """Whether this key signed the message. A signature of the other algorithm never verifies."""
        if signature.kind is not self.kind:
            return False
        verify = verify_ed25519 if self.kind is SignatureKind.ED25519 else verify_p256
        return verify(self.value, message, signature.value)


@attrs.frozen
class Signed:
    """Data exactly as received, and the signature over its SHA-256 (spec §9.2)."""

    data: bytes = attrs.field(repr=bytes.hex)
    signature: Signature

    @classmethod
    def of(cls, item: object) -> Self:
        """Read the decoded CBOR `[data bytes, signature]`. Nothing is verified."""
        data, signature = cbor.fields(item, 2)
        return cls(cbor.narrow(data, bytes), Signature.of(signature))

    @classmethod
    def make(cls, kind: DataKind, inner: cbor.Value, vault: Vault, key: KeyHandle) -> Self:
        """Encode `inner` as data of that kind and sign it with an Ed25519 key of the vault."""
        data = cbor.encode([_VERSION, int(kind), cbor.encode(inner)])
        return cls(data, sign(vault, key, sha256(data).digest()))

    @property
    def hash(self) -> bytes:
        """SHA-256 of the data, which is signed, and which identifies a change."""
        return sha256(self.data).digest()

    @property
    def item(self) -> cbor.Value:
        """The value to encode in CBOR, which `of` reads."""
        return [self.data, self.signature.item]

    def fields(self, kind: DataKind, count: int) -> list[object]:
        """Return the inner fields; IdentityError for another version or kind of data, WireError for fewer fields."""
        version, claimed, inner = cbor.fields(cbor.decode(self.data), 3)
        if (cbor.uint(version), cbor.uint(claimed)) != (_VERSION, kind):
            raise IdentityError(
                f"expected version 1 of {kind.name} ({int(kind)}), this is version {version} of {claimed}"
            )
        return cbor.fields(cbor.decode(cbor.narrow(inner, bytes)), count)

    def verifies(self, key: PublicKey) -> bool:
        """Whether that key signed the data."""
        return key.verifies(self.signature, self.hash)


def public_key_of(key: KeyHandle) -> PublicKey:
    """Return the public key of a key in a vault; ConfigError unless it is an Ed25519 key."""
    if key.kind is not KeyKind.ED25519:
        raise ConfigError(
            f"an identity signs with Ed25519 keys, this one is {key.kind.value}: use generate(KeyKind.ED25519)"
        )
    return PublicKey(SignatureKind.ED25519, key.public)


def sign(vault: Vault, key: KeyHandle, message: bytes) -> Signature:
    """Sign a message with an Ed25519 key of the vault."""
    return Signature(public_key_of(key).kind, vault.sign(key, message))


def read_hash(value: object) -> bytes:
    """Return a change hash from its decoded CBOR; IdentityError unless it has 32 bytes."""
    digest = cbor.narrow(value, bytes)
    if len(digest) != _HASH_SIZE:
        raise IdentityError(f"a change hash has {_HASH_SIZE} bytes, this one {len(digest)}")
    return digest
