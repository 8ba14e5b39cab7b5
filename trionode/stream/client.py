"""The `Stream` object of programs: an address for routes, and an iterator of received messages (spec §11)."""

import secrets
from collections.abc import AsyncIterator

from trionode.protocol.rules.verdicts import Verdict
from trionode.protocol.stream import names
from trionode.protocol.wire.address import Address
from trionode.protocol.wire.message import Message
from trionode.routing.memory_channel import Receiver
from trionode.stream.hub_client import HubClient


def unique(name: str) -> str:
    """Return a stream name that cannot be guessed. On a hub without identities, knowing the name is the permission.

    Args:
      name: The readable beginning, of A-Z a-z 0-9 . _ -

    Returns:
      `name`, "_", and 128 random bits in hex.
    """
    return names.unique(name, secrets.token_bytes(16))


class Stream(Receiver[Message]):
    """Both directions of a conversation over a hub. `Node.open_stream` makes it.

    Put it into a route, `Route(stream, "listener")`: messages to it are pushed into the stream `sends` until the hub
    confirms them, over lost links, other hubs and restarts. Records of the stream `receives` are delivered on this
    node, with this stream's address in front of the return route. A record whose route ends here comes out of `receive`
    and of the iteration.

    It writes records of one protocol version and reads both. Pushes that were not confirmed when the link was lost are
    pushed again. Our hubs recognise them, over whatever path they come. Classic hubs of others do not, so a record may
    be stored twice there. A secure channel refuses the second copy; without a channel, your program must tolerate it.
    """

    def __init__(self, client: HubClient) -> None:
        """Wrap a running client; for `Node.open_stream`."""
        self._client = client

    @property
    def address(self) -> Address:
        """The address of the sending direction: messages to it are pushed."""
        return Address.from_encoded(self._client.address)

    @property
    def sends(self) -> str:
        """The name of the stream that is written."""
        return self._client.producer.stream

    @property
    def receives(self) -> str:
        """The name of the stream that is read."""
        return self._client.consumer.stream

    @property
    def position(self) -> int | None:
        """The index that is read next; None before it is known."""
        return self._client.consumer.position

    @property
    def skipped_records(self) -> int:
        """Records that were not delivered: not decodable, or for addresses that no longer exist on this node."""
        return self._client.skipped_records

    @property
    def dropped_verdicts(self) -> int:
        """Verdicts that were dropped, because 64 newer ones waited for `verdicts`."""
        return self._client.verdicts.dropped

    def verdicts(self) -> AsyncIterator[Verdict]:
        """Return an iterator of what this stream finds out about records that its hub lost.

        Each verdict is also a line in the log, at most one of a kind in a minute. The newest 64 are kept for you. Each
        comes out once, also if several tasks iterate, and the iteration ends once the stream is closed.

        Returns:
          The iterator: `Truncated` if records that were not read are gone, `Rollback` if the stream was deleted,
          created again, or restored from a copy. They are the hub's word. A secure channel through this stream decides
          what they mean for its messages.
        """
        return self._client.verdicts

    async def receive(self) -> Message:
        """Return the next message whose route ends at this stream.

        Before the first call, messages beyond a bound are dropped. From then on all are queued, and the hub is read no
        faster than you receive.

        Returns:
          The message.

        Raises:
          trio.EndOfChannel: The stream is closed.

        If cancelled, no message is lost.
        """
        return await self._client.receive()

    async def aclose(self) -> None:
        """Wait at most one second for the hub to confirm all pushes; then save the position and leave the streams.

        Raises:
          Undelivered: The hub has not confirmed all of them. The stream is closed all the same.

        If cancelled, pushes may be unconfirmed, and the stream is left all the same.
        """
        await self._client.aclose()

    def __repr__(self) -> str:
        return f"<Stream sends {self.sends}, receives {self.receives}, at {self.address}>"
