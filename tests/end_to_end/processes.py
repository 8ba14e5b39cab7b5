"""Hubs as processes of their own, which a test kills, freezes and starts again."""

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

#: Seconds for a Python process to import, open its store and listen, beside other load.
START_SECONDS = 20.0
#: Seconds for it to end in good order.
STOP_SECONDS = 5.0


class HubProcess:
    """`trionode hub` in a process of its own, at the same place over all its starts; made by `open_hub`."""

    def __init__(self, store: str) -> None:
        self._store = store
        #: Where it listens, `tcp:127.0.0.1:PORT`; known after the first start.
        self.place = "tcp:127.0.0.1:0"
        self._process: trio.Process | None = None

    async def start(self) -> None:
        """Start it and wait until it says that it listens."""
        command = [sys.executable, "-m", "trionode", "hub", "--listen", self.place, "--store", self._store]
        # The child finds what this process finds, installed or not.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._process = process = await trio.lowlevel.open_process(
            command, stdout=subprocess.PIPE, env=environment, start_new_session=True
        )
        assert process.stdout is not None
        said = b""
        with trio.fail_after(START_SECONDS):
            while b"\n" not in said:
                some = await process.stdout.receive_some()
                assert some, "the hub ended before it listened: see its standard error"
                said += some
        line = said.decode().splitlines()[0]
        assert line.startswith("listening on tcp:127.0.0.1:"), line
        self.place = line.removeprefix("listening on ")

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    async def kill(self) -> None:
        """End it as a power cut would (SIGKILL)."""
        self._signal(signal.SIGKILL)
        assert self._process is not None
        await self._process.wait()
        assert self._process.stdout is not None
        await self._process.stdout.aclose()
        self._process = None

    async def stop(self) -> int:
        """End it in good order (SIGTERM); its exit code."""
        self._signal(signal.SIGTERM)
        assert self._process is not None
        with trio.fail_after(STOP_SECONDS):
            return await self._process.wait()

    def freeze(self) -> None:
        """Stop it where it is (SIGSTOP): its connections stay open and it says nothing."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let a frozen hub go on (SIGCONT)."""
        self._signal(signal.SIGCONT)

    async def aclose(self) -> None:
        """Kill it, if it runs."""
        if self._process is not None:
            with trio.CancelScope(shield=True):
                await self.kill()


@asynccontextmanager
async def open_hub(store: str) -> AsyncIterator[HubProcess]:
    """Start a hub over a store (`sqlite:PATH`, `kafka:HOST:PORT`) on a free loopback port, killed at the end of the block."""
    hub = HubProcess(store)
    try:
        await hub.start()
        yield hub
    finally:
        await hub.aclose()
