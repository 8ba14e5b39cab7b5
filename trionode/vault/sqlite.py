"""A vault in one SQLite file: keys encrypted with a passphrase, identities, and known peers."""

import os
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import nacl.utils
import trio
from nacl.exceptions import CryptoError
from nacl.pwhash import argon2id
from nacl.secret import SecretBox

from trionode.errors import IdentityError, VaultError, WireError
from trionode.identity.known_peers import MAX_KNOWN_PEERS, is_news
from trionode.identity.stored import StoredIdentity, name_conflict
from trionode.protocol.identity.classic_identity import verify_classic_history
from trionode.protocol.identity.credential import PresentedCredential
from trionode.protocol.identity.history import History, verify_any_history
from trionode.protocol.identity.identity import verify_history
from trionode.protocol.identity.keys import KeyHandle, KeyKind
from trionode.protocol.wire import cbor
from trionode.vault.file import VaultFile
from trionode.vault.memory import SECRET_SIZE, MemoryVault

#: The cost of one guess of the passphrase, stored in each new file: libsodium's "moderate", about 0.7 s and 256 MiB.
PASSPHRASE_OPERATIONS = argon2id.OPSLIMIT_MODERATE
PASSPHRASE_MEMORY = argon2id.MEMLIMIT_MODERATE

#: The highest cost that a file may ask for, so a foreign file can't take all memory: libsodium's "sensitive".
MAX_OPERATIONS = argon2id.OPSLIMIT_SENSITIVE
MAX_MEMORY = argon2id.MEMLIMIT_SENSITIVE

_PROOF = b"trionode vault"


@asynccontextmanager
async def open_sqlite_vault(
    path: str | os.PathLike[str], *, passphrase: str | None = None, unencrypted: bool = False
) -> AsyncIterator["SqliteVault"]:
    """Open the vault in a file for the length of an `async with` block. The file is created if there is none.

    Secrets are encrypted with the passphrase (Argon2id, XSalsa20-Poly1305), or stored in the clear if you say
    `unencrypted=True`. A file stays encrypted or unencrypted, as it was created. Its mode is 0600.

    Args:
      path: The file.
      passphrase: The passphrase that encrypts the secrets.
      unencrypted: Store the secrets in the clear: everyone who can read the file has them.

    Returns:
      A context manager whose value is the vault.

    Raises:
      VaultError: If the passphrase is wrong, others may read or write the file, or it is damaged or not a vault.

    If cancelled while it opens, it first waits for the thread that derives the key, about a second.
    """
    if (passphrase is None) is not unencrypted:
        raise VaultError("give either a passphrase, or unencrypted=True, which stores the keys in the clear")
    if passphrase is not None and not passphrase:
        raise VaultError("the passphrase is empty: give one, or unencrypted=True")
    vault = await trio.to_thread.run_sync(SqliteVault, Path(path), passphrase)
    try:
        yield vault
    finally:
        vault.close()


class SqliteVault:
    """A vault in a file (see `trionode.protocol.identity.keys.Vault`), made by `open_sqlite_vault`.

    Keys are used in memory. A new or forgotten key is written at once, in a synchronous transaction of a few
    milliseconds: `Vault` is synchronous because handshakes call it, and durable keys are created only a few times in a
    program's life. So a crash can't orphan a handle. Ephemeral keys are never written. Identities and known peers,
    which handshakes write, are written in a thread. A handle is valid while its vault is open; the file knows a key by
    its public bytes.
    """

    def __init__(self, path: Path, passphrase: str | None) -> None:
        self._keys = MemoryVault()
        self._file = VaultFile(path)
        try:
            self._seal = _open_seal(self._file, passphrase)
            with self._file.transaction() as database:
                for kind, public, secret in database.execute("SELECT kind, public, secret FROM keys ORDER BY number"):
                    self._unseal(kind, public, secret)
                # Last: a program that can't unseal the file must not make it unreadable for an older program.
                self._file.upgrade(database)
        except BaseException:  # whatever it was: no other code would close the file
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
        """Store a key with these 32 secret bytes; VaultError if they are not 32, or in the vault already."""
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
        """Delete the key, also from the file; does nothing if it is gone already."""
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
        """Close the file and forget all keys; their handles become invalid."""
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
            raise self._file.damaged("a secret does not belong to its public key")


_IDENTITY_COLUMNS = "name, history, purpose_key, classic, credentials"


class SqliteIdentities:
    """The identities in the file of a vault (see `trionode.identity.stored.Identities`)."""

    def __init__(self, file: VaultFile) -> None:
        self._file = file

    async def all(self) -> Sequence[StoredIdentity]:
        """Return every identity, ordered by name."""
        query = f"SELECT {_IDENTITY_COLUMNS} FROM identities ORDER BY name"  # noqa: S608  # a constant
        rows = await self._file.run(lambda database: database.execute(query).fetchall())
        return [self._stored(*row) for row in rows]

    async def save(self, identity: StoredIdentity, *, replaces: StoredIdentity | None = None) -> None:
        """Store the identity in one transaction; VaultError if the stored identity is not `replaces`."""
        credentials = [PresentedCredential.decode(each).item for each in identity.credentials]
        row = (
            identity.name,
            identity.history.encoded,
            identity.purpose_key,
            identity.classic,
            cbor.encode(credentials) if credentials else None,
        )

        def save(database: sqlite3.Connection) -> None:
            query = f"SELECT {_IDENTITY_COLUMNS} FROM identities WHERE name = ?"  # noqa: S608  # a constant
            found = database.execute(query, row[:1]).fetchone()
            if (found and self._stored(*found)) != replaces:
                raise name_conflict(identity.name, replaces)
            insert = f"INSERT OR REPLACE INTO identities ({_IDENTITY_COLUMNS}) VALUES (?, ?, ?, ?, ?)"  # noqa: S608  # a constant
            database.execute(insert, row)

        await self._file.run(save)

    def _stored(
        self, name: object, history: object, purpose_key: object, classic: object, credentials: object
    ) -> StoredIdentity:
        file = self._file
        return StoredIdentity(
            str(name),
            file.history(history, verify_history),
            file.blob(purpose_key),
            None if classic is None else file.history(classic, verify_classic_history).encoded,
            () if credentials is None else file.read(credentials, _credentials, "a credential can't be decoded"),
        )


def _credentials(encoded: bytes) -> tuple[bytes, ...]:
    try:
        items = cbor.narrow(cbor.decode(encoded), list)
        return tuple(PresentedCredential.of(item).encode() for item in items)
    except WireError as error:
        raise IdentityError(str(error)) from error


class SqliteKnownPeers:
    """The known peers in the file of a vault (see `trionode.identity.known_peers.KnownPeers`)."""

    def __init__(self, file: VaultFile, bound: int = MAX_KNOWN_PEERS) -> None:
        self._file = file
        self._bound = bound

    async def check(self, history: History) -> None:
        """Remember a history that is new or newer, in one transaction; IdentityError if it is older or contradicts."""
        # A classic identifier is one byte longer here, so the two kinds never collide.
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


def _open_seal(file: VaultFile, passphrase: str | None) -> SecretBox | None:
    """Return the box that encrypts the secrets of this file, None if they are in the clear.

    A new file becomes as the caller wants.
    """
    with file.transaction() as database:
        row = database.execute("SELECT salt, operations, memory, proof FROM seal").fetchone()
        if row is None:
            row, box = _new_seal(passphrase)
            database.execute("INSERT INTO seal VALUES (?, ?, ?, ?)", row)
            return box
    if (passphrase is None) is not (row[0] is None):
        raise VaultError(
            f"the vault {file.path} is encrypted: give its passphrase"
            if passphrase is None
            else f"the vault {file.path} is not encrypted: open it with unencrypted=True, or create a new one with a passphrase"
        )
    return None if passphrase is None else _unlock(file, passphrase, row)


def _new_seal(passphrase: str | None) -> tuple[tuple[object, ...], SecretBox | None]:
    if passphrase is None:
        return (None, None, None, None), None
    salt = nacl.utils.random(argon2id.SALTBYTES)
    box = _box(passphrase, salt, PASSPHRASE_OPERATIONS, PASSPHRASE_MEMORY)
    return (salt, PASSPHRASE_OPERATIONS, PASSPHRASE_MEMORY, bytes(box.encrypt(_PROOF))), box


def _unlock(file: VaultFile, passphrase: str, seal: tuple[object, object, object, object]) -> SecretBox:
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
        raise file.damaged("its seal is not valid")
    box = _box(passphrase, salt, operations, memory)
    try:
        box.decrypt(proof)
    except CryptoError as error:
        raise VaultError(
            f"the passphrase does not open the vault {file.path}: give the one that it was created with"
        ) from error
    return box


def _box(passphrase: str, salt: bytes, operations: int, memory: int) -> SecretBox:
    return SecretBox(argon2id.kdf(SecretBox.KEY_SIZE, passphrase.encode(), salt, operations, memory))
