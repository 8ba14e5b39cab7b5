# ruff: noqa: ASYNC240, SIM118  a test may look at small files without a thread, and a vault is no dictionary
import os
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from nacl.pwhash import argon2id

import trionode.vault.file
import trionode.vault.sqlite
from trionode.errors import HandshakeError, IdentityError, VaultError
from trionode.identity.identity import Identity
from trionode.protocol.identity.identity import create_history, rotate
from trionode.protocol.identity.keys import KeyHandle, KeyKind
from trionode.protocol.identity.signatures import verify_ed25519
from trionode.vault.memory import MemoryVault
from trionode.vault.sqlite import SqliteVault, open_sqlite_vault

PASSPHRASE = "correct horse battery staple"
SECRET = bytes(range(100, 132))


@pytest.fixture(autouse=True)
def _cheap_passphrases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trionode.vault.sqlite, "PASSPHRASE_OPERATIONS", argon2id.OPSLIMIT_MIN)
    monkeypatch.setattr(trionode.vault.sqlite, "PASSPHRASE_MEMORY", argon2id.MEMLIMIT_MIN)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "vault"


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def same(handle: KeyHandle) -> tuple[KeyKind, bytes]:
    return handle.kind, handle.public


@pytest.mark.parametrize("sealed", [True, False])
async def test_keys_identities_and_peers_outlive_the_process(path: Path, sealed: bool) -> None:
    passphrase = PASSPHRASE if sealed else None
    other = MemoryVault()
    first, second = other.generate(KeyKind.ED25519), other.generate(KeyKind.ED25519)
    old = create_history(other, first, 1_700_000_000)
    async with open_sqlite_vault(path, passphrase=passphrase, unencrypted=not sealed) as vault:
        alice = await Identity.create(vault, "alice")
        classic = await alice.classic()
        await vault.known_peers.check(classic.history)
        agreeing = vault.generate(KeyKind.X25519)
        vault.generate(KeyKind.X25519, ephemeral=True)
        shared = vault.x25519(agreeing, alice.purpose_key.public)
        await vault.known_peers.check(rotate(old, other, first, second, 1_700_000_001))
        kept = [same(handle) for handle in vault.keys()]
    async with open_sqlite_vault(str(path), passphrase=passphrase, unencrypted=not sealed) as vault:
        assert [same(handle) for handle in vault.keys()] == kept
        again = await Identity.load(vault, "alice")
        assert again.identifier == alice.identifier
        assert (await again.classic()).history == classic.history
        await vault.known_peers.check(classic.history)
        assert vault.x25519(vault.keys()[-1], again.purpose_key.public) == shared
        signing = vault.keys()[0]
        assert verify_ed25519(signing.public, b"data", vault.sign(signing, b"data"))
        with pytest.raises(IdentityError, match="older"):
            await vault.known_peers.check(old)
        assert "'alice'" in repr(again)


async def test_encrypted_file_holds_no_secret_in_the_clear(path: Path, tmp_path: Path) -> None:
    async with open_sqlite_vault(path, passphrase=PASSPHRASE) as vault:
        vault.import_secret(KeyKind.X25519, SECRET)
        assert SECRET.hex() not in repr(vault)
    assert SECRET not in path.read_bytes()
    assert PASSPHRASE.encode() not in path.read_bytes()
    async with open_sqlite_vault(tmp_path / "open", unencrypted=True) as vault:
        vault.import_secret(KeyKind.X25519, SECRET)
    assert SECRET in (tmp_path / "open").read_bytes()


async def test_a_forgotten_key_is_gone_from_the_file_and_from_its_free_pages(path: Path) -> None:
    async with open_sqlite_vault(path, unencrypted=True) as vault:
        handle = vault.import_secret(KeyKind.X25519, SECRET)
        vault.forget(handle)
        vault.forget(handle)
        assert not vault.keys()
        with pytest.raises(VaultError):
            vault.x25519(handle, bytes(32))
    assert SECRET not in path.read_bytes()


async def test_ephemeral_keys_never_touch_the_file(path: Path) -> None:
    async with open_sqlite_vault(path, unencrypted=True) as vault:
        before = path.read_bytes()
        handle = vault.generate(KeyKind.X25519, ephemeral=True)
        assert handle not in vault.keys()
        assert vault.x25519(handle, vault.generate(KeyKind.X25519, ephemeral=True).public)
        vault.forget(handle)
        assert path.read_bytes() == before


async def test_a_key_is_in_the_file_when_generate_returns(path: Path) -> None:
    async with open_sqlite_vault(path, unencrypted=True) as vault:
        handle = vault.generate(KeyKind.ED25519)
        async with open_sqlite_vault(path, unencrypted=True) as crashed:
            assert [same(each) for each in crashed.keys()] == [same(handle)]


async def test_a_key_is_stored_once(path: Path) -> None:
    async with open_sqlite_vault(path, unencrypted=True) as vault:
        vault.import_secret(KeyKind.X25519, SECRET)
        with pytest.raises(VaultError, match="already"):
            vault.import_secret(KeyKind.X25519, SECRET)
        with pytest.raises(VaultError, match="32 bytes"):
            vault.import_secret(KeyKind.X25519, SECRET[1:])
        vault.import_secret(KeyKind.ED25519, SECRET)
        assert len(vault.keys()) == 2


async def test_misuse_of_a_key_is_refused_as_in_memory(path: Path) -> None:
    async with open_sqlite_vault(path, unencrypted=True) as vault:
        handle = vault.generate(KeyKind.X25519)
        with pytest.raises(VaultError):
            vault.sign(handle, b"")
        with pytest.raises(HandshakeError):
            vault.x25519(handle, bytes(32))
        with pytest.raises(VaultError):
            vault.sign(MemoryVault().generate(KeyKind.ED25519), b"")


# Passphrases


async def test_a_wrong_passphrase_is_a_helpful_error_and_changes_nothing(path: Path) -> None:
    await make(path, PASSPHRASE)
    before = path.read_bytes()
    with pytest.raises(VaultError, match="the passphrase does not open") as raised:
        await make(path, "xyzzy")
    assert "xyzzy" not in str(raised.value)
    assert path.read_bytes() == before
    await make(path, PASSPHRASE)


async def make(path: Path, passphrase: str | None) -> None:
    async with open_sqlite_vault(path, passphrase=passphrase, unencrypted=passphrase is None):
        pass


async def test_unencrypted_vault_must_be_asked_for(path: Path) -> None:
    for passphrase, unencrypted in ((None, False), (PASSPHRASE, True), ("", False)):
        with pytest.raises(VaultError, match="unencrypted=True"):
            async with open_sqlite_vault(path, passphrase=passphrase, unencrypted=unencrypted):
                pass
    assert not path.exists()


async def test_file_stays_encrypted_or_unencrypted(path: Path, tmp_path: Path) -> None:
    await make(path, PASSPHRASE)
    with pytest.raises(VaultError, match="is encrypted: give its passphrase"):
        await make(path, None)
    await make(tmp_path / "open", None)
    with pytest.raises(VaultError, match="is not encrypted"):
        await make(tmp_path / "open", PASSPHRASE)


async def test_a_file_that_asks_for_the_machines_memory_is_refused(path: Path) -> None:
    await make(path, PASSPHRASE)
    for column, value in (("memory", 2**40), ("operations", 10**6), ("memory", 1), ("salt", b"short"), ("proof", 7)):
        with sqlite(path) as database:
            before = database.execute(f"SELECT {column} FROM seal").fetchone()
            database.execute(f"UPDATE seal SET {column} = ?", (value,))
        with pytest.raises(VaultError, match="damaged"):
            await make(path, PASSPHRASE)
        with sqlite(path) as database:
            database.execute(f"UPDATE seal SET {column} = ?", before)


class sqlite:  # noqa: N801  reads like the context manager that sqlite3 lacks
    def __init__(self, path: Path) -> None:
        self.database = sqlite3.connect(path)

    def __enter__(self) -> sqlite3.Connection:
        return self.database

    def __exit__(self, *_: object) -> None:
        self.database.commit()
        self.database.close()


# Files


@pytest.mark.usefixtures("umask")
async def test_a_new_file_is_private_with_any_umask(tmp_path: Path) -> None:
    for umask in (0, 0o777):
        os.umask(umask)
        path = tmp_path / f"vault{umask}"
        await make(path, None)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.usefixtures("umask")
async def test_the_journal_is_private_too(path: Path) -> None:
    async with open_sqlite_vault(path, unencrypted=True) as vault:
        with vault._file.transaction() as database:
            database.execute("INSERT INTO identities (name, history) VALUES ('a', x'00')")
            (journal,) = [each for each in path.parent.iterdir() if each != path]
            assert stat.S_IMODE(journal.stat().st_mode) == 0o600
            database.execute("DELETE FROM identities")


@pytest.mark.parametrize("mode", [0o644, 0o660, 0o604, 0o620, 0o700])
async def test_looser_permissions_are_refused_with_the_command_that_helps(path: Path, mode: int) -> None:
    await make(path, None)
    path.chmod(mode)
    with pytest.raises(VaultError, match="run chmod 600"):
        await make(path, None)
    path.chmod(0o600)
    await make(path, None)


async def test_foreign_files_are_refused_and_left_alone(path: Path) -> None:
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE diary (entry TEXT)")
    database.commit()
    database.close()
    path.chmod(0o600)
    foreign = path.read_bytes()
    for content in (foreign, b"dear diary, " * 1000, b"x", b"x" * 511, b"x" * 512, b"x" * 1000, b""):
        path.write_bytes(content)
        with pytest.raises(VaultError, match=str(path)):
            await make(path, PASSPHRASE)
        assert path.read_bytes() == content
    path.unlink()
    path.mkdir()
    with pytest.raises(VaultError):
        await make(path, PASSPHRASE)
    with pytest.raises(VaultError):
        await make(path / "no" / "such" / "folder", PASSPHRASE)


async def make_version_1(path: Path, passphrase: str | None) -> str:
    """Make a file as the first version of vaults wrote it, with an identity and a known peer; return its identifier."""
    async with open_sqlite_vault(path, passphrase=passphrase, unencrypted=passphrase is None) as vault:
        alice = await Identity.create(vault, "alice")
        await vault.known_peers.check(alice.history)
    with sqlite(path) as database:
        database.execute("ALTER TABLE identities RENAME TO newer")
        database.execute("CREATE TABLE identities (name TEXT PRIMARY KEY, history BLOB, purpose_key BLOB)")
        database.execute("INSERT INTO identities SELECT name, history, purpose_key FROM newer")
        database.execute("DROP TABLE newer")
        database.execute("PRAGMA user_version = 1")
    return str(alice.identifier)


def version_of(path: Path) -> int:
    with sqlite(path) as database:
        version: int = database.execute("PRAGMA user_version").fetchone()[0]
    return version


@pytest.mark.parametrize("passphrase", [PASSPHRASE, None])
async def test_a_file_of_the_first_version_is_upgraded_with_its_content(path: Path, passphrase: str | None) -> None:
    identifier = await make_version_1(path, passphrase)
    async with open_sqlite_vault(path, passphrase=passphrase, unencrypted=passphrase is None) as vault:
        alice = await Identity.load(vault, "alice")
        assert str(alice.identifier) == identifier
        await vault.known_peers.check(alice.history)
        classic = await alice.classic()
        await alice.rotate()
    assert version_of(path) == 3
    async with open_sqlite_vault(path, passphrase=passphrase, unencrypted=passphrase is None) as vault:
        assert (await (await Identity.load(vault, "alice")).classic()).history == classic.history


async def test_a_file_that_does_not_open_is_not_upgraded(path: Path) -> None:
    await make_version_1(path, PASSPHRASE)
    before = path.read_bytes()
    with pytest.raises(VaultError, match="the passphrase does not open"):
        await make(path, "xyzzy")
    assert path.read_bytes() == before


async def test_an_upgrade_that_fails_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await make_version_1(path, PASSPHRASE)
    before = path.read_bytes()
    monkeypatch.setattr(trionode.vault.file, "_VERSION", 4)
    upgrades = {**trionode.vault.file._UPGRADES, 3: "no statement"}
    monkeypatch.setattr(trionode.vault.file, "_UPGRADES", upgrades)
    with pytest.raises(VaultError, match="syntax error"):
        await make(path, PASSPHRASE)
    assert path.read_bytes() == before


async def test_a_file_of_a_newer_version_is_refused_and_left_alone(path: Path) -> None:
    await make(path, None)
    with sqlite(path) as database:
        database.execute("PRAGMA user_version = 4")
    before = path.read_bytes()
    with pytest.raises(VaultError, match="of version 4, this program knows versions up to 3: use a newer program"):
        await make(path, None)
    assert path.read_bytes() == before


async def test_a_torn_file_is_never_taken_for_a_good_one(path: Path) -> None:
    async with open_sqlite_vault(path, passphrase=PASSPHRASE) as vault:
        for number in range(20):
            await Identity.create(vault, f"alice{number}")
    whole = path.read_bytes()
    for length in range(0, len(whole), 1000):
        path.write_bytes(whole[:length])
        with pytest.raises(VaultError):
            async with open_sqlite_vault(path, passphrase=PASSPHRASE) as vault:
                await vault.identities.all()
    path.write_bytes(whole)
    await make(path, PASSPHRASE)


async def test_entries_that_were_exchanged_or_changed_are_refused(path: Path) -> None:
    async with open_sqlite_vault(path, passphrase=PASSPHRASE) as vault:
        await Identity.create(vault)
        vault.generate(KeyKind.X25519)
    whole = path.read_bytes()
    for statement in (
        "UPDATE keys SET secret = (SELECT secret FROM keys WHERE number = 3)",
        "UPDATE keys SET kind = 'x25519' WHERE kind = 'ed25519'",
        "UPDATE keys SET kind = 'p256' WHERE number = 1",
        "UPDATE keys SET secret = x'00' WHERE number = 1",
        "UPDATE keys SET secret = NULL WHERE number = 1",
        "UPDATE identities SET history = x'80'",
        "UPDATE identities SET history = NULL",
        "UPDATE identities SET purpose_key = 7",
        "UPDATE identities SET classic = 7",
        "UPDATE identities SET classic = x'01'",
        "UPDATE identities SET classic = history",
        "UPDATE identities SET credentials = 7",
        "UPDATE identities SET credentials = x'01'",
        "UPDATE identities SET credentials = history",
        "UPDATE identities SET name = cast(x'ff' AS TEXT)",
    ):
        with sqlite(path) as database:
            database.execute(statement)
        with pytest.raises(VaultError):
            async with open_sqlite_vault(path, passphrase=PASSPHRASE) as vault:
                await Identity.load(vault)
        path.write_bytes(whole)
    async with open_sqlite_vault(path, passphrase=PASSPHRASE) as vault:
        await Identity.load(vault)


async def test_a_failed_write_changes_nothing(path: Path) -> None:
    def fail(vault: SqliteVault) -> None:
        with vault._file.transaction() as database:
            database.execute("DELETE FROM keys")
            database.execute("no statement")

    async with open_sqlite_vault(path, unencrypted=True) as vault:
        alice = await Identity.create(vault)
        with pytest.raises(VaultError, match="syntax error"):
            fail(vault)
        vault.generate(KeyKind.X25519)
        assert (await Identity.load(vault)).identifier == alice.identifier
    async with open_sqlite_vault(path, unencrypted=True) as vault:
        assert len(vault.keys()) == 3


async def test_a_closed_vault_returns_no_key(path: Path) -> None:
    async with open_sqlite_vault(path, unencrypted=True) as vault:
        handle = vault.generate(KeyKind.ED25519)
    with pytest.raises(VaultError):
        vault.sign(handle, b"")
    with pytest.raises(VaultError):
        vault.generate(KeyKind.ED25519)
    with pytest.raises(VaultError):
        await vault.identities.all()


async def test_many_tasks_use_one_vault_at_once(path: Path) -> None:
    async def work(vault: SqliteVault, number: int) -> None:
        identity = await Identity.create(vault, f"identity {number}")
        await vault.known_peers.check(identity.history)
        await identity.rotate()
        await vault.known_peers.check(identity.history)

    async with open_sqlite_vault(path, unencrypted=True) as vault:
        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(work, vault, number)
        assert len(await vault.identities.all()) == 8
        assert len(vault.keys()) == 16


async def test_the_real_cost_of_a_passphrase_is_libsodiums_moderate_one(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    await make(path, PASSPHRASE)
    with sqlite(path) as database:
        cost = database.execute("SELECT operations, memory FROM seal").fetchone()
    assert cost == (argon2id.OPSLIMIT_MODERATE, argon2id.MEMLIMIT_MODERATE)
