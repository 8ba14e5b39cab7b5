"""The faults of a faulty network, and the log of those that occurred."""

import math
from collections.abc import Callable, Sequence
from random import Random
from typing import TypeVar

import attrs
import trio

from trionode.errors import ConfigError

#: Seconds that a frame waits to be overtaken. Then it is delivered: to lose the last frame of a link would be another
#: fault.
OVERTAKEN_WITHIN = 1.0

Number = TypeVar("Number", int, float)


@attrs.frozen
class Fate:
    """The fate of a frame; made by the methods of `Frame`."""

    #: The name of the fault in the log.
    what: str
    #: The frames that are delivered in its place.
    frames: tuple[bytes, ...] = attrs.field(repr=False)
    #: Seconds until they are delivered. Other frames pass them in that time.
    delay: float = 0.0
    #: How many frames pass them.
    overtaken_by: int = 0


@attrs.frozen
class Frame:
    """A frame on its way from one node to another; a rule decides what becomes of it."""

    sender: str
    receiver: str
    #: The number of the link between the two nodes, from 1.
    link: int
    #: The number of the frame in this direction of the link, from 1.
    number: int
    data: bytes = attrs.field(repr=False)

    def dropped(self) -> Fate:
        """Drop the frame.

        Returns:
          The fate, for a rule.
        """
        return Fate("drop", ())

    def duplicated(self) -> Fate:
        """Deliver the frame twice.

        Returns:
          The fate, for a rule.
        """
        return Fate("duplicate", (self.data, self.data))

    def replaced(self, *frames: bytes) -> Fate:
        """Deliver other frames in its place.

        Args:
          frames: The other frames.

        Returns:
          The fate, for a rule.
        """
        return Fate("replace", frames)

    def corrupted(self, bit: int) -> Fate:
        """Flip one bit of the frame.

        Args:
          bit: Its number from 0, which is the lowest bit of the first byte.

        Returns:
          The fate, for a rule.
        """
        index, data = bit // 8, bytearray(self.data)
        data[index] ^= 1 << bit % 8
        return Fate("corrupt", (bytes(data),))

    def delayed(self, seconds: float) -> Fate:
        """Deliver the frame later. Other frames pass it.

        Args:
          seconds: How much later.

        Returns:
          The fate, for a rule.
        """
        return Fate("delay", (self.data,), delay=seconds)

    def overtaken(self, by: int) -> Fate:
        """Deliver frames that are sent later first.

        Args:
          by: How many; fewer if they do not come within OVERTAKEN_WITHIN seconds.

        Returns:
          The fate, for a rule.
        """
        return Fate("reorder", (self.data,), overtaken_by=by)


#: Decides what becomes of a frame; None leaves it to the probabilities.
Rule = Callable[[Frame], Fate | None]


def _probability(_: object, attribute: "attrs.Attribute[float]", value: float) -> None:
    if not 0 <= value <= 1:
        raise ConfigError(f"{attribute.name} is a probability, from 0 to 1; this is {value!r}")


def _positive(_: object, attribute: "attrs.Attribute[Number]", value: Number) -> None:
    if not value > 0:
        raise ConfigError(f"{attribute.name} has to be more than 0; this is {value!r}")


def _not_negative(_: object, attribute: "attrs.Attribute[float]", value: float) -> None:
    if not value >= 0:
        raise ConfigError(f"{attribute.name} has to be 0 or more; this is {value!r}")


@attrs.frozen(kw_only=True)
class Faults:
    """What happens to frames in one direction.

    A frame has at most one fault: what the rule says, else the first of the random ones that occurs. Links keep whole
    frames in order. So these are not the faults of a wire, but of a hub or proxy that is hostile or broken.

    Raises:
      ConfigError: For a probability outside of 0 to 1, or an amount that is not positive.
    """

    #: Decides first.
    rule: Rule | None = None
    #: The probability, from 0 to 1, that a frame is dropped, delivered twice, overtaken, delayed, or has a bit flipped.
    drop: float = attrs.field(default=0.0, validator=_probability)
    duplicate: float = attrs.field(default=0.0, validator=_probability)
    reorder: float = attrs.field(default=0.0, validator=_probability)
    delay: float = attrs.field(default=0.0, validator=_probability)
    corrupt: float = attrs.field(default=0.0, validator=_probability)
    #: The largest number of frames that overtake a reordered one.
    overtaken_by: int = attrs.field(default=3, validator=_positive)
    #: The longest delay of a delayed frame, in seconds.
    delayed_by: float = attrs.field(default=1.0, validator=_positive)
    #: Seconds that every frame takes. Frames stay in order.
    latency: float = attrs.field(default=0.0, validator=_not_negative)
    #: Bytes a second.
    rate: float = attrs.field(default=math.inf, validator=_positive)
    _is_random: bool = attrs.field(init=False, repr=False, eq=False)

    def __attrs_post_init__(self) -> None:
        is_random = any((self.drop, self.duplicate, self.reorder, self.delay, self.corrupt))
        object.__setattr__(self, "_is_random", is_random)  # the class is frozen

    def fate(self, frame: Frame, random: Random) -> Fate | None:
        """Decide what becomes of a frame.

        The result depends only on the frame and the random numbers, so another fault does not change it.

        Args:
          frame: The frame.
          random: Random numbers of this frame alone.

        Returns:
          The fate; None if nothing happens to the frame.
        """
        return self._fate(frame, lambda: [random.random() for _ in range(8)])

    def _fate(self, frame: Frame, numbers: Callable[[], Sequence[float]]) -> Fate | None:
        """Decide by eight numbers from 0 to 1, which are made only if they are needed."""
        if self.rule is not None and (fate := self.rule(frame)) is not None:
            return fate
        if not self._is_random:
            return None
        drop, duplicate, reorder, delay, corrupt, by, late, bit = numbers()
        if drop < self.drop:
            return frame.dropped()
        if duplicate < self.duplicate:
            return frame.duplicated()
        if reorder < self.reorder:
            return frame.overtaken(1 + int(by * self.overtaken_by))
        if delay < self.delay:
            return frame.delayed(late * self.delayed_by)
        if corrupt < self.corrupt:
            return frame.corrupted(int(bit * len(frame.data) * 8))
        return None


NO_FAULTS = Faults()


def _now() -> float:
    return trio.current_time() if trio.lowlevel.in_trio_run() else 0.0


@attrs.frozen
class Event:
    """Something that the network did.

    Events are equal if the same happened to the same frame, links or node, at any time.
    """

    #: drop, duplicate, reorder, delay, corrupt, replace; cut, partition, heal; crash, restart.
    what: str
    #: The direction, such as `alice → bob`, or the nodes.
    target: str
    #: The numbers of the link and the frame; 0 if it happened to no frame.
    link: int = 0
    number: int = 0
    #: Trio's clock; 0 outside of Trio.
    at: float = attrs.field(factory=_now, eq=False)

    def __str__(self) -> str:
        frame = f", link {self.link}, frame {self.number}" if self.number else ""
        return f"{self.at:10.3f} {self.what}: {self.target}{frame}"
