"""The nodes of a topology as their messages meet them: tables of addresses with hops behind them, links, and what every message passes."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Literal

import attrs

from trionode.errors import LocalError
from trionode.protocol.stream import is_capability
from trionode.protocol.wire.address import Address
from trionode.protocol.wire.route import MAX_HOPS
from trionode.routing.router import MAX_DELIVERIES
from trionode.topology.endpoints import Endpoint, parse_endpoint
from trionode.topology.spec import AccessSpec, NodeSpec, TopologySpec, TrustSpec
from trionode.verify.model.messages import LOCAL, RANDOM, End, Ending, Message, Origin, Step, Watcher, readable

if TYPE_CHECKING:
    from trionode.verify.model.channels import Channel


class UnopenedError(LocalError):
    """A way that begins with what can't be opened."""


# Who may what

Allow = Callable[[Origin], bool]


def from_anywhere(origin: Origin) -> bool:  # noqa: ARG001  # a rule is asked with the facts, whatever it makes of them
    """Admit everybody."""
    return True


def from_local(origin: Origin) -> bool:
    """Admit what began at this node."""
    return origin.is_local


def from_local_or_links(origin: Origin) -> bool:
    """Admit this node and bare links and streams, but no secure channel."""
    return origin.identifier is None


def describe(access: AccessSpec) -> str:
    """Say whom a rule lets in."""
    named = ", ".join((*access.nodes, *access.identifiers))
    return {
        "local": "what begins at this node",
        "channels": "this node and who comes through a secure channel",
        "anyone": "everybody",
        "named": f"this node and who comes through a secure channel of {named}",
    }[access.rule]


# What nodes hold

Kind = Literal[
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
class Entry:
    """What stands behind an address, and who may reach it."""

    kind: Kind
    hop: Callable[[Message], None]
    allow: Allow = from_anywhere
    lets_in: str = "everybody"


#: What a node does with a message whose first address is of a kind.
VERBS: Mapping[Kind, str] = {
    "link": "sends it on by {}",
    "worker": "gives it to the worker {}",
    "listener": "gives it to the listener {}",
    "channel": "seals it: {}",
    "decryptor": "opens it: {}",
    "handshake": "takes it for the handshake {}",
    "stream": "hands it over to {}",
    "answers": "has the answer",
    "stream service": "gives it to the stream service {}",
    "relay service": "gives it to the relay service {}",
    "relay": "lets it pass by the relay {}",
    "alias": "lets it pass back by a relay",
    "outlet": "gives it to the outlet {}",
}


@attrs.frozen(eq=False)
class Link:
    """A connection from a node to whoever listens at a place."""

    dialler: str
    #: None where nobody in the topology listens there.
    listener: str | None
    endpoint: Endpoint
    #: Its addresses at the two ends.
    here: str
    there: str
    #: The name that the node which dials it has given it.
    key: str | None = None

    @property
    def name(self) -> str:
        """What it is called as a wire."""
        return (
            f"{self.dialler} → {self.listener} ({self.endpoint.transport})"
            if self.listener
            else f"{self.dialler} → {self.endpoint}"
        )


@attrs.define(eq=False)
class Store:
    """Where records of streams lie: whose each stream is, and the pulls that wait for what comes."""

    at: str
    endpoint: Endpoint | None
    owners: dict[str, str] = attrs.Factory(dict)
    #: By stream without an owner in the spec: the identities that ask for it, "" for none, whoever comes first.
    claims: dict[str, set[str]] = attrs.Factory(dict)
    pulls: dict[str, dict[tuple[str, tuple[str, ...]], Callable[[Message], None]]] = attrs.Factory(dict)


@attrs.define(eq=False)
class Node:
    """A node's table of addresses, and what it has opened."""

    name: str
    spec: NodeSpec
    identity: str
    table: dict[str, Entry] = attrs.Factory(dict)
    #: Prefixes of addresses that need no table.
    prefixes: dict[str, Entry] = attrs.Factory(dict)
    links: dict[tuple[str, str | None], Link] = attrs.Factory(dict)
    #: Addresses of the channels and streams that are open, by their names.
    opened: dict[str, str] = attrs.Factory(dict)
    channels: "dict[str, Channel]" = attrs.Factory(dict)
    #: What comes from the other ends of its links, and out of the streams that it reads, and who that is.
    origins: list[tuple[Origin, str]] = attrs.Factory(list)

    def entry(self, address: str) -> Entry | None:
        """Return what stands behind an address."""
        if address in self.table:
            return self.table[address]
        return next((each for prefix, each in self.prefixes.items() if address.startswith(prefix)), None)


class World:
    """All nodes of a topology, the links between them, and what every message passes."""

    def __init__(self, spec: TopologySpec) -> None:
        self.spec = spec
        #: Why a channel, stream or relay of a node can't be opened: by node, kind and name.
        self.unopened: dict[tuple[str, str, str], str] = {}
        self._numbers = count(1)
        self._ends: list[End] = []
        self.nodes = {name: Node(name, each, self.identity_of(name)) for name, each in spec.nodes.items()}
        self._listeners = [
            (endpoint, name)
            for name, node in spec.nodes.items()
            for listener in node.listen
            if (endpoint := parse_endpoint(listener.address)) is not None
        ]
        #: What keeps the streams of a service: by node and address.
        self.services: dict[tuple[str, str], Store] = {}

    # Names

    def random(self, what: str, of: str) -> str:
        """Make an address that nobody can guess; its text says what it is, for people."""
        return f"{RANDOM}{what} {of} {next(self._numbers)}"

    def identity_of(self, name: str) -> str:
        """Return what stands for a node's identity: nodes that share a key in a vault are one."""
        identity = self.spec.nodes[name].identity
        if identity.identifier is not None:
            return identity.identifier
        return f"node {name}" if identity.vault == "memory" else f"{identity.vault} {identity.name}"

    def _identities(self, only: Iterable[str], nodes: Iterable[str]) -> frozenset[str]:
        return frozenset(only) | {self.identity_of(each) for each in nodes if each in self.spec.nodes}

    def who(self, identity: str) -> str:
        """Return the name of the node, or of the first one, that has an identity."""
        return next((name for name, node in self.nodes.items() if node.identity == identity), identity)

    def allow(self, access: AccessSpec) -> Allow:
        """Return the rule that a spec names."""
        match access.rule:
            case "local":
                return from_local
            case "channels":
                return lambda origin: origin.identifier is not None or origin.is_local
            case "anyone":
                return from_anywhere
            case "named":
                named = self._identities(access.identifiers, access.nodes)
                return lambda origin: origin.is_local or origin.identifier in named

    def trusts(self, trust: TrustSpec, identity: str) -> bool:
        """Whether a policy takes a peer with this identity."""
        return trust.everyone or identity in self._identities(trust.identifiers, trust.nodes)

    def listeners_at(self, endpoint: Endpoint) -> list[str]:
        """Return the nodes that may be meant by a place that is dialled: the one that listens at just that, or all that could."""
        exactly = [name for at, name in self._listeners if at == endpoint]
        return exactly or [name for at, name in self._listeners if at.takes(endpoint)]

    def streams(self, node: str, service: str) -> tuple[str, ...]:
        """Return the streams of a service that somebody reads, but for those whose names nobody can guess."""
        return tuple(stream for stream in self.services[node, service].pulls if not is_capability(stream))

    # Ways

    def connect(self, node: Node, endpoint: Endpoint, name: str | None = None) -> Link:
        """Return a node's link to a place, as `Node.connect` does; whoever listens there gets his end."""
        key = str(endpoint), name
        if key in node.links:
            return node.links[key]
        found = self.listeners_at(endpoint)
        to = found[0] if len(found) == 1 else None
        if to is not None:  # each end can have a connection of its own with brokers
            at_listener = parse_endpoint(str(endpoint), options_of(self.nodes[to].spec, str(endpoint)))
            assert at_listener is not None
            endpoint = attrs.evolve(endpoint, exposure=endpoint.exposure | at_listener.exposure)
        here = name or self.random(f"link to {to or endpoint} at", node.name)
        link = Link(node.name, to, endpoint, here, self.random(f"link with {node.name} at", to or str(endpoint)), name)
        node.links[key] = link
        self._take(node, link, here)
        if to is not None:
            self._take(self.nodes[to], link, link.there)
        return link

    def _take(self, node: Node, link: Link, address: str) -> None:
        forwards = node.spec.forwards
        allow = from_local_or_links if forwards else from_local
        lets_in = "this node and strangers, but nobody through a channel" if forwards else "what begins at this node"
        node.table[address] = Entry("link", partial(self._at_link, node, link), allow, lets_in)
        other = link.dialler if node.name == link.listener else link.listener or str(link.endpoint)
        node.origins.append((Origin(link=address), other))

    def resolve(self, node: Node, route: Iterable[str]) -> tuple[str, ...]:
        """Return a route by the addresses that it has at a node; UnopenedError if it begins with what isn't open."""
        first, *rest = route
        hops = tuple(map(_address, rest))
        if first.startswith("@"):
            name = first.removeprefix("@")
            if name not in node.opened:
                raise UnopenedError(f"{first} of {node.name} is not open")
            return (node.opened[name], *hops)
        endpoint = parse_endpoint(first, options_of(node.spec, first))
        return (_address(first), *hops) if endpoint is None else (self.connect(node, endpoint).here, *hops)

    # Messages

    def run(self, node: Node, message: Message) -> tuple[End, ...]:
        """Let a node send a message, and return what comes of it."""
        outer, self._ends = self._ends, []
        try:
            self.deliver(node, message)
            return tuple(self._ends)
        finally:
            self._ends = outer

    def put(self, step: Step, message: Message) -> tuple[End, ...]:
        """Let whoever is at a step put a message in there, and return what comes of it."""
        outer, self._ends = self._ends, []
        try:
            if step.puts is not None:
                step.puts(message)
            return tuple(self._ends)
        finally:
            self._ends = outer

    def end(self, what: Ending, node: Node, message: Message, text: str = "") -> None:
        """Tell what became of a message."""
        first = message.onward[0] if message.onward else ""
        self._ends.append(End(what, node.name, first, text, message))

    def drop(self, node: Node, message: Message, why: str) -> None:
        """Tell that a message comes no farther."""
        self.end("dropped", node, message, why)

    def deliver(self, node: Node, message: Message, *, by_own_authority: bool = False) -> None:
        """Hand a message to the hop of its first onward address, as the router does; by its own authority also where its rule says no."""
        entry = node.entry(message.onward[0]) if message.onward else None
        if entry is None:
            what = (
                f"nobody at {node.name} has the address {readable(message.onward[0])}"
                if message.onward
                else "an empty route"
            )
            self.drop(node, self._look(node, message, f"drops it, since {what}"), what)
            return
        first = readable(message.onward[0])
        if not by_own_authority and not entry.allow(message.origin):
            what = f"{first} at {node.name} lets in {entry.lets_in}; this comes {self.origin(message.origin)}"
            self.drop(node, self._look(node, message, "refuses it"), what)
            return
        if message.deliveries >= MAX_DELIVERIES:
            self.end(
                "circles",
                node,
                message,
                f"it goes round within {node.name} and is dropped after {MAX_DELIVERIES} deliveries",
            )
            return
        seen = self._look(node, message, VERBS[entry.kind].format(first))
        entry.hop(attrs.evolve(seen, deliveries=message.deliveries + 1))

    def _look(self, node: Node, message: Message, what: str) -> Message:
        return message.seen(Step(Watcher("node", node.name), what, message))

    def origin(self, origin: Origin) -> str:
        """Say where a message comes from, as its facts know it."""
        if origin.identifier is not None:
            return f"through a secure channel of {self.who(origin.identifier)}"
        if origin.stream is not None:
            return "by a bare stream"
        return "from this node itself" if origin.is_local else "by a bare link"

    # Hops

    def _at_link(self, node: Node, link: Link, message: Message) -> None:
        if len(message.onward) + len(message.back) > MAX_HOPS:
            self.end("circles", node, message, f"its routes have more than {MAX_HOPS} hops together")
            return
        out = attrs.evolve(message, onward=message.onward[1:], deliveries=0, origin=LOCAL)
        if link.listener is None:
            out = out.seen(Step(Watcher("connection", link.name), "", out, None, link.endpoint, link))
            out = out.seen(Step(Watcher("outsider", str(link.endpoint)), "nobody in the topology listens there", out))
            self.end("left", node, out, f"it leaves the topology for {link.endpoint}")
            return
        there, address = (
            (self.nodes[link.listener], link.there)
            if node.name == link.dialler
            else (self.nodes[link.dialler], link.here)
        )
        if node.name == link.listener == link.dialler:  # a node that dials itself has both ends
            address = link.there if message.onward[0] == link.here else link.here
        arrive = partial(self._come_in, there, address)
        step = Step(Watcher("connection", link.name), "", out, arrive, link.endpoint, link)
        arrive(out.seen(step))

    def _come_in(self, node: Node, address: str, message: Message) -> None:
        if not message.onward:
            self.drop(node, message, "its route ends at a link")
        elif len(message.onward) + len(message.back) >= MAX_HOPS:
            self.end("circles", node, message, f"its routes have {MAX_HOPS} hops or more together")
        else:
            self.deliver(
                node, attrs.evolve(message, back=(address, *message.back), origin=Origin(link=address), deliveries=0)
            )


def _address(hop: str) -> str:
    """Return a hop as tables name it: `0#echoer` and `echoer` are one."""
    try:
        address = Address.parse(hop)
    except LocalError:
        return hop
    return hop if address.transport or address.kind else address.value.decode(errors="replace")


def options_of(node: NodeSpec, hop: str) -> Mapping[str, object]:
    """Return the options that a node has for the transport of a hop."""
    return node.transports.get(hop.partition(":")[0], {})
