"""What goes wrong with a Kafka, in the two words of a store: away, or refused."""

from collections.abc import Iterable

from kafka.errors import AuthorizationError, OffsetOutOfRangeError
from kafka.structs import TopicPartition

from trionode.plugins import StoreError


class AwayError(StoreError):
    """The broker does not answer, or not yet; the same may succeed later."""


class RefusedByBrokerError(StoreError):
    """The broker says no, and will say so again."""


class UnreadableError(RefusedByBrokerError):
    """A topic holds records that are none of ours."""

    def __init__(self, topic: TopicPartition, reason: str) -> None:
        super().__init__(f"the topic {topic.topic} holds records that can't be read: {reason}")
        self.topic = topic


def store_error(error: BaseException) -> StoreError:
    """Whatever a client raised, in words of the store."""
    if isinstance(error, StoreError):
        return error
    if isinstance(error, AuthorizationError):
        # Its own text is the whole request, and the answer.
        return RefusedByBrokerError(
            f"Kafka does not let this user do that ({type(error).__name__}): give it the rights (ACLs) that docs/kafka.md lists, on topics and groups "
            "with this prefix"
        )
    return AwayError(f"Kafka: {type(error).__name__}: {error}")


def out_of_range(error: OffsetOutOfRangeError, among: Iterable[TopicPartition]) -> list[TopicPartition]:
    """The partitions that the error is about; all, should it not say."""
    about = error.args[0] if error.args and isinstance(error.args[0], dict) else {}
    return [topic for topic in among if topic in about or not about]
