"""Encryption after the key exchange: numbered blobs, a key that changes every 32 messages, and no blob accepted twice."""

import struct

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from trionode.errors import ClosedError, DecryptError
from trionode.protocol.session.replay import ReplayWindow

#: Bytes that a blob is longer than its plaintext: the nonce before, the tag behind (spec §6.2).
OVERHEAD = 8 + 16

#: Messages between two changes of the key (spec §7.3), as a power of two.
INTERVAL_BITS = 5
INTERVAL = 1 << INTERVAL_BITS

#: Key changes that one message may skip: 32,768 lost messages in a row don't end a channel. Rust peers allow 32 messages, and a
#: channel of theirs is dead after that; the bound is there because a forger chooses the nonce and each change costs about 1.5 µs.
JUMP = 1024

#: Every so many changes a key derived for a jump is kept, so that the next forged nonce costs at most 15 changes, not 1,024, and
#: the keys kept take at most 64 × 32 bytes.
STRIDE = 16

#: The nonce that no message has (spec §6.2): it is the key change's own.
NONCE_LIMIT = 2**64 - 1

_IV = struct.Struct(">4xQ")
_NONCE = struct.Struct(">Q")
_CHANGE_IV = _IV.pack(NONCE_LIMIT)
_CHANGE_TEXT = bytes(32)


def next_key(cipher: AESGCM) -> bytes:
    """Return the 32-byte key that follows the cipher's own (spec §7.3)."""
    return cipher.encrypt(_CHANGE_IV, _CHANGE_TEXT, None)[:32]


class _ReceiveKeys:
    """The key of the interval we are in, the one before, and some of those ahead that somebody made us derive.

    Keys ahead give away nothing that the current key does not; keys of intervals that are over are dropped, but for one.
    """

    __slots__ = ("_checkpoints", "current", "interval", "previous")

    def __init__(self, key: bytes) -> None:
        self.interval = 0
        self.current = self.previous = AESGCM(key)
        self._checkpoints: list[bytes] = []  # the keys of the next multiples of STRIDE above `interval`, without a gap

    def at(self, interval: int) -> AESGCM:
        """Return the cipher of any interval that a message may be in; only checkpoints move. DecryptError if it is too far ahead."""
        if interval < self.interval:
            return self.previous  # the window lets nothing older through
        if interval > self.interval + JUMP:
            raise DecryptError(f"a nonce more than {JUMP} key changes ahead")
        return self._derive(interval)

    def _derive(self, interval: int) -> AESGCM:
        reached, cipher = self.interval, self.current
        first = reached // STRIDE + 1
        nearest = min(interval // STRIDE - first, len(self._checkpoints) - 1)
        if nearest >= 0:
            reached, cipher = (first + nearest) * STRIDE, AESGCM(self._checkpoints[nearest])
        while reached < interval:
            key = next_key(cipher)
            reached, cipher = reached + 1, AESGCM(key)
            if reached == (first + len(self._checkpoints)) * STRIDE:
                self._checkpoints.append(key)
        return cipher

    def advance(self, interval: int, cipher: AESGCM) -> None:
        """Enter a later interval, one of whose messages has verified under `cipher`."""
        previous = self._derive(interval - 1)  # after a jump too: messages it overtook may still come
        del self._checkpoints[: interval // STRIDE - self.interval // STRIDE]
        self.interval, self.current, self.previous = interval, cipher, previous


class Session:
    """The two ciphers of one side of a channel, each with its own key and count (spec §6.2, §7.3, §7.4).

    `send_key` and `receive_key` are the 32-byte keys of the exchange, crossed at the peer. `rekey=False` is the classic channel: no
    key changes, and so no bound on how far ahead a nonce may be. `newest` tells after each `decrypt` whether that message was newer
    than all before it. A session lives in one task and one process: to restore it from a copy would use nonces twice.
    """

    __slots__ = ("_change_at", "_keys", "_next", "_seal", "_shift", "_window", "newest")

    def __init__(self, send_key: bytes, receive_key: bytes, *, rekey: bool = True) -> None:
        self.newest = False
        self._next = 0
        self._change_at = INTERVAL if rekey else NONCE_LIMIT
        self._seal = AESGCM(send_key).encrypt
        self._shift = INTERVAL_BITS if rekey else 64  # without key changes every nonce is in interval 0
        self._window = ReplayWindow()
        self._keys = _ReceiveKeys(receive_key)

    def encrypt(self, plaintext: bytes) -> bytes:
        """Return the blob, 24 bytes longer than `plaintext`, with the next nonce; ClosedError once there is none left."""
        nonce = self._next
        if nonce == self._change_at:
            self._change_send_key(nonce)
        self._next = nonce + 1  # before sealing: whatever interrupts it, no nonce is used twice
        iv = _IV.pack(nonce)
        return iv[4:] + self._seal(iv, plaintext, None)

    def _change_send_key(self, nonce: int) -> None:
        if nonce == NONCE_LIMIT:
            raise ClosedError("this session has used its last nonce, 2^64 - 2: open a new channel")
        self._seal = AESGCM(self._seal(_CHANGE_IV, _CHANGE_TEXT, None)[:32]).encrypt
        self._change_at = min(nonce + INTERVAL, NONCE_LIMIT)

    def decrypt(self, blob: bytes) -> bytes:
        """Return the plaintext of a blob, in any order within 32 messages and after any loss of up to 32,768.

        DecryptError if it is too short, was accepted before, is more than 32 behind or too far ahead, or does not verify. Then no
        state has moved: the channel goes on with the next good blob.
        """
        if len(blob) < OVERHEAD:
            raise DecryptError("a sealed message shorter than its nonce and tag")
        (nonce,) = _NONCE.unpack_from(blob)
        window = self._window
        if not window.accepts(nonce) or nonce == NONCE_LIMIT:
            raise DecryptError("a nonce that was accepted before, is too far behind, or is never used")
        interval = nonce >> self._shift
        keys = self._keys
        cipher = keys.current if interval == keys.interval else keys.at(interval)
        try:
            plaintext = cipher.decrypt(b"\0\0\0\0" + blob[:8], blob[8:], None)
        except InvalidTag:
            raise DecryptError("a sealed message whose tag does not verify") from None
        self.newest = window.mark(nonce)
        if interval > keys.interval:
            keys.advance(interval, cipher)
        return plaintext
