"""Supervision of workers: what happens when one raises an exception, and the queue of messages that were set aside."""

import traceback
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import attrs
import trio

from trionode.counters import Counters, DropReason
from trionode.errors import ConfigError, UndecodableText
from trionode.log import LogThrottle, log, sanitize
from trionode.net.backoff import LONGEST_DELAY, Backoff
from trionode.protocol.wire.address import Address
from trionode.protocol.wire.message import Message
from trionode.routing.mailbox import Mailbox
from trionode.routing.memory_channel import MemoryChannel, Receiver

#: What happens when a worker raises an exception: its node ends; the worker is called again after a delay; or the
#: message that it handled is set aside, and the worker is called again at once.
OnError: TypeAlias = Literal["end_node", "restart", "set_aside"]

#: Restarts of one worker within RESTART_PERIOD seconds, after which its next exception ends the node. The delays add up
#: to about 16 s, so a service that the worker needs has that time to come back; a mistake in the worker ends the node
#: within a minute, and does not hide in a log.
MAX_RESTARTS = 10
RESTART_PERIOD = 60.0
#: Bytes of the dead letters of one node, as in `MemoryChannel`. They are evidence for a person or a repair task, who
#: need the first ones of a fault and not all of them.
DEAD_LETTERS_BOUND = 1024 * 1024
#: Characters of the traceback in a dead letter. The end is kept, which has the exception.
MAX_TRACEBACK = 8192

#: Where this library is. A log line names the code that called it.
PACKAGE = str(Path(__file__).parents[1])


@attrs.frozen(eq=False)
class DeadLetter:
    """A message that was set aside, since its worker raised an exception while it handled it.

    Attributes:
      worker: The address of the worker.
      message: The message.
      error: The traceback, as text of at most 8192 characters. Its last line is the exception. The text of the exception
        may contain what a peer sent: `sanitize` it before you print it.
    """

    worker: Address
    message: Message
    error: str


class DeadLetters(Receiver[DeadLetter]):
    """The messages of one node that were set aside, oldest first. `Node.dead_letters` is the only way to get one.

    Use it as `async for letter in node.dead_letters:`. It holds about 1 MiB. When it is full, a further message is
    dropped and counted as `DropReason.DEAD_LETTERS_FULL`.
    """

    __slots__ = ("_letters",)

    def __init__(self) -> None:
        self._letters: MemoryChannel[DeadLetter] = MemoryChannel(DEAD_LETTERS_BOUND)

    def __len__(self) -> int:
        """How many messages wait to be read."""
        return len(self._letters)

    def __bool__(self) -> bool:
        return True

    async def receive(self) -> DeadLetter:
        """Wait for the next message that was set aside, and return it.

        Raises:
          trio.EndOfChannel: The node has ended, and everything was read.

        If cancelled, nothing is taken.
        """
        return await self._letters.receive()

    def _put(self, letter: DeadLetter) -> bool:
        """Add a message; False if there is no space."""
        if self._letters.size >= self._letters.bound:
            return False
        message = letter.message
        size = len(message.payload) + sum(map(len, message.onward)) + sum(map(len, message.back)) + len(letter.error)
        self._letters.put(letter, size)
        return True

    def _close(self) -> None:
        """Accept no more. Iteration ends when everything was read."""
        self._letters.close()


class Supervisor:
    """Calls one worker, and again when it has raised an exception, until it returns or its exception ends the node.

    Only an `Exception` is handled: cancellation, KeyboardInterrupt and SystemExit pass. A group of exceptions counts as
    one. From a group with a cancellation UndecodableText is taken out, since a peer must not make the node's end fail.
    """

    __slots__ = ("_backoff", "_counters", "_dead_letters", "_mailbox", "_on_error", "_restarts", "_throttle")

    def __init__(
        self,
        mailbox: Mailbox,
        on_error: OnError,
        *,
        stall_timeout: float,
        counters: Counters,
        dead_letters: DeadLetters,
    ) -> None:
        if on_error not in get_args(OnError):
            known = ", ".join(map(repr, get_args(OnError)))
            raise ConfigError(f"on_error is one of {known}; this is {on_error!r}")
        self._mailbox = mailbox
        self._on_error = on_error
        self._counters = counters
        self._dead_letters = dead_letters
        # Shorter than the stall timeout, so that links drop nothing while the worker waits to be called again.
        self._backoff = Backoff(longest=min(LONGEST_DELAY, stall_timeout / 2))
        #: The times of the last restarts.
        self._restarts: deque[float] = deque(maxlen=MAX_RESTARTS)
        self._throttle = LogThrottle()

    async def run(self, running: Awaitable[None], call: Callable[[], Awaitable[None]]) -> None:
        """Wait for a worker, and call it again as often as its exceptions and `on_error` demand.

        Args:
          running: The worker's first call.
          call: Calls the worker again.
        """
        while True:
            since = trio.current_time()
            try:
                await running
            except Exception as error:  # whatever a worker raises is decided about here
                delay = self._failed(error, trio.current_time() - since)
                if delay is None:
                    raise
            except BaseExceptionGroup as group:  # with a cancellation or an interrupt, so the worker ends
                undecodable, rest = group.split(UndecodableText)
                if undecodable is None or rest is None:
                    raise
                self._failed(undecodable, 0.0)
                raise rest from None
            else:
                return
            await trio.sleep(delay)
            running = call()

    def _failed(self, error: Exception, lasted: float) -> float | None:
        """Decide what an exception leads to: the seconds until the worker is called again, or None if the node ends."""
        message = self._mailbox._take_current()
        if _is_undecodable(error):  # the fault of a peer, so it never ends the node
            if message is not None:
                self._counters[DropReason.WORKER_TEXT_UNDECODABLE] += 1
                self._log(error, "the message is dropped")
                return 0.0
            # The text of another message, such as an answer that the worker asked for. There may be one in each call.
            self._log(error, "it is called again")
            return self._backoff.ended(lasted)
        if self._on_error == "set_aside" and message is not None:
            self._set_aside(message, error)
            return 0.0
        if self._on_error == "end_node" or not self._may_restart(error):
            return None
        if message is not None:
            self._counters[DropReason.WORKER_RAISED] += 1
        delay = self._backoff.ended(lasted)
        self._log(error, "it is called again")
        return delay

    def _set_aside(self, message: Message, error: Exception) -> None:
        text = "".join(traceback.format_exception(error))[-MAX_TRACEBACK:]
        if self._dead_letters._put(DeadLetter(self._mailbox.address, message, text)):
            self._counters[DropReason.WORKER_SET_ASIDE] += 1
            self._log(error, "the message is set aside")
        else:
            self._counters[DropReason.DEAD_LETTERS_FULL] += 1
            self._log(error, "the dead letters are full, and the message is dropped")

    def _may_restart(self, error: Exception) -> bool:
        """Whether one more restart is within the bound. If not, a note on the error says why the node ends."""
        now, times = trio.current_time(), self._restarts
        if len(times) == MAX_RESTARTS and now - times[0] < RESTART_PERIOD:
            error.add_note(f"the worker {self._mailbox.address} had {MAX_RESTARTS} restarts in {RESTART_PERIOD:g} s")
            return False
        times.append(now)
        return True

    def _log(self, error: Exception, effect: str) -> None:
        """Log an exception and its effect, once a minute for each effect. The counters have the number."""
        if self._throttle.is_due(effect, trio.current_time()):
            text = sanitize(f"{type(error).__name__}: {error}")
            log.warning("worker %s raised %s at %s: %s", self._mailbox.address, text, _place(error), effect)


def _is_undecodable(error: Exception) -> bool:
    """Whether an exception is UndecodableText, or a group of nothing else."""
    if isinstance(error, ExceptionGroup):
        return error.split(UndecodableText)[1] is None
    return isinstance(error, UndecodableText)


def _place(error: BaseException) -> str:
    """Return the line of the worker, or of a library below it, that an exception came from; of a group, its first."""
    if isinstance(error, BaseExceptionGroup):
        return _place(error.exceptions[0])
    frames = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    outside = [frame for frame in frames if not frame[0].startswith(PACKAGE)]
    file, line = (outside or frames)[-1]
    return f"{file}:{line}"
