"""How many secure channels per second two nodes open and close, beside TCP connections with one echo."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio

from benchmarks.plain import PlainEcho
from benchmarks.processes import open_peer
from trionode import Identity, Route, open_node, trust_everyone

#: Handshakes at a time. Both ends have work, and a listener allows 32 for one link.
AT_A_TIME = 16

#: Opens one and closes it again.
Opening = Callable[[], Awaitable[None]]


async def rate(opening: Opening, seconds: float) -> float:
    """Open AT_A_TIME at once for some seconds, and return how many were opened per second."""
    count = 0
    start = time.perf_counter()
    end = start + seconds

    async def repeat() -> None:
        nonlocal count
        while time.perf_counter() < end:
            await opening()
            count += 1

    async with trio.open_nursery() as nursery:
        for _ in range(AT_A_TIME):
            nursery.start_soon(repeat)
    return count / (time.perf_counter() - start)


@asynccontextmanager
async def open_connections() -> AsyncIterator[Opening]:
    """Start a plain echo peer; each opening is a connection and one echo."""
    async with open_peer("plain") as port:

        async def opening() -> None:
            async with await trio.open_tcp_stream("127.0.0.1", int(port)) as stream:
                echo = PlainEcho(stream)
                await echo.send(b"hello", 1)
                await echo.receive(1)

        yield opening


@asynccontextmanager
async def open_channels() -> AsyncIterator[Opening]:
    """Start a peer with a channel listener; each opening is a handshake over one link, both identities verified."""
    async with open_peer("channel") as at, open_node("tcp") as node:
        identity = await Identity.create(node.vault)
        route = Route(await node.connect(at), "listener")

        async def opening() -> None:
            await (await node.open_secure_channel(route, identity, trust=trust_everyone)).aclose()

        yield opening
