"""What an exception of a worker leads to: the end of its node, another call, or a message that is set aside."""

import ast
import logging
import re
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import pairwise
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

import trionode
from tests.support.channel_parties import STALL_TIMEOUT, open_parties
from trionode import DeadLetter, Mailbox, Message, Node, OnError, Route, Worker, from_anywhere, open_node
from trionode.counters import DropReason
from trionode.errors import ConfigError, ConnectionLost, UndecodableText
from trionode.net.backoff import FIRST_DELAY, LONGEST_DELAY
from trionode.protocol.wire.address import Address, local
from trionode.routing.mailbox import STALL_TIMEOUT as MAILBOX_STALL_TIMEOUT
from trionode.routing.supervision import (
    DEAD_LETTERS_BOUND,
    MAX_RESTARTS,
    MAX_TRACEBACK,
    RESTART_PERIOD,
    DeadLetters,
)
from trionode_loopback import Loopback

#: A payload that is no BARE string: the length of the string is missing.
NO_TEXT = b"\xff\xff"
POLICIES: list[OnError] = ["end_node", "restart", "set_aside"]


async def echoer(mailbox: Mailbox) -> None:
    """README's worker, without its print."""
    async for message in mailbox:
        await mailbox.reply(message, message.text)


class Calls:
    """A worker that records the messages it handles, and when it is called; it fails on those that say how."""

    def __init__(self) -> None:
        self.handled: list[bytes] = []
        self.called_at: list[float] = []

    async def __call__(self, mailbox: Mailbox) -> None:
        self.called_at.append(trio.current_time())
        async for message in mailbox:
            await fail_as_told(message)
            self.handled.append(message.payload)


async def fail_as_told(message: Message) -> None:
    match message.payload:
        case b"raise":
            raise ZeroDivisionError("as told")
        case b"raise in a nursery":
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fail_as_told, Message((), (), b"raise"))
        case b"ask for a text":
            assert Message((), (), NO_TEXT).text
        case b"ask for a text in a nursery":
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fail_as_told, Message((), (), b"ask for a text"))
        case b"both":
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fail_as_told, Message((), (), b"ask for a text"))
                nursery.start_soon(fail_as_told, Message((), (), b"raise"))


RAISING = [b"raise", b"raise in a nursery", b"both"]
ASKING = [b"ask for a text", b"ask for a text in a nursery"]


async def send_all(node: Node, *payloads: bytes) -> None:
    for payload in payloads:
        await node.send(Route("worker"), payload)


async def receive(node: Node, count: int) -> list[DeadLetter]:
    with trio.fail_after(STALL_TIMEOUT):
        return [await node.dead_letters.receive() for _ in range(count)]


@asynccontextmanager
async def supervised(worker: Worker, on_error: OnError) -> AsyncIterator[Node]:
    async with open_node() as node:
        await node.start_worker("worker", worker, on_error=on_error)
        yield node


# A message without the text that the worker asks for


async def same_node(check: Callable[[Node, Node, Route], Awaitable[None]]) -> None:
    async with open_node() as bob:
        await bob.start_worker("echoer", echoer)
        await check(bob, bob, Route("echoer"))


async def another_node(check: Callable[[Node, Node, Route], Awaitable[None]]) -> None:
    network = Loopback()
    async with open_node(network) as bob, open_node(network) as alice:
        await bob.start_worker("echoer", echoer, allow=from_anywhere)
        await check(bob, alice, Route(await bob.listen("loopback:bob"), "echoer"))


async def peer_of_a_channel(check: Callable[[Node, Node, Route], Awaitable[None]]) -> None:
    async with open_parties() as parties:
        await parties.bob.start_worker("texts", echoer)
        channel, _ = await parties.open()
        await check(parties.bob, parties.alice, Route(channel, "texts"))


@pytest.mark.parametrize("senders", [same_node, another_node, peer_of_a_channel], ids=lambda each: each.__name__)
async def test_a_payload_without_text_does_not_end_the_node_that_asks_for_it_threat_26(
    senders: Callable[[Callable[[Node, Node, Route], Awaitable[None]]], Awaitable[None]], autojump_clock: MockClock
) -> None:
    async def check(bob: Node, sender: Node, route: Route) -> None:
        for _ in range(3):
            await sender.send(route, NO_TEXT)
            assert (await sender.ask(route, "hello")).text == "hello"
        assert bob.counters == {DropReason.WORKER_TEXT_UNDECODABLE: 3}

    await senders(check)


@pytest.mark.parametrize("on_error", POLICIES)
@pytest.mark.parametrize("payload", ASKING)
async def test_missing_text_is_no_error_of_the_worker_whatever_on_error_says(
    payload: bytes, on_error: OnError, autojump_clock: MockClock
) -> None:
    worker = Calls()
    async with supervised(worker, on_error) as node:
        await send_all(node, *[payload] * (2 * MAX_RESTARTS), b"good")
        await wait_all_tasks_blocked()
        assert worker.handled == [b"good"]
        assert worker.called_at == [0.0] * (2 * MAX_RESTARTS + 1)  # at once, each time
        assert node.counters == {DropReason.WORKER_TEXT_UNDECODABLE: 2 * MAX_RESTARTS}
        assert not len(node.dead_letters)


async def test_an_answer_without_text_does_not_end_the_node_either(autojump_clock: MockClock) -> None:
    """The worker asks before it takes a message, so nothing but a delay keeps it from asking without end."""
    asked_at: list[float] = []

    async def answer(mailbox: Mailbox) -> None:
        async for message in mailbox:
            asked_at.append(trio.current_time())
            await mailbox.reply(message, NO_TEXT if len(asked_at) < 5 else "settings")

    async def asking(mailbox: Mailbox) -> None:
        settings = (await node.ask(Route("answer"), b"")).text
        async for message in mailbox:
            await mailbox.reply(message, settings)

    async with open_node() as node:
        await node.start_worker("answer", answer)
        await node.start_worker("asking", asking)
        assert (await node.ask(Route("asking"), b"")).text == "settings"
        assert len(set(asked_at)) == 5
        assert not node.counters  # no message of the worker's was dropped


async def test_a_missing_text_does_not_make_the_end_of_a_node_fail(autojump_clock: MockClock) -> None:
    """The worker asks for the text while its node cancels it, and so raises a group with a cancellation."""

    async def asking_late(mailbox: Mailbox) -> None:
        message = await mailbox.receive()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            try:
                await trio.sleep_forever()
            finally:
                assert message.text

    async with supervised(asking_late, "end_node") as node:
        await send_all(node, NO_TEXT)
        await wait_all_tasks_blocked()
    assert node.counters == {DropReason.WORKER_TEXT_UNDECODABLE: 1}


async def test_another_error_of_a_peer_ends_the_node_by_default(autojump_clock: MockClock) -> None:
    async def dialling(mailbox: Mailbox) -> None:
        await mailbox.receive()
        raise ConnectionLost("a database is away")

    with pytest.RaisesGroup(ConnectionLost):
        async with supervised(dialling, "end_node") as node:
            await send_all(node, b"")
            await trio.sleep(STALL_TIMEOUT)


def test_the_text_of_a_message_is_a_bare_string_or_raises() -> None:
    assert Message((), (), b"\x02hi").text == "hi"
    for payload in (NO_TEXT, b"", b"\x02h", b"\x02hi!", b"\x01\xff"):
        with pytest.raises(UndecodableText, match="no text"):
            assert Message((), (), payload).text


# The node ends


@pytest.mark.parametrize("payload", RAISING)
async def test_by_default_an_exception_ends_the_node(payload: bytes, autojump_clock: MockClock) -> None:
    with (
        pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True)
        if payload != b"both"
        else pytest.RaisesGroup(ZeroDivisionError, UndecodableText, flatten_subgroups=True)
    ):
        async with open_node() as node:
            await node.start_worker("worker", Calls())
            await send_all(node, payload)
            await trio.sleep(STALL_TIMEOUT)


@pytest.mark.parametrize("on_error", POLICIES)
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
async def test_an_interrupt_is_not_supervised(
    error: type[BaseException], on_error: OnError, autojump_clock: MockClock
) -> None:
    async def interrupted(mailbox: Mailbox) -> None:
        await mailbox.receive()
        raise error

    with pytest.RaisesGroup(error):
        async with supervised(interrupted, on_error) as node:
            await send_all(node, b"")
            await trio.sleep(STALL_TIMEOUT)


@pytest.mark.parametrize("on_error", POLICIES)
async def test_cancellation_is_not_supervised(on_error: OnError, autojump_clock: MockClock) -> None:
    worker = Calls()
    nodes: list[Node] = []
    with trio.move_on_after(1) as scope:
        async with supervised(worker, on_error) as node:
            nodes.append(node)
            await send_all(node, b"good")
            await trio.sleep(STALL_TIMEOUT)
    assert scope.cancelled_caught
    assert worker.called_at == [0.0]
    assert not nodes[0].counters


async def test_an_unknown_policy_is_refused_with_advice() -> None:
    async with open_node() as node:
        with pytest.raises(
            ConfigError, match="on_error is one of 'end_node', 'restart', 'set_aside'; this is 'ignore'"
        ):
            await node.start_worker("worker", echoer, on_error="ignore")  # type: ignore[arg-type]
        await node.start_worker("worker", echoer)  # the name is still free


# The worker is called again


async def test_a_restarted_worker_keeps_its_mailbox_and_the_message_is_not_handled_again_threat_26(
    autojump_clock: MockClock,
) -> None:
    worker = Calls()
    async with supervised(worker, "restart") as node:
        await send_all(node, b"one", b"raise", b"two", b"raise in a nursery", b"three")
        await trio.sleep(10)
        assert worker.handled == [b"one", b"two", b"three"]
        assert len(worker.called_at) == 3
        assert node.counters == {DropReason.WORKER_RAISED: 2}


def delays(times: Sequence[float]) -> list[float]:
    return [later - earlier for earlier, later in pairwise(times)]


async def test_delays_of_restarts_double_and_a_bound_on_restarts_ends_the_node_threat_26(
    autojump_clock: MockClock,
) -> None:
    worker = Calls()
    nodes: list[Node] = []

    def is_noted(error: BaseException) -> bool:
        return any(
            f"the worker 0#worker had {MAX_RESTARTS} restarts in {RESTART_PERIOD:g} s" == note
            for note in error.__notes__
        )

    with pytest.RaisesGroup(pytest.RaisesExc(ZeroDivisionError, check=is_noted)):
        async with supervised(worker, "restart") as node:
            nodes.append(node)
            await send_all(node, *[b"raise"] * 100)
            await trio.sleep(STALL_TIMEOUT)
    assert len(worker.called_at) == MAX_RESTARTS + 1
    for number, delay in enumerate(delays(worker.called_at)):
        longest = min(FIRST_DELAY * 2**number, LONGEST_DELAY, MAILBOX_STALL_TIMEOUT / 2)
        assert 0.8 * longest - 1e-9 <= delay <= longest + 1e-9
    assert worker.called_at[-1] < RESTART_PERIOD
    assert nodes[0].counters == {DropReason.WORKER_RAISED: MAX_RESTARTS}


async def test_a_worker_that_fails_now_and_then_is_restarted_for_ever(autojump_clock: MockClock) -> None:
    worker = Calls()
    async with supervised(worker, "restart") as node:
        for _ in range(10 * MAX_RESTARTS):
            await trio.sleep(RESTART_PERIOD / MAX_RESTARTS)
            await send_all(node, b"raise", b"good")
        await trio.sleep(1)
        assert worker.handled == [b"good"] * (10 * MAX_RESTARTS)
        assert node.counters == {DropReason.WORKER_RAISED: 10 * MAX_RESTARTS}


@pytest.mark.parametrize("on_error", ["restart", "set_aside"])
async def test_a_worker_that_fails_before_it_takes_a_message_loses_none(
    on_error: OnError, autojump_clock: MockClock
) -> None:
    """What it needs at its start is away for some seconds."""
    handled: list[bytes] = []
    calls = 0

    async def needy(mailbox: Mailbox) -> None:
        nonlocal calls
        calls += 1
        if trio.current_time() < 3:
            raise ConnectionLost("the database is away")
        async for message in mailbox:
            handled.append(message.payload)  # noqa: PERF401  # each is there when it came

    async with supervised(needy, on_error) as node:
        await send_all(node, b"one", b"two")
        await trio.sleep(10)
        assert handled == [b"one", b"two"]
        assert 5 < calls < 10  # chance shortens the delays
        assert not node.counters


async def test_links_drop_nothing_while_a_worker_waits_for_its_next_call(autojump_clock: MockClock) -> None:
    """The longest delay is shorter than the time that a link waits for a full mailbox."""
    failures = MAX_RESTARTS
    handled = 0

    async def failing(mailbox: Mailbox) -> None:
        nonlocal failures, handled
        async for _ in mailbox:
            if failures:
                failures -= 1
                raise ZeroDivisionError
            handled += 1

    network = Loopback()
    count = 100
    async with open_node(network) as bob, open_node(network) as alice:
        await bob.start_worker("worker", failing, allow=from_anywhere, bound=2000, on_error="restart")
        route = Route(await bob.listen("loopback:bob"), "worker")
        for _ in range(count):
            await alice.send(route, bytes(1000))
        await trio.sleep(RESTART_PERIOD)
        assert handled == count - MAX_RESTARTS
        assert bob.counters == {DropReason.WORKER_RAISED: MAX_RESTARTS}


async def test_an_object_keeps_the_state_that_local_variables_lose(autojump_clock: MockClock) -> None:
    class Adder:
        def __init__(self) -> None:
            self.total = 0

        async def work(self, mailbox: Mailbox) -> None:
            since_call = 0
            async for message in mailbox:
                self.total += int(message.text)
                since_call += int(message.text)
                await mailbox.reply(message, f"{self.total} {since_call}")

    async with open_node() as node:
        await node.start_worker("adder", Adder().work)
        assert (await node.ask(Route("adder"), "1")).text == "1 1"
        assert (await node.ask(Route("adder"), "2")).text == "3 3"
        await node.send(Route("adder"), NO_TEXT)
        assert (await node.ask(Route("adder"), "4")).text == "7 4"


# The message is set aside


async def test_a_message_that_raises_is_set_aside_with_its_error_threat_26(autojump_clock: MockClock) -> None:
    worker = Calls()
    async with supervised(worker, "set_aside") as node:
        await send_all(node, b"one", b"raise", b"two", b"both", b"three")
        first, second = await receive(node, 2)
        await wait_all_tasks_blocked()
        assert worker.handled == [b"one", b"two", b"three"]
        assert worker.called_at == [0.0] * 3  # at once
        assert [first.message.payload, second.message.payload] == [b"raise", b"both"]
        assert first.worker == Address("worker")
        assert first.error.endswith("ZeroDivisionError: as told\n")
        assert "fail_as_told" in first.error
        assert "UndecodableText" in second.error
        assert "ZeroDivisionError" in second.error
        assert node.counters == {DropReason.WORKER_SET_ASIDE: 2}


async def test_a_message_is_set_aside_once_also_if_the_next_call_fails_at_its_start(
    autojump_clock: MockClock,
) -> None:
    calls = 0
    nodes: list[Node] = []

    async def broken(mailbox: Mailbox) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            await mailbox.receive()
        raise ZeroDivisionError

    with pytest.RaisesGroup(ZeroDivisionError):
        async with supervised(broken, "set_aside") as node:
            nodes.append(node)
            await send_all(node, b"one", b"two")
            await trio.sleep(STALL_TIMEOUT)
    assert calls == 1 + MAX_RESTARTS + 1
    (node,) = nodes
    assert node.counters == {DropReason.WORKER_SET_ASIDE: 1}
    assert [letter.message.payload async for letter in node.dead_letters] == [b"one"]


async def test_any_number_of_messages_is_set_aside_without_an_end_of_the_node(autojump_clock: MockClock) -> None:
    worker = Calls()
    async with supervised(worker, "set_aside") as node:
        for _ in range(10 * MAX_RESTARTS):
            await send_all(node, b"raise")
            await receive(node, 1)
        assert node.counters == {DropReason.WORKER_SET_ASIDE: 10 * MAX_RESTARTS}


async def test_other_tasks_run_while_many_messages_are_set_aside() -> None:
    count = 2000
    async with open_node() as node:
        await node.start_worker("worker", Calls(), on_error="set_aside", bound=count * 1000)
        await send_all(node, *[b"raise"] * count)
        turns = 0
        while node.counters.total() < count:
            before = node.counters.total()
            await trio.lowlevel.checkpoint()
            assert node.counters.total() - before <= 2
            turns += 1
        assert turns >= count // 2


async def test_a_set_aside_message_can_be_forwarded_and_answered(autojump_clock: MockClock) -> None:
    async def repair(mailbox: Mailbox) -> None:
        async for letter in node.dead_letters:
            await mailbox.forward(letter.message, Route("echoer"))

    async def strict(mailbox: Mailbox) -> None:
        message = await mailbox.receive()
        raise ValueError(message.text)

    async with open_node() as node:
        await node.start_worker("strict", strict, on_error="set_aside")
        await node.start_worker("repair", repair)
        await node.start_worker("echoer", echoer)
        assert (await node.ask(Route("strict"), "hello")).text == "hello"


async def test_dead_letters_are_bounded_and_what_does_not_fit_is_counted_threat_18(autojump_clock: MockClock) -> None:
    async def broken(mailbox: Mailbox) -> None:
        raise ValueError("x" * (await mailbox.receive()).payload[0] * 10_000)

    async with supervised(broken, "set_aside") as node:
        await send_all(node, *[bytes([10]) * 60_000] * 100)
        await trio.sleep(1)
        held, dropped = (node.counters[each] for each in (DropReason.WORKER_SET_ASIDE, DropReason.DEAD_LETTERS_FULL))
        assert held + dropped == 100
        assert len(node.dead_letters) == held == DEAD_LETTERS_BOUND // 68_000 + 1
        letters = await receive(node, held)
        assert sum(len(each.message.payload) + len(each.error) for each in letters) < DEAD_LETTERS_BOUND + 70_000
        assert {len(each.error) for each in letters} == {MAX_TRACEBACK}
        await send_all(node, bytes([1]))
        assert (await receive(node, 1))[0].message.payload == bytes([1])


async def test_dead_letters_can_be_read_to_the_end_after_the_node(autojump_clock: MockClock) -> None:
    async with supervised(Calls(), "set_aside") as node:
        await send_all(node, b"raise", b"raise")
        await wait_all_tasks_blocked()
    with trio.fail_after(STALL_TIMEOUT):
        assert [letter.message.payload async for letter in node.dead_letters] == [b"raise", b"raise"]
    with trio.fail_after(STALL_TIMEOUT), pytest.raises(trio.EndOfChannel):
        await node.dead_letters.receive()


async def test_a_node_that_fails_ends_the_reading_of_its_dead_letters(autojump_clock: MockClock) -> None:
    letters: DeadLetters | None = None
    with pytest.RaisesGroup(ZeroDivisionError):
        async with supervised(Calls(), "end_node") as node:
            letters = node.dead_letters
            await send_all(node, b"raise")
            await trio.sleep(STALL_TIMEOUT)
    assert letters is not None
    with trio.fail_after(STALL_TIMEOUT):
        assert [letter async for letter in letters] == []


async def test_a_message_is_handled_when_the_worker_asks_for_the_next_one(autojump_clock: MockClock) -> None:
    """An exception that comes later is not its fault: it is not set aside."""

    async def impatient(mailbox: Mailbox) -> None:
        while True:
            with trio.fail_after(5):
                await mailbox.receive()

    async with supervised(impatient, "set_aside") as node:
        await send_all(node, b"good")
        await trio.sleep(30)
        assert not len(node.dead_letters)
        assert not node.counters


# The docs

DOCS = Path(__file__).parents[2] / "docs" / "supervision.md"


@pytest.mark.skipif(not DOCS.exists(), reason="the documents are not part of the wheel")
async def test_the_programs_in_the_docs_do_what_they_say(
    autojump_clock: MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    async def orders(mailbox: Mailbox) -> None:
        await fail_as_told(await mailbox.receive())

    async with open_node() as node:
        names = {**vars(trionode), "node": node, "orders": orders}
        for block in re.findall(r"^( *)```python\n(.*?)```", DOCS.read_text(), re.MULTILINE | re.DOTALL):
            code = compile(textwrap.dedent(block[1]), str(DOCS), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            if (running := eval(code, names)) is not None:
                await running
        await node.start_worker("careful", names["adder"])
        await node.start_worker("repair", names["repair"])
        await node.start_worker("repaired_orders", echoer)
        # The object keeps its sum, since what it raises is set aside.
        assert (await node.ask(Route("adder"), "1")).text == "1"
        await node.send(Route("adder"), NO_TEXT)
        await node.send(Route("orders"), b"raise")
        assert (await node.ask(Route("adder"), "2")).text == "3"
        # The function keeps its sum, since it catches the error.
        assert (await node.ask(Route("careful"), "1")).text == "1"
        assert (await node.ask(Route("careful"), NO_TEXT)).text == "send a number"
        assert (await node.ask(Route("careful"), "2")).text == "3"
        await wait_all_tasks_blocked()
        assert "0#orders could not handle this message: Traceback" in capsys.readouterr().out
        expected = {DropReason.WORKER_TEXT_UNDECODABLE: 2, DropReason.WORKER_SET_ASIDE: 1}  # "raise" is no text, either
        assert node.counters == expected


# For every sequence of messages and every policy


@pytest.mark.parametrize("on_error", ["restart", "set_aside"])
@given(
    payloads=st.lists(st.sampled_from([b"1", b"2", *RAISING, *ASKING]), max_size=30).filter(
        lambda payloads: sum(each in RAISING for each in payloads) <= MAX_RESTARTS
    )
)
def test_every_good_message_is_handled_once_and_in_order(on_error: OnError, payloads: list[bytes]) -> None:
    async def main() -> None:
        worker = Calls()
        async with supervised(worker, on_error) as node:
            await send_all(node, *payloads)
            await trio.sleep(RESTART_PERIOD)
            raising = [each for each in payloads if each in RAISING]
            asking = [each for each in payloads if each in ASKING]
            reason = DropReason.WORKER_RAISED if on_error == "restart" else DropReason.WORKER_SET_ASIDE
            assert worker.handled == [each for each in payloads if each not in RAISING + ASKING]
            assert len(worker.called_at) == 1 + len(raising) + len(asking)
            counted = {reason: len(raising), DropReason.WORKER_TEXT_UNDECODABLE: len(asking)}
            assert node.counters == {each: count for each, count in counted.items() if count}
            letters = await receive(node, len(node.dead_letters))
            assert [each.message.payload for each in letters] == (raising if on_error == "set_aside" else [])

    trio.run(main, clock=MockClock(autojump_threshold=0))


# The log


@pytest.mark.parametrize(
    ("on_error", "payload", "effect"),
    [
        ("end_node", b"ask for a text", "the message is dropped"),
        ("restart", b"raise", "it is called again"),
        ("set_aside", b"raise in a nursery", "the message is set aside"),
    ],
)
async def test_a_failure_is_logged_once_a_minute_with_the_line_that_raised(
    on_error: OnError, payload: bytes, effect: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "trionode")
    async with supervised(Calls(), on_error) as node:
        for expected in (1, 1, 2):
            await send_all(node, payload)
            await trio.sleep(1 if len(caplog.messages) < expected else 60)
            assert len(caplog.messages) == expected
    assert re.fullmatch(rf"worker 0#worker raised .* at {re.escape(__file__)}:\d+: {effect}", caplog.messages[0])


async def test_the_text_of_an_exception_is_escaped_and_cut_in_the_log_threat_27(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def broken(mailbox: Mailbox) -> None:
        raise ValueError((await mailbox.receive()).text)

    async with supervised(broken, "set_aside") as node:
        await node.send(Route("worker"), "\x1b[2J\nforged line" + "x" * 10_000)
        await receive(node, 1)
    (line,) = caplog.messages
    assert "\x1b" not in line
    assert "\n" not in line
    assert len(line) < 500


async def test_a_worker_that_returns_is_not_called_again(autojump_clock: MockClock) -> None:
    async def once(mailbox: Mailbox) -> None:
        with suppress(ZeroDivisionError):
            await fail_as_told(await mailbox.receive())

    async with supervised(once, "restart") as node:
        await send_all(node, b"raise")
        await trio.sleep(1)
        assert local("worker") not in node._router
        assert not node.counters
