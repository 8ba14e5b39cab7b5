"""What TLS transports share: contexts out of the four files that their options name, and what went wrong in words.

TLS protects one hop, and proves the listener's name, and the dialler's where that is demanded. Messages are protected by secure channels, whatever carries them.
"""

import ssl
from collections.abc import Iterator
from pathlib import Path

from trionode.errors import LocalError
from trionode.net.sockets import reason_of

_CERTIFICATE = "-----BEGIN CERTIFICATE-----"
_KEY = "PRIVATE KEY-----"

#: What OpenSSL's verification codes mean to who reads them (x509_vfy.h); others have its own words.
_UNVERIFIED = {
    9: "the other end's certificate is not valid yet: are both clocks right?",
    10: "the other end's certificate has expired",
    **dict.fromkeys(
        (2, 18, 19, 20, 21),
        "nobody who is trusted here has signed the other end's certificate: give the file of who did as ca_file, or as "
        "client_ca_file to listen",
    ),
}
_NO_TLS = "the other end does not speak TLS: is it a listener without TLS, or another port?"
_NOT_ACCEPTED = (
    "the other end does not accept the certificate of this one: is it for the name that is dialled, and for this use?"
)
_NO_VERSION = "both ends share no version of TLS: 1.2 and 1.3 are spoken here"
#: What OpenSSL's reasons mean, with alerts, which are the other end's.
_FAILED = {
    "HTTP_REQUEST": _NO_TLS,
    "HTTPS_PROXY_REQUEST": _NO_TLS,
    "WRONG_VERSION_NUMBER": _NO_TLS,
    "NO_PROTOCOLS_AVAILABLE": _NO_VERSION,
    "TLSV1_ALERT_PROTOCOL_VERSION": _NO_VERSION,
    "UNSUPPORTED_PROTOCOL": _NO_VERSION,
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "the other end showed no certificate, and this listener demands one (client_ca_file)",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "the other end demands a certificate: give one with the options certificate and key",
    "SSLV3_ALERT_HANDSHAKE_FAILURE": "the other end refused the handshake: if it demands a certificate, give one with the options certificate and key",
    "TLSV1_ALERT_UNKNOWN_CA": "the other end does not trust the authority that signed the certificate of this one",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "the certificate of this end has expired, says the other",
    "SSLV3_ALERT_BAD_CERTIFICATE": _NOT_ACCEPTED,
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": _NOT_ACCEPTED,
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": _NOT_ACCEPTED,
    "UNEXPECTED_EOF_WHILE_READING": "the connection was cut off: it ended without the end that TLS proves",
}


def server_context(*, certificate: str, key: str | None = None, client_ca_file: str | None = None) -> ssl.SSLContext:
    """Return what a listener shows and demands: its chain and key, and client certificates if `client_ca_file` is given.

    All are paths of PEM files; the key may stand in the certificate's. LocalError says what is wrong with which file.
    """
    context = _context(ssl.Purpose.CLIENT_AUTH, "client_ca_file", client_ca_file)
    if client_ca_file is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    # Nothing resumes a session, and a ticket that a client has not read when it closes would make its system destroy what it sent last.
    context.num_tickets = 0
    _show(context, certificate, key)
    return context


def client_context(
    *, ca_file: str | None = None, certificate: str | None = None, key: str | None = None
) -> ssl.SSLContext:
    """Return whom a dialler trusts, the system's authorities unless `ca_file` is given, and the certificate that it shows if it is asked.

    All are paths of PEM files; the key may stand in the certificate's. Host names are verified. LocalError says what is wrong with which file.
    """
    context = _context(ssl.Purpose.SERVER_AUTH, "ca_file", ca_file)
    if certificate is not None:
        _show(context, certificate, key)
    elif key is not None:
        raise LocalError(f"the key {key} has no certificate: give the option certificate too")
    return context


def reason_of_tls(error: BaseException) -> str:
    """Return one sentence on why TLS failed, and what to do, from an error or from what it was raised for."""
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
        _check(option, ca_file, _CERTIFICATE)
    try:
        context = ssl.create_default_context(purpose, cafile=ca_file)
    except ssl.SSLError as error:
        raise LocalError(f"{option} {ca_file} holds a certificate that can't be read: {error}") from error
    # A peer that could begin a handshake anew could make a reader write.
    context.options |= ssl.OP_NO_RENEGOTIATION
    return context


def _show(context: ssl.SSLContext, certificate: str, key: str | None) -> None:
    _check("certificate", certificate, _CERTIFICATE)
    _check("key", key or certificate, _KEY)

    def no_passphrase() -> str:
        raise LocalError(f"the key in {key or certificate} is sealed with a passphrase: give one that is not")

    try:
        context.load_cert_chain(certificate, key, no_passphrase)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise LocalError(
                f"the key in {key or certificate} is not that of the certificate in {certificate}"
            ) from error
        raise LocalError(
            f"the certificate in {certificate}, or the key in {key or certificate}, can't be read: {error}"
        ) from error


def _check(option: str, path: str, mark: str) -> None:
    """See that a file can be read and may hold what it should: OpenSSL has few words for that."""
    try:
        text = Path(path).read_text(encoding="latin-1")  # any bytes: what surrounds PEM's blocks may be anything
    except OSError as error:
        raise LocalError(f"can't read {option} {path}: {error.strerror}") from error
    if mark not in text:
        what = "certificate" if mark == _CERTIFICATE else "private key"
        raise LocalError(f"there is no {what} in {path}: {option} is the path of a PEM file with a line {mark!r}")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error, what it holds if it is a group, and what it was raised for, from the outside in."""
    yield error
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _causes(each)
    if inner := error.__cause__ or error.__context__:
        yield from _causes(inner)
