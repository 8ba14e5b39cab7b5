"""Signature verification: Ed25519, and P-256 for peers that sign with it."""

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.hashes import SHA256
from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey

_P256_UNCOMPRESSED = 0x04
_P256_PUBLIC_SIZE = 65


def verify_ed25519(public: bytes, data: bytes, signature: bytes) -> bool:
    """Whether the 32-byte `public` key made the 64-byte `signature` of `data` (RFC 8032).

    libsodium accepts exactly one encoding of each key and signature. It refuses keys of small order, encodings that are
    not canonical, and signatures with the group order added to the scalar. A wrong size gives False, not an error: all
    arguments come from the peer.
    """
    if len(public) != 32 or len(signature) != 64:
        return False
    try:
        VerifyKey(public).verify(data, signature)
    except BadSignatureError:
        return False
    return True


def verify_p256(public: bytes, data: bytes, signature: bytes) -> bool:
    """Whether `signature` (64 bytes, r || s, low or high s) is an ECDSA signature of SHA-256 of `data` by `public`.

    `public` is the 65-byte uncompressed point (04 || x || y); a point off the curve or a wrong size gives False.
    """
    if len(public) != _P256_PUBLIC_SIZE or public[0] != _P256_UNCOMPRESSED or len(signature) != 64:
        return False
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    try:
        key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), public)
        key.verify(utils.encode_dss_signature(r, s), data, ec.ECDSA(SHA256()))
    except (ValueError, InvalidSignature):
        return False
    return True
