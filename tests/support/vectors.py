"""Loads the public test vectors; a test skips if they are not there."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

_SHARED = Path(os.environ.get("TRIONODE_VECTORS", Path(__file__).resolve().parents[3] / "shared" / "vectors"))


def load(name: str) -> Any:
    """Return the JSON of one file, such as `noise-xx-cacophony.json` (public) or `wire/current_noise.json` (ours)."""
    path = (
        _SHARED.parent / "wire" / "vectors" / name.removeprefix("wire/") if name.startswith("wire/") else _SHARED / name
    )
    if not path.exists():
        pytest.skip(f"no test vectors: put {name} beside the checkout, or set TRIONODE_VECTORS to their folder")
    return json.loads(path.read_text())


def wire_vectors(name: str, kind: str) -> list[dict[str, Any]]:
    """Return the wire vectors of one kind in one file."""
    return [vector for vector in load(f"wire/{name}") if vector["kind"] == kind]
