"""What parts of a spec mean in a running node: access rules, trust policies, workers, and the transports that a node needs."""

import inspect
import traceback
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib import import_module
from types import TracebackType
from typing import Any, cast

from trionode import workers
from trionode.identity.trust import TrustPolicy, trust_everyone, trust_only
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
from trionode.topology.endpoints import parse_endpoint
from trionode.topology.errors import KeyPath, Problem, SpecError, hint, keys_of, quoted
from trionode.topology.spec import AccessSpec, NodeSpec, RouteSpec, TopologySpec, TrustSpec, WorkerSpec

#: The identifiers of nodes by their names: the one of each generation that it has.
Identifiers = Mapping[str, tuple[Identifier, ...]]

#: What the note begins with that tells which worker has raised an error.
RAISED_BY = "raised by "

#: The rules of the words that a spec has for `allow`; the verifier calls the same ones.
ACCESS_RULES: Mapping[str, Callable[[OriginLike[object]], bool]] = {
    "local": from_local,
    "channels": from_local_or_channels,
    "anyone": from_anywhere,
}


def named(spec: AccessSpec | TrustSpec, known: Identifiers) -> list[Identifier]:
    """Return the identifiers that are meant."""
    return [*map(Identifier.parse, spec.identifiers), *(each for node in spec.nodes for each in known[node])]


def access_of(spec: AccessSpec, known: Identifiers) -> Access:
    """Return the rule that a spec means; identities that it names come through a secure channel, and this node itself always may."""
    if spec.rule in ACCESS_RULES:
        return ACCESS_RULES[spec.rule]
    allowed = frozenset(each.value for each in named(spec, known))

    return partial(is_local_or_named, identifiers=allowed)


def trust_of(spec: TrustSpec, known: Identifiers) -> TrustPolicy:
    """Return the policy that a spec means."""
    return trust_everyone if spec.everyone else trust_only(*named(spec, known))


def worker_of(spec: WorkerSpec, path: KeyPath, sends: Sequence[Callable[[], Route]]) -> Worker:
    """Import the worker that a spec names, to be called with its arguments, and with `sends` if it takes that; SpecError if there is none.

    What the worker raises gets a note that names it.
    """
    found = _imported(spec, path)
    is_function = inspect.isfunction(found)
    if not callable(found) or (is_function and not inspect.iscoroutinefunction(found)):
        what = "a function that is not async" if is_function else f"of the type {type(found).__name__}"
        told = f"a worker is an async function that takes a mailbox; {quoted(spec.run)} is {what}"
        raise SpecError([Problem((*path, "run"), told)])
    signature = inspect.signature(found)
    arguments: dict[str, object] = dict(spec.arguments)
    if spec.sends and "sends" in signature.parameters:
        arguments["sends"] = sends
    try:
        signature.bind(None, **arguments)
    except TypeError as error:
        taken = ", ".join(str(each.replace(annotation=each.empty)) for each in signature.parameters.values())
        told = f"the worker {quoted(spec.run)} can't be called with these arguments: {error}. It takes ({taken}), of which the first is its mailbox"
        raise SpecError([Problem((*path, "arguments"), told)]) from error
    worker = partial(cast("Callable[..., Awaitable[None]]", found), **arguments)

    async def run(mailbox: Mailbox) -> None:
        try:
            await worker(mailbox)
        except Exception as error:  # whatever it is, it goes on from here with the worker's name
            error.add_note(RAISED_BY + keys_of(path))
            raise

    return run


def raised_by(error: BaseException) -> str | None:
    """Return the keys of the worker that has raised it, `nodes.bob.workers.echoer`; None if no worker has."""
    notes = getattr(error, "__notes__", ())
    return next((note.removeprefix(RAISED_BY) for note in notes if note.startswith(RAISED_BY)), None)


def frames_of(error: BaseException) -> TracebackType | None:
    """Return the frames of a worker in the traceback of what it has raised, without those that lead there."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename != __file__:
        trace = trace.tb_next
    return None if trace is None else trace.tb_next


def _imported(spec: WorkerSpec, path: KeyPath) -> Any:
    module, _, name = spec.run.rpartition(":")
    try:
        there: object = import_module(module) if module else workers
    except Exception as error:  # a module may raise anything while it is imported
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            told = f"{error}. It has to be installed, or lie in a folder of PYTHONPATH"
        else:
            *_, last = traceback.extract_tb(error.__traceback__)
            told = f"{type(error).__name__}: {error}" + (
                "" if isinstance(error, SyntaxError) else f", raised at {last.filename}:{last.lineno}"
            )
        raise _not_imported(spec, path, told) from error
    found: Any = there
    try:
        for part in name.split("."):
            found = getattr(found, part)
    except AttributeError as error:
        own = [each for each, value in vars(there).items() if inspect.iscoroutinefunction(value) and each[0] != "_"]
        others = hint(name, own, are="its async functions are") if own else "it has no async functions at all"
        raise _not_imported(spec, path, f"{error}; {others}") from error
    return found


def _not_imported(spec: WorkerSpec, path: KeyPath, why: str) -> SpecError:
    return SpecError([Problem((*path, "run"), f"the worker {quoted(spec.run)} can't be imported: {why}")])


def routes_of(node: NodeSpec) -> Iterator[RouteSpec]:
    """All routes that begin at a node."""
    for stream in node.streams.values():
        yield stream.via
    for relay in node.relays.values():
        yield relay.via
        if relay.to is not None:
            yield relay.to
    for channel in node.secure_channels.values():
        yield channel.to
    for inlet in node.inlets.values():
        yield inlet.to
    for worker in node.workers.values():
        yield from worker.sends


def transports_of(spec: TopologySpec, name: str) -> set[str]:
    """Return the names of the transports that a node needs: for its listeners, its links, its routes, and those of the flows that it sends."""
    node = spec.nodes[name]
    routes = [*routes_of(node), *(flow.to for flow in spec.flows.values() if flow.node == name)]
    texts = [
        *(listener.address for listener in node.listen),
        *(link.to for link in node.links.values()),
        *(route[0] for route in routes if route),
    ]
    return {endpoint.transport for endpoint in map(parse_endpoint, texts) if endpoint is not None} | set(
        node.transports
    )
