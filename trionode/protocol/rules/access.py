"""Access rules: functions of a message's origin that admit the message to an address, and deny what they do not know.

The verifier calls the same rules with its own origins, in which names stand for addresses and identifiers.
"""

from collections.abc import Callable
from typing import Protocol, TypeVar

from trionode.protocol.wire.message import Origin

#: A rule: whether a message of this origin may be delivered. The router calls it for every message, so it is quick and
#: synchronous.
Access = Callable[[Origin], bool]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class OriginLike(Protocol[T_co]):
    """What a rule reads of an origin.

    `T_co` is the type of addresses and identifiers: bytes in a node, names in the verifier.
    """

    @property
    def link(self) -> T_co | None:
        """The link that the message came in by."""
        ...

    @property
    def stream(self) -> T_co | None:
        """The stream that the message came out of."""
        ...

    @property
    def identifier(self) -> T_co | None:
        """The identifier of the innermost secure channel's peer."""
        ...


def from_local(origin: OriginLike[object]) -> bool:
    """Admit only messages that began on this node: the default rule of encryptors, stream senders and links.

    Args:
      origin: Where the message comes from.

    Returns:
      Whether it is admitted.
    """
    return origin.link is None and origin.stream is None and origin.identifier is None


def from_local_or_channels(origin: OriginLike[object]) -> bool:
    """Admit messages of this node, and of peers that a secure channel has authenticated: the default rule of workers.

    Args:
      origin: Where the message comes from.

    Returns:
      Whether it is admitted.
    """
    return origin.identifier is not None or (origin.link is None and origin.stream is None)


def from_local_or_links(origin: OriginLike[object]) -> bool:
    """Admit this node, bare links and bare streams, but no secure channel: the rule of links on a node that forwards.

    Args:
      origin: Where the message comes from.

    Returns:
      Whether it is admitted.
    """
    return origin.identifier is None


def from_anywhere(origin: OriginLike[object]) -> bool:  # noqa: ARG001  # every rule takes the origin, also one that ignores it
    """Admit every message, also of unauthenticated peers: the default rule of channel listeners and of public services.

    Args:
      origin: Where the message comes from.

    Returns:
      True.
    """
    return True


def from_identities(*identifiers: bytes) -> Access:
    """Make a rule that admits only peers with one of these authenticated identifiers, and no local messages.

    Args:
      identifiers: 32 bytes each, such as `Identifier.value`.

    Returns:
      The rule.
    """
    allowed = frozenset(identifiers)

    def rule(origin: Origin) -> bool:
        return origin.identifier in allowed

    return rule


def is_local_or_named(origin: OriginLike[T], identifiers: frozenset[T]) -> bool:
    """Whether a message began on this node or came through a secure channel with one of these identities."""
    return origin.identifier in identifiers or from_local(origin)


def link_access(*, forwards: bool) -> Callable[[OriginLike[object]], bool]:
    """Return the rule of a node's links: local messages may leave by them, and bare messages if the node forwards."""
    return from_local_or_links if forwards else from_local


def client_of(origin: OriginLike[T]) -> T | None:
    """Return what stands for the client in limits and ownership: its identity, else its link or stream.

    None for this node.
    """
    return origin.identifier or origin.link or origin.stream
