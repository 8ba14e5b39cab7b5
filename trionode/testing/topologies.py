"""Topologies for tests: read from their files, carried over to other transports and stores, and run for the length of a block."""

import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import entry_points
from pathlib import Path

import attrs
import trio

from trionode.errors import LocalError
from trionode.net.plugins import TRANSPORTS
from trionode.testing.network import FaultyNetwork
from trionode.topology.load.loader import load_topology
from trionode.topology.run.topology import RunningTopology, run_topology
from trionode.topology.spec import NodeSpec, StoreSpec, TopologySpec
from trionode.topology.substitute import swap

#: What the command line calls the store, among transports.
STORE = "store"


class Topologies:
    """What the fixture `topology` gives to its test.

    `swaps` of the command line stand above what the test says; `bootstrap` starts a Kafka, or tells where one runs, and `folder` makes one for files.
    """

    def __init__(
        self,
        swaps: Mapping[str, str],
        *,
        bootstrap: Callable[[], str],
        folder: Callable[[], Path],
    ) -> None:
        self._swaps = swaps
        self._bootstrap = bootstrap
        self._folder = folder

    @asynccontextmanager
    async def start(
        self,
        topology: TopologySpec | str | Path | Iterable[str | Path],
        *,
        network: FaultyNetwork | None = None,
        store: str | None = None,
        **transports: str,
    ) -> AsyncIterator[RunningTopology]:
        """Run a topology, given as a spec, a file or several files, until the end of the block; everything is up when the block begins.

        Transports and `store` are what is put in place of its own, as in `trionode.topology.swap`: `tcp="loopback", store="memory"`. `kafka` and
        `sqlite` need no place here: they are the run's broker, and a file of the test's. With a `network` all of its transports become that network,
        whose nodes have the names that they have in the topology. Else nodes meet on loopback in a network of their own.
        Keys are in memory. SpecError for a topology that can't be meant; LocalError outside of Trio. What the block raises comes out in an
        exception group.
        """
        if not trio.lowlevel.in_trio_run():
            raise LocalError(
                "a topology runs under Trio: in an async test of pytest-trio, with trio_mode = true in the ini file, or in trio.run"
            )
        if not isinstance(topology, TopologySpec):
            topology = load_topology(*((topology,) if isinstance(topology, str | Path) else topology))
        swaps = {**transports} if store is None else {**transports, STORE: store}
        if network is None:
            swaps.update(self._swaps)
            network = FaultyNetwork()
        else:
            # Faults are what is tested: the command line leads nobody around them.
            swaps.update((each.name, "loopback") for each in entry_points(group=TRANSPORTS))
        placed = {old: self._placed(new, is_store=old == STORE) for old, new in swaps.items()}
        swapped = _apart(swap(topology, store=placed.pop(STORE, None), **placed))
        async with run_topology(swapped, transports={"loopback": network.transport}) as running:
            yield running

    def _placed(self, new: str, *, is_store: bool) -> str:
        if new == "kafka":
            return f"kafka:{self._bootstrap()}" if is_store else f"kafka:{self._bootstrap()}/{{}}"
        return f"sqlite:{self._folder()}/{{}}.db" if new == "sqlite" else new


def _apart(spec: TopologySpec) -> TopologySpec:
    """Give the streams of a topology names of their own in a Kafka that other tests use too."""
    prefix = f"trionode_{secrets.token_hex(8)}_"

    def of(store: StoreSpec) -> StoreSpec:
        return (
            attrs.evolve(store, options={**store.options, "prefix": prefix})
            if store.address.startswith("kafka:")
            else store
        )

    def changed(node: NodeSpec) -> NodeSpec:
        services = {name: attrs.evolve(each, store=of(each.store)) for name, each in node.stream_services.items()}
        return attrs.evolve(node, stream_services=services)

    return attrs.evolve(spec, nodes={name: changed(node) for name, node in spec.nodes.items()})
