"""A stream store in Kafka: a topic for each stream, offsets as indexes, each push pulled exactly once.

A record's value is the message and nothing else. The headers `producer` and `request_id` name the push (spec §11.3). A
hub has no state that Kafka does not have, so any number of hubs may share one Kafka. Two rules together make a push
appear once:

- Before a hub stores a push, it knows what the push's producer stored last, by reading the topic: back to the
  producer's birth if it does not know the producer, and what others added since if its knowledge is older than
  KNOWN_SECONDS.
- Two cases remain: two hubs store the same push at the same time, or a hub is suspended between knowing and storing.
  Such a copy is within LOOK_BACK_SECONDS of the first one, because a record carries the time at which its hub knew, and
  the broker refuses records that are older than OUTAGE_SECONDS (`message.timestamp.before.max.ms`). Readers drop, in
  order, a record of a UUIDv7 producer whose id is not above the producer's last.
"""

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence

import trio

from trionode.plugins import (
    ConfigError,
    Extent,
    FinalError,
    Position,
    Push,
    Record,
    Stored,
    StoreError,
    StoreInfo,
    valid_stream_name,
    with_store_info,
)
from trionode_kafka.client import KafkaClient, Security, exposure_of, open_kafka_client, parse_addresses
from trionode_kafka.store.owners import Owners
from trionode_kafka.store.reader import Reader
from trionode_kafka.store.streams import OWNERS, Streams
from trionode_kafka.store.writer import Writer

#: Seconds between two checks whether the topics in use still exist: Kafka answers nothing to a reader of a deleted
#: topic.
CHECK_SECONDS = 1.0
#: Topics in one check.
CHECKED_AT_ONCE = 500
#: The largest offset that Kafka has.
MAX_OFFSET = (1 << 63) - 1


class KafkaStore:
    """The store that `open_kafka_store` opens. `StreamStore` documents its methods.

    While the broker is away, `append` and `read` wait, and the other methods raise StoreError after some seconds.
    `read` below the first index that retention has left raises RecordsGoneError, and `read` of a deleted stream raises
    UnknownStreamError, so that neither looks like an empty stream. Positions are committed offsets of the group
    `<prefix><client id>`. The broker forgets them when the client is away for `offsets.retention.minutes` (7 days).
    """

    def __init__(self, client: KafkaClient, nursery: trio.Nursery, *, prefix: str, replication_factor: int) -> None:
        self._client = client
        self._prefix = prefix
        self._streams = Streams(client, prefix=prefix, replication_factor=replication_factor)
        self._writer = Writer(client, nursery, self._streams)
        self._reader = Reader(client, self._streams)
        self._owners = Owners(client, self._writer.write, topic=prefix + OWNERS, replication_factor=replication_factor)
        self._unsaved: dict[str, dict[str, int]] = {}
        self._saving = trio.Lock()
        nursery.start_soon(self._writer.replace_producers)
        nursery.start_soon(self._check_streams)

    async def create(self, stream: str, owner: str = "") -> str:
        """Create the stream's topic, unless it exists. Returns its owner: the first one in the topic of owners."""
        if stream == OWNERS or not valid_stream_name(stream):
            raise FinalError(f"no stream can be named {stream!r:.100}")
        first = self._owners.get(stream)
        if first is None or self._streams.get(stream) is None:
            first = await self._owners.claim(stream, owner)
            await self._streams.create(stream)
        return first

    async def append(self, pushes: Sequence[Push]) -> Sequence[Stored | StoreError]:
        """Store a batch; it waits while the broker is away, and survives its restart."""
        return await self._writer.append(pushes)

    async def read(self, stream: str, index: int, *, limit: int, max_bytes: int) -> Sequence[Record]:
        """Wait for records from an index on, also while the broker is away."""
        return await self._reader.read(stream, index, limit=limit, max_bytes=max_bytes)

    async def life(self, stream: str) -> bytes:
        """Return the id of the stream's topic."""
        return (await self._streams.find(stream)).life

    async def lost(self, stream: str, index: int, life: bytes) -> Extent | None:
        """Compare the reader's place with the offsets of the topic, unless the reader is where this hub reads."""
        return await self._reader.lost(stream, index, life)

    async def last_request(self, stream: str, producer: bytes) -> int | None:
        """Look up the last push of a producer, of which any hub may have stored it."""
        return await self._writer.last_request(stream, producer)

    async def position(self, client_id: str, stream: str) -> int | None:
        """Return the offset that the client's group committed."""
        return await self._client.admin.committed_offset(self._prefix + client_id, self._prefix + stream)

    async def save_positions(self, positions: Sequence[Position]) -> None:
        """Commit offsets: those of all waiting callers at once, in one request for each client."""
        for position in positions:
            if position.stream != OWNERS:
                offsets = self._unsaved.setdefault(position.client_id, {})
                offsets[self._prefix + position.stream] = min(position.index, MAX_OFFSET)
        async with self._saving:
            unsaved, self._unsaved = self._unsaved, {}
            errors: list[StoreError] = []

            async def commit(client_id: str, offsets: Mapping[str, int]) -> None:
                try:
                    await self._client.admin.commit_offsets(self._prefix + client_id, offsets)
                except StoreError as error:
                    errors.append(error)

            async with trio.open_nursery() as nursery:
                for client_id, offsets in unsaved.items():
                    nursery.start_soon(commit, client_id, offsets)
        if errors:
            raise errors[0]

    async def _check_streams(self) -> None:
        """Close the streams whose topics are deleted, and stop following topics that nothing reads."""
        while True:
            await trio.sleep(CHECK_SECONDS / 2)
            self._reader.close_idle()
            used = [each for each in self._streams.all() if self._writer.is_used(each) or self._reader.is_used(each)]
            for start in range(0, len(used), CHECKED_AT_ONCE):
                with contextlib.suppress(StoreError):
                    await self._streams.check(used[start : start + CHECKED_AT_ONCE])
                await trio.sleep(CHECK_SECONDS)


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
    """Open a stream store in a Kafka, for `async with`; the entry point `kafka`.

    Args:
      where: HOST:PORT of a broker, or several with commas between.
      prefix: Prefix of all topics and consumer groups of this store. Nothing else in the Kafka is touched.
      replication_factor: Replicas of each topic that is created.
      security: "plaintext", "ssl", "sasl_plaintext" or "sasl_ssl".
      ca_file: PEM file with the CA that signed the brokers' certificates; the system's CAs by default. For ssl.
      certificate: PEM file with the client's certificate, if the brokers demand one. For ssl.
      key: PEM file with the key of `certificate`, unless that file contains it.
      username: The user who authenticates. For sasl.
      password: The user's password.
      password_file: A file whose first line is the password.
      mechanism: "SCRAM-SHA-512", "SCRAM-SHA-256" or "PLAIN".

    Returns:
      The async context manager that opens the store.

    Raises:
      ConfigError: An option has a wrong value, or options do not fit together.
      ConnectionLost: No Kafka answers at `where`, or it refuses this client. It is raised within some seconds and says
          why.

    The end of the block closes every thread and connection within some seconds, also if it is cancelled or the broker
    hangs. It is then unknown whether unconfirmed pushes are stored, as after a cancelled `append`.
    """
    if not valid_stream_name(prefix) or len(prefix) > 40:
        raise ConfigError(f"a prefix is 1 to 40 of A-Z a-z 0-9 . _ -, not {prefix!r:.100}")
    options = Security.of(security, ca_file, certificate, key, username, password, password_file, mechanism)
    async with open_kafka_client(where, options) as client, trio.open_nursery() as nursery:
        yield KafkaStore(client, nursery, prefix=prefix, replication_factor=replication_factor)
        nursery.cancel_scope.cancel()
