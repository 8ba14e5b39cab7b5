"""What an authority says of a peer: credentials, verified into attributes (spec §10.2)."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Self

import attrs

from trionode.errors import IdentityError, WireError
from trionode.protocol.identity.attestation import CLOCK_SKEW, PurposeKeyAttestation
from trionode.protocol.identity.identity import ChangeHistory, Identifier
from trionode.protocol.identity.signed import DataKind, PublicKey, Signed, read_hash
from trionode.protocol.wire import cbor

#: Bytes in one encoded credential: no more fits into the handshake message that carries it (Noise §3); those that peers make have some 300.
MAX_CREDENTIAL = 65_535


@attrs.frozen
class PresentedCredential:
    """A credential as a peer presents it (spec §10.2), only split into its parts: `verify_credential` verifies it."""

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
        """Return what `decode` reads."""
        return cbor.encode(self.item)

    @property
    def item(self) -> cbor.Value:
        """What `of` reads."""
        return [self.signed.item, self.attestation.item]


@attrs.frozen
class Credential:
    """A credential that verified: the issuer's attributes of the subject, until `expires_at` (seconds since 1970).

    Attributes belong to the pair of subject and issuer: a later credential replaces them all, and an empty mapping is one too.
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
    """Return the credential, if one of the authorities stands behind it at `now` and it is about that peer; IdentityError says why not.

    The caller ignores one that does not verify and lets the channel open all the same: what it may do is for attributes to say.
    """
    try:
        attestation = PurposeKeyAttestation.of(presented.attestation)
        credential = _read(presented, attestation.subject)
    except WireError as error:
        raise IdentityError(f"not a credential: {error}") from error
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


def _read(presented: PresentedCredential, issuer: Identifier) -> Credential:
    # The hash of the subject's latest change, the second field, says nothing that the handshake did not prove; peers don't check it either.
    subject, _, statement, created_at, expires_at = presented.signed.fields(DataKind.CREDENTIAL, 5)
    schema, attributes = cbor.fields(statement, 2)
    pairs = {cbor.narrow(key, bytes): cbor.narrow(value, bytes) for key, value in cbor.narrow(attributes, dict).items()}
    return Credential(
        issuer,
        Identifier(read_hash(subject)),
        MappingProxyType(pairs),
        cbor.uint(schema),
        cbor.uint(created_at),
        cbor.uint(expires_at),
    )
