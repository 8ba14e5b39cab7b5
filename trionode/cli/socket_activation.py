"""The sockets at which a hub listens: opened here or inherited, and handed on, so that they outlive the process (spec §11.6, 7)."""

import fcntl
import os
import socket
import sys
from typing import NoReturn

from trionode.errors import LocalError
from trionode.net.sockets import open_listeners

#: The first file descriptor that is passed on, where LISTEN_FDS says how many are (sd_listen_fds(3)).
FIRST = 3


class Listening:
    """The listening sockets of this process. Made empty, filled by `inherit` or `open`, closed with the process.

    While nobody accepts, connections wait in their backlogs, which no client notices.
    """

    __slots__ = ("sockets",)

    def __init__(self) -> None:
        self.sockets: list[socket.socket] = []

    def inherit(self) -> bool:
        """Take the sockets that the environment's LISTEN_PID and LISTEN_FDS pass on, as systemd does; False if there are none for this process.

        Both variables are taken away. LocalError for what is no listening TCP socket.
        """
        pid, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
        os.environ.pop("LISTEN_FDNAMES", None)
        if pid != str(os.getpid()) or not count:
            return False
        if not count.isdecimal():
            raise LocalError(f"LISTEN_FDS is {count!r:.100}, where the number of passed sockets is expected")
        for fd in range(FIRST, FIRST + int(count)):
            self.sockets.append(_adopted(fd))
        return bool(self.sockets)

    async def open(self, at: str) -> None:
        """Listen at HOST:PORT, port 0 for a free one; LocalError if that is not possible."""
        for listener in await open_listeners(at):
            sock = listener.socket
            self.sockets.append(socket.socket(sock.family, sock.type, sock.proto, sock.detach()))

    def begin_anew(self) -> NoReturn:
        """Run the command that this process was started with again, in its place and with its sockets."""
        # Out of the way of the numbers that they get.
        copies = [fcntl.fcntl(sock.fileno(), fcntl.F_DUPFD, FIRST + len(self.sockets)) for sock in self.sockets]
        for number, fd in enumerate(copies, FIRST):
            os.dup2(fd, number, inheritable=True)
            os.close(fd)
        passed = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(copies))} if copies else {}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **passed})  # noqa: S606  # that is the point


def _adopted(fd: int) -> socket.socket:
    what = "LISTEN_FDS passes on"
    try:
        sock = socket.socket(fileno=fd)
    except OSError as error:
        raise LocalError(f"{what} file descriptor {fd}, which is no socket: {error.strerror}") from error
    if sock.family not in {socket.AF_INET, socket.AF_INET6} or sock.type != socket.SOCK_STREAM:
        raise LocalError(f"{what} file descriptor {fd}, which is no TCP socket: use ListenStream=HOST:PORT")
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise LocalError(f"{what} file descriptor {fd}, which does not listen: use Accept=no")
    sock.set_inheritable(False)
    return sock
