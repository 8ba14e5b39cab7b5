from collections.abc import Callable
from hashlib import sha256
from itertools import pairwise

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from tests.support.vectors import wire_vectors
from trionode.errors import IdentityError, LocalError, WireError
from trionode.protocol.identity import identity
from trionode.protocol.identity.attestation import CLOCK_SKEW, PurposeKeyAttestation
from trionode.protocol.identity.history import Relation, relation, verify_any_history
from trionode.protocol.identity.identity import (
    IDENTITY_LIFETIME,
    MAX_CHANGES,
    MAX_HISTORY,
    ChangeHistory,
    Identifier,
    create_history,
    import_history,
    rotate,
    verify_history,
)
from trionode.protocol.identity.keys import KeyHandle, KeyKind
from trionode.protocol.identity.payload import MAX_CREDENTIALS, MAX_PAYLOAD, IdentityPayload
from trionode.protocol.identity.signed import DataKind, PublicKey, Signature, SignatureKind, Signed
from trionode.protocol.wire import cbor
from trionode.vault.memory import MemoryVault

NOW = 1_700_000_000


def key(vault: MemoryVault, seed: int) -> KeyHandle:
    return vault.import_secret(KeyKind.ED25519, bytes([seed]) * 32)


def channel_key(vault: MemoryVault, seed: int) -> KeyHandle:
    return vault.import_secret(KeyKind.X25519, bytes([seed]) * 32)


# Identifiers


def test_the_text_of_an_identifier_parses_to_it() -> None:
    identifier = Identifier(bytes(range(32)))
    assert str(identifier) == "I" + bytes(range(32)).hex()
    assert Identifier.parse(str(identifier)) == identifier


def test_a_classic_identifier_has_another_letter_and_is_never_equal() -> None:
    current, classic = Identifier(bytes(range(32))), Identifier(bytes(range(32)), classic=True)
    assert str(classic) == "P" + bytes(range(32)).hex()
    assert Identifier.parse(str(classic)) == classic
    assert Identifier.parse(str(classic).upper()) == classic
    assert current != classic
    assert len({current, classic}) == 2


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I",
        "P" + "0" * 63,
        "i" + "0" * 64,
        "p" + "0" * 64,
        "Q" + "0" * 64,
        "I" + "0" * 63,
        "I" + "0" * 65,
        "I" + "g" * 64,
        " I" + "0" * 64,
        "I" + "0 " * 32,
        "I" + "0" * 64 + "\n",
    ],
)
def test_an_invalid_identifier_raises_an_error_that_says_what_was_expected(text: str) -> None:
    with pytest.raises(IdentityError, match="I and 64 hex digits, or P and 64 hex digits"):
        Identifier.parse(text)


@given(st.text())
def test_arbitrary_text_raises_only_identity_error(text: str) -> None:
    with pytest.raises(IdentityError) as raised:
        Identifier.parse(text)
    assert len(str(raised.value)) < 2000


# Histories


def test_every_history_vector_verifies_and_encodes_to_the_same_bytes() -> None:
    for vector in wire_vectors("current_identities.json", "current.identity"):
        encoded, fields = bytes.fromhex(vector["hex"]), vector["fields"]
        history = verify_history(encoded)
        assert history.encoded == encoded
        assert verify_any_history(encoded) == history
        assert str(history.identifier) == fields["identifier"]
        for change, expected in zip(history.changes, fields["changes"], strict=True):
            assert change.key.kind.name.lower() == expected["key_type"]
            assert change.key.value.hex() == expected["public_key"]
            assert (change.previous_hash and change.previous_hash.hex()) == expected["previous_change_hash"]
            assert change.revoke_all_purpose_keys == expected["revoke_all_purpose_keys"]
            assert (change.created_at, change.expires_at) == (expected["created_at"], expected["expires_at"])
            assert change.hash.hex() == expected["change_hash"]
            assert change.signed.signature.value.hex() == expected["signature"]
            previous = change.previous_signature
            assert (previous and previous.value.hex()) == expected.get("previous_signature")


def test_histories_of_known_seeds_are_made_byte_for_byte() -> None:
    for vector in wire_vectors("current_identities.json", "current.identity"):
        fields, vault = vector["fields"], MemoryVault()
        seeds = fields.get("ed25519_seeds", [fields[name] for name in ("ed25519_seed",) if name in fields])
        if not seeds:
            continue
        keys = [vault.import_secret(KeyKind.ED25519, bytes.fromhex(seed)) for seed in seeds]
        first, *later = fields["changes"]
        history = create_history(vault, keys[0], first["created_at"], first["expires_at"])
        for change, old, new in zip(later, keys, keys[1:], strict=False):
            revoke = change["revoke_all_purpose_keys"]
            history = rotate(
                history,
                vault,
                old,
                new,
                change["created_at"],
                revoke_purpose_keys=revoke,
                expires_at=change["expires_at"],
            )
        assert history.encoded.hex() == vector["hex"]


def test_any_flipped_bit_of_a_history_is_refused() -> None:
    vault = MemoryVault()
    history = rotated(vault, 2)
    for position in range(len(history.encoded) * 8):
        changed = bytearray(history.encoded)
        changed[position // 8] ^= 1 << position % 8
        with pytest.raises(IdentityError):
            verify_history(bytes(changed))


def rotated(vault: MemoryVault, changes: int, seed: int = 1, *, revoke: bool = False) -> ChangeHistory:
    keys = [key(vault, seed + number) for number in range(changes)]
    history = create_history(vault, keys[0], NOW)
    for number, (old, new) in enumerate(pairwise(keys), 1):
        history = rotate(history, vault, old, new, NOW + number, revoke_purpose_keys=revoke)
    return history


def test_a_new_identity_lasts_ten_years() -> None:
    vault = MemoryVault()
    assert create_history(vault, key(vault, 1), NOW).latest.expires_at == NOW + IDENTITY_LIFETIME


@pytest.mark.parametrize("revoke", [False, True])
def test_a_rotated_history_keeps_the_identifier_and_round_trips(revoke: bool) -> None:
    vault = MemoryVault()
    before, after = rotated(vault, 1), rotated(vault, 3, revoke=revoke)
    again = verify_history(after.encoded)
    assert again == after
    assert again.identifier == before.identifier
    assert again.latest.revoke_all_purpose_keys is revoke
    assert import_history(after.export()) == after


@pytest.mark.parametrize("text", ["", "0", "zz", "80", "8180", "ff" * 10, "81" * 40])
def test_an_invalid_exported_history_is_refused(text: str) -> None:
    with pytest.raises(IdentityError):
        import_history(text)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_raise_only_identity_error(data: bytes) -> None:
    for read in (verify_history, IdentityPayload.decode):
        with pytest.raises(IdentityError):
            read(data)


def test_rotation_needs_the_latest_key_and_a_clock_that_goes_forward() -> None:
    vault = MemoryVault()
    history = rotated(vault, 2)
    with pytest.raises(LocalError, match="not the latest key"):
        rotate(history, vault, key(vault, 1), key(vault, 9), NOW + 5)
    with pytest.raises(LocalError, match="set the clock"):
        rotate(history, vault, key(vault, 2), key(vault, 9), NOW)
    with pytest.raises(LocalError, match="Ed25519"):
        rotate(history, vault, key(vault, 2), channel_key(vault, 9), NOW + 5)


def test_a_full_history_is_accepted_but_not_rotated() -> None:
    vault = MemoryVault()
    history = rotated(vault, MAX_CHANGES)
    assert verify_history(history.encoded) == history
    assert len(history.encoded) <= MAX_HISTORY
    with pytest.raises(LocalError, match="full"):
        rotate(history, vault, key(vault, MAX_CHANGES), key(vault, 99), NOW + 1000)


def link(
    vault: MemoryVault,
    signer: KeyHandle,
    previous: bytes | None,
    by: KeyHandle | None,
    *,
    claimed: KeyHandle | None = None,
    created_at: int = NOW,
    kind: DataKind = DataKind.CHANGE,
    version: int = 1,
) -> cbor.Value:
    public = PublicKey(SignatureKind.ED25519, (claimed or signer).public)
    data = cbor.encode([version, int(kind), cbor.encode([previous, public.item, False, created_at, NOW + 1000])])
    digest = sha256(data).digest()
    signatures: list[cbor.Value] = [[0, [vault.sign(each, digest)]] for each in (signer, by) if each is not None]
    return [data, *signatures]


def hash_of(change: cbor.Value) -> bytes:
    assert isinstance(change, list)
    assert isinstance(change[0], bytes)
    return sha256(change[0]).digest()


@pytest.mark.parametrize(
    "make",
    [
        lambda v, a, b, first: [],
        lambda v, a, b, first: [link(v, a, bytes(32), None)],
        lambda v, a, b, first: [link(v, a, None, b)],
        lambda v, a, b, first: [link(v, a, None, None, claimed=b)],
        lambda v, a, b, first: [link(v, a, None, None, kind=DataKind.ATTESTATION)],
        lambda v, a, b, first: [link(v, a, None, None, version=2)],
        lambda v, a, b, first: [first, link(v, b, hash_of(first), None)],
        lambda v, a, b, first: [first, link(v, b, hash_of(first), b)],
        lambda v, a, b, first: [first, link(v, a, hash_of(first), a, claimed=b)],
        lambda v, a, b, first: [first, link(v, b, None, a)],
        lambda v, a, b, first: [first, link(v, b, bytes(32), a)],
        lambda v, a, b, first: [first, link(v, b, hash_of(first), a, created_at=NOW - 1)],
        lambda v, a, b, first: [first, first],
        lambda v, a, b, first: [first] * (MAX_CHANGES + 1),
    ],
    ids=[
        "no change",
        "first with a previous hash",
        "first with a previous signature",
        "not signed by its own key",
        "other kind of data",
        "other version",
        "previous signature missing",
        "previous signature by the new key",
        "new key did not sign",
        "previous hash missing",
        "previous hash wrong",
        "time goes back",
        "first change twice",
        "too many changes",
    ],
)
def test_a_history_that_breaks_one_rule_is_refused(make: Callable[..., list[cbor.Value]]) -> None:
    vault = MemoryVault()
    a, b = key(vault, 1), key(vault, 2)
    first = link(vault, a, None, None)
    verify_history(cbor.encode([first, link(vault, b, hash_of(first), a)]))
    with pytest.raises(IdentityError):
        verify_history(cbor.encode(make(vault, a, b, first)))


def test_further_items_and_an_explicit_null_are_accepted() -> None:
    vault = MemoryVault()
    first = link(vault, key(vault, 1), None, None)
    assert isinstance(first, list)
    for change in ([*first, None], [*first, None, "more", [1]]):
        assert verify_history(cbor.encode([change])).encoded == cbor.encode([first])


def test_a_history_is_refused_before_it_is_read_if_it_is_too_long() -> None:
    with pytest.raises(IdentityError, match="at most"):
        verify_history(bytes(MAX_HISTORY + 1))


def test_p256_identities_are_accepted_with_low_and_high_s_and_nothing_else() -> None:
    secret = ec.derive_private_key(7, ec.SECP256R1())
    public = secret.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    data = cbor.encode([1, 1, cbor.encode([None, [1, [public]], False, NOW, NOW + 1000])])
    r, s = decode_dss_signature(secret.sign(sha256(data).digest(), ec.ECDSA(SHA256())))
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    for each in (s, order - s):
        signature: cbor.Value = [1, [r.to_bytes(32, "big") + each.to_bytes(32, "big")]]
        assert verify_history(cbor.encode([[data, signature]])).latest.key.kind is SignatureKind.P256
        with pytest.raises(IdentityError):
            verify_history(cbor.encode([[data, [0, [bytes(64)]]]]))
    with pytest.raises(IdentityError):
        verify_history(cbor.encode([[data, [1, [bytes(64)]]]]))


def test_histories_of_one_identifier_are_the_same_newer_older_or_conflicting() -> None:
    vault = MemoryVault()
    one, two, three = rotated(vault, 1), rotated(vault, 2), rotated(vault, 3)
    fork = rotate(one, vault, key(vault, 1), key(vault, 7), NOW + 1)
    other = rotated(vault, 1, seed=20)
    assert relation(two, rotated(vault, 2)) is Relation.SAME
    assert relation(one, three) is Relation.NEWER
    assert relation(three, two) is Relation.OLDER
    assert relation(two, fork) is Relation.CONFLICTING
    assert relation(fork, three) is Relation.CONFLICTING
    assert relation(one, other) is Relation.CONFLICTING


# Attestations


def attest(
    vault: MemoryVault, history: ChangeHistory, signer: int, created_at: int = NOW + 10, expires_at: int = NOW + 500
) -> PurposeKeyAttestation:
    return PurposeKeyAttestation.make(
        history, vault, key(vault, signer), channel_key(vault, 77), created_at=created_at, expires_at=expires_at
    )


def test_an_attestation_verifies_until_it_expires() -> None:
    vault = MemoryVault()
    history = rotated(vault, 2)
    attestation = attest(vault, history, 2)
    assert attestation.key == channel_key(vault, 77).public
    attestation.verify(history, NOW + 10)
    attestation.verify(history, NOW + 499)
    with pytest.raises(IdentityError, match="expired"):
        attestation.verify(history, NOW + 500)


def test_a_clock_may_be_a_minute_behind_and_no_more() -> None:
    vault = MemoryVault()
    history = rotated(vault, 1)
    attestation = attest(vault, history, 1, created_at=NOW + 100)
    assert CLOCK_SKEW == 60  # README promises it
    attestation.verify(history, NOW + 100 - CLOCK_SKEW)
    with pytest.raises(IdentityError, match="future"):
        attestation.verify(history, NOW + 100 - CLOCK_SKEW - 1)


def test_an_attestation_that_breaks_one_rule_is_refused() -> None:
    vault = MemoryVault()
    old, new, other = rotated(vault, 1), rotated(vault, 2), rotated(vault, 1, seed=20)
    good = attest(vault, new, 2)
    item: cbor.Value = [0, [channel_key(vault, 77).public]]
    inner: cbor.Value = [new.identifier.value, new.latest.hash, item, NOW + 10, NOW + 500]
    broken = {
        "another identity": (other, good),
        "latest key": (new, attest(vault, old, 1)),
        "before the key that signed": (new, attest(vault, new, 2, created_at=NOW)),
        "expires after the key": (new, attest(vault, new, 2, expires_at=NOW + 2 + IDENTITY_LIFETIME)),
        "bad signature": (
            new,
            PurposeKeyAttestation.of(Signed.make(DataKind.ATTESTATION, inner, vault, key(vault, 1))),
        ),
    }
    for breach, (history, attestation) in broken.items():
        with pytest.raises(IdentityError, match=breach):
            attestation.verify(history, NOW + 20)


def test_only_the_latest_key_attests() -> None:
    vault = MemoryVault()
    with pytest.raises(LocalError, match="latest key"):
        attest(vault, rotated(vault, 2), 1)


def test_signed_data_of_another_kind_is_no_attestation() -> None:
    vault = MemoryVault()
    history = rotated(vault, 1)
    inner: cbor.Value = [history.identifier.value, history.latest.hash, [0, [bytes(32)]], NOW, NOW + 500]
    for kind in (DataKind.CHANGE, DataKind.CREDENTIAL):
        with pytest.raises(IdentityError):
            PurposeKeyAttestation.of(Signed.make(kind, inner, vault, key(vault, 1)))


@pytest.mark.parametrize(
    "purpose", [[0, [bytes(31)]], [2, [bytes(32)]], [1, [bytes(32)]], [1, [[0, [bytes(33)]]]], [1, [[2, [bytes(32)]]]]]
)
def test_purpose_keys_of_unknown_kinds_or_sizes_are_refused(purpose: cbor.Value) -> None:
    vault = MemoryVault()
    history = rotated(vault, 1)
    inner: cbor.Value = [history.identifier.value, history.latest.hash, purpose, NOW, NOW + 500]
    payload = cbor.encode([history.item, Signed.make(DataKind.ATTESTATION, inner, vault, key(vault, 1)).item, []])
    with pytest.raises(IdentityError):
        IdentityPayload.decode(payload)


# Identity payloads


def test_every_payload_vector_decodes_verifies_and_encodes_to_the_same_bytes() -> None:
    for vector in wire_vectors("current_identity_payloads.json", "current.identity_payload"):
        encoded, fields = bytes.fromhex(vector["hex"]), vector["fields"]
        payload = IdentityPayload.decode(encoded)
        assert payload.encode() == encoded
        attestation = payload.attestation
        assert str(payload.history.identifier) == str(attestation.subject) == fields["identifier"]
        assert attestation.subject_latest_change_hash.hex() == fields["subject_latest_change_hash"]
        assert attestation.key == bytes.fromhex(fields["secure_channel_key"])
        assert attestation.created_at == fields["attestation_created_at"]
        assert attestation.expires_at == fields["attestation_expires_at"]
        assert len(payload.credentials) == fields["credentials"]
        payload.verify(bytes.fromhex(fields["secure_channel_key"]), fields["attestation_created_at"])
        with pytest.raises(IdentityError, match="not the key of this handshake"):
            payload.verify(bytes(32), fields["attestation_created_at"])


def test_a_payload_with_too_many_or_malformed_credentials_is_refused() -> None:
    vault = MemoryVault()
    history = rotated(vault, 1)
    signed = attest(vault, history, 1).signed.item
    credential: cbor.Value = [signed, signed]
    full = IdentityPayload.decode(cbor.encode([history.item, signed, [credential] * MAX_CREDENTIALS]))
    assert len(full.credentials) == MAX_CREDENTIALS
    refused: tuple[cbor.Value, ...] = (
        [credential] * (MAX_CREDENTIALS + 1),
        [signed],
        [[signed]],
        [[b"", signed]],
        None,
        {},
        b"",
    )
    for credentials in refused:
        with pytest.raises(IdentityError):
            IdentityPayload.decode(cbor.encode([history.item, signed, credentials]))


def test_a_payload_is_refused_before_it_is_read_if_it_is_too_long() -> None:
    with pytest.raises(IdentityError, match="at most"):
        IdentityPayload.decode(bytes(MAX_PAYLOAD + 1))


def test_a_signing_key_is_no_channel_key() -> None:
    vault = MemoryVault()
    history = rotated(vault, 1)
    attestation = PurposeKeyAttestation.make(
        history, vault, key(vault, 1), key(vault, 5), created_at=NOW, expires_at=NOW + 500
    )
    payload = IdentityPayload.decode(IdentityPayload(history, attestation).encode())
    with pytest.raises(IdentityError):
        payload.verify(key(vault, 5).public, NOW)


def test_a_signature_of_the_wrong_size_or_kind_is_refused() -> None:
    items: tuple[cbor.Value, ...] = (
        [0, [bytes(63)]],
        [0, [bytes(65)]],
        [2, [bytes(64)]],
        [0, ["x" * 64]],
        [True, [bytes(64)]],
    )
    for item in items:
        with pytest.raises((IdentityError, WireError)):
            Signature.of(item)


def test_a_history_with_too_many_changes_is_refused_threat_17(monkeypatch: pytest.MonkeyPatch) -> None:
    vault = MemoryVault()
    history = create_history(vault, key(vault, 1), NOW)
    for seed in (2, 3):
        history = rotate(history, vault, vault.keys()[-1], key(vault, seed), NOW + seed)
    monkeypatch.setattr(identity, "MAX_CHANGES", 3)
    assert verify_history(history.encoded) == history
    monkeypatch.setattr(identity, "MAX_CHANGES", 2)
    with pytest.raises(IdentityError, match="1 to 2 changes"):
        verify_history(history.encoded)


def test_no_signature_of_an_inconsistent_history_is_checked_threat_17(monkeypatch: pytest.MonkeyPatch) -> None:
    vault = MemoryVault()
    history = create_history(vault, key(vault, 1), NOW)
    history = rotate(history, vault, vault.keys()[-1], key(vault, 2), NOW + 2)
    checked: list[bytes] = []
    monkeypatch.setattr(PublicKey, "verifies", lambda _, __, message: checked.append(message))
    with pytest.raises(IdentityError, match="does not name the change before"):
        verify_history(cbor.encode([history.changes[0].item, history.changes[0].item]))
    assert checked == []
