"""End-to-end encrypted messages over many hops and many protocols."""

from trionode.identities import Identity
from trionode.mailbox import Mailbox, Worker
from trionode.node import Node, open_node
from trionode.protocol.address import Address
from trionode.protocol.identity import Identifier
from trionode.protocol.message import Message
from trionode.protocol.route import Route
from trionode.secure_channel import SecureChannel
from trionode.stream import Stream, unique
from trionode.trust import TrustPolicy, trust_everyone, trust_only

__all__ = [
    "Address",
    "Identifier",
    "Identity",
    "Mailbox",
    "Message",
    "Node",
    "Route",
    "SecureChannel",
    "Stream",
    "TrustPolicy",
    "Worker",
    "open_node",
    "trust_everyone",
    "trust_only",
    "unique",
]
