"""Encryption after the handshake: numbered messages, a key that changes every 32 messages, and a replay window."""

import struct

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from trionode.errors import ClosedError, DecryptError
from trionode.protocol.session.replay import ReplayWindow

#: Bytes that a ciphertext is longer than its plaintext: the nonce before it and the tag behind it (spec §6.2).
OVERHEAD = 8 + 16

#: Messages between two changes of the key (spec §7.3), as a power of two.
INTERVAL_BITS = 5
INTERVAL = 1 << INTERVAL_BITS

#: Key changes that one message may skip, so 32,768 lost messages in a row do not end a channel. (A Rust peer allows 32
#: messages; after more its channel is dead.) The bound is needed because a forger chooses the nonce, and each change
#: costs about 1.5 µs.
JUMP = 1024

#: Every 16th key that was derived for a jump is kept as a checkpoint. So the next forged nonce costs at most 15
#: changes, not 1,024, and the checkpoints take at most 64 × 32 bytes.
STRIDE = 16

#: The nonce that no message has (spec §6.2): it is reserved for the key change.
NONCE_LIMIT = 2**64 - 1

_IV = struct.Struct(">4xQ")
_NONCE = struct.Struct(">Q")
_CHANGE_IV = _IV.pack(NONCE_LIMIT)
_CHANGE_TEXT = bytes(32)


def next_key(cipher: AESGCM) -> bytes:
    """Return the 32-byte key after that of the cipher (spec §7.3)."""
    return cipher.encrypt(_CHANGE_IV, _CHANGE_TEXT, None)[:32]


class _ReceiveKeys:
    """The keys of the current interval and the one before it, and checkpoints, derived for nonces far ahead.

    A key ahead reveals nothing that the current key does not. Of the keys of past intervals only one is kept.
    """

    __slots__ = ("_checkpoints", "current", "interval", "previous")

    def __init__(self, key: bytes) -> None:
        self.interval = 0
        self.current = self.previous = AESGCM(key)
        self._checkpoints: list[bytes] = []  # keys of the next multiples of STRIDE after `interval`, without gaps

    def at(self, interval: int) -> AESGCM:
        """Return the cipher of an interval; this changes only the checkpoints. DecryptError if it is too far ahead."""
        if interval < self.interval:
            return self.previous  # the replay window refuses anything older
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
        """Enter a later interval, after one of its messages has verified with `cipher`."""
        previous = self._derive(interval - 1)  # after a jump too: earlier messages may arrive late
        del self._checkpoints[: interval // STRIDE - self.interval // STRIDE]
        self.interval, self.current, self.previous = interval, cipher, previous


class Session:
    """The keys and nonces of both directions, for one side of a channel (spec §6.2, §7.3, §7.4).

    `send_key` and `receive_key` are the 32-byte keys of the handshake; the peer has them the other way round.
    `rekey=False` is for classic channels: the key never changes, so there is no bound on how far ahead a nonce may be.
    `newest` says after each `decrypt` whether that message is the newest so far. Never copy or restore a session: that
    would use nonces twice.
    """

    __slots__ = ("_change_at", "_keys", "_next", "_seal", "_shift", "_window", "newest")

    def __init__(self, send_key: bytes, receive_key: bytes, *, rekey: bool = True) -> None:
        self.newest = False
        self._next = 0
        self._change_at = INTERVAL if rekey else NONCE_LIMIT
        self._seal = AESGCM(send_key).encrypt
        self._shift = INTERVAL_BITS if rekey else 64  # without key changes there is only interval 0
        self._window = ReplayWindow()
        self._keys = _ReceiveKeys(receive_key)

    def encrypt(self, plaintext: bytes) -> bytes:
        """Return the ciphertext, 24 bytes longer than `plaintext`; ClosedError when no nonce is left."""
        nonce = self._next
        if nonce == self._change_at:
            self._change_send_key(nonce)
        self._next = nonce + 1  # before encrypting: after any exception the nonce counts as used
        iv = _IV.pack(nonce)
        return iv[4:] + self._seal(iv, plaintext, None)

    def _change_send_key(self, nonce: int) -> None:
        if nonce == NONCE_LIMIT:
            raise ClosedError("this session has used its last nonce, 2^64 - 2: open a new channel")
        self._seal = AESGCM(self._seal(_CHANGE_IV, _CHANGE_TEXT, None)[:32]).encrypt
        self._change_at = min(nonce + INTERVAL, NONCE_LIMIT)

    def decrypt(self, ciphertext: bytes) -> bytes:
        """Return the plaintext. Messages may arrive up to 32 out of order, and up to 32,768 in a row may be lost.

        DecryptError if the ciphertext is too short, was accepted before, is more than 32 behind or too far ahead, or
        does not verify. Then the state is unchanged, and the channel goes on with the next good one.
        """
        if len(ciphertext) < OVERHEAD:
            raise DecryptError("an encrypted message shorter than its nonce and tag")
        (nonce,) = _NONCE.unpack_from(ciphertext)
        window = self._window
        if not window.accepts(nonce) or nonce == NONCE_LIMIT:
            raise DecryptError("a nonce that was accepted before, is too far behind, or is reserved")
        interval = nonce >> self._shift
        keys = self._keys
        cipher = keys.current if interval == keys.interval else keys.at(interval)
        try:
            plaintext = cipher.decrypt(b"\0\0\0\0" + ciphertext[:8], ciphertext[8:], None)
        except InvalidTag:
            raise DecryptError("an encrypted message whose tag does not verify") from None
        self.newest = window.mark(nonce)
        if interval > keys.interval:
            keys.advance(interval, cipher)
        return plaintext
