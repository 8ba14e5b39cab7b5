"""Rules of streams on a hub: which client may use which stream, and under which id its positions are saved (spec §11).

A client is named by its owner text: the authenticated identifier in hex, or "" for a client without a secure channel.
"""

from hashlib import sha256

from trionode.protocol.stream.names import is_capability, valid_client_id, valid_stream_name

#: The owner of what clients without an identity create: everybody may use it.
ANYONE = ""


def owner_of(identifier: bytes | None) -> str:
    """Return the owner text of a client: its authenticated identifier in hex, or ANYONE."""
    return ANYONE if identifier is None else identifier.hex()


def may_use_stream(stream: str, owner: str, client: str) -> bool:
    """Whether a client may push to a stream, pull from it and save positions in it.

    It may if the stream has no owner or is the client's own. An authenticated client may also use a stream of another
    owner whose name is a capability: only a client that was given such a name knows it.
    """
    return owner in (ANYONE, client) or (client != ANYONE and is_capability(stream))


def may_use_position(client_id: str, stream: str, owner: str, client: str) -> bool:
    """Whether a client may save or read a position: the names are valid, and it may use the stream."""
    return valid_client_id(client_id) and valid_stream_name(stream) and may_use_stream(stream, owner, client)


def may_open_another(stream: str, opened: set[str], limit: int) -> bool:
    """Whether a client that has opened some streams may open this one: again, or as one more within its limit."""
    return stream in opened or len(opened) < limit


def position_id(client_id: str, client: str) -> str:
    """Return the client id under which a position is saved.

    Each identity has ids of its own, so none moves another's position.
    """
    if client == ANYONE:
        return client_id
    prefix = client[:32]
    scoped = f"{prefix}.{client_id}"
    return scoped if valid_client_id(scoped) else f"{prefix}.{sha256(client_id.encode()).hexdigest()}"
