"""Links over TCP, and over TLS over TCP (spec §3), in both generations of the wire."""

import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import ClassVar, Never

import trio

from trionode.plugins import (
    CLASSIC,
    CURRENT,
    AddressParts,
    ConnectionLost,
    Exposure,
    Greeters,
    Link,
    LocalError,
    ProtocolVersion,
    Transport,
    WireError,
    client_context,
    join_host_port,
    log,
    open_listeners,
    parse_host_port,
    reason_of,
    sanitize,
    server_context,
)
from trionode_tcp.link import TCPLink
from trionode_tcp.stream import ByteStream, TCPStream
from trionode_tcp.tls_stream import TLSStream

#: Seconds that connecting may take.
CONNECT_TIMEOUT = 10.0
#: Accepted connections that may be greeting at a time: one that says nothing costs a socket for GREETING_TIMEOUT, or until others need its place.
MAX_GREETING = 512


def _plain(sock: trio.socket.SocketType) -> socket.socket:
    """Take the socket itself out of Trio's wrapper, which waits before every call whether or not it would block."""
    return socket.socket(sock.family, sock.type, sock.proto, sock.detach())


class TCP(Transport):
    """The transport `tcp:HOST:PORT`: listens for both generations of the wire (spec §3.3), and dials current.

    `max_frame` bounds what one peer can make this node hold (bytes, at most the wire's 16 MiB). `sockets` are listening sockets that the
    caller opened or inherited, and keeps: `serve` listens at them, whatever place it is told, and leaves them open. They become non-blocking.
    """

    name: ClassVar[str] = "tcp"
    classic_name: ClassVar[str] = "tcp_classic"
    binds_tcp_port: ClassVar[bool] = True
    takes_sockets: ClassVar[bool] = True
    #: The generation that is spoken to whom this node dials.
    dials: ClassVar[ProtocolVersion] = CURRENT

    def __init__(self, *, max_frame: int = CURRENT.max_frame, sockets: Sequence[socket.socket] = ()) -> None:
        self._max_frame = max_frame
        self._sockets = sockets

    @classmethod
    def parse_address(cls, address: str) -> AddressParts:
        """Return host and port of HOST:PORT."""
        return AddressParts(*parse_host_port(address))

    async def connect(self, peer: str) -> Link:
        """Connect to HOST:PORT; ConnectionLost if nobody answers within CONNECT_TIMEOUT, or somebody else than a node does."""
        host, port = parse_host_port(peer)
        try:
            with trio.fail_after(CONNECT_TIMEOUT):
                stream = await trio.open_tcp_stream(host, port)
        except (OSError, trio.TooSlowError) as error:
            reason = "no answer" if isinstance(error, trio.TooSlowError) else reason_of(error)
            msg = f"can't connect to {self.name}:{peer}: {reason}. Is the node there running, and listening at this address?"
            raise ConnectionLost(msg) from error
        except UnicodeError as error:
            msg = f"can't connect to {self.name}:{peer}: {sanitize(host)!r} is no name that a host can have"
            raise ConnectionLost(msg) from error
        try:
            return await self._ready(_plain(stream.socket), TCPLink.greet, host=host)
        except WireError as error:
            msg = f"{self.name}:{peer} is no trionode or Ockam node: {error}"
            raise ConnectionLost(msg) from error

    async def _ready(
        self, sock: socket.socket, begin: Callable[[TCPLink], Awaitable[None]], *, host: str | None = None
    ) -> TCPLink:
        try:
            link = TCPLink(self._stream(sock, host), self.dials, max_frame=self._max_frame)
            await begin(link)
        except BaseException as error:
            sock.close()  # also when cancelled: no link, no socket
            if isinstance(error, OSError):
                msg = f"the connection was lost while it was made: {error}"
                raise ConnectionLost(msg) from error
            raise
        return link

    def _stream(self, sock: socket.socket, host: str | None) -> ByteStream:
        """Return the bytes of a new connection: one that was accepted, or dialled if there is the `host` that was."""
        del host
        return TCPStream(sock, "tcp")

    async def serve(
        self,
        at: str,
        accept: Callable[[Link], Awaitable[None]],
        *,
        task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
    ) -> Never:
        """Listen at HOST:PORT, port 0 for a free one; LocalError if that is not possible."""
        listeners = await self._listeners(at)
        greeters = Greeters(f"{self.name}:{at}", MAX_GREETING)

        async def greet_and_accept(stream: trio.SocketStream) -> None:
            link = None
            with greeters.admit():
                try:
                    link = await self._ready(_plain(stream.socket), TCPLink.recognise)
                except (ConnectionLost, WireError) as error:
                    log.info("refused a connection at %s:%s: %s", self.name, at, sanitize(error))
            if link is not None:
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
                    msg = f"expected open, listening sockets in sockets=…, and got {each!r}: call listen() on it first"
                    raise LocalError(msg)
            return [trio.SocketListener(trio.socket.from_stdlib_socket(each.dup())) for each in self._sockets]
        return await open_listeners(at)


class ClassicTCP(TCP):
    """The transport `tcp_classic:HOST:PORT`: dials the classic generation, which has no greeting; it listens as `tcp` does."""

    name: ClassVar[str] = "tcp_classic"
    dials: ClassVar[ProtocolVersion] = CLASSIC


class TLS(TCP):
    """The transport `tls:HOST:PORT`: TCP under TLS 1.2 or 1.3, and the same wire within.

    All options but TCP's own are paths of PEM files. Whoever listens needs a `certificate` and its `key`, which may stand in the same file, and
    demands certificates of its peers if it is given the `client_ca_file` that signed them. Whoever dials trusts `ca_file`, without it those
    of the system, verifies that the certificate is HOST's, and shows his own `certificate` where one is demanded. A file is read once, here:
    LocalError says what is wrong with it. What TLS proves is not a message's `Facts`: it protects a hop, secure channels protect messages.
    """

    name: ClassVar[str] = "tls"
    classic_name: ClassVar[str] = ""
    takes_certificates: ClassVar[bool] = True
    exposure: ClassVar[Exposure] = Exposure.ENCRYPTED

    def __init__(
        self,
        *,
        certificate: str | None = None,
        key: str | None = None,
        ca_file: str | None = None,
        client_ca_file: str | None = None,
        max_frame: int = CURRENT.max_frame,
        sockets: Sequence[socket.socket] = (),
    ) -> None:
        super().__init__(max_frame=max_frame, sockets=sockets)
        self._dialling = client_context(ca_file=ca_file, certificate=certificate, key=key)
        self._listening = (
            None
            if certificate is None
            else server_context(certificate=certificate, key=key, client_ca_file=client_ca_file)
        )

    def _stream(self, sock: socket.socket, host: str | None) -> ByteStream:
        below = TCPStream(sock, self.name)
        if host is not None:
            return TLSStream(below, self._dialling, host=host.partition("%")[0])  # no certificate knows an interface
        assert self._listening is not None
        return TLSStream(below, self._listening)

    async def _listeners(self, at: str) -> list[trio.SocketListener]:
        if self._listening is None:
            msg = f"can't listen at {self.name}:{at} without a certificate: give the option certificate, and key unless it stands in the same file"
            raise LocalError(msg)
        return await super()._listeners(at)
