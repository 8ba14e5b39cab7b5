"""The retransmission timeout against the formulas and the examples of RFC 6298."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trionode.protocol.rules.round_trip import FLOOR, INITIAL, LONGEST, RoundTrip

SECONDS = st.floats(0, 1000, allow_nan=False)


def after(*samples: float) -> RoundTrip:
    made = RoundTrip()
    for seconds in samples:
        made.sample(seconds)
    return made


@pytest.mark.parametrize(
    ("samples", "timeout"),
    [
        ([], INITIAL),
        ([1.0], 3.0),  # R + 4 R / 2
        ([1.0, 1.0], 2.5),  # the variation shrinks by a quarter
        ([1.0, 2.0], 1.125 + 4 * 0.625),
        ([0.001], FLOOR),
        ([0.1], 0.3),
        ([0.0], FLOOR),
        ([-1.0], FLOOR),
        ([1000.0], LONGEST),
    ],
)
def test_the_timeout_follows_the_samples(samples: list[float], timeout: float) -> None:
    assert after(*samples).timeout == pytest.approx(timeout)


@given(st.lists(SECONDS, min_size=1, max_size=60))
def test_it_is_the_estimator_of_rfc_6298(samples: list[float]) -> None:
    smoothed, variation = samples[0], samples[0] / 2
    for seconds in samples[1:]:
        variation = 3 / 4 * variation + 1 / 4 * abs(smoothed - seconds)
        smoothed = 7 / 8 * smoothed + 1 / 8 * seconds
    made = after(*samples)
    assert made.smoothed == pytest.approx(smoothed)
    assert made.shortest == min(samples)
    assert made.timeout == pytest.approx(min(max(smoothed + 4 * variation, FLOOR), LONGEST))


@given(st.lists(SECONDS, max_size=5), st.integers(1, 2000))
def test_backoff_doubles_up_to_the_longest_wait(samples: list[float], times: int) -> None:
    made = after(*samples)
    first = made.timeout
    for count in range(1, times + 1):
        made.backoff()
        assert made.timeout == pytest.approx(min(first * 2.0 ** min(count, 100), LONGEST))


def test_a_sample_ends_the_doubling() -> None:
    made = after(0.1)
    for _ in range(100):
        made.backoff()
    made.sample(0.1)
    assert made.timeout == pytest.approx(0.1 + 4 * 0.05 * 3 / 4)


@given(st.lists(SECONDS, max_size=60), st.integers(0, 100))
def test_the_timeout_has_bounds(samples: list[float], backoffs: int) -> None:
    made = after(*samples)
    for _ in range(backoffs):
        made.backoff()
    assert FLOOR <= made.timeout <= LONGEST
