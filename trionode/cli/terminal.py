"""Input and output of commands: lines that never block the node, and texts that are safe for a terminal."""

import os
import sys
from pathlib import Path
from typing import Self

import attrs
import click
import trio

from trionode.errors import LocalError, WireError
from trionode.log import sanitize
from trionode.protocol.wire.message import Message

#: Bytes in one read.
READ_SIZE = 65_536
#: Bytes of the longest line that is stored. It is longer than any message of a stream, so an error can give the length.
MAX_LINE = 65_536
#: Bytes in one write: what a writable pipe takes without blocking (PIPE_BUF on Linux; POSIX promises 512).
WRITE_SIZE = 4096


@attrs.frozen
class Line:
    """One line of input without its end: its number from 1, its bytes up to MAX_LINE, and its whole length."""

    number: int
    content: bytes = attrs.field(repr=False)
    length: int

    @property
    def is_whole(self) -> bool:
        """Whether no part of it was dropped."""
        return self.length == len(self.content)


class Lines:
    """The lines of a file descriptor: `async for line in Lines()`.

    No thread reads them, since a blocked thread can't be cancelled.
    """

    def __init__(self, fd: int = 0) -> None:
        self._fd = fd
        self._buffer = bytearray()
        self._searched = 0
        self._skipped = 0
        self._number = 0
        self._ended = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Line:
        while True:
            end = self._buffer.find(b"\n", self._searched)
            if end >= 0:
                return self._take(end, end + 1)
            self._searched = len(self._buffer)
            if self._ended:
                if not self._buffer:
                    raise StopAsyncIteration
                return self._take(self._searched, self._searched)
            if self._searched > MAX_LINE:
                # A line that is too long to be sent is not kept, either.
                self._skipped += self._searched - MAX_LINE
                del self._buffer[MAX_LINE:]
                self._searched = MAX_LINE
            data = await self._read()
            self._ended = not data
            self._buffer += data

    def _take(self, end: int, after: int) -> Line:
        line = Line(self._number + 1, bytes(self._buffer[: min(end, MAX_LINE)]), self._skipped + end)
        del self._buffer[:after]
        self._searched = self._skipped = 0
        self._number += 1
        return line

    async def _read(self) -> bytes:
        while True:
            try:
                await trio.lowlevel.wait_readable(self._fd)
            except PermissionError:
                await trio.lowlevel.checkpoint()  # a regular file or /dev/null is always ready
            except OSError:
                return b""  # it was closed before the first read
            try:
                return os.read(self._fd, READ_SIZE)
            except BlockingIOError:
                continue  # another process that shares it read first
            except OSError:
                return b""  # the terminal is gone


class Output:
    """Whole lines to a file descriptor, written when `line` returns. A slow reader makes only the writer wait."""

    def __init__(self, fd: int = 1) -> None:
        self._fd = fd
        self._lock = trio.Lock()
        self._waits = True

    async def line(self, text: str) -> None:
        """Write a text and a line end; LocalError if the reader is gone. If cancelled, a part may have been written."""
        await self.write(f"{text}\n")

    async def write(self, text: str) -> None:
        """Write a text as it is."""
        rest = memoryview(text.encode(errors="backslashreplace"))
        async with self._lock:
            while rest:
                if self._waits:
                    try:
                        await trio.lowlevel.wait_writable(self._fd)
                    except PermissionError:
                        self._waits = False  # a regular file or /dev/null
                try:
                    rest = rest[os.write(self._fd, rest[:WRITE_SIZE]) :]
                except BlockingIOError:
                    continue
                except OSError as error:
                    msg = f"standard output can't be written: {error.strerror}. Its reader is gone"
                    raise LocalError(msg) from error


def print_out(text: str) -> None:
    """Write a text and a line end to standard output, for commands that run no node; LocalError if the disk is full."""
    try:
        click.echo(text)
    except BrokenPipeError:
        raise  # click ends quietly if the reader is gone
    except OSError as error:
        with Path(os.devnull).open("w") as nowhere:  # Python would write the rest again at its end
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        msg = f"standard output can't be written: {error.strerror}"
        raise LocalError(msg) from error


def say(text: str) -> None:
    """Write a text and a line end to standard error."""
    click.echo(text, err=True)


def printable(text: str) -> str:
    """Return a text of a peer, with everything escaped that could control a terminal."""
    return text if text.isprintable() else sanitize(text, len(text))


def payload_text(message: Message) -> str:
    """Return a message's text, safe for a terminal, or its bytes in hex if it is not a text."""
    try:
        return printable(message.text)
    except WireError:
        return f"0x{message.payload.hex()}"
