import attrs
import pytest

from tests.support.vectors import wire_vectors
from trionode.errors import IdentityError
from trionode.protocol.identity.attestation import CLOCK_SKEW, PurposeKeyAttestation
from trionode.protocol.identity.credential import Credential, PresentedCredential, verify_credential
from trionode.protocol.identity.identity import ChangeHistory, Identifier, create_history, verify_history
from trionode.protocol.identity.keys import KeyHandle, KeyKind
from trionode.protocol.identity.signed import DataKind, Signed
from trionode.protocol.wire import cbor
from trionode.vault.memory import MemoryVault

NOW = 1_700_000_000
PEER = Identifier(bytes(range(32)))


def test_the_result_for_every_credential_vector_is_that_of_the_rust_peer() -> None:
    for vector in wire_vectors("credential_checks.json", "current.credential_check"):
        fields = vector["fields"]
        presented = PresentedCredential.decode(bytes.fromhex(vector["hex"]))
        assert presented.encode().hex() == vector["hex"]
        authority = verify_history(bytes.fromhex(fields["authority_history"]))
        peer = Identifier.parse(fields["peer"])
        if fields["accepted"]:
            credential = verify_credential(presented, peer, [authority], fields["now"])
            attributes = {key.decode(): value.decode() for key, value in credential.attributes.items()}
            assert attributes == fields["attributes"]
            assert str(credential.issuer) == fields["authority"]
            assert str(credential.subject) == fields["subject"]
            assert credential.schema == fields["schema"]
            assert (credential.created_at, credential.expires_at) == (fields["created_at"], fields["expires_at"])
        else:
            with pytest.raises(IdentityError, match="outlives the attestation"):
                verify_credential(presented, peer, [authority], fields["now"])


def test_credential_vectors_decode_and_encode_to_the_same_bytes() -> None:
    for vector in wire_vectors("current_identity_payloads.json", "current.credential"):
        fields = vector["fields"]
        presented = PresentedCredential.decode(bytes.fromhex(vector["hex"]))
        assert presented.encode().hex() == vector["hex"]
        assert str(PurposeKeyAttestation.of(presented.attestation).subject) == fields["issuer"]
        if "issuer_change_history" in fields:
            issuer = verify_history(bytes.fromhex(fields["issuer_change_history"]))
            subject = Identifier.parse(fields["subject"])
            verified = verify_credential(presented, subject, [issuer], fields["created_at"])
            assert {key.decode(): value.decode() for key, value in verified.attributes.items()} == fields["attributes"]


@attrs.frozen
class Authority:
    vault: MemoryVault
    signing: KeyHandle
    issuing: KeyHandle
    history: ChangeHistory

    def attest(self, key: KeyHandle | None = None, created_at: int = NOW, expires_at: int = NOW + 1000) -> Signed:
        key = self.issuing if key is None else key
        return PurposeKeyAttestation.make(
            self.history, self.vault, self.signing, key, created_at=created_at, expires_at=expires_at
        ).signed

    def issue(
        self,
        *,
        subject: cbor.Value = PEER.value,
        attributes: cbor.Value = None,
        created_at: int = NOW + 10,
        expires_at: int = NOW + 500,
        signer: KeyHandle | None = None,
        kind: DataKind = DataKind.CREDENTIAL,
        attestation: Signed | None = None,
    ) -> PresentedCredential:
        attributes = {b"role": b"member"} if attributes is None else attributes
        inner: cbor.Value = [subject, None, [1, attributes], created_at, expires_at]
        signed = Signed.make(kind, inner, self.vault, self.issuing if signer is None else signer)
        return PresentedCredential(signed, self.attest() if attestation is None else attestation)


def authority(seed: int = 1) -> Authority:
    vault = MemoryVault()
    signing, issuing = (vault.import_secret(KeyKind.ED25519, bytes([seed + add]) * 32) for add in (0, 100))
    return Authority(vault, signing, issuing, create_history(vault, signing, NOW))


def check(presented: PresentedCredential, now: int = NOW + 20) -> Credential:
    return verify_credential(presented, PEER, [authority(9).history, authority().history], now)


def test_a_valid_credential_has_attributes_that_are_read_only() -> None:
    credential = check(authority().issue(attributes={b"a": b"", b"b": bytes([255])}))
    assert credential.attributes == {b"a": b"", b"b": bytes([255])}
    assert not hasattr(credential.attributes, "__setitem__")
    assert check(authority().issue(attributes={})).attributes == {}


def test_a_credential_that_breaks_one_rule_is_refused() -> None:
    a = authority()
    unknown = authority(5)
    channel_key = a.vault.generate(KeyKind.X25519)
    broken = {
        "no authority here": unknown.issue(),
        "another identity": a.issue(subject=bytes(32)),
        "not a credential": a.issue(subject=None),
        "older than the attestation": a.issue(created_at=NOW - 1),
        "outlives the attestation": a.issue(expires_at=NOW + 1001),
        "in the future": a.issue(created_at=NOW + 20 + CLOCK_SKEW + 1),
        "credential has expired": a.issue(expires_at=NOW + 20),
        "attestation has expired": a.issue(attestation=a.attest(expires_at=NOW + 20), expires_at=NOW + 20),
        "credential has a bad signature": a.issue(signer=a.signing),
        "secure channel key": a.issue(attestation=a.attest(channel_key)),
        "CREDENTIAL": a.issue(kind=DataKind.ATTESTATION),
    }
    for breach, presented in broken.items():
        with pytest.raises(IdentityError, match=breach):
            check(presented)


@pytest.mark.parametrize(
    "attributes", [{"role": "member"}, {b"role": "member"}, {"role": b"member"}, {1: b"x"}, [], b"", {b"a": [b"b"]}]
)
def test_attributes_that_are_not_byte_strings_are_refused(attributes: cbor.Value) -> None:
    with pytest.raises(IdentityError, match="not a credential"):
        check(authority().issue(attributes=attributes))


def test_a_repeated_attribute_is_refused() -> None:
    a = authority()
    inner = cbor.encode([PEER.value, None, [1, {b"k": b"1", b"l": b"2"}], NOW, NOW + 9]).replace(b"\x41l", b"\x41k")
    data = cbor.encode([1, 3, inner])
    signature = a.vault.sign(a.issuing, Signed.of([data, [0, [bytes(64)]]]).hash)
    with pytest.raises(IdentityError, match="not a credential"):
        check(PresentedCredential(Signed.of([data, [0, [signature]]]), a.attest()))


def test_a_clock_may_be_a_minute_behind() -> None:
    check(authority().issue(created_at=NOW + 20 + CLOCK_SKEW))


def test_invalid_bytes_are_not_a_credential() -> None:
    for data in (b"", b"\x80", b"\x82\x80\x80", bytes(100_000)):
        with pytest.raises(IdentityError):
            PresentedCredential.decode(data)
