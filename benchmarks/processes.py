"""The peer of a benchmark in a process of its own: started on the second core, and gone when its standard input ends."""

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib import import_module
from typing import Never

import trio

#: Reports once, in one line, where the peer can be reached.
Announce = Callable[[str], None]

#: Seconds that a peer has to say that it is ready.
READY_TIMEOUT = 20.0


#: The cores that this process was given, before it was kept on one of them.
_CORES = sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else []


def pin(core: int, process: int = 0) -> None:
    """Keep a process (0: this one) on one core, where the platform can and there are two: both ends on one core would share it."""
    if sys.platform == "linux" and len(_CORES) > 1:
        os.sched_setaffinity(process, {_CORES[core]})


@asynccontextmanager
async def open_peer(room: str, *arguments: str) -> AsyncIterator[str]:
    """Run `benchmarks.ROOM.serve` in another process for the length of a block; yields the line that it announced."""
    command = [sys.executable, "-m", "benchmarks.processes", room, *arguments]
    process = await trio.lowlevel.open_process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    pin(1, process.pid)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        line = b""
        with trio.fail_after(READY_TIMEOUT):
            while not line.endswith(b"\n"):
                part = await process.stdout.receive_some()
                if not part:
                    raise SystemExit(f"the peer of {room} ended before it was ready: what it said stands above")
                line += part
        yield line.decode().strip()
    finally:
        with trio.CancelScope(shield=True):
            await process.stdin.aclose()
            with trio.move_on_after(READY_TIMEOUT):
                await process.wait()
            process.kill()


async def _run(room: str, arguments: list[str]) -> None:
    serve: Callable[..., Awaitable[Never]] = import_module(f"benchmarks.{room}").serve

    def announce(line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    async with trio.open_nursery() as nursery, trio.lowlevel.FdStream(os.dup(0)) as parent:
        nursery.start_soon(serve, announce, *arguments)
        await parent.receive_some()
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(_run, sys.argv[1], sys.argv[2:])
