"""The replay window: the nonces that were accepted already, so each is accepted once."""

#: How far behind the newest nonce a late one may be (spec §7.4). The highest nonce and the 32 below it are remembered,
#: in 33 bits.
BACKWARD = 32

_REMEMBERED = (1 << (BACKWARD + 1)) - 1


class ReplayWindow:
    """The accepted ones of the newest 33 nonces.

    Only `mark` changes it, and only after the tag has verified (spec §7.4).

    The window does not limit how far *ahead* a nonce may be: a bit mask costs the same for every distance.
    """

    __slots__ = ("_accepted", "highest")

    def __init__(self) -> None:
        self.highest = -1  # nothing yet: nonce 0 is new
        self._accepted = 0  # bit i is nonce highest - i

    def accepts(self, nonce: int) -> bool:
        """Whether `nonce` is new and at most 32 behind the newest."""
        behind = self.highest - nonce
        return behind < 0 or (behind <= BACKWARD and not self._accepted >> behind & 1)

    def mark(self, nonce: int) -> bool:
        """Record a nonce for which `accepts` is true; return whether it is the newest so far."""
        ahead = nonce - self.highest
        if ahead <= 0:
            self._accepted |= 1 << -ahead
            return False
        # A peer may choose a nonce near 2^64, and a shift by that many bits would need all memory.
        self._accepted = (self._accepted << ahead | 1) & _REMEMBERED if ahead <= BACKWARD else 1
        self.highest = nonce
        return True
