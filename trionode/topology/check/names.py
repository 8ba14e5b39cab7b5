"""Who is named in a topology and where, for checks that look at how its parts refer to one another."""

from collections.abc import Collection

from trionode.relay.service import EPHEMERAL_SERVICE, NAMED_SERVICE
from trionode.topology.errors import KeyPath, Problem, dotted_keys
from trionode.topology.positions import Positions, reached
from trionode.topology.spec import TopologySpec

#: What stands behind a stream service's name in that of its index service, where it is not told.
INDEX_SUFFIX = "_index"


class Names:
    """A spec, and what its file names beside it: parts that were too broken to be read, so that nobody who refers to them is to blame."""

    def __init__(
        self,
        spec: TopologySpec,
        *,
        nodes: Collection[str] | None,
        transports: Collection[str],
        positions: Positions,
        broken: Collection[KeyPath],
    ) -> None:
        self.spec = spec
        #: Names of transports that a program brings itself.
        self.transports = transports
        self._nodes_here = nodes
        self._positions = positions
        self._broken = broken
        self._written: dict[KeyPath, set[str]] = {}
        for path in positions:
            if path and isinstance(path[-1], str):
                self._written.setdefault(path[:-1], set()).add(path[-1])
        self.nodes = spec.nodes.keys() | self.written("nodes")
        self.flows = spec.flows.keys() | self.written("flows")

    def written(self, *path: str | int) -> set[str]:
        """Return the keys that a table has in the file."""
        return self._written.get(path, set())

    def is_broken_within(self, path: KeyPath) -> bool:
        """Whether something in a table could not be read, so that what is missing there may not be missing."""
        return any(each[: len(path)] == path for each in self._broken)

    def problem(self, path: KeyPath, text: str, *, of_key: bool = False) -> Problem:
        """Make a problem of a value, or of its key."""
        at = self._reached(path)
        span = self._positions.get(at)
        return Problem(at, text, None if span is None else span.key if of_key else span.value)

    def pointed(self, path: KeyPath) -> str:
        """Return the keys that lead somewhere, with the position if there is one."""
        at = self._reached(path)
        span = self._positions.get(at)
        return dotted_keys(at) + (f" at {span.key}" if span else "")

    def _reached(self, path: KeyPath) -> KeyPath:
        return reached(self._positions, path) if self._positions else path

    def runs_here(self, node: str) -> bool:
        """Whether a node is to run here, so that its plugins have to be installed."""
        spec = self.spec.nodes.get(node)
        return spec is not None and not spec.external and (self._nodes_here is None or node in self._nodes_here)

    def own(self, node: str) -> set[str]:
        """Return the names of a node's secure channels and streams, which its routes name by `@name`."""
        return self._named(node, "secure_channels") | self._named(node, "streams")

    def addresses(self, node: str) -> set[str]:
        """Return the names that messages can be addressed to at a node, as far as the spec gives them."""
        return {name for name, _ in self.claimed(node)}

    def claimed(self, node: str) -> list[tuple[str, KeyPath]]:
        """Return the addresses of a node, each as often as it is given, and where."""
        spec = self.spec.nodes.get(node)
        claimed: list[tuple[str, KeyPath]] = []
        if spec is not None and spec.relay_service is not None:  # first, since others can be called otherwise
            claimed += [(name, ("nodes", node, "relay_service")) for name in (EPHEMERAL_SERVICE, NAMED_SERVICE)]
        claimed += [
            (name, ("nodes", node, kind, name))
            for kind in ("links", "workers", "secure_channel_listeners", "stream_services", "outlets")
            for name in sorted(self._named(node, kind))
        ]
        if spec is not None:
            claimed += [
                (service.index or name + INDEX_SUFFIX, ("nodes", node, "stream_services", name, "index"))
                for name, service in spec.stream_services.items()
            ]
        return claimed

    def is_relay(self, node: str, name: str) -> bool:
        """Whether a name may be that of a relay at a node, which whoever registers it chooses."""
        spec = self.spec.nodes.get(node)
        return spec is not None and spec.relay_service is not None and name.startswith(spec.relay_service.prefix)

    def _named(self, node: str, kind: str) -> set[str]:
        spec = self.spec.nodes.get(node)
        return self.written("nodes", node, kind) | (set() if spec is None else set(getattr(spec, kind)))


def node_of(path: KeyPath) -> str:
    """Return the node that a path leads into, "" if it leads elsewhere."""
    return str(path[1]) if len(path) > 1 and path[0] == "nodes" else ""
