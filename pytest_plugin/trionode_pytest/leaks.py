"""The leak gate: what a test leaves behind, as the system and Trio tell it, and which secrets can be read in what it printed and logged."""

import base64
import gc
import inspect
import io
import os
import socket
import sys
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial, wraps
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, ClassVar, cast

import attrs
import pytest
import trio
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from trionode.errors import LocalError
from trionode.protocol.identity.keys import KeyHandle, KeyKind
from trionode.protocol.session import session
from trionode.vault.memory import MemoryVault
from trionode.vault.sqlite import SqliteVault

#: Seconds that threads and processes which are about to end are given: they were told to, and nobody waits for them.
GRACE = 1.0
#: Seconds between two looks at one that can't be waited for.
LOOK = 0.005
#: Characters in the shortest text that is searched for as a secret: shorter ones stand in any text by chance.
SHORTEST = 8

PROCESS = "process"

_FILES = Path("/proc/self/fd")
_TASKS = Path("/proc/self/task")


# What a program holds


@attrs.frozen
class Thing:
    """Something that a program holds, and that the system tells of."""

    #: What tells it from all others.
    key: object = attrs.field(repr=False)
    #: What it is, without what tells it from others of its kind: a broker that a test has started anew is a broker still.
    kind: str
    #: Says more of it; asked for when it is left behind.
    tell: Callable[[], str] = attrs.field(repr=False, eq=False)


def held() -> dict[object, Thing]:
    """All threads, child processes and open files of this process; of the latter two those that the system tells of."""
    return {thing.key: thing for thing in (*_threads(), *_processes(), *_open_files())}


def _threads() -> Iterator[Thing]:
    for thread in threading.enumerate():
        # An idle worker thread of Trio's bears this name, one at work that of its work: Trio keeps idle ones for whoever needs one next.
        if not thread.name.startswith("Trio thread "):
            yield Thing(thread, f"thread {thread.name!r}", partial(_tell_thread, thread))


def _tell_thread(thread: threading.Thread) -> str:
    frame = sys._current_frames().get(thread.ident or 0)  # noqa: SLF001  # documented, and the only way to see where a thread is
    code = getattr(getattr(thread, "_target", None), "__code__", None)
    runs = f", which runs {_place(code)}" if code else ""
    return f"thread {thread.name!r}{runs}{f', and is at {_at(frame)}' if frame else ''}"


def _place(code: CodeType) -> str:
    return f"{code.co_qualname} ({code.co_filename}:{code.co_firstlineno})"


def _at(frame: FrameType) -> str:
    """Where a stack stands: in what was written here, if it can be told from what was installed."""
    own: FrameType | None = frame
    while own is not None and own.f_code.co_filename.startswith((sys.prefix, sys.base_prefix)):
        own = own.f_back
    frame = own or frame
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def _processes() -> Iterator[Thing]:
    for task in _names(_TASKS):
        for child in _read(_TASKS / task / "children").split():
            # Not by its command, which a process that has just been started may not show yet.
            yield Thing(("process", child), PROCESS, partial(_tell_process, child))


def _tell_process(number: str) -> str:
    command = _read(Path("/proc") / number / "cmdline").replace("\0", " ").strip()
    return f"process {number}: {command or 'it has ended, and was never waited for'}"


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


def _open_files() -> Iterator[Thing]:
    for name in _names(_FILES):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")  # noqa: PTH115  # as above
        except OSError:  # the one by which they were listed
            continue
        kind = target.partition(":")[0] if target.startswith(("socket:", "pipe:")) else target
        yield Thing((name, target), f"open file {kind}", partial(_tell_file, int(name), kind))


def _tell_file(number: int, kind: str) -> str:
    told = _tell_socket(number) if kind == "socket" else f"{'a ' * (kind == 'pipe')}{kind}"
    return f"open file {number}: {told}{_made(number)}"


def _tell_socket(number: int) -> str:
    with socket.socket(fileno=os.dup(number)) as copy:
        ends = [f"{copy.family.name} {copy.type.name}, bound to {copy.getsockname()!r}"]
        with suppress(OSError):
            ends.append(f"connected with {copy.getpeername()!r}")
        return f"a socket, {', '.join(ends)}"


def _made(number: int) -> str:
    """Where the object was made that holds an open file, if Python keeps a record of that."""
    if not tracemalloc.is_tracing():
        return " (python -X tracemalloc=10 -m pytest shows where it was opened)"
    for each in gc.get_objects():
        if _number(each) == number and (trace := tracemalloc.get_object_traceback(each)) is not None:
            return "".join(f"\n      {line}" for line in ("opened at", *trace.format()))
    return ""


def _number(held_by: object) -> int:
    # By type and not by isinstance, which would ask proxies and mocks of all kinds.
    if issubclass(type(held_by), socket.socket):
        return socket.socket.fileno(cast(socket.socket, held_by))
    if issubclass(type(held_by), io.FileIO):
        file = cast(io.FileIO, held_by)
        return -1 if file.closed else file.fileno()
    return -1


def left_behind(before: Mapping[object, Thing]) -> list[Thing]:
    """What is held now, was not then, and stays: it is no garbage, and does not end by itself within GRACE seconds."""
    if not _more(before):
        return []
    gc.collect()
    until = time.monotonic() + GRACE
    while (left := _more(before)) and time.monotonic() < until:
        if not any(isinstance(thing.key, threading.Thread) or thing.kind == PROCESS for thing in left):
            break
        # A thread of Trio's that has done its work only changes its name, and nothing tells of a process that somebody else waits for.
        threading.Event().wait(LOOK)
    return left


def _more(before: Mapping[object, Thing]) -> list[Thing]:
    now = held()
    new = [thing for key, thing in now.items() if key not in before]
    if not new:
        return []
    # What belongs to the whole run may have been replaced: of each kind there may be as many as there were.
    more = Counter(thing.kind for thing in now.values()) - Counter(thing.kind for thing in before.values())
    return [thing for thing in new if more[thing.kind]]


# Tasks


def _system_tasks() -> dict[trio.lowlevel.Task, None]:
    root = trio.lowlevel.current_root_task()
    assert root is not None
    beside = {task for nursery in root.child_nurseries for task in nursery.child_tasks}
    mine: trio.lowlevel.Task | None = trio.lowlevel.current_task()
    while mine is not None and mine not in beside:
        mine = mine.parent_nursery and mine.parent_nursery.parent_task
    return {task: None for task in beside if task is not mine}


def _tell_task(task: trio.lowlevel.Task) -> str:
    code, frame = getattr(task.coro, "cr_code", None), getattr(task.coro, "cr_frame", None)
    runs = f", which runs {_place(code)}" if code else ""
    return f"system task {task.name!r}{runs}{f', and is at {_at(frame)}' if frame else ''}"


# Secrets


def written(secret: bytes) -> dict[str, str]:
    """The ways in which secret bytes are found in a text, and what is looked for then."""
    ways = {
        "hex": secret.hex(),
        "bytes in decimal": str(list(secret))[1:-1],
        "as Python shows bytes": repr(secret)[2:-1],
    }
    # In base64 it may stand at any place of a longer one: what depends on the bytes around it is left away.
    for shift in range(3):
        encoded = base64.b64encode(bytes(shift) + secret)
        ways[f"base64, {shift} bytes in"] = encoded[4 * (shift > 0) : len(encoded) // 4 * 4 - 4].decode()
    return ways


def _text(secret: bytes) -> str | None:
    try:
        return secret.decode()
    except UnicodeDecodeError:
        return None


@attrs.frozen
class Secret:
    """Bytes that nobody may read, and what they are."""

    what: str
    value: bytes = attrs.field(repr=False)

    def shown_in(self, text: str, lower: str, plain: str) -> str | None:
        """How it is written in a text, which is given as it is, in lower case, and with the alphabet of base64 that is for all purposes; None if it is not there."""
        own = _text(self.value)
        if own is not None and own in text:
            return "as it is"
        for way, looked_for in written(self.value).items():
            there = lower if way == "hex" else plain if way.startswith("base64") else text
            if len(looked_for) >= SHORTEST and looked_for in there:
                return way
        return None


class Secrets:
    """The secrets that vaults and channels have made or been given while this watches: those of one test, and those of the whole run."""

    def __init__(self) -> None:
        #: Where new ones are noted: a list of one of the two kinds.
        self.noted: list[Secret] = []
        #: Those of fixtures that outlive a test.
        self.lasting: list[Secret] = []
        self._patches = pytest.MonkeyPatch()

    def note(self, what: str, value: bytes) -> None:
        """Note one, unless it is so short that it stands in any text."""
        if len(value) >= SHORTEST:
            self.noted.append(Secret(what, value))

    def watch(self) -> None:
        """Begin to see what vaults and channels make. They stay as they are: this stands at the doors through which every secret comes."""
        keep, agree, open_file, cipher = MemoryVault._keep, MemoryVault.x25519, SqliteVault.__init__, AESGCM  # noqa: SLF001  # the door

        def note_key(vault: MemoryVault, kind: KeyKind, secret: bytes, *, ephemeral: bool) -> KeyHandle:
            self.note(f"the secret of {'an ephemeral' if ephemeral else 'a lasting'} key of kind {kind.name}", secret)
            return keep(vault, kind, secret, ephemeral=ephemeral)

        def note_shared(vault: MemoryVault, handle: KeyHandle, public: bytes) -> bytes:
            shared = agree(vault, handle, public)
            self.note("the shared secret of an X25519 exchange", shared)
            return shared

        def note_passphrase(vault: SqliteVault, path: Path, passphrase: str | None) -> None:
            # A word of letters alone stands in messages that mean something else.
            if passphrase is not None and not passphrase.isalpha():
                self.note(f"the passphrase of {path}", passphrase.encode())
            open_file(vault, path, passphrase)

        def note_cipher(key: bytes) -> AESGCM:
            self.note("the key of a secure channel", key)
            return cipher(key)

        self._patches.setattr(MemoryVault, "_keep", note_key)
        self._patches.setattr(MemoryVault, "x25519", note_shared)
        self._patches.setattr(SqliteVault, "__init__", note_passphrase)
        self._patches.setattr(session, "AESGCM", note_cipher)

    def rest(self) -> None:
        """Watch no more."""
        self._patches.undo()

    def shown_in(self, text: str) -> Iterator[tuple[Secret, str]]:
        """Each secret that can be read in a text, and how it is written there."""
        lower, plain = text.lower(), text.replace("-", "+").replace("_", "/")
        for secret in (*self.lasting, *self.noted):
            if (way := secret.shown_in(text, lower, plain)) is not None:
                yield secret, way


# The gate


class Leaks:
    """What the fixture `leak_gate` gives to its test."""

    def __init__(self, secrets: Secrets) -> None:
        self._secrets = secrets

    def add_secret(self, value: bytes | str, what: str = "a secret of this test") -> None:
        """Fail if these bytes, or this text, can be read in what the test has printed or logged; LocalError for fewer than SHORTEST bytes."""
        data = value.encode() if isinstance(value, str) else value
        if len(data) < SHORTEST:
            raise LocalError(
                f"a secret to be searched for has at least {SHORTEST} bytes, this one has {len(data)}: shorter ones stand in any text"
            )
        self._secrets.note(what, data)


@attrs.define
class _Watched:
    """What the gate knows of the test that runs."""

    before: dict[object, Thing]
    tasks: list[str] = attrs.field(factory=list)
    #: Whether it has passed so far: whoever fails leaves things behind because he failed.
    passed: bool = False


class LeakGate:
    """The plugin for pytest that looks at watched tests before their fixtures are set up and after these are torn down."""

    NAME: ClassVar = "trionode-leak-gate"

    def __init__(self, watched: Collection[str]) -> None:
        self._watched = watched
        self._now: _Watched | None = None
        self._secrets = Secrets()
        #: For the fixture.
        self.leaks = Leaks(self._secrets)

    def pytest_unconfigure(self) -> None:
        """Leave vaults as they were."""
        self._secrets.rest()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None]:
        """Begin to watch."""
        if item.nodeid in self._watched:
            self._now = _Watched(held())
            self._secrets.noted = []
            self._secrets.watch()
        return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[object]) -> Generator[None, object, object]:
        """Let fixtures that outlive the test keep what they make."""
        if self._now is None or fixturedef.scope == "function":
            return (yield)
        before, noted = held(), self._secrets.noted
        self._secrets.noted = self._secrets.lasting
        try:
            return (yield)
        finally:
            self._secrets.noted = noted
            self._now.before.update((key, thing) for key, thing in held().items() if key not in before)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None]:
        """Run an async test so that it is seen which tasks it leaves to Trio."""
        watched = self._now
        if watched is None:
            return (yield)
        function = item.obj if isinstance(item, pytest.Function) else None
        if function is None or not inspect.iscoroutinefunction(function) or hasattr(function, "hypothesis"):
            result = yield
        else:
            assert isinstance(item, pytest.Function)
            # Before pytest-trio, or whoever runs async tests, takes it.
            item.obj = _watching(function, watched.tasks)
            try:
                result = yield
            finally:
                item.obj = function
        watched.passed = True
        return result

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None]:
        """Look what is left."""
        watched = self._now
        if watched is None:
            return (yield)
        try:
            result = yield
        finally:
            self._now = None
            self._secrets.rest()
        left = [*watched.tasks, *(thing.tell() for thing in left_behind(watched.before))] if watched.passed else []
        sections = [(f"captured {key} of its {when}", text) for when, key, text in item._report_sections]  # noqa: SLF001  # what the report shows
        shown = [
            f"{secret.what} in the {where}, {way}"
            for where, text in sections
            for secret, way in self._secrets.shown_in(text)
        ]
        self._secrets.noted = []
        told = [*_listed("this test leaves behind", left), *_listed("this test shows", shown)]
        if told:
            pytest.fail("\n".join(told), pytrace=False)
        return result


def _listed(title: str, lines: Sequence[str]) -> list[str]:
    return [f"{title}:", *(f"  - {line}" for line in lines)] if lines else []


def _watching(function: Callable[..., Any], tasks: list[str]) -> Callable[..., Any]:
    @wraps(function)
    async def watching(*args: object, **kwargs: object) -> object:
        if not trio.lowlevel.in_trio_run():
            return await function(*args, **kwargs)
        before = _system_tasks()
        result = await function(*args, **kwargs)
        tasks.extend(_tell_task(task) for task in _system_tasks() if task not in before)
        return result

    return watching
