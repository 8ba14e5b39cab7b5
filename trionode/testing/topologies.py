"""Topologies for tests: loaded from files, moved to other transports and stores, and run for the length of a block."""

import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import entry_points
from pathlib import Path

import attrs
import trio

from trionode.errors import ConfigError
from trionode.net.plugins import TRANSPORTS
from trionode.testing.network import FaultyNetwork
from trionode.topology.load.loader import load_topology
from trionode.topology.run.topology import RunningTopology, run_topology
from trionode.topology.spec import StreamServiceSpec, TopologySpec
from trionode.topology.substitute import swap

#: The name of stores among the transports of `--trionode-swap`.
STORE = "store"


class Topologies:
    """Runs topologies in a test; the fixture `topology` returns one.

    Args:
      swaps: The substitutes of the command line. They take precedence over those of the test.
      bootstrap: Returns the bootstrap address of a Kafka, which it may start.
      folder: Returns a folder for files.
    """

    def __init__(self, swaps: Mapping[str, str], *, bootstrap: Callable[[], str], folder: Callable[[], Path]) -> None:
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
        """Run a topology for the length of a block, with keys in memory. All nodes are up when the block begins.

        An exception in the block or in a node leaves the block in an exception group.

        Args:
          topology: A spec, a file, or several files.
          network: Takes the place of all transports. Its nodes have the names of the topology. Without it, nodes
            use loopback in a network of their own.
          store: The store that takes the place of every other, as in `trionode.topology.swap`. `kafka` is the broker of
            the run, `sqlite` a file of the test.
          transports: The transports that take the place of others, such as `tcp="loopback"`; `kafka` as for stores.

        Returns:
          The running topology, in an async context manager.

        Raises:
          ConfigError: Outside of Trio.
          SpecError: For a topology with problems.
        """
        if not trio.lowlevel.in_trio_run():
            raise ConfigError(
                "a topology runs under Trio: in an async test of pytest-trio, with trio_mode = true in the ini file, "
                "or in trio.run"
            )
        if not isinstance(topology, TopologySpec):
            topology = load_topology(*((topology,) if isinstance(topology, str | Path) else topology))
        swaps = {**transports} if store is None else {**transports, STORE: store}
        if network is None:
            swaps.update(self._swaps)
            network = FaultyNetwork()
        else:
            # The test is about the faults of this network, so the command line does not replace it.
            swaps.update((each.name, "loopback") for each in entry_points(group=TRANSPORTS))
        addresses = {old: self._address(new, is_store=old == STORE) for old, new in swaps.items()}
        swapped = _with_own_prefix(swap(topology, store=addresses.pop(STORE, None), **addresses))
        async with run_topology(swapped, transports={"loopback": network.transport}) as running:
            yield running

    def _address(self, new: str, *, is_store: bool) -> str:
        if new == "kafka":
            return f"kafka:{self._bootstrap()}" if is_store else f"kafka:{self._bootstrap()}/{{}}"
        return f"sqlite:{self._folder()}/{{}}.db" if new == "sqlite" else new


def _with_own_prefix(spec: TopologySpec) -> TopologySpec:
    """Give the streams of a topology their own prefix in a Kafka that other tests use too."""
    prefix = f"trionode_{secrets.token_hex(8)}_"

    def prefixed(service: StreamServiceSpec) -> StreamServiceSpec:
        store = service.store
        if not store.address.startswith("kafka:"):
            return service
        return attrs.evolve(service, store=attrs.evolve(store, options={**store.options, "prefix": prefix}))

    nodes = {
        name: attrs.evolve(
            node, stream_services={key: prefixed(service) for key, service in node.stream_services.items()}
        )
        for name, node in spec.nodes.items()
    }
    return attrs.evolve(spec, nodes=nodes)
