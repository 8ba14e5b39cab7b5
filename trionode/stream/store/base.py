"""What a stream service keeps its streams in: the interface that every store fulfils, its values and its errors.

A store is opened by an async context manager of one shape, `open_…_store(where: str)`, which is also what an entry point of the
group `trionode.stream_stores` names. `trionode.testing.stream_store.check_stream_store` is the contract as a test.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import cache
from typing import Protocol, TypeVar

import attrs

from trionode.errors import ConfigError, ServiceError
from trionode.net.endpoint import Exposure
from trionode.net.plugins import STREAM_STORES, load_plugin
from trionode.protocol.stream import Record

#: Streams that a store makes before it refuses: every name is a peer's choice, and each costs a row, a topic or a dictionary entry.
MAX_STREAMS = 10_000
#: Positions that a store remembers before it forgets those saved longest ago: programs of the classic generation take a new client id
#: in every run (spec §11.2), so the table would otherwise only grow; whose position is forgotten starts at 0 again.
MAX_POSITIONS = 100_000


class StoreError(ServiceError):
    """A store could not do what it was asked; nothing was stored."""


class FinalError(StoreError):
    """A store will never do what it was asked, so that to try again is no use; any other StoreError may pass."""


class UnknownStreamError(FinalError):
    """The stream was never created in this store, or is gone from it."""


@attrs.frozen
class Push:
    """One record on its way into a stream; (stream, producer, request_id) names it for ever, so that a resend is recognised."""

    stream: str
    #: The last hop of the push's return route.
    producer: bytes
    #: 0 … 2^64-1; rises from push to push of one producer in one stream.
    request_id: int
    record: bytes = attrs.field(repr=False)


@attrs.frozen
class Stored:
    """Where a record lies; for a resend, where it has lain since the first time."""

    index: int


@attrs.frozen
class Position:
    """The next index that a client wants to read of a stream, 0 … 2^64-1; only a hint, since anyone may save anything."""

    client_id: str
    stream: str
    index: int


class StreamStore(Protocol):
    """Streams of records, each with an index that rises, but may skip, from record to record (spec §11.2).

    Stream names and client ids are valid already (`trionode.protocol.stream.valid_stream_name`). Every method may be called from many
    tasks at once, and raises StoreError when the store can't do it. Cancelling `append` or `save_positions` leaves unknown whether it
    happened: a resend under the same request id is then the way to find out. Cancelling anything else changes nothing.
    """

    async def create(self, stream: str, owner: str = "") -> str:
        """Make the stream unless it exists; the owner that it has (the first who created it), "" for nobody in particular."""
        ...

    async def append(self, pushes: Sequence[Push]) -> Sequence[Stored | StoreError]:
        """Store a batch in its order, durably where the store is durable; one answer a push, in the order of the pushes.

        A push whose (stream, producer, request_id) is stored already stores nothing and gets its old index. A refused push (unknown
        stream, longer than MAX_RECORD, store full) gets its error as a value and harms no other: a FinalError if that is for ever, since a
        hub tries the others again for clients that don't (spec §11.6, 5).
        """
        ...

    async def read(self, stream: str, index: int, *, limit: int, max_bytes: int) -> Sequence[Record]:
        """Wait until a record with this index or a higher one exists; then what is there, ascending, none below `index`.

        At most `limit` (at least 1) records, whose messages and RECORD_OVERHEAD each come to at most `max_bytes`, yet always at least
        one record. Raises UnknownStreamError.
        """
        ...

    async def position(self, client_id: str, stream: str) -> int | None:
        """Look up the position last saved by this client for this stream; None if there is none."""
        ...

    async def save_positions(self, positions: Sequence[Position]) -> None:
        """Keep a batch of positions, the later of two for the same client and stream; unknown streams are passed over."""
        ...


class OpenStore(Protocol):
    """What an entry point of the group `trionode.stream_stores` names; closing wakes nobody: readers end before their store."""

    def __call__(self, where: str, /) -> AbstractAsyncContextManager[StreamStore]:
        """Open the store that lies at `where` (a path, a bootstrap address, "" for none), making it if there is none."""
        ...


@attrs.frozen
class StoreInfo:
    """What a kind of store tells about itself without being opened. The defaults are safe for a store that says nothing.

    Attributes:
      check_address: Raises LocalError if the text behind `name:` is not a valid address of the store.
      exposure: Returns who observes the bytes between a program and the store, if the store is opened with some options.
    """

    check_address: Callable[[str], object] = lambda _: None
    exposure: Callable[[Mapping[str, object]], Exposure] = lambda _: Exposure.NETWORK


#: For a store in the memory or in a file of this machine.
LOCAL_STORE = StoreInfo(exposure=lambda _: Exposure.NONE)

F = TypeVar("F", bound=Callable[..., object])


def with_store_info(info: StoreInfo) -> Callable[[F], F]:
    """Return a decorator for the function that an entry point of the group `trionode.stream_stores` names.

    Args:
      info: What the store tells about itself.
    """

    def add(open_store: F) -> F:
        open_store.store_info = info  # type: ignore[attr-defined]  # a function has no declared attributes of its own
        return open_store

    return add


@cache
def store_info(name: str) -> StoreInfo:
    """Return what the store that is installed under a name tells about itself, or safe defaults.

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
      spec: NAME:WHERE, such as `memory`, `sqlite:PATH` or `kafka:HOST:PORT`. NAME is an entry point of the group `trionode.stream_stores`.
      options: The store's own options, such as Kafka's `replication_factor`.

    Returns:
      The async context manager that opens the store, and closes it at the end of its block.

    Raises:
      ConfigError: No such store is installed, a package that it needs is missing, or its import failed. Opening raises it too, if
          the place or an option is wrong.
    """
    name, _, where = spec.partition(":")
    store: AbstractAsyncContextManager[StreamStore] = load_plugin(STREAM_STORES, name)(where, **options)
    return store


def fitting(records: Iterable[Record], *, limit: int, max_bytes: int) -> list[Record]:
    """Choose the first records that go into one answer, by number and by size; the first of all goes in at any size."""
    chosen: list[Record] = []
    room = max_bytes
    for record in records:
        room -= record.size
        if chosen and (room < 0 or len(chosen) >= limit):
            break
        chosen.append(record)
    return chosen
