"""kafka-python's clients for one Kafka: made one by one, closed all at once."""

import threading
from collections.abc import Callable, Mapping
from typing import Any

from trionode_kafka.client.errors import BrokerUnavailableError
from trionode_kafka.client.kafka_internals import make_client


class Clients:
    """Makes and closes clients, also those that are being made when `close` is called. Its methods block."""

    def __init__(self, settings: Mapping[str, object]) -> None:
        self.settings = settings
        self._lock = threading.Lock()
        self._closed = False
        self._close: dict[int, Callable[[], None]] = {}

    def make(self, kind: Any, settings: Mapping[str, object]) -> Any:
        """Make a client of a class of kafka-python."""
        client, close = make_client(kind, {**settings, **self.settings})
        self.add(client, close)
        return client

    def add(self, client: object, close: Callable[[], None]) -> None:
        """Let `close` close this too, at once if it was called before; that raises BrokerUnavailableError."""
        with self._lock:
            if not self._closed:
                self._close[id(client)] = close
                return
        close()
        raise BrokerUnavailableError("this Kafka client is closed")

    def remove(self, client: object) -> Callable[[], None] | None:
        """Forget a client. Returns the function that closes it, None if it is not known."""
        with self._lock:
            return self._close.pop(id(client), None)

    def close(self) -> None:
        """Close all clients."""
        with self._lock:
            self._closed = True
            closing = list(self._close.values())
        for close in closing:
            close()
