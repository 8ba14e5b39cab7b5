"""Findings about peers without a key of the topology: the addresses that they reach, and their effects."""

from collections.abc import Iterator

from trionode.topology.endpoints import WILDCARDS, parse_endpoint
from trionode.topology.errors import KeyPath
from trionode.topology.spec import AccessSpec, NodeSpec
from trionode.verify.analysis import Analysis
from trionode.verify.assertions import bare_neighbours
from trionode.verify.findings import finding as kinds
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
            text = f"any peer that reaches {name}/{key} can open a channel, and then reach all that channels reach"
            yield kinds.TRUSTING_LISTENER.at(("nodes", name, "secure_channel_listeners", key, "trust"), text)
    for key, channel in node.secure_channels.items():
        if channel.trust.everyone:
            text = f"{name} accepts any peer as the other end of @{key}: every hop of the handshake can impersonate it"
            yield kinds.TRUSTING_CHANNEL.at(("nodes", name, "secure_channels", key, "trust"), text)


def _reachable_without_channel(analysis: Analysis, name: str, node: NodeSpec) -> Iterator[Finding]:
    offers: list[tuple[str, str, AccessSpec]] = [
        *(("workers", key, each.allow) for key, each in node.workers.items()),
        *(("outlets", key, each.allow) for key, each in node.outlets.items()),
    ]
    for kind, key, allow in offers:
        reached = analysis.reachability.reach(name, key, bare=True)
        trace: tuple[str, ...] = ()
        if reached is None:
            neighbours = bare_neighbours(analysis, name, key)
            if not neighbours:
                continue
            verb = "has" if len(neighbours) == 1 else "have"
            how = f"a bare link is enough to reach it; {', '.join(neighbours)} {verb} one"
        elif reached.manner == "by an inlet":
            continue  # the inlet has a finding of its own
        else:
            how, trace = f"unauthenticated peers reach it {reached.manner}", reached.trace
        text = f"{how}. It admits {'everyone' if allow.rule == 'anyone' else allow.rule}, so no sender is authenticated"
        yield kinds.REACHABLE.at(("nodes", name, kind, key, "allow"), text, trace)


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
        kind, how = kinds.OPEN_SERVICE, str(reached.manner)
        if reached.manner == "through a secure channel":
            kind, how = kinds.SERVICE_BEHIND_OPEN_LISTENER, f"{reached.manner}, with any identity"
        text = f"unauthenticated peers reach it {how}, and can {what}"
        yield kind.at(("nodes", name, *keys, "allow"), text, reached.trace)


def _open_listeners(analysis: Analysis, name: str, node: NodeSpec) -> Iterator[Finding]:
    links = sorted(node.links) if node.forwards else []
    for index, listener in enumerate(node.listen):
        endpoint = parse_endpoint(listener.address)
        if endpoint is None or endpoint.is_of_machine:
            continue
        reached = {
            each.address
            for each in analysis.reachability.reached.values()
            if each.node == name and each.manner != "by an inlet" and each.address not in links
        }
        offers = [*sorted(reached), *(f"the link {link}" for link in links)]
        if offers:
            host = "any address of the machine" if endpoint.host in WILDCARDS else endpoint.host or "it"
            text = f"every peer that reaches {host} can connect to {endpoint}, and reaches {', '.join(offers)}"
            yield kinds.OPEN_LISTENER.at(("nodes", name, "listen", index, "address"), text)


def _forwards_unauthenticated(name: str, node: NodeSpec) -> Iterator[Finding]:
    for key, relay in node.relays.items():
        if relay.to is not None:
            route = " => ".join(relay.to)
            text = f"every peer that reaches the hub's relay {key} is forwarded to {route} by {name}'s link"
            yield kinds.RELAY_FORWARDS.at(("nodes", name, "relays", key, "to"), text)
    for key, worker in node.workers.items():
        if worker.sends and worker.allow.rule == "anyone":
            routes = "; ".join(map(" => ".join, worker.sends))
            text = f"it admits everyone and passes messages on as {name}'s own, to {routes}"
            yield kinds.WORKER_FORWARDS.at(("nodes", name, "workers", key, "sends"), text)


def _dials(analysis: Analysis) -> Iterator[Finding]:
    for dial in analysis.reachability.dials.values():
        if dial.is_by_inlet:
            continue
        table, key = dial.by
        text = f"an unauthenticated peer can make {dial.node} connect to {dial.to}"
        if table == "inlets":
            address = analysis.network.spec.nodes[dial.node].inlets[key].listen
            text = f"every client that connects to {address} is forwarded to {dial.to} as {dial.node}"
        yield kinds.DIALS[table].at(("nodes", dial.node, *dial.by), text, dial.trace)
