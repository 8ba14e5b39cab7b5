"""The encoding and encryption of messages in a secure channel, in both protocol versions (spec §7.2, §8)."""

from abc import ABC, abstractmethod
from typing import ClassVar

from trionode.errors import LocalError, WireError
from trionode.protocol.session.session import OVERHEAD, Session
from trionode.protocol.wire import bare
from trionode.protocol.wire.address import Encoded
from trionode.protocol.wire.classic_codec import ClassicCodec
from trionode.protocol.wire.current_codec import (
    CLOSE_PLAINTEXT,
    Close,
    CurrentCodec,
    RefreshCredentials,
    encode_refresh,
)
from trionode.protocol.wire.version import Decoded

#: Bytes of the length before a classic ciphertext, at most (spec §8): enough for 32 GiB.
_MAX_LENGTH_SIZE = 5
#: Bytes that the plaintext of a current application message adds to the message (spec §7.2).
_CURRENT_PLAINTEXT = 5


class ChannelCipher(ABC):
    """Encodes and encrypts what one side of an open channel sends, and decrypts and decodes what it receives.

    To send, `encode` and then `encrypt`: a plaintext that turns out too large for the route has not used a nonce. To
    receive, `decrypt` and then `decode`.
    """

    #: Bytes that `encrypt` adds, at most.
    encryption_overhead: ClassVar[int] = OVERHEAD
    #: The plaintext that reports the close of this side to the peer; None if the protocol version has no such message.
    close_plaintext: ClassVar[bytes | None] = None
    #: Whether a responder's route follows its peer to a new link. Then the outer return route of data is empty
    #: (spec §7.2).
    follows_peer: ClassVar[bool] = False
    #: A warning for the user of the channel, with advice; empty if there is none.
    warning: ClassVar[str] = ""

    #: Bytes that `encode` adds to the message as the current version encodes it, at most.
    encoding_overhead: int
    #: The keys and nonces of both directions.
    session: Session

    @abstractmethod
    def encode(self, onward: tuple[Encoded, ...], back: tuple[Encoded, ...], payload: bytes) -> bytes:
        """Return the plaintext of an application message; `onward` has at least one hop."""

    def encrypt(self, plaintext: bytes) -> bytes:
        """Return the payload that carries the plaintext; ClosedError when no nonce is left."""
        return self.session.encrypt(plaintext)

    def decrypt(self, payload: bytes) -> bytes:
        """Return the plaintext; after DecryptError or WireError the state is unchanged."""
        return self.session.decrypt(payload)

    @abstractmethod
    def decode(self, plaintext: bytes) -> Decoded | Close | RefreshCredentials:
        """Return the content of a plaintext; WireError if it has none."""

    def encode_refresh(self, refresh: RefreshCredentials) -> bytes:  # noqa: ARG002 - the current version takes it
        """Return the plaintext that carries new credentials; LocalError if the protocol version has none."""
        raise LocalError("only channels with protocol_version='current' carry credentials, and this one is classic")


class CurrentCipher(ChannelCipher):
    """The cipher of a channel of the current protocol version (spec §7.2)."""

    close_plaintext = CLOSE_PLAINTEXT
    follows_peer = True
    encoding_overhead = _CURRENT_PLAINTEXT

    def __init__(self, session: Session) -> None:
        self.session = session
        self._codec = CurrentCodec()

    def encode(self, onward: tuple[Encoded, ...], back: tuple[Encoded, ...], payload: bytes) -> bytes:
        """Return the plaintext of an application message."""
        return self._codec.encode_plaintext(onward, back, payload)

    def decode(self, plaintext: bytes) -> Decoded | Close | RefreshCredentials:
        """Return the content of a plaintext."""
        return self._codec.decode_plaintext(plaintext)

    def encode_refresh(self, refresh: RefreshCredentials) -> bytes:
        """Return the plaintext that carries new credentials."""
        return encode_refresh(refresh)


class ClassicCipher(ChannelCipher):
    """The cipher of a classic channel between the *self* addresses of both sides (spec §8)."""

    encryption_overhead = OVERHEAD + _MAX_LENGTH_SIZE
    warning = (
        "this channel uses the classic protocol version: a Rust peer accepts replayed messages, and the keys never "
        "change. Send only what may arrive twice, or number it; open a new channel from time to time; use "
        "protocol_version='current' if the peer supports it"
    )

    def __init__(self, session: Session, ours: Encoded, theirs: Encoded) -> None:
        self.session = session
        self.encoding_overhead = len(theirs)
        self._codec = ClassicCodec()
        self._ours, self._theirs = ours, theirs

    def encode(self, onward: tuple[Encoded, ...], back: tuple[Encoded, ...], payload: bytes) -> bytes:
        """Return the plaintext of an application message."""
        return self._codec.encode((self._theirs, *onward), back, payload)

    def encrypt(self, plaintext: bytes) -> bytes:
        """Return the payload that carries the plaintext."""
        return bare.data(self.session.encrypt(plaintext))

    def decrypt(self, payload: bytes) -> bytes:
        """Return the plaintext."""
        return self.session.decrypt(bare.only_data(payload))

    def decode(self, plaintext: bytes) -> Decoded:
        """Return the content of a plaintext, without the *self* address before it."""
        onward, back, payload = self._codec.decode(plaintext)
        if len(onward) < 2 or onward[0] != self._ours:
            raise WireError("a channel message must name this side of the channel and an address behind it")
        return onward[1:], back, payload
