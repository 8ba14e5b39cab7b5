"""What a vault stores of identities."""

from collections.abc import Sequence
from typing import Protocol

import attrs

from trionode.errors import VaultError
from trionode.identity.known_peers import KnownPeers
from trionode.protocol.identity.identity import ChangeHistory, Identifier
from trionode.protocol.identity.keys import Vault


@attrs.frozen
class StoredIdentity:
    """An identity as a vault stores it. Its keys are those in the vault that the histories and `purpose_key` name.

    `classic` is the encoded history of its classic identity (spec §9.1), once there is one. `credentials` are encoded,
    at most one of each issuer.
    """

    name: str
    history: ChangeHistory
    purpose_key: bytes = attrs.field(repr=bytes.hex)
    classic: bytes | None = attrs.field(default=None, repr=False)
    credentials: tuple[bytes, ...] = attrs.field(default=(), repr=False)

    @property
    def identifier(self) -> Identifier:
        """The identifier by which peers know it."""
        return self.history.identifier


class Identities(Protocol):
    """The identities in a vault, by their names."""

    async def all(self) -> Sequence[StoredIdentity]:
        """Return every identity, ordered by name."""
        ...

    async def save(self, identity: StoredIdentity, *, replaces: StoredIdentity | None = None) -> None:
        """Store the identity under its name.

        Args:
          identity: What to store.
          replaces: What is expected to be stored under that name now; None if nothing.

        Raises:
          VaultError: If something else is stored there: the name is taken, or another program changed the identity.

        If cancelled, the identity is stored completely or not at all.
        """
        ...


class IdentityVault(Vault, Protocol):
    """A vault that also stores identities and known peers."""

    @property
    def identities(self) -> Identities:
        """The identities whose keys are in this vault."""
        ...

    @property
    def known_peers(self) -> KnownPeers:
        """The peers that the identities in this vault have met."""
        ...


class MemoryIdentities:
    """Identities in memory (see `Identities`)."""

    def __init__(self) -> None:
        self._stored: dict[str, StoredIdentity] = {}

    async def all(self) -> Sequence[StoredIdentity]:
        """Return every identity, ordered by name."""
        return [self._stored[name] for name in sorted(self._stored)]

    async def save(self, identity: StoredIdentity, *, replaces: StoredIdentity | None = None) -> None:
        """Store the identity under its name; VaultError if the stored identity is not `replaces`."""
        if self._stored.get(identity.name) != replaces:
            raise name_conflict(identity.name, replaces)
        self._stored[identity.name] = identity


def name_conflict(name: str, replaces: StoredIdentity | None) -> VaultError:
    """Return the error for a stored identity that is not the expected one."""
    if replaces is None:
        return VaultError(f"an identity named {name!r} is in this vault already: load it, or choose another name")
    return VaultError(f"the identity {name!r} was changed by another program meanwhile: load it again, then repeat")
