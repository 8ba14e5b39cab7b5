"""The transport `kafka`: links between two nodes over a pair of Kafka topics."""

from trionode_kafka.link.transport import KafkaTransport

__all__ = ["KafkaTransport"]
