"""Links straight through a real Kafka: the contract, nothing lost or doubled over a kill, who is dead and what the dead leave, and strangers in the topics."""

import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from types import SimpleNamespace

import pytest
import trio
import trio.testing

import trionode_kafka.link.endpoint
import trionode_kafka.link.link
import trionode_kafka.link.shared_client
import trionode_kafka.link.transport
from tests.support.strangers import write_strangely
from trionode import Identity, Route, open_node, trust_only
from trionode.errors import ConnectionLost, LocalError
from trionode.net.transport import Link, load_transport
from trionode.testing import KafkaBroker, transport
from trionode.testing.contract import Held
from trionode.testing.transport import (
    CHECKS,
    SMALL,
    Check,
    Ground,
    a_cancelled_connect_leaves_no_link,
    a_cancelled_receive_takes_nothing,
    a_cancelled_send_to_a_clogged_peer_can_be_closed,
    a_cancelled_serve_leaves_its_place_free,
    a_clogged_direction_holds_up_nothing_else,
    a_clogged_peer_blocks_the_sender_until_it_reads,
    a_peer_that_vanishes_leaves_whole_frames,
    a_wait_ends_when_the_peer_goes,
    closing_needs_no_peer_that_listens,
    run_check,
)
from trionode.workers import echoer
from trionode_kafka.client import Outgoing, connection
from trionode_kafka.link.endpoint import Endpoint, fresh_id
from trionode_kafka.link.frames import Invitation, Word
from trionode_kafka.link.link import KafkaLink
from trionode_kafka.link.shared_client import SharedKafka
from trionode_kafka.link.transport import KafkaTransport

#: Seconds for whatever a test waits for, on a machine with other load; a broker killed is back after 3.5-7 s.
STALL_TIMEOUT = 30.0

#: Checks that wait until nothing moves any more, which all can do at the same time.
CLOGGED = {
    a_cancelled_send_to_a_clogged_peer_can_be_closed,
    a_clogged_direction_holds_up_nothing_else,
    a_clogged_peer_blocks_the_sender_until_it_reads,
    a_peer_that_vanishes_leaves_whole_frames,
    a_wait_ends_when_the_peer_goes,
    closing_needs_no_peer_that_listens,
}
#: Checks that cancel at each step of all tasks together, and so want to be alone.
ALONE = {
    a_cancelled_connect_leaves_no_link,
    a_cancelled_receive_takes_nothing,
    a_cancelled_serve_leaves_its_place_free,
}


def ground(broker: KafkaBroker, prefix: str = "trionode-link-") -> Ground:
    served, small = KafkaTransport(prefix=prefix), KafkaTransport(prefix=prefix, max_frame=SMALL)
    return Ground(served, broker.bootstrap, f"{broker.bootstrap}/nobody", small)


@asynccontextmanager
async def listening(served: KafkaTransport, at: str) -> AsyncIterator[tuple[str, trio.MemoryReceiveChannel[Link]]]:
    links, accepted = trio.open_memory_channel[Link](100)
    async with trio.open_nursery() as nursery:
        yield await nursery.start(served.serve, at, links.send), accepted
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def a_pair(broker: KafkaBroker) -> AsyncIterator[tuple[KafkaLink, KafkaLink]]:
    """Both ends of a link, each with a Kafka client of its own, as in two programs."""
    async with listening(KafkaTransport(), broker.bootstrap) as (at, accepted):
        one = await KafkaTransport().connect(at)
        other = await accepted.receive()
        assert isinstance(one, KafkaLink)
        assert isinstance(other, KafkaLink)
        try:
            yield one, other
        finally:
            for link in (one, other):
                await link.aclose()


async def rest(link: Link) -> list[bytes]:
    frames: list[bytes] = []
    while burst := await link.receive():
        frames += burst
    return frames


async def topics(broker: KafkaBroker, prefix: str = "trionode-link-") -> Sequence[str]:
    from trionode_kafka.client import open_bridge

    async with open_bridge(broker.bootstrap) as bridge:
        return await bridge.topics(prefix)


@pytest.mark.kafka
@pytest.mark.parametrize("checks", ["those that wait for nobody", "those of a clogged link"])
async def test_kafka_keeps_the_contract_in_many_checks_at_once(
    kafka_broker: KafkaBroker, checks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Only as long as it takes, which is longer with other load: what is not deleted within these seconds is left to a sweep.
    monkeypatch.setattr(trionode_kafka.link.shared_client, "LINGER_SECONDS", STALL_TIMEOUT / 3)
    monkeypatch.setattr(connection, "FAREWELL_SECONDS", STALL_TIMEOUT / 3)
    chosen = CLOGGED if "clogged" in checks else set(CHECKS) - CLOGGED - ALONE
    prefix = f"test-{os.urandom(4).hex()}-"
    before, on = Held.now(), ground(kafka_broker, prefix)
    with trio.fail_after(2 * STALL_TIMEOUT):
        async with trio.open_nursery() as nursery:
            for check in chosen:
                nursery.start_soon(check, on)
    before.require_back()
    assert not await topics(kafka_broker, prefix)


@pytest.mark.kafka
@pytest.mark.parametrize("check", [check for check in CHECKS if check in ALONE], ids=lambda check: check.__name__)
async def test_kafka_keeps_the_contract_when_it_is_cancelled(
    kafka_broker: KafkaBroker, check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "STAGES", 5)  # all of them, one after the other, take a minute
    await run_check(check, ground(kafka_broker))


@pytest.mark.kafka
@pytest.mark.soak
@pytest.mark.parametrize("check", [check for check in CHECKS if check not in ALONE], ids=lambda check: check.__name__)
async def test_kafka_keeps_the_contract_in_each_check_by_itself(kafka_broker: KafkaBroker, check: Check) -> None:
    await run_check(check, ground(kafka_broker))
    assert not await topics(kafka_broker)


@pytest.mark.kafka
async def test_two_nodes_talk_through_a_secure_channel_over_nothing_but_kafka(kafka_broker: KafkaBroker) -> None:
    async with open_node("kafka") as bob, open_node(load_transport("kafka")) as alice:
        bob_id, alice_id = await Identity.create(bob.vault), await Identity.create(alice.vault)
        at = await bob.listen(f"kafka:{kafka_broker.bootstrap}/bob-{os.urandom(4).hex()}")
        await bob.start_worker("echoer", echoer)
        await bob.serve_secure_channels("listener", bob_id, trust=trust_only(alice_id.identifier))
        channel = await alice.open_secure_channel(Route(at, "listener"), alice_id, trust=trust_only(bob_id.identifier))
        assert (await alice.ask(Route(channel, "echoer"), "hello")).text == "hello"


@pytest.mark.kafka
@pytest.mark.faults
async def test_a_link_loses_and_doubles_nothing_when_the_broker_is_killed_in_between(kafka_broker: KafkaBroker) -> None:
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
        with trio.fail_after(STALL_TIMEOUT):
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
async def test_a_dialler_is_told_at_once_that_a_listener_has_ended_and_soon_that_it_died(
    kafka_broker: KafkaBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trionode_kafka.link.transport, "CONNECT_SECONDS", 0.5)
    make = partial(KafkaTransport, prefix=f"test-{os.urandom(4).hex()}-")
    name = f"{kafka_broker.bootstrap}/somebody"
    with trio.fail_after(STALL_TIMEOUT):
        async with listening(make(), name) as (at, _):
            pass
        with pytest.raises(ConnectionLost, match="nobody listens at kafka:"):
            await make().connect(at)
        await _die_at(make(), name, monkeypatch)
        with pytest.raises(ConnectionLost, match="has the node that listened there died"):
            await make().connect(at)


@pytest.mark.kafka
async def test_a_place_of_a_dead_listener_is_taken_over_and_that_of_a_living_one_is_not(
    kafka_broker: KafkaBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trionode_kafka.link.endpoint, "CLAIM_SECONDS", 0.7)
    prefix = f"test-{os.urandom(4).hex()}-"
    make = partial(KafkaTransport, prefix=prefix)
    name = f"{kafka_broker.bootstrap}/somebody"
    with trio.fail_after(STALL_TIMEOUT):
        await _die_at(make(), name, monkeypatch)
        async with listening(make(), name) as (bound, accepted):
            with pytest.raises(LocalError, match=f"kafka:{name} is taken"):
                # Through a Kafka client of its own, as another program does.
                async with _only_error(partial(make().serve, name, _drop)):
                    pass
            link = await make().connect(bound)
            other = await accepted.receive()
            await link.send([b"x"])
            assert await other.receive() == [b"x"]
            await link.aclose()
            await other.aclose()
    assert not await topics(kafka_broker, prefix)


async def _die_at(served: KafkaTransport, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Listen there, and leave the topic behind as the dead do."""
    with monkeypatch.context() as dead:
        dead.setattr(trionode_kafka.link.endpoint.Endpoint, "is_lost", True)
        async with listening(served, name):
            pass


@asynccontextmanager
async def _only_error(serve: Callable[..., Awaitable[object]]) -> AsyncIterator[None]:
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(serve)
            yield
    except* LocalError as group:
        raise group.exceptions[0] from None


async def _drop(link: Link) -> None:
    await link.aclose()


async def test_one_who_stood_still_while_another_took_his_place_has_lost_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The log decides: LISTEN of B, nothing from A, HERE of B, and only then what A answers.
    a, b = fresh_id(), fresh_id()
    endpoint = Endpoint(SimpleNamespace(), "topic", "kafka:host:1/name")  # type: ignore[arg-type]
    said: list[Word] = []
    monkeypatch.setattr(endpoint, "_say", said.append)
    endpoint._me, endpoint._claimed = a, True
    endpoint._hear(Invitation(Word.LOCAL, b))
    endpoint._hear(Invitation(Word.LISTEN, a))
    endpoint._hear(Invitation(Word.LOCAL, b))
    lost = [endpoint.is_lost]  # it was of somebody from before
    endpoint._hear(Invitation(Word.LISTEN, b))
    endpoint._hear(Invitation(Word.LOCAL, a))
    endpoint._hear(Invitation(Word.LOCAL, b))
    lost.append(endpoint.is_lost)  # b had our answer before
    endpoint._hear(Invitation(Word.LISTEN, b))
    endpoint._hear(Invitation(Word.LOCAL, b))
    assert [*lost, endpoint.is_lost] == [False, False, True]
    assert said == [Word.LOCAL, Word.LOCAL]


@pytest.mark.kafka
async def test_topics_of_the_dead_are_deleted_and_those_of_the_living_are_not(
    kafka_broker: KafkaBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = f"test-{os.urandom(4).hex()}-"
    served = KafkaTransport(prefix=prefix)
    old = [f"{prefix}{fresh_id()}-there", f"{prefix}{fresh_id()}-back", f"{prefix}at-nobody"]
    mine = [f"{prefix}mine", f"{prefix}{'g' * 32}-there", f"other-{prefix}{fresh_id()}-there"]
    async with listening(served, f"{kafka_broker.bootstrap}/somebody") as (at, accepted):
        one = await KafkaTransport(prefix=prefix).connect(at)
        other = await accepted.receive()
        assert isinstance(one, KafkaLink)
        bridge = one._shared.bridge
        for names in (old, mine):
            await bridge.create_topics(names, replication_factor=1, settings={})
        await bridge.introduce(old[0])
        written = trio.Event()
        bridge.send(old[0], [(Outgoing(int(time.time() * 1000), b"x"), lambda _: written.set())])
        await written.wait()
        shared = await served._kafkas.use(kafka_broker.bootstrap)
        monkeypatch.setattr(trionode_kafka.link.transport, "LEFTOVER_SECONDS", 600)
        await served._sweep_once(shared)
        monkeypatch.setattr(bridge, "last_written", dict)
        monkeypatch.setattr(shared.bridge, "last_written", partial(_as_if_old, shared, set(old)))
        monkeypatch.setattr(trionode_kafka.link.transport, "LEFTOVER_SECONDS", 0)
        there = set(await bridge.topics(prefix))
        assert {*old[:2], *mine[:2]} <= there  # young ones may be of a link that begins
        await served._sweep_once(shared)
        await shared.release()
        with trio.fail_after(STALL_TIMEOUT):
            while set(await bridge.topics(prefix)) & set(old):
                pass  # each look is a round trip
        assert set(mine[:2]) <= set(await bridge.topics(prefix))
        await one.send([b"still here"])
        assert await other.receive() == [b"still here"]
        await one.aclose()
        await other.aclose()
        bridge.delete_topics(mine)


async def _as_if_old(shared: SharedKafka, old: set[str], names: Sequence[str]) -> dict[str, int]:
    return {name: 0 if name in old else 1 << 60 for name in names}


@pytest.mark.kafka
async def test_a_stranger_who_dials_for_links_that_are_not_there_costs_nothing(kafka_broker: KafkaBroker) -> None:
    async with listening(KafkaTransport(), kafka_broker.bootstrap) as (at, accepted):
        dialling = KafkaTransport()
        link = await dialling.connect(at)
        assert isinstance(link, KafkaLink)
        endpoint = "trionode-link-at-" + at.partition("/")[2]
        for value in (
            b"",
            b"nonsense",
            b"D" + b"0" * 32,
            b"D" + b"../" * 10 + b"xx",
            Invitation(Word.DIAL, fresh_id()).encoded(),
        ):
            link._shared.bridge.send(endpoint, [(Outgoing(0, value), lambda _: None)])
        again = await dialling.connect(at)
        for one in (link, again):
            other = await accepted.receive()
            await one.aclose()
            await other.aclose()


@pytest.mark.kafka
async def test_a_strangers_compressed_record_ends_the_link_that_it_is_in_and_is_not_unpacked(
    kafka_broker: KafkaBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kafka.record.default_records.gzip_decode", None)
    async with a_pair(kafka_broker) as (one, other), a_pair(kafka_broker) as (third, fourth):
        await third.send([b"before"])
        assert await fourth.receive() == [b"before"]
        strange = partial(write_strangely, compressed=True)
        await trio.to_thread.run_sync(strange, kafka_broker.bootstrap, other.reads)
        with (
            trio.fail_after(STALL_TIMEOUT),
            pytest.raises(ConnectionLost, match=r"read any more: .*they are compressed"),
        ):
            await other.receive()
        await one.send([b"nobody reads it"])
        await third.send([b"still"])
        assert await fourth.receive() == [b"still"]


def test_a_place_says_what_is_wrong_with_it() -> None:
    for wrong in ("nonsense", "host:0/x", "host:1/a/b", "host:1/a b", "host:1/" + "x" * 101, "/x"):
        with pytest.raises(LocalError, match=r"host:port|NAME"):
            trionode_kafka.link.transport._At.parse(wrong)
    with pytest.raises(LocalError, match="a prefix is"):
        KafkaTransport(prefix="a/b")


async def test_nobody_and_no_name_are_said_before_anything_is_made() -> None:
    with trio.fail_after(6):
        with pytest.raises(LocalError, match="NAME, as the listener has reported it"):
            await KafkaTransport().connect("127.0.0.1:1")
        with pytest.raises(ConnectionLost, match=r"no Kafka at 127\.0\.0\.1:1 \(Connection refused\)"):
            await KafkaTransport().connect("127.0.0.1:1/x")
        with pytest.raises(LocalError, match=r"can't listen at kafka:127\.0\.0\.1:1/x: no Kafka"):
            await KafkaTransport().serve("127.0.0.1:1/x", _drop)
