"""The bytes under a link: what any stream of them offers, and those of a connected socket."""

import socket
import sys
from contextlib import suppress
from typing import Protocol

import trio

from trionode.plugins import ConnectionLost, join_host_port

#: Bytes in one read: larger ones were measured not to pay.
READ_SIZE = 65_536
#: Seconds without a byte before a probe, between probes, and how many unanswered ones end a connection: a dead peer is noticed in 30 s.
KEEPALIVE = (15, 5, 3)
#: Milliseconds that sent bytes may stay unacknowledged.
USER_TIMEOUT = 30_000


class ByteStream(Protocol):
    """Bytes in both directions, each with an end of its own. One task receives, one sends; all raise ConnectionLost if the connection is lost."""

    @property
    def peer(self) -> str:
        """The other end, for logs."""
        ...

    async def handshake(self) -> None:
        """Do what comes before the first byte; called once, and before all else."""
        ...

    async def receive(self) -> bytes:
        """What one read brought; b"" at the peer's orderly end, and from then on. Cancelled, nothing is lost."""
        ...

    async def send(self, data: bytes) -> None:
        """Send all of it. Cancelled half-way, the stream is broken."""
        ...

    async def send_eof(self) -> None:
        """Tell the peer that nothing more comes, once; no error if it is gone. `receive` goes on. Also cancelled, nothing more is sent."""
        ...

    def close(self) -> None:
        """Close at once; whoever still waits hears that the connection is lost."""
        ...


class TCPStream:
    """A connected socket, which becomes this object's: no delay, keepalive, half-open connections noticed."""

    def __init__(self, sock: socket.socket, name: str) -> None:
        self.peer = f"{name}:{join_host_port(sock.getpeername())}"
        self._socket = sock
        self._drained = False
        _prepare(sock)

    async def handshake(self) -> None:
        """TCP's own is done."""

    async def receive(self) -> bytes:
        """What one read brought."""
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

    async def send(self, data: bytes) -> None:
        """Send all of it, in one system call if there is room."""
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

    def send_now(self, data: bytes) -> int:
        """Send what can be sent without waiting; how many bytes that were."""
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise self._lost(error) from error

    def _lost(self, error: OSError) -> ConnectionLost:
        return ConnectionLost(f"the connection with {self.peer} was lost: {error.strerror or error}")

    async def send_eof(self) -> None:
        """Shut down writing."""
        with suppress(OSError):  # the peer is gone, or this side has closed
            self._socket.shutdown(socket.SHUT_WR)
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """Close the socket."""
        trio.lowlevel.notify_closing(self._socket)
        self._socket.close()
        self._drained = False  # whoever reads on hears that the socket is gone


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
