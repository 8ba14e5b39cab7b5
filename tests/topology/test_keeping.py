"""What is told of something that is opened again and again; tests/topology/test_running.py has it in its places."""

from itertools import count

import pytest
import trio
import trio.testing

from trionode.errors import AnswerTimeout, ConnectionLost
from trionode.topology.run.startup_order import Part
from trionode.topology.run.supervise import Kept


async def test_a_reason_that_is_a_sentence_of_ours_is_told_whole(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    kept: Kept[int] = Kept(Part("alice", "links", "bob"))

    async def open_(_: int) -> int:
        await trio.lowlevel.checkpoint()
        raise AnswerTimeout("nobody answered. " * 40 + "Or the peer refuses this identity")

    async def ended(_: int) -> None:
        await trio.sleep_forever()

    with trio.move_on_after(1):
        await kept.keep(open_, ended)
    assert [each.endswith("refuses this identity") for each in caplog.messages] == [True]


async def test_a_remote_that_words_its_refusal_anew_each_time_is_told_of_once(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    kept: Kept[int] = Kept(Part("alice", "links", "bob"))
    tries = count()

    async def open_(failed: int) -> int:
        await trio.lowlevel.checkpoint()
        if next(tries) % 2:
            raise AnswerTimeout(f"no answer: {failed}")
        raise ConnectionLost(f"refused: {failed}")

    async def ended(_: int) -> None:
        await trio.sleep_forever()

    with trio.move_on_after(100):
        await kept.keep(open_, ended)
    assert next(tries) > 10
    assert kept.reason not in {"refused: 0", "no answer: 1"}  # who asks hears the latest
    assert [record.getMessage().partition("until it is: ")[2] for record in caplog.records] == [
        "refused: 0",
        "no answer: 1",
    ]
