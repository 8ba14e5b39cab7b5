"""End-to-end encrypted messages over many hops and many protocols."""

from trionode.channel.listener import SecureChannelListener
from trionode.channel.secure_channel import SecureChannel
from trionode.counters import Counters, DropReason
from trionode.errors import (
    AddressInUseError,
    AnswerTimeout,
    ClosedError,
    ConfigError,
    ConnectionLost,
    DecryptError,
    HandshakeError,
    IdentityError,
    IdentityRefused,
    LocalError,
    MessageTooLargeError,
    RemoteError,
    ServiceError,
    TrionodeError,
    UndecodableText,
    Undelivered,
    UnknownAddressError,
    VaultError,
    WireError,
)
from trionode.identity.attributes import from_attributes, trust_attributes
from trionode.identity.identity import Identity
from trionode.identity.stored import IdentityVault
from trionode.identity.trust import TrustPolicy, trust_everyone, trust_only
from trionode.log import sanitize
from trionode.net.transport import Link, Transport, load_transport
from trionode.node.node import Hub, Node, open_node
from trionode.portal import Inlet, Outlet, PortalLimits
from trionode.protocol.handshake.exchange import Peer
from trionode.protocol.identity.credential import Credential
from trionode.protocol.identity.identity import Identifier
from trionode.protocol.rules.access import (
    Access,
    from_anywhere,
    from_identities,
    from_local,
    from_local_or_channels,
    from_local_or_links,
)
from trionode.protocol.rules.verdicts import (
    Fork,
    Gap,
    Repaired,
    Restarted,
    Rollback,
    TailSilence,
    Truncated,
    Verdict,
)
from trionode.protocol.wire.address import Address
from trionode.protocol.wire.message import Message, Origin
from trionode.protocol.wire.route import Routable, Route, RouteLike
from trionode.relay.client import Relay
from trionode.relay.service import RelayLimits, RelayService
from trionode.routing.link import NodeLink
from trionode.routing.mailbox import Mailbox, Worker
from trionode.routing.supervision import DeadLetter, DeadLetters, OnError
from trionode.stream.client import Stream, unique
from trionode.stream.clients import StreamLimits
from trionode.stream.service import StreamService
from trionode.stream.store.base import StoreError, StreamStore, load_store
from trionode.vault.memory import MemoryVault
from trionode.vault.sqlite import open_sqlite_vault

__all__ = [
    "Access",
    "Address",
    "AddressInUseError",
    "AnswerTimeout",
    "ClosedError",
    "ConfigError",
    "ConnectionLost",
    "Counters",
    "Credential",
    "DeadLetter",
    "DeadLetters",
    "DecryptError",
    "DropReason",
    "Fork",
    "Gap",
    "HandshakeError",
    "Hub",
    "Identifier",
    "Identity",
    "IdentityError",
    "IdentityRefused",
    "IdentityVault",
    "Inlet",
    "Link",
    "LocalError",
    "Mailbox",
    "MemoryVault",
    "Message",
    "MessageTooLargeError",
    "Node",
    "NodeLink",
    "OnError",
    "Origin",
    "Outlet",
    "Peer",
    "PortalLimits",
    "Relay",
    "RelayLimits",
    "RelayService",
    "RemoteError",
    "Repaired",
    "Restarted",
    "Rollback",
    "Routable",
    "Route",
    "RouteLike",
    "SecureChannel",
    "SecureChannelListener",
    "ServiceError",
    "StoreError",
    "Stream",
    "StreamLimits",
    "StreamService",
    "StreamStore",
    "TailSilence",
    "Transport",
    "TrionodeError",
    "Truncated",
    "TrustPolicy",
    "UndecodableText",
    "Undelivered",
    "UnknownAddressError",
    "VaultError",
    "Verdict",
    "WireError",
    "Worker",
    "from_anywhere",
    "from_attributes",
    "from_identities",
    "from_local",
    "from_local_or_channels",
    "from_local_or_links",
    "load_store",
    "load_transport",
    "open_node",
    "open_sqlite_vault",
    "sanitize",
    "trust_attributes",
    "trust_everyone",
    "trust_only",
    "unique",
]
