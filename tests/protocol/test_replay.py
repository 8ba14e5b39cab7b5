"""The replay window against a model that remembers everything."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trionode.protocol.session.replay import BACKWARD, ReplayWindow

NONCES = st.one_of(st.integers(0, 120), st.integers(0, 2**64 - 2))


def window(*nonces: int) -> ReplayWindow:
    made = ReplayWindow()
    for nonce in nonces:
        assert made.accepts(nonce)
        made.mark(nonce)
    return made


@given(st.lists(NONCES, max_size=200))
def test_it_accepts_new_nonces_that_are_not_too_far_behind(nonces: list[int]) -> None:
    real, accepted = ReplayWindow(), set[int]()
    for nonce in nonces:
        newest = max(accepted, default=-1)
        assert real.accepts(nonce) == (nonce not in accepted and nonce >= newest - BACKWARD)
        if real.accepts(nonce):
            assert real.mark(nonce) == (nonce > newest)
            accepted.add(nonce)
            assert real.highest == max(accepted)


@pytest.mark.parametrize(
    ("before", "nonce", "accepted"),
    [
        ([], 0, True),
        ([], 7, True),
        ([0], 0, False),
        ([7], 0, True),
        ([32], 0, True),
        ([33], 0, False),
        ([33], 1, True),
        ([33, 1], 1, False),
        ([31, 5, 32, 33], 8, True),
        ([2**64 - 2], 0, False),
    ],
)
def test_the_edges_of_the_window(before: list[int], nonce: int, *, accepted: bool) -> None:
    assert window(*before).accepts(nonce) is accepted


def test_accepts_has_no_side_effect() -> None:
    made = window(3)
    assert made.accepts(100)
    assert made.highest == 3
    assert made.accepts(2)


def test_a_nonce_near_the_end_takes_no_memory() -> None:
    made = window(0)
    assert made.mark(2**64 - 2)
    assert made._accepted == 1
