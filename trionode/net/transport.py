"""The one interface between a node and what moves its frames: transports make links, links move bursts of whole frames."""

import re
from collections.abc import Awaitable, Callable, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import ClassVar, Never, Protocol, runtime_checkable

import trio

from trionode.errors import LocalError
from trionode.protocol.wire.version import ProtocolVersion

#: The entry-point group in which transports are found by name.
GROUP = "trionode.transports"


class Link(Protocol):
    """A connection to one peer that moves whole frames in order, or ends.

    Which generation of the wire it speaks is settled before it is handed over. One task receives, one sends.
    """

    @property
    def peer(self) -> str:
        """The other end, for logs."""
        ...

    @property
    def protocol_version(self) -> ProtocolVersion:
        """The generation that both ends speak."""
        ...

    @property
    def max_frame(self) -> int:
        """Bytes in the largest frame that may be sent, at most `wire.max_sent`; frames have at least one byte."""
        ...

    async def receive(self) -> Sequence[bytes]:
        """All frames that one read brought, at least one; () at the orderly end. ConnectionLost or WireError at any other end.

        Frames are whole, however the peer went; WireError too at a frame that is larger than this end takes. Behind an end comes nothing.
        Cancelled, nothing is lost.
        """
        ...

    async def send(self, frames: Sequence[bytes]) -> None:
        """Send a burst of frames, waiting while the peer does not read. Cancelled half-way, the link is broken.

        An empty burst sends nothing. MessageTooLargeError if a frame has more than `max_frame` bytes, before anything of the burst is sent:
        the link stays usable. ConnectionLost if the peer is gone; `receive` still brings what had arrived, and then ends.
        """
        ...

    async def send_eof(self) -> None:
        """Tell the peer that nothing more comes, where the transport can; nothing is sent after it, and `receive` goes on to the peer's own end.

        Called once all sends are done; no error if the peer is gone, and a second time it does nothing.
        """
        ...

    async def aclose(self) -> None:
        """Shut down writing, read on until the peer's end or a short grace is over, close. Closed even if cancelled.

        Called when nobody receives or sends; a second time it does nothing.
        """
        ...


@runtime_checkable
class Transport(Protocol):
    """What a transport plugin offers; found by entry point in the group `trionode.transports`, made without arguments."""

    name: ClassVar[str]

    async def connect(self, peer: str) -> Link:
        """Return a link to `peer` (the text behind `name:`); ConnectionLost if that can't be made or is no node. Cancelled, nothing stays open."""
        ...

    async def serve(
        self,
        at: str,
        accept: Callable[[Link], Awaitable[None]],
        *,
        task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
    ) -> Never:
        """Listen at `at`, report the bound address by `task_status.started`, and run `accept(link)` in a task of its own for each peer.

        LocalError that names the place if it is taken. A link belongs to whom it was handed to: it is not closed when `accept` is cancelled,
        as happens when the listener is, which frees the place for the next.
        """
        ...


def load_transport(name: str, **options: object) -> Transport:
    """Return the transport that is installed under a name, made with its own options.

    LocalError names those that are installed, or the package that one of them lacks.
    """
    found = {entry.name: entry for entry in entry_points(group=GROUP)}
    if name not in found:
        msg = f"no transport {name!r} is installed; installed are: {', '.join(sorted(found)) or 'none'}"
        raise LocalError(msg)
    try:
        make = found[name].load()
    except ModuleNotFoundError as missing:
        package = (missing.name or "").partition(".")[0]
        raise LocalError(
            f"the transport {name!r} needs the package {package}, which is not installed: pip install {_brought_by(found[name], package)}"
        ) from None
    transport = make(**options)
    if not isinstance(transport, Transport):
        msg = f"the entry point {name!r} in {GROUP} makes {transport!r}, which is no Transport: it needs name, connect and serve"
        raise LocalError(msg)
    return transport


def _brought_by(entry: EntryPoint, package: str) -> str:
    """Name what brings a missing package: the extra that asks for it of the distribution that the plugin came with, or of the plugin's name."""
    assert entry.dist is not None
    wanted = re.compile(rf"""{re.escape(package)}\b.*extra == ["']([^"']+)""")
    extras = [match[1] for requirement in entry.dist.requires or () if (match := wanted.match(requirement))]
    return f"'{entry.dist.name}[{extras[0] if extras else entry.name}]'"
