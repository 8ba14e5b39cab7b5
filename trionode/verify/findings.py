"""What is dubious about a topology: what can't work, and what others can see, send and cause."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import attrs

from trionode.protocol.stream import is_capability
from trionode.topology.endpoints import WILDCARDS, Endpoint, parse_endpoint
from trionode.topology.errors import KeyPath, Problem, keys_of
from trionode.topology.spec import AccessSpec, NodeSpec
from trionode.verify.analysis import Flow, Proof
from trionode.verify.assertions import bare_neighbours, way_of
from trionode.verify.model.network import Node
from trionode.verify.paths import Path, walk

#: error: it does not do what it says. warning: others see, send or cause what they need not. note: worth knowing.
Severity = Literal["error", "warning", "note"]
_SEVERITIES: Sequence[Severity] = ("error", "warning", "note")

Kind = Literal[
    "loop",
    "no way there",
    "no way back",
    "unopened",
    "unknown place",
    "ambiguous place",
    "claimed twice",
    "plaintext",
    "reached without a channel",
    "trust in everyone",
    "open listener",
    "dial by strangers",
    "strangers carried on",
    "open service",
    "ring",
    "drop_when_full",
    "missing here",
]


#: Node, kind and name of what can't be opened.
_Unopened = tuple[str, str, str]


@attrs.frozen
class Finding:
    """One thing that is dubious, where it is said in the topology, and what to do about it."""

    kind: Kind
    severity: Severity
    where: KeyPath
    text: str
    advice: str
    #: The way that shows it, hop by hop.
    way: tuple[str, ...] = ()

    @property
    def rank(self) -> tuple[int, str, str]:
        """What findings are sorted by: the gravest first."""
        return _SEVERITIES.index(self.severity), self.kind, keys_of(self.where)

    def __str__(self) -> str:
        return f"{self.severity}: {keys_of(self.where)}: {self.text}. {self.advice}"


def find(proof: Proof) -> Iterator[Finding]:
    """Tell all that is dubious."""
    for flow in proof.flows:
        yield from _of_flow(proof, flow)
    yield from _sends(proof)
    yield from _unopened(proof)
    yield from _endpoints(proof)
    yield from _claims(proof)
    for name, node in proof.world.nodes.items():
        yield from _trusts(name, node.spec)
        yield from _bare(proof, node)
        yield from _listeners(proof, name, node.spec)
        yield from _carried_on(name, node.spec)
    yield from _dials(proof)
    yield from _links(proof)


def missing_here(problems: Iterable[Problem]) -> Iterator[Finding]:
    """Tell of what `check_here` misses."""
    for problem in problems:
        yield Finding(
            "missing here",
            "warning",
            problem.path,
            problem.text,
            "Correct it, or check the file where that node is to run; one that somebody else runs says external = true",
        )


# Flows


def _of_flow(proof: Proof, flow: Flow) -> Iterator[Finding]:
    path = flow.path
    where: KeyPath = ("flows", flow.name) if flow.is_declared else ("nodes", flow.spec.node)
    for way in (path.there, path.back):
        circle = next((end for end in way.ends if end.what == "circles"), None)
        if circle is not None:
            text = f"{flow.name} runs in a circle: at {circle.node} {circle.text}"
            yield Finding(
                "loop", "error", where, text, "Let the routes, and what workers pass on, end somewhere", way_of(way)
            )
    if not path.arrives:
        yield from _no_way(proof, path, where, flow.name)
    elif flow.spec.answered and not path.returns:
        yield Finding(
            "no way back",
            "error",
            where,
            f"an answer to {flow.name} can't come back: {path.back.trouble}",
            "Let the nodes in between forward, use a relay, or write answered = false if none is wanted",
            way_of(path.back),
        )
    for each in flow.passed:
        if each.seen.payload != "plaintext" or each.at.kind not in {"connection", "store"}:
            continue
        sees = "whoever sees the bytes between " if each.at.kind == "connection" else "whoever has the "
        what = sees + each.at.name.replace(" → ", " and ") if each.at.kind == "connection" else sees + str(each.at)
        yield Finding(
            "plaintext",
            "warning",
            where,
            f"the payload of {flow.name} is in the clear to {what}",
            "Send it through a secure channel with the node that is to read it",
            way_of(path.there, each.at),
        )


def _no_way(proof: Proof, path: Path, where: KeyPath, what: str) -> Iterator[Finding]:
    """Tell of a path on which nothing arrives, unless its cause is told of anyway."""
    ends = path.there.ends
    if any(end.what == "circles" for end in ends) or _is_told(proof, path.node, path.route, path.there.trouble):
        return
    left = any(end.what == "left" for end in ends)
    yield Finding(
        "no way there",
        "warning" if left else "error",
        where,
        f"{what} does not arrive: {path.there.trouble}",
        "Describe the node that listens there, with external = true" if left else "Change the route, or who is let in",
        way_of(path.there),
    )


def _sends(proof: Proof) -> Iterator[Finding]:
    for name, node in proof.world.spec.nodes.items():
        for key, worker in node.workers.items():
            for index, route in enumerate(worker.sends):
                path = walk(proof.world, name, route)
                if not path.arrives:
                    where: KeyPath = ("nodes", name, "workers", key, "sends", index)
                    yield from _no_way(proof, path, where, f"what the worker {name}/{key} passes on")


# What can't be opened or found


def _is_told(proof: Proof, node: str, route: Sequence[str], why: str) -> bool:
    """Whether a route of a node fails because something can't be opened that is told of itself; what waits for itself in a circle is not."""
    world = proof.world
    known: set[_Unopened] = set()
    cause = _cause(proof, node, route, why)
    if cause is None:
        return False
    while cause is not None and cause not in known:
        known.add(cause)
        owner, kind, name = cause
        cause = _cause(proof, owner, _route_of(world.spec.nodes[owner], kind, name), world.unopened[cause])
    return cause is None


def _cause(proof: Proof, node: str, route: Sequence[str], why: str) -> _Unopened | None:
    """Return the channel or stream that a route begins with, or the relay that it misses, if that can't be opened."""
    world = proof.world
    prefixes = [each.relay_service.prefix for each in world.spec.nodes.values() if each.relay_service is not None]
    for key in world.unopened:
        owner, kind, name = key
        if kind == "relays":
            if any(why.endswith(f" has the address {prefix}{name}") for prefix in prefixes):
                return key
        elif owner == node and route[0] == f"@{name}":
            return key
    return None


def _unopened(proof: Proof) -> Iterator[Finding]:
    for (node, kind, name), why in proof.world.unopened.items():
        if _is_told(proof, node, _route_of(proof.world.spec.nodes[node], kind, name), why):
            continue
        what = {"secure_channels": "secure channel", "streams": "stream", "relays": "relay"}[kind]
        yield Finding(
            "unopened",
            "error",
            ("nodes", node, kind, name),
            f"the {what} can't be opened: {why}",
            "Raise the limit, or let the topology need less"
            if why.endswith(")") and "limits." in why
            else "Change its route, or who is let in or trusted there",
        )


def _route_of(node: NodeSpec, kind: str, name: str) -> Sequence[str]:
    match kind:
        case "secure_channels":
            return node.secure_channels[name].to
        case "streams":
            return node.streams[name].via
        case _:
            return node.relays[name].via


def _endpoints(proof: Proof) -> Iterator[Finding]:
    told: set[str] = set()
    for node in proof.world.nodes.values():
        for (text, _), link in node.links.items():
            if link.listener is not None or text in told:
                continue
            told.add(text)
            several = proof.world.listeners_at(link.endpoint)
            where: KeyPath = ("nodes", node.name, *(() if link.key is None else ("links", link.key)))
            if several:
                who = " and ".join(several)
                yield Finding(
                    "ambiguous place",
                    "warning",
                    where,
                    f"{text}, where {node.name} connects, may be {who}: both take all addresses of their machines",
                    "Let them listen at the addresses by which they are reached",
                )
            else:
                yield Finding(
                    "unknown place",
                    "warning",
                    where,
                    f"{node.name} connects to {text}, where no node of this topology listens: whoever is there is taken for the worst",
                    "Describe the node that listens there, with external = true if somebody else runs it",
                )


def _claims(proof: Proof) -> Iterator[Finding]:
    readers: dict[tuple[str, str, str], KeyPath] = {}
    for node in proof.world.nodes.values():
        for prefix in node.prefixes:
            for name in node.table:
                if name.startswith(prefix):
                    yield Finding(
                        "claimed twice",
                        "warning",
                        ("nodes", node.name),
                        f"{name} is in the way of the stream {name.removeprefix(prefix)} of {node.name}/{prefix[:-1]}",
                        "Choose another name",
                    )
        for service in node.spec.stream_services:
            for name, claims in proof.world.services[node.name, service].claims.items():
                # Who knows a name that can't be guessed may use the stream, whoever it belongs to, if he is known himself.
                if len(claims) > 1 and ("" in claims or not is_capability(name)):
                    who = " and ".join(
                        sorted(proof.world.who(each) if each else "whoever needs no channel" for each in claims)
                    )
                    yield Finding(
                        "claimed twice",
                        "warning",
                        ("nodes", node.name, "stream_services", service, "owners"),
                        f"the stream {name} is used by {who}, and will belong to who comes first: the others may be refused",
                        "Say whose it is in owners, or give it a name that unique() makes",
                    )
        for key, stream in node.spec.streams.items():
            if stream.client_id is None:
                continue
            claim = (" => ".join((*stream.via, stream.service)), stream.receives, stream.client_id)
            where: KeyPath = ("nodes", node.name, "streams", key, "client_id")
            if claim in readers and proof.world.nodes[str(readers[claim][1])].identity != node.identity:
                yield Finding(
                    "claimed twice",
                    "warning",
                    where,
                    f"{keys_of(readers[claim])} keeps its position under the same name",
                    "Give each reader a client_id of its own",
                )
            readers.setdefault(claim, where)


# Whom strangers and neighbours reach


def _trusts(name: str, node: NodeSpec) -> Iterator[Finding]:
    for key, listener in node.secure_channel_listeners.items():
        if listener.trust.everyone:
            yield Finding(
                "trust in everyone",
                "warning",
                ("nodes", name, "secure_channel_listeners", key, "trust"),
                f"whoever reaches {name}/{key} opens a channel, and then reaches all that channels reach",
                "Name those who may, by nodes or only, or let what is behind it name them",
            )
    for key, channel in node.secure_channels.items():
        if channel.trust.everyone:
            yield Finding(
                "trust in everyone",
                "warning",
                ("nodes", name, "secure_channels", key, "trust"),
                f"{name} takes whoever answers for the other end of @{key}, so whoever carries the handshake can be it",
                "Name the node or the identifier that is expected",
            )


def _offers(node: NodeSpec) -> Iterator[tuple[KeyPath, str, AccessSpec]]:
    """What others may be let in to: keys, address, and the rule."""
    for kind in ("workers", "outlets"):
        for key, each in getattr(node, kind).items():
            yield (kind, key), key, each.allow


def _bare(proof: Proof, node: Node) -> Iterator[Finding]:
    for keys, address, allow in _offers(node.spec):
        reached = proof.strangers.reach(node.name, address, bare=True)
        if reached is not None and reached.manner == "by an inlet":
            continue  # whoever may come by the inlet's node may: the inlet itself is told of
        who = (reached.manner,) if reached is not None else bare_neighbours(proof, node.name, address)
        if who:
            by = (
                f"strangers reach it {reached.manner}"
                if reached is not None
                else f"nothing but a bare link is needed to reach it, which {', '.join(who)} ha{'s' if len(who) == 1 else 've'}"
            )
            yield Finding(
                "reached without a channel",
                "warning",
                ("nodes", node.name, *keys, "allow"),
                f"{by}, since it lets in {'everybody' if allow.rule == 'anyone' else allow.rule}: what it gets is from nobody in particular",
                'Write allow = "channels", or name those who may',
                () if reached is None else reached.way,
            )
    yield from _services(proof, node)


def _services(proof: Proof, node: Node) -> Iterator[Finding]:
    services: list[tuple[KeyPath, str, str]] = [
        (("stream_services", key), key, f"store and read streams, up to {service.limits.streams} each")
        for key, service in node.spec.stream_services.items()
    ]
    if node.spec.relay_service is not None:
        limits = node.spec.relay_service.limits
        services.append(
            (
                ("relay_service",),
                "static_forwarding_service",
                f"take names of relays, up to {limits.relays_per_client} each",
            )
        )
    for keys, address, what in services:
        reached = proof.strangers.reach(node.name, address, bare=False)
        if reached is None:
            continue
        by_channel = reached.manner == "through a secure channel"
        yield Finding(
            "open service",
            "note" if by_channel else "warning",
            ("nodes", node.name, *keys, "allow"),
            f"strangers reach it {reached.manner}{', under any identity' if by_channel else ''}, and can {what}",
            "Let in channels only, with a listener beside it that trusts those who may"
            if not by_channel
            else "Let the listener trust those who may, or name them in allow",
            reached.way,
        )


def _listeners(proof: Proof, name: str, node: NodeSpec) -> Iterator[Finding]:
    for index, listener in enumerate(node.listen):
        endpoint = parse_endpoint(listener.address)
        if endpoint is None or endpoint.is_of_machine:
            continue
        links = sorted(node.links) if node.forwards else []
        behind = sorted(
            {
                each.address
                for each in proof.strangers.reached.values()
                if each.node == name and each.manner != "by an inlet"
            }
            - set(links)
        )
        if not behind and not links:
            continue
        offered = ", ".join(behind) + (f"{', and ' if behind else ''}the links {', '.join(links)}" if links else "")
        yield Finding(
            "open listener",
            "note",
            ("nodes", name, "listen", index, "address"),
            f"{_whence(endpoint)} can connect to {endpoint} and reaches {offered}",
            "If all who should come are on this machine, listen at 127.0.0.1",
        )


def _whence(endpoint: Endpoint) -> str:
    if endpoint.host in WILDCARDS:
        return "everybody who reaches any address of the machine"
    return f"everybody who reaches {endpoint.host or 'it'}"


def _carried_on(name: str, node: NodeSpec) -> Iterator[Finding]:
    for key, relay in node.relays.items():
        if relay.to is not None:
            yield Finding(
                "strangers carried on",
                "note",
                ("nodes", name, "relays", key, "to"),
                f"whoever reaches the hub's relay {key} is carried on to {' => '.join(relay.to)} by {name}'s link",
                "Let what is there take secure channels only",
            )
    for key, worker in node.workers.items():
        if worker.sends and worker.allow.rule == "anyone":
            yield Finding(
                "strangers carried on",
                "warning",
                ("nodes", name, "workers", key, "sends"),
                f"it takes messages of everybody and passes them on as {name}'s own, to {'; '.join(map(' => '.join, worker.sends))}",
                'Write allow = "channels", or name those who may',
            )


def _dials(proof: Proof) -> Iterator[Finding]:
    for dial in proof.strangers.dials.values():
        if dial.is_by_inlet:
            continue
        yield Finding(
            "dial by strangers",
            "warning",
            ("nodes", dial.node, *dial.by),
            f"whoever connects to {proof.world.spec.nodes[dial.node].inlets[dial.by[1]].listen} is carried on to {dial.to} as {dial.node}"
            if dial.by[0] == "inlets"
            else f"a stranger can make {dial.node} connect to {dial.to}",
            {
                "links": 'Dial at the start, or let the node not forward: dial = "at_start"',
                "outlets": "Name those who may use it, and let listeners trust nobody else",
                "inlets": "Listen at 127.0.0.1, if only programs of this machine are to use it",
            }[dial.by[0]],
            dial.way,
        )


# Links between hubs


def _links(proof: Proof) -> Iterator[Finding]:
    """Tell of rings of links between nodes that forward whose readers wait for one another, and of trunks that drop without need."""
    hubs = {name for name, node in proof.world.spec.nodes.items() if node.forwards}
    for name, node in proof.world.nodes.items():
        for link in node.links.values():
            if link.key is None or link.listener is None:
                continue
            where: KeyPath = ("nodes", name, "links", link.key, "drop_when_full")
            drops_when_full = node.spec.links[link.key].drop_when_full
            between = name in hubs and link.listener in hubs
            ring = between and _joined(proof, hubs, name, link.listener, without=link.key)
            if ring and not drops_when_full:
                yield Finding(
                    "ring",
                    "warning",
                    where,
                    f"{name} and {link.listener} forward and are joined by others as well: readers of links in a ring can wait for one another",
                    "Write drop_when_full = true, at both ends",
                )
            if drops_when_full and not between:
                leaf = name if name not in hubs else link.listener
                yield Finding(
                    "drop_when_full",
                    "note",
                    where,
                    f"{leaf} does not forward, so that nothing can wait in a ring, and a trunk drops what a slow reader does not take",
                    "Leave trunk out",
                )


def _joined(proof: Proof, hubs: set[str], one: str, other: str, *, without: str) -> bool:
    """Whether two hubs are joined otherwise than by one link."""
    edges = [
        frozenset({name, link.listener})
        for name in hubs
        for link in proof.world.nodes[name].links.values()
        if link.listener is not None and link.listener in hubs and link.key and (name, link.key) != (one, without)
    ]
    known, waiting = {one}, [one]
    while waiting:
        here = waiting.pop()
        for edge in edges:
            for far in edge - known if here in edge else ():
                known.add(far)
                waiting.append(far)
    return other in known
