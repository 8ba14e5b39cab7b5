"""A hub that follows a test's script: every frame of its links and every record of its store passes through it."""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from random import Random
from typing import ClassVar, Never

import attrs
import trio

from trionode.errors import WireError
from trionode.net.transport import Link, Transport
from trionode.protocol.stream.messages import Extent, Record, Response, decode_response, encode
from trionode.protocol.wire.address import Encoded, local
from trionode.protocol.wire.current_codec import CLOSE_PLAINTEXT, CURRENT, RefreshCredentials, encode_refresh
from trionode.protocol.wire.version import ProtocolVersion
from trionode.stream.store.base import Push, Stored, StoreError
from trionode.stream.store.memory import MemoryStore

#: Replaces one encoded transport message, a frame or a record, by others, in order.
Tamper = Callable[[bytes], Sequence[bytes]]
#: Replaces the records that a read found.
Reading = Callable[[Sequence[Record]], Sequence[Record]]


def honest(message: bytes) -> Sequence[bytes]:
    return [message]


def nothing(message: bytes) -> Sequence[bytes]:
    del message
    return []


def changed(
    message: bytes,
    *,
    onward: tuple[Encoded, ...] | None = None,
    back: tuple[Encoded, ...] | None = None,
    payload: bytes | None = None,
) -> bytes:
    """Return the message with other routes or another payload."""
    was_onward, was_back, was_payload = CURRENT.decode(message)
    return CURRENT.encode(
        was_onward if onward is None else onward,
        was_back if back is None else back,
        was_payload if payload is None else payload,
    )


class Wiretap(Transport):
    """A transport around another. It records every frame that a hub received or sent, and scripts replace frames."""

    name: ClassVar[str] = "loopback"

    def __init__(self, inner: Transport) -> None:
        self._inner = inner
        #: Every frame at the hub, before and after the scripts.
        self.held: list[bytes] = []
        #: Replaces frames received over links that the hub accepted, and over links that it connected.
        self.accepted: Tamper = honest
        self.connected: Tamper = honest
        #: Replaces frames that the hub sends.
        self.sent: Tamper = honest

    async def connect(self, peer: str) -> Link:
        return _TappedLink(await self._inner.connect(peer), self, accepted=False)

    async def serve(
        self,
        at: str,
        accept: Callable[[Link], Awaitable[None]],
        *,
        task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
    ) -> Never:
        async def accept_tapped(link: Link) -> None:
            await accept(_TappedLink(link, self, accepted=True))

        await self._inner.serve(at, accept_tapped, task_status=task_status)


class _TappedLink:
    def __init__(self, link: Link, tap: Wiretap, *, accepted: bool) -> None:
        self.peer: str = link.peer
        self.protocol_version: ProtocolVersion = link.protocol_version
        self.max_frame: int = link.max_frame
        self._link = link
        self._tap = tap
        self._accepted = accepted

    def _pass(self, frames: Iterable[bytes], tamper: Tamper) -> Sequence[bytes]:
        held = self._tap.held
        passed: list[bytes] = []
        for frame in frames:
            held.append(frame)
            for each in tamper(frame):
                held.append(each)
                passed.append(each)
        return passed

    async def receive(self) -> Sequence[bytes]:
        while frames := await self._link.receive():
            # Looked up for each burst, since a test changes its script.
            if passed := self._pass(frames, self._tap.accepted if self._accepted else self._tap.connected):
                return passed
        return ()

    async def send(self, frames: Sequence[bytes]) -> None:
        if passed := self._pass(frames, self._tap.sent):
            await self._link.send(passed)
        else:
            await trio.lowlevel.checkpoint()

    async def send_eof(self) -> None:
        await self._link.send_eof()

    async def aclose(self) -> None:
        await self._link.aclose()


class ScriptedStore(MemoryStore):
    """A store whose scripts replace pushed records and the results of reads, and that reports success."""

    def __init__(self) -> None:
        super().__init__()
        #: Every record that the hub received or stored.
        self.held: list[bytes] = []
        #: Replaces each pushed record of a stream, and the records that are read.
        self.pushed: dict[str, Tamper] = {}
        self.reading: dict[str, Reading] = {}
        #: A false position for every consumer; None for the true ones.
        self.false_position: int | None = None
        self._planted = 0
        self._confirmed: dict[tuple[str, bytes, int], Stored] = {}

    def plant(self, stream: str, record: bytes) -> Stored:
        """Put a record of the hub's choice into a stream."""
        self.held.append(record)
        self._planted += 1
        stored = self._append(Push(stream, b"the hub", self._planted, record))
        assert isinstance(stored, Stored)
        return stored

    async def append(self, pushes: Sequence[Push]) -> Sequence[Stored | StoreError]:
        await trio.lowlevel.checkpoint()
        return [self._scripted(push) for push in pushes]

    def _scripted(self, push: Push) -> Stored:
        key = (push.stream, push.producer, push.request_id)
        if key not in self._confirmed:
            self.held.append(push.record)
            stored = Stored(0)
            for record in self.pushed.get(push.stream, honest)(push.record):
                stored = self.plant(push.stream, record)
            self._confirmed[key] = stored
        return self._confirmed[key]

    async def read(self, stream: str, index: int, *, limit: int, max_bytes: int) -> Sequence[Record]:
        records = await super().read(stream, index, limit=limit, max_bytes=max_bytes)
        reading = self.reading.get(stream)
        return records if reading is None else reading(records)

    async def lost(self, stream: str, index: int, life: bytes) -> Extent | None:
        # A hub that lies about positions does not say so.
        return None if self.false_position is not None else await super().lost(stream, index, life)

    async def position(self, client_id: str, stream: str) -> int | None:
        position = await super().position(client_id, stream)
        return position if self.false_position is None else self.false_position


def answering(change: Callable[[Response], Sequence[Response]]) -> Tamper:
    """Return a script that replaces each answer of a hub about streams."""

    def tamper(frame: bytes) -> Sequence[bytes]:
        try:
            response = decode_response(CURRENT.decode(frame)[2])
        except WireError:
            return [frame]
        return [changed(frame, payload=encode(each)) for each in change(response)]

    return tamper


# -- what a route or a hub may do to the messages of a channel ---------------------------------------------------------


@attrs.frozen
class Fault:
    """A change to the messages of a channel, and its expected effect."""

    name: str
    #: Makes a new script for each test.
    start: Callable[[Random], Tamper] = attrs.field(repr=False)
    #: Whether the messages arrive all the same, and whether ciphertexts are refused because of it.
    arrives: bool
    refuses: bool
    #: How many messages it changes.
    messages: int = 64

    def __str__(self) -> str:
        return self.name


def flipped(random: Random) -> Tamper:
    def tamper(message: bytes) -> Sequence[bytes]:
        payload = bytearray(CURRENT.decode(message)[2])
        bit = random.randrange(8 * len(payload))
        payload[bit // 8] ^= 1 << bit % 8
        return [changed(message, payload=bytes(payload))]

    return tamper


def _replayed(random: Random) -> Tamper:
    del random
    earlier: list[bytes] = []

    def tamper(message: bytes) -> Sequence[bytes]:
        earlier.append(message)
        return [message, *earlier]

    return tamper


def reordered(random: Random, block: int = 32) -> Tamper:
    """Hold messages back until there are `block` of them, and pass them on in any order."""
    waiting: list[bytes] = []

    def tamper(message: bytes) -> Sequence[bytes]:
        waiting.append(message)
        if len(waiting) < block:
            return []
        released = waiting[:]
        random.shuffle(released)
        waiting.clear()
        return released

    return tamper


def _reversed(random: Random) -> Tamper:
    class Backwards(Random):
        def shuffle(self, x: object) -> None:
            assert isinstance(x, list)
            x.reverse()

    return reordered(Backwards(random.random()), 33)


def _truncated(random: Random) -> Tamper:
    def tamper(message: bytes) -> Sequence[bytes]:
        payload = CURRENT.decode(message)[2]
        return [changed(message, payload=payload[: random.randrange(len(payload))])]

    return tamper


def _extended(random: Random) -> Tamper:
    return lambda message: [changed(message, payload=CURRENT.decode(message)[2] + random.randbytes(1))]


def _garbage(random: Random) -> Tamper:
    return lambda message: [changed(message, payload=random.randbytes(random.randrange(200))), message]


def _unsealed(random: Random) -> Tamper:
    """Control messages in plaintext, and with an invented ciphertext under the right nonce."""
    refresh = encode_refresh(RefreshCredentials(b"\x80", ()))

    def tamper(message: bytes) -> Sequence[bytes]:
        nonce = CURRENT.decode(message)[2][:8]
        forged = [
            made
            for control in (CLOSE_PLAINTEXT, refresh)
            for made in (control, nonce + control + random.randbytes(16), bytes(8) + control)
        ]
        return [*(changed(message, payload=each) for each in forged), message]

    return tamper


def _renumbered(random: Random) -> Tamper:
    """Copies under nonces near and far ahead. They must not be accepted, and must not move the window or the keys."""
    nonces = [0, 31, 32, 33, 1_000, 32_768, 2**32, 2**63, 2**64 - 2, 2**64 - 1]

    def tamper(message: bytes) -> Sequence[bytes]:
        payload = CURRENT.decode(message)[2]
        nonce = int.from_bytes(payload[:8], "big")
        other = random.choice([n for n in nonces if n != nonce]).to_bytes(8, "big")
        return [changed(message, payload=other + payload[8:]), message]

    return tamper


def _return_route_changed(random: Random) -> Tamper:
    """Return routes to other nodes and in loops. Hops may choose them; they must not affect encrypted content."""
    routes = [(local("an unknown sender"),), (local("listener"),) * 3, (), (local("x"),) * 20]
    return lambda message: [changed(message, back=random.choice(routes))]


FAULTS = (
    Fault("a flipped bit (threat 3)", flipped, arrives=False, refuses=True),
    Fault("replays (threat 5)", _replayed, arrives=True, refuses=True),
    Fault("reordering within 32 (threat 7)", reordered, arrives=True, refuses=False),
    Fault("reversal within 32 (threat 7)", _reversed, arrives=True, refuses=False, messages=66),
    Fault("1,000 dropped (threat 8)", lambda _: nothing, arrives=False, refuses=False, messages=1000),
    Fault("truncation (threat 3)", _truncated, arrives=False, refuses=True),
    Fault("a byte more (threat 3)", _extended, arrives=False, refuses=True),
    Fault("garbage (threat 4)", _garbage, arrives=True, refuses=True),
    Fault("forged close and refresh (threat 4)", _unsealed, arrives=True, refuses=True),
    Fault("false nonces (threat 17)", _renumbered, arrives=True, refuses=True),
    Fault("a false return route (threat 20)", _return_route_changed, arrives=True, refuses=False),
)


def mixed(random: Random) -> Tamper:
    """Any fault or none for each message, in any mixture, and earlier messages at any time."""
    scripts = [honest, honest, nothing, reordered(random, 5)]
    scripts += [fault.start(random) for fault in FAULTS]
    seen: list[bytes] = []

    def tamper(message: bytes) -> Sequence[bytes]:
        seen.append(message)
        again = random.sample(seen, min(len(seen), random.choice([0, 0, 1, 3])))
        if not CURRENT.decode(message)[2]:
            return again  # some faults need a bit that they can flip
        return [*random.choice(scripts)(message), *again]

    return tamper
