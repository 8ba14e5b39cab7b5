"""Hub, Bob and Alice as commands over TLS: required certificates, their renewal, and errors without one."""

import signal
import socket
from pathlib import Path

import trio

from tests.support.certificates import Authority, Certificate
from tests.support.processes import Commands, Running, addresses


async def listening(hub: Running) -> str:
    line = await hub.line()
    assert line.startswith("listening on tls:127.0.0.1:")
    return line.removeprefix("listening on ")


def renew(old: Certificate, new: Certificate) -> None:
    Path(old.certificate).write_bytes(Path(new.certificate).read_bytes())
    Path(old.key).write_bytes(Path(new.key).read_bytes())


async def test_hub_bob_and_alice_talk_over_tls_and_a_missing_certificate_is_a_clear_error(
    tmp_path: Path,
) -> None:
    authority, clients = Authority(tmp_path), Authority(tmp_path, "clients")
    own, shown = authority.sign(), clients.sign_client()
    client = ("--ca-file", authority.path, "--certificate", shown.certificate)
    with trio.fail_after(60):
        async with Commands(tmp_path) as commands:
            hub = await commands.start(
                *("hub", "--listen", "tls:127.0.0.1:0", "--store", f"sqlite:{tmp_path / 'streams.db'}"),
                *("--certificate", own.certificate, "--key", own.key, "--client-ca-file", clients.path),
            )
            at = await listening(hub)
            bob = await commands.start("bob", "--hub", at, *client)
            alice = await commands.start("alice", "--hub", at, *client)
            untrusted = await commands.start("bob", "--hub", at, "--ca-file", authority.path)
            to_alice, to_bob, _ = await addresses(bob)
            await alice.write(to_alice, to_bob)
            assert "secure channel was established" in await alice.line()
            await alice.write("first")
            assert await alice.line() == "Alice received an echo: first"
            assert await untrusted.end() == 1
            assert "demands a certificate: set the options certificate and key" in untrusted.complaints

            renew(own, authority.sign())
            hub.process.send_signal(signal.SIGHUP)
            assert await listening(hub) == at
            await alice.write("x" * 60_000)
            await alice.close_input()
            assert await alice.rest() == ["Alice received an echo: " + "x" * 60_000]
            assert await alice.end() == 0
            for each in (bob, hub):
                assert (await each.stopped_by(signal.SIGTERM))[0] == 143


async def test_inlet_reaches_outlet_over_tls(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    own = authority.sign()
    with trio.fail_after(60), socket.create_server(("127.0.0.1", 0)) as service:
        async with Commands(tmp_path) as commands:
            outlet = await commands.start(
                *("outlet", f"127.0.0.1:{service.getsockname()[1]}", "--listen", "tls:127.0.0.1:0", "--trust-everyone"),
                *("--certificate", own.certificate, "--client-ca-file", authority.path),
            )
            at, identifier = await listening(outlet), await outlet.line()
            inlet = await commands.start(
                *("inlet", "127.0.0.1:0", "--to", at, "--trust", identifier),
                *("--ca-file", authority.path, "--certificate", own.certificate),
            )
            host, _, port = (await inlet.line()).removeprefix("listening on ").partition(":")
            async with await trio.open_tcp_stream(host, int(port)) as stream:
                served, _ = await trio.to_thread.run_sync(service.accept)
                with served:
                    served.sendall(b"hello")
                    assert await stream.receive_some() == b"hello"


async def test_wrong_tls_options_are_one_clear_error(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    listen = ("hub", "--store", "memory", "--listen", "tls:127.0.0.1:0")
    wrong = (
        ((*listen,), "without a certificate: set the option certificate, and key"),
        ((*listen, "--certificate", authority.path), "there is no private key in"),
        (
            ("bob", "--ca-file", authority.path),
            "--ca-file: these options need an address with TLS, tls:HOST:PORT or wss:",
        ),
    )
    with trio.fail_after(60):
        async with Commands(tmp_path) as commands:
            running = [await commands.start(*arguments) for arguments, _ in wrong]
            for each, (_, reason) in zip(running, wrong, strict=True):
                assert await each.end() == 1
                (error,) = [line for line in each.complaints.splitlines() if line.startswith("error: ")]
                assert reason in error
                assert "Traceback" not in each.complaints
