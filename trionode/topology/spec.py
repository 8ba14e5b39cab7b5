"""Topologies as values: nodes with everything in them, the messages that are sent, and assertions.

Each class is a table of the topology file, and each attribute is a key of the table; its `Doc` describes it.
Constructors accept what the file accepts: one item in place of a list with one item (except for routes), and a text in
place of a table if the class has KEYWORDS or TEXT_KEY.

The file is long because it is one list of tables, and most of its lines are the documentation of their keys.
"""

from collections.abc import Iterable, Mapping
from enum import Enum, auto
from typing import Annotated, ClassVar, Literal, Self

import attrs
from attrs import Factory, field

from trionode.errors import ConfigError
from trionode.portal import PortalLimits
from trionode.relay.service import PREFIX, RelayLimits
from trionode.routing.byte_budget import DEFAULT_BOUND
from trionode.routing.mailbox import STALL_TIMEOUT
from trionode.routing.supervision import OnError
from trionode.stream.clients import StreamLimits
from trionode.stream.service import INDEX_SERVICE, SERVICE


class ValueKind(Enum):
    """What a text or number stands for, beyond its type. Each kind has a check of its own."""

    ROUTE = auto()
    #: A transport address to connect to, or one to listen at.
    ENDPOINT = auto()
    LISTENING_ENDPOINT = auto()
    HOST_PORT = auto()
    NODE = auto()
    #: A node whose identity must be known.
    IDENTIFIED_NODE = auto()
    #: A node, or an identifier.
    OWNER = auto()
    IDENTIFIER = auto()
    #: The exported change history of an identity that issues credentials.
    AUTHORITY = auto()
    #: A credential in hex.
    CREDENTIAL = auto()
    #: A name on a node that messages can be addressed to.
    ADDRESS = auto()
    RELAY = auto()
    STREAM = auto()
    #: The key of a channel or a stream; routes name it by `@name`.
    OWN_NAME = auto()
    NODE_NAME = auto()
    FLOW = auto()
    WORKER = auto()
    VAULT = auto()
    TRANSPORT = auto()
    STORE = auto()
    #: A node, `network` or `stores`.
    OBSERVER = auto()
    #: NODE/NAME.
    ADDRESS_OF_NODE = auto()
    #: More than 0.
    POSITIVE = auto()
    #: 0 to 2^64-1.
    INDEX = auto()


#: The hops of a route in order. The first is a transport address (`tcp:127.0.0.1:4000`), or `@name` for a stream or
#: secure channel of this node. The others are names of addresses at the nodes that are reached.
RouteSpec = Annotated[tuple[str, ...], ValueKind.ROUTE]
#: The value of a plugin's option.
Option = str | int | float | bool | tuple[str, ...]
#: A protocol version of Ockam.
ProtocolVersionName = Literal["current", "classic"]

# Texts with a meaning; trionode/topology/check/values.py has their checks.
Endpoint = Annotated[str, ValueKind.ENDPOINT]
HostPort = Annotated[str, ValueKind.HOST_PORT]
NodeName = Annotated[str, ValueKind.NODE]
IdentifiedNode = Annotated[str, ValueKind.IDENTIFIED_NODE]
IdentifierText = Annotated[str, ValueKind.IDENTIFIER]
CredentialText = Annotated[str, ValueKind.CREDENTIAL]
AddressName = Annotated[str, ValueKind.ADDRESS]
OwnName = Annotated[str, ValueKind.OWN_NAME]
StreamName = Annotated[str, ValueKind.STREAM]
Observer = Annotated[str, ValueKind.OBSERVER]


@attrs.frozen
class Doc:
    """The documentation of a key.

    Attributes:
      text: One sentence or two.
      key: The name of the key in the file, if that is not a valid name in Python.
    """

    text: str
    key: str | None = None


@attrs.frozen
class NotInFile:
    """Marks an attribute without a key in the file, which has a keyword for it."""


# Converters of constructors. They are named functions, since type checkers take a parameter's type from them.


def _texts(value: str | Iterable[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def _route(value: Iterable[str]) -> tuple[str, ...]:
    if isinstance(value, str):
        raise ConfigError(f"a route is a list of its hops, such as [{value!r}]; this is the text {value!r}")
    return tuple(value)


def _routes(value: Iterable[Iterable[str]]) -> tuple[RouteSpec, ...]:
    if isinstance(value, str):
        raise ConfigError(f"expected a list of routes, such as [[{value!r}]]; this is the text {value!r}")
    return tuple(map(_route, value))


def _protocol_versions(value: Iterable[ProtocolVersionName]) -> tuple[ProtocolVersionName, ...]:
    return tuple(value)


def _options(value: "Mapping[str, Option | list[str]]") -> Mapping[str, Option]:
    return {key: tuple(each) if isinstance(each, list) else each for key, each in value.items()}


def _transports(value: "Mapping[str, Mapping[str, Option | list[str]]]") -> Mapping[str, Mapping[str, Option]]:
    return {name: _options(options) for name, options in value.items()}


@attrs.frozen
class TrustSpec:
    """The peers that a channel or its listener trusts: `"everyone"`, or a table of identifiers and nodes."""

    everyone: Annotated[bool, Doc("Trust every peer that proves an identity.")] = False
    identifiers: Annotated[tuple[IdentifierText, ...], Doc("The trusted identifiers, I… or P….")] = field(
        default=(), converter=_texts
    )
    nodes: Annotated[tuple[IdentifiedNode, ...], Doc("Nodes of this topology whose identities are trusted.")] = field(
        default=(), converter=_texts
    )
    authority: Annotated[
        str | None,
        ValueKind.AUTHORITY,
        Doc("An identity whose credentials are trusted: its change history, as `trionode identity export` prints it."),
    ] = None
    attributes: Annotated[
        Mapping[str, str],
        Doc("What that credential must say; `*` stands for any value."),
    ] = attrs.field(factory=dict, converter=dict)

    #: The texts that stand for a whole table.
    KEYWORDS: ClassVar = ("everyone",)

    @classmethod
    def from_keyword(cls, keyword: str) -> Self:
        """Return the spec that a text in place of the table stands for.

        Args:
          keyword: One of KEYWORDS.

        Raises:
          ConfigError: The text is none of them.
        """
        if keyword not in cls.KEYWORDS:
            raise ConfigError(
                f"trust is 'everyone', or TrustSpec(identifiers=[…], nodes=[…]) with the trusted peers; this is {keyword!r}"
            )
        return cls(everyone=True)


def _trust(value: TrustSpec | str) -> TrustSpec:
    return value if isinstance(value, TrustSpec) else TrustSpec.from_keyword(value)


AccessRule = Literal["local", "channels", "anyone", "named"]


@attrs.frozen
class AccessSpec:
    """Who can reach an address: `"local"`, `"channels"`, `"anyone"`, or a table of peers.

    `"local"` is this node. `"channels"` is this node, and every peer with a secure channel.
    """

    rule: Annotated[AccessRule, NotInFile()] = "named"
    identifiers: Annotated[
        tuple[IdentifierText, ...], Doc("The identifiers, I… or P…, that are allowed beside this node.")
    ] = field(default=(), converter=_texts)
    nodes: Annotated[tuple[IdentifiedNode, ...], Doc("Nodes of this topology that are allowed beside this node.")] = (
        field(default=(), converter=_texts)
    )
    authority: Annotated[
        str | None,
        ValueKind.AUTHORITY,
        Doc(
            "Peers of secure channels with a credential of this identity may too: its change history, as `trionode identity export` prints it."
        ),
    ] = None
    attributes: Annotated[
        Mapping[str, str],
        Doc("What that credential must say; `*` stands for any value."),
    ] = attrs.field(factory=dict, converter=dict)

    #: The texts that stand for a whole table.
    KEYWORDS: ClassVar = ("local", "channels", "anyone")

    @classmethod
    def from_keyword(cls, keyword: str) -> Self:
        """Return the spec that a text in place of the table stands for.

        Args:
          keyword: One of KEYWORDS.

        Raises:
          ConfigError: The text is none of them.
        """
        for each in ("local", "channels", "anyone"):
            if keyword == each:
                return cls(each)
        raise ConfigError(
            f"access is 'local', 'channels', 'anyone', or AccessSpec(identifiers=[…], nodes=[…]) with the allowed peers; this is {keyword!r}"
        )


def _access(value: AccessSpec | str) -> AccessSpec:
    return value if isinstance(value, AccessSpec) else AccessSpec.from_keyword(value)


LOCAL = AccessSpec("local")
CHANNELS = AccessSpec("channels")
ANYONE = AccessSpec("anyone")


@attrs.frozen
class ListenerSpec:
    """An address to listen at: `"tcp:127.0.0.1:4000"`, or a table."""

    address: Annotated[str, ValueKind.LISTENING_ENDPOINT, Doc("A transport address; port 0 takes a free one.")]
    drop_when_full: Annotated[
        bool, Doc("For links between hubs: a full queue drops and counts messages, and no reader waits.")
    ] = False

    #: The key that a text in place of the table is the value of.
    TEXT_KEY: ClassVar = "address"


def _listeners(value: ListenerSpec | str | Iterable[ListenerSpec | str]) -> tuple[ListenerSpec, ...]:
    several = (value,) if isinstance(value, ListenerSpec | str) else value
    return tuple(ListenerSpec(each) if isinstance(each, str) else each for each in several)


@attrs.frozen
class IdentitySpec:
    """The identity of a node, and the vault with its keys."""

    vault: Annotated[str, ValueKind.VAULT, Doc("`memory`, or `sqlite:PATH`. A missing identity is created.")] = "memory"
    name: Annotated[str, Doc("Its name in the vault.")] = "default"
    passphrase_file: Annotated[
        str | None, Doc("A file with the passphrase of the vault. By default the passphrase is in TRIONODE_PASSPHRASE.")
    ] = None
    unencrypted: Annotated[bool, Doc("Do not encrypt the keys: everyone who can read the vault's file has them.")] = (
        False
    )
    identifier: Annotated[
        IdentifierText | None,
        Doc(
            "The expected identifier, so that others can trust the node by its name. It is checked when the node starts."
        ),
    ] = None
    credentials: Annotated[
        tuple[CredentialText, ...],
        Doc("Credentials for it, as `trionode identity issue` prints them; stored when the node starts."),
    ] = attrs.field(default=(), converter=_texts)


@attrs.frozen
class LinkSpec:
    """A link that the node dials, under a name that routes through this node can use."""

    to: Annotated[Endpoint, Doc("A transport address.")]
    drop_when_full: Annotated[
        bool, Doc("For links between hubs: a full queue drops and counts messages, and no reader waits.")
    ] = False
    dial: Annotated[
        Literal["at_start", "on_demand"],
        Doc(
            "When to dial: at the start and again after each loss, or when any message is to be forwarded over the link."
        ),
    ] = "at_start"


@attrs.frozen
class StreamSpec:
    """A conversation over two streams of a hub."""

    via: Annotated[RouteSpec, Doc("The route to the hub.")] = field(converter=_route)
    sends: Annotated[StreamName, Doc("The stream that this node writes.")]
    receives: Annotated[StreamName, Doc("The stream that this node reads.")]
    service: Annotated[AddressName, Doc("The hub's stream service.")] = SERVICE
    index_service: Annotated[AddressName, Doc("The hub's index service.")] = INDEX_SERVICE
    client_id: Annotated[
        StreamName | None, Doc("The name of the reading position on the hub. Without one reading begins at the start.")
    ] = None
    start: Annotated[int | None, ValueKind.INDEX, Doc("The index to begin at if the hub has no position.")] = None
    protocol_version: Annotated[ProtocolVersionName, Doc("The protocol version that the peer reads.")] = "current"


@attrs.frozen
class StoreSpec:
    """A store of streams: `"memory"`, `"sqlite:PATH"`, `"kafka:HOST:PORT"`, or a table with its options."""

    address: Annotated[
        str, ValueKind.STORE, Doc("The name of an installed store, and after a colon the store's own address.")
    ]
    options: Annotated[Mapping[str, Option], Doc("Options of the store.")] = field(factory=dict, converter=_options)

    TEXT_KEY: ClassVar = "address"


def _store(value: StoreSpec | str) -> StoreSpec:
    return StoreSpec(value) if isinstance(value, str) else value


@attrs.frozen
class StreamServiceSpec:
    """A stream service and its index service."""

    store: Annotated[StoreSpec, Doc("The store of the streams.")] = field(converter=_store)
    index: Annotated[
        AddressName | None, Doc("The name of the index service, by default that of the service and `_index`.")
    ] = None
    allow: Annotated[AccessSpec, Doc("Who can use it.")] = field(default=ANYONE, converter=_access)
    owners: Annotated[
        Mapping[StreamName, Annotated[str, ValueKind.OWNER]],
        Doc("Streams to create at the start, each with its owner: a node of this topology, or an identifier."),
    ] = Factory(dict)
    limits: Annotated[StreamLimits, Doc("Limits for one client.")] = Factory(StreamLimits)


@attrs.frozen
class RelayServiceSpec:
    """A relay service, which makes nodes reachable that accept no connections."""

    allow: Annotated[AccessSpec, Doc("Who can register.")] = field(default=ANYONE, converter=_access)
    prefix: Annotated[str, Doc("The beginning of a relay's address, before its name.")] = PREFIX
    limits: Annotated[RelayLimits, Doc("Limits for clients.")] = Factory(RelayLimits)


@attrs.frozen
class RelaySpec:
    """A name on a hub under which this node is reached."""

    via: Annotated[RouteSpec, Doc("The route to the hub.")] = field(converter=_route)
    to: Annotated[
        RouteSpec | None,
        Doc(
            "The node that it leads to, a route that begins with a transport address. By default it leads to this node."
        ),
    ] = field(default=None, converter=attrs.converters.optional(_route))


@attrs.frozen
class ChannelListenerSpec:
    """An address that accepts secure channels."""

    trust: Annotated[TrustSpec, Doc("The peers whose channels are accepted.")] = field(converter=_trust)
    allow: Annotated[AccessSpec, Doc("Who can reach it.")] = field(default=ANYONE, converter=_access)
    protocol_versions: Annotated[tuple[ProtocolVersionName, ...], Doc("The protocol versions that are accepted.")] = (
        field(default=("current",), converter=_protocol_versions)
    )


@attrs.frozen
class ChannelSpec:
    """A secure channel that this node opens, and opens again after each loss."""

    to: Annotated[RouteSpec, Doc("The route to a listener; the listener's address is the last hop.")] = field(
        converter=_route
    )
    trust: Annotated[TrustSpec, Doc("The peers that are trusted at the other end.")] = field(converter=_trust)
    protocol_version: Annotated[ProtocolVersionName, Doc("The protocol version of the channel.")] = "current"


@attrs.frozen
class WorkerSpec:
    """Code behind an address: `"trionode.workers:echoer"`, or a table."""

    run: Annotated[
        str,
        ValueKind.WORKER,
        Doc("The function, as MODULE:NAME, or the name of a worker that ships with trionode."),
    ]
    arguments: Annotated[Mapping[str, Option], Doc("Its keyword arguments, beside its mailbox.")] = field(
        factory=dict, converter=_options
    )
    allow: Annotated[AccessSpec, Doc("Who can reach it.")] = field(default=CHANNELS, converter=_access)
    sends: Annotated[
        tuple[RouteSpec, ...],
        Doc("The routes that it sends messages to, which it gets as its argument `sends`. The proof follows them."),
    ] = field(default=(), converter=_routes)
    bound: Annotated[int, ValueKind.POSITIVE, Doc("Bytes in its mailbox above which senders wait.")] = DEFAULT_BOUND
    stall_timeout: Annotated[
        float, ValueKind.POSITIVE, Doc("Seconds that a link waits while the worker takes no message.")
    ] = STALL_TIMEOUT
    on_error: Annotated[
        OnError,
        Doc("When it raises an exception: end the node, call it again after a delay, or set the message aside."),
    ] = "end_node"

    TEXT_KEY: ClassVar = "run"


def _workers(value: Mapping[str, WorkerSpec | str]) -> Mapping[str, WorkerSpec]:
    return {name: WorkerSpec(each) if isinstance(each, str) else each for name, each in value.items()}


@attrs.frozen
class InletSpec:
    """A TCP port whose connections lead to an outlet."""

    listen: Annotated[HostPort, Doc("HOST:PORT to listen at.")]
    to: Annotated[RouteSpec, Doc("The route to the outlet; the outlet's address is the last hop.")] = field(
        converter=_route
    )
    limits: Annotated[PortalLimits, Doc("Its limits.")] = Factory(PortalLimits)


@attrs.frozen
class OutletSpec:
    """An address that connects to a TCP service."""

    target: Annotated[HostPort, Doc("HOST:PORT of the service.")]
    allow: Annotated[AccessSpec, Doc("Who can use it.")] = field(default=CHANNELS, converter=_access)
    limits: Annotated[PortalLimits, Doc("Its limits.")] = Factory(PortalLimits)


@attrs.frozen
class NodeSpec:
    """One node."""

    external: Annotated[bool, Doc("The node runs elsewhere: it is described for the proof, and never started.")] = False
    listen: Annotated[tuple[ListenerSpec, ...], Doc("The addresses that it listens at.")] = field(
        default=(), converter=_listeners
    )
    forwards: Annotated[bool, Doc("Forward messages of unauthenticated peers from link to link, as a hub does.")] = (
        False
    )
    identity: Annotated[IdentitySpec, Doc("Its identity.")] = Factory(IdentitySpec)
    transports: Annotated[
        Mapping[Annotated[str, ValueKind.TRANSPORT], Mapping[str, Option]],
        Doc("The options of its transports, by their names."),
    ] = field(factory=dict, converter=_transports)
    links: Annotated[Mapping[AddressName, LinkSpec], Doc("The links that it dials.")] = Factory(dict)
    workers: Annotated[Mapping[AddressName, WorkerSpec], Doc("Its workers.")] = field(factory=dict, converter=_workers)
    secure_channel_listeners: Annotated[
        Mapping[AddressName, ChannelListenerSpec], Doc("Its listeners for secure channels.")
    ] = Factory(dict)
    secure_channels: Annotated[Mapping[OwnName, ChannelSpec], Doc("The secure channels that it opens.")] = field(
        factory=dict
    )
    stream_services: Annotated[Mapping[AddressName, StreamServiceSpec], Doc("Its stream services.")] = field(
        factory=dict
    )
    streams: Annotated[Mapping[OwnName, StreamSpec], Doc("Its conversations over streams.")] = Factory(dict)
    relay_service: Annotated[RelayServiceSpec | None, Doc("Its relay service.")] = None
    relays: Annotated[
        Mapping[Annotated[str, ValueKind.RELAY], RelaySpec], Doc("The names on hubs that lead to it.")
    ] = Factory(dict)
    inlets: Annotated[Mapping[str, InletSpec], Doc("Its TCP ports that lead to outlets.")] = Factory(dict)
    outlets: Annotated[Mapping[AddressName, OutletSpec], Doc("The TCP services that inlets can reach.")] = field(
        factory=dict
    )


@attrs.frozen
class FlowSpec:
    """Messages that one node sends, for the proof."""

    node: Annotated[NodeName, Doc("The node that sends.", key="from")]
    to: Annotated[RouteSpec, Doc("The route of the messages.")] = field(converter=_route)
    answered: Annotated[bool, Doc("Whether answers come back over the return route.")] = True


@attrs.frozen
class AssertSpec:
    """An assertion about one flow or all flows. `trionode check` fails if it does not hold."""

    flow: Annotated[str | None, ValueKind.FLOW, Doc("The flow; without it the assertion is about all flows.")] = None
    no_plaintext_at: Annotated[
        tuple[Observer, ...], Doc("Nodes, `network` or `stores` that must not see the payload in the clear.")
    ] = field(default=(), converter=_texts)
    no_inner_addresses_at: Annotated[
        tuple[Observer, ...], Doc("Nodes, `network` or `stores` that must not see the addresses inside a channel.")
    ] = field(default=(), converter=_texts)
    no_injection_by: Annotated[
        tuple[Observer, ...], Doc("Nodes, `network` or `stores` that must not be able to inject messages.")
    ] = field(default=(), converter=_texts)
    sender_authenticated_to: Annotated[
        tuple[NodeName, ...], Doc("Nodes to which the sender must be authenticated.")
    ] = field(default=(), converter=_texts)
    no_unauthenticated_access_to: Annotated[
        tuple[Annotated[str, ValueKind.ADDRESS_OF_NODE], ...],
        Doc("Addresses, NODE/NAME, that no peer can reach without a secure channel."),
    ] = field(default=(), converter=_texts)
    no_unauthenticated_dials_by: Annotated[
        tuple[NodeName, ...], Doc("Nodes that no unauthenticated peer can cause to dial.")
    ] = field(default=(), converter=_texts)


def _assertions(value: AssertSpec | Iterable[AssertSpec]) -> tuple[AssertSpec, ...]:
    return (value,) if isinstance(value, AssertSpec) else tuple(value)


@attrs.frozen
class TopologySpec:
    """A whole topology, or one node's part of it."""

    nodes: Annotated[Mapping[Annotated[str, ValueKind.NODE_NAME], NodeSpec], Doc("The nodes, by their names.")]
    flows: Annotated[Mapping[str, FlowSpec], Doc("The messages that are sent, by names of your choice.")] = field(
        factory=dict
    )
    assertions: Annotated[tuple[AssertSpec, ...], Doc("The assertions.", key="assert")] = field(
        default=(), converter=_assertions
    )
