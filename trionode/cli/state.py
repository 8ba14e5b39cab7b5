"""What a program keeps over restarts: a vault with its identity, and beside it a small file with its client id and its streams."""

import json
import os
import secrets
import stat
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import click

from trionode.cli.terminal import say
from trionode.errors import LocalError
from trionode.identity.stored import IdentityVault
from trionode.protocol.stream import valid_client_id, valid_stream_name
from trionode.vault.memory import MemoryVault
from trionode.vault.sqlite import open_sqlite_vault

#: The environment variable that may hold the passphrase of a vault.
PASSPHRASE_VARIABLE = "TRIONODE_PASSPHRASE"  # noqa: S105  # where the passphrase is, not what
#: Longest file of streams that is read: its three names have 600 characters at most.
MAX_FILE = 4096


@attrs.frozen
class Conversation:
    """The two streams of a conversation, and the id under which the hub keeps how far this program has read."""

    client_id: str
    bob_to_alice: str
    alice_to_bob: str


@attrs.frozen
class State:
    """Where a program keeps what outlives it: nowhere without a path; without a passphrase the keys lie in the file in the open."""

    path: Path | None
    passphrase: str | None = attrs.field(repr=False)

    @asynccontextmanager
    async def open_vault(self) -> AsyncIterator[IdentityVault]:
        """Open the vault for the length of a block; VaultError says why it can't be opened."""
        if self.path is None:
            yield MemoryVault()
            return
        unencrypted = self.passphrase is None
        async with open_sqlite_vault(self.path, passphrase=self.passphrase, unencrypted=unencrypted) as vault:
            yield vault

    def conversation(self) -> Conversation | None:
        """The conversation that was kept last; LocalError if the file is not as we write it, or others may read it."""
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
            raise LocalError(f"{path}, which keeps the streams, can't be read: {error.strerror}") from error
        if mode & 0o077:
            raise LocalError(
                f"others may read {path} (mode {mode:04o}), whose stream names are secrets: run chmod 600 on it"
            )
        return _parse(path, data)

    def keep(self, conversation: Conversation) -> None:
        """Keep a conversation, whole or not at all, for its owner's eyes alone."""
        if self.path is None:
            return
        path = self._streams_path
        written = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
        try:
            with open(os.open(written, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:  # noqa: PTH123  # its mode from the first byte on
                json.dump(attrs.asdict(conversation), file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            written.replace(path)
        except OSError as error:
            written.unlink(missing_ok=True)
            raise LocalError(f"{path}, which keeps the streams, can't be written: {error.strerror}") from error

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
        pass  # whatever it is, it is not ours
    raise LocalError(f"{path} keeps no streams as this program writes them: remove it to begin with new ones")


def read_passphrase(path: Path | None, file: Path | None, *, unencrypted: bool) -> str | None:
    """Return the passphrase of the vault at `path`, None for one that is unencrypted or in memory.

    It comes from the file, from TRIONODE_PASSPHRASE, or from whoever sits at the terminal; UsageError if from nowhere.
    """
    if path is None:
        if file is not None or unencrypted:
            raise click.UsageError("--passphrase-file and --unencrypted are about the file of --state PATH: name one")
        return None
    if unencrypted:
        if file is not None:
            raise click.UsageError("--unencrypted has no passphrase: leave out one of the two options")
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
            say(f"{path} is new: its keys are sealed with the passphrase that you choose now.")
        try:
            answer: str = click.prompt("Passphrase", hide_input=True, confirmation_prompt=not path.exists(), err=True)
        except click.Abort:
            sys.exit(130)  # Ctrl-C, or Ctrl-D, which is as much of an answer
        return answer
    raise click.UsageError(
        f"the vault {path} is sealed with a passphrase: give it by --passphrase-file FILE or {PASSPHRASE_VARIABLE}, "
        f"or say --unencrypted to let whoever can read the file have its keys"
    )
