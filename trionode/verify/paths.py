"""The way of a message through a topology: who carries it, what each of them sees and could do, and whether an answer comes back."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import attrs

from trionode.net.endpoint import Exposure
from trionode.topology.endpoints import is_within_machine
from trionode.topology.spec import TopologySpec
from trionode.verify.model.build import build
from trionode.verify.model.messages import ANSWERS, RANDOM, Body, Clear, End, Message, Record, Sealed, Step, Watcher
from trionode.verify.model.network import Entry, UnopenedError, World

#: What somebody sees of a payload; nothing where only sizes and times can be seen.
Sight = Literal["plaintext", "ciphertext", "nothing"]
#: How what somebody puts in reaches the receiver: just as the sender's messages do, or let in although no channel brings it.
Injection = Literal["as the sender", "as a stranger"]

_ORDER: Sequence[Sight] = ("nothing", "ciphertext", "plaintext")


@attrs.frozen
class Seen:
    """What a message shows to whoever holds its bytes."""

    payload: Sight
    #: Addresses in the clear, in the order of the routes; those that nobody can guess begin with `#`.
    addresses: tuple[str, ...]

    def __or__(self, other: "Seen") -> "Seen":
        addresses = dict.fromkeys((*self.addresses, *other.addresses))
        payload = self.payload if _ORDER.index(self.payload) > _ORDER.index(other.payload) else other.payload
        return Seen(payload, tuple(addresses))


NOTHING = Seen("nothing", ())


def seen_in(message: Message) -> Seen:
    """Return what a message shows as it is, to whoever has no key."""
    addresses = [*message.onward, *message.back]
    body: Body = message.body
    while isinstance(body, Record):
        addresses += (body.stream, *body.onward, *body.back)
        body = body.body
    payload: Sight = "plaintext" if isinstance(body, Clear) else "ciphertext" if isinstance(body, Sealed) else "nothing"
    return Seen(payload, tuple(addresses))


def clients_of(node: str, key: str) -> Watcher:
    """Return who connects to an inlet that the network reaches, and all between him and it."""
    return Watcher("outsider", f"the inlet {node}/{key}")


def watchers_of(step: Step) -> Iterator[tuple[Watcher, Seen]]:
    """Tell who sees something at a step, and what; of a wire that is the network, and the brokers where there are any."""
    seen, endpoint = seen_in(step.message), step.endpoint
    if step.at.kind != "connection":
        yield step.at, seen
        if step.at.kind == "store" and endpoint is not None and endpoint.exposure:
            yield Watcher("connection", f"to store {step.at.name}"), seen if endpoint.is_seen_by_network else NOTHING
        return
    if endpoint is None or not endpoint.exposure:
        return
    if Exposure.BROKERS in endpoint.exposure:
        yield Watcher("store", str(endpoint)), seen
    yield step.at, seen if endpoint.is_seen_by_network else NOTHING


@attrs.frozen
class Passed:
    """One who carries a message, or the copies of it, on its way in one direction."""

    at: Watcher
    seen: Seen
    #: What happens there, in order.
    does: tuple[str, ...]
    #: Whether he could keep the message from those who are behind him.
    may_drop: bool
    #: Whether messages that he invents reach the receiver, and how.
    may_inject: Injection | None
    #: Channels whose other end he could be, because they would trust him, so that he could read what is in them.
    may_pose: tuple[str, ...] = ()
    #: Whether all that seals the payload there is such a channel.
    may_read: bool = False
    #: Addresses that he would learn by that.
    may_learn: frozenset[str] = frozenset()
    #: Whose identity a secure channel proves to him, by the names of nodes.
    proven: tuple[str, ...] = ()


@attrs.frozen
class Way:
    """One direction of a conversation: all who carry it, in order, and where it ends."""

    passed: tuple[Passed, ...] = ()
    ends: tuple[End, ...] = ()

    @property
    def taken(self) -> tuple[End, ...]:
        """The ends at which somebody gets the message, whoever it is."""
        return tuple(end for end in self.ends if end.what in {"arrived", "answered"})

    @property
    def trouble(self) -> str:
        """Why it doesn't arrive, as far as is known; empty if it does."""
        if self.taken:
            return ""
        return next((end.text for end in self.ends if end.text), "nobody takes it")

    def at(self, watcher: Watcher) -> Passed | None:
        """Return what somebody sees and could do; None if nothing comes by him."""
        return next((each for each in self.passed if each.at == watcher), None)


@attrs.frozen
class Path:
    """A message's way to its receiver, and the answer's way back."""

    node: str
    route: tuple[str, ...]
    there: Way
    back: Way
    #: Addresses that a secure channel hides from others; without any channel the last one of the route.
    inner: frozenset[str]
    #: Whose message it is as far as its receiver knows: the node whose identity a secure channel has proven.
    proven: str | None = None

    @property
    def receiver(self) -> tuple[str, str] | None:
        """Node and address of who gets the message first; None if nobody does."""
        return next(((end.node, end.address) for end in self.there.taken), None)

    @property
    def arrives(self) -> bool:
        """Whether somebody in the topology gets it."""
        return bool(self.there.taken)

    @property
    def returns(self) -> bool:
        """Whether an answer comes back to the sender."""
        return any(end.what == "answered" for end in self.back.ends)

    @property
    def passed(self) -> tuple[Passed, ...]:
        """All who carry one of the two, with what they see of both."""
        found: dict[Watcher, Passed] = {}
        for each in (*self.there.passed, *self.back.passed):
            known = found.get(each.at)
            found[each.at] = each if known is None else _both(known, each)
        return tuple(found.values())


def _both(one: Passed, other: Passed) -> Passed:
    return Passed(
        one.at,
        one.seen | other.seen,
        one.does,
        one.may_drop or other.may_drop,
        one.may_inject or other.may_inject,
        tuple(dict.fromkeys((*one.may_pose, *other.may_pose))),
        one.may_read or other.may_read,
        one.may_learn | other.may_learn,
        tuple(dict.fromkeys((*one.proven, *other.proven))),
    )


def walk(spec: TopologySpec | World, node: str, route: Iterable[str]) -> Path:
    """Return the way of a message that a node sends along a route, as a spec has it; pass the same World for several."""
    world = spec if isinstance(spec, World) else build(spec)
    sender = world.nodes[node]
    hops = tuple(route)
    try:
        onward = world.resolve(sender, hops)
    except UnopenedError as error:
        key = next((key for key in world.unopened if key[0] == node and "@" + key[2] == hops[0]), None)
        why = f"{error}: {world.unopened[key]}" if key is not None else str(error)
        end = End("dropped", node, hops[0], why, Message(hops, (), Clear()))
        return Path(node, hops, Way(ends=(end,)), Way(), frozenset(hops[-1:]))
    sender.table[ANSWERS] = Entry("answers", lambda message: world.end("answered", sender, message))
    message = Message(onward, (ANSWERS,), Clear())
    ends = world.run(sender, message)
    taken = [end for end in ends if end.what == "arrived"]
    # An answer leaves as a message of its own. Who has passed a message on gets the answers to what he passed on.
    returned = tuple(
        back
        for end in taken
        for back in world.run(world.nodes[end.node], Message(end.message.back, (_source(end),), Clear()))
    )
    del sender.table[ANSWERS]
    receiver = taken[0].node if taken else None
    there = _way(world, ends, node, receiver)
    back = _way(world, returned, receiver, node)
    identity = taken[0].message.origin.identifier if taken else None
    return Path(node, hops, there, back, _inner(ends, hops), None if identity is None else world.who(identity))


def from_clients(path: Path, key: str, at: str) -> Path:
    """Return the path of what an inlet of a node carries, with the inlet's clients: none if only programs of its own machine are."""
    if is_within_machine(at):
        return path
    clients = Passed(
        clients_of(path.node, key),
        Seen("plaintext", ()),
        (f"connects to {at}",),
        may_drop=True,
        may_inject="as the sender",
    )
    there = attrs.evolve(path.there, passed=(clients, *path.there.passed))
    back = attrs.evolve(path.back, passed=(*path.back.passed, clients) if path.back.passed else ())
    return attrs.evolve(path, there=there, back=back)


def _source(end: End) -> str:
    return RANDOM + "answerer" if end.address.startswith("@") else end.address


def _inner(ends: Iterable[End], route: Sequence[str]) -> frozenset[str]:
    inner: set[str] = set()
    for end in ends:
        for step in end.message.trail:
            body = step.message.body
            while isinstance(body, Sealed | Record):
                if isinstance(body, Sealed):
                    inner.update(each for each in body.onward if not each.startswith(RANDOM))
                body = body.body
    return frozenset(inner or route[-1:])


def _way(world: World, ends: tuple[End, ...], sender: str | None, receiver: str | None) -> Way:
    """Collect what each of those who carry a message and its copies sees, and try what each could put in."""
    order: dict[Watcher, list[Step]] = {}
    seen: dict[Watcher, Seen] = {}
    last: dict[Watcher, bool] = {}
    injected: dict[Watcher, Injection | None] = {}
    poses: dict[Watcher, _Pose] = {}
    own = {Watcher("node", name) for name in (sender, receiver) if name is not None}
    done: set[int] = set()
    for end in ends:
        trail = end.message.trail
        for index, step in enumerate(trail):
            is_new = id(step) not in done
            done.add(id(step))
            for watcher, what in watchers_of(step):
                steps = order.setdefault(watcher, [])
                if is_new:
                    steps.append(step)
                seen[watcher] = seen.get(watcher, NOTHING) | what
                behind = any(each.at != step.at for each in trail[index + 1 :])
                last[watcher] = last.get(watcher, False) or behind
                if is_new and watcher not in own and not (watcher.kind == "connection" and what.payload == "nothing"):
                    poses.setdefault(watcher, _Pose()).note(world, watcher, step.message)
                if (
                    watcher in own
                    or end.what not in {"arrived", "answered"}
                    or injected.get(watcher) == "as the sender"
                ):
                    continue
                if watcher.kind == "connection" and what.payload == "nothing":
                    continue  # protected by its transport
                injected[watcher] = _injection(world, trail, index, end) or injected.get(watcher)
    passed = [
        Passed(
            watcher,
            seen[watcher],
            tuple(dict.fromkeys(step.what for step in steps if step.what)),
            watcher not in own and watcher.kind != "outsider" and last[watcher],
            injected.get(watcher),
            tuple(poses.get(watcher, _NO_POSE).channels),
            poses.get(watcher, _NO_POSE).reads,
            frozenset(poses.get(watcher, _NO_POSE).addresses),
            tuple(
                dict.fromkeys(
                    world.who(step.message.origin.identifier)
                    for step in steps
                    if step.at == watcher and step.message.origin.identifier is not None
                )
            ),
        )
        for watcher, steps in order.items()
    ]
    return Way(tuple(passed), ends)


@attrs.define
class _Pose:
    """What somebody could open by taking the other end of the channels that seal what he carries."""

    channels: dict[str, None] = attrs.Factory(dict)
    reads: bool = False
    addresses: set[str] = attrs.Factory(set)

    def note(self, world: World, watcher: Watcher, message: Message) -> None:
        body = message.body
        is_open = False
        while isinstance(body, Sealed | Record):
            if isinstance(body, Sealed):
                if not _would_trust(world, watcher, body):
                    return
                is_open = True
                self.channels[f"@{body.channel.name} of {body.channel.initiator.name}"] = None
                self.addresses.update(each for each in body.onward if not each.startswith(RANDOM))
            body = body.body
        self.reads = self.reads or is_open


_NO_POSE = _Pose()


def _would_trust(world: World, watcher: Watcher, sealed: Sealed) -> bool:
    """Whether the sender of what is sealed would take a watcher for the channel's other end."""
    channel = sealed.channel
    if watcher.kind == "node" and watcher.name in {channel.initiator.name, channel.responder.name}:
        return False  # it is an end of it
    identity = world.nodes[watcher.name].identity if watcher.kind == "node" else f"{RANDOM}anybody"
    spec = channel.initiator.spec.secure_channels[channel.name]
    if not world.trusts(spec.trust, identity):
        return False
    # What the responder sends goes to whoever wrote to it: he has to be trusted there too, to stand between the two.
    listener = channel.responder.spec.secure_channel_listeners[channel.listener]
    return sealed.by == channel.initiator.name or world.trusts(listener.trust, identity)


def _injection(world: World, trail: Sequence[Step], index: int, end: End) -> Injection | None:
    """Say how a message that is put in at a step reaches the same receiver."""
    where = next((at for at in range(index, len(trail)) if trail[at].puts is not None), None)
    if where is None:
        return None
    step = trail[where]
    if "plaintext" in {seen_in(trail[index].message).payload, seen_in(step.message).payload}:
        # What is in the clear is addressed in the clear too: another payload takes the very same way. A node that seals it itself can as well.
        return "as the sender"
    crafted = without_channels(step.message)
    if crafted is None:
        return None
    for each in world.put(step, attrs.evolve(crafted, trail=())):
        if (each.what, each.node, each.address) == (end.what, end.node, end.address):
            same = each.message.origin.identifier == end.message.origin.identifier
            return "as the sender" if same else "as a stranger"
    return None


def without_channels(message: Message) -> Message | None:
    """Return a message as somebody without keys can make one like it: its channels left out, all that is behind them addressed in the clear.

    What only those within a channel know is left out of its route, for such addresses lead nowhere that names don't; None if the last is one of them.
    """
    opened = _open(message.onward, message.body)
    return None if opened is None else attrs.evolve(message, onward=opened[0], body=opened[1])


def _open(onward: tuple[str, ...], body: Body) -> tuple[tuple[str, ...], Body] | None:
    match body:
        case Sealed():
            inner = _open(body.onward, body.body)
            if inner is None or inner[0][-1].startswith(RANDOM):
                return None
            return (*onward[:-1], *(each for each in inner[0] if not each.startswith(RANDOM))), inner[1]
        case Record():
            inner = _open(body.onward, body.body)
            return None if inner is None else (onward, attrs.evolve(body, onward=inner[0], body=inner[1]))
        case _:
            return onward, body
