"""Checks of a whole topology: single values, references to nothing, listeners that collide, routes in a circle."""

from collections.abc import Collection, Iterator, Mapping
from importlib.machinery import PathFinder
from importlib.util import find_spec

import attrs

from trionode.errors import LocalError
from trionode.net.plugins import STREAM_STORES, TRANSPORTS
from trionode.protocol.wire.address import Address
from trionode.topology.check.names import Names
from trionode.topology.check.plugins import host_port, installed, missing_plugin, port_of, wrong_options
from trionode.topology.check.values import check_leaf
from trionode.topology.endpoints import WILDCARDS
from trionode.topology.errors import KeyPath, Problem, quoted
from trionode.topology.positions import Positions
from trionode.topology.spec import AccessSpec, AssertSpec, NodeSpec, Option, RouteSpec, TopologySpec, TrustSpec
from trionode.topology.types import leaves, record_of, records


def check_spec(
    spec: TopologySpec,
    *,
    nodes: Collection[str] | None = None,
    transports: Collection[str] = (),
    positions: Positions | None = None,
    broken: Collection[KeyPath] = (),
) -> tuple[Problem, ...]:
    """Return all problems of a topology whose classes and types are right.

    Args:
      spec: The topology.
      nodes: The names of the nodes that run here, by default all that are not external. Only their plugins must be
          installed.
      transports: The names of transports that the program itself brings.
      positions: For a topology from a file, the position of each key and value.
      broken: For a topology from a file, the paths of values that could not be decoded, and have a problem already.

    Returns:
      The problems, empty if the topology is valid.
    """
    names = Names(spec, nodes=nodes, transports=transports, positions=positions or {}, broken=broken)
    problems: list[Problem] = []
    for leaf in leaves(spec, record_of(TopologySpec)):
        problems += check_leaf(names, leaf)
    for path, value in records(spec, record_of(TopologySpec)):
        if isinstance(value, TrustSpec | AccessSpec):
            problems += _peers(names, path, value)
        elif isinstance(value, AssertSpec):
            problems += _assertion(names, path, value)
    for name, node in spec.nodes.items():
        problems += _node(names, name, node)
    problems += _collisions(names)
    return tuple(problems)


def check_installation(
    spec: TopologySpec, *, positions: Positions | None = None, folders: Collection[str] = ()
) -> tuple[Problem, ...]:
    """Return what the nodes of a valid topology miss here: plugins, options of plugins, and modules of workers.

    Equal problems are reported once. Workers are searched on Python's path and in `folders`, and not imported.
    """
    found: dict[str, Problem] = {}
    for problem in check_spec(spec, positions=positions):
        found.setdefault(problem.text, problem)
    for name, node in spec.nodes.items():
        for key, worker in node.workers.items():
            module = worker.run.partition(":")[0].partition(".")[0]
            if not node.external and ":" in worker.run and not _is_found(module, folders):
                text = f"there is no module {quoted(module)}: install it, or put it in a folder of PYTHONPATH or beside the topology's file"
                found.setdefault(text, Problem(("nodes", name, "workers", key, "run"), text))
    return tuple(found.values())


def _is_found(module: str, folders: Collection[str]) -> bool:
    try:
        return bool(find_spec(module) or PathFinder.find_spec(module, [*folders]))
    except ValueError:  # the module is imported already, without a spec
        return True


def _peers(names: Names, path: KeyPath, spec: TrustSpec | AccessSpec) -> Iterator[Problem]:
    """Check that a spec has either a keyword or peers."""
    if isinstance(spec, TrustSpec):
        keyword = "everyone" if spec.everyone else None
        otherwise = 'write "everyone"'
    else:
        keyword = None if spec.rule == "named" else spec.rule
        otherwise = 'write "local" for this node alone'
    has_peers = bool(spec.identifiers or spec.nodes or spec.authority)
    if keyword and has_peers:
        yield names.problem(path, f"it is {quoted(keyword)} and has a list of peers: keep one of the two")
    if not keyword and not has_peers and not names.is_broken_within(path):
        yield names.problem(path, f'it has no peers: write nodes = ["bob"] or identifiers = ["I…"], or {otherwise}')
    if spec.attributes and spec.authority is None and not names.is_broken_within(path):
        text = "attributes need an authority, whose credentials prove them: write authority as well"
        yield names.problem((*path, "attributes"), text)


def _assertion(names: Names, path: KeyPath, assertion: AssertSpec) -> Iterator[Problem]:
    """Check that an assertion asserts something."""
    keys = [key for key in record_of(AssertSpec).keys if key != "flow"]
    if not any(getattr(assertion, key) for key in keys) and not names.is_broken_within(path):
        yield names.problem(path, f"it asserts nothing: write one or more of {', '.join(keys)}")


def _node(names: Names, name: str, node: NodeSpec) -> Iterator[Problem]:
    """Check what depends on several values of a node."""
    here: KeyPath = ("nodes", name)
    yield from _duplicate_names(names, name, node)
    for key, listener in node.secure_channel_listeners.items():
        if not listener.protocol_versions:
            text = 'it would accept no channel: write "current", "classic" or both'
            yield names.problem((*here, "secure_channel_listeners", key, "protocol_versions"), text)
    for key, channel in node.secure_channels.items():
        yield from _last_hop(names, (*here, "secure_channels", key, "to"), channel.to, "a secure channel listener")
    for key, inlet in node.inlets.items():
        yield from _last_hop(names, (*here, "inlets", key, "to"), inlet.to, "an outlet")
    for key, relay in node.relays.items():
        if relay.to and not _transport_of(relay.to[0]):
            text = (
                f'it begins with the address of a node, such as "tcp:127.0.0.1:4001"; this begins with {quoted(relay.to[0])}. '
                f"Without this key the relay leads to this node"
            )
            yield names.problem((*here, "relays", key, "to"), text)
    if node.identity.vault == "memory" and node.identity.passphrase_file is not None:
        text = 'a vault in memory has no passphrase: write vault = "sqlite:PATH", or remove this key'
        yield names.problem((*here, "identity", "passphrase_file"), text)
    if node.identity.vault == "memory" and node.identity.identifier is not None and not node.external:
        text = (
            'a vault in memory creates a new identity at each start, which can\'t have this identifier: write vault = "sqlite:PATH", '
            "or external = true if the node runs elsewhere"
        )
        yield names.problem((*here, "identity", "identifier"), text)
    yield from _circles(names, here, node)
    if names.runs_here(name):
        yield from _plugins(names, here, node)


def _duplicate_names(names: Names, name: str, node: NodeSpec) -> Iterator[Problem]:
    first: dict[str, KeyPath] = {}
    for address, path in names.named_addresses(name):
        if first.setdefault(address, path) is not path:
            text = f"the address {quoted(address)} is used by {names.locate(first[address])}: choose another name"
            yield names.problem(path, text, of_key=True)
    for own in node.secure_channels.keys() & node.streams.keys():
        other = names.locate(("nodes", name, "secure_channels", own))
        text = f"{quoted('@' + own)} in routes would mean both this and {other}: choose another name for one of them"
        yield names.problem(("nodes", name, "streams", own), text, of_key=True)


def _last_hop(names: Names, path: KeyPath, route: RouteSpec, what: str) -> Iterator[Problem]:
    """Check that a route ends with an address at a node, not with the node."""
    if route and (route[-1].startswith("@") or _transport_of(route[-1])):
        example = ", ".join(map(quoted, [*route, "NAME"]))
        yield names.problem(path, f"the route ends at a node; the last hop is the address of {what} there: [{example}]")


def _transport_of(hop: str) -> str:
    """Return the transport of a hop that is a transport address, else ""."""
    try:
        return "" if hop.startswith("@") else Address.parse(hop).transport
    except LocalError:
        return ""


def _circles(names: Names, here: KeyPath, node: NodeSpec) -> Iterator[Problem]:
    """Find channels and streams whose routes begin with one another in a circle: none of them can be opened first."""
    routes = {key: ((*here, "streams", key, "via"), each.via) for key, each in node.streams.items()}
    routes |= {key: ((*here, "secure_channels", key, "to"), each.to) for key, each in node.secure_channels.items()}
    first = {key: route[0].removeprefix("@") for key, (_, route) in routes.items() if route and route[0][:1] == "@"}
    seen: set[str] = set()
    for key in first:
        chain = [key]
        while chain[-1] in first and first[chain[-1]] not in chain:
            chain.append(first[chain[-1]])
        if first.get(chain[-1]) == key and seen.isdisjoint(chain):
            seen.update(chain)
            circle = " needs ".join("@" + each for each in [*chain, key])
            text = f"routes can't begin in a circle: {circle}. Begin one of them with a transport address"
            yield names.problem(routes[key][0], text)


def _plugins(names: Names, here: KeyPath, node: NodeSpec) -> Iterator[Problem]:
    """Find transports and stores that are not installed, and options that they do not take."""
    used: list[tuple[str, str, KeyPath, Mapping[str, Option]]] = [
        (TRANSPORTS, name, (*here, "transports", name), options)
        for name, options in node.transports.items()
        if name not in names.transports
    ]
    for service, spec in node.stream_services.items():
        path = (*here, "stream_services", service, "store", "options")
        used.append((STREAM_STORES, spec.store.address.partition(":")[0], path, spec.store.options))
    for group, name, path, options in used:
        if name not in installed(group):  # the check of the name reports it
            continue
        if group == TRANSPORTS and (missing := missing_plugin(group, name)) is not None:
            yield names.problem(path, missing, of_key=True)
        for option, text, of_key in wrong_options(group, name, options):
            yield names.problem((*path, option), text, of_key=of_key)


@attrs.frozen
class _Claim:
    """An address that a node listens at: the host, "" if there is none, and the port or the whole address."""

    node: str
    host: str
    address: str
    path: KeyPath


def _collisions(names: Names) -> Iterator[Problem]:
    """Find two listeners at the same address, of one node or of two nodes that can be on the same machine."""
    claims: list[_Claim] = []
    for name, node in names.spec.nodes.items():
        for index, listener in enumerate(node.listen):
            transport_name, _, where = listener.address.partition(":")
            path: KeyPath = ("nodes", name, "listen", index, "address")
            claims += _claims(name, path, listener.address, port_of(transport_name, where))
        for key, inlet in node.inlets.items():
            claims += _claims(name, ("nodes", name, "inlets", key, "listen"), "", host_port(inlet.listen))
    for later, claim in enumerate(claims):
        earlier = next((each for each in claims[:later] if _collide(each, claim)), None)
        if earlier is not None:
            text = (
                f"{names.locate(earlier.path)} listens there already: choose another address, or port 0 for a free port"
            )
            yield names.problem(claim.path, text)


def _claims(node: str, path: KeyPath, address: str, bound: tuple[str, int] | None) -> list[_Claim]:
    if bound is not None:
        host, port = bound
        return [_Claim(node, "127.0.0.1" if host == "localhost" else host, str(port), path)] if port else []
    return [] if not address.partition(":")[2] or address.endswith(":0") else [_Claim(node, "", address, path)]


def _collide(one: _Claim, other: _Claim) -> bool:
    if one.address != other.address:
        return False
    if one.node == other.node:
        return one.host == other.host or not WILDCARDS.isdisjoint({one.host, other.host})
    # Two nodes can be on two machines, where wildcard hosts and inlets do not collide.
    return one.host == other.host and one.host not in WILDCARDS and "inlets" not in {one.path[2], other.path[2]}
