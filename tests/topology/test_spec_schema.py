"""The JSON Schema that editors use; TRIONODE_REWRITE=1 writes it anew."""

import json
import os
import re
import tomllib
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from trionode.topology.load.json_schema import json_schema

LOCAL = Path(__file__).parent
ROOT = LOCAL.parents[1]
FILE = ROOT / "docs" / "topology.schema.json"
GOOD = [*sorted((LOCAL / "good").glob("*.toml")), *sorted((ROOT / "examples").rglob("topology*.toml"))]

#: What a schema can't say: TOML that is none, and references between parts of a file.
BEYOND = {
    "a_colon_for_an_equals_sign",
    "a_key_given_twice",
    "a_table_opened_twice",
    "a_value_without_quotes",
    "an_empty_file",
    "claimed_twice",
    "no_closing_quote",
    "routes_in_a_circle",
    "true_in_capitals",
}
BROKEN = [path for path in sorted((LOCAL / "broken").glob("*.toml")) if path.stem not in BEYOND]


def test_the_schema_in_the_docs_is_made_from_the_classes() -> None:
    text = json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"
    if os.environ.get("TRIONODE_REWRITE"):
        FILE.write_text(text)
    assert text == FILE.read_text(), "run TRIONODE_REWRITE=1 pytest tests/topology"


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(json_schema())


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.stem)
def test_a_good_file_fits_the_schema(path: Path) -> None:
    Draft202012Validator(json_schema()).validate(tomllib.loads(path.read_text()))


@pytest.mark.parametrize("path", BROKEN, ids=lambda path: path.stem)
def test_a_file_that_is_broken_in_its_form_does_not_fit_the_schema(path: Path) -> None:
    assert not Draft202012Validator(json_schema()).is_valid(tomllib.loads(path.read_text()))


def test_examples_in_the_docs_fit_the_schema() -> None:
    blocks = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "topology.md").read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        Draft202012Validator(json_schema()).validate(tomllib.loads(block))
