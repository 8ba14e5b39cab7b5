"""The messages of the stream protocol between a client and a hub, and their limits (spec §11.1)."""

from collections.abc import Callable, Mapping
from typing import Final, TypeVar

import attrs

from trionode.errors import WireError
from trionode.protocol.wire import bare
from trionode.protocol.wire.bare import Reader

#: Bytes in the longest record. With RECORD_OVERHEAD, addresses and headers it must fit into one pull answer
#: (spec §11.6, rule 9).
MAX_RECORD = 64_000
#: Bytes in the longest frame with a pull answer. The classic hub sends and accepts no larger ones (spec §11.6, rule 9).
MAX_ANSWER = 65_000
#: Bytes that a record adds to its message in a pull answer: the index (at most 10) and the length (at most 3).
RECORD_OVERHEAD = 13
#: Bytes in the longest life of a stream: a UUID has 16.
MAX_LIFE = 32
#: The life of a stream that does not exist.
NO_LIFE = b""
#: Seconds of a long poll: so long a hub delays the answer to a pull that has no records. Known peers accept 12 s
#: (spec §11.6, rule 2).
LONG_POLL_SECONDS = 10.0
#: Seconds after which an answer counts as lost; for a pull, after the end of the long poll.
ANSWER_SECONDS = 5.0
#: Seconds up to which that time doubles while answers are missing. It is short enough to notice a hub that is back.
MAX_ANSWER_SECONDS = 30.0


@attrs.frozen
class Record:
    """One message of a stream.

    Args:
      index: Its position in the stream.
      message: The encoded transport message.
    """

    index: int
    message: bytes = attrs.field(repr=False)

    @property
    def size(self) -> int:
        """Bytes in a pull answer, at most."""
        return len(self.message) + RECORD_OVERHEAD


@attrs.frozen
class Extent:
    """What a hub holds of a stream.

    Attributes:
      life: Changes when the stream is deleted and created again; NO_LIFE means that it does not exist.
      first: The index of the first record, or of the next one if none is left.
      end: The index of the next record.
    """

    life: bytes
    first: int
    end: int

    def contains(self, life: bytes, index: int) -> bool:
        """Whether a reader has lost nothing.

        Args:
          life: The life in which it has read so far.
          index: The index that it wants next.
        """
        return life == self.life and self.first <= index <= self.end


@attrs.frozen
class CreateRequest:
    """Asks for the worker of a stream.

    The stream is created if it does not exist; without a name the hub chooses one.
    """

    name: str | None


@attrs.frozen
class CreateResponse:
    """The stream exists. Its worker is the sender of this message."""

    name: str


@attrs.frozen
class PushRequest:
    """Asks to store a record. A resend has the request id of the first attempt."""

    request_id: int
    record: bytes = attrs.field(repr=False)


@attrs.frozen
class PushResponse:
    """The record was stored at `index`; unless `ok`, it was not stored."""

    request_id: int
    ok: bool
    index: int


@attrs.frozen
class PullRequest:
    """Asks for at most `limit` records, starting at `index`.

    `life` is the life of the stream that the reader reads. Only hubs that have sent StreamLife understand it: it stands
    behind what other hubs expect.
    """

    request_id: int
    index: int
    limit: int
    life: bytes | None = None


@attrs.frozen
class PullResponse:
    """The records, in ascending order; none if the long poll ended.

    The extent is there only if the request had a life, and the hub does not hold what the reader wants.
    """

    request_id: int
    records: tuple[Record, ...]
    extent: Extent | None = None


@attrs.frozen
class StreamLife:
    """The life of a stream, before the answer to a create; by it a hub also says that it takes lives in pulls.

    It goes to consumers over links of the current version. Those that don't know it drop it (spec §11.6, 1).
    """

    stream: str
    life: bytes


@attrs.frozen
class IndexGet:
    """Asks for the saved position of a client."""

    client_id: str
    stream: str


@attrs.frozen
class IndexSave:
    """Saves the next index that a client wants. There is no answer."""

    client_id: str
    stream: str
    index: int


@attrs.frozen
class IndexResponse:
    """The saved position of a client; None if it has none."""

    client_id: str
    stream: str
    index: int | None


@attrs.frozen
class ErrorResponse:
    """The hub could not do it. `reason` is untrusted text of the hub."""

    reason: str


Request = CreateRequest | PushRequest | PullRequest | IndexGet | IndexSave
Response = CreateResponse | PushResponse | PullResponse | StreamLife | IndexResponse | ErrorResponse

_CREATE, _PUSH, _PULL, _INDEX, _ERROR = "stream_create", "stream_push", "stream_pull", "stream_index", "error"
_LIFE = "stream_life"


def encode(message: Request | Response) -> bytes:
    """Encode the payload of a stream message: `string protocol || data body` (spec §11.1)."""
    protocol, body = _body(message)
    return bare.string(protocol) + bare.data(body)


def _body(message: Request | Response) -> tuple[str, bytes]:
    uint, string, data = bare.uint, bare.string, bare.data
    match message:
        case CreateRequest(name):
            return _CREATE, bare.optional(None if name is None else string(name))
        case CreateResponse(name):
            return _CREATE, string(name)
        case PushRequest(request_id, record):
            return _PUSH, uint(request_id) + data(record)
        case PushResponse(request_id, ok, index):
            return _PUSH, uint(request_id) + uint(0 if ok else 1) + uint(index)
        case PullRequest(request_id, index, limit, life):
            return _PULL, uint(request_id) + uint(index) + uint(limit) + (b"" if life is None else data(life))
        case PullResponse(request_id, records, extent):
            items = [uint(record.index) + data(record.message) for record in records]
            if extent is not None:
                items.append(data(extent.life) + uint(extent.first) + uint(extent.end))
            return _PULL, uint(request_id) + uint(len(records)) + b"".join(items)
        case StreamLife(stream, life):
            return _LIFE, string(stream) + data(life)
        case IndexGet(client_id, stream):
            return _INDEX, uint(0) + string(client_id) + string(stream)
        case IndexSave(client_id, stream, index):
            return _INDEX, uint(1) + string(client_id) + string(stream) + uint(index)
        case IndexResponse(client_id, stream, position):
            return _INDEX, string(client_id) + string(stream) + bare.optional(
                None if position is None else uint(position)
            )
        case ErrorResponse(reason):
            return _ERROR, string(reason)


_M = TypeVar("_M")


def _life(body: Reader) -> bytes:
    life = body.data()
    if len(life) > MAX_LIFE:
        raise WireError(f"a stream's life of {len(life)} bytes")
    return life


def _extent(body: Reader) -> Extent | None:
    if not body.left:
        return None
    extent = Extent(_life(body), body.uint(), body.uint())
    if extent.first > extent.end:
        raise WireError("a stream that ends before its first record")
    return extent


_REQUESTS: Final[Mapping[str, Callable[[Reader], Request]]] = {
    _CREATE: lambda body: CreateRequest(body.string() if body.optional() else None),
    _PUSH: lambda body: PushRequest(body.uint(), body.data()),
    _PULL: lambda body: PullRequest(body.uint(), body.uint(), body.uint(), _life(body) if body.left else None),
    _INDEX: lambda body: (
        IndexGet(body.string(), body.string())
        if body.variant(2) == 0
        else IndexSave(body.string(), body.string(), body.uint())
    ),
}
_RESPONSES: Final[Mapping[str, Callable[[Reader], Response]]] = {
    _CREATE: lambda body: CreateResponse(body.string()),
    _PUSH: lambda body: PushResponse(body.uint(), body.variant(2) == 0, body.uint()),
    # The smallest record has an index and a length of one byte each.
    _PULL: lambda body: PullResponse(
        body.uint(), tuple([Record(body.uint(), body.data()) for _ in range(body.count(2))]), _extent(body)
    ),
    _LIFE: lambda body: StreamLife(body.string(), _life(body)),
    _INDEX: lambda body: IndexResponse(body.string(), body.string(), body.uint() if body.optional() else None),
    _ERROR: lambda body: ErrorResponse(body.string()),
}


def decode_request(payload: bytes) -> Request:
    """Decode the request of a client; WireError unless the payload is exactly one request."""
    return _decode(payload, _REQUESTS)


def decode_response(payload: bytes) -> Response:
    """Decode the response of a hub; WireError unless the payload is exactly one response."""
    return _decode(payload, _RESPONSES)


def _decode(payload: bytes, kinds: Mapping[str, Callable[[Reader], _M]]) -> _M:
    outer = Reader(payload)
    protocol, body = outer.string(), Reader(outer.data())
    outer.end()
    kind = kinds.get(protocol)
    if kind is None:
        raise WireError("a stream message of an unknown protocol")
    message = kind(body)
    body.end()
    return message
