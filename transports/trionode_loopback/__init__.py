"""Links within one process, in memory, with the interface and guarantees of links over a network.

They work under Trio's autojump clock too.
"""

import itertools
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import ClassVar, Never

import attrs
import trio

from trionode.plugins import (
    CURRENT,
    ConfigError,
    ConnectionLost,
    Exposure,
    Link,
    MemoryChannel,
    MessageTooLargeError,
    ProtocolVersion,
    Transport,
    WireError,
)

#: Bytes under way in one direction before a sender waits: about what the socket buffers of a real connection hold.
WINDOW = 256 * 1024
#: Links that wait to be accepted.
BACKLOG = 128


class LoopbackLink:
    """One end of a pair of links. Frames pass unchanged."""

    def __init__(
        self,
        peer: str,
        incoming: MemoryChannel[Sequence[bytes]],
        outgoing: MemoryChannel[Sequence[bytes]],
        *,
        max_frame: int = CURRENT.max_frame,
    ) -> None:
        self.peer = peer
        self.protocol_version: ProtocolVersion = CURRENT
        self.max_frame = min(max_frame, CURRENT.max_sent)
        self._incoming = incoming
        self._outgoing = outgoing

    async def receive(self) -> Sequence[bytes]:
        """Return all waiting frames; () at the end.

        WireError, and then the end, if one is larger than this end takes.
        """
        await trio.lowlevel.checkpoint()
        if not await self._incoming.ready():
            return ()
        frames = [frame for burst in self._incoming.take_all() for frame in burst]
        if too_large := max((len(frame) for frame in frames if len(frame) > self.max_frame), default=0):
            self._incoming.close()
            self._incoming.discard()
            raise WireError(f"{self.peer} sent a frame of {too_large} bytes, where 1 to {self.max_frame} are allowed")
        return frames

    async def send(self, frames: Sequence[bytes]) -> None:
        """Send a burst; wait while the window is full. If cancelled, nothing of it was sent."""
        largest = max(map(len, frames), default=0)
        if largest > self.max_frame:
            raise MessageTooLargeError(
                f"the link to {self.peer} carries frames of at most {self.max_frame} bytes, this one has {largest}"
            )
        await self._outgoing.wait_for_capacity()
        if self._outgoing.is_closed:
            msg = f"the loopback link to {self.peer} is closed"
            raise ConnectionLost(msg)
        if frames:
            self._outgoing.put(tuple(frames), sum(map(len, frames)))

    async def send_eof(self) -> None:
        """End the outgoing direction."""
        self._outgoing.close()
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """End both directions. The peer can still receive what was sent."""
        self._outgoing.close()
        self._incoming.close()
        self._incoming.discard()
        await trio.lowlevel.checkpoint()


def link_pair(
    one: str, other: str, *, max_frame: int = CURRENT.max_frame, max_frame_of_other: int = CURRENT.max_frame
) -> tuple[LoopbackLink, LoopbackLink]:
    """Return two joined links.

    Args:
      one: The first link's address, which the second shows as its peer.
      other: The second link's address.
      max_frame: Bytes in the largest frame that the first link sends and takes.
      max_frame_of_other: The same of the second link.
    """
    there: MemoryChannel[Sequence[bytes]] = MemoryChannel(WINDOW)
    back: MemoryChannel[Sequence[bytes]] = MemoryChannel(WINDOW)
    return (
        LoopbackLink(other, back, there, max_frame=max_frame),
        LoopbackLink(one, there, back, max_frame=max_frame_of_other),
    )


@attrs.frozen
class _Listener:
    waiting: MemoryChannel[Link]
    max_frame: int


@attrs.frozen(eq=False)
class Network:
    """The addresses of one network, and their listeners."""

    listeners: dict[str, _Listener] = attrs.Factory(dict)
    numbers: Iterator[int] = attrs.Factory(partial(itertools.count, 1))


#: The network that all nodes of this process share.
_PROCESS_NETWORK = Network()


class Loopback(Transport):
    """The transport `loopback:NAME`. All nodes of a process can connect, or those that share a `network`."""

    name: ClassVar[str] = "loopback"
    exposure: ClassVar[Exposure] = Exposure.NONE

    def __init__(self, *, max_frame: int = CURRENT.max_frame, network: Network | None = None) -> None:
        """Make the transport.

        Args:
          max_frame: Bytes in the largest frame that links of this transport send and take.
          network: Where names are looked up; without it, the network that all nodes of the process share.
        """
        self._max_frame = max_frame
        self.network = network or _PROCESS_NETWORK

    @classmethod
    def local_address(cls, address: str, free_port: Callable[[], int]) -> str | None:
        """Return the same text: any text is a valid name."""
        del free_port
        return address

    async def connect(self, peer: str) -> Link:
        """Connect to the listener of a name."""
        await trio.lowlevel.checkpoint()
        listener = self.network.listeners.get(peer)
        if listener is None or len(listener.waiting) >= BACKLOG:
            msg = f"nothing listens at loopback:{peer}: start that node first, in this process"
            raise ConnectionLost(msg)
        ours, theirs = link_pair(
            f"loopback:{peer}:{next(self.network.numbers)}",
            f"loopback:{peer}",
            max_frame=self._max_frame,
            max_frame_of_other=listener.max_frame,
        )
        listener.waiting.put(theirs, 0)
        return ours

    async def serve(
        self,
        at: str,
        accept: Callable[[Link], Awaitable[None]],
        *,
        task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
    ) -> Never:
        """Listen at a name. A name that ends in `:0`, or an empty one, gets a free number."""
        if not at or at.endswith(":0"):
            at = f"{at.removesuffix(':0') or 'node'}:{next(self.network.numbers)}"
        if at in self.network.listeners:
            msg = f"loopback:{at} is in use: choose another name, or close the node that listens there"
            raise ConfigError(msg)
        waiting: MemoryChannel[Link] = MemoryChannel()
        self.network.listeners[at] = _Listener(waiting, self._max_frame)
        try:
            async with trio.open_nursery() as nursery:
                task_status.started(at)
                while True:
                    nursery.start_soon(accept, await waiting.receive())
        finally:
            del self.network.listeners[at]
            for link in waiting.take_all():
                with trio.CancelScope(shield=True):
                    await link.aclose()
