"""The window of nonces that have been accepted already, so that each is accepted once."""

#: How far behind the newest nonce a late one is still taken (spec §7.4): the highest and 32 below are remembered, in 33 bits.
BACKWARD = 32

_REMEMBERED = (1 << (BACKWARD + 1)) - 1


class ReplayWindow:
    """Which of the newest 33 nonces were accepted; a nonce moves it by `mark` alone, and only once its tag has verified (spec §7.4).

    How far *ahead* a nonce may be is not the window's question: a bit mask costs the same for every distance.
    """

    __slots__ = ("_accepted", "highest")

    def __init__(self) -> None:
        self.highest = -1  # nothing yet, so that nonce 0 is new
        self._accepted = 0  # bit i: highest - i

    def accepts(self, nonce: int) -> bool:
        """Whether `nonce` was not accepted before and is not more than 32 behind the newest."""
        behind = self.highest - nonce
        return behind < 0 or (behind <= BACKWARD and not self._accepted >> behind & 1)

    def mark(self, nonce: int) -> bool:
        """Accept a nonce that `accepts` has let through; True if it is newer than all before."""
        ahead = nonce - self.highest
        if ahead <= 0:
            self._accepted |= 1 << -ahead
            return False
        # A peer may choose a nonce near 2^64, and a shift that far would ask for all memory.
        self._accepted = (self._accepted << ahead | 1) & _REMEMBERED if ahead <= BACKWARD else 1
        self.highest = nonce
        return True
