"""Commands in processes of their own, spoken to line by line, and gone when the test ends, however it ends."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Self

import trio

ROOT = Path(__file__).resolve().parents[2]

#: Seconds for any one wait: a process starts in half a second, in ten on a machine that is busy.
WAIT_SECONDS = 20.0


class Running:
    """One process: standard output is read line by line, standard error goes to a file."""

    def __init__(self, process: trio.Process, complaints: Path) -> None:
        self.process = process
        self._complaints = complaints
        self._buffer = b""

    @property
    def complaints(self) -> str:
        """All that it has said on standard error."""
        return self._complaints.read_text(errors="replace")

    async def line(self) -> str:
        """The next line of its standard output; fails if there is none."""
        assert self.process.stdout is not None
        with trio.move_on_after(WAIT_SECONDS):
            while b"\n" not in self._buffer:
                data = await self.process.stdout.receive_some(65536)
                assert data, f"{self.process.args!r} ended, and said: {self.complaints}"
                self._buffer += data
            line, _, self._buffer = self._buffer.partition(b"\n")
            return line.decode()
        raise AssertionError(f"{self.process.args!r} printed nothing in time, and said: {self.complaints}")

    async def rest(self) -> list[str]:
        """All lines until it closes its standard output."""
        assert self.process.stdout is not None
        with trio.fail_after(WAIT_SECONDS):
            while data := await self.process.stdout.receive_some(65536):
                self._buffer += data
        lines, self._buffer = self._buffer.decode().split("\n")[:-1], b""
        return lines

    async def write(self, *lines: str | bytes) -> None:
        """Give it lines of input."""
        assert self.process.stdin is not None
        with trio.fail_after(WAIT_SECONDS):
            await self.process.stdin.send_all(
                b"".join((line.encode() if isinstance(line, str) else line) + b"\n" for line in lines)
            )

    async def close_input(self) -> None:
        """End its input."""
        assert self.process.stdin is not None
        await self.process.stdin.aclose()

    async def end(self) -> int:
        """Its exit code, once it has ended by itself."""
        with trio.move_on_after(WAIT_SECONDS):
            return await self.process.wait()
        raise AssertionError(f"{self.process.args!r} did not end in time, and said: {self.complaints}")

    async def stopped_by(self, *signals: signal.Signals) -> tuple[int, float]:
        """Its exit code, and the seconds until it ended, once it was sent these signals."""
        began = trio.current_time()
        for number in signals:
            self.process.send_signal(number)
        return await self.end(), trio.current_time() - began


class Commands:
    """Starts commands; at the end of its block all of them are gone."""

    def __init__(self, folder: Path, env: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self._env = {**os.environ, "XDG_STATE_HOME": str(folder), **(env or {})}
        self._running: list[Running] = []

    async def start(
        self,
        *arguments: str | Path,
        program: Sequence[str | Path] = ("-m", "trionode"),
        terminal: int | None = None,
        pass_fds: Sequence[int] = (),
    ) -> Running:
        """Start `trionode` with arguments, or another program of Python's; with pipes, or at a terminal."""
        complaints = self.folder / f"stderr.{len(self._running)}"
        # A session of its own, so that no passphrase prompt reaches the terminal of the test run.
        with complaints.open("wb") as file:
            process = await trio.lowlevel.open_process(
                [sys.executable, *program, *arguments],
                stdin=subprocess.PIPE if terminal is None else terminal,
                stdout=subprocess.PIPE if terminal is None else terminal,
                stderr=file,
                start_new_session=True,
                pass_fds=pass_fds,
                env=self._env,
            )
        running = Running(process, complaints)
        self._running.append(running)
        return running

    async def hub(self, *arguments: str | Path) -> tuple[Running, str]:
        """Start a hub at a free port; the hub, and where it listens."""
        hub = await self.start("hub", "--listen", "tcp:127.0.0.1:0", *arguments)
        return hub, await listening(hub)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await end_all(self._running)


async def end_all(running: Sequence[Running]) -> None:
    """End all processes that still run, and close their pipes."""
    for each in running:
        if each.process.returncode is None:
            each.process.kill()
    with trio.CancelScope(shield=True):
        for each in running:
            await each.process.wait()
            for stream in (each.process.stdin, each.process.stdout):
                if stream is not None:
                    await stream.aclose()


async def listening(hub: Running) -> str:
    """Where a hub says that it listens."""
    line = await hub.line()
    assert re.fullmatch(r"listening on tcp:127\.0\.0\.1:\d+", line)
    return line.removeprefix("listening on ")


async def addresses(bob: Running) -> tuple[str, str, str]:
    """The two stream addresses and the identifier that Bob prints."""
    first, second, third = await bob.line(), await bob.line(), await bob.line()
    assert re.fullmatch(r"bob_to_alice stream address is: bob_to_alice_[0-9a-f]{32}", first)
    assert re.fullmatch(r"alice_to_bob stream address is: alice_to_bob_[0-9a-f]{32}", second)
    assert re.fullmatch(r"[IP][0-9a-f]{64}", third)
    return first.rpartition(" ")[2], second.rpartition(" ")[2], third


@asynccontextmanager
async def scene(folder: Path, *store: str | Path) -> AsyncIterator[tuple[Commands, Running, Running, Running]]:
    """Hub, Bob and Alice, each in a process, with the channel between Alice and Bob open."""
    async with Commands(folder) as commands:
        hub, at = await commands.hub("--store", *store)
        bob = await commands.start("bob", "--hub", at)
        alice = await commands.start("alice", "--hub", at)
        to_alice, to_bob, identifier = await addresses(bob)
        await alice.write(to_alice, to_bob)
        assert await alice.line() == f"[✓] End-to-end encrypted secure channel was established with {identifier}."
        yield commands, hub, bob, alice


class HubProcess:
    """A hub that a test kills, freezes and starts again, at the same place over all its starts; made by `open_hub`."""

    def __init__(self, commands: Commands, store: str) -> None:
        self._commands = commands
        self._store = store
        self._running: Running | None = None
        #: Where it listens, `tcp:127.0.0.1:PORT`; known after the first start.
        self.endpoint = "tcp:127.0.0.1:0"

    async def start(self) -> None:
        """Start it and wait until it says that it listens."""
        self._running = await self._commands.start("hub", "--listen", self.endpoint, "--store", self._store)
        self.endpoint = await listening(self._running)

    async def kill(self) -> None:
        """End it as a power cut would (SIGKILL)."""
        await self._ended_by(signal.SIGKILL)

    async def stop(self) -> int:
        """End it in good order (SIGTERM); its exit code."""
        return await self._ended_by(signal.SIGTERM)

    @property
    def pid(self) -> int:
        """The number of its process."""
        assert self._running is not None
        return self._running.process.pid

    async def _ended_by(self, number: signal.Signals) -> int:
        assert self._running is not None
        code, _ = await self._running.stopped_by(number)
        return code

    def freeze(self) -> None:
        """Stop it where it is (SIGSTOP): its connections stay open and it says nothing."""
        assert self._running is not None
        self._running.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let a frozen hub go on (SIGCONT)."""
        assert self._running is not None
        self._running.process.send_signal(signal.SIGCONT)


@asynccontextmanager
async def open_hub(store: str) -> AsyncIterator[HubProcess]:
    """Start a hub over a store (`sqlite:PATH`, `kafka:HOST:PORT`), which is gone at the end of the block."""
    with TemporaryDirectory() as folder:
        async with Commands(Path(folder)) as commands:
            hub = HubProcess(commands, store)
            await hub.start()
            yield hub
