"""The module for authors of plugins: interfaces, protocol versions, frames, sockets, TLS, and errors to raise."""

from trionode.errors import ConfigError, ConnectionLost, LocalError, MessageTooLargeError, RemoteError, WireError
from trionode.log import LogThrottle, log, sanitize
from trionode.net.backoff import Backoff, reconnect
from trionode.net.byte_stream import ByteStream, drain
from trionode.net.connections import close_on_error, connect_byte_stream, serve_byte_streams
from trionode.net.endpoint import AddressParts, Exposure, parse_host_port_path
from trionode.net.sockets import join_host_port, open_listeners, reason_of
from trionode.net.tls import TLSContexts, client_context, reason_of_tls, server_context
from trionode.net.transport import Link, Transport
from trionode.protocol.stream.messages import MAX_LIFE, MAX_RECORD, Extent, Record
from trionode.protocol.stream.names import uuid7_hex, uuid7_milliseconds, valid_stream_name
from trionode.protocol.wire.address import parse_host_port
from trionode.protocol.wire.classic_codec import CLASSIC
from trionode.protocol.wire.current_codec import CURRENT
from trionode.protocol.wire.detect import recognise
from trionode.protocol.wire.framing import FrameDecoder, join_frames
from trionode.protocol.wire.version import ProtocolVersion
from trionode.routing.memory_channel import MemoryChannel
from trionode.stream.store.base import (
    MAX_STREAMS,
    FinalError,
    Position,
    Push,
    RecordsGoneError,
    Stored,
    StoreError,
    StoreInfo,
    UnknownStreamError,
    limit_records,
    with_store_info,
)

__all__ = [
    "CLASSIC",
    "CURRENT",
    "MAX_LIFE",
    "MAX_RECORD",
    "MAX_STREAMS",
    "AddressParts",
    "Backoff",
    "ByteStream",
    "ConfigError",
    "ConnectionLost",
    "Exposure",
    "Extent",
    "FinalError",
    "FrameDecoder",
    "Link",
    "LocalError",
    "LogThrottle",
    "MemoryChannel",
    "MessageTooLargeError",
    "Position",
    "ProtocolVersion",
    "Push",
    "Record",
    "RecordsGoneError",
    "RemoteError",
    "StoreError",
    "StoreInfo",
    "Stored",
    "TLSContexts",
    "Transport",
    "UnknownStreamError",
    "WireError",
    "client_context",
    "close_on_error",
    "connect_byte_stream",
    "drain",
    "join_frames",
    "join_host_port",
    "limit_records",
    "log",
    "open_listeners",
    "parse_host_port",
    "parse_host_port_path",
    "reason_of",
    "reason_of_tls",
    "recognise",
    "reconnect",
    "sanitize",
    "serve_byte_streams",
    "server_context",
    "uuid7_hex",
    "uuid7_milliseconds",
    "valid_stream_name",
    "with_store_info",
]
