"""TCP sockets that listen, for links, inlets and commands alike: opened at HOST:PORT, and named as people write them."""

import errno
import os
import socket
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from trionode.errors import LocalError
from trionode.log import LogThrottle, log
from trionode.protocol.wire.address import parse_host_port

#: Connections that wait to be accepted, also while a hub is followed by the next.
BACKLOG = 512


async def open_listeners(at: str) -> list[trio.SocketListener]:
    """Listen at HOST:PORT, port 0 for a free one; LocalError if that is not possible.

    A name may have several addresses, each of which gets a listener; with port 0 only the first, since each would get another port.
    """
    host, port = parse_host_port(at)
    try:
        listeners = await trio.open_tcp_listeners(port, host=host, backlog=BACKLOG)
    except (OSError, UnicodeError) as error:  # the latter says that no host can have such a name
        raise LocalError(f"can't listen at {at}: {reason_of(error)}. {_advice(error)}") from error
    if port == 0:
        for other in listeners[1:]:
            other.socket.close()
        del listeners[1:]
    return listeners


def _advice(error: BaseException) -> str:
    match error:
        case socket.gaierror() | UnicodeError():
            return "Give an address of this machine, or a name that it knows for one"
        case OSError(errno=errno.EADDRNOTAVAIL):
            return "Choose an address of this machine, or 0.0.0.0 for all that it has"
        case OSError(errno=errno.EACCES):
            return "Choose a port from 1024 on, or run this as a user who may listen there"
        case _:
            return "Choose another port, or end the program that holds it"


class Greeters:
    """Accepted connections that have not greeted yet, at most `most` of them: one more, and the one that took longest so far has to go.

    So silent ones keep nobody out: they last as long as nobody else needs their place.
    """

    def __init__(self, endpoint: str, most: int) -> None:
        self._endpoint = endpoint
        self._most = most
        self._scopes: OrderedDict[trio.CancelScope, None] = OrderedDict()
        self._log_throttle = LogThrottle()

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Count one as long as the block runs, which is left early, without an error, if it has to go."""
        if len(self._scopes) >= self._most:
            oldest, _ = self._scopes.popitem(last=False)
            oldest.cancel()
            if self._log_throttle.is_due(self._endpoint, trio.current_time()):
                log.warning(
                    "more than %d connections at %s have not greeted: the oldest are closed", self._most, self._endpoint
                )
        with trio.CancelScope() as scope:
            self._scopes[scope] = None
            try:
                yield
            finally:
                self._scopes.pop(scope, None)


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
