"""The engine of a `Stream`: a producer and a consumer that stay connected to a hub (spec §11.4, §11.5)."""

import secrets
import time
from collections.abc import Sequence

import attrs
import trio

from trionode.counters import DropReason
from trionode.errors import (
    AnswerTimeout,
    ClosedError,
    ConfigError,
    ConnectionLost,
    MessageTooLargeError,
    RemoteError,
    ServiceError,
    Undelivered,
    UnknownAddressError,
    WireError,
)
from trionode.log import LogThrottle, log, sanitize
from trionode.protocol.rules.access import from_anywhere
from trionode.protocol.rules.round_trip import RoundTrip
from trionode.protocol.rules.stream import is_by_way_to_hub, is_from_worker
from trionode.protocol.rules.verdicts import Verdict
from trionode.protocol.stream.consumer import PULL_LIMIT, Consumer
from trionode.protocol.stream.machine import Machine
from trionode.protocol.stream.messages import (
    MAX_RECORD,
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
    StreamLife,
    decode_response,
    encode,
)
from trionode.protocol.stream.names import producer_name
from trionode.protocol.stream.producer import Producer
from trionode.protocol.wire.address import Address, Encoded, local
from trionode.protocol.wire.classic_codec import CLASSIC
from trionode.protocol.wire.current_codec import CURRENT
from trionode.protocol.wire.message import Message, Origin
from trionode.protocol.wire.route import MAX_HOPS
from trionode.routing.byte_budget import ByteBudget
from trionode.routing.hub_connection import HubConnection, OpenPath
from trionode.routing.memory_channel import MemoryChannel
from trionode.routing.router import Router, random_address
from trionode.routing.service import Service
from trionode.routing.verdict_queue import VerdictQueue

#: Seconds without any answer, from when one was overdue, until the client turns to the next hub, or opens a new path to
#: the same one. Enough to ask five times over a way that loses messages. An answer to a push is overdue after a round
#: trip, and one to a pull at the latest after the long poll.
SILENT_SECONDS = 8.0
#: Seconds that `aclose` waits for pushes to be confirmed.
CLOSE_GRACE = 1.0

#: Records in one pull from a classic hub, as many as its own clients ask for (spec §11.4): a classic hub does not
#: answer at all if the answer would be too long for it.
CLASSIC_PULL_LIMIT = 8

#: The first byte of a record shows its protocol version (spec §2.2): an array of three or four items, or version 1.
_RECORD_VERSIONS = {0x83: CURRENT, 0x84: CURRENT, 0x01: CLASSIC}
#: The protocol versions that a stream can write.
_VERSIONS = {version.name: version for version in (CURRENT, CLASSIC)}


@attrs.frozen(eq=False)
class _Direction:
    """One of the two machines, and the local address that its requests come from."""

    machine: Machine
    address: Encoded


class HubClient(Service):
    """Runs the producer and the consumer of one stream: their requests go to the hub, and the hub's answers to them."""

    def __init__(
        self,
        router: Router,
        hubs: Sequence[tuple[str, OpenPath]],
        *,
        sends: str,
        receives: str,
        service: str,
        index_service: str,
        client_id: str,
        start: int | None,
        protocol_version: str,
    ) -> None:
        super().__init__()
        if protocol_version not in _VERSIONS:
            raise ConfigError(
                f"protocol_version of a stream is {' or '.join(map(repr, _VERSIONS))}, not {protocol_version!r}"
            )
        self._encode = _VERSIONS[protocol_version].codec().encode
        self._codecs = {first: version.codec() for first, version in _RECORD_VERSIONS.items()}
        #: The producer's address, a UUIDv7: its time bounds how far back a hub looks for this producer's earlier
        #: pushes.
        self.address = local(producer_name(time.time_ns() // 1_000_000, secrets.token_bytes(10)))
        #: Records that were read and not delivered.
        self.skipped_records = 0
        #: What was found out about records that the hub lost.
        self.verdicts = VerdictQueue()
        self.producer = Producer(sends)
        self.consumer = Consumer(receives, client_id, start=start, first_request=secrets.randbits(32))
        self._sending = _Direction(self.producer, self.address)
        self._receiving = _Direction(self.consumer, random_address())
        self._router = router
        self._hub = HubConnection(router, hubs)
        self._service = local(service)
        self._index_service = local(index_service)
        self._origin = Origin(stream=self.address)
        self._queued: MemoryChannel[bytes] = MemoryChannel()
        #: The request ids of unconfirmed messages that the program was told are accepted. The others are frames of
        #: channels, which keep their messages themselves.
        self._promised: set[int] = set()
        self._arrived: MemoryChannel[Sequence[Record]] = MemoryChannel()
        self._inbox: MemoryChannel[Message] = MemoryChannel()
        self._is_read = False
        self._log_throttle = LogThrottle()
        self._was_silent = False
        self._timer_at = float("inf")
        self._timer = trio.Event()
        self._ready = trio.Event()
        self._failure: RemoteError | None = None
        self._flushed = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run until `aclose`, or the end of the node."""
        router = self._router
        router.register(self.address, self._on_producer, allow=from_anywhere, limit=MAX_RECORD)
        router.register(self._receiving.address, self._on_consumer, allow=from_anywhere)
        try:
            async with self._serving() as nursery:
                nursery.start_soon(self._hub.keep, self._begin, self._log_loss, self._on_unreachable)
                nursery.start_soon(self._run_timer)
                nursery.start_soon(self._deliver_records)
                task_status.started()
        finally:
            router.unregister(self.address)
            router.unregister(self._receiving.address)
            self._queued.close()
            self._inbox.close()
            self._flushed.set()
            self.verdicts.close()

    async def wait_ready(self, deadline: float) -> None:
        """Wait until the hub knows both streams and the position; raise a RemoteError if it does not by then."""
        with trio.CancelScope(deadline=deadline):
            await self._ready.wait()
        if self._failure is not None:
            raise self._failure
        if not self._ready.is_set():
            raise AnswerTimeout(
                f"the hub did not answer for the streams {self.producer.stream} and {self.consumer.stream} in time: check that it "
                f"offers the service {Address.from_encoded(self._service)}, and that this node may use it"
            )

    async def receive(self) -> Message:
        """Return the next message whose route ends here; EndOfChannel once this is closed."""
        self._is_read = True
        return await self._inbox.receive()

    async def flush(self, deadline: float) -> int:
        """Wait until the hub has confirmed all pushes, up to a time of Trio's clock; return how many it has not.

        If cancelled, the pushes stay, and are sent on.
        """
        with trio.CancelScope(deadline=deadline):
            while self._unconfirmed and not self._ended.is_set():
                if self._flushed.is_set():
                    self._flushed = trio.Event()
                await self._flushed.wait()
        return self._unconfirmed

    async def aclose(self) -> None:
        """Wait up to CLOSE_GRACE seconds until all pushes are confirmed, save the position, and end.

        Undelivered if messages that the program was told are accepted are not confirmed then.
        """
        if self._ended.is_set():
            return
        try:
            await self.flush(trio.current_time() + CLOSE_GRACE)
            self._send(self._receiving, self.consumer.finish())
        finally:
            await super().aclose()
        if unconfirmed := len(self._promised):
            raise Undelivered(
                unconfirmed,
                f"the hub {self._hub.name} has not confirmed {unconfirmed} messages to the stream {self.producer.stream} "
                f"within {CLOSE_GRACE:g} s of closing it, and they are not sent again: open the stream again and send "
                "what must arrive. Some of them may be stored",
            )

    # The connection to the hub

    async def _begin(self) -> None:
        self._was_silent = False
        now, round_trip = trio.current_time(), RoundTrip()
        for direction in (self._sending, self._receiving):
            self._send(direction, direction.machine.begin(now, round_trip))

    def _log_loss(self) -> None:
        if not self._was_silent:
            what = "the link to the hub %s was lost, connecting again; unconfirmed pushes: %d"
        elif self._log_throttle.is_due(self._hub.name, trio.current_time()):
            what = "the hub %s does not answer, trying again; unconfirmed pushes: %d"
        else:
            return
        log.warning(what, self._hub.name, self._unconfirmed)

    def _on_unreachable(self, error: RemoteError) -> bool:
        is_retried = self._ready.is_set()
        self._fail(error)
        return is_retried

    def _fail(self, error: RemoteError) -> None:
        if not self._ready.is_set():
            self._failure = error
            self._ready.set()

    @property
    def _unconfirmed(self) -> int:
        return self.producer.unconfirmed + len(self._queued)

    def _send(self, direction: _Direction, requests: Sequence[Request]) -> None:
        """Hand requests to the hub's link, if there is one, without waiting. The machines' windows bound their sum."""
        if self._hub.path:
            try:
                for request in requests:
                    onward = self._route(direction, request)
                    self._router.deliver(Message(onward, (direction.address,), encode(request)))
            except (ConnectionLost, UnknownAddressError, ClosedError):
                self._hub.drop()
        self._watch(direction)

    def _watch(self, direction: _Direction) -> None:
        """Wake the timer if a machine's deadline is earlier than the timer's."""
        deadline = direction.machine.next_deadline()
        if deadline is not None and deadline < self._timer_at:
            self._timer.set()

    def _route(self, direction: _Direction, request: Request) -> tuple[Encoded, ...]:
        match request:
            case CreateRequest():
                return (*self._hub.path, self._service)
            case IndexGet() | IndexSave():
                return (*self._hub.path, self._index_service)
            case _:
                return direction.machine.worker

    def _response(self, direction: _Direction, message: Message) -> Response | None:
        if not is_by_way_to_hub(message.back, self._hub.path):
            self._router.counters[DropReason.STREAM_ANSWER_NOT_FROM_HUB] += 1
            return None
        try:
            response = decode_response(message.payload)
        except WireError:
            self._router.counters[DropReason.STREAM_ANSWER_UNDECODABLE] += 1
            return None
        is_workers = isinstance(response, PushResponse | PullResponse)
        if is_workers and not is_from_worker(message.back, direction.machine.worker):
            self._router.counters[DropReason.STREAM_ANSWER_NOT_FROM_HUB] += 1
            return None
        self.producer.overdue_since = self.consumer.overdue_since = None
        self._hub.has_answered = True
        if isinstance(response, ErrorResponse):
            reason = sanitize(response.reason)
            if self._log_throttle.is_due(response.reason[:200], trio.current_time()):
                log.warning("the hub reports an error: %s", reason)
            self._fail(
                ServiceError(f"the hub refused the streams {self.producer.stream} and {self.consumer.stream}: {reason}")
            )
        return response

    def _check_ready(self) -> None:
        if self.producer.worker and self.consumer.position is not None:
            self._ready.set()

    # Sending

    def _on_producer(self, message: Message) -> ByteBudget | None:
        """The producer's hop: messages of this node are pushed or queued, answers of the hub move the window."""
        if message.origin.is_local:
            record = self._encode(message.onward[1:], message.back, message.payload)
            if len(record) > MAX_RECORD:
                raise MessageTooLargeError(
                    f"a stream carries messages of at most {MAX_RECORD} bytes with their routes, this one has {len(record)}: "
                    f"send it in parts"
                )
            if message.is_promised:
                self._promised.add(self.producer.next_id + len(self._queued))
            if len(self._queued) or self.producer.full:
                return self._queued.put(record, len(record))
            self._push(record)
            return None
        response = self._response(self._sending, message)
        now = trio.current_time()
        if isinstance(response, CreateResponse):
            self.producer.recognises = message.origin.resends
            self._send(self._sending, self.producer.created(response, message.back, now))
            self._check_ready()
        elif isinstance(response, PushResponse):
            if response.ok and response.request_id < self.producer.next_id:
                self._promised.discard(response.request_id)
            self._send(self._sending, self.producer.confirmed(response, now))
            while not self.producer.full and (queued := self._queued.take()) is not None:
                self._push(queued)
            if not self._unconfirmed:
                self._flushed.set()
        return None

    def _push(self, record: bytes) -> None:
        self._send(self._sending, self.producer.push(record, trio.current_time()))

    # Receiving

    def _on_consumer(self, message: Message) -> None:
        """The consumer's hop: answers of the hub go to the machine, and its records to the task that delivers them."""
        response = self._response(self._receiving, message)
        now = trio.current_time()
        requests: Sequence[Request] = ()
        match response:
            case CreateResponse():
                self.consumer.recognises = message.origin.resends
                self.consumer.limit = PULL_LIMIT if message.origin.resends else CLASSIC_PULL_LIMIT
                requests = self.consumer.created(response, message.back, now)
            case StreamLife():
                self.consumer.announced(response)
                return
            case IndexResponse():
                requests = self.consumer.positioned(response, now)
            case PullResponse():
                records, requests = self.consumer.pulled(response, now)
                for verdict in self.consumer.take_verdicts():
                    self._report(verdict)
                if records:
                    self._arrived.put(records, sum(record.size for record in records))
            case _:
                return
        self._send(self._receiving, requests)
        self._check_ready()

    async def _deliver_records(self) -> None:
        """Deliver records on this node. It drops nothing, and waits for a full mailbox without a timeout."""
        async for records in self._arrived:
            for record in records:
                over_budget = self._deliver(record)
                if over_budget is not None:
                    await over_budget.wait_for_capacity()
                if requests := self.consumer.taken(record.index, trio.current_time()):
                    self._send(self._receiving, requests)
            self._watch(self._receiving)

    def _deliver(self, record: Record) -> ByteBudget | None:
        codec = self._codecs.get(record.message[0]) if record.message else None
        if codec is None:
            self._skip("it has no known protocol version")
            return None
        try:
            onward, back, payload = codec.decode(record.message)
        except WireError as error:
            self._skip(str(error))
            return None
        if len(onward) + len(back) >= MAX_HOPS:
            self._router.counters[DropReason.ROUTE_TOO_LONG] += 1
            return None
        message = Message(onward, (self.address, *back), payload, self._origin)
        if not onward:
            return self._put_inbox(message)
        if onward[0] not in self._router:
            self._skip(f"its address {Address.from_encoded(onward[0])} no longer exists on this node")
            return None
        return self._router.deliver(message)

    def _put_inbox(self, message: Message) -> ByteBudget | None:
        """Keep a message for `receive`; drop it if the inbox is full and the program has never received.

        Otherwise anyone who knows the stream's name could stop a stream with such records, if its program never means
        to read them.
        """
        if not self._is_read and self._inbox.size > self._inbox.bound:
            self._router.counters[DropReason.STREAM_NOT_READ] += 1
            return None
        over_budget = self._inbox.put(message, len(message.payload))
        return over_budget if self._is_read else None

    def _skip(self, reason: str) -> None:
        self.skipped_records += 1
        if self.skipped_records == 1:
            log.warning(
                "skipped a record of the stream %s: %s; further ones are counted and not logged",
                self.consumer.stream,
                sanitize(reason),
            )

    def _report(self, verdict: Verdict) -> None:
        self.verdicts.put(verdict)
        self._log_throttle.log_warning(type(verdict).__name__, "%s", sanitize(verdict, 600))
        self._router.report(self.address, verdict)

    # Time

    async def _run_timer(self) -> None:
        directions = (self._sending, self._receiving)
        while True:
            deadlines = [direction.machine.next_deadline() for direction in directions]
            deadlines.append(self._silent_at())
            self._timer_at = min((each for each in deadlines if each is not None), default=float("inf"))
            self._timer = trio.Event()
            with trio.CancelScope(deadline=self._timer_at):
                await self._timer.wait()
            now = trio.current_time()
            for direction in directions:
                self._send(direction, direction.machine.tick(now))
            if (silent_at := self._silent_at()) is not None and now >= silent_at:
                self._was_silent = True
                self._hub.drop(next_hub=True)

    def _silent_at(self) -> float | None:
        """Return when to leave the hub if it says nothing until then; None while no answer is overdue."""
        since = [each for each in (self.producer.overdue_since, self.consumer.overdue_since) if each is not None]
        return min(since) + SILENT_SECONDS if since and self._hub.path and not self._was_silent else None
