"""What a topology file says, as values: nodes, all that lives in them, what is sent, and what has to hold.

Every class is a table of the file, and every attribute a key of it. Constructors take what the file takes: a list with one thing in it may
be given as that thing (but for routes), and a text stands for a whole table where the class says so by WORDS or SHORT.
"""

from collections.abc import Iterable, Mapping
from enum import Enum, auto
from typing import Annotated, ClassVar, Literal, Self

import attrs

from trionode.errors import LocalError
from trionode.portal import PortalLimits
from trionode.relay.service import PREFIX, RelayLimits
from trionode.routing.byte_budget import DEFAULT_BOUND
from trionode.routing.mailbox import STALL_TIMEOUT
from trionode.stream.clients import StreamLimits
from trionode.stream.service import INDEX_SERVICE, SERVICE


class ValueKind(Enum):
    """What a text or number stands for, beyond its type, so that it can be checked by itself."""

    ROUTE = auto()
    #: A transport address that is dialled, or one that is listened at.
    ENDPOINT = auto()
    LISTENING_ENDPOINT = auto()
    HOST_PORT = auto()
    NODE = auto()
    #: A node whose identity matters, and so has to be known.
    IDENTIFIED_NODE = auto()
    #: A node, or an identifier.
    OWNER = auto()
    IDENTIFIER = auto()
    #: A name that somebody has on a node, which messages can be addressed to.
    ADDRESS = auto()
    RELAY = auto()
    STREAM = auto()
    #: The key of a channel or a stream, which routes name by `@name`.
    OWN_NAME = auto()
    NODE_NAME = auto()
    FLOW = auto()
    WORKER = auto()
    VAULT = auto()
    TRANSPORT = auto()
    STORE = auto()
    #: A node, `network` or `stores`.
    WATCHER = auto()
    #: NODE/NAME.
    ADDRESS_OF_NODE = auto()
    #: More than 0.
    POSITIVE = auto()
    #: 0 to 2^64-1.
    INDEX = auto()


#: A route as its hops in order: transport addresses (`tcp:127.0.0.1:4000`), names of addresses at the node that is reached, and, first only,
#: `@name` for this node's own stream or secure channel of that name.
RouteSpec = Annotated[tuple[str, ...], ValueKind.ROUTE]
#: What an option of a plugin may be.
Option = str | int | float | bool | tuple[str, ...]
#: A generation of the protocol.
ProtocolVersionName = Literal["current", "classic"]

# Texts with a meaning; what each has to be is said in docs/topology.md and checked in checking.py.
Endpoint = Annotated[str, ValueKind.ENDPOINT]
HostPort = Annotated[str, ValueKind.HOST_PORT]
NodeName = Annotated[str, ValueKind.NODE]
IdentifiedNode = Annotated[str, ValueKind.IDENTIFIED_NODE]
IdentifierText = Annotated[str, ValueKind.IDENTIFIER]
AddressName = Annotated[str, ValueKind.ADDRESS]
OwnName = Annotated[str, ValueKind.OWN_NAME]
StreamName = Annotated[str, ValueKind.STREAM]
Watcher = Annotated[str, ValueKind.WATCHER]


@attrs.frozen
class Doc:
    """What a key means, for people and for editors; `key` is its name in the file where that can't be a name in Python."""

    text: str
    key: str | None = None


@attrs.frozen
class NotInFile:
    """Marks an attribute that the file has no key for, since a word stands for it there."""


# What constructors accept. Named functions, since type checkers learn a parameter's type from them.


def _texts(value: str | Iterable[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def _route(value: Iterable[str]) -> tuple[str, ...]:
    if isinstance(value, str):
        raise LocalError(f"a route is a list of its hops, such as [{value!r}]; this is the text {value!r}")
    return tuple(value)


def _routes(value: Iterable[Iterable[str]]) -> tuple[RouteSpec, ...]:
    if isinstance(value, str):
        raise LocalError(f"expected a list of routes, such as [[{value!r}]]; this is the text {value!r}")
    return tuple(map(_route, value))


def _protocol_versions(value: Iterable[ProtocolVersionName]) -> tuple[ProtocolVersionName, ...]:
    return tuple(value)


def _options(value: "Mapping[str, Option | list[str]]") -> Mapping[str, Option]:
    return {key: tuple(each) if isinstance(each, list) else each for key, each in value.items()}


def _transports(value: "Mapping[str, Mapping[str, Option | list[str]]]") -> Mapping[str, Mapping[str, Option]]:
    return {name: _options(options) for name, options in value.items()}


@attrs.frozen
class TrustSpec:
    """Whom a channel or its listener trusts: `"everyone"`, or a table of identifiers and of nodes of this topology."""

    everyone: Annotated[bool, Doc("Trust whoever proves any identity at all.")] = False
    identifiers: Annotated[tuple[IdentifierText, ...], Doc("Identifiers, I… or P…, that are trusted.")] = attrs.field(
        default=(), converter=_texts
    )
    nodes: Annotated[tuple[IdentifiedNode, ...], Doc("Nodes of this topology whose identities are trusted.")] = (
        attrs.field(default=(), converter=_texts)
    )

    #: The words that stand for a whole table.
    WORDS: ClassVar = ("everyone",)

    @classmethod
    def from_word(cls, word: str) -> Self:
        """Return what a word stands for; ValueError for another one."""
        if word not in cls.WORDS:
            raise ValueError(word)
        return cls(everyone=True)


def _trust(value: TrustSpec | str) -> TrustSpec:
    if isinstance(value, TrustSpec):
        return value
    try:
        return TrustSpec.from_word(value)
    except ValueError:
        raise LocalError(
            f"trust is 'everyone', or TrustSpec(identifiers=[…], nodes=[…]) with those who are trusted; this is {value!r}"
        ) from None


AccessRule = Literal["local", "channels", "anyone", "named"]


@attrs.frozen
class AccessSpec:
    """Who reaches an address: `"local"`, `"channels"` (this node and who comes through a secure channel), `"anyone"`, or a table of those who may."""

    rule: Annotated[AccessRule, NotInFile()] = "named"
    identifiers: Annotated[
        tuple[IdentifierText, ...], Doc("Identifiers, I… or P…, that may, beside this node itself.")
    ] = attrs.field(default=(), converter=_texts)
    nodes: Annotated[tuple[IdentifiedNode, ...], Doc("Nodes of this topology that may, beside this node itself.")] = (
        attrs.field(default=(), converter=_texts)
    )

    WORDS: ClassVar = ("local", "channels", "anyone")

    @classmethod
    def from_word(cls, word: str) -> Self:
        """Return what a word stands for; ValueError for another one."""
        for each in ("local", "channels", "anyone"):
            if word == each:
                return cls(each)
        raise ValueError(word)


def _access(value: AccessSpec | str) -> AccessSpec:
    if isinstance(value, AccessSpec):
        return value
    try:
        return AccessSpec.from_word(value)
    except ValueError:
        raise LocalError(
            f"access is 'local', 'channels', 'anyone', or AccessSpec(identifiers=[…], nodes=[…]) with those who may; this is {value!r}"
        ) from None


LOCAL = AccessSpec("local")
CHANNELS = AccessSpec("channels")
ANYONE = AccessSpec("anyone")


@attrs.frozen
class ListenerSpec:
    """A place to listen at: `"tcp:127.0.0.1:4000"`, or a table."""

    address: Annotated[str, ValueKind.LISTENING_ENDPOINT, Doc("A transport address; port 0 takes a free one.")]
    drop_when_full: Annotated[bool, Doc("Its links are hub to hub: their readers never wait, they drop and count.")] = (
        False
    )

    #: The key that a text in place of the table stands for.
    SHORT: ClassVar = "address"


def _listeners(value: ListenerSpec | str | Iterable[ListenerSpec | str]) -> tuple[ListenerSpec, ...]:
    several = (value,) if isinstance(value, ListenerSpec | str) else value
    return tuple(ListenerSpec(each) if isinstance(each, str) else each for each in several)


@attrs.frozen
class IdentitySpec:
    """Who a node is, and where its keys lie."""

    vault: Annotated[
        str, ValueKind.VAULT, Doc("`memory`, or `sqlite:PATH`; an identity that is not there yet is made.")
    ] = "memory"
    name: Annotated[str, Doc("Its name in the vault.")] = "default"
    passphrase_file: Annotated[
        str | None, Doc("A file with the passphrase of the vault; without one TRIONODE_PASSPHRASE has it.")
    ] = None
    unencrypted: Annotated[
        bool, Doc("The keys lie in the vault's file in the open: whoever can read the file has them.")
    ] = False
    identifier: Annotated[
        IdentifierText | None,
        Doc("What it has to be, so that others can trust it by the node's name; checked when the node starts."),
    ] = None


@attrs.frozen
class LinkSpec:
    """A link that the node dials, under a name that routes through this node can use."""

    to: Annotated[Endpoint, Doc("A transport address.")]
    drop_when_full: Annotated[bool, Doc("It is hub to hub: its reader never waits, it drops and counts.")] = False
    dial: Annotated[
        Literal["at_start", "on_demand"],
        Doc("When: at the start and again whenever it was lost, or when a message is to go there, whoever sent it."),
    ] = "at_start"


@attrs.frozen
class StreamSpec:
    """A conversation over two streams of a hub."""

    via: Annotated[RouteSpec, Doc("The route to the hub.")] = attrs.field(converter=_route)
    sends: Annotated[StreamName, Doc("The stream that this node writes.")]
    receives: Annotated[StreamName, Doc("The stream that this node reads.")]
    service: Annotated[AddressName, Doc("The hub's stream service.")] = SERVICE
    index_service: Annotated[AddressName, Doc("The hub's index service.")] = INDEX_SERVICE
    client_id: Annotated[
        StreamName | None, Doc("The name of the position that the hub keeps; without one reading begins at the start.")
    ] = None
    start: Annotated[int | None, ValueKind.INDEX, Doc("The index to begin at where no position is kept.")] = None
    protocol_version: Annotated[ProtocolVersionName, Doc("The generation that the peer reads.")] = "current"


@attrs.frozen
class StoreSpec:
    """Where streams are kept: `"memory"`, `"sqlite:PATH"`, `"kafka:HOST:PORT"`, or a table with the options of that store."""

    address: Annotated[str, ValueKind.STORE, Doc("The name of an installed store, and behind a colon where it lies.")]
    options: Annotated[Mapping[str, Option], Doc("Options of the store.")] = attrs.field(
        factory=dict, converter=_options
    )

    SHORT: ClassVar = "address"


def _store(value: StoreSpec | str) -> StoreSpec:
    return StoreSpec(value) if isinstance(value, str) else value


@attrs.frozen
class StreamServiceSpec:
    """A stream service and its index service."""

    store: Annotated[StoreSpec, Doc("Where the streams are kept.")] = attrs.field(converter=_store)
    index: Annotated[
        AddressName | None, Doc("The name of the index service; by default that of the service and `_index`.")
    ] = None
    allow: Annotated[AccessSpec, Doc("Who may use it.")] = attrs.field(default=ANYONE, converter=_access)
    owners: Annotated[
        Mapping[StreamName, Annotated[str, ValueKind.OWNER]],
        Doc("Streams made at the start, and the node of this topology, or the identifier, that each belongs to."),
    ] = attrs.field(factory=dict)
    limits: Annotated[StreamLimits, Doc("What one client may make it hold.")] = attrs.field(factory=StreamLimits)


@attrs.frozen
class RelayServiceSpec:
    """A relay service, by which nodes that nobody can connect to are reached."""

    allow: Annotated[AccessSpec, Doc("Who may register.")] = attrs.field(default=ANYONE, converter=_access)
    prefix: Annotated[str, Doc("What stands before a relay's name in its address.")] = PREFIX
    limits: Annotated[RelayLimits, Doc("What clients may make it hold.")] = attrs.field(factory=RelayLimits)


@attrs.frozen
class RelaySpec:
    """A name on a hub under which this node is reached."""

    via: Annotated[RouteSpec, Doc("The route to the hub.")] = attrs.field(converter=_route)
    to: Annotated[
        RouteSpec | None, Doc("Where it leads, beginning with a transport address; by default to this node.")
    ] = attrs.field(default=None, converter=attrs.converters.optional(_route))


@attrs.frozen
class ChannelListenerSpec:
    """An address that answers handshakes."""

    trust: Annotated[TrustSpec, Doc("Whose channels are accepted.")] = attrs.field(converter=_trust)
    allow: Annotated[AccessSpec, Doc("Who reaches it.")] = attrs.field(default=ANYONE, converter=_access)
    protocol_versions: Annotated[tuple[ProtocolVersionName, ...], Doc("The generations that are answered.")] = (
        attrs.field(default=("current",), converter=_protocol_versions)
    )


@attrs.frozen
class ChannelSpec:
    """A secure channel that this node opens, and opens again whenever its way was lost."""

    to: Annotated[RouteSpec, Doc("The route to a listener, whose address comes last.")] = attrs.field(converter=_route)
    trust: Annotated[TrustSpec, Doc("Who may be at the other end.")] = attrs.field(converter=_trust)
    protocol_version: Annotated[ProtocolVersionName, Doc("The generation that is spoken.")] = "current"


@attrs.frozen
class WorkerSpec:
    """Code behind an address: `"trionode.workers:echoer"`, or a table."""

    run: Annotated[
        str,
        ValueKind.WORKER,
        Doc("Where it is imported from, MODULE:NAME, or the name of one that ships with trionode."),
    ]
    arguments: Annotated[Mapping[str, Option], Doc("Keyword arguments that it is called with, beside its mailbox.")] = (
        attrs.field(factory=dict, converter=_options)
    )
    allow: Annotated[AccessSpec, Doc("Who reaches it.")] = attrs.field(default=CHANNELS, converter=_access)
    sends: Annotated[
        tuple[RouteSpec, ...],
        Doc(
            "The routes by which it passes on what it gets, given to it as its argument `sends`; the proof follows them."
        ),
    ] = attrs.field(default=(), converter=_routes)
    bound: Annotated[int, ValueKind.POSITIVE, Doc("Bytes that its mailbox holds before senders wait.")] = DEFAULT_BOUND
    stall_timeout: Annotated[float, ValueKind.POSITIVE, Doc("Seconds that a link waits while it takes nothing.")] = (
        STALL_TIMEOUT
    )

    SHORT: ClassVar = "run"


def _workers(value: Mapping[str, WorkerSpec | str]) -> Mapping[str, WorkerSpec]:
    return {name: WorkerSpec(each) if isinstance(each, str) else each for name, each in value.items()}


@attrs.frozen
class InletSpec:
    """A TCP port whose connections go to an outlet."""

    listen: Annotated[HostPort, Doc("HOST:PORT to listen at.")]
    to: Annotated[RouteSpec, Doc("The route to the outlet, whose address comes last.")] = attrs.field(converter=_route)
    limits: Annotated[PortalLimits, Doc("What it holds at most.")] = attrs.field(factory=PortalLimits)


@attrs.frozen
class OutletSpec:
    """An address whose connections come out at a TCP service."""

    target: Annotated[HostPort, Doc("HOST:PORT of the service.")]
    allow: Annotated[AccessSpec, Doc("Who may use it.")] = attrs.field(default=CHANNELS, converter=_access)
    limits: Annotated[PortalLimits, Doc("What it holds at most.")] = attrs.field(factory=PortalLimits)


@attrs.frozen
class NodeSpec:
    """One node."""

    external: Annotated[bool, Doc("Somebody else runs it: it is described here for the proof, and never started.")] = (
        False
    )
    listen: Annotated[tuple[ListenerSpec, ...], Doc("Where it listens.")] = attrs.field(
        default=(), converter=_listeners
    )
    forwards: Annotated[bool, Doc("Whether strangers' messages pass from link to link, as on a hub.")] = False
    identity: Annotated[IdentitySpec, Doc("Who it is.")] = attrs.field(factory=IdentitySpec)
    transports: Annotated[
        Mapping[Annotated[str, ValueKind.TRANSPORT], Mapping[str, Option]],
        Doc("Options of its transports, by their names."),
    ] = attrs.field(factory=dict, converter=_transports)
    links: Annotated[Mapping[AddressName, LinkSpec], Doc("Links that it dials.")] = attrs.field(factory=dict)
    workers: Annotated[Mapping[AddressName, WorkerSpec], Doc("Its workers.")] = attrs.field(
        factory=dict, converter=_workers
    )
    secure_channel_listeners: Annotated[Mapping[AddressName, ChannelListenerSpec], Doc("What answers handshakes.")] = (
        attrs.field(factory=dict)
    )
    secure_channels: Annotated[Mapping[OwnName, ChannelSpec], Doc("Channels that it opens.")] = attrs.field(
        factory=dict
    )
    stream_services: Annotated[Mapping[AddressName, StreamServiceSpec], Doc("Stream services that it offers.")] = (
        attrs.field(factory=dict)
    )
    streams: Annotated[Mapping[OwnName, StreamSpec], Doc("Conversations over streams that it holds.")] = attrs.field(
        factory=dict
    )
    relay_service: Annotated[RelayServiceSpec | None, Doc("The relay service that it offers.")] = None
    relays: Annotated[
        Mapping[Annotated[str, ValueKind.RELAY], RelaySpec], Doc("Names on hubs under which it is reached.")
    ] = attrs.field(factory=dict)
    inlets: Annotated[Mapping[str, InletSpec], Doc("TCP ports that lead to outlets.")] = attrs.field(factory=dict)
    outlets: Annotated[Mapping[AddressName, OutletSpec], Doc("TCP services that inlets reach.")] = attrs.field(
        factory=dict
    )


@attrs.frozen
class FlowSpec:
    """Messages that one node sends, so that it can be proven what becomes of them."""

    node: Annotated[NodeName, Doc("The node that sends.", key="from")]
    to: Annotated[RouteSpec, Doc("The route that they take.")] = attrs.field(converter=_route)
    answered: Annotated[bool, Doc("Whether answers come back by the return route.")] = True


@attrs.frozen
class AssertSpec:
    """What has to hold, for one flow or for all; `trionode check` fails where it does not."""

    flow: Annotated[str | None, ValueKind.FLOW, Doc("The flow that is meant; without it all.")] = None
    no_plaintext_at: Annotated[
        tuple[Watcher, ...], Doc("Nodes, `network` or `stores` where no payload may be in the clear.")
    ] = attrs.field(default=(), converter=_texts)
    no_inner_addresses_at: Annotated[
        tuple[Watcher, ...], Doc("Those that may not learn who is addressed behind a channel.")
    ] = attrs.field(default=(), converter=_texts)
    no_injection_by: Annotated[tuple[Watcher, ...], Doc("Those that may not be able to invent messages.")] = (
        attrs.field(default=(), converter=_texts)
    )
    sender_authenticated_to: Annotated[
        tuple[NodeName, ...], Doc("Nodes to which the sender's identity has to be proven.")
    ] = attrs.field(default=(), converter=_texts)
    no_unauthenticated_access_to: Annotated[
        tuple[Annotated[str, ValueKind.ADDRESS_OF_NODE], ...],
        Doc("Addresses, NODE/NAME, that nobody reaches without a secure channel."),
    ] = attrs.field(default=(), converter=_texts)
    no_unauthenticated_dials_by: Annotated[tuple[NodeName, ...], Doc("Nodes that no stranger may cause to dial.")] = (
        attrs.field(default=(), converter=_texts)
    )


def _assertions(value: AssertSpec | Iterable[AssertSpec]) -> tuple[AssertSpec, ...]:
    return (value,) if isinstance(value, AssertSpec) else tuple(value)


@attrs.frozen
class TopologySpec:
    """A whole topology, or one node's part of it."""

    nodes: Annotated[Mapping[Annotated[str, ValueKind.NODE_NAME], NodeSpec], Doc("The nodes, by their names.")]
    flows: Annotated[Mapping[str, FlowSpec], Doc("What is sent, by names of your choice.")] = attrs.field(factory=dict)
    assertions: Annotated[tuple[AssertSpec, ...], Doc("What has to hold.", key="assert")] = attrs.field(
        default=(), converter=_assertions
    )
