"""Detection of the protocol version from the first bytes of a connection (spec §3.3)."""

from trionode.errors import WireError
from trionode.protocol.wire.classic_codec import CLASSIC, VERSION
from trionode.protocol.wire.current_codec import CURRENT
from trionode.protocol.wire.version import ProtocolVersion

#: Offset of the version in the first message of a classic stream, behind the u16 length.
_AT = CLASSIC.length_size
#: The first bytes of every TLS client: the type of a handshake record and the first byte of a version (RFC 8446 §5.1).
_TLS = b"\x16\x03"
#: Bytes in the head of the first TLS record (type, version, length) and of the message in it (type, length).
_TLS_HEADS = 9


def recognise(first: bytes, *, quiet: bool = False) -> ProtocolVersion | None:
    """Detect the protocol version of a peer.

    Args:
      first: The first bytes that the peer sent.
      quiet: Whether the peer has sent nothing more for about a second. A current peer may send `01` alone and then wait
        for ours.

    Returns:
      The protocol version, or None if more bytes are needed.

    Raises:
      WireError: No peer of either version starts with these bytes.
    """
    if len(first) <= _AT:
        return CURRENT if quiet and first == CURRENT.preface else None
    if first.startswith(_TLS):
        # The version of TLS may look like a classic version. Then check that the message fills its record (RFC 8446 §4,
        # §5.1). A classic frame with these bytes would have 5635 bytes and be for a worker whose name starts with a
        # zero byte.
        if first[_AT] == VERSION and len(first) < _TLS_HEADS:
            return None
        if first[_AT] != VERSION or int.from_bytes(first[3:5], "big") == int.from_bytes(first[6:9], "big") + 4:
            msg = f"the peer speaks TLS, and this listener does not: it sent {first[:_TLS_HEADS].hex()}"
            raise WireError(msg)
    if first[_AT] == VERSION:
        return CLASSIC
    if not first.startswith(CURRENT.preface):
        msg = f"the peer is not a trionode or Ockam node: it sent {first[: _AT + 1].hex()}"
        raise WireError(msg)
    return CURRENT
