"""Trust policies: they decide about a peer's proven identity before the first application byte. There is no default."""

from collections.abc import Awaitable, Callable

from trionode.errors import ConfigError, IdentityError
from trionode.identity.known_peers import KnownPeers
from trionode.log import log
from trionode.protocol.handshake.exchange import Peer
from trionode.protocol.identity.identity import Identifier

#: Returns True to let the channel open, False to end the handshake in silence. The deadline of the handshake bounds its
#: time.
TrustPolicy = Callable[[Peer], Awaitable[bool]]


async def trust_everyone(_peer: Peer) -> bool:
    """Trust every peer that proves an identity.

    The channel is private, but the application has to check with which peer.

    Args:
      _peer: The peer.

    Returns:
      True.

    If cancelled, nothing has happened.
    """
    return True


def trust_only(*identifiers: Identifier | str) -> TrustPolicy:
    """Return the policy that trusts exactly these identities.

    Args:
      identifiers: The identifiers, or their texts, at least one.

    Returns:
      A policy for `open_secure_channel` and `serve_secure_channels`.

    Raises:
      IdentityError: If a text is not an identifier.
      ConfigError: If there is no identifier.
    """
    if not identifiers:
        raise ConfigError("trust_only() takes at least one identifier: without one it would trust no peer")
    trusted = frozenset(Identifier.parse(each) if isinstance(each, str) else each for each in identifiers)

    async def trust_those(peer: Peer) -> bool:
        return peer.identifier in trusted

    return trust_those


def trust_any(*policies: TrustPolicy) -> TrustPolicy:
    """Return the policy that trusts a peer if one of these policies does."""

    async def trust_by_one(peer: Peer) -> bool:
        for policy in policies:
            if await policy(peer):
                return True
        return False

    return trust_by_one


async def is_trusted(peer: Peer, trust: TrustPolicy, known_peers: KnownPeers) -> bool:
    """Ask the policy, then check the peer's history against the known one. Log a refusal."""
    if not await trust(peer):
        log.warning("refused %s: the trust policy says no", peer.identifier)
        return False
    try:
        await known_peers.check(peer.history)
    except IdentityError as error:
        log.warning("refused %s: %s", peer.identifier, error)
        return False
    return True
