"""The listening sockets of a hub: opened or inherited, and passed on over a restart of the process (spec §11.6, 7)."""

import fcntl
import os
import socket
import sys
from typing import NoReturn

from trionode.errors import ConfigError
from trionode.net.sockets import open_listeners

#: The first passed file descriptor; LISTEN_FDS has the number of them (sd_listen_fds(3)).
FIRST = 3


class Listening:
    """The listening sockets of this process, filled by `inherit` or `open`, and closed with the process.

    During a restart new connections wait in the backlogs, so no client gets connection refused.
    """

    __slots__ = ("sockets",)

    def __init__(self) -> None:
        self.sockets: list[socket.socket] = []

    def inherit(self) -> bool:
        """Take the sockets of the variables LISTEN_PID and LISTEN_FDS, as systemd passes them.

        Return False if there are none for this process.

        Both variables are removed from the environment. ConfigError for a descriptor that is not a listening TCP
        socket.
        """
        pid, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
        os.environ.pop("LISTEN_FDNAMES", None)
        if pid != str(os.getpid()) or not count:
            return False
        if not count.isdecimal():
            raise ConfigError(f"LISTEN_FDS is {count!r:.100}, expected the number of passed sockets")
        for fd in range(FIRST, FIRST + int(count)):
            self.sockets.append(_adopted(fd))
        return bool(self.sockets)

    async def open(self, at: str) -> None:
        """Listen at HOST:PORT; port 0 takes a free one. LocalError if that fails."""
        for listener in await open_listeners(at):
            sock = listener.socket
            self.sockets.append(socket.socket(sock.family, sock.type, sock.proto, sock.detach()))

    def restart(self) -> NoReturn:
        """Replace this process by a new one with the same command line and the same sockets."""
        # Copies at higher numbers, since the sockets themselves may have the numbers that are passed.
        copies = [fcntl.fcntl(sock.fileno(), fcntl.F_DUPFD, FIRST + len(self.sockets)) for sock in self.sockets]
        for number, fd in enumerate(copies, FIRST):
            os.dup2(fd, number, inheritable=True)
            os.close(fd)
        passed = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(copies))} if copies else {}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **passed})  # noqa: S606  # to replace the process is the purpose


def _adopted(fd: int) -> socket.socket:
    what = "LISTEN_FDS passes"
    try:
        sock = socket.socket(fileno=fd)
    except OSError as error:
        raise ConfigError(f"{what} file descriptor {fd}, which is not a socket: {error.strerror}") from error
    if sock.family not in {socket.AF_INET, socket.AF_INET6} or sock.type != socket.SOCK_STREAM:
        raise ConfigError(f"{what} file descriptor {fd}, which is not a TCP socket: use ListenStream=HOST:PORT")
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise ConfigError(f"{what} file descriptor {fd}, which does not listen: use Accept=no")
    sock.set_inheritable(False)
    return sock
