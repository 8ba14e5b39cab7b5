import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

import attrs
import pytest
import trio

from tests.support.processes import HubProcess, open_hub
from trionode import Identity, Mailbox, Node, Route, open_node, trust_only, unique
from trionode.errors import AnswerTimeout
from trionode.protocol.rules.access import from_anywhere
from trionode.protocol.stream.messages import (
    CreateRequest,
    CreateResponse,
    PullRequest,
    PullResponse,
    PushRequest,
    PushResponse,
    Response,
    StreamLife,
    decode_response,
    encode,
)
from trionode.protocol.stream.names import uuid7_hex
from trionode.testing import KafkaBroker
from trionode.workers import echoer

MESSAGES = 1000
IN_FLIGHT = 64
#: Seconds in which every echo has come, whatever was killed: a broker takes up to 7 s to be back, and pauses add up to
#: some more.
SECONDS = 45.0

#: What a test does in the middle.
Fault = Callable[[], Awaitable[None]]


@attrs.define
class Conversation:
    """Alice's node, and the route to Bob's echoer through a secure channel over streams."""

    alice: Node
    echoes: Route
    heard: list[bytes] = attrs.Factory(list)

    async def echo(self, faults: dict[int, Fault]) -> None:
        """Send MESSAGES messages, IN_FLIGHT at a time; a fault happens beside that when so many echoes were heard."""
        with trio.fail_after(SECONDS):
            async with trio.open_nursery() as nursery, self.alice.open_mailbox() as mailbox:
                for number in range(IN_FLIGHT):
                    await mailbox.send(self.echoes, b"%d" % number)
                for number in range(IN_FLIGHT, MESSAGES + IN_FLIGHT):
                    await self._hear(mailbox)
                    if len(self.heard) in faults:
                        nursery.start_soon(faults.pop(len(self.heard)))
                    if number < MESSAGES:
                        await mailbox.send(self.echoes, b"%d" % number)
                # Whatever would come twice comes before the echo of what is sent last.
                await mailbox.send(self.echoes, b"end")
                await self._hear(mailbox)
        assert self.heard == [*(b"%d" % number for number in range(MESSAGES)), b"end"]

    async def _hear(self, mailbox: Mailbox) -> None:
        self.heard.append((await mailbox.receive()).payload)


class Reachable(Protocol):
    """A hub, or a proxy before it."""

    @property
    def endpoint(self) -> str: ...


@asynccontextmanager
async def open_conversation(alices: Sequence[Reachable], bobs: Sequence[Reachable]) -> AsyncIterator[Conversation]:
    async with open_node("tcp") as bob, open_node("tcp") as alice:
        bob_id, alice_id = await Identity.create(bob.vault), await Identity.create(alice.vault)
        await bob.start_worker("echoer", echoer)
        await bob.serve_secure_channels("listener", bob_id, trust=trust_only(alice_id.identifier))
        a2b, b2a = unique("alice_to_bob"), unique("bob_to_alice")
        theirs = await bob.open_stream([Route(hub.endpoint) for hub in bobs], sends=b2a, receives=a2b)
        ours = await alice.open_stream([Route(hub.endpoint) for hub in alices], sends=a2b, receives=b2a)
        channel = await alice.open_secure_channel(
            Route(ours, "listener"), alice_id, trust=trust_only(bob_id.identifier)
        )
        yield Conversation(alice, Route(channel, "echoer"))
        assert ours.skipped_records == theirs.skipped_records == 0


async def check_hub_killed(store: str) -> None:
    async with open_hub(store) as hub, open_conversation([hub], [hub]) as conversation:

        async def kill_and_start() -> None:
            await hub.kill()
            await hub.start()

        await conversation.echo({MESSAGES // 3: kill_and_start, 2 * MESSAGES // 3: kill_and_start})


async def test_every_echo_comes_once_and_in_order_although_the_hub_is_killed(tmp_path: Path) -> None:
    await check_hub_killed(f"sqlite:{tmp_path / 'streams'}")


async def test_clients_leave_a_hub_that_ends_in_order_without_a_stall(tmp_path: Path) -> None:
    store = f"sqlite:{tmp_path / 'streams'}"
    async with open_hub(store) as hub, open_conversation([hub], [hub]) as conversation:

        async def stop_and_start() -> None:
            assert await hub.stop() == 143
            await hub.start()

        await conversation.echo({MESSAGES // 2: stop_and_start})


async def test_every_echo_comes_once_and_in_order_although_the_hub_freezes_for_a_while(tmp_path: Path) -> None:
    async with (
        open_hub(f"sqlite:{tmp_path / 'streams'}") as hub,
        open_conversation([hub], [hub]) as conversation,
    ):

        async def freeze() -> None:
            hub.freeze()
            try:
                with pytest.raises(AnswerTimeout):
                    await conversation.alice.ask(conversation.echoes, "anyone?", timeout=6)
            finally:
                hub.go_on()

        await conversation.echo({MESSAGES // 2: freeze})


@pytest.mark.kafka
async def test_every_echo_comes_once_and_in_order_although_the_hub_before_kafka_is_killed(
    kafka_broker: KafkaBroker,
) -> None:
    await check_hub_killed(f"kafka:{kafka_broker.bootstrap}")


@pytest.mark.kafka
async def test_every_echo_comes_once_and_in_order_although_kafka_is_killed(kafka_broker: KafkaBroker) -> None:
    async with (
        open_hub(f"kafka:{kafka_broker.bootstrap}") as hub,
        open_conversation([hub], [hub]) as conversation,
    ):

        async def kill_and_start() -> None:
            await trio.to_thread.run_sync(kafka_broker.kill)
            await trio.to_thread.run_sync(kafka_broker.start)

        await conversation.echo({MESSAGES // 2: kill_and_start})


@pytest.mark.soak
@pytest.mark.kafka
async def test_every_echo_comes_once_and_in_order_although_alices_hub_freezes_and_goes_on_later(
    kafka_broker: KafkaBroker,
) -> None:
    store = f"kafka:{kafka_broker.bootstrap}"
    async with (
        open_hub(store) as one,
        open_hub(store) as two,
        open_conversation([one, two], [two]) as conversation,
    ):

        async def freeze() -> None:
            one.freeze()

        async def go_on() -> None:
            one.go_on()

        try:
            await conversation.echo({MESSAGES // 3: freeze, 2 * MESSAGES // 3: go_on})
        finally:
            one.go_on()


class Client:
    """A program on the bare wire, with a producer's address that sends again."""

    def __init__(self, node: Node, mailbox: Mailbox) -> None:
        self._node = node
        self._mailbox = mailbox

    async def tell(self, hub: HubProcess, to: str, request: CreateRequest | PushRequest | PullRequest) -> None:
        link = await self._node.connect(hub.endpoint)
        await self._mailbox.send(Route(link, to), encode(request))

    async def hear(self) -> Response:
        """Return the next answer; a hub adds the life of a stream to its answers to create."""
        with trio.fail_after(SECONDS):
            while isinstance(response := decode_response((await self._mailbox.receive()).payload), StreamLife):
                pass
            return response

    async def hear_confirmed(self, request_ids: Iterable[int]) -> None:
        for request_id in request_ids:
            answer = await self.hear()
            assert isinstance(answer, PushResponse)
            assert (answer.request_id, answer.ok) == (request_id, True)

    async def read(self, hub: HubProcess, stream: str, count: int) -> list[bytes]:
        """Return all records from the beginning, at least `count`, and the answer to the next pull."""
        records: list[bytes] = []
        index = 0
        while len(records) < count:
            await self.tell(hub, f"stream_kafka.{stream}", PullRequest(0, index, 100))
            answer = await self.hear()
            assert isinstance(answer, PullResponse)
            records += [record.message for record in answer.records]
            index = answer.records[-1].index + 1 if answer.records else index
        return records


@pytest.mark.kafka
async def test_a_hub_that_freezes_with_accepted_pushes_and_goes_on_after_another_stored_them_doubles_nothing(
    kafka_broker: KafkaBroker,
) -> None:
    store, stream, count = f"kafka:{kafka_broker.bootstrap}", unique("s"), 20
    producer = uuid7_hex(time.time_ns() // 1_000_000, bytes(10))
    async with (
        open_hub(store) as one,
        open_hub(store) as two,
        open_node("tcp") as node,
        node.open_mailbox(producer, allow=from_anywhere) as mailbox,
    ):
        client = Client(node, mailbox)
        worker = f"stream_kafka.{stream}"
        for hub in (one, two):
            await client.tell(hub, "stream_kafka", CreateRequest(stream))
            assert await client.hear() == CreateResponse(stream)
        await client.tell(one, worker, PushRequest(0, b"0"))
        assert await client.hear() == PushResponse(0, ok=True, index=0)
        frozen = False
        kafka_broker.pause()
        try:
            for number in range(1, count):
                await client.tell(one, worker, PushRequest(number, b"%d" % number))
            # Answered without Kafka, and after the pushes were read.
            await client.tell(one, "stream_kafka", CreateRequest(stream))
            assert await client.hear() == CreateResponse(stream)
            one.freeze()
            frozen = True
            kafka_broker.resume()
            for number in range(count):
                await client.tell(two, worker, PushRequest(number, b"%d" % number))
            await client.hear_confirmed(range(count))
            one.go_on()
            frozen = False
            await client.hear_confirmed(range(1, count))
        finally:
            if frozen:
                one.go_on()
            kafka_broker.resume()
        await client.tell(two, worker, PushRequest(count, b"end"))
        await client.hear_confirmed([count])
        expected = [*(b"%d" % number for number in range(count)), b"end"]
        for hub in (one, two):
            assert await client.read(hub, stream, len(expected)) == expected
