"""How long to wait for an answer before sending again, from measured round trips (RFC 6298)."""

from typing import Final

#: Seconds that are waited at first, before a round trip was measured (RFC 6298 §2.1).
INITIAL: Final = 1.0
#: Shortest wait in seconds. RFC 6298 (§2.4) asks for 1 s, to tolerate TCP receivers that delay acknowledgements by up
#: to 0.5 s. Our peers answer at once, and 0.2 s, the floor of Linux, tolerates their scheduling and a sync to disk.
FLOOR: Final = 0.2
#: Longest wait in seconds, however often it was doubled (RFC 6298 §2.4 allows a maximum of at least 60 s).
LONGEST: Final = 60.0

# The weights of RFC 6298 §2.3. Powers of two, so the arithmetic is exact for most inputs.
_SMOOTHED_GAIN = 1 / 8
_VARIATION_GAIN = 1 / 4
_VARIATIONS = 4


class RoundTrip:
    """The round trip of one route: estimated from samples, and doubled while nothing is answered.

    It reads no clock. Give it a sample only for a message that was sent once (Karn's rule): an answer to one that was
    sent again does not show which copy it answers. An answer that names its copy, such as the echo of a time stamp, is
    a sample always.

    When the route changes, begin with a new object.
    """

    __slots__ = ("_doublings", "_variation", "shortest", "smoothed")

    def __init__(self) -> None:
        #: The smoothed round trip in seconds; None before the first sample.
        self.smoothed: float | None = None
        #: The shortest sample in seconds; None before the first.
        self.shortest: float | None = None
        self._variation = 0.0
        self._doublings = 0

    def sample(self, seconds: float) -> None:
        """Take a measured round trip. It ends the doubling of `backoff`.

        Args:
          seconds: From sending a message to the arrival of its answer.
        """
        seconds = max(seconds, 0.0)
        self._doublings = 0
        if self.smoothed is None or self.shortest is None:
            self.smoothed = self.shortest = seconds
            self._variation = seconds / 2
            return
        self._variation += _VARIATION_GAIN * (abs(self.smoothed - seconds) - self._variation)
        self.smoothed += _SMOOTHED_GAIN * (seconds - self.smoothed)
        self.shortest = min(self.shortest, seconds)

    @property
    def timeout(self) -> float:
        """Seconds after which a message without an answer is sent again: from FLOOR to LONGEST."""
        wait = INITIAL if self.smoothed is None else max(self.smoothed + _VARIATIONS * self._variation, FLOOR)
        return min(wait * 2.0**self._doublings, LONGEST)

    def backoff(self) -> None:
        """Double the timeout: it has passed without an answer."""
        if self.timeout < LONGEST:
            self._doublings += 1
