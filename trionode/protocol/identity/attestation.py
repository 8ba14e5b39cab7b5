"""Attestations of purpose keys: an identity signs that a key is its own, for one purpose (spec §10.1)."""

from typing import Self

import attrs

from trionode.errors import ConfigError, IdentityError
from trionode.protocol.identity.identity import ChangeHistory, Identifier
from trionode.protocol.identity.keys import KeyHandle, KeyKind, Vault
from trionode.protocol.identity.signed import DataKind, PublicKey, Signed, public_key_of, read_hash
from trionode.protocol.wire import cbor

#: Seconds that the clock of a sender may be ahead of ours (spec §10.1). Expiry is exact.
CLOCK_SKEW = 60
_X25519_SIZE = 32


@attrs.frozen
class PurposeKeyAttestation:
    """The statement of an identity that a key is its own (spec §10.1). It counts only after `verify`.

    `key` is the 32 bytes of an X25519 key for secure channels, or the `PublicKey` that signs credentials. Times are
    seconds since 1970.
    """

    signed: Signed = attrs.field(repr=False)
    subject: Identifier = attrs.field(repr=str)
    subject_latest_change_hash: bytes = attrs.field(repr=bytes.hex)
    key: bytes | PublicKey
    created_at: int
    expires_at: int

    @classmethod
    def of(cls, signed: Signed) -> Self:
        """Read the attestation in signed data; IdentityError or WireError if there is none. Nothing is verified."""
        subject, latest, key, created_at, expires_at = signed.fields(DataKind.ATTESTATION, 5)
        return cls(
            signed,
            Identifier(read_hash(subject)),
            read_hash(latest),
            _purpose_key(key),
            cbor.uint(created_at),
            cbor.uint(expires_at),
        )

    @classmethod
    def make(
        cls,
        history: ChangeHistory,
        vault: Vault,
        signing_key: KeyHandle,
        key: KeyHandle,
        *,
        created_at: int,
        expires_at: int,
    ) -> Self:
        """Attest `key` with `signing_key`, the latest key of the history.

        X25519 keys are for secure channels, Ed25519 keys for credentials.
        """
        if history.latest.key != public_key_of(signing_key):
            raise ConfigError(
                "only the latest key of an identity attests purpose keys: pass the key of its last rotation"
            )
        item: cbor.Value = [0, [key.public]] if key.kind is KeyKind.X25519 else [1, [public_key_of(key).item]]
        inner: cbor.Value = [history.identifier.value, history.latest.hash, item, created_at, expires_at]
        return cls.of(Signed.make(DataKind.ATTESTATION, inner, vault, signing_key))

    def verify(self, history: ChangeHistory, now: int) -> None:
        """IdentityError unless the identity made this attestation and it is valid at `now`, seconds since 1970."""
        latest = history.latest
        for holds, breach in (
            (self.subject == history.identifier, "is for another identity"),
            (self.subject_latest_change_hash == latest.hash, "is not by the latest key of its identity"),
            (self.created_at >= latest.created_at, "was made before the key that signed it"),
            (self.expires_at <= latest.expires_at, "expires after the key that signed it"),
            (self.created_at <= now + CLOCK_SKEW, f"was made {self.created_at - now} s in the future"),
            (self.expires_at > now, "has expired"),
            (self.signed.verifies(latest.key), "has a bad signature"),
        ):
            if not holds:
                raise IdentityError(f"the purpose key attestation {breach}")


def _purpose_key(item: object) -> bytes | PublicKey:
    variant, fields = cbor.variant(item)
    (key,) = cbor.fields(fields, 1)
    if variant == 0:
        value = cbor.narrow(key, bytes)
        if len(value) != _X25519_SIZE:
            raise IdentityError(f"a secure channel key has {_X25519_SIZE} bytes, this one {len(value)}")
        return value
    if variant == 1:
        return PublicKey.of(key)
    raise IdentityError(f"a purpose key has variant 0 or 1, this one {variant}")
