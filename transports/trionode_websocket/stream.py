"""A connected socket, in the clear or under TLS: a read waits for bytes, a write never waits, and a flush waits until what was written has gone."""

import socket
import ssl
import sys
from contextlib import suppress

import trio

from trionode.plugins import ConnectionLost, reason_of_tls

#: Bytes in one read: larger ones were measured not to pay.
READ_SIZE = 65_536
#: Seconds without a byte before a probe of TCP's own, between probes, and how many unanswered ones end a connection.
KEEPALIVE = (15, 5, 3)
#: Milliseconds that sent bytes may stay unacknowledged: pings can't tell a peer that is gone from one that has still to read what was sent.
USER_TIMEOUT = 30_000

#: Seconds that whoever was refused is given to read why and to close.
REFUSAL_GRACE = 1.0
#: Bytes of TLS's own answers that one read may demand, with those that still wait for a peer that does not read: for 150 new keys (RFC 8446
#: §4.6.3), of which an honest peer needs one in hours. Each costs 15 µs.
MAX_ANSWERS = 4_096
#: The alert `protocol_version` (RFC 8446 §6), for who does not speak TLS: what dialled without it knows it by its first byte.
NO_TLS_ALERT = bytes.fromhex("15 0303 0002 02 46")


class ByteStream:
    """Bytes both ways. What could not be sent at once waits here, so that a cancelled flush tears no message apart.

    One task reads, one flushes. ConnectionLost when the connection is gone, in every method but `close`.
    """

    def __init__(self, sock: socket.socket, peer: str) -> None:
        sock.setblocking(False)  # noqa: FBT003  # the socket module's own positional flag
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if sys.platform == "linux":
            idle, between, count = KEEPALIVE
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, between)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, count)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT)
        self.peer = peer
        self._socket = sock
        self._drained = False
        self._unsent = bytearray()
        self._tls: ssl.SSLObject | None = None
        self._sealed_in = ssl.MemoryBIO()
        self._sealed_out = ssl.MemoryBIO()
        self._over = False
        self._failure: ConnectionLost | None = None

    async def begin_tls(self, context: ssl.SSLContext, *, host: str | None) -> None:
        """Make the TLS handshake, as the client of `host` or, without one, as the server; ssl.SSLError if it fails."""
        self._tls = context.wrap_bio(self._sealed_in, self._sealed_out, server_side=host is None, server_hostname=host)
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._send(self._sealed_out.read())
                await self.flush()
                if not await self._read_sealed():
                    msg = "it closed the connection in the middle of TLS's handshake: does it speak TLS?"
                    raise ConnectionLost(msg) from None
            except ssl.SSLError:
                with trio.move_on_after(REFUSAL_GRACE):
                    self._send(self._sealed_out.read() or (NO_TLS_ALERT if host is None else b""))
                    await self.drain()
                raise
            else:
                self._send(self._sealed_out.read())
                return

    async def read(self) -> bytes:
        """Return what there is, at least a byte; b"" at the end of the connection. Cancelled, it has taken nothing."""
        if self._tls is None:
            return await self._receive()
        await trio.lowlevel.checkpoint()
        while not (data := self._unsealed(self._tls)):
            # Behind TLS's own end nothing is taken: it would be held, and never be read.
            if self._over or not await self._read_sealed():
                return b""
        return data

    def _unsealed(self, tls: ssl.SSLObject) -> bytes:
        parts: list[bytes] = []
        try:
            while not self._over and self._failure is None:
                part = tls.read(READ_SIZE)
                parts.append(part)
                self._over = not part
        except (ssl.SSLWantReadError, ssl.SSLEOFError):
            pass  # TLS's own end is not needed to know an orderly one: WebSocket's Close came by TLS, too
        except ssl.SSLZeroReturnError:
            self._over = True
        except ssl.SSLError as error:
            self._failure = self._failed(error)
        if self._sealed_out.pending:
            self._answer()
        data = b"".join(parts)
        if self._failure is not None and not data:
            raise self._failure
        return data

    def _answer(self) -> None:
        """Let go what TLS itself has to say; what can't leave waits for the next write, and a failure until what came before it has been read."""
        if self._sealed_out.pending > MAX_ANSWERS:
            self._failure = ConnectionLost(
                f"{self.peer} demands more answers of TLS than it reads, or than anybody needs"
            )
        elif not self._unsent:
            try:
                self._send(self._sealed_out.read())
            except ConnectionLost as error:
                self._failure = self._failure or error

    async def _read_sealed(self) -> bool:
        if data := await self._receive():
            self._sealed_in.write(data)
        else:
            self._sealed_in.write_eof()
        return bool(data)

    async def _receive(self) -> bytes:
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

    @property
    def is_clogged(self) -> bool:
        """Whether something waits until the peer reads."""
        return bool(self._unsent)

    def write(self, data: bytes) -> None:
        """Send what can be sent at once; the rest waits for `flush`, or for the next write."""
        if self._tls is None:
            self._send(data)
        else:
            try:
                self._tls.write(data)
            except ssl.SSLError as error:
                raise self._failed(error) from error
            self._send(self._sealed_out.read())

    def _send(self, data: bytes) -> None:
        if self._unsent:
            self._unsent += data
            self._send_unsent()
            return
        try:
            sent = self._socket.send(data) if data else 0
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise self._lost(error) from error
        if sent < len(data):
            self._unsent += memoryview(data)[sent:]

    def _send_unsent(self) -> None:
        try:
            while self._unsent:
                del self._unsent[: self._socket.send(self._unsent)]
        except BlockingIOError:
            pass
        except OSError as error:
            raise self._lost(error) from error

    async def flush(self) -> None:
        """Wait until all that was written has been handed to the system."""
        await trio.lowlevel.checkpoint()
        self._send_unsent()
        while self._unsent:
            await trio.lowlevel.wait_writable(self._socket)
            self._send_unsent()

    async def drain(self) -> None:
        """Tell the peer that nothing more comes, and read to its end: a close with something unread destroys what is on its way to the peer."""
        try:
            await self.flush()
            self._socket.shutdown(socket.SHUT_WR)
            while await self._receive():
                pass
        except (OSError, ConnectionLost):
            pass  # then it is at its end

    def close(self) -> None:
        """Close at once; a second time it does nothing."""
        if self._socket.fileno() < 0:
            return
        if self._tls is not None and not self._unsent:
            with suppress(
                ssl.SSLError, ConnectionLost, ValueError
            ):  # before the handshake, or after a failure, there is no goodbye
                try:
                    self._tls.unwrap()
                finally:
                    self._send(self._sealed_out.read())
        trio.lowlevel.notify_closing(self._socket)
        self._socket.close()
        self._drained = False  # whoever reads on hears that the socket is gone

    def _lost(self, error: OSError) -> ConnectionLost:
        return ConnectionLost(f"the connection with {self.peer} was lost: {error.strerror or error}")

    def _failed(self, error: ssl.SSLError) -> ConnectionLost:
        failure = ConnectionLost(f"the connection with {self.peer} was lost: {reason_of_tls(error)}")
        failure.__cause__ = error
        return failure
