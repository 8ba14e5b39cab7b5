"""Links through a real Kafka: the contract, a killed broker, dead peers and their topics, and foreign records."""

import os
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from functools import partial
from types import SimpleNamespace

import pytest
import trio
import trio.testing

import trionode_kafka.link.link
import trionode_kafka.link.listener
import trionode_kafka.link.shared_client
import trionode_kafka.link.transport
from tests.support.foreign_producer import write_foreign_record
from trionode import Identity, Route, open_node, trust_only
from trionode.errors import ConfigError, ConnectionLost, LocalError
from trionode.log import LogThrottle
from trionode.net.transport import Link, load_transport
from trionode.testing import KafkaBroker, transport
from trionode.testing.contract import Held
from trionode.testing.transport import (
    CHECKS,
    SMALL,
    Check,
    Harness,
    a_blocked_direction_blocks_nothing_else,
    a_broken_connection_leaves_whole_frames,
    a_cancelled_connect_leaves_no_link,
    a_cancelled_receive_loses_nothing,
    a_cancelled_serve_frees_its_address,
    a_link_can_be_closed_after_a_cancelled_send,
    a_slow_reader_blocks_the_sender,
    a_wait_ends_when_the_peer_disconnects,
    closing_does_not_need_the_peer,
    run_check,
)
from trionode.workers import echoer
from trionode_kafka.client import KafkaClient, OutgoingRecord, admin, open_kafka_client, wait_for
from trionode_kafka.link import KafkaTransport, claim
from trionode_kafka.link.claim import Claim
from trionode_kafka.link.link import KafkaLink
from trionode_kafka.link.listener import Listener
from trionode_kafka.link.records import Announcement, AnnouncementKind
from trionode_kafka.link.topics import TopicNames, new_id

#: Seconds for everything that a test waits for, also under load; a killed broker is back after 3.5-7 s.
TIMEOUT = 30.0

#: Checks that wait until nothing moves any more, which all can do at the same time.
CLOGGED = {
    a_link_can_be_closed_after_a_cancelled_send,
    a_blocked_direction_blocks_nothing_else,
    a_slow_reader_blocks_the_sender,
    a_broken_connection_leaves_whole_frames,
    a_wait_ends_when_the_peer_disconnects,
    closing_does_not_need_the_peer,
}
#: Checks that cancel at each step of all tasks together, and so want to be alone.
ALONE = {
    a_cancelled_connect_leaves_no_link,
    a_cancelled_receive_loses_nothing,
    a_cancelled_serve_frees_its_address,
}


def harness(broker: KafkaBroker, prefix: str = "trionode-link-") -> Harness:
    served, small = KafkaTransport(prefix=prefix), KafkaTransport(prefix=prefix, max_frame=SMALL)
    return Harness(served, broker.bootstrap, f"{broker.bootstrap}/unreachable", small)


@asynccontextmanager
async def opened(*transports: KafkaTransport) -> AsyncIterator[Sequence[KafkaTransport]]:
    """Open transports as nodes do."""
    async with trio.open_nursery() as nursery:
        yield [transport.open(nursery) for transport in transports]
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def listening(transport: KafkaTransport, at: str) -> AsyncIterator[tuple[str, trio.MemoryReceiveChannel[Link]]]:
    links, accepted = trio.open_memory_channel[Link](100)
    async with trio.open_nursery() as nursery:
        yield await nursery.start(transport.serve, at, links.send), accepted
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def a_pair(broker: KafkaBroker) -> AsyncIterator[tuple[KafkaLink, KafkaLink]]:
    """Both ends of a link, each with a Kafka client of its own, as in two programs."""
    async with (
        opened(KafkaTransport(), KafkaTransport()) as (server, client),
        listening(server, broker.bootstrap) as (at, accepted),
    ):
        one = await client.connect(at)
        other = await accepted.receive()
        assert isinstance(one, KafkaLink)
        assert isinstance(other, KafkaLink)
        yield one, other
        for link in (one, other):
            await link.aclose()


async def in_a_node(check: Check, harness: Harness) -> None:
    """Run a check with transports that are open, and end them with it, as `run_check` does."""
    async with trio.open_nursery() as nursery:
        await check(harness.opened(nursery))
        nursery.cancel_scope.cancel()


async def expect_no_topics(broker: KafkaBroker, prefix: str = "trionode-link-") -> None:
    """Wait until no topics are left. The broker lists a deleted topic for some milliseconds, and longer under load."""
    async with open_kafka_client(broker.bootstrap) as client:
        with trio.move_on_after(TIMEOUT / 3):
            while await client.admin.list_topics(prefix):
                pass  # each look is a round trip
        assert not await client.admin.list_topics(prefix)


@pytest.mark.kafka
@pytest.mark.parametrize("checks", ["other checks", "checks of a clogged link"])
async def test_contract_of_transports_in_many_checks_at_once(
    kafka_broker: KafkaBroker, checks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Only as long as it takes, which is longer with other load: what is not deleted within these seconds is left to a
    # sweep.
    monkeypatch.setattr(trionode_kafka.link.link, "PEER_CLOSE_SECONDS", TIMEOUT / 3)
    monkeypatch.setattr(admin, "DELETE_SECONDS", TIMEOUT / 3)
    chosen = CLOGGED if "clogged" in checks else set(CHECKS) - CLOGGED - ALONE
    prefix = f"test-{os.urandom(4).hex()}-"
    before, on = Held.now(), harness(kafka_broker, prefix)
    with trio.fail_after(2 * TIMEOUT):
        async with trio.open_nursery() as nursery:
            for check in chosen:
                nursery.start_soon(in_a_node, check, on)
    before.require_back()
    await expect_no_topics(kafka_broker, prefix)


@pytest.mark.kafka
@pytest.mark.parametrize("check", [check for check in CHECKS if check in ALONE], ids=lambda check: check.__name__)
async def test_contract_of_transports_when_cancelled(
    kafka_broker: KafkaBroker, check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "STAGES", 5)  # all of them, one after the other, take a minute
    await run_check(check, harness(kafka_broker))


@pytest.mark.kafka
@pytest.mark.soak
@pytest.mark.parametrize("check", [check for check in CHECKS if check not in ALONE], ids=lambda check: check.__name__)
async def test_contract_of_transports_check_by_check(kafka_broker: KafkaBroker, check: Check) -> None:
    await run_check(check, harness(kafka_broker))
    await expect_no_topics(kafka_broker)


@pytest.mark.kafka
async def test_secure_channel_over_kafka_alone(kafka_broker: KafkaBroker) -> None:
    async with open_node("kafka") as bob, open_node(load_transport("kafka")) as alice:
        bob_id, alice_id = await Identity.create(bob.vault), await Identity.create(alice.vault)
        at = await bob.listen(f"kafka:{kafka_broker.bootstrap}/bob-{os.urandom(4).hex()}")
        await bob.start_worker("echoer", echoer)
        await bob.serve_secure_channels("listener", bob_id, trust=trust_only(alice_id.identifier))
        channel = await alice.open_secure_channel(Route(at, "listener"), alice_id, trust=trust_only(bob_id.identifier))
        assert (await alice.ask(Route(channel, "echoer"), "hello")).text == "hello"


@pytest.mark.kafka
async def test_killed_broker_loses_and_doubles_nothing(kafka_broker: KafkaBroker) -> None:
    frames = [b"%d " % number * 100 for number in range(1000)]
    halfway = trio.Event()
    received: list[list[bytes]] = [[], []]

    async def send(link: Link) -> None:
        for start in range(0, len(frames), 10):
            if start == len(frames) // 2:
                halfway.set()
            await link.send(frames[start : start + 10])
            await trio.lowlevel.checkpoint()

    async def receive(link: Link, into: list[bytes]) -> None:
        while len(into) < len(frames):
            into += await link.receive()

    async with a_pair(kafka_broker) as pair:
        with trio.fail_after(TIMEOUT):
            async with trio.open_nursery() as nursery:
                for link, into in zip(pair, received, strict=True):
                    nursery.start_soon(receive, link, into)
                    nursery.start_soon(send, link)
                await halfway.wait()
                await trio.to_thread.run_sync(kafka_broker.kill)
                await trio.to_thread.run_sync(kafka_broker.start)
            for one, other in (pair, pair[::-1]):
                await one.send([b"last"])
                assert await other.receive() == [b"last"]
    assert received == [frames, frames]


@pytest.mark.kafka
async def test_dialer_learns_that_a_listener_has_ended_or_died(
    kafka_broker: KafkaBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trionode_kafka.link.transport, "CONNECT_SECONDS", 0.5)
    a_transport = KafkaTransport(prefix=f"test-{os.urandom(4).hex()}-")
    name = f"{kafka_broker.bootstrap}/name"
    with trio.fail_after(TIMEOUT):
        async with opened(a_transport, a_transport) as (server, client):
            async with listening(server, name) as (at, _):
                pass
            with pytest.raises(ConnectionLost, match="no node listens at kafka:"):
                await client.connect(at)
            await _die(server, name, monkeypatch)
            with pytest.raises(ConnectionLost, match="has that node died"):
                await client.connect(at)


@pytest.mark.kafka
async def test_endpoint_of_a_dead_listener_is_free_and_that_of_a_living_one_is_not(
    kafka_broker: KafkaBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claim, "CLAIM_SECONDS", 0.7)
    monkeypatch.setattr(trionode_kafka.link.link, "PEER_CLOSE_SECONDS", TIMEOUT / 3)
    prefix = f"test-{os.urandom(4).hex()}-"
    a_transport = KafkaTransport(prefix=prefix)
    name = f"{kafka_broker.bootstrap}/name"
    with trio.fail_after(TIMEOUT):
        async with opened(a_transport, a_transport, a_transport) as (dead, server, client):
            await _die(dead, name, monkeypatch)
            async with listening(server, name) as (bound, accepted):
                # Both through another Kafka client, as another program does, and through the same one.
                for rival in (client, server):
                    with pytest.raises(ConfigError, match=f"kafka:{name} is taken"):
                        await rival.serve(name, Link.aclose)
                link = await client.connect(bound)
                other = await accepted.receive()
                await link.send([b"x"])
                assert await other.receive() == [b"x"]
                await link.aclose()
                await other.aclose()
    await expect_no_topics(kafka_broker, prefix)


async def _die(transport: KafkaTransport, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Listen, and leave the topic behind as a killed program does."""
    with monkeypatch.context() as dead:
        dead.setattr(KafkaClient, "delete_topics", lambda self, names: Future[None]())
        dead.setattr(claim, "FREE_SECONDS", 0)
        async with listening(transport, name):
            pass


async def test_suspended_listener_loses_its_endpoint_to_another(monkeypatch: pytest.MonkeyPatch) -> None:
    # The order of the topic decides: LISTEN of B, nothing from A, LISTENING of B, and only then what A answers.
    a, b = new_id(), new_id()
    endpoint = Claim(SimpleNamespace(), "topic", "kafka:host:1/name")  # type: ignore[arg-type]
    announced: list[None] = []
    monkeypatch.setattr(endpoint, "_announce", lambda: announced.append(None))
    endpoint._id, endpoint._has_claimed = a, True
    endpoint._receive(Announcement(AnnouncementKind.LISTENING, b))
    endpoint._receive(Announcement(AnnouncementKind.LISTEN, a))
    endpoint._receive(Announcement(AnnouncementKind.LISTENING, b))
    lost = [endpoint._lost.is_set()]  # it was from before
    endpoint._receive(Announcement(AnnouncementKind.LISTEN, b))
    endpoint._receive(Announcement(AnnouncementKind.LISTENING, a))
    endpoint._receive(Announcement(AnnouncementKind.LISTENING, b))
    lost.append(endpoint._lost.is_set())  # b had read our answer before
    endpoint._receive(Announcement(AnnouncementKind.LISTEN, b))
    endpoint._receive(Announcement(AnnouncementKind.LISTENING, b))
    assert [*lost, endpoint._lost.is_set()] == [False, False, True]
    assert len(announced) == 2


@pytest.mark.kafka
async def test_sweep_deletes_leftovers_and_no_other_topics(
    kafka_broker: KafkaBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = f"test-{os.urandom(4).hex()}-"
    a_transport = KafkaTransport(prefix=prefix)
    old = [f"{prefix}{new_id()}-to-listener", f"{prefix}{new_id()}-to-dialer", f"{prefix}at-dead"]
    foreign = [f"{prefix}mine", f"{prefix}{'g' * 32}-to-listener", f"other-{prefix}{new_id()}-to-listener"]
    async with (
        opened(a_transport, a_transport) as (server, dialer),
        listening(server, f"{kafka_broker.bootstrap}/name") as (at, accepted),
    ):
        one = await dialer.connect(at)
        other = await accepted.receive()
        client = server._clients[kafka_broker.bootstrap].client
        listener = Listener(
            server._clients[kafka_broker.bootstrap],
            SimpleNamespace(),  # type: ignore[arg-type]
            TopicNames(prefix),
            max_frame=1,
            log_throttle=LogThrottle(),
        )
        for names in (old, foreign):
            await client.admin.create_topics(*names, replication_factor=1, settings={})
        await client.producer.load_metadata(old[0])
        await wait_for(client.producer.write(old[0], OutgoingRecord(int(time.time() * 1000), b"x")))
        monkeypatch.setattr(trionode_kafka.link.listener, "LEFTOVER_SECONDS", 600)
        await listener.sweep_once()
        monkeypatch.setattr(trionode_kafka.link.listener, "LEFTOVER_SECONDS", 0)
        monkeypatch.setattr(client.admin, "last_timestamps", partial(_as_if_old, set(old)))
        there = set(await client.admin.list_topics(prefix))
        assert {*old[:2], *foreign[:2]} <= there  # new ones may be of a link that begins
        await listener.sweep_once()
        with trio.fail_after(TIMEOUT):
            while set(await client.admin.list_topics(prefix)) & set(old):
                pass  # each look is a round trip
        assert set(foreign[:2]) <= set(await client.admin.list_topics(prefix))
        await one.send([b"still here"])
        assert await other.receive() == [b"still here"]
        await one.aclose()
        await other.aclose()
        client.delete_topics(foreign)


async def _as_if_old(old: set[str], names: Sequence[str]) -> dict[str, int]:
    return {name: 0 if name in old else 1 << 60 for name in names}


@pytest.mark.kafka
async def test_dials_for_links_that_do_not_exist_cost_nothing(kafka_broker: KafkaBroker) -> None:
    async with (
        opened(KafkaTransport(), KafkaTransport()) as (server, dialer),
        listening(server, kafka_broker.bootstrap) as (at, accepted),
    ):
        link = await dialer.connect(at)
        endpoint = "trionode-link-at-" + at.partition("/")[2]
        for value in (
            b"",
            b"nonsense",
            b"D" + b"0" * 32,
            b"D" + b"../" * 10 + b"xx",
            Announcement(AnnouncementKind.DIAL, new_id()).encode(),
        ):
            dialer._clients[kafka_broker.bootstrap].client.producer.write(endpoint, OutgoingRecord(0, value))
        again = await dialer.connect(at)
        for one in (link, again):
            other = await accepted.receive()
            await one.aclose()
            await other.aclose()


@pytest.mark.kafka
async def test_compressed_record_ends_its_link_and_is_not_unpacked(
    kafka_broker: KafkaBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kafka.record.default_records.gzip_decode", None)
    async with a_pair(kafka_broker) as (one, other), a_pair(kafka_broker) as (third, fourth):
        await third.send([b"before"])
        assert await fourth.receive() == [b"before"]
        strange = partial(write_foreign_record, compressed=True)
        await trio.to_thread.run_sync(strange, kafka_broker.bootstrap, other.reads)
        with (
            trio.fail_after(TIMEOUT),
            pytest.raises(ConnectionLost, match=r"read any more: .*they are compressed"),
        ):
            await other.receive()
        await one.send([b"unread"])
        await third.send([b"still"])
        assert await fourth.receive() == [b"still"]


@pytest.mark.kafka
async def test_links_of_a_node_share_one_client_that_closes_when_it_is_idle(
    kafka_broker: KafkaBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trionode_kafka.link.shared_client, "IDLE_SECONDS", 0.2)
    async with opened(KafkaTransport()) as (both,):
        async with listening(both, kafka_broker.bootstrap) as (at, accepted):
            links = [link for _ in range(3) for link in (await both.connect(at), await accepted.receive())]
            assert len(both._clients) == 1
            for link in links:
                await link.aclose()
        with trio.fail_after(TIMEOUT):
            while both._clients:  # noqa: ASYNC110  # nothing reports it
                await trio.sleep(0.05)


@pytest.mark.parametrize(
    "wrong", ["nonsense", "host:0/x", "host:1/a/b", "host:1/a b", "host:1/" + "x" * 101, "/x", "host:1"]
)
async def test_wrong_address_is_a_config_error(wrong: str) -> None:
    async with opened(KafkaTransport()) as (transport,):
        with pytest.raises(ConfigError, match=r"host:port|NAME"):
            await transport.connect(wrong)


def test_wrong_prefix_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="a prefix is"):
        KafkaTransport(prefix="a/b")


async def test_missing_kafka_is_reported_within_seconds() -> None:
    with trio.fail_after(6):
        async with opened(KafkaTransport()) as (transport,):
            with pytest.raises(ConnectionLost, match=r"no Kafka at 127\.0\.0\.1:1 \(Connection refused\)"):
                await transport.connect("127.0.0.1:1/x")
            with pytest.raises(ConfigError, match=r"can't listen at kafka:127\.0\.0\.1:1/x: no Kafka"):
                await transport.serve("127.0.0.1:1/x", Link.aclose)


async def test_transport_that_is_not_open_says_so() -> None:
    with pytest.raises(LocalError, match="this transport is not open: give it to open_node"):
        await KafkaTransport().connect("127.0.0.1:1/x")
