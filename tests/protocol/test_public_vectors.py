"""The public vectors, each file whole: supported ones run, the others are counted by the reason."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import cbor2
import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.support.vectors import load
from trionode.errors import HandshakeError, WireError
from trionode.protocol.handshake.noise import CLASSIC, CipherState, HandshakeState, Role, hkdf
from trionode.protocol.identity.keys import KeyKind
from trionode.protocol.identity.signatures import verify_ed25519
from trionode.protocol.wire.cbor import decode
from trionode.vault import MemoryVault


def wycheproof(name: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield each test with its group."""
    for group in load(name)["testGroups"]:
        for test in group["tests"]:
            yield group, test


def unhex(test: dict[str, Any], *names: str) -> tuple[bytes, ...]:
    return tuple(bytes.fromhex(test[name]) for name in names)


def test_aes_gcm_matches_the_vectors() -> None:
    ran = Counter[str]()
    for group, test in wycheproof("aes_gcm_test.json"):
        if (group["keySize"], group["ivSize"], group["tagSize"]) != (256, 96, 128):
            ran["another size of key or nonce: neither Noise nor a session has one"] += 1
            continue
        key, iv, associated, plaintext, ciphertext, tag = unhex(test, "key", "iv", "aad", "msg", "ct", "tag")
        cipher = AESGCM(key)  # what sessions and cipher states seal with
        ran[test["result"]] += 1
        if test["result"] == "valid":
            assert cipher.encrypt(iv, plaintext, associated) == ciphertext + tag
            assert cipher.decrypt(iv, ciphertext + tag, associated) == plaintext
        else:
            with pytest.raises(InvalidTag):
                cipher.decrypt(iv, ciphertext + tag, associated)
        if iv.startswith(bytes(4)) and test["result"] == "valid":
            ran["also through a cipher state"] += 1
            state = CipherState(key, int.from_bytes(iv[4:], "big"))
            assert state.encrypt(associated, plaintext)[1] == ciphertext + tag
            assert state.decrypt(associated, ciphertext + tag)[1] == plaintext
    assert (ran["valid"], ran["invalid"]) == (39, 27)
    assert ran["another size of key or nonce: neither Noise nor a session has one"] == 250


def test_x25519_agrees_or_refuses_the_all_zero_secret() -> None:
    ran = Counter[str]()
    for _, test in wycheproof("x25519_test.json"):
        secret, public, shared = unhex(test, "private", "public", "shared")
        vault = MemoryVault()
        handle = vault.import_secret(KeyKind.X25519, secret)
        if shared == bytes(32):
            ran["refused"] += 1
            assert "ZeroSharedSecret" in test["flags"]
            with pytest.raises(HandshakeError):
                vault.x25519(handle, public)
        else:
            ran["agreed"] += 1
            assert vault.x25519(handle, public) == shared, test["tcId"]
    assert sum(ran.values()) == 518
    assert ran["refused"] > 0


def test_ed25519_accepts_the_valid_signatures_and_no_other() -> None:
    ran = Counter[bool]()
    for group, test in wycheproof("ed25519_test.json"):
        public, data, signature = bytes.fromhex(group["publicKey"]["pk"]), *unhex(test, "msg", "sig")
        valid = test["result"] == "valid"
        assert verify_ed25519(public, data, signature) is valid, test["tcId"]
        ran[valid] += 1
    assert ran == {True: 88, False: 63}


def test_hkdf_gives_the_two_outputs_that_noise_takes() -> None:
    ran = Counter[str]()
    for _, test in wycheproof("hkdf_sha256_test.json"):
        salt, material, output = unhex(test, "salt", "ikm", "okm")
        if test["info"]:
            ran["has an info, and Noise has none"] += 1
        elif test["size"] > 64:
            ran["has more than two outputs"] += 1
        else:
            ran["ran"] += 1
            assert b"".join(hkdf(salt, material)).startswith(output)
    assert sum(ran.values()) == 86
    assert ran["ran"] == 31


# Why a vector of the cacophony file is not ours to run: we speak one cipher and one hash.
OTHER_SUITES = {
    "Noise_XX_25519_AESGCM_BLAKE2b": "hash",
    "Noise_XX_25519_AESGCM_BLAKE2s": "hash",
    "Noise_XX_25519_AESGCM_SHA512": "hash",
    "Noise_XX_25519_ChaChaPoly_BLAKE2b": "cipher and hash",
    "Noise_XX_25519_ChaChaPoly_BLAKE2s": "cipher and hash",
    "Noise_XX_25519_ChaChaPoly_SHA256": "cipher",
    "Noise_XX_25519_ChaChaPoly_SHA512": "cipher and hash",
}


def cacophony_side(role: Role, static: str, ephemeral: str, prologue: str) -> HandshakeState:
    vault = MemoryVault()
    keys = [vault.import_secret(KeyKind.X25519, bytes.fromhex(secret)) for secret in (static, ephemeral)]
    return HandshakeState(role, vault, keys[0], keys[1], CLASSIC, bytes.fromhex(prologue))


def test_xx_reproduces_the_cacophony_vectors() -> None:
    vectors = {vector["protocol_name"]: vector for vector in load("noise-xx-cacophony.json")["vectors"]}
    ours = vectors.pop(CLASSIC.decode())
    assert vectors.keys() == OTHER_SUITES.keys()
    initiator = cacophony_side(Role.INITIATOR, ours["init_static"], ours["init_ephemeral"], ours["init_prologue"])
    responder = cacophony_side(Role.RESPONDER, ours["resp_static"], ours["resp_ephemeral"], ours["resp_prologue"])
    messages = [unhex(message, "payload", "ciphertext") for message in ours["messages"]]
    for number, (payload, ciphertext) in enumerate(messages[:3]):
        writer, reader = (initiator, responder) if number % 2 == 0 else (responder, initiator)
        assert writer.write_message(payload) == ciphertext
        assert reader.read_message(ciphertext) == payload
    assert initiator.handshake_hash == responder.handshake_hash == bytes.fromhex(ours["handshake_hash"])
    k1, k2 = initiator.split()
    to_responder, to_initiator = CipherState(k1), CipherState(k2)  # as the Noise document has it
    for number, (payload, ciphertext) in enumerate(messages[3:], start=3):
        if number % 2 == 0:
            to_responder, sealed = to_responder.encrypt(b"", payload)
        else:
            to_initiator, sealed = to_initiator.encrypt(b"", payload)
        assert sealed == ciphertext


# RFC 8949 appendix A: everything that is not here is decoded to what the file says.
APPENDIX_A_REFUSED = {
    "5f42010243030405ff": "indefinite length",
    "7f657374726561646d696e67ff": "indefinite length",
    "9fff": "indefinite length",
    "9f018202039f0405ffff": "indefinite length",
    "9f01820203820405ff": "indefinite length",
    "83018202039f0405ff": "indefinite length",
    "83019f0203ff820405": "indefinite length",
    "9f0102030405060708090a0b0c0d0e0f101112131415161718181819ff": "indefinite length",
    "bf61610161629f0203ffff": "indefinite length",
    "826161bf61626163ff": "indefinite length",
    "bf6346756ef563416d7421ff": "indefinite length",
    "f818": "simple values below 32 have no second byte (RFC 8949 §3.3; the file is of RFC 7049)",
}
APPENDIX_A_UNDEFINED = {
    "c249010000000000000000": "tag: bignum",
    "c349010000000000000000": "tag: bignum",
    "c074323031332d30332d32315432303a30343a30305a": "tag: time",
    "c11a514b67b0": "tag: time",
    "c1fb41d452d9ec200000": "tag: time",
    "d74401020304": "tag: base16",
    "d818456449455446": "tag: encoded CBOR",
    "d82076687474703a2f2f7777772e6578616d706c652e636f6d": "tag: URI",
    "f7": "undefined itself",
}
APPENDIX_A_DIAGNOSTIC = {
    "f97c00": "inf",
    "f97e00": "nan",
    "f9fc00": "-inf",
    "fa7f800000": "inf",
    "fa7fc00000": "nan",
    "faff800000": "-inf",
    "fb7ff0000000000000": "inf",
    "fb7ff8000000000000": "nan",
    "fbfff0000000000000": "-inf",
    "f0": "CBORSimpleValue(16)",
    "f8ff": "CBORSimpleValue(255)",
    "40": "b''",
    "4401020304": r"b'\x01\x02\x03\x04'",
    "a201020304": "{1: 2, 3: 4}",
}


def test_appendix_a_is_decoded_right_or_refused() -> None:
    vectors = {vector["hex"]: vector for vector in load("cbor-appendix-a.json")}
    assert vectors.keys() >= APPENDIX_A_REFUSED.keys() | APPENDIX_A_UNDEFINED.keys() | APPENDIX_A_DIAGNOSTIC.keys()
    for encoded, vector in vectors.items():
        data = bytes.fromhex(encoded)
        if encoded in APPENDIX_A_REFUSED:
            with pytest.raises(WireError):
                decode(data)
        elif encoded in APPENDIX_A_UNDEFINED:
            assert decode(data) is cbor2.undefined
        elif encoded in APPENDIX_A_DIAGNOSTIC:
            assert repr(decode(data)) == APPENDIX_A_DIAGNOSTIC[encoded]
        else:
            value = decode(data)
            assert (value, type(value)) == (vector["decoded"], type(vector["decoded"])), encoded
