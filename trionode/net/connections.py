"""Byte streams that are dialed and accepted, with bounds on the time and on the number of handshakes."""

import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Never

import trio

from trionode.errors import ConnectionLost, RemoteError
from trionode.log import log, sanitize
from trionode.net.byte_stream import ByteStream, TCPStream
from trionode.net.sockets import PendingHandshakes, reason_of
from trionode.net.tls_stream import TLSStream
from trionode.net.transport import Link
from trionode.protocol.wire.address import parse_host_port

#: Seconds that connecting may take.
CONNECT_TIMEOUT = 10.0
#: Accepted connections that may be in their handshake at a time. A silent one costs a socket, until its timeout or
#: until a newer one needs its place.
MAX_HANDSHAKES = 512


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
    handshake: Callable[[ByteStream], Awaitable[Link]],
    accept: Callable[[Link], Awaitable[None]],
    *,
    context: ssl.SSLContext | None = None,
) -> Never:
    """Accept connections, at most MAX_HANDSHAKES of them in their handshake at a time, until cancelled.

    Args:
      address: The listener's address behind the transport's name, such as "tcp:127.0.0.1:4000", for logs.
      listeners: From `open_listeners`.
      handshake: Makes a link of a new stream, whose TLS handshake is still to be done. The stream is closed if it
          raises; a RemoteError is logged.
      accept: Takes the link over. Cancelling it does not close the link.
      context: A TLS context from `server_context`; None for no TLS.

    If cancelled, the listeners are closed, and so are streams that `handshake` has not yet made a link of.
    """
    handshakes = PendingHandshakes(address, MAX_HANDSHAKES)
    name = address.partition(":")[0]

    async def open_and_accept(tcp: trio.SocketStream) -> None:
        link = None
        with handshakes.admit():
            try:
                stream = _byte_stream(tcp, name, context, None)
                with close_on_error(stream):
                    link = await handshake(stream)
            except RemoteError as error:
                log.info("refused a connection at %s: %s", address, sanitize(error))
        if link is not None:
            await accept(link)

    await trio.serve_listeners(open_and_accept, listeners)
