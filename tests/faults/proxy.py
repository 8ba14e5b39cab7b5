"""A TCP proxy with faults: it delays, cuts, resets, holds back, swallows and changes what passes."""

import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from enum import Enum, auto
from functools import partial
from random import Random

import attrs
import trio

#: Bytes that one read takes.
CHUNK = 65536
#: Chunks that wait for their time in one direction of a connection: with `delay`, this many times 64 KiB.
WAITING_CHUNKS = 64


class _Ending(Enum):
    CUT = auto()
    RESET = auto()


@attrs.define(eq=False)
class _Connection:
    client: trio.SocketStream
    server: trio.SocketStream
    scope: trio.CancelScope = attrs.Factory(trio.CancelScope)
    ending: _Ending = _Ending.CUT
    #: Bytes of it were swallowed, so it can never work again.
    is_half_open: bool = False


class Proxy:
    """Passes connections on to one TCP port; made by `open_proxy`."""

    def __init__(self, target: str, seed: int) -> None:
        host, _, port = target.removeprefix("tcp:").rpartition(":")
        self._target = (host, int(port))
        self._random = Random(seed)
        self._connections: set[_Connection] = set()
        self._passes = trio.Event()
        self._passes.set()
        self._is_half_open = False
        #: Where it listens, `tcp:127.0.0.1:PORT`.
        self.endpoint = ""
        #: Seconds by which each chunk is delayed.
        self.delay = 0.0
        #: In how many of the next chunks one bit is flipped.
        self.chunks_to_corrupt = 0
        #: How many of the next chunks that the target sends are lost.
        self.answers_to_lose = 0
        #: Connections accepted, bits flipped, bytes passed on, and bytes swallowed.
        self.accepted = self.corrupted = self.passed = self.swallowed = 0

    @property
    def connections(self) -> int:
        """How many connections there are now."""
        return len(self._connections)

    def cut(self) -> None:
        """End each connection in good order (FIN), wherever it is in a frame."""
        self._end(_Ending.CUT)

    def reset(self) -> None:
        """Reset each connection (RST)."""
        self._end(_Ending.RESET)

    def hold(self) -> None:
        """Hold all bytes back, those of new connections too, until `release`."""
        self._passes = trio.Event()

    def release(self) -> None:
        """Let what was held back pass, in order."""
        self._passes.set()

    def half_open(self) -> None:
        """Let each connection be half open for ever: what is sent is swallowed, nothing is answered, no end is seen.

        Until `heal`, new connections are accepted and are half open too.
        """
        self._is_half_open = True
        for connection in self._connections:
            connection.is_half_open = True

    def heal(self) -> None:
        """Let new connections work. Those that are half open stay so."""
        self._is_half_open = False

    def _end(self, ending: _Ending) -> None:
        for connection in self._connections:
            connection.ending = ending
            connection.scope.cancel()

    async def serve(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Accept connections until cancelled."""
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.endpoint = f"tcp:127.0.0.1:{listener.socket.getsockname()[1]}"
        await trio.serve_listeners(self._serve_one, [listener], task_status=_Started(task_status))

    async def _serve_one(self, client: trio.SocketStream) -> None:
        self.accepted += 1
        try:
            server = await trio.open_tcp_stream(*self._target)
        except OSError:  # the target does not run
            _close_with_reset(client)
            return
        connection = _Connection(client, server, is_half_open=self._is_half_open)
        self._connections.add(connection)
        try:
            with connection.scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._pass_on, connection, client, server)
                    nursery.start_soon(self._pass_on, connection, server, client)
        finally:
            self._connections.discard(connection)
            for stream in (client, server):
                if connection.ending is _Ending.RESET:
                    _close_with_reset(stream)
                else:
                    stream.socket.close()

    async def _pass_on(self, connection: _Connection, source: trio.SocketStream, sink: trio.SocketStream) -> None:
        """Pass one direction on, its end too."""
        send, receive = trio.open_memory_channel[tuple[float, bytes]](WAITING_CHUNKS)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(self._write, connection, receive, sink))
            async with send:
                while True:
                    try:
                        data = await source.receive_some(CHUNK)
                    except trio.BrokenResourceError:  # the other side reset it
                        connection.ending = _Ending.RESET
                        data = b""
                    if connection.is_half_open:
                        self.swallowed += len(data)
                        if not data:
                            await trio.sleep_forever()
                        continue
                    if connection.ending is _Ending.RESET:
                        connection.scope.cancel()
                    await send.send((trio.current_time() + self.delay, data))
                    if not data:
                        return

    async def _write(
        self, connection: _Connection, chunks: trio.MemoryReceiveChannel[tuple[float, bytes]], sink: trio.SocketStream
    ) -> None:
        async for due, data in chunks:
            await trio.sleep_until(due)
            await self._passes.wait()
            if connection.is_half_open:
                self.swallowed += len(data)
                continue
            with suppress(trio.BrokenResourceError):  # its reader tells the other side
                if data and self.answers_to_lose and sink is connection.client:
                    self.answers_to_lose -= 1
                    self.swallowed += len(data)
                elif data:
                    await sink.send_all(self._corrupt(data))
                    self.passed += len(data)
                else:
                    await sink.send_eof()

    def _corrupt(self, data: bytes) -> bytes:
        if not self.chunks_to_corrupt:
            return data
        self.chunks_to_corrupt -= 1
        self.corrupted += 1
        changed = bytearray(data)
        changed[self._random.randrange(len(data))] ^= 1 << self._random.randrange(8)
        return bytes(changed)


@attrs.frozen
class _Started(trio.TaskStatus[list[trio.SocketListener]]):
    """Reports the start of a task without its value."""

    status: trio.TaskStatus[None]

    def started(self, value: object = None) -> None:
        self.status.started()


def _close_with_reset(stream: trio.SocketStream) -> None:
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()


@asynccontextmanager
async def open_proxy(target: str, seed: int = 0) -> AsyncIterator[Proxy]:
    """Run a proxy before `tcp:HOST:PORT` for the length of a block."""
    proxy = Proxy(target, seed)
    async with trio.open_nursery() as nursery:
        await nursery.start(proxy.serve)
        yield proxy
        nursery.cancel_scope.cancel()
