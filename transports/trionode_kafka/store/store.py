"""A stream store in Kafka: one topic a stream, its offsets the indexes, each push pulled exactly once across restarts and hubs.

A record's value is the message and nothing else; the headers `producer` and `request_id` name the push (spec §11.3). A hub keeps no
state that Kafka does not have, so any number of hubs may share one Kafka. Two things together make a push appear once:

- Before a hub stores, it knows what every producer stored last, by reading the topic: back to a producer's birth when it is new to it,
  and again whatever others added since when its knowledge is older than KNOWN_SECONDS.
- What slips through (two hubs that store the same push at the same time, a hub that was frozen between knowing and storing) lies within
  LOOK_BACK_SECONDS of its first copy: a record carries the time at which its hub knew, and the broker refuses records that are older than
  OUTAGE_SECONDS (`message.timestamp.before.max.ms`). Readers drop, in log order, a UUIDv7 producer's record whose id is not above its last.
"""

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence

import trio

from trionode.plugins import (
    FinalError,
    LocalError,
    Position,
    Push,
    Record,
    Stored,
    StoreError,
    StoreInfo,
    valid_stream_name,
    with_store_info,
)
from trionode_kafka.client import Bridge, open_bridge, parse_addresses
from trionode_kafka.client.security import Security, exposure_of
from trionode_kafka.store.owners import Owners
from trionode_kafka.store.reader import Reading
from trionode_kafka.store.streams import OWNERS, Streams
from trionode_kafka.store.writer import Pushing

#: Seconds between two looks whether the topics in use still exist: Kafka itself answers nothing to whoever reads a deleted one.
WATCH_SECONDS = 1.0
#: Topics of one such look.
WATCHED_AT_ONCE = 500
#: The largest offset that Kafka has.
MAX_OFFSET = (1 << 63) - 1


class KafkaStore:
    """The store that `open_kafka_store` opens; see `trionode.stream.store.base.StreamStore` for what its methods promise.

    While the broker is away, `append` and `read` wait, whatever else raises StoreError after some seconds. Reading below the first index
    that retention has left raises StoreError, and reading a deleted stream raises UnknownStreamError, so that neither looks like an empty
    stream. Positions are committed offsets of the group `<prefix><client id>`: the broker forgets those of clients that are away for
    `offsets.retention.minutes` (7 days).
    """

    def __init__(self, bridge: Bridge, nursery: trio.Nursery, *, prefix: str, replication_factor: int) -> None:
        self._bridge = bridge
        self._prefix = prefix
        self._streams = Streams(bridge, prefix=prefix, replication_factor=replication_factor)
        self._pushing = Pushing(bridge, nursery, self._streams)
        self._reading = Reading(bridge, self._streams)
        self._owners = Owners(bridge, self._pushing.write, topic=prefix + OWNERS, replication_factor=replication_factor)
        # Positions not saved yet.
        self._unsaved: dict[str, dict[str, int]] = {}
        self._saving = trio.Lock()

    async def create(self, stream: str, owner: str = "") -> str:
        """Make the topic unless it exists; the owner that stands first in the topic of owners."""
        if stream == OWNERS or not valid_stream_name(stream):
            raise FinalError(f"no stream can be named {stream!r:.100}")
        first = self._owners.get(stream)
        if first is None or self._streams.get(stream) is None:
            first = await self._owners.claim(stream, owner)
            await self._streams.make(stream)
        return first

    async def append(self, pushes: Sequence[Push]) -> Sequence[Stored | StoreError]:
        """Store a batch; waits while the broker is away, and survives its restart."""
        return await self._pushing.append(pushes)

    async def read(self, stream: str, index: int, *, limit: int, max_bytes: int) -> Sequence[Record]:
        """Wait for records from an index on; waits while the broker is away."""
        return await self._reading.read(stream, index, limit=limit, max_bytes=max_bytes)

    async def position(self, client_id: str, stream: str) -> int | None:
        """The offset that the client's group committed."""
        return await self._bridge.committed(self._prefix + client_id, self._prefix + stream)

    async def save_positions(self, positions: Sequence[Position]) -> None:
        """Commit offsets, those of all callers that wait in one go, each client's in one request."""
        for position in positions:
            if position.stream != OWNERS:
                offsets = self._unsaved.setdefault(position.client_id, {})
                offsets[self._prefix + position.stream] = min(position.index, MAX_OFFSET)
        async with self._saving:
            unsaved, self._unsaved = self._unsaved, {}
            errors: list[StoreError] = []

            async def commit(client_id: str, offsets: Mapping[str, int]) -> None:
                try:
                    await self._bridge.commit(self._prefix + client_id, offsets)
                except StoreError as error:
                    errors.append(error)

            async with trio.open_nursery() as nursery:
                for client_id, offsets in unsaved.items():
                    nursery.start_soon(commit, client_id, offsets)
        if errors:
            raise errors[0]

    async def renew(self) -> None:
        """Replace the producer whenever it has failed."""
        await self._pushing.renew()

    async def watch(self) -> None:
        """Notice deleted topics, and follow no longer what nobody reads."""
        while True:
            await trio.sleep(WATCH_SECONDS / 2)
            self._reading.close_idle()
            used = [s for s in self._streams.in_hand() if self._pushing.under_way(s) or self._reading.under_way(s)]
            for start in range(0, len(used), WATCHED_AT_ONCE):
                with contextlib.suppress(StoreError):
                    await self._streams.check(used[start : start + WATCHED_AT_ONCE])
                await trio.sleep(WATCH_SECONDS)


@with_store_info(StoreInfo(parse_addresses, exposure_of))
@contextlib.asynccontextmanager
async def open_kafka_store(
    where: str,
    *,
    prefix: str = "trionode_",
    replication_factor: int = 1,
    security: str = "plaintext",
    ca_file: str | None = None,
    certificate: str | None = None,
    key: str | None = None,
    username: str | None = None,
    password: str | None = None,
    password_file: str | None = None,
    mechanism: str = "SCRAM-SHA-512",
) -> AsyncIterator[KafkaStore]:
    """Open the store in the Kafka at `where`, "host:port" or several with commas between; the entry point `kafka`.

    `security` is plaintext, ssl, sasl_plaintext or sasl_ssl. With ssl, `ca_file` is who has signed the brokers' certificates (the system's
    authorities without it), `certificate` and `key` what we show where that is demanded, all paths of PEM files. With sasl, the user
    `username` proves a `password`, which may stand in a `password_file`, by `mechanism`: SCRAM-SHA-512, SCRAM-SHA-256 or PLAIN.

    Only topics and groups whose names begin with `prefix` are ever touched. Topics are made with `replication_factor` replicas. Raises
    LocalError for what can't be meant and ConnectionLost within some seconds when no Kafka answers at `where`. Closing ends every thread and connection
    within some seconds, also while the broker hangs; pushes that await confirmation then are unknown, as after a cancelled `append`.
    """
    if not valid_stream_name(prefix) or len(prefix) > 40:
        raise LocalError(f"a prefix is 1 to 40 of A-Z a-z 0-9 . _ -, not {prefix!r:.100}")
    speech = Security.of(
        security,
        ca_file=ca_file,
        certificate=certificate,
        key=key,
        username=username,
        password=password,
        password_file=password_file,
        mechanism=mechanism,
    )
    async with open_bridge(where, speech) as bridge, trio.open_nursery() as nursery:
        store = KafkaStore(bridge, nursery, prefix=prefix, replication_factor=replication_factor)
        nursery.start_soon(store.renew)
        nursery.start_soon(store.watch)
        yield store
        nursery.cancel_scope.cancel()
