"""Links over WebSocket (RFC 6455), in the clear and under TLS: one binary message a frame of the wire's current generation, also behind a reverse proxy."""

import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import ClassVar, Never, Self

import attrs
import trio

from trionode.plugins import (
    CURRENT,
    AddressParts,
    ConnectionLost,
    Exposure,
    Greeters,
    Link,
    LocalError,
    Transport,
    client_context,
    join_host_port,
    log,
    open_listeners,
    parse_host_port,
    parse_host_port_path,
    reason_of,
    reason_of_tls,
    sanitize,
    server_context,
)
from trionode_websocket.handshake import SUBPROTOCOL, answer, request
from trionode_websocket.link import WebSocketLink
from trionode_websocket.stream import ByteStream

__all__ = ["SUBPROTOCOL", "SecureWebSocket", "WebSocket", "WebSocketLink"]

#: Seconds that connecting may take.
CONNECT_TIMEOUT = 10.0
#: Seconds from a connection to an open WebSocket, TLS's handshake included.
GREETING_TIMEOUT = 10.0
#: Accepted connections that may be greeting at a time: one that says nothing costs a socket for GREETING_TIMEOUT, or until others need its place.
MAX_GREETING = 512

#: What a path may hold (RFC 3986 §3.3): no query, no fragment.
_PATH = re.compile(r"(?:/(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})*)+")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s?#]+|null")


@attrs.frozen
class _Endpoint:
    """HOST:PORT, or HOST:PORT/PATH."""

    host_port: str
    path: str

    @classmethod
    def parse(cls, text: str) -> Self:
        host_port, slash, rest = text.partition("/")
        path = slash + rest
        if path and not _PATH.fullmatch(path):
            raise LocalError(
                f"expected HOST:PORT or HOST:PORT/PATH, such as 127.0.0.1:4000/node, a path without query and fragment; this is {text!r}"
            )
        parse_host_port(host_port)
        return cls(host_port, path)


class WebSocket(Transport):
    """The transport `ws:HOST:PORT[/PATH]`.

    `max_frame` bounds what one peer can make this node hold (bytes, at most the wire's 16 MiB). `origins` are those whose pages may
    open links to this node, such as "https://app.example.org": a browser names the page's in every request, a program names none.
    """

    name: ClassVar[str] = "ws"
    binds_tcp_port: ClassVar[bool] = True

    def __init__(self, *, max_frame: int = CURRENT.max_frame, origins: Sequence[str] = ()) -> None:
        self._max_frame = max_frame
        for origin in (origins,) if isinstance(origins, str) else origins:
            if isinstance(origins, str) or not _ORIGIN.fullmatch(origin):
                raise LocalError(
                    f"origins are a list of SCHEME://HOST[:PORT], as browsers write them, such as https://app.example.org; this is {origin!r}"
                )
        self._origins = frozenset(origins)

    @classmethod
    def parse_address(cls, address: str) -> AddressParts:
        """Return the parts of HOST:PORT or HOST:PORT/PATH."""
        _Endpoint.parse(address)
        return parse_host_port_path(address)

    def _dialling(self) -> ssl.SSLContext | None:
        return None

    def _listening(self) -> ssl.SSLContext | None:
        return None

    async def connect(self, peer: str) -> Link:
        """Connect to HOST:PORT[/PATH]; ConnectionLost if nobody answers within CONNECT_TIMEOUT, or somebody else than a node does."""
        endpoint, context = _Endpoint.parse(peer), self._dialling()
        host, port = parse_host_port(endpoint.host_port)
        try:
            with trio.fail_after(CONNECT_TIMEOUT):
                tcp = await trio.open_tcp_stream(host, port)
        except (OSError, trio.TooSlowError) as error:
            reason = "no answer" if isinstance(error, trio.TooSlowError) else reason_of(error)
            msg = f"can't connect to {self.name}:{peer}: {reason}. Is the node there running, and listening at this address?"
            raise ConnectionLost(msg) from error
        except UnicodeError as error:
            msg = f"can't connect to {self.name}:{peer}: {sanitize(host)!r} is no name that a host can have"
            raise ConnectionLost(msg) from error
        name = host.partition("%")[
            0
        ]  # an interface is this side's own matter: no certificate knows it, nor a server (RFC 6874 §1)

        async def open_websocket(stream: ByteStream) -> WebSocketLink:
            if context is not None:
                await stream.begin_tls(context, host=name)
            connection = await request(stream, join_host_port((name, port)), endpoint.path or "/")
            return WebSocketLink(stream, connection, max_frame=self._max_frame)

        try:
            return await _ready(_plain(tcp.socket), f"{self.name}:{peer}", open_websocket)
        except ConnectionLost as error:
            msg = f"can't open a WebSocket at {self.name}:{peer}: {error}"
            raise ConnectionLost(msg) from error

    async def serve(
        self,
        at: str,
        accept: Callable[[Link], Awaitable[None]],
        *,
        task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
    ) -> Never:
        """Listen at HOST:PORT[/PATH], port 0 for a free one; LocalError if that is not possible."""
        endpoint, context = _Endpoint.parse(at), self._listening()
        try:
            listeners = await open_listeners(endpoint.host_port)
        except LocalError as error:
            raise LocalError(str(error).replace(endpoint.host_port, at, 1)) from error
        greeters = Greeters(f"{self.name}:{at}", MAX_GREETING)

        async def open_websocket(stream: ByteStream) -> WebSocketLink:
            if context is not None:
                await stream.begin_tls(context, host=None)
            connection = await answer(stream, endpoint.path or "/", self._origins)
            return WebSocketLink(stream, connection, max_frame=self._max_frame)

        async def greet_and_accept(tcp: trio.SocketStream) -> None:
            sock = _plain(tcp.socket)
            peer = "an unknown peer"
            with suppress(OSError):  # it is gone already, which the greeting finds out
                peer = f"{self.name}:{join_host_port(sock.getpeername())}"
            link = None
            with greeters.admit():
                try:
                    link = await _ready(sock, peer, open_websocket)
                except ConnectionLost as error:
                    log.info("refused a connection at %s:%s from %s: %s", self.name, at, peer, sanitize(error))
            if link is not None:
                await accept(link)

        bound = join_host_port(listeners[0].socket.getsockname()) + endpoint.path
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, greet_and_accept, listeners)
            task_status.started(bound)
            await trio.sleep_forever()
        raise AssertionError  # the nursery above never ends by itself


class SecureWebSocket(WebSocket):
    """The transport `wss:HOST:PORT[/PATH]`, WebSocket under TLS. The four options of TLS are paths of PEM files.

    `certificate` and `key` are what this node shows: needed to listen, and to dial whoever demands it. `ca_file` is whom it trusts
    when it dials, the system's authorities without it. With `client_ca_file`, who dials this node has to show a certificate, too.
    A file is read once, here: LocalError says what is wrong with it.
    """

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
        super().__init__(max_frame=max_frame, origins=origins)
        self._dialler = client_context(ca_file=ca_file, certificate=certificate, key=key)
        self._listener = (
            None
            if certificate is None
            else server_context(certificate=certificate, key=key, client_ca_file=client_ca_file)
        )

    def _dialling(self) -> ssl.SSLContext:
        return self._dialler

    def _listening(self) -> ssl.SSLContext:
        if self._listener is None:
            raise LocalError(
                "to listen at wss: a node needs a certificate: give the options certificate and key, or listen at ws: behind a proxy that has one"
            )
        return self._listener


def _plain(sock: trio.socket.SocketType) -> socket.socket:
    """Take the socket itself out of Trio's wrapper, which waits before every call whether or not it would block."""
    return socket.socket(sock.family, sock.type, sock.proto, sock.detach())


async def _ready(
    sock: socket.socket, peer: str, begin: Callable[[ByteStream], Awaitable[WebSocketLink]]
) -> WebSocketLink:
    """Open a WebSocket on a connected socket within GREETING_TIMEOUT; ConnectionLost if it does not come to be, and then the socket is closed."""
    try:
        stream = ByteStream(sock, peer)
        with trio.fail_after(GREETING_TIMEOUT):
            return await begin(stream)
    except BaseException as error:
        sock.close()  # also when cancelled: no link, no socket
        if isinstance(error, trio.TooSlowError):
            msg = f"no WebSocket was opened within {GREETING_TIMEOUT:g} s: is it a trionode node?"
            raise ConnectionLost(msg) from error
        if isinstance(error, ssl.SSLError):
            raise ConnectionLost(reason_of_tls(error)) from error
        if isinstance(error, OSError):
            msg = f"the connection was lost while it was made: {error}"
            raise ConnectionLost(msg) from error
        raise
