"""A message: two routes, a payload, and what this node knows about its origin."""

from abc import ABC, abstractmethod

import attrs

from trionode.errors import ConfigError, UndecodableText, WireError
from trionode.protocol.wire import bare
from trionode.protocol.wire.address import Encoded
from trionode.protocol.wire.route import Route


@attrs.frozen(eq=False)
class Origin:
    """The origin of a message, as this node knows it. It is never on the wire.

    All messages of one origin share one object.

    Args:
      link: The encoded address of the link that the message arrived by; None if it did not arrive by a link.
      stream: The encoded address of the stream that the message arrived by; None if it did not arrive by a stream.
      identifier: The 32 bytes of the authenticated identifier of the innermost secure channel's peer; None without a
        channel.
      drop_when_full: Whether the link is between hubs: its reader never waits, and messages for a full queue are
        dropped.
      is_held: Whether the message waits for a full queue without end, so it must not be dropped there: messages of a
        channel with the delivery layer.
      resends: Whether clients of the link's protocol version resend unanswered requests and understand `error`
        (spec §11.6). True for local messages.
    """

    link: Encoded | None = None
    stream: Encoded | None = None
    identifier: bytes | None = None
    drop_when_full: bool = False
    resends: bool = True
    is_held: bool = False

    @property
    def is_local(self) -> bool:
        """Whether the message was sent on this node."""
        return self.link is None and self.stream is None and self.identifier is None


#: The origin of every message that was sent on this node.
LOCAL = Origin()


class Receipt(ABC):
    """Follows one message to its handler."""

    __slots__ = ("is_queued",)

    def __init__(self) -> None:
        #: Whether something has taken the message that reports when it is handled.
        self.is_queued = False

    @abstractmethod
    def done(self) -> None:
        """Note that the message was handled."""


class Message:
    """A message. Treat it as a value: a hop that changes a route makes a new message.

    Args:
      onward: The encoded addresses of the onward route.
      back: The encoded addresses of the return route.
      payload: The payload.
      origin: What this node knows about the origin.
      deliveries: The number of local deliveries so far.
      receipt: Follows the message to its handler; None: nobody waits for that.
      is_promised: Whether this program was told that it is accepted, so its loss is reported when the node ends.
    """

    __slots__ = ("back", "deliveries", "is_promised", "onward", "origin", "payload", "receipt")

    def __init__(  # noqa: PLR0917 - one call for each message: keywords cost time
        self,
        onward: tuple[Encoded, ...],
        back: tuple[Encoded, ...],
        payload: bytes,
        origin: Origin = LOCAL,
        deliveries: int = 0,
        receipt: Receipt | None = None,
        is_promised: bool = False,  # noqa: FBT001, FBT002 - one call for each message: keywords cost time
    ) -> None:
        self.onward = onward
        self.back = back
        self.payload = payload
        self.origin = origin
        self.deliveries = deliveries
        self.receipt = receipt
        self.is_promised = is_promised

    @property
    def onward_route(self) -> Route:
        """The hops that the message still has to pass."""
        return Route.from_encoded(self.onward)

    @property
    def return_route(self) -> Route:
        """The route for an answer, exactly as it arrived (spec §4.1)."""
        return Route.from_encoded(self.back)

    @property
    def text(self) -> str:
        """The payload, decoded as a BARE string (spec §5).

        Raises:
          UndecodableText: The payload is not exactly one BARE string. You need not catch it in a worker: the message is
            then dropped and counted, and the worker is called again.
        """
        try:
            reader = bare.Reader(self.payload)
            text = reader.string()
            reader.end()
        except WireError as error:
            raise UndecodableText(f"the payload is no text: {error}") from error
        return text

    def __repr__(self) -> str:
        return f"<Message onward [{self.onward_route}] return [{self.return_route}] {len(self.payload)} bytes>"


def payload_of(body: bytes | str) -> bytes:
    """Return the payload for a body: bytes unchanged, a str as a BARE string (spec §5, current).

    ConfigError for another type.
    """
    if type(body) is bytes:  # the usual case, and the fastest test
        return body
    if isinstance(body, str):
        return bare.string(body)
    if isinstance(body, (bytes, bytearray, memoryview)):
        return bytes(body)
    raise ConfigError(f"a body is bytes or a str, and this is {type(body).__name__}: encode it first")
