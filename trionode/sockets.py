"""TCP sockets that listen, for links, inlets and commands alike: opened at HOST:PORT, and named as people write them."""

import os
import socket

import trio

from trionode.errors import LocalError
from trionode.protocol.address import parse_host_port

#: Connections that wait to be accepted, also while a hub is followed by the next.
BACKLOG = 512


async def open_listeners(at: str) -> list[trio.SocketListener]:
    """Listen at HOST:PORT, port 0 for a free one; LocalError if that is not possible.

    A name may have several addresses, each of which gets a listener; with port 0 only the first, since each would get another port.
    """
    host, port = parse_host_port(at)
    try:
        listeners = await trio.open_tcp_listeners(port, host=host, backlog=BACKLOG)
    except OSError as error:
        raise LocalError(
            f"can't listen at {at}: {reason_of(error)}. Choose another port, or end the program that holds it"
        ) from error
    if port == 0:
        for other in listeners[1:]:
            other.socket.close()
        del listeners[1:]
    return listeners


def join_host_port(name: tuple[object, ...]) -> str:
    """Return a socket name as HOST:PORT, with brackets around an IPv6 host."""
    host, port = name[:2]
    return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"


def reason_of(error: BaseException) -> str:
    """Return the operating system's own words, out of the group that trying several addresses makes."""
    cause = error.__cause__
    inner = cause.exceptions[0] if isinstance(cause, BaseExceptionGroup) else error
    if not isinstance(inner, OSError) or isinstance(inner, socket.gaierror) or inner.errno is None:
        return (inner.strerror if isinstance(inner, OSError) else None) or str(inner)
    return os.strerror(inner.errno)  # Trio's own text repeats the address
