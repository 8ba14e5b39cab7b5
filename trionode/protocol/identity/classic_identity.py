"""Who somebody of the classic generation is: histories of signed key changes, and the identifiers that they prove (spec §9.1)."""

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

#: The label of the key that speaks for the identity.
ROOT_LABEL = "OCKAM_RK"
#: What the first change names as the change before it.
INITIAL_CHANGE = sha256(b"OCKAM_INITIAL_CHANGE").digest()

_HASH_SIZE = 32
_KEY_SIZE = 32
_SIGNATURE_SIZE = 64
_KEY_TYPES = ("Buffer", "AES", "X25519", "Ed25519", "P-256")
_ED25519 = _KEY_TYPES.index("Ed25519")
_PERSISTENCES = 2  # ephemeral, persistent
_PERSISTENT = 1


class ChangeKind(enum.IntEnum):
    """What a change does, by its variant on the wire."""

    CREATE_KEY = 0
    ROTATE_KEY = 1


class Signer(enum.IntEnum):
    """Whose key made a signature of a change, by its variant on the wire: the root key before it, its own, the one of its label before it."""

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
        """Read a signature; nothing is verified yet."""
        signer = Signer(reader.variant(len(Signer)))
        value = reader.data()
        if len(value) != _SIGNATURE_SIZE:
            raise IdentityError(f"a signature has {_SIGNATURE_SIZE} bytes, this one {len(value)}")
        return cls(signer, value)

    def encode(self) -> bytes:
        """What `read` reads."""
        return bare.uint(self.signer) + bare.data(self.value)


@attrs.frozen
class ClassicChange:
    """One change of a classic history: the Ed25519 key that goes by `label` from then on. `hash` is its change_id."""

    kind: ChangeKind
    previous_hash: bytes = attrs.field(repr=False)
    label: str
    key: bytes = attrs.field(repr=bytes.hex)
    hash: bytes = attrs.field(repr=bytes.hex)
    signatures: tuple[ClassicSignature, ...] = attrs.field(repr=False)

    @classmethod
    def read(cls, reader: bare.Reader, encoded: bytes) -> Self:
        """Read a signed change from `encoded`, which the reader reads; its signatures are not verified yet."""
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
            raise IdentityError(f"an Ed25519 key has {_KEY_SIZE} bytes, this one {len(key)} and says {length}")
        # Over the bytes as they came: another encoding of the same change is another change.
        digest = sha256(encoded[start : reader.at]).digest()
        if digest != claimed:
            raise IdentityError("a change whose id is not its hash")
        count = reader.uint()
        if count > len(Signer):
            raise IdentityError(f"a change has at most {len(Signer)} signatures, this one {count}")
        return cls(kind, previous_hash, label, key, digest, tuple(ClassicSignature.read(reader) for _ in range(count)))


@attrs.frozen
class ClassicHistory:
    """All changes of one classic identity, oldest first, and the bytes that say so.

    The functions of this module make one only if it verifies, so to hold one is enough.
    """

    changes: tuple[ClassicChange, ...] = attrs.field(repr=False)
    #: For the wire, as it was received.
    encoded: bytes = attrs.field(repr=False)

    @property
    def identifier(self) -> Identifier:
        """The hash of the first key (spec §9.1): a history that contradicts this one may have the same."""
        return Identifier(sha256(self.changes[0].key).digest(), classic=True)

    @property
    def root_key(self) -> bytes:
        """The 32 bytes of the Ed25519 key that speaks for the identity now."""
        return next(change.key for change in reversed(self.changes) if change.label == ROOT_LABEL)

    def export(self) -> str:
        """Return the history as hex text; it is public."""
        return self.encoded.hex()


def create_classic_history(vault: Vault, key: KeyHandle) -> ClassicHistory:
    """Return the history of a new classic identity whose root key is that Ed25519 key; LocalError for a key of another kind."""
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
    """Return the history in these bytes, if every rule of spec §9.1 holds; IdentityError otherwise.

    Keys of other types than Ed25519 are refused, in whatever change they stand.
    """
    if len(encoded) > MAX_HISTORY:
        raise IdentityError(f"a history has at most {MAX_HISTORY} bytes, this one {len(encoded)}")
    try:
        changes = _read_changes(encoded)
    except WireError as error:
        raise IdentityError(f"not a classic history: {error}") from error
    # What costs nothing comes first: a stranger gets no signature checked for a history that doesn't hang together.
    for number, change, signature, key in _to_verify(changes):
        if not verify_ed25519(key, change.hash, signature.value):
            raise IdentityError(f"change {number} is not signed by its {signature.signer.name} key")
    return ClassicHistory(changes, encoded)


def _read_changes(encoded: bytes) -> tuple[ClassicChange, ...]:
    reader = bare.Reader(encoded)
    # One byte is enough for MAX_CHANGES, and a longer form of the count could begin like a history of the current generation.
    count = reader.u8()
    if not 0 < count <= MAX_CHANGES:
        raise IdentityError(f"a history has 1 to {MAX_CHANGES} changes, this one {count}")
    changes = tuple(ClassicChange.read(reader, encoded) for _ in range(count))
    reader.end()
    return changes


def _require_ed25519(reader: bare.Reader) -> None:
    kind = reader.variant(len(_KEY_TYPES))
    if kind != _ED25519:
        raise IdentityError(f"keys of classic identities are Ed25519 here, this one is of type {_KEY_TYPES[kind]}")


def _to_verify(changes: tuple[ClassicChange, ...]) -> list[tuple[int, ClassicChange, ClassicSignature, bytes]]:
    """Return every signature with its change and the key that must have made it; IdentityError if the changes don't hang together."""
    found: list[tuple[int, ClassicChange, ClassicSignature, bytes]] = []
    keys: dict[str, bytes] = {}
    previous_hash = INITIAL_CHANGE
    for number, change in enumerate(changes):
        if change.previous_hash != previous_hash:
            raise IdentityError(f"change {number} does not name the change before it")
        if number == 0 and change.label != ROOT_LABEL:
            raise IdentityError(f"change 0 makes another key than {ROOT_LABEL}")
        if (change.kind is ChangeKind.CREATE_KEY) is (change.label in keys):
            raise IdentityError(f"change {number} makes a key that is there, or rotates one that is not")
        signers = {Signer.SELF: change.key}
        if number > 0:
            signers[Signer.ROOT] = keys[ROOT_LABEL]
        if change.kind is ChangeKind.ROTATE_KEY:
            signers[Signer.PREVIOUS] = keys[change.label]
        if sorted(signature.signer for signature in change.signatures) != sorted(signers):
            names = ", ".join(signer.name for signer in signers)
            raise IdentityError(f"change {number} is not signed once by each of {names}, and by nobody else")
        found += [(number, change, signature, signers[signature.signer]) for signature in change.signatures]
        keys[change.label] = change.key
        previous_hash = change.hash
    return found
