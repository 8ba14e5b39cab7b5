"""Checks of single values of a topology.

Each kind of value has a check, which says what was expected and what to do.
"""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

from trionode import workers
from trionode.errors import ConfigError, IdentityError, LocalError
from trionode.identity.attributes import authority_history
from trionode.net.plugins import STREAM_STORES, TRANSPORTS
from trionode.protocol.identity.credential import PresentedCredential, read_credential
from trionode.protocol.identity.identity import Identifier
from trionode.protocol.stream.names import valid_stream_name
from trionode.protocol.wire.address import LOCAL_TYPE, MAX_VALUE, Address, parse_host_port
from trionode.protocol.wire.route import MAX_HOPS
from trionode.relay.service import is_relay_name
from trionode.stream.store.base import store_info
from trionode.topology.check.names import Names, node_of
from trionode.topology.check.plugins import host_port, installed, missing_plugin, port_of, wrong_address
from trionode.topology.errors import KeyPath, Problem, closest, describe, quoted, suggest
from trionode.topology.spec import RouteSpec, ValueKind
from trionode.topology.types import Choice, Leaf, ListOf, Scalar

#: Names that an assertion can use beside nodes.
OBSERVERS = ("network", "stores")

_NODE_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)
_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
#: The workers that ship with trionode.
SHIPPED = tuple(
    sorted(
        name
        for name, each in vars(workers).items()
        if inspect.iscoroutinefunction(each) and each.__module__ == workers.__name__ and not name.startswith("_")
    )
)


def check_leaf(names: Names, leaf: Leaf) -> Iterator[Problem]:
    """Check one value by its type and kind."""
    match leaf.type:
        case Choice(choices=choices) if leaf.value not in choices:
            expected = " or ".join(map(quoted, choices))
            yield names.problem(leaf.path, f"expected {expected}; this is {describe(leaf.value)}")
        case ListOf(value_kind=ValueKind.ROUTE):
            yield from _route(names, leaf.path, cast("RouteSpec", leaf.value))
        case Scalar(value_kind=ValueKind() as kind):
            text = _CHECKS[kind](names, leaf.path, leaf.value)
            if text is not None:
                yield names.problem(leaf.path, text, of_key=kind in _KEYS)


# Addresses and routes


def _endpoint(names: Names, path: KeyPath, text: str) -> str | None:
    return _wrong_dialled(names, text, node_of(path))


def _wrong_dialled(names: Names, text: str, node: str) -> str | None:
    name, _, where = text.partition(":")
    wrong = _wrong_endpoint(names, text, node)
    bound = port_of(name, where)
    if wrong is None and bound is not None and bound[1] == 0:
        return "port 0 is only for listening: give the port that the peer listens at"
    return wrong


def _listening_endpoint(names: Names, path: KeyPath, text: str) -> str | None:
    return _wrong_endpoint(names, text, node_of(path))


def _wrong_endpoint(names: Names, text: str, node: str) -> str | None:
    """Say what is wrong with a transport address of a node."""
    if _is_host_port(text):
        return f"the transport is missing: did you mean {quoted('tcp:' + text)}?"
    name, mark, where = text.partition(":")
    if text in installed(TRANSPORTS):
        return f"the address is incomplete: a transport address reads {text}:ADDRESS"
    if not mark or not name.isidentifier():
        return (
            f'expected a transport address such as "tcp:127.0.0.1:4000"; this is the text {quoted(text)}. '
            f"Installed are: {', '.join(installed(TRANSPORTS))}"
        )
    if name not in names.transports and names.runs_here(node):
        missing = missing_plugin(TRANSPORTS, name)
        if missing is not None:
            return missing
    wrong = wrong_address(name, where)
    return None if wrong is None else f"not an address of the transport {quoted(name)}: {wrong}"


def _is_host_port(text: str) -> bool:
    """Return whether a text is HOST:PORT, and not a transport address."""
    bound = host_port(text)
    if bound is None or "/" in text:
        return False
    host, _ = bound
    return host not in installed(TRANSPORTS) and (":" not in host or text.startswith("["))


def _route(names: Names, path: KeyPath, route: RouteSpec) -> Iterator[Problem]:
    if not route:
        yield names.problem(path, 'a route has at least one hop, such as "tcp:127.0.0.1:4000"')
    if len(route) >= MAX_HOPS:
        yield names.problem(path, f"a route has at most {MAX_HOPS - 1} hops; this one has {len(route)}")
    node = names.spec.flows[str(path[1])].node if path[0] == "flows" else node_of(path)
    for index, hop in enumerate(route):
        text = _wrong_hop(names, hop, node, is_first=index == 0)
        if text is not None:
            yield names.problem((*path, index), text)


def _wrong_hop(names: Names, hop: str, node: str, *, is_first: bool) -> str | None:
    if hop.startswith("@"):
        return _wrong_own_name(names, hop.removeprefix("@"), node, is_first=is_first)
    try:
        address = Address.parse(hop)
    except LocalError as error:
        return str(error)
    if len(address.value) > MAX_VALUE:
        return f"an address has at most {MAX_VALUE} bytes; this one has {len(address.value)}"
    if is_first and (_is_host_port(hop) or address.transport):
        text = f"{address.transport}:{address.value.decode()}" if address.transport else hop
        return _wrong_dialled(names, text, node)
    if address.transport and address.kind == LOCAL_TYPE:
        return (
            f"{quoted(hop)} can only be the first hop, which this node connects to. The other hops are names of addresses at the nodes that are "
            f'reached. Give the intermediate node a link to it, [nodes.NAME.links.NEXT] with to = {quoted(hop)}, and write "NEXT" here'
        )
    if is_first and hop in names.own(node) - names.addresses(node):
        return f"a channel or stream of the node has an @ in front: did you mean {quoted('@' + hop)}?"
    return None


def _wrong_own_name(names: Names, name: str, node: str, *, is_first: bool) -> str | None:
    """Say what is wrong with `@name` in a route that begins at a node."""
    known = names.own(node)
    if not is_first:
        return f"{quoted('@' + name)} can only be the first hop: it is a channel or stream of the node where the route begins"
    if node not in names.nodes or name in known:  # an unknown node is reported where it is named
        return None
    if name in names.addresses(node):
        return f"{quoted(name)} is an address at node {quoted(node)}, not a channel or stream: write it without the @"
    return f"node {quoted(node)} has no secure channel or stream {quoted(name)}; {suggest(name, known, prefix='@')}"


def _host_port(_names: Names, path: KeyPath, text: str) -> str | None:
    scheme, mark, rest = text.rpartition("//")
    authority = rest.partition("/")[0]
    if mark or authority != rest:
        port = "" if re.search(r":[0-9]+$", authority) else ":443" if scheme == "https:" else ":80"
        return f"this is {quoted(text)}, but a service is HOST:PORT alone: did you mean {quoted(authority + port)}?"
    try:
        _, number = parse_host_port(text)
    except LocalError as error:
        return str(error)
    if text.split() != [text]:
        return f"a host has no spaces: this is {quoted(text)}"
    if number == 0 and path[-1] == "target":
        return "port 0 is only for listening: give the port of the service"
    return None


# Nodes and identities


def _identifier(names: Names, _path: KeyPath, text: str) -> str | None:
    try:
        Identifier.parse(text)
    except IdentityError as error:
        return f"{error}{f'. For the node of that name write nodes = [{quoted(text)}]' if text in names.nodes else ''}"
    return None


def _authority(_names: Names, _path: KeyPath, text: str) -> str | None:
    try:
        authority_history(text)
    except ConfigError as error:
        return str(error)
    return None


def _credential(names: Names, path: KeyPath, text: str) -> str | None:
    try:
        said = read_credential(PresentedCredential.import_(text))
    except IdentityError as error:
        return str(error)
    expected = names.spec.nodes[node_of(path)].identity.identifier
    if expected in {None, str(said.subject)}:
        return None
    return f"this credential is for {said.subject}; the identifier of this node is {expected}"


def _node(names: Names, _path: KeyPath, name: str) -> str | None:
    return None if name in names.nodes else f"there is no node {quoted(name)}; {suggest(name, names.nodes)}"


def _identified_node(names: Names, path: KeyPath, name: str) -> str | None:
    if name not in names.nodes:
        is_identifier = _identifier(names, path, name) is None
        text = f"this is an identifier, not the name of a node: write identifiers = [{quoted(name)}]"
        return text if is_identifier else _node(names, path, name)
    node = names.spec.nodes.get(name)
    if node is None or not node.external or node.identity.identifier is not None:
        return None
    if "identifier" in names.written("nodes", name, "identity"):
        return None
    return (
        f'node {quoted(name)} is external, so its identifier must be given: write identifier = "I…" in [nodes.{name}.identity], '
        f"as `trionode identity show` prints it there"
    )


def _owner(names: Names, path: KeyPath, name: str) -> str | None:
    return None if _identifier(names, path, name) is None else _identified_node(names, path, name)


def _observer(names: Names, _path: KeyPath, name: str) -> str | None:
    if name in OBSERVERS or name in names.nodes:
        return None
    return f"there is no node {quoted(name)}; {suggest(name, [*names.nodes, *OBSERVERS])}"


def _flow(names: Names, _path: KeyPath, name: str) -> str | None:
    return None if name in names.flows else f"there is no flow {quoted(name)}; {suggest(name, names.flows)}"


def _address_of_node(names: Names, path: KeyPath, text: str) -> str | None:
    node, mark, name = text.partition("/")
    if not mark or not node or not name:
        return f'expected NODE/NAME, such as "bob/echoer"; this is {quoted(text)}'
    known = names.addresses(node)
    if node in names.spec.nodes and name not in known and not names.is_relay(node, name):
        return f"node {quoted(node)} has no address {quoted(name)}; {suggest(name, known)}"
    return _node(names, path, node)


# Names that the user chooses


def _node_name(_names: Names, _path: KeyPath, name: str) -> str | None:
    if not _NODE_NAME.fullmatch(name):
        return "the name of a node is 1 to 64 of A-Z a-z 0-9 . _ -"
    if name in OBSERVERS:
        return f"{' and '.join(OBSERVERS)} have another meaning in assertions: choose another name for the node"
    return None


def _address(_names: Names, _path: KeyPath, name: str) -> str | None:
    try:
        if Address.parse(name) == Address(name) and not name.startswith("@") and len(name.encode()) <= MAX_VALUE:
            return None
    except LocalError:
        pass  # the text below says what is valid
    return f'a route can\'t name {quoted(name)}: expected the name of an address such as "echoer", without : # @'


def _own_name(_names: Names, _path: KeyPath, name: str) -> str | None:
    is_plain = name and not name.startswith("@")
    return None if is_plain else "the name of a channel or stream has no @ here: only routes write it"


def _relay(_names: Names, _path: KeyPath, name: str) -> str | None:
    return None if is_relay_name(name) else "the name of a relay is 1 to 64 of A-Z a-z 0-9 . _ -, and not register"


def _stream(_names: Names, _path: KeyPath, name: str) -> str | None:
    if valid_stream_name(name):
        return None
    return f"the name of a stream or client is 1 to 200 of A-Z a-z 0-9 . _ -; this is {quoted(name)}"


# Plugins, workers, vaults and numbers


def _transport(names: Names, path: KeyPath, name: str) -> str | None:
    if name in names.transports or name in installed(TRANSPORTS) or not names.runs_here(node_of(path)):
        return None
    return missing_plugin(TRANSPORTS, name)


def _worker(_names: Names, _path: KeyPath, text: str) -> str | None:
    module, mark, name = text.partition(":")
    if mark:
        is_valid = _DOTTED.fullmatch(module) and _DOTTED.fullmatch(name)
        return None if is_valid else f'expected MODULE:NAME, such as "package.module:name"; this is {quoted(text)}'
    if text in SHIPPED:
        return None
    front, dot, last = text.rpartition(".")
    meant = f"{front}:{last}" if dot and _DOTTED.fullmatch(text) else closest(text, SHIPPED)
    return (
        f'expected MODULE:NAME, such as "package.module:name", or a worker that ships with trionode: {", ".join(SHIPPED)}; '
        f"this is {quoted(text)}{_did_you_mean(meant)}"
    )


def _vault(_names: Names, _path: KeyPath, text: str) -> str | None:
    name, _, where = text.partition(":")
    if text == "memory" or (name == "sqlite" and where):
        return None
    meant = closest(text, ["memory"]) or ("sqlite:" + text if re.search(r"[./]", text) and ":" not in text else None)
    return f'expected "memory" or "sqlite:PATH"; this is {quoted(text)}{_did_you_mean(meant)}'


def _did_you_mean(meant: str | None) -> str:
    return f". Did you mean {quoted(meant)}?" if meant else ""


def _store(names: Names, path: KeyPath, text: str) -> str | None:
    name, mark, where = text.partition(":")
    if not names.runs_here(node_of(path)):
        return None
    missing = missing_plugin(STREAM_STORES, name)
    if missing is not None:
        is_file = not mark and ("." in name or "/" in name)
        return f'{missing}. A store reads NAME:ADDRESS, such as "sqlite:{name if is_file else "streams.db"}"'
    try:
        store_info(name).check_address(where)
    except LocalError as error:
        return f"not an address of the store {quoted(name)}: {error}"
    return None


def _positive(_names: Names, _path: KeyPath, number: float) -> str | None:
    return None if number > 0 else f"expected a number above 0; this is {describe(number)}"


def _index(_names: Names, _path: KeyPath, number: int) -> str | None:
    return None if 0 <= number < 1 << 64 else f"expected the index of a stream, 0 to 2^64-1; this is {describe(number)}"


#: The check of each kind of scalar: it takes the names, the path and the value, and returns what is wrong.
_CHECKS: Mapping[ValueKind, Callable[[Names, KeyPath, Any], str | None]] = {
    ValueKind.ENDPOINT: _endpoint,
    ValueKind.LISTENING_ENDPOINT: _listening_endpoint,
    ValueKind.HOST_PORT: _host_port,
    ValueKind.NODE: _node,
    ValueKind.IDENTIFIED_NODE: _identified_node,
    ValueKind.OWNER: _owner,
    ValueKind.IDENTIFIER: _identifier,
    ValueKind.AUTHORITY: _authority,
    ValueKind.CREDENTIAL: _credential,
    ValueKind.ADDRESS: _address,
    ValueKind.RELAY: _relay,
    ValueKind.STREAM: _stream,
    ValueKind.OWN_NAME: _own_name,
    ValueKind.NODE_NAME: _node_name,
    ValueKind.FLOW: _flow,
    ValueKind.WORKER: _worker,
    ValueKind.VAULT: _vault,
    ValueKind.TRANSPORT: _transport,
    ValueKind.STORE: _store,
    ValueKind.OBSERVER: _observer,
    ValueKind.ADDRESS_OF_NODE: _address_of_node,
    ValueKind.POSITIVE: _positive,
    ValueKind.INDEX: _index,
}
#: The kinds that are keys of a table: their problems have the position of the key.
_KEYS = {ValueKind.ADDRESS, ValueKind.RELAY, ValueKind.OWN_NAME, ValueKind.NODE_NAME, ValueKind.TRANSPORT}
