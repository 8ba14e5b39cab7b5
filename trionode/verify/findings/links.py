"""Links between forwarding nodes: rings in which readers can wait for each other, and needless drops."""

from collections.abc import Iterator

from trionode.topology.errors import KeyPath
from trionode.verify.analysis import Analysis
from trionode.verify.findings import finding as kinds
from trionode.verify.findings.finding import Finding
from trionode.verify.model.network import SymbolicNetwork


def stalling_links(analysis: Analysis) -> Iterator[Finding]:
    """Yield links in a ring without `drop_when_full`, and links with it that are in no ring."""
    network = analysis.network
    hubs = {name for name, node in network.spec.nodes.items() if node.forwards}
    for name, node in network.nodes.items():
        for link in node.links.values():
            if link.key is None or link.listener is None:
                continue
            where: KeyPath = ("nodes", name, "links", link.key, "drop_when_full")
            drops_when_full = node.spec.links[link.key].drop_when_full
            joins_hubs = {name, link.listener} <= hubs
            if joins_hubs and not drops_when_full and _joined(network, hubs, name, link.listener, without=link.key):
                text = f"{name} and {link.listener} forward, and another path joins them: "
                yield kinds.RING.at(where, text + "readers of links in a ring can wait for each other")
            if drops_when_full and not joins_hubs:
                text = (
                    f"{name if name not in hubs else link.listener} does not forward, so nothing can wait in a ring. "
                )
                yield kinds.NEEDLESS_DROPS.at(where, text + "The link drops what a slow reader does not take")


def _joined(network: SymbolicNetwork, hubs: set[str], one: str, other: str, *, without: str) -> bool:
    """Return whether a path of links joins two hubs without one link."""
    edges = [
        frozenset({name, link.listener})
        for name in hubs
        for link in network.nodes[name].links.values()
        if link.listener is not None and link.listener in hubs and link.key and (name, link.key) != (one, without)
    ]
    known = {one}
    while new := {far for edge in edges if edge & known for far in edge - known}:
        known |= new
    return other in known
