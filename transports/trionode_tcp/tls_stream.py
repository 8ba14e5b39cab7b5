"""The bytes under a link over TLS: records through memory, so that half a stream can end and a cancelled read loses nothing."""

import ssl
from contextlib import suppress

import trio

from trionode.plugins import ConnectionLost, reason_of_tls
from trionode_tcp.stream import READ_SIZE, TCPStream

#: Bytes that are encrypted before they are sent, so that a large frame is in memory once and not twice: four of TLS's records.
CHUNK = 65_536
#: Bytes of TLS's own answers that one read may demand, with those that still wait for a peer that does not read: for 150 new keys (RFC 8446
#: §4.6.3), of which an honest peer needs one in hours. Each costs 15 µs.
MAX_ANSWERS = 4_096
#: Seconds that whoever refuses a handshake reads on: a plain close could destroy the alert that says why.
REFUSAL_GRACE = 1.0
#: How TLS begins: a record of its handshake (RFC 8446 §5.1).
_HANDSHAKE = b"\x16"
#: The alert `protocol_version` (RFC 8446 §6), for who does not speak TLS: a node that dialled without it knows it by its first bytes.
_NO_TLS_ALERT = bytes.fromhex("15 0303 0002 02 46")


class TLSStream:
    """TLS over a connected socket: the listener's end, or with the name of the host that was dialled the dialler's, which verifies it.

    An end is orderly if TLS has proven it (its alert `close_notify`), in each direction by itself: one that only cuts the connection off can
    not pass for the peer. OpenSSL reads on after its own end as long as it is never asked to shut down while a record waits in memory, and
    none ever does between two reads.
    """

    def __init__(self, below: TCPStream, context: ssl.SSLContext, *, host: str | None = None) -> None:
        self.peer = below.peer
        self._below = below
        self._listens = host is None
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=self._listens, server_hostname=host)
        self._over = False
        self._failure: ConnectionLost | None = None
        self._torn = False

    async def handshake(self) -> None:
        """Agree with the peer; ConnectionLost that says why not, and what to do."""
        began = False
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
            except ssl.SSLError as error:
                await self._refuse()
                msg = f"there is no TLS with {self.peer}: {reason_of_tls(error)}"
                raise ConnectionLost(msg) from error
            else:
                await self._flush()
                return
            data = await self._below.receive()
            if not data:
                hint = "" if self._listens else ": does it listen with TLS?"
                msg = f"{self.peer} ended the connection in the TLS handshake{hint}"
                raise ConnectionLost(msg)
            if self._listens and not began and not data.startswith(_HANDSHAKE):
                # At once: OpenSSL waits for five bytes, of which a current peer may send one, and says nothing.
                self._outgoing.write(_NO_TLS_ALERT)
                await self._refuse()
                msg = f"{self.peer} does not speak TLS, as this listener does: it began with {data[:3].hex()}"
                raise ConnectionLost(msg)
            began = True
            self._incoming.write(data)

    async def _refuse(self) -> None:
        with trio.move_on_after(REFUSAL_GRACE):
            try:
                await self._flush()
                await self._below.send_eof()
                while await self._below.receive():
                    pass
            except ConnectionLost:
                pass  # it hears nothing then

    async def receive(self) -> bytes:
        """What one read brought, decrypted; an end that TLS has not proven is ConnectionLost."""
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
        """All whole records that are there; what an end or a failure follows comes before it."""
        parts = []
        try:
            while not (self._over or self._failure) and (self._incoming.pending or self._incoming.eof):
                part = self._tls.read(READ_SIZE)
                parts.append(part)
                self._over = not part
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:  # the peer's end behind our own
            self._over = True
        except ssl.SSLError as error:
            self._failure = self._failed(error)
        if self._outgoing.pending:
            self._answer()
        return b"".join(parts)

    def _answer(self) -> None:
        """Let go what TLS itself has to say, such as that it took new keys: at once what can leave, and the rest with what is sent next."""
        if self._outgoing.pending > MAX_ANSWERS:
            self._failure = ConnectionLost(
                f"{self.peer} demands more answers of TLS than it reads, or than anybody needs"
            )
        elif not self._torn:  # or else half of something else is on its way, which is to be ended first
            data = self._outgoing.read()
            with suppress(ConnectionLost):  # who reads on hears of the end, behind what came before it
                self._outgoing.write(data[self._below.send_now(data) :])

    async def send(self, data: bytes) -> None:
        """Send all of it, encrypted."""
        if not data:
            await trio.lowlevel.checkpoint()
        rest = memoryview(data)
        while rest:
            try:
                self._tls.write(rest[:CHUNK])
            except ssl.SSLError as error:
                raise self._failed(error) from error
            rest = rest[CHUNK:]
            await self._flush()

    async def _flush(self) -> None:
        self._torn = True
        await self._below.send(self._outgoing.read())
        self._torn = False

    def _failed(self, error: ssl.SSLError) -> ConnectionLost:
        failure = ConnectionLost(f"the connection with {self.peer} was lost: {reason_of_tls(error)}")
        failure.__cause__ = error
        return failure

    async def send_eof(self) -> None:
        """Send TLS's own end and then TCP's; only TCP's, which the peer won't take for orderly, where a cancelled send has left half a record."""
        try:
            if not self._torn:
                with suppress(
                    ssl.SSLError
                ):  # it wants to read the peer's end, which is for `receive`, or TLS has failed before
                    self._tls.unwrap()
                await self._flush()
        except ConnectionLost:
            pass  # the peer is gone
        finally:
            await self._below.send_eof()

    def close(self) -> None:
        """Close the socket."""
        self._below.close()
