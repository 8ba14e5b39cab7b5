"""The leak gate: fails a test that leaves something behind, or prints or logs a secret."""

import inspect
from collections.abc import Callable, Collection, Generator, Sequence
from functools import wraps
from typing import Any, ClassVar

import attrs
import pytest
import trio

from trionode.errors import ConfigError
from trionode_pytest.resources import Resource, describe_task, left_behind, open_resources, system_tasks
from trionode_pytest.secrets_in_text import SHORTEST, Secrets


class Leaks:
    """The value of the fixture `leak_gate`."""

    def __init__(self, secrets: Secrets) -> None:
        self._secrets = secrets

    def add_secret(self, value: bytes | str, what: str = "a secret of this test") -> None:
        """Fail the test if a value occurs in what it prints or logs.

        Args:
          value: The secret, at least SHORTEST bytes.
          what: Its name in the report.

        Raises:
          ConfigError: If it is shorter.
        """
        data = value.encode() if isinstance(value, str) else value
        if len(data) < SHORTEST:
            raise ConfigError(
                f"a secret has at least {SHORTEST} bytes, this one has {len(data)}: shorter ones occur in any text"
            )
        self._secrets.note(what, data)


@attrs.define
class _Watched:
    """What the gate knows of the running test."""

    before: dict[object, Resource]
    tasks: list[str] = attrs.field(factory=list)
    #: Whether it has passed so far. A test that fails leaves things behind because it failed.
    passed: bool = False


class LeakGate:
    """The pytest plugin that checks watched tests before their fixtures are set up and after they are torn down."""

    NAME: ClassVar = "trionode-leak-gate"

    def __init__(self, watched: Collection[str]) -> None:
        self._watched = watched
        self._now: _Watched | None = None
        self._secrets = Secrets()
        #: For the fixture.
        self.leaks = Leaks(self._secrets)

    def pytest_unconfigure(self) -> None:
        """Remove the patches of vaults."""
        self._secrets.stop()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None]:
        """Note what is open before the test."""
        if item.nodeid in self._watched:
            self._now = _Watched(open_resources())
            self._secrets.noted = []
            self._secrets.start()
        return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[object]) -> Generator[None, object, object]:
        """Count what a fixture makes that outlives the test as open before it."""
        if self._now is None or fixturedef.scope == "function":
            return (yield)
        before, noted = open_resources(), self._secrets.noted
        self._secrets.noted = self._secrets.lasting
        try:
            return (yield)
        finally:
            self._secrets.noted = noted
            self._now.before.update((key, each) for key, each in open_resources().items() if key not in before)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None]:
        """Note which system tasks an async test leaves, and whether it passes."""
        watched = self._now
        if watched is None:
            return (yield)
        function = item.obj if isinstance(item, pytest.Function) else None
        if function is None or not inspect.iscoroutinefunction(function) or hasattr(function, "hypothesis"):
            result = yield
        else:
            assert isinstance(item, pytest.Function)
            # Wrapped before pytest-trio, or any other plugin that runs async tests, takes it.
            item.obj = _watching(function, watched.tasks)
            try:
                result = yield
            finally:
                item.obj = function
        watched.passed = True
        return result

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None]:
        """Fail the test if something is left, or a secret was printed."""
        watched = self._now
        if watched is None:
            return (yield)
        try:
            result = yield
        finally:
            self._now = None
            self._secrets.stop()
        left = [*watched.tasks, *(each.describe() for each in left_behind(watched.before))] if watched.passed else []
        sections = [(f"captured {key} of its {when}", text) for when, key, text in item._report_sections]  # noqa: SLF001  # what the report shows
        printed = [
            f"{secret.what} in the {where}, {form}"
            for where, text in sections
            for secret, form in self._secrets.found_in(text)
        ]
        self._secrets.noted = []
        lines = [*_listed("this test leaves behind", left), *_listed("this test shows", printed)]
        if lines:
            pytest.fail("\n".join(lines), pytrace=False)
        return result


def _listed(title: str, lines: Sequence[str]) -> list[str]:
    return [f"{title}:", *(f"  - {line}" for line in lines)] if lines else []


def _watching(function: Callable[..., Any], tasks: list[str]) -> Callable[..., Any]:
    @wraps(function)
    async def watching(*args: object, **kwargs: object) -> object:
        if not trio.lowlevel.in_trio_run():
            return await function(*args, **kwargs)
        before = system_tasks()
        result = await function(*args, **kwargs)
        tasks.extend(describe_task(task) for task in system_tasks() - before)
        return result

    return watching
