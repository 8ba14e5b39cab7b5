from collections.abc import Callable
from hashlib import sha256

import attrs
import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from tests.support.vectors import wire_vectors
from trionode.errors import IdentityError, LocalError
from trionode.protocol.identity import classic_identity
from trionode.protocol.identity.classic_identity import (
    INITIAL_CHANGE,
    ROOT_LABEL,
    ChangeKind,
    Signer,
    create_classic_history,
    verify_classic_history,
)
from trionode.protocol.identity.history import Relation, relation, verify_any_history
from trionode.protocol.identity.identity import MAX_CHANGES, MAX_HISTORY, create_history
from trionode.protocol.identity.keys import KeyHandle, KeyKind
from trionode.protocol.wire import bare
from trionode.vault.memory import MemoryVault

CREATE, ROTATE = ChangeKind.CREATE_KEY, ChangeKind.ROTATE_KEY
ROOT, SELF, PREVIOUS = Signer.ROOT, Signer.SELF, Signer.PREVIOUS
VAULT = MemoryVault()
A, B, C, D = (VAULT.import_secret(KeyKind.ED25519, bytes([seed]) * 32) for seed in range(1, 5))


@attrs.frozen
class Link:
    """A signed change as a test writes it, right or wrong."""

    kind: int
    key: KeyHandle
    signers: tuple[tuple[Signer | int, KeyHandle], ...]
    previous: bytes = INITIAL_CHANGE
    label: str = ROOT_LABEL
    types: tuple[int, int] = (3, 3)
    persistence: int = 1
    length: int = 32
    public: bytes | None = None
    claimed: bytes | None = None
    signature_size: int = 64

    @property
    def body(self) -> bytes:
        """What is hashed."""
        before, after = self.types
        public = self.key.public if self.public is None else self.public
        return (
            bare.uint(self.kind)
            + self.previous
            + bare.string(self.label)
            + bare.uint(before)
            + bare.uint(self.persistence)
            + bare.u32(self.length)
            + bare.data(public)
            + bare.uint(after)
        )

    @property
    def hash(self) -> bytes:
        """The change_id."""
        return sha256(self.body).digest()

    def encode(self) -> bytes:
        """The signed change on the wire."""
        signatures = [
            bare.uint(signer) + bare.data(VAULT.sign(key, self.hash)[: self.signature_size])
            for signer, key in self.signers
        ]
        claimed = self.hash if self.claimed is None else self.claimed
        return claimed + self.body + bare.uint(len(signatures)) + b"".join(signatures)


def history(*links: Link) -> bytes:
    return bare.uint(len(links)) + b"".join(link.encode() for link in links)


FIRST = Link(CREATE, A, ((SELF, A),))
#: Good second changes: a key of another label, a new root key.
CREATED = Link(CREATE, B, ((SELF, B), (ROOT, A)), FIRST.hash, label="other")
ROTATED = Link(ROTATE, B, ((SELF, B), (ROOT, A), (PREVIOUS, A)), FIRST.hash)
#: Good third changes, behind CREATED: the key of the other label, and behind ROTATED: the root key once more.
OTHER_ROTATED = Link(ROTATE, C, ((PREVIOUS, B), (ROOT, A), (SELF, C)), CREATED.hash, label="other")
ROTATED_AGAIN = Link(ROTATE, C, ((ROOT, B), (SELF, C), (PREVIOUS, B)), ROTATED.hash)


def test_every_vector_verifies_and_encodes_to_the_same_bytes() -> None:
    for vector in wire_vectors("classic_identities.json", "classic.identity"):
        encoded, fields = bytes.fromhex(vector["hex"]), vector["fields"]
        read = verify_classic_history(encoded)
        assert verify_any_history(encoded) == read
        assert read.encoded == encoded
        assert read.export() == vector["hex"]
        assert str(read.identifier) == fields["identifier"]
        assert read.root_key.hex() == fields["signing_key"]
        for change, expected in zip(read.changes, fields["changes"], strict=True):
            assert change.kind is {"CreateKey": CREATE, "RotateKey": ROTATE}[expected["kind"]]
            assert change.hash.hex() == expected["change_id"]
            assert change.previous_hash.hex() == expected["previous_change_id"]
            assert change.label == expected["label"]
            assert change.key.hex() == expected["public_key"]
            signatures = [("prev" if s.signer is PREVIOUS else s.signer.name.lower(), s) for s in change.signatures]
            assert [(kind, s.value.hex()) for kind, s in signatures] == [
                (each["kind"], each["signature"]) for each in expected["signatures"]
            ]


def test_histories_of_known_seeds_are_made_byte_for_byte() -> None:
    for vector in wire_vectors("classic_identities.json", "classic.identity"):
        seeds, vault = vector["fields"].get("ed25519_seeds", []), MemoryVault()
        if len(seeds) == 1:
            key = vault.import_secret(KeyKind.ED25519, bytes.fromhex(seeds[0]))
            assert create_classic_history(vault, key).encoded.hex() == vector["hex"]


def test_a_new_identity_is_one_change_that_verifies() -> None:
    made = create_classic_history(VAULT, A)
    assert made.encoded == history(FIRST)
    assert len(made.encoded) == 182
    assert verify_classic_history(made.encoded) == made
    assert made.identifier.value == sha256(A.public).digest()
    with pytest.raises(LocalError, match="Ed25519"):
        create_classic_history(VAULT, VAULT.generate(KeyKind.X25519))


@pytest.mark.parametrize(
    ("links", "root"),
    [
        ((FIRST,), A),
        ((FIRST, CREATED), A),
        ((FIRST, CREATED, OTHER_ROTATED), A),
        ((FIRST, ROTATED), B),
        ((FIRST, ROTATED, ROTATED_AGAIN), C),
        ((evolve(FIRST, persistence=0),), A),
    ],
)
def test_the_newest_root_key_signs_and_the_first_gives_the_identifier(links: tuple[Link, ...], root: KeyHandle) -> None:
    read = verify_classic_history(history(*links))
    assert read.root_key == root.public
    assert read.identifier == create_classic_history(VAULT, A).identifier
    assert [change.hash for change in read.changes] == [link.hash for link in links]


@pytest.mark.parametrize(
    ("encoded", "reason"),
    [
        (b"", "not a classic history"),
        (history(), "1 to 64 changes"),
        (history(*[FIRST] * (MAX_CHANGES + 1)), "1 to 64 changes"),
        (history(FIRST) + b"\x00", "behind the value"),
        (b"\x81\x00" + history(FIRST)[1:], "1 to 64 changes"),
        (b"\x02" + history(FIRST)[1:], "not a classic history"),
        (history(evolve(FIRST, claimed=bytes(32))), "id is not its hash"),
        (history(evolve(FIRST, previous=bytes(32))), "does not name the change before"),
        (history(evolve(FIRST, label="other")), "must create the key OCKAM_RK"),
        (history(evolve(FIRST, kind=ROTATE)), "rotates one that does not"),
        (history(evolve(FIRST, kind=2)), "variant 2"),
        (history(evolve(FIRST, persistence=2)), "variant 2"),
        (history(evolve(FIRST, types=(2, 2))), "of type X25519"),
        (history(evolve(FIRST, types=(3, 4))), "of type P-256"),
        (history(evolve(FIRST, types=(4, 3))), "of type P-256"),
        (history(evolve(FIRST, types=(0, 3))), "of type Buffer"),
        (history(evolve(FIRST, types=(5, 3))), "variant 5"),
        (history(evolve(FIRST, length=33)), "declares 33"),
        (history(evolve(FIRST, public=A.public[:31])), "this one has 31"),
        (history(evolve(FIRST, public=B.public)), "not signed by its SELF key"),
        (history(evolve(FIRST, signature_size=63)), "64 bytes, this one 63"),
        (history(evolve(FIRST, signers=())), "exactly one signature by each of SELF"),
        (history(evolve(FIRST, signers=((SELF, B),))), "not signed by its SELF key"),
        (history(evolve(FIRST, signers=((ROOT, A),))), "exactly one signature by each of SELF"),
        (history(evolve(FIRST, signers=((SELF, A), (SELF, A)))), "exactly one signature by each of SELF"),
        (history(evolve(FIRST, signers=((SELF, A), (ROOT, A)))), "exactly one signature by each of SELF"),
        (history(evolve(FIRST, signers=((SELF, A),) * 4)), "at most 3 signatures"),
        (history(evolve(FIRST, signers=((3, A),))), "variant 3"),
        (history(FIRST, FIRST), "does not name the change before"),
        (history(FIRST, evolve(CREATED, previous=bytes(32))), "does not name the change before"),
        (history(FIRST, CREATED, evolve(OTHER_ROTATED, previous=FIRST.hash)), "does not name the change before"),
        (history(FIRST, evolve(CREATED, label=ROOT_LABEL)), "creates a key that exists"),
        (history(FIRST, evolve(ROTATED, label="other")), "rotates one that does not"),
        (history(FIRST, evolve(CREATED, types=(2, 2))), "of type X25519"),
        (history(FIRST, evolve(CREATED, signers=((SELF, B),))), "exactly one signature by each of SELF, ROOT"),
        (history(FIRST, evolve(CREATED, signers=((ROOT, A),))), "exactly one signature by each of SELF, ROOT"),
        (
            history(FIRST, evolve(CREATED, signers=((SELF, B), (PREVIOUS, A)))),
            "exactly one signature by each of SELF, ROOT",
        ),
        (
            history(FIRST, evolve(CREATED, signers=(*CREATED.signers, (PREVIOUS, A)))),
            "exactly one signature by each of SELF, ROOT",
        ),
        (history(FIRST, evolve(CREATED, signers=((SELF, B), (ROOT, B)))), "not signed by its ROOT key"),
        (history(FIRST, evolve(CREATED, signers=((SELF, A), (ROOT, A)))), "not signed by its SELF key"),
        (
            history(FIRST, evolve(ROTATED, signers=((SELF, B), (ROOT, A)))),
            "exactly one signature by each of SELF, ROOT, PREVIOUS",
        ),
        (
            history(FIRST, evolve(ROTATED, signers=((SELF, B), (PREVIOUS, A)))),
            "exactly one signature by each of SELF, ROOT, PREVIOUS",
        ),
        (
            history(FIRST, evolve(ROTATED, signers=((ROOT, A), (PREVIOUS, A)))),
            "exactly one signature by each of SELF, ROOT, PREVIOUS",
        ),
        (history(FIRST, evolve(ROTATED, signers=((SELF, B), (ROOT, A), (ROOT, A)))), "exactly one signature by each"),
        (history(FIRST, evolve(ROTATED, signers=(*ROTATED.signers, (PREVIOUS, A)))), "at most 3 signatures"),
        (history(FIRST, evolve(ROTATED, signers=((SELF, B), (ROOT, B), (PREVIOUS, A)))), "by its ROOT key"),
        (history(FIRST, evolve(ROTATED, signers=((SELF, B), (ROOT, A), (PREVIOUS, B)))), "by its PREVIOUS key"),
        (history(FIRST, evolve(ROTATED, signers=((SELF, A), (ROOT, A), (PREVIOUS, A)))), "by its SELF key"),
        (
            history(FIRST, CREATED, evolve(OTHER_ROTATED, signers=((SELF, C), (ROOT, B), (PREVIOUS, B)))),
            "by its ROOT key",
        ),
        (
            history(FIRST, CREATED, evolve(OTHER_ROTATED, signers=((SELF, C), (ROOT, A), (PREVIOUS, A)))),
            "by its PREVIOUS key",
        ),
        (
            history(FIRST, ROTATED, evolve(ROTATED_AGAIN, signers=((SELF, C), (ROOT, A), (PREVIOUS, A)))),
            "by its ROOT key",
        ),
    ],
)
def test_a_history_that_breaks_one_rule_is_refused(encoded: bytes, reason: str) -> None:
    with pytest.raises(IdentityError, match=reason):
        verify_classic_history(encoded)


def test_any_flipped_bit_is_refused() -> None:
    whole = history(FIRST, CREATED, OTHER_ROTATED)
    for position in range(len(whole) * 8):
        changed = bytearray(whole)
        changed[position // 8] ^= 1 << position % 8
        with pytest.raises(IdentityError):
            verify_classic_history(bytes(changed))


def test_every_truncation_is_refused() -> None:
    whole = history(FIRST, ROTATED)
    for length in range(len(whole)):
        with pytest.raises(IdentityError):
            verify_classic_history(whole[:length])


@given(st.binary(max_size=300) | st.binary(max_size=100).map(lambda tail: history(FIRST, ROTATED)[:-50] + tail))
def test_arbitrary_bytes_raise_only_identity_error(data: bytes) -> None:
    for read in (verify_classic_history, verify_any_history):
        with pytest.raises(IdentityError):
            read(data)


def test_a_longer_form_of_a_length_is_another_change_and_is_not_rewritten() -> None:
    label = bare.string(ROOT_LABEL)
    body = FIRST.body.replace(label, b"\x88\x00" + label[1:])
    digest = sha256(body).digest()
    signature = bare.uint(SELF) + bare.data(VAULT.sign(A, digest))
    encoded = b"\x01" + digest + body + b"\x01" + signature
    read = verify_classic_history(encoded)
    assert read.encoded == encoded
    assert relation(create_classic_history(VAULT, A), read) is Relation.CONFLICTING


def test_no_signature_is_checked_for_an_inconsistent_history(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: bytes) -> bool:
        raise AssertionError("a signature was checked")

    monkeypatch.setattr(classic_identity, "verify_ed25519", never)
    with pytest.raises(IdentityError, match="change 2 does not name"):
        verify_classic_history(history(FIRST, ROTATED, evolve(ROTATED_AGAIN, previous=FIRST.hash)))


def chain(length: int) -> list[Link]:
    links = [FIRST]
    keys = [A]
    for number in range(1, length):
        old, new = keys[-1], VAULT.import_secret(KeyKind.ED25519, number.to_bytes(32, "big"))
        links.append(Link(ROTATE, new, ((SELF, new), (ROOT, old), (PREVIOUS, old)), links[-1].hash))
        keys.append(new)
    return links


def test_the_largest_allowed_number_of_changes_is_accepted() -> None:
    full = history(*chain(MAX_CHANGES))
    assert len(full) <= MAX_HISTORY
    assert len(verify_classic_history(full).changes) == MAX_CHANGES
    with pytest.raises(IdentityError, match="at most"):
        verify_classic_history(bytes(MAX_HISTORY + 1))


@pytest.mark.parametrize(
    ("known", "presented", "expected"),
    [
        (lambda: history(FIRST), lambda: history(FIRST), Relation.SAME),
        (lambda: history(FIRST), lambda: history(FIRST, ROTATED), Relation.NEWER),
        (lambda: history(FIRST, ROTATED), lambda: history(FIRST), Relation.OLDER),
        (lambda: history(FIRST, ROTATED), lambda: history(FIRST, CREATED), Relation.CONFLICTING),
        (lambda: history(FIRST), lambda: history(evolve(FIRST, persistence=0)), Relation.CONFLICTING),
        (lambda: history(FIRST), lambda: create_history(VAULT, A, 1).encoded, Relation.CONFLICTING),
    ],
)
def test_histories_are_the_same_newer_older_or_conflicting(
    known: Callable[[], bytes], presented: Callable[[], bytes], expected: Relation
) -> None:
    assert relation(verify_any_history(known()), verify_any_history(presented())) is expected
