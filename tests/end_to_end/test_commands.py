"""Hub, Bob and Alice as commands: three processes over TCP, on SQLite and on Kafka, and the end of each."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing
from click.testing import CliRunner
from trio.testing import MockClock

from tests.support.processes import Commands, Running, addresses, scene
from trionode import (
    Identity,
    Mailbox,
    Node,
    Route,
    SecureChannel,
    TrustPolicy,
    Worker,
    open_node,
    trust_everyone,
    trust_only,
)
from trionode.channel.listener import SecureChannelListener
from trionode.cli import main
from trionode.cli.commands.alice import ECHO_SECONDS, converse
from trionode.cli.commands.bob import echo_and_print
from trionode.cli.commands.hub import MAX_FRAME
from trionode.cli.terminal import MAX_LINE, Line, Lines, Output
from trionode.errors import ConnectionLost, IdentityRefused, LocalError
from trionode.protocol.identity.classic_identity import verify_classic_history
from trionode.protocol.wire.address import parse_host_port
from trionode.stream.store.base import load_store
from trionode.testing import KafkaBroker

#: Seconds within which every command ends, whatever hangs.
END_SECONDS = 2.0

SECRET_TEXT = "a text that must not be found in the store"
MESSAGES = [SECRET_TEXT, "", "Ünïcødé: Привет, 你好, שלום ✨", "x" * 60_000, "the last one"]


async def converse_over(folder: Path, *store: str) -> list[str]:
    """Send MESSAGES through three processes; return the lines that Bob printed, without their prefixes."""
    with trio.fail_after(60):
        async with scene(folder, *store) as (_, hub, bob, alice):
            await alice.write(*MESSAGES)
            await alice.close_input()
            assert await alice.rest() == [f"Alice received an echo: {message}" for message in MESSAGES]
            assert await alice.end() == 0
            received = [await bob.line() for _ in MESSAGES]
            for each in (bob, hub):
                assert (await each.stopped_by(signal.SIGTERM))[0] == 143
            assert not await bob.rest()
            assert not await hub.rest()
    return [line.removeprefix("[✓] Address: 0#echoer, Received: ") for line in received]


def beginning_with(folder: Path, name: str) -> list[Path]:
    """The files of a folder whose names begin so."""
    return [file for file in folder.iterdir() if file.name.startswith(name)]


def files_with(files: list[Path], *texts: str) -> list[tuple[str, str]]:
    """Which of some texts are in which of some files."""
    assert files
    return [(text, file.name) for file in files for text in texts if text.encode() in file.read_bytes()]


async def test_three_processes_echo_over_sqlite_and_its_file_holds_ciphertext_only(tmp_path: Path) -> None:
    assert await converse_over(tmp_path, f"sqlite:{tmp_path / 'streams.db'}") == MESSAGES
    files = beginning_with(tmp_path, "streams.db")
    assert files_with(files, "alice_to_bob") != []
    assert files_with(files, SECRET_TEXT, "echoer", "Привет", "x" * 64) == []


async def test_while_the_hub_runs_its_file_and_its_log_hold_ciphertext_only(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with scene(tmp_path, f"sqlite:{tmp_path / 'streams.db'}") as (_, hub, _, alice):
            await alice.write(SECRET_TEXT)
            assert await alice.line() == f"Alice received an echo: {SECRET_TEXT}"
            hub.process.kill()
            await hub.process.wait()
            assert (tmp_path / "streams.db-wal").exists()
            assert files_with(beginning_with(tmp_path, "streams.db"), SECRET_TEXT, "echoer") == []


@pytest.mark.kafka
async def test_three_processes_echo_over_kafka_and_its_topics_hold_ciphertext_only(
    tmp_path: Path, kafka_broker: KafkaBroker
) -> None:
    assert await converse_over(tmp_path, f"kafka:{kafka_broker.bootstrap}") == MESSAGES
    segments = [
        file
        for file in kafka_broker.log.parent.rglob("*.log")
        if file.parent.name.startswith(("trionode_alice_to_bob_", "trionode_bob_to_alice_"))
    ]
    assert sum(file.stat().st_size for file in segments) > 120_000
    assert files_with(segments, SECRET_TEXT, "echoer", "Привет", "x" * 64) == []


async def test_alice_does_not_wait_for_an_echo_before_she_sends_the_next_line(tmp_path: Path) -> None:
    numbers = [str(number) for number in range(2000)]
    with trio.fail_after(60):
        async with scene(tmp_path, "memory") as (_, _, bob, alice), trio.open_nursery() as nursery:
            # At first no task reads the output of Bob: he blocks, and Alice continues to read.
            bob.process.send_signal(signal.SIGSTOP)
            await alice.write(*numbers)
            await alice.close_input()
            bob.process.send_signal(signal.SIGCONT)
            nursery.start_soon(bob.rest)
            assert await alice.rest() == [f"Alice received an echo: {number}" for number in numbers]
            assert await alice.end() == 0
            bob.process.terminate()


async def test_a_line_that_does_not_fit_is_named_and_the_others_are_echoed(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with scene(tmp_path, "memory") as (_, _, bob, alice):
            await alice.write("one", "y" * 64_000, "z" * 200_000, b"\xff\xfe", "five\x1b[2J")
            await alice.close_input()
            assert await alice.rest() == ["Alice received an echo: one", r"Alice received an echo: five\x1b[2J"]
            assert await alice.end() == 1
            assert (await bob.line(), await bob.line())[1] == r"[✓] Address: 0#echoer, Received: five\x1b[2J"
    said = alice.complaints
    assert "message 2 was not sent: " in said
    assert "message 3 was not sent: it has 200000 bytes" in said
    assert "message 4 was not sent: it is not UTF-8" in said
    assert "y" * 100 not in said


async def test_alice_notices_at_once_when_bob_stops(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with scene(tmp_path, "memory") as (_, _, bob, alice):
            # Once an echo has come, Bob has a channel too, and so something to close.
            await alice.write("hello")
            assert await alice.line() == "Alice received an echo: hello"
            code, seconds = await bob.stopped_by(signal.SIGINT)
            assert (code, seconds < END_SECONDS) == (130, True)
            assert await alice.end() == 1
    assert_one_clear_error(alice.complaints, "has ended, as when Bob stops")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_every_command_ends_soon_after_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    with trio.fail_after(60):
        async with scene(tmp_path, "memory") as (_, hub, bob, alice):
            for each in (alice, bob, hub):
                code, seconds = await each.stopped_by(number)
                assert (code, seconds < END_SECONDS) == (128 + number, True), each.complaints
                assert "Traceback" not in each.complaints


async def test_alice_and_bob_end_soon_after_a_signal_while_the_hub_hangs(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with scene(tmp_path, "memory") as (_, hub, bob, alice):
            hub.process.send_signal(signal.SIGSTOP)
            await alice.write("into the void")
            async with trio.open_nursery() as nursery:
                for each in (bob, alice):
                    nursery.start_soon(assert_stopped, each, signal.SIGTERM)


async def assert_stopped(each: Running, number: signal.Signals) -> None:
    code, seconds = await each.stopped_by(number)
    assert (code, seconds < END_SECONDS) == (128 + number, True), each.complaints


async def test_a_second_signal_ends_a_command_at_once(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with scene(tmp_path, "memory") as (_, hub, bob, _):
            hub.process.send_signal(signal.SIGSTOP)
            code, seconds = await bob.stopped_by(signal.SIGINT, signal.SIGTERM)
            assert code == 143
            assert seconds < END_SECONDS / 2


@pytest.mark.kafka
async def test_a_hub_ends_soon_after_a_signal_while_kafka_hangs(tmp_path: Path, kafka_broker: KafkaBroker) -> None:
    with trio.fail_after(60):
        async with scene(tmp_path, f"kafka:{kafka_broker.bootstrap}") as (_, hub, _, alice):
            kafka_broker.pause()
            try:
                await alice.write("into the void")
                await assert_stopped(hub, signal.SIGTERM)
            finally:
                kafka_broker.resume()


async def test_a_hub_reads_no_frame_that_is_larger_than_a_push_can_be(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with Commands(tmp_path) as commands:
            _, at = await commands.hub("--store", "memory")
            async with await trio.open_tcp_stream(*parse_host_port(at.removeprefix("tcp:"))) as stream:
                await stream.send_all(b"\x01" + (MAX_FRAME + 1).to_bytes(4, "big"))
                assert await stream.receive_some(1) == b"\x01"
                assert await stream.receive_some(1) == b""


async def test_wrong_addresses_are_one_clear_error(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with Commands(tmp_path) as commands:
            _, at = await commands.hub("--store", "memory")
            cases = {
                ("bob_to_alice_x", "alice_to_bob_x"): "no secure channel within 0.5 s: no peer completed a handshake",
                ("alice_to_bob_x", "bob_to_alice_x"): "give both, in this order",
                ("no name!", "alice_to_bob_x"): "'no name!' is not a bob_to_alice stream address",
                ("bob_to_alice_x",): "standard input ended before the alice_to_bob stream address",
            }
            alices = [await commands.start("alice", "--hub", at, "--timeout", "0.5") for _ in cases]
            for alice, given in zip(alices, cases, strict=True):
                await alice.write(*given)
                await alice.close_input()
            for alice, expected in zip(alices, cases.values(), strict=True):
                assert await alice.end() == 1
                assert_one_clear_error(alice.complaints, expected)


async def test_no_hub_is_one_clear_error(tmp_path: Path) -> None:
    with socket.socket() as held, trio.fail_after(60):
        held.bind(("127.0.0.1", 0))  # bound, but not listening: no other program takes it meanwhile
        at = f"tcp:127.0.0.1:{held.getsockname()[1]}"
        async with Commands(tmp_path) as commands:
            alice, bob = await commands.start("alice", "--hub", at), await commands.start("bob", "--hub", at)
            hub = await commands.start("hub", "--listen", at, "--store", "sqlite:/nowhere/at/all")
            kafka = await commands.start("hub", "--store", f"kafka:{at.removeprefix('tcp:')}")
            await alice.write("bob_to_alice_x", "alice_to_bob_x")
            for each, expected in (
                (alice, f"can't connect to {at}"),
                (bob, f"can't connect to {at}"),
                (hub, "/nowhere/at/all"),
                (kafka, f"no Kafka at {at.removeprefix('tcp:')}"),
            ):
                assert await each.end() == 1
                assert_one_clear_error(each.complaints, expected)


async def test_peer_that_alice_refuses_is_one_clear_error(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with Commands(tmp_path) as commands:
            _, at = await commands.hub("--store", "memory")
            bob = await commands.start("bob", "--hub", at)
            alice = await commands.start("alice", "--hub", at, "--trust", f"I{'0' * 64}")
            to_alice, to_bob, identifier = await addresses(bob)
            await alice.write(to_alice, to_bob)
            assert await alice.end() == 1
            assert_one_clear_error(alice.complaints, f"the peer is {identifier}, which is refused")


async def test_several_hubs_are_tried_in_turn(tmp_path: Path) -> None:
    with socket.socket() as held, trio.fail_after(60):
        held.bind(("127.0.0.1", 0))
        async with Commands(tmp_path) as commands:
            _, at = await commands.hub("--store", "memory")
            both = ("--hub", f"tcp:127.0.0.1:{held.getsockname()[1]}", "--hub", at)
            bob, alice = await commands.start("bob", *both), await commands.start("alice", *both)
            await alice.write(*(await addresses(bob))[:2], "hello")
            await alice.close_input()
            assert (await alice.rest())[1:] == ["Alice received an echo: hello"]
            assert await alice.end() == 0


async def test_identity_and_streams_outlive_a_restart(tmp_path: Path) -> None:
    passphrase = tmp_path / "passphrase"
    passphrase.write_text("correct horse\n")
    with trio.fail_after(60):
        async with Commands(tmp_path) as commands:
            hub, at = await commands.hub("--store", f"sqlite:{tmp_path / 'streams.db'}")
            bobs = ("bob", "--hub", at, "--state", tmp_path / "bob.vault", "--passphrase-file", passphrase)
            alices = ("alice", "--hub", at, "--state", tmp_path / "alice.vault", "--unencrypted")
            bob, alice = await commands.start(*bobs), await commands.start(*alices)
            first = await addresses(bob)
            await alice.write(*first[:2], "before")
            await alice.close_input()
            assert (await alice.rest())[1:] == ["Alice received an echo: before"]
            assert (await bob.stopped_by(signal.SIGTERM))[0] == 143
            hub.process.kill()
            await hub.process.wait()
            hub = await commands.start("hub", "--listen", at, "--store", f"sqlite:{tmp_path / 'streams.db'}")
            assert await hub.line() == f"listening on {at}"
            bob, again = await commands.start(*bobs), await commands.start(*alices)
            assert await addresses(bob) == first
            await again.write("", "", "after")
            await again.close_input()
            assert (await again.rest())[1:] == ["Alice received an echo: after"]
            assert await bob.line() == "[✓] Address: 0#echoer, Received: after"
            assert alice.complaints.partition("Alice is ")[2][:65] == again.complaints.partition("Alice is ")[2][:65]
            # The position was kept at the hub, so nothing of the first session came again.
            assert "skipped a record" not in bob.complaints + again.complaints
    for name in ("bob.vault", "bob.vault.streams", "alice.vault", "alice.vault.streams"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600


async def test_hub_with_an_identity_serves_only_trusted_peers(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with Commands(tmp_path) as commands:
            vaults = {
                name: ("--state", tmp_path / f"{name}.vault", "--unencrypted") for name in ("hub", "bob", "alice")
            }
            made = [await commands.start("identity", "create", *state) for state in vaults.values()]
            hub_id, bob_id, alice_id = [await each.line() for each in made]
            trusted = ("--trust", bob_id, "--trust", alice_id)
            _, at = await commands.hub("--store", "memory", "--identity", "default", *trusted, *vaults["hub"])
            to_hub = ("--hub", at, "--hub-identity", hub_id)
            bob = await commands.start("bob", *to_hub, "--trust", alice_id, *vaults["bob"])
            alice = await commands.start("alice", *to_hub, "--trust", bob_id, *vaults["alice"])
            impostor = await commands.start("alice", "--hub", at, "--hub-identity", bob_id)
            to_alice, to_bob, identifier = await addresses(bob)
            assert identifier == bob_id
            for each in (alice, impostor):
                await each.write(to_alice, to_bob, "x" * 60_000)
                await each.close_input()
            assert (await alice.rest())[1:] == [f"Alice received an echo: {'x' * 60_000}"]
            assert await alice.end() == 0
            assert await impostor.end() == 1
            assert_one_clear_error(impostor.complaints, f"the peer is {hub_id}, which is refused")


async def test_commands_trust_peers_by_the_credentials_of_an_authority(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with Commands(tmp_path) as commands:
            vaults = {
                name: ("--state", tmp_path / f"{name}.vault", "--unencrypted")
                for name in ("authority", "hub", "bob", "alice", "carol")
            }

            async def said(name: str, *arguments: str) -> list[str]:
                command = await commands.start("identity", *arguments, *vaults[name])
                lines = await command.rest()
                assert await command.end() == 0, command.complaints
                return lines

            identifiers = {name: (await said(name, "create"))[0] for name in vaults}
            (history,) = await said("authority", "export")
            (tmp_path / "authority.hex").write_text(history + "\n")
            for name, role in (("bob", "member"), ("alice", "member"), ("carol", "guest")):
                (credential,) = await said(
                    "authority", "issue", "--subject", identifiers[name], "--attribute", f"role={role}", "--days", "1"
                )
                (added,) = await said(name, "add-credential", credential)
                assert added.startswith(identifiers["authority"])
                assert added.endswith(f" role={role}")
                assert await said(name, "credentials") == [added]
            by_file = ("--authority", str(tmp_path / "authority.hex"), "--trust-attribute", "role")
            members = ("--authority", history, "--trust-attribute", "role=member")
            _, at = await commands.hub("--store", "memory", "--identity", "default", *by_file, *vaults["hub"])
            to_hub = ("--hub", at, "--hub-identity", identifiers["hub"])
            bob = await commands.start("bob", *to_hub, *members, *vaults["bob"])
            to_alice, to_bob, _ = await addresses(bob)
            alice = await commands.start("alice", *to_hub, *members, *vaults["alice"])
            carol = await commands.start("alice", *to_hub, *members, *vaults["carol"])
            for each in (alice, carol):
                await each.write(to_alice, to_bob, "hello")
                await each.close_input()
            assert (await alice.rest())[1:] == ["Alice received an echo: hello"]
            assert await alice.end() == 0
            # An initiator hears nothing of its refusal: Carol waits for an echo that never comes.
            carol.process.kill()
            assert not [line for line in await carol.rest() if "echo" in line]
            wrong = await commands.start("bob", *to_hub, "--trust-attribute", "role", *vaults["bob"])
            assert await wrong.end() == 2
            assert "--trust-attribute needs --authority" in wrong.complaints


async def test_identities_are_made_shown_listed_exported_and_rotated(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with Commands(tmp_path) as commands:
            state = ("--state", tmp_path / "vault", "--unencrypted")

            async def said(*arguments: str) -> list[str]:
                command = await commands.start("identity", *arguments, *state)
                lines = await command.rest()
                assert await command.end() == 0, command.complaints
                return lines

            (identifier,) = await said("create", "bob")
            (history,) = await said("export", "bob")
            assert await said("rotate", "bob") == [identifier]
            assert await said("show", "bob") == [identifier]
            assert await said("list") == [f"{identifier} bob"]
            (longer,) = await said("export", "bob")
            assert len(longer) > len(history)
            (classic,) = await said("show", "bob", "--classic")
            assert classic.startswith("P")
            assert await said("rotate", "bob") == [identifier]
            assert await said("show", "bob", "--classic") == [classic]
            (exported,) = await said("export", "bob", "--classic")
            assert str(verify_classic_history(bytes.fromhex(exported)).identifier) == classic
            missing = await commands.start("identity", "show", *state)
            assert await missing.end() == 1
            assert_one_clear_error(missing.complaints, "no identity named 'default' in this vault, which has 'bob'")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("bob", "--hub", "127.0.0.1:4000"), "expected a transport address such as tcp:127.0.0.1:4000"),
        (("bob", "--hub", "tcp:127.0.0.1"), "expected HOST:PORT"),
        (("alice", "--trust", "Bob"), "an identifier is I and 64 hex digits"),
        (("hub", "--identity", "default"), "--identity NAME, --state PATH and at least one --trust IDENTIFIER"),
        (("hub", "--store-option", "replication_factor=3"), "--store-option needs --store"),
        (("hub", "--store", "memory", "--store-option", "password=x"), "other users can see a password in a command"),
        (("demo", "--store-option", "nonsense"), "expected NAME=VALUE, not 'nonsense'"),
        (("bob", "--state", "vault"), "--passphrase-file FILE or TRIONODE_PASSPHRASE"),
        (("bob", "--unencrypted"), "need --state PATH"),
    ],
)
def test_wrong_options_exit_with_2(monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], expected: str) -> None:
    monkeypatch.delenv("TRIONODE_PASSPHRASE", raising=False)
    monkeypatch.setattr(os, "isatty", lambda _: False)
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert expected in " ".join(result.output.split())


def test_the_command_line_loads_no_kafka() -> None:
    program = "import sys, trionode.cli; print('kafka' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"


def test_a_store_that_lacks_its_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in {"kafka", "trionode_kafka"}]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "kafka", None)
    with pytest.raises(LocalError, match=r"pip install 'trionode\[kafka\]'"):
        load_store("kafka:127.0.0.1:9092")


def test_unknown_store_is_reported_with_the_installed_ones() -> None:
    with pytest.raises(LocalError, match=r"no stream store 'redis' is installed; installed are: .*memory, sqlite"):
        load_store("redis:localhost")


def assert_one_clear_error(complaints: str, expected: str) -> None:
    errors = [line for line in complaints.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, complaints
    assert expected in errors[0]
    assert "Traceback" not in complaints


# -- in one process: what takes half a minute, or a peer that is no Bob ------------------------------------------------


async def lines_of(*texts: str) -> AsyncIterator[Line]:
    for number, text in enumerate(texts, 3):
        yield Line(number, text.encode(), len(text.encode()))
        await trio.lowlevel.checkpoint()


class Written:
    """What an Output writes, read back."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        self.output = Output(self._fd)

    def lines(self) -> list[str]:
        os.close(self._fd)
        return self._path.read_text().splitlines()


@attrs.frozen
class Pair:
    """Alice's node and identity, and a channel of hers to Bob's listener."""

    alice: Node
    identity: Identity
    channel: SecureChannel
    listener: SecureChannelListener


@asynccontextmanager
async def pair(echoer: Worker, trust: TrustPolicy = trust_everyone) -> AsyncIterator[Pair]:
    async with open_node("loopback") as bob, open_node("loopback") as alice:
        await bob.start_worker("echoer", echoer)
        listener = await bob.serve_secure_channels("listener", await Identity.create(bob.vault), trust=trust)
        at = await bob.listen("loopback:bob")
        identity = await Identity.create(alice.vault)
        channel = await alice.open_secure_channel(Route(at, "listener"), identity, trust=trust_everyone)
        yield Pair(alice, identity, channel, listener)


async def forgetful(mailbox: Mailbox) -> None:
    async for message in mailbox:
        if message.text == "late":
            await trio.sleep(ECHO_SECONDS + 1)
        if message.text != "lost":
            await mailbox.reply(message, message.payload)


async def test_a_missing_echo_is_named_after_half_a_minute_and_alice_goes_on(
    tmp_path: Path, autojump_clock: MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    written = Written(tmp_path / "out")
    async with pair(forgetful) as p:
        began = trio.current_time()
        assert not await converse(
            p.alice, p.channel, p.identity.identifier, lines_of("one", "lost", "two"), written.output
        )
        assert ECHO_SECONDS <= trio.current_time() - began <= ECHO_SECONDS + 1
    said = capsys.readouterr().err
    assert "no echo within 30 s of message 2: lost\n" in said
    assert "1 echoes are missing, and 0 lines were not sent" in said
    assert written.lines() == ["Alice received an echo: one", "Alice received an echo: two"]


async def test_a_late_echo_that_arrives_while_alice_reads_is_not_reported_missing(
    tmp_path: Path, autojump_clock: MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    written = Written(tmp_path / "out")

    async def slowly() -> AsyncIterator[Line]:
        async for line in lines_of("late"):
            yield line
        await trio.sleep(ECHO_SECONDS + 2)

    async with pair(forgetful) as p:
        assert await converse(p.alice, p.channel, p.identity.identifier, slowly(), written.output)
    said = capsys.readouterr().err
    assert "no echo within 30 s of message 1: late\n" in said
    assert "this echo arrived late: late\n" in said
    assert written.lines() == ["Alice received an echo: late"]


async def test_a_refused_identity_is_reported_at_once(autojump_clock: MockClock) -> None:
    with pytest.RaisesGroup(
        pytest.RaisesExc(IdentityRefused, match="its trust policy has to name it"),
        allow_unwrapped=True,
        flatten_subgroups=True,
    ):
        async with pair(forgetful, trust_only(f"I{'0' * 64}")):
            pass


async def test_unexpected_echoes_are_printed_with_a_remark(
    tmp_path: Path, autojump_clock: MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    written = Written(tmp_path / "out")

    async def twice_and_more(mailbox: Mailbox) -> None:
        async for message in mailbox:
            for body in (b"\x05bell\x07", message.payload, message.payload):
                await mailbox.reply(message, body)

    async with pair(twice_and_more) as p:
        await converse(p.alice, p.channel, p.identity.identifier, lines_of("one", "one", "lost"), written.output)
    assert capsys.readouterr().err.count("Bob sent a message that Alice never sent, or a second echo of one") >= 3
    assert "Alice received an echo: bell\\x07" in written.lines()


async def test_the_conversation_ends_when_the_channel_does(tmp_path: Path, autojump_clock: MockClock) -> None:
    written = Written(tmp_path / "out")

    async def silent(mailbox: Mailbox) -> None:
        await mailbox.receive()
        await p.listener.aclose()

    async with pair(silent) as p:
        with pytest.RaisesGroup(pytest.RaisesExc(ConnectionLost, match="1 echoes have not come")):
            await converse(p.alice, p.channel, p.identity.identifier, lines_of("hello"), written.output)
    assert written.lines() == []


async def test_bob_shows_a_payload_that_is_no_text_in_hex_and_echoes_it(tmp_path: Path) -> None:
    written = Written(tmp_path / "out")
    async with open_node() as node:
        await node.start_worker("echoer", echo_and_print(written.output))
        assert (await node.ask(Route("echoer"), b"\xff\x00raw")).payload == b"\xff\x00raw"
        assert (await node.ask(Route("echoer"), "bell\x07")).text == "bell\x07"
    assert written.lines() == [
        "[✓] Address: 0#echoer, Received: 0xff00726177",
        r"[✓] Address: 0#echoer, Received: bell\x07",
    ]


# -- lines in and out --------------------------------------------------------------------------------------------------


async def read_all(fd: int) -> list[Line]:
    return [line async for line in Lines(fd)]


WAYS_IN = b"one\n\ntwo\r\n" + b"x" * MAX_LINE + b"\n" + b"y" * (3 * MAX_LINE) + b"\nlast"


def assert_whole(lines: list[Line]) -> None:
    contents = [b"one", b"", b"two\r", b"x" * MAX_LINE, b"y" * MAX_LINE, b"last"]
    assert [line.content for line in lines] == contents
    assert [line.is_whole for line in lines] == [True, True, True, True, False, True]
    assert lines[4].length == 3 * MAX_LINE
    assert [line.number for line in lines] == [1, 2, 3, 4, 5, 6]


async def test_lines_of_a_file_are_whole(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(WAYS_IN)
    fd = os.open(tmp_path / "in", os.O_RDONLY)
    assert_whole(await read_all(fd))
    os.close(fd)


@pytest.mark.parametrize("piece", [1000, 65_536, 1 << 20])
async def test_lines_of_a_pipe_are_whole(piece: int) -> None:
    out_of, into = os.pipe()

    async def feed() -> None:
        async with trio.lowlevel.FdStream(into) as stream:
            for start in range(0, len(WAYS_IN), piece):
                await stream.send_all(WAYS_IN[start : start + piece])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed)
        assert_whole(await read_all(out_of))
    os.close(out_of)


async def test_no_input_has_no_lines() -> None:
    fd = os.open(os.devnull, os.O_RDONLY)
    assert await read_all(fd) == []
    os.close(fd)
    assert await read_all(fd) == []


async def test_unread_output_blocks_only_its_writer() -> None:
    out_of, into = os.pipe()
    long = "x" * 1_000_000
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Output(into).line, long)
        await trio.testing.wait_all_tasks_blocked()
        # This task runs on, though the pipe is full: nothing here blocks.
        lines = Lines(out_of)
        line = await anext(lines)
        assert line.length == len(long)
    for fd in (out_of, into):
        os.close(fd)


async def test_output_without_a_reader_is_a_clear_error() -> None:
    out_of, into = os.pipe()
    os.close(out_of)
    with pytest.raises(LocalError, match="Its reader is gone"):
        await Output(into).line("hello")
    os.close(into)
