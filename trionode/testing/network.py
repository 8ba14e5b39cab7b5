"""A network in memory that knows which node is which, and does to their frames, links and lives what a hostile or broken one would, by a seed."""

import heapq
import itertools
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from random import Random
from typing import ClassVar, Generic, Never, TypeVar

import attrs
import trio

from trionode.errors import ConnectionLost, LocalError, MessageTooLargeError, WireError
from trionode.net.transport import Link, Transport
from trionode.protocol.wire.current_codec import CURRENT
from trionode.protocol.wire.version import ProtocolVersion
from trionode.routing.byte_budget import ByteBudget
from trionode.routing.memory_channel import ITEM_OVERHEAD, MemoryChannel
from trionode.topology.errors import hint

#: Bytes on their way in one direction before a writer waits, about what the socket buffers of a real connection hold.
WINDOW = 256 * 1024
#: Links that wait to be accepted.
BACKLOG = 128
#: Seconds that a frame waits for others to overtake it: one that is the last would else be lost, which is another fault.
OVERTAKEN_WITHIN = 1.0

T = TypeVar("T")
Number = TypeVar("Number", int, float)


@attrs.frozen
class Fate:
    """What becomes of a frame; made by the methods of `Frame`."""

    #: What the fault is called in the log.
    what: str
    #: What is delivered in the frame's place.
    frames: tuple[bytes, ...] = attrs.field(repr=False)
    #: Seconds that it comes later; others pass it meanwhile.
    delay: float = 0.0
    #: How many frames pass it.
    overtaken_by: int = 0


@attrs.frozen
class Frame:
    """A frame on its way from one node to another, of which a rule decides what becomes of it."""

    sender: str
    receiver: str
    #: Counts the links that the one who connected has made to the other, from 1.
    link: int
    #: Counts the frames in this direction of this link, from 1.
    number: int
    data: bytes = attrs.field(repr=False)

    def dropped(self) -> Fate:
        """It never arrives."""
        return Fate("drop", ())

    def doubled(self) -> Fate:
        """It arrives twice."""
        return Fate("duplicate", (self.data, self.data))

    def replaced(self, *frames: bytes) -> Fate:
        """Others arrive in its place."""
        return Fate("replace", frames)

    def corrupted(self, bit: int) -> Fate:
        """One bit of it has changed; counted from 0, that of the lowest value in the first byte."""
        endpoint, data = bit // 8, bytearray(self.data)
        data[endpoint] ^= 1 << bit % 8
        return Fate("corrupt", (bytes(data),))

    def delayed(self, seconds: float) -> Fate:
        """It arrives so much later, and others pass it meanwhile."""
        return Fate("delay", (self.data,), delay=seconds)

    def overtaken(self, by: int) -> Fate:
        """So many of the frames behind it arrive before it, or those that come within OVERTAKEN_WITHIN seconds."""
        return Fate("reorder", (self.data,), overtaken_by=by)


#: Decides about a frame; None leaves it to the probabilities.
Rule = Callable[[Frame], Fate | None]


def _probability(_: object, attribute: "attrs.Attribute[float]", value: float) -> None:
    if not 0 <= value <= 1:
        raise LocalError(f"{attribute.name} is a probability, from 0 to 1; this is {value!r}")


def _positive(_: object, attribute: "attrs.Attribute[Number]", value: Number) -> None:
    if not value > 0:
        raise LocalError(f"{attribute.name} has to be more than 0; this is {value!r}")


def _not_negative(_: object, attribute: "attrs.Attribute[float]", value: float) -> None:
    if not value >= 0:
        raise LocalError(f"{attribute.name} is 0 or more; this is {value!r}")


@attrs.frozen(kw_only=True)
class Faults:
    """What happens to frames in one direction. Each has one fault at most: what the rule says, or else the first of the probable ones that falls.

    Links keep whole frames in order, so these are the faults not of a wire but of whoever passes frames on: a hub that is hostile, or broken.
    """

    #: Decides first.
    rule: Rule | None = None
    #: Probabilities, from 0 to 1, that a frame is lost, arrives twice, is passed by others, comes late, has one bit changed.
    drop: float = attrs.field(default=0.0, validator=_probability)
    duplicate: float = attrs.field(default=0.0, validator=_probability)
    reorder: float = attrs.field(default=0.0, validator=_probability)
    delay: float = attrs.field(default=0.0, validator=_probability)
    corrupt: float = attrs.field(default=0.0, validator=_probability)
    #: Frames that pass one which is reordered, at most.
    overtaken_by: int = attrs.field(default=3, validator=_positive)
    #: Seconds that a delayed one comes later, at most.
    delayed_by: float = attrs.field(default=1.0, validator=_positive)
    #: Seconds that every frame takes; they stay in order.
    latency: float = attrs.field(default=0.0, validator=_not_negative)
    #: Bytes a second that pass.
    rate: float = attrs.field(default=math.inf, validator=_positive)

    def fate(self, frame: Frame, random: Random) -> Fate | None:
        """What becomes of a frame; None: nothing. It depends on nothing but the frame's place, so that one fault more moves no other."""
        if self.rule is not None and (fate := self.rule(frame)) is not None:
            return fate
        drop, duplicate, reorder, delay, corrupt, by, late, bit = (random.random() for _ in range(8))
        if drop < self.drop:
            return frame.dropped()
        if duplicate < self.duplicate:
            return frame.doubled()
        if reorder < self.reorder:
            return frame.overtaken(1 + int(by * self.overtaken_by))
        if delay < self.delay:
            return frame.delayed(late * self.delayed_by)
        if corrupt < self.corrupt:
            return frame.corrupted(int(bit * len(frame.data) * 8))
        return None


CALM = Faults()


def _now() -> float:
    return trio.current_time() if trio.lowlevel.in_trio_run() else 0.0


@attrs.frozen
class Event:
    """Something that the network did; equal if it happened to the same frame, links or node, whenever that was."""

    #: drop, duplicate, reorder, delay, corrupt, replace; cut, partition, heal; crash, restart.
    what: str
    #: From whom to whom, or whom it befell.
    who: str
    #: Which link between the two, and which frame of it; 0 where it befell no frame.
    link: int = 0
    number: int = 0
    #: Trio's clock; 0 outside of it.
    at: float = attrs.field(factory=_now, eq=False)

    def __str__(self) -> str:
        frame = f", link {self.link}, frame {self.number}" if self.number else ""
        return f"{self.at:10.3f} {self.what}: {self.who}{frame}"


@attrs.define
class _Held:
    """A frame that waits to be overtaken."""

    left: int
    until: float
    data: bytes


class _Way(ByteBudget):
    """One direction of a link. Nobody carries its frames: each has a time at which whoever receives may have it."""

    def __init__(self, network: "FaultyNetwork", sender: str, receiver: str, link: int, key: str) -> None:
        super().__init__(WINDOW)
        self.sender = sender
        self.receiver = receiver
        #: Why the link was lost, if it was.
        self.lost = ""
        #: Whether its end, or its loss, has been told.
        self.over = False
        #: Nothing arrives any more, and nobody is told.
        self.silent = False
        self._network = network
        self._link = link
        self._key = key
        self._sent = 0
        self._under_way: list[tuple[float, int, bytes]] = []
        self._order = itertools.count()
        self._held: list[_Held] = []
        self._latest = self._free = -math.inf
        self._ended = self._abandoned = False
        self._changed = trio.lowlevel.ParkingLot()

    @property
    def is_blocked(self) -> bool:
        return self.silent or self._network.is_apart(self.sender, self.receiver)

    def put(self, data: bytes) -> None:
        self._sent += 1
        faults = self._network.faults(self.sender, self.receiver)
        frame = Frame(self.sender, self.receiver, self._link, self._sent, data)
        fate = faults.fate(frame, Random(f"{self._key} {self._sent}"))  # noqa: S311  # chance that can be repeated is what is wanted
        if fate is None:
            fate = Fate("", (data,))
        else:
            self._network.log.append(Event(fate.what, f"{self.sender} → {self.receiver}", self._link, self._sent))
        now = trio.current_time()
        self._free = max(now, self._free) + len(data) / faults.rate
        due = max(self._latest, self._free + faults.latency)
        overtaken = self._held
        self._held = []
        for each in fate.frames:
            self.add(len(each) + ITEM_OVERHEAD)
            if fate.overtaken_by:
                self._held.append(_Held(fate.overtaken_by, due + OVERTAKEN_WITHIN, each))
            else:
                self._push(due + fate.delay, each)
        if fate.frames:
            self._latest = due
            for held in overtaken:
                held.left -= 1
                if not held.left:
                    self._push(due, held.data)
        self._held += [held for held in overtaken if held.left]
        self.wake()

    def _push(self, due: float, data: bytes) -> None:
        heapq.heappush(self._under_way, (due, next(self._order), data))

    def _take(self, now: float) -> list[bytes]:
        """All that is due."""
        for held in [each for each in self._held if each.until <= now]:
            self._held.remove(held)
            self._push(held.until, held.data)
        frames = []
        while self._under_way and self._under_way[0][0] <= now:
            frames.append(heapq.heappop(self._under_way)[2])
        for each in frames:
            self.release(len(each) + ITEM_OVERHEAD)
        return frames

    async def receive(self) -> list[bytes]:
        await trio.lowlevel.checkpoint()
        while not self.over:
            blocked = self.is_blocked and not self.lost
            if not blocked:
                if frames := self._take(trio.current_time()):
                    return frames
                if self.lost:
                    self.over = True
                    raise ConnectionLost(self.lost)
                if self._ended and not self._under_way and not self._held:
                    self.over = True
                    break
            waits = [each[0] for each in self._under_way[:1]] + [each.until for each in self._held]
            with trio.move_on_at(math.inf if blocked else min(waits, default=math.inf)):
                await self._changed.park()
        return []

    def wake(self) -> None:
        """Let who receives look again."""
        if self._abandoned and not self.is_blocked:
            self.close()
        self._changed.unpark_all()

    def finish(self) -> None:
        """The orderly end, by who sends."""
        if not self._ended:
            self._ended = True
            self.close()
            for held in self._held:  # nothing comes that could pass them
                self._push(self._latest, held.data)
            self._held.clear()
            self.wake()

    def abandon(self) -> None:
        """Who received goes, and takes nothing more."""
        self._abandoned = self.over = True
        self._discard()
        self.wake()

    def lose(self, reason: str) -> None:
        """The link is lost: what has arrived can still be taken, what was under way can't."""
        if not self.over and not self.lost:
            arrived = [] if self.is_blocked else self._take(trio.current_time())
            self._discard()
            for each in arrived:
                self._push(-math.inf, each)
                self.add(len(each) + ITEM_OVERHEAD)
        self.lost = self.lost or reason
        self.close()
        self.wake()

    def _discard(self) -> None:
        self._held.clear()
        self._under_way.clear()
        self.size = 0


class FaultyLink:
    """One end of a link in a `FaultyNetwork` (see `trionode.net.transport.Link`)."""

    def __init__(self, peer: str, incoming: _Way, outgoing: _Way, max_frame: int) -> None:
        self.peer = peer
        self.protocol_version: ProtocolVersion = CURRENT
        self.max_frame = max_frame
        self.incoming = incoming
        self.outgoing = outgoing
        #: Whether the node that holds this end has crashed: whatever it still does has no effect, and it hears nothing.
        self.dead = False

    async def receive(self) -> Sequence[bytes]:
        """All frames that are due by now; () at the end. ConnectionLost if the link was cut, or the peer has crashed."""
        try:
            frames = await self.incoming.receive()
        except ConnectionLost:
            if self.dead:
                await trio.sleep_forever()
            raise
        if too_large := max((len(frame) for frame in frames if len(frame) > self.max_frame), default=0):
            self.incoming.abandon()
            raise WireError(f"{self.peer} sent a frame of {too_large} bytes, where 1 to {self.max_frame} are allowed")
        return frames

    async def send(self, frames: Sequence[bytes]) -> None:
        """Put a burst on its way, waiting while WINDOW bytes are under way; cancelled, nothing of it was sent."""
        largest = max(map(len, frames), default=0)
        if largest > self.max_frame:
            raise MessageTooLargeError(
                f"the link to {self.peer} carries frames of at most {self.max_frame} bytes, this one has {largest}"
            )
        await self.outgoing.wait_for_capacity()
        if self.dead:
            return
        if self.outgoing.is_closed:
            raise ConnectionLost(self.outgoing.lost or f"the link to {self.peer} is closed")
        for frame in frames:
            self.outgoing.put(bytes(frame))

    async def send_eof(self) -> None:
        """End the outgoing direction."""
        if not self.dead:
            self.outgoing.finish()
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """End both directions; what was sent is still on its way."""
        self.shut()
        await trio.lowlevel.checkpoint()

    def shut(self) -> None:
        """Do the same as `aclose`, without a checkpoint."""
        if not self.dead:
            self.outgoing.finish()
            self.incoming.abandon()


@attrs.frozen
class _Pair:
    """Both ends of a link: that of the node which connected, and that of the one which listened."""

    nodes: tuple[str, str]
    ends: tuple[FaultyLink, FaultyLink]

    @property
    def is_over(self) -> bool:
        return all(end.incoming.over or end.incoming.lost for end in self.ends)

    def lose(self, reason: str) -> None:
        for end in self.ends:
            end.incoming.lose(reason)


@attrs.frozen
class _Listener:
    node: str
    waiting: "MemoryChannel[FaultyLink]"
    max_frame: int


class FaultyLoopback(Transport):
    """One node's way into a `FaultyNetwork`: the transport `loopback:NAME` (see `trionode.net.transport.Transport`), made by `network.transport`."""

    name: ClassVar[str] = "loopback"

    def __init__(self, network: "FaultyNetwork", node: str, max_frame: int) -> None:
        self._network = network
        self._node = node
        self._max_frame = max_frame

    async def connect(self, peer: str) -> Link:
        """Return a link to whoever listens at the name; ConnectionLost if nobody does, or the network lets nothing through."""
        await trio.lowlevel.checkpoint()
        return self._network.join(self._node, peer, self._max_frame)

    async def serve(
        self,
        at: str,
        accept: Callable[[Link], Awaitable[None]],
        *,
        task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
    ) -> Never:
        """Listen at a name; a name that ends in 0 behind a colon, or an empty one, gets a free number."""
        with self._network.listening(at, self._node, self._max_frame) as (bound, waiting):
            async with trio.open_nursery() as nursery:
                task_status.started(bound)
                while True:
                    nursery.start_soon(accept, await waiting.receive())


#: A node by its name, or several.
Group = str | Iterable[str]


class FaultyNetwork:
    """Nodes that meet by `loopback:NAME`, each with a transport of its own: `open_node(network.transport("alice"))`.

    Faults are set for directions, `network.disturb(Faults(drop=0.1), sender="alice")`, and hold for what is sent from then on. Which frames they
    hit is decided by the seed, the names of the nodes, and the numbers of link and frame: the same each time. Time is Trio's, so that all of it
    also works under its autojump clock.

    A node is known once its transport was made, and only then can it be named, so that a misspelt name disturbs nobody's test: all methods that
    take names raise LocalError for others. Whose fault comes before its node, calls `network.transport("alice")` first.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        #: The nodes that a transport was made for.
        self._nodes: set[str] = set()
        #: All that the network has done, in order.
        self.log: list[Event] = []
        self._listeners: dict[str, _Listener] = {}
        self._numbers = itertools.count(1)
        self._links: dict[tuple[str, str], int] = {}
        self._pairs: list[_Pair] = []
        self._faults: dict[tuple[str | None, str | None], Faults] = {}
        self._partitions: list[_Between] = []
        self._down: set[str] = set()

    def __repr__(self) -> str:
        return f"<FaultyNetwork with seed {self.seed}, {len(self.log)} events>"

    def transport(self, node: str, *, max_frame: int = CURRENT.max_frame) -> FaultyLoopback:
        """The transport of the node of that name; `max_frame` is the largest frame that its links send and take (bytes)."""
        self._nodes.add(node)
        return FaultyLoopback(self, node, min(max_frame, CURRENT.max_sent))

    def _require(self, names: Iterable[str | None]) -> None:
        for name in names:
            if name is not None and name not in self._nodes:
                raise LocalError(
                    f"no node of this network is called {name!r}: {hint(name, self._nodes)}. "
                    f"If it is yet to come, make it known by network.transport({name!r})"
                )

    # Faults of frames

    def disturb(self, faults: Faults, *, sender: str | None = None, receiver: str | None = None) -> None:
        """Let faults befall what `sender` sends to `receiver` from now on; None: whoever. The narrower direction counts, a later call replaces an earlier."""
        self._require((sender, receiver))
        self._faults[sender, receiver] = faults

    def calm(self) -> None:
        """No more faults befall frames, and no partition holds them back."""
        self._faults.clear()
        self.heal()

    def faults(self, sender: str, receiver: str) -> Faults:
        """What befalls frames in this direction now."""
        for key in ((sender, receiver), (sender, None), (None, receiver), (None, None)):
            if key in self._faults:
                return self._faults[key]
        return CALM

    # Faults of links

    def cut(self, one: Group | None = None, other: Group | None = None) -> None:
        """Lose every link that there is between two nodes or groups: ConnectionLost at both ends, and what was under way is gone.

        None: whoever. New links can be made at once.
        """
        between = self._between(one, other)
        self._note("cut", str(between))
        for pair in self._pairs:
            if between.holds(*pair.nodes):
                pair.lose("the network has cut this link")

    def partition(self, one: Group, other: Group = ()) -> None:
        """Let nothing pass between two groups until `heal`; without the other, between one and all the rest.

        Links stay, in silence: what is sent waits, as TCP would send it again, and arrives when the network has healed. New ones can't be made.
        """
        between = self._between(one, other)
        self._partitions.append(between)
        self._note("partition", str(between))

    def heal(self) -> None:
        """End all partitions; what was held back arrives."""
        if self._partitions:
            self._note("heal", "all")
        self._partitions.clear()
        for pair in self._pairs:
            for end in pair.ends:
                end.incoming.wake()

    def is_apart(self, one: str, other: str) -> bool:
        """Whether a partition lies between two nodes."""
        return any(each.holds(one, other) for each in self._partitions)

    def _between(self, one: Group | None, other: Group | None) -> "_Between":
        between = _Between(_group(one), _group(other))
        self._require(sorted(between.one | between.other))
        return between

    # Nodes that crash

    @asynccontextmanager
    async def crashable(
        self, name: str, run: Callable[[], AbstractAsyncContextManager[T]]
    ) -> AsyncIterator["Crashable[T]"]:
        """Run a node so that it can crash and be started again: `crashable("bob", lambda: open_node(network.transport("bob"), vault=vault))`.

        `run` is called at the start and at each restart; what it shares between them, such as a vault or a store, is what survives. At the end of
        the block a node that runs is ended in good order. What the node raises comes out as an exception group.
        """
        async with trio.open_nursery() as nursery:
            node = Crashable(self, name, run, nursery)
            await node.start()
            yield node
            node.end()

    def crash(self, name: str, *, silent: bool = False) -> None:
        """Cut a node off the network, as when it crashes. `Crashable.crash` does that and ends its tasks; in a topology `running.crash` ends them then.

        Its peers lose their links, or, if it is silent as a machine without power is, hear nothing until it is back.
        """
        self._require((name,))
        self._note("crash", name)
        self._down.add(name)
        for pair in self._pairs:
            if name in pair.nodes:
                for node, end in zip(pair.nodes, pair.ends, strict=True):
                    end.dead = end.dead or node == name
                    end.incoming.silent = end.incoming.silent or silent
                if not silent:
                    pair.lose(f"{name} has crashed")

    def revive(self, name: str) -> None:
        """Let a node that has crashed be reached again; what is left of its old links is lost."""
        self._require((name,))
        self._note("restart", name)
        self._down.discard(name)
        for pair in self._pairs:
            if name in pair.nodes and any(end.dead for end in pair.ends):
                pair.lose(f"{name} has started anew")

    def _note(self, what: str, who: str) -> None:
        self.log.append(Event(what, who))

    # For its transports

    def join(self, node: str, peer: str, max_frame: int) -> Link:
        """A new link from a node to whoever listens at `peer`."""
        listener = self._listeners.get(peer)
        if listener is None or len(listener.waiting) >= BACKLOG:
            raise ConnectionLost(
                f"nobody listens at loopback:{peer}: start the node that should, in this network, first"
            )
        if {node, listener.node} & self._down or self.is_apart(node, listener.node):
            raise ConnectionLost(f"loopback:{peer} can't be reached: the network lets nothing pass to {listener.node}")
        between = node, listener.node
        number = self._links[between] = self._links.get(between, 0) + 1
        key = f"{self.seed} {node} {listener.node} {number}"
        there = _Way(self, node, listener.node, number, f"{key} there")
        back = _Way(self, listener.node, node, number, f"{key} back")
        ours = FaultyLink(f"loopback:{peer}", back, there, max_frame)
        theirs = FaultyLink(f"{node}:{number}", there, back, listener.max_frame)
        self._pairs = [pair for pair in self._pairs if not pair.is_over]
        self._pairs.append(_Pair(between, (ours, theirs)))
        listener.waiting.put(theirs, 0)
        return ours

    @contextmanager
    def listening(self, at: str, node: str, max_frame: int) -> Iterator[tuple[str, MemoryChannel[FaultyLink]]]:
        """A node listens at a name: the name as bound, and the links that come."""
        if not at or at.endswith(":0"):
            at = f"{at.removesuffix(':0') or 'node'}:{next(self._numbers)}"
        if at in self._listeners:
            raise LocalError(f"loopback:{at} is taken: choose another name, or close the node that listens there")
        listener = self._listeners[at] = _Listener(node, MemoryChannel(), max_frame)
        try:
            yield at, listener.waiting
        finally:
            del self._listeners[at]
            for link in listener.waiting.take_all():
                link.shut()


def _group(of: Group | None) -> frozenset[str]:
    """Names as a set; the empty one means whoever."""
    return frozenset((of,) if isinstance(of, str) else of or ())


@attrs.frozen
class _Between:
    one: frozenset[str]
    other: frozenset[str]

    def holds(self, node: str, peer: str) -> bool:
        """Whether one of two nodes is on the one side, and the other on the other."""
        return self._holds(node, peer) or self._holds(peer, node)

    def _holds(self, node: str, peer: str) -> bool:
        here = not self.one or node in self.one
        there = peer in self.other if self.other else not self.one or peer not in self.one
        return here and there

    def __str__(self) -> str:
        return " | ".join(", ".join(sorted(side)) or "the rest" for side in (self.one, self.other))


class Crashable(Generic[T]):
    """A node that can crash; made by `FaultyNetwork.crashable`."""

    def __init__(
        self,
        network: FaultyNetwork,
        name: str,
        run: Callable[[], AbstractAsyncContextManager[T]],
        nursery: trio.Nursery,
    ) -> None:
        self._network = network
        self._name = name
        self._run = run
        self._nursery = nursery
        self._life: _Life[T] | None = None

    @property
    def node(self) -> T:
        """What `run` has made; LocalError while it is down."""
        if self._life is None:
            raise LocalError(f"{self._name} is down: restart() it first")
        return self._life.made

    async def crash(self, *, silent: bool = False) -> None:
        """End the node at once, without a word to its peers; returns when all its tasks have ended. What it does while it is cancelled leaves no trace in the network.

        Its peers lose their links, or, if it is silent as a machine without power is, hear nothing until it is back. LocalError if it is down.
        """
        life = self._life
        if life is None:
            raise LocalError(f"{self._name} is down already: restart() it first")
        self._network.crash(self._name, silent=silent)
        self._life = None
        life.scope.cancel()
        await life.over.wait()

    async def restart(self) -> T:
        """Run the node again, and return what `run` makes once it is up. LocalError if it is not down."""
        if self._life is not None:
            raise LocalError(f"{self._name} runs: crash() it first")
        self._network.revive(self._name)
        return await self.start()

    async def start(self) -> T:
        """Run the node; `FaultyNetwork.crashable` does that the first time."""
        self._life = life = _Life[T]()
        await self._nursery.start(life.run, self._run)
        return self.node

    def end(self) -> None:
        """Let the node end in good order."""
        if self._life is not None:
            self._life.end.set()


class _Life(Generic[T]):
    """One run of a node."""

    def __init__(self) -> None:
        self.made: T
        self.scope = trio.CancelScope()
        self.end = trio.Event()
        self.over = trio.Event()

    async def run(
        self, run: Callable[[], AbstractAsyncContextManager[T]], *, task_status: trio.TaskStatus[None]
    ) -> None:
        try:
            with self.scope:
                async with run() as self.made:
                    task_status.started()
                    await self.end.wait()
        finally:
            self.over.set()
