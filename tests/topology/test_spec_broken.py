"""Broken files and their error texts. TRIONODE_REWRITE=1 rewrites the texts; read them before you commit them."""

import os
import re
from pathlib import Path

import pytest

from trionode.topology.errors import SpecError
from trionode.topology.load.loader import parse_topology

BROKEN = sorted((Path(__file__).parent / "broken").glob("*.toml"))


def test_there_are_more_than_twenty_broken_files() -> None:
    assert len(BROKEN) > 20


@pytest.mark.parametrize("path", BROKEN, ids=lambda path: path.stem)
def test_error_text_of_a_broken_file(path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        parse_topology(path.read_text(), path.name)
    # The text lists all installed plugins, which differ between machines.
    said = re.sub(r"(installed are): [\w, ]+", r"\1: …", str(caught.value), flags=re.IGNORECASE) + "\n"
    golden = path.with_suffix(".txt")
    if os.environ.get("TRIONODE_REWRITE"):
        golden.write_text(said)
    assert said == golden.read_text()
