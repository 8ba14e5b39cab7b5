"""How an identity of this program makes the handshakes of each protocol version."""

from collections.abc import Awaitable, Callable, Iterable

import attrs

from trionode.errors import ConfigError
from trionode.identity.identity import Identity
from trionode.protocol.delivery.terms import Offer
from trionode.protocol.handshake.classic_exchange import ClassicExchange, is_classic
from trionode.protocol.handshake.current_exchange import CurrentExchange
from trionode.protocol.handshake.exchange import Exchange
from trionode.protocol.handshake.noise import Role
from trionode.protocol.identity.identity import Identifier
from trionode.routing.router import random_address


@attrs.frozen(eq=False)
class Handshaker:
    """Makes the handshakes of one identity in one protocol version; every exchange is a new one."""

    protocol_version: str
    #: The identifier by which peers of this version know the identity.
    identifier: Identifier
    initiator: Callable[[], Exchange] = attrs.field(repr=False)
    responder: Callable[[], Exchange] = attrs.field(repr=False)
    #: Whether the payload of a first message has the form of this version. No payload has the form of both.
    begins: Callable[[bytes], bool] = attrs.field(repr=False)


async def _current(identity: Identity, *, offers_delivery: bool) -> Handshaker:
    # Read at each handshake: the identity may be rotated, its attestation is renewed, and credentials are added.
    offer = Offer() if offers_delivery else None

    def respond() -> Exchange:
        payload = attrs.evolve(identity.payload(), delivery=offer)
        return CurrentExchange.create(Role.RESPONDER, identity.vault, identity.purpose_key, payload)

    return Handshaker(
        "current",
        identity.identifier,
        lambda: CurrentExchange.create(Role.INITIATOR, identity.vault, identity.purpose_key, identity.payload()),
        respond,
        lambda first: not is_classic(first),
    )


async def _classic(identity: Identity, *, offers_delivery: bool) -> Handshaker:  # noqa: ARG001 - classic has none
    classic = await identity.classic()
    return Handshaker(
        "classic",
        classic.identifier,
        lambda: ClassicExchange.create(
            Role.INITIATOR, classic.vault, classic.signing_key, classic.history, random_address()
        ),
        lambda: ClassicExchange.create(
            Role.RESPONDER, classic.vault, classic.signing_key, classic.history, random_address()
        ),
        is_classic,
    )


_HANDSHAKERS: dict[str, Callable[..., Awaitable[Handshaker]]] = {"current": _current, "classic": _classic}


def require_protocol_versions(protocol_versions: Iterable[str]) -> tuple[str, ...]:
    """Return the names, each once; ConfigError if one is unknown, or there is none."""
    names = tuple(dict.fromkeys((protocol_versions,) if isinstance(protocol_versions, str) else protocol_versions))
    unknown = [name for name in names if name not in _HANDSHAKERS]
    if unknown or not names:
        raise ConfigError(
            f"a protocol version is {' or '.join(map(repr, _HANDSHAKERS))}, at least one; "
            f"this is {', '.join(map(repr, unknown)) or 'none'}"
        )
    return names


async def handshaker(identity: Identity, protocol_version: str, *, offers_delivery: bool = False) -> Handshaker:
    """Return the handshaker for a protocol version; ConfigError if unknown, VaultError as for `Identity.classic`.

    With `offers_delivery` its responders say that they have the delivery layer.
    """
    (name,) = require_protocol_versions([protocol_version])
    return await _HANDSHAKERS[name](identity, offers_delivery=offers_delivery)
