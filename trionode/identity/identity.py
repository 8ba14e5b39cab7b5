"""The identities of this program: a name, a change history, credentials, and the keys of a vault."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Self

import attrs

from trionode.errors import ConfigError, IdentityError, VaultError
from trionode.identity.attributes import encode
from trionode.identity.stored import IdentityVault, StoredIdentity
from trionode.protocol.identity.attestation import PurposeKeyAttestation
from trionode.protocol.identity.classic_identity import ClassicHistory, create_classic_history, verify_classic_history
from trionode.protocol.identity.credential import Credential, PresentedCredential, issue_credential, read_credential
from trionode.protocol.identity.identity import ChangeHistory, Identifier, create_history, import_history, rotate
from trionode.protocol.identity.keys import KeyHandle, KeyKind, Vault
from trionode.protocol.identity.payload import MAX_CREDENTIALS, IdentityPayload

#: Seconds that an attestation of our purpose key lasts; it is renewed when half of them are over. A thief of that key
#: can use it for thirty days if the identity's own key is safe. Rust attests for five years; verifiers accept any time.
ATTESTATION_LIFETIME = 30 * 86_400
#: Seconds that a credential lasts unless its issuer says otherwise, as in Rust: thirty days.
CREDENTIAL_LIFETIME = 30 * 86_400
#: Bytes of all credentials of one identity: with a full history (32 KiB) they still fit into one handshake message.
MAX_CREDENTIAL_BYTES = 16 * 1024
#: Characters in the name of an identity, which listings and vaults show.
MAX_NAME = 100


@attrs.frozen
class ClassicIdentity:
    """The classic identity of an identity, made by `Identity.classic`: it has its own identifier and key."""

    vault: IdentityVault = attrs.field(repr=False)
    name: str
    history: ClassicHistory
    signing_key: KeyHandle

    @property
    def identifier(self) -> Identifier:
        """The identifier by which classic peers know it."""
        return self.history.identifier


class Identity:
    """An identity of this program. Its keys are in `vault`, its `name` is local, peers know it by its `identifier`.

    `create`, `load`, `load_or_create` and `import_` make it. The object holds no secret itself.
    """

    def __init__(self, vault: IdentityVault, stored: StoredIdentity) -> None:
        self.vault = vault
        self._stored = stored
        self._signing_key = _key(vault, KeyKind.ED25519, stored.history.latest.key.value, stored.name)
        self._purpose_key = _key(vault, KeyKind.X25519, stored.purpose_key, stored.name)
        self._attestation: PurposeKeyAttestation | None = None

    @classmethod
    async def create(cls, vault: IdentityVault, name: str = "default") -> Self:
        """Create an identity and store it in the vault.

        Args:
          vault: Where its keys are generated and stored.
          name: What this program calls it: 1 to 100 printable characters.

        Returns:
          The new identity.

        Raises:
          VaultError: If the name is taken or not allowed, or the vault can't be written.

        If cancelled, nothing is stored.
        """
        with _new_keys(vault, KeyKind.ED25519) as (signing_key,):
            return await cls._adopt(vault, name, create_history(vault, signing_key, int(time.time())))

    @classmethod
    async def load(cls, vault: IdentityVault, name: str = "default") -> Self:
        """Load an identity from the vault.

        Args:
          vault: Where it is stored.
          name: What this program calls it.

        Returns:
          The identity.

        Raises:
          VaultError: If the vault has no identity of that name, or lacks a key of it.

        If cancelled, nothing has changed.
        """
        stored = await vault.identities.all()
        for each in stored:
            if each.name == name:
                return cls(vault, each)
        names = ", ".join(repr(each.name) for each in stored) or "none"
        raise VaultError(f"no identity named {name!r} in this vault, which has {names}: create it first")

    @classmethod
    async def load_or_create(cls, vault: IdentityVault, name: str = "default") -> Self:
        """Load an identity, or create it if the vault has no identity at all.

        A vault with other identities gets no new one, so a mistyped name is an error.

        Args:
          vault: Where it is stored.
          name: What this program calls it.

        Returns:
          The identity.

        Raises:
          VaultError: As for `load` and `create`.

        If cancelled, nothing is stored.
        """
        if await vault.identities.all():
            return await cls.load(vault, name)
        return await cls.create(vault, name)

    @classmethod
    async def import_(cls, vault: IdentityVault, exported: str, name: str = "default") -> Self:
        """Store the identity of an exported history whose latest key is in this vault already.

        It gets a new purpose key.

        Args:
          vault: Where its key is.
          exported: The change history as hex text, as `export` returns it.
          name: What this program calls it.

        Returns:
          The identity.

        Raises:
          IdentityError: If the text is not a history that verifies.
          VaultError: If the key is missing or the name is taken.

        If cancelled, nothing is stored.
        """
        return await cls._adopt(vault, name, import_history(exported))

    @classmethod
    async def _adopt(cls, vault: IdentityVault, name: str, history: ChangeHistory) -> Self:
        if not 0 < len(name) <= MAX_NAME or not name.isprintable():
            raise VaultError(
                f"the name of an identity has 1 to {MAX_NAME} printable characters, this is {name[:200]!r}"
            )
        _key(vault, KeyKind.ED25519, history.latest.key.value, name)
        with _new_keys(vault, KeyKind.X25519) as (purpose_key,):
            stored = StoredIdentity(name, history, purpose_key.public)
            await vault.identities.save(stored)
        return cls(vault, stored)

    @property
    def name(self) -> str:
        """What this program calls the identity."""
        return self._stored.name

    @property
    def identifier(self) -> Identifier:
        """The identifier by which peers know the identity."""
        return self._stored.identifier

    @property
    def history(self) -> ChangeHistory:
        """All changes so far."""
        return self._stored.history

    @property
    def credentials(self) -> tuple[PresentedCredential, ...]:
        """The credentials that this identity presents in its handshakes, at most one of each issuer."""
        return tuple(map(PresentedCredential.decode, self._stored.credentials))

    @property
    def purpose_key(self) -> KeyHandle:
        """The X25519 key that is the static key of this identity's handshakes."""
        return self._purpose_key

    def export(self) -> str:
        """Return the public change history as hex text."""
        return self.history.export()

    def issue_credential(
        self,
        subject: Identifier | str,
        attributes: Mapping[str, str],
        *,
        lifetime: float = CREDENTIAL_LIFETIME,
        schema: int = 0,
    ) -> str:
        """Issue a credential: as an authority, say which attributes another identity has.

        Peers that know this identity as an authority accept it (`trust_attributes`, `from_attributes`). A rotation of
        this identity invalidates the credentials that it issued before, once peers know the new history.

        Args:
          subject: The identifier of the identity that has the attributes.
          attributes: Their names and values.
          lifetime: Seconds until the credential expires.
          schema: A number that says what the attributes mean; its meaning is yours.

        Returns:
          The credential as hex text, for `add_credential` of the subject. It is not secret.

        Raises:
          ConfigError: If the lifetime is not positive or this identity expires before the credential.
          IdentityError: If `subject` is not an identifier.
        """
        now, latest = int(time.time()), self.history.latest
        expires_at = now + int(lifetime)
        if not now < expires_at <= latest.expires_at:
            raise ConfigError(
                f"a credential lasts more than 0 s, and at most as long as its issuer {self.name!r}, "
                f"{latest.expires_at - now} s; this is {lifetime:g} s"
            )
        subject = Identifier.parse(subject) if isinstance(subject, str) else subject
        if subject.classic:
            raise ConfigError(
                f"classic identities carry no credentials: give an identifier that begins with I, not {subject}"
            )
        return issue_credential(
            self.history,
            self.vault,
            self._signing_key,
            subject,
            {encode(name): encode(value) for name, value in attributes.items()},
            # A clock that was set back must not make an attestation older than the key that signs it.
            created_at=max(now, latest.created_at),
            expires_at=expires_at,
            schema=schema,
        ).export()

    async def add_credential(self, credential: str) -> Credential:
        """Store a credential that an authority issued for this identity, and present it in all further handshakes.

        It replaces an earlier credential of the same issuer. The issuer's signature is not checked: only peers know the
        issuer's history. As a responder, this identity presents its credentials to every initiator.

        Args:
          credential: The hex text that `issue_credential` returned.

        Returns:
          What the credential says.

        Raises:
          IdentityError: If the text is no credential, is for another identity, or has expired.
          VaultError: If this identity has too many credentials, or another program changed it meanwhile.

        If cancelled, the credential is stored completely or not at all.
        """
        presented = PresentedCredential.import_(credential)
        said = read_credential(presented)
        if said.subject != self.identifier:
            raise IdentityError(f"the credential is for {said.subject}, this identity is {self.identifier}")
        if said.expires_at <= time.time():
            raise IdentityError(f"the credential expired at {said.expires_at} (seconds since 1970): ask for a new one")
        others = [each for each in self.credentials if read_credential(each).issuer != said.issuer]
        encoded = tuple(each.encode() for each in (*others, presented))
        if len(encoded) > MAX_CREDENTIALS or sum(map(len, encoded)) > MAX_CREDENTIAL_BYTES:
            raise VaultError(
                f"an identity holds at most {MAX_CREDENTIALS} credentials of {MAX_CREDENTIAL_BYTES} bytes together: "
                f"use another identity, or fewer attributes"
            )
        await self._save(attrs.evolve(self._stored, credentials=encoded))
        return said

    async def _save(self, stored: StoredIdentity) -> None:
        await self.vault.identities.save(stored, replaces=self._stored)
        self._stored = stored

    def payload(self, *, now: int | None = None) -> IdentityPayload:
        """Return the payload that this identity sends in a handshake with `purpose_key`; handshakes call it.

        The attestation in it is renewed when less than half of its time is left.

        Args:
          now: Seconds since 1970; by default the clock's.

        Returns:
          The history, an attestation of the purpose key, and the credentials.

        Raises:
          VaultError: If the identity has expired.
        """
        return IdentityPayload(self.history, self._attest(int(time.time()) if now is None else now), self.credentials)

    def _attest(self, now: int) -> PurposeKeyAttestation:
        latest = self.history.latest
        if latest.expires_at <= now:
            raise VaultError(f"the identity {self.name!r} expired at {latest.expires_at}, now is {now}: rotate it")
        current = self._attestation
        expires_at = min(now + ATTESTATION_LIFETIME, latest.expires_at)
        if current is None or (
            (current.expires_at - now) * 2 < ATTESTATION_LIFETIME and current.expires_at < expires_at
        ):
            # Valid from the change on, not from now: a peer whose clock is minutes behind would refuse one that begins
            # now.
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
        """Return the classic identity that belongs to this one (spec §9.1). The first call creates and stores it.

        Only this vault links the two: a peer that knows one identifier can't prove the other.

        Returns:
          The classic identity.

        Raises:
          VaultError: If another program changed the identity meanwhile.

        If cancelled, the classic identity is stored completely or not at all.
        """
        if self._stored.classic is None:
            await self._add_classic()
        assert self._stored.classic is not None
        history = verify_classic_history(self._stored.classic)
        signing_key = _key(self.vault, KeyKind.ED25519, history.root_key, self.name)
        return ClassicIdentity(self.vault, self.name, history, signing_key)

    async def _add_classic(self) -> None:
        before = self._stored
        try:
            with _new_keys(self.vault, KeyKind.ED25519) as (signing_key,):
                await self._save(attrs.evolve(before, classic=create_classic_history(self.vault, signing_key).encoded))
        except VaultError:
            # Another task may have created the classic identity just now. Every other change is an error for the
            # caller.
            for found in await self.vault.identities.all():
                if found.classic is not None and attrs.evolve(found, classic=None) == before:
                    self._stored = found
                    return
            raise

    async def rotate(self, *, revoke_purpose_key: bool = False) -> None:
        """Give the identity a new key and forget the old one.

        The identifier, the classic identity and the credentials stay.

        Args:
          revoke_purpose_key: Also replace the key that handshakes use. Handshakes in progress with it fail.

        Raises:
          LocalError: If the clock is before the latest change, or the history is full.
          VaultError: If another program changed the identity meanwhile.

        If cancelled, nothing has changed.
        """
        kinds = [KeyKind.ED25519, KeyKind.X25519] if revoke_purpose_key else [KeyKind.ED25519]
        old = self._signing_key, self._purpose_key
        with _new_keys(self.vault, *kinds) as new:
            signing_key, purpose_key = (*new, *old[len(new) :])
            now = int(time.time())
            history = rotate(self.history, self.vault, old[0], signing_key, now, revoke_purpose_keys=revoke_purpose_key)
            await self._save(attrs.evolve(self._stored, history=history, purpose_key=purpose_key.public))
        self._signing_key, self._purpose_key, self._attestation = signing_key, purpose_key, None
        for key in old[: len(new)]:
            self.vault.forget(key)

    def __repr__(self) -> str:
        return f"Identity({self.name!r}, {self.identifier})"


@contextmanager
def _new_keys(vault: Vault, *kinds: KeyKind) -> Iterator[list[KeyHandle]]:
    """Generate keys, and forget them if the block fails or is cancelled: no identity would own them."""
    keys = [vault.generate(kind) for kind in kinds]
    try:
        yield keys
    except BaseException:  # whatever it is, cancellation too
        for key in keys:
            vault.forget(key)
        raise


def _key(vault: Vault, kind: KeyKind, public: bytes, name: str) -> KeyHandle:
    held = vault.keys()
    for handle in held:
        if handle.kind is kind and handle.public == public:
            return handle
    raise VaultError(
        f"the {kind.name} key {public.hex()} of identity {name!r} is not in this vault: open the vault that has it"
    )
