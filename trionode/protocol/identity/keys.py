"""What a vault is: keys that can be used by their handles while their secrets never leave it."""

import enum
from collections.abc import Sequence
from typing import Protocol

import attrs


class KeyKind(enum.Enum):
    """What a key is for: Ed25519 keys sign, X25519 keys agree on secrets."""

    ED25519 = "ed25519"
    X25519 = "x25519"


@attrs.frozen
class KeyHandle:
    """A key in a vault: `name` is the vault's own random hex name for it, `public` its 32 raw public bytes."""

    name: str
    kind: KeyKind
    public: bytes = attrs.field(repr=bytes.hex)


class Vault(Protocol):
    """The holder of secret keys; handles go out, secrets never do, and no secret stands in a repr, a log or an error.

    Every method is synchronous and does its work at once, so that the sans-IO handshakes can call it. Each raises `VaultError` for
    a handle that is not (or no longer) in this vault, or that is of the wrong kind.
    """

    def generate(self, kind: KeyKind, *, ephemeral: bool = False) -> KeyHandle:
        """Return a new random key; an ephemeral one is never stored durably and is not in `keys()`."""
        ...

    def sign(self, handle: KeyHandle, data: bytes) -> bytes:
        """Return the 64-byte Ed25519 signature of `data` (RFC 8032) by an ED25519 key."""
        ...

    def x25519(self, handle: KeyHandle, public: bytes) -> bytes:
        """Return the 32-byte secret that an X25519 key shares with the peer's `public` 32 bytes (RFC 7748).

        Raises `HandshakeError` if `public` is not 32 bytes long or the result is all zero (a point of small order).
        """
        ...

    def forget(self, handle: KeyHandle) -> None:
        """Delete the key for good; to forget one that is gone already does nothing."""
        ...

    def keys(self) -> Sequence[KeyHandle]:
        """Return the handles of all keys held that are not ephemeral, oldest first."""
        ...
