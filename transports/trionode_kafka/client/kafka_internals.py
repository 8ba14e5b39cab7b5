"""All that this package patches or uses of the private parts of kafka-python 3.0.12.

pyproject.toml allows only versions below 3.1, because master has moved these modules.

`tests/streams/test_kafka_internals.py` names what a new version has changed. What is patched, and why:

- Sockets. 3.0.12 leaves sockets to the garbage collector: those that could not connect, one for each try while the
  broker is away, and those with unsent data when their client is closed. We remember the sockets of each client and
  close them.
- TLS handshakes. 3.0.12 leaves the socket open when a handshake fails.
- Closing a producer. `close` waits for the broker, and leaves its thread running if that fails.
- The producer's topics. It asks the broker fifty times a second for each topic that is deleted, and has no way to
  forget one.
- Compressed records. A consumer unpacks them whole, and 400 KB of gzip may become 400 MB. A record that it can't decode
  makes it fail for ever, for all topics.
- The first connection (`probe.py`). The public clients retry until a timeout, without a reason.
- Logging. It logs its settings, requests and their bytes at DEBUG, the password among them.
"""

import contextlib
import itertools
import logging
import socket
import ssl
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar
from weakref import WeakSet

from kafka import KafkaConsumer, KafkaProducer
from kafka.consumer.fetcher import Fetcher
from kafka.errors import KafkaError
from kafka.net.inet import KafkaNetSocket
from kafka.net.manager import KafkaConnectionManager
from kafka.net.selector import NetworkSelector
from kafka.structs import TopicPartition

from trionode_kafka.client.errors import UnreadableError
from trionode_kafka.client.settings import CLOSE_SECONDS

__all__ = ["KafkaConnectionManager", "NetworkSelector", "Sockets", "forget_topics", "make_client"]


class Sockets(KafkaNetSocket):  # type: ignore[misc]
    """Connects for kafka-python, as a "proxy" of our own, and remembers the sockets of each client."""

    SCHEMES = ("trionode",)
    _numbers: ClassVar = itertools.count()
    _opened: ClassVar[dict[str, WeakSet[socket.socket]]] = {}

    def __init__(self, proxy_url: str) -> None:
        self._client = proxy_url

    async def sock_connect(  # noqa: D102 - kafka-python's
        self, net: Any, sock: socket.socket, sockaddr: Any, timeout_at: float | None = None
    ) -> Any:
        self.remember(self._client, sock)
        try:
            return await super().sock_connect(net, sock, sockaddr, timeout_at=timeout_at)
        except BaseException:  # whatever it is, kafka-python leaves the socket open
            sock.close()
            raise

    @classmethod
    def new_client(cls) -> str:
        """Return the "proxy URL" of one more client."""
        return f"{cls.SCHEMES[0]}://{next(cls._numbers)}"

    @classmethod
    def with_settings(cls, client: str, settings: Mapping[str, object]) -> dict[str, object]:
        """Return the settings of a client, extended so that its sockets are remembered."""
        context = settings.get("ssl_context")
        tls = {"ssl_context": TLSContext(context, client)} if isinstance(context, ssl.SSLContext) else {}
        return {**settings, **tls, "proxy_url": client}

    @classmethod
    def remember(cls, client: str, sock: socket.socket) -> None:
        """Remember a socket of a client."""
        cls._opened.setdefault(client, WeakSet()).add(sock)

    @classmethod
    def close_all(cls, client: str) -> None:
        """Close the sockets that a closed client left open."""
        for left in cls._opened.pop(client, ()):
            left.close()


class _TLSSocket(ssl.SSLSocket):
    """A socket that closes when its handshake fails."""

    def do_handshake(self, block: bool = False) -> None:  # noqa: FBT001, FBT002 - ssl's
        try:
            super().do_handshake(block)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except BaseException:  # whatever it is, kafka-python leaves the socket open
            self.close()
            raise


class TLSContext:
    """Stands in for an SSL context, and remembers the sockets that it makes, which replace those that connected."""

    def __init__(self, context: ssl.SSLContext, client: str) -> None:
        context.sslsocket_class = _TLSSocket
        self._context = context
        self._client = client

    def wrap_socket(self, sock: socket.socket, **options: Any) -> ssl.SSLSocket:
        """Do as the context does."""
        wrapped = self._context.wrap_socket(sock, **options)
        Sockets.remember(self._client, wrapped)
        return wrapped


class _UncompressedBatches:
    """The batches of one fetch, up to the first compressed one."""

    def __init__(self, batches: Any) -> None:
        self._batches = batches

    def next_batch(self) -> Any:
        batch = self._batches.next_batch()
        if batch is not None and batch.compression_type:
            raise ValueError(
                "they are compressed, and compressed records are not read: stop their producer from compressing, "
                "and leave the topic's compression.type at producer"
            )
        return batch


class PlainRecords(Fetcher.PartitionRecords):  # type: ignore[misc]
    """What one fetch brought of a topic. A record that can't be read raises UnreadableError, which names the topic."""

    def __init__(self, fetch_offset: int, topic: TopicPartition, batches: Any, **options: Any) -> None:
        super().__init__(fetch_offset, topic, _UncompressedBatches(batches), **options)

    def take(self, n: int | None = None) -> Any:
        try:
            return super().take(n)
        except Exception as error:  # of any kind, such as UnicodeDecodeError for a header's name; only this topic fails
            self.drain()  # or 3.0.12 takes from it for ever
            raise UnreadableError(self.topic_partition, str(error)) from error


def make_client(kind: Any, settings: Mapping[str, object]) -> tuple[Any, Callable[[], None]]:
    """Make a client, and a function that closes it at once, from any thread, also if the broker is away. Both block."""
    sockets = Sockets.new_client()
    networks: list[Any] = []
    network = kind.DEFAULT_CONFIG["kafka_client"]

    def note_network(*arguments: Any, **options: Any) -> Any:
        networks.append(network(*arguments, **options))
        return networks[-1]

    try:
        client = kind(**Sockets.with_settings(sockets, settings), kafka_client=note_network)
    except BaseException:  # whatever it is, a constructor that fails leaves its I/O thread running
        for opened in networks:
            opened.close()
        Sockets.close_all(sockets)
        raise

    if kind is KafkaConsumer:
        client._fetcher.PartitionRecords = PlainRecords  # noqa: SLF001 - there is no public way

    def close() -> None:
        if kind is KafkaProducer:
            client._sender.force_close()  # noqa: SLF001 - there is no public way
            client._sender.join(CLOSE_SECONDS)  # noqa: SLF001
            with contextlib.suppress(KafkaError):
                client.close(timeout=0)
        elif kind is KafkaConsumer:
            client.close(autocommit=False, timeout_ms=0)
        else:
            client.close()
        Sockets.close_all(sockets)

    return client, close


def forget_topics(producer: Any, topics: Iterable[str]) -> None:
    """Let a producer forget topics."""
    metadata = producer._metadata  # noqa: SLF001 - there is no public way
    # Its own thread must do it, because that reads the set.
    with contextlib.suppress(RuntimeError, ReferenceError):  # it is being closed
        metadata._manager.call_soon(metadata._topics.difference_update, set(topics))  # noqa: SLF001


def forget_coordinators(admin: Any) -> None:
    """Let an admin client look up the coordinators of groups again. It would keep those that have moved for ever."""
    admin._manager.cluster._coordinators.clear()  # noqa: SLF001 - there is no public way


class _NoPasswords(logging.Filter):
    """Drops the log records that could contain a password."""

    def filter(self, record: logging.LogRecord) -> bool:
        arguments = record.args if isinstance(record.args, tuple) else (record.args,)
        return not any(
            isinstance(each, (bytes, bytearray))
            or type(each).__name__.startswith("Sasl")
            or (isinstance(each, Mapping) and "sasl_plain_password" in each)
            for each in arguments
        )


for _name in ("admin.client", "net.connection", "protocol.parser"):
    logging.getLogger(f"kafka.{_name}").addFilter(_NoPasswords())
