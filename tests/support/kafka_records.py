"""Removes records from Kafka, as an operator does."""

import trio

from trionode.stream.store.base import StreamStore
from trionode_kafka.store import KafkaStore


async def delete_records(store: StreamStore, stream: str, below: int) -> None:
    """Delete the records of a stream below an index (`kafka-delete-records.sh`)."""
    from kafka.structs import TopicPartition  # its import warns; `trionode_kafka` silences that

    assert isinstance(store, KafkaStore)
    wanted = {TopicPartition("trionode_" + stream, 0): below}
    await trio.to_thread.run_sync(store._client.admin._client.delete_records, wanted)
