"""Parts of a running node that stay open: each is opened as soon as possible, and again whenever it is lost."""

from collections.abc import Awaitable, Callable
from logging import INFO, WARNING
from typing import Generic, TypeVar

import trio

from trionode.errors import ConnectionLost, RemoteError, TrionodeError, UnknownAddressError
from trionode.log import log, sanitize
from trionode.net.backoff import Backoff, reconnect
from trionode.topology.run.startup_order import Part

#: Seconds before the second try. It is short, since the nodes of a topology often start at the same time.
FIRST_DELAY = 0.05
#: Characters of a reason in one log line. A reason is one or two sentences of ours, in which text from a peer is
#: already cut.
MAX_REASON = 2000

T = TypeVar("T")


class Supervised(Generic[T]):
    """A part of a node that is open, or is being opened."""

    def __init__(
        self,
        part: Part,
        open_: Callable[[int], Awaitable[T]],
        ended: Callable[[T], Awaitable[object]],
        *,
        fatal: tuple[type[TrionodeError], ...] = (),
    ) -> None:
        """Describe the part; `run` opens it.

        Args:
          part: Names the part in messages, as in `nodes.alice.secure_channels.bob`.
          open_: Opens the part; takes the number of failures in a row.
          ended: Waits until an open part has ended.
          fatal: Errors that leave `run` if they come before the part was open for the first time. All other errors of
              peers are retried.
        """
        self.part = part
        #: Why the part is not open.
        self.reason = "it has not been opened yet"
        #: Set after the first try, successful or not.
        self.tried = trio.Event()
        self._open = open_
        self._ended = ended
        self._fatal = fatal
        self._value: T | None = None
        self._was_open = False
        self._waiters = trio.lowlevel.ParkingLot()
        self._logged: set[type[Exception]] = set()

    @property
    def is_open(self) -> bool:
        """Whether the part is open now."""
        return self._value is not None

    @property
    def value(self) -> T:
        """The open part; ConnectionLost while it is being opened."""
        if self._value is None:
            raise ConnectionLost(f"{self.part} is not open, and is being opened: {self.reason}")
        return self._value

    async def wait_open(self, *, other_than: object = None) -> T:
        """Wait until the part is open, and is another object than `other_than`."""
        while self._value is None or self._value is other_than:
            await self._waiters.park()
        return self._value

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the part open until cancelled; `started` is called when it is open for the first time."""
        backoff = Backoff(FIRST_DELAY)

        async def use(value: T) -> bool:
            self._set_open(value)
            if not self._was_open:
                self._was_open = True
                task_status.started()
            await self._ended(value)
            log.info("%s was lost", self.part)
            self._value, self.reason = None, "it was lost"
            return True

        def failed(error: RemoteError | UnknownAddressError, _delay: float) -> bool:
            if isinstance(error, self._fatal) and not self._was_open:
                raise type(error)(f"{self.part}: {error}") from error
            self._set_failed(error)
            return True

        await reconnect(lambda: self._open(backoff.failures), use, failed, backoff)

    def _set_open(self, value: T) -> None:
        self._value = value
        self._waiters.unpark_all()
        self.tried.set()
        log.log(WARNING if self._logged else INFO, "%s is open", self.part)
        self._logged.clear()

    def _set_failed(self, error: Exception) -> None:
        self.reason = str(error)
        self.tried.set()
        if type(error) not in self._logged:  # once for each type, since a peer can change the text each time
            self._logged.add(type(error))
            log.warning("%s is not open, and is retried: %s", self.part, sanitize(error, MAX_REASON))
