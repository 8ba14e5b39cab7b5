"""Who is trusted: the decision on a peer's proven identity before the first application byte; nobody is by default."""

from collections.abc import Awaitable, Callable

from trionode.errors import IdentityError, LocalError
from trionode.identity.known_peers import KnownPeers
from trionode.log import log
from trionode.protocol.handshake.exchange import Peer
from trionode.protocol.identity.identity import Identifier

#: True lets the channel open; False ends the handshake in silence. A policy may take its time: the deadline of the handshake bounds it.
TrustPolicy = Callable[[Peer], Awaitable[bool]]


async def trust_everyone(_peer: Peer) -> bool:
    """Trust whoever proves any identity at all: the channel is private, but with whom is then for the application to ask."""
    return True


def trust_only(*identifiers: Identifier | str) -> TrustPolicy:
    """Return the policy that trusts exactly these identities; IdentityError for a text that is no identifier."""
    if not identifiers:
        raise LocalError("trust_only() would trust nobody: name at least one identifier")
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
    """Ask the policy, and then whether the peer's history contradicts what was seen of it before; whoever is refused is logged."""
    if not await trust(peer):
        log.warning("refused %s: the trust policy says no", peer.identifier)
        return False
    try:
        await known_peers.check(peer.history)
    except IdentityError as error:
        log.warning("refused %s: %s", peer.identifier, error)
        return False
    return True
