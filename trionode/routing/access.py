"""Who may reach an address of a node: rules that look at the facts of a message, and deny what they don't know."""

from collections.abc import Callable

from trionode.protocol.wire.message import Origin

#: A rule: whether a message with these facts may be delivered. It is asked for every message, so it must be quick and synchronous.
Access = Callable[[Origin], bool]


def from_local(origin: Origin) -> bool:
    """Admit only messages that began on this node: the rule of encryptors, stream senders and links."""
    return origin.link is None and origin.stream is None and origin.identifier is None


def from_local_or_channels(origin: Origin) -> bool:
    """Admit this node, and peers whom a secure channel has authenticated: the rule of workers."""
    return origin.identifier is not None or (origin.link is None and origin.stream is None)


def from_local_or_links(origin: Origin) -> bool:
    """This node, and bare links and streams, but no secure channel: the rule of links on a node that forwards."""
    return origin.identifier is None


def from_anywhere(origin: Origin) -> bool:  # noqa: ARG001  # a rule is asked with the facts, whatever it makes of them
    """Admit everybody, strangers on bare links included: the rule of channel listeners, and of services made for strangers."""
    return True


def from_identities(*identifiers: bytes) -> Access:
    """Admit peers with one of these authenticated identifiers (32 bytes each), and nobody else, not even this node."""
    allowed = frozenset(identifiers)

    def rule(origin: Origin) -> bool:
        return origin.identifier in allowed

    return rule
