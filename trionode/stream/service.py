"""The stream service and its index service: what a hub offers, over a store, to producers and consumers (spec §11)."""

import itertools
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from hashlib import sha256

import attrs
import trio

from trionode.counters import DropReason
from trionode.errors import WireError
from trionode.log import LogThrottle, log, sanitize
from trionode.protocol.rules.access import Access, client_of
from trionode.protocol.stream import (
    LONG_POLL_SECONDS,
    MAX_ANSWER,
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
    Record,
    Request,
    Response,
    decode_request,
    encode,
    is_capability,
    sends_again,
    uuid7_hex,
    valid_client_id,
    valid_stream_name,
)
from trionode.protocol.wire.address import LOCAL_TYPE, Encoded, decode_address, encode_address, local
from trionode.protocol.wire.message import Message, Origin
from trionode.routing.byte_budget import ByteBudget
from trionode.routing.router import Router
from trionode.stream.long_poll import WaitingPulls
from trionode.stream.push_queue import RETRY_SECONDS, PushBatches, WaitingPush
from trionode.stream.store.base import FinalError, Position, Push, Stored, StoreError, StreamStore

#: The names by which clients know the services, unless they are told others (spec §11.2).
SERVICE = "stream_kafka"
INDEX_SERVICE = "stream_kafka_index"

#: What a pull answer needs of its frame beside the records: addresses, heads, protocol name (spec §11.6, 9: about 150 bytes, and more in a channel).
ANSWER_MARGIN = 600
#: What a frame and its payload need beside routes and records: counts, lengths, protocol name, request id.
FRAME_HEADS = 40
#: Records of one answer, whatever the client asks for.
MAX_PULL_LIMIT = 1000
#: Positions that wait to be saved; one that is lost costs reading again.
MAX_SAVES = 10_000
#: Seconds that `aclose` waits for the store.
CLOSE_GRACE = 1.0


@attrs.frozen
class StreamLimits:
    """What one client (a link, or an authenticated identity) may make a hub hold."""

    #: Streams that it may create or open.
    streams: int = 1000
    #: Bytes of pushes that wait for the store, each with PUSH_OVERHEAD; over it the client's link is not read on.
    push_bytes: int = 1024 * 1024
    #: Pulls, creates and index requests that wait for an answer.
    requests: int = 256


@attrs.frozen(eq=False)
class _Deputy:
    """The hub itself as a producer, for those who push to one stream and never send again.

    Their own addresses and ids mean nothing to a store, which has to know what it is given again: one of theirs in 64 looks like a UUIDv7,
    whose birth bounds how far a store looks back, and one that is chosen by hand may come again with other records (spec §11.6, 4).
    """

    producer: bytes = attrs.Factory(lambda: uuid7_hex(time.time_ns() // 1_000_000, secrets.token_bytes(10)).encode())
    request_ids: Iterator[int] = attrs.Factory(itertools.count)


@attrs.define(eq=False)
class _Client:
    """What one client has outstanding; forgotten once that is nothing and its link is gone."""

    room: ByteBudget
    streams: set[str] = attrs.Factory(set)
    requests: int = 0


class StreamService:
    """Serves streams at two addresses and at one address for each stream; made by `serve_streams`.

    A stream's worker has an address that follows from its name, so it is valid on every hub before the same store. Pushes leave for
    the store in batches; while a batch is there, pushes to other streams make up the next. A pull waits for up to LONG_POLL_SECONDS.
    A stream that an authenticated identity made belongs to it: others reach it only if its name is a capability, as `unique` makes.

    Clients of the classic generation ask once and wait for ever, push once, and push whatever they don't know into their stream (spec §11.6).
    So their requests are tried again here until the store answers, a refusal is silence and a line in the log, and before the end comes
    `finish`, by which none of them is left with a pull that nobody answers.
    """

    def __init__(
        self, router: Router, store: StreamStore, service: str, index_service: str, limits: StreamLimits
    ) -> None:
        self._router = router
        self._store = store
        self._service = local(service)
        self._index_service = local(index_service)
        self._prefix = f"{service}.".encode()
        self._limits = limits
        self._clients: dict[Encoded | bytes | None, _Client] = {}
        self._owners: dict[str, str] = {}
        self._pushes = PushBatches(store, self._may_push, self._confirm, self._settled)
        self._deputies: dict[str, _Deputy] = {}
        self._pulls = WaitingPulls(router.__contains__, self._settled)
        self._saves: dict[tuple[str, str], int] = {}
        self._save_due = trio.Event()
        self._scope = trio.CancelScope()
        self._ended = trio.Event()
        self._closing = False
        self._log_throttle = LogThrottle()
        self._quieter = trio.Event()
        self._nursery: trio.Nursery | None = None

    async def run(
        self, *, allow: Access, task_status: trio.TaskStatus["StreamService"] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve until `aclose`, or the end of the node; what waits for the store then is not confirmed, and so sent again by its producer."""
        router = self._router
        router.register(self._service, self._on_service, allow=allow)
        router.register(self._index_service, self._on_index, allow=allow)
        router.register_prefix(self._prefix, self._on_worker, allow=allow)
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    self._nursery = nursery
                    nursery.start_soon(self._pushes.run)
                    task_status.started(self)
                    try:
                        await self._save_positions()
                    finally:
                        # Before it can close: links read on, and their requests may not meet a closed one.
                        self._nursery = None
        finally:
            router.unregister(self._service)
            router.unregister(self._index_service)
            router.unregister_prefix(self._prefix)
            for client in self._clients.values():
                client.room.close()
            self._ended.set()

    async def finish(self) -> None:
        """Answer every pull, so that no consumer waits in vain (spec §11.6, 7): when this returns is the time to close links.

        Further pulls are answered at once, and pushes are stored until `aclose`. Cancelled, the answers leave at once.
        """
        await self._pulls.finish()

    async def aclose(self) -> None:
        """Answer every pull as `finish` does, and end once the store has what was pushed; what it does not take in time is refused."""
        await self.finish()
        self._closing = True
        with trio.move_on_after(CLOSE_GRACE):
            while self._pushes.is_busy or self._pulls or self._saves:
                await self._quieter.wait()
        self._pushes.give_up()
        self._scope.cancel()
        await self._ended.wait()

    def _settled(self) -> None:
        """Let those look again who wait for the end of something."""
        self._quieter.set()
        self._quieter = trio.Event()

    # Requests

    def _on_service(self, message: Message) -> ByteBudget | None:
        request = self._read(message)
        if isinstance(request, CreateRequest):
            self._spawn(message, partial(self._create, message, request))
        return None

    def _on_index(self, message: Message) -> ByteBudget | None:
        request = self._read(message)
        if isinstance(request, IndexGet):
            self._spawn(message, partial(self._get, message, request))
        elif isinstance(request, IndexSave) and self._may_save(request, message.origin):
            self._saves[_scoped(request.client_id, message.origin), request.stream] = request.index
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
                self._take_pull(message, name, request)
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

    def _client(self, origin: Origin) -> _Client:
        key = client_of(origin)
        client = self._clients.get(key)
        if client is None:
            if len(self._clients) >= 256:
                self._forget_clients()
            client = self._clients[key] = _Client(ByteBudget(self._limits.push_bytes))
        return client

    def _forget_clients(self) -> None:
        for key, client in list(self._clients.items()):
            if not client.room.size and not client.requests and (key is None or key not in self._router):
                del self._clients[key]

    def _spawn(self, message: Message, task: Callable[[], Awaitable[None]]) -> bool:
        """Run a request that may wait in a task of its own; False if that is over its client's limit."""
        client = self._client(message.origin)
        if client.requests >= self._limits.requests or self._nursery is None:
            self._router.counters[DropReason.TOO_MANY_STREAM_REQUESTS] += 1
            return False
        client.requests += 1

        async def run() -> None:
            try:
                await task()
            finally:
                client.requests -= 1

        self._nursery.start_soon(run)
        return True

    def _answer(self, message: Message, worker: Encoded, response: Response) -> None:
        self._router.answer(message, worker, encode(response))

    def _tell(self, what: str, stream: str, error: StoreError) -> None:
        """Log what a store refused, each kind for each stream at most once a minute: strangers can make it happen as often as they like."""
        if self._log_throttle.is_due(what + stream, trio.current_time()):
            log.warning(what, sanitize(stream), sanitize(error))

    def _refuse(self, message: Message, reason: str) -> None:
        """Say why a stream can't be had, to those who understand it: to others it would be data, which they push (spec §11.6, 6)."""
        if _resends(message):
            self._answer(message, self._service, ErrorResponse(reason))
        elif self._log_throttle.is_due(reason, trio.current_time()):
            log.warning("a client that does not understand refusals waits in vain: %s", sanitize(reason))

    async def _try_again(self, origin: Origin, error: StoreError) -> bool:
        """Wait for the store in the place of a client that asks only once, while it is there; False if that is no use, or not needed."""
        if origin.resends or isinstance(error, FinalError):
            return False
        await trio.sleep(RETRY_SECONDS)
        return origin.link is None or origin.link in self._router

    def _worker(self, stream: str) -> Encoded:
        return encode_address(LOCAL_TYPE, self._prefix + stream.encode())

    # Ownership

    def _may_use(self, stream: str, origin: Origin) -> bool:
        """Whether a client may use a stream that it names: it owns it, or nobody in particular does, or the name is a capability."""
        return self._owners.get(stream, "") in ("", _owner(origin)) or (
            is_capability(stream) and origin.identifier is not None
        )

    def _may_save(self, request: IndexSave, origin: Origin) -> bool:
        known = valid_client_id(request.client_id) and valid_stream_name(request.stream)
        return known and len(self._saves) < MAX_SAVES and self._may_use(request.stream, origin)

    async def _create(self, message: Message, request: CreateRequest) -> None:
        name = request.name
        if name is None or not valid_stream_name(name):
            refusal: str | None = (
                "a stream is named by 1 to 200 of A-Z a-z 0-9 . _ -; make a name that nobody can guess with unique()"
            )
        else:
            refusal = await self._meet(name, message.origin)
        if name is None or refusal is not None:
            self._refuse(message, refusal or "")
        else:
            self._answer(message, self._worker(name), CreateResponse(name))

    async def _meet(self, name: str, origin: Origin) -> str | None:
        """Learn whose a stream is, which is made if there is none; why this client may not use it, None if it may.

        A stream's worker can be used without a create, so who comes first to this hub need not be who made it at another one.
        """
        client = self._client(origin)
        is_known = name in client.streams
        if not is_known and len(client.streams) >= self._limits.streams:
            return f"this hub lets a client use {self._limits.streams} streams"
        client.streams.add(
            name
        )  # before the store is asked, so that those who ask at the same time don't pass the limit together
        refusal: str | None = "the service ends"
        try:
            refusal = await self._learn(name, origin)
        finally:
            if refusal is not None and not is_known:
                client.streams.discard(name)
        return refusal

    async def _learn(self, name: str, origin: Origin) -> str | None:
        """Ask the store whose a stream is; why this client may not use it, None if it may."""
        while True:
            try:
                self._owners[name] = await self._store.create(name, _owner(origin))
            except StoreError as error:
                self._tell("stream %s could not be created: %s", name, error)
                if not await self._try_again(origin, error):
                    return f"the stream could not be created: {error}"
            else:
                return None if self._may_use(name, origin) else "the stream belongs to another identity"

    # Pushes

    def _push(self, message: Message, name: str, request: PushRequest) -> ByteBudget | None:
        if not message.back:
            return None
        client = self._client(message.origin)
        resends = _resends(message)
        _, address = decode_address(message.back[-1])
        producer, request_id = (address, request.request_id) if resends else self._deputy(name)
        waiting = WaitingPush(
            Push(name, producer, request_id, request.record), request.request_id, message, client.room, resends
        )
        is_late = self._closing and resends
        # A client's room is full only where its readers don't wait, on a trunk.
        if len(request.record) > MAX_RECORD or is_late or client.room.is_full or self._nursery is None:
            self._pushes.refuse(waiting)
            return None
        if name not in self._owners and not self._pushes.is_held(name):
            if client.requests >= self._limits.requests:
                self._pushes.refuse(waiting)
                return None
            self._pushes.hold(name)
            self._spawn(message, partial(self._introduce, name, message.origin))
        return self._pushes.put(waiting)

    def _deputy(self, name: str) -> tuple[bytes, int]:
        """By what the store is to know again a push that its client sends only once."""
        deputy = self._deputies.get(name)
        if deputy is None:
            deputy = self._deputies[name] = _Deputy()
        return deputy.producer, next(deputy.request_ids)

    async def _introduce(self, name: str, origin: Origin) -> None:
        """Meet a stream that was pushed to before it was created here; its pushes wait meanwhile."""
        try:
            await self._meet(name, origin)
        finally:
            if name not in self._owners:
                self._deputies.pop(name, None)
            self._pushes.let_go(name)

    def _may_push(self, waiting: WaitingPush) -> bool:
        stream = waiting.push.stream
        return stream in self._owners and self._may_use(stream, waiting.message.origin)

    def _confirm(self, waiting: WaitingPush, result: Stored | StoreError | None) -> None:
        if isinstance(result, StoreError):
            self._tell("a push to stream %s was refused: %s", waiting.push.stream, result)
        ok = isinstance(result, Stored)
        index = result.index if isinstance(result, Stored) else 0
        self._answer(waiting.message, waiting.message.onward[0], PushResponse(waiting.request_id, ok, index))

    # Pulls

    def _take_pull(self, message: Message, name: str, request: PullRequest) -> None:
        """Let a pull wait for records, or for its time to be over."""
        # Here and not in the pull's task, since of tasks that are started together any may run first.
        scope = trio.CancelScope()
        if not self._spawn(message, partial(self._pull, message, name, request, scope)):
            self._answer_pull(message, name, request, ())
            return
        self._pulls.take((name, message.back), scope)

    async def _pull(self, message: Message, name: str, request: PullRequest, scope: trio.CancelScope) -> None:
        records: Sequence[Record] = ()
        scope.deadline = trio.current_time() + LONG_POLL_SECONDS
        with scope:
            try:
                known = name in self._owners or await self._meet(name, message.origin) is None
                if known and self._may_use(name, message.origin):
                    limit = max(1, min(request.limit, MAX_PULL_LIMIT))
                    records = await self._store.read(
                        name, request.index, limit=limit, max_bytes=MAX_ANSWER - ANSWER_MARGIN
                    )
            except StoreError as error:
                self._tell("a pull of stream %s failed: %s", name, error)
        await self._pulls.turn()
        self._answer_pull(message, name, request, records)
        self._pulls.answered((name, message.back), scope)

    def _answer_pull(self, message: Message, name: str, request: PullRequest, records: Sequence[Record]) -> None:
        payload = encode(PullResponse(request.request_id, tuple(records)))
        limit = self._router.limit(message.back[0]) if message.back else None
        routes = sum(map(len, message.back)) + len(message.onward[0]) + FRAME_HEADS
        if limit is not None and records and len(payload) + routes > limit:
            # Only a way back that is absurdly long leaves no room for one record: its consumer gets nothing, but always an answer.
            payload = encode(PullResponse(request.request_id, ()))
        self._router.answer(message, message.onward[0], payload)
        if not message.origin.resends:
            self._pulls.rest((name, message.back))

    # Positions

    async def _get(self, message: Message, request: IndexGet) -> None:
        position = None
        if (
            valid_client_id(request.client_id)
            and valid_stream_name(request.stream)
            and self._may_use(request.stream, message.origin)
        ):
            client_id = _scoped(request.client_id, message.origin)
            position = self._saves.get((client_id, request.stream))
            while position is None:
                try:
                    position = await self._store.position(client_id, request.stream)
                    break
                except StoreError as error:
                    self._tell("a position in stream %s could not be read: %s", request.stream, error)
                    if not await self._try_again(message.origin, error):
                        break
        self._answer(message, self._index_service, IndexResponse(request.client_id, request.stream, position))

    async def _save_positions(self) -> None:
        while True:
            await self._save_due.wait()
            self._save_due = trio.Event()
            due = dict(self._saves)
            try:
                await self._store.save_positions(
                    [Position(client, stream, index) for (client, stream), index in due.items()]
                )
            except StoreError as error:
                log.warning("positions were not saved: %s", sanitize(error))
            for key, index in due.items():
                if self._saves.get(key) == index:
                    del self._saves[key]
            self._settled()


def _resends(message: Message) -> bool:
    """Whether its sender sends again what is not confirmed and understands `error`: one of our own streams does behind any link."""
    return message.origin.resends or (bool(message.back) and sends_again(decode_address(message.back[-1])[1]))


def _owner(origin: Origin) -> str:
    """Who owns what a client makes: its authenticated identifier in hex, or nobody in particular."""
    return "" if origin.identifier is None else origin.identifier.hex()


def _scoped(client_id: str, origin: Origin) -> str:
    """A client id of its own for each identity, so that nobody rewinds another's position."""
    if origin.identifier is None:
        return client_id
    scoped = f"{origin.identifier.hex()[:32]}.{client_id}"
    return scoped if valid_client_id(scoped) else f"{scoped[:32]}.{sha256(client_id.encode()).hexdigest()}"
