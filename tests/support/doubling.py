"""A TCP proxy that sends each data frame twice, in the framing of either protocol version (spec §3.1, §3.2)."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial

import attrs
import trio


@attrs.frozen
class Framing:
    """What the proxy must know of a protocol version."""

    #: Bytes of the preface, and of a length.
    preface: int
    length: int
    #: The frames that an initiator sends before its data: messages 1 and 3 of the handshake, and in classic its
    #: identity.
    handshake: int
    #: The second byte of a message without an onward route, a heartbeat: it belongs to no channel.
    empty_route: int


CURRENT = Framing(preface=1, length=4, handshake=2, empty_route=0x80)
CLASSIC = Framing(preface=0, length=2, handshake=3, empty_route=0)


class Doubling:
    """What the proxy counts, and where it listens; made by `open_doubling`."""

    def __init__(self, target: tuple[str, int], framing: Framing) -> None:
        self._target = target
        self._framing = framing
        #: Frames of the side that connected that went on twice.
        self.doubled = 0
        #: Where it listens, `127.0.0.1:PORT`.
        self.endpoint = ""

    async def carry(self, client: trio.SocketStream) -> None:
        """Carry one connection until either side ends it."""
        server = await trio.open_tcp_stream(*self._target)
        async with client, server, trio.open_nursery() as nursery:
            for side in (partial(self._forth, client, server), partial(self._back, server, client)):
                nursery.start_soon(self._until_broken, side, nursery.cancel_scope)

    async def _until_broken(self, side: Callable[[], Awaitable[None]], both: trio.CancelScope) -> None:
        with suppress(trio.BrokenResourceError):  # one end was killed, as a peer is at the end of a test
            await side()
        both.cancel()

    async def _forth(self, source: trio.SocketStream, sink: trio.SocketStream) -> None:
        framing = self._framing
        buffer, frames, preface = b"", 0, framing.preface
        async for data in source:
            buffer += data
            await sink.send_all(buffer[:preface])
            buffer, preface = buffer[preface:], 0
            head = framing.length
            while len(buffer) >= head and len(buffer) >= (size := head + int.from_bytes(buffer[:head])):
                frame, buffer = buffer[:size], buffer[size:]
                frames += frame[head + 1] != framing.empty_route
                is_data = frames > framing.handshake
                self.doubled += is_data
                await sink.send_all(frame * (1 + is_data))

    async def _back(self, source: trio.SocketStream, sink: trio.SocketStream) -> None:
        async for data in source:
            await sink.send_all(data)


@asynccontextmanager
async def open_doubling(target: str, framing: Framing = CURRENT) -> AsyncIterator[Doubling]:
    """A proxy in front of `HOST:PORT` that sends every data frame of its clients twice, and the handshake once."""
    host, _, port = target.rpartition(":")
    doubling = Doubling((host, int(port)), framing)
    async with trio.open_nursery() as nursery:
        serve = partial(trio.serve_tcp, doubling.carry, 0, host="127.0.0.1")
        (listener,) = await nursery.start(serve)
        doubling.endpoint = "{}:{}".format(*listener.socket.getsockname())
        yield doubling
        nursery.cancel_scope.cancel()
