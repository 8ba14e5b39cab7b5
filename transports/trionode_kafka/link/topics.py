"""Names and settings of the topics of links and endpoints, and which of them are leftovers."""

import os
import time
from collections.abc import Mapping

import attrs

from trionode.plugins import uuid7_hex

_ENDPOINT = "at-"
_DIRECTIONS = ("to-listener", "to-dialer")

#: Settings of an endpoint's topic. Time deletes nothing, because the last announcement shows whether the topic is a
#: leftover.
ENDPOINT_SETTINGS: Mapping[str, str] = {
    "cleanup.policy": "delete",
    "retention.ms": "-1",
    "retention.bytes": str(1 << 20),
    "segment.bytes": str(1 << 20),
    "message.timestamp.type": "LogAppendTime",
}
#: Settings of a link's topics. The link's window bounds what is unread, so size alone shows what is not needed any
#: more.
LINK_SETTINGS: Mapping[str, str] = {
    **ENDPOINT_SETTINGS,
    "retention.bytes": str(32 << 20),
    "segment.bytes": str(8 << 20),
    "max.message.bytes": str(1 << 20),
}


@attrs.frozen
class TopicNames:
    """The topics of one transport: all names begin with its prefix."""

    prefix: str

    def of_endpoint(self, name: str) -> str:
        """Return the topic of an endpoint."""
        return f"{self.prefix}{_ENDPOINT}{name}"

    def of_link(self, link_id: str) -> tuple[str, str]:
        """Return the topics of a link: the listener reads the first, the dialer the second."""
        to_listener, to_dialer = (f"{self.prefix}{link_id}-{direction}" for direction in _DIRECTIONS)
        return to_listener, to_dialer

    def is_endpoint(self, topic: str) -> bool:
        """Whether it is the topic of an endpoint."""
        return topic.startswith(f"{self.prefix}{_ENDPOINT}")

    def may_be_leftover(self, topic: str, before: float) -> bool:
        """Whether it is the topic of an endpoint, or of a link from before a time (Unix seconds)."""
        link_id, _, direction = topic.removeprefix(self.prefix).partition("-")
        return self.is_endpoint(topic) or (
            direction in _DIRECTIONS and len(link_id) == 32 and (created_at(link_id) or before) < before
        )


def new_id() -> str:
    """Return a new id of a link or listener: 32 hex characters that contain the time of its creation."""
    return uuid7_hex(int(time.time() * 1000), os.urandom(10))


def created_at(an_id: str) -> float | None:
    """Return when an id was made (Unix seconds); None if it is not hexadecimal."""
    try:
        return int(an_id[:12], 16) / 1000
    except ValueError:
        return None
