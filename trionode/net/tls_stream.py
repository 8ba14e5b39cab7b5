"""Byte streams under TLS: records pass through memory, so each direction can end and a cancelled read loses nothing."""

import ssl
from contextlib import suppress

import trio

from trionode.errors import ConnectionLost
from trionode.net.byte_stream import READ_SIZE, TCPStream, drain
from trionode.net.tls import reason_of_tls

#: Bytes that TLS encrypts at a time, so that a large frame is not in memory twice: four TLS records.
CHUNK = 65_536
#: Bytes of TLS's own answers that may be due at a time: enough for 150 key updates (RFC 8446 §4.6.3). An honest peer
#: needs one in hours. Each answer costs 15 µs.
MAX_ANSWERS = 4_096
#: Seconds that a listener reads on after it refused a TLS handshake. Closing at once could destroy the alert that says
#: why.
REFUSAL_GRACE = 1.0
#: The first byte of a TLS handshake record (RFC 8446 §5.1).
_HANDSHAKE = b"\x16"
#: The alert `protocol_version` (RFC 8446 §6). A node that dials without TLS recognises it by its first bytes.
_NO_TLS_ALERT = bytes.fromhex("15 0303 0002 02 46")


class TLSStream:
    """TLS over a TCPStream: the listener's end, or with a `host` the dialer's end, which verifies that name.

    An end is orderly only if TLS proves it (the alert `close_notify`), in each direction separately: cutting the
    connection can't pass for the peer's end. OpenSSL still reads after its own end, if it is not asked to shut down
    while a record waits in memory. Between two reads none does.
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
        """Send TLS's own answers, such as to a key update.

        While the stream is clogged they stay and leave with the next write.
        """
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
