"""How a command runs, is stopped by signals, and fails: exit codes, one clear line for every expected error, and an end in bounded time."""

import os
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from types import FrameType
from typing import NoReturn

import trio

from trionode.cli.terminal import say
from trionode.errors import TrionodeError

#: Seconds from a signal until whatever still closes is cancelled.
CLOSE_SECONDS = 0.8
#: Seconds from a signal until the process ends, whatever hangs: a hub, a broker, a thread that nobody can cancel.
LAST_SECONDS = 1.2

_OURS = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})

#: What SIGHUP leads to, once a command has closed in order: it takes the place of this process.
BeginAnew = Callable[[], NoReturn]

#: What a command is: it works within the scope that it is given, which a signal cancels, then closes in order, and says whether all went well.
Command = Callable[[trio.CancelScope], Awaitable[bool]]


class _Signals:
    """SIGINT, SIGTERM and SIGHUP: the first asks the command to end and sets the clock, the second ends the process at once.

    After SIGHUP a command that can begin anew does, but for one that comes because its terminal is gone. Where it is ignored from the start, as by
    nohup, it stays so. These are Python's own handlers and not Trio's receiver: they run even while the Trio thread is stuck in a system call or a long loop.
    """

    def __init__(self, begin_anew: BeginAnew | None) -> None:
        self.received = 0
        self._begin_anew = begin_anew
        self._had_terminal = _has_terminal()
        self._arrived = threading.Event()
        self._end: Callable[[], None] | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        threading.Thread(target=self._watch, name="last resort", daemon=True).start()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            signal.signal(signal.SIGHUP, self._handle)
        # One that came while the process before this one made room for it has waited.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _OURS)

    def call(self, end: Callable[[], None]) -> None:
        """Call `end` in the Trio thread once a signal has come."""
        self._end, self._token = end, trio.lowlevel.current_trio_token()
        if self.received:
            end()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        if number == signal.SIGHUP and self._had_terminal and not _has_terminal():
            self._begin_anew = None
        if number == signal.SIGHUP == self.received:
            return
        if self.received not in {0, signal.SIGHUP}:
            os._exit(128 + number)
        if number != signal.SIGHUP:
            self._begin_anew = None
        self.received = number
        self._arrived.set()
        if self._end is not None and self._token is not None:
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._end)

    def _watch(self) -> None:
        # They are the main thread's: of two that come at the same time by two threads, either could be the first.
        signal.pthread_sigmask(signal.SIG_BLOCK, _OURS)
        self._arrived.wait()
        time.sleep(LAST_SECONDS)  # no synchronisation: it is the clock itself
        with suppress(OSError):
            os.write(2, b"ended without closing in order: something did not answer\n")
        self.finish()
        os._exit(128 + self.received)

    def finish(self) -> None:
        """Begin anew, if that is what a signal asked for."""
        if self.received == signal.SIGHUP and self._begin_anew is not None:
            # Until the next one listens to signals, one more would end it.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
            self._begin_anew()


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def run(command: Command, *, begin_anew: BeginAnew | None = None) -> NoReturn:
    """Run a command under Trio and exit: 0 if it says that all went well, 1 if not, 130 after SIGINT, 143 after SIGTERM, 129 after SIGHUP.

    All three end it in order and in bounded time; with `begin_anew` that is called after SIGHUP.
    """
    signals = _Signals(begin_anew)

    async def whole() -> bool:
        working = trio.CancelScope()
        with trio.CancelScope() as everything:

            def end() -> None:
                working.cancel()
                everything.deadline = trio.current_time() + CLOSE_SECONDS

            signals.call(end)
            return await command(working)
        return False

    try:
        well = trio.run(whole)
    except (TrionodeError, BaseExceptionGroup) as error:
        leaves = list(_leaves(error))
        # What nobody foresaw keeps its traceback: it is a mistake of ours, and the traceback is where to look.
        if not all(isinstance(leaf, TrionodeError) for leaf in leaves):
            raise
        if not signals.received:
            for text in dict.fromkeys(map(str, leaves)):
                say(f"error: {text}")
        well = False
    signals.finish()
    sys.exit(128 + signals.received if signals.received else 0 if well else 1)


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _leaves(each)
    else:
        yield error
