"""The state of a program across restarts: a vault with its identity, and a file with its client id and stream names."""

import json
import os
import secrets
import stat
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self

import attrs
import click

from trionode.cli.terminal import say
from trionode.errors import LocalError
from trionode.identity.stored import IdentityVault
from trionode.protocol.stream.names import valid_client_id, valid_stream_name
from trionode.stream.client import unique
from trionode.vault.memory import MemoryVault
from trionode.vault.sqlite import open_sqlite_vault

#: The environment variable that may hold the passphrase of a vault.
PASSPHRASE_VARIABLE = "TRIONODE_PASSPHRASE"  # noqa: S105  # the name of the variable, not the passphrase
#: Bytes of the largest file of stream names that is read. Its three names have at most 600 characters.
MAX_FILE = 4096


@attrs.frozen
class Conversation:
    """The names of the two streams of a conversation, and the client id of the reading position on the hub."""

    client_id: str
    bob_to_alice: str
    alice_to_bob: str

    @classmethod
    def create(cls, sends: str, receives: str) -> Self:
        """Return new names that cannot be guessed, with the given beginnings."""
        return cls(secrets.token_hex(16), unique(sends), unique(receives))


@attrs.frozen
class State:
    """The state file of a program.

    Without a path nothing is stored; without a passphrase the keys are not encrypted.
    """

    path: Path | None
    passphrase: str | None = attrs.field(repr=False)

    @asynccontextmanager
    async def open_vault(self) -> AsyncIterator[IdentityVault]:
        """Open the vault for the length of a block; VaultError if that fails."""
        if self.path is None:
            yield MemoryVault()
            return
        unencrypted = self.passphrase is None
        async with open_sqlite_vault(self.path, passphrase=self.passphrase, unencrypted=unencrypted) as vault:
            yield vault

    def conversation(self) -> Conversation | None:
        """Return the stored conversation, None if there is none.

        Raises LocalError if the file is damaged, or other users can read it.
        """
        if self.path is None:
            return None
        path = self._streams_path
        try:
            with path.open("rb") as file:
                mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
                data = file.read(MAX_FILE + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise LocalError(f"the file of stream names {path} can't be read: {error.strerror}") from error
        if mode & 0o077:
            raise LocalError(
                f"other users can read {path} (mode {mode:04o}), and its stream names are secrets: run chmod 600 on it"
            )
        return _parse(path, data)

    def keep(self, conversation: Conversation) -> None:
        """Write a conversation atomically to a file that only its owner can read."""
        if self.path is None:
            return
        path = self._streams_path
        written = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
        try:
            with open(os.open(written, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:  # noqa: PTH123  # it has its mode from the first byte on
                json.dump(attrs.asdict(conversation), file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            written.replace(path)
        except OSError as error:
            written.unlink(missing_ok=True)
            raise LocalError(f"the file of stream names {path} can't be written: {error.strerror}") from error

    @property
    def _streams_path(self) -> Path:
        assert self.path is not None
        return self.path.with_name(f"{self.path.name}.streams")


def _parse(path: Path, data: bytes) -> Conversation:
    try:
        fields: dict[str, str] = json.loads(data)
        read = Conversation(fields["client_id"], fields["bob_to_alice"], fields["alice_to_bob"])
        if (
            valid_client_id(read.client_id)
            and valid_stream_name(read.bob_to_alice)
            and valid_stream_name(read.alice_to_bob)
        ):
            return read
    except (ValueError, TypeError, KeyError):
        pass  # the error below says what to do
    raise LocalError(
        f"{path} is not a file of stream names as this program writes it: remove it to begin with new names"
    )


def read_passphrase(path: Path | None, file: Path | None, *, unencrypted: bool) -> str | None:
    """Return the passphrase of the vault at `path`, None if the vault is unencrypted or in memory.

    It comes from the file, from TRIONODE_PASSPHRASE, or from the terminal; UsageError if there is none.
    """
    if path is None:
        if file is not None or unencrypted:
            raise click.UsageError("--passphrase-file and --unencrypted need --state PATH")
        return None
    if unencrypted:
        if file is not None:
            raise click.UsageError("give one of --passphrase-file and --unencrypted, not both")
        return None
    if file is not None:
        try:
            return file.read_text().removesuffix("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise click.UsageError(f"the passphrase file {file} can't be read: {error}") from error
    passphrase = os.environ.get(PASSPHRASE_VARIABLE)
    if passphrase:
        return passphrase
    if os.isatty(0):
        if not path.exists():
            say(f"{path} is new: its keys are encrypted with the passphrase that you choose now.")
        try:
            answer: str = click.prompt("Passphrase", hide_input=True, confirmation_prompt=not path.exists(), err=True)
        except click.Abort:
            sys.exit(130)  # Ctrl-C or Ctrl-D
        return answer
    raise click.UsageError(
        f"the vault {path} needs a passphrase: give it by --passphrase-file FILE or {PASSPHRASE_VARIABLE}, "
        f"or use --unencrypted, which leaves the keys readable for everyone who can read the file"
    )
