"""The analysis of a topology: its flows with their paths, and what is reachable from outside."""

import attrs

from trionode.topology.spec import FlowSpec
from trionode.verify.model.messages import Observer
from trionode.verify.model.network import SymbolicNetwork
from trionode.verify.paths import Observation, Path
from trionode.verify.reachability import Reachability


@attrs.frozen
class Flow:
    """The messages that a node sends along a route, and their path."""

    name: str
    spec: FlowSpec
    path: Path
    #: True if the topology declares it; False if it follows from an inlet or a channel.
    is_declared: bool

    @property
    def observations(self) -> tuple[Observation, ...]:
        """What each observer sees of the messages, and of the answers if the flow has any."""
        return self.path.observations if self.spec.answered else self.path.request.observations


@attrs.frozen
class Analysis:
    """The facts that follow from a topology, before assertions are checked."""

    network: SymbolicNetwork
    flows: tuple[Flow, ...]
    #: The addresses that peers without a key of the topology can reach.
    reachability: Reachability

    def flow(self, name: str) -> Flow:
        """Return a flow by its name.

        Args:
          name: As in `[flows.NAME]`, or as the report calls it.

        Returns:
          The flow.

        Raises:
          KeyError: If there is none; the text lists all flows.
        """
        for flow in self.flows:
            if flow.name == name:
                return flow
        raise KeyError(f"there is no flow {name!r}; there are: {', '.join(flow.name for flow in self.flows) or 'none'}")


def is_meant(word: str, observer: Observer) -> bool:
    """Return whether an assertion that names a node, `network` or `stores` means an observer.

    Outsiders count as the network.
    """
    match word:
        case "network":
            return observer.kind in {"connection", "outsider"}
        case "stores":
            return observer.kind == "store"
        case _:
            return observer == Observer("node", word)
