"""Rules of relays: which client may register which name, and the origin of a relayed message."""

import enum
from typing import Any, TypeVar

import attrs

from trionode.protocol.rules.access import from_local

OriginT = TypeVar("OriginT", bound=Any)


class Refusal(enum.StrEnum):
    """The reason why a hub refuses a registration, for its log. The client gets no answer."""

    NAME_TAKEN = "the name belongs to another client"
    HUB_FULL = "this hub holds as many relays as its limits allow"
    CLIENT_FULL = "this client owns as many relays as the limits allow"


def registration_refusal(
    client: object, owner: object | None, *, relays: int, owned: int, max_relays: int, max_owned: int
) -> Refusal | None:
    """Return why `client` may not register a name that `owner` holds (None: no owner), or None if it may.

    `relays` counts all names of the hub, `owned` those of the client. A name that the client owns already costs nothing
    more.
    """
    if owner is not None:
        return None if owner == client else Refusal.NAME_TAKEN
    if relays >= max_relays:
        return Refusal.HUB_FULL
    return Refusal.CLIENT_FULL if owned >= max_owned else None


def origin_behind_relay(origin: OriginT, relay: Any) -> OriginT:
    """Return the origin of a message that came by a relay: an unauthenticated peer, since a hub proves only itself.

    `relay` is the relay's own address. It stands for the link where the message came by a channel within this node.
    """
    if from_local(origin):
        return origin
    is_bare = origin.link is None and origin.stream is None
    return attrs.evolve(origin, identifier=None, link=relay if is_bare else origin.link)
