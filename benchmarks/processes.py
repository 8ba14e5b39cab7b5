"""The peer of a benchmark in a process of its own.

It starts on the second core and ends when its standard input ends.
"""

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib import import_module
from typing import Never

import trio

#: Reports the peer's address, once, in one line.
Announce = Callable[[str], None]

#: Seconds until a peer must be ready.
READY_TIMEOUT = 20.0


#: The cores of this process before it was pinned to one of them.
_CORES = sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else []


def pin(core: int, process: int = 0) -> None:
    """Pin a process (0: this one) to one core, if the platform can and there are at least two cores."""
    if sys.platform == "linux" and len(_CORES) > 1:
        os.sched_setaffinity(process, {_CORES[core]})


@asynccontextmanager
async def open_peer(module: str, *arguments: str) -> AsyncIterator[str]:
    """Run `benchmarks.MODULE.serve` in another process for a block, and yield the line that it announced."""
    command = [sys.executable, "-m", "benchmarks.processes", module, *arguments]
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
                    raise SystemExit(f"the peer of {module} ended before it was ready: see its output above")
                line += part
        yield line.decode().strip()
    finally:
        with trio.CancelScope(shield=True):
            await process.stdin.aclose()
            with trio.move_on_after(READY_TIMEOUT):
                await process.wait()
            process.kill()


async def _run(module: str, arguments: list[str]) -> None:
    serve: Callable[..., Awaitable[Never]] = import_module(f"benchmarks.{module}").serve

    def announce(line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    async with trio.open_nursery() as nursery, trio.lowlevel.FdStream(os.dup(0)) as parent:
        nursery.start_soon(serve, announce, *arguments)
        await parent.receive_some()
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(_run, sys.argv[1], sys.argv[2:])
