"""Other WebSocket implementations: `websockets` and `trio-websocket` in both roles, and nginx in between."""

import os
import re
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
from trio_websocket import WebSocketRequest, open_websocket_url, serve_websocket
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect
from websockets.sync.server import ServerConnection, serve
from websockets.typing import Origin, Subprotocol

from tests.support.certificates import Authority
from trionode import Node, Route, open_node
from trionode.errors import ConnectionLost, WireError
from trionode.net.transport import Link
from trionode.protocol.rules.access import from_anywhere
from trionode.protocol.wire.address import local
from trionode.protocol.wire.current_codec import CURRENT
from trionode.workers import echoer
from trionode_websocket import SUBPROTOCOL, SecureWebSocket, WebSocket, link

ASK = CURRENT.encode((local("echoer"),), (local("app"),), b"payload")
ANSWER = CURRENT.encode((local("app"),), (local("echoer"),), b"payload")

SPOKEN = Subprotocol(SUBPROTOCOL)

#: Seconds that anything here may take.
LIMIT = 10


@asynccontextmanager
async def node_at(transport: WebSocket, endpoint: str = "127.0.0.1:0") -> AsyncIterator[tuple[Node, str]]:
    """A node that echoes, and where it listens, as a URL."""
    with trio.fail_after(LIMIT):
        async with open_node(transport) as node:
            at = await node.listen(f"{transport.name}:{endpoint}")
            await node.start_worker("echoer", echoer, allow=from_anywhere)
            yield node, f"{transport.name}://{at.value.decode()}"


@contextmanager
def serving(
    handle: Callable[[ServerConnection], None], spoken: Sequence[Subprotocol] | None = (SPOKEN,)
) -> Iterator[str]:
    """A server of the library `websockets`, in a thread, and its HOST:PORT."""
    with serve(handle, "127.0.0.1", 0, subprotocols=spoken) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            host, port = server.socket.getsockname()
            yield f"{host}:{port}"
        finally:
            server.shutdown()
            thread.join()


@asynccontextmanager
async def opened(transport: WebSocket | None = None) -> AsyncIterator[tuple[WebSocket, trio.Nursery]]:
    """A transport as a node has it, and the nursery of its connections."""
    async with trio.open_nursery() as nursery:
        yield (transport or WebSocket()).open(nursery), nursery
        nursery.cancel_scope.cancel()


async def call(use: Callable[[], None]) -> None:
    """Run blocking code of a client in a thread."""
    await trio.to_thread.run_sync(use)


# `websockets` dials


async def test_a_websockets_client_exchanges_frames_pings_and_closes() -> None:
    def client() -> None:
        with connect(url, subprotocols=[SPOKEN]) as websocket:
            assert websocket.subprotocol == SUBPROTOCOL
            # It offers compression by default, and the node does not accept it.
            assert websocket.request is not None
            assert "permessage-deflate" in websocket.request.headers["Sec-WebSocket-Extensions"]
            assert websocket.response is not None
            assert "Sec-WebSocket-Extensions" not in websocket.response.headers
            websocket.send(ASK)
            assert websocket.recv() == ANSWER
            assert websocket.ping().wait(LIMIT)
            websocket.send([ASK[:1], b"", ASK[1:5], ASK[5:]])
            assert websocket.recv() == ANSWER
            websocket.send(iter([bytes((byte,)) for byte in ASK]))
            assert websocket.recv() == ANSWER
        assert websocket.close_code == 1000

    async with node_at(WebSocket()) as (_, url):
        await call(client)


async def test_a_websockets_client_exchanges_large_frames() -> None:
    payload = bytes(range(256)) * 4000
    ask = CURRENT.encode((local("echoer"),), (local("app"),), payload)

    def client() -> None:
        with connect(url, subprotocols=[SPOKEN], max_size=2**24) as websocket:
            for _ in range(3):
                websocket.send(ask)
            for _ in range(3):
                assert websocket.recv() == CURRENT.encode((local("app"),), (local("echoer"),), payload)

    async with node_at(WebSocket()) as (_, url):
        await call(client)


@pytest.mark.parametrize(
    ("said", "code"), [("hello", 1003), (b"", 1008), (bytes(100_001), 1009), (["hel", "lo"], 1003)]
)
async def test_an_invalid_message_closes_a_websockets_client_with_a_code(
    said: str | bytes | list[str], code: int
) -> None:
    def client() -> None:
        with connect(url, subprotocols=[SPOKEN]) as websocket:
            websocket.send(said)
            with pytest.raises(ConnectionClosed) as closed:
                websocket.recv()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == code

    async with node_at(WebSocket(max_frame=100_000)) as (_, url):
        await call(client)


async def test_a_websockets_client_is_refused_with_a_status_and_a_reason() -> None:
    def client() -> None:
        for status, path, subprotocol, origin in (
            (404, "/", SPOKEN, None),
            (400, "/node", Subprotocol("chat"), None),
            (403, "/node", SPOKEN, Origin("https://evil.example")),
        ):
            with pytest.raises(InvalidStatus) as refused:
                connect(base + path, subprotocols=[subprotocol], origin=origin)
            assert refused.value.response.status_code == status
            assert refused.value.response.body.count(b"\n") == 1
        with connect(base + "/node", subprotocols=[SPOKEN], origin=Origin("https://good.example")) as websocket:
            websocket.send(ASK)
            assert websocket.recv() == ANSWER

    async with node_at(WebSocket(origins=["https://good.example"]), "127.0.0.1:0/node") as (_, url):
        base = url.removesuffix("/node")
        await call(client)


async def test_a_websockets_client_that_closes_ends_the_link_after_its_frames() -> None:
    received: list[object] = []

    def client() -> None:
        with connect(f"ws://{at}", subprotocols=[SPOKEN]) as websocket:
            websocket.send(b"last")
        assert websocket.close_code == 1000

    async def accept(link: Link) -> None:
        received.extend([await link.receive(), await link.receive(), await link.receive()])
        await link.aclose()

    with trio.fail_after(LIMIT):
        async with opened() as (transport, nursery):
            at = await nursery.start(transport.serve, "127.0.0.1:0", accept)
            await call(client)
            await trio.testing.wait_all_tasks_blocked()
    assert received == [(b"last",), (), ()]


async def test_a_websockets_client_connects_to_wss(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    own = authority.sign()

    def client() -> None:
        context = ssl.create_default_context(cafile=authority.path)
        with connect(url, subprotocols=[SPOKEN], ssl=context) as websocket:
            websocket.send(ASK)
            assert websocket.recv() == ANSWER

    async with node_at(SecureWebSocket(certificate=own.certificate, key=own.key)) as (_, url):
        await call(client)


# `websockets` listens


async def test_a_websockets_server_exchanges_frames_pings_and_closes() -> None:
    seen: list[object] = []

    def server(websocket: ServerConnection) -> None:
        assert websocket.request is not None
        seen.append(websocket.request.headers.get("Sec-WebSocket-Extensions", "no compression offered"))
        seen.append(websocket.request.headers.get("Origin", "no origin"))
        got = websocket.recv()
        websocket.send([got[:1], got[1:]])
        seen.append(websocket.ping().wait(LIMIT))
        websocket.send(b"before the end")

    with trio.fail_after(LIMIT), serving(server) as at:
        async with opened() as (transport, _):
            ours = await transport.connect(at)
            await ours.send([b"frame"])
            assert list(await ours.receive()) == [b"frame"]
            assert list(await ours.receive()) == [b"before the end"]
            assert not await ours.receive()
            await ours.aclose()
    assert seen == ["no compression offered", "no origin", True]


@pytest.mark.parametrize(
    ("act", "error", "reason"),
    [
        (lambda websocket: websocket.send("text"), WireError, "sent a text message"),
        (
            lambda websocket: websocket.send(bytes(2000)),
            WireError,
            "a frame of 2000 bytes, where 1 to 1000 are allowed",
        ),
        (lambda websocket: websocket.send(bytes(70_000)), WireError, "Exceeded maximum message size: 65536 bytes"),
        (
            lambda websocket: websocket.close(4001, "go away"),
            ConnectionLost,
            "was closed with code 4001: go away",
        ),
        (lambda websocket: websocket.socket.shutdown(2), ConnectionLost, "without saying so first"),
    ],
    ids=["text", "too large", "much too large", "a reason", "cut off"],
)
async def test_a_wrong_message_of_a_websockets_server_ends_the_link_with_a_reason(
    act: Callable[[ServerConnection], None], error: type[Exception], reason: str
) -> None:
    with trio.fail_after(LIMIT), serving(act) as at:
        async with opened(WebSocket(max_frame=1000)) as (transport, _):
            ours = await transport.connect(at)
            with pytest.raises(error, match=reason):
                await ours.receive()
            await ours.aclose()


@pytest.mark.parametrize(
    ("spoken", "reason"),
    [
        (None, rf"a WebSocket server, but does not speak {SUBPROTOCOL}"),
        ([Subprotocol("chat")], r"answered the request for a WebSocket with HTTP 400"),
    ],
    ids=["nothing", "chat"],
)
async def test_a_websockets_server_with_another_subprotocol_is_refused(
    spoken: list[Subprotocol] | None, reason: str
) -> None:
    with serving(lambda _: None, spoken) as at:
        async with opened() as (transport, _):
            with pytest.raises(ConnectionLost, match=reason):
                await transport.connect(at)


# `trio-websocket` on either side


async def test_trio_websocket_and_a_node_exchange_frames_in_both_roles() -> None:
    async def answer(request: WebSocketRequest) -> None:
        websocket = await request.accept(subprotocol=SUBPROTOCOL)
        await websocket.send_message(await websocket.get_message())
        await websocket.ping(b"?")
        await websocket.aclose()

    async with node_at(WebSocket()) as (_, url), open_websocket_url(url, subprotocols=[SPOKEN]) as websocket:
        await websocket.send_message(ASK)
        assert await websocket.get_message() == ANSWER
        await websocket.ping(b"!")
    with trio.fail_after(LIMIT):
        async with opened() as (transport, nursery):
            server = await nursery.start(partial(serve_websocket, answer, "127.0.0.1", 0, None))
            ours = await transport.connect(f"127.0.0.1:{server.port}")
            await ours.send([b"frame"])
            assert list(await ours.receive()) == [b"frame"]
            assert not await ours.receive()
            await ours.aclose()


# nginx between

#: What docs/websocket.md tells operators to write, for a node at ws:127.0.0.1:4000.
LOCATION = """\
location = /bob {
    proxy_pass http://127.0.0.1:4000/;
    proxy_http_version 1.1;
    proxy_set_header Host $host;
    proxy_set_header Upgrade $http_upgrade;
    proxy_set_header Connection upgrade;
    proxy_buffering off;
    proxy_read_timeout 60s;
    proxy_send_timeout 60s;
}
"""

CONFIGURATION = """\
daemon off;
worker_processes 1;
pid nginx.pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path t; proxy_temp_path t; fastcgi_temp_path t; uwsgi_temp_path t; scgi_temp_path t;
    server {{
        listen 127.0.0.1:{port}{tls};
        {location}
        location / {{ return 404; }}
    }}
}}
"""


@pytest.fixture(scope="module")
def nginx() -> str:
    found = shutil.which("nginx", path=os.environ.get("PATH", os.defpath) + os.pathsep + "/usr/sbin")
    if found is None:
        pytest.skip("nginx is not installed: apt-get install nginx-light")
    return found


@contextmanager
def proxy(nginx: str, folder: Path, location: str, *, tls: str = "") -> Iterator[str]:
    """Run an nginx with one location; the HOST:PORT where it listens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        # nginx inherits the socket, so the port stays in use and early connections wait.
        host, port = listening.getsockname()
        (folder / "nginx.conf").write_text(CONFIGURATION.format(port=port, tls=tls, location=location))
        with subprocess.Popen(
            [nginx, "-p", str(folder), "-c", "nginx.conf", "-e", "stderr"],
            env={"NGINX": f"{listening.fileno()};"},
            pass_fds=[listening.fileno()],
            stderr=subprocess.DEVNULL,
        ) as process:
            try:
                yield f"{host}:{port}"
            finally:
                process.terminate()


def at_port(location: str, url: str) -> str:
    return location.replace("127.0.0.1:4000", url.partition("://")[2].partition("/")[0])


async def test_the_documented_nginx_configuration_works(nginx: str, tmp_path: Path) -> None:
    async with node_at(WebSocket()) as (_, url), open_node("ws") as alice:
        with proxy(nginx, tmp_path, at_port(LOCATION, url)) as at:
            route = Route(f"ws:{at}/bob", "echoer")
            for body in ("hello", "x" * 1_000_000, "again"):
                assert (await alice.ask(route, body)).text == body
            with pytest.raises(ConnectionLost, match=r"HTTP 404: is the path right\?"):
                await alice.connect(f"ws:{at}/alice")


async def test_wss_may_end_at_nginx(nginx: str, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    own = authority.sign()
    tls = f" ssl;\n        ssl_certificate {own.certificate};\n        ssl_certificate_key {own.key}"
    async with node_at(WebSocket()) as (_, url), open_node(SecureWebSocket(ca_file=authority.path)) as alice:
        with proxy(nginx, tmp_path, at_port(LOCATION, url), tls=tls) as at:
            route = Route(f"wss:{at}/bob", "echoer")
            for body in ("hello", "x" * 1_000_000):
                assert (await alice.ask(route, body)).text == body
            async with opened() as (transport, _):
                with pytest.raises(ConnectionLost, match=r"HTTP 400: is it a trionode node\?"):
                    await transport.connect(f"{at}/bob")


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        (
            re.sub(r".*Upgrade.*\n", "", LOCATION),
            rf"HTTP 426: this speaks WebSocket, with the subprotocol {SUBPROTOCOL}",
        ),
        (LOCATION.replace("127.0.0.1:4000", "127.0.0.1:1"), "HTTP 502: the proxy there does not reach its node"),
    ],
    ids=["no upgrade", "no node"],
)
async def test_a_wrong_proxy_configuration_is_reported_with_advice(
    location: str, reason: str, nginx: str, tmp_path: Path
) -> None:
    async with node_at(WebSocket()) as (_, url), opened() as (transport, _):
        with proxy(nginx, tmp_path, at_port(location, url)) as at, pytest.raises(ConnectionLost, match=reason):
            await transport.connect(f"{at}/bob")


async def test_pings_keep_a_link_open_beyond_the_timeouts_of_nginx(
    nginx: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "PING_AFTER", 0.1)
    links, accepted = trio.open_memory_channel[Link](1)
    with trio.fail_after(LIMIT):
        async with opened() as (transport, nursery):
            bound = await nursery.start(partial(transport.serve, "127.0.0.1:0", links.send))
            with proxy(nginx, tmp_path, at_port(LOCATION.replace("60s", "400ms"), f"ws://{bound}")) as at:
                client = await transport.connect(f"{at}/bob")
                server = await accepted.receive()
                with trio.move_on_after(0.9) as scope:
                    async with trio.open_nursery() as readers:
                        readers.start_soon(client.receive)
                        readers.start_soon(server.receive)
                assert scope.cancelled_caught
                await client.send([b"last"])
                await client.send_eof()
                assert list(await server.receive()) == [b"last"]
                assert not await server.receive()
                await server.send([b"late"])
                nursery.start_soon(server.aclose)
                assert list(await client.receive()) == [b"late"]
                assert not await client.receive()
                await client.aclose()


def test_the_documented_nginx_configuration_is_tested() -> None:
    page = Path(__file__).parents[2] / "docs" / "websocket.md"
    if not page.exists():
        pytest.skip("no checkout around these tests: documents are compared there")
    assert f"```nginx\n{LOCATION}```" in page.read_text()
