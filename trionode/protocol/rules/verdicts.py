"""Verdicts: what a node found out about messages that a hub, a broker or a peer lost, removed or took back.

A verdict is a value for the application, not an error: the stream or channel that reports it goes on.
"""

from abc import ABC, abstractmethod

import attrs


@attrs.frozen
class Verdict(ABC):
    """Something that a stream or a channel found out about its messages. `str` says it in plain words."""

    @abstractmethod
    def __str__(self) -> str:
        """Return the verdict in plain words, for a log."""


@attrs.frozen
class Truncated(Verdict):
    """The hub no longer holds records that this node has not read: by retention, `delete_records`, or an operator.

    It is the hub's word. A hub may lie about it, but it can then only withhold what it may withhold anyway.

    Attributes:
      stream: The name of the stream; None if it is not known.
      first: The index of the first record that is gone.
      last: The index of the last one. Not every index between them need have had a record.
    """

    stream: str | None
    first: int
    last: int

    def __str__(self) -> str:
        of = "a stream" if self.stream is None else f"the stream {self.stream}"
        return f"the records {self.first} to {self.last} of {of} are gone"


@attrs.frozen
class Rollback(Verdict):
    """A stream, or the peer of a channel, holds less than it held before.

    A stream goes back when its topic is deleted or created again, or when its store is restored from a copy.
    The stream's reader goes on with what the stream holds now.

    Attributes:
      stream: The name of the stream; None if it is the peer of a channel.
      known: The index up to which this node had read; for a channel, the messages that the peer had acknowledged.
      now: The index of the next record now, 0 if the stream is empty or gone; for a channel, the messages that the
          peer knows of now.
    """

    stream: str | None
    known: int
    now: int

    def __str__(self) -> str:
        if self.stream is None:
            return f"the peer had acknowledged {self.known} messages, and now knows of {self.now}"
        return (
            f"the stream {self.stream} was deleted, created again or restored: "
            f"it was read up to {self.known}, and now ends at {self.now}"
        )
