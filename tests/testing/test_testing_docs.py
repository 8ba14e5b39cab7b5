"""The tests in docs/testing.md run."""

import re
from pathlib import Path

import pytest

import trionode_pytest
from trionode.testing import KafkaBroker

pytest_plugins = ["pytester"]

DOCS = Path(__file__).parents[2] / "docs" / "testing.md"
if not DOCS.exists():
    pytest.skip("no checkout around these tests: its documents are tested there", allow_module_level=True)
TEXT = DOCS.read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def make_files(pytester: pytest.Pytester, blocks: list[str]) -> int:
    """Write each block into a file of its own, and say how many tests there are."""
    (toml,) = re.findall(r"^```toml\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    pytester.makefile(".toml", topology=toml)
    pytester.makeini("[pytest]\ntrio_mode = true\n")
    pytester.makepyfile(**{f"test_block_{number}": block for number, block in enumerate(blocks)})
    return sum(
        len(range(int(match[1])))
        if (match := re.search(r"range\((\d+)\), indirect", block))
        else block.count("def test_")
        for block in blocks
    )


def test_examples_pass(pytester: pytest.Pytester) -> None:
    count = make_files(pytester, [block for block in BLOCKS if "kafka_broker" not in block])
    assert count > 5
    pytester.runpytest_inprocess("-p", "no:cacheprovider").assert_outcomes(passed=count)


@pytest.mark.kafka
def test_kafka_examples_pass(pytester: pytest.Pytester, kafka_broker: KafkaBroker) -> None:
    pytester.makeconftest(
        f"""
        import pytest
        from types import SimpleNamespace

        @pytest.fixture(scope="session")
        def kafka_broker():
            return SimpleNamespace(bootstrap={kafka_broker.bootstrap!r})
        """
    )
    count = make_files(pytester, [block for block in BLOCKS if "kafka_broker" in block])
    assert count
    pytester.runpytest_inprocess("-p", "no:cacheprovider").assert_outcomes(passed=count)


def test_every_fixture_and_option_is_documented() -> None:
    plugin = Path(trionode_pytest.__file__).read_text()
    fixtures = re.findall(r"^@pytest.fixture.*\ndef (\w+)", plugin, re.MULTILINE)
    options = re.findall(r'"(--[\w-]+)"', plugin) + re.findall(r'"(trionode_\w+)"', plugin)
    assert len(fixtures) == 5
    assert [name for name in (*fixtures, *options) if name not in TEXT] == []
