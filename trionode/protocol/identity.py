"""Who somebody is: change histories, the identifiers that they prove, and the attestations that bind purpose keys to them (spec §9.2, §10.1)."""

import enum
import re
from hashlib import sha256
from typing import Self

import attrs

from trionode.errors import IdentityError, LocalError, WireError
from trionode.protocol import cbor
from trionode.protocol.signatures import verify_ed25519, verify_p256
from trionode.protocol.vault import KeyHandle, KeyKind, Vault

#: Changes in one history: a new key every two months of the ten years that an identity lasts, and at most some 15 ms of signature checks
#: for a stranger's handshake.
MAX_CHANGES = 64

#: Bytes in one encoded history: its longest change (P-256, two signatures, every number at full width) takes under 300.
MAX_HISTORY = 32 * 1024

#: Credentials that one peer may present: each costs two signature checks, and a peer has one for each authority that it knows.
MAX_CREDENTIALS = 16

#: Bytes in one identity payload: what a Noise message may carry (Noise §3); the largest that peers make has about 1 kB.
MAX_PAYLOAD = 65_535

#: Seconds that an identity key lasts unless its maker says otherwise (spec §9.2): ten years.
IDENTITY_LIFETIME = 315_360_000

#: Seconds that a sender's clock may be ahead of ours (spec §10.1); expiry is exact.
CLOCK_SKEW = 60

_VERSION = 1
_HASH_SIZE = 32
_X25519_SIZE = 32


class SignatureKind(enum.IntEnum):
    """The signature algorithms of identities, by their variant on the wire (spec §9.2)."""

    ED25519 = 0
    P256 = 1


class DataKind(enum.IntEnum):
    """What signed data says it is (spec §9.2), so that a signature for one purpose is none for another."""

    CHANGE = 1
    ATTESTATION = 2
    CREDENTIAL = 3


class Relation(enum.Enum):
    """How a presented history stands to the known one of the same identifier."""

    SAME = "same"
    NEWER = "newer"
    OLDER = "older"
    CONFLICTING = "conflicting"


_KEY_SIZES = {SignatureKind.ED25519: 32, SignatureKind.P256: 65}
_SIGNATURE_SIZE = 64
_IDENTIFIER_TEXT = re.compile(r"I[0-9a-fA-F]{64}")


@attrs.frozen(order=True)
class Identifier:
    """The name of an identity: the 32-byte hash of its first change (spec §9.2); as text `I` and 64 hex digits."""

    value: bytes = attrs.field(repr=bytes.hex)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the identifier that the text names; IdentityError, which says what is wrong, for any other text."""
        if _IDENTIFIER_TEXT.fullmatch(text):
            return cls(bytes.fromhex(text[1:]))
        shown = text if len(text) <= 80 else text[:80] + "…"
        raise IdentityError(
            f"an identifier is I and 64 hex digits, as `trionode identity show` prints it; this is {shown!r}"
        )

    def __str__(self) -> str:
        return "I" + self.value.hex()


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
        return cls(data, _sign(vault, key, sha256(data).digest()))

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


@attrs.frozen
class Change:
    """One change of a history: the key that is the identity's from then on (spec §9.2). Times are seconds since 1970."""

    signed: Signed
    previous_signature: Signature | None
    hash: bytes = attrs.field(repr=bytes.hex)
    previous_hash: bytes | None = attrs.field(repr=False)
    key: PublicKey
    revoke_all_purpose_keys: bool
    created_at: int
    expires_at: int

    @classmethod
    def of(cls, item: object) -> Self:
        """Return a change from its decoded CBOR; nothing is verified yet."""
        *_, previous_signature = cbor.fields(item, 2, 1)
        signed = Signed.of(item)
        previous_hash, key, revoke, created_at, expires_at = signed.fields(DataKind.CHANGE, 5)
        return cls(
            signed,
            None if previous_signature is None else Signature.of(previous_signature),
            signed.hash,
            None if previous_hash is None else read_hash(previous_hash),
            PublicKey.of(key),
            cbor.narrow(revoke, bool),
            cbor.uint(created_at),
            cbor.uint(expires_at),
        )

    @property
    def item(self) -> cbor.Value:
        """What `of` reads."""
        previous = () if self.previous_signature is None else (self.previous_signature.item,)
        return [self.signed.data, self.signed.signature.item, *previous]


@attrs.frozen
class ChangeHistory:
    """All changes of one identity, oldest first. The functions of this module make one only if it verifies, so to hold one is enough."""

    changes: tuple[Change, ...] = attrs.field(repr=False)
    identifier: Identifier = attrs.field(repr=str)

    @property
    def encoded(self) -> bytes:
        """The history for the wire: the signed bytes as they were received, in an array around them that nobody signs."""
        return cbor.encode(self.item)

    @property
    def item(self) -> cbor.Value:
        """What stands decoded in `encoded`."""
        return [change.item for change in self.changes]

    @property
    def latest(self) -> Change:
        """The change whose key speaks for the identity now."""
        return self.changes[-1]

    def export(self) -> str:
        """Return the history as hex text, for `import_history`; it is public."""
        return self.encoded.hex()


def create_history(vault: Vault, key: KeyHandle, created_at: int, expires_at: int | None = None) -> ChangeHistory:
    """Return the history of a new identity whose first key is that Ed25519 key; it lasts ten years unless told otherwise."""
    expires_at = created_at + IDENTITY_LIFETIME if expires_at is None else expires_at
    inner: cbor.Value = [None, _public(key).item, False, created_at, expires_at]
    return verify_history(cbor.encode([Signed.make(DataKind.CHANGE, inner, vault, key).item]))


def rotate(
    history: ChangeHistory,
    vault: Vault,
    old_key: KeyHandle,
    new_key: KeyHandle,
    now: int,
    *,
    revoke_purpose_keys: bool = False,
    expires_at: int | None = None,
) -> ChangeHistory:
    """Return the history with one more change: `new_key` speaks for the identity from `now` on, and `old_key` agrees.

    LocalError if `old_key` is not the latest key, the clock is before the latest change, or the history is full.
    """
    latest = history.latest
    if latest.key != _public(old_key):
        raise LocalError(
            "the old key is not the latest key of this history: rotate the newest history, with its own key"
        )
    if now < latest.created_at:
        raise LocalError(f"the clock says {now}, the latest change was at {latest.created_at}: set the clock first")
    if len(history.changes) >= MAX_CHANGES:
        raise LocalError(f"a history holds at most {MAX_CHANGES} changes and this one is full: create a new identity")
    expires_at = now + IDENTITY_LIFETIME if expires_at is None else expires_at
    inner: cbor.Value = [latest.hash, _public(new_key).item, revoke_purpose_keys, now, expires_at]
    signed = Signed.make(DataKind.CHANGE, inner, vault, new_key)
    change = [signed.data, signed.signature.item, _sign(vault, old_key, signed.hash).item]
    return verify_history(cbor.encode([*(earlier.item for earlier in history.changes), change]))


def verify_history(encoded: bytes) -> ChangeHistory:
    """Return the history in these bytes, if every rule of spec §9.2 holds; IdentityError otherwise."""
    if len(encoded) > MAX_HISTORY:
        raise IdentityError(f"a history has at most {MAX_HISTORY} bytes, this one {len(encoded)}")
    try:
        return _history(cbor.decode(encoded))
    except WireError as error:
        raise IdentityError(f"not a change history: {error}") from error


def import_history(text: str) -> ChangeHistory:
    """Return the history in the hex text that `export` made; IdentityError if it is none or does not verify."""
    try:
        encoded = bytes.fromhex(text)
    except ValueError as error:
        raise IdentityError("an exported identity is hex text, as `trionode identity export` prints it") from error
    return verify_history(encoded)


def relation(known: ChangeHistory, presented: ChangeHistory) -> Relation:
    """How the presented history stands to the known one: same, newer (it goes on from it), older, or conflicting."""
    before = [change.hash for change in known.changes]
    after = [change.hash for change in presented.changes]
    if before == after:
        return Relation.SAME
    if before == after[: len(before)]:
        return Relation.NEWER
    if after == before[: len(after)]:
        return Relation.OLDER
    return Relation.CONFLICTING


@attrs.frozen
class PurposeKeyAttestation:
    """The word of an identity that a key is its own for a purpose (spec §10.1); nothing is verified before `verify`.

    `key` is the 32 bytes of an X25519 key for secure channels, or the `PublicKey` that signs credentials.
    """

    signed: Signed = attrs.field(repr=False)
    subject: Identifier = attrs.field(repr=str)
    subject_latest_change_hash: bytes = attrs.field(repr=bytes.hex)
    key: bytes | PublicKey
    created_at: int
    expires_at: int

    @classmethod
    def of(cls, signed: Signed) -> Self:
        """Return the attestation inside signed data; IdentityError or WireError if there is none."""
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
        """Return the attestation of `key` by the latest key of the history: X25519 for secure channels, Ed25519 for credentials."""
        if history.latest.key != _public(signing_key):
            raise LocalError(
                "only the latest key of an identity attests purpose keys: give the key of its last rotation"
            )
        item: cbor.Value = [0, [key.public]] if key.kind is KeyKind.X25519 else [1, [_public(key).item]]
        inner: cbor.Value = [history.identifier.value, history.latest.hash, item, created_at, expires_at]
        return cls.of(Signed.make(DataKind.ATTESTATION, inner, vault, signing_key))

    def verify(self, history: ChangeHistory, now: int) -> None:
        """IdentityError unless the identity of that history stands behind this attestation at `now`, seconds since 1970."""
        latest = history.latest
        for holds, breach in (
            (self.subject == history.identifier, "is for another identity"),
            (self.subject_latest_change_hash == latest.hash, "is not by the latest key of its identity"),
            (self.created_at >= latest.created_at, "is older than the key that signed it"),
            (self.expires_at <= latest.expires_at, "outlives the key that signed it"),
            (self.created_at <= now + CLOCK_SKEW, f"begins {self.created_at - now} s in the future"),
            (self.expires_at > now, "has expired"),
            (self.signed.verifies(latest.key), "has a bad signature"),
        ):
            if not holds:
                raise IdentityError(f"the purpose key attestation {breach}")


@attrs.frozen
class PresentedCredential:
    """A credential as a peer presents it (spec §10.2), only split into its parts: `trionode.protocol.credential` verifies it."""

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
        if len(encoded) > MAX_PAYLOAD:
            raise IdentityError(f"a credential has at most {MAX_PAYLOAD} bytes, this one {len(encoded)}")
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
class IdentityPayload:
    """What a peer says of itself in a handshake (spec §7.1): a verified history, and what `verify` still has to look at."""

    history: ChangeHistory
    attestation: PurposeKeyAttestation
    credentials: tuple[PresentedCredential, ...] = ()

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Return the payload in these bytes, its history verified; IdentityError otherwise."""
        if len(data) > MAX_PAYLOAD:
            raise IdentityError(f"an identity payload has at most {MAX_PAYLOAD} bytes, this one {len(data)}")
        try:
            history, attestation, credentials = cbor.fields(cbor.decode(data), 3)
            listed = cbor.narrow(credentials, list)
            if len(listed) > MAX_CREDENTIALS:
                raise IdentityError(f"a peer presents at most {MAX_CREDENTIALS} credentials, this one {len(listed)}")
            presented = tuple(map(PresentedCredential.of, listed))
            attested = PurposeKeyAttestation.of(Signed.of(attestation))
            return cls(_history(history), attested, presented)
        except WireError as error:
            raise IdentityError(f"not an identity payload: {error}") from error

    def encode(self) -> bytes:
        """Return the bytes that go into the handshake."""
        credentials = [credential.item for credential in self.credentials]
        return cbor.encode([self.history.item, self.attestation.signed.item, credentials])

    def verify(self, static_key: bytes, now: int) -> None:
        """IdentityError unless the identity attests, at `now`, the X25519 key that the handshake proved."""
        if self.attestation.key != static_key:
            raise IdentityError("the attested key is not the key of this handshake")
        self.attestation.verify(self.history, now)


def _history(item: object) -> ChangeHistory:
    items = cbor.narrow(item, list)
    if not 0 < len(items) <= MAX_CHANGES:
        raise IdentityError(f"a history has 1 to {MAX_CHANGES} changes, this one {len(items)}")
    changes = tuple(map(Change.of, items))
    # What costs nothing comes first: a stranger gets no signature checked for a history that doesn't hang together.
    for number, (before, change) in enumerate(zip((None, *changes), changes, strict=False)):
        _check_link(number, before, change)
    for number, (before, change) in enumerate(zip((None, *changes), changes, strict=False)):
        if not change.signed.verifies(change.key):
            raise IdentityError(f"change {number} is not signed by its own key")
        if before and not (change.previous_signature and before.key.verifies(change.previous_signature, change.hash)):
            raise IdentityError(f"change {number} is not signed by the key before it")
    return ChangeHistory(changes, Identifier(changes[0].hash))


def _check_link(number: int, before: Change | None, change: Change) -> None:
    if change.previous_hash != (before and before.hash):
        raise IdentityError(f"change {number} does not name the change before it")
    if (before is None) is not (change.previous_signature is None):
        raise IdentityError(f"change {number} {'lacks' if before else 'has'} a signature by a previous key")
    if before and change.created_at < before.created_at:
        raise IdentityError(f"change {number} is older than the change before it")


def _public(key: KeyHandle) -> PublicKey:
    if key.kind is not KeyKind.ED25519:
        raise LocalError(
            f"an identity signs with Ed25519 keys, this one is {key.kind.value}: generate(KeyKind.ED25519)"
        )
    return PublicKey(SignatureKind.ED25519, key.public)


def _sign(vault: Vault, key: KeyHandle, message: bytes) -> Signature:
    return Signature(_public(key).kind, vault.sign(key, message))


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
