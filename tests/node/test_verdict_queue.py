import pytest
import trio
import trio.testing

from trionode import Rollback, Truncated
from trionode.routing import verdict_queue
from trionode.routing.verdict_queue import VerdictQueue


async def test_the_newest_verdicts_are_kept_and_the_others_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdict_queue, "MAX_VERDICTS", 3)
    queue = VerdictQueue()
    for number in range(5):
        queue.put(Truncated("s", number, number))
    assert (len(queue), queue.dropped) == (3, 2)
    assert [await queue.receive() for _ in range(3)] == [Truncated("s", number, number) for number in (2, 3, 4)]


async def test_a_waiting_program_gets_a_verdict_and_then_the_end() -> None:
    queue, got = VerdictQueue(), []

    async def take() -> None:
        got.extend([verdict async for verdict in queue])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take)
        await trio.testing.wait_all_tasks_blocked()
        queue.put(Rollback("s", 5, 0))
        queue.close()
        queue.put(Rollback("s", 6, 0))
    assert got == [Rollback("s", 5, 0)]


def test_verdicts_say_what_happened_in_plain_words() -> None:
    assert str(Truncated("s", 2, 7)) == "the records 2 to 7 of the stream s are gone"
    assert "read up to 9, and now ends at 3" in str(Rollback("s", 9, 3))
    assert "acknowledged 9 messages, and now knows of 3" in str(Rollback(None, 9, 3))
