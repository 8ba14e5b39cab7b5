"""What a topology asserts, judged: whether it holds, and if not the way that violates it, hop by hop."""

from collections.abc import Callable, Iterable, Iterator, Mapping

import attrs

from trionode.topology.spec import AssertSpec
from trionode.verify.analysis import Flow, Proof, is_meant
from trionode.verify.model.messages import Watcher
from trionode.verify.paths import Passed, Way


@attrs.frozen
class Violation:
    """One way in which an assertion does not hold."""

    text: str
    #: Hop by hop, one line each.
    way: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n".join((self.text, *(f"    {line}" for line in self.way)))


@attrs.frozen
class Verdict:
    """An assertion, and all that violates it."""

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
        return "\n".join((f"{self.what}: it does not hold", *(str(each) for each in self.violations)))


def judge(proof: Proof, index: int, assertion: AssertSpec) -> Verdict:
    """Judge one assertion."""
    flows = tuple(flow for flow in proof.flows if assertion.flow in {None, flow.name})
    violations: list[Violation] = []
    if assertion.flow is not None:
        violations += (_unproven(flow) for flow in flows if not flow.path.arrives)
    for flow in flows:
        violations += _of_flow(proof, flow, assertion)
    for word in assertion.sender_authenticated_to:
        violations += _not_proven(proof, flows, word, named=assertion.flow is not None)
    for address in assertion.no_unauthenticated_access_to:
        violations += _reached(proof, address)
    for node in assertion.no_unauthenticated_dials_by:
        for dial in proof.strangers.dials.values():
            if dial.node == node:
                violations.append(
                    Violation(f"a stranger can make {node} connect to {dial.to}, by {'.'.join(dial.by)}", dial.way)
                )
    return Verdict(index, describe(assertion), tuple(violations))


def describe(assertion: AssertSpec) -> str:
    """Say what an assertion demands, as its file does."""
    parts = [] if assertion.flow is None else [f"flow {assertion.flow}"]
    for field in attrs.fields(AssertSpec):
        value = getattr(assertion, field.name)
        if field.name != "flow" and value:
            parts.append(f"{field.name} {', '.join(value)}")
    return "; ".join(parts)


def _unproven(flow: Flow) -> Violation:
    return Violation(
        f"{flow.name} does not arrive, so nothing is proven of it: {flow.path.there.trouble}", way_of(flow.path.there)
    )


def _of_flow(proof: Proof, flow: Flow, assertion: AssertSpec) -> Iterator[Violation]:
    inner = flow.path.inner
    told: Mapping[str, tuple[Iterable[str], Callable[[Passed], str]]] = {
        "plaintext": (
            assertion.no_plaintext_at,
            lambda each: (
                f"{_watching(each.at)} sees the payload of {flow.name} in the clear"
                if each.seen.payload == "plaintext"
                else f"{_watching(each.at)} can take the place of the other end of {', '.join(each.may_pose)}, and so read {flow.name}"
                if each.may_read
                else ""
            ),
        ),
        "inner": (
            assertion.no_inner_addresses_at,
            lambda each: (
                f"{_watching(each.at)} learns that {flow.name} is for {', '.join(sorted(inner.intersection(each.seen.addresses)))}"
                if inner.intersection(each.seen.addresses)
                else f"{_watching(each.at)} can take the place of the other end of {', '.join(each.may_pose)}, and so learn whom {flow.name} is for"
                if inner.intersection(each.may_learn)
                else ""
            ),
        ),
        "inject": (
            assertion.no_injection_by,
            lambda each: (
                f"{_watching(each.at)} can invent messages of {flow.name}, which arrive {each.may_inject}"
                if each.may_inject
                else ""
            ),
        ),
    }
    ways = [("there", flow.path.there)] + ([("back", flow.path.back)] if flow.spec.answered else [])
    for words, tell in told.values():
        for word in words:
            for direction, way in ways:
                for each in way.passed:
                    text = tell(each) if is_meant(word, each.at) else ""
                    if text:
                        yield Violation(
                            text + ("" if direction == "there" else ", by its answer"), way_of(way, each.at)
                        )
    receiver = flow.path.receiver
    if assertion.no_injection_by and receiver is not None:
        reached = proof.strangers.reach(*receiver, bare=False)
        if reached is not None:
            who = ", ".join(assertion.no_injection_by)
            yield Violation(
                f"{receiver[0]}/{receiver[1]}, where {flow.name} arrives, takes messages of any stranger {reached.manner}, so of {who} too",
                reached.way,
            )


def _not_proven(proof: Proof, flows: Iterable[Flow], node: str, *, named: bool) -> Iterator[Violation]:
    at = Watcher("node", node)
    passes = False
    for flow in flows:
        passed = flow.path.there.at(at)
        if passed is None or flow.spec.node == node:
            if named:
                yield Violation(f"{flow.name} never comes to {node}", way_of(flow.path.there))
            continue
        passes = True
        sender = proof.world.nodes[flow.spec.node].identity
        if sender not in {proof.world.nodes[each].identity for each in passed.proven if each in proof.world.nodes}:
            yield Violation(
                f"nothing proves to {node} that {flow.name} comes from {flow.spec.node}", way_of(flow.path.there, at)
            )
    if not passes and not named:
        yield Violation(f"no flow comes to {node}, so nothing is proven to it")


def _reached(proof: Proof, text: str) -> Iterator[Violation]:
    node, _, address = text.partition("/")
    reached = proof.strangers.reach(node, address, bare=True)
    if reached is not None:
        yield Violation(f"a stranger reaches {text} {reached.manner}", reached.way)
        return
    who = bare_neighbours(proof, node, address)
    if who:
        yield Violation(
            f"{text} takes messages of whoever is at the other end of a link: of {', '.join(who)}",
            tuple(f"{each} addresses {text} by its link with {node}" for each in who),
        )


def bare_neighbours(proof: Proof, node: str, address: str) -> tuple[str, ...]:
    """Return those who have a link with a node and reach an address of it by nothing else."""
    here = proof.world.nodes[node]
    entry = here.entry(address)
    if entry is None:
        return ()
    found: dict[str, None] = {}
    for origin, who in here.origins:
        if entry.allow(origin):
            found[who] = None
    return tuple(found)


def _watching(watcher: Watcher) -> str:
    match watcher.kind:
        case "connection":
            return (
                f"the network between {watcher.name.replace(' → ', ' and ')}"
                if " → " in watcher.name
                else f"the network {watcher.name}"
            )
        case "store":
            return f"the store {watcher.name}"
        case "outsider":
            return f"whoever is at {watcher.name}"
        case "node":
            return watcher.name


def way_of(way: Way, mark: Watcher | None = None) -> tuple[str, ...]:
    """Write a way hop by hop, up to where it ends, with a mark at one of those who carry it."""
    lines = [
        ("→ " if each.at == mark else "  ")
        + ": ".join(part for part in (str(each.at), "; ".join((*each.does, *_sees(each)))) if part)
        for each in way.passed
    ]
    return (*lines, *((f"  it comes no farther: {way.trouble}",) if way.trouble and way.ends else ()))


def _sees(each: Passed) -> Iterator[str]:
    match each.seen.payload:
        case "nothing":
            yield "sees only that something passes"
        case sight:
            yield f"sees {sight}"
