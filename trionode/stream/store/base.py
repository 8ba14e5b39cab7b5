"""The interface of stream stores, in which a stream service keeps its streams, with its values and errors.

A function of the form `open_…_store(where: str)` opens a store; it returns an async context manager. An entry point of
the group `trionode.stream_stores` names such a function. `trionode.testing.stream_store.check_stream_store` tests the
contract.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import cache
from typing import Protocol, TypeVar

import attrs

from trionode.errors import ConfigError, ServiceError
from trionode.net.endpoint import Exposure
from trionode.net.plugins import STREAM_STORES, load_plugin
from trionode.protocol.stream.messages import Extent, Record

#: Streams in one store; further ones are refused. Peers choose the names, and each stream costs a row, a topic or a
#: dictionary entry.
MAX_STREAMS = 10_000
#: Positions in one store; beyond it the one that was saved longest ago is forgotten, and its client starts at 0 again.
#: Classic programs use a new client id in every run (spec §11.2), so the table would grow without a bound.
MAX_POSITIONS = 100_000


class StoreError(ServiceError):
    """A store could not fulfil a request, and stored nothing. Another try may succeed."""


class FinalError(StoreError):
    """A store will never fulfil this request: do not try again."""


class UnknownStreamError(FinalError):
    """The stream was never created in this store, or was deleted."""


class RecordsGoneError(StoreError):
    """The records that a reader asked for were removed.

    Args:
      message: The text of the error.
      first: The index of the first record that remains, or of the next one if none does.
    """

    def __init__(self, message: str, first: int) -> None:
        super().__init__(message)
        self.first = first


@attrs.frozen
class Push:
    """One record to be stored. (stream, producer, request_id) identifies it for ever, so a store recognises a resend.

    Attributes:
      stream: The name of the stream.
      producer: The last hop of the push's return route.
      request_id: 0 to 2^64-1; rises from push to push of one producer in one stream.
      record: The bytes to store, at most MAX_RECORD.
    """

    stream: str
    producer: bytes
    request_id: int
    record: bytes = attrs.field(repr=False)


@attrs.frozen
class Stored:
    """A push was stored.

    Attributes:
      index: The record's index in its stream; for a resend, the index that it got the first time.
    """

    index: int


@attrs.frozen
class Position:
    """The next index that a client wants to read of a stream. It is only a hint, since a client may save any number.

    Attributes:
      client_id: The client.
      stream: The name of the stream.
      index: 0 to 2^64-1.
    """

    client_id: str
    stream: str
    index: int


class StreamStore(Protocol):
    """Streams of records. Indexes rise from record to record, and may skip numbers (spec §11.2).

    The service calls it with valid stream names and client ids only (`valid_stream_name`). Many tasks may call every
    method at once. Every method raises StoreError if the store can't do it.
    """

    async def create(self, stream: str, owner: str = "") -> str:
        """Create a stream, unless it exists.

        Args:
          stream: The name of the stream.
          owner: Its owner if it is created now; "" for none.

        Returns:
          The owner that it has: the one that was given when it was created.

        Raises:
          StoreError: The store can't create it.

        If cancelled, the stream may have been created.
        """
        ...

    async def append(self, pushes: Sequence[Push]) -> Sequence[Stored | StoreError]:
        """Store a batch in order; a durable store has it on the disk when this returns.

        Args:
          pushes: The batch. A push whose (stream, producer, request_id) is stored already stores nothing and gets its
              old index.

        Returns:
          One answer for each push, in their order. A refused push (unknown stream, longer than MAX_RECORD, store full)
          gets its error as a value and does not affect the others. Make it a FinalError if it is refused for ever: a
          hub repeats other pushes for clients that don't send again (spec §11.6, 5).

        Raises:
          StoreError: The whole batch was not stored.

        If cancelled, the batch may have been stored. The same pushes can be appended again.
        """
        ...

    async def read(self, stream: str, index: int, *, limit: int, max_bytes: int) -> Sequence[Record]:
        """Wait until the stream has a record with this index or a higher one, and return it and those that follow.

        Args:
          stream: The name of the stream.
          index: The lowest index to return.
          limit: The most records to return, at least 1.
          max_bytes: The most bytes to return, counting each message and RECORD_OVERHEAD. The first record is returned
              at any size.

        Returns:
          At least one record, by ascending index.

        Raises:
          UnknownStreamError: The stream does not exist.
          RecordsGoneError: The index is below the first remaining record.
          StoreError: The store failed.

        If cancelled, nothing has changed.
        """
        ...

    async def life(self, stream: str) -> bytes:
        """Return what distinguishes a stream from one of the same name before it was deleted, and after.

        Args:
          stream: The name of the stream.

        Returns:
          1 to MAX_LIFE bytes, such as a UUID that was made with the stream.

        Raises:
          UnknownStreamError: The stream does not exist.
          StoreError: The store failed.

        If cancelled, nothing has changed.
        """
        ...

    async def lost(self, stream: str, index: int, life: bytes) -> Extent | None:
        """Find out whether a reader has lost records, or its place.

        A hub asks it before each read, so it should cost nothing for a reader that has lost nothing.

        Args:
          stream: The name of the stream.
          index: The index that the reader wants next.
          life: The life in which it has read so far.

        Returns:
          None if the stream is in this life, and the index is within its extent. Else its extent: another life, a first
          record above the index, or an end below it.

        Raises:
          UnknownStreamError: The stream does not exist.
          StoreError: The store failed.

        If cancelled, nothing has changed.
        """
        ...

    async def last_request(self, stream: str, producer: bytes) -> int | None:
        """Look up the last push of a producer. A hub asks it if the producer may have used another hub meanwhile.

        Args:
          stream: The name of the stream.
          producer: The producer.

        Returns:
          The highest request id of the producer that is stored in the stream, or None if none is.

        Raises:
          UnknownStreamError: The stream does not exist.
          StoreError: The store failed.

        If cancelled, nothing has changed.
        """
        ...

    async def position(self, client_id: str, stream: str) -> int | None:
        """Look up a position.

        Args:
          client_id: The client.
          stream: The name of the stream.

        Returns:
          The position that was saved last, or None.

        Raises:
          StoreError: The store failed.

        If cancelled, nothing has changed.
        """
        ...

    async def save_positions(self, positions: Sequence[Position]) -> None:
        """Save a batch of positions.

        Args:
          positions: The later of two for the same client and stream counts. Those of unknown streams are ignored.

        Raises:
          StoreError: The store failed.

        If cancelled, the positions may have been saved.
        """
        ...


class OpenStore(Protocol):
    """The function that an entry point of the group `trionode.stream_stores` names.

    Reads must have ended before the store is closed.
    """

    def __call__(self, where: str, /) -> AbstractAsyncContextManager[StreamStore]:
        """Open a store, and create it if it does not exist.

        Args:
          where: The path or address of the store; "" if the kind of store has none.

        Returns:
          The context manager; entering it may raise ConfigError.
        """
        ...


@attrs.frozen
class StoreInfo:
    """Properties of a kind of store, known without opening it. The defaults are safe.

    Attributes:
      check_address: Raises LocalError if the text behind `name:` is not a valid address of the store.
      exposure: Returns who observes the bytes between a program and the store, if the store is opened with some
          options.
    """

    check_address: Callable[[str], object] = lambda _: None
    exposure: Callable[[Mapping[str, object]], Exposure] = lambda _: Exposure.NETWORK


#: For a store in the memory or in a file of this machine.
LOCAL_STORE = StoreInfo(exposure=lambda _: Exposure.NONE)

F = TypeVar("F", bound=Callable[..., object])


def with_store_info(info: StoreInfo) -> Callable[[F], F]:
    """Return a decorator for the function that an entry point of the group `trionode.stream_stores` names.

    Args:
      info: The properties of the store.
    """

    def add(open_store: F) -> F:
        open_store.store_info = info  # type: ignore[attr-defined]  # a function has no declared attributes of its own
        return open_store

    return add


@cache
def store_info(name: str) -> StoreInfo:
    """Return the properties of the store that is installed under a name, or safe defaults.

    Args:
      name: What addresses of the store begin with.
    """
    try:
        info = getattr(load_plugin(STREAM_STORES, name), "store_info", None)
    except ConfigError:  # a missing plugin is reported where it is needed
        return StoreInfo()
    return info if isinstance(info, StoreInfo) else StoreInfo()


def load_store(spec: str, **options: object) -> AbstractAsyncContextManager[StreamStore]:
    """Return the store that a text names, for `async with`.

    Args:
      spec: NAME:WHERE, such as `memory`, `sqlite:PATH` or `kafka:HOST:PORT`. NAME is an entry point of the group
          `trionode.stream_stores`.
      options: The store's own options, such as Kafka's `replication_factor`.

    Returns:
      The async context manager that opens the store, and closes it at the end of its block.

    Raises:
      ConfigError: No such store is installed, a package that it needs is missing, or its import failed. Opening raises
          it too, if the address or an option is wrong.
    """
    name, _, where = spec.partition(":")
    store: AbstractAsyncContextManager[StreamStore] = load_plugin(STREAM_STORES, name)(where, **options)
    return store


def limit_records(records: Iterable[Record], *, limit: int, max_bytes: int) -> list[Record]:
    """Return the first records of some, as many as one answer may have.

    Args:
      records: Is not read further than the first record that is left out.
      limit: The most records to return.
      max_bytes: The most bytes to return, counting each message and RECORD_OVERHEAD. The first record is returned at
          any size.

    Returns:
      At least one record, unless there is none.
    """
    limited: list[Record] = []
    for record in records:
        max_bytes -= record.size
        if limited and (max_bytes < 0 or len(limited) >= limit):
            break
        limited.append(record)
    return limited
