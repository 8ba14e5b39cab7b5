"""Streams without I/O: the messages between client and hub, and the producer's and the consumer's machine (spec §11).

Both machines recover in one way only: whatever went unanswered, begin again at create. `next_deadline()` says when a machine wants
its `tick`. Creates go to the stream service, Gets and Saves to the index service, pushes and pulls to `worker`.
"""

from trionode.protocol.stream.consumer import (
    MAX_BATCHES,
    POLL_SECONDS,
    PULL_LIMIT,
    SAVE_SECONDS,
    Consumer,
)
from trionode.protocol.stream.messages import (
    ANSWER_SECONDS,
    LONG_POLL_SECONDS,
    MAX_ANSWER,
    MAX_ANSWER_SECONDS,
    MAX_RECORD,
    RECORD_OVERHEAD,
    CreateRequest,
    CreateResponse,
    ErrorResponse,
    IndexGet,
    IndexResponse,
    IndexSave,
    PullRequest,
    PullResponse,
    PushRequest,
    PushResponse,
    Record,
    Request,
    Response,
    decode_request,
    decode_response,
    encode,
)
from trionode.protocol.stream.names import (
    born_at,
    is_capability,
    unique,
    uuid7_hex,
    valid_client_id,
    valid_stream_name,
)
from trionode.protocol.stream.producer import (
    MAX_PUSH_BYTES,
    MAX_PUSHES,
    Producer,
)

__all__ = [
    "ANSWER_SECONDS",
    "LONG_POLL_SECONDS",
    "MAX_ANSWER",
    "MAX_ANSWER_SECONDS",
    "MAX_BATCHES",
    "MAX_PUSHES",
    "MAX_PUSH_BYTES",
    "MAX_RECORD",
    "POLL_SECONDS",
    "PULL_LIMIT",
    "RECORD_OVERHEAD",
    "SAVE_SECONDS",
    "Consumer",
    "CreateRequest",
    "CreateResponse",
    "ErrorResponse",
    "IndexGet",
    "IndexResponse",
    "IndexSave",
    "Producer",
    "PullRequest",
    "PullResponse",
    "PushRequest",
    "PushResponse",
    "Record",
    "Request",
    "Response",
    "born_at",
    "decode_request",
    "decode_response",
    "encode",
    "is_capability",
    "unique",
    "uuid7_hex",
    "valid_client_id",
    "valid_stream_name",
]
