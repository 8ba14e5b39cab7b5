"""Exponential backoff: how long to wait before the next try, and the loop that connects again."""

import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from trionode.errors import RemoteError, UnknownAddressError

#: Seconds that a connection lasts before its loss counts as the first failure. A peer that accepts connections and
#: closes them at once is no better than a peer that is away.
STEADY_SECONDS = 1.0
#: Seconds before the second try, short because a hub that restarts is back soon; and the longest delay that doubling
#: leads to.
FIRST_DELAY = 0.1
LONGEST_DELAY = 5.0

T = TypeVar("T")


class Backoff:
    """The delays between tries: each twice as long as the one before, up to a longest one, and shortened at random.

    It reads no clock and does not sleep: you report each event to it, and it returns the delay.
    """

    __slots__ = ("_first", "_jitter", "_longest", "_peers", "failures")

    def __init__(
        self, first: float = FIRST_DELAY, longest: float = LONGEST_DELAY, *, jitter: float = 0.2, peers: int = 1
    ) -> None:
        """Begin without failures.

        Args:
          first: The delay after the first failure, seconds.
          longest: The delay at which doubling stops, seconds.
          jitter: The share of a delay, 0 to 1, that chance may take off. It spreads the clients of a peer that
              restarts.
          peers: Peers that are tried in turn. The delay doubles once all of them have failed again.
        """
        self._first = first
        self._longest = longest
        self._jitter = jitter
        self._peers = peers
        #: Failures in a row.
        self.failures = 0

    def failed(self) -> float:
        """Count a failure.

        Returns:
          The seconds to wait before the next try.
        """
        # The exponent is bounded, since 2.0 ** 1024 overflows.
        doublings = min(self.failures // self._peers, 30)
        self.failures += 1
        delay: float = min(self._first * 2.0**doublings, self._longest)
        return delay * random.uniform(1.0 - self._jitter, 1.0)  # noqa: S311  # it spreads load and hides nothing

    def ended(self, lasted: float) -> float:
        """Count the end of a connection: the first failure if it lasted for STEADY_SECONDS, else one more in the row.

        Args:
          lasted: Seconds that the connection was of use.

        Returns:
          The seconds to wait before the next try.
        """
        if lasted >= STEADY_SECONDS:
            self.failures = 0
        return self.failed()

    def reset(self) -> None:
        """Begin again with the first delay, after a success."""
        self.failures = 0


async def reconnect(
    connect: Callable[[], Awaitable[T]],
    use: Callable[[T], Awaitable[bool]],
    failed: Callable[[RemoteError | UnknownAddressError, float], bool],
    backoff: Backoff,
) -> None:
    """Connect, use the connection until it ends, and connect again, with a delay before each further try.

    Args:
      connect: Opens the connection. A RemoteError or UnknownAddressError counts as a failure; every other exception
          propagates.
      use: Uses the connection, and returns when it has ended. It returns whether the connection was of any use: a peer
          that never answered counts as failed, however long the connection lasted.
      failed: Takes the error and the seconds until the next try, for the log; returns whether to try again. What it
          raises propagates.
      backoff: The delays.

    Returns:
      When `failed` returned False.

    If cancelled, `connect` or `use` is cancelled, and nothing more is tried.
    """
    while True:
        try:
            connection = await connect()
        except (RemoteError, UnknownAddressError) as error:
            delay = backoff.failed()
            if not failed(error, delay):
                return
        else:
            since = trio.current_time()
            useful = await use(connection)
            delay = backoff.ended(trio.current_time() - since if useful else 0.0)
        await trio.sleep(delay)
