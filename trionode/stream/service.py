"""The stream service and the index service of a hub, for producers and consumers, over a store (spec §11)."""

import itertools
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from functools import partial

import attrs
import trio

from trionode.counters import DropReason
from trionode.errors import WireError
from trionode.log import LogThrottle, log, sanitize
from trionode.protocol.rules.access import Access
from trionode.protocol.rules.stream import owner_of, position_id
from trionode.protocol.stream.messages import (
    LONG_POLL_SECONDS,
    MAX_RECORD,
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
    Request,
    Response,
    StreamLife,
    decode_request,
    encode,
)
from trionode.protocol.stream.names import resends_pushes, uuid7_hex, valid_stream_name
from trionode.protocol.wire.address import LOCAL_TYPE, Encoded, decode_address, encode_address, local
from trionode.protocol.wire.message import Message, Origin
from trionode.routing.byte_budget import ByteBudget
from trionode.routing.router import Router
from trionode.routing.service import Service
from trionode.stream.clients import Clients, StreamLimits
from trionode.stream.long_poll import LongPolls
from trionode.stream.owners import Owners, StoreLog
from trionode.stream.push_queue import PushQueue, WaitingPush
from trionode.stream.reading import Found, read_for
from trionode.stream.store.base import Position, Push, Stored, StoreError, StreamStore

#: The names of the services, unless a hub and its clients agree on others (spec §11.2).
SERVICE = "stream_kafka"
INDEX_SERVICE = "stream_kafka_index"

#: Bytes that a frame and its payload need beside routes and records: counts, lengths, protocol name, request id.
FRAME_HEADS = 40
#: Positions that wait to be saved. A lost one only makes a client read records again.
MAX_SAVES = 10_000
#: Seconds that `aclose` waits for the store.
CLOSE_GRACE = 1.0

_NAME_RULE = "a stream is named by 1 to 200 of A-Z a-z 0-9 . _ -; unique() makes a name that cannot be guessed"


@attrs.frozen(eq=False)
class _AnonymousProducer:
    """The hub itself as a producer, for all clients that push to one stream and never send again.

    A store has to recognise a push that it is given again, and for that their addresses and request ids are no use. One
    of their random addresses in 64 looks like a UUIDv7, whose time bounds how far a store looks back; and a client can
    choose an address that was used before, with other records (spec §11.6, 4).
    """

    address: bytes = attrs.Factory(lambda: uuid7_hex(time.time_ns() // 1_000_000, secrets.token_bytes(10)).encode())
    request_ids: Iterator[int] = attrs.Factory(itertools.count)


class StreamService(Service):
    """Serves streams at two addresses, and at one address for each stream. `Node.serve_streams` makes it.

    The address of a stream's worker follows from the stream's name, so it is valid on every hub before the same store.
    Pushes are stored in batches. A pull waits for a record for up to LONG_POLL_SECONDS. A stream that an authenticated
    identity created belongs to it: others may use it only if its name is a capability, as `unique` makes them.

    Classic clients ask once and wait without end, push once, and push everything that they don't understand into their
    stream (spec §11.6). So the service repeats their requests to the store until it answers, and refuses them by
    silence and a line in the log. Before a hub ends, call `finish`, so that no classic client waits for an answer that
    never comes.
    """

    def __init__(
        self, router: Router, store: StreamStore, service: str, index_service: str, limits: StreamLimits
    ) -> None:
        super().__init__()
        self._router = router
        self._store = store
        self._service = local(service)
        self._index_service = local(index_service)
        self._prefix = f"{service}.".encode()
        self._progress = trio.lowlevel.ParkingLot()
        self._store_log = StoreLog()
        self._clients = Clients(router, limits)
        self._owners = Owners(router, store, self._clients, self._store_log)
        self._pushes = PushQueue(
            store,
            self._store_log,
            start_soon=self._start_soon,
            is_allowed=self._may_push,
            answer=self._confirm,
            changed=self._progress.unpark_all,
        )
        self._anonymous: dict[str, _AnonymousProducer] = {}
        self._pulls = LongPolls(router.__contains__, self._progress.unpark_all)
        self._saves: dict[tuple[str, str], int] = {}
        self._save_due = trio.Event()
        self._is_closing = False
        self._log_throttle = LogThrottle()

    async def _run(
        self, *, allow: Access, task_status: trio.TaskStatus["StreamService"] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve until `aclose`, or the end of the node.

        Pushes that wait for the store then are not confirmed, so producers send them again.
        """
        router = self._router
        router.register(self._service, self._on_service, allow=allow)
        router.register(self._index_service, self._on_index, allow=allow)
        router.register_prefix(self._prefix, self._on_worker, allow=allow)
        try:
            async with self._serving():
                task_status.started(self)
                await self._save_positions()
        finally:
            router.unregister(self._service)
            router.unregister(self._index_service)
            router.unregister_prefix(self._prefix)
            self._clients.close()

    async def finish(self) -> None:
        """Answer every pull, so no consumer waits without end (spec §11.6, 7).

        Close links only after this has returned.

        Further pulls are answered at once, and pushes are stored until `aclose`.

        If cancelled, the answers leave at once.
        """
        await self._pulls.finish()

    async def aclose(self) -> None:
        """Answer every pull as `finish` does, wait up to one second until all pushes are stored, refuse the rest, and end.

        If cancelled, the service still ends.
        """
        try:
            await self.finish()
            self._is_closing = True
            with trio.move_on_after(CLOSE_GRACE):
                while self._pushes.is_busy or self._pulls or self._saves:
                    await self._progress.park()
            self._pushes.refuse_rest()
        finally:
            await super().aclose()

    # Requests

    def _on_service(self, message: Message) -> ByteBudget | None:
        request = self._read(message)
        if isinstance(request, CreateRequest):
            self._start(message.origin, partial(self._create, message, request))
        return None

    def _on_index(self, message: Message) -> ByteBudget | None:
        request = self._read(message)
        if isinstance(request, IndexGet):
            self._start(message.origin, partial(self._get, message, request))
        elif (
            isinstance(request, IndexSave)
            and len(self._saves) < MAX_SAVES
            and self._owners.may_use_position(request.client_id, request.stream, message.origin)
        ):
            self._saves[_position_id(request, message.origin), request.stream] = request.index
            self._save_due.set()
        return None

    def _on_worker(self, message: Message) -> ByteBudget | None:
        _, value = decode_address(message.onward[0])
        name = value[len(self._prefix) :].decode(errors="replace")
        request = self._read(message)
        if request is None or not valid_stream_name(name):
            return None
        match request:
            case PushRequest():
                return self._push(message, name, request)
            case PullRequest():
                self._start_pull(message, name, request)
            case _:
                self._router.counters[DropReason.STREAM_REQUEST_MISPLACED] += 1
        return None

    def _read(self, message: Message) -> Request | None:
        try:
            return decode_request(message.payload)
        except WireError:
            # No answer: to a producer it would be data (spec §11.6, 6), and to others an oracle.
            self._router.counters[DropReason.STREAM_REQUEST_UNDECODABLE] += 1
            return None

    def _start(self, origin: Origin, task: Callable[[], Awaitable[None]]) -> bool:
        """Run a request in its own task; return False if its client is over its limit, or the service has ended."""
        client = self._clients.get(origin)

        async def run() -> None:
            try:
                await task()
            finally:
                client.requests -= 1

        if client.requests >= self._clients.limits.requests or not self._start_soon(run):
            self._router.counters[DropReason.TOO_MANY_STREAM_REQUESTS] += 1
            return False
        client.requests += 1
        return True

    def _answer(self, message: Message, worker: Encoded, response: Response) -> None:
        self._router.answer(message, worker, encode(response))

    def _refuse(self, message: Message, reason: str) -> None:
        """Answer why a client can't have a stream.

        Classic clients get no answer: they would push it as data (spec §11.6, 6).
        """
        if _resends(message):
            self._answer(message, self._service, ErrorResponse(reason))
        elif self._log_throttle.is_due(reason, trio.current_time()):
            log.warning(
                "refused a client that does not understand refusals, and so waits without end: %s", sanitize(reason)
            )

    def _worker(self, stream: str) -> Encoded:
        return encode_address(LOCAL_TYPE, self._prefix + stream.encode())

    async def _create(self, message: Message, request: CreateRequest) -> None:
        name = request.name
        if name is None or not valid_stream_name(name):
            self._refuse(message, _NAME_RULE)
        elif (refusal := await self._owners.open(name, message.origin)) is not None:
            self._refuse(message, refusal)
        else:
            await self._announce(message, name)
            self._answer(message, self._worker(name), CreateResponse(name))

    async def _announce(self, message: Message, name: str) -> None:
        """Tell a consumer the life of its stream, if it is one that drops what it does not know.

        A producer would take it for data (spec §11.6, 6).
        """
        if message.origin.resends and message.back and not resends_pushes(decode_address(message.back[-1])[1]):
            with suppress(StoreError):  # without a life the consumer is not told of lost records, as before
                self._answer(message, self._service, StreamLife(name, await self._store.life(name)))

    # Pushes

    def _push(self, message: Message, name: str, request: PushRequest) -> ByteBudget | None:
        if not message.back:
            return None
        client = self._clients.get(message.origin)
        resends = _resends(message)
        _, address = decode_address(message.back[-1])
        producer, request_id = (address, request.request_id) if resends else self._anonymous_id(name)
        push = Push(name, producer, request_id, request.record)
        waiting = WaitingPush(push, request.request_id, message, client.budget, resends)
        is_late = self._is_closing and resends
        # A client's budget is full only if its readers don't wait, on a link that drops when full.
        if len(request.record) > MAX_RECORD or is_late or client.budget.is_full or self._nursery is None:
            self._pushes.refuse(waiting)
            return None
        if name not in self._owners and not self._pushes.is_held(name):
            if not self._start(message.origin, partial(self._open_pushed, name, message.origin)):
                self._pushes.refuse(waiting)
                return None
            self._pushes.hold(name)
        return self._pushes.put(waiting)

    def _anonymous_id(self, name: str) -> tuple[bytes, int]:
        """Return the producer and request id by which the store recognises a push that its client sends only once."""
        producer = self._anonymous.get(name)
        if producer is None:
            producer = self._anonymous[name] = _AnonymousProducer()
        return producer.address, next(producer.request_ids)

    async def _open_pushed(self, name: str, origin: Origin) -> None:
        """Open a stream that is pushed to before it was created here. Its pushes wait meanwhile."""
        try:
            await self._owners.open(name, origin)
        finally:
            if name not in self._owners:
                self._anonymous.pop(name, None)
            self._pushes.release(name)

    def _may_push(self, waiting: WaitingPush) -> bool:
        stream = waiting.push.stream
        return stream in self._owners and self._owners.may_use(stream, waiting.message.origin)

    def _confirm(self, waiting: WaitingPush, result: Stored | StoreError | None) -> None:
        if isinstance(result, StoreError):
            self._store_log.failed("a push to the stream %s was refused: %s", waiting.push.stream, result)
        is_stored = isinstance(result, Stored)
        index = result.index if isinstance(result, Stored) else 0
        self._answer(waiting.message, waiting.message.onward[0], PushResponse(waiting.request_id, is_stored, index))

    # Pulls

    def _start_pull(self, message: Message, name: str, request: PullRequest) -> None:
        """Let a pull wait for records, or for the end of its time."""
        # The scope is added here and not in the pull's task: of tasks that are started together any may run first.
        scope = trio.CancelScope()
        if self._start(message.origin, partial(self._pull, message, name, request, scope)):
            self._pulls.add((name, message.back), scope)
        else:
            self._answer_pull(message, name, request, Found())

    async def _pull(self, message: Message, name: str, request: PullRequest, scope: trio.CancelScope) -> None:
        found = Found()
        origin = message.origin
        scope.deadline = trio.current_time() + LONG_POLL_SECONDS
        with scope:
            try:
                is_known = name in self._owners or await self._owners.open(name, origin) is None
                if is_known and self._owners.may_use(name, origin):
                    found = await read_for(self._store, self._store_log, name, request)
            except StoreError as error:
                self._store_log.failed("a pull of the stream %s failed: %s", name, error)
        await self._pulls.wait_may_answer()
        self._answer_pull(message, name, request, found)
        self._pulls.remove((name, message.back), scope)

    def _answer_pull(self, message: Message, name: str, request: PullRequest, found: Found) -> None:
        payload = encode(PullResponse(request.request_id, tuple(found.records), found.extent))
        limit = self._router.limit(message.back[0]) if message.back else None
        routes = sum(map(len, message.back)) + len(message.onward[0]) + FRAME_HEADS
        if limit is not None and found.records and len(payload) + routes > limit:
            # Only an absurdly long return route leaves no space for one record. Its consumer gets no records, but
            # always an answer.
            payload = encode(PullResponse(request.request_id, (), found.extent))
        self._router.answer(message, message.onward[0], payload)
        if not message.origin.resends:
            self._pulls.expect_again((name, message.back))

    # Positions

    async def _get(self, message: Message, request: IndexGet) -> None:
        position = None
        if self._owners.may_use_position(request.client_id, request.stream, message.origin):
            client_id = _position_id(request, message.origin)
            position = self._saves.get((client_id, request.stream))
            if position is None:
                with suppress(StoreError):  # it is logged; without a position the client reads from the beginning
                    position = await self._owners.ask(
                        "a position in the stream %s could not be read: %s",
                        request.stream,
                        message.origin,
                        partial(self._store.position, client_id, request.stream),
                    )
        self._answer(message, self._index_service, IndexResponse(request.client_id, request.stream, position))

    async def _save_positions(self) -> None:
        while True:
            await self._save_due.wait()
            self._save_due = trio.Event()
            due = dict(self._saves)
            positions = [Position(client, stream, index) for (client, stream), index in due.items()]
            try:
                await self._store.save_positions(positions)
            except StoreError as error:
                log.warning("positions were not saved: %s", sanitize(error))
            for key, index in due.items():
                if self._saves.get(key) == index:
                    del self._saves[key]
            self._progress.unpark_all()


def _resends(message: Message) -> bool:
    """Whether the sender repeats unconfirmed pushes and understands `error`, as our streams do over any link."""
    return message.origin.resends or (bool(message.back) and resends_pushes(decode_address(message.back[-1])[1]))


def _position_id(request: IndexGet | IndexSave, origin: Origin) -> str:
    return position_id(request.client_id, owner_of(origin.identifier))
