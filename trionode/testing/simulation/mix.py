"""What goes wrong in a simulation, and how often; and the plan that a seed makes of it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from heapq import merge
from random import Random
from typing import Literal

import attrs

from trionode.errors import ConfigError
from trionode.testing.faults import Faults, _probability

#: What happens to links, nodes and clocks, beside the faults of frames.
OutageKind = Literal["cut", "partition", "crash", "clock"]
#: Mean seconds that a partition lasts, and that a crashed node is down.
PARTITION_SECONDS = 20.0
DOWN_SECONDS = 10.0
#: The longest of both.
LONGEST_SECONDS = 300.0
#: Of all crashes, the share in which the peers do not notice at first, as after a loss of power.
SILENT_SHARE = 0.3
#: The longest jump of the wall clock, in seconds.
LONGEST_JUMP = 7200.0


def _names(value: Iterable[str]) -> tuple[str, ...]:
    return tuple(value)


def _rate(_: object, attribute: "attrs.Attribute[float]", value: float) -> None:
    if not value >= 0:
        raise ConfigError(f"{attribute.name} is a number of times an hour, 0 or more; this is {value!r}")


@attrs.frozen(kw_only=True)
class FaultMix:
    """What goes wrong in a simulation, and how often.

    Attributes:
      drop: The probability that a frame is dropped, from 0 to 1, as in `Faults`.
      duplicate: The probability that it is delivered twice.
      reorder: The probability that up to three others overtake it.
      delay: The probability that it is late, by up to one second.
      corrupt: The probability that one of its bits is flipped.
      forget: The probability that a hub confirms a record of a stream and does not keep it.
      latency: Seconds that each frame takes.
      cuts: How often in an hour a link is lost.
      partitions: How often in an hour nothing passes between some nodes for a while.
      crashes: How often in an hour a node ends abruptly; it starts again with the keys and stores that it has.
      crashing: The names of the nodes that crash; () for all.
      clock_jumps: How often in an hour the wall clock of all nodes jumps, to up to two hours before or after the time.

    Raises:
      ConfigError: For a probability outside of 0 to 1, or a negative rate.
    """

    drop: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    delay: float = 0.0
    corrupt: float = 0.0
    forget: float = attrs.field(default=0.0, validator=_probability)
    latency: float = 0.01
    cuts: float = attrs.field(default=0.0, validator=_rate)
    partitions: float = attrs.field(default=0.0, validator=_rate)
    crashes: float = attrs.field(default=0.0, validator=_rate)
    crashing: tuple[str, ...] = attrs.field(default=(), converter=_names)
    clock_jumps: float = attrs.field(default=0.0, validator=_rate)

    def __attrs_post_init__(self) -> None:
        self.faults()  # it checks the probabilities

    def faults(self) -> Faults:
        """Return the faults of frames.

        Returns:
          The faults, for `FaultyNetwork.set_faults`.
        """
        return Faults(
            drop=self.drop,
            duplicate=self.duplicate,
            reorder=self.reorder,
            delay=self.delay,
            corrupt=self.corrupt,
            latency=self.latency,
        )

    def without_faults(self) -> "FaultMix":
        """Return a mix with the same latency, in which nothing goes wrong.

        Returns:
          The mix.
        """
        return FaultMix(latency=self.latency)


#: The mix of a simulation that names no fault.
STANDARD_MIX = FaultMix(
    drop=0.02,
    duplicate=0.02,
    reorder=0.02,
    delay=0.02,
    corrupt=0.02,
    forget=0.01,
    cuts=4.0,
    partitions=2.0,
    crashes=2.0,
    clock_jumps=1.0,
)


#: The mix of the campaign.
CAMPAIGN_MIX = attrs.evolve(STANDARD_MIX, drop=0.03, duplicate=0.03, reorder=0.03, delay=0.03, corrupt=0.03)

#: The attribute of a mix with the rate of each kind of outage.
RATES: Mapping[str, str] = {"cut": "cuts", "partition": "partitions", "clock_jump": "clock_jumps"}


@attrs.frozen
class Outage:
    """Something that happens to links, a node or the clock."""

    at: float
    kind: OutageKind
    #: A number from 0 to 1 that chooses the link or the node.
    choice: float
    #: Seconds that it lasts, or by which the wall clock is wrong from then on.
    seconds: float = 0.0
    #: Whether the peers of a crashed node do not notice.
    is_silent: bool = False


def plan_outages(mix: FaultMix, seconds: float, random: Random) -> Iterator[Outage]:
    """Yield the outages of a run in order. Each kind has random numbers of its own."""
    rates: Sequence[tuple[OutageKind, float]] = (
        ("cut", mix.cuts),
        ("partition", mix.partitions),
        ("crash", mix.crashes),
        ("clock", mix.clock_jumps),
    )
    seeds = [random.random() for _ in rates]
    plans = [
        _plan(kind, rate / 3600, seconds, Random(seed))  # noqa: S311  # random numbers that can be repeated
        for (kind, rate), seed in zip(rates, seeds, strict=True)
        if rate
    ]
    return merge(*plans, key=lambda outage: outage.at)


def _plan(kind: OutageKind, rate: float, seconds: float, random: Random) -> Iterator[Outage]:
    at = random.expovariate(rate)
    while at < seconds:
        choice, is_silent = random.random(), random.random() < SILENT_SHARE
        lasts = 0.0
        match kind:
            case "partition" | "crash":
                mean = PARTITION_SECONDS if kind == "partition" else DOWN_SECONDS
                lasts = min(random.expovariate(1 / mean), LONGEST_SECONDS)
            case "clock":
                lasts = random.uniform(-LONGEST_JUMP, LONGEST_JUMP)
            case "cut":
                pass
        yield Outage(at, kind, choice, lasts, is_silent)
        at += random.expovariate(rate)


@attrs.frozen
class Burst:
    """Messages that one sender sends one after the other."""

    at: float
    messages: int


def plan_bursts(messages: int, seconds: float, interval: float, random: Random) -> list[Burst]:
    """Return bursts of 1 to 100 messages at random times, in order.

    The last burst begins early enough to be over in time.
    """
    sizes: list[int] = []
    left = messages
    while left:
        sizes.append(min(left, random.randint(1, 100)))
        left -= sizes[-1]
    starts = sorted(random.uniform(0.0, max(0.0, seconds - 100 * interval)) for _ in sizes)
    return [Burst(at, size) for at, size in zip(starts, sizes, strict=True)]
