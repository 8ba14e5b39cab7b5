"""Links over TCP, and over TLS over TCP (spec §3), in both protocol versions."""

import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from typing import ClassVar, Never

import trio

from trionode.plugins import (
    CLASSIC,
    CURRENT,
    AddressParts,
    ByteStream,
    ConfigError,
    ConnectionLost,
    Exposure,
    Link,
    ProtocolVersion,
    TLSContexts,
    Transport,
    WireError,
    close_on_error,
    connect_byte_stream,
    join_host_port,
    open_listeners,
    parse_host_port,
    serve_byte_streams,
)
from trionode_tcp.link import TCPLink

__all__ = ["TCP", "TLS", "ClassicTCP", "TCPLink"]


class TCP(Transport):
    """The transport `tcp:HOST:PORT`: it accepts both protocol versions (spec §3.3) and dials the current one."""

    name: ClassVar[str] = "tcp"
    classic_name: ClassVar[str] = "tcp_classic"
    binds_tcp_port: ClassVar[bool] = True
    takes_sockets: ClassVar[bool] = True
    #: The protocol version to dial with.
    dials: ClassVar[ProtocolVersion] = CURRENT

    def __init__(self, *, max_frame: int = CURRENT.max_frame, sockets: Sequence[socket.socket] = ()) -> None:
        """Make the transport.

        Args:
          max_frame: Bytes in the largest frame, at most 16 MiB. It bounds what one peer can make this node hold.
          sockets: Listening sockets that you opened or inherited. `serve` listens at them instead of opening one, and
              leaves them open. They become non-blocking.
        """
        self._max_frame = max_frame
        self._sockets = sockets

    @classmethod
    def parse_address(cls, address: str) -> AddressParts:
        """Return host and port of HOST:PORT."""
        return AddressParts(*parse_host_port(address))

    def _client_context(self) -> ssl.SSLContext | None:
        return None

    def _server_context(self, at: str) -> ssl.SSLContext | None:
        del at
        return None

    async def connect(self, peer: str) -> Link:
        """Connect to HOST:PORT."""
        stream = await connect_byte_stream(self.name, peer, context=self._client_context())
        with close_on_error(stream):
            link = TCPLink(stream, self.dials, max_frame=self._max_frame)
            try:
                await link.exchange_prefaces()
            except WireError as error:
                raise ConnectionLost(f"{self.name}:{peer} is not a trionode or Ockam node: {error}") from error
        return link

    async def serve(
        self,
        at: str,
        accept: Callable[[Link], Awaitable[None]],
        *,
        task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
    ) -> Never:
        """Listen at HOST:PORT, port 0 for a free one."""
        context = self._server_context(at)
        listeners = await self._listeners(at)

        async def handshake(stream: ByteStream) -> Link:
            link = TCPLink(stream, self.dials, max_frame=self._max_frame)
            await link.recognise()
            return link

        task_status.started(join_host_port(listeners[0].socket.getsockname()))
        await serve_byte_streams(f"{self.name}:{at}", listeners, handshake, accept, context=context)

    async def _listeners(self, at: str) -> list[trio.SocketListener]:
        if not self._sockets:
            return await open_listeners(at)
        await trio.lowlevel.checkpoint()
        for each in self._sockets:
            if each.fileno() < 0 or not each.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                raise ConfigError(
                    f"expected open, listening sockets in sockets=…, and got {each!r}: call listen() on it first"
                )
        return [trio.SocketListener(trio.socket.from_stdlib_socket(each.dup())) for each in self._sockets]


class ClassicTCP(TCP):
    """The transport `tcp_classic:HOST:PORT`: it dials the classic protocol version, and listens as `tcp` does."""

    name: ClassVar[str] = "tcp_classic"
    dials: ClassVar[ProtocolVersion] = CLASSIC


class TLS(TCP):
    """The transport `tls:HOST:PORT`: `tcp` inside TLS 1.2 or 1.3.

    TLS protects one hop; secure channels protect messages. What TLS proves is not part of a message's origin.
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
        """Make the transport. Each file is read once, here.

        Args:
          certificate: PEM file with this node's certificate chain: needed to listen, and to dial a listener that
              demands one.
          key: PEM file with its key; without it the key is in the file `certificate`.
          ca_file: PEM file with the CAs that this node trusts when it dials; without it the system's. The certificate
              has to be for HOST.
          client_ca_file: PEM file with the CA that has to have signed a dialer's certificate; without it dialers need
              none.
          max_frame: Bytes in the largest frame, at most 16 MiB.
          sockets: Listening sockets that `serve` uses instead of opening one.

        Raises:
          ConfigError: A file can't be read or does not hold what it should.
        """
        super().__init__(max_frame=max_frame, sockets=sockets)
        self._contexts = TLSContexts(certificate=certificate, key=key, ca_file=ca_file, client_ca_file=client_ca_file)

    def _client_context(self) -> ssl.SSLContext:
        return self._contexts.client

    def _server_context(self, at: str) -> ssl.SSLContext:
        return self._contexts.server(f"{self.name}:{at}")
