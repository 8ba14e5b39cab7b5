"""Return paths: which answers a relay passes back over a node that does not forward, and what their return routes show.

A node that does not forward lets no peer send by its links and channels. In the return route of a message that a relay
passes on, the first hop is therefore an alias: a random address that leads to the link, channel or stream by which the
message came. Only the receivers of that message learn it, so only they can answer by it. What comes in by an alias gets
an alias in turn, so whole channels run over the node.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

import attrs

from trionode.protocol.rules.access import OriginLike, from_local

#: Senders behind one channel that its path remembers; beyond it the one that was silent longest is forgotten. One costs
#: about 200 bytes, so a channel makes the node hold less than one that reads nothing does.
MAX_WRITERS = 4096

#: The type of addresses: encoded bytes in a node, names in the verifier.
AddressT = TypeVar("AddressT", bound=Hashable)
#: The type of origins.
OriginT = TypeVar("OriginT", bound=OriginLike[object])


@attrs.define(eq=False)
class PathEntry(Generic[AddressT, OriginT]):
    """A link, channel or stream of a node that takes part in relayed conversations."""

    #: Its address on the node, and the random address that leads there for every peer that has learned it.
    first: AddressT
    alias: AddressT
    #: The origin of the last message that came by it.
    origin: OriginT
    #: The senders behind it, oldest first; kept for channels only.
    writers: OrderedDict[AddressT, None] = attrs.Factory(OrderedDict)

    @property
    def speaks_as_node(self) -> bool:
        """Whether messages that leave by it arrive as from this node's own identity: it is a secure channel."""
        return self.origin.identifier is not None

    @property
    def arrives_as_local(self) -> bool:
        """Whether messages enter it with the local origin. A bare stream takes any other for an answer of its hub."""
        return self.origin.stream is not None and not self.speaks_as_node

    def note(self, writer: AddressT) -> None:
        """Remember a sender behind this entry, so that answers to it are admitted."""
        if self.speaks_as_node:
            self.writers[writer] = None
            self.writers.move_to_end(writer)
            if len(self.writers) > MAX_WRITERS:
                self.writers.popitem(last=False)

    def admits(self, onward: tuple[AddressT, ...]) -> bool:
        """Whether a message may leave by the alias, its first onward hop.

        Into a channel only to addresses that wrote, since messages there carry the identity of the node.
        """
        if not self.speaks_as_node:
            return True
        if len(onward) < 2 or onward[1] not in self.writers:
            return False
        self.writers.move_to_end(onward[1])
        return True


class PathTable(Generic[AddressT, OriginT]):
    """The entries of one relay or relay service, one for each link, channel or stream that took part."""

    def __init__(
        self, make_alias: Callable[[], AddressT], on_new: Callable[[PathEntry[AddressT, OriginT]], None]
    ) -> None:
        self._make_alias = make_alias
        self._on_new = on_new
        # By both addresses: a message that passes a second time keeps its alias.
        self._entries: dict[AddressT, PathEntry[AddressT, OriginT]] = {}

    def enter(self, first: AddressT, origin: OriginT) -> PathEntry[AddressT, OriginT]:
        """Return the entry of an address of this node, or of its alias; a new one has this origin."""
        entry = self._entries.get(first)
        if entry is None:
            entry = PathEntry(first, self._make_alias(), origin)
            self._entries[first] = self._entries[entry.alias] = entry
            self._on_new(entry)
        return entry

    def arrive(self, back: tuple[AddressT, ...], origin: OriginT) -> PathEntry[AddressT, OriginT]:
        """Return the entry of a remote message: the first hop of its return route, which this node itself added."""
        entry = self.enter(back[0], origin)
        if back[0] == entry.first:
            entry.origin = origin
        return entry

    def return_route(self, back: tuple[AddressT, ...], origin: OriginT) -> tuple[AddressT, ...]:
        """Return the return route with an alias in front, and remember the sender.

        A local message keeps its return route.
        """
        if from_local(origin):
            return back
        source = self.arrive(back, origin)
        if len(back) > 1:
            source.note(back[1])
        return (source.alias, *back[1:])

    def remove(self, entry: PathEntry[AddressT, OriginT]) -> bool:
        """Forget an entry; False if it was forgotten already."""
        if self._entries.pop(entry.first, None) is None:
            return False
        del self._entries[entry.alias]
        return True

    def __iter__(self) -> Iterator[PathEntry[AddressT, OriginT]]:
        return iter(set(self._entries.values()))
