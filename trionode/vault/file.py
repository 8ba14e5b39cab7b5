"""The file of a SQLite vault: one database, private to its owner, in transactions."""

import os
import shlex
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import TypeVar

import trio

from trionode.errors import IdentityError, VaultError

T = TypeVar("T")

_MODE = 0o600
_APPLICATION_ID = 0x74726E76  # "trnv", which file(1) and SQLite's own tools show
_VERSION = 3
_SMALLEST = 512  # bytes in the smallest page of SQLite

_SCHEMA = (
    "CREATE TABLE seal (salt BLOB, operations INTEGER, memory INTEGER, proof BLOB)",  # one row; all null if unencrypted
    "CREATE TABLE keys (number INTEGER PRIMARY KEY, kind TEXT, public BLOB, secret BLOB, UNIQUE (kind, public))",
    "CREATE TABLE identities (name TEXT PRIMARY KEY, history BLOB, purpose_key BLOB, classic BLOB, credentials BLOB)",
    "CREATE TABLE known_peers (number INTEGER PRIMARY KEY AUTOINCREMENT, identifier BLOB UNIQUE, history BLOB)",
)

#: The statement that makes a file of that version one of the next.
_UPGRADES = {
    1: "ALTER TABLE identities ADD COLUMN classic BLOB",
    2: "ALTER TABLE identities ADD COLUMN credentials BLOB",
}


class VaultFile:
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
        except BaseException:  # whatever it was: no other code would close the file
            self._database.close()
            raise

    def _prepare(self, *, created: bool) -> None:
        with self._translated():
            # FULL: an acknowledged key survives a power cut. Secure delete: a forgotten one does not survive in free
            # pages.
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
            raise VaultError(f"{self.path} is a database, but not a vault: choose another path")
        if version > _VERSION:
            raise VaultError(
                f"the vault {self.path} is of version {version}, this program knows versions up to {_VERSION}: "
                f"use a newer program"
            )

    def upgrade(self, database: sqlite3.Connection) -> None:
        """Bring a file of an older version to the newest, within a transaction."""
        (version,) = database.execute("PRAGMA user_version").fetchone()
        for step in range(version, _VERSION):
            database.execute(_UPGRADES[step])
            database.execute(f"PRAGMA user_version = {step + 1}")

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Do all of the block or nothing of it, against other threads and processes; VaultError if SQLite fails."""
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
        """Do the work as one transaction in a thread. It can be cancelled only before it begins."""

        def transact() -> T:
            with self.transaction() as database:
                return work(database)

        return await trio.to_thread.run_sync(transact, limiter=self._limiter)

    def history(self, encoded: object, verify: Callable[[bytes], T]) -> T:
        """Return the history in a column, as `verify` reads it."""
        return self.read(encoded, verify, "a change history does not verify")

    def read(self, encoded: object, decode: Callable[[bytes], T], problem: str) -> T:
        """Return the decoded value of a column; VaultError with that problem if it is not valid."""
        try:
            return decode(self.blob(encoded))
        except IdentityError as error:
            raise self.damaged(problem) from error

    def blob(self, value: object) -> bytes:
        """Return the bytes in a column."""
        if not isinstance(value, bytes):
            raise self.damaged("a value is not a blob")
        return value

    def damaged(self, what: str) -> VaultError:
        """Return the error for content that no vault writes."""
        return VaultError(f"the vault {self.path} is damaged ({what}): restore it from a backup")

    def close(self) -> None:
        """Close the file."""
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
    """Create the file if there is none, private to its owner; return whether it was created.

    VaultError if others may use it.
    """
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
