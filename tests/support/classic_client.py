"""A classic (0.7x) program, by the specification: its bytes, habits and weaknesses (spec §11.4 to §11.6)."""

import math
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress

import attrs
import trio

from trionode import unique

#: The Rust client's polling interval, its wait before the first pull, and its limit (spec §11.4).
POLL_SECONDS = 0.25
FIRST_FETCH_SECONDS = 0.01
LIMIT = 8


def uint(number: int) -> bytes:
    """A number in BARE (spec §1.1)."""
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def data(content: bytes | str) -> bytes:
    """Bytes or a text in BARE."""
    content = content.encode() if isinstance(content, str) else content
    return uint(len(content)) + content


def route(*addresses: bytes) -> bytes:
    """A route of local addresses (spec §2.1)."""
    return uint(len(addresses)) + b"".join(b"\0" + data(address) for address in addresses)


def message(onward: Sequence[bytes], back: Sequence[bytes], payload: bytes) -> bytes:
    """A transport message (spec §2.2)."""
    return b"\x01" + route(*onward) + route(*back) + data(payload)


def frame(body: bytes) -> bytes:
    """A message with its length (spec §3.1)."""
    return len(body).to_bytes(2, "big") + body


def call(protocol: str, body: bytes) -> bytes:
    """A stream message (spec §11.1)."""
    return data(protocol) + data(body)


@attrs.define
class Scanner:
    """Reads BARE. It raises IndexError where a Rust program would skip the message."""

    content: bytes
    at: int = 0

    def take(self, length: int) -> bytes:
        self.at += length
        if self.at > len(self.content):
            raise IndexError
        return self.content[self.at - length : self.at]

    def uint(self) -> int:
        number = shift = 0
        while True:
            (byte,) = self.take(1)
            number |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return number

    def data(self) -> bytes:
        return self.take(self.uint())

    def route(self) -> tuple[bytes, ...]:
        hops = []
        for _ in range(self.uint()):
            assert self.take(1) == b"\0"
            hops.append(self.data())
        return tuple(hops)

    def message(self) -> tuple[tuple[bytes, ...], tuple[bytes, ...], bytes]:
        assert self.take(1) == b"\x01"
        return self.route(), self.route(), self.data()


class Connection:
    """A program's one connection to its hub.

    The first frame opens it, and the first frame after its end opens it again (spec §4.2).
    """

    def __init__(self, nursery: trio.Nursery, port: int, heard: Callable[[bytes], None]) -> None:
        self._nursery = nursery
        self._port = port
        self._heard = heard
        self._stream: trio.SocketStream | None = None
        self._frames, self._to_send = trio.open_memory_channel[bytes](math.inf)
        #: How often it was opened.
        self.made = 0
        nursery.start_soon(self._write)

    def send(self, body: bytes) -> None:
        """Send a frame, in order."""
        self._frames.send_nowait(frame(body))

    async def _write(self) -> None:
        async for each in self._to_send:
            if self._stream is None:
                # A failed connect is not tried again: the worker that needed it has ended for good, so the test fails.
                self._stream = await trio.open_tcp_stream("127.0.0.1", self._port)
                self.made += 1
                self._nursery.start_soon(self._read, self._stream)
            # Bytes written into a connection that ends are lost without an error.
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await self._stream.send_all(each)

    async def _read(self, stream: trio.SocketStream) -> None:
        buffer = b""
        async with stream:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                while some := await stream.receive_some(65536):
                    buffer += some
                    while len(buffer) >= 2 and len(buffer) >= (end := 2 + int.from_bytes(buffer[:2], "big")):
                        assert end <= 65_002, "a frame that is larger than classic peers are sent"
                        self._heard(buffer[2:end])
                        buffer = buffer[end:]
            assert not buffer, "the hub closed the connection in the middle of a frame"
            # From here on a send connects again; until here it wrote into the old connection.
            if self._stream is stream:
                self._stream = None


class Program:
    """The streams of one program: a consumer, a producer, and the received payloads.

    Like the original it never asks twice.

    An assertion fails where the original would panic, send twice, or wait without end.
    """

    def __init__(self, nursery: trio.Nursery, port: int, *, sends: str, receives: str) -> None:
        self.sends, self.receives = sends, receives
        self.consumer, self.producer = secrets.token_hex(16).encode(), secrets.token_hex(16).encode()
        self.client_id = secrets.token_hex(16)
        #: Payloads that arrived, in order.
        self.arrived: list[bytes] = []
        self.indexes: list[int] = []
        #: Statuses of confirmations.
        self.statuses: Counter[int] = Counter()
        #: Messages of the hub that the producer would push as user data, and those that the consumer ignored.
        self.strange: list[bytes] = []
        self.pulls = 0
        self.connection = Connection(nursery, port, self._heard)
        self._nursery = nursery
        self._index = 0
        self._next_push = 0
        self._pull_route: tuple[bytes, ...] = ()
        self._push_route: tuple[bytes, ...] = ()
        self._index_route: tuple[bytes, ...] = ()
        self._queued: list[bytes] = []
        self._outstanding = 0
        self._news = trio.Event()

    def start(self, service: bytes = b"stream_kafka") -> None:
        """Create both streams, as `connect` does."""
        for address, name in ((self.consumer, self.receives), (self.producer, self.sends)):
            self.connection.send(message([service], [address], call("stream_create", b"\x01" + data(name))))

    def say(self, payload: bytes, onward: Sequence[bytes] = (b"sink",)) -> None:
        """Send a payload to the peer."""
        self._push(message(onward, [b"app"], payload))

    async def has(self, count: int) -> None:
        """Wait until so many payloads have arrived."""
        while len(self.arrived) < count:
            await self._news.wait()

    @property
    def is_polling(self) -> bool:
        """Whether it still works: at most one pull is outstanding, and no second loop runs."""
        return self._outstanding <= 1

    def _push(self, record: bytes) -> None:
        if not self._push_route:
            self._queued.append(record)
            return
        request_id, self._next_push = self._next_push, self._next_push + 1
        body = call("stream_push", uint(request_id) + data(record))
        self.connection.send(message(self._push_route, [self.producer], body))

    def _heard(self, body: bytes) -> None:
        onward, back, payload = Scanner(body).message()
        outer = Scanner(payload)
        protocol, inner = outer.data().decode(), Scanner(outer.data())
        (address,) = onward
        if address == self.producer:
            self._producer_heard(protocol, inner, back, body)
        else:
            assert address == self.consumer, "a message for an unknown address"
            self._consumer_heard(protocol, inner, back, body)
        assert inner.at == len(inner.content), "bytes behind an answer"

    def _producer_heard(self, protocol: str, inner: Scanner, back: tuple[bytes, ...], body: bytes) -> None:
        if protocol == "stream_create":
            assert inner.data().decode() == self.sends
            assert not self._push_route, "create was answered twice"
            self._push_route = back
            queued, self._queued = self._queued, []
            for record in queued:
                self._push(record)
        elif protocol == "stream_push":
            inner.uint()
            self.statuses[inner.uint()] += 1
            inner.uint()
            self._tell()
        else:
            self.strange.append(body)
            inner.at = len(inner.content)

    def _consumer_heard(self, protocol: str, inner: Scanner, back: tuple[bytes, ...], body: bytes) -> None:
        if protocol == "stream_create":
            assert inner.data().decode() == self.receives, "the original panics"
            assert not self._pull_route, "create was answered twice"
            self._pull_route = back
            get = b"\0" + data(self.client_id) + data(self.receives)
            self.connection.send(message([b"stream_kafka_index"], [self.consumer], call("stream_index", get)))
        elif protocol == "stream_index":
            assert (inner.data().decode(), inner.data().decode()) == (self.client_id, self.receives)
            assert not self._index_route, "Get, or a Save, was answered twice"
            self._index = inner.uint() if inner.take(1) == b"\x01" else 0
            self._index_route = back
            self._soon(self._fetch, FIRST_FETCH_SECONDS)
        elif protocol == "stream_pull":
            self._pulled(inner)
        else:
            self.strange.append(body)
            inner.at = len(inner.content)

    def _pulled(self, inner: Scanner) -> None:
        self._outstanding -= 1
        assert self._outstanding == 0, "a pull was answered twice, which starts a second loop"
        inner.uint()
        before = self._index
        count = inner.uint()
        assert count <= LIMIT
        for _ in range(count):
            index, record = inner.uint(), inner.data()
            assert index >= self._index, "an index below the one asked for, or twice"
            self._index = index + 1
            self.indexes.append(index)
            self.arrived.append(Scanner(record).message()[2])
        if self._index != before:
            save = b"\x01" + data(self.client_id) + data(self.receives) + uint(self._index)
            self.connection.send(message(self._index_route, [self.consumer], call("stream_index", save)))
            self._tell()
        self._soon(self._fetch, POLL_SECONDS)

    def _fetch(self) -> None:
        self._outstanding += 1
        request_id, self.pulls = self.pulls, self.pulls + 1
        body = uint(request_id) + uint(self._index) + uint(LIMIT)
        self.connection.send(message(self._pull_route, [self.consumer], call("stream_pull", body)))

    def _soon(self, action: Callable[[], None], seconds: float) -> None:
        async def later() -> None:
            await trio.sleep(seconds)
            action()

        self._nursery.start_soon(later)

    def _tell(self) -> None:
        self._news.set()
        self._news = trio.Event()

    async def has_confirmed(self, count: int) -> None:
        """Wait until so many pushes were confirmed, with any status."""
        while self.statuses.total() < count:
            await self._news.wait()


@asynccontextmanager
async def open_pair(port: int) -> AsyncIterator[tuple[Program, Program]]:
    """Open a classic Alice and a classic Bob; check that both still work at the end."""
    to_bob, to_alice = unique("to_bob"), unique("to_alice")
    async with trio.open_nursery() as nursery:
        bob = Program(nursery, port, sends=to_alice, receives=to_bob)
        alice = Program(nursery, port, sends=to_bob, receives=to_alice)
        bob.start()
        alice.start()
        yield alice, bob
        for each in (alice, bob):
            assert each.is_polling
            assert not each.strange
        nursery.cancel_scope.cancel()
