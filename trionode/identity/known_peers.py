"""The histories of peers that were seen before: one that was rolled back or forked is refused (spec §9.1, §9.2)."""

from collections import OrderedDict
from typing import Protocol

from trionode.errors import IdentityError
from trionode.protocol.identity.history import History, Relation, relation
from trionode.protocol.identity.identity import Identifier

#: Peers to remember: at most some 50 MB in memory, in practice a tenth. Beyond it the peer whose history is longest
#: unchanged is forgotten, which costs only the rollback check of that peer. Only trusted peers can fill it: the check
#: comes after the trust policy.
MAX_KNOWN_PEERS = 65_536


class KnownPeers(Protocol):
    """The known histories of peers."""

    async def check(self, history: History) -> None:
        """Remember a history that is new or newer.

        Args:
          history: The verified history that a peer has presented.

        Raises:
          IdentityError: If it is older than the known one or contradicts it. Nothing has changed.

        If cancelled, the check has happened completely or not at all.
        """
        ...


class MemoryKnownPeers:
    """Known peers in memory (see `KnownPeers`)."""

    def __init__(self, bound: int = MAX_KNOWN_PEERS) -> None:
        self._bound = bound
        self._known: OrderedDict[Identifier, History] = OrderedDict()

    async def check(self, history: History) -> None:
        """Remember a history that is new or newer; IdentityError if it is older or contradicts."""
        if not is_news(self._known.get(history.identifier), history):
            return
        self._known[history.identifier] = history
        self._known.move_to_end(history.identifier)
        if len(self._known) > self._bound:
            self._known.popitem(last=False)


def is_news(known: History | None, presented: History) -> bool:
    """Whether to remember the presented history; IdentityError if it is older than the known one or contradicts it."""
    match known and relation(known, presented):
        case None | Relation.NEWER:
            return True
        case Relation.SAME:
            return False
        case Relation.OLDER:
            raise IdentityError(f"{presented.identifier} presents a history older than the known one")
        case _:
            raise IdentityError(f"{presented.identifier} presents a history that contradicts the known one")
