"""The table of a node's addresses, and the one function that every message passes."""

import secrets
from collections.abc import Callable

import attrs

from trionode.counters import Counters, DropReason
from trionode.errors import AddressInUseError, MessageTooLargeError, UnknownAddressError
from trionode.protocol.rules.access import Access
from trionode.protocol.wire.address import LOCAL_TYPE, Address, Encoded, decode_address, local
from trionode.protocol.wire.message import LOCAL, Message
from trionode.protocol.wire.route import Route
from trionode.routing.byte_budget import ByteBudget

#: Takes a message and delivers it on; synchronous, never waits. Returns the room that is over its bound because of the message, if
#: one is: who delivered it settles that debt before he delivers again.
Hop = Callable[[Message], ByteBudget | None]

#: Local deliveries that one message may have: what ends a loop between addresses of one node.
MAX_DELIVERIES = 32


@attrs.frozen(eq=False)
class Entry:
    """What stands behind an address: the hop, who may reach it, and the largest message that it can carry on (None: any)."""

    hop: Hop
    allow: Access
    limit: int | None = None


def random_address() -> Encoded:
    """A local address with 128 random bits, which nobody can guess and which is never used again (spec §2.1)."""
    return local(secrets.token_hex(16))


class Router:
    """Delivers messages to hops by the first address of their onward route."""

    __slots__ = ("_close_callbacks", "_prefixes", "_table", "counters")

    def __init__(self) -> None:
        self._table: dict[Encoded, Entry] = {}
        self._prefixes: dict[bytes, Entry] = {}
        self._close_callbacks: dict[Encoded, dict[Callable[[], None], None]] = {}
        #: Messages dropped, by reason.
        self.counters: Counters = Counters()

    def register(self, address: Encoded, hop: Hop, *, allow: Access, limit: int | None = None) -> None:
        """Put a hop behind an address; AddressInUseError if it is taken. `limit` is the largest record or frame in bytes."""
        if address in self._table:
            msg = (
                f"{Address.from_encoded(address)} is in use on this node: close its owner first, or choose another name"
            )
            raise AddressInUseError(msg)
        self._table[address] = Entry(hop, allow, limit)

    def replace(self, address: Encoded, hop: Hop, *, allow: Access, limit: int | None = None) -> None:
        """Put another hop behind an address that is there: for who asked to hear of its end, it lives on."""
        assert address in self._table
        self._table[address] = Entry(hop, allow, limit)

    def unregister(self, address: Encoded) -> None:
        """Take an address away, if it is there, and tell those who asked to hear of it."""
        self._table.pop(address, None)
        for tell in self._close_callbacks.pop(address, ()):
            tell()

    def on_close(self, address: Encoded, tell: Callable[[], None]) -> None:
        """Call `tell` once, when the address is taken away; at once if it is not there."""
        if address in self._table:
            self._close_callbacks.setdefault(address, {})[tell] = None
        else:
            tell()

    def forget(self, address: Encoded, tell: Callable[[], None]) -> None:
        """Take back an `on_close`: whoever ends before the address does must not be kept alive by it."""
        close_callbacks = self._close_callbacks.get(address, {})
        close_callbacks.pop(tell, None)
        if not close_callbacks:
            self._close_callbacks.pop(address, None)

    def register_prefix(self, prefix: bytes, hop: Hop, *, allow: Access) -> None:
        """Put a hop behind all local addresses whose value begins with `prefix` and that nobody else has.

        The addresses need no table: they are valid on every node that serves the family, also after a restart (spec §11.6, 7).
        """
        if any(prefix.startswith(other) or other.startswith(prefix) for other in self._prefixes):
            raise AddressInUseError(
                f"addresses that begin with {prefix!r} are served on this node already: choose another name"
            )
        self._prefixes[prefix] = Entry(hop, allow)

    def unregister_prefix(self, prefix: bytes) -> None:
        """Take a family away, if it is there."""
        self._prefixes.pop(prefix, None)

    def _prefix_entry(self, address: Encoded) -> Entry | None:
        kind, value = decode_address(address)
        if kind == LOCAL_TYPE:
            for prefix, entry in self._prefixes.items():
                if value.startswith(prefix):
                    return entry
        return None

    def __contains__(self, address: Encoded) -> bool:
        return address in self._table or self._prefix_entry(address) is not None

    def limit(self, address: Encoded) -> int | None:
        """Return the largest message in bytes that the hop behind an address can carry on; None if it has no limit or isn't there."""
        entry = self._table.get(address)
        return None if entry is None else entry.limit

    def deliver(self, message: Message) -> ByteBudget | None:
        """Hand a message to the hop of its first onward address, and return the debt that this makes.

        A message from afar that can't be delivered is dropped and counted: its sender learns nothing. One that began here
        raises UnknownAddressError.
        """
        onward = message.onward
        entry = self._table.get(onward[0]) if onward else None
        if entry is None:
            entry = self._prefix_entry(onward[0]) if onward and self._prefixes else None
            if entry is None:
                self._nobody(message)
                return None
        if not entry.allow(message.origin):
            self.counters[DropReason.ACCESS_DENIED] += 1
            return None
        message.deliveries += 1
        if message.deliveries > MAX_DELIVERIES:
            self.counters[DropReason.DELIVERY_LOOP] += 1
            return None
        return entry.hop(message)

    def bridge(self, message: Message) -> ByteBudget | None:
        """Deliver by this node's own authority, whoever sent the message: for hops that lead to an address which this node chose itself."""
        entry = self._table.get(message.onward[0])
        if entry is None:
            self._nobody(message)
            return None
        message.deliveries += 1
        if message.deliveries > MAX_DELIVERIES:
            self.counters[DropReason.DELIVERY_LOOP] += 1
            return None
        return entry.hop(message)

    def answer(self, message: Message, source: Encoded, payload: bytes) -> None:
        """Answer by the way that a message came, from `source`, without waiting: for hops, and for services that strangers use.

        Dropped and counted if that way is gone (spec §4.2) or can't carry it: both were the peer's choice. A way that does not take its
        answers is given up at its hard bound, which closes a leaf link.
        """
        try:
            over_budget = self.deliver(Message(message.back, (source,), payload, LOCAL, message.deliveries))
        except UnknownAddressError:
            self.counters[DropReason.REPLY_PATH_GONE] += 1
        except MessageTooLargeError:
            self.counters[DropReason.REPLY_TOO_LARGE] += 1
        else:
            if over_budget is not None and over_budget.is_full:
                over_budget.stalled()

    def _nobody(self, message: Message) -> None:
        if message.origin is LOCAL:
            first = str(message.onward_route.hops[0]) if message.onward else "an empty route"
            msg = (
                f"nobody on this node has the first address of the route [{Route.from_encoded(message.onward)}]: {first}. "
                f"Start a worker there, connect first, or open the channel again if its link was lost"
            )
            raise UnknownAddressError(msg)
        self.counters[DropReason.UNKNOWN_ADDRESS] += 1
