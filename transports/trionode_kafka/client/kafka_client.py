"""The client of one Kafka for Trio: from the first connection to the end of its last thread."""

import contextlib
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from concurrent.futures import Future

import trio
from kafka.errors import KafkaError

from trionode.plugins import ConfigError, ConnectionLost, reason_of
from trionode_kafka.client.admin import Admin
from trionode_kafka.client.clients import Clients
from trionode_kafka.client.fetcher import Fetcher
from trionode_kafka.client.follower import Follower
from trionode_kafka.client.probe import Probe
from trionode_kafka.client.producer import Producer
from trionode_kafka.client.security import PLAINTEXT, Security
from trionode_kafka.client.settings import ADMIN, CLOSE_SECONDS, CONNECT_SECONDS
from trionode_kafka.client.threads import CallbackQueue, WorkerThreads, wait_for

#: Threads for requests to the controller and the group coordinators: independent round trips, one or two each.
REQUEST_THREADS = 8


class KafkaClient:
    """Four clients of kafka-python behind one object; made by `open_kafka_client`."""

    def __init__(self, bootstrap: Sequence[str], security: Security, token: trio.lowlevel.TrioToken) -> None:
        self._security = security
        self._clients = Clients({"bootstrap_servers": list(bootstrap), **security_settings(security)})
        self._requests = WorkerThreads("requests", count=REQUEST_THREADS)
        callbacks = CallbackQueue(token)
        self.admin = Admin(self._clients, self._requests)
        self.producer = Producer(self._clients, self._requests, callbacks)
        self.fetcher = Fetcher(self._clients)
        self.follower = Follower(self._clients, callbacks)

    def delete_topics(self, names: Iterable[str]) -> Future[None]:
        """Delete topics, those that exist, even if the client closes directly afterwards."""
        deleted = list(names)
        self.producer.forget_topics(deleted)
        return self.admin.delete_topics(deleted)

    async def connect(self, address: str) -> None:
        """Connect, first to the broker at `address`; ConnectionLost or a group of KafkaErrors says why it failed."""
        await wait_for(self._requests.run(lambda: self._probe(address)))
        async with trio.open_nursery() as nursery:
            for part in (self.admin, self.producer, self.fetcher, self.follower):
                nursery.start_soon(part.connect)

    def _probe(self, address: str) -> None:
        probe = Probe(address, self._security, {**ADMIN, **self._clients.settings})
        try:
            self._clients.add(probe, probe.cancel)
            probe.run()
        finally:
            self._clients.remove(probe)
            probe.close()

    def close(self) -> None:
        """Close every client and thread. It blocks for 0.1 s, or about CLOSE_SECONDS if the broker hangs."""
        self.admin.finish_deletions()
        self.follower.stop()
        self._clients.close()
        deadline = time.monotonic() + CLOSE_SECONDS
        for threads in (self.follower.thread, self.producer.thread, self.fetcher.thread, self._requests):
            threads.join(deadline)


@contextlib.asynccontextmanager
async def open_kafka_client(bootstrap: str, security: Security = PLAINTEXT) -> AsyncIterator[KafkaClient]:
    """Connect to a Kafka for the length of a block.

    Args:
      bootstrap: "host:port", or several with commas between.
      security: How to authenticate, and whether to use TLS.

    Raises:
      ConfigError: The address has another form, or a file can't be read.
      ConnectionLost: No Kafka answers there, or it refuses this client. It is raised within some seconds and says why.

    The end of the block closes all threads and connections within some seconds, whatever the broker does. It is not
    cancelled.
    """
    addresses = parse_addresses(bootstrap)
    client = KafkaClient([f"{host}:{port}" for host, port in addresses], security, trio.lowlevel.current_trio_token())
    try:
        host, port = await _first_reachable(bootstrap, addresses)
        try:
            # The probe has its own deadline.
            with trio.fail_after(3 * CONNECT_SECONDS):
                await client.connect(f"{host}:{port}")
        except* (KafkaError, trio.TooSlowError) as group:
            raise ConnectionLost(
                f"a Kafka answers at {bootstrap}, but not at the addresses that it reports for its brokers: is its "
                f"advertised.listeners right, and can this machine reach those addresses? ({_first_of(group)})"
            ) from None
        yield client
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(client.close)


def security_settings(security: Security) -> Mapping[str, object]:
    """Return kafka-python's settings for these options."""
    settings: dict[str, object] = {"security_protocol": security.protocol.upper()}
    if security.has_tls:
        settings["ssl_context"] = security.tls_context()
    if security.has_password:
        settings["sasl_mechanism"] = security.mechanism
        settings["sasl_plain_username"] = security.username
        settings["sasl_plain_password"] = security.secret()
    return settings


def parse_addresses(bootstrap: str) -> list[tuple[str, int]]:
    """Return the hosts and ports of "host:port[,host:port…]"; ConfigError if it has another form."""
    addresses: list[tuple[str, int]] = []
    for part in bootstrap.split(","):
        host, colon, port = part.strip().rpartition(":")
        if not (colon and host and port.isdecimal() and 0 < int(port) < 1 << 16):
            raise ConfigError(
                f"expected host:port of a Kafka broker, or several with commas between, got {bootstrap!r:.300}"
            )
        addresses.append((host.strip("[]"), int(port)))
    return addresses


async def _first_reachable(bootstrap: str, addresses: Sequence[tuple[str, int]]) -> tuple[str, int]:
    """Return the first address that accepts a TCP connection. kafka-python would report a timeout after 30 s."""
    reasons: list[str] = []
    for host, port in addresses:
        try:
            with trio.fail_after(CONNECT_SECONDS / len(addresses)):
                stream = await trio.open_tcp_stream(host, port)
        except (OSError, trio.TooSlowError) as error:
            reasons.append(reason_of(error) if isinstance(error, OSError) else "no answer")
        else:
            await trio.aclose_forcefully(stream)
            return host, port
    raise ConnectionLost(f"no Kafka at {bootstrap} ({'; '.join(reasons)}): start the broker or correct the address")


def _first_of(error: BaseException) -> str:
    """Return the text of the first error in a group."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error) or type(error).__name__
