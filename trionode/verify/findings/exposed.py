"""What others can reach and cause in a topology without a key of it."""

from collections.abc import Iterator

from trionode.topology.endpoints import WILDCARDS, Endpoint, parse_endpoint
from trionode.topology.errors import KeyPath
from trionode.topology.spec import AccessSpec, NodeSpec
from trionode.verify.analysis import Analysis
from trionode.verify.assertions import bare_neighbours
from trionode.verify.findings.finding import Finding


def exposed(analysis: Analysis) -> Iterator[Finding]:
    """Yield what peers without a key of the topology can reach, send and cause."""
    for name, node in analysis.network.spec.nodes.items():
        yield from _trusts_everyone(name, node)
        yield from _reachable_without_channel(analysis, name, node)
        yield from _open_services(analysis, name, node)
        yield from _open_listeners(analysis, name, node)
        yield from _forwards_unauthenticated(name, node)
    yield from _dials(analysis)


def _trusts_everyone(name: str, node: NodeSpec) -> Iterator[Finding]:
    for key, listener in node.secure_channel_listeners.items():
        if listener.trust.everyone:
            yield Finding(
                "trusts everyone",
                "warning",
                ("nodes", name, "secure_channel_listeners", key, "trust"),
                f"any peer that reaches {name}/{key} can open a channel, and then reach all that channels reach",
                "Name the peers, by nodes or only, or let the addresses behind it name them",
            )
    for key, channel in node.secure_channels.items():
        if channel.trust.everyone:
            yield Finding(
                "trusts everyone",
                "warning",
                ("nodes", name, "secure_channels", key, "trust"),
                f"{name} accepts any peer as the other end of @{key}, so every hop of the handshake can impersonate it",
                "Name the node or the identifier that you expect",
            )


def _reachable_without_channel(analysis: Analysis, name: str, node: NodeSpec) -> Iterator[Finding]:
    offers: list[tuple[str, str, AccessSpec]] = [
        *(("workers", key, each.allow) for key, each in node.workers.items()),
        *(("outlets", key, each.allow) for key, each in node.outlets.items()),
    ]
    for kind, key, allow in offers:
        reached = analysis.reachability.reach(name, key, bare=True)
        if reached is not None and reached.manner == "by an inlet":
            continue  # the inlet has a finding of its own
        neighbours = () if reached is not None else bare_neighbours(analysis, name, key)
        if reached is None and not neighbours:
            continue
        how = (
            f"unauthenticated peers reach it {reached.manner}"
            if reached is not None
            else f"a bare link is enough to reach it; {', '.join(neighbours)} "
            f"ha{'s' if len(neighbours) == 1 else 've'} one"
        )
        yield Finding(
            "reachable without channel",
            "warning",
            ("nodes", name, kind, key, "allow"),
            f"{how}. It admits {'everyone' if allow.rule == 'anyone' else allow.rule}, so no sender is proven",
            'Write allow = "channels", or name the peers',
            () if reached is None else reached.trace,
        )


def _open_services(analysis: Analysis, name: str, node: NodeSpec) -> Iterator[Finding]:
    services: list[tuple[KeyPath, str, str]] = [
        (("stream_services", key), key, f"store and read streams, up to {service.limits.streams} each")
        for key, service in node.stream_services.items()
    ]
    if node.relay_service is not None:
        limit = node.relay_service.limits.relays_per_client
        services.append((("relay_service",), "static_forwarding_service", f"register relays, up to {limit} each"))
    for keys, address, what in services:
        reached = analysis.reachability.reach(name, address, bare=False)
        if reached is None:
            continue
        by_channel = reached.manner == "through a secure channel"
        yield Finding(
            "open service",
            "note" if by_channel else "warning",
            ("nodes", name, *keys, "allow"),
            f"unauthenticated peers reach it {reached.manner}{', with any identity' if by_channel else ''}, and can {what}",
            "Let the listener trust the clients by name, or name them in allow"
            if by_channel
            else "Admit channels only, and add a listener that trusts the clients",
            reached.trace,
        )


def _open_listeners(analysis: Analysis, name: str, node: NodeSpec) -> Iterator[Finding]:
    for index, listener in enumerate(node.listen):
        endpoint = parse_endpoint(listener.address)
        if endpoint is None or endpoint.is_of_machine:
            continue
        links = sorted(node.links) if node.forwards else []
        reached = {
            each.address
            for each in analysis.reachability.reached.values()
            if each.node == name and each.manner != "by an inlet"
        }
        offers = [", ".join(sorted(reached - set(links)))] if reached - set(links) else []
        if links:
            offers.append(f"the links {', '.join(links)}")
        if offers:
            yield Finding(
                "open listener",
                "note",
                ("nodes", name, "listen", index, "address"),
                f"every peer that reaches {_host(endpoint)} can connect to {endpoint}, and reaches {', and '.join(offers)}",
                "Listen on 127.0.0.1 if all clients are on this machine",
            )


def _host(endpoint: Endpoint) -> str:
    return "any address of the machine" if endpoint.host in WILDCARDS else endpoint.host or "it"


def _forwards_unauthenticated(name: str, node: NodeSpec) -> Iterator[Finding]:
    for key, relay in node.relays.items():
        if relay.to is not None:
            yield Finding(
                "forwards unauthenticated",
                "note",
                ("nodes", name, "relays", key, "to"),
                f"every peer that reaches the hub's relay {key} is forwarded to {' => '.join(relay.to)} by {name}'s link",
                "Let the services there admit secure channels only",
            )
    for key, worker in node.workers.items():
        if worker.sends and worker.allow.rule == "anyone":
            routes = "; ".join(map(" => ".join, worker.sends))
            yield Finding(
                "forwards unauthenticated",
                "warning",
                ("nodes", name, "workers", key, "sends"),
                f"it admits everyone and passes messages on as {name}'s own, to {routes}",
                'Write allow = "channels", or name the peers',
            )


_DIAL_ADVICE = {
    "links": 'Dial at the start, or do not forward: dial = "at_start"',
    "outlets": "Name the peers that may use it, and let listeners trust no others",
    "inlets": "Listen on 127.0.0.1 if only programs of this machine should use it",
}


def _dials(analysis: Analysis) -> Iterator[Finding]:
    for dial in analysis.reachability.dials.values():
        if dial.is_by_inlet:
            continue
        kind, key = dial.by
        if kind == "inlets":
            at = analysis.network.spec.nodes[dial.node].inlets[key].listen
            text = f"every client that connects to {at} is forwarded to {dial.to} as {dial.node}"
        else:
            text = f"an unauthenticated peer can make {dial.node} connect to {dial.to}"
        where: KeyPath = ("nodes", dial.node, *dial.by)
        yield Finding("unauthenticated dial", "warning", where, text, _DIAL_ADVICE[kind], dial.trace)
