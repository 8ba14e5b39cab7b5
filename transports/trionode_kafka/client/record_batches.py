"""Reading records as they lie there: nothing that a stranger wrote is unpacked, nor ends more than the reading of its own topic.

Nobody of ours compresses, and 400 KB of gzip may be 400 MB of zeros, which kafka-python would unpack whole.
"""

from typing import Any

from kafka.consumer.fetcher import Fetcher
from kafka.structs import TopicPartition

from trionode_kafka.client.errors import UnreadableError


class _Plain:
    """The batches of one fetch, up to one that is compressed."""

    def __init__(self, batches: Any) -> None:
        self._batches = batches

    def next_batch(self) -> Any:
        batch = self._batches.next_batch()
        if batch is not None and batch.compression_type:
            raise ValueError(
                "they are compressed, and nothing is unpacked here: let who writes there, and the topic's compression.type, leave them as they are"
            )
        return batch


class PlainRecords(Fetcher.PartitionRecords):  # type: ignore[misc]
    """What one fetch brought of a topic, as a consumer takes records from it; UnreadableError, which names the topic, at one that it can't read."""

    def __init__(self, fetch_offset: int, topic: TopicPartition, batches: Any, **options: Any) -> None:
        super().__init__(fetch_offset, topic, _Plain(batches), **options)

    def take(self, n: int | None = None) -> Any:  # noqa: D102 - kafka-python's
        try:
            return super().take(n)
        except Exception as error:  # of any kind, such as UnicodeDecodeError for a header's name: that is this topic's fault and nobody else's
            self.drain()  # 3.0.12 itself would take from it for ever
            raise UnreadableError(self.topic_partition, str(error)) from error


def read_plainly(consumer: Any) -> None:
    """Let a consumer read so, and no other in this program; 3.0.12 has no public way."""
    consumer._fetcher.PartitionRecords = PlainRecords  # noqa: SLF001
