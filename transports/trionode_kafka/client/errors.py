"""Errors of a Kafka, as store errors of two kinds: it is unavailable, or it refuses."""

from collections.abc import Iterable

from kafka.errors import AuthorizationError, OffsetOutOfRangeError
from kafka.structs import TopicPartition

from trionode.plugins import StoreError


class BrokerUnavailableError(StoreError):
    """The broker does not answer, or not yet. The same request may succeed later."""


class RefusedByBrokerError(StoreError):
    """The broker refused the request, and will refuse it again."""


class UnreadableError(RefusedByBrokerError):
    """A topic holds records that this package does not read."""

    def __init__(self, topic: TopicPartition, reason: str) -> None:
        super().__init__(f"the topic {topic.topic} holds records that can't be read: {reason}")
        self.topic = topic


def store_error(error: BaseException) -> StoreError:
    """Return the StoreError for what a client of kafka-python raised."""
    if isinstance(error, StoreError):
        return error
    if isinstance(error, AuthorizationError):
        # Its own text is the whole request and the answer.
        return RefusedByBrokerError(
            f"Kafka does not let this user do that ({type(error).__name__}): give the user the "
            "rights (ACLs) that docs/kafka.md lists, on topics and groups with this prefix"
        )
    return BrokerUnavailableError(f"Kafka: {type(error).__name__}: {error}")


def out_of_range(error: OffsetOutOfRangeError, among: Iterable[TopicPartition]) -> list[TopicPartition]:
    """Return the partitions that the error names, or all if it names none."""
    named = error.args[0] if error.args and isinstance(error.args[0], dict) else {}
    return [topic for topic in among if topic in named or not named]


def records_are_gone() -> RefusedByBrokerError:
    """Return the error for an offset that the topic no longer has, or never had."""
    return RefusedByBrokerError("the records at this offset are gone from the topic")
