"""What a stranger with a Kafka client of his own writes into topics."""


class _NoText(str):
    __slots__ = ()

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        del encoding, errors
        return b"\xff"


def write_strangely(bootstrap: str, topic: str, *, compressed: bool) -> None:
    """Write one record that nobody of ours writes: compressed, 512 KiB in some, or with a header whose name is no text. Blocks."""
    from kafka import KafkaProducer  # after `trionode_kafka.client` has, without its warning

    producer = KafkaProducer(bootstrap_servers=bootstrap, compression_type="gzip" if compressed else None)
    try:
        headers = [] if compressed else [(_NoText("x"), b"")]
        producer.send(topic, value=bytes(1 << 19 if compressed else 1), headers=headers, partition=0).get(30)
    finally:
        producer.close()
