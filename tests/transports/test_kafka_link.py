"""A link over topics in memory, in virtual time: flow control, doubles, gaps, silence, outages and foreign records."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from functools import partial
from typing import cast

import pytest
import trio
import trio.testing

from trionode.errors import ConnectionLost, RemoteError, WireError
from trionode.net.transport import Link
from trionode.stream.store.base import StoreError
from trionode_kafka.client import (
    BrokerUnavailableError,
    FetchedRecord,
    KafkaClient,
    OnConfirmed,
    OnRecords,
    OutgoingRecord,
    RefusedByBrokerError,
)
from trionode_kafka.link.link import (
    ACKNOWLEDGE_BYTES,
    CLOSE_SECONDS,
    FRAME_SECONDS,
    HEARTBEAT_SECONDS,
    PEER_CLOSE_SECONDS,
    SILENCE_SECONDS,
    STALL_TIMEOUT,
    WINDOW,
    KafkaLink,
    open_link,
)
from trionode_kafka.link.records import RECORD_BYTES, LinkRecord, RecordKind
from trionode_kafka.link.shared_client import CONFIRM_SECONDS, IDLE_SECONDS, SharedClient


class Topics:
    """A Kafka in memory, which several clients share."""

    def __init__(self) -> None:
        self.records: dict[str, list[bytes]] = {"there": [], "back": []}
        self.followers: dict[str, OnRecords] = {}
        self.deleted: set[str] = set()
        self.is_away = False
        #: The writes that wait while it is away.
        self.waiting: list[Callable[[], None]] = []

    def write(self, topic: str, *values: bytes) -> None:
        """Write as any program can."""
        for value in values:
            self.records[topic].append(value)
            self.pass_on(topic, len(self.records[topic]) - 1)

    def pass_on(self, topic: str, start: int) -> None:
        if on_records := self.followers.get(topic):
            on_records([FetchedRecord(at, 0, value) for at, value in enumerate(self.records[topic])][start:])

    def come_back(self) -> None:
        self.is_away = False
        waiting, self.waiting = self.waiting, []
        for call in waiting:
            call()


class FakeClient:
    """The part of a KafkaClient that links use. It is its own producer and follower."""

    def __init__(self, topics: Topics) -> None:
        self._topics = topics
        self.producer = self.follower = self
        #: What every record gets until the producer is replaced.
        self.fails: StoreError | None = None

    def follow(self, topic: str, offset: int, on_records: OnRecords) -> None:
        self._topics.followers[topic] = on_records
        self._soon(lambda: self._topics.pass_on(topic, offset))

    def unfollow(self, topic: str) -> None:
        self._topics.followers.pop(topic, None)

    async def load_metadata(self, *topics: str) -> None:
        await trio.lowlevel.checkpoint()

    def send(self, topic: str, batch: Sequence[tuple[OutgoingRecord, OnConfirmed]]) -> None:
        for record, confirmed in batch:
            self._soon(partial(self._write, topic, record, confirmed))

    def write(self, topic: str, record: OutgoingRecord) -> Future[int]:
        written: Future[int] = Future()
        self.send(topic, [(record, written.set_result)])  # type: ignore[list-item]  # no test lets it fail
        return written

    def _write(self, topic: str, record: OutgoingRecord, confirmed: OnConfirmed) -> None:
        if self._topics.is_away:
            self._topics.waiting.append(partial(self._write, topic, record, confirmed))
        elif self.fails is not None:
            confirmed(self.fails)
        else:
            self._topics.write(topic, record.value)
            confirmed(len(self._topics.records[topic]) - 1)

    async def replace(self) -> None:
        await trio.testing.wait_all_tasks_blocked()
        self.fails = None

    def delete_topics(self, names: Iterable[str]) -> None:
        self._topics.deleted |= set(names)

    def _soon(self, call: Callable[[], None]) -> None:
        trio.lowlevel.current_trio_token().run_sync_soon(call)


class Pair:
    """Both ends of a link, each with a Kafka client of its own, whose tasks can be cancelled."""

    def __init__(self, nurseries: Sequence[trio.Nursery]) -> None:
        self.topics = Topics()
        self.nurseries = nurseries
        self.clients = [FakeClient(self.topics) for _ in range(2)]
        self.shared = [
            SharedClient(cast(KafkaClient, client), nursery)
            for client, nursery in zip(self.clients, nurseries, strict=True)
        ]
        names = ("there", "back")
        self.one, self.other = self.links = [
            open_link(shared, peer=f"kafka:{name}", reads=names[1 - at], writes=name, max_frame=1 << 24)
            for at, (shared, name) in enumerate(zip(self.shared, names, strict=True))
        ]

    def suspend(self, link: KafkaLink) -> None:
        """Let an end do nothing any more."""
        self.topics.followers.pop(link.reads, None)
        link._check_liveness = lambda: None  # type: ignore[method-assign]


@asynccontextmanager
async def a_pair(*, opened: bool = True) -> AsyncIterator[Pair]:
    async with trio.open_nursery() as outer, trio.open_nursery() as one, trio.open_nursery() as other:
        pair = Pair([one, other])
        for shared in pair.shared:
            outer.start_soon(shared.run)
        if opened:
            async with trio.open_nursery() as opening:
                for link in pair.links:
                    opening.start_soon(link.exchange_prefaces)
        yield pair
        for link in pair.links:
            await link.aclose()
        for nursery in (outer, one, other):
            nursery.cancel_scope.cancel()


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


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
async def test_ends_that_close_one_after_the_other_leave_no_topic(order: Sequence[int]) -> None:
    async with a_pair() as pair:
        await pair.one.send([b"last"])
        for at in order:
            await pair.links[at].aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert pair.topics.deleted == {"there", "back"}
        assert not any(nursery.child_tasks for nursery in pair.nurseries)


async def test_ends_that_close_before_the_handshake_leave_no_topic() -> None:
    async with a_pair(opened=False) as pair:
        for link in pair.links:
            await link.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert pair.topics.deleted == {"there", "back"}


async def test_idle_link_stays_open(autojump_clock: trio.testing.MockClock) -> None:
    async with a_pair() as pair:
        await trio.sleep(10 * SILENCE_SECONDS)
        await pair.one.send([b"still"])
        assert await pair.other.receive() == [b"still"]


async def test_silent_peer_is_dead_and_its_topics_are_deleted(autojump_clock: trio.testing.MockClock) -> None:
    async with a_pair() as pair:
        await pair.other.send([b"last"])
        pair.suspend(pair.other)
        await trio.sleep(SILENCE_SECONDS + HEARTBEAT_SECONDS)
        assert await pair.one.receive() == [b"last"]
        await expect(ConnectionLost, "has sent nothing for", pair.one.receive)
        await expect(ConnectionLost, "has sent nothing for", lambda: pair.one.send([b"x"]))
        await pair.one.aclose()
        await trio.sleep(CLOSE_SECONDS)
        assert pair.topics.deleted == {"there", "back"}


async def test_dead_peer_wakes_send_and_receive(autojump_clock: trio.testing.MockClock) -> None:
    async with a_pair() as pair, trio.open_nursery() as nursery:

        async def send_without_end() -> None:
            while True:
                await pair.one.send([bytes(WINDOW)])

        pair.suspend(pair.other)
        nursery.start_soon(expect, ConnectionLost, "has sent nothing for", pair.one.receive)
        nursery.start_soon(expect, ConnectionLost, "has sent nothing for", send_without_end)
        await trio.sleep(SILENCE_SECONDS + HEARTBEAT_SECONDS)


async def test_outage_of_kafka_loses_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with a_pair() as pair:
        pair.topics.is_away = True
        for link in (pair.one, pair.other):
            await link.send([b"kept"])
        await trio.sleep(STALL_TIMEOUT - HEARTBEAT_SECONDS)
        pair.topics.come_back()
        for link in (pair.one, pair.other):
            assert await link.receive() == [b"kept"]
        await trio.sleep(SILENCE_SECONDS)
        await pair.one.send([b"x"])
        assert await pair.other.receive() == [b"x"]


async def test_link_ends_after_the_stall_timeout_of_an_outage(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with a_pair() as pair:
        pair.topics.is_away = True
        await pair.one.send([b"x"])
        await trio.sleep(STALL_TIMEOUT + HEARTBEAT_SECONDS)
        for link in (pair.one, pair.other):
            await expect(ConnectionLost, "Kafka has confirmed nothing for", link.receive)
        pair.topics.come_back()


async def test_failed_producer_is_replaced_and_unconfirmed_records_are_resent_in_order() -> None:
    async with a_pair() as pair:
        pair.clients[0].fails = BrokerUnavailableError("it has failed")
        numbers = [b"%d" % number for number in range(20)]
        for number in numbers:
            await pair.one.send([number])
            await trio.lowlevel.checkpoint()
        assert await frames_of(pair.other, 20) == numbers


async def test_resent_records_that_arrived_are_dropped() -> None:
    async with a_pair() as pair:
        for number in range(5):
            await pair.one.send([b"%d" % number])
            pair.shared[0].producer_failed()
            await pair.one.send([b"again"])
            await trio.testing.wait_all_tasks_blocked()
        assert await frames_of(pair.other, 10) == [frame for n in range(5) for frame in (b"%d" % n, b"again")]
        pair.topics.write("there", *pair.topics.records["there"][-3:])
        await pair.one.send([b"last"])
        assert await pair.other.receive() == [b"last"]


async def test_link_ends_when_kafka_refuses_its_records() -> None:
    async with a_pair() as pair:
        pair.clients[0].fails = RefusedByBrokerError("not any more")
        await pair.one.send([b"x"])
        await expect(ConnectionLost, "can't be written any more: not any more", pair.one.receive)
        await expect(ConnectionLost, "not any more", lambda: pair.one.send([b"x"]))


async def test_reading_resumes_after_an_outage_and_ends_after_a_refusal() -> None:
    async with a_pair() as pair:
        await pair.one.send([b"1"])
        assert await pair.other.receive() == [b"1"]
        pair.topics.followers.pop("there")
        await pair.one.send([b"2"])
        await trio.testing.wait_all_tasks_blocked()
        pair.other.on_records(BrokerUnavailableError("for a while"))
        assert await pair.other.receive() == [b"2"]
        pair.other.on_records(RefusedByBrokerError("not any more"))
        await expect(ConnectionLost, "can't be read any more: not any more", pair.other.receive)


def data(number: int, content: bytes, consumed: int = 0) -> bytes:
    return LinkRecord(RecordKind.DATA, number, consumed, content).encode()


@pytest.mark.parametrize(
    ("values", "error", "match"),
    [
        ([b""], WireError, "expected a record of a link"),
        ([b"nonsense that is long enough for a head"], WireError, "expected a record of a link"),
        ([data(7, b"x")], ConnectionLost, "records 1 to 6 .* are missing"),
        ([data(1, b"x", consumed=1 << 40)], WireError, "acknowledges 1099511627776 bytes of the 1 that were sent"),
        ([data(1, bytes(4))], WireError, "a frame of 0 bytes"),
        ([data(1, b"\xff" * 4)], WireError, "a frame of 4294967295 bytes"),
        ([LinkRecord(RecordKind.CLOSE, 7, 0).encode()], ConnectionLost, "records 1 to 6 .* are missing"),
        (
            [data(n, (b"\0\0\x01\0" + bytes(256)) * (RECORD_BYTES // 260)) for n in range(1, 9)],
            WireError,
            f"sends more than the {WINDOW} bytes",
        ),
    ],
)
async def test_foreign_record_in_a_links_topic_ends_the_link(
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
        for link in pair.links:
            await link.aclose()
        await trio.testing.wait_all_tasks_blocked()
    assert pair.topics.deleted == {"there", "back"}


async def test_end_in_the_middle_of_a_frame_is_an_error() -> None:
    async with a_pair() as pair:
        pair.topics.write("there", data(1, b"\0\0\0\x02x"), LinkRecord(RecordKind.END, 2, 0).encode())
        await expect(ConnectionLost, "in the middle of a frame", pair.other.receive)


async def test_incomplete_frame_ends_the_link_after_its_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with a_pair() as pair:
        pair.one._write(RecordKind.DATA, b"\0\0\0\x02x")
        await trio.sleep(FRAME_SECONDS - HEARTBEAT_SECONDS)
        pair.one._write(RecordKind.DATA, b"y\0\0\0\x02x")
        await trio.sleep(FRAME_SECONDS - HEARTBEAT_SECONDS)
        assert await pair.other.receive() == [b"xy"]
        await trio.sleep(2 * HEARTBEAT_SECONDS)
        await expect(ConnectionLost, "did not complete a frame within 120 s", pair.other.receive)


async def test_window_bounds_unread_data_and_reading_opens_it() -> None:
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


async def test_frames_larger_than_the_window_arrive_and_are_bounded_too() -> None:
    async with a_pair() as pair, trio.open_nursery() as nursery:
        frames = [bytes([n]) * (4 * WINDOW + n) for n in range(3)]
        nursery.start_soon(pair.one.send, frames)
        await trio.testing.wait_all_tasks_blocked()
        written = sum(map(len, pair.topics.records["there"]))
        assert len(frames[0]) < written < len(frames[0]) + 2 * WINDOW + ACKNOWLEDGE_BYTES
        assert await frames_of(pair.other, 3) == frames


async def test_send_cancelled_in_the_middle_of_its_frames_breaks_the_link(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with a_pair() as pair:
        with trio.move_on_after(1):
            await pair.one.send([bytes(3 * WINDOW), bytes(3 * WINDOW)])
        await expect(ConnectionLost, "a send was cancelled in the middle", lambda: pair.one.send([b"x"]))
        await pair.one.aclose()
        assert len(await frames_of(pair.other, 1)) == 1
        await expect(ConnectionLost, "in the middle of a frame", pair.other.receive)


async def test_unconfirmed_record_of_a_cancelled_writer_replaces_the_producer(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with a_pair() as pair:
        shared = pair.shared[0]
        pair.topics.is_away = True
        for _ in range(2):
            with trio.move_on_after(1):
                await shared.write("there", b"x")
        assert shared.producer_epoch == 0
        pair.topics.come_back()
        await trio.sleep(2 * CONFIRM_SECONDS)
        assert shared.producer_epoch == 0
        pair.topics.is_away = True
        with trio.move_on_after(1):
            await shared.write("there", b"x")
        await trio.sleep(2 * CONFIRM_SECONDS)
        assert shared.producer_epoch == 1


async def test_aclose_does_not_wait_and_everything_that_was_sent_arrives() -> None:
    async with a_pair() as pair:
        pair.topics.is_away = True
        await pair.one.send([b"last"])
        await pair.one.aclose()
        with trio.CancelScope() as scope:
            scope.cancel()
            await pair.other.aclose()
        pair.topics.come_back()
        await trio.testing.wait_all_tasks_blocked()
        assert pair.topics.deleted == {"there", "back"}


@pytest.mark.parametrize("is_away", [True, False])
async def test_end_of_a_node_waits_for_kafka_and_for_the_peer_for_a_short_time(
    autojump_clock: trio.testing.MockClock, is_away: bool
) -> None:
    async with a_pair() as pair:
        pair.suspend(pair.other)
        pair.topics.is_away = is_away
        await pair.one.send([b"last"])
        pair.nurseries[0].cancel_scope.cancel()
        await trio.sleep(CLOSE_SECONDS + PEER_CLOSE_SECONDS + 0.1)
        assert not pair.nurseries[0].child_tasks
        # The peer may still read what was sent.
        assert not pair.topics.deleted
        pair.topics.come_back()


async def test_closed_end_waits_for_a_dead_peer_and_then_deletes_both_topics(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with a_pair() as pair:
        pair.suspend(pair.other)
        await pair.one.aclose()
        await trio.sleep(SILENCE_SECONDS - 1)
        assert not pair.topics.deleted
        await trio.sleep(2)
        assert pair.topics.deleted == {"there", "back"}


async def test_shared_client_ends_when_nothing_uses_it(autojump_clock: trio.testing.MockClock) -> None:
    async with trio.open_nursery() as nursery:
        shared = SharedClient(cast(KafkaClient, FakeClient(Topics())), nursery)
        with trio.move_on_after(3 * IDLE_SECONDS):
            async with shared.in_use():
                await shared.run()
                raise AssertionError("it is in use")
        await shared.run()
