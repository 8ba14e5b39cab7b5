"""The vault in memory: keys are used by their handles, and their secrets stay inside."""

import pytest

from trionode.errors import HandshakeError, VaultError
from trionode.protocol.identity.keys import KeyHandle, KeyKind, Vault
from trionode.protocol.identity.signatures import verify_ed25519
from trionode.vault import MemoryVault


@pytest.fixture
def vault() -> Vault:
    return MemoryVault()  # the fixture's type is the proof that it is a Vault


def test_its_signatures_verify(vault: Vault) -> None:
    key = vault.generate(KeyKind.ED25519)
    signature = vault.sign(key, b"data")
    assert len(key.public) == 32
    assert len(signature) == 64
    assert verify_ed25519(key.public, b"data", signature)


def test_two_keys_agree(vault: Vault) -> None:
    one, other = vault.generate(KeyKind.X25519), vault.generate(KeyKind.X25519, ephemeral=True)
    assert vault.x25519(one, other.public) == vault.x25519(other, one.public)
    assert len(vault.x25519(one, other.public)) == 32


@pytest.mark.parametrize("public", [bytes(32), b"\x01" + bytes(31), b"", bytes(31), bytes(33)])
def test_a_public_key_that_can_not_be_used_is_a_handshake_error(vault: Vault, public: bytes) -> None:
    key = vault.generate(KeyKind.X25519)
    with pytest.raises(HandshakeError):
        vault.x25519(key, public)


def test_keys_lists_all_but_the_ephemeral_ones_oldest_first(vault: Vault) -> None:
    first = vault.generate(KeyKind.ED25519)
    vault.generate(KeyKind.X25519, ephemeral=True)
    second = vault.generate(KeyKind.X25519)
    assert list(vault.keys()) == [first, second]
    vault.forget(first)
    assert list(vault.keys()) == [second]


def test_a_forgotten_key_is_gone_and_may_be_forgotten_again(vault: Vault) -> None:
    key = vault.generate(KeyKind.ED25519)
    vault.forget(key)
    vault.forget(key)
    with pytest.raises(VaultError, match="forgotten"):
        vault.sign(key, b"data")


def test_a_key_of_another_vault_or_kind_is_refused(vault: Vault) -> None:
    signing, agreeing = vault.generate(KeyKind.ED25519), vault.generate(KeyKind.X25519)
    with pytest.raises(VaultError, match="X25519"):
        vault.sign(agreeing, b"data")
    with pytest.raises(VaultError, match="ED25519"):
        vault.x25519(signing, agreeing.public)
    with pytest.raises(VaultError):
        vault.sign(MemoryVault().generate(KeyKind.ED25519), b"data")
    with pytest.raises(VaultError):
        vault.sign(KeyHandle(signing.name, KeyKind.ED25519, bytes(32)), b"data")


def test_names_are_random_and_keys_differ(vault: Vault) -> None:
    keys = [vault.generate(KeyKind.ED25519) for _ in range(20)]
    assert len({key.name for key in keys}) == len({key.public for key in keys}) == 20
    assert all(int(key.name, 16) >= 0 and len(key.name) == 32 for key in keys)


# RFC 8032 §7.1, test 1, and RFC 7748 §6.1, Alice.
@pytest.mark.parametrize(
    ("kind", "secret", "public"),
    [
        (
            KeyKind.ED25519,
            "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        ),
        (
            KeyKind.X25519,
            "77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a",
            "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a",
        ),
    ],
)
def test_a_known_secret_has_its_known_public_key(kind: KeyKind, secret: str, public: str) -> None:
    assert MemoryVault().import_secret(kind, bytes.fromhex(secret)).public.hex() == public


@pytest.mark.parametrize("kind", KeyKind)
@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_a_secret_of_another_size_is_not_imported(kind: KeyKind, size: int) -> None:
    with pytest.raises(VaultError, match="32 bytes"):
        MemoryVault().import_secret(kind, bytes(size))


@pytest.mark.parametrize("kind", KeyKind)
def test_no_repr_or_error_contains_a_secret(kind: KeyKind) -> None:
    vault, secret = MemoryVault(), b"a secret of thirty-two bytes yes"
    key = vault.import_secret(kind, secret)
    said = [repr(vault), repr(key), str(key), repr(vault._keys)]
    with pytest.raises(VaultError) as wrong:
        (vault.x25519 if kind is KeyKind.ED25519 else vault.sign)(key, bytes(32))
    said.append(repr(wrong.value))
    assert not any("thirty-two" in text or secret.hex() in text for text in said)
