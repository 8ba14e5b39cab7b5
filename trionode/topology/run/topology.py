"""Topologies that run: every node of a spec in this process, or some of them, for the length of a block."""

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial

import trio

from trionode.errors import AnswerTimeout, LocalError, TrionodeError
from trionode.topology.check.checks import check_spec
from trionode.topology.errors import KeyPath, Problem, SpecError, hint, keys_of, quoted
from trionode.topology.run.node import Opening, RunningNode
from trionode.topology.run.setup import Prepared, TransportOf, prepare
from trionode.topology.run.startup_order import needs
from trionode.topology.spec import IdentitySpec, NodeSpec, TopologySpec, ValueKind
from trionode.topology.types import Scalar, leaves, record_of

#: Seconds that a topology of which all runs here may take until everything in it is open.
START_TIMEOUT = 30.0

#: What is told of each node when it listens.
Tell = Callable[[RunningNode], Awaitable[object]]


class RunningTopology:
    """The nodes that run here, by their names: `running["alice"]`; made by `run_topology`."""

    def __init__(self, spec: TopologySpec, prepared: Mapping[str, Prepared], nursery: trio.Nursery) -> None:
        self.spec = spec
        self._prepared = prepared
        self._needs = needs(spec, prepared.keys())
        #: Whether nodes of it run elsewhere, too.
        self._among_strangers = prepared.keys() != spec.nodes.keys()
        self._nursery = nursery
        self._nodes: dict[str, RunningNode] = {}

    def __getitem__(self, name: str) -> RunningNode:
        """Return the node of that name; LocalError if it does not run here."""
        if name not in self._nodes:
            raise LocalError(
                f"no node {name!r} runs here; those that do are: {', '.join(sorted(self._nodes)) or 'none'}"
            )
        return self._nodes[name]

    def __iter__(self) -> Iterator[RunningNode]:
        """All nodes that run here."""
        return iter(self._nodes.values())

    async def start(self, *names: str, timeout: float = START_TIMEOUT, listening: Tell | None = None) -> None:  # noqa: ASYNC109  # whether others answer is known only by a deadline
        """Start nodes that don't run, with the keys and stores that they have, and wait until everything in them is open.

        AnswerTimeout, which tells what is not open and why, after `timeout` seconds, SpecError for workers that can't be imported, LocalError for
        a node that runs already.
        """
        for name in names:
            if name in self._nodes or name not in self._prepared:
                why = "runs already" if name in self._nodes else "was not among those that this topology was run with"
                raise LocalError(f"node {name!r} can't be started: it {why}")
        started = self._made(names)
        with _bare():
            for node in started:
                self._nodes[node.name] = node
                await self._nursery.start(node.run)
                if listening is not None:
                    await listening(node)
            with trio.move_on_after(timeout):
                async with trio.open_nursery() as nursery:
                    for node in started:
                        for opening in node.openings.values():
                            nursery.start_soon(self._open, node, opening)
                return
        kept = [opening.kept for node in started for opening in node.openings.values()]
        waiting = "; ".join(f"{each.part}: {each.reason}" for each in kept if not each.is_open)
        raise AnswerTimeout(f"not everything could be opened within {timeout:g} s. What is not: {waiting}")

    def _made(self, names: Iterable[str]) -> list[RunningNode]:
        """Make nodes; SpecError tells of all workers that can't be imported, before any node runs."""
        made: list[RunningNode] = []
        problems: list[Problem] = []
        for name in names:
            try:
                made.append(RunningNode(self._prepared[name], among_strangers=self._among_strangers))
            except SpecError as error:
                problems += error.problems
        if problems:
            raise SpecError(problems)
        return made

    async def _open(self, node: RunningNode, opening: Opening) -> None:
        for part in self._needs.get(opening.kept.part, ()):
            if part.node in self._nodes:
                await self._nodes[part.node].openings[part].kept.tried.wait()
        await node.open(opening)

    async def crash(self, name: str) -> None:
        """End a node at once, without a word to anybody; its keys and stores are kept for `start`."""
        await self[name].crash()
        del self._nodes[name]

    async def stop(self, name: str) -> None:
        """End a node in order; its keys and stores are kept for `start`."""
        await self[name].leave(others_stay=True)
        await self[name].end()
        del self._nodes[name]

    async def aclose(self) -> None:
        """End every node in order: first all take leave of one another, then those end that nobody connects to, and last the others."""
        nodes = list(self)
        leave = partial(RunningNode.leave, others_stay=len(nodes) < len(self.spec.nodes))
        async with trio.open_nursery() as nursery:
            for node in nodes:
                nursery.start_soon(leave, node)
        for listens in (False, True):
            async with trio.open_nursery() as nursery:
                for node in nodes:
                    if bool(node.spec.listen) == listens:
                        nursery.start_soon(node.end)
        self._nodes.clear()


@asynccontextmanager
async def run_topology(
    spec: TopologySpec,
    *,
    nodes: Iterable[str] | None = None,
    transports: Mapping[str, TransportOf] | None = None,
    timeout: float | None = None,  # noqa: ASYNC109  # whether others answer is known only by a deadline
    listening: Tell | None = None,
) -> AsyncIterator[RunningTopology]:
    """Run the nodes of a spec, all that are not external or those in `nodes`, for the length of a block; everything in them is open when it begins.

    `transports` take the place of installed ones, by name: an object for all nodes, or a function that makes one for each node by its name.
    Links, channels, streams and relays that are lost are opened again. `listening` is called with each node when it listens, which is before what
    needs others is open.

    SpecError for a spec that can't be meant, LocalError for what can't be had here, and AnswerTimeout if not all is open within `timeout` seconds: 30
    where all nodes run here; with others there is no limit, since they may come later. If somebody else answers than who is trusted, that is a
    HandshakeError where all nodes run here; with others it is logged and tried again. What a worker raises ends all nodes, and comes out as an
    exception group, with a note that names the worker. Cancelled, all nodes end at once; at the end of the block in order.
    """
    given = transports or {}
    if nodes is None:
        nodes = [name for name, node in spec.nodes.items() if not node.external]
    names = [nodes] if isinstance(nodes, str) else list(dict.fromkeys(nodes))
    if problems := [*check_spec(spec, nodes=names, transports=tuple(given)), *_unknown(spec, names)]:
        raise SpecError(problems)
    if timeout is None:
        timeout = START_TIMEOUT if len(names) == len(spec.nodes) else math.inf
    refused: TrionodeError | None = None
    async with AsyncExitStack() as stack:
        prepared = await prepare(spec, names, given, stack)
        async with trio.open_nursery() as nursery:
            running = RunningTopology(spec, prepared, nursery)
            try:
                await running.start(*names, timeout=timeout, listening=listening)
            except TrionodeError as error:  # to be raised bare, and not as a group of the nursery
                refused = error
            else:
                yield running
                await running.aclose()
            nursery.cancel_scope.cancel()
    if refused is not None:
        raise refused


@contextmanager
def _bare() -> Iterator[None]:
    """Raise the first of several errors as it is, if all of them are expected ones."""
    try:
        yield
    except BaseExceptionGroup as group:
        unexpected = group.split(TrionodeError)[1]
        if unexpected is not None:
            raise
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None


def _unknown(spec: TopologySpec, names: Sequence[str]) -> Iterator[Problem]:
    """Tell what has to be known to run only some nodes: that they are there, and who the others are whom they trust, or let in."""
    for name in names:
        if name not in spec.nodes:
            yield Problem(("nodes",), f"there is no node {quoted(name)} to run; {hint(name, spec.nodes)}")
            continue
        if spec.nodes[name].external:
            yield Problem(("nodes", name, "external"), "somebody else runs this node: leave this out to run it here")
        for path, node in _named_nodes(name, spec.nodes[name]):
            if node not in names and node in spec.nodes and spec.nodes[node].identity.identifier is None:
                yield Problem(path, _told_who(node, spec.nodes[node].identity))


def _told_who(node: str, identity: IdentitySpec) -> str:
    """Say how it becomes known who a node is that runs elsewhere."""
    vault = f"sqlite:{node}.db" if identity.vault == "memory" else identity.vault
    name = "" if identity.name == IdentitySpec().name else f" {identity.name}"
    options = f"--state {vault.removeprefix('sqlite:')}" + (" --unencrypted" if _is_unencrypted(identity) else "")
    unencrypted = ", unencrypted = true" if _is_unencrypted(identity) else ""
    return (
        f"node {quoted(node)} does not run here, so it has to be told who that is: make its identity by `trionode identity create {options}{name}`, and "
        f'write vault = {quoted(vault)}{unencrypted} and the identifier that this prints, identifier = "I…", in {keys_of(("nodes", node, "identity"))}'
    )


def _is_unencrypted(identity: IdentitySpec) -> bool:
    """Whether its vault is, or would be, if it had one."""
    return identity.unencrypted or identity.vault == "memory"


def _named_nodes(name: str, node: NodeSpec) -> Iterator[tuple[KeyPath, str]]:
    """Tell whose identities a node has to know, and where it names them."""
    for leaf in leaves(node, record_of(NodeSpec), ("nodes", name)):
        if isinstance(leaf.form, Scalar) and leaf.form.value_kind in {ValueKind.IDENTIFIED_NODE, ValueKind.OWNER}:
            yield leaf.path, str(leaf.value)
