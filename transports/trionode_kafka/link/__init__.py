"""Links over a pair of Kafka topics."""
