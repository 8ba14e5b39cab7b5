"""Byte streams over TCP, plain or under TLS: connected, accepted, read and written in the same way by every transport that needs one."""

import socket
import ssl
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Never, Protocol

import trio

from trionode.errors import ConnectionLost, RemoteError
from trionode.log import log, sanitize
from trionode.net.sockets import PendingHandshakes, join_host_port, reason_of
from trionode.net.tls import reason_of_tls
from trionode.net.transport import Link
from trionode.protocol.wire.address import parse_host_port

#: Seconds that connecting may take.
CONNECT_TIMEOUT = 10.0
#: Accepted connections that may be in their handshake at a time. A silent one costs a socket, until its timeout or until a newer one needs its place.
MAX_HANDSHAKES = 512
#: Bytes in one read. Larger reads are not faster.
READ_SIZE = 65_536
#: Seconds without a byte before a TCP keepalive probe, seconds between probes, and unanswered probes that end the connection: 30 s in all.
KEEPALIVE = (15, 5, 3)
#: Milliseconds that sent bytes may stay unacknowledged.
USER_TIMEOUT = 30_000
#: Bytes that TLS encrypts at a time, so that a large frame is not in memory twice: four TLS records.
CHUNK = 65_536
#: Bytes of TLS's own answers that may be due at a time: enough for 150 key updates (RFC 8446 §4.6.3). An honest peer needs one in hours.
#: Each answer costs 15 µs.
MAX_ANSWERS = 4_096
#: Seconds that a listener reads on after it refused a TLS handshake. Closing at once could destroy the alert that says why.
REFUSAL_GRACE = 1.0
#: The first byte of a TLS handshake record (RFC 8446 §5.1).
_HANDSHAKE = b"\x16"
#: The alert `protocol_version` (RFC 8446 §6). A node that dials without TLS recognises it by its first bytes.
_NO_TLS_ALERT = bytes.fromhex("15 0303 0002 02 46")


class ByteStream(Protocol):
    """Bytes in both directions. Each direction has its own end.

    One task receives and one sends; any task may `write`. Every method but `send_eof` and `close` raises ConnectionLost if the connection is lost.
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
        """Flush, and tell the peer that nothing more comes. Call it once; it raises nothing if the peer is gone. `receive` goes on.

        If cancelled, nothing more is sent either.
        """
        ...

    def close(self) -> None:
        """Close at once. A task that still waits in another method gets trio.ClosedResourceError."""
        ...


class TCPStream:
    """A connected TCP socket as a ByteStream: no delay (Nagle), keepalive, and half-open connections end within 30 s."""

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
        # Trio's stream costs more per read than all other work for a small burst. After a short read the socket is empty, so this waits at
        # once and saves a call that would find nothing.
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


class TLSStream:
    """TLS over a TCPStream: the listener's end, or with a `host` the dialer's end, which verifies that name.

    An end is orderly only if TLS proves it (the alert `close_notify`), in each direction separately: cutting the connection can't pass for
    the peer's end. OpenSSL still reads after its own end, if it is not asked to shut down while a record waits in memory. Between two reads
    none does.
    """

    def __init__(self, below: TCPStream, context: ssl.SSLContext, *, host: str | None = None) -> None:
        """Prepare TLS; `handshake` agrees on it.

        Args:
          below: The connection.
          context: From `server_context`, or from `client_context` to dial.
          host: The name or address that was dialed; None for a listener.
        """
        self.peer = below.peer
        self._below = below
        self._listens = host is None
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=self._listens, server_hostname=host)
        self._over = False
        self._failure: ConnectionLost | None = None

    @property
    def is_clogged(self) -> bool:
        """Whether written bytes wait until the peer reads."""
        return self._below.is_clogged

    async def handshake(self) -> None:
        """Agree with the peer on TLS."""
        began = False
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._below.send(self._outgoing.read())
            except ssl.SSLError as error:
                await self._refuse()
                raise ConnectionLost(f"there is no TLS with {self.peer}: {reason_of_tls(error)}") from error
            else:
                await self._below.send(self._outgoing.read())
                return
            data = await self._below.receive()
            if not data:
                hint = "" if self._listens else ": does it listen with TLS?"
                raise ConnectionLost(f"{self.peer} ended the connection in the TLS handshake{hint}")
            if self._listens and not began and not data.startswith(_HANDSHAKE):
                # At once: OpenSSL waits for five bytes, of which a current peer may send one, and answers nothing.
                self._outgoing.write(_NO_TLS_ALERT)
                await self._refuse()
                raise ConnectionLost(
                    f"{self.peer} does not speak TLS, as this listener does: it began with {data[:3].hex()}"
                )
            began = True
            self._incoming.write(data)

    async def _refuse(self) -> None:
        with trio.move_on_after(REFUSAL_GRACE), suppress(ConnectionLost):  # a peer that is gone needs no reason
            self._below.write(self._outgoing.read())
            await drain(self._below)

    async def receive(self) -> bytes:
        """Return what one read brought, decrypted. An end that TLS has not proven is ConnectionLost."""
        if self._incoming.pending or self._over or self._failure:
            await trio.lowlevel.checkpoint()
        while True:
            if data := self._decrypt():
                return data
            if self._over:
                return b""
            if self._failure:
                raise self._failure
            data = await self._below.receive()
            if data:
                self._incoming.write(data)
            else:
                self._incoming.write_eof()

    def _decrypt(self) -> bytes:
        """Return the content of all whole records. Data before an end or a failure is returned before it."""
        parts = []
        try:
            while not (self._over or self._failure) and (self._incoming.pending or self._incoming.eof):
                part = self._tls.read(READ_SIZE)
                parts.append(part)
                self._over = not part
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:  # the peer's end after our own
            self._over = True
        except ssl.SSLError as error:
            self._failure = self._failed(error)
        if self._outgoing.pending:
            self._answer()
        return b"".join(parts)

    def _answer(self) -> None:
        """Send TLS's own answers, such as to a key update. While the stream is clogged they stay and leave with the next write."""
        if self._outgoing.pending > MAX_ANSWERS:
            self._failure = ConnectionLost(f"{self.peer} demands more TLS answers than it reads, or than it can need")
        elif not self.is_clogged:
            with suppress(ConnectionLost):  # the reader sees the end after what came before it
                self._below.write(self._outgoing.read())

    def write(self, data: bytes | memoryview) -> None:
        """Encrypt, send what can be sent without waiting, and keep the rest."""
        try:
            if data:
                self._tls.write(data)
        except ssl.SSLError as error:
            raise self._failed(error) from error
        self._below.write(self._outgoing.read())

    async def flush(self) -> None:
        """Wait until the operating system has taken everything that was written."""
        await self._below.flush()

    async def send(self, data: bytes) -> None:
        """Send all of it, encrypted in pieces of CHUNK."""
        rest = memoryview(data)
        while True:
            self.write(rest[:CHUNK])
            await self._below.flush()
            rest = rest[CHUNK:]
            if not rest:
                return

    def _failed(self, error: ssl.SSLError) -> ConnectionLost:
        failure = ConnectionLost(f"the connection with {self.peer} was lost: {reason_of_tls(error)}")
        failure.__cause__ = error
        return failure

    async def send_eof(self) -> None:
        """Send TLS's end, then TCP's."""
        with suppress(
            ssl.SSLError
        ):  # it wants to read the peer's end, which is for `receive`, or TLS has failed before
            self._tls.unwrap()
        with suppress(ConnectionLost):  # the peer is gone
            self._below.write(self._outgoing.read())
        await self._below.send_eof()

    def close(self) -> None:
        """Close the socket."""
        self._below.close()


async def drain(stream: ByteStream) -> None:
    """End this direction and read to the peer's end: closing with unread bytes can destroy what is on its way to the peer.

    Args:
      stream: The stream to drain, which is still to be closed.

    If cancelled, the stream can only be closed.
    """
    await stream.send_eof()
    with suppress(ConnectionLost):  # that is an end too
        while await stream.receive():
            pass


async def connect_byte_stream(
    name: str, peer: str, *, host_port: str | None = None, context: ssl.SSLContext | None = None
) -> ByteStream:
    """Connect to HOST:PORT within CONNECT_TIMEOUT. The TLS handshake is still to be done.

    Args:
      name: The transport's name, for error texts.
      peer: The address that is dialed, for error texts.
      host_port: HOST:PORT; `peer` itself if it is not given.
      context: A TLS context from `client_context`; None for no TLS.

    Raises:
      ConnectionLost: The connection failed; the text says why.
      ConfigError: `host_port` is not HOST:PORT.

    If cancelled, nothing stays open.
    """
    host, port = parse_host_port(peer if host_port is None else host_port)
    try:
        with trio.fail_after(CONNECT_TIMEOUT):
            stream = await trio.open_tcp_stream(host, port)
    except (OSError, trio.TooSlowError) as error:
        reason = "no answer" if isinstance(error, trio.TooSlowError) else reason_of(error)
        raise ConnectionLost(
            f"can't connect to {name}:{peer}: {reason}. Is the node there running, and listening at this address?"
        ) from error
    except UnicodeError as error:
        raise ConnectionLost(f"can't connect to {name}:{peer}: {sanitize(host)!r} is not a valid host name") from error
    return _byte_stream(
        stream, name, context, host.partition("%")[0]
    )  # no certificate names an interface (RFC 6874 §1)


def _byte_stream(tcp: trio.SocketStream, name: str, context: ssl.SSLContext | None, host: str | None) -> ByteStream:
    # The socket itself, out of Trio's wrapper, which waits before every call whether or not it would block.
    sock = tcp.socket
    plain = socket.socket(sock.family, sock.type, sock.proto, sock.detach())
    try:
        below = TCPStream(plain, name)
    except OSError as error:
        plain.close()
        raise ConnectionLost(f"the connection was lost while it was made: {reason_of(error)}") from error
    return below if context is None else TLSStream(below, context, host=host)


@contextmanager
def close_on_error(stream: ByteStream) -> Iterator[None]:
    """Close a stream if the block raises or is cancelled.

    Args:
      stream: The stream.
    """
    try:
        yield
    except BaseException:
        stream.close()
        raise


async def serve_byte_streams(
    address: str,
    listeners: list[trio.SocketListener],
    greet: Callable[[ByteStream], Awaitable[Link]],
    accept: Callable[[Link], Awaitable[None]],
    *,
    context: ssl.SSLContext | None = None,
) -> Never:
    """Accept connections, at most MAX_HANDSHAKES of them in their handshake at a time, until cancelled.

    Args:
      address: The listener's address behind the transport's name, such as "tcp:127.0.0.1:4000", for logs.
      listeners: From `open_listeners`.
      greet: Makes a link of a new stream, whose TLS handshake is still to be done. The stream is closed if it raises; a RemoteError is logged.
      accept: Takes the link over. Cancelling it does not close the link.
      context: A TLS context from `server_context`; None for no TLS.

    If cancelled, the listeners are closed, and so are streams that `greet` has not yet made a link of.
    """
    handshakes = PendingHandshakes(address, MAX_HANDSHAKES)
    name = address.partition(":")[0]

    async def greet_and_accept(tcp: trio.SocketStream) -> None:
        link = None
        with handshakes.admit():
            try:
                stream = _byte_stream(tcp, name, context, None)
                with close_on_error(stream):
                    link = await greet(stream)
            except RemoteError as error:
                log.info("refused a connection at %s: %s", address, sanitize(error))
        if link is not None:
            await accept(link)

    await trio.serve_listeners(greet_and_accept, listeners)
