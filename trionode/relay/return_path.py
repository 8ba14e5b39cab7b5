"""The return paths of a relay in a running node: aliases in its router, and delivery by them."""

from collections.abc import Callable
from functools import partial

from trionode.counters import DropReason
from trionode.errors import ClosedError, MessageTooLargeError, UnknownAddressError
from trionode.protocol.rules import return_path
from trionode.protocol.rules.access import from_anywhere
from trionode.protocol.wire.address import Encoded
from trionode.protocol.wire.message import LOCAL, Message, Origin
from trionode.routing.byte_budget import ByteBudget
from trionode.routing.router import Router, random_address

PathEntry = return_path.PathEntry[Encoded, Origin]


class ReturnPaths:
    """One entry for each link, channel or stream that takes part: made when it first does, and removed when it ends.

    `trionode.protocol.rules.return_path` decides what passes; this class registers the aliases and delivers.
    """

    def __init__(self, router: Router) -> None:
        self._router = router
        self._table: return_path.PathTable[Encoded, Origin] = return_path.PathTable(random_address, self._register)
        self._close_callbacks: dict[PathEntry, Callable[[], None]] = {}
        # The queue of an entry that messages filled beyond its limit whose deliverer does not wait.
        self._over_budgets: dict[PathEntry, ByteBudget] = {}
        #: See `PathTable`.
        self.enter = self._table.enter
        self.arrive = self._table.arrive

    def _register(self, entry: PathEntry) -> None:
        self._router.register(entry.alias, partial(self._on_answer, entry), allow=from_anywhere)
        self._close_callbacks[entry] = partial(self._remove, entry)
        self._router.on_close(entry.first, self._close_callbacks[entry])

    def _remove(self, entry: PathEntry) -> None:
        if self._table.remove(entry):
            self._router.unregister(entry.alias)
            self._router.forget(entry.first, self._close_callbacks.pop(entry))
            self._over_budgets.pop(entry, None)

    def __len__(self) -> int:
        """How many links, channels and streams take part."""
        return len(self._close_callbacks)

    def close(self) -> None:
        """Remove every entry."""
        for entry in list(self._close_callbacks):
            self._remove(entry)

    def _on_answer(self, entry: PathEntry, message: Message) -> ByteBudget | None:
        """The hop of an alias."""
        if not entry.admits(message.onward):
            self._router.counters[DropReason.RELAY_RECEIVER_UNKNOWN] += 1
            return None
        return self.pass_on(message, entry, message.onward[1:])

    def pass_on(self, message: Message, entry: PathEntry, rest: tuple[Encoded, ...]) -> ByteBudget | None:
        """Deliver a message by an entry to the hops behind it, with an alias in front of its return route.

        Return the queue it overfilled.

        A remote message that can't be passed on is dropped and counted. A local one raises as it would without a relay.
        """
        router, origin = self._router, message.origin
        is_local = origin.is_local
        back = self._table.return_route(message.back, origin)
        # A reader never waits for its own link, not even within a channel; and the queue of a stream has no stall
        # timeout.
        turns_back = origin.link is not None and origin.link == entry.origin.link
        waits = is_local or not (turns_back or origin.drop_when_full or entry.origin.stream is not None)
        over_budget = self._over_budgets.get(entry)
        if not waits and over_budget is not None and over_budget.is_full and not over_budget.is_closed:
            router.counters[DropReason.RELAY_PATH_FULL] += 1
            return None
        onward_origin = LOCAL if entry.arrives_as_local else origin
        try:
            over_budget = router.bridge(
                Message((entry.first, *rest), back, message.payload, onward_origin, message.deliveries)
            )
        except (UnknownAddressError, MessageTooLargeError, ClosedError):
            if is_local:
                raise
            router.counters[DropReason.RELAY_PATH_FAILED] += 1
            return None
        if waits or over_budget is None:
            return over_budget
        self._over_budgets[entry] = over_budget
        if turns_back and over_budget.is_full:
            over_budget.stalled()
        return None
