"""Running topologies: every node of a spec in this process, or some of them, for the length of a block."""

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial

import trio

from trionode.errors import AnswerTimeout, LocalError, TrionodeError
from trionode.topology.check.checks import check_spec
from trionode.topology.errors import KeyPath, Problem, SpecError, dotted_keys, quoted, suggest
from trionode.topology.run.node import RunningNode
from trionode.topology.run.runner import NodeRunner
from trionode.topology.run.setup import Prepared, TransportOf, prepare
from trionode.topology.run.startup_order import Part, dependencies
from trionode.topology.spec import IdentitySpec, NodeSpec, TopologySpec, ValueKind
from trionode.topology.types import Scalar, leaves, record_of

#: Seconds until everything must be open, if all nodes of the topology run here.
START_TIMEOUT = 30.0

#: Called with each node when it listens.
OnListening = Callable[[RunningNode], Awaitable[object]]


class RunningTopology:
    """The nodes that run here: `running["alice"]` is one, and iteration yields all. `run_topology` makes it.

    Attributes:
      spec: The topology.
    """

    def __init__(self, spec: TopologySpec, prepared: Mapping[str, Prepared], nursery: trio.Nursery) -> None:
        self.spec = spec
        self._prepared = prepared
        self._dependencies = dependencies(spec, prepared.keys())
        self._is_whole = prepared.keys() == spec.nodes.keys()
        self._nursery = nursery
        self._runners: dict[str, NodeRunner] = {}
        self._nodes: dict[str, RunningNode] = {}

    def __getitem__(self, name: str) -> RunningNode:
        """Return a node that runs here.

        Args:
          name: Its name in the spec.

        Raises:
          LocalError: No node of that name runs here.
        """
        if name not in self._nodes:
            running = ", ".join(sorted(self._nodes)) or "none"
            raise LocalError(f"no node {name!r} runs here; those that do are: {running}")
        return self._nodes[name]

    def __iter__(self) -> Iterator[RunningNode]:
        """Iterate over the nodes that run here."""
        return iter(self._nodes.values())

    async def start(self, *names: str, timeout: float = START_TIMEOUT, on_listening: OnListening | None = None) -> None:  # noqa: ASYNC109  # only a deadline shows that a peer does not answer
        """Start nodes that were stopped or have crashed, and wait until everything in them is open.

        The nodes have the same keys and stores as before.

        Args:
          names: The names of the nodes.
          timeout: Seconds until everything must be open.
          on_listening: Called with each node when it listens, before the parts that need other nodes are open.

        Raises:
          AnswerTimeout: Not everything is open in time; the text says what, and why.
          SpecError: A worker can't be imported.
          LocalError: A node runs already, or is not among those of `run_topology`.

        If cancelled, the nodes that have started stay.
        """
        for name in names:
            if name in self._nodes or name not in self._prepared:
                reason = "runs already" if name in self._nodes else "is not among those that this topology was run with"
                raise LocalError(f"node {name!r} can't be started: it {reason}")
        started = self._make_runners(names)
        with _unwrapped():
            for runner in started:
                self._runners[runner.name] = runner
                self._nodes[runner.name] = node = RunningNode(runner)
                await self._nursery.start(runner.run)
                if on_listening is not None:
                    await on_listening(node)
            with trio.move_on_after(timeout):
                async with trio.open_nursery() as nursery:
                    for runner in started:
                        for part in runner.parts:
                            nursery.start_soon(self._open, runner, part)
                return
        closed = [each for runner in started for each in runner.parts.values() if not each.is_open]
        reasons = "; ".join(f"{each.part}: {each.reason}" for each in closed)
        raise AnswerTimeout(f"not everything could be opened within {timeout:g} s. What is not open: {reasons}")

    def _make_runners(self, names: Iterable[str]) -> list[NodeRunner]:
        """Make the runners of nodes; SpecError names all workers that can't be imported, before any node runs."""
        made: list[NodeRunner] = []
        problems: list[Problem] = []
        for name in names:
            try:
                made.append(NodeRunner(self._prepared[name], is_whole=self._is_whole))
            except SpecError as error:
                problems += error.problems
        if problems:
            raise SpecError(problems)
        return made

    async def _open(self, runner: NodeRunner, part: Part) -> None:
        for other in sorted(self._dependencies.get(part, ()), key=str):  # the same order in every run
            if other.node in self._runners:
                await self._runners[other.node].parts[other].tried.wait()
        await runner.supervise(part)

    def _running(self, name: str) -> NodeRunner:
        return self._runners[self[name].name]

    def _forget(self, name: str) -> None:
        del self._nodes[name], self._runners[name]

    async def crash(self, name: str) -> None:
        """End a node at once: it sends nothing. Its keys and stores are kept for `start`.

        Args:
          name: The name of the node.

        Raises:
          LocalError: No node of that name runs here.

        If cancelled, the node ends all the same.
        """
        await self._running(name).crash()
        self._forget(name)

    async def stop(self, name: str) -> None:
        """End a node in order. Its keys and stores are kept for `start`.

        Args:
          name: The name of the node.

        Raises:
          LocalError: No node of that name runs here.

        If cancelled, the node may still run.
        """
        runner = self._running(name)
        await runner.disconnect(others_stay=True)
        await runner.aclose()
        self._forget(name)

    async def aclose(self) -> None:
        """End every node in order, as the end of the `run_topology` block does.

        All nodes disconnect first, and nodes that listen end last.

        If cancelled, some nodes may still run.
        """
        runners = list(self._runners.values())
        others_stay = len(runners) < len(self.spec.nodes)
        async with trio.open_nursery() as nursery:
            for runner in runners:
                nursery.start_soon(partial(runner.disconnect, others_stay=others_stay))
        for listens in (False, True):
            async with trio.open_nursery() as nursery:
                for runner in runners:
                    if bool(runner.spec.listen) == listens:
                        nursery.start_soon(runner.aclose)
        self._nodes.clear()
        self._runners.clear()


@asynccontextmanager
async def run_topology(
    spec: TopologySpec,
    *,
    nodes: Iterable[str] | None = None,
    transports: Mapping[str, TransportOf] | None = None,
    timeout: float | None = None,  # noqa: ASYNC109  # only a deadline shows that a peer does not answer
    on_listening: OnListening | None = None,
) -> AsyncIterator[RunningTopology]:
    """Run the nodes of a topology for the length of a block. Everything in them is open when the block begins.

    Links, channels, streams and relays that are lost are opened again. At the end of the block all nodes end in order.
    An exception of a worker, unless its `on_error` says otherwise, ends all nodes, and leaves the block in an exception
    group, with a note that names the worker.

    Args:
      spec: The topology.
      nodes: The names of the nodes to run; by default all that are not external.
      transports: Transports that replace installed ones, by name: an object for all nodes, or a function that makes one
          for each node's name.
      timeout: Seconds until everything must be open. By default 30 if all nodes of the topology run here, else no
          limit, since nodes elsewhere may start later.
      on_listening: Called with each node when it listens, before the parts that need other nodes are open.

    Returns:
      An async context manager; `async with` binds the RunningTopology.

    Raises:
      SpecError: The topology is not valid, or a worker can't be imported.
      LocalError: Something is missing here, such as a package, a file or a free port.
      AnswerTimeout: Not everything is open in time.
      HandshakeError: A peer is not trusted, and all nodes run here. If nodes run elsewhere that is logged, and tried
          again.

    If cancelled, all nodes end at once.
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
                await running.start(*names, timeout=timeout, on_listening=on_listening)
            except TrionodeError as error:  # raised below, outside the nursery, which would wrap it in a group
                refused = error
            else:
                yield running
                await running.aclose()
            nursery.cancel_scope.cancel()
    if refused is not None:
        raise refused


@contextmanager
def _unwrapped() -> Iterator[None]:
    """Raise the first error of a group by itself, if all of them are TrionodeErrors."""
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
    """Yield what is missing to run only some nodes: the nodes, or the identities of other nodes that they name."""
    for name in names:
        if name not in spec.nodes:
            yield Problem(("nodes",), f"there is no node {quoted(name)} to run; {suggest(name, spec.nodes)}")
            continue
        if spec.nodes[name].external:
            text = "this node runs elsewhere: remove this key to run it here"
            yield Problem(("nodes", name, "external"), text)
        for path, node in _identified_nodes(name, spec.nodes[name]):
            if node not in names and node in spec.nodes and spec.nodes[node].identity.identifier is None:
                yield Problem(path, _missing_identifier(node, spec.nodes[node].identity))


def _missing_identifier(node: str, identity: IdentitySpec) -> str:
    """Say how to give the identifier of a node that runs elsewhere."""
    in_memory = identity.vault == "memory"
    vault = f"sqlite:{node}.db" if in_memory else identity.vault
    name = "" if identity.name == IdentitySpec().name else f" {identity.name}"
    unencrypted = identity.unencrypted or in_memory
    options = f"--state {vault.removeprefix('sqlite:')}" + (" --unencrypted" if unencrypted else "")
    key = ", unencrypted = true" if unencrypted else ""
    return (
        f"node {quoted(node)} does not run here, so its identifier must be known. Create its identity by "
        f"`trionode identity create {options}{name}`, and write vault = {quoted(vault)}{key} and the identifier that the command prints, "
        f'identifier = "I…", in {dotted_keys(("nodes", node, "identity"))}'
    )


def _identified_nodes(name: str, node: NodeSpec) -> Iterator[tuple[KeyPath, str]]:
    """Yield the nodes whose identities a node must know, and where it names them."""
    for leaf in leaves(node, record_of(NodeSpec), ("nodes", name)):
        if isinstance(leaf.type, Scalar) and leaf.type.value_kind in {ValueKind.IDENTIFIED_NODE, ValueKind.OWNER}:
            yield leaf.path, str(leaf.value)
