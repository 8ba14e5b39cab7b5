"""Parts that cannot work: flows that do not arrive, channels that cannot be opened, unknown addresses, conflicts."""

from collections.abc import Iterator, Sequence

from trionode.protocol.stream.names import is_capability
from trionode.topology.errors import KeyPath, dotted_keys
from trionode.topology.spec import NodeSpec
from trionode.verify.analysis import Analysis, Flow
from trionode.verify.assertions import render_trace
from trionode.verify.findings import finding as kinds
from trionode.verify.findings.finding import Finding
from trionode.verify.model.network import SymbolicNetwork, Unopened
from trionode.verify.paths import Path, trace_route


def broken(analysis: Analysis) -> Iterator[Finding]:
    """Yield what cannot work, and which flows are in plaintext."""
    network = analysis.network
    for flow in analysis.flows:
        yield from _flow(network, flow)
    yield from _sends(network)
    yield from _unopened(network)
    yield from _addresses(network)
    yield from _claimed_names(network)
    yield from _claimed_streams(network)
    yield from _claimed_positions(network)


# Flows


def _flow(network: SymbolicNetwork, flow: Flow) -> Iterator[Finding]:
    path = flow.path
    where: KeyPath = ("flows", flow.name) if flow.is_declared else ("nodes", flow.spec.node)
    for direction in (path.request, path.reply):
        loop = next((outcome for outcome in direction.outcomes if outcome.what == "loops"), None)
        if loop is not None:
            text = f"{flow.name} runs in a loop: at {loop.node} {loop.text}"
            yield kinds.LOOP.at(where, text, render_trace(direction))
    if not path.arrives:
        yield from _no_route(network, path, where, flow.name)
    elif flow.spec.answered and not path.returns:
        text = f"an answer to {flow.name} cannot come back: {path.reply.trouble}"
        yield kinds.NO_RETURN_ROUTE.at(where, text, render_trace(path.reply))
    for each in flow.observations:
        if each.visible.payload == "plaintext" and each.at.kind in {"connection", "store"}:
            text = f"the payload of {flow.name} is in plaintext for {each.at.described}"
            yield kinds.PLAINTEXT.at(where, text, render_trace(path.request, each.at))


def _no_route(network: SymbolicNetwork, path: Path, where: KeyPath, what: str) -> Iterator[Finding]:
    """Yield a finding for a path on which nothing arrives, unless another finding names the cause."""
    outcomes = path.request.outcomes
    if any(outcome.what == "loops" for outcome in outcomes):
        return
    if _has_finding(network, path.node, path.route, path.request.trouble):
        return
    kind = kinds.LEAVES if any(outcome.what == "left" for outcome in outcomes) else kinds.NO_ROUTE
    yield kind.at(where, f"{what} does not arrive: {path.request.trouble}", render_trace(path.request))


def _sends(network: SymbolicNetwork) -> Iterator[Finding]:
    for name, node in network.spec.nodes.items():
        for key, worker in node.workers.items():
            for index, route in enumerate(worker.sends):
                path = trace_route(network, name, route)
                if not path.arrives:
                    where: KeyPath = ("nodes", name, "workers", key, "sends", index)
                    yield from _no_route(network, path, where, f"what the worker {name}/{key} passes on")


# What cannot be opened


def _unopened(network: SymbolicNetwork) -> Iterator[Finding]:
    for (node, kind, name), why in network.unopened.items():
        if _has_finding(network, node, _route_of(network.spec.nodes[node], kind, name), why):
            continue
        what = {"secure_channels": "secure channel", "streams": "stream", "relays": "relay"}[kind]
        kind_ = kinds.LIMIT_REACHED if why.endswith(")") and "limits." in why else kinds.CANNOT_OPEN
        yield kind_.at(("nodes", node, kind, name), f"the {what} cannot be opened: {why}")


def _has_finding(network: SymbolicNetwork, node: str, route: Sequence[str], why: str) -> bool:
    """Return whether a route fails because of something unopened that has a finding of its own.

    Things that wait for each other in a circle have none.
    """
    known: set[Unopened] = set()
    cause = _cause(network, node, route, why)
    while cause is not None and cause not in known:
        known.add(cause)
        owner, kind, name = cause
        cause = _cause(network, owner, _route_of(network.spec.nodes[owner], kind, name), network.unopened[cause])
    return cause is None and bool(known)


def _cause(network: SymbolicNetwork, node: str, route: Sequence[str], why: str) -> Unopened | None:
    """Return the unopened channel or stream that a route begins with, or the unopened relay that it lacks."""
    prefixes = [each.relay_service.prefix for each in network.spec.nodes.values() if each.relay_service is not None]
    for key in network.unopened:
        owner, kind, name = key
        if kind == "relays":
            if any(why.endswith(f" has no address {prefix}{name}") for prefix in prefixes):
                return key
        elif owner == node and route[0] == f"@{name}":
            return key
    return None


def _route_of(node: NodeSpec, kind: str, name: str) -> Sequence[str]:
    match kind:
        case "secure_channels":
            return node.secure_channels[name].to
        case "streams":
            return node.streams[name].via
        case _:
            return node.relays[name].via


# Addresses


def _addresses(network: SymbolicNetwork) -> Iterator[Finding]:
    known: set[str] = set()
    for node in network.nodes.values():
        for (address, _), link in node.links.items():
            if link.listener is not None or address in known:
                continue
            known.add(address)
            listeners = network.listeners_at(link.endpoint)
            where: KeyPath = ("nodes", node.name, *(() if link.key is None else ("links", link.key)))
            if listeners:
                names = " or ".join(listeners)
                text = f"{address}, to which {node.name} connects, can be {names}: each listens on all its addresses"
                yield kinds.AMBIGUOUS_ADDRESS.at(where, text)
            else:
                text = (
                    f"{node.name} connects to {address}, where no node of this topology listens: the worst is assumed"
                )
                yield kinds.UNKNOWN_ADDRESS.at(where, text)


# What two nodes claim


def _claimed_names(network: SymbolicNetwork) -> Iterator[Finding]:
    for node in network.nodes.values():
        for prefix in node.prefixes:
            for name in node.table:
                if name.startswith(prefix):
                    text = f"{name} hides the stream {name.removeprefix(prefix)} of {node.name}/{prefix[:-1]}"
                    yield kinds.NAME_CLAIMED.at(("nodes", node.name), text)


def _claimed_streams(network: SymbolicNetwork) -> Iterator[Finding]:
    for (node, service), store in network.services.items():
        for name, claims in store.claims.items():
            # Authenticated clients that know an unguessable name may share the stream, whatever its owner.
            if len(claims) > 1 and ("" in claims or not is_capability(name)):
                clients = sorted(network.node_of(each) if each else "clients without a channel" for each in claims)
                yield kinds.STREAM_CLAIMED.at(
                    ("nodes", node, "stream_services", service, "owners"),
                    f"the stream {name} is used by {' and '.join(clients)}: the first to use it owns it, "
                    f"and the service may refuse the others",
                )


def _claimed_positions(network: SymbolicNetwork) -> Iterator[Finding]:
    readers: dict[tuple[str, str, str], tuple[str, KeyPath]] = {}
    for node in network.nodes.values():
        for key, stream in node.spec.streams.items():
            if stream.client_id is None:
                continue
            claim = (" => ".join((*stream.via, stream.service)), stream.receives, stream.client_id)
            where: KeyPath = ("nodes", node.name, "streams", key, "client_id")
            other, first = readers.setdefault(claim, (node.identity, where))
            if other != node.identity:
                text = f"{dotted_keys(first)} saves its position under the same name"
                yield kinds.POSITION_CLAIMED.at(where, text)
