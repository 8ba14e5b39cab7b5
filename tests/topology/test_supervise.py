"""The log and the reasons of one supervised part; tests/topology/test_running.py tests supervision in whole topologies."""

from itertools import count

import pytest
import trio
import trio.testing

from trionode.errors import AnswerTimeout, ConnectionLost
from trionode.topology.run.startup_order import Part
from trionode.topology.run.supervise import Supervised

PART = Part("alice", "links", "bob")


async def never(_: int) -> None:
    await trio.sleep_forever()


async def test_log_line_holds_the_whole_reason(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def open_(_: int) -> int:
        await trio.lowlevel.checkpoint()
        raise AnswerTimeout("no node answered. " * 40 + "Or the peer refuses this identity")

    with trio.move_on_after(1):
        await Supervised(PART, open_, never).run()
    assert [each.endswith("refuses this identity") for each in caplog.messages] == [True]


async def test_each_type_of_error_is_logged_once(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    tries = count()

    async def open_(failed: int) -> int:
        await trio.lowlevel.checkpoint()
        if next(tries) % 2:
            raise AnswerTimeout(f"no answer: {failed}")
        raise ConnectionLost(f"refused: {failed}")

    supervised = Supervised(PART, open_, never)
    with trio.move_on_after(100):
        await supervised.run()
    assert next(tries) > 10
    assert supervised.reason not in {"refused: 0", "no answer: 1"}  # it is the newest reason
    assert [record.getMessage().partition("is retried: ")[2] for record in caplog.records] == [
        "refused: 0",
        "no answer: 1",
    ]


async def test_fatal_error_is_raised_only_before_the_part_was_open(autojump_clock: trio.testing.MockClock) -> None:
    ended = trio.Event()

    async def open_(failed: int) -> int:
        await trio.lowlevel.checkpoint()
        if failed != 1 and ended.is_set():
            raise AnswerTimeout("too late")
        return 1

    async def end(_: int) -> None:
        ended.set()
        await trio.lowlevel.checkpoint()

    supervised = Supervised(PART, open_, end, fatal=(AnswerTimeout,))
    with trio.move_on_after(10) as scope:
        await supervised.run()
    assert scope.cancelled_caught
    with pytest.raises(AnswerTimeout, match=r"^nodes\.alice\.links\.bob: too late"):
        await Supervised(PART, open_, end, fatal=(AnswerTimeout,)).run()
