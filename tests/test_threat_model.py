"""The threat model names test files that exist."""

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
THREAT_MODEL = TESTS.parent / "docs" / "threat_model.md"


@pytest.mark.skipif(not THREAT_MODEL.exists(), reason="the documents are not part of the wheel")
def test_every_named_test_file_exists() -> None:
    named = set(re.findall(r"`(\w+/test_\w+)`", THREAT_MODEL.read_text()))
    assert len(named) > 30
    assert [name for name in sorted(named) if not (TESTS / f"{name}.py").exists()] == []


@pytest.mark.skipif(not THREAT_MODEL.exists(), reason="the documents are not part of the wheel")
def test_every_attack_is_numbered() -> None:
    numbers = [int(number) for number in re.findall(r"^(\d+)\. \*\*", THREAT_MODEL.read_text(), re.MULTILINE)]
    assert numbers == list(range(1, 31))
