"""How a WebSocket is opened, on both sides (RFC 6455 §4), and the errors that other peers get."""

import re
from collections.abc import Container
from http import HTTPStatus
from typing import Protocol

import attrs
import trio
from trio_websocket import WebSocketConnection, wrap_client_stream, wrap_server_stream

from trionode.plugins import ByteStream, ConnectionLost, drain, sanitize
from trionode_websocket.stream import CountingStream, NotOpenedError

#: The subprotocol for bursts of frames, each behind its length, in one binary message. An empty frame ends a direction.
BURSTS = "trionode.v2"
#: The subprotocol for one frame in each binary message, for WebSocket programs that are not trionode.
SUBPROTOCOL = "trionode.v1"
#: Bytes in the head of a request or answer. A browser with many cookies needs a quarter of it.
MAX_HEAD = 16_384
#: Bytes of a refusal's body that are read and shown.
MAX_BODY = 300
#: Seconds in which a refused client can read the answer and close.
REFUSAL_GRACE = 1.0

#: The first byte of a TLS record: a handshake or an alert.
TLS_RECORDS = (0x16, 0x15)

#: The end of an HTTP head. h11 accepts line ends without carriage returns too.
_BLANK_LINE = re.compile(rb"\n\r?\n")
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})[ \r\n]")
_HEADER = re.compile(rb"^([!-9;-~]+):[ \t]*(.*?)[ \t]*\r?$", re.MULTILINE)

#: What to do about an HTTP answer without a text of its own.
HINTS = {
    400: "is it a trionode node?",
    401: "the server or proxy there demands a login",
    403: "the server or proxy there does not admit this program",
    404: "is the path right?",
    426: "the proxy there has to pass on the headers Upgrade and Connection",
    **dict.fromkeys((502, 503, 504), "the proxy there does not reach its node: is the node running?"),
}


class Opening(Protocol):
    """One side of the opening handshake."""

    async def open(self, nursery: trio.Nursery, stream: CountingStream, max_message: int) -> WebSocketConnection:
        """Open the WebSocket; its reader task runs in `nursery`.

        ConnectionLost, NotOpenedError, or an error of the reader task in `nursery`.
        """
        ...

    async def failed(self, stream: CountingStream, error: Exception) -> ConnectionLost:
        """Tell the peer why `open` failed, and return the reason for this side."""
        ...


@attrs.frozen
class Dialing(Opening):
    """The client's side: `host` with its port for the header Host, and the path."""

    host: str
    path: str

    async def open(self, nursery: trio.Nursery, stream: CountingStream, max_message: int) -> WebSocketConnection:
        """Ask for a WebSocket."""
        opening = wrap_client_stream(
            nursery,
            stream,  # type: ignore[arg-type]  # its documentation: any trio.abc.Stream
            self.host,
            self.path,
            subprotocols=[BURSTS, SUBPROTOCOL],
            message_queue_size=0,
            max_message_size=max_message,
        )
        connection = await stream.opened(opening, _is_refusal)
        if connection.subprotocol is None:
            raise ConnectionLost(
                f"it is a WebSocket server, but does not speak {SUBPROTOCOL}: "
                "is it a trionode node, and the path right?"
            )
        stream.start()
        return connection

    async def failed(self, stream: CountingStream, error: Exception) -> ConnectionLost:
        """Return a description of the server that answered, which is not a WebSocket server."""
        await trio.lowlevel.checkpoint()
        start = stream.opening
        if isinstance(error, ConnectionLost):
            return error
        if not start:
            text = (
                "it closed the connection without an answer: does it speak TLS (wss:), "
                "or something else than WebSocket?"
            )
            return ConnectionLost(str(stream.failure or text))
        if start[0] in TLS_RECORDS:
            return ConnectionLost("it speaks TLS: dial it with wss: instead of ws:")
        status = _STATUS.match(start)
        if status and status[1] != b"101" and (blank := _BLANK_LINE.search(start)):
            return ConnectionLost(_refusal(int(status[1]), start[: blank.end()], start[blank.end() :]))
        began = f"it began with '{sanitize(start[:40].decode('latin-1'))}'"
        if isinstance(error, NotOpenedError):
            return ConnectionLost(f"it is not a WebSocket server: {began}")
        while error.__context__ is not None and isinstance(error.__context__, Exception):
            error = error.__context__  # trio-websocket's own reaction fails too: the first error says more
        return ConnectionLost(f"it is not a WebSocket server: {error}; {began}")


def _is_refusal(start: bytes) -> bool:
    """Whether an answer is no WebSocket, and all of it has come that is shown."""
    blank = _BLANK_LINE.search(start)
    if blank is None:
        return len(start) > MAX_HEAD
    status = _STATUS.match(start)
    return (status is None or status[1] != b"101") and len(start) - blank.end() >= MAX_BODY


def _refusal(code: int, head: bytes, body: bytes) -> str:
    headers = {name.lower(): value.decode("latin-1") for name, value in _HEADER.findall(head)}
    if 300 <= code < 400 and b"location" in headers:
        hint = f"it redirects to {sanitize(headers[b'location'])}: dial that"
    elif headers.get(b"content-type", "").startswith("text/plain") and body.strip():
        hint = sanitize(body[:MAX_BODY].decode(errors="replace").strip())
    else:
        hint = HINTS.get(code, HINTS[400])
    return f"it answered the request for a WebSocket with HTTP {code}: {hint}"


class _RefusedError(Exception):
    """The listener does not open a WebSocket: status, text for the peer, reason for the log."""

    def __init__(self, status: int, text: str, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.text = text


@attrs.frozen
class Accepting(Opening):
    """The listener's side: the path that it answers at, and the origins whose pages it admits."""

    path: str
    origins: Container[str]

    async def open(self, nursery: trio.Nursery, stream: CountingStream, max_message: int) -> WebSocketConnection:
        """Accept the client's request, or raise why not."""
        head = await _request_head(stream.below)
        blank = _BLANK_LINE.search(head)
        assert blank is not None
        stream.feed(head[: blank.end()])
        opening = wrap_server_stream(nursery, stream, 0, max_message)
        request = await stream.opened(opening, lambda _: False)
        if blank.end() < len(head):
            reason = "did not wait for the answer to its request"
            raise _RefusedError(400, "wait for the answer to the request", reason)
        for name, value in request.headers:
            if name == b"origin" and (origin := value.decode("latin-1")) not in self.origins:
                reason = f"is a page of {sanitize(origin)}, which is not in the option origins"
                raise _RefusedError(403, "this origin is not allowed here", reason)
        if request.path != self.path:
            reason = f"asked for the path {sanitize(request.path)}, and this node is at {self.path}"
            raise _RefusedError(404, "no node is at this path", reason)
        offered = request.proposed_subprotocols
        subprotocol = next((each for each in (BURSTS, SUBPROTOCOL) if each in offered), None)
        if subprotocol is None:
            names = sanitize(", ".join(offered) or "none")
            reason = f"offered the subprotocols {names}, and this node speaks {BURSTS} and {SUBPROTOCOL}"
            raise _RefusedError(400, f"offer the WebSocket subprotocol {SUBPROTOCOL}", reason)
        stream.start()
        return await request.accept(subprotocol=subprotocol)

    async def failed(self, stream: CountingStream, error: Exception) -> ConnectionLost:
        """Answer a request for the last time. The peer gets less detail than the log, but enough to see its mistake."""
        if isinstance(error, ConnectionLost):
            return error
        if not isinstance(error, _RefusedError):
            said = sanitize(stream.opening[:40].decode("latin-1"))
            text = f"this speaks WebSocket, with the subprotocol {SUBPROTOCOL}, and nothing else"
            error = _RefusedError(426, text, f"did not ask for a WebSocket, but began with '{said}'")
        body = f"{error.text}\n".encode()
        upgrade = "Upgrade: websocket\r\nConnection: Upgrade, close" if error.status == 426 else "Connection: close"
        head = (
            f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\n{upgrade}\r\n"
            f"Content-Type: text/plain; charset=utf-8\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        with trio.move_on_after(REFUSAL_GRACE):
            stream.below.write(head.encode() + body)
            await drain(stream.below)
        return ConnectionLost(f"{stream.below.peer} {error}")


async def _request_head(stream: ByteStream) -> bytes:
    """Return the head of the client's request, and what came with it."""
    head = b""
    while _BLANK_LINE.search(head) is None:
        data = await stream.receive()
        if not data:
            raise ConnectionLost(f"{stream.peer} ended the connection before it asked for a WebSocket")
        head += data
        if head[0] in TLS_RECORDS:
            reason = "speaks TLS: it has to dial ws: instead of wss:, or this node to listen at wss:"
            raise _RefusedError(400, "this listener does not speak TLS", reason)
        if len(head) > MAX_HEAD:
            raise _RefusedError(
                431, "the request's head is too large", f"sent a request with a head of more than {MAX_HEAD} bytes"
            )
    return head
