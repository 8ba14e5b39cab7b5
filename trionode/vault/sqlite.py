"""A vault in one SQLite file: keys sealed with a passphrase, the identities that they belong to, and the peers that these have met."""

import os
import shlex
import sqlite3
import stat
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from threading import Lock
from typing import TypeVar

import nacl.utils
import trio
from nacl.exceptions import CryptoError
from nacl.pwhash import argon2id
from nacl.secret import SecretBox

from trionode.errors import IdentityError, VaultError
from trionode.identity.identity import StoredIdentity, name_conflict
from trionode.identity.known_peers import MAX_KNOWN_PEERS, is_news
from trionode.protocol.identity.classic_identity import verify_classic_history
from trionode.protocol.identity.history import History, verify_any_history
from trionode.protocol.identity.identity import verify_history
from trionode.protocol.identity.keys import KeyHandle, KeyKind
from trionode.vault.memory import SECRET_SIZE, MemoryVault

#: What one guess of the passphrase costs, written into each new file: libsodium's "moderate", about 0.7 s and 256 MiB.
PASSPHRASE_OPERATIONS = argon2id.OPSLIMIT_MODERATE
PASSPHRASE_MEMORY = argon2id.MEMLIMIT_MODERATE

#: What a file may ask for at most, so that a foreign one can't take the machine's memory: libsodium's "sensitive".
MAX_OPERATIONS = argon2id.OPSLIMIT_SENSITIVE
MAX_MEMORY = argon2id.MEMLIMIT_SENSITIVE

_MODE = 0o600
_APPLICATION_ID = 0x74726E76  # "trnv", which file(1) and SQLite's own tools show
_VERSION = 2
_SMALLEST = 512  # bytes in the smallest page of SQLite
_PROOF = b"trionode vault"

_SCHEMA = (
    "CREATE TABLE seal (salt BLOB, operations INTEGER, memory INTEGER, proof BLOB)",  # one row; all null if unencrypted
    "CREATE TABLE keys (number INTEGER PRIMARY KEY, kind TEXT, public BLOB, secret BLOB, UNIQUE (kind, public))",
    "CREATE TABLE identities (name TEXT PRIMARY KEY, history BLOB, purpose_key BLOB, classic BLOB)",
    "CREATE TABLE known_peers (number INTEGER PRIMARY KEY AUTOINCREMENT, identifier BLOB UNIQUE, history BLOB)",
)

#: What makes a file of that version one of the next.
_UPGRADES = {1: "ALTER TABLE identities ADD COLUMN classic BLOB"}

T = TypeVar("T")


@asynccontextmanager
async def open_sqlite_vault(
    path: str | os.PathLike[str], *, passphrase: str | None = None, unencrypted: bool = False
) -> AsyncIterator["SqliteVault"]:
    """Open the vault in the file at `path`, made if there is none, until the end of the block.

    Its secrets are sealed with `passphrase` (Argon2id, XSalsa20-Poly1305), or lie there in the open if the caller says `unencrypted=True`; a
    file stays what it was made as. The file is its owner's alone, mode 0600.

    VaultError for a wrong passphrase, looser permissions, and a file that is damaged or no vault. Unsealing takes about a second, in a
    thread that is waited for even when this is cancelled.
    """
    if (passphrase is None) is not unencrypted:
        raise VaultError(
            "give a passphrase, or say unencrypted=True to let everyone who can read the file have its keys: one of the two"
        )
    if passphrase is not None and not passphrase:
        raise VaultError("an empty passphrase seals nothing: give one, or say unencrypted=True")
    vault = await trio.to_thread.run_sync(SqliteVault, Path(path), passphrase)
    try:
        yield vault
    finally:
        vault.close()


class SqliteVault:
    """Keys that outlive the process (see `trionode.protocol.identity.keys.Vault`), made by `open_sqlite_vault`.

    They are used in memory. A new or forgotten key is written at once, in a small synchronous transaction of a few milliseconds: `Vault` is
    synchronous because handshakes call it, durable keys are made a few times in a program's life, and so no handle is ever out that a
    crash could orphan. Ephemeral keys never touch the file. Identities and known peers, which handshakes write, are written in a thread.
    A handle is good while its vault is open; in the file a key is known by its public bytes.
    """

    def __init__(self, path: Path, passphrase: str | None) -> None:
        self._keys = MemoryVault()
        self._file = _File(path)
        try:
            self._seal = _open_seal(self._file, passphrase)
            with self._file.transaction() as database:
                for kind, public, secret in database.execute("SELECT kind, public, secret FROM keys ORDER BY number"):
                    self._unseal(kind, public, secret)
                # Only now: whoever can't unseal a file does not take it from an older program.
                _upgrade(database)
        except BaseException:  # whatever it was: nobody else would close the file
            self._file.close()
            raise
        self.identities = SqliteIdentities(self._file)
        self.known_peers = SqliteKnownPeers(self._file)

    def generate(self, kind: KeyKind, *, ephemeral: bool = False) -> KeyHandle:
        """Return a new random key, which is in the file when this returns, unless it is ephemeral."""
        if ephemeral:
            return self._keys.generate(kind, ephemeral=True)
        return self.import_secret(kind, nacl.utils.random(SECRET_SIZE))

    def import_secret(self, kind: KeyKind, secret: bytes) -> KeyHandle:
        """Keep a key whose 32 secret bytes are known already; VaultError if they are not 32, or here already."""
        handle = self._keys.import_secret(kind, secret)
        sealed = secret if self._seal is None else bytes(self._seal.encrypt(secret))
        row = (kind.value, handle.public, sealed)
        try:
            with self._file.transaction() as database:
                database.execute("INSERT INTO keys (kind, public, secret) VALUES (?, ?, ?)", row)
        except VaultError:
            self._keys.forget(handle)
            raise
        return handle

    def sign(self, handle: KeyHandle, data: bytes) -> bytes:
        """Return the 64-byte Ed25519 signature of `data` by an ED25519 key."""
        return self._keys.sign(handle, data)

    def x25519(self, handle: KeyHandle, public: bytes) -> bytes:
        """Return the 32-byte shared secret; HandshakeError if it would be all zero."""
        return self._keys.x25519(handle, public)

    def forget(self, handle: KeyHandle) -> None:
        """Delete the key, from the file too; to forget one that is gone already does nothing."""
        held = self._keys.keys()
        durable = handle in held
        self._keys.forget(handle)
        if durable:
            with self._file.transaction() as database:
                database.execute("DELETE FROM keys WHERE kind = ? AND public = ?", (handle.kind.value, handle.public))

    def keys(self) -> Sequence[KeyHandle]:
        """Return the handles of all keys that are not ephemeral, oldest first."""
        return self._keys.keys()

    def close(self) -> None:
        """Let go of the file and of all keys: their handles are good for nothing from now on."""
        self._keys = MemoryVault()
        self._file.close()

    def __repr__(self) -> str:
        return f"SqliteVault({str(self._file.path)!r}, {len(self._keys.keys())} keys)"

    def _unseal(self, kind: object, public: object, sealed: object) -> None:
        try:
            secret = self._file.blob(sealed) if self._seal is None else self._seal.decrypt(self._file.blob(sealed))
            handle = self._keys.import_secret(KeyKind(kind), secret)
        except (CryptoError, ValueError) as error:
            raise self._file.damaged("a key can't be unencrypted") from error
        if handle.public != public:
            raise self._file.damaged("a key is not the one its entry names")


class SqliteIdentities:
    """The identities in the file of a vault (see `trionode.identity.identity.Identities`)."""

    def __init__(self, file: "_File") -> None:
        self._file = file

    async def all(self) -> Sequence[StoredIdentity]:
        """Return every identity, ordered by name."""
        rows = await self._file.run(_read_identities)
        return [self._stored(*row) for row in rows]

    async def save(self, identity: StoredIdentity, *, replaces: StoredIdentity | None = None) -> None:
        """Keep the identity under its name, in one transaction; VaultError if what stands there now is not `replaces`."""
        row = (identity.name, identity.history.encoded, identity.purpose_key, identity.classic)

        def save(database: sqlite3.Connection) -> None:
            found = database.execute(
                "SELECT name, history, purpose_key, classic FROM identities WHERE name = ?", row[:1]
            ).fetchone()
            if (found and self._stored(*found)) != replaces:
                raise name_conflict(identity.name, replaces)
            database.execute(
                "INSERT OR REPLACE INTO identities (name, history, purpose_key, classic) VALUES (?, ?, ?, ?)", row
            )

        await self._file.run(save)

    def _stored(self, name: object, history: object, purpose_key: object, classic: object) -> StoredIdentity:
        return StoredIdentity(
            str(name),
            self._file.history(history, verify_history),
            self._file.blob(purpose_key),
            None if classic is None else self._file.history(classic, verify_classic_history).encoded,
        )


class SqliteKnownPeers:
    """The known peers in the file of a vault (see `trionode.identity.known_peers.KnownPeers`)."""

    def __init__(self, file: "_File", bound: int = MAX_KNOWN_PEERS) -> None:
        self._file = file
        self._bound = bound

    async def check(self, history: History) -> None:
        """Remember a history that is new or newer, in one transaction; IdentityError for one that is older or contradicts."""
        # One byte longer than a current identifier: the two kinds can't meet.
        key = (b"P" * history.identifier.classic + history.identifier.value,)

        def check(database: sqlite3.Connection) -> None:
            row = database.execute("SELECT history FROM known_peers WHERE identifier = ?", key).fetchone()
            if not is_news(row and self._file.history(row[0], verify_any_history), history):
                return
            database.execute(
                "INSERT OR REPLACE INTO known_peers (identifier, history) VALUES (?, ?)", (*key, history.encoded)
            )
            database.execute(
                "DELETE FROM known_peers WHERE number <= (SELECT max(number) FROM known_peers) - ?", (self._bound,)
            )

        await self._file.run(check)


class _File:
    """One connection to one file, used by one thread at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = Lock()
        self._limiter = trio.CapacityLimiter(1)
        created = _require_private(path)
        try:
            self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        except sqlite3.Error as error:
            raise VaultError(f"the vault {path} can't be opened: {error}") from error
        try:
            self._prepare(created=created)
        except BaseException:  # whatever it was: nobody else would close the file
            self._database.close()
            raise

    def _prepare(self, *, created: bool) -> None:
        with self._translated():
            # FULL: an acknowledged key survives a power cut. Secure delete: a forgotten one does not survive in free pages.
            self._database.execute("PRAGMA synchronous = FULL")
            self._database.execute("PRAGMA secure_delete = ON")
            (verdict,) = self._database.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise self.damaged(str(verdict))
        with self.transaction() as database:
            if created:
                for statement in _SCHEMA:
                    database.execute(statement)
                database.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
                database.execute(f"PRAGMA user_version = {_VERSION}")
            application, version = (
                database.execute(f"PRAGMA {what}").fetchone()[0] for what in ("application_id", "user_version")
            )
        if application != _APPLICATION_ID or version < 1:
            raise VaultError(f"{self.path} is a database, but no vault: choose another path")
        if version > _VERSION:
            raise VaultError(
                f"the vault {self.path} is of version {version}, this program knows versions up to {_VERSION}: use a newer one"
            )

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All of the block or nothing of it, against other threads and other processes; VaultError for what SQLite can't do."""
        with self._lock, self._translated():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
                self._database.execute("COMMIT")
            except BaseException:  # whatever it was, the next transaction must not find this one open
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do the work as one transaction in a thread; cancelled only before it begins."""

        def transact() -> T:
            with self.transaction() as database:
                return work(database)

        return await trio.to_thread.run_sync(transact, limiter=self._limiter)

    def history(self, encoded: object, verify: Callable[[bytes], T]) -> T:
        """Return a history that was kept here, as `verify` reads it."""
        try:
            return verify(self.blob(encoded))
        except IdentityError as error:
            raise self.damaged("a change history does not verify") from error

    def blob(self, value: object) -> bytes:
        """Return bytes that were kept here."""
        if not isinstance(value, bytes):
            raise self.damaged("a value is no blob")
        return value

    def damaged(self, what: str) -> VaultError:
        """Return what is raised where the file holds what no vault writes."""
        return VaultError(f"the vault {self.path} is damaged ({what}): restore it from a backup")

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._database.close()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.IntegrityError as error:
            raise VaultError(f"the vault {self.path} holds this key already") from error
        except sqlite3.Error as error:
            raise VaultError(f"the vault {self.path} can't be used: {error}") from error


def _require_private(path: Path) -> bool:
    """Make the file, if there is none, for its owner alone; return whether it was made. VaultError if others may read or write it."""
    try:
        try:
            made = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE)
        except FileExistsError:
            # Not opened: to close it again would drop the locks that another connection of this process holds on it.
            status = path.stat()
        else:
            os.fchmod(made, _MODE)  # a umask may have taken the owner's bits too
            os.close(made)
            return True
    except OSError as error:
        raise VaultError(f"the vault {path} can't be opened: {error.strerror}") from error
    mode = stat.S_IMODE(status.st_mode)
    if not stat.S_ISREG(status.st_mode):
        raise VaultError(f"the vault {path} is not a regular file: choose another path")
    if mode & ~_MODE:
        raise VaultError(
            f"others may read the keys in {path} (mode {mode:04o}): run chmod 600 {shlex.quote(str(path))}"
        )
    if status.st_uid not in {os.geteuid(), 0}:
        raise VaultError(f"the vault {path} belongs to another user, who can read the keys in it: choose another path")
    if status.st_size < _SMALLEST:  # SQLite would take it for an empty database and overwrite it
        raise VaultError(
            f"the vault {path} is cut short, perhaps by a crash: restore it, or remove it to make a new one"
        )
    return False


def _open_seal(file: _File, passphrase: str | None) -> SecretBox | None:
    """Return what seals the secrets of this file, or None; a new file becomes what the caller wants."""
    with file.transaction() as database:
        row = database.execute("SELECT salt, operations, memory, proof FROM seal").fetchone()
        if row is None:
            row, box = _new_seal(passphrase)
            database.execute("INSERT INTO seal VALUES (?, ?, ?, ?)", row)
            return box
    if (passphrase is None) is not (row[0] is None):
        raise VaultError(
            f"the vault {file.path} is sealed: give its passphrase"
            if passphrase is None
            else f"the vault {file.path} is not sealed: open it with unencrypted=True, or make a new one with a passphrase"
        )
    return None if passphrase is None else _unlock(file, passphrase, row)


def _new_seal(passphrase: str | None) -> tuple[tuple[object, ...], SecretBox | None]:
    if passphrase is None:
        return (None, None, None, None), None
    salt = nacl.utils.random(argon2id.SALTBYTES)
    box = _box(passphrase, salt, PASSPHRASE_OPERATIONS, PASSPHRASE_MEMORY)
    return (salt, PASSPHRASE_OPERATIONS, PASSPHRASE_MEMORY, bytes(box.encrypt(_PROOF))), box


def _unlock(file: _File, passphrase: str, seal: tuple[object, object, object, object]) -> SecretBox:
    salt, operations, memory, proof = seal
    if not (
        isinstance(salt, bytes)
        and isinstance(proof, bytes)
        and isinstance(operations, int)
        and isinstance(memory, int)
        and len(salt) == argon2id.SALTBYTES
        and argon2id.OPSLIMIT_MIN <= operations <= MAX_OPERATIONS
        and argon2id.MEMLIMIT_MIN <= memory <= MAX_MEMORY
    ):
        raise file.damaged("its seal is none")
    box = _box(passphrase, salt, operations, memory)
    try:
        box.decrypt(proof)
    except CryptoError as error:
        raise VaultError(
            f"the passphrase does not open the vault {file.path}: give the one it was made with"
        ) from error
    return box


def _box(passphrase: str, salt: bytes, operations: int, memory: int) -> SecretBox:
    return SecretBox(argon2id.kdf(SecretBox.KEY_SIZE, passphrase.encode(), salt, operations, memory))


def _read_identities(database: sqlite3.Connection) -> list[tuple[object, object, object, object]]:
    return database.execute("SELECT name, history, purpose_key, classic FROM identities ORDER BY name").fetchall()


def _upgrade(database: sqlite3.Connection) -> None:
    (version,) = database.execute("PRAGMA user_version").fetchone()
    for step in range(version, _VERSION):
        database.execute(_UPGRADES[step])
        database.execute(f"PRAGMA user_version = {step + 1}")
