"""Kafka for trionode: a stream store for hubs (`store`), and a transport without a hub (`link`)."""

from trionode_kafka.link import KafkaTransport
from trionode_kafka.store import open_kafka_store

__all__ = ["KafkaTransport", "open_kafka_store"]
