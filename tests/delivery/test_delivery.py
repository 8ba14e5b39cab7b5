"""The delivery layer without Trio: what is lost, doubled, reordered, cut or forked on the route."""

from collections.abc import Sequence
from itertools import combinations

import pytest

from tests.support.delivery_pair import DELAY, Fate, Pair
from trionode.protocol.delivery.frame import Frame
from trionode.protocol.delivery.outbox import ITEM_COST, WINDOW
from trionode.protocol.rules.verdicts import Gap, Repaired, Restarted, TailSilence

COUNT = 10
ITEMS = [b"message %d" % number for number in range(1, COUNT + 1)]


def send_one_by_one(pair: Pair, items: Sequence[bytes] = ITEMS) -> None:
    """Send each message in a frame of its own."""
    for item in items:
        pair.send(item)
        pair.run(0.001)


def runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Return the ranges of consecutive numbers."""
    ranges: list[tuple[int, int]] = []
    for number in numbers:
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1] = (ranges[-1][0], number)
        else:
            ranges.append((number, number))
    return ranges


def test_a_clean_run_delivers_everything_in_order_without_a_verdict() -> None:
    pair = Pair()
    send_one_by_one(pair)
    pair.run(3600)
    assert pair.bob.received == ITEMS
    assert pair.alice.verdicts == pair.bob.verdicts == []
    assert pair.alice.delivery.outbox.unacknowledged == 0
    assert pair.alice.delivery.outbox.handled == COUNT
    assert pair.alice.delivery.outbox.resent == 0


def test_messages_that_wait_share_a_frame() -> None:
    pair = Pair()
    pair.run(1)
    before = pair.frames
    pair.send(*ITEMS)
    pair.run(0.5)
    assert pair.bob.received == ITEMS
    assert pair.frames - before == 2  # the messages, and the acknowledgement


def drop_for_good(numbers: frozenset[int]) -> Fate:
    """Drop each frame of Alice that carries one of these messages, also when it is sent again."""

    def fate(sender: str, frame: Frame) -> Sequence[float]:
        carried = range(frame.first, frame.first + len(frame.items))
        return () if sender == "alice" and numbers.intersection(carried) else (DELAY,)

    return fate


@pytest.mark.parametrize("size", range(1, COUNT + 1))
def test_every_subset_that_is_dropped_for_good_is_reported(size: int) -> None:
    for subset in combinations(range(1, COUNT + 1), size):
        dropped = frozenset(subset)
        pair = Pair()
        pair.run(1)
        pair.fate = drop_for_good(dropped)
        send_one_by_one(pair)
        pair.run(45)
        delivered = min(dropped) - 1
        assert pair.bob.received == ITEMS[:delivered], dropped
        gaps = [verdict for verdict in pair.bob.verdicts if isinstance(verdict, Gap)]
        missing = {number for gap in gaps for number in range(gap.first, gap.last + 1)}
        # What shares a frame with a dropped message when it is sent again arrived before, so nothing else is missing.
        assert missing == dropped, (dropped, pair.bob.verdicts)
        assert not any(isinstance(verdict, Repaired) for verdict in pair.bob.verdicts)


@pytest.mark.parametrize("cut", range(COUNT))
def test_a_tail_that_is_cut_with_everything_after_it_is_reported_as_silence(cut: int) -> None:
    pair = Pair()
    pair.run(1)
    send_one_by_one(pair, ITEMS[:cut])
    pair.run(1)
    pair.fate = lambda sender, _frame: () if sender == "alice" else (DELAY,)
    silent_from = pair.now
    send_one_by_one(pair, ITEMS[cut:])
    pair.run(61)
    assert pair.bob.received == ITEMS[:cut]
    assert [type(verdict) for verdict in pair.bob.verdicts] == [TailSilence]
    assert pair.alice.delivery.is_silent  # Bob acknowledges nothing more
    assert [type(verdict) for verdict in pair.alice.verdicts] == [TailSilence]
    assert silent_from - 2 < pair.bob.verdicts[0].since <= silent_from  # type: ignore[attr-defined]


@pytest.mark.parametrize("pair_of", list(combinations(range(1, COUNT + 1), 2)))
def test_swapped_messages_are_delivered_in_order_without_a_verdict(pair_of: tuple[int, int]) -> None:
    first, second = pair_of

    def fate(_sender: str, frame: Frame) -> Sequence[float]:
        shift = {first: second - first, second: first - second}.get(frame.first, 0)
        return (0.05 + shift * 0.001 + 0.0001 * frame.first,)

    pair = Pair()
    pair.run(1)
    pair.fate = fate
    send_one_by_one(pair)
    pair.run(10)
    assert pair.bob.received == ITEMS
    assert pair.bob.verdicts == []


def test_doubled_frames_are_delivered_once() -> None:
    pair = Pair(lambda _sender, _frame: (DELAY, DELAY, 3 * DELAY))
    send_one_by_one(pair)
    pair.run(10)
    assert pair.bob.received == ITEMS
    assert pair.bob.verdicts == []
    assert pair.bob.delivery.inbox.doubles >= 2 * COUNT


def test_a_message_that_arrives_late_is_a_gap_and_then_repaired() -> None:
    pair = Pair()
    pair.run(1)
    until = pair.now + 5
    pair.fate = lambda _sender, frame: () if frame.first == 3 and pair.now < until else (DELAY,)
    send_one_by_one(pair)
    pair.run(20)
    assert pair.bob.received == ITEMS
    assert pair.bob.verdicts == [Gap(3, 3), Repaired(3, 3)]


def test_one_dropped_frame_is_sent_again_within_a_few_round_trips() -> None:
    pair = Pair()
    pair.run(1)
    dropped: list[int] = []

    def fate(_sender: str, frame: Frame) -> Sequence[float]:
        if frame.first == 3 and not dropped:
            dropped.append(3)
            return ()
        return (DELAY,)

    send_one_by_one(pair, ITEMS[:2])
    pair.run(0.5)
    pair.fate = fate
    begun = pair.now
    for item in ITEMS[2:]:
        pair.send(item)
        pair.run(0.001)
    while pair.bob.received != ITEMS and pair.now < begun + 5:
        pair.run(0.001)
    assert pair.bob.received == ITEMS
    assert pair.now - begun < 8 * DELAY
    assert pair.bob.verdicts == []


def test_a_receiver_that_takes_nothing_holds_its_sender() -> None:
    pair = Pair()
    pair.run(1)
    big = bytes(50_000)
    pair.bob.takes = False
    for _ in range(60):
        pair.send(big)
    pair.run(20)
    held = list(pair.bob.received)
    assert WINDOW <= len(held) * (len(big) + ITEM_COST) < WINDOW + len(big) + ITEM_COST
    pair.bob.takes = True
    for item in held:
        pair.bob.delivery.inbox.delivered(item, pair.now)
    pair.run(5)
    assert len(pair.bob.received) == 60
    assert pair.bob.verdicts == pair.alice.verdicts == []


def test_a_new_session_goes_on_where_the_old_one_was_cut() -> None:
    pair = Pair()
    pair.run(1)
    send_one_by_one(pair, ITEMS[:4])
    pair.run(1)
    pair.fate = lambda _sender, _frame: ()
    send_one_by_one(pair, ITEMS[4:])
    pair.run(3)
    pair.fate = lambda _sender, _frame: (DELAY,)
    pair.open()
    pair.run(1)
    assert pair.bob.received == ITEMS
    assert pair.alice.verdicts == []


def test_a_peer_that_restarted_gets_again_what_it_had_not_handled() -> None:
    pair = Pair()
    pair.run(1)
    send_one_by_one(pair, ITEMS[:4])
    pair.run(1)
    pair.fate = lambda _sender, _frame: ()
    send_one_by_one(pair, ITEMS[4:])
    pair.run(3)
    pair.bob = type(pair.bob)("bob", b"C" * 16)
    pair.fate = lambda _sender, _frame: (DELAY,)
    pair.open()
    pair.run(1)
    assert pair.bob.received == ITEMS[4:]
    assert pair.alice.verdicts == [Restarted(COUNT - 4)]
    pair.send(b"back", by=pair.bob)
    pair.run(1)
    assert pair.alice.received == [b"back"]
    assert pair.bob.verdicts == []


def test_a_slow_route_is_not_filled_with_copies() -> None:
    """Acknowledgements that are later than the timeout answer the first copies: what followed them is not lost."""
    pair = Pair()
    pair.run(1)
    pair.send(b"quick, so the timeout is short")
    pair.run(1)
    pair.fate = lambda sender, frame: (0.7 + 0.05 * frame.first,) if sender == "alice" else (DELAY,)
    send_one_by_one(pair, [bytes(50_000) for _ in range(15)])
    pair.run(5)
    assert len(pair.bob.received) == 16
    assert pair.alice.delivery.outbox.resent <= 3  # the oldest one, at each timeout until an acknowledgement came
    assert pair.bob.verdicts == []
