"""Which generation of the wire a connection speaks, told from the first bytes of whoever opened it (spec §3.3)."""

from trionode.errors import WireError
from trionode.protocol.wire.classic_codec import CLASSIC, VERSION
from trionode.protocol.wire.current_codec import CURRENT
from trionode.protocol.wire.version import ProtocolVersion

#: Where a classic stream has the version of its first message, behind the u16 length.
_AT = CLASSIC.length_size
#: How every client of TLS begins: a record of its handshake and the first byte of a version (RFC 8446 §5.1).
_TLS = b"\x16\x03"
#: Bytes in the heads of TLS's first record, with a length behind its version, and of the message in it, with a length behind its kind.
_TLS_HEADS = 9


def recognise(first: bytes, *, quiet: bool = False) -> ProtocolVersion | None:
    """Return the generation that the first bytes show, None while they are too few; WireError if no peer of either begins so.

    `quiet` says that nothing more has come for about a second: a peer that has sent its `01` alone may be waiting for ours.
    """
    if len(first) <= _AT:
        return CURRENT if quiet and first == CURRENT.preface else None
    if first.startswith(_TLS):
        # The version of TLS may look classic: then its message tells, which fills its record (RFC 8446 §4, §5.1). As a classic frame that
        # would be one of 5635 bytes to a worker whose name begins with a zero byte.
        if first[_AT] == VERSION and len(first) < _TLS_HEADS:
            return None
        if first[_AT] != VERSION or int.from_bytes(first[3:5], "big") == int.from_bytes(first[6:9], "big") + 4:
            msg = f"it speaks TLS, and this listener does not: it began with {first[:_TLS_HEADS].hex()}"
            raise WireError(msg)
    if first[_AT] == VERSION:
        return CLASSIC
    if not first.startswith(CURRENT.preface):
        msg = f"it is no trionode or Ockam node: it began with {first[: _AT + 1].hex()}"
        raise WireError(msg)
    return CURRENT
