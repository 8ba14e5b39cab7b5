"""One run of a simulation: a topology, its senders, and what goes wrong, in virtual time."""

import logging
import math
import tempfile
import traceback
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from hashlib import sha256
from random import Random
from typing import Literal

import attrs
import trio

from trionode.channel.secure_channel import SecureChannel
from trionode.errors import ClosedError, ConfigError, RemoteError, UnknownAddressError
from trionode.log import log
from trionode.protocol.wire.address import Address
from trionode.protocol.wire.route import Route
from trionode.routing.mailbox import Mailbox
from trionode.stream.client import Stream
from trionode.testing.network import FaultyNetwork
from trionode.testing.simulation.forgetful import forgetting
from trionode.testing.simulation.mix import STANDARD_MIX, Burst, FaultMix, Outage, plan_bursts, plan_outages
from trionode.testing.simulation.oracle import Flow, Oracle, payload_of
from trionode.testing.simulation.outcome import Outcome
from trionode.testing.simulation.scene import ORACLE, flows_of, ledgers_of, mission, with_counters
from trionode.testing.simulation.virtual_time import EPOCH, LivelockError, VirtualClock, run_in_virtual_time
from trionode.topology.run.node import RunningNode
from trionode.topology.run.topology import RunningTopology, run_topology
from trionode.topology.spec import FlowSpec, TopologySpec

#: Seconds after the last fault in which everything that was accepted has to arrive, and every sender has to be able to
#: send. It is longer than two of the longest beacons of an idle channel.
SETTLE_SECONDS = 1500.0
#: Seconds that are watched after that for copies that come late.
WATCH_SECONDS = 5.0
#: Seconds until a sender that was refused tries again.
RETRY_SECONDS = 0.1

StoreKind = Literal["memory", "sqlite"]


def _route(value: Iterable[str]) -> tuple[str, ...]:
    return tuple(value)


@attrs.frozen(kw_only=True)
class Simulation:
    """A topology under seeded faults, in virtual time.

    `Simulation().run(seed=7)` is one run of the mission scene: Alice, Bob and a hub with streams between them. The seed
    decides the faults, when they happen, when messages are sent, and the order in which tasks run. So the same seed
    gives the same run, except for keys and random addresses.

    Every flow of the topology gets numbered messages. The worker at its end is replaced by one that counts them, and
    answers if the flow is answered. All transports are replaced by a network in memory, stores and vaults by new ones.

    Attributes:
      topology: The topology; by default the mission scene.
      mix: What goes wrong.
      hours: The virtual hours of a run.
      messages: The messages of each flow in a run. They are sent in bursts of 1 to 100.
      interval: Seconds between two messages of a burst.
      sender: The node that sends, if the flows of the topology are not to be used.
      to: The route to which it sends.
      store: What takes the place of the stores.

    Raises:
      ConfigError: If there is no flow, a flow does not end at a worker, or no node has the name of one that crashes.
    """

    topology: TopologySpec = attrs.field(factory=mission, repr=False)
    mix: FaultMix = STANDARD_MIX
    hours: float = 1.0
    messages: int = 1000
    interval: float = 0.2
    sender: str | None = None
    to: tuple[str, ...] = attrs.field(default=(), converter=_route)
    store: StoreKind = "memory"

    def __attrs_post_init__(self) -> None:
        flows_of(self.topology, self.sender, self.to)
        for name in self.mix.crashing:
            if name not in self.topology.nodes or self.topology.nodes[name].external:
                known = ", ".join(name for name, node in self.topology.nodes.items() if not node.external)
                raise ConfigError(f"no node {name!r} of this topology can crash; its nodes are: {known}")
        if not self.hours > 0 or self.messages < 1 or not self.interval >= 0:
            raise ConfigError(
                f"a simulation takes hours, messages and an interval that are positive, not {self.hours}, "
                f"{self.messages} and {self.interval}"
            )

    def run(self, seed: int, *, trace: bool = False) -> Outcome:
        """Run it once. No other Trio program may run in this thread.

        Args:
          seed: Decides what happens.
          trace: Whether the outcome lists all faults, reports and lines of the log.

        Returns:
          What has become of the messages.
        """
        with ExitStack() as stack:
            lines = stack.enter_context(_logged(trace=trace))
            store = "memory"
            if self.store == "sqlite":
                store = (
                    f"sqlite:{stack.enter_context(tempfile.TemporaryDirectory(prefix='trionode-simulate-'))}/{{}}.db"
                )
            run = _Run(self, seed, store)
            stack.enter_context(run.forgetting())
            try:
                run_in_virtual_time(run.main, seed)
            except LivelockError as error:
                run.oracle.find("stuck", str(error))
            return run.outcome(lines if trace else None)

    def faultless(self) -> "Simulation":
        """Return the same simulation without faults, to compare with.

        Returns:
          The simulation.
        """
        return attrs.evolve(self, mix=self.mix.without_faults())


class _Lines(logging.Handler):
    """Keeps the lines of the log with their virtual time."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[float, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        at = trio.current_time() if trio.lowlevel.in_trio_run() else 0.0
        self.lines.append((at, f"log: {record.getMessage()}"))


@contextmanager
def _logged(*, trace: bool) -> Iterator[list[tuple[float, str]]]:
    """Take the lines of the log: thousands of seeded faults are not news for a terminal."""
    handler, level, propagates = _Lines(), log.level, log.propagate
    log.propagate = False
    log.setLevel(logging.INFO if trace else logging.CRITICAL)
    log.addHandler(handler)
    try:
        yield handler.lines
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        log.propagate = propagates


async def _open_route(node: RunningNode, hops: Sequence[str]) -> Route:
    """Return a route, once its channel or stream is open, or the link to its first hop."""
    if not Address.parse(hops[0]).transport:
        return await node._runner.open_route(hops)
    return Route(await node.node.connect(hops[0]), *hops[1:])


class _Program:
    """The programs that use one node: they end when it crashes, and begin again with it."""

    def __init__(self) -> None:
        #: Whether everything in the node is open.
        self.is_ready = True
        self._scopes: set[trio.CancelScope] = set()
        self._up = trio.Event()
        self._up.set()

    async def begin(self, _: object = None) -> None:
        """Let the programs use the node again."""
        await trio.lowlevel.checkpoint()
        self._up.set()

    def end(self) -> None:
        """End the programs, as the node crashes."""
        self.is_ready = False
        self._up = trio.Event()
        for scope in self._scopes:
            scope.cancel()

    async def run(self, use: Callable[[], Awaitable[None]]) -> None:
        """Run a program whenever the node runs, until it returns."""
        while True:
            await self._up.wait()
            with trio.CancelScope() as scope:
                self._scopes.add(scope)
                try:
                    await use()
                finally:
                    self._scopes.discard(scope)
            if not scope.cancelled_caught:
                return


class _Run:
    """One run."""

    def __init__(self, simulation: Simulation, seed: int, store: str) -> None:
        self._simulation = simulation
        self._seed = seed
        self._random = Random(seed)  # noqa: S311  # random numbers that can be repeated
        flows = flows_of(simulation.topology, simulation.sender, simulation.to)
        self._spec = with_counters(simulation.topology, flows, store)
        self._flows = self._spec.flows
        self.oracle = Oracle(ledgers_of(self._spec))
        self._network = FaultyNetwork(seed)
        self._clock: VirtualClock
        self._topology: RunningTopology
        self._programs: dict[str, _Program] = {}
        self._began = self._ended = self._end_of_faults = 0.0
        self._has_faults = False

    def forgetting(self) -> AbstractContextManager[None]:
        """Let the stores of the topology forget records while faults happen."""
        random = Random(f"{self._seed} forget")  # noqa: S311  # random numbers that can be repeated
        forget = self._simulation.mix.forget
        return forgetting(lambda: forget if self._has_faults else 0.0, random, partial(self._network._note, "forget"))

    async def main(self, clock: VirtualClock) -> None:
        """Run the topology. What should not happen is a finding, and never raises."""
        self._clock = clock
        ORACLE.set(self.oracle)
        try:
            transports = {"loopback": self._network.transport}
            async with run_topology(self._spec, transports=transports, on_listening=self._end_head_start) as topology:
                self._topology = topology
                await self._live()
        except* RemoteError as group:  # the nodes could not deliver everything before they ended, and say so
            if not self._ended:
                self._note_error(group)
            for node in self._programs:
                self.oracle.report(node, "undelivered at the end")
        except* Exception as group:  # noqa: BLE001  # a run reports what it finds, mistakes of the library included
            self._note_error(group)
        self.oracle.conclude()

    def _note_error(self, group: BaseException) -> None:
        self.oracle.find("error", "".join(traceback.format_exception(group)))

    async def _end_head_start(self, _: RunningNode) -> None:
        """Let the wall clock show a time long after the identities were made: a jump back must not lead to before it."""
        await trio.lowlevel.checkpoint()
        self._clock.epoch = EPOCH

    async def _live(self) -> None:
        """Send messages under faults, end all faults, and wait until everything has arrived."""
        self._began = trio.current_time()
        self._end_of_faults = self._began + self._simulation.hours * 3600
        sendings = {
            name: _Sending(
                flow,
                self.oracle.flows[name],
                deque(
                    plan_bursts(
                        self._simulation.messages,
                        self._simulation.hours * 3600,
                        self._simulation.interval,
                        self._random,
                    )
                ),
            )
            for name, flow in self._flows.items()
        }
        self._programs = {node.name: _Program() for node in self._topology}
        self._network.set_faults(self._simulation.mix.faults())
        self._has_faults = True
        async with trio.open_nursery() as nursery:
            for node in self._topology:
                run = self._programs[node.name].run
                for name in node.spec.secure_channels:
                    nursery.start_soon(run, partial(self._watch_channel, node.name, name))
                for name in node.spec.streams:
                    nursery.start_soon(run, partial(self._watch_stream, node.name, name))
            for sending in sendings.values():
                nursery.start_soon(self._programs[sending.spec.node].run, partial(self._send, sending))
            with trio.CancelScope(deadline=self._end_of_faults + SETTLE_SECONDS):
                async with trio.open_nursery() as causing:
                    await self._cause_outages(causing)
            for name, program in self._programs.items():
                if not program.is_ready:
                    self.oracle.find("stuck", f"{name} could not open again what it had open before its crash")
            with trio.move_on_after(SETTLE_SECONDS):
                for sending in sendings.values():
                    await sending.done.wait()
                await self.oracle.wait_settled()
            for sending in sendings.values():
                if not sending.done.is_set():
                    self.oracle.find("stuck", f"{sending.flow.there.name} {sending.flow.there.next_number}")
            await trio.sleep(WATCH_SECONDS)
            self._ended = trio.current_time()
            nursery.cancel_scope.cancel()

    # The programs

    async def _send(self, sending: "_Sending") -> None:
        """Send what is left, and take the answers."""
        node = self._topology[sending.spec.node]
        async with node.node.open_mailbox() as mailbox, trio.open_nursery() as nursery:
            nursery.start_soon(self._take_answers, mailbox, node.name)
            while sending.bursts:
                burst = sending.bursts[0]
                await trio.sleep_until(self._began + burst.at)
                await self._send_one(node, mailbox, sending)
                sending.bursts[0] = burst = attrs.evolve(burst, messages=burst.messages - 1)
                if not burst.messages:
                    sending.bursts.popleft()
                    sending.flow.burst_ends.append(sending.flow.there.next_number)
                await trio.sleep(self._simulation.interval)
            sending.done.set()
            await trio.sleep_forever()

    async def _send_one(self, node: RunningNode, mailbox: Mailbox, sending: "_Sending") -> None:
        """Send one message; try again until it is accepted."""
        ledger = sending.flow.there
        number = ledger.begin()
        payload = payload_of(ledger.name, number)
        while True:
            try:
                await mailbox.send(await _open_route(node, sending.spec.to), payload)
            except (RemoteError, UnknownAddressError, ClosedError) as error:
                self.oracle.report(node.name, type(error).__name__)
                await trio.sleep(RETRY_SECONDS)
            else:
                ledger.accept(number, trio.current_time())
                return

    async def _take_answers(self, mailbox: Mailbox, node: str) -> None:
        async for message in mailbox:
            self.oracle.take_answer(message.payload, node)

    async def _watch_channel(self, node: str, name: str) -> None:
        """Note what the channel of a name reports, and the one that follows it."""
        supervised = self._topology[node]._runner.part("secure_channels", name, "secure channel")
        opened: SecureChannel | None = None
        while True:
            channel: SecureChannel = await supervised.wait_open(other_than=opened)
            opened = channel
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._take_verdicts, node, channel)
                await channel.closed.wait()
                nursery.cancel_scope.cancel()
            self.oracle.report(node, "channel closed")

    async def _watch_stream(self, node: str, name: str) -> None:
        supervised = self._topology[node]._runner.part("streams", name, "stream")
        await self._take_verdicts(node, await supervised.wait_open())

    async def _take_verdicts(self, node: str, opened: Stream | SecureChannel) -> None:
        """Note the verdicts of a stream or channel."""
        async for verdict in opened.verdicts():
            self.oracle.report(node, type(verdict).__name__)

    # What goes wrong

    async def _cause_outages(self, nursery: trio.Nursery) -> None:
        mix, seconds = self._simulation.mix, self._simulation.hours * 3600
        for outage in plan_outages(mix, seconds, self._random):
            await trio.sleep_until(self._began + outage.at)
            match outage.kind:
                case "cut":
                    self._cut(outage)
                case "partition":
                    nursery.start_soon(self._partition, outage)
                case "crash":
                    nursery.start_soon(self._crash, outage)
                case "clock":
                    self._network._note("clock jump", f"{outage.seconds:+.0f} s")
                    self._clock.epoch = EPOCH + outage.seconds
        await trio.sleep_until(self._end_of_faults)
        self._network.clear_faults()
        self._has_faults = False

    def _cut(self, outage: Outage) -> None:
        """Lose the links between two nodes that have one."""
        pairs = self._network.linked()
        if pairs:
            self._network.cut(*pairs[int(outage.choice * len(pairs))])

    async def _partition(self, outage: Outage) -> None:
        """Separate one node from all others for a while."""
        names = sorted(self._programs)
        began = trio.current_time()
        self._network.partition(names[int(outage.choice * len(names))])
        await trio.sleep(outage.seconds)
        self._network.heal()
        self.oracle.outages.append((began, trio.current_time()))

    async def _crash(self, outage: Outage) -> None:
        """End a node abruptly, and start it again after a while; nothing if none of those that may crash runs."""
        names = sorted(self._simulation.mix.crashing or self._programs)
        name = names[int(outage.choice * len(names))]
        program, network = self._programs[name], self._network
        if not program.is_ready:
            return
        began = trio.current_time()
        program.end()
        network.crash(name, silent=outage.is_silent)
        await self._topology.crash(name)
        self.oracle.crashed(name)
        await trio.sleep(outage.seconds)
        self.oracle.outages.append((began, trio.current_time()))
        network.revive(name)
        await self._topology.start(name, timeout=math.inf, on_listening=program.begin)
        program.is_ready = True

    # The result

    def outcome(self, lines: list[tuple[float, str]] | None) -> Outcome:
        """Return what has become of the messages."""
        oracle, events = self.oracle, self._network.log
        ledgers = list(oracle.ledgers())
        digest = sha256()
        for event in events:
            digest.update(f"{event}\n".encode())
        for ledger in ledgers:
            digest.update(f"{ledger.name} {ledger.accepted} {ledger.received}\n".encode())
        for report in oracle.reports:
            digest.update(f"{report}\n".encode())
        bursts = [each for flow in oracle.flows.values() for each in flow.seconds_of_bursts()]
        trace: tuple[str, ...] = ()
        if lines is not None:
            happened = [(event.at, f"fault: {str(event)[11:]}") for event in events]
            happened += [(report.at, f"report: {report.node}: {report.what}") for report in oracle.reports]
            trace = tuple(f"{at:10.3f} {text}" for at, text in sorted([*happened, *lines]))
        return Outcome(
            seed=self._seed,
            seconds=self._ended,
            accepted=sum(len(ledger.accepted) for ledger in ledgers),
            received=sum(len(ledger.received) for ledger in ledgers),
            faults=Counter(event.what for event in events),
            reports=Counter(report.what for report in oracle.reports),
            findings=Counter(oracle.found),
            examples=tuple(oracle.examples),
            forgotten=sum(ledger.forgotten for ledger in ledgers),
            repeated=sum(ledger.repeated for ledger in ledgers),
            slowest=oracle.slowest(),
            burst_messages=sum(messages for messages, _ in bursts),
            burst_seconds=sum(seconds for _, seconds in bursts),
            digest=digest.hexdigest()[:16],
            trace=trace,
        )


@attrs.define(eq=False)
class _Sending:
    """What one flow has still to send."""

    spec: FlowSpec
    flow: Flow
    bursts: deque[Burst]
    done: trio.Event = attrs.Factory(trio.Event)
