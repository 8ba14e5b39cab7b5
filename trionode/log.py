"""Logging: one logger, a throttle for repeated events, and escaping for text that a peer chose."""

import logging

import trio

#: The logger of the library. Each module logs below it: trionode.routing.link, trionode.stream.client, and so on.
log = logging.getLogger("trionode")

#: Characters of a peer's text in one log line.
MAX_SANITIZED = 200


def sanitize(text: object, limit: int = MAX_SANITIZED) -> str:
    """Escape text that a peer chose, for a terminal or a log.

    Args:
      text: The text, or any object with a `str`.
      limit: Characters after which the text is cut.

    Returns:
      The text with control and unprintable characters escaped.
    """
    string = str(text)
    safe = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in string[: limit + 1])
    return safe if len(string) <= limit else f"{safe[:limit]}… ({len(string)} characters)"


class LogThrottle:
    """Limits repeated log lines, so a peer can't fill a log: each key is due at most once in `seconds`.

    Args:
      seconds: Seconds between two lines with one key.
    """

    #: Keys that are remembered. When there are more, all of them are forgotten.
    MAX_KEYS = 1000

    __slots__ = ("_due_at", "_seconds")

    def __init__(self, seconds: float = 60.0) -> None:
        self._seconds = seconds
        self._due_at: dict[str, float] = {}

    def is_due(self, key: str, now: float) -> bool:
        """Ask whether to log an event now. If so, the key is not due again for `seconds`.

        Args:
          key: The kind of the event, such as a peer's address.
          now: The time in monotonic seconds.

        Returns:
          Whether to log it.
        """
        if now < self._due_at.get(key, now):
            return False
        if len(self._due_at) >= self.MAX_KEYS:
            self._due_at.clear()
        self._due_at[key] = now + self._seconds
        return True

    def log_warning(self, key: str, text: str, *args: object) -> None:
        """Log a warning, if its key is due now by Trio's clock.

        Args:
          key: The kind of the event.
          text: The format of the line.
          args: Its arguments; escape those that a peer chose.
        """
        if self.is_due(key, trio.current_time()):
            log.warning(text, *args)
