"""kafka-python behind a small typed interface for Trio. No other package imports kafka-python.

Its clients block and have threads of their own, so worker threads call them. Records cross between these threads and
Trio in batches, never one by one.
"""

import warnings

with warnings.catch_warnings():
    # kafka-python 3.0.12 raises this warning for itself while it is imported (importlib.resources). Programs that turn
    # warnings into errors must be able to import it.
    warnings.simplefilter("ignore", DeprecationWarning)
    from trionode_kafka.client.errors import BrokerUnavailableError, RefusedByBrokerError
    from trionode_kafka.client.kafka_client import KafkaClient, open_kafka_client, parse_addresses
    from trionode_kafka.client.records import (
        FetchedRecord,
        FetchResult,
        OnConfirmed,
        OnRecords,
        OutgoingRecord,
        TopicInfo,
    )
    from trionode_kafka.client.security import Security, exposure_of
    from trionode_kafka.client.threads import wait_for

__all__ = [
    "BrokerUnavailableError",
    "FetchResult",
    "FetchedRecord",
    "KafkaClient",
    "OnConfirmed",
    "OnRecords",
    "OutgoingRecord",
    "RefusedByBrokerError",
    "Security",
    "TopicInfo",
    "exposure_of",
    "open_kafka_client",
    "parse_addresses",
    "wait_for",
]
