"""Change histories of classic identities: signed key changes that prove an identifier (spec §9.1)."""

import enum
from hashlib import sha256
from typing import Self

import attrs

from trionode.errors import IdentityError, WireError
from trionode.protocol.identity.identity import MAX_CHANGES, MAX_HISTORY, Identifier
from trionode.protocol.identity.keys import KeyHandle, Vault
from trionode.protocol.identity.signatures import verify_ed25519
from trionode.protocol.identity.signed import public_key_of
from trionode.protocol.wire import bare

#: The label of the key that signs for the identity.
ROOT_LABEL = "OCKAM_RK"
#: The first change names this as its predecessor.
INITIAL_CHANGE = sha256(b"OCKAM_INITIAL_CHANGE").digest()

_HASH_SIZE = 32
_KEY_SIZE = 32
_SIGNATURE_SIZE = 64
_KEY_TYPES = ("Buffer", "AES", "X25519", "Ed25519", "P-256")
_ED25519 = _KEY_TYPES.index("Ed25519")
_PERSISTENCES = 2  # ephemeral, persistent
_PERSISTENT = 1


class ChangeKind(enum.IntEnum):
    """The kinds of changes, by their variant on the wire."""

    CREATE_KEY = 0
    ROTATE_KEY = 1


class Signer(enum.IntEnum):
    """The key that made a signature of a change, by its variant on the wire.

    It is the root key before the change, the change's own key, or the key that the change replaces.
    """

    ROOT = 0
    SELF = 1
    PREVIOUS = 2


@attrs.frozen
class ClassicSignature:
    """An Ed25519 signature over the 32-byte hash of a change."""

    signer: Signer
    value: bytes = attrs.field(repr=bytes.hex)

    @classmethod
    def read(cls, reader: bare.Reader) -> Self:
        """Read a signature. Nothing is verified."""
        signer = Signer(reader.variant(len(Signer)))
        value = reader.data()
        if len(value) != _SIGNATURE_SIZE:
            raise IdentityError(f"a signature has {_SIGNATURE_SIZE} bytes, this one {len(value)}")
        return cls(signer, value)

    def encode(self) -> bytes:
        """Return the bytes that `read` reads."""
        return bare.uint(self.signer) + bare.data(self.value)


@attrs.frozen
class ClassicChange:
    """One change of a classic history: the Ed25519 key with that `label` from then on. `hash` is its change id."""

    kind: ChangeKind
    previous_hash: bytes = attrs.field(repr=False)
    label: str
    key: bytes = attrs.field(repr=bytes.hex)
    hash: bytes = attrs.field(repr=bytes.hex)
    signatures: tuple[ClassicSignature, ...] = attrs.field(repr=False)

    @classmethod
    def read(cls, reader: bare.Reader, encoded: bytes) -> Self:
        """Read a signed change with a reader of `encoded`. Its signatures are not verified."""
        claimed = reader.fixed(_HASH_SIZE)
        start = reader.at
        kind = ChangeKind(reader.variant(len(ChangeKind)))
        previous_hash = reader.fixed(_HASH_SIZE)
        label = reader.string()
        _require_ed25519(reader)
        reader.variant(_PERSISTENCES)
        length = reader.u32()
        key = reader.data()
        _require_ed25519(reader)
        if length != _KEY_SIZE or len(key) != _KEY_SIZE:
            raise IdentityError(f"an Ed25519 key has {_KEY_SIZE} bytes, this one has {len(key)} and declares {length}")
        # The hash is over the bytes as received: another encoding of the same change is another change.
        digest = sha256(encoded[start : reader.at]).digest()
        if digest != claimed:
            raise IdentityError("a change whose id is not its hash")
        count = reader.uint()
        if count > len(Signer):
            raise IdentityError(f"a change has at most {len(Signer)} signatures, this one {count}")
        return cls(kind, previous_hash, label, key, digest, tuple(ClassicSignature.read(reader) for _ in range(count)))


@attrs.frozen
class ClassicHistory:
    """All changes of one classic identity, oldest first. It is verified: the functions of this module make no other."""

    changes: tuple[ClassicChange, ...] = attrs.field(repr=False)
    #: The encoded history, exactly as received.
    encoded: bytes = attrs.field(repr=False)

    @property
    def identifier(self) -> Identifier:
        """The hash of the first key (spec §9.1). Conflicting histories may have the same identifier."""
        return Identifier(sha256(self.changes[0].key).digest(), classic=True)

    @property
    def root_key(self) -> bytes:
        """The 32 bytes of the Ed25519 key that signs for the identity now."""
        return next(change.key for change in reversed(self.changes) if change.label == ROOT_LABEL)

    def export(self) -> str:
        """Return the history as hex text. It is public."""
        return self.encoded.hex()


def create_classic_history(vault: Vault, key: KeyHandle) -> ClassicHistory:
    """Return the history of a new classic identity with that root key; ConfigError unless it is Ed25519."""
    change = (
        bare.uint(ChangeKind.CREATE_KEY)
        + INITIAL_CHANGE
        + bare.string(ROOT_LABEL)
        + bare.uint(_ED25519)
        + bare.uint(_PERSISTENT)
        + bare.u32(_KEY_SIZE)
        + bare.data(public_key_of(key).value)
        + bare.uint(_ED25519)
    )
    digest = sha256(change).digest()
    signature = ClassicSignature(Signer.SELF, vault.sign(key, digest))
    return verify_classic_history(bare.uint(1) + digest + change + bare.uint(1) + signature.encode())


def verify_classic_history(encoded: bytes) -> ClassicHistory:
    """Read a history and check every rule of spec §9.1.

    IdentityError if one is broken, or if any key is not Ed25519.
    """
    if len(encoded) > MAX_HISTORY:
        raise IdentityError(f"a history has at most {MAX_HISTORY} bytes, this one {len(encoded)}")
    try:
        changes = _read_changes(encoded)
    except WireError as error:
        raise IdentityError(f"not a classic history: {error}") from error
    # Cheap checks come first: an unauthenticated peer gets no signature checked for an inconsistent history.
    for number, change, signature, key in _to_verify(changes):
        if not verify_ed25519(key, change.hash, signature.value):
            raise IdentityError(f"change {number} is not signed by its {signature.signer.name} key")
    return ClassicHistory(changes, encoded)


def _read_changes(encoded: bytes) -> tuple[ClassicChange, ...]:
    reader = bare.Reader(encoded)
    # One byte is enough for MAX_CHANGES, and a longer form of the count could look like a current history.
    count = reader.u8()
    if not 0 < count <= MAX_CHANGES:
        raise IdentityError(f"a history has 1 to {MAX_CHANGES} changes, this one {count}")
    changes = tuple(ClassicChange.read(reader, encoded) for _ in range(count))
    reader.end()
    return changes


def _require_ed25519(reader: bare.Reader) -> None:
    kind = reader.variant(len(_KEY_TYPES))
    if kind != _ED25519:
        raise IdentityError(f"the keys of a classic identity must be Ed25519, this one is of type {_KEY_TYPES[kind]}")


def _to_verify(changes: tuple[ClassicChange, ...]) -> list[tuple[int, ClassicChange, ClassicSignature, bytes]]:
    """Return every signature with its change and the key that must have made it.

    IdentityError if the changes are not consistent.
    """
    found: list[tuple[int, ClassicChange, ClassicSignature, bytes]] = []
    keys: dict[str, bytes] = {}
    previous_hash = INITIAL_CHANGE
    for number, change in enumerate(changes):
        if change.previous_hash != previous_hash:
            raise IdentityError(f"change {number} does not name the change before it")
        if number == 0 and change.label != ROOT_LABEL:
            raise IdentityError(f"change 0 must create the key {ROOT_LABEL}")
        if (change.kind is ChangeKind.CREATE_KEY) is (change.label in keys):
            raise IdentityError(f"change {number} creates a key that exists, or rotates one that does not")
        signers = {Signer.SELF: change.key}
        if number > 0:
            signers[Signer.ROOT] = keys[ROOT_LABEL]
        if change.kind is ChangeKind.ROTATE_KEY:
            signers[Signer.PREVIOUS] = keys[change.label]
        if sorted(signature.signer for signature in change.signatures) != sorted(signers):
            names = ", ".join(signer.name for signer in signers)
            raise IdentityError(f"change {number} must have exactly one signature by each of {names}")
        found += [(number, change, signature, signers[signature.signer]) for signature in change.signatures]
        keys[change.label] = change.key
        previous_hash = change.hash
    return found
