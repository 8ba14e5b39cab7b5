"""Topologies: nodes and all that lives in them, declared in one file or as values, and run."""

from trionode.topology.check.checks import check_spec
from trionode.topology.errors import Position, Problem, SpecError
from trionode.topology.load.loader import load_topology, parse_topology
from trionode.topology.run.node import RunningNode
from trionode.topology.run.topology import RunningTopology, run_topology
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
from trionode.topology.substitute import swap

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
]
