"""What the findings and the verdicts of a topology are drawn from: its flows, their ways, and how far strangers get."""

import attrs

from trionode.topology.spec import FlowSpec
from trionode.verify.model.messages import Watcher
from trionode.verify.model.network import World
from trionode.verify.paths import Passed, Path
from trionode.verify.reachability import Strangers


@attrs.frozen
class Flow:
    """Messages that are sent, and what becomes of them."""

    name: str
    spec: FlowSpec
    path: Path
    #: Whether the topology names it, or it follows from an inlet or a channel.
    is_declared: bool

    @property
    def passed(self) -> tuple[Passed, ...]:
        """All who carry its messages, and the answers if there are to be any."""
        return self.path.passed if self.spec.answered else self.path.there.passed


@attrs.frozen
class Proof:
    """A topology's flows and strangers."""

    world: World
    flows: tuple[Flow, ...]
    strangers: Strangers

    def flow(self, name: str) -> Flow:
        """Return the flow of a name; KeyError if there is none."""
        for flow in self.flows:
            if flow.name == name:
                return flow
        raise KeyError(f"there is no flow {name!r}; there are: {', '.join(flow.name for flow in self.flows) or 'none'}")


def is_meant(word: str, watcher: Watcher) -> bool:
    """Whether an assertion that names a node, `network` or `stores` means somebody: whoever is outside of the topology is the network's."""
    match word:
        case "network":
            return watcher.kind in {"connection", "outsider"}
        case "stores":
            return watcher.kind == "store"
        case _:
            return watcher == Watcher("node", word)
