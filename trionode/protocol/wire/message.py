"""A message on its way: two routes and a payload, and what this node knows of where it came from."""

import attrs

from trionode.protocol.wire import bare
from trionode.protocol.wire.address import Encoded
from trionode.protocol.wire.route import Route


@attrs.frozen(eq=False)
class Origin:
    """What this node knows of a message's origin; local, never on the wire. One object serves all messages of one origin.

    `link` is the link's address that the message came in by, and None where it began on this node; `stream` likewise for a stream's
    sender; `identifier` is the authenticated identifier of the innermost secure channel's peer (32 bytes), None where there was no channel.
    """

    link: Encoded | None = None
    stream: Encoded | None = None
    identifier: bytes | None = None
    #: Whether the link is a trunk, hub to hub, whose reader never waits.
    drop_when_full: bool = False
    #: Whether clients of the generation that the link speaks send an unanswered request again and understand `error` (spec §11.6); so does what begins here.
    resends: bool = True

    @property
    def is_local(self) -> bool:
        """Whether the message began on this node."""
        return self.link is None and self.stream is None and self.identifier is None


#: The facts of every message that begins on this node.
LOCAL = Origin()


class Message:
    """A message: `onward` and `back` are tuples of encoded addresses, `payload` is bytes; objects are made only when asked for.

    It is treated as a value: a hop that changes a route makes a new one. `deliveries` counts the local deliveries it has had.
    """

    __slots__ = ("back", "deliveries", "onward", "origin", "payload")

    def __init__(
        self,
        onward: tuple[Encoded, ...],
        back: tuple[Encoded, ...],
        payload: bytes,
        origin: Origin = LOCAL,
        deliveries: int = 0,
    ) -> None:
        self.onward = onward
        self.back = back
        self.payload = payload
        self.origin = origin
        self.deliveries = deliveries

    @property
    def onward_route(self) -> Route:
        """Where it goes."""
        return Route.from_encoded(self.onward)

    @property
    def return_route(self) -> Route:
        """Where an answer goes, exactly as it arrived (spec §4.1)."""
        return Route.from_encoded(self.back)

    @property
    def text(self) -> str:
        """The payload read as a BARE string (spec §5); WireError if it is none."""
        reader = bare.Reader(self.payload)
        text = reader.string()
        reader.end()
        return text

    def __repr__(self) -> str:
        return f"<Message onward [{self.onward_route}] return [{self.return_route}] {len(self.payload)} bytes>"


def payload_of(body: bytes | str) -> bytes:
    """Return the payload of what an application sends: bytes go as they are, a str as a BARE string (spec §5, current)."""
    return bare.string(body) if isinstance(body, str) else body
