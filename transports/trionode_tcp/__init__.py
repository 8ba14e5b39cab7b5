"""Links over TCP (spec §3) in both generations of the wire: no delay, keepalive, half-open connections noticed, and an orderly end in both directions."""

import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import ClassVar, Never

import trio

from trionode.errors import LinkLostError, LocalError, RemoteError, WireError
from trionode.observe import log, shown
from trionode.protocol.address import parse_host_port
from trionode.protocol.classic import CLASSIC
from trionode.protocol.current import CURRENT
from trionode.protocol.framing import FrameDecoder, join_frames
from trionode.protocol.recognition import recognise
from trionode.protocol.wire import Wire
from trionode.sockets import join_host_port, open_listeners, reason_of
from trionode.transport import Link

#: Bytes in one read: larger ones were measured not to pay.
READ_SIZE = 65_536
#: Seconds that a new connection has to show which wire it speaks, and to end the frame that it began with.
GREETING_TIMEOUT = 10.0
#: Seconds after which one lone `01` shows the current generation: its peer may be waiting for ours (spec §3.3).
LONE_BYTE_SECONDS = 1.0
#: Seconds that connecting may take.
CONNECT_TIMEOUT = 10.0
#: Seconds without a byte before a probe, between probes, and how many unanswered ones end a connection: a dead peer is noticed in 30 s.
KEEPALIVE = (15, 5, 3)
#: Seconds that a frame may take from its beginning to its end while it is read: a part of one holds up to `max_frame` bytes of memory. The
#: largest frame of all, 16 MiB, then needs 140 KB/s.
FRAME_TIMEOUT = 120.0
#: Milliseconds that sent bytes may stay unacknowledged.
USER_TIMEOUT = 30_000
#: Seconds that `aclose` reads on for the peer's own end.
CLOSE_GRACE = 1.0
#: Accepted connections that may be greeting at a time: one that says nothing costs a socket for GREETING_TIMEOUT.
MAX_GREETING = 512


class TCPLink:
    """A connected socket; frames are sent in one system call a burst and read as many as there are."""

    def __init__(self, sock: socket.socket, wire: Wire, *, max_frame: int) -> None:
        self.peer = "tcp:" + join_host_port(sock.getpeername())
        self._socket = sock
        self._max_read = max_frame
        self._early: Sequence[bytes] = ()
        self._drained = False
        self._said_end = False
        self._speak(wire)

    def _speak(self, wire: Wire) -> None:
        self.wire = wire
        self.max_frame = min(self._max_read, wire.max_sent)
        self._decoder = FrameDecoder(wire, max_frame=self._max_read)

    async def greet(self) -> None:
        """Send the preface of the wire and wait for the peer's (spec §3.2); frames that come with it are kept for `receive`.

        A heartbeat follows the preface at once, so that the peer need not wait to know which wire it is, nor can take a large first frame for
        classic (spec §3.3), and a classic link, which has no preface, may stay silent afterwards.
        """
        await self._send_bytes(self.wire.preface + join_frames(self.wire, [_heartbeat(self.wire)]))
        with trio.move_on_after(GREETING_TIMEOUT):
            while not self._decoder.greeted:
                data = await self._receive_bytes()
                if not data:
                    msg = f"{self.peer} closed the connection before it said which wire it speaks"
                    raise LinkLostError(msg)
                self._early = self._decoder.receive(data)
            return
        msg = f"{self.peer} accepted the connection but did not say within {GREETING_TIMEOUT:g} s which wire it speaks: is it a trionode or Ockam node?"
        raise LinkLostError(msg)

    async def recognise(self) -> None:
        """Learn from the first bytes which wire the peer speaks, answer its preface, and wait for the end of a frame that it began (spec §3.3).

        LinkLostError or WireError if that does not come to be.
        """
        start = b""
        with trio.move_on_after(GREETING_TIMEOUT):
            wire = None
            while wire is None:
                data = b""
                with trio.move_on_after(LONE_BYTE_SECONDS if start else float("inf")) as pause:
                    data = await self._receive_bytes()
                    if not data:
                        msg = f"{self.peer} closed the connection before it said which wire it speaks"
                        raise LinkLostError(msg)
                start += data
                wire = recognise(start, quiet=pause.cancelled_caught)
            self._speak(wire)
            if wire.preface:
                await self._send_bytes(wire.preface)
            self._early = self._decoder.receive(start)
            while not self._early and not self._decoder.is_between_frames:
                data = await self._receive_bytes()
                if not data:
                    msg = f"{self.peer} ended the connection in the middle of its first frame"
                    raise LinkLostError(msg)
                self._early = self._decoder.receive(data)
            if self._early and self._early[0] == _heartbeat(wire):
                self._early = self._early[1:]  # what `greet` sends: part of the greeting, and no frame of anybody's
            return
        began = f"it began with {start[:16].hex()}" if start else "it sent nothing"
        msg = f"{self.peer} did not send a frame of the wire within {GREETING_TIMEOUT:g} s: {began}"
        raise LinkLostError(msg)

    async def receive(self) -> Sequence[bytes]:
        """All frames that one read brought, at least one; () at the peer's orderly end."""
        if self._early:
            await trio.lowlevel.checkpoint()
            early, self._early = self._early, ()
            return early
        if self._decoder.is_between_frames:
            data = await self._receive_bytes()
            if not data:
                return ()
            if frames := self._decoder.receive(data):
                return frames
        with trio.move_on_after(FRAME_TIMEOUT):
            while data := await self._receive_bytes():
                if frames := self._decoder.receive(data):
                    return frames
            msg = f"{self.peer} ended the connection in the middle of a frame"
            raise LinkLostError(msg)
        msg = f"{self.peer} did not end a frame within {FRAME_TIMEOUT:g} s"
        raise LinkLostError(msg)

    async def send(self, frames: Sequence[bytes]) -> None:
        """Write a burst; LinkLostError if the connection is gone. Cancelled half-way, the stream is broken."""
        await self._send_bytes(join_frames(self.wire, frames))

    async def _receive_bytes(self) -> bytes:
        # Not Trio's stream: its read costs more than all else that a small burst costs. And a short read took all there was: to wait at once
        # saves a call that would find nothing.
        if not self._drained:
            await trio.lowlevel.checkpoint()
        while True:
            if self._drained:
                await trio.lowlevel.wait_readable(self._socket)
            try:
                data = self._socket.recv(READ_SIZE)
            except BlockingIOError:
                self._drained = True
            except OSError as error:
                raise self._lost(error) from error
            else:
                self._drained = len(data) < READ_SIZE
                return data

    async def _send_bytes(self, data: bytes) -> None:
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise self._lost(error) from error
        if sent < len(data):
            rest = memoryview(data)[sent:]
            while rest:
                await trio.lowlevel.wait_writable(self._socket)
                try:
                    rest = rest[self._socket.send(rest) :]
                except BlockingIOError:
                    continue
                except OSError as error:
                    raise self._lost(error) from error
        else:
            await trio.lowlevel.checkpoint()

    def _lost(self, error: OSError) -> LinkLostError:
        return LinkLostError(f"the connection with {self.peer} was lost: {error.strerror or error}")

    async def send_eof(self) -> None:
        """Shut down writing; `receive` goes on."""
        self._said_end = True
        with suppress(OSError):  # the peer is gone, or this side has closed
            self._socket.shutdown(socket.SHUT_WR)
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """Shut down writing, read on until the peer's end or CLOSE_GRACE is over, close: a plain close can destroy what is on its way.

        After `send_eof` it closes at once: whoever called that has read on.
        """
        try:
            if not self._said_end:
                self._socket.shutdown(socket.SHUT_WR)
                with trio.move_on_after(CLOSE_GRACE):
                    while await self._receive_bytes():
                        pass
        except (OSError, RemoteError):
            pass  # whatever state the peer is in, the socket is closed below
        finally:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()
            self._drained = False  # whoever reads on hears that the socket is gone


def _heartbeat(wire: Wire) -> bytes:
    return wire.encode((), (), b"")


def _prepare(sock: socket.socket) -> None:
    sock.setblocking(False)  # noqa: FBT003  # the socket module's own positional flag
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sys.platform == "linux":
        idle, between, count = KEEPALIVE
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, between)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, count)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT)


def _plain(sock: trio.socket.SocketType) -> socket.socket:
    """Take the socket itself out of Trio's wrapper, which waits before every call whether or not it would block."""
    return socket.socket(sock.family, sock.type, sock.proto, sock.detach())


class TCP:
    """The transport `tcp:HOST:PORT`: listens for both generations of the wire (spec §3.3), and dials current.

    `max_frame` bounds what one peer can make this node hold (bytes, at most the wire's 16 MiB). `sockets` are listening sockets that the
    caller opened or inherited, and keeps: `serve` listens at them, whatever place it is told, and leaves them open. They become non-blocking.
    """

    name: ClassVar[str] = "tcp"
    #: The generation that is spoken to whom this node dials.
    dials: ClassVar[Wire] = CURRENT

    def __init__(self, *, max_frame: int = CURRENT.max_frame, sockets: Sequence[socket.socket] = ()) -> None:
        self._max_frame = max_frame
        self._sockets = sockets

    async def connect(self, peer: str) -> Link:
        """Connect to HOST:PORT; LinkLostError if nobody answers within CONNECT_TIMEOUT, or somebody else than a node does."""
        host, port = parse_host_port(peer)
        try:
            with trio.fail_after(CONNECT_TIMEOUT):
                stream = await trio.open_tcp_stream(host, port)
        except (OSError, trio.TooSlowError) as error:
            reason = "no answer" if isinstance(error, trio.TooSlowError) else reason_of(error)
            msg = f"can't connect to tcp:{peer}: {reason}. Is the node there running, and listening at this address?"
            raise LinkLostError(msg) from error
        try:
            return await self._ready(_plain(stream.socket), TCPLink.greet)
        except WireError as error:
            msg = f"tcp:{peer} is no trionode or Ockam node: {error}"
            raise LinkLostError(msg) from error

    async def _ready(self, sock: socket.socket, begin: Callable[[TCPLink], Awaitable[None]]) -> TCPLink:
        try:
            _prepare(sock)
            link = TCPLink(sock, self.dials, max_frame=self._max_frame)
            await begin(link)
        except BaseException as error:
            sock.close()  # also when cancelled: no link, no socket
            if isinstance(error, OSError):
                msg = f"the connection was lost while it was made: {error}"
                raise LinkLostError(msg) from error
            raise
        return link

    async def serve(
        self,
        at: str,
        accept: Callable[[Link], Awaitable[None]],
        *,
        task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
    ) -> Never:
        """Listen at HOST:PORT, port 0 for a free one; LocalError if that is not possible."""
        listeners = await self._listeners(at)
        greeting = trio.Semaphore(MAX_GREETING)

        async def greet_and_accept(stream: trio.SocketStream) -> None:
            sock = _plain(stream.socket)
            try:
                greeting.acquire_nowait()
            except trio.WouldBlock:
                sock.close()
                log.warning(
                    "refused a connection at tcp:%s: %d others have not said which wire they speak", at, MAX_GREETING
                )
                return
            try:
                link = await self._ready(sock, TCPLink.recognise)
            except (LinkLostError, WireError) as error:
                log.info("refused a connection at tcp:%s: %s", at, shown(error))
                return
            finally:
                greeting.release()
            await accept(link)

        bound = join_host_port(listeners[0].socket.getsockname())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, greet_and_accept, listeners)
            task_status.started(bound)
            await trio.sleep_forever()
        raise AssertionError  # the nursery above never ends by itself

    async def _listeners(self, at: str) -> list[trio.SocketListener]:
        if self._sockets:
            await trio.lowlevel.checkpoint()
            for each in self._sockets:
                if each.fileno() < 0 or not each.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    msg = f"expected open, listening sockets in TCP(sockets=…), and got {each!r}: call listen() on it first"
                    raise LocalError(msg)
            return [trio.SocketListener(trio.socket.from_stdlib_socket(each.dup())) for each in self._sockets]
        return await open_listeners(at)


class ClassicTCP(TCP):
    """The transport `tcp_classic:HOST:PORT`: dials the classic generation, which has no greeting; it listens as `tcp` does."""

    name: ClassVar[str] = "tcp_classic"
    dials: ClassVar[Wire] = CLASSIC
