"""Identifiers, and the change histories that prove them (spec §9.2)."""

import re
from typing import Self

import attrs

from trionode.errors import ConfigError, IdentityError, LocalError, WireError
from trionode.protocol.identity.keys import KeyHandle, Vault
from trionode.protocol.identity.signed import DataKind, PublicKey, Signature, Signed, public_key_of, read_hash, sign
from trionode.protocol.wire import cbor

#: Changes in one history. It allows a new key every two months for ten years, and limits the signature checks of one
#: handshake with an unauthenticated peer to about 15 ms.
MAX_CHANGES = 64
#: Bytes in one encoded history. The longest change (P-256, two signatures, every number at full width) has less than
#: 300.
MAX_HISTORY = 32 * 1024
#: Default lifetime of an identity key in seconds (spec §9.2): ten years.
IDENTITY_LIFETIME = 315_360_000
_IDENTIFIER_TEXT = re.compile(r"[IP][0-9a-fA-F]{64}")


@attrs.frozen(order=True)
class Identifier:
    """The identifier of an identity. As text it is `I`, or `P` for a classic identity, and 64 hex digits.

    A current and a classic identifier are never equal.

    Args:
      value: 32 bytes: the hash of the first change (spec §9.2). For a classic identity, the hash of the first key
        (spec §9.1).
      classic: Whether it is a classic identity.
    """

    value: bytes = attrs.field(repr=bytes.hex)
    classic: bool = False

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse an identifier.

        Args:
          text: `I` or `P` and 64 hex digits.

        Returns:
          The identifier.

        Raises:
          IdentityError: The text has another form.
        """
        if _IDENTIFIER_TEXT.fullmatch(text):
            return cls(bytes.fromhex(text[1:]), classic=text[0] == "P")
        raise IdentityError(
            f"an identifier is I and 64 hex digits, or P and 64 hex digits for a classic one, "
            f"as `trionode identity show` prints it; this is {text!r:.82}"
        )

    def __str__(self) -> str:
        return ("P" if self.classic else "I") + self.value.hex()


@attrs.frozen
class Change:
    """One change of a history: the key of the identity from then on (spec §9.2). Times are seconds since 1970."""

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
        """Read a change from its decoded CBOR. Nothing is verified."""
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
        """The value to encode in CBOR, which `of` reads."""
        previous = () if self.previous_signature is None else (self.previous_signature.item,)
        return [self.signed.data, self.signed.signature.item, *previous]


@attrs.frozen
class ChangeHistory:
    """All changes of one identity, oldest first. It is verified: the functions of this module make no other."""

    changes: tuple[Change, ...] = attrs.field(repr=False)
    identifier: Identifier = attrs.field(repr=str)

    @property
    def encoded(self) -> bytes:
        """The encoded history: the signed bytes exactly as received, in an array that is not signed."""
        return cbor.encode(self.item)

    @property
    def item(self) -> cbor.Value:
        """The value to encode in CBOR, which `read_history` reads."""
        return [change.item for change in self.changes]

    @property
    def latest(self) -> Change:
        """The last change. Its key signs for the identity now."""
        return self.changes[-1]

    def export(self) -> str:
        """Return the history as hex text, for `import_history`. It is public."""
        return self.encoded.hex()


def create_history(vault: Vault, key: KeyHandle, created_at: int, expires_at: int | None = None) -> ChangeHistory:
    """Return the history of a new identity with that Ed25519 key. By default it expires after ten years."""
    expires_at = created_at + IDENTITY_LIFETIME if expires_at is None else expires_at
    inner: cbor.Value = [None, public_key_of(key).item, False, created_at, expires_at]
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
    """Return the history with one more change, signed by both keys: from `now` on `new_key` signs for the identity.

    LocalError if `old_key` is not the latest key, the clock is before the latest change, or the history is full.
    """
    latest = history.latest
    if latest.key != public_key_of(old_key):
        raise ConfigError(
            "the old key is not the latest key of this history: rotate the newest history, with its own key"
        )
    if now < latest.created_at:
        raise LocalError(f"the clock says {now}, the latest change was at {latest.created_at}: set the clock first")
    if len(history.changes) >= MAX_CHANGES:
        raise LocalError(f"a history has at most {MAX_CHANGES} changes, and this one is full: create a new identity")
    expires_at = now + IDENTITY_LIFETIME if expires_at is None else expires_at
    inner: cbor.Value = [latest.hash, public_key_of(new_key).item, revoke_purpose_keys, now, expires_at]
    signed = Signed.make(DataKind.CHANGE, inner, vault, new_key)
    change = [signed.data, signed.signature.item, sign(vault, old_key, signed.hash).item]
    return verify_history(cbor.encode([*(earlier.item for earlier in history.changes), change]))


def verify_history(encoded: bytes) -> ChangeHistory:
    """Read a history and check every rule of spec §9.2; IdentityError if one is broken."""
    if len(encoded) > MAX_HISTORY:
        raise IdentityError(f"a history has at most {MAX_HISTORY} bytes, this one {len(encoded)}")
    try:
        return read_history(cbor.decode(encoded))
    except WireError as error:
        raise IdentityError(f"not a change history: {error}") from error


def import_history(text: str) -> ChangeHistory:
    """Read and verify the hex text that `export` returned; IdentityError if it is not a valid history."""
    try:
        encoded = bytes.fromhex(text)
    except ValueError as error:
        raise IdentityError("an exported identity is hex text, as `trionode identity export` prints it") from error
    return verify_history(encoded)


def read_history(item: object) -> ChangeHistory:
    """Read and verify a history from its decoded CBOR; IdentityError says what is wrong."""
    items = cbor.narrow(item, list)
    if not 0 < len(items) <= MAX_CHANGES:
        raise IdentityError(f"a history has 1 to {MAX_CHANGES} changes, this one {len(items)}")
    changes = tuple(map(Change.of, items))
    # Cheap checks come first: an unauthenticated peer gets no signature checked for an inconsistent history.
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
