"""Streams: a sender that can stand in a route and a receiver, joined to the two streams of a hub and kept so (spec §11.4, §11.5)."""

import random
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Self

import trio

from trionode.counters import DropReason
from trionode.errors import (
    AnswerTimeout,
    ClosedError,
    ConnectionLost,
    LocalError,
    MessageTooLargeError,
    RemoteError,
    ServiceError,
    UnknownAddressError,
    WireError,
)
from trionode.log import LogThrottle, log, sanitize
from trionode.protocol import stream as machine
from trionode.protocol.rules.access import from_anywhere
from trionode.protocol.stream import (
    MAX_RECORD,
    PULL_LIMIT,
    CreateRequest,
    CreateResponse,
    ErrorResponse,
    IndexGet,
    IndexResponse,
    IndexSave,
    PullResponse,
    PushResponse,
    Record,
    Request,
    Response,
    decode_response,
    encode,
    producer_name,
)
from trionode.protocol.wire.address import Address, Encoded, local
from trionode.protocol.wire.classic_codec import CLASSIC
from trionode.protocol.wire.current_codec import CURRENT
from trionode.protocol.wire.message import Message, Origin
from trionode.protocol.wire.route import MAX_HOPS
from trionode.routing.byte_budget import ByteBudget
from trionode.routing.memory_channel import MemoryChannel
from trionode.routing.router import Router, random_address

#: Makes the way to a hub, anew each time it was lost: the encoded hops before the hub's service.
OpenWay = Callable[[], Awaitable[tuple[Encoded, ...]]]

#: Seconds before connecting again, doubled at each failure: short, for a hub that restarts; the last is the longest.
BACKOFF = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
#: Seconds that a link with a hub lasts before its loss counts as the first.
STEADY_SECONDS = 1.0
#: Requests in a row that a hub left unanswered before the stream turns to the next hub, or opens the way to the same one anew.
SILENCE = 2
#: Seconds that `aclose` waits for pushes to be confirmed.
CLOSE_GRACE = 1.0

#: Records that are asked for in one pull at a hub of the classic generation: as many as its own clients ask for (spec §11.4), since a hub
#: of the seed era does not answer at all where the answer would be too long for it.
CLASSIC_PULL_LIMIT = 8

#: The first byte of a record tells which generation wrote it (spec §2.2): an array of three or four items, or version 1.
_WRITTEN_IN = {0x83: CURRENT, 0x84: CURRENT, 0x01: CLASSIC}
#: The generations that a stream can write.
_VERSIONS = {protocol_version.name: protocol_version for protocol_version in (CURRENT, CLASSIC)}


def unique(name: str) -> str:
    """A stream name that nobody can guess: `name` and 128 random bits. On a hub without identities the name is the capability."""
    return machine.unique(name, secrets.token_bytes(16))


class Stream:
    """Both directions of a conversation over a hub: routable, `Route(stream, "listener")`, and iterable.

    What is sent to its address is pushed into the stream `sends` until the hub confirms it, over lost links, other hubs and restarts.
    What is read from `receives` is delivered on this node, with this stream's sender in front of the return route; messages that are
    addressed to nobody further come out of the iteration. Made by `Node.open_stream`.

    It writes the records of one generation and reads those of both. What was not confirmed when the link was lost is pushed again: our hubs
    know it again, however they are reached; one of the classic generation that is not ours does not, so that there a record may lie twice.
    The window of a secure channel refuses the second, whoever reads without one must bear it.
    """

    def __init__(
        self,
        router: Router,
        ways: Sequence[tuple[str, OpenWay]],
        *,
        sends: str,
        receives: str,
        service: str,
        index_service: str,
        client_id: str,
        start: int | None,
        protocol_version: str,
    ) -> None:
        if protocol_version not in _VERSIONS:
            raise LocalError(f"a stream writes the wire {' or '.join(map(repr, _VERSIONS))}, not {protocol_version!r}")
        self._encode = _VERSIONS[protocol_version].codec().encode
        self._codecs = {first: version.codec() for first, version in _WRITTEN_IN.items()}
        # A UUIDv7: what it says of its birth bounds how far back a hub looks for this producer's earlier pushes.
        self.encoded = local(producer_name(time.time_ns() // 1_000_000, secrets.token_bytes(10)))
        #: Records of sessions that are over, or for addresses that are nobody's: skipped.
        self.dead_records = 0
        self._consumer_address = random_address()
        self._router = router
        self._ways = ways
        self._service = local(service)
        self._index_service = local(index_service)
        self._producer = machine.Producer(sends)
        self._consumer = machine.Consumer(receives, client_id, start=start)
        self._origin = Origin(stream=self.encoded)
        self._hub: tuple[Encoded, ...] = ()
        self._queued: MemoryChannel[bytes] = MemoryChannel()
        self._arrived: MemoryChannel[Sequence[Record]] = MemoryChannel()
        self._inbox: MemoryChannel[Message] = MemoryChannel()
        self._is_read = False
        self._lost = trio.Event()
        self._log_throttle = LogThrottle()
        self._silence = 0
        self._answered = False
        self._timer_at = float("inf")
        self._timer = trio.Event()
        self._ready = trio.Event()
        self._failure: RemoteError | None = None
        self._flushed = trio.Event()
        self._scope = trio.CancelScope()
        self._ended = trio.Event()

    @property
    def address(self) -> Address:
        """The sender's address: what goes there is pushed."""
        return Address.from_encoded(self.encoded)

    @property
    def sends(self) -> str:
        """The name of the stream that is written."""
        return self._producer.stream

    @property
    def receives(self) -> str:
        """The name of the stream that is read."""
        return self._consumer.stream

    @property
    def position(self) -> int | None:
        """The next index that is asked for; None before it is known."""
        return self._consumer.position

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        try:
            return await self.receive()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None

    async def receive(self) -> Message:
        """The next message that is addressed to nobody further; EndOfChannel once the stream is closed. Cancelled, none is taken.

        Before the first call, and before an iteration begins, only so much is kept; after it, all, and who sends waits.
        """
        self._is_read = True
        return await self._inbox.receive()

    async def run(self, *, task_status: trio.TaskStatus["Stream"] = trio.TASK_STATUS_IGNORED) -> None:
        """Live until `aclose`, or the end of the node."""
        router = self._router
        router.register(self.encoded, self._on_producer, allow=from_anywhere, limit=MAX_RECORD)
        router.register(self._consumer_address, self._on_consumer, allow=from_anywhere)
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._stay_connected)
                    nursery.start_soon(self._keep_time)
                    nursery.start_soon(self._deliver)
                    task_status.started(self)
        finally:
            router.unregister(self.encoded)
            router.unregister(self._consumer_address)
            self._queued.close()
            self._inbox.close()
            self._ended.set()

    async def ready(self, deadline: float) -> None:
        """Wait until the hub knows both streams and where to read on; a RemoteError that says why if it doesn't by then."""
        with trio.CancelScope(deadline=deadline):
            await self._ready.wait()
        if self._failure is not None:
            raise self._failure
        if not self._ready.is_set():
            raise AnswerTimeout(
                f"the hub did not answer for the streams {self.sends} and {self.receives} in time: does it offer the service "
                f"{Address.from_encoded(self._service)}, and does it let strangers use it?"
            )

    # The way to the hub

    async def _stay_connected(self) -> None:
        failures = 0
        turn = 0
        while True:
            name, open_way = self._ways[turn % len(self._ways)]
            try:
                hub = await open_way()
            except (RemoteError, UnknownAddressError) as error:
                failures += 1
                turn += 1
                if not self._ready.is_set() and failures >= len(self._ways):
                    self._fail(error if isinstance(error, RemoteError) else ConnectionLost(str(error)))
                    return
                pause = self._pause(failures)
                log.warning("no way to the hub %s: %s; trying again in %g s", name, sanitize(error), pause)
                await trio.sleep(pause * random.uniform(0.8, 1.2))  # noqa: S311  # spreads the clients of a hub that restarts
                continue
            if failures:
                log.info("connected to the hub %s again", name)
            self._lost = lost = trio.Event()
            self._silence = 0
            self._answered = False
            self._hub = hub
            self._router.on_close(hub[0], lost.set)
            now = trio.current_time()
            self._send(self._encoded_requests(self._producer.begin(now), self.encoded))
            self._send(self._encoded_requests(self._consumer.begin(now), self._consumer_address))
            self._watch(now)
            await lost.wait()
            self._router.forget(hub[0], lost.set)  # the link lives on where only the hub behind it was silent
            self._hub = ()
            # A hub that takes links and ends them, whether or not it answers meanwhile, is no better than one that is away.
            lived = trio.current_time() - now >= STEADY_SECONDS
            failures = 1 if self._answered and lived else failures + 1
            # The same hub first if its link broke, since it may only have restarted; the next one if it fell silent, or never spoke.
            turn += 1 if self._silence >= SILENCE or not self._answered else 0
            if self._silence < SILENCE:
                log.warning(
                    "the link with the hub %s was lost: connecting again; unconfirmed pushes kept: %d",
                    name,
                    self._outstanding,
                )
            elif self._log_throttle.is_due(name, trio.current_time()):
                log.warning(
                    "the hub %s does not answer: trying again; unconfirmed pushes kept: %d", name, self._outstanding
                )
            await trio.sleep(self._pause(failures))

    def _pause(self, failures: int) -> float:
        return BACKOFF[min((failures - 1) // len(self._ways), len(BACKOFF) - 1)]

    def _fail(self, error: RemoteError) -> None:
        if not self._ready.is_set():
            self._failure = error
            self._ready.set()

    @property
    def _outstanding(self) -> int:
        return self._producer.next_id - self._producer.oldest + len(self._queued)

    def _encoded_requests(self, requests: Sequence[Request], address: Encoded) -> list[Message]:
        worker = self._producer.worker if address == self.encoded else self._consumer.worker
        messages = []
        for request in requests:
            if isinstance(request, CreateRequest):
                onward = (*self._hub, self._service)
            elif isinstance(request, IndexGet | IndexSave):
                onward = (*self._hub, self._index_service)
            else:
                onward = worker
            messages.append(Message(onward, (address,), encode(request)))
        return messages

    def _send(self, messages: Sequence[Message]) -> None:
        """Hand requests to the hub's link without waiting: the windows bound what they are together."""
        if not self._hub:
            return
        try:
            for message in messages:
                self._router.deliver(message)
        except (ConnectionLost, UnknownAddressError, ClosedError):
            self._lost.set()

    def _is_from_hub(self, message: Message) -> bool:
        return bool(self._hub) and message.back[: len(self._hub)] == self._hub

    def _response(self, message: Message) -> Response | None:
        if not self._is_from_hub(message):
            self._router.counters[DropReason.STREAM_ANSWER_NOT_FROM_HUB] += 1
            return None
        try:
            response = decode_response(message.payload)
        except WireError:
            self._router.counters[DropReason.STREAM_ANSWER_UNDECODABLE] += 1
            return None
        self._silence = 0
        self._answered = True
        if isinstance(response, ErrorResponse):
            if self._log_throttle.is_due(response.reason[:200], trio.current_time()):
                log.warning("the hub says: %s", sanitize(response.reason))
            self._fail(
                ServiceError(
                    f"the hub refused the streams {self.sends} and {self.receives}: {sanitize(response.reason)}"
                )
            )
        return response

    # Sending

    def _on_producer(self, message: Message) -> ByteBudget | None:
        """The sender's hop: data from this node are pushed or queued, answers of the hub move the window."""
        if message.origin.is_local:
            record = self._encode(message.onward[1:], message.back, message.payload)
            if len(record) > MAX_RECORD:
                raise MessageTooLargeError(
                    f"a stream carries messages of at most {MAX_RECORD} bytes with their routes, this one has {len(record)}: send it in parts"
                )
            if len(self._queued) or self._producer.full:
                return self._queued.put(record, len(record))
            self._push(record)
            return None
        response = self._response(message)
        now = trio.current_time()
        if isinstance(response, CreateResponse):
            self._send(self._encoded_requests(self._producer.created(response, message.back, now), self.encoded))
            self._settle_opening()
        elif isinstance(response, PushResponse):
            self._send(self._encoded_requests(self._producer.confirmed(response, now), self.encoded))
            while not self._producer.full and (record_ := self._queued.take()) is not None:
                self._push(record_)
            if not self._outstanding:
                self._flushed.set()
        self._watch(self._producer.next_deadline())
        return None

    def _push(self, record: bytes) -> None:
        self._send(self._encoded_requests(self._producer.push(record, trio.current_time()), self.encoded))
        self._watch(self._producer.next_deadline())

    def _settle_opening(self) -> None:
        if self._producer.worker and self._consumer.position is not None:
            self._ready.set()

    # Receiving

    def _on_consumer(self, message: Message) -> None:
        """The consumer's hop: answers of the hub go into the machine, and the records that come out to the task that delivers."""
        response = self._response(message)
        now = trio.current_time()
        requests: Sequence[Request] = ()
        match response:
            case CreateResponse():
                self._consumer.limit = PULL_LIMIT if message.origin.resends else CLASSIC_PULL_LIMIT
                requests = self._consumer.created(response, message.back, now)
            case IndexResponse():
                requests = self._consumer.positioned(response, now)
            case PullResponse():
                records, requests = self._consumer.pulled(response, now)
                if records:
                    self._arrived.put(records, sum(record.size for record in records))
            case _:
                return
        self._send(self._encoded_requests(requests, self._consumer_address))
        self._settle_opening()
        self._watch(self._consumer.next_deadline())

    async def _deliver(self) -> None:
        """The puller: records become messages of this node; it waits without end for the mailbox that they fill, and drops nothing."""
        async for records in self._arrived:
            for record in records:
                over_budget = self._deliver_record(record)
                if over_budget is not None:
                    await over_budget.wait_for_capacity()
                taken = self._consumer.taken(record.index, trio.current_time())
                if taken:
                    self._send(self._encoded_requests(taken, self._consumer_address))
            self._watch(self._consumer.next_deadline())

    def _deliver_record(self, record: Record) -> ByteBudget | None:
        codec = self._codecs.get(record.message[0]) if record.message else None
        if codec is None:
            self._skip("a record of no known generation")
            return None
        try:
            onward, back, payload = codec.decode(record.message)
        except WireError as error:
            self._skip(str(error))
            return None
        if len(onward) + len(back) >= MAX_HOPS:
            self._router.counters[DropReason.ROUTE_TOO_LONG] += 1
            return None
        message = Message(onward, (self.encoded, *back), payload, self._origin)
        if not onward:
            return self._keep(message)
        if onward[0] not in self._router:
            self._skip(f"for {Address.from_encoded(onward[0])}, which is nobody here: of a session that is over")
            return None
        return self._router.deliver(message)

    def _keep(self, message: Message) -> ByteBudget | None:
        """Keep what is addressed to nobody further for the iteration; while nobody has begun one, what is too much is dropped.

        Otherwise whoever knows the stream's name could stop it with such records, where its owner never meant to read them.
        """
        if not self._is_read and self._inbox.size > self._inbox.bound:
            self._router.counters[DropReason.STREAM_NOT_READ] += 1
            return None
        over_budget = self._inbox.put(message, len(message.payload))
        return over_budget if self._is_read else None

    def _skip(self, why: str) -> None:
        self.dead_records += 1
        if self.dead_records == 1:
            log.warning(
                "skipped a record in stream %s: %s; more of them are counted, not shown", self.receives, sanitize(why)
            )

    # Time

    def _watch(self, deadline: float | None) -> None:
        if deadline is not None and deadline < self._timer_at:
            self._timer.set()

    async def _keep_time(self) -> None:
        while True:
            deadlines = [each.next_deadline() for each in (self._producer, self._consumer)]
            self._timer_at = min((each for each in deadlines if each is not None), default=float("inf"))
            self._timer = trio.Event()
            with trio.CancelScope(deadline=self._timer_at):
                await self._timer.wait()
            now = trio.current_time()
            for tick, address in ((self._producer.tick, self.encoded), (self._consumer.tick, self._consumer_address)):
                requests = tick(now)
                if not self._hub:
                    continue
                if any(isinstance(request, CreateRequest) for request in requests):
                    self._silence += 1
                    if self._silence >= SILENCE:
                        self._lost.set()
                        break
                self._send(self._encoded_requests(requests, address))

    async def aclose(self) -> None:
        """Wait up to CLOSE_GRACE seconds for what was sent to be confirmed, save the position, and leave the streams."""
        with trio.move_on_after(CLOSE_GRACE):
            while self._outstanding and not self._ended.is_set():
                self._flushed = trio.Event()
                await self._flushed.wait()
        self._send(self._encoded_requests(self._consumer.finish(), self._consumer_address))
        self._scope.cancel()
        await self._ended.wait()

    def __repr__(self) -> str:
        return f"<Stream sends {self.sends}, receives {self.receives}, at {self.address}>"
