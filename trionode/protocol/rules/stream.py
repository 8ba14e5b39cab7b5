"""Rules of streams: which client may use which stream of a hub, its positions there, and which answers it believes.

A client is named by its owner text: the authenticated identifier in hex, or "" for a client without a secure channel.
See spec §11.
"""

from hashlib import sha256
from typing import TypeVar

from trionode.protocol.stream.names import is_capability, valid_client_id, valid_stream_name

#: The owner of what clients without an identity create: everybody may use it.
ANYONE = ""

#: The type of addresses: encoded bytes in a node, names in the verifier.
AddressT = TypeVar("AddressT")


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


def is_by_way_to_hub(back: tuple[AddressT, ...], path: tuple[AddressT, ...]) -> bool:
    """Whether a message came by the link or channel that leads to the hub.

    The node itself writes the first hop of a return route. The hops behind it are what others say, and a relay puts its
    alias there, so they prove nothing. What shows that an answer is the hub's: it came by this hop, and to an address
    that only the hub and the nodes on the way have learned.

    Args:
      back: The return route of the message.
      path: The hops before the hub's services; () without a connection.
    """
    return bool(path) and back[:1] == path[:1]


def is_from_worker(back: tuple[AddressT, ...], worker: tuple[AddressT, ...]) -> bool:
    """Whether an answer to a push or a pull came from the stream's worker, by the route that its requests take.

    A relay shows each of its peers under an alias of that peer's own, so another peer of the same relay cannot have it.
    """
    return back == worker
