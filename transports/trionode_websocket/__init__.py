"""Links over WebSocket (RFC 6455), plain and under TLS, also behind a reverse proxy.

They speak the current protocol version.
"""

import copy
import re
import ssl
from collections.abc import Awaitable, Callable, Sequence
from typing import ClassVar, Never, Self

import trio

from trionode.plugins import (
    CURRENT,
    AddressParts,
    ByteStream,
    ConfigError,
    ConnectionLost,
    Exposure,
    Link,
    LocalError,
    TLSContexts,
    Transport,
    WireError,
    connect_byte_stream,
    join_host_port,
    open_listeners,
    parse_host_port_path,
    serve_byte_streams,
)
from trionode_websocket.handshake import BURSTS, SUBPROTOCOL, Accepting, Dialing, Opening
from trionode_websocket.link import WebSocketLink, max_message
from trionode_websocket.stream import CountingStream

__all__ = ["BURSTS", "SUBPROTOCOL", "SecureWebSocket", "WebSocket", "WebSocketLink"]

#: Seconds from a connection to an open WebSocket. The TLS handshake counts.
HANDSHAKE_TIMEOUT = 10.0

#: What a path may hold (RFC 3986 §3.3): no query, no fragment.
_PATH = re.compile(r"(?:/(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})*)+")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s?#]+|null")


def _split(address: str) -> tuple[str, str]:
    """Return HOST:PORT, and the path with its slash or ""."""
    host_port, slash, rest = address.partition("/")
    return host_port, slash + rest


class WebSocket(Transport):
    """The transport `ws:HOST:PORT[/PATH]`."""

    name: ClassVar[str] = "ws"
    binds_tcp_port: ClassVar[bool] = True
    _nursery: trio.Nursery | None = None

    def __init__(self, *, max_frame: int = CURRENT.max_frame, origins: Sequence[str] = ()) -> None:
        """Make the transport.

        Args:
          max_frame: Bytes in the largest frame, at most 16 MiB. It bounds what one peer can make this node hold.
          origins: Origins whose web pages may connect to this node, such as "https://app.example.org". A browser names
              the page's origin in every request; other programs name none.

        Raises:
          ConfigError: An origin is not written as browsers write it.
        """
        self._max_frame = max_frame
        for origin in (origins,) if isinstance(origins, str) else origins:
            if isinstance(origins, str) or not _ORIGIN.fullmatch(origin):
                raise ConfigError(
                    "origins is a list of SCHEME://HOST[:PORT], as browsers write them, "
                    f"such as https://app.example.org; this is {origin!r}"
                )
        self._origins = frozenset(origins)

    @classmethod
    def parse_address(cls, address: str) -> AddressParts:
        """Return the parts of HOST:PORT or HOST:PORT/PATH."""
        _, path = _split(address)
        if path and not _PATH.fullmatch(path):
            raise ConfigError(
                "expected HOST:PORT or HOST:PORT/PATH, such as 127.0.0.1:4000/node, with a path without query and "
                f"fragment; this is {address!r}"
            )
        return parse_host_port_path(address)

    def _client_context(self) -> ssl.SSLContext | None:
        return None

    def _server_context(self, at: str) -> ssl.SSLContext | None:
        del at
        return None

    def open(self, nursery: trio.Nursery) -> Self:
        """Return the transport for one node, whose connections are tasks in `nursery`."""
        opened = copy.copy(self)
        opened._nursery = nursery  # noqa: SLF001  # of the same class
        return opened

    async def connect(self, peer: str) -> Link:
        """Connect to HOST:PORT[/PATH]."""
        parts, (host_port, path) = self.parse_address(peer), _split(peer)
        stream = await connect_byte_stream(self.name, peer, host_port=host_port, context=self._client_context())
        # The interface in an IPv6 address is known on this machine only (RFC 6874 §1).
        host_header = join_host_port((parts.host.partition("%")[0], parts.port))
        try:
            return await self._open(stream, Dialing(host_header, path or "/"), f"{self.name}:{peer}")
        except ConnectionLost as error:
            raise ConnectionLost(f"can't open a WebSocket at {self.name}:{peer}: {error}") from error

    async def serve(
        self,
        at: str,
        accept: Callable[[Link], Awaitable[None]],
        *,
        task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
    ) -> Never:
        """Listen at HOST:PORT[/PATH], port 0 for a free one."""
        self.parse_address(at)
        (host_port, path), context = _split(at), self._server_context(at)
        try:
            listeners = await open_listeners(host_port)
        except ConfigError as error:
            raise ConfigError(str(error).replace(host_port, at, 1)) from error

        async def handshake(stream: ByteStream) -> Link:
            return await self._open(stream, Accepting(path or "/", self._origins), stream.peer)

        task_status.started(join_host_port(listeners[0].socket.getsockname()) + path)
        await serve_byte_streams(f"{self.name}:{at}", listeners, handshake, accept, context=context)

    async def _open(self, stream: ByteStream, opening: Opening, peer: str) -> Link:
        if self._nursery is None:
            stream.close()
            raise LocalError(f"the transport {self.name} has no nursery: use what its method open returns")
        link: Link = await self._nursery.start(self._hold, stream, opening, peer)
        return link

    async def _hold(
        self, stream: ByteStream, opening: Opening, peer: str, *, task_status: trio.TaskStatus[WebSocketLink]
    ) -> None:
        """Hold one connection for as long as its link lives: trio-websocket's reader task, and the pings."""
        size = max_message(self._max_frame)
        counting = CountingStream(stream, max_message=size, is_client=isinstance(opening, Dialing))
        link = error = None
        try:
            try:
                async with trio.open_nursery() as nursery:
                    with trio.fail_after(HANDSHAKE_TIMEOUT):
                        await stream.handshake()
                        connection = await opening.open(nursery, counting, size)
                    link = WebSocketLink(counting, connection, nursery.cancel_scope, peer, self._max_frame)
                    task_status.started(link)
                    await link.keep_alive()
            except* Exception as errors:  # noqa: BLE001  # trio-websocket's reader raises what its parsers raise
                error = errors.exceptions[0]
            if isinstance(error, trio.TooSlowError):
                raise ConnectionLost(
                    f"{stream.peer} opened no WebSocket within {HANDSHAKE_TIMEOUT:g} s: is it a trionode node?"
                ) from error
            if link is None and error is not None:
                raise await opening.failed(counting, error) from error
            if link is not None and error is not None:
                link.fail(WireError(f"{peer} broke the WebSocket protocol: {error}"))
        finally:
            stream.close()


class SecureWebSocket(WebSocket):
    """The transport `wss:HOST:PORT[/PATH]`: WebSocket under TLS."""

    name: ClassVar[str] = "wss"
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
        origins: Sequence[str] = (),
    ) -> None:
        """Make the transport. Each file is read once, here.

        Args:
          certificate: PEM file with this node's certificate chain: needed to listen, and to dial a listener that
              demands one.
          key: PEM file with its key; without it the key is in the file `certificate`.
          ca_file: PEM file with the CAs that this node trusts when it dials; without it the system's.
          client_ca_file: PEM file with the CA that has to have signed a dialer's certificate; without it dialers need
              none.
          max_frame: Bytes in the largest frame, at most 16 MiB.
          origins: Origins whose web pages may connect to this node.

        Raises:
          ConfigError: A file can't be read or does not hold what it should, or an origin is not written as browsers
              write it.
        """
        super().__init__(max_frame=max_frame, origins=origins)
        self._contexts = TLSContexts(certificate=certificate, key=key, ca_file=ca_file, client_ca_file=client_ca_file)

    def _client_context(self) -> ssl.SSLContext:
        return self._contexts.client

    def _server_context(self, at: str) -> ssl.SSLContext:
        return self._contexts.server(f"{self.name}:{at}")
