"""The interface of every echo path, and the two figures that are measured: a rate and a latency."""

import time
from typing import Protocol

import trio

#: The bodies that a flood keeps in flight, and their bytes together.
IN_FLIGHT = 1000
BYTES_IN_FLIGHT = 1024 * 1024


class EchoPath(Protocol):
    """A path on which bodies leave this process and come back. One task sends, another receives."""

    async def send(self, body: bytes, count: int) -> None:
        """Send the same body `count` times."""
        ...

    async def receive(self, most: int) -> int:
        """Wait for at least one body, take all that have arrived, and return how many. `most` are in flight."""
        ...


def in_flight(size: int) -> int:
    """Return how many bodies of `size` bytes a flood keeps in flight."""
    return min(IN_FLIGHT, BYTES_IN_FLIGHT // size)


async def rate(path: EchoPath, body: bytes, in_flight: int, seconds: float) -> float:
    """Keep `in_flight` bodies in flight for some seconds, and return how many came back per second.

    One task sends and another receives, as in real programs. A single task that sends first would fill every queue on the path.
    """
    allow, allowed = trio.open_memory_channel[int](in_flight)

    async def send() -> None:
        async for count in allowed:
            await path.send(body, count)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        start = now = time.perf_counter()
        count = 0
        with allow:
            allow.send_nowait(in_flight)
            while now < start + seconds:
                came = await path.receive(in_flight)
                count += came
                allow.send_nowait(came)
                now = time.perf_counter()
        left = in_flight
        while left:
            left -= await path.receive(left)
    return count / (now - start)


async def latencies(path: EchoPath, body: bytes, seconds: float) -> list[float]:
    """Send one body at a time for some seconds, and return the seconds that each echo took."""
    taken: list[float] = []
    now = time.perf_counter()
    end = now + seconds
    while now < end or len(taken) < 2:  # percentiles need two
        await path.send(body, 1)
        await path.receive(1)
        before, now = now, time.perf_counter()
        taken.append(now - before)
    return taken
