"""Credentials: issued, stored, presented in handshakes, and judged by trust policies and access rules."""

import time
from collections.abc import AsyncIterator, Mapping

import attrs
import pytest
import trio
import trio.testing

from tests.support.channel_parties import STALL_TIMEOUT, Parties, open_parties
from trionode import Identity, MemoryVault, Origin, Route, from_attributes, trust_attributes, trust_everyone
from trionode.errors import AnswerTimeout, ConfigError, HandshakeError, IdentityError, VaultError
from trionode.identity import identity as identity_module
from trionode.identity.attributes import PeerOrigin
from trionode.protocol.handshake.exchange import Peer
from trionode.protocol.identity.classic_identity import create_classic_history
from trionode.protocol.identity.credential import PresentedCredential, read_credential
from trionode.protocol.identity.keys import KeyKind
from trionode.protocol.rules.relay import origin_behind_relay
from trionode.protocol.wire.address import local
from trionode.vault.sqlite import open_sqlite_vault
from trionode.workers import echoer

MEMBER = {"role": "member", "team": "blue"}
HOUR = 3600


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The wall clock, which a test can set."""
    now = [time.time()]
    monkeypatch.setattr(time, "time", lambda: now[0])
    monkeypatch.setattr("trionode.channel.secure_channel.time", lambda: now[0])
    return now


@pytest.fixture
async def authority() -> Identity:
    return await Identity.create(MemoryVault(), "authority")


@pytest.fixture
async def alice() -> Identity:
    return await Identity.create(MemoryVault(), "alice")


async def presenting(identity: Identity, authority: Identity, attributes: Mapping[str, str] = MEMBER) -> Peer:
    await identity.add_credential(authority.issue_credential(identity.identifier, attributes, lifetime=HOUR))
    return Peer(identity.history, identity.credentials)


# Issuing and storing


async def test_an_issued_credential_says_what_the_authority_said(
    authority: Identity, alice: Identity, clock: list[float]
) -> None:
    keys = authority.vault.keys()
    text = authority.issue_credential(str(alice.identifier), MEMBER, lifetime=HOUR, schema=7)
    assert authority.vault.keys() == keys
    stored = await alice.add_credential(text)
    assert (stored.issuer, stored.subject, stored.schema) == (authority.identifier, alice.identifier, 7)
    assert stored.attributes == {b"role": b"member", b"team": b"blue"}
    assert stored.expires_at - stored.created_at == HOUR
    proven = Peer(alice.history, alice.credentials).credential_by(authority.history, int(clock[0]))
    assert proven == stored


@pytest.mark.parametrize("lifetime", [0, -1, 11 * 365 * 86_400])
async def test_a_credential_lasts_no_longer_than_its_issuer(
    authority: Identity, alice: Identity, lifetime: float
) -> None:
    with pytest.raises(ConfigError, match="lasts"):
        authority.issue_credential(alice.identifier, MEMBER, lifetime=lifetime)


async def test_only_current_identities_get_credentials(authority: Identity, alice: Identity) -> None:
    with pytest.raises(ConfigError, match="begins with I"):
        authority.issue_credential((await alice.classic()).identifier, MEMBER)
    with pytest.raises(IdentityError, match="an identifier is"):
        authority.issue_credential("alice", MEMBER)


async def test_a_credential_that_is_not_usable_is_not_stored(
    authority: Identity, alice: Identity, clock: list[float]
) -> None:
    text = authority.issue_credential(alice.identifier, MEMBER, lifetime=HOUR)
    for bad in ("", "not hex", text[:-2], text[:40]):
        with pytest.raises(IdentityError):
            await alice.add_credential(bad)
    with pytest.raises(IdentityError, match=r"the credential is for I.*, this identity is"):
        await alice.add_credential(authority.issue_credential(authority.identifier, MEMBER))
    clock[0] += HOUR
    with pytest.raises(IdentityError, match="expired"):
        await alice.add_credential(text)
    assert alice.credentials == ()


async def test_a_new_credential_replaces_the_one_of_its_issuer(authority: Identity, alice: Identity) -> None:
    other = await Identity.create(MemoryVault())
    await presenting(alice, authority)
    await presenting(alice, other)
    peer = await presenting(alice, authority, {"role": "guest"})
    assert len(peer.credentials) == 2
    assert has_attributes(peer, authority, {"role": "guest"})
    assert not has_attributes(peer, authority, MEMBER)
    assert has_attributes(peer, other, MEMBER)


async def test_credentials_of_one_identity_are_bounded(
    authority: Identity, alice: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity_module, "MAX_CREDENTIALS", 2)
    for _ in range(2):
        await presenting(alice, await Identity.create(MemoryVault()))
    with pytest.raises(VaultError, match="at most 2 credentials"):
        await presenting(alice, authority)
    monkeypatch.undo()
    with pytest.raises(VaultError, match="16384 bytes"):
        await presenting(alice, authority, {"long": "x" * 17_000})
    assert len(alice.credentials) == 2


async def test_credentials_outlive_the_process_and_a_rotation(authority: Identity, tmp_path: object) -> None:
    async with open_sqlite_vault(f"{tmp_path}/vault", unencrypted=True) as vault:
        alice = await Identity.create(vault)
        await presenting(alice, authority)
        credentials = alice.credentials
    async with open_sqlite_vault(f"{tmp_path}/vault", unencrypted=True) as vault:
        again = await Identity.load(vault)
        assert again.credentials == credentials
        await again.rotate()
        assert (await Identity.load(vault)).credentials == credentials
        assert has_attributes(Peer(again.history, again.credentials), authority, MEMBER)


# Rules


def has_attributes(peer: Peer, authority: Identity, attributes: Mapping[str, str | None]) -> bool:
    """Whether a credential of the authority gives the peer these attributes."""
    rule = from_attributes(authority.export(), attributes)
    return rule(PeerOrigin.through(Origin(link=local("link")), peer))


@pytest.mark.parametrize(
    ("required", "admitted"),
    [
        ({}, True),
        ({"role": "member"}, True),
        (MEMBER, True),
        ({"role": None}, True),
        ({"role": "admin"}, False),
        ({"role": "member", "team": "red"}, False),
        ({"floor": None}, False),
        ({"role": ""}, False),
    ],
)
async def test_every_required_attribute_must_be_in_the_credential(
    authority: Identity, alice: Identity, required: dict[str, str | None], admitted: bool
) -> None:
    peer = await presenting(alice, authority)
    origin = PeerOrigin.through(Origin(link=local("link")), peer)
    for text in (authority.export(), authority.history, f" {authority.export()}\n"):
        assert await trust_attributes(text, required)(peer) is admitted
        assert from_attributes(text, required)(origin) is admitted


async def test_a_schema_is_compared_if_one_is_required(authority: Identity, alice: Identity) -> None:
    await alice.add_credential(authority.issue_credential(alice.identifier, MEMBER, schema=3))
    peer = Peer(alice.history, alice.credentials)
    assert await trust_attributes(authority.history, schema=3)(peer)
    assert not await trust_attributes(authority.history, schema=4)(peer)


async def test_credentials_of_others_prove_nothing_threat_13(authority: Identity, alice: Identity) -> None:
    mallory = await Identity.create(MemoryVault(), "mallory")
    await presenting(alice, authority)
    trust = trust_attributes(authority.history, MEMBER)
    assert not await trust(Peer(mallory.history, alice.credentials)), "a stolen credential"
    assert not await trust(Peer(mallory.history)), "none at all"
    assert not await trust(await presenting(mallory, mallory)), "issued by itself"
    (good,) = alice.credentials
    (own,) = mallory.credentials
    assert not await trust(Peer(alice.history, (PresentedCredential(own.signed, good.attestation),)))
    assert not await trust(Peer(alice.history, (PresentedCredential(good.signed, own.attestation),)))
    classic = Peer(create_classic_history(mallory.vault, mallory.vault.generate(KeyKind.ED25519)))
    assert not await trust(classic)


async def test_a_credential_counts_until_it_expires(authority: Identity, alice: Identity, clock: list[float]) -> None:
    peer = await presenting(alice, authority)
    rule, origin = from_attributes(authority.history), PeerOrigin.through(Origin(link=local("link")), peer)
    assert rule(origin)
    clock[0] += HOUR - 1
    assert rule(origin)
    clock[0] += 1
    assert not rule(origin)
    assert not await trust_attributes(authority.history)(Peer(alice.history, alice.credentials))


async def test_a_rotated_authority_has_to_issue_anew(authority: Identity, alice: Identity) -> None:
    peer, old = await presenting(alice, authority), authority.export()
    await authority.rotate()
    assert await trust_attributes(old)(peer)
    assert not await trust_attributes(authority.export())(peer)
    assert await trust_attributes(authority.export())(await presenting(alice, authority))


async def test_the_rule_admits_neither_this_node_nor_relayed_messages_threat_13(
    authority: Identity, alice: Identity
) -> None:
    peer = await presenting(alice, authority)
    rule = from_attributes(authority.history)
    proven = PeerOrigin.through(Origin(link=local("link")), peer)
    assert rule(proven)
    for origin in (
        Origin(),
        Origin(link=local("link")),
        Origin(identifier=alice.identifier.value),
        origin_behind_relay(proven, local("relay")),
        attrs.evolve(proven, identifier=None),
    ):
        assert not rule(origin)


@pytest.mark.parametrize("text", ["", "I" + "0" * 64, "8081"])
def test_an_authority_is_given_as_an_exported_history(text: str) -> None:
    for make in (trust_attributes, from_attributes):
        with pytest.raises(ConfigError, match="trionode identity export"):
            make(text)


async def test_signatures_are_verified_once(
    authority: Identity, alice: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = await presenting(alice, authority)
    rule, origin = from_attributes(authority.history), PeerOrigin.through(Origin(), peer)
    assert rule(origin)
    monkeypatch.setattr("trionode.protocol.handshake.exchange.newest_credential", lambda *_: None)
    assert rule(origin)


# Channels


@pytest.fixture
async def parties(autojump_clock: trio.testing.MockClock) -> AsyncIterator[Parties]:
    async with open_parties() as opened:
        yield opened


async def test_a_peer_is_trusted_by_its_credential_on_both_sides(
    authority: Identity, autojump_clock: trio.testing.MockClock
) -> None:
    trust = trust_attributes(authority.export(), {"role": "member"})
    async with open_parties(trust=trust) as parties:
        with trio.fail_after(STALL_TIMEOUT):
            with pytest.raises(HandshakeError, match="which is refused"):  # Bob has none
                await parties.alice.open_secure_channel(parties.route, parties.alices, trust=trust)
            await presenting(parties.bobs, authority)
            channel = await parties.alice.open_secure_channel(parties.route, parties.alices, trust=trust)
            with pytest.raises(AnswerTimeout):  # Alice has none, and Bob is silent
                await parties.alice.ask(Route(channel, "echoer"), b"hello")
            await presenting(parties.alices, authority)
            channel, bobs = await parties.open(trust=trust)
        assert channel.peer_attributes(authority.export()) == MEMBER
        assert bobs.peer_attributes(authority.history) == MEMBER
        assert bobs.peer_attributes(parties.bobs.export()) is None


async def test_a_worker_is_reached_by_attribute_and_by_refreshed_credentials(
    authority: Identity, clock: list[float], autojump_clock: trio.testing.MockClock
) -> None:
    async with open_parties() as parties:
        await parties.bob.start_worker("members", echoer, allow=from_attributes(authority.export(), {"role": "member"}))
        alices, bobs = await parties.open()

        async def is_admitted() -> bool:
            try:
                await parties.alice.ask(Route(alices, "members"), b"hello", timeout=5)
            except AnswerTimeout:
                return False
            return True

        with trio.fail_after(STALL_TIMEOUT):
            assert not await is_admitted()
            await presenting(parties.alices, authority)
            await alices.refresh_credentials(parties.alices)
            assert await is_admitted()
            clock[0] += HOUR
            assert not await is_admitted()
            assert not bobs.closed.is_set()
            assert bobs.peer_attributes(authority.export()) is None
            await presenting(parties.alices, authority)
            await alices.refresh_credentials(parties.alices)
            assert await is_admitted()
            await presenting(parties.alices, authority, {"role": "guest"})
            await alices.refresh_credentials(parties.alices)
            assert not await is_admitted()


async def test_credentials_can_be_read_without_their_authority(authority: Identity, alice: Identity) -> None:
    await presenting(alice, authority)
    (presented,) = alice.credentials
    assert read_credential(presented).issuer == authority.identifier
    assert await trust_everyone(Peer(alice.history))
