"""Credentials: signed by an authority, presented by a peer, verified into attributes (spec §10.2)."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import Self

import attrs

from trionode.errors import IdentityError, WireError
from trionode.protocol.identity.attestation import CLOCK_SKEW, PurposeKeyAttestation
from trionode.protocol.identity.identity import ChangeHistory, Identifier
from trionode.protocol.identity.keys import KeyHandle, KeyKind, Vault
from trionode.protocol.identity.signed import DataKind, PublicKey, Signed, read_hash
from trionode.protocol.wire import cbor

#: Bytes in one encoded credential: the handshake message that carries it cannot hold more (Noise §3). Rust peers
#: make some 300 bytes.
MAX_CREDENTIAL = 65_535


@attrs.frozen
class PresentedCredential:
    """A credential as a peer presents it (spec §10.2). It is decoded, not verified: see `verify_credential`."""

    signed: Signed
    attestation: Signed

    @classmethod
    def of(cls, item: object) -> Self:
        """Return a credential from its decoded CBOR `[[data bytes, signature], attestation]`."""
        signed, attestation = cbor.fields(item, 2)
        return cls(Signed.of(signed), Signed.of(attestation))

    @classmethod
    def decode(cls, encoded: bytes) -> Self:
        """Return a credential from its bytes; IdentityError if they are none."""
        if len(encoded) > MAX_CREDENTIAL:
            raise IdentityError(f"a credential has at most {MAX_CREDENTIAL} bytes, this one {len(encoded)}")
        try:
            return cls.of(cbor.decode(encoded))
        except WireError as error:
            raise IdentityError(f"not a credential: {error}") from error

    def encode(self) -> bytes:
        """Return the bytes that `decode` reads."""
        return cbor.encode(self.item)

    @property
    def item(self) -> cbor.Value:
        """What `of` reads."""
        return [self.signed.item, self.attestation.item]

    @classmethod
    def import_(cls, text: str) -> Self:
        """Return the credential in the hex text that `export` made; IdentityError if it is none."""
        try:
            return cls.decode(bytes.fromhex(text))
        except ValueError as error:
            raise IdentityError("a credential is hex text, as `trionode identity issue` prints it") from error

    def export(self) -> str:
        """Return the credential as hex text; it is not secret."""
        return self.encode().hex()


@attrs.frozen
class Credential:
    """A verified credential: the issuer's attributes of the subject, until `expires_at` (seconds since 1970).

    A later credential of the same issuer replaces all attributes. The mapping may be empty.
    """

    issuer: Identifier = attrs.field(repr=str)
    subject: Identifier = attrs.field(repr=str)
    attributes: Mapping[bytes, bytes] = attrs.field(repr=lambda attributes: repr(dict(attributes)))
    schema: int
    created_at: int
    expires_at: int


def verify_credential(
    presented: PresentedCredential, peer: Identifier, authorities: Iterable[ChangeHistory], now: int
) -> Credential:
    """Return the credential if one of the authorities issued it for that peer and it is valid at `now`.

    IdentityError says why not.

    A credential that does not verify has no attributes. It is no reason to close the channel (spec §7.1).
    """
    attestation, credential = _read(presented)
    issuer = next((each for each in authorities if each.identifier == attestation.subject), None)
    if issuer is None:
        raise IdentityError(f"the issuer {attestation.subject} is no authority here")
    attestation.verify(issuer, now)
    key = attestation.key
    if not isinstance(key, PublicKey):
        raise IdentityError("the issuer attests a secure channel key, which signs no credentials")
    for holds, breach in (
        (credential.subject == peer, "is about another identity"),
        (credential.created_at >= attestation.created_at, "is older than the attestation of its key"),
        (credential.expires_at <= attestation.expires_at, "outlives the attestation of its key"),
        (credential.created_at <= now + CLOCK_SKEW, f"begins {credential.created_at - now} s in the future"),
        (credential.expires_at > now, "has expired"),
        (presented.signed.verifies(key), "has a bad signature"),
    ):
        if not holds:
            raise IdentityError(f"the credential {breach}")
    return credential


def newest_credential(
    presented: Sequence[PresentedCredential], peer: Identifier, authority: ChangeHistory, now: int
) -> Credential | None:
    """Return the last of these credentials that verifies for the authority (spec §10.2), None if none does."""
    for each in reversed(presented):
        with suppress(IdentityError):
            return verify_credential(each, peer, (authority,), now)
    return None


def issue_credential(
    history: ChangeHistory,
    vault: Vault,
    signing_key: KeyHandle,
    subject: Identifier,
    attributes: Mapping[bytes, bytes],
    *,
    created_at: int,
    expires_at: int,
    schema: int = 0,
) -> PresentedCredential:
    """Return a credential by the identity of that history, whose latest key is `signing_key`.

    The credential key is used once: it is generated, attested for the lifetime of the credential, and forgotten.
    """
    key = vault.generate(KeyKind.ED25519, ephemeral=True)
    try:
        attestation = PurposeKeyAttestation.make(
            history, vault, signing_key, key, created_at=created_at, expires_at=expires_at
        )
        statement: cbor.Value = [schema, dict(sorted(attributes.items()))]
        inner: cbor.Value = [subject.value, None, statement, created_at, expires_at]
        return PresentedCredential(Signed.make(DataKind.CREDENTIAL, inner, vault, key), attestation.signed)
    finally:
        vault.forget(key)


def read_credential(presented: PresentedCredential) -> Credential:
    """Return the content of a credential; nothing is verified. IdentityError if it is not decodable."""
    return _read(presented)[1]


def _read(presented: PresentedCredential) -> tuple[PurposeKeyAttestation, Credential]:
    try:
        attestation = PurposeKeyAttestation.of(presented.attestation)
        # The second field, the hash of the subject's latest change, adds nothing to the handshake's proof. Rust ignores
        # it too.
        subject, _, statement, created_at, expires_at = presented.signed.fields(DataKind.CREDENTIAL, 5)
        schema, attributes = cbor.fields(statement, 2)
        pairs = {
            cbor.narrow(name, bytes): cbor.narrow(value, bytes) for name, value in cbor.narrow(attributes, dict).items()
        }
        return attestation, Credential(
            attestation.subject,
            Identifier(read_hash(subject)),
            MappingProxyType(pairs),
            cbor.uint(schema),
            cbor.uint(created_at),
            cbor.uint(expires_at),
        )
    except WireError as error:
        raise IdentityError(f"not a credential: {error}") from error
