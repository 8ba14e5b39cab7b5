"""What the proof says of random topologies against what happens when they run: who sees what, what arrives, what can be put in."""

import re
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import suppress

import attrs
import pytest
import trio
from hypothesis import HealthCheck, Phase, given, seed, settings
from trio.testing import MockClock

from tests.support.harness import ANSWER, EVIL, MARKER, SPY, Ground, Told, names_of, really, run, told, watching
from tests.support.mutations import LIES
from tests.support.random_topologies import ENDPOINTS, topologies
from tests.support.stages import STAGES
from trionode import Identity, Message, Route, open_node, trust_everyone, trust_only
from trionode.errors import HandshakeError, TrionodeError, WireError
from trionode.protocol.rules.access import from_anywhere
from trionode.protocol.stream import PullResponse, PushRequest, decode_request, decode_response, encode
from trionode.protocol.wire.address import local
from trionode.protocol.wire.current_codec import CURRENT
from trionode.routing.byte_budget import ByteBudget
from trionode.topology.check.checks import check_spec
from trionode.topology.load.loader import parse_topology
from trionode.topology.spec import TopologySpec
from trionode.verify.model.build import build
from trionode.verify.model.messages import RANDOM, Body, Record, Sealed, Step, Watcher
from trionode.verify.model.network import World
from trionode.verify.paths import Path, walk, watchers_of
from trionode_loopback import Loopback


async def differences(spec: TopologySpec, tally: "Counter[str]") -> list[str]:
    """All in which the proof and reality differ."""
    world = build(spec)
    with watching():
        async with run(spec, world.unopened.keys()) as ground:
            return [each async for each in _differences(ground, world, tally)]


async def _differences(ground: Ground, world: World, tally: "Counter[str]") -> AsyncIterator[str]:
    spec = ground.spec
    for each in sorted(ground.unopened ^ world.unopened.keys()):
        yield f"{each}: really {'not ' * (each in ground.unopened)}open, said to be {world.unopened.get(each, 'open')}"
    tally.update(f"unopened {kind}" for _, kind, _ in ground.unopened)
    SPY.names = names_of(spec)
    for name, flow in spec.flows.items():
        path = walk(world, flow.node, flow.to)
        SPY.clear()
        answered = await ground.ask(flow.node, flow.to) == ANSWER
        for difference in of_flow(ground, world, path, answered=answered):
            yield f"{name} {flow.node} {flow.to}: {difference}"
        count(tally, spec, path)
        for difference in await injections(ground, world, name, tally):
            yield difference


# Putting in


async def injections(ground: Ground, world: World, name: str, tally: "Counter[str]") -> list[str]:
    """In what the proof and reality differ as to who can put messages into a flow, and answers to it."""
    flow = ground.spec.flows[name]
    path = walk(world, flow.node, flow.to)
    wrong: list[str] = []
    if len(path.there.ends) != 1 or not path.returns:
        return wrong
    (end,) = path.there.ends
    sender = end.message.origin.identifier
    for each in path.there.passed:
        if each.at in {Watcher("node", flow.node), Watcher("node", end.node)} or each.at.kind == "outsider":
            continue
        if each.at.kind == "connection" and each.seen.payload == "nothing":
            continue
        really_: str | None = None
        forgers: list[_Forger | _Liar] = [_Liar({each.at}, MARKER)] if each.at.kind == "node" else []
        forgers += (_Forger(step, occurrence) for step, occurrence in _steps_behind(end.message.trail, each.at))
        for forger in forgers:
            SPY.clear()
            SPY.tamper = forger
            await ground.ask(flow.node, flow.to)
            SPY.tamper = None
            for node, worker, payload, origin in SPY.taken:
                if payload == EVIL and (node, worker) == (end.node, end.address):
                    names = {each.identity.identifier.value: each.name for each in ground.running}
                    who = names.get(origin.identifier or b"")
                    really_ = (
                        "as the sender"
                        if who == (world.who(sender) if sender else None)
                        else really_ or "as a stranger"
                    )
        tally[f"put in {really_}"] += 1
        if really_ != each.may_inject:
            wrong.append(f"{name} {flow.node} {flow.to}: {each.at} said to put in {each.may_inject}, really {really_}")
    for each in path.back.passed:
        if each.at in {Watcher("node", flow.node), Watcher("node", end.node)} or each.at.kind == "outsider":
            continue
        if each.at.kind == "connection" and each.seen.payload == "nothing":
            continue
        SPY.clear()
        SPY.tamper = _Liar(_carriers(each.at, path), ANSWER)
        answer = await ground.ask(flow.node, flow.to)
        SPY.tamper = None
        tally[f"answers put in: {answer == EVIL}"] += 1
        if (answer == EVIL) != (each.may_inject is not None) or answer not in {EVIL, ANSWER}:
            wrong.append(f"{name}: {each.at} said to put in answers {each.may_inject}, really {answer!r}")
    return wrong


def _carriers(watcher: Watcher, path: Path) -> set[Watcher]:
    """Whose bytes somebody changes: a broker between nodes has those of the wires."""
    return {
        step.at
        for end in path.back.ends
        for step in end.message.trail
        if watcher in {at for at, _ in watchers_of(step)}
    }


def _steps_behind(trail: Sequence[Step], watcher: Watcher) -> Iterator[tuple[Step, int]]:
    """The steps at which what somebody sends on can be changed, and the how manieth message it is there."""
    for index, step in enumerate(trail):
        if watcher not in {at for at, _ in watchers_of(step)}:
            continue
        where = next((at for at in range(index, len(trail)) if trail[at].puts is not None), None)
        if where is not None:
            yield trail[where], sum(each.at == trail[where].at for each in trail[:where])


class _Forger:
    """Puts EVIL in the place of what is sent, or makes a message like it that no channel protects."""

    def __init__(self, step: Step, occurrence: int) -> None:
        self._at = step.at
        self._left = occurrence
        self._names = _behind_channels(step.message.body)

    def __call__(self, at: Watcher, data: bytes) -> tuple[bytes, ...] | None:
        if at != self._at or ANSWER in data:
            return None
        self._left -= 1
        if self._left != -1:
            return None
        return (data.replace(MARKER, EVIL),) if MARKER in data else self._forged(data)

    def _forged(self, data: bytes) -> tuple[bytes, ...]:
        """What is put in, beside what passes; but for the answer to a pull, of which there can be only one."""
        onward, back, payload = CURRENT.decode(data)
        try:
            push = decode_request(payload)
            assert isinstance(push, PushRequest)
            forged = attrs.evolve(push, record=self._bare(push.record))
            return data, CURRENT.encode(onward, (*back[:-1], local("forger")), encode(forged))
        except WireError:
            pass
        try:
            pulled = decode_response(payload)
            assert isinstance(pulled, PullResponse)
            records = tuple(attrs.evolve(each, message=self._bare(each.message)) for each in pulled.records)
            return (CURRENT.encode(onward, back, encode(attrs.evolve(pulled, records=records))),)
        except WireError:
            return data, self._bare(data)

    def _bare(self, data: bytes) -> bytes:
        onward, back, _ = CURRENT.decode(data)
        return CURRENT.encode((*onward[:-1], *map(local, self._names)), back, EVIL)


def _behind_channels(body: Body) -> tuple[str, ...]:
    """The addresses behind the outermost channel, those behind others within it too; what nobody can guess is left out."""
    while isinstance(body, Record):
        body = body.body
    names: tuple[str, ...] = ()
    while isinstance(body, Sealed):
        names = (*names[:-1], *body.onward)
        body = body.body
    return tuple(name for name in names if not name.startswith(RANDOM))


class _Liar:
    """Puts another payload in the place of one that passes in the clear, at a node, on a wire or in a store."""

    def __init__(self, watchers: set[Watcher], payload: bytes) -> None:
        self._at, self._payload = watchers, payload

    def __call__(self, at: Watcher, data: bytes) -> tuple[bytes, ...] | None:
        return (data.replace(self._payload, EVIL),) if at in self._at else None


def of_flow(ground: Ground, world: World, path: Path, *, answered: bool) -> Iterator[str]:
    """In what one flow differs."""
    said = sorted(
        (end.node, end.address, world.who(end.message.origin.identifier or ""))
        for end in path.there.ends
        if end.what == "arrived"
    )
    names = {each.identity.identifier.value: each.name for each in ground.running}
    came = sorted(
        (node, worker, names.get(origin.identifier or b"", ""))
        for node, worker, payload, origin in SPY.taken
        if payload == MARKER
    )
    if said != came:
        yield f"said to arrive at {said}, really {came}"
    if path.returns != answered:
        yield f"answer said to come: {path.returns} ({path.back.trouble}), really: {answered}"
    sayings, facts_ = told(ground.spec, path), really()
    for watcher in sorted(sayings.keys() | facts_.keys(), key=str):
        if sayings.get(watcher) != facts_.get(watcher):
            yield f"{watcher} said to see {sanitize(sayings.get(watcher))}, really {sanitize(facts_.get(watcher))}"


def sanitize(told_: Told | None) -> str:
    return "nothing at all" if told_ is None else f"there={told_.there} back={told_.back} {sorted(told_.names)}"


def count(tally: "Counter[str]", spec: TopologySpec, path: Path) -> None:
    tally["flows"] += 1
    tally["arrived" if path.arrives else "refused"] += 1
    tally["answered" if path.returns else "unanswered"] += 1
    for end in path.there.ends:
        depth = max((str(step.message.body).count("Sealed(") for step in end.message.trail), default=0)
        tally[f"sealed {min(depth, 3)} times"] += 1
        for step in end.message.trail:
            if step.at.kind == "store":
                tally["through a store"] += 1
            if "by the relay" in step.what:
                tally["through a relay"] += 1
            if step.endpoint is not None and step.link is not None:
                tally[f"over {step.endpoint.transport}"] += 1
        if sum(step.at.kind == "connection" for step in end.message.trail) > 1:
            tally["over several links"] += 1
    tally["copied"] += len(path.there.taken) > 1
    tally["proven"] += any(each.proven for each in path.there.passed)
    for each in path.passed:
        tally[f"{each.at.kind} sees {each.seen.payload}"] += 1


def compare(spec: TopologySpec, tally: "Counter[str]") -> list[str]:
    tally["topologies"] += 1
    try:
        found: list[str] = trio.run(differences, spec, tally, clock=MockClock(autojump_threshold=0))
    except* TrionodeError as group:  # what is said to be open is not
        found = [str(error) for error in _leaves(group)]
    return found


def _leaves(group: BaseExceptionGroup[TrionodeError]) -> Iterator[TrionodeError]:
    for each in group.exceptions:
        if isinstance(each, BaseExceptionGroup):
            yield from _leaves(each)
        else:
            yield each


#: What has to occur among random topologies, so that their agreement means something.
OCCURS = (
    "answered",
    "unanswered",
    "arrived",
    "refused",
    "copied",
    "proven",
    "sealed 0 times",
    "sealed 1 times",
    "sealed 2 times",
    "through a relay",
    "through a store",
    "over several links",
    "unopened relays",
    "unopened secure_channels",
    "unopened streams",
    "node sees plaintext",
    "node sees ciphertext",
    "connection sees plaintext",
    "connection sees ciphertext",
    "connection sees nothing",
    "store sees plaintext",
    "store sees ciphertext",
    "put in None",
    "put in as the sender",
    "put in as a stranger",
    "answers put in: True",
    "answers put in: False",
    *(f"over {transport}" for transport in ENDPOINTS),
)


def compare_many(number: int, start: int) -> "Counter[str]":
    """Compare so many random topologies, the same ones each time; what occurred in them."""
    tally: Counter[str] = Counter()

    @seed(start)
    @settings(
        max_examples=number,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    )
    @given(topologies())
    def agree(spec: TopologySpec) -> None:
        assert list(check_spec(spec, nodes=())) == []
        assert compare(spec, tally) == []

    agree()
    assert [what for what in OCCURS if not tally[what]] == []
    return tally


def test_what_the_proof_says_of_random_topologies_is_what_happens() -> None:
    assert compare_many(60, 20)["topologies"] >= 50


@pytest.mark.soak
def test_what_the_proof_says_of_a_thousand_random_topologies_is_what_happens(
    capsys: pytest.CaptureFixture[str],
) -> None:
    tally = compare_many(1000, 1)
    with capsys.disabled():
        sys.stdout.write("\n" + "\n".join(f"{number:6} {what}" for what, number in sorted(tally.items())) + "\n")
    assert tally["topologies"] >= 500


@pytest.mark.parametrize("stage", STAGES)
def test_what_the_proof_says_of_a_known_topology_is_what_happens(stage: str) -> None:
    assert compare(parse_topology(STAGES[stage], nodes=()), Counter()) == []


def test_there_are_twenty_lies_and_more() -> None:
    assert len(LIES) >= 20


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_caught(lie: str) -> None:
    for stage in STAGES.values():
        with LIES[lie]():
            found = compare(parse_topology(stage, nodes=()), Counter())
        if found:
            return
    pytest.fail("nobody noticed")


@pytest.mark.parametrize("trust", ["everyone", "bob"])
async def test_whoever_would_be_taken_for_the_other_end_reads_and_nobody_else(trust: str) -> None:
    """The hub answers for Bob: what the verifier calls `could read`."""
    trusted = 'trust = "everyone"' if trust == "everyone" else 'trust = { nodes = ["bob"] }'
    text = re.sub(r'(relayed = .*"ls-bob"\], )trust = .*\}(?= \})', rf"\1{trusted}", STAGES["hub"])
    said = walk(parse_topology(text, nodes=()), "alice", ["@relayed", "wk-bob"]).there.at(Watcher("node", "hub"))
    assert said is not None

    network = Loopback()
    async with open_node(network) as hub, open_node(network) as alice:
        mallory, bob = await Identity.create(hub.vault), await Identity.create(alice.vault, "bob")
        await hub.serve_secure_channels("ls-bob", mallory, trust=trust_everyone)

        def answer_for_bob(message: Message) -> ByteBudget | None:
            return hub.router.deliver(Message(message.onward[1:], message.back, message.payload, message.origin))

        hub.router.register(local("forward_to_rl-bob"), answer_for_bob, allow=from_anywhere)
        await hub.listen("loopback:hub")
        read = False
        async with hub.open_mailbox("wk-bob") as mailbox:
            with suppress(HandshakeError):
                channel = await alice.open_secure_channel(
                    Route("loopback:hub", "forward_to_rl-bob", "ls-bob"),
                    await Identity.create(alice.vault, "alice"),
                    trust=trust_everyone if trust == "everyone" else trust_only(bob.identifier),
                )
                await alice.send(Route(channel, "wk-bob"), MARKER)
                read = (await mailbox.receive()).payload == MARKER
    assert said.may_read is read is (trust == "everyone")
