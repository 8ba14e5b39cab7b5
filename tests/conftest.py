"""Fixtures that more than one folder of tests uses."""

from collections.abc import Iterator

import pytest

from trionode.testing.kafka import KafkaBroker, NoKafkaError, run_kafka


@pytest.fixture(scope="session")
def kafka_broker() -> Iterator[KafkaBroker]:
    """One real Kafka broker for the whole run; who stops it starts it again."""
    try:
        running = run_kafka()
        with running as broker:
            yield broker
    except NoKafkaError as missing:
        pytest.skip(str(missing))
