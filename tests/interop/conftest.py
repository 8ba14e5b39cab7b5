"""The Rust peers, built when the first test asks for them."""

from pathlib import Path

import pytest

from tests.support.rust_peers import program_of


@pytest.fixture(scope="session")
def current_program() -> Path:
    """The `peer` of the current protocol version."""
    return program_of("current")


@pytest.fixture(scope="session")
def classic_program() -> Path:
    """The `peer` of the classic protocol version."""
    return program_of("classic")
