"""TLS for transports: contexts from the four files that transport options name, and TLS failures in words.

TLS protects one hop. It proves the listener's name, and the dialer's where that is demanded. Secure channels protect
the messages.
"""

import ssl
from collections.abc import Iterator
from pathlib import Path

from trionode.errors import ConfigError
from trionode.net.sockets import reason_of

_CERTIFICATE = "-----BEGIN CERTIFICATE-----"
_KEY = "PRIVATE KEY-----"

#: Texts for OpenSSL's verification codes (x509_vfy.h). For others OpenSSL's own text is shown.
_UNVERIFIED = {
    9: "the other end's certificate is not valid yet: are both clocks right?",
    10: "the other end's certificate has expired",
    **dict.fromkeys(
        (2, 18, 19, 20, 21),
        "the other end's certificate is not signed by a trusted CA: set ca_file (client_ca_file on a listener)",
    ),
}
_NO_TLS = "the other end does not speak TLS: is it a listener without TLS, or another port?"
_NOT_ACCEPTED = (
    "the other end does not accept this end's certificate: is it for the name that is dialed, and for this use?"
)
_NO_VERSION = "the two ends share no TLS version: this one speaks 1.2 and 1.3"
#: Texts for OpenSSL's reasons, alerts of the other end among them.
_FAILED = {
    "HTTP_REQUEST": _NO_TLS,
    "HTTPS_PROXY_REQUEST": _NO_TLS,
    "WRONG_VERSION_NUMBER": _NO_TLS,
    "NO_PROTOCOLS_AVAILABLE": _NO_VERSION,
    "TLSV1_ALERT_PROTOCOL_VERSION": _NO_VERSION,
    "UNSUPPORTED_PROTOCOL": _NO_VERSION,
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": (
        "the other end sent no certificate, and this listener demands one (client_ca_file)"
    ),
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "the other end demands a certificate: set the options certificate and key",
    "SSLV3_ALERT_HANDSHAKE_FAILURE": (
        "the other end refused the handshake. If it demands a certificate: set the options certificate and key"
    ),
    "TLSV1_ALERT_UNKNOWN_CA": "the other end does not trust the CA that signed this end's certificate",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "this end's certificate has expired, says the other end",
    "SSLV3_ALERT_BAD_CERTIFICATE": _NOT_ACCEPTED,
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": _NOT_ACCEPTED,
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": _NOT_ACCEPTED,
    "UNEXPECTED_EOF_WHILE_READING": "the connection was cut off: it ended without the end that TLS proves",
}


class TLSContexts:
    """The TLS contexts of one transport, for both directions of connecting. Each file is read once, here."""

    def __init__(
        self,
        *,
        certificate: str | None = None,
        key: str | None = None,
        ca_file: str | None = None,
        client_ca_file: str | None = None,
    ) -> None:
        """Read the files.

        Args:
          certificate: PEM file with the certificate chain of this node: needed to listen, and to dial a listener that
              demands one.
          key: PEM file with its key; without it the key is in the file `certificate`.
          ca_file: PEM file with the CAs that this node trusts when it dials; without it the system's.
          client_ca_file: PEM file with the CA that has to have signed a dialer's certificate; without it dialers need
              none.

        Raises:
          ConfigError: A file can't be read or does not hold what it should; the text names it.
        """
        self.client = client_context(ca_file=ca_file, certificate=certificate, key=key)
        self._server: ssl.SSLContext | None = None
        if certificate:
            self._server = server_context(certificate=certificate, key=key, client_ca_file=client_ca_file)

    def server(self, address: str) -> ssl.SSLContext:
        """Return the context to listen with.

        Args:
          address: Where to listen, for the error text.

        Raises:
          ConfigError: There is no certificate.
        """
        if not self._server:
            raise ConfigError(
                f"can't listen at {address} without a certificate: set the option certificate, "
                "and key unless the key is in the same file"
            )
        return self._server


def server_context(*, certificate: str, key: str | None = None, client_ca_file: str | None = None) -> ssl.SSLContext:
    """Return the TLS context of a listener.

    Args:
      certificate: PEM file with the certificate chain.
      key: PEM file with its key; without it the key is in the file `certificate`.
      client_ca_file: PEM file with the CA of client certificates. If it is given, clients must have one.

    Raises:
      ConfigError: A file can't be read or does not hold what it should; the text names it.
    """
    context = _context(ssl.Purpose.CLIENT_AUTH, "client_ca_file", client_ca_file)
    if client_ca_file is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    # Sessions are never resumed. A client that closes with an unread ticket would make its system destroy what it sent
    # last.
    context.num_tickets = 0
    _load_chain(context, certificate, key)
    return context


def client_context(
    *, ca_file: str | None = None, certificate: str | None = None, key: str | None = None
) -> ssl.SSLContext:
    """Return the TLS context of a dialer, which verifies host names.

    Args:
      ca_file: PEM file with the trusted CAs; without it the system's are trusted.
      certificate: PEM file with the certificate chain to send if the listener demands one.
      key: PEM file with its key; without it the key is in the file `certificate`.

    Raises:
      ConfigError: A file can't be read or does not hold what it should; the text names it.
    """
    context = _context(ssl.Purpose.SERVER_AUTH, "ca_file", ca_file)
    if certificate is not None:
        _load_chain(context, certificate, key)
    elif key is not None:
        raise ConfigError(f"the key {key} has no certificate: set the option certificate too")
    return context


def reason_of_tls(error: BaseException) -> str:
    """Return one sentence on why TLS failed and what to do.

    Args:
      error: The error, or one that was raised because of it, or a group that holds it.
    """
    failed = next((each for each in _causes(error) if isinstance(each, ssl.SSLError)), None)
    if failed is None:
        return reason_of(error) or type(error).__name__
    if isinstance(failed, ssl.SSLCertVerificationError):
        return _UNVERIFIED.get(
            failed.verify_code, f"the other end's certificate does not verify: {failed.verify_message.rstrip('.')}"
        )
    reason = failed.reason or str(failed)
    return _FAILED.get(reason) or f"TLS failed: {reason.replace('_', ' ').lower()}"


def _context(purpose: ssl.Purpose, option: str, ca_file: str | None) -> ssl.SSLContext:
    if ca_file is not None:
        _check_pem(option, ca_file, _CERTIFICATE)
    try:
        context = ssl.create_default_context(purpose, cafile=ca_file)
    except ssl.SSLError as error:
        raise ConfigError(f"{option} {ca_file} holds a certificate that can't be read: {error}") from error
    # A peer that could start a new handshake could make a reader write.
    context.options |= ssl.OP_NO_RENEGOTIATION
    return context


def _load_chain(context: ssl.SSLContext, certificate: str, key: str | None) -> None:
    _check_pem("certificate", certificate, _CERTIFICATE)
    _check_pem("key", key or certificate, _KEY)

    def no_passphrase() -> str:
        raise ConfigError(f"the key in {key or certificate} has a passphrase: use a key without one")

    try:
        context.load_cert_chain(certificate, key, no_passphrase)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            text = f"the key in {key or certificate} does not belong to the certificate in {certificate}"
        else:
            text = f"the certificate in {certificate}, or the key in {key or certificate}, can't be read: {error}"
        raise ConfigError(text) from error


def _check_pem(option: str, path: str, mark: str) -> None:
    """Check that a file can be read and may hold what it should: OpenSSL's own errors say little."""
    try:
        text = Path(path).read_text(encoding="latin-1")  # any bytes may surround the blocks of a PEM file
    except OSError as error:
        raise ConfigError(f"can't read {option} {path}: {error.strerror}") from error
    if mark not in text:
        what = "certificate" if mark == _CERTIFICATE else "private key"
        raise ConfigError(f"there is no {what} in {path}: {option} is the path of a PEM file with a line {mark!r}")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, the errors of a group, and what it was raised for, from the outside in."""
    yield error
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _causes(each)
    if inner := error.__cause__ or error.__context__:
        yield from _causes(inner)
