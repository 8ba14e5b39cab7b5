"""What a command reads and writes: lines in and lines out, none of which blocks the node, and texts made fit for a terminal."""

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
#: Longest line that is kept: longer than any message that a stream carries, so that whoever sends it can say how much too long it was.
MAX_LINE = 65_536
#: Bytes in one write: what a pipe that says it is writable takes without blocking (PIPE_BUF on Linux; POSIX promises 512).
WRITE_SIZE = 4096


@attrs.frozen
class Line:
    """One line of input without its end: its number from 1 on, its bytes up to MAX_LINE, and how many it had."""

    number: int
    content: bytes = attrs.field(repr=False)
    length: int

    @property
    def is_whole(self) -> bool:
        """Whether no part of it was thrown away."""
        return self.length == len(self.content)


class Lines:
    """The lines of a file descriptor, read without a thread, which could not be abandoned: `async for line in Lines()`."""

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
                # What is too long to be sent is not kept either, whatever its length.
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
                await trio.lowlevel.checkpoint()  # a regular file or /dev/null: never waited for, always ready
            except OSError:
                return b""  # it was closed before we began
            try:
                return os.read(self._fd, READ_SIZE)
            except BlockingIOError:
                continue  # somebody who shares it was faster
            except OSError:
                return b""  # the terminal is gone


class Output:
    """Whole lines to a file descriptor, each there when `line` returns; who reads slowly makes the writer wait, and nobody else."""

    def __init__(self, fd: int = 1) -> None:
        self._fd = fd
        self._lock = trio.Lock()
        self._waits = True

    async def line(self, text: str) -> None:
        """Write a text and a line end; LocalError if nobody reads them any more. Cancelled, a part may have been written."""
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
                    msg = f"standard output can't be written: {error.strerror}. Whoever read it has gone"
                    raise LocalError(msg) from error


def print_out(text: str) -> None:
    """Write a text and a line end to standard output, for commands that run no node; LocalError if there is no room for it."""
    try:
        click.echo(text)
    except BrokenPipeError:
        raise  # click ends quietly where nobody reads any more
    except OSError as error:
        with Path(os.devnull).open("w") as nowhere:  # what is left would be tried again as Python ends
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        msg = f"standard output can't be written: {error.strerror}"
        raise LocalError(msg) from error


def say(text: str) -> None:
    """Tell whoever sits at the terminal, beside standard output."""
    click.echo(text, err=True)


def printable(text: str) -> str:
    """Return the whole of a text that a peer chose, with whatever could act on a terminal escaped."""
    return text if text.isprintable() else sanitize(text, len(text))


def payload_text(message: Message) -> str:
    """Return a message's text fit for a terminal, or its bytes in hex if it is no text."""
    try:
        return printable(message.text)
    except WireError:
        return f"0x{message.payload.hex()}"
