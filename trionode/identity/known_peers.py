"""Which histories of peers were seen before, so that one that was rolled back or forked is refused (spec §9.1, §9.2)."""

from collections import OrderedDict
from typing import Protocol

from trionode.errors import IdentityError
from trionode.protocol.identity.history import History, Relation, relation
from trionode.protocol.identity.identity import Identifier

#: Peers remembered: some 50 MB in memory at most, in practice a tenth. Beyond it the one whose history is longest unchanged is forgotten, which
#: only costs the rollback check of that peer. It takes trusted peers to fill it: the check comes after the trust policy.
MAX_KNOWN_PEERS = 65_536


class KnownPeers(Protocol):
    """A memory of peers' histories."""

    async def check(self, history: History) -> None:
        """Remember a history that is new or newer; IdentityError, and nothing changed, for one that is older or contradicts.

        A cancelled check has either happened whole or not at all.
        """
        ...


class MemoryKnownPeers:
    """Known peers that are forgotten with the process."""

    def __init__(self, bound: int = MAX_KNOWN_PEERS) -> None:
        self._bound = bound
        self._known: OrderedDict[Identifier, History] = OrderedDict()

    async def check(self, history: History) -> None:
        """Remember a history that is new or newer; IdentityError for one that is older or contradicts."""
        if not is_news(self._known.get(history.identifier), history):
            return
        self._known[history.identifier] = history
        self._known.move_to_end(history.identifier)
        if len(self._known) > self._bound:
            self._known.popitem(last=False)


def is_news(known: History | None, presented: History) -> bool:
    """Whether the presented history is to be remembered; IdentityError if it is older than the known one or contradicts it."""
    match known and relation(known, presented):
        case None | Relation.NEWER:
            return True
        case Relation.SAME:
            return False
        case Relation.OLDER:
            raise IdentityError(f"{presented.identifier} shows a history older than the one it showed before")
        case _:
            raise IdentityError(f"{presented.identifier} shows a history that contradicts the one it showed before")
