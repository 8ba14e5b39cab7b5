"""`trionode run`: the nodes of a topology, all of them or some, in one process."""

import sys
import traceback
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import click
import trio

from trionode.cli.runner import run as run_command
from trionode.cli.terminal import Output, printable, say
from trionode.errors import TrionodeError
from trionode.topology.errors import SpecError
from trionode.topology.load.loader import load_topology
from trionode.topology.run.node import RunningNode
from trionode.topology.run.resolve import frames_of, raised_by
from trionode.topology.run.topology import run_topology
from trionode.topology.spec import TopologySpec


@click.command()
@click.argument("files", type=click.Path(path_type=Path, dir_okay=False), nargs=-1, required=True, metavar="FILE...")
@click.option(
    "--node",
    "names",
    multiple=True,
    metavar="NAME",
    help="Run only this node. Repeatable.",
)
def run(*, files: tuple[Path, ...], names: tuple[str, ...]) -> None:
    """Run the nodes that FILEs describe, until stopped.

    For each node the command prints `NAME: identifier I…`, and `NAME: listening on tcp:HOST:PORT` when the node
    listens. It prints `all is open` when all links, channels, streams and relays of these nodes are open. Other nodes
    may start later, or restart: lost parts are opened again.

    Workers are imported from Python's path and from the folders of the FILEs.
    """
    nodes = names or None
    try:
        spec = load_topology(*files, nodes=nodes)
    except SpecError as error:
        _print_problems(error)
        sys.exit(1)
    for folder in dict.fromkeys(str(file.resolve().parent) for file in files):
        sys.path.append(folder)
    run_command(partial(_run, spec, nodes))


def _print_problems(error: SpecError) -> None:
    for problem in error.problems:
        say(printable(str(problem)))


async def _run(spec: TopologySpec, nodes: tuple[str, ...] | None, working: trio.CancelScope) -> bool:
    output = Output()

    async def print_node(node: RunningNode) -> None:
        await output.line(f"{node.name}: identifier {node.identity.identifier}")
        for endpoint in node.endpoints:
            await output.line(f"{node.name}: listening on {endpoint}")

    is_open, stopped, succeeded = False, trio.Event(), True
    opening = trio.CancelScope()

    async def wait_for_signal() -> None:
        with working:
            await trio.sleep_forever()
        stopped.set()
        if not is_open:
            opening.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_for_signal)
        with opening:
            try:
                async with run_topology(spec, nodes=nodes, on_listening=print_node):
                    is_open = True
                    await output.line("all is open")
                    await stopped.wait()
            except (TrionodeError, BaseExceptionGroup) as error:
                raised = list(_parts(error))
                if not all(map(raised_by, raised)):
                    raise
                succeeded = False
                for each in raised:
                    # During the end a worker may use something that is closed already.
                    if not (stopped.is_set() and isinstance(each, TrionodeError)):
                        _print_worker_error(each)
        nursery.cancel_scope.cancel()
    return succeeded


def _parts(error: BaseException) -> Iterator[BaseException]:
    """Yield the exceptions of workers as they were raised, and the other members of a group."""
    if isinstance(error, BaseExceptionGroup) and raised_by(error) is None:
        for each in error.exceptions:
            yield from _parts(each)
    else:
        yield error


def _print_worker_error(error: BaseException) -> None:
    say(printable(f"error: {raised_by(error)}: {type(error).__name__}: {error}"))
    for text in traceback.format_exception(type(error), error, frames_of(error)):
        for line in text.splitlines():
            say(printable(line))
