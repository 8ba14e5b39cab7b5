"""A network in memory that can harm frames, links and nodes as a hostile or broken network would."""

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from functools import partial
from typing import ClassVar, Never, TypeVar

import attrs
import trio

from trionode.errors import ConfigError, ConnectionLost
from trionode.net.endpoint import Exposure
from trionode.net.transport import Link, Transport
from trionode.protocol.wire.current_codec import CURRENT
from trionode.routing.memory_channel import MemoryChannel
from trionode.testing.crashable import Crashable
from trionode.testing.faults import NO_FAULTS, Event, Faults
from trionode.testing.faulty_link import Conditions, FaultyLink, FrameQueue
from trionode.topology.errors import suggest

#: Links that wait to be accepted.
BACKLOG = 128

T = TypeVar("T")
#: A node's name, or several.
Group = str | Iterable[str]


@attrs.frozen
class _Pair:
    """Both ends of a link: first that of the node which connected."""

    nodes: tuple[str, str]
    ends: tuple[FaultyLink, FaultyLink]

    @property
    def is_over(self) -> bool:
        return all(end.incoming.is_over or end.incoming.lost for end in self.ends)

    def abort(self, reason: str) -> None:
        for end in self.ends:
            end.incoming.abort(reason)


@attrs.frozen
class _Listener:
    node: str
    waiting: MemoryChannel[FaultyLink]
    max_frame: int


@attrs.frozen
class _Between:
    """All pairs of nodes with one in each group. An empty group means all nodes that are not in the other."""

    one: frozenset[str]
    other: frozenset[str]

    @classmethod
    def of(cls, one: Group | None, other: Group | None) -> "_Between":
        return cls(*(frozenset((group,) if isinstance(group, str) else group or ()) for group in (one, other)))

    def holds(self, node: str, peer: str) -> bool:
        """Return whether two nodes are such a pair."""
        return self._holds(node, peer) or self._holds(peer, node)

    def _holds(self, node: str, peer: str) -> bool:
        in_one = not self.one or node in self.one
        in_other = peer in self.other if self.other else not self.one or peer not in self.one
        return in_one and in_other

    def __str__(self) -> str:
        return " | ".join(", ".join(sorted(side)) or "the rest" for side in (self.one, self.other))


class FaultyTransport(Transport):
    """One node's transport `loopback:NAME` in a `FaultyNetwork`; made by `FaultyNetwork.transport`."""

    name: ClassVar[str] = "loopback"
    exposure: ClassVar[Exposure] = Exposure.NONE

    def __init__(self, network: "FaultyNetwork", node: str, max_frame: int) -> None:
        self._network = network
        self._node = node
        self._max_frame = max_frame

    @classmethod
    def local_address(cls, address: str, free_port: Callable[[], int]) -> str | None:
        """Return the same text: any name is free in a network of its own."""
        del free_port
        return address

    async def connect(self, peer: str) -> Link:
        """Return a link to the node that listens at a name (see `Transport.connect`)."""
        await trio.lowlevel.checkpoint()
        return self._network._connect(self._node, peer, self._max_frame)  # the network and its transports are one

    async def serve(
        self,
        at: str,
        accept: Callable[[Link], Awaitable[None]],
        *,
        task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
    ) -> Never:
        """Listen at a name (see `Transport.serve`). An empty name, or one that ends in `:0`, gets a free number."""
        with self._network._listening(at, self._node, self._max_frame) as (bound, waiting):  # as above
            async with trio.open_nursery() as nursery:
                task_status.started(bound)
                while True:
                    nursery.start_soon(accept, await waiting.receive())


class FaultyNetwork:
    """A network in memory with faults.

    Nodes connect at `loopback:NAME`, each with its own transport: `open_node(network.transport("alice"))`.

    `network.set_faults(Faults(drop=0.1), sender="alice")` sets the faults of a direction for all frames that are sent
    from then on. The seed, the names of the nodes and the numbers of link and frame decide which frames they hit: the
    same each time. Time is Trio's, so all of it also works with Trio's autojump clock.

    A network knows a node once `transport` was called for it. All methods that take names raise ConfigError for other
    names, so a test cannot pass because a name is misspelt. To set a fault before a node starts, call
    `network.transport("alice")` first.

    Args:
      seed: Decides which frames faults hit.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        #: All that the network has done, in order.
        self.log: list[Event] = []
        self._nodes: set[str] = set()
        self._listeners: dict[str, _Listener] = {}
        self._numbers = itertools.count(1)
        self._links: dict[tuple[str, str], int] = {}
        self._pairs: list[_Pair] = []
        self._faults: dict[tuple[str | None, str | None], Faults] = {}
        self._partitions: list[_Between] = []
        self._down: set[str] = set()

    def __repr__(self) -> str:
        return f"<FaultyNetwork with seed {self.seed}, {len(self.log)} events>"

    def transport(self, node: str, *, max_frame: int = CURRENT.max_frame) -> FaultyTransport:
        """Return the transport of a node, and make its name known.

        Args:
          node: The node's name.
          max_frame: Bytes of the largest frame that its links send and accept.

        Returns:
          The transport, for `open_node`.
        """
        self._nodes.add(node)
        return FaultyTransport(self, node, min(max_frame, CURRENT.max_sent))

    def _require(self, names: Iterable[str | None]) -> None:
        for name in names:
            if name is not None and name not in self._nodes:
                raise ConfigError(
                    f"no node of this network is called {name!r}: {suggest(name, self._nodes)}. "
                    f"If it starts later, make its name known with network.transport({name!r})"
                )

    # Faults of frames

    def set_faults(self, faults: Faults, *, sender: str | None = None, receiver: str | None = None) -> None:
        """Set the faults of a direction for all frames that are sent from now on.

        The narrowest direction counts: sender and receiver, then the sender alone, then the receiver alone.

        Args:
          faults: They replace the faults that this direction had.
          sender: The node that sends; None for all.
          receiver: The node that receives; None for all.

        Raises:
          ConfigError: If the network does not know a name.
        """
        self._require((sender, receiver))
        self._faults[sender, receiver] = faults

    def clear_faults(self) -> None:
        """Remove all faults of frames, and heal all partitions."""
        self._faults.clear()
        self.heal()

    def faults(self, sender: str, receiver: str) -> Faults:
        """Return the faults of a direction.

        Args:
          sender: The node that sends.
          receiver: The node that receives.

        Returns:
          The faults for frames that are sent now.
        """
        keys = ((sender, receiver), (sender, None), (None, receiver), (None, None))
        return next((self._faults[key] for key in keys if key in self._faults), NO_FAULTS)

    # Faults of links

    def cut(self, one: Group | None = None, other: Group | None = None) -> None:
        """Lose every link between two nodes or groups: both ends get ConnectionLost, and frames in flight are lost.

        New links can be made at once.

        Args:
          one: A node's name, or several; None for all.
          other: The same for the other side.

        Raises:
          ConfigError: If the network does not know a name.
        """
        between = self._between(one, other)
        self._note("cut", str(between))
        for pair in self._pairs:
            if between.holds(*pair.nodes):
                pair.abort("the network has cut this link")

    def partition(self, one: Group, other: Group = ()) -> None:
        """Block everything between two nodes or groups until `heal`. No new link can be made.

        Links stay open: frames that are sent wait, as TCP would retransmit them, and arrive after `heal`.

        Args:
          one: A node's name, or several.
          other: The same for the other side; () for all other nodes.

        Raises:
          ConfigError: If the network does not know a name.
        """
        between = self._between(one, other)
        self._partitions.append(between)
        self._note("partition", str(between))

    def heal(self) -> None:
        """End all partitions. Frames that waited arrive."""
        if self._partitions:
            self._note("heal", "all")
        self._partitions.clear()
        for pair in self._pairs:
            for end in pair.ends:
                end.incoming.wake()

    def linked(self) -> list[tuple[str, str]]:
        """Return the pairs of nodes with a link between them now.

        Returns:
          The pairs, in the order of their names: first the node that connected.
        """
        return sorted({pair.nodes for pair in self._pairs if not pair.is_over})

    def is_partitioned(self, one: str, other: str) -> bool:
        """Return whether a partition separates two nodes.

        Args:
          one: A node's name.
          other: Another node's name.

        Returns:
          True if nothing passes between them.
        """
        return any(each.holds(one, other) for each in self._partitions)

    def _between(self, one: Group | None, other: Group | None) -> _Between:
        between = _Between.of(one, other)
        self._require(sorted(between.one | between.other))
        return between

    # Crashes

    @asynccontextmanager
    async def crashable(
        self, name: str, run: Callable[[], AbstractAsyncContextManager[T]]
    ) -> AsyncIterator[Crashable[T]]:
        """Run a node that can crash and start again for the length of a block.

        `crashable("bob", lambda: open_node(network.transport("bob"), vault=vault))`. When the block ends, a running
        node ends in good order. An exception in the node leaves the block in an exception group.

        Args:
          name: The node's name in the network.
          run: Called at the start and at each restart. What the calls share, such as a vault or a store, survives.

        Returns:
          The node, in an async context manager.
        """
        async with trio.open_nursery() as nursery:
            node = Crashable(self, name, run, nursery)
            await node._start()  # the network starts and stops the nodes that it makes
            yield node
            node._stop()  # as above

    def crash(self, name: str, *, silent: bool = False) -> None:
        """Separate a node from the network, as a crash does. Its tasks go on, without effect in the network.

        `Crashable.crash` calls this and ends the tasks. In a topology, call `running.crash` afterwards.

        Args:
          name: The node's name.
          silent: False: its peers lose their links. True: they receive nothing until `revive`, as if its machine had
            lost power.

        Raises:
          ConfigError: If the network does not know the name.
        """
        self._require((name,))
        self._note("crash", name)
        self._down.add(name)
        for pair in self._pairs:
            if name in pair.nodes:
                for node, end in zip(pair.nodes, pair.ends, strict=True):
                    end.is_dead |= node == name
                    end.incoming.is_silent |= silent
                if not silent:
                    pair.abort(f"{name} has crashed")

    def revive(self, name: str) -> None:
        """Let a crashed node be reached again. Its peers lose the links that a silent crash left.

        Args:
          name: The node's name.

        Raises:
          ConfigError: If the network does not know the name.
        """
        self._require((name,))
        self._note("restart", name)
        self._down.discard(name)
        for pair in self._pairs:
            if name in pair.nodes and any(end.is_dead for end in pair.ends):
                pair.abort(f"{name} has restarted")

    def _note(self, what: str, target: str) -> None:
        self.log.append(Event(what, target))

    # For transports

    def _connect(self, node: str, peer: str, max_frame: int) -> Link:
        listener = self._listeners.get(peer)
        if listener is None or len(listener.waiting) >= BACKLOG:
            raise ConnectionLost(f"no node listens at loopback:{peer}: start it first, in this network")
        if {node, listener.node} & self._down or self.is_partitioned(node, listener.node):
            raise ConnectionLost(f"cannot reach loopback:{peer}: the network blocks everything to {listener.node}")
        nodes = node, listener.node
        number = self._links[nodes] = self._links.get(nodes, 0) + 1
        seed = f"{self.seed} {node} {listener.node} {number}"
        there = self._queue(node, listener.node, number, f"{seed} there")
        back = self._queue(listener.node, node, number, f"{seed} back")
        ours = FaultyLink(f"loopback:{peer}", back, there, max_frame)
        theirs = FaultyLink(f"{node}:{number}", there, back, listener.max_frame)
        self._pairs = [pair for pair in self._pairs if not pair.is_over]
        self._pairs.append(_Pair(nodes, (ours, theirs)))
        listener.waiting.put(theirs, 0)
        return ours

    def _queue(self, sender: str, receiver: str, link: int, seed: str) -> FrameQueue:
        ends = sender, receiver
        conditions = Conditions(partial(self.faults, *ends), partial(self.is_partitioned, *ends), self.log.append)
        return FrameQueue(sender, receiver, link, seed, conditions)

    @contextmanager
    def _listening(self, at: str, node: str, max_frame: int) -> Iterator[tuple[str, MemoryChannel[FaultyLink]]]:
        """Yield the bound name and the links that come in."""
        if not at or at.endswith(":0"):
            at = f"{at.removesuffix(':0') or 'node'}:{next(self._numbers)}"
        if at in self._listeners:
            raise ConfigError(f"loopback:{at} is in use: choose another name, or close the node that listens there")
        listener = self._listeners[at] = _Listener(node, MemoryChannel(), max_frame)
        try:
            yield at, listener.waiting
        finally:
            del self._listeners[at]
            for link in listener.waiting.take_all():
                link.close()
