"""The oracle of a simulation: numbered messages, what became of each, and what should not have happened."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import Literal

import attrs
import trio

#: What the oracle finds, in the order of a report:
#: lost: accepted from its sender, and never received, although all faults have ended;
#: undetected: lost, and neither end has reported anything within REPORTED_WITHIN seconds;
#: doubled: received twice, although the receiver has not crashed in between;
#: reordered: received after a later one;
#: wrong: received with content that nobody has sent;
#: stuck: a sender could not send in time, although all faults had ended;
#: error: an exception that should not have happened.
Finding = Literal["lost", "undetected", "doubled", "reordered", "wrong", "stuck", "error"]
FINDINGS: Sequence[Finding] = ("lost", "undetected", "doubled", "reordered", "wrong", "stuck", "error")

#: Seconds within which an end has to report a loss: two beacons of an idle channel, which are at most 10 minutes apart,
#: and the longest outage.
REPORTED_WITHIN = 1500.0
#: Numbers of messages that a finding lists; the rest is counted.
LISTED = 5
#: The shortest and the longest filler of a message, in bytes.
FILLERS = (0, 16, 64, 400)


def payload_of(flow: str, number: int) -> bytes:
    """Return the content of a message, which its flow and number determine."""
    name = f"{flow} {number}".encode()
    filler = blake2b(name).hexdigest().encode() * 4
    return name + b" " + filler[: FILLERS[number % len(FILLERS)]]


def number_of(payload: bytes) -> tuple[str, int] | None:
    """Return the flow and the number of a message; None if it has another content than when it was sent."""
    parts = payload.rsplit(b" ", 2)
    if len(parts) != 3 or not parts[1].isdigit():
        return None
    flow, number = parts[0].decode(errors="replace"), int(parts[1])
    return (flow, number) if payload_of(flow, number) == payload else None


@attrs.frozen
class Report:
    """Something that a node reported about the messages that pass it: a verdict, or the end of a channel."""

    at: float
    node: str
    what: str


@attrs.define(eq=False)
class Ledger:
    """The messages of one flow in one direction."""

    name: str
    #: The nodes that send them, and those that can receive them.
    senders: frozenset[str]
    receivers: frozenset[str]
    #: The number that the next new message gets.
    next_number: int = 0
    accepted: dict[int, float] = attrs.Factory(dict)
    received: dict[int, float] = attrs.Factory(dict)
    #: Accepted, not received, and expected.
    expected: set[int] = attrs.Factory(set)
    #: Messages below this number may be missing for ever: their sender has lost its memory.
    excused_below: int = 0
    #: Messages below this number may come again: their receiver has lost its memory.
    repeatable_below: int = 0
    #: Copies of messages that came again after a crash of their receiver.
    repeated: int = 0
    found: Counter[str] = attrs.Factory(Counter)
    examples: list[str] = attrs.Factory(list)
    highest: int = -1

    def begin(self) -> int:
        """Return the number of a new message."""
        self.next_number += 1
        return self.next_number - 1

    def accept(self, number: int, now: float) -> None:
        """Note that the sender's call has returned: from now on the message is promised."""
        self.accepted.setdefault(number, now)
        if number not in self.received and number >= self.excused_below:
            self.expected.add(number)

    def receive(self, number: int, now: float) -> bool:
        """Note that a message was received, and return whether it was for the first time."""
        if number in self.received:
            if number < self.repeatable_below:
                self.repeated += 1
            else:
                self.find("doubled", f"{self.name} {number}, first received at {self.received[number]:.3f}")
            return False
        self.received[number] = now
        self.expected.discard(number)
        if number < self.highest:
            self.find("reordered", f"{self.name} {number}, received after {self.highest}")
        self.highest = max(self.highest, number)
        return True

    def excuse(self, below: int) -> None:
        """Expect no message below a number any more."""
        self.excused_below = max(self.excused_below, below)
        self.expected = {number for number in self.expected if number >= below}

    def may_repeat(self) -> None:
        """Allow that all messages that were received until now come again."""
        self.repeatable_below = self.highest + 1

    @property
    def forgotten(self) -> int:
        """Messages that were accepted by a sender which then crashed, and never received."""
        return sum(number < self.excused_below for number in self.accepted.keys() - self.received.keys())

    def find(self, finding: Finding, example: str) -> None:
        """Note something that should not have happened."""
        self.found[finding] += 1
        if self.found[finding] <= LISTED:
            self.examples.append(f"{finding}: {example}")


@attrs.define(eq=False)
class Flow:
    """Both directions of the messages from one node to a worker."""

    there: Ledger
    #: None if messages are not answered.
    back: Ledger | None
    #: The first message after each burst.
    burst_ends: list[int] = attrs.Factory(list)

    @property
    def ledgers(self) -> tuple[Ledger, ...]:
        """The ledgers of both directions."""
        return (self.there,) if self.back is None else (self.there, self.back)

    def seconds_of_bursts(self) -> Iterator[tuple[int, float]]:
        """Yield the messages of each burst, and the seconds from the first sent to the last received."""
        first = 0
        for end in self.burst_ends:
            numbers = range(first, end)
            arrived = [self.there.received[number] for number in numbers if number in self.there.received]
            if arrived and first in self.there.accepted:
                yield len(arrived), max(arrived) - self.there.accepted[first]
            first = end


class Oracle:
    """Everything that was sent, received and reported in one run."""

    def __init__(self, flows: dict[str, Flow]) -> None:
        self.flows = flows
        self.reports: list[Report] = []
        self.found: Counter[str] = Counter()
        self.examples: list[str] = []
        #: When nothing could be delivered: partitions, and times in which a node was down.
        self.outages: list[tuple[float, float]] = []
        self._changed = trio.Event()

    def ledgers(self) -> Iterator[Ledger]:
        """Yield the ledgers of all flows."""
        for flow in self.flows.values():
            yield from flow.ledgers

    # What happens

    def take(self, payload: bytes, node: str) -> tuple[Flow, int, bool] | None:
        """Note a message that a worker received; return its flow, its number, and whether it came for the first time."""
        known = self._known(payload, node)
        if known is None:
            return None
        flow, number = known
        is_first = flow.there.receive(number, trio.current_time())
        self._wake()
        return flow, number, is_first

    def take_answer(self, payload: bytes, node: str) -> None:
        """Note an answer that a sender received."""
        known = self._known(payload, node)
        if known is not None and known[0].back is not None:
            known[0].back.receive(known[1], trio.current_time())
            self._wake()

    def _known(self, payload: bytes, node: str) -> tuple[Flow, int] | None:
        found = number_of(payload)
        if found is None or found[0] not in self.flows:
            self.find("wrong", f"{node} received {payload[:64]!r} of {len(payload)} bytes")
            return None
        return self.flows[found[0]], found[1]

    def crashed(self, node: str) -> None:
        """Note that a node has lost its memory."""
        for flow in self.flows.values():
            there, back = flow.there, flow.back
            if node in there.senders:
                for ledger in flow.ledgers:  # who has asked is gone, so answers to it reach nobody
                    ledger.excuse(there.next_number)
            if node in there.receivers:
                there.may_repeat()
                if back is not None:
                    back.excuse(there.next_number)
        self._wake()

    def report(self, node: str, what: str) -> None:
        """Note what a node reports to its application."""
        self.reports.append(Report(trio.current_time(), node, what))

    def find(self, finding: Finding, example: str) -> None:
        """Note something that should not have happened."""
        self.found[finding] += 1
        if self.found[finding] <= LISTED:
            self.examples.append(f"{finding}: {example}")

    # Waiting

    def _wake(self) -> None:
        if not self.is_settled:
            return
        self._changed.set()
        self._changed = trio.Event()

    @property
    def is_settled(self) -> bool:
        """Whether every message that is expected was received."""
        return not any(ledger.expected for ledger in self.ledgers())

    async def wait_settled(self) -> None:
        """Wait until every message that is expected was received."""
        while not self.is_settled:
            await self._changed.wait()

    # The result

    def conclude(self) -> None:
        """Note the messages that are missing at the end, when no fault is left."""
        for ledger in self.ledgers():
            for number in sorted(ledger.expected):
                accepted = ledger.accepted[number]
                ledger.find("lost", f"{ledger.name} {number}, accepted at {accepted:.3f}")
                if not self._is_reported(ledger, accepted):
                    ledger.find("undetected", f"{ledger.name} {number}, accepted at {accepted:.3f}")
            self.found += ledger.found
            self.examples += ledger.examples

    def _is_reported(self, ledger: Ledger, since: float) -> bool:
        ends = ledger.senders | ledger.receivers
        return any(report.node in ends and since <= report.at <= since + REPORTED_WITHIN for report in self.reports)

    def slowest(self) -> float:
        """Return the longest time from acceptance to receipt, without the time that outages lasted."""
        merged = _merged(self.outages)
        return max(
            (
                _without(merged, ledger.accepted[number], received)
                for ledger in self.ledgers()
                for number, received in ledger.received.items()
                if number in ledger.accepted
            ),
            default=0.0,
        )


def _merged(spans: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    merged: list[tuple[float, float]] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _without(spans: Sequence[tuple[float, float]], start: float, end: float) -> float:
    """Return the length of a span without the parts that others cover."""
    length = end - start
    for index in range(bisect_right(spans, (end, end)) - 1, -1, -1):
        if spans[index][1] <= start:
            break
        length -= max(0.0, min(end, spans[index][1]) - max(start, spans[index][0]))
    return length
