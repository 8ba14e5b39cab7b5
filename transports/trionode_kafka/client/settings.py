"""Settings of kafka-python's clients, and the deadlines of this package."""

from collections.abc import Mapping
from typing import Final

#: Seconds for a TCP connection and for a client's first exchange, before an address is reported as wrong.
CONNECT_SECONDS = 4.0
#: Seconds that one request may take. A broker that was killed is back after 3.5-7 s; callers try again.
REQUEST_SECONDS = 5.0
#: Seconds for which the producer looks up an unknown topic, while other records wait. Topics are looked up before the
#: first record (`load_metadata`), so only a topic that was deleted since is unknown.
BLOCK_SECONDS = 2.0
#: Milliseconds that the broker delays an empty fetch. A topic that joins the shared consumer waits for the fetch that
#: is under way, so its first record may be this late. An idle hub with a waiting reader sends one request in this time.
FETCH_WAIT_MS = 25
#: Bytes of one partition in one fetch: 4 records of the longest kind, or some 2,000 short ones, which cost the Trio
#: thread 5 ms.
FETCH_BYTES = 256 << 10
#: Bytes of all partitions in one fetch.
FETCH_BYTES_TOTAL = 4 << 20
#: Records of one poll: more than one fetch can hold, because the next `assign` drops the records that a poll leaves.
POLL_RECORDS = 100_000
#: Seconds to wait for a thread of kafka-python when a client is closed; measured 0.1 s at most.
CLOSE_SECONDS = 2.0

_CLIENT: Final[Mapping[str, object]] = {
    "bootstrap_timeout_ms": int(CONNECT_SECONDS * 1000),
    "request_timeout_ms": int(REQUEST_SECONDS * 1000),
    # With the default of 30 s, clients resume 6-31 s after the broker is back.
    "reconnect_backoff_max_ms": 500,
    # Also the shortest time between two metadata requests, for which the first use of a topic waits.
    "retry_backoff_ms": 20,
}
ADMIN: Final[Mapping[str, object]] = {
    **_CLIENT,
    # With the default of 5, a sixth request fails at once instead of waiting.
    "max_in_flight_requests_per_connection": 100,
}
CONSUMER: Final[Mapping[str, object]] = {
    **_CLIENT,
    "metrics_enabled": False,
    "enable_auto_commit": False,
    "allow_auto_create_topics": False,
    # Retention or deletion must be an error, not a silent jump.
    "auto_offset_reset": "none",
    "fetch_min_bytes": 1,
    "fetch_max_wait_ms": FETCH_WAIT_MS,
    "max_partition_fetch_bytes": FETCH_BYTES,
    "fetch_max_bytes": FETCH_BYTES_TOTAL,
    "max_poll_records": POLL_RECORDS,
}
PRODUCER: Final[Mapping[str, object]] = {
    **_CLIENT,
    "metrics_enabled": False,
    "allow_auto_create_topics": False,
    "acks": "all",
    "enable_idempotence": True,
    "linger_ms": 0,
    # One batch of a partition is in flight at a time, so larger batches raise the rate.
    "batch_size": 262_144,
    # An idempotent producer of 3.0.12 hangs for ever once a retried batch reaches this. Trio has the deadlines.
    "delivery_timeout_ms": 2_147_483_647,
    "max_block_ms": int(BLOCK_SECONDS * 1000),
}
