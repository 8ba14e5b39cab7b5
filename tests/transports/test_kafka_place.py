"""What a listener does whatever is said at its place: who takes it, who dials twice or for nothing, and a topic that is made anew, in memory and virtual time."""

import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import cast

import pytest
import trio
import trio.testing

import trionode_kafka.link.endpoint
from trionode.net.transport import Link
from trionode.protocol.wire.current_codec import CURRENT
from trionode_kafka.client import Arrive, Bridge, Confirm, Fetched, Outgoing, RefusedByBrokerError, Slot, Topic
from trionode_kafka.client.follower import FAILED_SECONDS, Tails
from trionode_kafka.link.endpoint import DIALS_AT_ONCE, MAX_DIALS, MAX_RIVALS, Endpoint, fresh_id
from trionode_kafka.link.frames import Invitation, Kind, Record, Word
from trionode_kafka.link.shared_client import SharedKafka
from trionode_kafka.link.transport import AGAIN_SECONDS, MAX_GREETING, KafkaTransport

AT = "kafka.example:9092/name"
ENDPOINT = "trionode-link-at-name"


class Kafka:
    """A Kafka in memory, with what a listener asks of its bridge; all that is written is read by one follower a topic."""

    def __init__(self) -> None:
        self.records: dict[str, list[bytes]] = {}
        self.followers: dict[str, Arrive] = {}
        self.follows = 0
        self.described: list[list[str]] = []
        self.made = 0
        self.identities: dict[str, str] = {}
        self.is_away = False

    # -- what a bridge does

    def beat(self, seconds: float, call: Callable[[], None]) -> None:
        pass

    async def create_topics(
        self, names: Sequence[str], *, replication_factor: int, settings: Mapping[str, str], keep: bool = True
    ) -> bool:
        await trio.lowlevel.checkpoint()
        return self.make(*names)

    async def describe(self, names: Iterable[str]) -> Mapping[str, Topic]:
        await trio.lowlevel.checkpoint()
        self.described.append(list(names))
        return {name: Topic(name, self.identities[name], 1) for name in self.described[-1] if name in self.records}

    async def introduce(self, *topics: str) -> None:
        await trio.lowlevel.checkpoint()

    async def end_offset(self, topic: str) -> int:
        await trio.lowlevel.checkpoint()
        return len(self.records[topic])

    async def topics(self, prefix: str) -> Sequence[str]:
        await trio.lowlevel.checkpoint()
        return []

    def follow(self, topic: str, offset: int, arrive: Arrive) -> None:
        self.follows += 1
        self.followers[topic] = arrive
        self.soon(partial(self._hand_over, topic, offset))

    def unfollow(self, topic: str) -> None:
        self.followers.pop(topic, None)

    def send(self, topic: str, batch: Sequence[tuple[Outgoing, Confirm]]) -> None:
        for record, confirm in batch:
            self.soon(partial(self._write, topic, record.value, confirm))

    def renew_producer_soon(self, then: Callable[[], None]) -> None:
        self.soon(then)

    def delete_topics(self, names: Iterable[str]) -> Slot[None]:
        for name in names:
            self.records.pop(name, None)
        slot: Slot[None] = Slot(trio.lowlevel.current_trio_token())
        slot.give(None)
        return slot

    def close(self) -> None:
        pass

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

    def write(self, topic: str, *values: bytes) -> None:
        start = len(self.records[topic])
        self.records[topic] += values
        self._hand_over(topic, start)

    def say(self, word: Word, *ids: str) -> None:
        self.write(ENDPOINT, *(Invitation(word, each).encoded() for each in ids))

    def said(self, word: Word) -> list[str]:
        words = [Invitation.decode(value) for value in self.records[ENDPOINT]]
        return [each.who for each in words if each is not None and each.word is word]

    def dial(self, *, frames: bytes = b"") -> str:
        """Do as one who connects: make both topics, greet, and say so."""
        link_id = fresh_id()
        self.make(f"trionode-link-{link_id}-there", f"trionode-link-{link_id}-back")
        self.write(f"trionode-link-{link_id}-there", Record(Kind.DATA, 0, 0, CURRENT.preface + frames).encoded())
        self.say(Word.DIAL, link_id)
        return link_id

    def _write(self, topic: str, value: bytes, confirm: Confirm) -> None:
        if self.is_away:
            return
        self.write(topic, value)
        confirm(len(self.records[topic]) - 1)

    def _hand_over(self, topic: str, start: int) -> None:
        arrive = self.followers.get(topic)
        if arrive is None:
            return
        if start > len(self.records[topic]):
            self.followers.pop(topic)
            arrive(RefusedByBrokerError("records that were to be read are gone from the topic"))
        else:
            arrive([Fetched(at, 0, value) for at, value in enumerate(self.records[topic])][start:])


class Served:
    """A listener, and the links that it got."""

    def __init__(self) -> None:
        self.kafka = Kafka()
        self.transport = KafkaTransport()
        self.shared = SharedKafka(cast(Bridge, self.kafka), trio.Lock())
        self.shared.users += 1  # so that nobody closes it
        self.transport._kafkas._connected["kafka.example:9092"] = self.shared
        self.links: list[Link] = []
        self.came = trio.Event()

    async def accept(self, link: Link) -> None:
        self.links.append(link)
        self.came.set()
        self.came = trio.Event()

    async def dialled(self) -> Link:
        """The link of one who dials now; with patience until the listener hears."""
        with trio.fail_after(60):
            while True:
                came = self.came
                self.kafka.dial()
                with trio.move_on_after(1):
                    await came.wait()
                    return self.links[-1]


@asynccontextmanager
async def serving() -> AsyncIterator[Served]:
    one = Served()
    async with trio.open_nursery() as nursery:
        await nursery.start(one.transport.serve, AT, one.accept)
        await trio.testing.wait_all_tasks_blocked()
        yield one
        for link in one.links:
            await link.aclose()
        nursery.cancel_scope.cancel()


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]


async def test_two_records_of_a_stranger_cost_a_listener_some_seconds_and_nothing_else(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving() as served:
        before = trio.current_time()
        for _ in range(10):
            stranger = fresh_id()
            served.kafka.say(Word.LISTEN, stranger)
            served.kafka.say(Word.LOCAL, stranger)
            await served.dialled()
            assert trio.current_time() - before < 2 * (AGAIN_SECONDS + trionode_kafka.link.endpoint.CLAIM_SECONDS)
            before = trio.current_time()
        assert [
            text for text in warnings_in(caplog) if "somebody else says that he listens there" in text
        ] == warnings_in(caplog)
        assert len(warnings_in(caplog)) <= 2


async def test_who_lost_his_place_to_one_who_answers_dials_no_more_and_has_it_again_when_that_one_ends(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with serving() as served:
        other, heard = fresh_id(), served.kafka.said(Word.LISTEN)
        served.kafka.say(Word.LISTEN, other)
        served.kafka.say(Word.LOCAL, other)
        served.kafka.dial()
        for _ in range(50):
            if served.kafka.said(Word.LISTEN)[-1] not in (*heard, other):
                heard = served.kafka.said(Word.LISTEN)
                served.kafka.say(Word.LOCAL, other)
                served.kafka.dial()
            await trio.sleep(1)
        assert not served.links
        assert len(heard) < 12
        await served.dialled()
        assert served.kafka.said(Word.LOCAL)[-1] != other


async def test_a_dial_that_is_said_again_makes_no_second_link(autojump_clock: trio.testing.MockClock) -> None:
    async with serving() as served:
        link_id = served.kafka.dial(frames=b"\0\0\0\1x")
        served.kafka.say(Word.DIAL, link_id, link_id)
        await trio.testing.wait_all_tasks_blocked()
        served.kafka.say(Word.DIAL, link_id)
        await trio.testing.wait_all_tasks_blocked()
        (link,) = served.links
        assert await link.receive() == [b"x"]
        # Lingering, and when it has left: the topics are there for a moment.
        await link.aclose()
        served.kafka.say(Word.DIAL, link_id)
        await trio.testing.wait_all_tasks_blocked()
        there = served.kafka.records[f"trionode-link-{link_id}-there"]
        served.kafka.write(f"trionode-link-{link_id}-there", Record(Kind.CLOSE, 1, 0).encoded())
        served.kafka.records[f"trionode-link-{link_id}-there"] = there
        served.kafka.say(Word.DIAL, link_id)
        await trio.testing.wait_all_tasks_blocked()
        assert len(served.links) == 1


async def test_what_is_remembered_of_links_that_have_left_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trionode_kafka.link.shared_client.MAX_LEFT", 3)
    async with serving() as served:
        for _ in range(5):
            link = await served.dialled()
            await link.aclose()
            served.kafka.write(link.reads, Record(Kind.CLOSE, 1, 0).encoded())  # type: ignore[attr-defined]
        assert len(served.shared._read) == 3
        assert not served.shared._reading


async def test_a_place_that_was_made_anew_is_claimed_again_and_not_asked_for_without_end(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving() as served:
        served.kafka.write(ENDPOINT, *[b"junk"] * 50)
        await trio.testing.wait_all_tasks_blocked()
        follows = served.kafka.follows
        served.kafka.records.pop(ENDPOINT)
        served.kafka.make(ENDPOINT)
        arrive = served.kafka.followers.pop(ENDPOINT)
        arrive(RefusedByBrokerError("records that were to be read are gone from the topic"))
        await served.dialled()
        assert served.kafka.follows - follows < 5
        (warning,) = warnings_in(caplog)
        assert "is lost, and will be claimed again: records that were to be read are gone" in warning


async def test_a_place_that_can_not_be_claimed_while_kafka_is_away_is_claimed_when_it_is_back(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with serving() as served:
        served.kafka.followers.pop(ENDPOINT)(RefusedByBrokerError("gone"))
        served.kafka.is_away = True
        await trio.sleep(100)
        assert not served.links
        served.kafka.is_away = False
        await served.dialled()


async def test_dials_that_somebody_invents_are_asked_for_together_and_shut_nobody_out(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving() as served:
        served.kafka.described.clear()
        served.kafka.say(Word.DIAL, *("%032x" % (n << 80) for n in range(1000)))  # made long ago, as whatever is random
        await trio.testing.wait_all_tasks_blocked()
        assert not served.kafka.described
        served.kafka.say(Word.DIAL, *(fresh_id() for _ in range(MAX_DIALS)))
        await trio.testing.wait_all_tasks_blocked()
        assert max(map(len, served.kafka.described)) <= 2 * DIALS_AT_ONCE
        assert len(served.kafka.described) <= MAX_DIALS / DIALS_AT_ONCE + 1
        await served.dialled()
        assert not warnings_in(caplog)


async def test_those_who_greet_too_many_at_a_time_are_told_of_once(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving() as served:
        for _ in range(MAX_GREETING + 20):
            link_id = fresh_id()
            served.kafka.make(f"trionode-link-{link_id}-there", f"trionode-link-{link_id}-back")
            served.kafka.say(Word.DIAL, link_id)
        await trio.testing.wait_all_tasks_blocked()
        (warning,) = warnings_in(caplog)
        assert f"{MAX_GREETING} others have not greeted" in warning
        await served.dialled()


async def test_a_flood_of_listens_is_answered_once_a_round_trip_and_remembered_in_part(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with serving() as served:
        endpoint = Endpoint(served.shared, ENDPOINT, "kafka:" + AT)
        endpoint._me, endpoint._listened, endpoint._claimed = fresh_id(), True, True
        said: list[Confirm] = []
        served.kafka.send = lambda topic, batch: said.extend(confirm for _, confirm in batch)  # type: ignore[method-assign]
        for _ in range(3):
            for _ in range(5 * MAX_RIVALS):
                endpoint._hear(Invitation(Word.LISTEN, fresh_id()))
            assert len(said) == 1
            said.pop()(7)
            assert len(said) == 1, "one more for those who may have missed the first"
        assert len(endpoint._rivals) == MAX_RIVALS
        said.pop()(7)
        assert not said


class OutOfRange:
    """A consumer whose topics have lost what was to be read, whatever that is."""

    def poll(self, *, timeout_ms: int) -> None:
        from kafka.errors import OffsetOutOfRangeError  # once `trionode_kafka.bridge` has loaded it without a warning

        raise OffsetOutOfRangeError

    def assign(self, topics: object) -> None:
        pass

    def seek(self, topic: object, offset: int) -> None:
        pass

    def close(self, **options: object) -> None:
        pass


async def test_who_follows_again_at_once_what_is_gone_makes_no_thread_spin() -> None:
    failures, began, done = 0, trio.current_time(), trio.Event()
    tails = Tails(OutOfRange(), trio.lowlevel.current_trio_token())

    def arrive(answer: object) -> None:
        nonlocal failures
        assert isinstance(answer, RefusedByBrokerError)
        failures += 1
        if failures == 4:
            done.set()
        else:
            tails.order(ENDPOINT, 7, arrive)

    tails.order(ENDPOINT, 7, arrive)
    await done.wait()
    await trio.to_thread.run_sync(tails.end)
    assert trio.current_time() - began >= 3 * FAILED_SECONDS
