"""Topologies: nodes and all that lives in them, declared in one file or as values, and run, drawn and proven from that."""

from trionode.topology.checking import check_spec
from trionode.topology.problems import Position, Problem, SpecError
from trionode.topology.reading import load_topology, parse_topology
from trionode.topology.running import RunningTopology, run_topology
from trionode.topology.running_node import RunningNode
from trionode.topology.spec import (
    AccessSpec,
    AssertSpec,
    ChannelListenerSpec,
    ChannelSpec,
    FlowSpec,
    IdentitySpec,
    InletSpec,
    LinkSpec,
    ListenerSpec,
    NodeSpec,
    OutletSpec,
    RelayServiceSpec,
    RelaySpec,
    StoreSpec,
    StreamServiceSpec,
    StreamSpec,
    TopologySpec,
    TrustSpec,
    WorkerSpec,
)
from trionode.topology.swapping import swap
from trionode.topology.verify import Report, verify

__all__ = [
    "AccessSpec",
    "AssertSpec",
    "ChannelListenerSpec",
    "ChannelSpec",
    "FlowSpec",
    "IdentitySpec",
    "InletSpec",
    "LinkSpec",
    "ListenerSpec",
    "NodeSpec",
    "OutletSpec",
    "Position",
    "Problem",
    "RelayServiceSpec",
    "RelaySpec",
    "Report",
    "RunningNode",
    "RunningTopology",
    "SpecError",
    "StoreSpec",
    "StreamServiceSpec",
    "StreamSpec",
    "TopologySpec",
    "TrustSpec",
    "WorkerSpec",
    "check_spec",
    "load_topology",
    "parse_topology",
    "run_topology",
    "swap",
    "verify",
]
