"""Resources that a test can leave behind: threads, child processes, open files and Trio system tasks."""

import gc
import io
import os
import socket
import sys
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import CodeType, FrameType
from typing import cast

import attrs
import trio

#: Seconds to wait for threads and processes that are about to end.
GRACE = 1.0
#: Seconds between two checks of those.
POLL_SECONDS = 0.005

PROCESS = "process"

_FILES = Path("/proc/self/fd")
_TASKS = Path("/proc/self/task")


@attrs.frozen
class Resource:
    """A thread, child process or open file of this program."""

    #: Identifies it.
    key: object = attrs.field(repr=False)
    #: What it is, without what differs between two of its kind, so that a restarted broker counts as the same.
    kind: str
    #: Returns its description. It costs time, so only what is left behind is described.
    describe: Callable[[], str] = attrs.field(repr=False, eq=False)


def open_resources() -> dict[object, Resource]:
    """Return all threads, child processes and open files of this process, as far as the system shows them."""
    return {each.key: each for each in (*_threads(), *_processes(), *_open_files())}


def left_behind(before: Mapping[object, Resource]) -> list[Resource]:
    """Return what is open now, was not then, is not garbage, and does not end within GRACE seconds."""
    if not _new(before):
        return []
    gc.collect()
    until = time.monotonic() + GRACE
    while (left := _new(before)) and time.monotonic() < until:
        if not any(isinstance(each.key, threading.Thread) or each.kind == PROCESS for each in left):
            break
        # There is nothing to wait for: a thread of Trio only changes its name when its work is done, and a process may
        # be waited for elsewhere.
        threading.Event().wait(POLL_SECONDS)
    return left


def _new(before: Mapping[object, Resource]) -> list[Resource]:
    now = open_resources()
    new = [each for key, each in now.items() if key not in before]
    if not new:
        return []
    # A test may have replaced what belongs to the whole run: of each kind there may be as many as before.
    more = Counter(each.kind for each in now.values()) - Counter(each.kind for each in before.values())
    return [each for each in new if more[each.kind]]


# Threads


def _threads() -> Iterator[Resource]:
    for thread in threading.enumerate():
        # Trio keeps idle worker threads under this name. A busy one has the name of its work.
        if not thread.name.startswith("Trio thread "):
            yield Resource(thread, f"thread {thread.name!r}", partial(_describe_thread, thread))


def _describe_thread(thread: threading.Thread) -> str:
    frame = sys._current_frames().get(thread.ident or 0)  # noqa: SLF001  # documented, and the only way to see where a thread is
    code = getattr(getattr(thread, "_target", None), "__code__", None)
    return f"thread {thread.name!r}{_where(code, frame)}"


def _where(code: CodeType | None, frame: FrameType | None) -> str:
    """Return which function runs and where it is, if known: the innermost line outside of installed packages."""
    text = f", which runs {code.co_qualname} ({code.co_filename}:{code.co_firstlineno})" if code else ""
    own = frame
    while own is not None and own.f_code.co_filename.startswith((sys.prefix, sys.base_prefix)):
        own = own.f_back
    at = own or frame
    return text + (f", and is at {at.f_code.co_filename}:{at.f_lineno}" if at else "")


# Processes


def _processes() -> Iterator[Resource]:
    for task in _names(_TASKS):
        for child in _read(_TASKS / task / "children").split():
            # The command is no part of the kind: a process that has just started may not show it yet.
            yield Resource(("process", child), PROCESS, partial(_describe_process, child))


def _describe_process(number: str) -> str:
    command = _read(Path("/proc") / number / "cmdline").replace("\0", " ").strip()
    return f"process {number}: {command or 'it has ended, but its exit status was never read'}"


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208  # once for every test: names alone take a third of the time
    except OSError:
        return []


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


# Open files


def _open_files() -> Iterator[Resource]:
    for name in _names(_FILES):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")  # noqa: PTH115  # as above
        except OSError:  # the one that listed them
            continue
        kind = target.partition(":")[0] if target.startswith(("socket:", "pipe:")) else target
        yield Resource((name, target), f"open file {kind}", partial(_describe_file, int(name), kind))


def _describe_file(number: int, kind: str) -> str:
    what = _describe_socket(number) if kind == "socket" else f"{'a ' * (kind == 'pipe')}{kind}"
    return f"open file {number}: {what}{_opened_at(number)}"


def _describe_socket(number: int) -> str:
    with socket.socket(fileno=os.dup(number)) as copy:
        ends = [f"{copy.family.name} {copy.type.name}, bound to {copy.getsockname()!r}"]
        with suppress(OSError):
            ends.append(f"connected with {copy.getpeername()!r}")
        return f"a socket, {', '.join(ends)}"


def _opened_at(number: int) -> str:
    """Return where an open file was opened, if Python keeps a record of that."""
    if not tracemalloc.is_tracing():
        return " (python -X tracemalloc=10 -m pytest shows where it was opened)"
    for each in gc.get_objects():
        if _file_number(each) == number and (trace := tracemalloc.get_object_traceback(each)) is not None:
            return "".join(f"\n      {line}" for line in ("opened at", *trace.format()))
    return ""


def _file_number(holder: object) -> int:
    # By type: isinstance would call into proxies and mocks of all kinds.
    if issubclass(type(holder), socket.socket):
        return socket.socket.fileno(cast(socket.socket, holder))
    if issubclass(type(holder), io.FileIO):
        file = cast(io.FileIO, holder)
        return -1 if file.closed else file.fileno()
    return -1


# Trio tasks


def system_tasks() -> set[trio.lowlevel.Task]:
    """Return all system tasks of the running Trio, without the one that runs the caller."""
    root = trio.lowlevel.current_root_task()
    assert root is not None
    tasks = {task for nursery in root.child_nurseries for task in nursery.child_tasks}
    mine: trio.lowlevel.Task | None = trio.lowlevel.current_task()
    while mine is not None and mine not in tasks:
        mine = mine.parent_nursery and mine.parent_nursery.parent_task
    return tasks - {mine}


def describe_task(task: trio.lowlevel.Task) -> str:
    """Return the name of a system task, and where it is."""
    code, frame = getattr(task.coro, "cr_code", None), getattr(task.coro, "cr_frame", None)
    return f"system task {task.name!r}{_where(code, frame)}"
