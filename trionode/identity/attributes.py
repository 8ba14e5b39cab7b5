"""Trust and access by attributes that an authority's credentials prove (spec §10.2)."""

import time
from collections.abc import Callable, Mapping
from typing import Self

import attrs

from trionode.errors import ConfigError, IdentityError
from trionode.identity.trust import TrustPolicy
from trionode.protocol.handshake.exchange import Peer
from trionode.protocol.identity.credential import Credential
from trionode.protocol.identity.identity import ChangeHistory, import_history
from trionode.protocol.rules.access import Access
from trionode.protocol.wire.message import Origin


@attrs.frozen(eq=False, kw_only=True)
class PeerOrigin(Origin):
    """The origin of messages from a secure channel: it also names the peer, whose credentials prove attributes."""

    peer: Peer

    @classmethod
    def through(cls, outer: Origin, peer: Peer) -> Self:
        """Return the origin of messages that a channel with that peer decrypts, whose own origin is `outer`."""
        return cls(
            link=outer.link,
            stream=outer.stream,
            identifier=peer.identifier.value,
            drop_when_full=outer.drop_when_full,
            resends=outer.resends,
            peer=peer,
        )


def has_attributes(credential: Credential, required: Mapping[str, str | None]) -> bool:
    """Whether a credential has all of these attributes; a value of None means any value."""
    return _has(credential, _encoded(required))


def _has(credential: Credential, required: Mapping[bytes, bytes | None]) -> bool:
    proven = credential.attributes
    return all(name in proven and (value is None or value == proven[name]) for name, value in required.items())


def _encoded(attributes: Mapping[str, str | None]) -> dict[bytes, bytes | None]:
    return {encode(name): None if value is None else encode(value) for name, value in attributes.items()}


def _proves(
    authority: ChangeHistory | str, attributes: Mapping[str, str | None] | None, schema: int | None
) -> Callable[[Peer], bool]:
    """Return the function that says whether a valid credential of the authority gives a peer these attributes."""
    history, required = authority_history(authority), _encoded(attributes or {})

    def proves(peer: Peer) -> bool:
        credential = peer.credential_by(history, int(time.time()))
        return credential is not None and schema in {None, credential.schema} and _has(credential, required)

    return proves


def trust_attributes(
    authority: ChangeHistory | str, attributes: Mapping[str, str | None] | None = None, *, schema: int | None = None
) -> TrustPolicy:
    """Return the policy that trusts peers with a credential of that authority.

    The peer presents the credential in the handshake of a current channel. Classic channels carry none, so this policy
    refuses classic peers. The policy decides once, at the handshake: a channel stays open when the credential expires.
    Use `from_attributes` to check each message.

    Args:
      authority: The authority's exported change history as hex text (`trionode identity export`), or the history.
      attributes: Names and values that the credential must have; a value of None means any value. Without this
        argument any valid credential of the authority is enough.
      schema: The number of the credential's schema; None accepts all.

    Returns:
      A policy for `open_secure_channel` and `serve_secure_channels`.

    Raises:
      ConfigError: If `authority` is not a change history that verifies.
    """
    proves = _proves(authority, attributes, schema)

    async def trust_those(peer: Peer) -> bool:
        return proves(peer)

    return trust_those


def from_attributes(
    authority: ChangeHistory | str, attributes: Mapping[str, str | None] | None = None, *, schema: int | None = None
) -> Access:
    """Return the access rule that admits peers of secure channels with a credential of that authority.

    The rule does not admit messages of this node. It denies a peer from the moment when its credential expires, also
    while the channel stays open, until the peer presents a new credential (`SecureChannel.refresh_credentials`).

    Args:
      authority: The authority's exported change history as hex text (`trionode identity export`), or the history.
      attributes: Names and values that the credential must have; a value of None means any value. Without this
        argument any valid credential of the authority is enough.
      schema: The number of the credential's schema; None accepts all.

    Returns:
      A rule for the `allow` arguments of a node's methods.

    Raises:
      ConfigError: If `authority` is not a change history that verifies.
    """
    proves = _proves(authority, attributes, schema)

    def rule(origin: Origin) -> bool:
        # A relay removes the identifier of an outer channel from the origin: then the peer does not speak for this
        # message.
        return isinstance(origin, PeerOrigin) and origin.identifier is not None and proves(origin.peer)

    return rule


def authority_history(authority: ChangeHistory | str) -> ChangeHistory:
    """Return the verified history of an authority; ConfigError if the text is none."""
    if not isinstance(authority, str):
        return authority
    try:
        return import_history(authority.strip())
    except IdentityError as error:
        raise ConfigError(
            f"an authority is the hex text that `trionode identity export` prints for it; this is {authority[:40]!r}: {error}"
        ) from error


def readable(credential: Credential) -> dict[str, str]:
    """Return the attributes as text. Bytes that are not UTF-8 become surrogates, so different bytes stay different."""
    return {
        name.decode(errors="surrogateescape"): value.decode(errors="surrogateescape")
        for name, value in credential.attributes.items()
    }


def encode(text: str) -> bytes:
    """Return the bytes that `readable` reads as this text."""
    return text.encode(errors="surrogateescape")
