"""Plain framed Trio TCP: a length before each body, whole bursts per read and write.

Nothing on Trio sockets can be faster.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Never

import trio

from benchmarks.processes import Announce, open_peer

READ_SIZE = 65_536


class Frames:
    """Whole bodies out of a stream, a burst at a time."""

    def __init__(self, stream: trio.abc.ReceiveStream) -> None:
        self._stream = stream
        self._buffer = bytearray()

    async def receive(self) -> list[bytes]:
        """Return all bodies of the next reads, at least one; none at the end."""
        bodies: list[bytes] = []
        buffer = self._buffer
        while not bodies:
            data = await self._stream.receive_some(READ_SIZE)
            if not data:
                break
            buffer += data
            at, available = 0, len(buffer)
            while available - at >= 4:
                end = at + 4 + int.from_bytes(buffer[at : at + 4], "big")
                if end > available:
                    break
                bodies.append(bytes(buffer[at + 4 : end]))
                at = end
            del buffer[:at]
        return bodies


def join(bodies: list[bytes]) -> bytes:
    """The bytes of a burst."""
    parts = []
    for body in bodies:
        parts.append(len(body).to_bytes(4, "big"))
        parts.append(body)
    return b"".join(parts)


async def _echo(stream: trio.SocketStream) -> None:
    frames = Frames(stream)
    try:
        while bodies := await frames.receive():
            await stream.send_all(join(bodies))
    except trio.BrokenResourceError:
        pass  # the client has ended


async def serve(announce: Announce) -> Never:
    """The peer: echo everything."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    announce(str(listeners[0].socket.getsockname()[1]))
    await trio.serve_listeners(_echo, listeners)


class PlainEcho:
    """One connection to the peer."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._frames = Frames(stream)

    async def send(self, body: bytes, count: int) -> None:
        """Send the same body `count` times, in one call."""
        await self._stream.send_all(join([body] * count))

    async def receive(self, most: int) -> int:  # noqa: ARG002  # one read brings at most what is in flight
        """Wait for at least one body, take all that have arrived, and return how many."""
        return len(await self._frames.receive())


@asynccontextmanager
async def open_echo() -> AsyncIterator[PlainEcho]:
    """Start the peer and connect to it."""
    async with open_peer("plain") as port, await trio.open_tcp_stream("127.0.0.1", int(port)) as stream:
        yield PlainEcho(stream)
