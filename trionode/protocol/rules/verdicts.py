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


@attrs.frozen
class Gap(Verdict):
    """Messages of the peer are missing: later ones have arrived, or the peer says how many it has sent.

    Something on the route dropped them, or holds them back. The peer sends them again; `Repaired` follows when they
    arrive.

    Attributes:
      first: The number of the first missing message; the peer numbers its messages from 1.
      last: The number of the last one.
    """

    first: int
    last: int

    def __str__(self) -> str:
        return f"the messages {self.first} to {self.last} of the peer are missing"


@attrs.frozen
class Repaired(Verdict):
    """The messages of a `Gap` have arrived after all, and were delivered in order.

    Attributes:
      first: The number of the first one.
      last: The number of the last one.
    """

    first: int
    last: int

    def __str__(self) -> str:
        return f"the messages {self.first} to {self.last} of the peer have arrived after all"


@attrs.frozen
class TailSilence(Verdict):
    """Nothing comes from the peer any more, although it promised a sign of life, or it acknowledges nothing.

    The peer is gone, or something on the route drops its messages.

    Attributes:
      since: When the last message of the peer arrived, or since when it owes an acknowledgement, by Trio's clock, in
        seconds.
    """

    since: float

    def __str__(self) -> str:
        return f"the peer says or acknowledges nothing since {self.since:.1f} (Trio's clock)"


@attrs.frozen
class Fork(Verdict):
    """The peer remembers other messages than this side. The channel ends: one side went back to an older state.

    Attributes:
      number: The number of the message at which both histories differ, at the latest.
    """

    number: int

    def __str__(self) -> str:
        return f"the histories of both sides differ at message {self.number} at the latest"


@attrs.frozen
class Restarted(Verdict):
    """The peer has restarted, and no longer knows what it had received. What it had not handled is sent again.

    Attributes:
      unconfirmed: The number of messages that are sent again. The peer may have handled some of them before.
    """

    unconfirmed: int

    def __str__(self) -> str:
        return (
            f"the peer has restarted: {self.unconfirmed} messages that it had not confirmed as handled are sent again"
        )
