"""Inlets, outlets and relays as processes: a TCP service behind a hub, a relay, or two streams."""

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.support.processes import Commands, Running, addresses, listening


@asynccontextmanager
async def shouting_service() -> AsyncIterator[str]:
    """A TCP service that answers in capitals once its client has ended its side; where it listens."""

    async def shout(stream: trio.SocketStream) -> None:
        async with stream:
            heard = b"".join([part async for part in stream])
            await stream.send_all(heard.upper())

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, shout, 0)
        yield f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


async def listening_inlet(inlet: Running) -> str:
    """Where an inlet says that it listens, HOST:PORT."""
    line = await inlet.line()
    assert line.startswith("listening on 127.0.0.1:"), line
    return line.removeprefix("listening on ")


async def heard_through(inlet: Running, text: bytes) -> bytes:
    """What the service answers through an inlet, to a client that ends its side first."""
    host, _, port = (await listening_inlet(inlet)).partition(":")
    async with await trio.open_tcp_stream(host, int(port)) as client:
        await client.send_all(text)
        await client.send_eof()
        return b"".join([part async for part in client])


@pytest.mark.parametrize("protocol_version", ["current", "classic"])
async def test_an_inlet_reaches_an_outlet_that_listens(tmp_path: Path, protocol_version: str) -> None:
    with trio.fail_after(60):
        async with Commands(tmp_path) as commands, shouting_service() as service:
            speaks = ("--protocol-version", protocol_version)
            outlet = await commands.start("outlet", service, "--listen", "tcp:127.0.0.1:0", "--trust-everyone", *speaks)
            at = await listening(outlet)
            identifier = await outlet.line()
            inlet = await commands.start("inlet", "127.0.0.1:0", "--to", at, "--trust", identifier, *speaks)
            assert await heard_through(inlet, b"hello" * 10_000) == b"HELLO" * 10_000
            for each in (inlet, outlet):
                assert (await each.stopped_by(signal.SIGTERM))[0] == 143


@pytest.mark.parametrize("protocol_version", ["current", "classic"])
async def test_an_inlet_reaches_an_outlet_behind_a_relay(tmp_path: Path, protocol_version: str) -> None:
    with trio.fail_after(60):
        async with Commands(tmp_path) as commands, shouting_service() as service:
            _, at = await commands.hub("--store", "memory")
            speaks = ("--protocol-version", protocol_version)
            outlet = await commands.start(
                "outlet", service, "--hub", at, "--relay", "shouts", "--trust-everyone", *speaks
            )
            assert await outlet.line() == "relay: 0#forward_to_shouts"
            identifier = await outlet.line()
            way = f"{at} => forward_to_shouts"
            inlet = await commands.start("inlet", "127.0.0.1:0", "--to", way, "--trust", identifier, *speaks)
            assert await heard_through(inlet, b"hello") == b"HELLO"


async def test_an_inlet_reaches_an_outlet_through_two_streams(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with Commands(tmp_path) as commands, shouting_service() as service:
            _, at = await commands.hub("--store", f"sqlite:{tmp_path / 'streams.db'}")
            outlet = await commands.start("outlet", service, "--hub", at, "--streams", "--trust-everyone")
            names = (await outlet.line()).removeprefix("streams: ").split()
            identifier = await outlet.line()
            inlet = await commands.start(
                "inlet", "127.0.0.1:0", "--hub", at, "--streams", *names, "--trust", identifier
            )
            assert await heard_through(inlet, b"hello") == b"HELLO"


async def test_a_relay_makes_a_node_reachable_that_the_hub_can_not_dial(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with Commands(tmp_path) as commands, shouting_service() as service:
            _, at = await commands.hub("--store", "memory")
            outlet = await commands.start("outlet", service, "--listen", "tcp:127.0.0.1:0", "--trust-everyone")
            endpoint, identifier = await listening(outlet), await outlet.line()
            relay = await commands.start("relay", "inside", "--to", endpoint, "--hub", at)
            assert await relay.line() == "relay: 0#forward_to_inside"
            inlet = await commands.start(
                "inlet", "127.0.0.1:0", "--to", f"{at} => forward_to_inside", "--trust", identifier
            )
            assert await heard_through(inlet, b"hello") == b"HELLO"


async def test_outlet_needs_trust_and_refuses_other_peers(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with Commands(tmp_path) as commands, shouting_service() as service:
            undecided = await commands.start("outlet", service, "--listen", "tcp:127.0.0.1:0")
            assert await undecided.end() == 2
            assert "to let everyone use the outlet" in undecided.complaints
            outlet = await commands.start("outlet", service, "--listen", "tcp:127.0.0.1:0", "--trust", "I" + "0" * 64)
            at, identifier = await listening(outlet), await outlet.line()
            inlet = await commands.start("inlet", "127.0.0.1:0", "--to", at, "--trust", identifier)
            assert await inlet.end() == 1
            assert "refuses this identity" in inlet.complaints
            await outlet.stopped_by(signal.SIGTERM)
            assert "the trust policy says no" in outlet.complaints


async def test_alice_and_bob_talk_classic_through_a_hub_that_needs_no_option(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with Commands(tmp_path) as commands:
            _, at = await commands.hub("--store", f"sqlite:{tmp_path / 'streams.db'}")
            speaks = ("--protocol-version", "classic")
            bob = await commands.start("bob", "--hub", at, *speaks)
            alice = await commands.start("alice", "--hub", at, *speaks)
            to_alice, to_bob, identifier = await addresses(bob)
            assert identifier.startswith("P")
            await alice.write(to_alice, to_bob)
            assert await alice.line() == f"[✓] End-to-end encrypted secure channel was established with {identifier}."
            await alice.write("hello", "", "Ünïcødé ✨", "x" * 60_000)
            await alice.close_input()
            assert await alice.rest() == [
                f"Alice received an echo: {text}" for text in ("hello", "", "Ünïcødé ✨", "x" * 60_000)
            ]
            assert await alice.end() == 0
