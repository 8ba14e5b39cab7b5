"""Resolve parts of a spec for a running node: access rules, trust policies, workers and transports."""

import inspect
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from types import TracebackType
from typing import Any, cast

from trionode import workers
from trionode.identity.attributes import from_attributes, trust_attributes
from trionode.identity.trust import TrustPolicy, trust_any, trust_everyone, trust_only
from trionode.protocol.identity.identity import Identifier
from trionode.protocol.rules.access import (
    Access,
    OriginLike,
    from_anywhere,
    from_local,
    from_local_or_channels,
    is_local_or_named,
)
from trionode.protocol.wire.route import Route
from trionode.routing.mailbox import Mailbox, Worker
from trionode.topology.credentials import wanted
from trionode.topology.endpoints import parse_endpoint
from trionode.topology.errors import KeyPath, Problem, SpecError, dotted_keys, quoted, suggest
from trionode.topology.run.startup_order import routes_of
from trionode.topology.spec import AccessSpec, TopologySpec, TrustSpec, WorkerSpec

#: The identifiers of nodes by their names: one for each protocol version that the node speaks.
Identifiers = Mapping[str, tuple[Identifier, ...]]

#: The beginning of the note that names the worker which raised an error.
RAISED_BY = "raised by "

#: The access rules that the keywords of a spec stand for. The verifier calls the same rules.
ACCESS_RULES: Mapping[str, Callable[[OriginLike[object]], bool]] = {
    "local": from_local,
    "channels": from_local_or_channels,
    "anyone": from_anywhere,
}


def resolve_identifiers(spec: AccessSpec | TrustSpec, known: Identifiers) -> list[Identifier]:
    """Return the identifiers that a spec names, directly or by nodes."""
    return [*map(Identifier.parse, spec.identifiers), *(each for node in spec.nodes for each in known[node])]


def resolve_access(spec: AccessSpec, known: Identifiers) -> Access:
    """Return the access rule of a spec. Named identities need a secure channel; the node itself is always allowed."""
    if spec.rule in ACCESS_RULES:
        return ACCESS_RULES[spec.rule]
    allowed = frozenset(each.value for each in resolve_identifiers(spec, known))
    named: Access = partial(is_local_or_named, identifiers=allowed)
    if spec.authority is None:
        return named
    proven = from_attributes(spec.authority, wanted(spec))
    return lambda origin: named(origin) or proven(origin)


def resolve_trust(spec: TrustSpec, known: Identifiers) -> TrustPolicy:
    """Return the trust policy of a spec."""
    if spec.everyone:
        return trust_everyone
    identifiers = resolve_identifiers(spec, known)
    policies = [trust_only(*identifiers)] if identifiers else []
    if spec.authority is not None:
        policies.append(trust_attributes(spec.authority, wanted(spec)))
    return trust_any(*policies)


def resolve_worker(spec: WorkerSpec, path: KeyPath, sends: Sequence[Callable[[], Route]]) -> Worker:
    """Import the worker of a spec, bind its arguments, and bind `sends` if it has a parameter of that name.

    Raises SpecError if that fails.

    An exception of the worker gets a note with the worker's keys.
    """
    found = _import(spec, path)
    is_function = inspect.isfunction(found)
    if not callable(found) or (is_function and not inspect.iscoroutinefunction(found)):
        kind = "a function that is not async" if is_function else f"of the type {type(found).__name__}"
        text = f"a worker is an async function that takes a mailbox; {quoted(spec.run)} is {kind}"
        raise SpecError([Problem((*path, "run"), text)])
    signature = inspect.signature(found)
    arguments: dict[str, object] = dict(spec.arguments)
    if spec.sends and "sends" in signature.parameters:
        arguments["sends"] = sends
    try:
        signature.bind(None, **arguments)
    except TypeError as error:
        parameters = ", ".join(str(each.replace(annotation=each.empty)) for each in signature.parameters.values())
        text = (
            f"the worker {quoted(spec.run)} can't be called with these arguments: {error}. "
            f"Its parameters are ({parameters}); the first is its mailbox"
        )
        raise SpecError([Problem((*path, "arguments"), text)]) from error
    worker = partial(cast("Callable[..., Awaitable[None]]", found), **arguments)

    async def run(mailbox: Mailbox) -> None:
        try:
            await worker(mailbox)
        except Exception as error:  # every exception of a worker continues from here, with the worker's name
            error.add_note(RAISED_BY + dotted_keys(path))
            raise

    return run


def raised_by(error: BaseException) -> str | None:
    """Return the keys of the worker that raised an error, such as `nodes.bob.workers.echoer`; None if no worker did."""
    notes = getattr(error, "__notes__", ())
    return next((note.removeprefix(RAISED_BY) for note in notes if note.startswith(RAISED_BY)), None)


def frames_of(error: BaseException) -> TracebackType | None:
    """Return the part of an error's traceback that lies within the worker."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename != __file__:
        trace = trace.tb_next
    return None if trace is None else trace.tb_next


def _import(spec: WorkerSpec, path: KeyPath) -> Any:
    module_name, _, name = spec.run.rpartition(":")
    try:
        module: object = import_module(module_name) if module_name else workers
    except Exception as error:  # a module may raise anything while it is imported
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            text = f"{error}. Install it, or put it in a folder of PYTHONPATH"
        else:
            *_, last = traceback.extract_tb(error.__traceback__)
            place = "" if isinstance(error, SyntaxError) else f", raised at {last.filename}:{last.lineno}"
            text = f"{type(error).__name__}: {error}{place}"
        raise _not_imported(spec, path, text) from error
    found: Any = module
    try:
        for part in name.split("."):
            found = getattr(found, part)
    except AttributeError as error:
        names = [each for each, value in vars(module).items() if inspect.iscoroutinefunction(value) and each[0] != "_"]
        text = suggest(name, names, label="its async functions are") if names else "it has no async functions"
        raise _not_imported(spec, path, f"{error}; {text}") from error
    return found


def _not_imported(spec: WorkerSpec, path: KeyPath, reason: str) -> SpecError:
    return SpecError([Problem((*path, "run"), f"the worker {quoted(spec.run)} can't be imported: {reason}")])


def transports_of(spec: TopologySpec, name: str) -> set[str]:
    """Return the names of the transports that a node needs for its listeners, links, routes and flows."""
    node = spec.nodes[name]
    routes = [
        *(route for _, route in routes_of(name, node)),
        *(relay.to for relay in node.relays.values() if relay.to is not None),
        *(route for worker in node.workers.values() for route in worker.sends),
        *(flow.to for flow in spec.flows.values() if flow.node == name),
    ]
    addresses = [
        *(listener.address for listener in node.listen),
        *(link.to for link in node.links.values()),
        *(route[0] for route in routes if route),
    ]
    endpoints = map(parse_endpoint, addresses)
    return {endpoint.transport for endpoint in endpoints if endpoint is not None} | set(node.transports)
