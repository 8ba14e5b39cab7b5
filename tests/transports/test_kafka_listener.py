"""A listener over topics in memory, in virtual time: rivals, bad dials, and a topic that is created again."""

import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
import trio.testing

from trionode.net.transport import Link
from trionode.protocol.wire.current_codec import CURRENT
from trionode_kafka.client import (
    FetchedRecord,
    KafkaClient,
    OnConfirmed,
    OnRecords,
    OutgoingRecord,
    RefusedByBrokerError,
    TopicInfo,
)
from trionode_kafka.client.follower import FAILED_SECONDS, Follower
from trionode_kafka.client.threads import CallbackQueue
from trionode_kafka.link import KafkaTransport
from trionode_kafka.link.claim import CLAIM_SECONDS, DIALS_AT_ONCE, MAX_DIALS, MAX_RIVALS, RECLAIM_SECONDS, Claim
from trionode_kafka.link.listener import MAX_HANDSHAKES
from trionode_kafka.link.records import Announcement, AnnouncementKind, LinkRecord, RecordKind
from trionode_kafka.link.shared_client import SharedClient
from trionode_kafka.link.topics import new_id

AT = "kafka.example:9092/name"
ENDPOINT = "trionode-link-at-name"


class Kafka:
    """The part of a KafkaClient that a listener uses. It is its own admin, producer and follower."""

    def __init__(self) -> None:
        self.admin = self.producer = self.follower = self
        self.records: dict[str, list[bytes]] = {}
        self.followers: dict[str, OnRecords] = {}
        self.follows = 0
        self.described: list[list[str]] = []
        self.made = 0
        self.identities: dict[str, str] = {}
        self.is_away = False

    # -- what a KafkaClient does

    async def create_topics(
        self, *names: str, replication_factor: int, settings: Mapping[str, str], keep: bool = True
    ) -> bool:
        await trio.lowlevel.checkpoint()
        return self.make(*names)

    async def describe_topics(self, names: Iterable[str]) -> Mapping[str, TopicInfo]:
        await trio.lowlevel.checkpoint()
        self.described.append(list(names))
        return {name: TopicInfo(name, self.identities[name], 1) for name in self.described[-1] if name in self.records}

    async def load_metadata(self, *topics: str) -> None:
        await trio.lowlevel.checkpoint()

    async def end_offset(self, topic: str) -> int:
        await trio.lowlevel.checkpoint()
        return len(self.records[topic])

    async def list_topics(self, prefix: str) -> Sequence[str]:
        await trio.lowlevel.checkpoint()
        return []

    def follow(self, topic: str, offset: int, on_records: OnRecords) -> None:
        self.follows += 1
        self.followers[topic] = on_records
        self.soon(partial(self._hand_over, topic, offset))

    def unfollow(self, topic: str) -> None:
        self.followers.pop(topic, None)

    def send(self, topic: str, batch: Sequence[tuple[OutgoingRecord, OnConfirmed]]) -> None:
        for record, confirmed in batch:
            self.soon(partial(self._write, topic, record.value, confirmed))

    def write(self, topic: str, record: OutgoingRecord) -> Future[int]:
        written: Future[int] = Future()
        self.send(topic, [(record, written.set_result)])  # type: ignore[list-item]  # no test lets it fail
        return written

    async def replace(self) -> None:
        await trio.lowlevel.checkpoint()

    def delete_topics(self, names: Iterable[str]) -> Future[None]:
        for name in names:
            self.records.pop(name, None)
        deleted: Future[None] = Future()
        deleted.set_result(None)
        return deleted

    # -- what a test does

    def make(self, *names: str) -> bool:
        if any(name in self.records for name in names):
            return False
        for name in names:
            self.made += 1
            self.records[name] = []
            self.identities[name] = str(self.made)
        return True

    def soon(self, call: Callable[[], None]) -> None:
        trio.lowlevel.current_trio_token().run_sync_soon(call)

    def add(self, topic: str, *values: bytes) -> None:
        start = len(self.records[topic])
        self.records[topic] += values
        self._hand_over(topic, start)

    def say(self, kind: AnnouncementKind, *ids: str) -> None:
        self.add(ENDPOINT, *(Announcement(kind, each).encode() for each in ids))

    def said(self, kind: AnnouncementKind) -> list[str]:
        words = [Announcement.decode(value) for value in self.records[ENDPOINT]]
        return [each.id for each in words if each is not None and each.kind is kind]

    def dial(self, *, frames: bytes = b"") -> str:
        """Dial: create both topics, send the preface, and announce the link."""
        link_id = new_id()
        self.make(f"trionode-link-{link_id}-to-listener", f"trionode-link-{link_id}-to-dialer")
        self.add(
            f"trionode-link-{link_id}-to-listener", LinkRecord(RecordKind.DATA, 0, 0, CURRENT.preface + frames).encode()
        )
        self.say(AnnouncementKind.DIAL, link_id)
        return link_id

    def _write(self, topic: str, value: bytes, confirmed: OnConfirmed) -> None:
        if self.is_away:
            return
        self.add(topic, value)
        confirmed(len(self.records[topic]) - 1)

    def _hand_over(self, topic: str, start: int) -> None:
        arrive = self.followers.get(topic)
        if arrive is None:
            return
        if start > len(self.records[topic]):
            self.followers.pop(topic)
            arrive(RefusedByBrokerError("the records at this offset are gone from the topic"))
        else:
            arrive([FetchedRecord(at, 0, value) for at, value in enumerate(self.records[topic])][start:])


class Served:
    """A listener, and the links that it accepted."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.kafka = Kafka()
        self.shared = SharedClient(cast(KafkaClient, self.kafka), nursery)
        self.transport = KafkaTransport().open(nursery)
        self.transport._clients["kafka.example:9092"] = self.shared
        self.links: list[Link] = []
        self.came = trio.Event()

    async def accept(self, link: Link) -> None:
        self.links.append(link)
        self.came.set()
        self.came = trio.Event()

    async def dialled(self) -> Link:
        """Dial until the listener answers; return the link."""
        with trio.fail_after(60):
            while True:
                came = self.came
                self.kafka.dial()
                with trio.move_on_after(1):
                    await came.wait()
                    return self.links[-1]


@asynccontextmanager
async def serving() -> AsyncIterator[Served]:
    async with trio.open_nursery() as links, trio.open_nursery() as nursery:
        one = Served(links)
        nursery.start_soon(one.shared.run)
        await nursery.start(one.transport.serve, AT, one.accept)
        await trio.testing.wait_all_tasks_blocked()
        yield one
        nursery.cancel_scope.cancel()
        links.cancel_scope.cancel()


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]


async def test_forged_announcements_cost_a_listener_some_seconds_only(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving() as served:
        before = trio.current_time()
        for _ in range(10):
            forged = new_id()
            served.kafka.say(AnnouncementKind.LISTEN, forged)
            served.kafka.say(AnnouncementKind.LISTENING, forged)
            await served.dialled()
            assert trio.current_time() - before < 2 * (RECLAIM_SECONDS[0] + CLAIM_SECONDS)
            before = trio.current_time()
        assert [text for text in warnings_in(caplog) if "another listener answers there" in text] == warnings_in(caplog)
        assert len(warnings_in(caplog)) <= 2


async def test_listener_accepts_nothing_while_a_rival_answers_and_reclaims_its_endpoint_later(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with serving() as served:
        other, heard = new_id(), served.kafka.said(AnnouncementKind.LISTEN)
        served.kafka.say(AnnouncementKind.LISTEN, other)
        served.kafka.say(AnnouncementKind.LISTENING, other)
        served.kafka.dial()
        for _ in range(50):
            if served.kafka.said(AnnouncementKind.LISTEN)[-1] not in (*heard, other):
                heard = served.kafka.said(AnnouncementKind.LISTEN)
                served.kafka.say(AnnouncementKind.LISTENING, other)
                served.kafka.dial()
            await trio.sleep(1)
        assert not served.links
        assert len(heard) < 12
        await served.dialled()
        assert served.kafka.said(AnnouncementKind.LISTENING)[-1] != other


async def test_repeated_dial_makes_no_second_link(autojump_clock: trio.testing.MockClock) -> None:
    async with serving() as served:
        link_id = served.kafka.dial(frames=b"\0\0\0\1x")
        served.kafka.say(AnnouncementKind.DIAL, link_id, link_id)
        await trio.testing.wait_all_tasks_blocked()
        served.kafka.say(AnnouncementKind.DIAL, link_id)
        await trio.testing.wait_all_tasks_blocked()
        (link,) = served.links
        assert await link.receive() == [b"x"]
        # Lingering, and when it has left: the topics are there for a moment.
        await link.aclose()
        served.kafka.say(AnnouncementKind.DIAL, link_id)
        await trio.testing.wait_all_tasks_blocked()
        there = served.kafka.records[f"trionode-link-{link_id}-to-listener"]
        served.kafka.add(f"trionode-link-{link_id}-to-listener", LinkRecord(RecordKind.CLOSE, 1, 0).encode())
        served.kafka.records[f"trionode-link-{link_id}-to-listener"] = there
        served.kafka.say(AnnouncementKind.DIAL, link_id)
        await trio.testing.wait_all_tasks_blocked()
        assert len(served.links) == 1


async def test_number_of_remembered_topics_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trionode_kafka.link.shared_client.MAX_CLOSED", 3)
    async with serving() as served:
        for _ in range(5):
            link = await served.dialled()
            await link.aclose()
            served.kafka.add(link.reads, LinkRecord(RecordKind.CLOSE, 1, 0).encode())  # type: ignore[attr-defined]
        await trio.testing.wait_all_tasks_blocked()
        assert len(served.shared._closed) == 3
        assert not served.shared._resend


async def test_endpoint_whose_topic_was_created_again_is_reclaimed(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving() as served:
        served.kafka.add(ENDPOINT, *[b"junk"] * 50)
        await trio.testing.wait_all_tasks_blocked()
        follows = served.kafka.follows
        served.kafka.records.pop(ENDPOINT)
        served.kafka.make(ENDPOINT)
        arrive = served.kafka.followers.pop(ENDPOINT)
        arrive(RefusedByBrokerError("the records at this offset are gone from the topic"))
        await served.dialled()
        assert served.kafka.follows - follows < 5
        (warning,) = warnings_in(caplog)
        assert "is lost, and will be claimed again: the records at this offset are gone" in warning


async def test_endpoint_is_reclaimed_when_kafka_is_back(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with serving() as served:
        served.kafka.followers.pop(ENDPOINT)(RefusedByBrokerError("gone"))
        served.kafka.is_away = True
        await trio.sleep(100)
        assert not served.links
        served.kafka.is_away = False
        await served.dialled()


async def test_invented_dials_are_looked_up_together_and_block_no_other(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving() as served:
        served.kafka.described.clear()
        served.kafka.say(
            AnnouncementKind.DIAL, *("%032x" % (n << 80) for n in range(1000))
        )  # made long ago, as whatever is random
        await trio.testing.wait_all_tasks_blocked()
        assert not served.kafka.described
        served.kafka.say(AnnouncementKind.DIAL, *(new_id() for _ in range(MAX_DIALS)))
        await trio.testing.wait_all_tasks_blocked()
        assert max(map(len, served.kafka.described)) <= 2 * DIALS_AT_ONCE
        assert len(served.kafka.described) <= MAX_DIALS / DIALS_AT_ONCE + 1
        await served.dialled()
        assert not warnings_in(caplog)


async def test_too_many_handshakes_are_logged_once(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving() as served:
        for _ in range(MAX_HANDSHAKES + 20):
            link_id = new_id()
            served.kafka.make(f"trionode-link-{link_id}-to-listener", f"trionode-link-{link_id}-to-dialer")
            served.kafka.say(AnnouncementKind.DIAL, link_id)
        await trio.testing.wait_all_tasks_blocked()
        (warning,) = warnings_in(caplog)
        assert f"{MAX_HANDSHAKES} others are in their handshake" in warning
        await served.dialled()


async def test_flood_of_rivals_is_answered_once_in_a_round_trip(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with serving() as served:
        claim = Claim(served.shared, ENDPOINT, "kafka:" + AT)
        claim._id, claim._read_own_listen, claim._has_claimed = new_id(), True, True
        answers: list[OnConfirmed] = []

        def send(topic: str, batch: Sequence[tuple[OutgoingRecord, OnConfirmed]]) -> None:
            answers.extend(confirmed for _, confirmed in batch)

        served.kafka.send = send  # type: ignore[method-assign]
        for _ in range(3):
            for _ in range(5 * MAX_RIVALS):
                claim._receive(Announcement(AnnouncementKind.LISTEN, new_id()))
            assert len(answers) == 1
            answers.pop()(7)
            assert len(answers) == 1, "one more for rivals that may have missed the first"
        assert len(claim._rivals) == MAX_RIVALS
        answers.pop()(7)
        assert not answers


class OutOfRange:
    """A consumer whose every offset is out of range."""

    def poll(self, *, timeout_ms: int) -> None:
        from kafka.errors import OffsetOutOfRangeError  # after `trionode_kafka.client` has, without its warning

        raise OffsetOutOfRangeError

    def assign(self, topics: object) -> None:
        pass

    def seek(self, topic: object, offset: int) -> None:
        pass

    def close(self, **options: object) -> None:
        pass


async def test_failing_follower_waits_before_it_polls_again() -> None:
    failures, began, done = 0, trio.current_time(), trio.Event()
    clients = SimpleNamespace(make=lambda kind, settings: OutOfRange())
    follower = Follower(cast(Any, clients), CallbackQueue(trio.lowlevel.current_trio_token()))
    await follower.connect()

    def on_records(answer: object) -> None:
        nonlocal failures
        assert isinstance(answer, RefusedByBrokerError)
        failures += 1
        if failures == 4:
            done.set()
        else:
            follower.follow(ENDPOINT, 7, on_records)

    follower.follow(ENDPOINT, 7, on_records)
    await done.wait()
    follower.stop()
    await trio.to_thread.run_sync(follower.thread.join, time.monotonic() + 2)
    assert trio.current_time() - began >= 3 * FAILED_SECONDS
