"""Streams that lie in Kafka: a stream store for hubs, one topic a stream."""

from trionode_kafka.store.store import open_kafka_store

__all__ = ["open_kafka_store"]
