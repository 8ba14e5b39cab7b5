import logging
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing
from nacl.pwhash import argon2id

from tests.support import running_parts
from tests.support.running_parts import ALICE_BOB, DIRECT, TAKEN, Counting, running
from trionode import Identity, Route, open_node
from trionode.counters import DropReason
from trionode.errors import AnswerTimeout, ConnectionLost, HandshakeError, LocalError, ServiceError, UnknownAddressError
from trionode.net.backoff import FIRST_DELAY, LONGEST_DELAY, STEADY_SECONDS
from trionode.routing.supervision import MAX_RESTARTS
from trionode.stream.store.base import load_store
from trionode.topology import RunningNode, SpecError, parse_topology
from trionode.topology.run.resolve import raised_by
from trionode.vault import sqlite
from trionode.vault.sqlite import open_sqlite_vault
from trionode_loopback import Loopback

LOCAL = running_parts.__name__
#: Seconds of virtual time after which what should have come has not.
STALL_TIMEOUT = 120.0


@pytest.fixture(autouse=True)
def nothing_taken() -> Iterator[None]:
    TAKEN.clear()
    yield
    TAKEN.clear()


async def taken(*texts: str) -> None:
    with trio.fail_after(STALL_TIMEOUT):
        while sorted(TAKEN) != sorted(texts):
            await trio.testing.wait_all_tasks_blocked(0.01)


# -- everything is up when the block begins ----------------------------------------------------------------------------


async def test_alice_and_bob_are_up_at_once(autojump_clock: trio.testing.MockClock) -> None:
    began, began_really = trio.current_time(), time.perf_counter()
    async with running(ALICE_BOB) as topology:
        answer = await topology["alice"].ask(["@bob", "echoer"], "hello")
        assert trio.current_time() == began  # no task has slept or waited for a timeout
        assert time.perf_counter() - began_really < 5
        assert answer.text == "hello"
        assert answer.origin.identifier == topology["bob"].identity.identifier.value
        assert [node.name for node in topology] == ["hub", "bob", "alice"]
        assert [str(endpoint) for endpoint in topology["hub"].endpoints] == ["loopback:hub"]


#: Everything needs something else, and names are chosen so that their order is the wrong one.
EVERYTHING = (
    DIRECT
    + """
[nodes.hub]
listen = "loopback:hub"
forwards = true
links.next = { to = "loopback:hub2" }

[nodes.hub2]
listen = "loopback:hub2"
forwards = true
relay_service = {}
links.last = { to = "loopback:bob", drop_when_full = true }
secure_channel_listeners.api.trust = "everyone"
stream_services.orders = { store = "memory", index = "orders_list", allow = "channels" }

[nodes.carol]
secure_channel_listeners.api.trust.nodes = "alice"
workers.echoer = "trionode.workers:echoer"
relays.carol.via = ["@hub2"]
secure_channels.hub2 = { to = ["loopback:hub2", "api"], trust.nodes = "hub2" }

[nodes.alice.secure_channels]
a_channel_within = { to = ["@carol", "api"], trust.nodes = "carol" }
a_dora = { to = ["@a_queue", "api"], trust.nodes = "dora", protocol_version = "classic" }
carol = { to = ["loopback:hub2", "forward_to_carol", "api"], trust.nodes = "carol" }
far_bob = { to = ["loopback:hub", "next", "last", "api"], trust.nodes = "bob" }
hub2 = { to = ["loopback:hub2", "api"], trust.nodes = "hub2" }

[nodes.alice.streams.a_queue]
via = ["@hub2"]
service = "orders"
index_service = "orders_list"
sends = "there_0123456789abcdef0123456789abcdef"
receives = "back_0123456789abcdef0123456789abcdef"

[nodes.dora]
workers.echoer = "echoer"
secure_channels.orders = { to = ["loopback:hub", "next", "api"], trust.nodes = "hub2" }
secure_channel_listeners.api = { trust.nodes = "alice", protocol_versions = ["classic"] }

[nodes.dora.streams.queue]
via = ["@orders"]
service = "orders"
index_service = "orders_list"
sends = "back_0123456789abcdef0123456789abcdef"
receives = "there_0123456789abcdef0123456789abcdef"
"""
)
CHANNELS = ("bob", "far_bob", "carol", "a_channel_within", "a_dora")


async def test_parts_that_lead_through_other_parts_work(autojump_clock: trio.testing.MockClock) -> None:
    began = trio.current_time()
    async with running(EVERYTHING) as topology:
        assert trio.current_time() == began
        for channel in CHANNELS:
            assert (await topology["alice"].ask([f"@{channel}", "echoer"], channel)).text == channel


async def test_inlets_and_outlets_carry_connections() -> None:
    async def shout(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):  # which is how an outlet ends
            async for data in stream:
                await stream.send_all(data.upper())

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listener.socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, shout, [listener])
        spec = (
            DIRECT
            + f"""
            [nodes.bob.outlets.web]
            target = "127.0.0.1:{port}"
            allow.nodes = "alice"
            [nodes.alice.inlets.web]
            listen = "127.0.0.1:0"
            to = ["@bob", "web"]
        """
        )
        async with running(spec) as topology:
            _, _, bound = topology["alice"].inlet("web").bound.rpartition(":")
            async with await trio.open_tcp_stream("127.0.0.1", int(bound)) as stream:
                await stream.send_all(b"hello")
                with trio.fail_after(5):
                    assert await stream.receive_some() == b"HELLO"
        nursery.cancel_scope.cancel()


async def test_timeout_is_raised_without_a_group_and_names_the_reason(autojump_clock: trio.testing.MockClock) -> None:
    spec = DIRECT.replace('["loopback:bob", "api"]', '["loopback:unreachable", "api"]')
    with pytest.raises(
        AnswerTimeout, match=r"nodes\.alice\.secure_channels\.bob: nothing listens at loopback:unreachable"
    ):
        async with running(spec):
            raise AssertionError


async def test_untrusted_peer_raises_at_once_and_names_the_channel(
    autojump_clock: trio.testing.MockClock,
) -> None:
    spec = DIRECT.replace('trust.nodes = "bob"', 'trust.nodes = "carol"') + "[nodes.carol]"
    began = trio.current_time()
    with pytest.raises(
        HandshakeError, match=r"nodes\.alice\.secure_channels\.bob: .*check which identifier you expect"
    ):
        async with running(spec):
            raise AssertionError
    assert trio.current_time() == began


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        (
            'relays.bob.via = ["loopback:hub"]',
            r"nodes\.bob\.relays\.bob: the hub loopback:hub did not answer for the relay name bob",
        ),
        (
            'streams.s = { via = ["loopback:hub"], sends = "there", receives = "back" }',
            r"nodes\.bob\.streams\.s: (?!it has not been opened yet)",
        ),
    ],
)
async def test_silent_refusal_of_a_hub_is_reported_with_a_reason(
    refused: str, message: str, autojump_clock: trio.testing.MockClock
) -> None:
    spec = f"""
        [nodes.hub]
        listen = "loopback:hub"
        relay_service.allow = "local"
        [nodes.bob]
        {refused}
    """
    with pytest.raises(AnswerTimeout, match=message):
        async with running(spec):
            raise AssertionError


async def test_address_in_use_is_raised_without_a_group() -> None:
    network = Loopback()
    async with open_node(network) as other:
        await other.listen("loopback:bob")
        with pytest.raises(LocalError, match=r"nodes\.bob\.listen\[0\]: .*loopback:bob is in use"):
            async with running(DIRECT, transports={"loopback": network}):
                raise AssertionError


async def test_exception_of_a_worker_ends_the_topology() -> None:
    spec = f"""
        [nodes.bob]
        listen = "loopback:bob"
        workers.failing = {{ run = "{LOCAL}:failing", allow = "anyone" }}
        [nodes.alice]
    """

    def named(error: BaseException) -> bool:
        return raised_by(error) == "nodes.bob.workers.failing"

    with pytest.RaisesGroup(pytest.RaisesExc(ValueError, match="ouch", check=named), flatten_subgroups=True):
        async with running(spec) as topology:
            await topology["alice"].send(["loopback:bob", "failing"], "ouch")
            await trio.sleep_forever()


async def test_inlet_that_cannot_listen_is_reported_with_its_keys() -> None:
    spec = DIRECT + '[nodes.alice.inlets.web]\nlisten = "nowhere.invalid:4000"\nto = ["@bob", "web"]\n'
    with pytest.raises(SpecError) as raised:
        async with running(spec):
            raise AssertionError
    (problem,) = raised.value.problems
    assert problem.path == ("nodes", "alice", "inlets", "web", "listen")
    assert "nowhere.invalid:4000" in problem.text
    assert "port" not in problem.text


# -- identities --------------------------------------------------------------------------------------------------------


async def test_access_and_ownership_go_by_the_names_of_nodes(autojump_clock: trio.testing.MockClock) -> None:
    spec = (
        DIRECT.replace('trust.nodes = "alice"', 'trust = "everyone"').replace('workers.echoer = "echoer"', "")
        + f"""
        [nodes.bob.workers]
        echoer = {{ run = "echoer", allow.nodes = ["alice"] }}
        here = {{ run = "{LOCAL}:noting", allow = "local" }}
        [nodes.bob.stream_services.orders]
        store = "memory"
        owners = {{ hers = "alice", mine = "bob" }}
        [nodes.carol.secure_channels.bob]
        to = ["loopback:bob", "api"]
        trust.nodes = "bob"
        """
    )
    async with running(spec) as topology:
        alice, carol, bob = (topology[name] for name in ("alice", "carol", "bob"))
        assert (await alice.ask(["@bob", "echoer"], "hello")).text == "hello"
        assert (await bob.ask(["echoer"], "hello")).text == "hello"
        with pytest.raises(AnswerTimeout):
            await carol.ask(["@bob", "echoer"], "hello", timeout=1)
        await alice.send(["@bob", "here"], "from alice")
        await bob.send(["here"], "from bob")
        await taken("from bob")
        for who in (alice, carol):
            open_hers = partial(
                who.node.open_stream,
                who.route("@bob"),
                sends="hers",
                receives="hers",
                service="orders",
                index_service="orders_index",
            )
            if who is alice:
                await open_hers()
            else:
                with pytest.raises(ServiceError, match="belongs to another identity"):
                    await open_hers()


async def test_identities_live_in_their_vaults_and_have_to_be_the_expected_ones(tmp_path: Path) -> None:
    path = tmp_path / "bob.db"
    async with open_sqlite_vault(path, unencrypted=True) as vault:
        identity = await Identity.create(vault, "bob")
        classic = await identity.classic()
    spec = f"""
        [nodes.bob.identity]
        vault = "sqlite:{path}"
        name = "bob"
        unencrypted = true
        identifier = "{{}}"
    """
    for right in (identity.identifier, classic.identifier):
        async with running(spec.format(right)) as topology:
            assert topology["bob"].identity.identifier == identity.identifier
    wrong = "I" + "ab" * 32
    with pytest.raises(
        SpecError, match=rf"nodes\.bob\.identity\.identifier: expected {wrong}, but .* is {identity.identifier}"
    ):
        async with running(spec.format(wrong)):
            raise AssertionError


async def test_vault_is_encrypted_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "PASSPHRASE_OPERATIONS", argon2id.OPSLIMIT_MIN)
    monkeypatch.setattr(sqlite, "PASSPHRASE_MEMORY", argon2id.MEMLIMIT_MIN)
    monkeypatch.delenv("TRIONODE_PASSPHRASE", raising=False)
    spec = f'[nodes.bob]\nidentity.vault = "sqlite:{tmp_path}/bob.db"\n'
    with pytest.raises(SpecError, match="needs a passphrase: give it by passphrase_file"):
        async with running(spec):
            raise AssertionError
    assert not (tmp_path / "bob.db").exists()
    (tmp_path / "passphrase").write_text("correct horse\n")
    sealed = spec + f'identity.passphrase_file = "{tmp_path}/passphrase"\n'
    async with running(sealed) as topology:
        identifier = topology["bob"].identity.identifier
    monkeypatch.setenv("TRIONODE_PASSPHRASE", "correct horse")
    async with running(spec) as topology:
        assert topology["bob"].identity.identifier == identifier
    with pytest.raises(SpecError, match="remove one of the two"):
        async with running(sealed + "identity.unencrypted = true"):
            raise AssertionError


async def test_streams_that_belong_to_another_are_not_taken(tmp_path: Path) -> None:
    store = f"sqlite:{tmp_path}/streams.db"
    async with load_store(store) as opened:
        await opened.create("hers", "ff")
    spec = f"""
        [nodes.bob.stream_services.orders]
        store = "{store}"
        owners = {{ hers = "bob" }}
    """
    with pytest.raises(LocalError, match="has the owner ff, not bob"):
        async with running(spec):
            raise AssertionError


# -- one part of it ----------------------------------------------------------------------------------------------------


async def test_trusted_node_elsewhere_needs_an_identifier() -> None:
    with pytest.raises(SpecError) as raised:
        async with running(DIRECT, nodes=["alice"]):
            raise AssertionError
    (problem,) = raised.value.problems
    assert str(problem).startswith(
        'nodes.alice.secure_channels.bob.trust.nodes[0]: node "bob" does not run here, so its identifier must be known. Create its '
        'identity by `trionode identity create --state bob.db --unencrypted`, and write vault = "sqlite:bob.db", unencrypted = true and the identifier'
    )


async def test_an_untrusted_peer_at_the_address_of_a_remote_node_is_retried(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "bob.db"
    async with open_sqlite_vault(path, unencrypted=True) as vault:
        bob = (await Identity.create(vault)).identifier
    spec = DIRECT.replace('trust.nodes = "alice"', 'trust = "everyone"')
    reported = spec + f'[nodes.bob.identity]\nvault = "sqlite:{path}"\nunencrypted = true\nidentifier = "{bob}"\n'
    network = {"loopback": Loopback()}
    comes, refused = trio.Event(), trio.Event()

    def notice(record: logging.LogRecord) -> bool:
        if record.getMessage().startswith("nodes.alice.secure_channels.bob is not open, and is retried: the peer is"):
            refused.set()
        return True

    async def come_first() -> None:
        async with running(spec, nodes=["bob"], transports=network):
            comes.set()
            await refused.wait()
        async with running(reported, nodes=["bob"], transports=network):
            await trio.sleep_forever()

    caplog.handler.addFilter(notice)
    try:
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(come_first)
                await comes.wait()
                async with running(reported, nodes=["alice"], transports=network) as topology:
                    assert topology["alice"].channel("bob").peer.identifier == bob
                nursery.cancel_scope.cancel()
    finally:
        caplog.handler.removeFilter(notice)


@pytest.mark.parametrize(
    ("nodes", "message"),
    [(["bo"], 'no node "bo" to run; did you mean "bob"'), (["carol"], "this node runs elsewhere")],
)
async def test_only_nodes_of_this_topology_can_run(nodes: list[str], message: str) -> None:
    spec = parse_topology(DIRECT + "[nodes.carol]\nexternal = true")
    with pytest.raises(SpecError, match=message):
        async with running(spec, nodes=nodes):
            raise AssertionError


async def test_first_node_retries_until_the_other_is_there(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    network = {"loopback": Loopback()}
    spec = DIRECT.replace('trust.nodes = "alice"', 'trust = "everyone"').replace(
        'trust.nodes = "bob"', 'trust = "everyone"'
    )
    bob_is_wanted = trio.Event()

    async def run_bob() -> None:
        await bob_is_wanted.wait()
        await trio.sleep(600)
        async with running(spec, nodes=["bob"], transports=network):
            await trio.sleep_forever()

    async def listening(node: RunningNode) -> None:
        assert node.name == "alice"
        bob_is_wanted.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_bob)
        async with running(spec, nodes=["alice"], transports=network, on_listening=listening) as topology:
            assert 600 <= trio.current_time() < 610
            assert (await topology["alice"].ask(["@bob", "echoer"], "hello")).text == "hello"
        nursery.cancel_scope.cancel()
    assert [record.message.partition(":")[0] for record in caplog.records if record.levelno >= logging.WARNING] == [
        "nodes.alice.secure_channels.bob is not open, and is retried",
        "nodes.alice.secure_channels.bob is open",
    ]


# -- what was lost comes back ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["crash", "stop"])
async def test_channels_are_opened_anew_when_a_node_is_back(end: str, autojump_clock: trio.testing.MockClock) -> None:
    async with running(DIRECT) as topology:
        alice, identity = topology["alice"], topology["bob"].identity
        before = alice.channel("bob")
        await (topology.crash if end == "crash" else topology.stop)("bob")
        with pytest.raises(LocalError, match="no node 'bob' runs here; those that do are: alice"):
            topology["bob"]
        with trio.fail_after(STALL_TIMEOUT):
            await before.closed.wait()
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(
            ConnectionLost, match=r"nodes\.alice\.secure_channels\.bob is not open, and is being opened"
        ):
            alice.route("@bob", "echoer")
        with pytest.raises(AnswerTimeout, match=r"secure_channels\.bob was not open within 3 s"):
            await alice.ask(["@bob", "echoer"], "hello", timeout=3)
        await topology.start("bob")
        assert topology["bob"].identity is identity
        assert (await alice.ask(["@bob", "echoer"], "hello")).text == "hello"
        assert alice.route("@bob", "echoer") == Route(alice.channel("bob"), "echoer")
        with pytest.raises(LocalError, match="it runs already"):
            await topology.start("bob")
        with pytest.raises(LocalError, match="not among those"):
            await topology.start("carol")


async def test_orderly_end_is_noticed_by_peers_behind_a_hub(autojump_clock: trio.testing.MockClock) -> None:
    async with running(ALICE_BOB) as topology:
        for _ in range(3):
            assert (await topology["alice"].ask(["@bob", "echoer"], "hello")).text == "hello"
            before = topology["alice"].channel("bob")
            await topology.stop("bob")
            with trio.fail_after(STALL_TIMEOUT):
                await before.closed.wait()
            await topology.start("bob")


async def test_streams_links_and_relays_survive_a_restart_of_their_hub(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running(EVERYTHING) as topology:
        await topology.crash("hub2")
        await trio.sleep(30)
        await topology.start("hub2")
        await trio.sleep(30)
        for channel in CHANNELS:
            with trio.fail_after(STALL_TIMEOUT):
                assert (await topology["alice"].ask([f"@{channel}", "echoer"], channel)).text == channel


async def test_a_reconnected_link_gets_its_name_again(autojump_clock: trio.testing.MockClock) -> None:
    spec = """
        [nodes.bob]
        listen = "loopback:bob"
        workers.echoer = { run = "echoer", allow = "anyone" }
        [nodes.alice.links.bob]
        to = "loopback:bob"
    """
    async with running(spec) as topology:
        assert (await topology["alice"].ask(["bob", "echoer"], "hello")).text == "hello"
        await topology.crash("bob")
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(UnknownAddressError):
            await topology["alice"].ask(["bob", "echoer"], "hello")
        await topology.start("bob")
        await trio.sleep(30)
        assert (await topology["alice"].ask(["bob", "echoer"], "hello")).text == "hello"


# -- dialled on demand -------------------------------------------------------------------------------------------------

ON_DEMAND = """
[nodes.bob]
listen = "loopback:bob"
workers.echoer = { run = "echoer", allow = "anyone" }

[nodes.hub]
listen = "loopback:hub"
forwards = true
links.bob = { to = "loopback:bob", dial = "on_demand" }

[nodes.alice]
"""


async def test_link_on_demand_is_dialled_by_the_first_message_of_any_sender(
    autojump_clock: trio.testing.MockClock,
) -> None:
    network = Counting()
    async with running(ON_DEMAND, transports={"loopback": network}) as topology:
        assert network.dialled == []
        for _ in range(3):
            assert (await topology["alice"].ask(["loopback:hub", "bob", "echoer"], "hello")).text == "hello"
        assert network.dialled == ["hub", "bob"]
        await trio.sleep(STEADY_SECONDS)
        await topology.crash("bob")
        await topology.start("bob")
        assert (await topology["alice"].ask(["loopback:hub", "bob", "echoer"], "hello")).text == "hello"
        assert network.dialled == ["hub", "bob", "bob"]


async def test_messages_that_wait_for_a_failed_dial_are_dropped_and_the_address_stays(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    network = Counting()
    async with running(ON_DEMAND, transports={"loopback": network}) as topology:
        alice, hub = topology["alice"], topology["hub"].node
        await alice.node.connect("loopback:hub")
        network.is_down = True
        for _ in range(100):  # unauthenticated messages make it dial once, not a hundred times
            await alice.send(["loopback:hub", "bob", "echoer"], "hello")
        await trio.testing.wait_all_tasks_blocked()
        assert network.dialled == ["hub", "bob"]
        assert +hub.counters == {DropReason.DIAL_FAILED: 100}
        await trio.sleep(FIRST_DELAY)
        await alice.send(["loopback:hub", "bob", "echoer"], "hello")
        await trio.testing.wait_all_tasks_blocked()
        assert network.dialled == ["hub", "bob", "bob"]
        network.is_down = False
        await trio.sleep(LONGEST_DELAY)
        assert (await alice.ask(["loopback:hub", "bob", "echoer"], "hello")).text == "hello"
        assert [record.message for record in caplog.records if record.levelno == logging.WARNING] == [
            "dropped a message for loopback:bob: the network is down"
        ]


# -- workers -----------------------------------------------------------------------------------------------------------


async def test_workers_get_their_arguments_and_the_routes_by_which_they_send(
    autojump_clock: trio.testing.MockClock,
) -> None:
    spec = (
        DIRECT
        + f"""
        [nodes.bob.workers.inbox]
        run = "{LOCAL}:noting"
        arguments.prefix = "bob: "
        [nodes.carol]
        listen = "loopback:carol"
        workers.inbox = {{ run = "{LOCAL}:noting", allow = "anyone" }}
        [nodes.alice.workers.passing]
        run = "{LOCAL}:passing"
        sends = [["@bob", "inbox"], ["loopback:carol", "inbox"], ["mine"]]
        [nodes.alice.workers.mine]
        run = "{LOCAL}:noting"
        arguments.prefix = "mine: "
    """
    )
    async with running(spec) as topology:
        await topology["alice"].send(["passing"], "hello")
        await taken("bob: hello", "hello", "mine: hello")


async def test_a_worker_that_sets_messages_aside_goes_on(autojump_clock: trio.testing.MockClock) -> None:
    spec = f"""
        [nodes.bob]
        workers.strict = {{ run = "{LOCAL}:strict", on_error = "set_aside" }}
    """
    async with running(spec) as topology:
        bob = topology["bob"]
        for text in ("one", "wrong", "two"):
            await bob.send(["strict"], text)
        await taken("one", "two")
        letter = await bob.node.dead_letters.receive()
        assert (str(letter.worker), letter.message.text) == ("0#strict", "wrong")
        assert "nodes.bob.workers.strict" in letter.error
        assert bob.node.counters == {DropReason.WORKER_SET_ASIDE: 1}


async def test_a_worker_that_is_restarted_is_named_when_its_restarts_are_used_up(
    autojump_clock: trio.testing.MockClock,
) -> None:
    spec = f"""
        [nodes.bob]
        workers.strict = {{ run = "{LOCAL}:strict", on_error = "restart" }}
    """

    def named(error: BaseException) -> bool:
        return raised_by(error) == "nodes.bob.workers.strict"

    with pytest.RaisesGroup(pytest.RaisesExc(ValueError, match="wrong", check=named), flatten_subgroups=True):
        async with running(spec) as topology:
            await topology["bob"].send(["strict"], "wrong")
            await topology["bob"].send(["strict"], "right")
            await trio.sleep(1)
            assert TAKEN == ["right"]
            for _ in range(MAX_RESTARTS):
                await topology["bob"].send(["strict"], "wrong")
            await trio.sleep(STALL_TIMEOUT)


async def test_a_payload_without_text_ends_no_topology(autojump_clock: trio.testing.MockClock) -> None:
    spec = DIRECT.replace('workers.echoer = "echoer"', f'workers.noting = "{LOCAL}:noting"')
    async with running(spec) as topology:
        await topology["alice"].send(["@bob", "noting"], b"\xff\xff")
        await topology["alice"].send(["@bob", "noting"], "a text")
        await taken("a text")
        assert topology["bob"].node.counters == {DropReason.WORKER_TEXT_UNDECODABLE: 1}


@pytest.mark.parametrize(
    ("worker", "message"),
    [
        ('"nowhere_to_be_found:worker"', r"run: the worker \"nowhere_to_be_found:worker\" can't be imported: No module named"),
        (f'"{LOCAL}:nothing"', "run: .* has no attribute 'nothing'"),
        (f'"{LOCAL}:not_async"', "run: a worker is an async function that takes a mailbox; .* is a function that is not async"),
        (f'"{LOCAL}:TAKEN"', "run: .* is of the type list"),
        (f'{{ run = "{LOCAL}:noting", arguments.prefx = "a" }}', r"arguments: .* unexpected keyword argument 'prefx'. Its parameters are \(mailbox, prefix=''\)"),
        (f'"{LOCAL}:passing"', "arguments: .* missing a required .*argument: 'sends'"),
    ],
)  # fmt: skip
async def test_worker_that_cannot_be_started_is_reported_with_its_keys(worker: str, message: str) -> None:
    with pytest.raises(SpecError, match=rf"nodes\.bob\.workers\.mine\.{message}"):
        async with running(f"[nodes.bob.workers]\nmine = {worker}\n"):
            raise AssertionError


async def test_all_workers_that_cannot_be_started_are_reported_at_once() -> None:
    spec = f"""
        [nodes.alice.workers]
        one = "{LOCAL}:nothing"
        two = "{LOCAL}:not_async"
        [nodes.bob.workers]
        three = "nowhere_to_be_found:worker"
    """
    with pytest.raises(SpecError) as raised:
        async with running(spec):
            raise AssertionError
    assert [problem.path for problem in raised.value.problems] == [
        ("nodes", "alice", "workers", "one", "run"),
        ("nodes", "alice", "workers", "two", "run"),
        ("nodes", "bob", "workers", "three", "run"),
    ]


# -- transports --------------------------------------------------------------------------------------------------------


async def test_a_transport_may_be_made_for_each_node_by_its_name(autojump_clock: trio.testing.MockClock) -> None:
    networks: dict[str, Counting] = {}
    shared = Counting()

    def transport(name: str) -> Counting:
        networks[name] = Counting()
        networks[name].network = shared.network
        return networks[name]

    async with running(DIRECT, transports={"loopback": transport}):
        assert {name: each.dialled for name, each in networks.items()} == {"bob": [], "alice": ["bob"]}


async def test_a_transport_under_another_name_is_refused() -> None:
    with pytest.raises(LocalError, match=r"'tcp'.* has the name 'loopback'"):
        async with running(DIRECT, transports={"tcp": Loopback()}):
            raise AssertionError


def test_run_frees_its_addresses() -> None:
    async def main() -> None:
        for _ in range(2):
            async with running(DIRECT, transports={}) as topology:
                assert (await topology["alice"].ask(["@bob", "echoer"], "hello")).text == "hello"

    trio.run(main)


async def test_routes_are_lists_and_begin_with_an_existing_part() -> None:
    async with running(DIRECT) as topology:
        alice = topology["alice"]
        with pytest.raises(LocalError, match=r"a route is a list of its hops, such as \['@bob'\]"):
            await alice.ask("@bob", "hello")
        with pytest.raises(LocalError, match="no secure channel or stream 'carol'; known are: @bob"):
            alice.route("@carol")
        with pytest.raises(LocalError, match="node alice has no stream 'hub'; known are: none"):
            alice.stream("hub")
