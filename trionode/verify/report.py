"""The proof of a topology: for every flow and everybody who carries it what he sees and could do, what is dubious, and what was to hold."""

from collections.abc import Iterable, Iterator

import attrs

from trionode.topology.check.checks import check_spec
from trionode.topology.errors import SpecError
from trionode.topology.spec import AssertSpec, FlowSpec, TopologySpec
from trionode.verify.analysis import Flow, Proof
from trionode.verify.assertions import Verdict, judge
from trionode.verify.findings import Finding, find
from trionode.verify.model.build import build
from trionode.verify.model.network import World
from trionode.verify.paths import from_clients, walk
from trionode.verify.reachability import strangers_in


@attrs.frozen
class Report:
    """What follows from a topology."""

    proof: Proof
    #: The gravest first.
    findings: tuple[Finding, ...]
    #: One for each assertion of the topology, in its order.
    verdicts: tuple[Verdict, ...]

    @property
    def flows(self) -> tuple[Flow, ...]:
        """All flows: those that are declared and those that follow from the rest."""
        return self.proof.flows

    @property
    def holds(self) -> bool:
        """Whether every assertion of the topology holds."""
        return all(verdict.holds for verdict in self.verdicts)

    def with_findings(self, more: Iterable[Finding]) -> "Report":
        """Return the report with more findings in it."""
        return attrs.evolve(self, findings=_sorted((*self.findings, *more)))

    def flow(self, name: str) -> Flow:
        """Return the flow of a name; KeyError if there is none."""
        return self.proof.flow(name)

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
        """Do what `[[assert]]` in the file does; AssertionError with the way that violates it, SpecError where a name is nobody's."""
        assertion = AssertSpec(
            flow,
            no_plaintext_at=no_plaintext_at,
            no_inner_addresses_at=no_inner_addresses_at,
            no_injection_by=no_injection_by,
            sender_authenticated_to=sender_authenticated_to,
            no_unauthenticated_access_to=no_unauthenticated_access_to,
            no_unauthenticated_dials_by=no_unauthenticated_dials_by,
        )
        asked = attrs.evolve(self.proof.world.spec, assertions=(assertion,))
        problems = [problem for problem in check_spec(asked) if problem.path[:1] == ("assert",)]
        if problems:
            raise SpecError(problems)
        verdict = judge(self.proof, 0, assertion)
        if not verdict.holds:
            raise AssertionError(str(verdict))


def verify(spec: TopologySpec) -> Report:
    """Return what follows from a topology that `check_spec` has no problem with; nothing is started, resolved or connected."""
    world = build(spec)
    flows = tuple(_flows(world))
    proof = Proof(world, flows, strangers_in(world))
    findings = _sorted(find(proof))
    verdicts = tuple(judge(proof, index, assertion) for index, assertion in enumerate(spec.assertions))
    return Report(proof, findings, verdicts)


def _sorted(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    return tuple(sorted(findings, key=lambda finding: finding.rank))


def _flows(world: World) -> Iterator[Flow]:
    spec = world.spec
    for name, flow in spec.flows.items():
        yield Flow(name, flow, walk(world, flow.node, flow.to), is_declared=True)
    for name, node in spec.nodes.items():
        for key, inlet in node.inlets.items():
            path = from_clients(walk(world, name, inlet.to), key, inlet.listen)
            yield Flow(f"inlet {name}/{key}", FlowSpec(name, inlet.to), path, is_declared=False)
    if spec.flows:
        return
    for name, here in world.nodes.items():
        for key, channel in here.channels.items():
            peer = channel.responder
            for address in [address for address, entry in peer.table.items() if entry.kind == "worker"]:
                route = (f"@{key}", address)
                path = walk(world, name, route)
                if path.receiver == (peer.name, address):
                    label = f"{name} → {peer.name}/{address} by @{key}"
                    yield Flow(label, FlowSpec(name, route), path, is_declared=False)
