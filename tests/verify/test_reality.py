"""The analysis of random topologies compared with their run: what opens, arrives, is seen and can be injected."""

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

from tests.mutations.patches import MUTATIONS
from tests.support.harness import ANSWER, EVIL, MARKER, RECORDER, Harness, Sighting, names_of, predicted, recording, run
from tests.support.random_topologies import ENDPOINTS, topologies
from tests.support.stages import STAGES
from trionode import Identity, Message, Route, open_node, trust_everyone, trust_only
from trionode.errors import HandshakeError, TrionodeError, WireError
from trionode.protocol.rules.access import from_anywhere
from trionode.protocol.stream.messages import PullResponse, PushRequest, decode_request, decode_response, encode
from trionode.protocol.wire.address import local
from trionode.protocol.wire.current_codec import CURRENT
from trionode.routing.byte_budget import ByteBudget
from trionode.topology.check.checks import check_spec
from trionode.topology.load.loader import parse_topology
from trionode.topology.spec import TopologySpec
from trionode.verify.model.build import build
from trionode.verify.model.messages import RANDOM, Body, Observer, Record, Sealed, Step
from trionode.verify.model.network import SymbolicNetwork
from trionode.verify.paths import Path, observers_of, trace_route
from trionode_loopback import Loopback


async def differences(spec: TopologySpec, tally: "Counter[str]") -> list[str]:
    """Return every difference between the analysis and the running topology."""
    network = build(spec)
    with recording():
        async with run(spec, network.unopened.keys()) as harness:
            return [each async for each in _differences(harness, network, tally)]


async def _differences(harness: Harness, network: SymbolicNetwork, tally: "Counter[str]") -> AsyncIterator[str]:
    spec = harness.spec
    for each in sorted(harness.unopened ^ network.unopened.keys()):
        yield f"{each}: {'not ' * (each in harness.unopened)}open when run, predicted: {network.unopened.get(each, 'open')}"
    tally.update(f"unopened {kind}" for _, kind, _ in harness.unopened)
    RECORDER.names = names_of(spec)
    for name, flow in spec.flows.items():
        path = trace_route(network, flow.node, flow.to)
        RECORDER.clear()
        answered = await harness.ask(flow.node, flow.to) == ANSWER
        for difference in of_flow(harness, network, path, answered=answered):
            yield f"{name} {flow.node} {flow.to}: {difference}"
        count(tally, spec, path)
        for difference in await injections(harness, network, name, tally):
            yield difference


# Injection


async def injections(harness: Harness, network: SymbolicNetwork, name: str, tally: "Counter[str]") -> list[str]:
    """Return the differences in which observers can inject messages into a flow, and answers to it."""
    flow = harness.spec.flows[name]
    path = trace_route(network, flow.node, flow.to)
    wrong: list[str] = []
    if len(path.request.outcomes) != 1 or not path.returns:
        return wrong
    (end,) = path.request.outcomes
    sender = end.message.origin.identifier
    for each in path.request.observations:
        if each.at in {Observer("node", flow.node), Observer("node", end.node)} or each.at.kind == "outsider":
            continue
        if each.at.kind == "connection" and each.visible.payload == "nothing":
            continue
        actual: str | None = None
        forgers: list[_Forger | _Replacer] = [_Replacer({each.at}, MARKER)] if each.at.kind == "node" else []
        forgers += (_Forger(step, occurrence) for step, occurrence in _steps_behind(end.message.trail, each.at))
        for forger in forgers:
            RECORDER.clear()
            RECORDER.tamper = forger
            await harness.ask(flow.node, flow.to)
            RECORDER.tamper = None
            for node, worker, payload, origin in RECORDER.taken:
                if payload == EVIL and (node, worker) == (end.node, end.address):
                    names = {each.identity.identifier.value: each.name for each in harness.running}
                    sender_name = names.get(origin.identifier or b"")
                    actual = (
                        "as the sender"
                        if sender_name == (network.node_of(sender) if sender else None)
                        else actual or "unauthenticated"
                    )
        tally[f"inject {actual}"] += 1
        if actual != each.can_inject:
            wrong.append(f"{name} {flow.node} {flow.to}: {each.at} predicted to inject {each.can_inject}, did {actual}")
    for each in path.reply.observations:
        if each.at in {Observer("node", flow.node), Observer("node", end.node)} or each.at.kind == "outsider":
            continue
        if each.at.kind == "connection" and each.visible.payload == "nothing":
            continue
        RECORDER.clear()
        RECORDER.tamper = _Replacer(_carriers(each.at, path), ANSWER)
        answer = await harness.ask(flow.node, flow.to)
        RECORDER.tamper = None
        tally[f"inject answers: {answer == EVIL}"] += 1
        if (answer == EVIL) != (each.can_inject is not None) or answer not in {EVIL, ANSWER}:
            wrong.append(f"{name}: {each.at} predicted to inject answers {each.can_inject}, got {answer!r}")
    return wrong


def _carriers(observer: Observer, path: Path) -> set[Observer]:
    """Return where the bytes of an observer are: a broker between nodes has those of connections."""
    return {
        step.at
        for end in path.reply.outcomes
        for step in end.message.trail
        if observer in {at for at, _ in observers_of(step)}
    }


def _steps_behind(trail: Sequence[Step], observer: Observer) -> Iterator[tuple[Step, int]]:
    """Yield the steps at which an observer can change a forwarded message, and how many messages passed before."""
    for index, step in enumerate(trail):
        if observer not in {at for at, _ in observers_of(step)}:
            continue
        where = next((at for at in range(index, len(trail)) if trail[at].inject is not None), None)
        if where is not None:
            yield trail[where], sum(each.at == trail[where].at for each in trail[:where])


class _Forger:
    """Replaces the payload with EVIL, or makes a message like it without channels."""

    def __init__(self, step: Step, occurrence: int) -> None:
        self._at = step.at
        self._left = occurrence
        self._names = _behind_channels(step.message.body)

    def __call__(self, at: Observer, data: bytes) -> tuple[bytes, ...] | None:
        if at != self._at or ANSWER in data:
            return None
        self._left -= 1
        if self._left != -1:
            return None
        return (data.replace(MARKER, EVIL),) if MARKER in data else self._forged(data)

    def _forged(self, data: bytes) -> tuple[bytes, ...]:
        """Return the injected messages beside the original one.

        The answer to a pull is replaced: there can be only one.
        """
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
    """Return the addresses behind all channels around a payload, without those that cannot be guessed."""
    while isinstance(body, Record):
        body = body.body
    names: tuple[str, ...] = ()
    while isinstance(body, Sealed):
        names = (*names[:-1], *body.onward)
        body = body.body
    return tuple(name for name in names if not name.startswith(RANDOM))


class _Replacer:
    """Replaces a payload that passes in plaintext with EVIL, at a node, on a connection or in a store."""

    def __init__(self, watchers: set[Observer], payload: bytes) -> None:
        self._at, self._payload = watchers, payload

    def __call__(self, at: Observer, data: bytes) -> tuple[bytes, ...] | None:
        return (data.replace(self._payload, EVIL),) if at in self._at else None


def of_flow(harness: Harness, network: SymbolicNetwork, path: Path, *, answered: bool) -> Iterator[str]:
    """Yield the differences of one flow."""
    predicted_arrivals = sorted(
        (end.node, end.address, network.node_of(end.message.origin.identifier or ""))
        for end in path.request.outcomes
        if end.what == "arrived"
    )
    names = {each.identity.identifier.value: each.name for each in harness.running}
    arrivals = sorted(
        (node, worker, names.get(origin.identifier or b"", ""))
        for node, worker, payload, origin in RECORDER.taken
        if payload == MARKER
    )
    if predicted_arrivals != arrivals:
        yield f"predicted to arrive at {predicted_arrivals}, arrived at {arrivals}"
    if path.returns != answered:
        yield f"answer predicted: {path.returns} ({path.reply.trouble}), came: {answered}"
    predictions, sightings = predicted(harness.spec, path), RECORDER.seen
    for observer in sorted(predictions.keys() | sightings.keys(), key=str):
        if predictions.get(observer) != sightings.get(observer):
            yield f"{observer} predicted to see {_text(predictions.get(observer))}, saw {_text(sightings.get(observer))}"


def _text(sighting: Sighting | None) -> str:
    if sighting is None:
        return "nothing"
    return f"request={sighting.request} reply={sighting.reply} {sorted(sighting.names)}"


def count(tally: "Counter[str]", spec: TopologySpec, path: Path) -> None:
    tally["flows"] += 1
    tally["arrived" if path.arrives else "refused"] += 1
    tally["answered" if path.returns else "unanswered"] += 1
    for end in path.request.outcomes:
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
    tally["copied"] += len(path.request.accepted) > 1
    tally["authenticated"] += any(each.authenticated for each in path.request.observations)
    for each in path.observations:
        tally[f"{each.at.kind} sees {each.visible.payload}"] += 1


def compare(spec: TopologySpec, tally: "Counter[str]") -> list[str]:
    tally["topologies"] += 1
    try:
        found: list[str] = trio.run(differences, spec, tally, clock=MockClock(autojump_threshold=0))
    except* TrionodeError as group:  # something that should open did not
        found = [str(error) for error in _leaves(group)]
    return found


def _leaves(group: BaseExceptionGroup[TrionodeError]) -> Iterator[TrionodeError]:
    for each in group.exceptions:
        if isinstance(each, BaseExceptionGroup):
            yield from _leaves(each)
        else:
            yield each


#: What has to occur among random topologies; otherwise their agreement would prove little.
OCCURS = (
    "answered",
    "unanswered",
    "arrived",
    "refused",
    "copied",
    "authenticated",
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
    "inject None",
    "inject as the sender",
    "inject unauthenticated",
    "inject answers: True",
    "inject answers: False",
    *(f"over {transport}" for transport in ENDPOINTS),
)


def compare_many(number: int, start: int) -> "Counter[str]":
    """Compare a number of random topologies, always the same ones; return how often each feature occurred."""
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


def test_analysis_agrees_with_random_running_topologies() -> None:
    assert compare_many(60, 20)["topologies"] >= 50


@pytest.mark.soak
def test_analysis_agrees_with_a_thousand_random_running_topologies(
    capsys: pytest.CaptureFixture[str],
) -> None:
    tally = compare_many(1000, 1)
    with capsys.disabled():
        sys.stdout.write("\n" + "\n".join(f"{number:6} {what}" for what, number in sorted(tally.items())) + "\n")
    assert tally["topologies"] >= 500


@pytest.mark.parametrize("stage", STAGES)
def test_analysis_agrees_with_a_known_running_topology(stage: str) -> None:
    assert compare(parse_topology(STAGES[stage], nodes=()), Counter()) == []


def test_there_are_at_least_twenty_mutations() -> None:
    assert len(MUTATIONS) >= 20


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_mutation_is_noticed(mutation: str) -> None:
    for stage in STAGES.values():
        with MUTATIONS[mutation]():
            found = compare(parse_topology(stage, nodes=()), Counter())
        if found:
            return
    pytest.fail("no stage showed a difference")


@pytest.mark.parametrize("trust", ["everyone", "bob"])
async def test_only_a_trusted_hop_can_impersonate_the_peer(trust: str) -> None:
    """The hub answers for Bob: the verifier calls it `could read`."""
    trusted = 'trust = "everyone"' if trust == "everyone" else 'trust = { nodes = ["bob"] }'
    text = re.sub(r'(relayed = .*"ls-bob"\], )trust = .*\}(?= \})', rf"\1{trusted}", STAGES["hub"])
    hub_observation = trace_route(parse_topology(text, nodes=()), "alice", ["@relayed", "wk-bob"]).request.at(
        Observer("node", "hub")
    )
    assert hub_observation is not None

    network = Loopback()
    async with open_node(network) as hub, open_node(network) as alice:
        mallory, bob = await Identity.create(hub.vault), await Identity.create(alice.vault, "bob")
        await hub.serve_secure_channels("ls-bob", mallory, trust=trust_everyone)

        def answer_for_bob(message: Message) -> ByteBudget | None:
            return hub._router.deliver(Message(message.onward[1:], message.back, message.payload, message.origin))

        hub._router.register(local("forward_to_rl-bob"), answer_for_bob, allow=from_anywhere)
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
    assert hub_observation.can_decrypt is read is (trust == "everyone")
