"""The generations of secure channels, and how an identity of ours shakes hands in each: chosen once by its name and then never asked about again."""

from collections.abc import Awaitable, Callable, Iterable

import attrs

from trionode.errors import LocalError
from trionode.identity.identity import Identity
from trionode.protocol.handshake.classic_exchange import ClassicExchange, is_classic
from trionode.protocol.handshake.current_exchange import CurrentExchange
from trionode.protocol.handshake.exchange import Exchange
from trionode.protocol.handshake.noise import Role
from trionode.protocol.identity.identity import Identifier
from trionode.routing.router import random_address


@attrs.frozen(eq=False)
class Handshaker:
    """What an identity needs for channels of one generation; every exchange that it makes is a new one."""

    protocol_version: str
    #: What peers of this generation know the identity by.
    identifier: Identifier
    initiator: Callable[[], Exchange] = attrs.field(repr=False)
    responder: Callable[[], Exchange] = attrs.field(repr=False)
    #: Whether the payload of a first message has the form of this generation; of two generations at most one says yes.
    begins: Callable[[bytes], bool] = attrs.field(repr=False)


async def _current(identity: Identity) -> Handshaker:
    # Asked for at each handshake: the identity may be rotated, and its attestation is renewed.
    return Handshaker(
        "current",
        identity.identifier,
        lambda: CurrentExchange.create(Role.INITIATOR, identity.vault, identity.purpose_key, identity.payload()),
        lambda: CurrentExchange.create(Role.RESPONDER, identity.vault, identity.purpose_key, identity.payload()),
        lambda first: not is_classic(first),
    )


async def _classic(identity: Identity) -> Handshaker:
    face = await identity.classic()
    return Handshaker(
        "classic",
        face.identifier,
        lambda: ClassicExchange.create(Role.INITIATOR, face.vault, face.signing_key, face.history, random_address()),
        lambda: ClassicExchange.create(Role.RESPONDER, face.vault, face.signing_key, face.history, random_address()),
        is_classic,
    )


_HANDSHAKERS: dict[str, Callable[[Identity], Awaitable[Handshaker]]] = {"current": _current, "classic": _classic}


def require_protocol_versions(protocol_versions: Iterable[str]) -> tuple[str, ...]:
    """Return the names, each once; LocalError if one is unknown, or there is none."""
    names = tuple(dict.fromkeys((protocol_versions,) if isinstance(protocol_versions, str) else protocol_versions))
    unknown = [name for name in names if name not in _HANDSHAKERS]
    if unknown or not names:
        said = ", ".join(map(repr, unknown)) or "nothing"
        raise LocalError(
            f"the generations of secure channels are {' and '.join(map(repr, _HANDSHAKERS))}; this says {said}"
        )
    return names


async def handshaker(identity: Identity, protocol_version: str) -> Handshaker:
    """Return how the identity shakes hands in a generation; LocalError for an unknown one, VaultError as of `Identity.classic`."""
    (name,) = require_protocol_versions([protocol_version])
    return await _HANDSHAKERS[name](identity)
