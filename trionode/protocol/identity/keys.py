"""The interface of a vault: keys that are used through handles while their secrets stay inside."""

import enum
from collections.abc import Sequence
from typing import Protocol

import attrs


class KeyKind(enum.Enum):
    """The kinds of keys: Ed25519 keys sign, X25519 keys agree on shared secrets."""

    ED25519 = "ed25519"
    X25519 = "x25519"


@attrs.frozen
class KeyHandle:
    """A key in a vault: `name` is the vault's own random hex name for it, `public` its 32 raw public bytes."""

    name: str
    kind: KeyKind
    public: bytes = attrs.field(repr=bytes.hex)


class Vault(Protocol):
    """The holder of secret keys. Secrets never leave it, and never appear in a repr, a log or an error.

    Every method is synchronous, because the sans-IO handshakes call it. Each raises `VaultError` for a handle that is
    not (or no longer) in this vault, or that is of the wrong kind.
    """

    def generate(self, kind: KeyKind, *, ephemeral: bool = False) -> KeyHandle:
        """Return a new random key; an ephemeral key is never stored on disk and is not in `keys()`."""
        ...

    def sign(self, handle: KeyHandle, data: bytes) -> bytes:
        """Return the 64-byte Ed25519 signature of `data` (RFC 8032) by an ED25519 key."""
        ...

    def x25519(self, handle: KeyHandle, public: bytes) -> bytes:
        """Return the 32-byte shared secret of an X25519 key and the peer's 32-byte `public` key (RFC 7748).

        HandshakeError if `public` does not have 32 bytes, or if the result is all zero (a point of small order).
        """
        ...

    def forget(self, handle: KeyHandle) -> None:
        """Delete the key for good. If it is gone already, this does nothing."""
        ...

    def keys(self) -> Sequence[KeyHandle]:
        """Return the handles of all keys held that are not ephemeral, oldest first."""
        ...
