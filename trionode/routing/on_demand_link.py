"""A link that is dialled when a message is to go there, whoever sent it: what a node does only where its program told it to."""

from collections.abc import Awaitable, Callable, Sequence

import trio

from trionode.counters import Counters, DropReason
from trionode.errors import ConnectionLost, RemoteError, TrionodeError
from trionode.log import LogThrottle, log, sanitize
from trionode.net.backoff import STEADY_SECONDS
from trionode.net.transport import Link
from trionode.protocol.wire.current_codec import CURRENT
from trionode.protocol.wire.version import ProtocolVersion

#: Seconds that dialling may take: less than a link's reader waits for another link (PATIENCE in link.py), so that nobody gives this one up for it.
DIAL_SECONDS = 5.0
#: Seconds without another try after one that failed, or that made a connection which did not last for STEADY_SECONDS, doubled at each failure, the
#: last for ever: what comes meanwhile is dropped, so that whoever sends much makes this node dial seldom.
PAUSES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
#: Seconds that a burst which a peer does not take is given after that peer's own end.
GRACE = 1.0


class OnDemandLink:
    """A link of the current generation that connects with the first burst, and again with the next one after the connection was lost.

    It ends only when this side closes it. What can't be sent is dropped, and counted in `counters`: what waited for a dial that failed, what comes
    within the pause after that, and what was under way when the connection broke.
    """

    def __init__(self, peer: str, connect: Callable[[], Awaitable[Link]], counters: Counters) -> None:
        self.peer = peer
        self.protocol_version: ProtocolVersion = CURRENT
        self.max_frame = CURRENT.max_sent
        self._connect = connect
        self._counters = counters
        self._link: Link | None = None
        # What was left and is not closed yet; until it is, nothing is dialled.
        self._left: Link | None = None
        self._connected = trio.Event()
        self._since = 0.0
        self._sending = trio.Lock()
        self._burst = trio.CancelScope()
        self._reading = trio.CancelScope()
        self._is_ending = False
        self._failures = 0
        self._not_before = 0.0
        self._log_throttle = LogThrottle()

    async def receive(self) -> Sequence[bytes]:
        """All frames of one read of whatever connection there is, or will be; () once this side has ended and the peer too."""
        while True:
            if self._left is not None:
                async with self._sending:  # a link is closed when nobody sends
                    await self._left.aclose()
                    self._left = None
            link = self._link
            if link is None:
                if self._is_ending:
                    await trio.lowlevel.checkpoint()
                    return ()
                await self._connected.wait()
                continue
            reason = "the peer ended it"
            try:
                with trio.CancelScope() as self._reading:
                    if frames := await link.receive():
                        return frames
            except RemoteError as error:
                reason = str(error)
            if link is self._link:
                self._leave(link, reason)
                self._burst.deadline = trio.current_time() + GRACE

    def hang_up(self, reason: str) -> None:
        """Leave the connection, if there is one, and drop the burst under way; a later one dials again. It never waits."""
        if self._link is not None:
            self._leave(self._link, reason)
            self._burst.cancel()
            self._reading.cancel()

    def _leave(self, link: Link, reason: str) -> None:
        """Use a connection no longer; whoever receives closes it."""
        if trio.current_time() - self._since >= STEADY_SECONDS:
            self._failures = 0
        else:
            self._pause()  # who greets and then goes is no better than who is away
        self._left, self._link, self._connected = link, None, trio.Event()
        if self._is_ending:
            self._connected.set()
        elif self._log_throttle.is_due("ended", trio.current_time()):
            log.info("link with %s ended: %s; a later message dials again", sanitize(self.peer), sanitize(reason))

    def _pause(self) -> None:
        self._not_before = trio.current_time() + PAUSES[min(self._failures, len(PAUSES) - 1)]
        self._failures += 1

    async def send(self, frames: Sequence[bytes]) -> None:
        """Send a burst, connecting before if need be; what can't be sent is dropped and counted. Cancelled half-way, the link is broken."""
        async with self._sending:
            link = self._link or await self._dial()
            if link is None:
                self._counters[DropReason.DIAL_FAILED] += len(frames)
                return
            fitting = [frame for frame in frames if len(frame) <= link.max_frame]
            if len(fitting) < len(frames):
                self._counters[DropReason.FRAME_TOO_LARGE] += len(frames) - len(fitting)
            with trio.CancelScope() as self._burst:
                try:
                    await link.send(fitting)
                except ConnectionLost:
                    self._counters[DropReason.LINK_LOST] += len(fitting)
            if self._burst.cancelled_caught:
                self._counters[DropReason.LINK_LOST] += len(fitting)

    async def _dial(self) -> Link | None:
        """Connect; None if that is not possible, or was not possible a moment ago."""
        if self._is_ending or self._left is not None or trio.current_time() < self._not_before:
            await trio.lowlevel.checkpoint()
            return None
        try:
            link = await self._connected_link()
        except Exception as error:  # noqa: BLE001  # a stranger made this node dial: whatever anybody's transport raises costs his message, not the node
            self._pause()
            # By kind, not by text: a remote that chooses words could otherwise fill the log.
            if self._log_throttle.is_due(type(error).__name__, trio.current_time()):
                reason = str(error) if isinstance(error, TrionodeError) else repr(error)
                log.warning("a message for %s was dropped: %s", sanitize(self.peer), sanitize(reason))
            return None
        self._link, self._since = link, trio.current_time()
        self._connected.set()
        return link

    async def _connected_link(self) -> Link:
        with trio.move_on_after(DIAL_SECONDS):
            link = await self._connect()
            if link.protocol_version is self.protocol_version:
                return link
            await link.aclose()
            raise ConnectionLost(
                f"the peer speaks the {link.protocol_version.name} generation, links on demand speak {CURRENT.name}"
            )
        raise ConnectionLost(f"no answer within {DIAL_SECONDS:g} s")

    async def send_eof(self) -> None:
        """Dial no more, and end the direction to the peer, if there is a connection."""
        self._end()
        if self._link is not None:
            await self._link.send_eof()
        else:
            await trio.lowlevel.checkpoint()

    def _end(self) -> None:
        self._is_ending = True
        self._connected.set()

    async def aclose(self) -> None:
        """Dial no more, and close what was connected."""
        self._end()
        link, self._link, self._left = self._link or self._left, None, None
        if link is not None:
            await link.aclose()
        else:
            await trio.lowlevel.checkpoint()
