"""Links over Unix domain sockets, `unix:/run/hub.sock`, on one machine; a file's permissions guard them."""

import errno
import fcntl
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ClassVar, Never, Self

import trio

from trionode import ConfigError, ConnectionLost, MessageTooLargeError, RemoteError, WireError
from trionode.plugins import CURRENT, Exposure, FrameDecoder, Link, Transport, join_frames, log, sanitize

#: Seconds in which a peer has to show that it is a node.
HANDSHAKE_SECONDS = 5.0
#: Seconds that `aclose` reads on for the peer's own end.
CLOSE_SECONDS = 1.0
#: Connections that wait to be accepted.
BACKLOG = 512

Accept = Callable[[Link], Awaitable[None]]
Status = trio.TaskStatus[str]


class UnixLink:
    """A connected socket whose bytes are frames."""

    def __init__(self, stream: trio.SocketStream, peer: str, *, max_frame: int) -> None:
        self.peer = peer
        self.protocol_version = CURRENT
        self.max_frame = min(max_frame, CURRENT.max_sent)
        self._stream = stream
        self._decoder = FrameDecoder(CURRENT, max_frame=max_frame)
        self._early: Sequence[bytes] = ()

    async def exchange_prefaces(self) -> Self:
        """Exchange prefaces, or close the socket. The first frames may come with the peer's."""
        try:
            with self._errors(), trio.move_on_after(HANDSHAKE_SECONDS):
                await self._stream.send_all(self.protocol_version.preface)
                while data := await self._stream.receive_some():
                    self._early = self._decoder.receive(data)
                    if self._decoder.has_preface:
                        return self
            raise ConnectionLost(f"{self.peer} sent no preface within {HANDSHAKE_SECONDS:g} s")  # noqa: TRY301
        except BaseException:
            self._stream.socket.close()
            raise

    async def receive(self) -> Sequence[bytes]:
        if self._early:
            await trio.lowlevel.checkpoint()
            early, self._early = self._early, ()
            return early
        with self._errors():
            while data := await self._stream.receive_some():
                if frames := self._decoder.receive(data):
                    return frames
        if self._decoder.is_between_frames:
            return ()
        raise ConnectionLost(f"{self.peer} disconnected in the middle of a frame")

    async def send(self, frames: Sequence[bytes]) -> None:
        if (largest := max(map(len, frames), default=0)) > self.max_frame:
            raise MessageTooLargeError(f"{self.peer} takes frames of at most {self.max_frame} bytes, not {largest}")
        with self._errors():
            await self._stream.send_all(join_frames(self.protocol_version, frames))

    async def send_eof(self) -> None:
        with suppress(ConnectionLost), self._errors():
            await self._stream.send_eof()

    async def aclose(self) -> None:
        try:
            with suppress(ConnectionLost), self._errors(), trio.move_on_after(CLOSE_SECONDS):
                await self.send_eof()
                while await self._stream.receive_some():
                    pass
        finally:
            await self._stream.aclose()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise ConnectionLost(f"the connection with {self.peer} was lost") from error


class Unix(Transport):
    """The transport `unix:PATH`.

    `mode` is the permissions of the socket's file: only its owner can connect; `max_frame` is in bytes.
    """

    name: ClassVar[str] = "unix"
    exposure: ClassVar[Exposure] = Exposure.NONE  # the bytes never leave the machine

    def __init__(self, *, mode: int = 0o600, max_frame: int = CURRENT.max_frame) -> None:
        self._mode = mode
        self._max_frame = max_frame

    async def connect(self, peer: str) -> Link:
        try:
            stream = await trio.open_unix_socket(peer)
            return await UnixLink(stream, f"unix:{peer}", max_frame=self._max_frame).exchange_prefaces()
        except OSError as error:
            raise ConnectionLost(
                f"can't connect to unix:{peer}: {error.strerror or error}. Is a node there?"
            ) from error
        except WireError as error:
            raise ConnectionLost(f"unix:{peer} is not a node: {error}") from error

    async def serve(self, at: str, accept: Accept, *, task_status: Status = trio.TASK_STATUS_IGNORED) -> Never:
        async def open_and_accept(stream: trio.SocketStream) -> None:
            # Trio closes `stream` when this function ends; a link outlives its listener, so it gets the socket.
            own = trio.SocketStream(trio.socket.from_stdlib_socket(socket.socket(fileno=stream.socket.detach())))
            try:
                link = await UnixLink(own, f"a client of unix:{at}", max_frame=self._max_frame).exchange_prefaces()
            except RemoteError as error:
                log.info("refused a connection: %s", sanitize(error))
            else:
                await accept(link)

        with await trio.to_thread.run_sync(_listen, at, self._mode) as sock:
            # `sock` keeps the address in use until the file is removed: another listener's file is never removed.
            listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock.dup()))
            try:
                task_status.started(at)
                await trio.serve_listeners(open_and_accept, [listener])
            finally:
                Path(at).unlink(missing_ok=True)  # noqa: ASYNC240  # a name, not a file that could be slow


def _listen(at: str, mode: int) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    try:
        folder = os.open(Path(at).parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)  # of several listeners that find a stale file, one removes it
            if _is_stale(Path(at)):
                Path(at).unlink()
            sock.bind(at)
            Path(at).chmod(mode)  # before anything can connect
            sock.listen(BACKLOG)
        finally:
            os.close(folder)
    except OSError as error:
        sock.close()
        raise ConfigError(f"can't listen at unix:{at}: {error.strerror or error}. Choose another path") from error
    return sock


def _is_stale(path: Path) -> bool:
    """Whether a socket's file is there and nothing listens: its program was killed. Other files are not removed."""
    if path.exists() and stat.S_ISSOCK(path.stat().st_mode):
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(path)) == errno.ECONNREFUSED
    return False
