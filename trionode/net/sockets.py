"""Listening TCP sockets for links, inlets and commands, and the texts of their addresses and errors."""

import errno
import os
import socket
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from trionode.errors import ConfigError
from trionode.log import LogThrottle, log
from trionode.protocol.wire.address import parse_host_port

#: Connections that wait to be accepted, also while a restarted hub takes over the socket.
BACKLOG = 512


async def open_listeners(at: str) -> list[trio.SocketListener]:
    """Listen at HOST:PORT.

    A host name may have several addresses. Each gets a listener, but with port 0 only the first, since each would get
    another port.

    Args:
      at: HOST:PORT; port 0 for a free one.

    Returns:
      The listeners, at least one.

    Raises:
      ConfigError: The text is not HOST:PORT, or this machine can't listen there. The text says what to change.

    If cancelled, nothing stays open.
    """
    host, port = parse_host_port(at)
    try:
        listeners = await trio.open_tcp_listeners(port, host=host, backlog=BACKLOG)
    except (OSError, UnicodeError) as error:  # UnicodeError: no host can have such a name
        raise ConfigError(f"can't listen at {at}: {reason_of(error)}. {_advice(error)}") from error
    if port == 0:
        for other in listeners[1:]:
            other.socket.close()
        del listeners[1:]
    return listeners


def _advice(error: BaseException) -> str:
    match error:
        case socket.gaierror() | UnicodeError():
            return "Give an address of this machine, or a host name that resolves to one"
        case OSError(errno=errno.EADDRNOTAVAIL):
            return "Choose an address of this machine, or 0.0.0.0 for all of them"
        case OSError(errno=errno.EACCES):
            return "Choose a port from 1024 on, or run as a user with the right to listen there"
        case _:
            return "Choose another port, or end the program that uses it"


class PendingHandshakes:
    """Accepted connections that are still in their handshake. If there is one too many, the oldest is closed.

    So silent connections lock no peer out: they live only as long as there is room for them.
    """

    def __init__(self, address: str, limit: int) -> None:
        """Count the pending handshakes of one listener.

        Args:
          address: The listener's address, for logs.
          limit: How many connections may be pending at a time.
        """
        self._address = address
        self._limit = limit
        self._scopes: OrderedDict[trio.CancelScope, None] = OrderedDict()
        self._log_throttle = LogThrottle()

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Count one connection for the length of the block.

        The block is cancelled, without an error, if newer connections need its place.
        """
        if len(self._scopes) >= self._limit:
            oldest, _ = self._scopes.popitem(last=False)
            oldest.cancel()
            if self._log_throttle.is_due(self._address, trio.current_time()):
                log.warning(
                    "more than %d connections at %s are in their handshake: closing the oldest",
                    self._limit,
                    self._address,
                )
        with trio.CancelScope() as scope:
            self._scopes[scope] = None
            try:
                yield
            finally:
                self._scopes.pop(scope, None)


def join_host_port(name: tuple[object, ...]) -> str:
    """Return a socket name as text.

    Args:
      name: What `getsockname` or `getpeername` returned, or a tuple of host and port.

    Returns:
      HOST:PORT, with brackets around an IPv6 host.
    """
    host, port = name[:2]
    return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"


def reason_of(error: BaseException) -> str:
    """Return the operating system's own words for an error.

    Args:
      error: An error from connecting or listening; of a group of errors, as several addresses make, the first counts.

    Returns:
      Text without the address, which Trio's own text repeats.
    """
    cause = error.__cause__
    inner = cause.exceptions[0] if isinstance(cause, BaseExceptionGroup) else error
    if not isinstance(inner, OSError) or isinstance(inner, socket.gaierror) or inner.errno is None:
        return (inner.strerror if isinstance(inner, OSError) else None) or str(inner)
    return os.strerror(inner.errno)
