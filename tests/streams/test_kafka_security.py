"""Kafka under TLS and with passwords, for streams and links, and the error that each mistake gets within seconds."""

import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from tests.support.certificates import Authority
from trionode.cli.stores import open_store
from trionode.errors import ConfigError, ConnectionLost, LocalError
from trionode.net.transport import Link, Transport, load_transport
from trionode.protocol.stream.messages import Record
from trionode.stream.store.base import Push, StoreError, load_store
from trionode.testing import KafkaBroker, NoKafkaError, SecureListeners, run_kafka
from trionode.testing.contract import Held
from trionode_kafka.client import kafka_client, probe
from trionode_kafka.client.security import Security

#: Seconds within which a mistake must be reported.
SOON = 6.0
#: Seconds for everything else, also under load.
TIMEOUT = 30.0


@pytest.fixture(scope="module")
def broker() -> Iterator[KafkaBroker]:
    try:
        with run_kafka(secure=True) as broker:
            yield broker
    except NoKafkaError as missing:
        pytest.skip(str(missing))


@attrs.frozen
class Client:
    """The address of a broker's listener, and the options for it."""

    where: str
    options: dict[str, Any]

    def store(self) -> AbstractAsyncContextManager[Any]:
        return load_store(f"kafka:{self.where}", **self.options)

    @asynccontextmanager
    async def transport(self) -> AsyncIterator[Transport]:
        """Open the transport as a node does."""
        async with trio.open_nursery() as nursery:
            yield load_transport("kafka", **self.options).open(nursery)
            nursery.cancel_scope.cancel()


def password(secure: SecureListeners, **options: str) -> dict[str, str]:
    return {"username": secure.username, "password": secure.password, **options}


def mutual_tls(secure: SecureListeners) -> Client:
    return Client(secure.ssl, {"security": "ssl", "ca_file": secure.ca_file, "certificate": secure.certificate})


def scram(secure: SecureListeners) -> Client:
    return Client(secure.sasl_ssl, {"security": "sasl_ssl", "ca_file": secure.ca_file, **password(secure)})


def plain_password(secure: SecureListeners) -> Client:
    return Client(
        secure.sasl_plaintext, {"security": "sasl_plaintext", "mechanism": "SCRAM-SHA-256", **password(secure)}
    )


@pytest.mark.kafka
@pytest.mark.parametrize("client", [mutual_tls, scram, plain_password])
async def test_streams_in_a_kafka_with_authentication(
    broker: KafkaBroker, client: Callable[[SecureListeners], Client]
) -> None:
    stream = f"test_{os.urandom(4).hex()}"
    with trio.fail_after(TIMEOUT):
        async with client(broker.secure).store() as store:
            await store.create(stream)
            await store.append([Push(stream, b"producer", 0, b"hello")])
            assert list(await store.read(stream, 0, limit=1, max_bytes=100)) == [Record(0, b"hello")]


@pytest.mark.kafka
@pytest.mark.parametrize("client", [mutual_tls, scram])
async def test_links_over_a_kafka_with_authentication(
    broker: KafkaBroker, client: Callable[[SecureListeners], Client]
) -> None:
    kafka = client(broker.secure)
    links, accepted = trio.open_memory_channel[Link](1)
    frame = os.urandom(1 << 20)  # more than a record of TLS, and of Kafka, holds
    with trio.fail_after(TIMEOUT):
        async with kafka.transport() as server, kafka.transport() as dialer, trio.open_nursery() as nursery:
            at = await nursery.start(server.serve, kafka.where, links.send)
            one = await dialer.connect(at)
            other = await accepted.receive()
            await one.send([frame])
            assert await other.receive() == [frame]
            await one.aclose()
            await other.aclose()
            nursery.cancel_scope.cancel()


def mistakes(secure: SecureListeners, plain: str, other_ca: Authority) -> dict[str, tuple[Client, str]]:
    """Each mistake, and a pattern for the error it must get."""
    tls = {"security": "ssl", "ca_file": secure.ca_file}
    both = {"security": "sasl_ssl", "ca_file": secure.ca_file}
    host = secure.ssl.replace("127.0.0.1", "127.1")  # another name of the same address
    unfit = other_ca.sign_client().certificate
    return {
        "wrong password": (
            Client(secure.sasl_ssl, {**both, **password(secure, password="wrong")}),
            "does not accept the user 'alice' with this password by SCRAM-SHA-512",
        ),
        "wrong password in the clear": (
            Client(
                secure.sasl_plaintext,
                {"security": "sasl_plaintext", "mechanism": "PLAIN", **password(secure, password="wrong")},
            ),
            "does not accept the user 'alice' with this password by PLAIN",
        ),
        "unknown user": (
            Client(secure.sasl_ssl, {**both, **password(secure, username="unknown")}),
            "does not accept the user 'unknown' with this password",
        ),
        "unknown authority": (
            Client(secure.sasl_ssl, {"security": "sasl_ssl", **password(secure)}),
            "certificate is not signed by a trusted CA: set ca_file",
        ),
        "another authority": (
            Client(secure.ssl, {"security": "ssl", "ca_file": other_ca.path}),
            "certificate is not signed by a trusted CA",
        ),
        "wrong host name": (Client(host, tls), "certificate is not valid for '127.1'"),
        "no TLS where it is demanded": (
            Client(secure.ssl, {}),
            "does it speak TLS \\(set security='ssl' or 'sasl_ssl'\\)",
        ),
        "no TLS and no password where both are demanded": (Client(secure.sasl_ssl, {}), "does it speak TLS"),
        "a password without TLS where both are demanded": (
            Client(secure.sasl_ssl, {"security": "sasl_plaintext", **password(secure)}),
            "does it speak TLS",
        ),
        "TLS where there is none": (
            Client(plain, tls),
            "hung up during the TLS handshake: is it a listener without TLS \\(set security='plaintext'",
        ),
        "no certificate where one is demanded": (
            Client(secure.ssl, tls),
            "demands a certificate: set the options certificate and key",
        ),
        "a certificate of another authority": (
            Client(secure.ssl, {**tls, "certificate": unfit}),
            "the other end does not",
        ),
        "no password where one is demanded": (
            Client(secure.sasl_plaintext, {}),
            "hung up at a request without a password: set security='sasl_plaintext'",
        ),
        "no password under TLS where one is demanded": (
            Client(secure.sasl_ssl, tls),
            "hung up at a request without a password: set security='sasl_ssl'",
        ),
        "a password where none is asked": (
            Client(plain, {"security": "sasl_plaintext", **password(secure)}),
            "asks for no password: set security='plaintext'",
        ),
        "no listener": (Client("127.0.0.1:1", tls), r"no Kafka at 127\.0\.0\.1:1 \(Connection refused\)"),
    }


@pytest.mark.kafka
def test_command_takes_store_options_and_the_password_from_the_environment(
    broker: KafkaBroker,
) -> None:
    kafka = scram(broker.secure)
    environment = {**os.environ, "TRIONODE_STORE_PASSWORD": kafka.options.pop("password")}
    options = [word for name, value in kafka.options.items() for word in ("--store-option", f"{name}={value}")]
    program = "from trionode.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "demo", "--store", f"kafka:{kafka.where}", "--messages", "1", *options],
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "1 of 1 echoes came" in done.stdout


async def test_unknown_store_option_is_an_error() -> None:
    with pytest.raises(LocalError, match=r"the store memory has no such option: .*'replication_factor'"):
        open_store("memory", {"replication_factor": 3})


@pytest.mark.kafka
async def test_each_mistake_is_reported_in_one_line_within_seconds(broker: KafkaBroker, tmp_path: Path) -> None:
    before = Held.now()
    for name, (client, match) in mistakes(broker.secure, broker.bootstrap, Authority(tmp_path)).items():
        for attempt in (_open_store, _connect):
            began = time.monotonic()
            with pytest.raises(ConnectionLost) as raised:
                await attempt(client)
            assert time.monotonic() - began < SOON, name
            text = str(raised.value)
            assert re.search(match, text), f"{name}: {text}"
            assert "\n" not in text
            assert client.where in text
            assert "wrong" not in text.replace("wrong name", "")  # the password
    before.require_back()


async def _open_store(client: Client) -> None:
    async with client.store():
        pass


async def _connect(client: Client) -> None:
    error: Exception | None = None
    async with client.transport() as transport:
        try:
            await transport.connect(f"{client.where}/name")
        except ConnectionLost as lost:
            error = lost  # raised behind the nursery, which would put it into a group
    if error is not None:
        raise error


@pytest.mark.kafka
async def test_missing_rights_are_reported(broker: KafkaBroker) -> None:
    kafka = scram(broker.secure)
    kafka = Client(kafka.where, {**kafka.options, "username": broker.secure.user_without_rights})
    with trio.fail_after(SOON):
        async with kafka.store() as store:
            is_refused = pytest.raises(StoreError, match=r"does not let this user do that .* the rights")
            with is_refused:
                await store.create("stream")
            with is_refused:
                await store.position("client", "stream")
            with is_refused:
                await store.read("stream", 0, limit=1, max_bytes=1)
        with pytest.raises(ConnectionLost, match=r"can't connect to kafka:.* does not let this user do that"):
            await _connect(kafka)
        async with kafka.transport() as transport:
            with pytest.raises(ConfigError, match=r"can't listen at kafka:.* does not let this user do that"):
                await transport.serve(f"{kafka.where}/name", Link.aclose)


@pytest.mark.kafka
async def test_silent_listener_is_reported_as_no_kafka(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_client, "CONNECT_SECONDS", 0.3)
    monkeypatch.setattr(probe, "CONNECT_SECONDS", 0.3)
    before = Held.now()
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    where = f"127.0.0.1:{listener.socket.getsockname()[1]}"
    async with listener:
        with trio.fail_after(SOON):
            for options in ({}, {"security": "ssl"}):
                with pytest.raises(ConnectionLost, match=r"sent nothing for|in time"):
                    await _open_store(Client(where, options))
            with trio.move_on_after(0.1) as scope:
                await _connect(Client(where, {}))
            assert scope.cancelled_caught
    before.require_back()


@pytest.mark.kafka
async def test_password_is_in_no_repr_and_no_log(
    broker: KafkaBroker, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    secret = broker.secure.password
    file = tmp_path / "password"
    file.write_text(f"{secret}\n")
    options = {"security": "sasl_plaintext", "mechanism": "PLAIN", "username": "alice", "password_file": str(file)}
    with caplog.at_level(logging.DEBUG), trio.fail_after(TIMEOUT):
        async with load_store(f"kafka:{broker.secure.sasl_plaintext}", **options) as store:
            await store.create("stream")
    assert "Request" in caplog.text
    assert secret not in caplog.text
    assert secret not in repr(Security(password=secret))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"security": "SSL"}, "security is plaintext, ssl, sasl_plaintext or sasl_ssl, not 'SSL'"),
        ({"mechanism": "GSSAPI"}, "mechanism is SCRAM-SHA-512, SCRAM-SHA-256 or PLAIN, not 'GSSAPI'"),
        ({"ca_file": "x.pem"}, "ca_file is for TLS, and security='plaintext' has none: set security='ssl'"),
        ({"security": "sasl_plaintext", "key": "x.pem"}, "key is for TLS"),
        ({"security": "ssl", "key": "x.pem"}, "the key x.pem has no certificate"),
        ({"username": "alice"}, "username is for SASL, and security='plaintext' has none: set security='sasl_ssl'"),
        ({"security": "ssl", "password": "x"}, "password is for SASL"),
        ({"security": "sasl_ssl"}, "set username, and password or password_file"),
        ({"security": "sasl_ssl", "username": "alice"}, "set either password or password_file"),
        (
            {"security": "sasl_ssl", "username": "alice", "password": "x", "password_file": "y"},
            "set either password or password_file",
        ),
        ({"security": "sasl_ssl", "username": "alice", "password": ""}, "the password is empty"),
    ],
)
async def test_options_that_do_not_fit_together_are_config_errors(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(match)):
        load_transport("kafka", **options)
    with pytest.raises(ConfigError, match=re.escape(match)):
        await _open_store(Client("127.0.0.1:1", options))


def test_unreadable_files_are_config_errors(tmp_path: Path) -> None:
    sasl = {"protocol": "sasl_plaintext", "username": "alice"}
    empty, binary = tmp_path / "empty", tmp_path / "binary"
    empty.write_text("\n")
    binary.write_bytes(b"\xff\xfe")
    for file, match in (
        (tmp_path / "nothing", "can't read password_file"),
        (empty, "is empty"),
        (binary, "is not UTF-8 text"),
    ):
        with pytest.raises(ConfigError, match=match):
            Security(**sasl, password_file=str(file)).secret()
    with pytest.raises(LocalError, match="can't read ca_file"):
        Security("ssl", ca_file=str(tmp_path / "nothing")).tls_context()
