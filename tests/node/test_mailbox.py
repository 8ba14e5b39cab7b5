import logging

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trionode.counters import DropReason
from trionode.errors import MessageTooLargeError, UnknownAddressError
from trionode.protocol.rules.access import from_anywhere
from trionode.protocol.wire.address import Encoded, local
from trionode.protocol.wire.message import LOCAL, Message, Origin
from trionode.protocol.wire.route import Route
from trionode.routing.byte_budget import ByteBudget
from trionode.routing.mailbox import MAX_OVER_BUDGET, Mailbox, Sender
from trionode.routing.memory_channel import FAIR_BURST, ITEM_OVERHEAD, MemoryChannel
from trionode.routing.router import MAX_DELIVERIES, Router

AFAR = Origin(link=local("link"))
HUB_LINK = Origin(link=local("link"), drop_when_full=True)
BOX = local("box")


def a_mailbox(router: Router, name: str = "box", *, bound: int = 256 * 1024, stall_timeout: float = 5) -> Mailbox:
    mailbox = Mailbox(router, local(name), bound=bound, stall_timeout=stall_timeout)
    router.register(mailbox.encoded, mailbox._hop, allow=from_anywhere)
    return mailbox


def a_queue(router: Router, name: str, items: int) -> MemoryChannel[Message]:
    """An address whose hop returns a budget after so many messages, as a link's does."""
    queue: MemoryChannel[Message] = MemoryChannel(items * ITEM_OVERHEAD)
    router.register(local(name), lambda message: queue.put(message, 0), allow=from_anywhere)
    return queue


def too_large(_: Message) -> ByteBudget | None:
    raise MessageTooLargeError("the link carries frames of at most 1 byte")


async def test_messages_arrive_in_order_with_their_routes_and_payloads() -> None:
    router = Router()
    one, other = a_mailbox(router, "one"), a_mailbox(router, "other")
    for i in range(200):
        await one.send(Route("other"), str(i))
    for i in range(200):
        message = await other.receive()
        assert (message.text, message.return_route, message.onward_route) == (str(i), Route("one"), Route("other"))


async def test_bytes_are_sent_unchanged_and_text_as_a_bare_string() -> None:
    box = a_mailbox(Router())
    await box.send(Route("box"), b"\x00raw")
    await box.send(Route("box"), "hi")
    assert [(await box.receive()).payload for _ in range(2)] == [b"\x00raw", b"\x02hi"]


async def test_reply_takes_the_return_route_exactly_as_it_arrived() -> None:
    router = Router()
    box, way = a_mailbox(router), a_queue(router, "way", 10)
    back = (local("way"), b"\x82\x05\x42\xff\x00", local("origin"))
    router.deliver(Message((box.encoded,), back, b"ping", AFAR))
    await box.reply(await box.receive(), "pong")
    answer = way.take()
    assert answer is not None
    assert (answer.onward, answer.back, answer.payload) == (back, (box.encoded,), b"\x04pong")


async def test_undeliverable_reply_is_dropped_and_counted() -> None:
    router = Router()
    box = a_mailbox(router)
    router.register(local("narrow"), too_large, allow=from_anywhere)
    for back in ((local("gone"),), (local("narrow"),), ()):
        message = Message((box.encoded,), back, b"", AFAR)
        await box.reply(message, b"answer")
        box.reply_nowait(message, b"answer")
    assert router.counters == {DropReason.REPLY_PATH_GONE: 4, DropReason.REPLY_TOO_LARGE: 2}


async def test_sending_to_an_unknown_address_or_too_much_raises() -> None:
    router = Router()
    box = a_mailbox(router)
    router.register(local("narrow"), too_large, allow=from_anywhere)
    with pytest.raises(UnknownAddressError, match="0#gone"):
        await box.send(Route("gone"), b"")
    with pytest.raises(MessageTooLargeError):
        await box.send(Route("narrow"), b"")


async def test_forwarding_keeps_the_return_route_and_drops_too_large_messages() -> None:
    router = Router()
    box, way = a_mailbox(router), a_queue(router, "way", 10)
    router.register(local("narrow"), too_large, allow=from_anywhere)
    message = Message((box.encoded,), (local("link"), local("origin")), b"x", AFAR)
    await box.forward(message, Route("way", "far"))
    sent = way.take()
    assert sent is not None
    assert (sent.onward, sent.back, sent.payload) == (Route("way", "far").encoded, message.back, b"x")
    await box.forward(message, Route("narrow"))
    assert router.counters == {DropReason.FORWARD_TOO_LARGE: 1}
    with pytest.raises(UnknownAddressError):
        await box.forward(message, Route("gone"))


async def test_forwarding_and_replying_share_the_count_of_local_deliveries() -> None:
    router = Router()
    box = a_mailbox(router)
    router.deliver(Message((box.encoded,), (box.encoded,), b"", AFAR))
    handled = 0
    with trio.move_on_after(1):
        async with trio.open_nursery() as nursery:

            async def work() -> None:
                nonlocal handled
                async for message in box:
                    handled += 1
                    await (box.forward(message, Route("box")) if handled % 2 else box.reply(message, b""))
                    if router.counters:
                        nursery.cancel_scope.cancel()

            nursery.start_soon(work)
    assert handled == MAX_DELIVERIES
    assert router.counters == {DropReason.DELIVERY_LOOP: 1}


# Waiting for capacity


async def test_sender_waits_only_before_the_next_message_on_the_same_path() -> None:
    router = Router()
    sender, slow = Sender(router, local("me")), a_queue(router, "slow", 1)
    quick = a_queue(router, "quick", 100)

    async def send(name: str) -> None:
        await sender.deliver(Message((local(name),), (), b""))

    for _ in range(2):
        await send("slow")
    for _ in range(10):
        await send("quick")
    assert (len(slow), len(quick)) == (2, 10)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send, "slow")
        await wait_all_tasks_blocked()
        assert len(slow) == 2
        slow.take_all()
    assert len(slow) == 1


@pytest.mark.parametrize("sent", [1, FAIR_BURST - 2, FAIR_BURST - 1, FAIR_BURST, 3 * FAIR_BURST])
async def test_cancelled_send_was_not_delivered(sent: int) -> None:
    router = Router()
    box, way = a_mailbox(router), a_queue(router, "way", 10_000)
    for _ in range(sent):
        await box.send(Route("way"), b"")
    cancelled = 0
    for _ in range(3 * FAIR_BURST):
        before = len(way)
        with trio.CancelScope() as scope:
            scope.cancel()
            await box.send(Route("way"), b"")
        assert len(way) == before + (not scope.cancelled_caught)
        cancelled += scope.cancelled_caught
    assert cancelled >= 2


async def test_send_cancelled_while_waiting_was_not_delivered(autojump_clock: MockClock) -> None:
    router = Router()
    box, way = a_mailbox(router), a_queue(router, "way", 1)
    for _ in range(2):
        await box.send(Route("way"), b"sent")
    with trio.move_on_after(1) as scope:
        await box.send(Route("way"), b"never")
    assert scope.cancelled_caught
    way.take_all()
    await box.send(Route("way"), b"next")
    assert [message.payload for message in way.take_all()] == [b"next"]


async def test_many_tasks_of_one_sender_may_wait_for_the_same_path() -> None:
    router = Router()
    sender, way = Sender(router, local("me")), a_queue(router, "way", 4)
    tasks, each, received = 20, 10, 0

    async def send() -> None:
        for _ in range(each):
            await sender.deliver(Message((local("way"),), (), b""))

    async with trio.open_nursery() as nursery:
        for _ in range(tasks):
            nursery.start_soon(send)
        while received < tasks * each:
            await way.receive()
            received += 1
            assert len(way) <= 4 + tasks
    assert not len(way)


async def test_sender_goes_on_when_the_path_that_it_waits_for_is_closed() -> None:
    router = Router()
    box, way = a_mailbox(router), a_queue(router, "way", 1)
    for _ in range(2):
        await box.send(Route("way"), b"")
    async with trio.open_nursery() as nursery:

        async def send() -> None:
            with pytest.raises(UnknownAddressError):
                await box.send(Route("way"), b"")

        nursery.start_soon(send)
        await wait_all_tasks_blocked()
        router.unregister(local("way"))
        way.close()


async def test_sender_forgets_queues_that_have_capacity_again() -> None:
    router, names = Router(), [f"way{i}" for i in range(10 * MAX_OVER_BUDGET)]
    sender = Sender(router, local("me"))
    for name in names:
        way = a_queue(router, name, 0)
        await sender.deliver(Message((local(name),), (), b""))
        way.take_all()
    assert len(sender._over_budgets) <= MAX_OVER_BUDGET


async def test_reply_nowait_reports_a_stall_at_the_hard_limit() -> None:
    router, given_up = Router(), []
    box = a_mailbox(router)
    queue: MemoryChannel[Message] = MemoryChannel(4 * ITEM_OVERHEAD, on_stall=lambda: given_up.append(len(queue)))
    router.register(local("way"), lambda message: queue.put(message, 0), allow=from_anywhere)
    message = Message((box.encoded,), (local("way"),), b"", AFAR)
    while not given_up:
        box.reply_nowait(message, b"")
    assert given_up == [4 * 16]


# Receiving


async def test_iteration_lets_other_tasks_run_at_every_64th_message() -> None:
    box = a_mailbox(Router())
    for _ in range(10 * FAIR_BURST):
        box._hop(Message((box.encoded,), (), b""))
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        for _ in range(10 * FAIR_BURST):
            await box.receive()
        assert 8 <= turns <= 20
        nursery.cancel_scope.cancel()


async def test_a_deadline_ends_an_iteration_that_never_has_to_wait(autojump_clock: MockClock) -> None:
    router = Router()
    box = a_mailbox(router)
    await box.send(Route("box"), b"round and round")
    with trio.move_on_after(1) as scope:
        async for _ in box:
            await box.send(Route("box"), b"round and round")
            autojump_clock.jump(0.001)
    assert scope.cancelled_caught
    assert trio.current_time() < 1.1


@pytest.mark.parametrize("received", [0, FAIR_BURST - 2, FAIR_BURST - 1, FAIR_BURST])
async def test_a_cancelled_receive_takes_nothing(received: int) -> None:
    box = a_mailbox(Router())
    for i in range(received + 2 * FAIR_BURST):
        box._hop(Message((box.encoded,), (), i.to_bytes(2, "big")))
    got = [await box.receive() for _ in range(received)]
    while len(got) < received + 2 * FAIR_BURST:
        with trio.CancelScope() as scope:
            scope.cancel()
            got.append(await box.receive())
        if scope.cancelled_caught:
            got.append(await box.receive())
    assert [int.from_bytes(message.payload, "big") for message in got] == list(range(len(got)))


async def test_a_closed_mailbox_ends_its_iteration_when_it_is_empty() -> None:
    box = a_mailbox(Router())
    box._hop(Message((box.encoded,), (), b"last"))
    box._close()
    assert [message.payload async for message in box] == [b"last"]
    with pytest.raises(trio.EndOfChannel):
        await box.receive()


# Overrun


async def test_full_mailbox_drops_after_stall_timeout_until_half_empty(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    router = Router()
    box = a_mailbox(router, bound=4 * (ITEM_OVERHEAD + len(BOX)), stall_timeout=3)

    async def arrive() -> ByteBudget | None:
        over_budget = router.deliver(Message((box.encoded,), (), b"", AFAR))
        if over_budget is not None:
            await over_budget.wait_or_stall()
        return over_budget

    for _ in range(4):
        assert await arrive() is None
    assert await arrive() is not None
    assert trio.current_time() == pytest.approx(3, abs=0.01)
    for _ in range(10):
        assert await arrive() is None
    assert router.counters == {DropReason.MAILBOX_STALLED: 10}
    assert [(r.levelno, r.getMessage()) for r in caplog.records] == [
        (
            logging.WARNING,
            "worker 0#box took no message for 3 s: dropping messages until half of its mailbox is empty",
        )
    ]
    for _ in range(3):
        await box.receive()
    assert await arrive() is None
    assert router.counters == {DropReason.MAILBOX_STALLED: 10}
    assert len(box._inbox) == 3


async def test_stalled_mailbox_drops_only_messages_that_arrive_by_links(
    autojump_clock: MockClock,
) -> None:
    router = Router()
    box = a_mailbox(router, bound=2 * ITEM_OVERHEAD, stall_timeout=3)
    for _ in range(3):
        over_budget = router.deliver(Message((box.encoded,), (), b"by a link", AFAR))
        if over_budget is not None:
            await over_budget.wait_or_stall()
    router.deliver(Message((box.encoded,), (), b"by a stream", Origin(stream=local("stream"))))
    router.deliver(Message((box.encoded,), (), b"from here"))
    assert router.counters == {DropReason.MAILBOX_STALLED: 1}
    received = [(await box.receive()).payload for _ in range(4)]
    assert received == [b"by a link", b"by a link", b"by a stream", b"from here"]


async def test_slow_worker_that_takes_messages_does_not_stall(autojump_clock: MockClock) -> None:
    router = Router()
    box = a_mailbox(router, bound=8 * (ITEM_OVERHEAD + len(BOX)), stall_timeout=3)
    count = 50

    async def arrive() -> None:
        for _ in range(count):
            over_budget = router.deliver(Message((box.encoded,), (), b"", AFAR))
            if over_budget is not None:
                await over_budget.wait_or_stall()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(arrive)
        for _ in range(count):
            await trio.sleep(2.5)
            await box.receive()
    assert not router.counters


def test_drop_when_full_link_fills_a_mailbox_to_its_hard_limit_then_drops() -> None:
    router = Router()
    box = a_mailbox(router, bound=4 * (ITEM_OVERHEAD + len(BOX)))
    for _ in range(100):
        router.deliver(Message((box.encoded,), (), b"", HUB_LINK))
    assert len(box._inbox) == 4 * 16
    assert router.counters == {DropReason.MAILBOX_FULL: 36}


def test_local_messages_are_never_dropped() -> None:
    router = Router()
    box = a_mailbox(router, bound=4 * (ITEM_OVERHEAD + len(BOX)))
    for _ in range(100):
        router.deliver(Message((box.encoded,), (), b"", LOCAL))
    assert len(box._inbox) == 100
    assert not router.counters


def test_routes_count_in_the_size_of_a_mailbox() -> None:
    router = Router()
    box = a_mailbox(router)
    back: tuple[Encoded, ...] = (local(b"x" * 1000),) * 30
    router.deliver(Message((box.encoded,), back, b"", AFAR))
    assert box._inbox.size > 30_000
