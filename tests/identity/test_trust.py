import pytest

from trionode.errors import IdentityError, LocalError
from trionode.identity.trust import trust_everyone, trust_only
from trionode.protocol.handshake.exchange import Peer
from trionode.protocol.identity.classic_identity import create_classic_history
from trionode.protocol.identity.identity import Identifier, create_history
from trionode.protocol.identity.keys import KeyKind
from trionode.vault.memory import MemoryVault


def peer() -> Peer:
    vault = MemoryVault()
    return Peer(create_history(vault, vault.generate(KeyKind.ED25519), 1_700_000_000))


async def test_everyone_is_trusted_only_where_a_program_says_so() -> None:
    assert await trust_everyone(peer()) is True


async def test_only_the_named_identities_are_trusted_given_as_text_or_value() -> None:
    alice, bob, mallory = peer(), peer(), peer()
    policy = trust_only(alice.identifier, str(bob.identifier))
    assert [await policy(each) for each in (alice, bob, mallory)] == [True, True, False]


async def test_a_classic_identity_is_trusted_by_its_own_text_and_not_by_the_same_bytes_of_the_current_kind() -> None:
    vault = MemoryVault()
    classic = Peer(create_classic_history(vault, vault.generate(KeyKind.ED25519)))
    assert await trust_only(str(classic.identifier))(classic) is True
    assert await trust_only(Identifier(classic.identifier.value))(classic) is False


def test_an_invalid_identifier_is_refused_when_the_policy_is_made() -> None:
    with pytest.raises(IdentityError, match="I and 64 hex digits"):
        trust_only(Identifier(bytes(32)), "bob")


def test_an_empty_set_of_trusted_identifiers_is_refused() -> None:
    with pytest.raises(LocalError, match="at least one"):
        trust_only()
