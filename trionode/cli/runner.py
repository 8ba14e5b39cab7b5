"""How a command runs, how signals end it in bounded time, and how it fails: by exit codes and one-line errors."""

import os
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from functools import partial, wraps
from types import FrameType
from typing import Any, NoReturn

import trio

from trionode.cli.terminal import say
from trionode.errors import TrionodeError

#: Seconds from a signal until closing is cancelled.
CLOSE_SECONDS = 0.8
#: Seconds from a signal until the process ends, even if a hub, a broker or a thread hangs.
LAST_SECONDS = 1.2

_HANDLED = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})

#: Called after SIGHUP, when the command has closed in order; it replaces this process.
Restart = Callable[[], NoReturn]

#: An async command. It works within a scope that a signal cancels, closes in order, and returns whether it succeeded.
Command = Callable[[trio.CancelScope], Awaitable[bool]]


class _Signals:
    """Handlers of SIGINT, SIGTERM and SIGHUP.

    The first signal asks the command to end and starts the clock, the second ends the process at once.

    After SIGHUP a command restarts if it can, unless the signal came because its terminal is gone. If SIGHUP is ignored
    at the start, as nohup does, it stays ignored. The handlers are Python's, not Trio's receiver, so they run while the
    Trio thread is in a system call or a long loop.
    """

    def __init__(self, restart: Restart | None) -> None:
        self.received = 0
        self._restart = restart
        self._had_terminal = _has_terminal()
        self._arrived = threading.Event()
        self._end: Callable[[], None] | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        threading.Thread(target=self._watch, name="last resort", daemon=True).start()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            signal.signal(signal.SIGHUP, self._handle)
        # A signal that came while the process before this one restarted was blocked until now.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLED)

    def call(self, end: Callable[[], None]) -> None:
        """Call `end` in the Trio thread when a signal comes, or has come."""
        self._end, self._token = end, trio.lowlevel.current_trio_token()
        if self.received:
            end()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        if number == signal.SIGHUP and self._had_terminal and not _has_terminal():
            self._restart = None
        if number == signal.SIGHUP == self.received:
            return
        if self.received not in {0, signal.SIGHUP}:
            os._exit(128 + number)
        if number != signal.SIGHUP:
            self._restart = None
        self.received = number
        self._arrived.set()
        if self._end is not None and self._token is not None:
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._end)

    def _watch(self) -> None:
        # Only the main thread takes signals: with two threads, two signals at the same time have no order.
        signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)
        self._arrived.wait()
        time.sleep(LAST_SECONDS)  # not synchronisation: it is the clock itself
        with suppress(OSError):
            os.write(2, b"ended without closing in order: something did not answer\n")
        self.finish()
        os._exit(128 + self.received)

    def finish(self) -> None:
        """Restart, if a signal asked for that."""
        if self.received == signal.SIGHUP and self._restart is not None:
            # Another SIGHUP would end the new process before it has its handlers.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
            self._restart()


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def run(command: Command, *, restart: Restart | None = None) -> NoReturn:
    """Run a command under Trio, and exit.

    The code is 0 if it succeeded, 1 if not, 130 after SIGINT, 143 after SIGTERM, and 129 after SIGHUP.

    All three signals end it in order and in bounded time. After SIGHUP `restart` is called, if it is given.
    """
    signals = _Signals(restart)

    async def main() -> bool:
        working = trio.CancelScope()
        with trio.CancelScope() as everything:

            def end() -> None:
                working.cancel()
                everything.deadline = trio.current_time() + CLOSE_SECONDS

            signals.call(end)
            return await command(working)
        return False

    try:
        succeeded = trio.run(main)
    except (TrionodeError, BaseExceptionGroup) as error:
        leaves = list(_leaves(error))
        # An unexpected exception is a mistake of ours, and keeps its traceback.
        if not all(isinstance(leaf, TrionodeError) for leaf in leaves):
            raise
        if not signals.received:
            for text in dict.fromkeys(map(str, leaves)):
                say(f"error: {text}")
        succeeded = False
    signals.finish()
    sys.exit(128 + signals.received if signals.received else 0 if succeeded else 1)


def run_async(command: Callable[..., Awaitable[bool]]) -> Callable[..., NoReturn]:
    """Make an async function the body of a click command; it gets the scope that a signal cancels, and the options."""

    @wraps(command)
    def body(**options: Any) -> NoReturn:
        run(partial(command, **options))

    return body


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _leaves(each)
    else:
        yield error
