"""What operators see: one logger, counters by reason, and names chosen by peers made harmless before they are shown."""

import logging

#: Every event of the library; names below it say which part speaks (trionode.routing.link, trionode.stream.client, …).
log = logging.getLogger("trionode")

#: Characters of a peer's text that one log line shows.
MAX_SANITIZED = 200


def sanitize(text: object, limit: int = MAX_SANITIZED) -> str:
    """Return a text that a peer chose, fit for a terminal and a log: control and unprintable characters escaped, its length capped."""
    string = str(text)
    safe = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in string[: limit + 1])
    return safe if len(string) <= limit else f"{safe[:limit]}… ({len(string)} characters)"


class LogThrottle:
    """Which events are due to be told: each key at most once in `seconds`, so that no peer can fill a log by repeating itself."""

    #: Keys that are remembered; when there are more, all are told anew.
    MAX_KEYS = 1000

    __slots__ = ("_seconds", "_told")

    def __init__(self, seconds: float = 60.0) -> None:
        self._seconds = seconds
        self._told: dict[str, float] = {}

    def is_due(self, key: str, now: float) -> bool:
        """Whether the event is to be told now, at `now` monotonic seconds; if so it counts as told."""
        if now < self._told.get(key, now):
            return False
        if len(self._told) >= self.MAX_KEYS:
            self._told.clear()
        self._told[key] = now + self._seconds
        return True
