"""The assertions of a topology: whether each holds, and if not the path that violates it, hop by hop."""

from collections.abc import Iterable, Iterator

import attrs

from trionode.topology.spec import AssertSpec
from trionode.verify.analysis import Analysis, Flow, is_meant
from trionode.verify.model.messages import Observer
from trionode.verify.paths import Direction, Observation


@attrs.frozen
class Violation:
    """One way in which an assertion does not hold."""

    text: str
    #: The path, one line a hop.
    trace: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n".join((self.text, *(f"    {line}" for line in self.trace)))


@attrs.frozen
class Verdict:
    """An assertion and everything that violates it."""

    #: Its number in the file, from 0.
    index: int
    #: The assertion in words.
    what: str
    violations: tuple[Violation, ...]

    @property
    def holds(self) -> bool:
        """Whether nothing violates it."""
        return not self.violations

    def __str__(self) -> str:
        if self.holds:
            return f"{self.what}: it holds"
        return "\n".join((f"{self.what}: it does not hold", *map(str, self.violations)))


def judge(analysis: Analysis, index: int, assertion: AssertSpec) -> Verdict:
    """Return the verdict on one assertion."""
    flows = tuple(flow for flow in analysis.flows if assertion.flow in {None, flow.name})
    violations: list[Violation] = []
    if assertion.flow is not None:
        violations += (_does_not_arrive(flow) for flow in flows if not flow.path.arrives)
    for flow in flows:
        violations += _of_flow(analysis, flow, assertion)
    for word in assertion.sender_authenticated_to:
        violations += _not_authenticated(analysis, flows, word, named=assertion.flow is not None)
    for address in assertion.no_unauthenticated_access_to:
        violations += _reached(analysis, address)
    for node in assertion.no_unauthenticated_dials_by:
        violations += (
            Violation(
                f"an unauthenticated peer can make {node} connect to {dial.to}, by {'.'.join(dial.by)}", dial.trace
            )
            for dial in analysis.reachability.dials.values()
            if dial.node == node
        )
    return Verdict(index, _describe(assertion), tuple(violations))


def _describe(assertion: AssertSpec) -> str:
    """Return what an assertion demands, in the words of the file."""
    parts = [] if assertion.flow is None else [f"flow {assertion.flow}"]
    for field in attrs.fields(AssertSpec):
        value = getattr(assertion, field.name)
        if field.name != "flow" and value:
            parts.append(f"{field.name} {', '.join(value)}")
    return "; ".join(parts)


def _does_not_arrive(flow: Flow) -> Violation:
    text = f"{flow.name} does not arrive, so nothing is proven about it: {flow.path.request.trouble}"
    return Violation(text, render_trace(flow.path.request))


def _of_flow(analysis: Analysis, flow: Flow, assertion: AssertSpec) -> Iterator[Violation]:
    checks = (
        (assertion.no_plaintext_at, _reads),
        (assertion.no_inner_addresses_at, _learns),
        (assertion.no_injection_by, _injects),
    )
    directions = [(flow.path.request, ""), (flow.path.reply, ", from its answer")]
    for words, check in checks:
        for word in words:
            for direction, suffix in directions if flow.spec.answered else directions[:1]:
                for each in direction.observations:
                    text = check(flow, each) if is_meant(word, each.at) else ""
                    if text:
                        yield Violation(text + suffix, render_trace(direction, each.at))
    receiver = flow.path.receiver
    reached = None if receiver is None else analysis.reachability.reach(*receiver, bare=False)
    if assertion.no_injection_by and reached is not None:
        yield Violation(
            f"{reached.node}/{reached.address}, where {flow.name} arrives, accepts messages of any "
            f"unauthenticated peer {reached.manner}, so of {', '.join(assertion.no_injection_by)} too",
            reached.trace,
        )


def _reads(flow: Flow, each: Observation) -> str:
    if each.visible.payload == "plaintext":
        return f"{each.at.described} sees the payload of {flow.name} in plaintext"
    return _impersonates(each, f"read {flow.name}") if each.can_decrypt else ""


def _learns(flow: Flow, each: Observation) -> str:
    inner = flow.path.inner
    if learned := inner.intersection(each.visible.addresses):
        return f"{each.at.described} learns that {flow.name} is for {', '.join(sorted(learned))}"
    return _impersonates(each, f"learn the receiver of {flow.name}") if inner & each.can_learn else ""


def _injects(flow: Flow, each: Observation) -> str:
    return f"{each.at.described} can inject messages into {flow.name} {each.can_inject}" if each.can_inject else ""


def _impersonates(each: Observation, effect: str) -> str:
    return f"{each.at.described} can impersonate the peer of {', '.join(each.can_impersonate)}, and so {effect}"


def _not_authenticated(analysis: Analysis, flows: Iterable[Flow], node: str, *, named: bool) -> Iterator[Violation]:
    at = Observer("node", node)
    nodes = analysis.network.nodes
    arrives = False
    for flow in flows:
        request = flow.path.request
        observation = request.at(at)
        if observation is None or flow.spec.node == node:
            if named:
                yield Violation(f"{flow.name} never reaches {node}", render_trace(request))
            continue
        arrives = True
        if nodes[flow.spec.node].identity not in {
            nodes[each].identity for each in observation.authenticated if each in nodes
        }:
            text = f"no channel authenticates {flow.spec.node} to {node} as the sender of {flow.name}"
            yield Violation(text, render_trace(request, at))
    if not arrives and not named:
        yield Violation(f"no flow reaches {node}, so no sender is authenticated to it")


def _reached(analysis: Analysis, text: str) -> Iterator[Violation]:
    node, _, address = text.partition("/")
    reached = analysis.reachability.reach(node, address, bare=True)
    if reached is not None:
        yield Violation(f"an unauthenticated peer reaches {text} {reached.manner}", reached.trace)
    elif neighbours := bare_neighbours(analysis, node, address):
        yield Violation(
            f"{text} admits any peer at the other end of a link: {', '.join(neighbours)}",
            tuple(f"{each} addresses {text} by its link with {node}" for each in neighbours),
        )


def bare_neighbours(analysis: Analysis, node: str, address: str) -> tuple[str, ...]:
    """Return the peers that reach an address of a node over nothing but their link or stream with it."""
    symbolic = analysis.network.nodes[node]
    entry = symbolic.entry(address)
    if entry is None:
        return ()
    return tuple(dict.fromkeys(peer for origin, peer in symbolic.origins if entry.allow(origin)))


def render_trace(direction: Direction, mark: Observer | None = None) -> tuple[str, ...]:
    """Return a path as one line a hop, up to where it ends, with an arrow at one observer."""
    lines = [
        ("→ " if each.at == mark else "  ")
        + ": ".join(filter(None, (str(each.at), "; ".join((*each.events, _sees(each))))))
        for each in direction.observations
    ]
    if direction.trouble and direction.outcomes:
        lines.append(f"  it ends here: {direction.trouble}")
    return tuple(lines)


def _sees(each: Observation) -> str:
    return "sees traffic only" if each.visible.payload == "nothing" else f"sees {each.visible.payload}"
