"""The fault driver: real processes, a schedule of faults that a seed makes, and the judgement of the oracle.

A scenario is a folder with Alice, Bob and their hubs as processes, and a table of faults by name. A schedule is a list
of steps. A step waits until Bob has handled so many more numbers, and a moment longer, and then does a fault. So the
same seed makes the same schedule, whatever the speed of the machine.
"""

import resource
import signal
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from random import Random
from typing import Protocol
from unittest.mock import patch

import attrs
import trio

from tests.faults.oracle import Happened, Report, judge
from tests.faults.proxy import Proxy, open_proxy
from tests.support.processes import ROOT, Commands, HubProcess, Running
from trionode import Identity, open_sqlite_vault
from trionode.testing import KafkaBroker

PROGRAMS = ROOT / "tests" / "faults" / "programs"
CLOCK = ROOT / "tests" / "faults" / "clock"

#: A fault that lasts for so many seconds.
Fault = Callable[[float], Awaitable[None]]


@attrs.frozen
class Step:
    """After `after` more numbers were handled and `pause` seconds, `fault` happens for `seconds`."""

    fault: str
    after: int
    pause: float = 0.0
    seconds: float = 0.0


def schedule(
    seed: int,
    faults: Sequence[str],
    steps: int,
    *,
    after: tuple[int, int],
    pause: tuple[float, float] = (0.0, 0.05),
    seconds: tuple[float, float] = (0.0, 1.0),
) -> list[Step]:
    """The schedule that a seed makes: each fault equally often, in random order, with random figures between bounds."""
    random = Random(seed)
    names = [faults[number % len(faults)] for number in range(steps)]
    random.shuffle(names)
    return [Step(name, random.randint(*after), random.uniform(*pause), random.uniform(*seconds)) for name in names]


class Role(Protocol):
    """A process that a schedule kills, freezes and starts again."""

    async def start(self) -> None: ...

    async def kill(self) -> None: ...

    def freeze(self) -> None: ...

    def go_on(self) -> None: ...


class Program:
    """Alice or Bob: a program that goes on where it was killed, from what it has in the folder of the scenario."""

    def __init__(self, commands: Commands, name: str, arguments: Sequence[str | Path]) -> None:
        self._commands = commands
        self._command = (PROGRAMS / f"{name}.py", *arguments)
        self._starts = trio.Event()
        self.running: Running | None = None

    async def start(self) -> None:
        """Start it. It is ready some time later."""
        self.running = await self._commands.start(program=self._command)
        self._starts.set()
        self._starts = trio.Event()

    async def kill(self) -> None:
        """End it as a power cut would (SIGKILL)."""
        assert self.running is not None
        self.running.process.kill()
        await self.running.process.wait()

    def freeze(self) -> None:
        """Stop it where it is (SIGSTOP)."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it go on (SIGCONT)."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self.running is not None
        self.running.process.send_signal(number)

    async def started(self) -> None:
        """Wait until it is started the next time."""
        await self._starts.wait()

    async def ended(self) -> Running:
        """Wait until it ends in any way but by SIGKILL, over all its starts."""
        while True:
            started = self._starts
            if self.running is not None and await self.running.process.wait() != -signal.SIGKILL:
                return self.running
            await started.wait()


class Broker:
    """A Kafka broker as a role: its methods block, so they run in a thread."""

    def __init__(self, broker: KafkaBroker) -> None:
        self._broker = broker

    async def start(self) -> None:
        """Start it and wait until it is ready."""
        await trio.to_thread.run_sync(self._broker.start)

    async def kill(self) -> None:
        """SIGKILL."""
        await trio.to_thread.run_sync(self._broker.kill)

    def freeze(self) -> None:
        """SIGSTOP."""
        self._broker.pause()

    def go_on(self) -> None:
        """SIGCONT."""
        self._broker.resume()


@attrs.define(eq=False)
class Scenario:
    """The processes of a run, and the faults that can happen to them; made by `open_scenario`."""

    folder: Path
    messages: int
    alice: Program
    bob: Program
    hubs: Sequence[HubProcess]
    faults: dict[str, Fault] = attrs.Factory(dict)
    _handled: int = 0
    _progress: trio.Event = attrs.Factory(trio.Event)
    _happened: list[Happened] = attrs.Factory(list)

    async def run(self, seed: int, steps: Sequence[Step], *, within: float) -> Report:
        """Start Alice and Bob, do the steps, wait until Alice has ended, and return what the oracle says."""
        with trio.move_on_after(within) as scope:
            async with trio.open_nursery() as nursery:
                await self.bob.start()
                nursery.start_soon(self._count)
                await self.alice.start()
                nursery.start_soon(self._do, steps)
                alice = await self.alice.ended()
                assert alice.process.returncode == 0, f"Alice ended, and said: {alice.complaints}"
                assert len(self._happened) == len(steps), f"only {len(self._happened)} of {len(steps)} faults happened"
                nursery.cancel_scope.cancel()
        report = judge(self.folder, self._happened, seed)
        assert not scope.cancelled_caught, (
            f"not done in {within:g} s: {self._handled} handled, {len(self._happened)} of {len(steps)} faults. "
            f"{report.text}\nAlice: {self.alice.running and self.alice.running.complaints[-2000:]}\n"
            f"Bob: {self.bob.running and self.bob.running.complaints[-2000:]}"
        )
        return report

    async def _do(self, steps: Sequence[Step]) -> None:
        due = 0
        for step in steps:
            due = max(due, self._handled) + step.after
            while self._handled < due:
                await self._progress.wait()
            await trio.sleep(step.pause)
            self._happened.append(Happened(step.fault, time.monotonic()))
            await self.faults[step.fault](step.seconds)

    async def _count(self) -> None:
        """Count the lines that Bob prints, over all his starts."""
        while True:
            running = self.bob.running
            assert running is not None
            assert running.process.stdout is not None
            async for data in running.process.stdout:
                self._handled += data.count(b"\n")
                self._progress.set()
                self._progress = trio.Event()
            assert await running.process.wait() == -signal.SIGKILL, f"Bob ended, and said: {running.complaints}"
            while self.bob.running is running:
                await self.bob.started()


def _role_faults(name: str, role: Role) -> dict[str, Fault]:
    async def kill(seconds: float) -> None:
        await role.kill()
        await trio.sleep(seconds)
        await role.start()

    async def freeze(seconds: float) -> None:
        role.freeze()
        try:
            await trio.sleep(seconds)
        finally:
            role.go_on()

    return {f"kill {name}": kill, f"freeze {name}": freeze}


def _proxy_faults(name: str, proxies: Sequence[Proxy]) -> dict[str, Fault]:
    """The faults of the way from Alice or Bob to all hubs."""

    async def at_once(fault: Callable[[Proxy], None], _: float) -> None:
        await trio.lowlevel.checkpoint()
        for proxy in proxies:
            fault(proxy)

    async def for_a_while(begin: Callable[[Proxy], None], end: Callable[[Proxy], None], seconds: float) -> None:
        await at_once(begin, 0)
        await trio.sleep(seconds)
        await at_once(end, 0)

    def delays(by: float) -> Callable[[Proxy], None]:
        return lambda proxy: setattr(proxy, "delay", by)

    def corrupt(proxy: Proxy) -> None:
        proxy.chunks_to_corrupt += 1

    faults: dict[str, Fault] = {
        "reset": partial(at_once, Proxy.reset),
        "cut": partial(at_once, Proxy.cut),
        "corrupt": partial(at_once, corrupt),
        "half-open": partial(for_a_while, Proxy.half_open, Proxy.heal),
        "hold": partial(for_a_while, Proxy.hold, Proxy.release),
        "delay": partial(for_a_while, delays(0.05), delays(0.0)),
    }
    return {f"{what} {name}'s way": fault for what, fault in faults.items()}


@contextmanager
def full_disk(pid: int) -> Iterator[None]:
    """Let no file of a process grow, by a limit on their size: its writes fail as on a full disk."""
    soft, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (soft, hard))


def _disk_faults(name: str, hub: HubProcess) -> dict[str, Fault]:
    async def disk_full(seconds: float) -> None:
        with full_disk(hub.pid):
            await trio.sleep(seconds)

    return {f"{name}'s disk full": disk_full}


def _clock_faults(path: Path) -> dict[str, Fault]:
    async def jump(by: float, seconds: float) -> None:
        await trio.Path(path).write_bytes(struct.pack("=d", by))
        await trio.sleep(seconds)

    return {
        "clock ahead": partial(jump, 3600.0),
        "clock behind": partial(jump, -3600.0),
        "clock right": partial(jump, 0.0),
    }


@asynccontextmanager
async def open_scenario(
    folder: Path,
    messages: int,
    *,
    store: str | None = None,
    hubs: int = 1,
    broker: KafkaBroker | None = None,
    pause: float = 0.0,
) -> AsyncIterator[Scenario]:
    """Run hubs over one store (SQLite in the folder by default), and prepare Alice and Bob, for the length of a block.

    Each of the two reaches the hubs through proxies of its own. Alice pauses so many seconds before each number.
    """
    store = store or f"sqlite:{folder / 'hub.db'}"
    clock = folder / "clock"
    clock.write_bytes(struct.pack("=d", 0.0))
    identifiers = {name: await _identifier(folder / f"{name}.vault") for name in ("alice", "bob")}
    env = {"PYTHONPATH": f"{CLOCK}:{ROOT}", "FAULT_CLOCK": str(clock)}
    async with Commands(folder, env) as commands, AsyncExitStack() as stack:
        running = [HubProcess(commands, store) for _ in range(hubs)]
        ways: dict[str, list[Proxy]] = {"alice": [], "bob": []}
        for hub in running:
            await hub.start()
            for proxies in ways.values():
                proxies.append(await stack.enter_async_context(open_proxy(hub.endpoint)))
        at = {name: [proxy.endpoint for proxy in proxies] for name, proxies in ways.items()}
        at["bob"].reverse()  # with two hubs, each begins at another one
        alice = Program(commands, "alice", [folder, identifiers["bob"], str(messages), str(pause), *at["alice"]])
        bob = Program(commands, "bob", [folder, identifiers["alice"], *at["bob"]])
        faults = _role_faults("alice", alice) | _role_faults("bob", bob) | _clock_faults(clock)
        for number, hub in enumerate(running):
            name = "hub" if hubs == 1 else f"hub {number}"
            faults |= _role_faults(name, hub) | _disk_faults(name, hub)
        for name, proxies in ways.items():
            faults |= _proxy_faults(name, proxies)
        if broker is not None:
            faults |= _role_faults("broker", Broker(broker))
        yield Scenario(folder, messages, alice, bob, running, faults)


async def _identifier(vault: Path) -> str:
    """Make an identity that is a day old, so that it exists at every time to which a clock jumps."""
    a_day_ago = time.time() - 86_400
    with patch("time.time", lambda: a_day_ago):
        async with open_sqlite_vault(vault, unencrypted=True) as keys:
            return str((await Identity.load_or_create(keys, "me")).identifier)
