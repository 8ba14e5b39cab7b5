"""What a link does whatever Kafka does: credit, doubles, gaps, silence, outages and strangers, over topics in memory and in virtual time."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, cast

import pytest
import trio
import trio.testing

from trionode.errors import ConnectionLost, RemoteError, WireError
from trionode.net.transport import Link
from trionode.stream.store.base import StoreError
from trionode_kafka.client import Arrive, AwayError, Bridge, Confirm, Fetched, Outgoing, RefusedByBrokerError
from trionode_kafka.link.frames import RECORD_BYTES, Kind, Record
from trionode_kafka.link.link import (
    CANCELLED_GRACE,
    CLOSE_GRACE,
    FRAME_SECONDS,
    SILENCE_SECONDS,
    STALL_TIMEOUT,
    TELL_BYTES,
    WINDOW,
    KafkaLink,
)
from trionode_kafka.link.shared_client import BEAT_SECONDS, SharedKafka

#: Seconds between two beats of the real thing.
STEP = BEAT_SECONDS / 2


class Topics:
    """A Kafka in memory: what its bridges share."""

    def __init__(self) -> None:
        self.records: dict[str, list[bytes]] = {"there": [], "back": []}
        self.followers: dict[str, Arrive] = {}
        self.deleted: set[str] = set()
        self.is_away = False
        #: What is written for whom while it is away.
        self.waiting: list[Callable[[], None]] = []

    def write(self, topic: str, *values: bytes) -> None:
        """Write as anybody can."""
        for value in values:
            self.records[topic].append(value)
            self.hand_over(topic, len(self.records[topic]) - 1)

    def hand_over(self, topic: str, start: int) -> None:
        if arrive := self.followers.get(topic):
            arrive([Fetched(at, 0, value) for at, value in enumerate(self.records[topic])][start:])

    def come_back(self) -> None:
        self.is_away = False
        waiting, self.waiting = self.waiting, []
        for call in waiting:
            call()


class TopicsBridge:
    """What a link asks of a bridge."""

    def __init__(self, topics: Topics) -> None:
        self._topics = topics
        self.refuses: list[StoreError] = []

    def beat(self, seconds: float, call: Callable[[], None]) -> None:
        pass

    def follow(self, topic: str, offset: int, arrive: Arrive) -> None:
        self._topics.followers[topic] = arrive
        self._soon(lambda: self._topics.hand_over(topic, offset))

    def unfollow(self, topic: str) -> None:
        self._topics.followers.pop(topic, None)

    async def introduce(self, *topics: str) -> None:
        await trio.lowlevel.checkpoint()

    def send(self, topic: str, batch: Sequence[tuple[Outgoing, Confirm]]) -> None:
        for record, confirm in batch:
            self._soon(partial(self._write, topic, record, confirm))

    def _write(self, topic: str, record: Outgoing, confirm: Confirm) -> None:
        if self._topics.is_away:
            self._topics.waiting.append(partial(self._write, topic, record, confirm))
        elif self.refuses:
            confirm(self.refuses.pop(0))
        else:
            self._topics.write(topic, record.value)
            confirm(len(self._topics.records[topic]) - 1)

    def renew_producer_soon(self, then: Callable[[], None]) -> None:
        self._soon(then)

    def close(self) -> None:
        pass

    def delete_topics(self, names: Iterable[str]) -> None:
        self._topics.deleted |= set(names)

    def _soon(self, call: Callable[[], None]) -> None:
        trio.lowlevel.current_trio_token().run_sync_soon(call)


class Pair:
    """Both ends of a link, each with a Kafka client of its own."""

    def __init__(self) -> None:
        self.topics = Topics()
        self.shared = [SharedKafka(cast(Bridge, TopicsBridge(self.topics)), trio.Lock()) for _ in range(2)]
        ways = ("there", "back")
        self.one, self.other = (
            KafkaLink(shared, peer=f"kafka:{way}", reads=ways[1 - at], writes=way, max_frame=1 << 24)
            for at, (shared, way) in enumerate(zip(self.shared, ways, strict=True))
        )
        for shared in self.shared:
            shared.users += 1  # so that the last link closes nothing

    def refuse(self, error: StoreError, times: int = 1) -> None:
        """Let the client of `one` fail for its next records."""
        cast(Any, self.shared[0].bridge).refuses += [error] * times

    async def pass_time(self, seconds: float, *, without: int | None = None) -> None:
        for _ in range(int(seconds / STEP)):
            await trio.sleep(STEP)
            for at, shared in enumerate(self.shared):
                if at != without:
                    shared.beat()


@asynccontextmanager
async def a_pair() -> AsyncIterator[Pair]:
    pair = Pair()
    for link in (pair.one, pair.other):
        await link.open()
    for link in (pair.one, pair.other):
        await link.greeted()
    yield pair
    for link in (pair.one, pair.other):
        await link.aclose()


async def frames_of(link: Link, count: int) -> list[bytes]:
    frames: list[bytes] = []
    while len(frames) < count:
        burst = await link.receive()
        assert burst
        frames += burst
    return frames


async def expect(error: type[RemoteError], match: str, call: Callable[[], Awaitable[object]]) -> None:
    with trio.fail_after(1000), pytest.raises(error, match=match):
        await call()


async def test_ends_that_close_leave_no_topic_whoever_is_first() -> None:
    for order in ((0, 1), (1, 0)):
        pair = Pair()
        links = (pair.one, pair.other)
        for link in links:
            await link.open()
        await pair.one.send([b"last"])
        for at in order:
            await links[at].aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert pair.topics.deleted == {"there", "back"}
        assert not any(link.lingers for link in links)


async def test_ends_that_close_at_the_same_moment_leave_no_topic() -> None:
    pair = Pair()
    async with trio.open_nursery() as nursery:
        for link in (pair.one, pair.other):
            await link.open()
        for link in (pair.one, pair.other):
            nursery.start_soon(link.aclose)
    await trio.testing.wait_all_tasks_blocked()
    assert pair.topics.deleted == {"there", "back"}


async def test_an_idle_link_lives_as_long_as_both_ends_do(autojump_clock: trio.testing.MockClock) -> None:
    async with a_pair() as pair:
        await pair.pass_time(10 * SILENCE_SECONDS)
        await pair.one.send([b"still"])
        assert await pair.other.receive() == [b"still"]


async def test_a_silent_peer_is_dead_and_its_topics_go_with_it(autojump_clock: trio.testing.MockClock) -> None:
    async with a_pair() as pair:
        await pair.other.send([b"last"])
        await pair.pass_time(SILENCE_SECONDS + BEAT_SECONDS, without=1)
        assert await pair.one.receive() == [b"last"]
        await expect(ConnectionLost, "has said nothing for", pair.one.receive)
        await expect(ConnectionLost, "has said nothing for", lambda: pair.one.send([b"x"]))
        await pair.one.aclose()
        assert pair.topics.deleted == {"there", "back"}


async def test_who_waits_is_woken_when_the_peer_is_dead(autojump_clock: trio.testing.MockClock) -> None:
    async with a_pair() as pair, trio.open_nursery() as nursery:

        async def send_without_end() -> None:
            while True:
                await pair.one.send([bytes(WINDOW)])

        nursery.start_soon(expect, ConnectionLost, "has said nothing for", pair.one.receive)
        nursery.start_soon(expect, ConnectionLost, "has said nothing for", send_without_end)
        await pair.pass_time(SILENCE_SECONDS + BEAT_SECONDS, without=1)


async def test_a_link_lives_through_an_outage_of_kafka_and_loses_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with a_pair() as pair:
        pair.topics.is_away = True
        for link in (pair.one, pair.other):
            await link.send([b"kept"])
        await pair.pass_time(STALL_TIMEOUT - BEAT_SECONDS)
        pair.topics.come_back()
        for link in (pair.one, pair.other):
            assert await link.receive() == [b"kept"]
        await pair.pass_time(SILENCE_SECONDS)
        await pair.one.send([b"x"])
        assert await pair.other.receive() == [b"x"]


async def test_a_link_gives_up_when_kafka_is_away_for_longer_than_its_patience(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with a_pair() as pair:
        pair.topics.is_away = True
        await pair.one.send([b"x"])
        await pair.pass_time(STALL_TIMEOUT + BEAT_SECONDS)
        for link in (pair.one, pair.other):
            await expect(ConnectionLost, "Kafka has confirmed nothing for", link.receive)
        began = trio.current_time()
        await pair.one.aclose()
        assert trio.current_time() - began < 2


async def test_a_failed_producer_is_replaced_and_what_it_left_unknown_is_sent_again_in_order() -> None:
    async with a_pair() as pair:
        pair.refuse(AwayError("it has failed"), 3)
        numbers = [b"%d" % number for number in range(20)]
        for number in numbers:
            await pair.one.send([number])
            await trio.lowlevel.checkpoint()
        assert await frames_of(pair.other, 20) == numbers


async def test_what_was_stored_and_is_sent_again_is_dropped() -> None:
    async with a_pair() as pair:
        for number in range(5):
            await pair.one.send([b"%d" % number])
            pair.shared[0].renew()
            await pair.one.send([b"again"])
        assert await frames_of(pair.other, 10) == [frame for n in range(5) for frame in (b"%d" % n, b"again")]
        pair.topics.write("there", *pair.topics.records["there"][-3:])
        await pair.one.send([b"last"])
        assert await pair.other.receive() == [b"last"]


async def test_a_link_that_may_not_write_any_more_ends() -> None:
    async with a_pair() as pair:
        pair.refuse(RefusedByBrokerError("not any more"))
        await pair.one.send([b"x"])
        await expect(ConnectionLost, "can't be written any more: not any more", pair.one.receive)
        await expect(ConnectionLost, "not any more", lambda: pair.one.send([b"x"]))


async def test_a_link_that_can_not_be_read_for_a_while_is_read_on_and_one_that_may_not_ends() -> None:
    async with a_pair() as pair:
        await pair.one.send([b"1"])
        assert await pair.other.receive() == [b"1"]
        pair.topics.followers.pop("there")
        await pair.one.send([b"2"])
        await trio.testing.wait_all_tasks_blocked()
        pair.other.arrive(AwayError("for a while"))
        assert await pair.other.receive() == [b"2"]
        pair.other.arrive(RefusedByBrokerError("not any more"))
        await expect(ConnectionLost, "can't be read any more: not any more", pair.other.receive)


def data(number: int, content: bytes, taken: int = 0) -> bytes:
    return Record(Kind.DATA, number, taken, content).encoded()


@pytest.mark.parametrize(
    ("values", "error", "match"),
    [
        ([b""], WireError, "a record that is none of a link's"),
        ([b"nonsense that is long enough for a head"], WireError, "a record that is none of a link's"),
        ([data(7, b"x")], ConnectionLost, "records 1 to 6 .* are gone"),
        ([data(1, b"x", taken=1 << 40)], WireError, "has taken 1099511627776 bytes of 1"),
        ([data(1, bytes(4))], WireError, "a frame of 0 bytes"),
        ([data(1, b"\xff" * 4)], WireError, "a frame of 4294967295 bytes"),
        ([Record(Kind.CLOSE, 7, 0).encoded()], ConnectionLost, "records 1 to 6 .* are gone"),
        (
            [data(n, (b"\0\0\x01\0" + bytes(256)) * (RECORD_BYTES // 260)) for n in range(1, 9)],
            WireError,
            f"sends more than the {WINDOW} bytes",
        ),
    ],
)
async def test_a_stranger_who_writes_into_a_links_topic_ends_it(
    values: Sequence[bytes], error: type[RemoteError], match: str
) -> None:
    async with a_pair() as pair:
        pair.topics.write("there", *values)

        async def read() -> None:
            while await pair.other.receive():
                pass

        await expect(error, match, read)
        await expect(error, match, read)
        await expect(ConnectionLost, match, lambda: pair.other.send([b"x"]))
    await trio.testing.wait_all_tasks_blocked()
    assert pair.topics.deleted == {"there", "back"}


async def test_an_end_in_the_middle_of_a_frame_is_no_orderly_one() -> None:
    async with a_pair() as pair:
        pair.topics.write("there", data(1, b"\0\0\0\x02x"), Record(Kind.END, 2, 0).encoded())
        await expect(ConnectionLost, "in the middle of a frame", pair.other.receive)


async def test_a_frame_that_is_begun_and_not_ended_ends_the_link_and_one_that_goes_on_does_not(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with a_pair() as pair:
        pair.one._write(Kind.DATA, b"\0\0\0\x02x")
        await pair.pass_time(FRAME_SECONDS - BEAT_SECONDS)
        pair.one._write(Kind.DATA, b"y\0\0\0\x02x")
        await pair.pass_time(FRAME_SECONDS - BEAT_SECONDS)
        assert await pair.other.receive() == [b"xy"]
        await pair.pass_time(2 * BEAT_SECONDS)
        await expect(ConnectionLost, "did not end a frame within 120 s", pair.other.receive)


async def test_no_more_is_under_way_than_the_window_and_what_the_reader_takes_makes_room() -> None:
    async with a_pair() as pair, trio.open_nursery() as nursery:
        frame, sent = bytes(10_000), 0

        async def send() -> None:
            nonlocal sent
            for _ in range(1000):
                await pair.one.send([frame])
                sent += 1

        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked()
        assert WINDOW < sent * len(frame) < WINDOW + 2 * RECORD_BYTES
        before = sent
        await pair.other.receive()
        await trio.testing.wait_all_tasks_blocked()
        assert sent > before
        nursery.cancel_scope.cancel()


async def test_frames_that_are_larger_than_the_window_pass_and_are_bounded_too() -> None:
    async with a_pair() as pair, trio.open_nursery() as nursery:
        frames = [bytes([n]) * (4 * WINDOW + n) for n in range(3)]
        nursery.start_soon(pair.one.send, frames)
        await trio.testing.wait_all_tasks_blocked()
        written = sum(map(len, pair.topics.records["there"]))
        assert len(frames[0]) < written < len(frames[0]) + 2 * WINDOW + TELL_BYTES
        assert await frames_of(pair.other, 3) == frames


async def test_a_send_that_was_cancelled_in_the_middle_of_its_frames_breaks_the_link(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with a_pair() as pair:
        with trio.move_on_after(1):
            await pair.one.send([bytes(3 * WINDOW), bytes(3 * WINDOW)])
        await expect(ConnectionLost, "a send was cancelled in the middle", lambda: pair.one.send([b"x"]))
        await pair.one.aclose()
        assert len(await frames_of(pair.other, 1)) == 1
        await expect(ConnectionLost, "in the middle of a frame", pair.other.receive)


async def test_a_record_that_is_never_confirmed_and_that_nobody_waits_for_is_forgotten_with_its_producer(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with a_pair() as pair:
        shared = pair.shared[0]
        pair.topics.is_away = True
        for _ in range(2):
            with trio.move_on_after(1):
                await shared.write("there", b"x")
        await pair.pass_time(STEP)
        assert shared.protocol_version == 0
        pair.topics.come_back()
        await pair.pass_time(2 * BEAT_SECONDS)
        assert shared.protocol_version == 0
        pair.topics.is_away = True
        with trio.move_on_after(1):
            await shared.write("there", b"x")
        await pair.pass_time(2 * BEAT_SECONDS)
        assert shared.protocol_version == 1


async def test_closing_waits_a_short_time_for_a_kafka_that_is_away(autojump_clock: trio.testing.MockClock) -> None:
    async with a_pair() as pair:
        pair.topics.is_away = True
        began = trio.current_time()
        await pair.one.aclose()
        with trio.CancelScope() as scope:
            scope.cancel()
            await pair.other.aclose()
        assert trio.current_time() - began < 2
        pair.topics.come_back()
        await trio.testing.wait_all_tasks_blocked()
        assert pair.topics.deleted == {"there", "back"}


async def test_a_kafka_that_is_away_holds_up_the_last_link_for_a_second(autojump_clock: trio.testing.MockClock) -> None:
    pair = Pair()
    for link in (pair.one, pair.other):
        await link.open()
        link._shared.users -= 1
    await trio.testing.wait_all_tasks_blocked()
    pair.topics.is_away = True
    began = trio.current_time()
    await pair.one.aclose()
    assert pair.shared[0].closed
    assert trio.current_time() - began <= CLOSE_GRACE
    with trio.CancelScope() as scope:
        scope.cancel()
        await pair.other.aclose()
    assert trio.current_time() - began <= CLOSE_GRACE + CANCELLED_GRACE


async def test_a_closed_end_waits_for_a_dead_peer_and_then_deletes_what_is_left(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with a_pair() as pair:
        pair.topics.followers.pop("there")  # the other one stands still
        await pair.one.aclose()
        await pair.pass_time(SILENCE_SECONDS - STEP, without=1)
        assert pair.one.lingers
        assert not pair.topics.deleted
        await pair.pass_time(2 * STEP, without=1)
        assert pair.topics.deleted == {"there", "back"}
