"""Change histories of both protocol versions: comparing two, and reading a stored one."""

import enum

from trionode.protocol.identity.classic_identity import ClassicHistory, verify_classic_history
from trionode.protocol.identity.identity import MAX_CHANGES, ChangeHistory, verify_history

#: The change history of an identity of either protocol version.
History = ChangeHistory | ClassicHistory


class Relation(enum.Enum):
    """A presented history, compared with the known one of the same identifier."""

    SAME = "same"
    NEWER = "newer"
    OLDER = "older"
    CONFLICTING = "conflicting"


def relation(known: History, presented: History) -> Relation:
    """Compare a presented history with the known one: same, newer (a continuation of it), older, or conflicting."""
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
    """Detect the protocol version of an encoded history and verify it; IdentityError if it is not valid."""
    # A classic history starts with the number of its changes, a current one with the head of a CBOR array, 0x80 or
    # above.
    if encoded[:1] and encoded[0] <= MAX_CHANGES:
        return verify_classic_history(encoded)
    return verify_history(encoded)
