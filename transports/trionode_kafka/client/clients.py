"""kafka-python's clients: their settings, how one is made, and how it is ended at once."""

import contextlib
import itertools
import socket
import ssl
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final
from weakref import WeakSet

from kafka import KafkaConsumer, KafkaProducer
from kafka.errors import KafkaError
from kafka.net.inet import KafkaNetSocket

from trionode_kafka.client.record_batches import read_plainly

#: Seconds for a TCP connection and for a client's first exchange, before a wrong address is called wrong.
CONNECT_SECONDS = 4.0
#: Seconds that one request may take; a broker back from a kill needs 3.5-7 s, and whoever waited tries again.
REQUEST_SECONDS = 5.0
#: Seconds for which the producer looks for a topic that it does not know, while what others write waits: it was asked for (`prepare`)
#: before, so that only one deleted since is unknown.
BLOCK_SECONDS = 2.0
#: Milliseconds that the broker holds back an empty fetch. A stream that joins the shared consumer waits for the end of the fetch that is
#: out, so this is what its first record may be late; an idle hub with a waiting reader asks so often.
FETCH_WAIT_MS = 25
#: Bytes of one partition in one fetch: 4 records of the longest kind, or some 2,000 short ones, which cost the Trio thread 5 ms.
FETCH_BYTES = 256 << 10
#: Bytes of all partitions in one fetch.
FETCH_BYTES_TOTAL = 4 << 20
#: Records of one poll: all that one fetch can hold, since a poll that leaves some behind loses them at the next `assign`.
POLL_RECORDS = 100_000
#: Seconds until whoever closes stops waiting for a thread of kafka-python; it measured 0.1 s at most.
CLOSE_SECONDS = 2.0

_CLIENT: Final[Mapping[str, object]] = {
    "bootstrap_timeout_ms": int(CONNECT_SECONDS * 1000),
    "request_timeout_ms": int(REQUEST_SECONDS * 1000),
    # The default of 30 s makes clients resume 6-31 s after the broker is back.
    "reconnect_backoff_max_ms": 500,
    # Also the least time between two looks at the metadata, for which the first use of a topic waits.
    "retry_backoff_ms": 20,
}
ADMIN: Final[Mapping[str, object]] = {
    **_CLIENT,
    # The default of 5 makes a sixth request fail at once, instead of waiting.
    "max_in_flight_requests_per_connection": 100,
}
CONSUMER: Final[Mapping[str, object]] = {
    **_CLIENT,
    "metrics_enabled": False,
    "enable_auto_commit": False,
    "allow_auto_create_topics": False,
    # Retention or deletion must be an error, not a silent jump.
    "auto_offset_reset": "none",
    "fetch_min_bytes": 1,
    "fetch_max_wait_ms": FETCH_WAIT_MS,
    "max_partition_fetch_bytes": FETCH_BYTES,
    "fetch_max_bytes": FETCH_BYTES_TOTAL,
    "max_poll_records": POLL_RECORDS,
}
PRODUCER: Final[Mapping[str, object]] = {
    **_CLIENT,
    "metrics_enabled": False,
    "allow_auto_create_topics": False,
    "acks": "all",
    "enable_idempotence": True,
    "linger_ms": 0,
    # One batch is in flight a partition: larger ones are what raises the rate.
    "batch_size": 262_144,
    # A batch that reaches this while it is retried wedges an idempotent producer of 3.0.12 for ever; deadlines are Trio's.
    "delivery_timeout_ms": 2_147_483_647,
    "max_block_ms": int(BLOCK_SECONDS * 1000),
}

_numbers = itertools.count()


class Sockets(KafkaNetSocket):  # type: ignore[misc]
    """kafka-python's way to connect, as a "proxy" of our own that remembers the sockets of each client.

    3.0.12 leaves to the garbage collector the sockets that could not connect, one a try while the broker is away, and those
    with something left to send when their client is closed.
    """

    SCHEMES = ("trionode",)
    _opened: ClassVar[dict[str, WeakSet[socket.socket]]] = {}

    def __init__(self, proxy_url: str) -> None:
        self._client = proxy_url

    async def sock_connect(  # noqa: D102 - kafka-python's
        self, net: Any, sock: socket.socket, sockaddr: Any, timeout_at: float | None = None
    ) -> Any:
        self.opened(self._client, sock)
        try:
            return await super().sock_connect(net, sock, sockaddr, timeout_at=timeout_at)
        except BaseException:  # whatever ends it, cancellation too: kafka-python itself leaves the socket open
            sock.close()
            raise

    @staticmethod
    def url() -> str:
        """The "proxy" of one more client."""
        return f"{Sockets.SCHEMES[0]}://{next(_numbers)}"

    @classmethod
    def remembered(cls, client: str, settings: Mapping[str, object]) -> dict[str, object]:
        """The settings of a client, with what lets its sockets be remembered."""
        context = settings.get("ssl_context")
        wrapping = {"ssl_context": Wrapping(context, client)} if isinstance(context, ssl.SSLContext) else {}
        return {**settings, **wrapping, "proxy_url": client}

    @classmethod
    def opened(cls, client: str, sock: socket.socket) -> None:
        """Remember a socket of a client."""
        cls._opened.setdefault(client, WeakSet()).add(sock)

    @classmethod
    def close_all(cls, client: str) -> None:
        """Close what a client that has ended left open."""
        for left in cls._opened.pop(client, ()):
            left.close()


class TLSSocket(ssl.SSLSocket):
    """One that is closed when its handshake fails, which 3.0.12 leaves to the garbage collector."""

    def do_handshake(self, block: bool = False) -> None:  # noqa: D102, FBT001, FBT002 - ssl's
        try:
            super().do_handshake(block)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except BaseException:  # whatever ends it
            self.close()
            raise


class Wrapping:
    """What kafka-python takes for an SSL context: it remembers the sockets that it makes, which take the place of those that connected."""

    def __init__(self, context: ssl.SSLContext, client: str) -> None:
        context.sslsocket_class = TLSSocket
        self._context = context
        self._client = client

    def wrap_socket(self, sock: socket.socket, **options: Any) -> ssl.SSLSocket:
        """Do as the context does."""
        wrapped = self._context.wrap_socket(sock, **options)
        Sockets.opened(self._client, wrapped)
        return wrapped


def made(kind: Any, settings: Mapping[str, object]) -> tuple[Any, Callable[[], None]]:
    """A client and what ends it at once, also while another thread uses it, and while its broker is away. Both block."""
    sockets = Sockets.url()
    networks: list[Any] = []
    network = kind.DEFAULT_CONFIG["kafka_client"]

    def noted(*arguments: Any, **options: Any) -> Any:
        networks.append(network(*arguments, **options))
        return networks[-1]

    try:
        client = kind(**Sockets.remembered(sockets, settings), kafka_client=noted)
    except BaseException:  # whatever ends it: a constructor that fails leaves its I/O thread behind
        for opened in networks:
            opened.close()
        Sockets.close_all(sockets)
        raise

    if kind is KafkaConsumer:
        read_plainly(client)

    def end() -> None:
        if kind is KafkaProducer:
            # `close` alone waits for the broker, and leaves its thread when that fails; 3.0.12 has no public way.
            client._sender.force_close()  # noqa: SLF001
            client._sender.join(CLOSE_SECONDS)  # noqa: SLF001
            with contextlib.suppress(KafkaError):
                client.close(timeout=0)
        elif kind is KafkaConsumer:
            client.close(autocommit=False, timeout_ms=0)
        else:
            client.close()
        Sockets.close_all(sockets)

    return client, end
