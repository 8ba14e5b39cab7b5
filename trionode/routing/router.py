"""The table of a node's addresses, and the function that every message passes."""

import secrets
from collections.abc import Callable

import attrs

from trionode.counters import Counters, DropReason
from trionode.errors import AddressInUseError, MessageTooLargeError, UnknownAddressError
from trionode.protocol.rules.access import Access
from trionode.protocol.rules.verdicts import Verdict
from trionode.protocol.wire.address import LOCAL_TYPE, Address, Encoded, decode_address, local
from trionode.protocol.wire.message import LOCAL, Message
from trionode.routing.byte_budget import ByteBudget

#: Takes a message and delivers it on. It is synchronous and never waits. It returns the queue that the message filled
#: beyond its bound, or None: the task that delivered the message waits for that queue before it delivers again.
Hop = Callable[[Message], ByteBudget | None]

#: Local deliveries that one message may have. It ends a loop between addresses of one node.
MAX_DELIVERIES = 32


@attrs.frozen(eq=False)
class Entry:
    """What is behind an address: the hop, its access rule, and the largest message that it carries (None: any)."""

    hop: Hop
    allow: Access
    limit: int | None = None
    #: Called when answers that should have come by this address are missing; see `Router.suspect`.
    suspect: Callable[[], None] | None = None


def random_address() -> Encoded:
    """Return a local address of 128 random bits, which no peer can guess and which is never used again (spec §2.1)."""
    return local(secrets.token_hex(16))


class Router:
    """Delivers messages to hops by the first address of their onward route."""

    __slots__ = ("_close_callbacks", "_prefixes", "_table", "_verdict_callbacks", "counters", "is_ending")

    def __init__(self) -> None:
        self._table: dict[Encoded, Entry] = {}
        self._prefixes: dict[bytes, Entry] = {}
        self._close_callbacks: dict[Encoded, dict[Callable[[], None], None]] = {}
        self._verdict_callbacks: dict[Encoded, dict[Callable[[Verdict], None], None]] = {}
        #: Messages dropped, by reason.
        self.counters: Counters = Counters()
        #: Whether the node is closing its links, so a lost link is no event to log.
        self.is_ending = False

    def register(
        self,
        address: Encoded,
        hop: Hop,
        *,
        allow: Access,
        limit: int | None = None,
        suspect: Callable[[], None] | None = None,
    ) -> None:
        """Put a hop behind an address; AddressInUseError if it is taken.

        `limit` is the largest record or frame in bytes. `suspect` is called by the method of that name.
        """
        if address in self._table:
            raise AddressInUseError(
                f"{Address.from_encoded(address)} is in use on this node: close its owner first, or choose another name"
            )
        self._table[address] = Entry(hop, allow, limit, suspect)

    def replace(self, address: Encoded, hop: Hop, *, allow: Access, limit: int | None = None) -> None:
        """Put another hop behind an existing address; the callbacks of `on_close` are not called."""
        assert address in self._table
        self._table[address] = Entry(hop, allow, limit)

    def unregister(self, address: Encoded) -> None:
        """Remove an address, if it exists, and call the callbacks of `on_close`."""
        self._table.pop(address, None)
        self._verdict_callbacks.pop(address, None)
        for callback in self._close_callbacks.pop(address, ()):
            callback()

    def on_close(self, address: Encoded, callback: Callable[[], None]) -> None:
        """Call `callback` once, when the address is removed; at once if it does not exist."""
        if address in self._table:
            self._close_callbacks.setdefault(address, {})[callback] = None
        else:
            callback()

    def forget(self, address: Encoded, callback: Callable[[], None]) -> None:
        """Remove a callback of `on_close`, so the address does not keep an object alive that ends before it."""
        callbacks = self._close_callbacks.get(address, {})
        callbacks.pop(callback, None)
        if not callbacks:
            self._close_callbacks.pop(address, None)

    def suspect(self, address: Encoded) -> None:
        """Tell the hop behind an address that answers that should have come by it are missing.

        A link by which nothing at all has come for a while ends then, so that the next path is over another connection.
        """
        entry = self._table.get(address)
        if entry is not None and entry.suspect is not None:
            entry.suspect()

    def on_verdict(self, address: Encoded, callback: Callable[[Verdict], None]) -> None:
        """Call `callback` with each verdict on what passes an address, until it is removed; never if it is not there.

        A channel through a stream uses it: the stream knows what its hub lost, and the channel what that means.
        """
        if address in self._table:
            self._verdict_callbacks.setdefault(address, {})[callback] = None

    def ignore_verdicts(self, address: Encoded, callback: Callable[[Verdict], None]) -> None:
        """Remove a callback of `on_verdict`, so the address does not keep an object alive that ends before it."""
        callbacks = self._verdict_callbacks.get(address, {})
        callbacks.pop(callback, None)
        if not callbacks:
            self._verdict_callbacks.pop(address, None)

    def report(self, address: Encoded, verdict: Verdict) -> None:
        """Call the callbacks of `on_verdict`; the hop behind an address reports what it found out."""
        for callback in list(self._verdict_callbacks.get(address, ())):
            callback(verdict)

    def register_prefix(self, prefix: bytes, hop: Hop, *, allow: Access) -> None:
        """Put a hop behind all local addresses that begin with `prefix` and have no hop of their own.

        They need no table, so they are valid on every node that serves the prefix, also after a restart (spec §11.6,
        7).
        """
        if any(prefix.startswith(other) or other.startswith(prefix) for other in self._prefixes):
            raise AddressInUseError(
                f"a service of this node has addresses that overlap with those that begin with {prefix!r}: "
                "choose another name"
            )
        self._prefixes[prefix] = Entry(hop, allow)

    def unregister_prefix(self, prefix: bytes) -> None:
        """Remove a prefix, if it exists."""
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
        """Return the largest message in bytes that the hop behind an address carries.

        None if it has no limit or does not exist.
        """
        entry = self._table.get(address)
        return None if entry is None else entry.limit

    def deliver(self, message: Message) -> ByteBudget | None:
        """Call the hop of a message's first onward address; return the queue that the message filled beyond its bound.

        A remote message that can't be delivered is dropped and counted, and its sender learns nothing. A local one
        raises UnknownAddressError.
        """
        onward = message.onward
        entry = self._table.get(onward[0]) if onward else None
        if entry is None:
            entry = self._prefix_entry(onward[0]) if onward and self._prefixes else None
            if entry is None:
                self._unknown(message)
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
        """Deliver without asking the access rule, for hops that lead to an address which this node itself chose."""
        entry = self._table.get(message.onward[0])
        if entry is None:
            self._unknown(message)
            return None
        message.deliveries += 1
        if message.deliveries > MAX_DELIVERIES:
            self.counters[DropReason.DELIVERY_LOOP] += 1
            return None
        return entry.hop(message)

    def answer(self, message: Message, source: Encoded, payload: bytes) -> None:
        """Answer along a message's return route, from `source`, without waiting.

        Hops use it, and services for unauthenticated peers.
        If that path is gone (spec §4.2) or does not carry the answer, which is the peer's choice, the answer is dropped
        and counted. A path that takes no answers is reported as stalled at its hard limit, which closes a link.
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

    def _unknown(self, message: Message) -> None:
        if message.origin is LOCAL:
            if not message.onward:
                raise UnknownAddressError("the route is empty: it needs at least one hop, such as echoer")
            route = message.onward_route
            raise UnknownAddressError(
                f"this node has no address {route.hops[0]}, the first hop of the route [{route}]. "
                f"Start a worker there, connect first, or open the channel again if its link was lost"
            )
        self.counters[DropReason.UNKNOWN_ADDRESS] += 1
