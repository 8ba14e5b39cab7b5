"""The report on a topology: what each observer sees and can do, what is wrong or risky, and which assertions hold."""

from collections.abc import Iterable, Iterator

import attrs

from trionode.topology.check.checks import check_spec
from trionode.topology.errors import SpecError
from trionode.topology.spec import AssertSpec, FlowSpec, TopologySpec
from trionode.verify.analysis import Analysis, Flow
from trionode.verify.assertions import Verdict, judge
from trionode.verify.findings import Finding, find
from trionode.verify.model.build import build
from trionode.verify.model.network import SymbolicNetwork
from trionode.verify.paths import from_clients, trace_route
from trionode.verify.reachability import find_reachable


@attrs.frozen
class Report:
    """The proof about a topology; made by `verify`."""

    analysis: Analysis
    #: Most serious first.
    findings: tuple[Finding, ...]
    #: One for each assertion of the topology, in its order.
    verdicts: tuple[Verdict, ...]

    @property
    def flows(self) -> tuple[Flow, ...]:
        """All flows: those that the topology declares, and those that follow from inlets and channels."""
        return self.analysis.flows

    @property
    def holds(self) -> bool:
        """Whether every assertion of the topology holds."""
        return all(verdict.holds for verdict in self.verdicts)

    def with_findings(self, more: Iterable[Finding]) -> "Report":
        """Return a copy of the report with more findings.

        Args:
          more: Findings in any order.

        Returns:
          The copy, with all findings sorted.
        """
        return attrs.evolve(self, findings=_sorted((*self.findings, *more)))

    def flow(self, name: str) -> Flow:
        """Return a flow by its name.

        Args:
          name: As in `[flows.NAME]`.

        Returns:
          The flow.

        Raises:
          KeyError: If there is none; the text lists all flows.
        """
        return self.analysis.flow(name)

    def require(
        self,
        *,
        flow: str | None = None,
        no_plaintext_at: str | Iterable[str] = (),
        no_inner_addresses_at: str | Iterable[str] = (),
        no_injection_by: str | Iterable[str] = (),
        sender_authenticated_to: str | Iterable[str] = (),
        no_unauthenticated_access_to: str | Iterable[str] = (),
        no_unauthenticated_dials_by: str | Iterable[str] = (),
    ) -> None:
        """Check an assertion, as `[[assert]]` in a topology file does; docs/verifier.md describes the keys.

        Args:
          flow: The flow that is meant; None for all flows.
          no_plaintext_at: Nodes, `network` or `stores` that must not read payloads.
          no_inner_addresses_at: Those that must not learn addresses behind a channel.
          no_injection_by: Those that must not be able to inject messages.
          sender_authenticated_to: Nodes to which a channel must prove the sender.
          no_unauthenticated_access_to: Addresses, NODE/ADDRESS, that peers without a channel must not reach.
          no_unauthenticated_dials_by: Nodes that peers without a key must not be able to make connect.

        Raises:
          AssertionError: If the assertion is violated; the text shows the path, hop by hop.
          SpecError: If a name does not exist in the topology.
        """
        assertion = AssertSpec(
            flow,
            no_plaintext_at=no_plaintext_at,
            no_inner_addresses_at=no_inner_addresses_at,
            no_injection_by=no_injection_by,
            sender_authenticated_to=sender_authenticated_to,
            no_unauthenticated_access_to=no_unauthenticated_access_to,
            no_unauthenticated_dials_by=no_unauthenticated_dials_by,
        )
        spec = attrs.evolve(self.analysis.network.spec, assertions=(assertion,))
        problems = [problem for problem in check_spec(spec) if problem.path[:1] == ("assert",)]
        if problems:
            raise SpecError(problems)
        verdict = judge(self.analysis, 0, assertion)
        if not verdict.holds:
            raise AssertionError(str(verdict))


def verify(spec: TopologySpec) -> Report:
    """Prove what each observer of a topology sees and can do.

    It starts nothing, resolves no name and opens no connection.

    Args:
      spec: A topology in which `check_spec` finds no problem, as `load_topology` returns it.

    Returns:
      The report.
    """
    network = build(spec)
    analysis = Analysis(network, tuple(_flows(network)), find_reachable(network))
    verdicts = tuple(judge(analysis, index, assertion) for index, assertion in enumerate(spec.assertions))
    return Report(analysis, _sorted(find(analysis)), verdicts)


def _sorted(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    return tuple(sorted(findings, key=lambda finding: finding.rank))


def _flows(network: SymbolicNetwork) -> Iterator[Flow]:
    spec = network.spec
    for name, flow in spec.flows.items():
        yield Flow(name, flow, trace_route(network, flow.node, flow.to), is_declared=True)
    for name, node in spec.nodes.items():
        for key, inlet in node.inlets.items():
            path = from_clients(trace_route(network, name, inlet.to), key, inlet.listen)
            yield Flow(f"inlet {name}/{key}", FlowSpec(name, inlet.to), path, is_declared=False)
    if spec.flows:
        return
    for name, opener in network.nodes.items():
        for key, channel in opener.channels.items():
            peer = network.nodes[channel.responder]
            for address in [address for address, entry in peer.table.items() if entry.kind == "worker"]:
                route = (f"@{key}", address)
                path = trace_route(network, name, route)
                if path.receiver == (peer.name, address):
                    label = f"{name} → {peer.name}/{address} by @{key}"
                    yield Flow(label, FlowSpec(name, route), path, is_declared=False)
