"""The stream store `kafka`: one topic for each stream."""

from trionode_kafka.store.store import KafkaStore, open_kafka_store

__all__ = ["KafkaStore", "open_kafka_store"]
