"""What passes between nodes, without bytes: messages, what is known of their origin, and the way that they have come."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import attrs

from trionode.topology.endpoints import Endpoint

if TYPE_CHECKING:
    from trionode.verify.model.channels import Channel, Handshake
    from trionode.verify.model.network import Link

#: What addresses that nobody can guess begin with: a running node makes them of 128 random bits. No name in a spec has it.
RANDOM = "#"
#: The address that waits for the answer to what a flow sends.
ANSWERS = "#answers"

# What messages are


@attrs.frozen
class Origin:
    """What a node knows of a message's origin, as `trionode.protocol.wire.message.Facts`; an identifier stands for whoever has it."""

    link: str | None = None
    stream: str | None = None
    identifier: str | None = None

    @property
    def is_local(self) -> bool:
        """Whether the message began on this node."""
        return self.link is None and self.stream is None and self.identifier is None


LOCAL = Origin()


@attrs.frozen
class Clear:
    """The payload that an application sends, as it is."""


@attrs.frozen(eq=False)
class Sealed:
    """What a secure channel makes of a message."""

    channel: "Channel" = attrs.field(repr=False)
    #: The node that has sealed it.
    by: str
    onward: tuple[str, ...]
    back: tuple[str, ...]
    body: "Body"


@attrs.frozen
class Record:
    """A message as a stream carries it, on its way to the store or from it."""

    stream: str
    onward: tuple[str, ...]
    back: tuple[str, ...]
    body: "Body"


@attrs.frozen
class Request:
    """What nodes say to one another for their own purposes; a handshake's messages hold all of it."""

    what: Literal["handshake", "create", "index", "pull", "register", "answer"]
    name: str = ""
    handshake: "Handshake | None" = attrs.field(default=None, repr=False)


Body = Clear | Sealed | Record | Request


@attrs.frozen
class Watcher:
    """Somebody who carries messages: a node, a wire between two, a store, or somebody outside of the topology."""

    kind: Literal["node", "connection", "store", "outsider"]
    name: str

    def __str__(self) -> str:
        return self.name if self.kind == "node" else f"{self.kind} {self.name}"


@attrs.frozen(eq=False)
class Step:
    """A message where somebody carries it, and what happens to it there."""

    at: Watcher
    what: str
    message: "Message"
    #: Takes what somebody there puts in, beside what he got; nothing can be put in at a node but by what leads on from it.
    puts: "Callable[[Message], None] | None" = None
    #: Where a wire leads to, by its transport address, or where a store lies; None where nobody sees what passes.
    endpoint: Endpoint | None = None
    #: What a wire is, where it is a link between nodes.
    link: "Link | None" = None


@attrs.frozen(eq=False)
class Message:
    """A message on its way, and the way that it has come."""

    onward: tuple[str, ...]
    back: tuple[str, ...]
    body: Body
    origin: Origin = LOCAL
    deliveries: int = 0
    trail: tuple[Step, ...] = attrs.field(default=(), repr=False)

    def seen(self, step: Step) -> "Message":
        """Return the message with one step more behind it."""
        return attrs.evolve(self, trail=(*self.trail, step))


Ending = Literal["arrived", "answered", "left", "dropped", "circles"]


@attrs.frozen(eq=False)
class End:
    """Where a message, or one of its copies, comes to: somebody who takes it, somebody outside, or nowhere."""

    what: Ending
    node: str
    #: The address that takes it, or that it was for.
    address: str
    #: Why it comes no farther.
    text: str
    message: Message


def readable(address: str) -> str:
    """Return an address for people: of one that nobody can guess what it is, without its number."""
    return address[1:].rpartition(" ")[0] if address.startswith(RANDOM) and " " in address else address
