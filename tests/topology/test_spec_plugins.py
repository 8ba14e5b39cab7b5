import re
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import pytest

from trionode.net.plugins import STREAM_STORES, TRANSPORTS
from trionode.topology.check.plugins import _load, installed, port_of, wrong_address, wrong_options
from trionode.topology.spec import Option


def make(  # type: ignore[no-untyped-def]
    size: int = 1,
    stall_timeout: float = 1.0,
    name: str | None = None,
    brokers: str | Sequence[str] = (),
    mode: Literal["fast", "safe"] = "fast",
    check: bool = True,
    clock: Callable[[], float] | None = None,
    anything: object = None,
    unknown=None,  # noqa: ANN001
) -> None:
    pass


def make_of_strings(size: "Nobody" = None) -> None:  # type: ignore[name-defined]  # noqa: F821
    pass


@pytest.fixture(autouse=True)
def _plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    plugins = {"made": make, "strings": make_of_strings}
    monkeypatch.setattr("trionode.topology.check.plugins.load_plugin", lambda _, name: plugins[name])
    monkeypatch.setattr("trionode.topology.check.plugins.plugin_names", lambda _: list(plugins))
    monkeypatch.setattr("trionode.topology.check.plugins._load", _load.__wrapped__)
    monkeypatch.setattr("trionode.topology.check.plugins.installed", installed.__wrapped__)


GOOD: list[Mapping[str, Option]] = [
    {"size": 2, "stall_timeout": 2, "name": "x", "brokers": "a:1"},
    {"brokers": ("a:1", "b:2"), "mode": "safe", "check": False, "stall_timeout": 0.5},
    {"anything": 1, "unknown": ("x",)},
]


@pytest.mark.parametrize("options", GOOD)
def test_options_that_a_plugin_takes_are_no_problem(options: Mapping[str, Option]) -> None:
    assert list(wrong_options(TRANSPORTS, "made", options)) == []


@pytest.mark.parametrize(
    ("option", "value", "reported"),
    [
        ("size", True, "expected a whole number; this is true"),
        ("size", 1.5, "expected a whole number; this is the number 1.5"),
        ("stall_timeout", "1", 'expected a number; this is the text "1"'),
        ("name", 5, "expected a text; this is the number 5"),
        ("name", ("a",), "expected a text; this is a list"),
        ("brokers", 5, "expected a text or a list of texts; this is the number 5"),
        ("mode", "slow", 'expected "fast" or "safe"; this is the text "slow"'),
        ("check", "yes", 'expected true or false; this is the text "yes"'),
        ("clock", "utc", 'expected a value that only a Python program can give; this is the text "utc"'),
    ],
)
def test_an_option_of_another_type_is_a_problem_of_its_value(option: str, value: Option, reported: str) -> None:
    assert list(wrong_options(TRANSPORTS, "made", {option: value})) == [(option, reported, False)]


def test_an_unknown_option_is_a_problem_of_its_key_and_only_options_of_files_are_proposed() -> None:
    assert list(wrong_options(TRANSPORTS, "made", {"clocks": 1})) == [
        (
            "clocks",
            (
                'unknown option of the transport "made"; '
                "known are: anything, brokers, check, mode, name, size, stall_timeout, unknown"
            ),
            True,
        )
    ]


def test_address_of_a_store_is_not_an_option() -> None:
    ((_, reported, _),) = wrong_options(STREAM_STORES, "made", {"size": 2})
    assert reported.startswith('unknown option of the stream store "made"')


def test_types_that_can_not_be_read_are_left_to_the_plugin() -> None:
    assert list(wrong_options(TRANSPORTS, "strings", {"size": ("a",)})) == []


@pytest.mark.parametrize(
    ("name", "where", "port"),
    [
        ("tcp", "[::1]:4000", ("::1", 4000)),
        ("ws", "a.example:80/some/path", ("a.example", 80)),
        ("wss", "a.example", None),
        ("kafka", "a:9092,b:9092/name", None),
        ("loopback", "a", None),
    ],
)
def test_port_of_an_address(name: str, where: str, port: tuple[str, int] | None) -> None:
    assert port_of(name, where) == port


@pytest.mark.parametrize(
    ("name", "where"), [("tcp", "a"), ("tls", "//a:1"), ("ws", "/x"), ("kafka", "a:9092"), ("kafka", "a:9092,b/name")]
)
def test_invalid_address_of_a_transport_is_refused(name: str, where: str) -> None:
    assert re.search(r'expected HOST:PORT|did you mean "tls:a:1"|host:port', wrong_address(name, where) or "")
