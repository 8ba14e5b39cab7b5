"""Writes records into topics as a Kafka client does that is not trionode."""


class _NotUtf8(str):
    __slots__ = ()

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        del encoding, errors
        return b"\xff"


def write_foreign_record(bootstrap: str, topic: str, *, compressed: bool) -> None:
    """Write one record that trionode never writes: 512 KiB compressed, or with a header name that is not UTF-8.

    It blocks.
    """
    from kafka import KafkaProducer  # its import warns; `trionode_kafka` silences that

    producer = KafkaProducer(bootstrap_servers=bootstrap, compression_type="gzip" if compressed else None)
    try:
        headers = [] if compressed else [(_NotUtf8("x"), b"")]
        producer.send(topic, value=bytes(1 << 19 if compressed else 1), headers=headers, partition=0).get(30)
    finally:
        producer.close()
