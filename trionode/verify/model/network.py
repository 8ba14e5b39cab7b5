"""The symbolic nodes of a topology: tables of addresses with hops behind them, links, and delivery."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import count
from typing import Literal

import attrs

from trionode.errors import LocalError
from trionode.protocol.rules.access import OriginLike, from_anywhere, is_local_or_named, link_access
from trionode.protocol.stream.names import is_capability
from trionode.protocol.wire.address import Address
from trionode.protocol.wire.route import MAX_HOPS
from trionode.routing.router import MAX_DELIVERIES
from trionode.topology.credentials import is_held
from trionode.topology.endpoints import Endpoint, parse_endpoint
from trionode.topology.run.resolve import ACCESS_RULES
from trionode.topology.spec import AccessSpec, NodeSpec, TopologySpec, TrustSpec
from trionode.verify.model.messages import (
    LOCAL,
    RANDOM,
    Channel,
    Observer,
    Outcome,
    OutcomeKind,
    Step,
    SymbolicLink,
    SymbolicMessage,
    SymbolicOrigin,
    readable,
)

#: Node, kind and name of something that cannot be opened.
Unopened = tuple[str, str, str]


class CannotOpenError(LocalError):
    """A route that begins with something that cannot be opened."""


# What nodes hold

Allow = Callable[[OriginLike[str]], bool]

EntryKind = Literal[
    "link",
    "worker",
    "listener",
    "channel",
    "decryptor",
    "handshake",
    "stream",
    "answers",
    "stream service",
    "relay service",
    "relay",
    "alias",
    "outlet",
]


@attrs.frozen(eq=False)
class SymbolicEntry:
    """The hop behind an address, and the rule that admits messages to it."""

    kind: EntryKind
    hop: Callable[[SymbolicMessage], None]
    allow: Allow = from_anywhere
    admits: str = "everyone"


#: What a node does with a message whose first address is of a kind.
EVENTS: Mapping[EntryKind, str] = {
    "link": "sends it over {}",
    "worker": "delivers it to the worker {}",
    "listener": "delivers it to the listener {}",
    "channel": "encrypts it: {}",
    "decryptor": "decrypts it: {}",
    "handshake": "takes it as part of the handshake {}",
    "stream": "passes it to {}",
    "answers": "receives the answer",
    "stream service": "delivers it to the stream service {}",
    "relay service": "delivers it to the relay service {}",
    "relay": "forwards it by the relay {}",
    "alias": "forwards it back by a relay",
    "outlet": "delivers it to the outlet {}",
}


@attrs.define(eq=False)
class SymbolicStore:
    """A store of streams: the owner of each stream, and the pulls that wait for records."""

    at: str
    endpoint: Endpoint | None
    owners: dict[str, str] = attrs.Factory(dict)
    #: For each stream without an owner in the spec: the identities that use it, "" for none. The first one will own it.
    claims: dict[str, set[str]] = attrs.Factory(dict)
    pulls: dict[str, dict[tuple[str, tuple[str, ...]], Callable[[SymbolicMessage], None]]] = attrs.Factory(dict)


@attrs.define(eq=False)
class SymbolicNode:
    """A node's table of addresses, and what it has opened."""

    name: str
    spec: NodeSpec
    identity: str
    table: dict[str, SymbolicEntry] = attrs.Factory(dict)
    #: Prefixes of addresses that are not in the table.
    prefixes: dict[str, SymbolicEntry] = attrs.Factory(dict)
    links: dict[tuple[str, str | None], SymbolicLink] = attrs.Factory(dict)
    #: The addresses of open channels and streams, by their names.
    opened: dict[str, str] = attrs.Factory(dict)
    channels: dict[str, Channel] = attrs.Factory(dict)
    #: The origins of messages from the other ends of its links and out of its streams, and the names of those peers.
    origins: list[tuple[SymbolicOrigin, str]] = attrs.Factory(list)

    def entry(self, address: str) -> SymbolicEntry | None:
        """Return the entry of an address."""
        if address in self.table:
            return self.table[address]
        return next((each for prefix, each in self.prefixes.items() if address.startswith(prefix)), None)

    def add(self, address: str, kind: EntryKind, hop: Callable[[SymbolicMessage], None]) -> None:
        """Add an address that admits every message, because only its receivers can guess it."""
        self.table[address] = SymbolicEntry(kind, hop)


class SymbolicNetwork:
    """All nodes of a topology, the links between them, and the delivery of messages."""

    def __init__(self, spec: TopologySpec) -> None:
        self.spec = spec
        #: Why a channel, stream or relay of a node cannot be opened.
        self.unopened: dict[Unopened, str] = {}
        self._numbers = count(1)
        self._outcomes: list[Outcome] = []
        self.nodes = {name: SymbolicNode(name, each, self.identity_of(name)) for name, each in spec.nodes.items()}
        self._listeners = [
            (endpoint, name)
            for name, node in spec.nodes.items()
            for listener in node.listen
            if (endpoint := parse_endpoint(listener.address)) is not None
        ]
        #: The store of each stream service, by node and address.
        self.services: dict[tuple[str, str], SymbolicStore] = {}

    # Names and rules

    def random(self, what: str, of: str) -> str:
        """Make an address that cannot be guessed. Its text says what it is, for people."""
        return f"{RANDOM}{what} {of} {next(self._numbers)}"

    def identity_of(self, name: str) -> str:
        """Return what stands for a node's identity. Nodes that share a key in a vault have the same."""
        identity = self.spec.nodes[name].identity
        if identity.identifier is not None:
            return identity.identifier
        return f"node {name}" if identity.vault == "memory" else f"{identity.vault} {identity.name}"

    def _identities(self, spec: AccessSpec | TrustSpec) -> frozenset[str]:
        named = {self.identity_of(each) for each in spec.nodes if each in self.spec.nodes}
        proven = {self.identity_of(each) for each, node in self.spec.nodes.items() if is_held(spec, node.identity)}
        return frozenset(spec.identifiers) | named | proven

    def node_of(self, identity: str) -> str:
        """Return the name of the first node with an identity; the identity itself if there is none."""
        return next((name for name, node in self.nodes.items() if node.identity == identity), identity)

    def service_entry(
        self, kind: EntryKind, access: AccessSpec, hop: Callable[[SymbolicMessage], None]
    ) -> SymbolicEntry:
        """Return an entry with the access rule of a spec."""
        named = partial(is_local_or_named, identifiers=self._identities(access))
        proven = [f"peers with the attributes {dict(access.attributes)}"] if access.authority is not None else []
        admits = {
            "local": "this node only",
            "channels": "this node and peers with a secure channel",
            "anyone": "everyone",
            "named": f"this node and the secure channels of {', '.join((*access.nodes, *access.identifiers, *proven))}",
        }[access.rule]
        return SymbolicEntry(kind, hop, ACCESS_RULES.get(access.rule, named), admits)

    def trusts(self, trust: TrustSpec, identity: str) -> bool:
        """Return whether a trust policy accepts a peer with an identity."""
        return trust.everyone or identity in self._identities(trust)

    def listeners_at(self, endpoint: Endpoint) -> list[str]:
        """Return the nodes that an address can reach: the one that listens on exactly it, or all that could take it."""
        exactly = [name for at, name in self._listeners if at == endpoint]
        return exactly or [name for at, name in self._listeners if at.takes(endpoint)]

    def streams(self, node: str, service: str) -> tuple[str, ...]:
        """Return the streams of a service that have a reader and a name that can be guessed."""
        return tuple(stream for stream in self.services[node, service].pulls if not is_capability(stream))

    # Routes

    def connect(self, node: SymbolicNode, endpoint: Endpoint, name: str | None = None) -> SymbolicLink:
        """Return a node's link to an endpoint, as `Node.connect` does. The listener gets its end."""
        key = str(endpoint), name
        if key in node.links:
            return node.links[key]
        found = self.listeners_at(endpoint)
        to = found[0] if len(found) == 1 else None
        if to is not None:  # each end has its own connection with brokers, if there are any
            at_listener = parse_endpoint(str(endpoint), options_of(self.nodes[to].spec, str(endpoint)))
            assert at_listener is not None
            endpoint = attrs.evolve(endpoint, exposure=endpoint.exposure | at_listener.exposure)
        here = name or self.random(f"link to {to or endpoint} at", node.name)
        there = self.random(f"link with {node.name} at", to or str(endpoint))
        link = node.links[key] = SymbolicLink(node.name, to, endpoint, here, there, name)
        self._add_link(node, link, here)
        if to is not None:
            self._add_link(self.nodes[to], link, there)
        return link

    def _add_link(self, node: SymbolicNode, link: SymbolicLink, address: str) -> None:
        forwards = node.spec.forwards
        admits = "this node and bare links, but no channel" if forwards else "this node only"
        hop = partial(self._send, node, link)
        node.table[address] = SymbolicEntry("link", hop, link_access(forwards=forwards), admits)
        peer = link.dialler if node.name == link.listener else link.listener or str(link.endpoint)
        node.origins.append((SymbolicOrigin(link=address), peer))

    def resolve(self, node: SymbolicNode, route: Iterable[str]) -> tuple[str, ...]:
        """Return a route of a spec as addresses of a node.

        Raises CannotOpenError if the route begins with something that is not open.
        """
        first, *rest = route
        hops = tuple(map(_address, rest))
        if first.startswith("@"):
            if first[1:] not in node.opened:
                raise CannotOpenError(f"{first} of {node.name} is not open")
            return (node.opened[first[1:]], *hops)
        endpoint = parse_endpoint(first, options_of(node.spec, first))
        return (_address(first), *hops) if endpoint is None else (self.connect(node, endpoint).here, *hops)

    # Messages

    @contextmanager
    def _collecting(self) -> Iterator[list[Outcome]]:
        outer, self._outcomes = self._outcomes, []
        try:
            yield self._outcomes
        finally:
            self._outcomes = outer

    def run(self, node: SymbolicNode, message: SymbolicMessage) -> tuple[Outcome, ...]:
        """Let a node send a message, and return what becomes of it."""
        with self._collecting() as outcomes:
            self.deliver(node, message)
            return tuple(outcomes)

    def inject(self, step: Step, message: SymbolicMessage) -> tuple[Outcome, ...]:
        """Let the observer of a step inject a message there, and return what becomes of it."""
        with self._collecting() as outcomes:
            if step.inject is not None:
                step.inject(message)
            return tuple(outcomes)

    def end(self, what: OutcomeKind, node: SymbolicNode, message: SymbolicMessage, text: str = "") -> None:
        """Note what became of a message."""
        first = message.onward[0] if message.onward else ""
        self._outcomes.append(Outcome(what, node.name, first, text, message))

    def drop(self, node: SymbolicNode, message: SymbolicMessage, why: str) -> None:
        """Note that a message goes no farther."""
        self.end("dropped", node, message, why)

    def deliver(self, node: SymbolicNode, message: SymbolicMessage, *, by_own_authority: bool = False) -> None:
        """Pass a message to the hop of its first onward address, as the router does.

        `by_own_authority` skips the access rule, as `Router.bridge` does.
        """
        entry = node.entry(message.onward[0]) if message.onward else None
        if entry is None:
            why = f"{node.name} has no address {readable(message.onward[0])}" if message.onward else "an empty route"
            self.drop(node, _at(node, message, f"drops it: {why}"), why)
            return
        first = readable(message.onward[0])
        if not by_own_authority and not entry.allow(message.origin):
            why = f"{first} at {node.name} admits {entry.admits}; this comes {self.describe(message.origin)}"
            self.drop(node, _at(node, message, "refuses it"), why)
            return
        if message.deliveries >= MAX_DELIVERIES:
            why = f"it goes round within {node.name}, which drops it after {MAX_DELIVERIES} deliveries"
            self.end("loops", node, message, why)
            return
        entry.hop(attrs.evolve(_at(node, message, EVENTS[entry.kind].format(first)), deliveries=message.deliveries + 1))

    def has_room(self, node: SymbolicNode, message: SymbolicMessage, *, adds: int = 0) -> bool:
        """Return whether the routes of a message may grow by so many hops. If not, it ends here as a loop."""
        if len(message.onward) + len(message.back) + adds <= MAX_HOPS:
            return True
        self.end("loops", node, message, f"its routes would have more than {MAX_HOPS} hops together")
        return False

    def describe(self, origin: SymbolicOrigin) -> str:
        """Return how a message of an origin comes to a node, in words."""
        if origin.identifier is not None:
            return f"through a secure channel of {self.node_of(origin.identifier)}"
        if origin.stream is not None:
            return "by a bare stream"
        return "from this node itself" if origin.is_local else "by a bare link"

    # Links

    def _send(self, node: SymbolicNode, link: SymbolicLink, message: SymbolicMessage) -> None:
        if not self.has_room(node, message):
            return
        out = attrs.evolve(message, onward=message.onward[1:], deliveries=0, origin=LOCAL)
        connection = Observer("connection", link.name)
        if link.listener is None:
            out = out.after(Step(connection, "", out, None, link.endpoint, link))
            outsider = Observer("outsider", str(link.endpoint))
            out = out.after(Step(outsider, "no node of the topology listens there", out))
            self.end("left", node, out, f"it leaves the topology for {link.endpoint}")
            return
        from_dialler = message.onward[0] == link.here  # a node that dials itself has both ends
        peer, address = (link.listener, link.there) if from_dialler else (link.dialler, link.here)
        arrive = partial(self._receive, self.nodes[peer], address)
        arrive(out.after(Step(connection, "", out, arrive, link.endpoint, link)))

    def _receive(self, node: SymbolicNode, address: str, message: SymbolicMessage) -> None:
        if not message.onward:
            self.drop(node, message, "its route ends at a link")
        elif self.has_room(node, message, adds=1):
            back = (address, *message.back)
            self.deliver(node, attrs.evolve(message, back=back, origin=SymbolicOrigin(link=address), deliveries=0))


def _at(node: SymbolicNode, message: SymbolicMessage, what: str) -> SymbolicMessage:
    return message.after(Step(Observer("node", node.name), what, message))


def _address(hop: str) -> str:
    """Return a hop as tables name it: `0#echoer` and `echoer` are the same."""
    try:
        address = Address.parse(hop)
    except LocalError:
        return hop
    return hop if address.transport or address.kind else address.value.decode(errors="replace")


def options_of(node: NodeSpec, hop: str) -> Mapping[str, object]:
    """Return a node's options for the transport of a hop."""
    return node.transports.get(hop.partition(":")[0], {})
