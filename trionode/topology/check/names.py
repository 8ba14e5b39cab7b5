"""The names in a topology and their positions, for checks of references between its parts."""

from collections.abc import Collection

from trionode.relay.service import EPHEMERAL_SERVICE, NAMED_SERVICE
from trionode.topology.errors import KeyPath, Problem, dotted_keys
from trionode.topology.positions import Positions, existing_part
from trionode.topology.spec import TopologySpec

#: The end of the default name of a stream service's index service.
INDEX_SUFFIX = "_index"


class Names:
    """A spec, and the names of its file that could not be decoded: a reference to them is not a problem of its own."""

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
        #: The names of transports that the program itself brings.
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
        """Return whether a part of a table could not be decoded, so that a missing key may not be missing."""
        return any(each[: len(path)] == path for each in self._broken)

    def problem(self, path: KeyPath, text: str, *, of_key: bool = False) -> Problem:
        """Return a problem with the position of a value, or of its key."""
        at = self._in_file(path)
        span = self._positions.get(at)
        return Problem(at, text, None if span is None else span.key if of_key else span.value)

    def locate(self, path: KeyPath) -> str:
        """Return the keys of a path, with the position if there is one."""
        at = self._in_file(path)
        span = self._positions.get(at)
        return dotted_keys(at) + (f" at {span.key}" if span else "")

    def _in_file(self, path: KeyPath) -> KeyPath:
        return existing_part(self._positions, path) if self._positions else path

    def runs_here(self, node: str) -> bool:
        """Return whether a node runs here, so that its plugins must be installed."""
        spec = self.spec.nodes.get(node)
        return spec is not None and not spec.external and (self._nodes_here is None or node in self._nodes_here)

    def own(self, node: str) -> set[str]:
        """Return the names of a node's secure channels and streams; its routes name them by `@name`."""
        return self._named(node, "secure_channels") | self._named(node, "streams")

    def addresses(self, node: str) -> set[str]:
        """Return the names at a node that messages can be addressed to, as far as the spec has them."""
        return {name for name, _ in self.named_addresses(node)}

    def named_addresses(self, node: str) -> list[tuple[str, KeyPath]]:
        """Return the addresses of a node with their paths, also those that are given twice."""
        spec = self.spec.nodes.get(node)
        found: list[tuple[str, KeyPath]] = []
        if spec is not None and spec.relay_service is not None:  # first, since the other names can be changed
            found += [(name, ("nodes", node, "relay_service")) for name in (EPHEMERAL_SERVICE, NAMED_SERVICE)]
        found += [
            (name, ("nodes", node, kind, name))
            for kind in ("links", "workers", "secure_channel_listeners", "stream_services", "outlets")
            for name in sorted(self._named(node, kind))
        ]
        if spec is not None:
            found += [
                (service.index or name + INDEX_SUFFIX, ("nodes", node, "stream_services", name, "index"))
                for name, service in spec.stream_services.items()
            ]
        return found

    def is_relay(self, node: str, name: str) -> bool:
        """Return whether a name at a node can be a relay, whose name its client chooses."""
        spec = self.spec.nodes.get(node)
        return spec is not None and spec.relay_service is not None and name.startswith(spec.relay_service.prefix)

    def _named(self, node: str, kind: str) -> set[str]:
        spec = self.spec.nodes.get(node)
        return self.written("nodes", node, kind) | (set() if spec is None else set(getattr(spec, kind)))


def node_of(path: KeyPath) -> str:
    """Return the node that a path leads into, "" if it leads to none."""
    return str(path[1]) if len(path) > 1 and path[0] == "nodes" else ""
