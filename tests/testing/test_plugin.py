"""The plugin for pytest: its imports, its options, and its fixtures."""

import subprocess
import sys

import pytest

from trionode.testing import FaultyNetwork

pytest_plugins = ["pytester"]

PLAIN = "-p", "no:randomly", "-p", "no:cacheprovider"


def loaded_by(*args: str, cwd: pytest.Pytester) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *args], capture_output=True, text=True, timeout=60, check=False, cwd=cwd.path
    )


def test_plugin_imports_only_pytest(pytester: pytest.Pytester) -> None:
    program = """
import sys, pytest
before = set(sys.modules)
import trionode_pytest
print(*sorted(set(sys.modules) - before))
"""
    assert loaded_by("-c", program, cwd=pytester).stdout.split() == ["trionode_pytest"]


def test_run_without_its_fixtures_imports_no_trionode(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makepyfile(
        """
        import sys

        def test_it(request):
            assert request.config.pluginmanager.has_plugin("trionode_pytest")
            assert not request.config.pluginmanager.has_plugin("trionode-leak-gate")
            assert not [name for name in ("trionode", "trio", "nacl", "attrs") if name in sys.modules]
        """
    )
    done = loaded_by("-m", "pytest", "-q", "-p", "trionode_pytest", cwd=pytester)
    assert "1 passed" in done.stdout, done.stdout + done.stderr


def test_each_test_has_its_own_network_with_the_seed_of_the_run(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest
        seen = []

        @pytest.mark.parametrize("time", range(2))
        def test_it(network, time):
            assert network not in seen
            assert network.seed == 7
            seen.append(network)

        @pytest.mark.parametrize("network", [3], indirect=True)
        def test_own_seed(network):
            assert network.seed == 3
        """
    )
    pytester.runpytest_inprocess(*PLAIN, "--trionode-seed", "7").assert_outcomes(passed=3)


def test_failure_shows_the_log_of_the_network(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        def test_it(network):
            network.transport("alice"), network.transport("bob")
            network.partition("alice", "bob")
            assert False
        """
    )
    result = pytester.runpytest_inprocess(*PLAIN)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*network with --trionode-seed 0*", "*partition: alice | bob"])


def test_fixture_of_a_user_takes_precedence(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.fixture
        def network():
            return object()

        def test_it(network):
            assert type(network) is not object
        """
    )
    result = pytester.runpytest_inprocess(*PLAIN)
    result.assert_outcomes(failed=1)
    result.stdout.no_fnmatch_line("*trionode-seed*")


@pytest.mark.parametrize("swap", ["tcp", "tcp=", "=tcp", "tcp=loopback,", ""])
def test_wrong_swap_is_a_usage_error(swap: str, pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_inprocess(*PLAIN, f"--trionode-swap={swap}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--trionode-swap: expected NAME=NAME, such as tcp=loopback*"])


@pytest.mark.parametrize(
    ("swaps", "is_virtual"),
    [((), True), (("tcp=loopback,store=memory",), True), (("tcp=tcp",), False), (("store=sqlite", "tcp=ws"), False)],
)
def test_time_is_real_with_transports_outside_the_process(
    swaps: tuple[str, ...], is_virtual: bool, pytester: pytest.Pytester
) -> None:
    pytester.makeini("[pytest]\ntrio_mode = true\n")
    pytester.makepyfile(
        f"""
        import time, trio

        async def test_it(virtual_time):
            start = time.monotonic()
            await trio.sleep(1000 if {is_virtual} else 0.05)
            assert time.monotonic() - start < 100 if {is_virtual} else time.monotonic() - start > 0.04
        """
    )
    options = [f"--trionode-swap={swap}" for swap in swaps]
    pytester.runpytest_inprocess(*PLAIN, *options).assert_outcomes(passed=1)


def test_pytest_lists_the_fixtures_with_descriptions(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_inprocess("--fixtures", "-q")
    for name in ("network", "topology", "kafka_broker", "virtual_time", "leak_gate"):
        result.stdout.fnmatch_lines([f"{name} *trionode_pytest*"])


def test_missing_broker_skips_with_one_line(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    pytester.makepyfile("def test_it(kafka_broker): pass")
    result = pytester.runpytest_inprocess(*PLAIN, "-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED *: these tests run a real Kafka and need Java*"])


def test_network_is_not_shared_with_other_tests(network: FaultyNetwork) -> None:
    assert network.log == []
