"""Signatures: the good ones verify, and keys or signatures that could be bent do not."""

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from trionode.protocol.identity.keys import KeyKind
from trionode.protocol.identity.signatures import verify_ed25519, verify_p256
from trionode.vault import MemoryVault

ED25519_ORDER = 2**252 + 27742317777372353535851937790883648493
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
DATA = b"what is signed"

VAULT = MemoryVault()
KEY = VAULT.import_secret(KeyKind.ED25519, bytes([1]) * 32)
SIGNATURE = VAULT.sign(KEY, DATA)

SMALL_ORDER = {
    "identity": "01" + "00" * 31,
    "order 2": "ec" + "ff" * 30 + "7f",
    "order 4": "00" * 32,
    "order 4, other sign": "00" * 31 + "80",
    "order 8": "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "order 8, other sign": "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
    "order 8, other": "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "order 8, other, other sign": "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
    "identity as p + 1": "ee" + "ff" * 30 + "7f",
    "identity with a sign": "01" + "00" * 30 + "80",
    "order 4 as p": "ed" + "ff" * 30 + "7f",
    "order 2 with a sign": "ec" + "ff" * 31,
    "2^255 - 1": "ff" * 31 + "7f",
}


def test_a_signature_of_a_vault_verifies() -> None:
    assert verify_ed25519(KEY.public, DATA, SIGNATURE)


@given(st.integers(0, 8 * (32 + 64 + len(DATA)) - 1))
def test_no_bit_of_key_signature_or_data_can_be_flipped(bit: int) -> None:
    bent = bytearray(KEY.public + SIGNATURE + DATA)
    bent[bit // 8] ^= 1 << bit % 8
    assert not verify_ed25519(bytes(bent[:32]), bytes(bent[96:]), bytes(bent[32:96]))


@pytest.mark.parametrize("point", SMALL_ORDER.values(), ids=SMALL_ORDER.keys())
def test_a_key_of_small_order_or_not_canonical_verifies_nothing(point: str) -> None:
    # With S = 0 and R of small order the bare equation holds for one message in at most eight: without the check some
    # would pass.
    for commitment in SMALL_ORDER.values():
        for data in (DATA, *(bytes([number]) for number in range(8))):
            assert not verify_ed25519(bytes.fromhex(point), data, bytes.fromhex(commitment) + bytes(32))


def test_a_signature_moved_by_the_group_order_is_refused() -> None:
    scalar = int.from_bytes(SIGNATURE[32:], "little")
    for times in range(1, 8):
        moved = SIGNATURE[:32] + (scalar + times * ED25519_ORDER).to_bytes(32, "little")
        assert not verify_ed25519(KEY.public, DATA, moved)


@pytest.mark.parametrize(("public", "signature"), [(31, 64), (33, 64), (0, 64), (32, 63), (32, 65), (32, 0)])
def test_wrong_sizes_are_false_and_no_error(public: int, signature: int) -> None:
    assert not verify_ed25519(bytes(public), DATA, bytes(signature))
    assert not verify_p256(bytes(public), DATA, bytes(signature))


P256 = ec.derive_private_key(0x1234_5678_9ABC, ec.SECP256R1())
P256_PUBLIC = P256.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def p256_signature() -> tuple[int, int]:
    return utils.decode_dss_signature(P256.sign(DATA, ec.ECDSA(SHA256())))


def raw(r: int, s: int) -> bytes:
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def test_p256_verifies_with_a_low_and_a_high_s() -> None:
    r, s = p256_signature()
    assert verify_p256(P256_PUBLIC, DATA, raw(r, s))
    assert verify_p256(P256_PUBLIC, DATA, raw(r, P256_ORDER - s))


def test_p256_refuses_changed_signatures() -> None:
    r, s = p256_signature()
    assert not verify_p256(P256_PUBLIC, DATA + b"!", raw(r, s))
    for bad in ((0, s), (r, 0), (0, 0), (P256_ORDER, s), (r, P256_ORDER), (r ^ 1, s), (2**256 - 1, 2**256 - 1)):
        assert not verify_p256(P256_PUBLIC, DATA, raw(*bad))


def test_p256_takes_only_the_uncompressed_point_and_only_on_the_curve() -> None:
    signature = raw(*p256_signature())
    compressed = P256.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    off_the_curve = P256_PUBLIC[:-1] + bytes([P256_PUBLIC[-1] ^ 1])
    hybrid = bytes([6 | P256_PUBLIC[-1] & 1]) + P256_PUBLIC[1:]
    for bad in (compressed, off_the_curve, hybrid, b"\x04" + b"\xff" * 64, b"\x04" + bytes(64), b""):
        assert not verify_p256(bad, DATA, signature)
