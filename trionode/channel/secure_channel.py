"""An open secure channel: the object that users get."""

from collections.abc import Mapping
from contextlib import suppress
from time import time

import trio

from trionode.channel.delivering import DeliveringHops
from trionode.channel.hops import ChannelHops
from trionode.errors import ClosedError, UnknownAddressError
from trionode.identity.attributes import authority_history, readable
from trionode.identity.identity import Identity
from trionode.protocol.handshake.exchange import Peer
from trionode.protocol.identity.identity import ChangeHistory
from trionode.protocol.wire.address import Address
from trionode.protocol.wire.current_codec import RefreshCredentials
from trionode.routing.verdict_queue import VerdictQueue

#: Seconds that the end of a channel or node waits for acknowledgements.
GRACE = 5.0


class SecureChannel:
    """One side of an open channel. Use it as a hop of a route: `Route(channel, "echoer")`.

    `Node.open_secure_channel` and listeners make it. A message that was changed, forged, replayed, or reordered by more
    than 32 messages on its route is refused and counted in `refused`. The channel continues with the next good message.
    """

    def __init__(self, hops: ChannelHops) -> None:
        self._hops = hops

    @property
    def address(self) -> Address:
        """The address of the channel: messages to it go to the peer."""
        return Address.from_encoded(self._hops.encryptor)

    @property
    def peer(self) -> Peer:
        """The other end, as the handshake has proven it."""
        return self._hops.peer

    @property
    def refused(self) -> int:
        """The number of messages that did not decrypt or could not be decoded."""
        return self._hops.refused

    @property
    def closed(self) -> trio.Event:
        """The event that is set when either side has closed the channel."""
        return self._hops.closed

    @property
    def is_reachable(self) -> bool:
        """Whether the first hop to the peer exists and, with the delivery layer, the peer is heard."""
        return self._hops.is_reachable

    def peer_attributes(self, authority: ChangeHistory | str) -> Mapping[str, str] | None:
        """Return the attributes that this authority's newest valid credential gives the peer.

        Args:
          authority: The authority's exported change history as hex text, or the history.

        Returns:
          The attributes; None if the peer has presented no credential of the authority, or it has expired. Bytes that
          are not UTF-8 are surrogate escapes (PEP 383).

        Raises:
          ConfigError: If `authority` is not a change history that verifies.
        """
        credential = self.peer.credential_by(authority_history(authority), int(time()))
        return None if credential is None else readable(credential)

    async def refresh_credentials(self, identity: Identity) -> None:
        """Present the credentials that the identity holds now (spec §7.2). The peer does not answer.

        Args:
          identity: The identity that opened this side of the channel.

        Raises:
          LocalError: If the channel is classic: classic channels carry no credentials.
          UnknownAddressError: If the route to the peer is gone.

        If cancelled, the credentials were sent, or nothing was.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        credentials = tuple(each.encode() for each in identity.credentials)
        over_budget = self._hops.send_control(
            self._hops.cipher.encode_refresh(RefreshCredentials(identity.history.encoded, credentials))
        )
        if over_budget is None:
            await trio.lowlevel.cancel_shielded_checkpoint()
        else:
            await over_budget.wait_or_stall()

    @property
    def unacknowledged(self) -> int:
        """The number of messages that the peer has not acknowledged; 0 without the delivery layer."""
        return self._hops.delivery.outbox.unacknowledged if isinstance(self._hops, DeliveringHops) else 0

    @property
    def resent(self) -> int:
        """The number of messages that were sent again; 0 without the delivery layer."""
        return self._hops.delivery.outbox.resent if isinstance(self._hops, DeliveringHops) else 0

    @property
    def has_delivery(self) -> bool:
        """Whether both sides have the delivery layer."""
        return isinstance(self._hops, DeliveringHops)

    def verdicts(self) -> VerdictQueue:
        """Return what was found out about the channel's messages, to iterate over or to `receive` from.

        The newest 64 are kept. Each one is received once. The iteration ends with the channel.

        Returns:
          The verdicts: `Gap`, `Repaired`, `TailSilence`, `Rollback`, `Fork`, `Truncated` and `Restarted`.
        """
        return self._hops.verdicts

    async def aclose(self, *, grace: float = GRACE) -> None:
        """Wait until the peer has acknowledged everything, and close the channel. A second call does nothing.

        The peer is notified if the route to it still exists. A classic channel has no message for that.

        Args:
          grace: Seconds to wait at most.

        Raises:
          Undelivered: Messages that were sent have not been acknowledged in that time. The channel is closed.

        If cancelled, the channel is closed nevertheless.
        """
        hops = self._hops
        undelivered = None
        if isinstance(hops, DeliveringHops) and not hops.closed.is_set():
            try:
                with trio.move_on_after(grace):
                    await hops.drain()
            finally:
                undelivered = hops.undelivered()
                self._close()
                if undelivered is not None:
                    hops.forgive()
        else:
            self._close()
        await trio.lowlevel.checkpoint()
        if undelivered is not None:
            raise undelivered

    def _close(self) -> None:
        hops = self._hops
        if not hops.closed.is_set():
            if isinstance(hops, DeliveringHops):
                hops.say_goodbye(is_leaving=False)
            if hops.cipher.close_plaintext is not None:
                with suppress(UnknownAddressError, ClosedError):
                    hops.send_control(hops.cipher.close_plaintext)
            hops.end("this side closed it")

    def __repr__(self) -> str:
        return f"<SecureChannel with {self.peer.identifier} at {self.address}>"
