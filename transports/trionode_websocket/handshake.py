"""How a WebSocket is opened, on both sides: the request and its answer (RFC 6455 §4), and what is said to whoever is no peer of ours."""

import re
from collections.abc import Container
from http import HTTPStatus
from typing import Never

import trio
from wsproto.connection import Connection, ConnectionType
from wsproto.events import AcceptConnection, RejectConnection, RejectData, Request
from wsproto.handshake import H11Handshake
from wsproto.utilities import RemoteProtocolError

from trionode.plugins import ConnectionLost, sanitize
from trionode_websocket.stream import REFUSAL_GRACE, ByteStream

#: What both sides have to speak, in a header: the wire's current generation, one binary message a frame.
SUBPROTOCOL = "trionode.v1"
#: Bytes in the head of a request: a browser with a pocketful of cookies needs a quarter of it.
MAX_HEAD = 16_384
#: Bytes of a refusal that are read, to be shown.
MAX_BODY = 300

#: The first byte of a TLS record, where a request or an answer was expected: a handshake's, or an alert's.
TLS_RECORDS = (0x16, 0x15)

#: Where a head ends: as h11 sees it, which takes a line's end for one without its carriage return, too.
_BLANK_LINE = re.compile(rb"\n\r?\n")

#: What to do about an answer that has no words of its own.
HINTS = {
    400: "is it a trionode node?",
    401: "the server or proxy there demands a login",
    403: "the server or proxy there does not let this program in",
    404: "is the path right?",
    426: "the proxy there has to pass the headers Upgrade and Connection on",
    502: "the proxy there does not reach its node: is that one running?",
    503: "the proxy there does not reach its node: is that one running?",
    504: "the proxy there does not reach its node: is that one running?",
}


async def request(stream: ByteStream, host: str, path: str) -> Connection:
    """Ask for a WebSocket; the connection, with what came behind the answer. ConnectionLost says who is there instead."""
    handshake = H11Handshake(ConnectionType.CLIENT)
    stream.write(handshake.send(Request(host=host, target=path, subprotocols=[SUBPROTOCOL])))
    await stream.flush()
    start = b""
    refused: RejectConnection | None = None
    body, is_whole = b"", False
    while refused is None or not (is_whole or len(body) >= MAX_BODY):
        data = await stream.read()
        start = start or data
        if start[:1] and start[0] in TLS_RECORDS:
            msg = "it speaks TLS: dial it with wss: instead of ws:"
            raise ConnectionLost(msg)
        if not start:
            msg = "it closed the connection without an answer: does it speak TLS (wss:), or something else than WebSocket?"
            raise ConnectionLost(msg)
        try:
            handshake.receive_data(data)
        except (RemoteProtocolError, UnicodeError) as error:
            if refused is None:
                msg = f"it is no WebSocket server: {error}; it began with '{sanitize(start[:40].decode('latin-1'))}'"
                raise ConnectionLost(msg) from error
            is_whole = True
        for event in handshake.events():
            if isinstance(event, AcceptConnection):
                return _accepted(handshake, event)
            if isinstance(event, RejectConnection):
                refused, is_whole = event, not event.has_body
            elif isinstance(event, RejectData):
                body += event.data
                is_whole = event.body_finished
        if not data:
            break
    if refused is None:
        msg = "it closed the connection in the middle of its answer"
        raise ConnectionLost(msg)
    raise ConnectionLost(_refusal(refused, body))


def _accepted(handshake: H11Handshake, event: AcceptConnection) -> Connection:
    if event.subprotocol != SUBPROTOCOL:
        msg = f"it is a WebSocket server, but does not speak {SUBPROTOCOL}: is it a trionode node, and the path right?"
        raise ConnectionLost(msg)
    connection = handshake.connection
    assert connection is not None
    return connection


def _refusal(status: RejectConnection, body: bytes) -> str:
    headers = {name.lower(): value.decode("latin-1") for name, value in status.headers}
    code = status.status_code
    if 300 <= code < 400 and b"location" in headers:
        hint = f"it sends elsewhere, to {sanitize(headers[b'location'])}: dial that"
    elif headers.get(b"content-type", "").startswith("text/plain") and body.strip():
        hint = sanitize(body[:MAX_BODY].decode(errors="replace").strip())
    else:
        hint = HINTS.get(code, HINTS[400])
    return f"it answered the request for a WebSocket with HTTP {code}: {hint}"


async def answer(stream: ByteStream, path: str, origins: Container[str]) -> Connection:
    """Accept the peer's request for a WebSocket at `path`, or refuse it in HTTP; ConnectionLost says why."""
    head = b""
    while (blank := _BLANK_LINE.search(head)) is None:
        data = await stream.read()
        if not data:
            msg = "it ended the connection before it had asked for a WebSocket"
            raise ConnectionLost(msg)
        head += data
        if head[0] in TLS_RECORDS:
            reason = "it speaks TLS: it has to dial ws: instead of wss:, or this node to listen at wss:"
            await _refuse(stream, 400, "this listener does not speak TLS", reason)
        if len(head) > MAX_HEAD:
            await _refuse(
                stream, 431, "a request's head is too large", f"its request's head has more than {MAX_HEAD} bytes"
            )
    handshake = H11Handshake(ConnectionType.SERVER)
    try:
        handshake.receive_data(head)
        (asked,) = handshake.events()
    except (RemoteProtocolError, UnicodeError, ValueError) as error:
        reason = f"it did not ask for a WebSocket, but began with '{sanitize(head[:40].decode('latin-1'))}': {error}"
        await _refuse(
            stream, 426, f"this speaks WebSocket, with the subprotocol {SUBPROTOCOL}, and nothing else", reason
        )
    assert isinstance(asked, Request)
    if blank.end() < len(head):
        await _refuse(
            stream, 400, "wait for the answer to the request", "it did not wait for the answer to its request"
        )
    for name, origin in asked.extra_headers:
        if name == b"origin" and (told := origin.decode("latin-1")) not in origins:
            reason = f"it comes from a page of {sanitize(told)}, which is not among the allowed origins"
            await _refuse(stream, 403, "this origin is not allowed here", reason)
    if asked.target != path:
        reason = f"it asked for the path {sanitize(asked.target)}, where this node is at {path}"
        await _refuse(stream, 404, "no node is at this path", reason)
    if SUBPROTOCOL not in asked.subprotocols:
        reason = f"it offered the subprotocols {sanitize(', '.join(asked.subprotocols) or 'none')}, where {SUBPROTOCOL} is spoken"
        await _refuse(stream, 400, f"offer the WebSocket subprotocol {SUBPROTOCOL}", reason)
    stream.write(handshake.send(AcceptConnection(subprotocol=SUBPROTOCOL)))
    connection = handshake.connection
    assert connection is not None
    return connection


async def _refuse(stream: ByteStream, status: int, told: str, reason: str) -> Never:
    """Answer a request for the last time; the peer is told less than the log, but enough to see its mistake."""
    body = f"{told}\n".encode()
    upgrade = "Upgrade: websocket\r\nConnection: Upgrade, close" if status == 426 else "Connection: close"
    stream.write(
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n{upgrade}\r\n"
        f"Content-Type: text/plain; charset=utf-8\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        + body
    )
    with trio.move_on_after(REFUSAL_GRACE):
        await stream.drain()
    raise ConnectionLost(reason)
