"""Kafka under TLS and with passwords, for streams and for links alike: what works, and what each mistake is told within seconds."""

import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from tests.support.certificates import Authority
from trionode.cli.stores import open_store
from trionode.errors import ConnectionLost, LocalError
from trionode.net.transport import Link, Transport, load_transport
from trionode.protocol.stream import Record
from trionode.stream.store.base import Push, StoreError, load_store
from trionode.testing import KafkaBroker, NoKafkaError, SecureListeners, run_kafka
from trionode.testing.contract import Held
from trionode_kafka.client import clients
from trionode_kafka.client.security import Security

#: Seconds within which a mistake has to be told.
SOON = 6.0
#: Seconds for what works, on a machine with other load.
STALL_TIMEOUT = 30.0


@pytest.fixture(scope="module")
def broker() -> Iterator[KafkaBroker]:
    try:
        with run_kafka(secure=True) as broker:
            yield broker
    except NoKafkaError as missing:
        pytest.skip(str(missing))


@attrs.frozen
class Client:
    """How one listener is spoken to."""

    where: str
    options: dict[str, Any]

    def store(self) -> AbstractAsyncContextManager[Any]:
        return load_store(f"kafka:{self.where}", **self.options)

    def transport(self) -> Transport:
        return load_transport("kafka", **self.options)


def password(secure: SecureListeners, **options: str) -> dict[str, str]:
    return {"username": secure.username, "password": secure.password, **options}


def mutual_tls(secure: SecureListeners) -> Client:
    return Client(secure.ssl, {"security": "ssl", "ca_file": secure.authority, "certificate": secure.certificate})


def scram(secure: SecureListeners) -> Client:
    return Client(secure.sasl_ssl, {"security": "sasl_ssl", "ca_file": secure.authority, **password(secure)})


def plain_password(secure: SecureListeners) -> Client:
    return Client(
        secure.sasl_plaintext, {"security": "sasl_plaintext", "mechanism": "SCRAM-SHA-256", **password(secure)}
    )


@pytest.mark.kafka
@pytest.mark.parametrize("client", [mutual_tls, scram, plain_password])
async def test_streams_are_kept_in_a_kafka_that_knows_who_asks(
    broker: KafkaBroker, client: Callable[[SecureListeners], Client]
) -> None:
    stream = f"test_{os.urandom(4).hex()}"
    with trio.fail_after(STALL_TIMEOUT):
        async with client(broker.secure).store() as store:
            await store.create(stream)
            await store.append([Push(stream, b"producer", 0, b"hello")])
            assert list(await store.read(stream, 0, limit=1, max_bytes=100)) == [Record(0, b"hello")]


@pytest.mark.kafka
@pytest.mark.parametrize("client", [mutual_tls, scram])
async def test_links_go_through_a_kafka_that_knows_who_asks(
    broker: KafkaBroker, client: Callable[[SecureListeners], Client]
) -> None:
    kafka = client(broker.secure)
    links, accepted = trio.open_memory_channel[Link](1)
    frame = os.urandom(1 << 20)  # more than a record of TLS, and of Kafka, holds
    with trio.fail_after(STALL_TIMEOUT):
        async with trio.open_nursery() as nursery:
            at = await nursery.start(kafka.transport().serve, kafka.where, links.send)
            one = await kafka.transport().connect(at)
            other = await accepted.receive()
            await one.send([frame])
            assert await other.receive() == [frame]
            await one.aclose()
            await other.aclose()
            nursery.cancel_scope.cancel()


def wrong_ways(secure: SecureListeners, plain: str, stranger: Authority) -> dict[str, tuple[Client, str]]:
    """What can be done wrong, and what is to be said of it."""
    tls = {"security": "ssl", "ca_file": secure.authority}
    both = {"security": "sasl_ssl", "ca_file": secure.authority}
    host = secure.ssl.replace("127.0.0.1", "127.1")  # another name of the same address
    unfit = stranger.sign_client().certificate
    return {
        "wrong password": (
            Client(secure.sasl_ssl, {**both, **password(secure, password="wrong")}),
            "does not accept the user 'alice' with this password, by SCRAM-SHA-512",
        ),
        "wrong password in the clear": (
            Client(
                secure.sasl_plaintext,
                {"security": "sasl_plaintext", "mechanism": "PLAIN", **password(secure, password="wrong")},
            ),
            "does not accept the user 'alice' with this password, by PLAIN",
        ),
        "unknown user": (
            Client(secure.sasl_ssl, {**both, **password(secure, username="nobody")}),
            "does not accept the user 'nobody' with this password",
        ),
        "unknown authority": (
            Client(secure.sasl_ssl, {"security": "sasl_ssl", **password(secure)}),
            "nobody who is trusted here has signed the other end's certificate: give the file of who did as ca_file",
        ),
        "another authority": (
            Client(secure.ssl, {"security": "ssl", "ca_file": stranger.path}),
            "nobody who is trusted here has signed",
        ),
        "wrong host name": (Client(host, tls), "certificate is not valid for '127.1'"),
        "no TLS where it is demanded": (Client(secure.ssl, {}), "Does it speak TLS, so that security is 'ssl'"),
        "no TLS and no password where both are demanded": (Client(secure.sasl_ssl, {}), "Does it speak TLS"),
        "a password without TLS where both are demanded": (
            Client(secure.sasl_ssl, {"security": "sasl_plaintext", **password(secure)}),
            "Does it speak TLS",
        ),
        "TLS where there is none": (
            Client(plain, tls),
            "hung up on TLS. Is that a listener without TLS, where security is 'plaintext'",
        ),
        "no certificate where one is demanded": (
            Client(secure.ssl, tls),
            "demands a certificate: give the options certificate and key",
        ),
        "a certificate of another authority": (
            Client(secure.ssl, {**tls, "certificate": unfit}),
            "the other end does not",
        ),
        "no password where one is demanded": (
            Client(secure.sasl_plaintext, {}),
            "hung up at a request without a password: security is 'sasl_plaintext' there",
        ),
        "no password under TLS where one is demanded": (
            Client(secure.sasl_ssl, tls),
            "hung up at a request without a password: security is 'sasl_ssl' there",
        ),
        "a password where none is asked": (
            Client(plain, {"security": "sasl_plaintext", **password(secure)}),
            "asks for no password: security is 'plaintext' there",
        ),
        "nobody there": (Client("127.0.0.1:1", tls), r"no Kafka at 127\.0\.0\.1:1 \(Connection refused\)"),
    }


@pytest.mark.kafka
def test_a_command_takes_the_options_of_its_store_and_the_password_from_where_nobody_sees_it(
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
        timeout=STALL_TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "1 of 1 echoes came" in done.stdout


async def test_an_option_that_a_store_does_not_have_is_told_so() -> None:
    with pytest.raises(LocalError, match=r"the store memory has no such option: .*'replication_factor'"):
        open_store("memory", {"replication_factor": 3})


@pytest.mark.kafka
async def test_each_wrong_way_to_speak_to_a_kafka_is_told_in_one_line_within_seconds(
    broker: KafkaBroker, tmp_path: Path
) -> None:
    before = Held.now()
    for name, (client, match) in wrong_ways(broker.secure, broker.bootstrap, Authority(tmp_path)).items():
        for attempt in (_open_store, _connect):
            began = time.monotonic()
            with pytest.raises(ConnectionLost) as raised:
                await attempt(client)
            assert time.monotonic() - began < SOON, name
            told = str(raised.value)
            assert re.search(match, told), f"{name}: {told}"
            assert "\n" not in told
            assert client.where in told
            assert "wrong" not in told.replace("wrong name", "")  # the password
    before.require_back()


async def _open_store(client: Client) -> None:
    async with client.store():
        pass


async def _connect(client: Client) -> None:
    await client.transport().connect(f"{client.where}/somebody")


@pytest.mark.kafka
async def test_who_may_not_do_it_is_told_so(broker: KafkaBroker) -> None:
    kafka = scram(broker.secure)
    kafka = Client(kafka.where, {**kafka.options, "username": broker.secure.stranger})
    with trio.fail_after(SOON):
        async with kafka.store() as store:
            told = pytest.raises(StoreError, match=r"does not let this user do that .* the rights")
            with told:
                await store.create("stream")
            with told:
                await store.position("client", "stream")
            with told:
                await store.read("stream", 0, limit=1, max_bytes=1)
        with pytest.raises(ConnectionLost, match=r"can't connect to kafka:.* does not let this user do that"):
            await _connect(kafka)
        with pytest.raises(LocalError, match=r"can't listen at kafka:.* does not let this user do that"):
            await kafka.transport().serve(f"{kafka.where}/somebody", Link.aclose)


@pytest.mark.kafka
async def test_something_that_says_nothing_is_no_kafka(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "CONNECT_SECONDS", 0.3)
    monkeypatch.setattr("trionode_kafka.client.probe.CONNECT_SECONDS", 0.3)
    before = Held.now()
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    where = f"127.0.0.1:{listener.socket.getsockname()[1]}"
    async with listener:
        with trio.fail_after(SOON):
            for options in ({}, {"security": "ssl"}):
                with pytest.raises(ConnectionLost, match=r"said nothing for|in time"):
                    await _open_store(Client(where, options))
            with trio.move_on_after(0.1) as scope:
                await _connect(Client(where, {}))
            assert scope.cancelled_caught
    before.require_back()


@pytest.mark.kafka
async def test_a_password_is_neither_shown_nor_logged(
    broker: KafkaBroker, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    secret = broker.secure.password
    file = tmp_path / "password"
    file.write_text(f"{secret}\n")
    options = {"security": "sasl_plaintext", "mechanism": "PLAIN", "username": "alice", "password_file": str(file)}
    with caplog.at_level(logging.DEBUG), trio.fail_after(STALL_TIMEOUT):
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
        ({"ca_file": "x.pem"}, "ca_file is for TLS, and security='plaintext' has none: say security='ssl'"),
        ({"security": "sasl_plaintext", "key": "x.pem"}, "key is for TLS"),
        ({"security": "ssl", "key": "x.pem"}, "the key x.pem has no certificate"),
        ({"username": "alice"}, "username is for SASL, and security='plaintext' has none: say security='sasl_ssl'"),
        ({"security": "ssl", "password": "x"}, "password is for SASL"),
        ({"security": "sasl_ssl"}, "give username, and password or password_file"),
        ({"security": "sasl_ssl", "username": "alice"}, "give one of password and password_file"),
        (
            {"security": "sasl_ssl", "username": "alice", "password": "x", "password_file": "y"},
            "give one of password and password_file",
        ),
        ({"security": "sasl_ssl", "username": "alice", "password": ""}, "the password is empty"),
    ],
)
async def test_options_that_do_not_fit_together_are_told_so(options: dict[str, Any], match: str) -> None:
    with pytest.raises(LocalError, match=re.escape(match)):
        load_transport("kafka", **options)
    with pytest.raises(LocalError, match=re.escape(match)):
        await _open_store(Client("127.0.0.1:1", options))


def test_files_that_can_not_be_read_are_told_so(tmp_path: Path) -> None:
    sasl = {"protocol": "sasl_plaintext", "username": "alice"}
    empty, binary = tmp_path / "empty", tmp_path / "binary"
    empty.write_text("\n")
    binary.write_bytes(b"\xff\xfe")
    for file, match in (
        (tmp_path / "nothing", "can't read password_file"),
        (empty, "is empty"),
        (binary, "is no text in UTF-8"),
    ):
        with pytest.raises(LocalError, match=match):
            Security(**sasl, password_file=str(file)).secret()
    with pytest.raises(LocalError, match="can't read ca_file"):
        Security("ssl", ca_file=str(tmp_path / "nothing")).tls_context()
