"""The relay service: names on a hub under which nodes that nobody can connect to are reached by the links they keep (spec §13.2)."""

import re
import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

import attrs
import trio

from trionode.counters import DropReason
from trionode.errors import AddressInUseError, LocalError, WireError
from trionode.log import LogThrottle, log, sanitize
from trionode.protocol.rules.access import Access, client_of, from_anywhere
from trionode.protocol.rules.relay import registration_refusal
from trionode.protocol.wire.address import Encoded, local
from trionode.protocol.wire.message import Message
from trionode.relay.return_path import PathEntry, ReturnPaths
from trionode.routing.byte_budget import ByteBudget
from trionode.routing.router import Router

#: The services of a hub, as clients know them: for a random name and for a chosen one; here, as in ockam 0.150.0, both do both.
EPHEMERAL_SERVICE = "forwarding_service"
NAMED_SERVICE = "static_forwarding_service"
#: What stands before the name in a relay's address, so that no name can be that of another worker.
PREFIX = "forward_to_"
#: The payload that asks for a random name.
REGISTER = "register"

#: Bytes of the way from the hub to a holder: some hops of 32 hex digits. It is kept, and put before every message.
MAX_FORWARD = 1024

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)


def is_relay_name(name: str) -> bool:
    """Whether a relay may be called so: other names hurt some services, and `#` ends a whole node of one (spec §13.2)."""
    return _NAME.fullmatch(name) is not None and name != REGISTER


@attrs.frozen
class RelayLimits:
    """What clients may make a hub hold: at most MAX_FORWARD bytes and some objects for each relay."""

    #: Relays of one client: an authenticated identity, or a link or stream without one. Names that it owns but doesn't use count.
    relays_per_client: int = 100
    #: Relays in all; once there are so many, new names are refused and none is taken away.
    relays: int = 10_000


def _nothing() -> None: ...


@attrs.define(eq=False)
class _Relay:
    """A name and whose it is; while its holder is there also the way to him."""

    name: str
    encoded: Encoded
    #: The identifier, the link or the stream that registered it.
    owner: bytes
    #: Whether the name belongs to its owner also while he is away.
    is_kept: bool
    #: The first hop to the holder, None while he is away, and the hops behind it.
    first: Encoded | None = None
    rest: tuple[Encoded, ...] = ()
    #: How messages from afar get past that first hop; None where the holder is a worker of this node.
    way: PathEntry | None = None
    #: What hears of that first hop's end.
    lose: Callable[[], None] = _nothing


class RelayService:
    """Answers registrations and passes messages on; made by `Node.serve_relays`.

    A name that was registered through a secure channel belongs to that identity for as long as the service lives; without a channel it
    belongs to the link or stream that came first, while that lives. Whoever else asks for it hears nothing.
    """

    def __init__(
        self, router: Router, services: Sequence[str], prefix: str, *, allow: Access, limits: RelayLimits
    ) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", prefix, re.ASCII):
            raise LocalError(
                f"a relay's prefix has at least one of A-Z a-z 0-9 . _ -, so that no client can take the place of a worker; this is {prefix!r}"
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

    def _on_registration(self, message: Message) -> ByteBudget | None:
        relay = self._take_in(message)
        if relay is None:
            # No answer, whatever the reason: it would tell who holds which name.
            self._router.counters[DropReason.REGISTRATION_REFUSED] += 1
        else:
            # The request's own payload, and the whole return route as the way to the holder: what every client of both generations takes.
            self._router.answer(message, relay.encoded, message.payload)
        return None

    def _take_in(self, message: Message) -> _Relay | None:
        """The relay that a registration made or moved; None if it is refused."""
        try:
            wanted = message.text
        except WireError:
            return None
        named = wanted != REGISTER
        if (named and not is_relay_name(wanted)) or not message.back or sum(map(len, message.back)) > MAX_FORWARD:
            return None
        name = wanted if named else secrets.token_hex(16)
        origin = message.origin
        owner = client_of(origin) or b""
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
            if self._log_throttle.is_due(refusal.name, trio.current_time()):
                log.warning("refused the relay name %s: %s", sanitize(name), refusal.value)
            return None
        if relay is None:
            relay = _Relay(name, local(self._prefix + name), owner, is_kept=named and origin.identifier is not None)
            self._relays[name] = relay
            self._per_owner[owner] += 1
        return relay if self._lead(relay, message) else None

    def _lead(self, relay: _Relay, message: Message) -> bool:
        """Let a relay lead back by the way that its registration came."""
        router, first = self._router, message.back[0]
        if relay.first is None:
            try:
                router.register(relay.encoded, partial(self._on_message, relay), allow=from_anywhere)
            except AddressInUseError as error:
                if self._log_throttle.is_due("in use", trio.current_time()):
                    log.warning("refused the relay name %s: %s", sanitize(relay.name), error)
                self._remove(relay)
                return False
        elif relay.first != first:
            router.forget(relay.first, relay.lose)
        moved = relay.first != first
        relay.first, relay.rest = first, message.back[1:]
        relay.way = None if message.origin.is_local else self._return_paths.arrive(message.back, message.origin)
        if moved:
            relay.lose = partial(self._lose, relay)
            router.on_close(first, relay.lose)  # last, since it tells at once where the way is gone already
        return True

    def _lose(self, relay: _Relay) -> None:
        """The first hop to a holder is gone: messages for him are dropped until he registers again."""
        relay.first, relay.rest, relay.way = None, (), None
        self._router.unregister(relay.encoded)
        if not relay.is_kept:
            self._remove(relay)

    def _remove(self, relay: _Relay) -> None:
        self._relays.pop(relay.name, None)
        self._per_owner[relay.owner] -= 1
        if not self._per_owner[relay.owner]:
            del self._per_owner[relay.owner]

    def _on_message(self, relay: _Relay, message: Message) -> ByteBudget | None:
        """The hop of a relay: its address gives way to the route to the holder (spec §13.2)."""
        rest = (*relay.rest, *message.onward[1:])
        if relay.way is not None:
            return self._return_paths.pass_on(message, relay.way, rest)
        # The holder is a worker of this node: his own rule says who reaches him.
        assert relay.first is not None
        onward = (relay.first, *rest)
        return self._router.deliver(Message(onward, message.back, message.payload, message.origin, message.deliveries))

    def _close(self) -> None:
        for service in self._services:
            self._router.unregister(service)
        for relay in list(self._relays.values()):
            self._router.unregister(relay.encoded)
            if relay.first is not None:
                self._router.forget(relay.first, relay.lose)
        self._relays.clear()
        self._per_owner.clear()
        self._return_paths.close()

    async def aclose(self) -> None:
        """Take the services, all relays and all passages away; conversations that run over this node end."""
        self._close()
        await trio.lowlevel.checkpoint()
