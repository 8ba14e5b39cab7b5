"""What a running node keeps open: links, streams, relays, channels and inlets, opened as soon as they can be, and again whenever they were lost."""

import random
from collections.abc import Awaitable, Callable
from logging import INFO, WARNING
from typing import Generic, Never, TypeVar

import trio

from trionode.errors import ConnectionLost, RemoteError, TrionodeError, UnknownAddressError
from trionode.log import log, sanitize
from trionode.net.backoff import STEADY_SECONDS
from trionode.topology.run.startup_order import Part

#: Seconds before the next try, the last for ever; each takes between a half and all of it, so that those who lost the same hub don't come back at once.
PAUSES = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)

#: Characters of a reason that one log line shows: it is a sentence or two of ours, in which what a remote chose has been cut already.
MAX_REASON = 2000

T = TypeVar("T")


class Kept(Generic[T]):
    """Something that is open, or is being opened."""

    def __init__(self, part: Part) -> None:
        #: What it is; in messages `nodes.alice.secure_channels.bob`.
        self.part = part
        #: Why it is not open.
        self.reason = "it has not been opened yet"
        #: Set once it was opened, or could not be: who only would like it to be there waits no longer.
        self.tried = trio.Event()
        self._value: T | None = None
        self._openings = trio.lowlevel.ParkingLot()
        self._told: set[type[Exception]] = set()

    @property
    def is_open(self) -> bool:
        """Whether it is open now."""
        return self._value is not None

    @property
    def value(self) -> T:
        """What is open; ConnectionLost while it is being opened."""
        if self._value is None:
            raise ConnectionLost(f"{self.part} is not open, and is being opened: {self.reason}")
        return self._value

    async def opened(self, *, but: object = None) -> T:
        """Wait until it is open, and another one than some former."""
        while self._value is None or self._value is but:
            await self._openings.park()
        return self._value

    async def keep(
        self,
        open_: Callable[[int], Awaitable[T]],
        ended: Callable[[T], Awaitable[object]],
        *,
        rising: tuple[type[TrionodeError], ...] = (),
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> Never:
        """Open it, and again whenever it has `ended`; `started` is told once it was open. `open_` gets the number of tries that failed before.

        Whatever remotes do is tried again, and each new kind of reason is told once; but what is `rising` before it was ever open rises, with the name of
        the part, as does whatever this program did wrong.
        """
        failed, was_open = 0, False
        while True:
            try:
                value = await open_(failed)
            except (RemoteError, UnknownAddressError) as error:
                if isinstance(error, rising) and not was_open:
                    raise type(error)(f"{self.part}: {error}") from error
                self._be_without(error)
                failed += 1
                await _pause(failed)
                continue
            self._be_open(value)
            if not was_open:
                was_open = True
                task_status.started()
            since = trio.current_time()
            await ended(value)
            log.info("%s was lost", self.part)
            self._value, self.reason = None, "it was lost"
            # Who lets itself be opened and then ends it is no better than one that is away.
            failed = 1 if trio.current_time() - since >= STEADY_SECONDS else failed + 1
            await _pause(failed)

    def _be_open(self, value: T) -> None:
        self._value = value
        self._openings.unpark_all()
        self.tried.set()
        log.log(INFO if not self._told else WARNING, "%s is open", self.part)
        self._told.clear()

    def _be_without(self, error: Exception) -> None:
        self.reason = str(error)
        self.tried.set()
        if type(error) not in self._told:  # not by the text, whose words a remote may choose anew each time
            self._told.add(type(error))
            log.warning("%s is not open, and is tried again until it is: %s", self.part, sanitize(error, MAX_REASON))


async def _pause(failed: int) -> None:
    await trio.sleep(PAUSES[min(failed, len(PAUSES)) - 1] * random.uniform(0.5, 1.0))  # noqa: S311  # it spreads load
