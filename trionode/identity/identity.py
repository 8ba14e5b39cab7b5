"""What a program holds of its own identities: their names, their histories, and the keys in a vault that speak for them."""

import time
from collections.abc import Sequence
from typing import Protocol, Self

import attrs

from trionode.errors import VaultError
from trionode.identity.known_peers import KnownPeers
from trionode.protocol.identity.attestation import PurposeKeyAttestation
from trionode.protocol.identity.classic_identity import ClassicHistory, create_classic_history, verify_classic_history
from trionode.protocol.identity.credential import PresentedCredential
from trionode.protocol.identity.identity import ChangeHistory, Identifier, create_history, import_history, rotate
from trionode.protocol.identity.keys import KeyHandle, KeyKind, Vault
from trionode.protocol.identity.payload import IdentityPayload

#: Seconds that an attestation of our purpose key lasts, made anew whenever half of it is over: thirty days are what a thief of that key has, if
#: the identity's own key is safe. Rust peers attest for five years; a verifier accepts any time.
ATTESTATION_LIFETIME = 30 * 86_400

#: Characters in the name of an identity, which stands in listings and in vaults.
MAX_NAME = 100


@attrs.frozen
class StoredIdentity:
    """An identity as a vault keeps it: which keys of the vault are its own follows from the histories and the purpose key's public bytes.

    `classic` is the encoded history of its classic face (spec §9.1), once it has one.
    """

    name: str
    history: ChangeHistory
    purpose_key: bytes = attrs.field(repr=bytes.hex)
    classic: bytes | None = attrs.field(default=None, repr=False)

    @property
    def identifier(self) -> Identifier:
        """The identity's name to the world."""
        return self.history.identifier


class Identities(Protocol):
    """Where a vault keeps identities by their names."""

    async def all(self) -> Sequence[StoredIdentity]:
        """Return every identity, ordered by name."""
        ...

    async def save(self, identity: StoredIdentity, *, replaces: StoredIdentity | None = None) -> None:
        """Keep the identity under its name, whole or not at all.

        VaultError if what stands under that name now is not `replaces`: the name is taken, or another program was faster.
        """
        ...


class IdentityVault(Vault, Protocol):
    """A vault that also keeps identities and known peers."""

    @property
    def identities(self) -> Identities:
        """The identities whose keys are in this vault."""
        ...

    @property
    def known_peers(self) -> KnownPeers:
        """The peers that the identities in this vault have met."""
        ...


class MemoryIdentities:
    """Identities that are forgotten with the process."""

    def __init__(self) -> None:
        self._stored: dict[str, StoredIdentity] = {}

    async def all(self) -> Sequence[StoredIdentity]:
        """Return every identity, ordered by name."""
        return [self._stored[name] for name in sorted(self._stored)]

    async def save(self, identity: StoredIdentity, *, replaces: StoredIdentity | None = None) -> None:
        """Keep the identity under its name; VaultError if what stands there now is not `replaces`."""
        if self._stored.get(identity.name) != replaces:
            raise name_conflict(identity.name, replaces)
        self._stored[identity.name] = identity


def name_conflict(name: str, replaces: StoredIdentity | None) -> VaultError:
    """Return what is raised where the stored identity is not the one that was expected."""
    if replaces is None:
        return VaultError(f"an identity named {name!r} is in this vault already: load it, or choose another name")
    return VaultError(f"the identity {name!r} was changed by another program meanwhile: load it again, then repeat")


@attrs.frozen
class ClassicIdentity:
    """The classic face of an identity of ours, made by `Identity.classic`: a name and a key of its own, in the same vault under the same name."""

    vault: IdentityVault = attrs.field(repr=False)
    name: str
    history: ClassicHistory
    signing_key: KeyHandle

    @property
    def identifier(self) -> Identifier:
        """What classic peers know the identity by."""
        return self.history.identifier


class Identity:
    """An identity of ours, ready for handshakes: its keys are in `vault`, its name is local, its `identifier` is what peers know.

    Made by `create`, `load` or `import_`. It holds no secret itself.
    """

    def __init__(self, vault: IdentityVault, stored: StoredIdentity) -> None:
        latest = stored.history.latest
        self.vault = vault
        self._stored = stored
        self._signing_key = _key(vault, KeyKind.ED25519, latest.key.value, stored.name)
        self._purpose_key = _key(vault, KeyKind.X25519, stored.purpose_key, stored.name)
        self._attestation: PurposeKeyAttestation | None = None

    @classmethod
    async def create(cls, vault: IdentityVault, name: str = "default") -> Self:
        """Return a new identity, kept in the vault under `name`; VaultError if that name is taken.

        When cancelled, nothing is kept.
        """
        signing_key = vault.generate(KeyKind.ED25519)
        try:
            return await cls._adopt(vault, name, create_history(vault, signing_key, int(time.time())))
        except BaseException:  # refused or cancelled: a key that belongs to nobody must not stay behind
            vault.forget(signing_key)
            raise

    @classmethod
    async def load(cls, vault: IdentityVault, name: str = "default") -> Self:
        """Return the identity of that name; VaultError if the vault has none or lacks a key of it."""
        stored = await vault.identities.all()
        for each in stored:
            if each.name == name:
                return cls(vault, each)
        names = ", ".join(repr(each.name) for each in stored) or "none"
        raise VaultError(f"no identity named {name!r} in this vault, which has {names}: create it first")

    @classmethod
    async def load_or_create(cls, vault: IdentityVault, name: str = "default") -> Self:
        """Return the identity of that name; a vault that has none at all gets it, so that a mistyped name does not make a stranger."""
        if await vault.identities.all():
            return await cls.load(vault, name)
        return await cls.create(vault, name)

    @classmethod
    async def import_(cls, vault: IdentityVault, exported: str, name: str = "default") -> Self:
        """Return the identity of an exported history whose latest key is in this vault already; it gets a new purpose key.

        IdentityError if the text is no history that verifies, VaultError if the key is missing or the name is taken.
        """
        return await cls._adopt(vault, name, import_history(exported))

    @classmethod
    async def _adopt(cls, vault: IdentityVault, name: str, history: ChangeHistory) -> Self:
        if not 0 < len(name) <= MAX_NAME or not name.isprintable():
            raise VaultError(
                f"the name of an identity has 1 to {MAX_NAME} printable characters, this is {name[:200]!r}"
            )
        _key(vault, KeyKind.ED25519, history.latest.key.value, name)
        purpose_key = vault.generate(KeyKind.X25519)
        stored = StoredIdentity(name, history, purpose_key.public)
        try:
            await vault.identities.save(stored)
        except BaseException:  # as in `create`
            vault.forget(purpose_key)
            raise
        return cls(vault, stored)

    @property
    def name(self) -> str:
        """What this program calls the identity."""
        return self._stored.name

    @property
    def identifier(self) -> Identifier:
        """What peers know the identity by."""
        return self._stored.identifier

    @property
    def history(self) -> ChangeHistory:
        """All changes so far."""
        return self._stored.history

    @property
    def purpose_key(self) -> KeyHandle:
        """The X25519 key that this identity uses as the static key of its handshakes."""
        return self._purpose_key

    def export(self) -> str:
        """Return the public history as hex text."""
        return self.history.export()

    def payload(self, credentials: Sequence[PresentedCredential] = (), *, now: int | None = None) -> IdentityPayload:
        """Return what this identity says of itself in one handshake with `purpose_key`; `now` is in seconds since 1970, by default the clock's.

        The attestation in it is renewed whenever less than half of its time is left. VaultError once the identity itself has expired.
        """
        now = int(time.time()) if now is None else now
        return IdentityPayload(self.history, self._attest(now), tuple(credentials))

    def _attest(self, now: int) -> PurposeKeyAttestation:
        latest = self.history.latest
        if latest.expires_at <= now:
            raise VaultError(f"the identity {self.name!r} expired at {latest.expires_at}, now is {now}: rotate it")
        current = self._attestation
        expires_at = min(now + ATTESTATION_LIFETIME, latest.expires_at)
        if current is None or (
            (current.expires_at - now) * 2 < ATTESTATION_LIFETIME and current.expires_at < expires_at
        ):
            # Valid from the change on, not from now: a peer whose clock is minutes behind would refuse one that begins now.
            self._attestation = current = PurposeKeyAttestation.make(
                self.history,
                self.vault,
                self._signing_key,
                self._purpose_key,
                created_at=latest.created_at,
                expires_at=expires_at,
            )
        return current

    async def classic(self) -> ClassicIdentity:
        """Return the classic face of this identity (spec §9.1), which is made the first time and then kept.

        Nothing links the two but this vault: who knows one of the identifiers can't prove the other. VaultError if another program changed
        the identity meanwhile. When cancelled, it was kept whole or not at all.
        """
        if self._stored.classic is None:
            self._stored = await self._with_classic()
        assert self._stored.classic is not None
        history = verify_classic_history(self._stored.classic)
        signing_key = _key(self.vault, KeyKind.ED25519, history.root_key, self.name)
        return ClassicIdentity(self.vault, self.name, history, signing_key)

    async def _with_classic(self) -> StoredIdentity:
        before = self._stored
        signing_key = self.vault.generate(KeyKind.ED25519)
        try:
            stored = attrs.evolve(before, classic=create_classic_history(self.vault, signing_key).encoded)
            await self.vault.identities.save(stored, replaces=before)
        except VaultError:
            self.vault.forget(signing_key)
            # Another task may just have made the very thing that is wanted; anything else that has changed is the caller's to know.
            for found in await self.vault.identities.all():
                if found.classic is not None and attrs.evolve(found, classic=None) == before:
                    return found
            raise
        except BaseException:  # as in `create`
            self.vault.forget(signing_key)
            raise
        return stored

    async def rotate(self, *, revoke_purpose_key: bool = False) -> None:
        """Give the identity a new key, and forget the old one once the new history is kept; the identifier stays.

        The classic face, if there is one, stays as it is. `revoke_purpose_key` replaces that key too, and handshakes in progress with it fail. LocalError if the clock is before the latest
        change or the history is full, VaultError if another program was faster. When cancelled, nothing has changed.
        """
        revoke = revoke_purpose_key
        signing_key = self.vault.generate(KeyKind.ED25519)
        purpose_key = self.vault.generate(KeyKind.X25519) if revoke else self._purpose_key
        try:
            history = rotate(
                self.history, self.vault, self._signing_key, signing_key, int(time.time()), revoke_purpose_keys=revoke
            )
            stored = attrs.evolve(self._stored, history=history, purpose_key=purpose_key.public)
            await self.vault.identities.save(stored, replaces=self._stored)
        except BaseException:  # as in `create`
            self.vault.forget(signing_key)
            if revoke:
                self.vault.forget(purpose_key)
            raise
        old = [self._signing_key, *([self._purpose_key] if revoke else [])]
        self._stored, self._signing_key, self._purpose_key, self._attestation = stored, signing_key, purpose_key, None
        for key in old:
            self.vault.forget(key)

    def __repr__(self) -> str:
        return f"Identity({self.name!r}, {self.identifier})"


def _key(vault: Vault, kind: KeyKind, public: bytes, name: str) -> KeyHandle:
    held = vault.keys()
    for handle in held:
        if handle.kind is kind and handle.public == public:
            return handle
    raise VaultError(
        f"the {kind.name} key {public.hex()} of identity {name!r} is not in this vault: open the vault that has it"
    )
