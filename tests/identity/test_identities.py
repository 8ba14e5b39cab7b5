import time
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path

import attrs
import pytest
import trio

from trionode.errors import IdentityError, LocalError, VaultError
from trionode.identity.identity import ATTESTATION_LIFETIME, MAX_NAME, Identity
from trionode.identity.known_peers import KnownPeers, MemoryKnownPeers
from trionode.identity.stored import IdentityVault, MemoryIdentities
from trionode.protocol.handshake.current_exchange import CurrentExchange
from trionode.protocol.handshake.noise import Role
from trionode.protocol.identity.classic_identity import ClassicHistory, create_classic_history, verify_classic_history
from trionode.protocol.identity.identity import ChangeHistory, Identifier, create_history, rotate, verify_history
from trionode.protocol.identity.keys import KeyKind
from trionode.protocol.identity.payload import IdentityPayload
from trionode.vault.memory import MemoryVault
from trionode.vault.sqlite import SqliteKnownPeers, open_sqlite_vault

NOW = 1_700_000_000


class RememberingVault(MemoryVault):
    """A vault in memory that keeps identities and peers too."""

    def __init__(self) -> None:
        super().__init__()
        self.identities = MemoryIdentities()
        self.known_peers = MemoryKnownPeers()


@pytest.fixture(params=["memory", "sqlite"])
async def vault(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[IdentityVault]:
    if request.param == "memory":
        yield RememberingVault()
    else:
        async with open_sqlite_vault(tmp_path / "vault", unencrypted=True) as opened:
            yield opened


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The time that identities see: change its one item."""
    now = [NOW]
    monkeypatch.setattr(time, "time", lambda: now[0])
    return now


async def test_a_new_identity_can_be_loaded_and_is_the_same(vault: IdentityVault) -> None:
    created = await Identity.create(vault, "alice")
    loaded = await Identity.load(vault, "alice")
    assert loaded.identifier == created.identifier
    assert loaded.purpose_key == created.purpose_key
    assert verify_history(bytes.fromhex(loaded.export())) == created.history
    assert str(created.identifier) in repr(created)


async def test_identities_are_listed_by_name_with_their_identifiers(vault: IdentityVault) -> None:
    made = [await Identity.create(vault, name) for name in ("bob", "alice")]
    listed = await vault.identities.all()
    assert [(each.name, each.identifier) for each in listed] == [
        (each.name, each.identifier) for each in reversed(made)
    ]


async def test_an_identity_name_can_be_used_once(vault: IdentityVault) -> None:
    first = await Identity.create(vault)
    keys = len(vault.keys())
    with pytest.raises(VaultError, match="'default' is in this vault already"):
        await Identity.create(vault)
    assert len(vault.keys()) == keys, "no key stays behind"
    assert (await Identity.load(vault)).identifier == first.identifier


@pytest.mark.parametrize("name", ["", "a" * (MAX_NAME + 1), "two\nlines", "\x1b[31mred"])
async def test_names_are_short_and_printable(name: str) -> None:
    vault = RememberingVault()
    with pytest.raises(VaultError, match="printable"):
        await Identity.create(vault, name)
    assert not vault.keys()


async def test_an_identity_that_is_not_there_is_a_helpful_error(vault: IdentityVault) -> None:
    await Identity.create(vault, "alice")
    with pytest.raises(VaultError, match=r"'bob'.*'alice'.*create it"):
        await Identity.load(vault, "bob")


async def test_a_cancelled_creation_or_rotation_has_happened_whole_or_not_at_all(vault: IdentityVault) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await Identity.create(vault, "alice")
    assert len(vault.keys()) == 2 * len(await vault.identities.all())
    bob = await Identity.create(vault, "bob")
    with trio.CancelScope() as scope:
        scope.cancel()
        await bob.rotate(revoke_purpose_key=True)
    assert len(vault.keys()) == 2 * len(await vault.identities.all())
    assert (await Identity.load(vault, "bob")).history == bob.history


async def test_an_identity_is_ready_for_a_handshake(vault: IdentityVault) -> None:
    alice, bob = await Identity.create(vault, "alice"), await Identity.create(vault, "bob")
    initiator = CurrentExchange.create(Role.INITIATOR, vault, alice.purpose_key, alice.payload())
    responder = CurrentExchange.create(Role.RESPONDER, vault, bob.purpose_key, bob.payload())
    now = time.time()
    second = responder.receive(initiator.begin(), int(now))
    assert second is not None
    initiator.receive(second, int(now))
    assert initiator.peer is not None
    assert initiator.peer.identifier == bob.identifier


async def test_an_attestation_verifies_for_clocks_minutes_behind_and_is_renewed_at_half_of_its_time(
    clock: list[int],
) -> None:
    alice = await Identity.create(RememberingVault())
    clock[0] += 1000
    first = alice.payload()
    first.verify(alice.purpose_key.public, clock[0] - 600)
    clock[0] += ATTESTATION_LIFETIME // 2
    assert alice.payload().attestation == first.attestation
    clock[0] += 1
    second = alice.payload()
    assert second.attestation.expires_at == clock[0] + ATTESTATION_LIFETIME
    IdentityPayload.decode(second.encode()).verify(alice.purpose_key.public, clock[0])


async def test_no_attestation_outlives_its_identity_and_an_expired_identity_says_so(clock: list[int]) -> None:
    alice = await Identity.create(RememberingVault())
    end = alice.history.latest.expires_at
    clock[0] = end - 10
    alice.payload().verify(alice.purpose_key.public, end - 1)
    assert alice.payload().attestation is alice.payload().attestation
    clock[0] = end
    with pytest.raises(VaultError, match="rotate it"):
        alice.payload()
    await alice.rotate()
    alice.payload().verify(alice.purpose_key.public, end)


@pytest.mark.parametrize("revoke", [False, True])
async def test_a_rotation_changes_the_key_and_no_identifier(vault: IdentityVault, revoke: bool) -> None:
    alice = await Identity.create(vault)
    identifier, purpose_key, old = alice.identifier, alice.purpose_key, alice.history
    await alice.rotate(revoke_purpose_key=revoke)
    assert alice.identifier == identifier
    assert (alice.purpose_key == purpose_key) is not revoke
    assert alice.history.changes[:-1] == old.changes
    assert alice.history.latest.revoke_all_purpose_keys is revoke
    assert len(vault.keys()) == 2, "the old keys are forgotten"
    again = await Identity.load(vault)
    assert again.history == alice.history
    now = int(time.time())
    IdentityPayload.decode(again.payload().encode()).verify(alice.purpose_key.public, now)


async def test_second_of_two_programs_that_rotate_one_identity_gets_an_error(vault: IdentityVault) -> None:
    await Identity.create(vault)
    one, two = await Identity.load(vault), await Identity.load(vault)
    await one.rotate()
    keys = set(vault.keys())
    with pytest.raises(VaultError):
        await two.rotate()
    assert set(vault.keys()) == keys
    assert (await Identity.load(vault)).history == one.history


async def test_a_failed_rotation_leaves_the_identity_as_it_was(clock: list[int]) -> None:
    vault = RememberingVault()
    alice = await Identity.create(vault)
    keys, history = vault.keys(), alice.history
    clock[0] -= 1
    with pytest.raises(LocalError, match="set the clock"):
        await alice.rotate(revoke_purpose_key=True)
    assert vault.keys() == keys
    assert alice.history == history
    alice.payload()


async def test_an_exported_identity_is_imported_where_its_key_is() -> None:
    vault, other = RememberingVault(), RememberingVault()
    key = vault.import_secret(KeyKind.ED25519, bytes([1]) * 32)
    exported = create_history(vault, key, NOW).export()
    with pytest.raises(VaultError, match="not in this vault"):
        await Identity.import_(other, exported)
    with pytest.raises(IdentityError):
        await Identity.import_(vault, exported[:-2] + "00")
    alice = await Identity.import_(vault, exported, "alice")
    assert alice.export() == exported
    assert (await Identity.load(vault, "alice")).purpose_key == alice.purpose_key


# The classic identity


async def test_identity_has_one_classic_identity_which_is_stored(vault: IdentityVault) -> None:
    alice = await Identity.create(vault, "alice")
    classic = await alice.classic()
    assert str(classic.identifier).startswith("P")
    assert classic.signing_key.public == classic.history.root_key
    assert classic.signing_key.public != alice.history.latest.key.value
    assert (classic.vault, classic.name) == (vault, "alice")
    assert await alice.classic() == classic
    assert await (await Identity.load(vault, "alice")).classic() == classic
    assert len(vault.keys()) == 3


@pytest.mark.parametrize("revoke", [False, True])
async def test_rotation_keeps_the_classic_identity(vault: IdentityVault, revoke: bool) -> None:
    alice = await Identity.create(vault)
    classic = await alice.classic()
    await alice.rotate(revoke_purpose_key=revoke)
    assert await alice.classic() == classic
    assert await (await Identity.load(vault)).classic() == classic
    assert len(vault.keys()) == 3


async def test_concurrent_tasks_get_the_same_classic_identity(vault: IdentityVault) -> None:
    alice = await Identity.create(vault, "alice")
    again = await Identity.load(vault, "alice")
    found = []

    async def ask(identity: Identity) -> None:
        found.append(await identity.classic())

    async with trio.open_nursery() as nursery:
        for identity in (alice, again, alice, again):
            nursery.start_soon(ask, identity)
    assert len(found) == 4
    assert len({each.identifier for each in found}) == 1
    assert len(vault.keys()) == 3, "the keys of the later tasks are forgotten"


async def test_refused_or_cancelled_classic_identity_leaves_no_key(vault: IdentityVault) -> None:
    one, two = await Identity.create(vault), await Identity.load(vault)
    await one.rotate()
    keys = set(vault.keys())
    with pytest.raises(VaultError, match="changed by another program"):
        await two.classic()
    assert set(vault.keys()) == keys
    with trio.CancelScope() as scope:
        scope.cancel()
        await one.classic()
    (stored,) = await vault.identities.all()
    assert len(vault.keys()) == (2 if stored.classic is None else 3)
    assert (await one.classic()).history.encoded == (await vault.identities.all())[0].classic


# Known peers


def histories(seed: int) -> tuple[ChangeHistory, ChangeHistory, ChangeHistory]:
    """One identity: as it began, after a rotation, after another rotation that contradicts that one."""
    vault = MemoryVault()
    first, second, third = (vault.import_secret(KeyKind.ED25519, bytes([seed + add]) * 32) for add in (0, 80, 160))
    old = create_history(vault, first, NOW)
    return old, rotate(old, vault, first, second, NOW), rotate(old, vault, first, third, NOW)


async def test_a_history_goes_forward_only(vault: IdentityVault) -> None:
    old, new, fork = histories(1)
    peers: KnownPeers = vault.known_peers
    for history in (old, old, new, new):
        await peers.check(history)
    with pytest.raises(IdentityError, match="older"):
        await peers.check(old)
    with pytest.raises(IdentityError, match="contradicts"):
        await peers.check(fork)
    await peers.check(new)
    await peers.check(histories(2)[0])


def classic_histories() -> tuple[ClassicHistory, ClassicHistory]:
    """Two histories of one classic identifier, neither of which goes on from the other."""
    vault = MemoryVault()
    history = create_classic_history(vault, vault.import_secret(KeyKind.ED25519, bytes([7]) * 32))
    # The same label in a longer form: another change_id, by the same key.
    body = history.encoded[33:115].replace(b"\x08OCKAM_RK", b"\x88\x00OCKAM_RK")
    digest = sha256(body).digest()
    signature = vault.sign(vault.keys()[0], digest)
    return history, verify_classic_history(b"\x01" + digest + body + b"\x01\x01\x40" + signature)


async def test_a_classic_identity_known_with_another_history_is_a_conflict(vault: IdentityVault) -> None:
    history, other = classic_histories()
    assert history.identifier == other.identifier
    for _ in range(2):
        await vault.known_peers.check(history)
    with pytest.raises(IdentityError, match=f"{history.identifier} presents a history that contradicts"):
        await vault.known_peers.check(other)
    await vault.known_peers.check(history)


async def test_current_and_classic_identifiers_with_the_same_bytes_are_two_peers(vault: IdentityVault) -> None:
    history, _ = classic_histories()
    current = attrs.evolve(histories(1)[0], identifier=Identifier(history.identifier.value))
    for each in (history, current, history, current):
        await vault.known_peers.check(each)


async def test_known_peers_are_bounded_and_the_longest_unchanged_is_forgotten(tmp_path: Path) -> None:
    async with open_sqlite_vault(tmp_path / "vault", unencrypted=True) as opened:
        bounded: tuple[KnownPeers, ...] = (MemoryKnownPeers(2), SqliteKnownPeers(opened._file, 2))
        for peers in bounded:
            (old, new, _), (other_old, other_new, _) = histories(1), histories(2)
            await peers.check(new)
            await peers.check(other_new)
            with pytest.raises(IdentityError):
                await peers.check(old)
            await peers.check(histories(3)[0])
            with pytest.raises(IdentityError):
                await peers.check(other_old)
            await peers.check(old)
