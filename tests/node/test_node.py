import logging
import socket
from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trionode import Address, Mailbox, Message, Route, open_node
from trionode.counters import DropReason
from trionode.errors import (
    AddressInUseError,
    AnswerTimeout,
    ClosedError,
    ConnectionLost,
    LocalError,
    MessageTooLargeError,
    UnknownAddressError,
)
from trionode.log import sanitize
from trionode.net.transport import Link
from trionode.protocol.rules.access import from_anywhere
from trionode.protocol.wire.address import local
from trionode.protocol.wire.current_codec import CURRENT
from trionode.protocol.wire.message import Origin
from trionode.stream.store.memory import MemoryStore
from trionode.workers import echoer
from trionode_loopback import Loopback
from trionode_tcp import TCP


async def test_an_echo_comes_back_over_a_link(autojump_clock: MockClock) -> None:
    network = Loopback()
    async with open_node(network) as bob, open_node(network) as alice:
        at = await bob.listen("loopback:bob")
        await bob.start_worker("echoer", echoer, allow=from_anywhere)
        assert str(at) == "loopback:bob"
        answer = await alice.ask(Route(at, "echoer"), "hello")
        assert answer.text == "hello"
        link = await alice.connect("loopback:bob")
        assert answer.return_route == Route(link, "echoer")


async def test_a_chain_of_nodes_carries_messages_there_and_back(autojump_clock: MockClock) -> None:
    network = Loopback()
    async with (
        open_node(network) as bob,
        open_node(network, forwards=True) as middle,
        open_node(network, forwards=True) as hub,
        open_node(network) as alice,
    ):
        await bob.start_worker("echoer", echoer, allow=from_anywhere)
        await middle.connect(str(await bob.listen("loopback:bob")), name="to_bob")
        await hub.connect(str(await middle.listen("loopback:middle")), name="to_middle")
        at = await hub.listen("loopback:hub")
        for i in range(3):
            assert (await alice.ask(Route(at, "to_middle", "to_bob", "echoer"), str(i))).text == str(i)


async def test_node_without_forwards_passes_no_unauthenticated_message(autojump_clock: MockClock) -> None:
    network = Loopback()
    async with open_node(network) as bob, open_node(network) as middle, open_node(network) as alice:
        await bob.start_worker("echoer", echoer, allow=from_anywhere)
        await middle.connect(str(await bob.listen("loopback:bob")), name="to_bob")
        at = await middle.listen("loopback:middle")
        with pytest.raises(
            AnswerTimeout, match=r"no answer from \[loopback:middle => 0#to_bob => 0#echoer\] within 1 s"
        ):
            await alice.ask(Route(at, "to_bob", "echoer"), b"", timeout=1)
        assert middle.counters == {DropReason.ACCESS_DENIED: 1}
        assert (await middle.ask(Route("to_bob", "echoer"), b"mine")).payload == b"mine"


async def test_unauthenticated_peers_reach_a_worker_only_by_a_rule(autojump_clock: MockClock) -> None:
    network = Loopback()
    async with open_node(network) as bob, open_node(network) as alice:
        at = await bob.listen("loopback:bob")
        await bob.start_worker("echoer", echoer)
        with pytest.raises(AnswerTimeout):
            await alice.ask(Route(at, "echoer"), b"")
        assert bob.counters == {DropReason.ACCESS_DENIED: 1}
        assert (await bob.ask(Route("echoer"), "from here")).text == "from here"


# Asking


async def test_ask_without_an_answer_times_out(autojump_clock: MockClock) -> None:
    async with open_node() as node, node.open_mailbox("silent"):
        with pytest.raises(AnswerTimeout, match="within 30 s"):
            await node.ask(Route("silent"), b"")
        assert trio.current_time() == pytest.approx(30, abs=0.1)
        assert len(node._router._table) == 1


async def test_ask_times_out_while_connecting_the_first_hop() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never says which wire it speaks
        async with open_node("tcp") as node:
            with trio.fail_after(5), pytest.raises(AnswerTimeout, match=r"within 0\.1 s"):
                await node.ask(Route(f"tcp:127.0.0.1:{silent.getsockname()[1]}", "echoer"), b"", timeout=0.1)


async def test_only_the_first_answer_counts_and_a_late_one_is_dropped(autojump_clock: MockClock) -> None:
    async def twice(mailbox: Mailbox) -> None:
        async for message in mailbox:
            await mailbox.reply(message, b"one")
            await mailbox.reply(message, b"two")
            await trio.sleep(10)
            await mailbox.reply(message, b"late")

    async with open_node() as node:
        await node.start_worker("twice", twice)
        assert (await node.ask(Route("twice"), b"")).payload == b"one"
        await trio.sleep(20)
        assert node.counters == {DropReason.REPLY_PATH_GONE: 1}


async def test_a_cancelled_ask_leaves_no_address(autojump_clock: MockClock) -> None:
    async with open_node() as node, node.open_mailbox("silent"):
        with trio.move_on_after(1) as scope:
            await node.ask(Route("silent"), b"")
        assert scope.cancelled_caught
        assert len(node._router._table) == 1


async def test_answers_do_not_wait_behind_other_messages(autojump_clock: MockClock) -> None:
    network = Loopback()
    async with (
        open_node(network) as bob,
        open_node(network) as alice,
        alice.open_mailbox("flooded", allow=from_anywhere) as flooded,
    ):
        at = await bob.listen("loopback:bob")
        await bob.start_worker("echoer", echoer, allow=from_anywhere)
        for _ in range(300):
            await flooded.send(Route(await alice.connect(str(at)), "echoer"), b"flood")
        assert (await alice.ask(Route(at, "echoer"), "quick")).text == "quick"
        assert len(flooded._inbox) == 300


async def test_many_tasks_ask_at_once_and_each_gets_its_own_answer(autojump_clock: MockClock) -> None:
    network = Loopback()
    async with open_node(network) as bob, open_node(network) as alice:
        at = await bob.listen("loopback:bob")
        await bob.start_worker("echoer", echoer, allow=from_anywhere)

        async def ask(number: int) -> None:
            for i in range(20):
                text = f"{number}/{i}" * 100
                assert (await alice.ask(Route(at, "echoer"), text)).text == text

        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(ask, number)
        assert not alice.counters + bob.counters


# Workers


async def test_a_worker_that_raises_ends_its_node() -> None:
    async def broken(mailbox: Mailbox) -> None:
        await mailbox.receive()
        raise ZeroDivisionError

    with pytest.RaisesGroup(ZeroDivisionError):
        async with open_node() as node:
            await node.start_worker("broken", broken)
            await node.send(Route("broken"), b"")
            await trio.sleep_forever()


async def test_name_of_a_returned_worker_is_free() -> None:
    async def once(mailbox: Mailbox) -> None:
        await mailbox.reply(await mailbox.receive(), "done")

    async with open_node() as node:
        for _ in range(2):
            assert await node.start_worker("once", once) == Address("once")
            assert (await node.ask(Route("once"), b"")).text == "done"
            await wait_all_tasks_blocked()
        with pytest.raises(UnknownAddressError):
            await node.send(Route("once"), b"")


async def test_a_name_is_taken_once() -> None:
    async with open_node() as node:
        await node.start_worker("echoer", echoer)
        with pytest.raises(AddressInUseError, match="0#echoer is in use"):
            await node.start_worker("echoer", echoer)
        with pytest.raises(AddressInUseError):
            async with node.open_mailbox("echoer"):
                pass


async def test_a_worker_whose_start_is_cancelled_was_not_started() -> None:
    async with open_node() as node:
        with trio.CancelScope() as scope:
            scope.cancel()
            await node.start_worker("echoer", echoer)
        assert scope.cancelled_caught
        assert not node._router._table


async def test_a_mailbox_lives_as_long_as_its_block() -> None:
    async with open_node() as node:
        async with node.open_mailbox("box") as box, node.open_mailbox() as nameless:
            await nameless.send(Route("box"), "hello")
            assert (await box.receive()).return_route == Route(nameless)
            assert len(nameless.address.value) == 32
        assert not node._router._table


async def test_unauthenticated_peers_reach_a_mailbox_by_its_random_address_only() -> None:
    async with (
        open_node() as node,
        node.open_mailbox() as nameless,
        node.open_mailbox("named") as named,
        node.open_mailbox("open", allow=from_anywhere) as open_box,
    ):
        for box in (nameless, named, open_box):
            node._router.deliver(Message((box.encoded,), (), b"", Origin(link=local("link"))))
        assert [len(box._inbox) for box in (nameless, named, open_box)] == [1, 0, 1]


async def test_after_its_block_a_node_opens_nothing_more_and_leaves_no_socket_behind() -> None:
    async with open_node("tcp") as other:
        at = await other.listen("tcp:127.0.0.1:0")
        async with open_node("tcp") as node:
            pass
        verbs: list[Callable[[], Awaitable[object]]] = [
            lambda: node.connect(str(at)),
            lambda: node.listen("tcp:127.0.0.1:0"),
            lambda: node.start_worker("echoer", echoer),
            lambda: node.serve_streams(MemoryStore()),
            lambda: node.open_stream(Route(at), sends="a", receives="b"),
        ]
        for verb in verbs:
            with pytest.raises(ClosedError, match="block has ended"):
                await verb()
        assert not node._router._table


async def test_a_node_that_ends_while_it_connects_closes_the_link() -> None:
    class Late(Loopback):
        link: Link

        async def connect(self, peer: str) -> Link:
            self.link = await super().connect(peer)
            node._links.is_closed = True
            return self.link

    network = Loopback()
    late = Late(network=network.network)
    async with open_node(network) as other:
        await other.listen("loopback:other")
        async with open_node(late) as node:
            with pytest.raises(ClosedError):
                await node.connect("loopback:other")
            assert not await late.link.receive()


async def test_workers_end_with_their_node() -> None:
    ended: list[str] = []

    async def lasting(mailbox: Mailbox) -> None:
        try:
            await mailbox.receive()
        finally:
            ended.append("lasting")

    async with open_node() as node:
        await node.start_worker("lasting", lasting)
        await wait_all_tasks_blocked()
    assert ended == ["lasting"]


# Links


async def test_connect_returns_the_living_link_or_a_new_one(
    autojump_clock: MockClock,
) -> None:
    network = Loopback()
    async with open_node(network) as bob, open_node(network) as alice:
        await bob.listen("loopback:bob")
        link = await alice.connect("loopback:bob")
        assert await alice.connect("loopback:bob") is link
        await link.aclose()
        assert link.ended.is_set()
        again = await alice.connect("loopback:bob")
        assert again is not link
        assert again.address != link.address
        with pytest.raises(UnknownAddressError, match="open the channel again if its link was lost"):
            await alice.send(Route(link, "echoer"), b"")


async def test_tasks_that_connect_at_the_same_time_share_one_link(autojump_clock: MockClock) -> None:
    network = Loopback()
    links = []
    async with open_node(network) as bob, open_node(network) as alice:
        await bob.listen("loopback:bob")

        async def connect() -> None:
            links.append(await alice.connect("loopback:bob"))

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(connect)
        assert len(set(links)) == 1
        assert len(alice._links._all) == 1


@pytest.mark.parametrize("checkpoints", range(6))
async def test_a_cancelled_connect_leaves_no_link_wherever_it_was_cancelled(checkpoints: int) -> None:
    async with open_node("tcp") as bob, open_node("tcp") as alice:
        at = await bob.listen("tcp:127.0.0.1:0")
        with trio.CancelScope() as scope:

            async def cancel() -> None:
                for _ in range(checkpoints):
                    await trio.lowlevel.checkpoint()
                scope.cancel()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(cancel)
                await alice.connect(str(at))
        if scope.cancelled_caught:
            await wait_all_tasks_blocked(0.01)
            assert not alice._router._table
            assert not bob._router._table
        else:
            assert len(alice._router._table) == 1


async def test_a_link_whose_name_is_taken_is_closed_again() -> None:
    async with open_node("tcp") as bob, open_node("tcp") as alice:
        at = await bob.listen("tcp:127.0.0.1:0")
        await alice.start_worker("bob", echoer)
        with pytest.raises(AddressInUseError, match="0#bob"):
            await alice.connect(str(at), name="bob")
        await wait_all_tasks_blocked(0.01)
        assert not bob._links._all


async def test_unreachable_peer_raises_connection_lost_and_can_be_tried_again(autojump_clock: MockClock) -> None:
    network = Loopback()
    async with open_node(network) as bob, open_node(network) as alice:
        with pytest.raises(ConnectionLost, match="nothing listens at loopback:bob"):
            await alice.send(Route("loopback:bob", "echoer"), b"")
        await bob.listen("loopback:bob")
        await alice.connect("loopback:bob")


async def test_the_error_for_a_missing_transport_lists_those_of_the_node() -> None:
    async with open_node("loopback") as node:
        for verb in (node.listen, node.connect):
            with pytest.raises(LocalError, match=r"opened with the transports \['loopback'\], but .* needs 'tcp'"):
                await verb("tcp:127.0.0.1:0")


async def test_a_message_too_large_for_the_link_is_the_callers_error_and_the_link_goes_on() -> None:
    async with open_node(TCP(max_frame=1000)) as bob, open_node(TCP(max_frame=1000)) as alice:
        at = await bob.listen("tcp:127.0.0.1:0")
        await bob.start_worker("echoer", echoer, allow=from_anywhere)
        with pytest.raises(MessageTooLargeError, match="carries frames of at most 1000 bytes, this message makes 10"):
            await alice.send(Route(at, "echoer"), bytes(1000))
        assert len((await alice.ask(Route(at, "echoer"), bytes(900))).payload) == 900


async def test_remote_message_too_large_for_the_next_link_is_dropped_and_counted(autojump_clock: MockClock) -> None:
    network = Loopback()
    with trio.fail_after(5):
        async with open_node(TCP(max_frame=1000)) as bob, open_node(network, TCP(max_frame=1000), forwards=True) as hub:
            at = await bob.listen("tcp:127.0.0.1:0")
            await hub.connect(str(at), name="narrow")
            await hub.listen("loopback:hub")
            link = await network.connect("hub")
            await link.send([CURRENT.encode((local("narrow"), local("x")), (), bytes(2000))])
            await wait_all_tasks_blocked()
            assert hub.counters == {DropReason.FRAME_TOO_LARGE: 1}
            await link.aclose()


async def test_a_heartbeat_is_ignored(autojump_clock: MockClock) -> None:
    network = Loopback()
    async with open_node(network) as bob:
        await bob.listen("loopback:bob")
        link = await network.connect("bob")
        await link.send([CURRENT.encode((), (), b"")] * 1000)
        await wait_all_tasks_blocked()
        assert not bob.counters
        assert len(bob._links._all) == 1
        await link.aclose()


async def test_invalid_frame_ends_only_its_link_and_is_logged_escaped(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "trionode")
    network = Loopback()
    async with open_node(network) as bob, open_node(network) as alice:
        at = await bob.listen("loopback:bob")
        await bob.start_worker("echoer", echoer, allow=from_anywhere)
        route = Route(at, "echoer")
        assert (await alice.ask(route, "before")).text == "before"
        raw_peer = await network.connect("bob")
        await raw_peer.send([b"\xff\x1b[31m"])
        assert not await raw_peer.receive()
        assert (await alice.ask(route, "after")).text == "after"
        await raw_peer.aclose()
    assert [r for r in caplog.records if "indefinite length" in r.getMessage()]
    assert "\x1b" not in caplog.text


async def test_a_listener_holds_a_bounded_number_of_links(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("trionode.node.links.MAX_LINKS", 3)
    network = Loopback()
    async with open_node(network) as bob:
        await bob.listen("loopback:bob")
        links = [await network.connect("bob") for _ in range(4)]
        assert not await links[3].receive()
        for _ in range(10):
            assert not await (await network.connect("bob")).receive()
        assert caplog.text.count("holds 3 already") == 1
        assert +bob.counters == {DropReason.TOO_MANY_LINKS: 11}
        await links[0].aclose()
        await wait_all_tasks_blocked()
        links.append(await network.connect("bob"))
        await wait_all_tasks_blocked()
        assert len(bob._links._all) == 3
        for link in links:
            await link.aclose()


# Closing

FRAMES = 5000


async def count_messages(mailbox: Mailbox, counted: list[Message]) -> None:
    async for message in mailbox:
        counted.append(message)  # noqa: PERF401  # another task looks on


@pytest.mark.parametrize("kind", ["loopback", "tcp"])
@pytest.mark.parametrize("answers", [False, True], ids=["a sink", "an echoer"])
async def test_all_that_was_sent_before_a_link_closes_arrives(kind: str, *, answers: bool) -> None:
    counted: list[Message] = []

    async def work(mailbox: Mailbox) -> None:
        async for message in mailbox:
            counted.append(message)
            if answers:
                await mailbox.reply(message, message.payload)

    with trio.fail_after(10):
        async with open_node(kind) as bob, open_node(kind) as alice, alice.open_mailbox() as box:
            at = await bob.listen("tcp:127.0.0.1:0" if kind == "tcp" else "loopback:test_closing:0")
            await bob.start_worker("counter", work, allow=from_anywhere)
            link = await alice.connect(str(at))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(count_messages, box, [])
                for i in range(FRAMES):
                    await box.send(Route(link, "counter"), i.to_bytes(2, "big") * 50)
                await link.aclose()
                await wait_all_tasks_blocked(0.02)
                nursery.cancel_scope.cancel()
            assert [int.from_bytes(m.payload[:2], "big") for m in counted] == list(range(FRAMES))


@pytest.mark.parametrize("kind", ["loopback", "tcp"])
async def test_all_that_was_sent_before_a_node_ends_arrives(kind: str) -> None:
    counted: list[Message] = []
    with trio.fail_after(10):
        async with open_node(kind) as bob:
            at = await bob.listen("tcp:127.0.0.1:0" if kind == "tcp" else "loopback:test_ending:0")
            await bob.start_worker("counter", lambda mailbox: count_messages(mailbox, counted), allow=from_anywhere)
            async with open_node(kind) as alice:
                for i in range(FRAMES):
                    await alice.send(Route(at, "counter"), i.to_bytes(2, "big") * 50)
            await wait_all_tasks_blocked(0.02)
            assert len(counted) == FRAMES


async def test_sending_by_a_link_that_is_closing_is_an_error_and_not_a_silent_loss(autojump_clock: MockClock) -> None:
    network = Loopback()
    async with open_node(network) as alice:
        peer: list[Link] = []

        async def never_read(link: Link) -> None:
            peer.append(link)
            await trio.sleep_forever()

        async with trio.open_nursery() as nursery:
            await nursery.start(network.serve, "silent", never_read)
            link = await alice.connect("loopback:silent")
            with trio.move_on_after(1) as scope:
                while True:
                    await alice.send(Route(link, "x"), bytes(10_000))
            assert scope.cancelled_caught
            nursery.start_soon(link.aclose)
            await wait_all_tasks_blocked()
            assert not link.ended.is_set()
            with pytest.raises(UnknownAddressError):
                await alice.send(Route(link, "x"), b"")
            await link.ended.wait()
            assert trio.current_time() == pytest.approx(2, abs=0.1)
            await peer[0].aclose()
            nursery.cancel_scope.cancel()


async def test_a_cancelled_close_ends_the_link_at_once(autojump_clock: MockClock) -> None:
    network = Loopback()
    async with open_node(network) as bob, open_node(network) as alice:
        await bob.listen("loopback:bob")
        link = await alice.connect("loopback:bob")
        with trio.CancelScope() as scope:
            scope.cancel()
            await link.aclose()
        assert scope.cancelled_caught
        await link.ended.wait()
        assert trio.current_time() == 0


async def test_vanished_peer_ends_its_link_and_the_waits_for_it(autojump_clock: MockClock) -> None:
    network = Loopback()
    async with open_node(network) as bob, open_node(network) as alice:
        await bob.listen("loopback:bob")
        link = await alice.connect("loopback:bob")
        await wait_all_tasks_blocked()
        (theirs,) = bob._links._all
        await theirs.aclose()
        await link.ended.wait()
        assert not alice._router._table
        assert not alice._links._all


async def test_frames_sent_before_the_peer_vanished_are_read(
    autojump_clock: MockClock,
) -> None:
    network, counted = Loopback(), 0

    async def answering(mailbox: Mailbox) -> None:
        nonlocal counted
        async for message in mailbox:
            counted += 1
            await mailbox.reply(message, b"")
            await trio.sleep(0.001)

    async with open_node(network) as bob:
        await bob.listen("loopback:bob")
        await bob.start_worker("answering", answering, allow=from_anywhere, bound=10_000)
        peer = await network.connect("bob")
        await peer.send([CURRENT.encode((local("answering"),), (local("me"),), b"")] * 400)
        await peer.aclose()
        await trio.sleep(10)
        assert counted == 400
        assert not bob._links._all


async def test_an_error_in_the_block_comes_out_in_a_group_and_leaves_nothing_open() -> None:
    with pytest.RaisesGroup(ZeroDivisionError):
        async with open_node("tcp") as node:
            at = await node.listen("tcp:127.0.0.1:0")
            await node.connect(str(at))
            raise ZeroDivisionError


async def test_a_cancelled_node_leaves_nothing_open() -> None:
    with trio.move_on_after(0.05) as scope:
        async with open_node("tcp") as bob, open_node("tcp") as alice:
            at = await bob.listen("tcp:127.0.0.1:0")
            await bob.start_worker("echoer", echoer, allow=from_anywhere)
            while True:
                await alice.ask(Route(at, "echoer"), b"again")
    assert scope.cancelled_caught


# What operators see


@pytest.mark.parametrize(
    ("text", "harmless"),
    [
        ("plain", "plain"),
        ("two\nlines\r", "two\\nlines\\r"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("grüße ✓", "grüße ✓"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        (b"\x00\xff", "b'\\x00\\xff'"),
    ],
)
def test_sanitize_escapes_control_characters(text: object, harmless: str) -> None:
    assert sanitize(text) == harmless


def test_sanitize_cuts_long_text() -> None:
    assert sanitize("a" * 200) == "a" * 200
    assert sanitize("a" * 1000) == "a" * 200 + "… (1000 characters)"


def test_repr_of_a_message_has_its_routes_and_not_its_payload() -> None:
    message = Message((local("a"),), (local("b"),), b"secret")
    assert repr(message) == "<Message onward [0#a] return [0#b] 6 bytes>"
    assert CURRENT.name == "current"


async def test_a_node_that_stops_listening_keeps_its_links(autojump_clock: MockClock) -> None:
    network = Loopback()
    async with open_node(network) as server, open_node(network) as client:
        await server.listen("loopback:server")
        await server.start_worker("echoer", echoer, allow=from_anywhere)
        link = await client.connect("loopback:server")
        await client.ask(Route(link, "echoer"), b"here")
        server.stop_listening()
        await wait_all_tasks_blocked()
        assert (await client.ask(Route(link, "echoer"), b"still here")).payload == b"still here"
        with pytest.raises(ConnectionLost):
            await client.connect("loopback:server", name="another")
