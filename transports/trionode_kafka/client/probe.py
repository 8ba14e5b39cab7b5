"""A first look at a Kafka: one connection as every other will be, so that what is wrong is said at once and in words.

kafka-python's clients try again for as long as they were told to, and then say that time is up. `kafka-python` 3.0.12 also loses what a
broker says directly before it hangs up, so that the stage at which it did has to tell.
"""

import contextlib
import logging
import ssl
from collections.abc import Iterator, Mapping
from typing import Any

from kafka.errors import (
    IllegalSaslStateError,
    InvalidReceiveError,
    KafkaTimeoutError,
    RequestTimedOutError,
    SaslAuthenticationFailedError,
    UnsupportedSaslMechanismError,
)
from kafka.net.manager import KafkaConnectionManager
from kafka.net.selector import NetworkSelector

from trionode.plugins import ConnectionLost, reason_of_tls
from trionode_kafka.client.clients import CONNECT_SECONDS, Sockets
from trionode_kafka.client.security import Security


class Probe:
    """One try to connect, as far as a first answer to a request. `look` blocks, `end` ends it at once from another thread."""

    def __init__(self, where: str, security: Security, settings: Mapping[str, object]) -> None:
        self._where = where
        self._security = security
        self._sockets = Sockets.url()
        self._net: Any = NetworkSelector()
        self._manager: Any = KafkaConnectionManager(
            self._net, **Sockets.remembered(self._sockets, {**settings, "bootstrap_servers": [where]})
        )
        self._connection: Any = None
        self._is_late = False

    def look(self) -> None:
        """Raise ConnectionLost with the reason, unless a broker answers."""
        try:
            self._net.run(self._look)
        except (
            Exception
        ) as error:  # of many kinds, also ValueError from the mechanisms: whatever it is, no broker answers
            raise ConnectionLost(f"no Kafka for us at {self._where}: {self._reason(error)}") from error
        finally:
            self._manager.close()
            Sockets.close_all(self._sockets)  # before what refers to them is dropped
            self._net.close()

    def end(self) -> None:
        """Let `look` fail now, if it is under way."""
        with contextlib.suppress(RuntimeError, OSError):  # it has ended
            self._net.call_soon_threadsafe(self._give_up)

    def _time_is_up(self) -> None:
        self._is_late = True
        self._give_up()

    def _give_up(self) -> None:
        if self._connection is not None:
            self._connection.close()

    async def _look(self) -> None:
        # 3.0.12 itself waits for TLS without end.
        self._net.call_later(CONNECT_SECONDS, self._time_is_up)
        (broker,) = self._manager.cluster.bootstrap_brokers()
        self._connection = self._manager.get_connection(
            broker.node_id, timeout_ms=int(CONNECT_SECONDS * 1000), pop_on_close=False, refresh_metadata_on_err=False
        )
        await self._connection
        await self._manager.cluster.refresh_metadata(broker.node_id)

    def _reason(self, error: Exception) -> str:
        security = self._security
        failed = next((each for each in _causes(error) if isinstance(each, ssl.SSLError)), None)
        if isinstance(failed, ssl.SSLEOFError):
            return "it hung up on TLS. Is that a listener without TLS, where security is 'plaintext' or 'sasl_plaintext', or no Kafka at all?"
        refused = failed is not None and not isinstance(failed, ssl.SSLCertVerificationError)
        if failed is not None and refused and security.certificate is None and "CERTIFICATE" in (failed.reason or ""):
            return "it demands a certificate: give the options certificate and key"
        if failed is not None:
            return reason_of_tls(failed)
        if isinstance(error, (SaslAuthenticationFailedError, ValueError)):
            return self._wrong_password()
        if isinstance(error, UnsupportedSaslMechanismError):
            return f"it does not take passwords by {security.mechanism}: choose another mechanism"
        if isinstance(error, IllegalSaslStateError):
            return f"it asks for no password: security is {'ssl' if security.has_tls else 'plaintext'!r} there"
        if self._is_late or isinstance(error, (KafkaTimeoutError, RequestTimedOutError)):
            return f"something listens, but said nothing for {CONNECT_SECONDS:g} s. Is it a Kafka broker?"
        if isinstance(error, InvalidReceiveError):
            return self._no_kafka()
        return self._hung_up(error)

    def _wrong_password(self) -> str:
        return (
            f"it does not accept the user {self._security.username!r} with this password, by {self._security.mechanism}"
        )

    def _no_kafka(self) -> str:
        if self._security.has_tls:
            return "what it says is not Kafka's protocol: is it a Kafka broker?"
        return "what it says is not Kafka's protocol. Does it speak TLS, so that security is 'ssl' or 'sasl_ssl', or is it no Kafka at all?"

    def _hung_up(self, error: Exception) -> str:
        """What it means at which stage, when a broker only closes the connection."""
        security, connection = self._security, self._connection
        if connection is None or connection.broker_version_data is None:
            if security.has_tls:
                return f"it hung up at the first request ({error}). Is it a Kafka broker?"
            return "it hung up at the first request. Does it speak TLS, so that security is 'ssl' or 'sasl_ssl', or is it no Kafka at all?"
        if not connection.init_future.succeeded():
            if security.has_password:
                return self._wrong_password()
            return f"it hung up ({error})"
        if not security.has_password:
            return f"it hung up at a request without a password: security is {'sasl_ssl' if security.has_tls else 'sasl_plaintext'!r} there, with a username and a password"
        return f"it hung up ({error})"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error, and what it holds or was raised for: kafka-python wraps those of TLS in either way."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        yield from (each for each in seen.args if isinstance(each, BaseException))
        seen = seen.__cause__ or seen.__context__


class _NoPasswords(logging.Filter):
    """kafka-python logs its settings, each request and its bytes for who debugs it, the password in them."""

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
