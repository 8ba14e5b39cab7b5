"""A TLS 1.3 client that updates its keys and requests the same of the other end (RFC 8446 §4.6.3).

Python's ssl can't do that.
"""

import ssl
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

#: The KeyUpdate message, with update_requested.
_KEY_UPDATE = bytes.fromhex("18 000001 01")
_HANDSHAKE, _DATA = 22, 23


class Keys:
    """The keys with which a client encrypts after its handshake, from the log of its secrets.

    It must have sent nothing yet.
    """

    def __init__(self, log: Path) -> None:
        (line,) = (each for each in log.read_text().splitlines() if each.startswith("CLIENT_TRAFFIC_SECRET_0 "))
        self._use(bytes.fromhex(line.split()[2]))

    def data(self, content: bytes) -> bytes:
        """Return a record of application data."""
        return self._seal(content, _DATA)

    def update(self) -> bytes:
        """Return a KeyUpdate record; later records use the new keys.

        OpenSSL answers when it gets the next record, or when it writes.
        """
        record = self._seal(_KEY_UPDATE, _HANDSHAKE)
        self._use(self._expand("traffic upd", 48))
        return record

    def _use(self, secret: bytes) -> None:
        self._secret, self._sent = secret, 0
        self._key, self._start = AESGCM(self._expand("key", 32)), int.from_bytes(self._expand("iv", 12), "big")

    def _expand(self, label: str, size: int) -> bytes:
        name = b"tls13 " + label.encode()
        info = size.to_bytes(2, "big") + bytes((len(name),)) + name + b"\0"
        return HKDFExpand(SHA384(), size, info).derive(self._secret)

    def _seal(self, content: bytes, kind: int) -> bytes:
        head = b"\x17\x03\x03" + (len(content) + 17).to_bytes(2, "big")
        nonce = (self._start ^ self._sent).to_bytes(12, "big")
        self._sent += 1
        return head + self._key.encrypt(nonce, content + bytes((kind,)), head)


def logging_to(log: Path, context: ssl.SSLContext) -> ssl.SSLContext:
    """Return the client context, which now logs its secrets."""
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.keylog_filename = str(log)
    return context
