"""The list of mutations fits the code: each can be applied, names tests that exist, and no attack is without one."""

import pytest

from tests.mutations.mutation import ROOT
from tests.mutations.run import check

if not (ROOT / "setup.cfg").exists():
    pytest.skip("no checkout around these tests: the mutations change the checkout's code", allow_module_level=True)


def test_the_list_of_mutations_fits_the_code() -> None:
    assert check() == []
