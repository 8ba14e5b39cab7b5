"""What a topology says that can't be meant, beyond its form: names of nobody, places of no transport, routes in a circle."""

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
from trionode.topology.spec import AccessSpec, AssertSpec, NodeSpec, RouteSpec, TopologySpec, TrustSpec
from trionode.topology.types import leaves, record_of


def check_spec(
    spec: TopologySpec,
    *,
    nodes: Collection[str] | None = None,
    transports: Collection[str] = (),
    positions: Positions | None = None,
    broken: Collection[KeyPath] = (),
) -> tuple[Problem, ...]:
    """Return all that is wrong with a spec, whose classes and types are right; with positions where it came from a file.

    `nodes` are the nodes that are to run here, by default all that are not external: only their transports and stores have to be installed.
    `transports` are names of transports that the program brings beside those that are installed. Of a file, `positions` tell where all stands,
    and `broken` where something could not be read, which is told already.
    """
    names = Names(spec, nodes=nodes, transports=transports, positions=positions or {}, broken=broken)
    problems: list[Problem] = []
    for leaf in leaves(spec, record_of(TopologySpec)):
        problems += check_leaf(names, leaf)
    for name, node in spec.nodes.items():
        problems += _node(names, name, node)
    for index, assertion in enumerate(spec.assertions):
        problems += _assertion(names, ("assert", index), assertion)
    problems += _endpoints(names)
    return tuple(problems)


def check_installation(
    spec: TopologySpec, *, positions: Positions | None = None, folders: Collection[str] = ()
) -> tuple[Problem, ...]:
    """Return what the nodes of a spec that is right itself miss here: plugins, options of these, and modules of workers.

    What is missed several times is told once. Workers are looked for where Python finds modules and in `folders`; none is imported.
    """
    told: dict[str, Problem] = {}
    for problem in check_spec(spec, positions=positions):
        told.setdefault(problem.text, problem)
    for name, node in spec.nodes.items():
        for key, worker in node.workers.items():
            module = worker.run.partition(":")[0].partition(".")[0]
            if not node.external and ":" in worker.run and not _is_found(module, folders):
                text = f"no module {quoted(module)} is found: it has to be installed, or to lie in a folder of PYTHONPATH or beside the topology's file"
                told.setdefault(text, Problem(("nodes", name, "workers", key, "run"), text))
    return tuple(told.values())


def _is_found(module: str, folders: Collection[str]) -> bool:
    try:
        return bool(find_spec(module) or PathFinder.find_spec(module, [*folders]))
    except ValueError:  # it is imported already, and doesn't say from where
        return True


def _node(names: Names, name: str, node: NodeSpec) -> Iterator[Problem]:
    """Tell of what only a node as a whole shows."""
    here: KeyPath = ("nodes", name)
    yield from _claimed_names(names, name, node)
    for key, listener in node.secure_channel_listeners.items():
        path: KeyPath = (*here, "secure_channel_listeners", key)
        yield from _trust(names, (*path, "trust"), listener.trust)
        if not listener.protocol_versions:
            told = 'it would answer nobody: name "current", "classic" or both'
            yield names.problem((*path, "protocol_versions"), told)
    for key, channel in node.secure_channels.items():
        path = (*here, "secure_channels", key)
        yield from _trust(names, (*path, "trust"), channel.trust)
        yield from _end(names, (*path, "to"), channel.to, "a secure channel listener")
    for key, inlet in node.inlets.items():
        yield from _end(names, (*here, "inlets", key, "to"), inlet.to, "an outlet")
    for path, access in _accesses(here, node):
        yield from _access(names, path, access)
    for key, relay in node.relays.items():
        if relay.to and not _transport_of(relay.to[0]):
            told = (
                f'it begins with the place of a node, such as "tcp:127.0.0.1:4001"; this begins with {quoted(relay.to[0])}. '
                f"Without this key the relay leads to this node"
            )
            yield names.problem((*here, "relays", key, "to"), told)
    if node.identity.vault == "memory" and node.identity.passphrase_file is not None:
        told = 'a vault in memory has no passphrase: write vault = "sqlite:PATH", or leave this out'
        yield names.problem((*here, "identity", "passphrase_file"), told)
    if node.identity.vault == "memory" and node.identity.identifier is not None and not node.external:
        told = (
            'a vault in memory makes a new identity at each start, which can\'t be this one: write vault = "sqlite:PATH", '
            "or external = true if somebody else runs this node"
        )
        yield names.problem((*here, "identity", "identifier"), told)
    yield from _circles(names, here, node)
    if names.runs_here(name):
        yield from _plugins(names, here, node)


def _claimed_names(names: Names, name: str, node: NodeSpec) -> Iterator[Problem]:
    first: dict[str, KeyPath] = {}
    for address, path in names.claimed(name):
        if first.setdefault(address, path) is not path:
            told = f"the address {quoted(address)} is taken already by {names.pointed(first[address])}: choose another name"
            yield names.problem(path, told, of_key=True)
    for own in node.secure_channels.keys() & node.streams.keys():
        taken = names.pointed(("nodes", name, "secure_channels", own))
        told = f"routes would name both this and {taken} by {quoted('@' + own)}: choose another name for one of them"
        yield names.problem(("nodes", name, "streams", own), told, of_key=True)


def _trust(names: Names, path: KeyPath, trust: TrustSpec) -> Iterator[Problem]:
    is_named = bool(trust.identifiers or trust.nodes)
    if trust.everyone and is_named:
        yield names.problem(path, "it trusts everyone, and names some as well: keep one of the two")
    if not trust.everyone and not is_named and not names.is_broken_within(path):
        yield names.problem(
            path, 'it trusts nobody: name nodes = ["bob"], or identifiers = ["I…"], or write "everyone"'
        )


def _accesses(here: KeyPath, node: NodeSpec) -> Iterator[tuple[KeyPath, AccessSpec]]:
    tables: Mapping[str, Mapping[str, AccessSpec]] = {
        "workers": {key: each.allow for key, each in node.workers.items()},
        "secure_channel_listeners": {key: each.allow for key, each in node.secure_channel_listeners.items()},
        "stream_services": {key: each.allow for key, each in node.stream_services.items()},
        "outlets": {key: each.allow for key, each in node.outlets.items()},
    }
    for kind, accesses in tables.items():
        for key, access in accesses.items():
            yield (*here, kind, key, "allow"), access
    if node.relay_service is not None:
        yield (*here, "relay_service", "allow"), node.relay_service.allow


def _access(names: Names, path: KeyPath, access: AccessSpec) -> Iterator[Problem]:
    is_named = bool(access.identifiers or access.nodes)
    if access.rule != "named" and is_named:
        yield names.problem(path, f"it is {quoted(access.rule)}, and names some as well: keep one of the two")
    if access.rule == "named" and not is_named and not names.is_broken_within(path):
        told = 'it names nobody: name nodes = ["bob"], or identifiers = ["I…"], or write "local" for this node alone'
        yield names.problem(path, told)


def _end(names: Names, path: KeyPath, route: RouteSpec, what: str) -> Iterator[Problem]:
    """Tell of a route that ends at a node where it should end at an address there."""
    if route and (route[-1].startswith("@") or _transport_of(route[-1])):
        example = ", ".join(map(quoted, [*route, "NAME"]))
        yield names.problem(path, f"the route ends at a node; the address of {what} there comes last: [{example}]")


def _transport_of(hop: str) -> str:
    """Return the transport of a hop that is a transport address, "" for another."""
    try:
        return "" if hop.startswith("@") else Address.parse(hop).transport
    except LocalError:
        return ""


def _circles(names: Names, here: KeyPath, node: NodeSpec) -> Iterator[Problem]:
    """Tell of channels and streams whose routes begin with one another in a circle, so that none can be opened first."""
    routes: dict[str, tuple[KeyPath, RouteSpec]] = {
        key: ((*here, "streams", key, "via"), each.via) for key, each in node.streams.items()
    } | {key: ((*here, "secure_channels", key, "to"), each.to) for key, each in node.secure_channels.items()}
    begins = {
        key: route[0].removeprefix("@") for key, (_, route) in routes.items() if route and route[0].startswith("@")
    }
    told: set[str] = set()
    for key in begins:
        way = [key]
        while way[-1] in begins and begins[way[-1]] not in way:
            way.append(begins[way[-1]])
        if begins.get(way[-1]) == key and told.isdisjoint(way):
            told.update(way)
            circle = " needs ".join("@" + each for each in [*way, key])
            text = f"no route can begin in a circle: {circle}. Begin one of them with a transport address"
            yield names.problem(routes[key][0], text)


def _plugins(names: Names, here: KeyPath, node: NodeSpec) -> Iterator[Problem]:
    """Tell of transports and stores that are not installed, and of options that they don't take."""
    for name, options in node.transports.items():
        if name in names.transports or name not in installed(TRANSPORTS):  # that it isn't there is told by its name
            continue
        path = (*here, "transports", name)
        missing = missing_plugin(TRANSPORTS, name)
        if missing is not None:
            yield names.problem(path, missing, of_key=True)
        for option, text, of_key in wrong_options(TRANSPORTS, name, options):
            yield names.problem((*path, option), text, of_key=of_key)
    for service, spec in node.stream_services.items():
        path = (*here, "stream_services", service, "store", "options")
        name = spec.store.address.partition(":")[0]
        if name in installed(STREAM_STORES):
            for option, text, of_key in wrong_options(STREAM_STORES, name, spec.store.options):
                yield names.problem((*path, option), text, of_key=of_key)


def _assertion(names: Names, path: KeyPath, assertion: AssertSpec) -> Iterator[Problem]:
    """Tell of an assertion that holds always, because it says nothing."""
    keys = [key for key in record_of(AssertSpec).keys if key != "flow"]
    if not any(getattr(assertion, key) for key in keys) and not names.is_broken_within(path):
        yield names.problem(path, f"it asserts nothing: it has to have one or more of {', '.join(keys)}")


@attrs.frozen
class _Claim:
    """A place that is listened at: what is taken at which host, "" for none, and where that is told."""

    node: str
    host: str
    what: str
    path: KeyPath


def _endpoints(names: Names) -> Iterator[Problem]:
    """Tell of places that two listeners claim, of one node or of two, unless those may be meant for a machine each."""
    claims: list[_Claim] = []
    for name, node in names.spec.nodes.items():
        for index, listener in enumerate(node.listen):
            transport_name, _, where = listener.address.partition(":")
            bound = port_of(transport_name, where)
            claims += _claims(name, ("nodes", name, "listen", index, "address"), listener.address, bound)
        for key, inlet in node.inlets.items():
            claims += _claims(name, ("nodes", name, "inlets", key, "listen"), "", host_port(inlet.listen))
    for later, claim in enumerate(claims):
        earlier = next((each for each in claims[:later] if _collide(each, claim)), None)
        if earlier is not None:
            told = (
                f"{names.pointed(earlier.path)} listens there already: choose another place, or port 0 for a free one"
            )
            yield names.problem(claim.path, told)


def _claims(node: str, path: KeyPath, at: str, bound: tuple[str, int] | None) -> list[_Claim]:
    if bound is not None:
        host, port = bound
        return [_Claim(node, "127.0.0.1" if host == "localhost" else host, str(port), path)] if port else []
    return [] if not at.partition(":")[2] or at.endswith(":0") else [_Claim(node, "", at, path)]


def _collide(one: _Claim, other: _Claim) -> bool:
    if one.what != other.what:
        return False
    if one.node == other.node:
        return one.host == other.host or not WILDCARDS.isdisjoint({one.host, other.host})
    # Two nodes may stand on two machines: then all addresses of each, and the inlets of each, are different places.
    return one.host == other.host and one.host not in WILDCARDS and "inlets" not in {one.path[2], other.path[2]}
