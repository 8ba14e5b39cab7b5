"""What passes between symbolic nodes: messages without bytes, their origins, and the steps that they have taken."""

from collections.abc import Callable
from typing import Literal

import attrs

from trionode.topology.endpoints import Endpoint
from trionode.topology.spec import ChannelListenerSpec, ChannelSpec

#: The first character of addresses that cannot be guessed: a running node makes them of 128 random bits. No name in a
#: spec has it.
RANDOM = "#"
#: The address at which the sender of a flow waits for an answer.
ANSWERS = "#answers"


# Messages


@attrs.frozen
class SymbolicOrigin:
    """What a node knows of a message's origin, like `trionode.protocol.wire.message.Origin`.

    Names stand for identifiers.
    """

    link: str | None = None
    stream: str | None = None
    identifier: str | None = None

    @property
    def is_local(self) -> bool:
        """Whether the message began on this node."""
        return self.link is None and self.stream is None and self.identifier is None


LOCAL = SymbolicOrigin()


@attrs.frozen(eq=False)
class Channel:
    """An open secure channel."""

    #: Its name at the node that opened it.
    name: str
    initiator: str
    responder: str
    spec: ChannelSpec
    listener_spec: ChannelListenerSpec


@attrs.define(eq=False)
class Handshake:
    """A handshake, and what its messages have found out so far."""

    initiator: str
    spec: ChannelSpec
    #: The node and the listener that answer, once known.
    responder: str | None = None
    listener_spec: ChannelListenerSpec | None = None
    #: The routes to the responder and back, each once a message has taken it.
    onward: tuple[str, ...] = ()
    back: tuple[str, ...] = ()
    refusal: str = ""


@attrs.frozen
class Clear:
    """The payload of an application, in plaintext."""


@attrs.frozen(eq=False)
class Sealed:
    """A message that a secure channel has encrypted."""

    channel: Channel = attrs.field(repr=False)
    #: The node that encrypted it.
    by: str
    onward: tuple[str, ...]
    back: tuple[str, ...]
    body: "Body"


@attrs.frozen
class Record:
    """A message in a record of a stream, on its way to the store or from it."""

    stream: str
    onward: tuple[str, ...]
    back: tuple[str, ...]
    body: "Body"


@attrs.frozen
class Request:
    """A message of the protocol between nodes. One object stands for all messages of a handshake."""

    what: Literal["handshake", "create", "index", "pull", "register", "answer"]
    name: str = ""
    handshake: Handshake | None = attrs.field(default=None, repr=False)


Body = Clear | Sealed | Record | Request


@attrs.frozen(eq=False)
class SymbolicMessage:
    """A message, and the steps that it has taken."""

    onward: tuple[str, ...]
    back: tuple[str, ...]
    body: Body
    origin: SymbolicOrigin = LOCAL
    deliveries: int = 0
    trail: "tuple[Step, ...]" = attrs.field(default=(), repr=False)

    def after(self, *steps: "Step") -> "SymbolicMessage":
        """Return the message with more steps behind it."""
        return attrs.evolve(self, trail=(*self.trail, *steps))


# Steps


@attrs.frozen
class Observer:
    """A carrier of messages: a node, a connection between two, a store, or a peer outside of the topology."""

    kind: Literal["node", "connection", "store", "outsider"]
    name: str

    def __str__(self) -> str:
        return self.name if self.kind == "node" else f"{self.kind} {self.name}"

    @property
    def described(self) -> str:
        """The observer in a sentence."""
        match self.kind:
            case "node":
                return self.name
            case "connection" if " → " in self.name:
                return f"the network between {self.name.replace(' → ', ' and ')}"
            case "connection":
                return f"the network {self.name}"
            case "store":
                return f"the store {self.name}"
            case "outsider":
                return f"the peer at {self.name}"


@attrs.frozen(eq=False)
class SymbolicLink:
    """A connection from a node to the listener at an endpoint."""

    dialler: str
    #: None where no node of the topology listens.
    listener: str | None
    endpoint: Endpoint
    #: Its addresses at the dialler and at the listener.
    here: str
    there: str
    #: Its name in the dialler's spec, if it has one.
    key: str | None = None

    @property
    def name(self) -> str:
        """Its name as an observer."""
        if self.listener is None:
            return f"{self.dialler} → {self.endpoint}"
        return f"{self.dialler} → {self.listener} ({self.endpoint.transport})"


@attrs.frozen(eq=False)
class Step:
    """A message at an observer, and what happens to it there."""

    at: Observer
    what: str
    message: SymbolicMessage
    #: Delivers a message that is injected here; None where only a later step can take one.
    inject: Callable[[SymbolicMessage], None] | None = None
    #: The endpoint of a connection, or that of a store; None where no observer beyond the machine sees what passes.
    endpoint: Endpoint | None = None
    #: The link that the connection is, if it is one.
    link: SymbolicLink | None = None


OutcomeKind = Literal["arrived", "answered", "left", "dropped", "loops"]


@attrs.frozen(eq=False)
class Outcome:
    """What becomes of a message, or of one of its copies."""

    what: OutcomeKind
    node: str
    #: The address that accepts it, or that it was for.
    address: str
    #: Why it goes no farther.
    text: str
    message: SymbolicMessage

    @property
    def is_accepted(self) -> bool:
        """Whether something accepts the message: a worker or outlet, or the sender that waits for the answer."""
        return self.what in {"arrived", "answered"}


def readable(address: str) -> str:
    """Return an address for people. A random one shows what it belongs to, without its number."""
    return address[1:].rpartition(" ")[0] if address.startswith(RANDOM) and " " in address else address
