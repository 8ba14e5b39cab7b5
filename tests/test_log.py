"""Text of peers in the log: escaped, cut, and not repeated."""

from trionode.log import LogThrottle, sanitize


def test_control_characters_are_escaped_and_long_text_is_cut_threat_27() -> None:
    assert sanitize("a\x1b[31m\n\u202eb") == r"a\x1b[31m\n\u202eb"
    assert sanitize("x" * 10, 4) == "xxxx… (10 characters)"


def test_an_event_is_due_once_a_minute_threat_27() -> None:
    throttle = LogThrottle()
    assert [throttle.is_due("lost", now) for now in (0.0, 1.0, 59.9, 60.0, 61.0)] == [True, False, False, True, False]


def test_a_throttle_remembers_a_bounded_number_of_events_threat_18() -> None:
    throttle = LogThrottle()
    for number in range(3 * LogThrottle.MAX_KEYS):
        throttle.is_due(str(number), 0.0)
        assert len(throttle._due_at) <= LogThrottle.MAX_KEYS
