"""The relay service: names on a hub that lead to nodes by the links that these keep to the hub (spec §13.2)."""

import re
import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

import attrs
import trio

from trionode.counters import DropReason
from trionode.errors import AddressInUseError, ConfigError, WireError
from trionode.log import LogThrottle, sanitize
from trionode.protocol.rules.access import Access, client_of, from_anywhere
from trionode.protocol.rules.relay import registration_refusal
from trionode.protocol.wire.address import Encoded, local
from trionode.protocol.wire.message import Message
from trionode.relay.return_path import PathEntry, ReturnPaths
from trionode.routing.byte_budget import ByteBudget
from trionode.routing.router import Router

#: The service addresses of a hub that clients know: for a random name and for a chosen one. Here, as in ockam 0.150.0,
#: both do both.
EPHEMERAL_SERVICE = "forwarding_service"
NAMED_SERVICE = "static_forwarding_service"
#: The prefix of every relay's address, so no relay name can be the address of another worker.
PREFIX = "forward_to_"
#: The payload that asks for a random name.
REGISTER = "register"

#: Bytes of the path from the hub to a relay's owner: some hops of 32 hex digits. It is kept, and put before every
#: message.
MAX_PATH_SIZE = 1024
#: The log line of a refusal.
REFUSED = "refused the relay name %s: %s"

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)


def is_relay_name(name: str) -> bool:
    """Whether a relay may have this name: other names hurt some services, and a `#` crashes one (spec §13.2)."""
    return _NAME.fullmatch(name) is not None and name != REGISTER


@attrs.frozen
class RelayLimits:
    """Limits of what clients may make a hub hold: at most MAX_PATH_SIZE bytes and some objects for each relay."""

    #: Relays of one client: an authenticated identity, or a link or stream without one. Names that it owns but does not
    #: use count.
    relays_per_client: int = 100
    #: Relays in all. Beyond it new names are refused; existing ones stay.
    relays: int = 10_000


@attrs.define(eq=False)
class _Relay:
    """A name and its owner, and the path to the owner while it is connected."""

    name: str
    encoded: Encoded
    #: The identifier, the link or the stream that registered it.
    owner: bytes
    #: Whether the name stays with its owner while that is not connected.
    is_reserved: bool
    #: The first hop to the owner, None while it is not connected, and the hops behind it.
    first: Encoded | None = None
    rest: tuple[Encoded, ...] = ()
    #: The return path by which remote messages pass that first hop; None if the owner is a worker of this node.
    entry: PathEntry | None = None
    on_close: Callable[[], None] = lambda: None


class RelayService:
    """Answers registrations and passes messages on. `Node.serve_relays` makes it.

    A name that was registered through a secure channel belongs to that identity for as long as the service lives.
    Without a channel it belongs to the link or stream that registered it first, while that lives. Another client that
    asks for the name gets no answer.
    """

    def __init__(
        self, router: Router, services: Sequence[str], prefix: str, *, allow: Access, limits: RelayLimits
    ) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", prefix, re.ASCII):
            raise ConfigError(
                "the prefix of relay addresses has at least one of A-Z a-z 0-9 . _ -, so no client can take the address "
                f"of a worker; this is {prefix!r}"
            )
        self._router = router
        self._services: list[Encoded] = []
        self._prefix = prefix
        self._limits = limits
        self._relays: dict[str, _Relay] = {}
        self._per_owner: Counter[bytes] = Counter()
        self._return_paths = ReturnPaths(router)
        self._log_throttle = LogThrottle()
        try:
            for service in services:
                router.register(local(service), self._on_registration, allow=allow)
                self._services.append(local(service))
        except AddressInUseError:
            self._close()
            raise

    def __len__(self) -> int:
        """How many names are taken."""
        return len(self._relays)

    def _on_registration(self, message: Message) -> None:
        relay = self._register(message)
        if relay is None:
            # No answer, whatever the reason: it would reveal which client holds which name.
            self._router.counters[DropReason.REGISTRATION_REFUSED] += 1
        else:
            # The payload of the request, and the whole return route as the path to the owner: clients of both protocol
            # versions accept that.
            self._router.answer(message, relay.encoded, message.payload)

    def _register(self, message: Message) -> _Relay | None:
        """Make or move the relay that a registration asks for; None if it is refused."""
        try:
            wanted = message.text
        except WireError:
            return None
        is_named = wanted != REGISTER
        if (is_named and not is_relay_name(wanted)) or not message.back:
            return None
        if sum(map(len, message.back)) > MAX_PATH_SIZE:
            return None
        name = wanted if is_named else secrets.token_hex(16)
        owner = client_of(message.origin) or b""  # b"": this node
        relay = self._relays.get(name)
        refusal = registration_refusal(
            owner,
            None if relay is None else relay.owner,
            relays=len(self._relays),
            owned=self._per_owner[owner],
            max_relays=self._limits.relays,
            max_owned=self._limits.relays_per_client,
        )
        if refusal is not None:
            self._log_throttle.log_warning(refusal, REFUSED, sanitize(name), refusal)
            return None
        if relay is None:
            is_reserved = is_named and message.origin.identifier is not None
            relay = self._relays[name] = _Relay(name, local(self._prefix + name), owner, is_reserved)
            self._per_owner[owner] += 1
        return relay if self._set_path(relay, message) else None

    def _set_path(self, relay: _Relay, message: Message) -> bool:
        """Make a relay lead back along the path of its registration; whether its address was free."""
        router, first = self._router, message.back[0]
        if relay.first is None:
            try:
                router.register(relay.encoded, partial(self._on_message, relay), allow=from_anywhere)
            except AddressInUseError:
                reason = "a worker of this hub has its address"
                self._log_throttle.log_warning(reason, REFUSED, sanitize(relay.name), reason)
                self._remove(relay)
                return False
        elif relay.first != first:
            router.forget(relay.first, relay.on_close)
        has_moved = relay.first != first
        relay.first, relay.rest = first, message.back[1:]
        relay.entry = None if message.origin.is_local else self._return_paths.arrive(message.back, message.origin)
        if has_moved:
            relay.on_close = partial(self._on_owner_lost, relay)
            router.on_close(first, relay.on_close)  # last: it calls back at once if the first hop has ended already
        return True

    def _on_owner_lost(self, relay: _Relay) -> None:
        """The first hop to an owner ended: drop messages for it until it registers again."""
        relay.first, relay.rest, relay.entry = None, (), None
        self._router.unregister(relay.encoded)
        if not relay.is_reserved:
            self._remove(relay)

    def _remove(self, relay: _Relay) -> None:
        self._relays.pop(relay.name, None)
        self._per_owner[relay.owner] -= 1
        if not self._per_owner[relay.owner]:
            del self._per_owner[relay.owner]

    def _on_message(self, relay: _Relay, message: Message) -> ByteBudget | None:
        """The hop of a relay: replace its address by the path to its owner (spec §13.2)."""
        rest = (*relay.rest, *message.onward[1:])
        if relay.entry is not None:
            return self._return_paths.pass_on(message, relay.entry, rest)
        # The owner is a worker of this node, whose own access rule applies.
        assert relay.first is not None
        onward = (relay.first, *rest)
        return self._router.deliver(Message(onward, message.back, message.payload, message.origin, message.deliveries))

    def _close(self) -> None:
        for service in self._services:
            self._router.unregister(service)
        for relay in list(self._relays.values()):
            self._router.unregister(relay.encoded)
            if relay.first is not None:
                self._router.forget(relay.first, relay.on_close)
        self._relays.clear()
        self._per_owner.clear()
        self._return_paths.close()

    async def aclose(self) -> None:
        """Remove the services and all relays. Conversations that run over this node end.

        If cancelled, all is removed already.
        """
        self._close()
        await trio.lowlevel.checkpoint()
