"""Finds secrets in a test's output and log: those that vaults and channels make, and those that a test names."""

import base64
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from trionode.protocol.identity.keys import KeyHandle, KeyKind
from trionode.protocol.session import session
from trionode.vault.memory import MemoryVault
from trionode.vault.sqlite import SqliteVault

#: Characters of the shortest text that is searched for. Shorter ones occur in any text by chance.
SHORTEST = 8


def encodings(secret: bytes) -> dict[str, str]:
    """Return the forms in which secret bytes can occur in a text, by their names."""
    forms = {
        "hex": secret.hex(),
        "bytes in decimal": str(list(secret))[1:-1],
        "as Python shows bytes": repr(secret)[2:-1],
    }
    # In base64 the secret may start anywhere in a longer value: the characters that depend on its neighbours are cut
    # off.
    for shift in range(3):
        encoded = base64.b64encode(bytes(shift) + secret)
        forms[f"base64, {shift} bytes in"] = encoded[4 * (shift > 0) : len(encoded) // 4 * 4 - 4].decode()
    return forms


@attrs.frozen
class Secret:
    """Secret bytes, and what they are."""

    what: str
    value: bytes = attrs.field(repr=False)

    def found_in(self, text: str, lower: str, standard: str) -> str | None:
        """Return the form in which it occurs in a text, or None.

        `lower` is the text in lower case, `standard` the text with the standard alphabet of base64.
        """
        try:
            if self.value.decode() in text:
                return "as it is"
        except UnicodeDecodeError:
            pass
        for form, encoded in encodings(self.value).items():
            searched = lower if form == "hex" else standard if form.startswith("base64") else text
            if len(encoded) >= SHORTEST and encoded in searched:
                return form
        return None


class Secrets:
    """The secrets of one test and of the whole run, noted while this is started."""

    def __init__(self) -> None:
        #: Where new secrets go: those of the running test, or `lasting`.
        self.noted: list[Secret] = []
        #: The secrets of fixtures that outlive a test.
        self.lasting: list[Secret] = []
        self._patches = pytest.MonkeyPatch()

    def note(self, what: str, value: bytes) -> None:
        """Note a secret, unless it is so short that it occurs in any text."""
        if len(value) >= SHORTEST:
            self.noted.append(Secret(what, value))

    def start(self) -> None:
        """Note every secret that vaults and channels make from now on, until `stop`.

        It patches where each of them arises.
        """
        add_key, agree, open_file, cipher = MemoryVault._keep, MemoryVault.x25519, SqliteVault.__init__, AESGCM  # noqa: SLF001  # every key passes here

        def note_key(vault: MemoryVault, kind: KeyKind, secret: bytes, *, ephemeral: bool) -> KeyHandle:
            self.note(f"the secret of {'an ephemeral' if ephemeral else 'a lasting'} key of kind {kind.name}", secret)
            return add_key(vault, kind, secret, ephemeral=ephemeral)

        def note_shared(vault: MemoryVault, handle: KeyHandle, public: bytes) -> bytes:
            shared = agree(vault, handle, public)
            self.note("the shared secret of an X25519 exchange", shared)
            return shared

        def note_passphrase(vault: SqliteVault, path: Path, passphrase: str | None) -> None:
            # A word of letters alone occurs in messages that mean something else.
            if passphrase is not None and not passphrase.isalpha():
                self.note(f"the passphrase of {path}", passphrase.encode())
            open_file(vault, path, passphrase)

        def note_cipher(key: bytes) -> AESGCM:
            self.note("the key of a secure channel", key)
            return cipher(key)

        self._patches.setattr(MemoryVault, "_keep", note_key)
        self._patches.setattr(MemoryVault, "x25519", note_shared)
        self._patches.setattr(SqliteVault, "__init__", note_passphrase)
        self._patches.setattr(session, "AESGCM", note_cipher)

    def stop(self) -> None:
        """Remove the patches."""
        self._patches.undo()

    def found_in(self, text: str) -> Iterator[tuple[Secret, str]]:
        """Yield each secret that occurs in a text, and its form there."""
        lower, standard = text.lower(), text.replace("-", "+").replace("_", "/")
        for secret in (*self.lasting, *self.noted):
            if (form := secret.found_in(text, lower, standard)) is not None:
                yield secret, form
