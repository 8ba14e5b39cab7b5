"""Which generation of the wire a connection speaks, told from the first bytes of whoever opened it (spec §3.3)."""

from trionode.errors import WireError
from trionode.protocol.classic import CLASSIC, VERSION
from trionode.protocol.current import CURRENT
from trionode.protocol.wire import Wire

#: Where a classic stream has the version of its first message, behind the u16 length.
_AT = CLASSIC.length_size


def recognise(first: bytes, *, quiet: bool = False) -> Wire | None:
    """Return the generation that the first bytes show, None while they are too few; WireError if no peer of either begins so.

    `quiet` says that nothing more has come for about a second: a peer that has sent its `01` alone may be waiting for ours.
    """
    if len(first) <= _AT:
        return CURRENT if quiet and first == CURRENT.preface else None
    if first[_AT] == VERSION:
        return CLASSIC
    if not first.startswith(CURRENT.preface):
        msg = f"it is no trionode or Ockam node: it began with {first[: _AT + 1].hex()}"
        raise WireError(msg)
    return CURRENT
