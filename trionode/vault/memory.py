"""A vault in memory: its keys end with the process."""

from collections.abc import Sequence

import attrs
import nacl.bindings
import nacl.utils
from nacl.exceptions import RuntimeError as SodiumError

from trionode.errors import HandshakeError, VaultError
from trionode.identity.known_peers import MemoryKnownPeers
from trionode.identity.stored import MemoryIdentities
from trionode.protocol.identity.keys import KeyHandle, KeyKind

#: Both kinds of secret are 32 random bytes: an Ed25519 seed (RFC 8032), an X25519 scalar (RFC 7748).
SECRET_SIZE = 32


@attrs.frozen
class _Key:
    handle: KeyHandle
    secret: bytes = attrs.field(
        repr=False
    )  # X25519: the scalar; Ed25519: seed and public key, as libsodium signs with them
    ephemeral: bool


class MemoryVault:
    """A vault in memory (see `trionode.protocol.identity.keys.Vault`). Its keys end with the process."""

    def __init__(self) -> None:
        self._keys: dict[str, _Key] = {}
        #: The identities whose keys are here, and the peers that they have met.
        self.identities = MemoryIdentities()
        self.known_peers = MemoryKnownPeers()

    def generate(self, kind: KeyKind, *, ephemeral: bool = False) -> KeyHandle:
        """Generate a random key.

        Args:
          kind: The purpose of the key.
          ephemeral: Whether `keys` leaves it out.

        Returns:
          Its handle.
        """
        return self._keep(kind, nacl.utils.random(SECRET_SIZE), ephemeral=ephemeral)

    def import_secret(self, kind: KeyKind, secret: bytes) -> KeyHandle:
        """Store a key with known secret bytes, for tests and for keys from elsewhere.

        Args:
          kind: The purpose of the key.
          secret: 32 bytes: an Ed25519 seed (RFC 8032) or an X25519 scalar (RFC 7748).

        Returns:
          Its handle.

        Raises:
          VaultError: If the secret does not have 32 bytes.
        """
        if len(secret) != SECRET_SIZE:
            raise VaultError(
                f"a secret of {kind.name} has {SECRET_SIZE} bytes, this one {len(secret)}: give the raw seed or scalar"
            )
        return self._keep(kind, secret, ephemeral=False)

    def sign(self, handle: KeyHandle, data: bytes) -> bytes:
        """Sign with Ed25519 (RFC 8032).

        Args:
          handle: An ED25519 key of this vault.
          data: What to sign.

        Returns:
          The signature, 64 bytes.

        Raises:
          VaultError: If the key is not in this vault, or of another kind.
        """
        return nacl.bindings.crypto_sign(data, self._secret(handle, KeyKind.ED25519))[: nacl.bindings.crypto_sign_BYTES]

    def x25519(self, handle: KeyHandle, public: bytes) -> bytes:
        """Agree on a secret by X25519 (RFC 7748).

        Args:
          handle: An X25519 key of this vault.
          public: The peer's public key, 32 bytes.

        Returns:
          The shared secret, 32 bytes.

        Raises:
          HandshakeError: If `public` does not have 32 bytes, or is a point of small order (the secret would be all
              zero).
          VaultError: If the key is not in this vault, or of another kind.
        """
        secret = self._secret(handle, KeyKind.X25519)
        if len(public) != nacl.bindings.crypto_scalarmult_BYTES:
            raise HandshakeError(f"a public key has 32 bytes, this one {len(public)}")
        try:
            return nacl.bindings.crypto_scalarmult(secret, public)
        except SodiumError:
            raise HandshakeError("the public key is a point of small order") from None

    def forget(self, handle: KeyHandle) -> None:
        """Delete a key; does nothing if it is gone already.

        Args:
          handle: The key.
        """
        self._keys.pop(handle.name, None)

    def keys(self) -> Sequence[KeyHandle]:
        """Return the handles of all keys that are not ephemeral, oldest first."""
        return [key.handle for key in self._keys.values() if not key.ephemeral]

    def __repr__(self) -> str:
        return f"MemoryVault({len(self._keys)} keys)"

    def _keep(self, kind: KeyKind, secret: bytes, *, ephemeral: bool) -> KeyHandle:
        if kind is KeyKind.ED25519:
            public, secret = nacl.bindings.crypto_sign_seed_keypair(secret)
        else:
            public = nacl.bindings.crypto_scalarmult_base(secret)
        handle = KeyHandle(nacl.utils.random(16).hex(), kind, public)
        self._keys[handle.name] = _Key(handle, secret, ephemeral)
        return handle

    def _secret(self, handle: KeyHandle, kind: KeyKind) -> bytes:
        key = self._keys.get(handle.name)
        if key is None or key.handle != handle:
            raise VaultError(f"no key {handle.name} in this vault: it was forgotten, or it belongs to another vault")
        if handle.kind is not kind:
            raise VaultError(f"expected a key of kind {kind.name}, {handle.name} is of kind {handle.kind.name}")
        return key.secret
