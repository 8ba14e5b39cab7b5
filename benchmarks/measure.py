"""What is asked of every way that bodies can be sent and come back by, and the two figures that are taken: a rate and how long one takes."""

import time
from typing import Protocol

import trio

#: Bodies in flight of a flood, and the bytes that they may have together.
IN_FLIGHT = 1000
BYTES_IN_FLIGHT = 1024 * 1024


class Way(Protocol):
    """Bodies leave this process by it and come back into it; one task sends and one receives."""

    async def send(self, body: bytes, count: int) -> None:
        """Send the same body `count` times."""
        ...

    async def receive(self, most: int) -> int:
        """Wait for at least one body and take what is there; `most` are on their way. How many came."""
        ...


def in_flight(size: int) -> int:
    """How many bodies of `size` bytes a flood has on their way."""
    return min(IN_FLIGHT, BYTES_IN_FLIGHT // size)


async def rate(way: Way, body: bytes, in_flight: int, seconds: float) -> float:
    """Keep `in_flight` bodies on their way for some seconds; how many came back, a second.

    One task sends and another receives, as in programs: whoever does the one before the other fills every queue there and back.
    """
    allow, allowed = trio.open_memory_channel[int](in_flight)

    async def send() -> None:
        async for count in allowed:
            await way.send(body, count)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        start = now = time.perf_counter()
        count = 0
        with allow:
            allow.send_nowait(in_flight)
            while now < start + seconds:
                came = await way.receive(in_flight)
                count += came
                allow.send_nowait(came)
                now = time.perf_counter()
        left = in_flight
        while left:
            left -= await way.receive(left)
    return count / (now - start)


async def latencies(way: Way, body: bytes, seconds: float) -> list[float]:
    """Send one body after the other for some seconds, each when the one before is back; how many seconds each took."""
    taken: list[float] = []
    now = time.perf_counter()
    end = now + seconds
    while now < end or len(taken) < 2:  # percentiles want two
        await way.send(body, 1)
        await way.receive(1)
        before, now = now, time.perf_counter()
        taken.append(now - before)
    return taken
