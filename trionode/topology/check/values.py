"""What single values of a topology have to be: each meaning of a text or number has a check, which says what was expected and what to do."""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from trionode import workers
from trionode.errors import IdentityError, LocalError
from trionode.net.plugins import STREAM_STORES, TRANSPORTS
from trionode.protocol.identity.identity import Identifier
from trionode.protocol.stream.names import valid_stream_name
from trionode.protocol.wire.address import LOCAL_TYPE, MAX_VALUE, Address, parse_host_port
from trionode.protocol.wire.route import MAX_HOPS
from trionode.relay.service import is_relay_name
from trionode.stream.store.base import store_info
from trionode.topology.check.names import Names, node_of
from trionode.topology.check.plugins import installed, missing_plugin, port_of, wrong_address
from trionode.topology.errors import KeyPath, Problem, closest, describe, quoted, suggest
from trionode.topology.spec import RouteSpec, ValueKind
from trionode.topology.types import Choice, Leaf, ListOf, Scalar

#: What an assertion may name beside nodes.
WATCHERS = ("network", "stores")

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
    """Check one value, whatever it is part of."""
    match leaf.form:
        case Choice(words=words) if leaf.value not in words:
            expected = " or ".join(map(quoted, words))
            yield names.problem(leaf.path, f"expected {expected}; this is {describe(leaf.value)}")
        case Scalar(value_kind=ValueKind() as value_kind) | ListOf(value_kind=ValueKind() as value_kind):
            yield from _CHECKS[value_kind](names, leaf.path, leaf.value)


# Places and routes


def _endpoint(names: Names, path: KeyPath, text: str, node: str | None = None) -> Iterator[Problem]:
    wrong = _wrong_endpoint(names, text, node_of(path) if node is None else node)
    if wrong is None:
        name, _, where = text.partition(":")
        bound = port_of(name, where)
        if bound is not None and bound[1] == 0:
            wrong = "port 0 is for listening: to dial, name the port that is listened at"
    if wrong is not None:
        yield names.problem(path, wrong)


def _listening_endpoint(names: Names, path: KeyPath, text: str) -> Iterator[Problem]:
    wrong = _wrong_endpoint(names, text, node_of(path))
    if wrong is not None:
        yield names.problem(path, wrong)


def _wrong_endpoint(names: Names, text: str, node: str) -> str | None:
    """Say what is wrong with a transport address that a node listens at or dials."""
    if _is_host_port(text):
        return f"the transport is missing: did you mean {quoted('tcp:' + text)}?"
    name, mark, where = text.partition(":")
    if text in installed(TRANSPORTS):
        return f"where is missing: a transport address reads {text}:WHERE"
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
    """Whether a text is HOST:PORT, and can't be meant as a transport address."""
    try:
        host, _ = parse_host_port(text)
    except LocalError:
        return False
    return host not in installed(TRANSPORTS) and (":" not in host or text.startswith("["))


def _route(names: Names, path: KeyPath, route: RouteSpec) -> Iterator[Problem]:
    if not route:
        yield names.problem(path, 'a route has at least one hop, such as "tcp:127.0.0.1:4000"')
    if len(route) >= MAX_HOPS:
        yield names.problem(path, f"a route has at most {MAX_HOPS - 1} hops; this one has {len(route)}")
    node = names.spec.flows[str(path[1])].node if path[0] == "flows" else node_of(path)
    for index, hop in enumerate(route):
        yield from _hop(names, (*path, index), hop, node)


def _hop(names: Names, path: KeyPath, hop: str, node: str) -> Iterator[Problem]:
    is_first = path[-1] == 0
    if hop.startswith("@"):
        wrong = _wrong_own_name(names, hop.removeprefix("@"), node, is_first=is_first)
        if wrong is not None:
            yield names.problem(path, wrong)
        return
    try:
        address = Address.parse(hop)
    except LocalError as error:
        yield names.problem(path, str(error))
        return
    if len(address.value) > MAX_VALUE:
        yield names.problem(path, f"an address has at most {MAX_VALUE} bytes; this one has {len(address.value)}")
    elif is_first and (_is_host_port(hop) or address.transport):
        yield from _endpoint(
            names, path, f"{address.transport}:{address.value.decode()}" if address.transport else hop, node
        )
    elif address.transport and address.kind == LOCAL_TYPE:
        yield names.problem(
            path,
            f"{quoted(hop)} can only be the first hop, which this node connects to: behind it stand names of addresses at the node that is "
            f'reached. Give the node in between a link to it, [nodes.NAME.links.NEXT] with to = {quoted(hop)}, and write "NEXT" here',
        )
    elif is_first and hop in names.own(node) - names.addresses(node):
        yield names.problem(
            path, f"a node's own channel or stream has an @ in front: did you mean {quoted('@' + hop)}?"
        )


def _wrong_own_name(names: Names, name: str, node: str, *, is_first: bool) -> str | None:
    """Say what is wrong with `@name` in a route that begins at a node."""
    known = names.own(node)
    if not is_first:
        return f"{quoted('@' + name)} can only be the first hop: it is a channel or stream of the node where the route begins"
    if node not in names.nodes or name in known:  # an unknown node is told where it is named
        return None
    if name in names.addresses(node):
        return f"{quoted(name)} is no channel or stream but an address at node {quoted(node)}: write it without the @"
    return f"node {quoted(node)} has no secure channel or stream {quoted(name)}; {suggest(name, known, prefix='@')}"


def _host_port(names: Names, path: KeyPath, text: str) -> Iterator[Problem]:
    scheme, mark, rest = text.rpartition("//")
    authority = rest.partition("/")[0]
    if mark or authority != rest:
        meant = (
            authority
            if re.search(r":[0-9]+$", authority)
            else f"{authority}:443"
            if scheme == "https:"
            else f"{authority}:80"
        )
        yield names.problem(
            path, f"this is {quoted(text)}, but a service is named by HOST:PORT alone: did you mean {quoted(meant)}?"
        )
        return
    try:
        _, port = parse_host_port(text)
    except LocalError as error:
        yield names.problem(path, str(error))
        return
    if text.split() != [text]:
        yield names.problem(path, f"a host has no spaces: this is {quoted(text)}")
    elif port == 0 and path[-1] == "target":
        yield names.problem(path, "port 0 is for listening: name the port of the service")


# Nodes and identities


def _identifier(names: Names, path: KeyPath, text: str) -> Iterator[Problem]:
    try:
        Identifier.parse(text)
    except IdentityError as error:
        more = f". For the node of that name write nodes = [{quoted(text)}]" if text in names.nodes else ""
        yield names.problem(path, f"{error}{more}")


def _is_identifier(text: str) -> bool:
    try:
        Identifier.parse(text)
    except IdentityError:
        return False
    return True


def _node(names: Names, path: KeyPath, name: str) -> Iterator[Problem]:
    if name not in names.nodes:
        yield names.problem(path, f"there is no node {quoted(name)}; {suggest(name, names.nodes)}")


def _identified_node(names: Names, path: KeyPath, name: str) -> Iterator[Problem]:
    if name not in names.nodes and _is_identifier(name):
        yield names.problem(path, f"this is an identifier, and no name of a node: write identifiers = [{quoted(name)}]")
        return
    yield from _node(names, path, name)
    node = names.spec.nodes.get(name)
    if node is None or not node.external or node.identity.identifier is not None:
        return
    if "identifier" not in names.written("nodes", name, "identity"):
        yield names.problem(
            path,
            f'node {quoted(name)} is external, so it has to be told who that is: write identifier = "I…" in [nodes.{name}.identity], '
            f"as `trionode identity show` prints it there",
        )


def _owner(names: Names, path: KeyPath, name: str) -> Iterator[Problem]:
    if not _is_identifier(name):
        yield from _identified_node(names, path, name)


def _watcher(names: Names, path: KeyPath, name: str) -> Iterator[Problem]:
    if name not in WATCHERS and name not in names.nodes:
        yield names.problem(path, f"there is no node {quoted(name)}; {suggest(name, [*names.nodes, *WATCHERS])}")


def _flow(names: Names, path: KeyPath, name: str) -> Iterator[Problem]:
    if name not in names.flows:
        yield names.problem(path, f"there is no flow {quoted(name)}; {suggest(name, names.flows)}")


def _address_of_node(names: Names, path: KeyPath, text: str) -> Iterator[Problem]:
    node, mark, name = text.partition("/")
    if not mark or not node or not name:
        yield names.problem(path, f'expected NODE/NAME, such as "bob/echoer"; this is {quoted(text)}')
        return
    yield from _node(names, path, node)
    known = names.addresses(node)
    if node in names.spec.nodes and name not in known and not names.is_relay(node, name):
        yield names.problem(path, f"node {quoted(node)} has no address {quoted(name)}; {suggest(name, known)}")


# Names that the file gives


def _node_name(names: Names, path: KeyPath, name: str) -> Iterator[Problem]:
    if not _NODE_NAME.fullmatch(name):
        yield names.problem(path, "a node is named by 1 to 64 of A-Z a-z 0-9 . _ -", of_key=True)
    elif name in WATCHERS:
        told = f"{' and '.join(WATCHERS)} mean something else in assertions: choose another name for the node"
        yield names.problem(path, told, of_key=True)


def _address(names: Names, path: KeyPath, name: str) -> Iterator[Problem]:
    try:
        is_plain = Address.parse(name) == Address(name) and not name.startswith("@")
    except LocalError:
        is_plain = False
    if not is_plain or len(name.encode()) > MAX_VALUE:
        told = f'{quoted(name)} is no name for an address, since no route could name it: expected a name such as "echoer", without : # @'
        yield names.problem(path, told, of_key=True)


def _own_name(names: Names, path: KeyPath, name: str) -> Iterator[Problem]:
    if not name or name.startswith("@"):
        yield names.problem(path, "the name of a channel or stream has no @ here: only routes write it", of_key=True)


def _relay(names: Names, path: KeyPath, name: str) -> Iterator[Problem]:
    if not is_relay_name(name):
        yield names.problem(path, "a relay is named by 1 to 64 of A-Z a-z 0-9 . _ -, and not register", of_key=True)


def _stream(names: Names, path: KeyPath, name: str) -> Iterator[Problem]:
    if not valid_stream_name(name):
        told = f"expected 1 to 200 of A-Z a-z 0-9 . _ -, as streams and their clients are named; this is {quoted(name)}"
        yield names.problem(path, told)


def _transport(names: Names, path: KeyPath, name: str) -> Iterator[Problem]:
    if name in names.transports or name in installed(TRANSPORTS) or not names.runs_here(node_of(path)):
        return
    yield names.problem(path, missing_plugin(TRANSPORTS, name) or "", of_key=True)


# The rest


def _worker(names: Names, path: KeyPath, text: str) -> Iterator[Problem]:
    module, mark, name = text.partition(":")
    if mark:
        if not (_DOTTED.fullmatch(module) and _DOTTED.fullmatch(name)):
            yield names.problem(path, f'expected MODULE:NAME, such as "package.module:name"; this is {quoted(text)}')
    elif text not in SHIPPED:
        front, dot, last = text.rpartition(".")
        meant = f"{front}:{last}" if dot and _DOTTED.fullmatch(text) else closest(text, SHIPPED)
        told = f'expected MODULE:NAME, such as "package.module:name", or what ships with trionode: {", ".join(SHIPPED)}; this is {quoted(text)}'
        yield names.problem(path, told + (f". Did you mean {quoted(meant)}?" if meant else ""))


def _vault(names: Names, path: KeyPath, text: str) -> Iterator[Problem]:
    name, _, where = text.partition(":")
    if text == "memory" or (name == "sqlite" and where):
        return
    meant = closest(text, ["memory"]) or ("sqlite:" + text if re.search(r"[./]", text) and ":" not in text else None)
    told = f'expected "memory" or "sqlite:PATH"; this is {quoted(text)}'
    yield names.problem(path, told + (f". Did you mean {quoted(meant)}?" if meant else ""))


def _store(names: Names, path: KeyPath, text: str) -> Iterator[Problem]:
    name, mark, where = text.partition(":")
    if not names.runs_here(node_of(path)):
        return
    missing = missing_plugin(STREAM_STORES, name)
    if missing is not None:
        is_file = not mark and ("." in name or "/" in name)
        told = f'{missing}. A store is written NAME:WHERE, such as "sqlite:{name if is_file else "streams.db"}"'
        yield names.problem(path, told)
        return
    try:
        store_info(name).check_address(where)
    except LocalError as error:
        yield names.problem(path, f"not an address of the store {quoted(name)}: {error}")


def _positive(names: Names, path: KeyPath, number: float) -> Iterator[Problem]:
    if not number > 0:
        yield names.problem(path, f"expected a number above 0; this is {describe(number)}")


def _index(names: Names, path: KeyPath, number: int) -> Iterator[Problem]:
    if not 0 <= number < 1 << 64:
        yield names.problem(path, f"expected an index of a stream, 0 to 2^64-1; this is {describe(number)}")


#: The check of each meaning; what it is given is what the form says that carries the meaning.
_CHECKS: Mapping[ValueKind, Callable[[Names, KeyPath, Any], Iterator[Problem]]] = {
    ValueKind.ROUTE: _route,
    ValueKind.ENDPOINT: _endpoint,
    ValueKind.LISTENING_ENDPOINT: _listening_endpoint,
    ValueKind.HOST_PORT: _host_port,
    ValueKind.NODE: _node,
    ValueKind.IDENTIFIED_NODE: _identified_node,
    ValueKind.OWNER: _owner,
    ValueKind.IDENTIFIER: _identifier,
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
    ValueKind.WATCHER: _watcher,
    ValueKind.ADDRESS_OF_NODE: _address_of_node,
    ValueKind.POSITIVE: _positive,
    ValueKind.INDEX: _index,
}
