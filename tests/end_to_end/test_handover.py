"""`trionode hub` restarted under classic programs, which must never get connection refused (spec §11.6, 7)."""

import os
import signal
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from tests.support.classic_client import Scanner, frame, message, open_pair
from tests.support.processes import Commands, Running, listening

#: Messages that each of a pair says, and seconds between two of them: so that every restart comes in the middle.
MESSAGES = 300
PACE = 0.02
#: Seconds for a whole test.
STALL_TIMEOUT = 120.0

#: Takes the place that systemd has: it passes on file descriptor sys.argv[1] and becomes the hub.
_PASSING = """
import os, sys
fd = int(sys.argv[1])
os.dup2(fd, 3, inheritable=True)
os.environ.update(LISTEN_PID=sys.argv[2] or str(os.getpid()), LISTEN_FDS="1")
os.execv(sys.executable, [sys.executable, "-m", "trionode", *sys.argv[3:]])
"""


@pytest.fixture(params=["sqlite", pytest.param("kafka", marks=[pytest.mark.kafka, pytest.mark.soak])])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A store that outlives a hub."""
    if request.param == "kafka":
        return f"kafka:{request.getfixturevalue('kafka_broker').bootstrap}"
    return f"sqlite:{tmp_path / 'streams.db'}"


async def converse(port: int, while_they_talk: Callable[[], Awaitable[None]]) -> None:
    """Let a pair exchange messages with pauses. Nothing is lost or repeated, and no program gets stuck."""
    async with open_pair(port) as (alice, bob):
        alice.say(b"first")
        bob.say(b"first")
        await alice.has(1)
        await bob.has(1)
        sent = [b"first"]

        async def talk() -> None:
            for number in range(MESSAGES):
                payload = b"%d" % number
                sent.append(payload)
                alice.say(payload)
                bob.say(payload)
                await trio.sleep(PACE)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(talk)
            await while_they_talk()
        alice.say(b"last")
        bob.say(b"last")
        await alice.has(MESSAGES + 2)
        await bob.has(MESSAGES + 2)
        for each in (alice, bob):
            assert each.arrived == [*sent, b"last"]
            assert set(each.statuses) == {0}
            assert each.is_polling
            assert not each.strange


def port_of(endpoint: str) -> int:
    return int(endpoint.rpartition(":")[2])


async def test_a_classic_pair_does_not_notice_that_the_hub_begins_anew(store: str, tmp_path: Path) -> None:
    with trio.fail_after(STALL_TIMEOUT):
        async with Commands(tmp_path) as commands:
            hub, endpoint = await commands.hub("--store", store)
            pid = hub.process.pid

            async def restart() -> None:
                for _ in range(4):
                    await trio.sleep(0.6)
                    hub.process.send_signal(signal.SIGHUP)
                    assert await listening(hub) == endpoint

            await converse(port_of(endpoint), restart)
            assert hub.process.pid == pid
            assert (await hub.stopped_by(signal.SIGTERM))[0] == 143
            assert "did not answer" not in hub.complaints


@pytest.mark.soak
async def test_classic_pair_does_not_notice_a_second_without_a_hub_while_the_socket_stays_open(
    store: str, tmp_path: Path
) -> None:
    with trio.fail_after(STALL_TIMEOUT), socket.create_server(("127.0.0.1", 0)) as kept:
        endpoint = f"tcp:127.0.0.1:{kept.getsockname()[1]}"

        async def start(commands: Commands) -> Running:
            hub = await commands.start(
                str(kept.fileno()), "", "hub", "--store", store, program=("-c", _PASSING), pass_fds=(kept.fileno(),)
            )
            assert await listening(hub) == endpoint
            return hub

        async with Commands(tmp_path) as commands:
            hub = await start(commands)

            async def stop_and_start() -> None:
                nonlocal hub
                await trio.sleep(1)
                assert (await hub.stopped_by(signal.SIGTERM))[0] == 143
                await trio.sleep(1)
                hub = await start(commands)

            await converse(port_of(endpoint), stop_and_start)


async def test_sockets_for_another_process_are_left_alone_and_the_variables_are_too(tmp_path: Path) -> None:
    with trio.fail_after(STALL_TIMEOUT), socket.create_server(("127.0.0.1", 0)) as kept:
        async with Commands(tmp_path) as commands:
            hub = await commands.start(
                str(kept.fileno()),
                "1",
                "hub",
                "--listen",
                "tcp:127.0.0.1:0",
                program=("-c", _PASSING),
                pass_fds=(kept.fileno(),),
            )
            assert await listening(hub) != f"tcp:127.0.0.1:{kept.getsockname()[1]}"


@pytest.mark.parametrize("what", ["pipe", "datagram", "connected"])
async def test_descriptor_that_is_not_a_listening_socket_is_a_clear_error(what: str, tmp_path: Path) -> None:
    with (
        trio.fail_after(STALL_TIMEOUT),
        socket.socket(type=socket.SOCK_DGRAM if what == "datagram" else socket.SOCK_STREAM) as sock,
    ):
        read, write = os.pipe()
        try:
            async with Commands(tmp_path) as commands:
                fd = read if what == "pipe" else sock.fileno()
                hub = await commands.start(str(fd), "", "hub", program=("-c", _PASSING), pass_fds=(fd,))
                assert await hub.end() == 1
                (line,) = hub.complaints.splitlines()
                assert line.startswith("error: LISTEN_FDS passes file descriptor 3, which ")
        finally:
            os.close(read)
            os.close(write)


async def test_a_stop_during_the_handover_stops(tmp_path: Path) -> None:
    with trio.fail_after(STALL_TIMEOUT):
        async with Commands(tmp_path) as commands:
            hub, _ = await commands.hub()
            assert (await hub.stopped_by(signal.SIGHUP, signal.SIGHUP, signal.SIGTERM))[0] == 143


async def test_hub_echoes_to_unauthenticated_peers(tmp_path: Path) -> None:
    with trio.fail_after(STALL_TIMEOUT):
        async with Commands(tmp_path) as commands:
            _, endpoint = await commands.hub()
            async with await trio.open_tcp_stream("127.0.0.1", port_of(endpoint)) as stream:
                await stream.send_all(frame(message([b"echo"], [b"app"], b"hello")))
                answer = await stream.receive_some(1000)
                assert Scanner(answer[2:]).message() == ((b"app",), (b"echo",), b"hello")
