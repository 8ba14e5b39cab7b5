"""What a generation makes of the messages of an open channel, told to the channel once, so that it never asks which generation it is of."""

from collections.abc import Callable

import attrs

from trionode.errors import WireError
from trionode.protocol.session.session import OVERHEAD, Session
from trionode.protocol.wire import bare, classic_codec, current_codec
from trionode.protocol.wire.address import Encoded
from trionode.protocol.wire.version import Decoded

#: Bytes of the length in front of a classic blob, at most (spec §8): enough for 32 GiB.
_LENGTH = 5
#: What the plaintext of a current application message has beside the message itself (spec §7.2).
_CURRENT_PLAINTEXT = 5


@attrs.frozen(eq=False)
class ChannelCipher:
    """One side's way to write and read what a channel carries (spec §7.2, §8); made by an exchange once it is open.

    To send is to `write` and then to `seal`: whoever finds the plaintext too large for its way has used no nonce yet. To receive is to
    `unseal` and then to `read`. The functions stand in fields, as those of a `Wire` do, because every message passes all four.
    """

    #: The keys and counts of both directions.
    session: Session = attrs.field(repr=False)
    #: onward, return, payload -> plaintext; the route has at least one hop.
    write: Callable[[tuple[Encoded, ...], tuple[Encoded, ...], bytes], bytes] = attrs.field(repr=False)
    #: plaintext -> payload of the message that carries it; ClosedError once the nonces are used up.
    seal: Callable[[bytes], bytes] = attrs.field(repr=False)
    #: payload -> plaintext; DecryptError or WireError, and no state has moved.
    unseal: Callable[[bytes], bytes] = attrs.field(repr=False)
    #: plaintext -> what it says; WireError if it says nothing.
    read: Callable[[bytes], Decoded | current_codec.Close | current_codec.RefreshCredentials] = attrs.field(repr=False)
    #: Bytes that `seal` adds, at most.
    seal_overhead: int
    #: Bytes that `write` adds to the message as a current peer would encode it, at most.
    plaintext_overhead: int
    #: The plaintext that tells the peer of the end; None where there is no such message and a dead channel is silence.
    close: bytes | None = attrs.field(default=None, repr=False)
    #: The plaintext that carries new credentials; None where there are none.
    refresh: Callable[[current_codec.RefreshCredentials], bytes] | None = attrs.field(default=None, repr=False)
    #: Whether a responder's route follows its peer to a new link; then the outer return route of data is empty (spec §7.2), else it is ours.
    follows: bool = False
    #: What whoever uses the channel has to know of it, and what to do; empty where there is nothing to warn of.
    warning: str = ""


def current_cipher(session: Session) -> ChannelCipher:
    """Return the cipher of a channel of the current generation (spec §7.2)."""
    return ChannelCipher(
        session,
        current_codec.seal_payload,
        session.encrypt,
        session.decrypt,
        current_codec.open_plaintext,
        seal_overhead=OVERHEAD,
        plaintext_overhead=_CURRENT_PLAINTEXT,
        close=current_codec.seal_close(),
        refresh=current_codec.seal_refresh,
        follows=True,
    )


def classic_cipher(session: Session, ours: Encoded, theirs: Encoded) -> ChannelCipher:
    """Return the cipher of a classic channel between the *self* addresses of both sides (spec §8)."""

    def write(onward: tuple[Encoded, ...], back: tuple[Encoded, ...], payload: bytes) -> bytes:
        return classic_codec.encode_message((theirs, *onward), back, payload)

    def seal(plaintext: bytes) -> bytes:
        return bare.data(session.encrypt(plaintext))

    def unseal(payload: bytes) -> bytes:
        return session.decrypt(only_data(payload))

    def read(plaintext: bytes) -> Decoded:
        onward, back, payload = classic_codec.decode_message(plaintext)
        if len(onward) < 2 or onward[0] != ours:
            raise WireError("a message that is not for somebody behind this side of the channel")
        return onward[1:], back, payload

    return ChannelCipher(
        session,
        write,
        seal,
        unseal,
        read,
        seal_overhead=OVERHEAD + _LENGTH,
        plaintext_overhead=len(theirs),
        warning=(
            "it is of the classic generation: a Rust peer takes replayed messages for new ones, and the keys never change. Send only what may "
            "arrive twice, or number it; open a new channel from time to time; and use generation='current' wherever the peer can"
        ),
    )


def only_data(payload: bytes) -> bytes:
    """Return the content of a payload that is one BARE `data` and nothing else; WireError otherwise."""
    reader = bare.Reader(payload)
    content = reader.data()
    reader.end()
    return content
