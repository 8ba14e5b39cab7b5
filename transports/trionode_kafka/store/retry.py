"""How long to wait before the next try while the broker is away or refuses."""

import trio

#: Seconds to which the pause between two tries doubles while the broker is away or refuses.
RETRY_SECONDS = 2.0


class Pause:
    """Pauses between tries, each twice as long as the one before."""

    __slots__ = ("_seconds",)

    def __init__(self) -> None:
        self._seconds = RETRY_SECONDS / 32

    async def wait(self) -> None:
        """Sleep for this pause's time."""
        await trio.sleep(self._seconds)
        self._seconds = min(2 * self._seconds, RETRY_SECONDS)
