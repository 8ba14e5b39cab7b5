"""Passages: how a relay lets two who can't reach each other's links talk over this node, and nobody else."""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial

import attrs

from trionode.errors import ClosedError, MessageTooLargeError, UnknownAddressError
from trionode.protocol.wire.address import Encoded
from trionode.protocol.wire.message import LOCAL, Message, Origin
from trionode.routing.access import from_anywhere
from trionode.routing.byte_budget import ByteBudget
from trionode.routing.router import Router, random_address

#: Addresses behind one channel that its passage remembers as those who wrote; beyond it the one that was silent longest is forgotten. One is
#: about 200 bytes, so that a channel makes the node hold less than one that reads nothing does.
MAX_WRITERS = 4096


def _nothing() -> None: ...


@attrs.define(eq=False)
class PathEntry:
    """A link, channel or stream of this node by which somebody takes part in relayed conversations."""

    #: Its address on this node, and the random one that leads there by this node's authority.
    first: Encoded
    alias: Encoded
    #: The facts of what came by it last.
    origin: Origin
    #: Those behind it who wrote, oldest first; kept for channels only.
    writers: OrderedDict[Encoded, None] = attrs.Factory(OrderedDict)
    #: The queue that was over its bound because of somebody who doesn't wait.
    over_budget: ByteBudget | None = None
    #: What hears of its end.
    lose: Callable[[], None] = _nothing

    @property
    def speaks_as_node(self) -> bool:
        """Whether what goes by it arrives as from this node's own identity."""
        return self.origin.identifier is not None

    def note(self, writer: Encoded) -> None:
        """Remember that somebody behind this way wrote, so that he can be answered."""
        if self.speaks_as_node:
            self.writers[writer] = None
            self.writers.move_to_end(writer)
            if len(self.writers) > MAX_WRITERS:
                self.writers.popitem(last=False)

    def expects(self, onward: tuple[Encoded, ...]) -> bool:
        """Whether a message by the passage may go by this way: into a channel only to those who wrote, since there it speaks in our name."""
        if not self.speaks_as_node:
            return True
        if len(onward) < 2 or onward[1] not in self.writers:
            return False
        self.writers.move_to_end(onward[1])
        return True


class ReturnPaths:
    """One passage for each way that takes part, made when it first does, and gone with it.

    The links and encryptors of a node that does not forward are reachable from here only, and an answer begins with such an address. In what
    a relay passes on, that first hop of the return route is a passage instead: 128 random bits, so that only who took part in the
    conversation can send by it. What comes by a passage gets a passage in turn, so that whole channels run over this node.
    """

    def __init__(self, router: Router) -> None:
        self._router = router
        # By both addresses: what passes a second time keeps the passage it has.
        self._ways: dict[Encoded, PathEntry] = {}

    def meet(self, message: Message) -> PathEntry:
        """Return the way that a message from afar came by: the first hop of its return route, which this node itself put there."""
        way = self.lead(message.back[0], message.origin)
        if message.back[0] == way.first:
            way.origin = message.origin
        return way

    def lead(self, first: Encoded, origin: Origin) -> PathEntry:
        """Return the way that begins with an address of this node, or with its passage; a new one has these facts."""
        way = self._ways.get(first)
        if way is None:
            way = PathEntry(first, random_address(), origin)
            self._ways[first] = self._ways[way.alias] = way
            self._router.register(way.alias, partial(self._through, way), allow=from_anywhere)
            way.lose = partial(self._forget, way)
            self._router.on_close(first, way.lose)
        return way

    def _forget(self, way: PathEntry) -> None:
        if self._ways.pop(way.first, None) is not None:
            del self._ways[way.alias]
            self._router.unregister(way.alias)
            self._router.forget(way.first, way.lose)

    def close(self) -> None:
        """Take every passage away."""
        for way in set(self._ways.values()):
            self._forget(way)

    def _through(self, way: PathEntry, message: Message) -> ByteBudget | None:
        """The hop of a passage."""
        if not way.expects(message.onward):
            self._router.counters["passage to one who never wrote"] += 1
            return None
        return self.pass_on(message, way, message.onward[1:])

    def pass_on(self, message: Message, way: PathEntry, rest: tuple[Encoded, ...]) -> ByteBudget | None:
        """Deliver a message by a way to the hops behind it, with a passage in front of its return route; the debt that this makes.

        What can't be passed on is dropped and counted; a message that began here needs no passage, and raises as it would without a relay.
        """
        router, origin, back = self._router, message.origin, message.back
        from_afar = not origin.is_local
        if from_afar:
            source = self.meet(message)
            if len(back) > 1:
                source.note(back[1])
            back = (source.alias, *back[1:])
        # Back out by the link that it came by, also within a channel, its reader may not wait for itself; and a stream's queue has no patience.
        turns = origin.link is not None and origin.link == way.origin.link
        waits = not from_afar or not (turns or origin.drop_when_full or way.origin.stream is not None)
        over_budget = way.over_budget
        if not waits and over_budget is not None and over_budget.is_full and not over_budget.is_closed:
            router.counters["relay: the way on is full"] += 1
            return None
        # To a stream's sender whatever did not begin here is an answer of its hub.
        outward = LOCAL if way.origin.stream is not None and not way.speaks_as_node else origin
        try:
            over_budget = router.bridge(Message((way.first, *rest), back, message.payload, outward, message.deliveries))
        except (UnknownAddressError, MessageTooLargeError, ClosedError):
            if not from_afar:
                raise
            router.counters["relay: the way on is gone or too narrow"] += 1
            return None
        if waits or over_budget is None:
            return over_budget
        way.over_budget = over_budget
        if turns and over_budget.is_full:
            over_budget.stalled()
        return None
