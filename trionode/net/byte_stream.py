"""Byte streams over TCP, plain or under TLS, for every transport that needs one: the interface, and plain TCP."""

import socket
import sys
from collections import deque
from contextlib import suppress
from typing import Protocol

import trio

from trionode.errors import ConnectionLost
from trionode.net.sockets import join_host_port

#: Bytes in one read. Larger reads are not faster.
READ_SIZE = 65_536
#: Seconds without a byte before a TCP keepalive probe, seconds between probes, and unanswered probes that end the
#: connection: 30 s in all.
KEEPALIVE = (15, 5, 3)
#: Milliseconds that sent bytes may stay unacknowledged.
USER_TIMEOUT = 30_000


class ByteStream(Protocol):
    """Bytes in both directions. Each direction has its own end.

    One task receives and one sends; any task may `write`. Every method but `send_eof` and `close` raises ConnectionLost
    if the connection is lost.
    """

    @property
    def peer(self) -> str:
        """The other end, for logs."""
        ...

    @property
    def is_clogged(self) -> bool:
        """Whether written bytes wait until the peer reads."""
        ...

    async def handshake(self) -> None:
        """Agree with the peer on TLS, if there is TLS. Call it once, before anything else.

        Raises:
          ConnectionLost: The handshake failed; the text says why and what to do.

        If cancelled, the stream can only be closed.
        """
        ...

    async def receive(self) -> bytes:
        r"""Return what one read brought; b"" at the peer's orderly end, and from then on.

        Returns:
          At most 64 KiB, or b"".

        Raises:
          ConnectionLost: The connection ended without an orderly end.

        If cancelled, nothing is lost.
        """
        ...

    def write(self, data: bytes) -> None:
        """Send what can be sent without waiting, and keep the rest for `flush`.

        Args:
          data: Bytes to send behind all that was written before.

        Raises:
          ConnectionLost: The connection is lost.
        """
        ...

    async def flush(self) -> None:
        """Wait until the operating system has taken everything that was written.

        Raises:
          ConnectionLost: The connection is lost.

        If cancelled, the rest stays and leaves with the next write or flush.
        """
        ...

    async def send(self, data: bytes) -> None:
        """Send all of `data`: `write` and `flush`.

        Args:
          data: Bytes to send.

        Raises:
          ConnectionLost: The connection is lost.

        If cancelled, part of `data` may never be sent.
        """
        ...

    async def send_eof(self) -> None:
        """Flush, and signal the end of this direction to the peer.

        Call it once; it raises nothing if the peer is gone. `receive` goes on.

        If cancelled, nothing more is sent either.
        """
        ...

    def close(self) -> None:
        """Close at once. A task that still waits in another method gets trio.ClosedResourceError."""
        ...


class TCPStream:
    """A connected TCP socket as a ByteStream, with no delay (Nagle) and keepalive.

    Half-open connections end in 30 s.
    """

    def __init__(self, sock: socket.socket, name: str) -> None:
        """Take over a connected socket.

        Args:
          sock: The socket. It belongs to the stream from now on, and becomes non-blocking.
          name: The transport's name, for `peer`.

        Raises:
          OSError: The connection is lost already.
        """
        self.peer = f"{name}:{join_host_port(sock.getpeername())}"
        self._socket = sock
        self._drained = False
        self._unsent: deque[memoryview] = deque()
        _set_options(sock)

    @property
    def is_clogged(self) -> bool:
        """Whether written bytes wait until the peer reads."""
        return bool(self._unsent)

    async def handshake(self) -> None:
        """Do nothing: TCP's own handshake is done."""

    async def receive(self) -> bytes:
        """Return what one read brought."""
        # Trio's stream costs more per read than all other work for a small burst. After a short read the socket is
        # empty, so this waits at once and saves a call that would find nothing.
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

    def write(self, data: bytes) -> None:
        """Send what can be sent without waiting, in one system call if nothing waits, and keep the rest."""
        if self._unsent:
            self._unsent.append(memoryview(data))
            self._send_unsent()
            return
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise self._lost(error) from error
        if sent < len(data):
            self._unsent.append(memoryview(data)[sent:])

    def _send_unsent(self) -> None:
        try:
            while self._unsent:
                first = self._unsent[0]
                sent = self._socket.send(first)
                if sent < len(first):
                    self._unsent[0] = first[sent:]
                else:
                    self._unsent.popleft()
        except BlockingIOError:
            pass
        except OSError as error:
            raise self._lost(error) from error

    async def flush(self) -> None:
        """Wait until the operating system has taken everything that was written."""
        if not self._unsent:
            await trio.lowlevel.checkpoint()
        while self._unsent:
            await trio.lowlevel.wait_writable(self._socket)
            self._send_unsent()

    async def send(self, data: bytes) -> None:
        """Send all of it."""
        self.write(data)
        await self.flush()

    def _lost(self, error: OSError) -> ConnectionLost:
        return ConnectionLost(f"the connection with {self.peer} was lost: {error.strerror or error}")

    async def send_eof(self) -> None:
        """Flush and shut down writing."""
        try:
            await self.flush()
        except (ConnectionLost, trio.ClosedResourceError):
            pass  # the peer is gone, or this side has closed
        finally:
            with suppress(OSError):  # for the same two reasons
                self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close the socket; a second time it does nothing."""
        if self._socket.fileno() < 0:
            return
        trio.lowlevel.notify_closing(self._socket)
        self._socket.close()
        self._drained = False  # so that a task that reads on learns that the socket is closed


def _set_options(sock: socket.socket) -> None:
    sock.setblocking(False)  # noqa: FBT003  # the socket module's own positional flag
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sys.platform == "linux":
        idle, between, count = KEEPALIVE
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, between)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, count)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT)


async def drain(stream: ByteStream) -> None:
    """End this direction and read to the peer's end.

    Closing a socket with unread bytes can destroy what is on its way to the peer.

    Args:
      stream: The stream to drain, which is still to be closed.

    If cancelled, the stream can only be closed.
    """
    await stream.send_eof()
    with suppress(ConnectionLost):  # that is an end too
        while await stream.receive():
            pass
