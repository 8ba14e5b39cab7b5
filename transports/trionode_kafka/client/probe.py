"""The first connection to a Kafka, made like all others. It reports within seconds, in one line, what is wrong.

kafka-python's clients retry for as long as their options say, and then report a timeout. kafka-python 3.0.12 also loses
what a broker sends directly before it hangs up, so the probe derives the reason from the stage at which the broker hung
up.
"""

import contextlib
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

from trionode.plugins import ConnectionLost, reason_of_tls
from trionode_kafka.client.kafka_internals import KafkaConnectionManager, NetworkSelector, Sockets
from trionode_kafka.client.security import Security
from trionode_kafka.client.settings import CONNECT_SECONDS


class Probe:
    """One try to connect, up to the first answer to a request. `run` blocks; another thread may `cancel` it."""

    def __init__(self, address: str, security: Security, settings: Mapping[str, object]) -> None:
        self._address = address
        self._security = security
        self._sockets = Sockets.new_client()
        self._net: Any = NetworkSelector()
        self._manager: Any = KafkaConnectionManager(
            self._net, **Sockets.with_settings(self._sockets, {**settings, "bootstrap_servers": [address]})
        )
        self._connection: Any = None
        self._timed_out = False

    def run(self) -> None:
        """Raise ConnectionLost with the reason, unless a broker answers."""
        try:
            self._net.run(self._connect)
        except Exception as error:  # of many kinds, also ValueError from SASL; whatever it is, no broker answers
            raise ConnectionLost(f"can't use the Kafka at {self._address}: {self._reason(error)}") from error

    def cancel(self) -> None:
        """Let `run` fail now."""
        with contextlib.suppress(RuntimeError, OSError):  # it has ended
            self._net.call_soon_threadsafe(self._disconnect)

    def close(self) -> None:
        """Close all sockets."""
        self._manager.close()
        Sockets.close_all(self._sockets)  # before anything that refers to them is dropped
        self._net.close()

    def _time_out(self) -> None:
        self._timed_out = True
        self._disconnect()

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()

    async def _connect(self) -> None:
        # 3.0.12 itself waits for a TLS handshake without end.
        self._net.call_later(CONNECT_SECONDS, self._time_out)
        (broker,) = self._manager.cluster.bootstrap_brokers()
        self._connection = self._manager.get_connection(
            broker.node_id, timeout_ms=int(CONNECT_SECONDS * 1000), pop_on_close=False, refresh_metadata_on_err=False
        )
        await self._connection
        await self._manager.cluster.refresh_metadata(broker.node_id)

    def _reason(self, error: Exception) -> str:
        security = self._security
        tls_error = next((each for each in _causes(error) if isinstance(each, ssl.SSLError)), None)
        if tls_error is not None:
            return self._tls_reason(tls_error)
        if isinstance(error, (SaslAuthenticationFailedError, ValueError)):
            return self._wrong_password()
        if isinstance(error, UnsupportedSaslMechanismError):
            return f"it does not accept {security.mechanism}: choose another mechanism"
        if isinstance(error, IllegalSaslStateError):
            return f"it asks for no password: set security={'ssl' if security.has_tls else 'plaintext'!r}"
        if self._timed_out or isinstance(error, (KafkaTimeoutError, RequestTimedOutError)):
            return f"something listens there, but it sent nothing for {CONNECT_SECONDS:g} s: is it a Kafka broker?"
        if isinstance(error, InvalidReceiveError):
            return f"it does not speak Kafka's protocol: {self._maybe_tls()}"
        return self._hung_up(error)

    def _tls_reason(self, error: ssl.SSLError) -> str:
        if isinstance(error, ssl.SSLEOFError):
            return (
                "it hung up during the TLS handshake: is it a listener without TLS (set security='plaintext' or "
                "'sasl_plaintext'), or no Kafka broker?"
            )
        unverified = isinstance(error, ssl.SSLCertVerificationError)
        if not unverified and self._security.certificate is None and "CERTIFICATE" in (error.reason or ""):
            return "it demands a certificate: set the options certificate and key"
        return reason_of_tls(error)

    def _wrong_password(self) -> str:
        user, mechanism = self._security.username, self._security.mechanism
        return f"it does not accept the user {user!r} with this password by {mechanism}"

    def _maybe_tls(self) -> str:
        if self._security.has_tls:
            return "is it a Kafka broker?"
        return "does it speak TLS (set security='ssl' or 'sasl_ssl'), or is it no Kafka broker?"

    def _hung_up(self, error: Exception) -> str:
        """Return what it means at each stage if a broker just closes the connection."""
        security, connection = self._security, self._connection
        if connection is None or connection.broker_version_data is None:
            return f"it hung up at the first request ({error}): {self._maybe_tls()}"
        if not connection.init_future.succeeded():
            return self._wrong_password() if security.has_password else f"it hung up ({error})"
        if not security.has_password:
            protocol = "sasl_ssl" if security.has_tls else "sasl_plaintext"
            return f"it hung up at a request without a password: set security={protocol!r}, username and password"
        return f"it hung up ({error})"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, its arguments that are errors, and its causes: kafka-python wraps TLS errors in either way."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        yield from (each for each in cause.args if isinstance(each, BaseException))
        cause = cause.__cause__ or cause.__context__
