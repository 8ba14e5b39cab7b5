"""Histories of either generation: how one stands to another, and how one that was kept is read back."""

import enum

from trionode.protocol.identity.classic_identity import ClassicHistory, verify_classic_history
from trionode.protocol.identity.identity import MAX_CHANGES, ChangeHistory, verify_history

#: What a peer proves its identifier with.
History = ChangeHistory | ClassicHistory


class Relation(enum.Enum):
    """How a presented history stands to the known one of the same identifier."""

    SAME = "same"
    NEWER = "newer"
    OLDER = "older"
    CONFLICTING = "conflicting"


def relation(known: History, presented: History) -> Relation:
    """How the presented history stands to the known one: same, newer (it goes on from it), older, or conflicting."""
    before = [change.hash for change in known.changes]
    after = [change.hash for change in presented.changes]
    if before == after:
        return Relation.SAME
    if before == after[: len(before)]:
        return Relation.NEWER
    if after == before[: len(after)]:
        return Relation.OLDER
    return Relation.CONFLICTING


def verify_any_history(encoded: bytes) -> History:
    """Return the history in these bytes, of the generation that they begin like, if it verifies; IdentityError otherwise."""
    # A classic history begins with the number of its changes, a current one with the head of a CBOR array, 0x80 and above.
    if encoded[:1] and encoded[0] <= MAX_CHANGES:
        return verify_classic_history(encoded)
    return verify_history(encoded)
