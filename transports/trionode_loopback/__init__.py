"""Links within one process, in memory: the same interface and guarantees as over a network, also under Trio's autojump clock."""

from collections.abc import Awaitable, Callable, Sequence
from typing import ClassVar, Never

import trio

from trionode.errors import LinkLostError, LocalError
from trionode.memory_channel import MemoryChannel
from trionode.protocol.current import CURRENT
from trionode.protocol.wire import Wire
from trionode.transport import Link

#: Bytes on their way in one direction before a writer waits, about what the socket buffers of a real connection hold.
WINDOW = 256 * 1024
#: Links that wait to be accepted.
BACKLOG = 128


class LoopbackLink:
    """One end of a pair; frames pass as they are."""

    def __init__(
        self, peer: str, incoming: MemoryChannel[Sequence[bytes]], outgoing: MemoryChannel[Sequence[bytes]]
    ) -> None:
        self.peer = peer
        self.wire: Wire = CURRENT
        self.max_frame = CURRENT.max_frame
        self._incoming = incoming
        self._outgoing = outgoing

    async def receive(self) -> Sequence[bytes]:
        """All frames that wait; () at the end."""
        await trio.lowlevel.checkpoint()
        if not await self._incoming.ready():
            return ()
        return [frame for burst in self._incoming.take_all() for frame in burst]

    async def send(self, frames: Sequence[bytes]) -> None:
        """Hand a burst over, waiting while the window is full."""
        await self._outgoing.room()
        if self._outgoing.is_closed:
            msg = f"the loopback link to {self.peer} is closed"
            raise LinkLostError(msg)
        self._outgoing.put(tuple(frames), sum(map(len, frames)))

    async def send_eof(self) -> None:
        """End the outgoing direction."""
        self._outgoing.close()
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """End both directions; what was sent can still be received by the peer."""
        self._outgoing.close()
        self._incoming.close()
        self._incoming.discard()
        await trio.lowlevel.checkpoint()


def link_pair(one: str, other: str) -> tuple[LoopbackLink, LoopbackLink]:
    """Two joined links; each is told the name of its peer."""
    there: MemoryChannel[Sequence[bytes]] = MemoryChannel(WINDOW)
    back: MemoryChannel[Sequence[bytes]] = MemoryChannel(WINDOW)
    return LoopbackLink(other, back, there), LoopbackLink(one, there, back)


class Loopback:
    """The transport `loopback:NAME`. Nodes that share one object share a network; by entry point all share one."""

    name: ClassVar[str] = "loopback"

    def __init__(self) -> None:
        self._listeners: dict[str, MemoryChannel[Link]] = {}
        self._ports = 0

    async def connect(self, peer: str) -> Link:
        """Return a link to whoever listens at the name; LinkLostError if nobody does."""
        await trio.lowlevel.checkpoint()
        listener = self._listeners.get(peer)
        if listener is None or len(listener) >= BACKLOG:
            msg = f"nobody listens at loopback:{peer}: start the node that should, in this process, first"
            raise LinkLostError(msg)
        self._ports += 1
        ours, theirs = link_pair(f"loopback:{peer}:{self._ports}", f"loopback:{peer}")
        listener.put(theirs, 0)
        return ours

    async def serve(
        self,
        at: str,
        accept: Callable[[Link], Awaitable[None]],
        *,
        task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
    ) -> Never:
        """Listen at a name; a name that ends in 0 behind a colon, or an empty one, gets a free number."""
        if not at or at.endswith(":0"):
            self._ports += 1
            at = f"{at.removesuffix(':0') or 'node'}:{self._ports}"
        if at in self._listeners:
            msg = f"loopback:{at} is taken: choose another name, or close the node that listens there"
            raise LocalError(msg)
        waiting: MemoryChannel[Link] = MemoryChannel()
        self._listeners[at] = waiting
        try:
            async with trio.open_nursery() as nursery:
                task_status.started(at)
                while True:
                    nursery.start_soon(accept, await waiting.receive())
        finally:
            del self._listeners[at]
            for link in waiting.take_all():
                with trio.CancelScope(shield=True):
                    await link.aclose()


#: The network that every node of this process shares when it names the transport by its text.
NETWORK = Loopback()


def network() -> Loopback:
    """Return what the entry point names: the process's own network."""
    return NETWORK
