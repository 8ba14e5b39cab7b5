"""The topology of a simulation: the user's own or the mission scene, in memory, with workers that count messages."""

from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from importlib.metadata import entry_points

import attrs
import trio

from trionode.errors import ClosedError, ConfigError, RemoteError, UnknownAddressError
from trionode.net.plugins import TRANSPORTS
from trionode.routing.mailbox import Mailbox
from trionode.testing.simulation.oracle import Flow, Ledger, Oracle
from trionode.topology.load.loader import parse_topology
from trionode.topology.spec import FlowSpec, NodeSpec, TopologySpec
from trionode.topology.substitute import swap

#: Alice and Bob talk through a hub: a secure channel over two streams, and an echoer behind it.
MISSION = """
[nodes.hub]
listen = "tcp:127.0.0.1:4000"
stream_services.stream_kafka.store = "memory"

[nodes.bob]
workers.echoer = "echoer"
secure_channel_listeners.listener.trust.nodes = ["alice"]
streams.alice = { via = ["tcp:127.0.0.1:4000"], sends = "bob_to_alice", receives = "alice_to_bob", client_id = "bob" }

[nodes.alice]
streams.bob = { via = ["tcp:127.0.0.1:4000"], sends = "alice_to_bob", receives = "bob_to_alice", client_id = "alice" }
secure_channels.to_bob = { to = ["@bob", "listener"], trust.nodes = ["bob"] }

[flows.mission]
from = "alice"
to = ["@to_bob", "echoer"]
"""

#: The oracle of the run that this task belongs to.
ORACLE: ContextVar[Oracle] = ContextVar("oracle")


def mission() -> TopologySpec:
    """Return the mission scene: Alice, a hub that stores streams, and Bob, who echoes.

    Returns:
      The topology.
    """
    return parse_topology(MISSION, "mission.toml")


async def count(mailbox: Mailbox, *, node: str) -> None:
    """Count messages, and echo those whose flow is answered. It stands in for the worker at the end of a flow."""
    oracle = ORACLE.get()
    async for message in mailbox:
        taken = oracle.take(message.payload, node)
        answers = None if taken is None else taken[0].back
        if taken is None or answers is None:
            continue
        _, number, is_first = taken
        if is_first or number not in answers.accepted:
            try:
                await mailbox.reply(message, message.payload)
            except (RemoteError, UnknownAddressError, ClosedError):
                oracle.report(node, "answer refused")  # the worker knows that this answer is not on its way
            else:
                answers.accept(number, trio.current_time())


_COUNT = f"{__name__}:{count.__name__}"


def flows_of(spec: TopologySpec, sender: str | None = None, to: Sequence[str] = ()) -> Mapping[str, FlowSpec]:
    """Return the flows along which messages are sent: those of the topology, or one that is given.

    ConfigError if there is none, or if one does not end at a worker.
    """
    flows = spec.flows if sender is None else {"probe": FlowSpec(sender, to)}
    if not flows:
        raise ConfigError(
            "the topology has no flow along which messages could be sent: add [flows.NAME] with from and to, "
            "or name a node and a route"
        )
    for name, flow in flows.items():
        if flow.node not in spec.nodes:
            raise ConfigError(f"the flow {name} begins at {flow.node!r}, and the topology has no such node")
        if not flow.to or not _receivers(spec, flow):
            raise ConfigError(
                f"the flow {name} ends at {flow.to[-1] if flow.to else 'nothing'!r}, which is no worker of a node that "
                f"runs here: a simulation sends messages to workers"
            )
    return flows


def _receivers(spec: TopologySpec, flow: FlowSpec) -> frozenset[str]:
    """Return the nodes with a worker of the name at which a flow ends."""
    return frozenset(name for name, node in spec.nodes.items() if flow.to[-1] in node.workers and not node.external)


def with_counters(spec: TopologySpec, flows: Mapping[str, FlowSpec], store: str) -> TopologySpec:
    """Return a topology in memory, in which the workers at the ends of flows count messages."""
    in_memory = {each.name: "loopback" for each in entry_points(group=TRANSPORTS)}
    swapped = swap(attrs.evolve(spec, flows=flows, assertions=()), store=store, vault="memory", **in_memory)
    ends = {flow.to[-1] for flow in flows.values()}

    def counting(name: str, node: NodeSpec) -> NodeSpec:
        workers = {
            key: attrs.evolve(worker, run=_COUNT, arguments={"node": name}, sends=()) if key in ends else worker
            for key, worker in node.workers.items()
        }
        return attrs.evolve(node, workers=workers)

    return attrs.evolve(swapped, nodes={name: counting(name, node) for name, node in swapped.nodes.items()})


def ledgers_of(spec: TopologySpec) -> dict[str, Flow]:
    """Return empty ledgers for the flows of a topology."""
    made: dict[str, Flow] = {}
    for name, flow in spec.flows.items():
        receivers = _receivers(spec, flow)
        sender = frozenset((flow.node,))
        there = Ledger(name, sender, receivers)
        back = Ledger(f"{name} (answer)", receivers, sender) if flow.answered else None
        made[name] = Flow(there, back)
    return made
