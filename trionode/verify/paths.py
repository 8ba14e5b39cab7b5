"""The path of a message: its observers, what each sees and can do, and whether an answer comes back."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import takewhile
from typing import Literal, TypeVar

import attrs

from trionode.net.endpoint import Exposure
from trionode.topology.endpoints import is_within_machine
from trionode.topology.spec import TopologySpec
from trionode.verify.model.build import build
from trionode.verify.model.messages import (
    ANSWERS,
    RANDOM,
    Body,
    Clear,
    Observer,
    Outcome,
    Record,
    Sealed,
    Step,
    SymbolicMessage,
)
from trionode.verify.model.network import CannotOpenError, SymbolicEntry, SymbolicNetwork

#: What an observer sees of a payload; "nothing" if it sees sizes and times only.
Visibility = Literal["plaintext", "ciphertext", "nothing"]
#: How an injected message reaches the receiver: with the sender's identity, or with another or none.
Injection = Literal["as the sender", "unauthenticated"]

#: The more an observer sees or can do, the later it stands.
_VISIBILITIES: Sequence[Visibility] = ("nothing", "ciphertext", "plaintext")
_INJECTIONS: Sequence[Injection | None] = (None, "unauthenticated", "as the sender")

T = TypeVar("T")


def _greater(order: Sequence[T], one: T, other: T) -> T:
    return order[max(order.index(one), order.index(other))]


def _union(one: Iterable[str], other: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*one, *other)))


@attrs.frozen
class Visible:
    """What a message shows to those who hold its bytes."""

    payload: Visibility
    #: Addresses in the clear, in the order of the routes. Random ones, which cannot be guessed, begin with `#`.
    addresses: tuple[str, ...]

    def __or__(self, other: "Visible") -> "Visible":
        payload: Visibility = _greater(_VISIBILITIES, self.payload, other.payload)
        return Visible(payload, _union(self.addresses, other.addresses))


NOTHING = Visible("nothing", ())


def visible_in(message: SymbolicMessage) -> Visible:
    """Return what a message shows to an observer without keys."""
    addresses = [*message.onward, *message.back]
    body: Body = message.body
    while isinstance(body, Record):
        addresses += (body.stream, *body.onward, *body.back)
        body = body.body
    payload: Visibility = (
        "plaintext" if isinstance(body, Clear) else "ciphertext" if isinstance(body, Sealed) else "nothing"
    )
    return Visible(payload, tuple(addresses))


def clients_of(node: str, key: str) -> Observer:
    """Return the observer that stands for the clients of an inlet and the network between them and the node."""
    return Observer("outsider", f"the inlet {node}/{key}")


def observers_of(step: Step) -> Iterator[tuple[Observer, Visible]]:
    """Yield who sees a step, and what: for a connection the network, and the brokers if there are any."""
    visible, endpoint = visible_in(step.message), step.endpoint
    if step.at.kind != "connection":
        yield step.at, visible
        if step.at.kind == "store" and endpoint is not None and endpoint.exposure:
            yield (
                Observer("connection", f"to store {step.at.name}"),
                visible if endpoint.is_seen_by_network else NOTHING,
            )
        return
    if endpoint is None or not endpoint.exposure:
        return
    if Exposure.BROKERS in endpoint.exposure:
        yield Observer("store", str(endpoint)), visible
    yield step.at, visible if endpoint.is_seen_by_network else NOTHING


@attrs.frozen
class Observation:
    """What one observer sees of a message and its copies in one direction, and what it can do with them."""

    at: Observer
    visible: Visible
    #: What happens there, in order.
    events: tuple[str, ...] = ()
    #: Whether it can keep the message from those behind it.
    can_drop: bool = False
    #: Whether a message that it makes up reaches the receiver, and how.
    can_inject: Injection | None = None
    #: Channels that would accept it as the peer.
    can_impersonate: tuple[str, ...] = ()
    #: Whether every channel that encrypts the payload there is one of those, so that it could read the payload.
    can_decrypt: bool = False
    #: Addresses that it would learn by that.
    can_learn: frozenset[str] = frozenset()
    #: Nodes that a secure channel authenticates to it.
    authenticated: tuple[str, ...] = ()

    def __or__(self, other: "Observation") -> "Observation":
        return Observation(
            self.at,
            self.visible | other.visible,
            _union(self.events, other.events),
            self.can_drop or other.can_drop,
            _greater(_INJECTIONS, self.can_inject, other.can_inject),
            _union(self.can_impersonate, other.can_impersonate),
            self.can_decrypt or other.can_decrypt,
            self.can_learn | other.can_learn,
            _union(self.authenticated, other.authenticated),
        )


@attrs.frozen
class Direction:
    """One direction of a conversation: all observers in order, and what becomes of each copy of the message."""

    observations: tuple[Observation, ...] = ()
    outcomes: tuple[Outcome, ...] = ()

    @property
    def accepted(self) -> tuple[Outcome, ...]:
        """The outcomes in which something accepts the message, wanted or not."""
        return tuple(outcome for outcome in self.outcomes if outcome.is_accepted)

    @property
    def trouble(self) -> str:
        """Why the message does not arrive, if that is known; empty if it arrives."""
        if self.accepted:
            return ""
        return next((outcome.text for outcome in self.outcomes if outcome.text), "no node accepts it")

    def at(self, observer: Observer) -> Observation | None:
        """Return an observer's observation.

        Args:
          observer: The observer.

        Returns:
          What it sees and can do; None if the message does not pass it.
        """
        return next((each for each in self.observations if each.at == observer), None)


@attrs.frozen
class Path:
    """The path of a message to its receiver, and of the answer back."""

    node: str
    route: tuple[str, ...]
    request: Direction
    reply: Direction
    #: Addresses that a secure channel hides from others; the last address of the route if there is no channel.
    inner: frozenset[str]
    #: The node that a secure channel authenticates to the receiver as the sender.
    authenticated_sender: str | None = None

    @property
    def receiver(self) -> tuple[str, str] | None:
        """Node and address that accept the message first; None if none does."""
        return next(((outcome.node, outcome.address) for outcome in self.request.accepted), None)

    @property
    def arrives(self) -> bool:
        """Whether a node of the topology accepts the message."""
        return bool(self.request.accepted)

    @property
    def returns(self) -> bool:
        """Whether an answer comes back to the sender."""
        return any(outcome.what == "answered" for outcome in self.reply.outcomes)

    @property
    def observations(self) -> tuple[Observation, ...]:
        """What each observer sees of both directions."""
        found: dict[Observer, Observation] = {}
        for each in (*self.request.observations, *self.reply.observations):
            found[each.at] = found[each.at] | each if each.at in found else each
        return tuple(found.values())


def trace_route(spec: TopologySpec | SymbolicNetwork, node: str, route: Iterable[str]) -> Path:
    """Return the path of a message that a node sends along a route, given as in a spec. Pass a network to reuse it."""
    network = spec if isinstance(spec, SymbolicNetwork) else build(spec)
    sender = network.nodes[node]
    hops = tuple(route)
    try:
        onward = network.resolve(sender, hops)
    except CannotOpenError as error:
        why = next((text for key, text in network.unopened.items() if key[0] == node and "@" + key[2] == hops[0]), "")
        text = f"{error}: {why}" if why else str(error)
        outcome = Outcome("dropped", node, hops[0], text, SymbolicMessage(hops, (), Clear()))
        return Path(node, hops, Direction(outcomes=(outcome,)), Direction(), frozenset(hops[-1:]))
    sender.table[ANSWERS] = SymbolicEntry("answers", lambda message: network.end("answered", sender, message))
    requests = network.run(sender, SymbolicMessage(onward, (ANSWERS,), Clear()))
    arrived = [outcome for outcome in requests if outcome.what == "arrived"]
    # An answer is a message of its own. A worker that passes messages on gets the answers to them.
    replies = tuple(
        reply
        for outcome in arrived
        for reply in network.run(
            network.nodes[outcome.node], SymbolicMessage(outcome.message.back, (_source(outcome),), Clear())
        )
    )
    del sender.table[ANSWERS]
    receiver = arrived[0].node if arrived else None
    identity = arrived[0].message.origin.identifier if arrived else None
    return Path(
        node,
        hops,
        _direction(network, requests, node, receiver),
        _direction(network, replies, receiver, node),
        _inner(requests, hops),
        None if identity is None else network.node_of(identity),
    )


def from_clients(path: Path, key: str, at: str) -> Path:
    """Return the path of what an inlet carries with the inlet's clients; unchanged if only this machine can connect."""
    if is_within_machine(at):
        return path
    clients = Observation(
        clients_of(path.node, key),
        Visible("plaintext", ()),
        (f"connects to {at}",),
        can_drop=True,
        can_inject="as the sender",
    )
    request = attrs.evolve(path.request, observations=(clients, *path.request.observations))
    reply = path.reply
    if reply.observations:
        reply = attrs.evolve(reply, observations=(*reply.observations, clients))
    return attrs.evolve(path, request=request, reply=reply)


def _source(outcome: Outcome) -> str:
    return RANDOM + "answerer" if outcome.address.startswith("@") else outcome.address


def layers(body: Body) -> Iterator[Sealed | Record]:
    """Yield the layers around a payload, the outermost first: what channels have encrypted, and records of streams."""
    while isinstance(body, Sealed | Record):
        yield body
        body = body.body


def _names(route: Iterable[str]) -> Iterator[str]:
    """Yield the addresses of a route that can be guessed."""
    return (each for each in route if not each.startswith(RANDOM))


def _inner(outcomes: Iterable[Outcome], route: Sequence[str]) -> frozenset[str]:
    inner = {
        name
        for outcome in outcomes
        for step in outcome.message.trail
        for layer in layers(step.message.body)
        if isinstance(layer, Sealed)
        for name in _names(layer.onward)
    }
    return frozenset(inner or route[-1:])


# What each observer sees and can do


def _direction(
    network: SymbolicNetwork, outcomes: tuple[Outcome, ...], sender: str | None, receiver: str | None
) -> Direction:
    """Collect what each observer of a message and its copies sees, and try what each can inject."""
    found: dict[Observer, Observation] = {}
    ends = {Observer("node", name) for name in (sender, receiver) if name is not None}
    known: set[int] = set()
    for outcome in outcomes:
        trail = outcome.message.trail
        for index, step in enumerate(trail):
            is_new = id(step) not in known
            known.add(id(step))
            for observer, visible in observers_of(step):
                before = found.get(observer, Observation(observer, NOTHING))
                is_end = observer in ends
                behind = any(later.at != step.at for later in trail[index + 1 :])
                each = Observation(observer, visible, can_drop=behind and not is_end and observer.kind != "outsider")
                if is_new:
                    each |= _from_step(network, observer, step)
                # An end of the flow is trusted with it. A transport protects a connection that shows nothing.
                if not is_end and not (observer.kind == "connection" and visible.payload == "nothing"):
                    if is_new:
                        each |= _impersonation(network, observer, step.message)
                    if outcome.is_accepted and before.can_inject != "as the sender":
                        each = attrs.evolve(each, can_inject=_injection(network, trail, index, outcome))
                found[observer] = before | each
    return Direction(tuple(found.values()), outcomes)


def _from_step(network: SymbolicNetwork, observer: Observer, step: Step) -> Observation:
    """Return what happens at a step, and which node a channel authenticates there."""
    identity = step.message.origin.identifier
    authenticated = () if identity is None or step.at != observer else (network.node_of(identity),)
    return Observation(observer, NOTHING, (step.what,) if step.what else (), authenticated=authenticated)


def _impersonation(network: SymbolicNetwork, observer: Observer, message: SymbolicMessage) -> Observation:
    """Return which channels around a payload would accept an observer as the peer, from the outermost on."""
    sealed = [layer for layer in layers(message.body) if isinstance(layer, Sealed)]
    open_ = list(takewhile(partial(_would_trust, network, observer), sealed))
    return Observation(
        observer,
        NOTHING,
        can_impersonate=_union((), (f"@{layer.channel.name} of {layer.channel.initiator}" for layer in open_)),
        can_decrypt=bool(sealed) and len(open_) == len(sealed),
        can_learn=frozenset(name for layer in open_ for name in _names(layer.onward)),
    )


def _would_trust(network: SymbolicNetwork, observer: Observer, sealed: Sealed) -> bool:
    """Return whether the sender of an encrypted message would accept an observer as the channel's other end."""
    channel = sealed.channel
    if observer.kind == "node" and observer.name in {channel.initiator, channel.responder}:
        return False  # it is an end of it
    identity = network.nodes[observer.name].identity if observer.kind == "node" else f"{RANDOM}any identity"
    if not network.trusts(channel.spec.trust, identity):
        return False
    # The responder answers the peer that opened the channel. To stand between the two, the observer needs its trust
    # too.
    return sealed.by == channel.initiator or network.trusts(channel.listener_spec.trust, identity)


def _injection(network: SymbolicNetwork, trail: Sequence[Step], index: int, outcome: Outcome) -> Injection | None:
    """Return how a message that is injected at a step reaches the same receiver."""
    step = next((each for each in trail[index:] if each.inject is not None), None)
    if step is None:
        return None
    if "plaintext" in {visible_in(trail[index].message).payload, visible_in(step.message).payload}:
        # A payload in the clear is addressed in the clear too, so another payload takes the same path. So does one of
        # a node that encrypts it itself.
        return "as the sender"
    forged = without_channels(step.message)
    for each in () if forged is None else network.inject(step, attrs.evolve(forged, trail=())):
        if (each.what, each.node, each.address) == (outcome.what, outcome.node, outcome.address):
            same = each.message.origin.identifier == outcome.message.origin.identifier
            return "as the sender" if same else "unauthenticated"
    return None


def without_channels(message: SymbolicMessage) -> SymbolicMessage | None:
    """Return a message like this one without channels, as an observer without keys can make it.

    It leaves out random addresses that only the ends of a channel know: they lead nowhere that names do not lead.
    None if the last address is one of them.
    """
    opened = _open(message.onward, message.body)
    return None if opened is None else attrs.evolve(message, onward=opened[0], body=opened[1])


def _open(onward: tuple[str, ...], body: Body) -> tuple[tuple[str, ...], Body] | None:
    match body:
        case Sealed():
            inner = _open(body.onward, body.body)
            if inner is None or inner[0][-1].startswith(RANDOM):
                return None
            return (*onward[:-1], *_names(inner[0])), inner[1]
        case Record():
            inner = _open(body.onward, body.body)
            return None if inner is None else (onward, attrs.evolve(body, onward=inner[0], body=inner[1]))
        case _:
            return onward, body
