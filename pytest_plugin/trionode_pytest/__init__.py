"""The pytest plugin: options and fixtures. It imports trionode only when a test uses one of its fixtures.

It is a separate package because every run of pytest loads it where trionode is installed, and importing `trionode`
takes a fifth of a second.
"""

from argparse import ArgumentTypeError
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from trio.testing import MockClock

    from trionode.testing import FaultyNetwork, KafkaBroker, Topologies
    from trionode_pytest.gate import Leaks

#: The ini option that watches every test, and the fixture and marker that watch one.
_GATE_FOR_ALL = "trionode_leak_gate"
_GATE = "leak_gate"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the command line and ini options."""
    group = parser.getgroup("trionode")
    group.addoption(
        "--trionode-swap",
        action="append",
        type=_swaps,
        default=[],
        metavar="NAME=NAME,…",
        help="transports and stores that the fixture `topology` uses in place of others, whatever the tests say: "
        "--trionode-swap tcp=tcp,store=kafka",
    )
    group.addoption(
        "--trionode-seed",
        type=int,
        default=0,
        metavar="NUMBER",
        help="the seed of the fixture `network`, for tests that set none (default: 0)",
    )
    parser.addini(
        _GATE_FOR_ALL,
        "check every test as `leak_gate` does: it leaves no task, thread, process or open file, and shows no secret",
        type="bool",
        default=False,
    )


def _swaps(text: str) -> dict[str, str]:
    """Return the substitutes in one --trionode-swap, by what they replace."""
    swaps = {}
    for each in text.split(","):
        old, _, new = (part.strip() for part in each.partition("="))
        if not old or not new:
            raise ArgumentTypeError(
                f"expected NAME=NAME, such as tcp=loopback or store=memory, separated by commas; this is {each!r}"
            )
        swaps[old] = new
    return swaps


def _all_swaps(config: pytest.Config) -> dict[str, str]:
    return {old: new for swaps in config.option.trionode_swap for old, new in swaps.items()}


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker for --strict-markers."""
    config.addinivalue_line(
        "markers",
        f"{_GATE}: fail if the test leaves a task, thread, process or open file behind, or shows a secret; "
        f"{_GATE}(False): do not check",
    )


def pytest_collection_finish(session: pytest.Session) -> None:
    """Register the leak gate if any test needs it."""
    for_all = session.config.getini(_GATE_FOR_ALL)
    watched = {item.nodeid for item in session.items if _is_watched(item, for_all=for_all)}
    if watched:
        from trionode_pytest.gate import LeakGate  # noqa: PLC0415  # it imports trionode

        session.config.pluginmanager.register(LeakGate(watched), LeakGate.NAME)


def _is_watched(item: pytest.Item, *, for_all: bool) -> bool:
    if _GATE in getattr(item, "fixturenames", ()):
        return True
    marker = item.get_closest_marker(_GATE)
    return for_all if marker is None else marker.args != (False,)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the log of the network with a failed test."""
    report = yield
    network = getattr(item, "funcargs", {}).get("network")
    if report.failed and network is not None and type(network).__module__ == "trionode.testing.network":
        report.sections.append((f"network with --trionode-seed {network.seed}", "\n".join(map(str, network.log))))
    return report


@pytest.fixture
def network(request: pytest.FixtureRequest) -> "FaultyNetwork":
    """A network in memory with faults.

    Its seed is --trionode-seed, or the parameter if the test is parametrized by it.
    """
    from trionode.testing import FaultyNetwork  # noqa: PLC0415

    return FaultyNetwork(getattr(request, "param", request.config.option.trionode_seed))


@pytest.fixture(scope="session")
def kafka_broker() -> "Iterator[KafkaBroker]":
    """One real Kafka broker for the whole run. A test that stops it has to start it again."""
    from trionode.testing import NoKafkaError, run_kafka  # noqa: PLC0415

    try:
        with run_kafka() as broker:
            yield broker
    except NoKafkaError as missing:
        pytest.skip(str(missing))


@pytest.fixture
def topology(request: pytest.FixtureRequest) -> "Topologies":
    """Runs topologies: `async with topology.start("topology.toml", tcp="loopback", store="memory") as running`."""
    from trionode.testing import Topologies  # noqa: PLC0415

    swaps = _all_swaps(request.config)
    if "kafka" in swaps.values():
        request.getfixturevalue("kafka_broker")  # before the nodes of the test start
    return Topologies(
        swaps,
        bootstrap=lambda: str(request.getfixturevalue("kafka_broker").bootstrap),
        folder=lambda: Path(request.getfixturevalue("tmp_path")),
    )


@pytest.fixture
def virtual_time(request: pytest.FixtureRequest) -> "MockClock":
    """Trio's autojump clock.

    It runs in real time if --trionode-swap uses a transport or store outside of the process.
    """
    import trio.testing  # noqa: PLC0415

    if set(_all_swaps(request.config).values()) <= {"loopback", "memory"}:
        return trio.testing.MockClock(autojump_threshold=0)
    return trio.testing.MockClock(rate=1.0)


@pytest.fixture
def leak_gate(request: pytest.FixtureRequest) -> "Leaks":
    """Fail the test if it leaves a task, thread, process or open file, or shows a secret.

    `leak_gate.add_secret` adds a secret.
    """
    from trionode_pytest.gate import LeakGate  # noqa: PLC0415

    gate = request.config.pluginmanager.get_plugin(LeakGate.NAME)
    assert isinstance(gate, LeakGate)
    return gate.leaks
