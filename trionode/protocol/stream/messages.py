"""What a client and a hub say to each other about streams, and the sizes and times that bound it (spec §11.1)."""

from collections.abc import Callable, Mapping
from typing import Final, TypeVar

import attrs

from trionode.errors import WireError
from trionode.protocol.wire import bare
from trionode.protocol.wire.bare import Reader

#: Longest record: with RECORD_OVERHEAD, addresses and headers it must fit into one pull answer (spec §11.6, rule 9).
MAX_RECORD = 64_000
#: Longest frame with a pull answer: what the hub of the classic generation sends and takes (spec §11.6, rule 9).
MAX_ANSWER = 65_000
#: What a record costs in a pull answer beside its message: index (10 bytes at most) and length (3 bytes at most).
RECORD_OVERHEAD = 13
#: How long a hub holds back the answer to a pull while there is nothing: peers were seen to take 12 s in good part (spec §11.6, rule 2).
LONG_POLL_SECONDS = 10.0
#: How long an answer may take before it counts as lost, beyond the long poll where there is one.
ANSWER_SECONDS = 5.0
#: To what the time for answers doubles while they stay out: soon enough to notice a hub that is back.
MAX_ANSWER_SECONDS = 30.0


@attrs.frozen
class Record:
    """One message of a stream and the index at which it lies."""

    index: int
    message: bytes = attrs.field(repr=False)

    @property
    def size(self) -> int:
        """The bytes that it takes in a pull answer, at most."""
        return len(self.message) + RECORD_OVERHEAD


@attrs.frozen
class CreateRequest:
    """Asks for the worker of a stream, which is made if need be; without a name the hub invents one."""

    name: str | None


@attrs.frozen
class CreateResponse:
    """The stream is there; its worker is who sent this."""

    name: str


@attrs.frozen
class PushRequest:
    """Asks to store a record; a resend carries the request id that the record had at first."""

    request_id: int
    record: bytes = attrs.field(repr=False)


@attrs.frozen
class PushResponse:
    """The record lies at `index`, or, unless `ok`, was not stored."""

    request_id: int
    ok: bool
    index: int


@attrs.frozen
class PullRequest:
    """Asks for at most `limit` records from `index` on."""

    request_id: int
    index: int
    limit: int


@attrs.frozen
class PullResponse:
    """The records that there are, ascending; none when the long poll ended."""

    request_id: int
    records: tuple[Record, ...]


@attrs.frozen
class IndexGet:
    """Asks for a client's saved position."""

    client_id: str
    stream: str


@attrs.frozen
class IndexSave:
    """Saves the next index that a client wants; never answered."""

    client_id: str
    stream: str
    index: int


@attrs.frozen
class IndexResponse:
    """A client's saved position, None if it has none."""

    client_id: str
    stream: str
    index: int | None


@attrs.frozen
class ErrorResponse:
    """The hub could not do it; `reason` is the hub's text and not to be trusted."""

    reason: str


Request = CreateRequest | PushRequest | PullRequest | IndexGet | IndexSave
Response = CreateResponse | PushResponse | PullResponse | IndexResponse | ErrorResponse

_CREATE, _PUSH, _PULL, _INDEX, _ERROR = "stream_create", "stream_push", "stream_pull", "stream_index", "error"


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
        case PullRequest(request_id, index, limit):
            return _PULL, uint(request_id) + uint(index) + uint(limit)
        case PullResponse(request_id, records):
            items = [uint(record.index) + data(record.message) for record in records]
            return _PULL, uint(request_id) + uint(len(items)) + b"".join(items)
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


def _create_request(body: Reader) -> CreateRequest:
    return CreateRequest(body.string() if body.optional() else None)


def _create_response(body: Reader) -> CreateResponse:
    return CreateResponse(body.string())


def _push_request(body: Reader) -> PushRequest:
    return PushRequest(body.uint(), body.data())


def _push_response(body: Reader) -> PushResponse:
    return PushResponse(body.uint(), body.variant(2) == 0, body.uint())


def _pull_request(body: Reader) -> PullRequest:
    return PullRequest(body.uint(), body.uint(), body.uint())


def _pull_response(body: Reader) -> PullResponse:
    request_id = body.uint()
    # The smallest record is an index and a length of a byte each.
    return PullResponse(request_id, tuple([Record(body.uint(), body.data()) for _ in range(body.count(2))]))


def _index_request(body: Reader) -> IndexGet | IndexSave:
    if body.variant(2) == 0:
        return IndexGet(body.string(), body.string())
    return IndexSave(body.string(), body.string(), body.uint())


def _index_response(body: Reader) -> IndexResponse:
    return IndexResponse(body.string(), body.string(), body.uint() if body.optional() else None)


def _error_response(body: Reader) -> ErrorResponse:
    return ErrorResponse(body.string())


_M = TypeVar("_M")

_REQUESTS: Final[Mapping[str, Callable[[Reader], Request]]] = {
    _CREATE: _create_request,
    _PUSH: _push_request,
    _PULL: _pull_request,
    _INDEX: _index_request,
}
_RESPONSES: Final[Mapping[str, Callable[[Reader], Response]]] = {
    _CREATE: _create_response,
    _PUSH: _push_response,
    _PULL: _pull_response,
    _INDEX: _index_response,
    _ERROR: _error_response,
}


def decode_request(payload: bytes) -> Request:
    """Decode what a client asks a hub; WireError for an unknown protocol and for whatever is not exactly one request."""
    return _decode(payload, _REQUESTS)


def decode_response(payload: bytes) -> Response:
    """Decode what a hub answers a client; WireError for an unknown protocol and for whatever is not exactly one response."""
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
