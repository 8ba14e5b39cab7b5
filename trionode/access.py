"""Who may reach an address of a node: rules that look at the facts of a message, and deny what they don't know."""

from collections.abc import Callable

from trionode.protocol.message import Facts

#: A rule: whether a message with these facts may be delivered. It is asked for every message, so it must be quick and synchronous.
Access = Callable[[Facts], bool]


def from_here(facts: Facts) -> bool:
    """Admit only messages that began on this node: the rule of encryptors, stream senders and links."""
    return facts.link is None and facts.stream is None and facts.identifier is None


def from_here_or_channels(facts: Facts) -> bool:
    """Admit this node, and peers whom a secure channel has authenticated: the rule of workers."""
    return facts.identifier is not None or (facts.link is None and facts.stream is None)


def from_here_or_links(facts: Facts) -> bool:
    """This node, and bare links and streams, but no secure channel: the rule of links on a node that forwards."""
    return facts.identifier is None


def from_anywhere(facts: Facts) -> bool:  # noqa: ARG001  # a rule is asked with the facts, whatever it makes of them
    """Admit everybody, strangers on bare links included: the rule of channel listeners, and of services made for strangers."""
    return True


def from_identities(*identifiers: bytes) -> Access:
    """Admit peers with one of these authenticated identifiers (32 bytes each), and nobody else, not even this node."""
    allowed = frozenset(identifiers)

    def rule(facts: Facts) -> bool:
        return facts.identifier in allowed

    return rule
