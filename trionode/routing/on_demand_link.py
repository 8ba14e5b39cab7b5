"""A link that is dialled when a message is to leave by it, of this program or of a peer.

A node has one only if its program asked for it.
"""

from collections.abc import Awaitable, Callable, Sequence

import trio

from trionode.counters import Counters, DropReason
from trionode.errors import ConnectionLost, RemoteError, TrionodeError
from trionode.log import LogThrottle, log, sanitize
from trionode.net.backoff import STEADY_SECONDS, Backoff
from trionode.net.transport import Link
from trionode.protocol.wire.current_codec import CURRENT
from trionode.protocol.wire.version import ProtocolVersion

#: Seconds that dialling may take: less than STALL_TIMEOUT in link.py, so a link's reader that waits meanwhile does not
#: report a stall.
DIAL_SECONDS = 5.0
#: Seconds to finish a burst that the peer does not take, after the peer's own end.
GRACE = 1.0


class OnDemandLink:
    """A link of the current protocol version that connects with the first burst, and with the next one after a loss.

    It ends only when this side closes it. Messages that can't be sent are dropped and counted: those that waited for a
    dial that failed, those that arrive within the pause after that, and those in flight when the connection broke. The
    pauses are those of `Backoff`, so a peer that sends much makes this node dial seldom.
    """

    def __init__(self, peer: str, connect: Callable[[], Awaitable[Link]], counters: Counters) -> None:
        self.peer = peer
        self.protocol_version: ProtocolVersion = CURRENT
        self.max_frame = CURRENT.max_sent
        self._connect = connect
        self._counters = counters
        self._link: Link | None = None
        # A connection that is no longer used and not closed yet; nothing is dialled meanwhile.
        self._leaving: Link | None = None
        self._connected = trio.Event()
        self._since = 0.0
        self._sending = trio.Lock()
        self._burst = trio.CancelScope()
        self._reading = trio.CancelScope()
        self._is_ending = False
        self._backoff = Backoff()
        self._not_before = 0.0
        self._log_throttle = LogThrottle()

    async def receive(self) -> Sequence[bytes]:
        """Return the frames of one read of the present or the next connection.

        () once this side has ended and the peer too.
        """
        while True:
            if self._leaving is not None:
                async with self._sending:  # a link is closed while nothing is sent
                    await self._leaving.aclose()
                    self._leaving = None
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
        """Leave the connection, if there is one, and drop the burst under way, without waiting.

        A later burst dials again.
        """
        if self._link is not None:
            self._leave(self._link, reason)
            self._burst.cancel()
            self._reading.cancel()

    def _leave(self, link: Link, reason: str) -> None:
        """Use a connection no longer; `receive` closes it."""
        now = trio.current_time()
        if now - self._since >= STEADY_SECONDS:
            self._backoff.reset()
        else:
            self._not_before = now + self._backoff.failed()
        self._leaving, self._link, self._connected = link, None, trio.Event()
        if self._is_ending:
            self._connected.set()
        elif self._log_throttle.is_due("ended", now):
            log.info("link with %s ended: %s; a later message dials again", sanitize(self.peer), sanitize(reason))

    async def send(self, frames: Sequence[bytes]) -> None:
        """Send a burst, and connect before if necessary. Messages that can't be sent are dropped and counted.

        If cancelled, the link is broken.
        """
        async with self._sending:
            link = self._link or await self._dial()
            if link is None:
                self._counters[DropReason.DIAL_FAILED] += len(frames)
                return
            fitting = [frame for frame in frames if len(frame) <= link.max_frame]
            if len(fitting) < len(frames):
                self._counters[DropReason.FRAME_TOO_LARGE] += len(frames) - len(fitting)
            is_lost = False
            with trio.CancelScope() as self._burst:
                try:
                    await link.send(fitting)
                except ConnectionLost:
                    is_lost = True
            if is_lost or self._burst.cancelled_caught:
                self._counters[DropReason.LINK_LOST] += len(fitting)

    async def _dial(self) -> Link | None:
        """Connect; None if that fails, or failed a moment ago."""
        if self._is_ending or self._leaving is not None or trio.current_time() < self._not_before:
            await trio.lowlevel.checkpoint()
            return None
        try:
            link = await self._open()
        except Exception as error:  # noqa: BLE001  # a peer's message made this node dial: no error of a transport ends the node
            self._not_before = trio.current_time() + self._backoff.failed()
            # By type, not by text: a remote that chooses the words could fill the log.
            reason = str(error) if isinstance(error, TrionodeError) else repr(error)
            text = "dropped a message for %s: %s"
            self._log_throttle.log_warning(type(error).__name__, text, sanitize(self.peer), sanitize(reason))
            return None
        self._link, self._since = link, trio.current_time()
        self._connected.set()
        return link

    async def _open(self) -> Link:
        with trio.move_on_after(DIAL_SECONDS):
            link = await self._connect()
            if link.protocol_version is self.protocol_version:
                return link
            await link.aclose()
            raise ConnectionLost(
                f"the peer speaks protocol version {link.protocol_version.name!r}, "
                f"links on demand speak {CURRENT.name!r}"
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
        """Dial no more, and close the connection."""
        self._end()
        link, self._link, self._leaving = self._link or self._leaving, None, None
        if link is not None:
            await link.aclose()
        else:
            await trio.lowlevel.checkpoint()
