"""The stream service and its index service: what a hub offers, over a store, to producers and consumers (spec §11)."""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from hashlib import sha256

import attrs
import trio

from trionode.access import Access
from trionode.errors import WireError
from trionode.observe import Rarely, log, shown
from trionode.protocol.address import LOCAL, Encoded, decode_address, encode_address, local
from trionode.protocol.message import Facts, Message
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
    valid_client_id,
    valid_stream_name,
)
from trionode.push_batches import PushBatches, WaitingPush
from trionode.room import Room
from trionode.router import Router
from trionode.stream_store import Position, Push, Stored, StoreError, StreamStore

#: The names by which clients know the services, unless they are told others (spec §11.2).
SERVICE = "stream_kafka"
INDEX_SERVICE = "stream_kafka_index"

#: What a pull answer needs of its frame beside the records: addresses, heads, protocol name (spec §11.6, 9: about 150 bytes, and more in a channel).
ANSWER_MARGIN = 600
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


@attrs.define(eq=False)
class _Client:
    """What one client has outstanding; forgotten once that is nothing and its link is gone."""

    room: Room
    streams: set[str] = attrs.Factory(set)
    requests: int = 0


class StreamService:
    """Serves streams at two addresses and at one address for each stream; made by `serve_streams`.

    A stream's worker has an address that follows from its name, so it is valid on every hub before the same store. Pushes leave for
    the store in batches; while a batch is there, pushes to other streams make up the next. A pull waits for up to LONG_POLL_SECONDS.
    A stream that an authenticated identity made belongs to it: others reach it only if its name is a capability, as `unique` makes.
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
        self._pulls: dict[tuple[str, tuple[Encoded, ...]], trio.CancelScope] = {}
        self._saves: dict[tuple[str, str], int] = {}
        self._save_due = trio.Event()
        self._scope = trio.CancelScope()
        self._ended = trio.Event()
        self._closing = False
        self._rarely = Rarely()
        self._quieter = trio.Event()
        self._nursery: trio.Nursery | None = None

    async def run(
        self, *, allow: Access, task_status: trio.TaskStatus["StreamService"] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve until `aclose`, or the end of the node; what waits for the store then is not confirmed, and so sent again by its producer."""
        router = self._router
        router.register(self._service, self._on_service, allow=allow)
        router.register(self._index_service, self._on_index, allow=allow)
        router.register_family(self._prefix, self._on_worker, allow=allow)
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
            router.unregister_family(self._prefix)
            for client in self._clients.values():
                client.room.close()
            self._ended.set()

    async def aclose(self) -> None:
        """Answer every pull, so that no consumer waits in vain (spec §11.6, 7), and end once the store has what was pushed."""
        self._closing = True
        for scope in self._pulls.values():
            scope.cancel()
        with trio.move_on_after(CLOSE_GRACE):
            while self._pushes.is_busy or self._pulls or self._saves:
                self._quieter = trio.Event()
                await self._quieter.wait()
        self._scope.cancel()
        await self._ended.wait()

    def _settled(self) -> None:
        self._quieter.set()

    # Requests

    def _on_service(self, message: Message) -> Room | None:
        request = self._read(message)
        if isinstance(request, CreateRequest):
            self._spawn(message, partial(self._create, message, request))
        return None

    def _on_index(self, message: Message) -> Room | None:
        request = self._read(message)
        if isinstance(request, IndexGet):
            self._spawn(message, partial(self._get, message, request))
        elif isinstance(request, IndexSave) and self._may_save(request, message.facts):
            self._saves[_scoped(request.client_id, message.facts), request.stream] = request.index
            self._save_due.set()
        return None

    def _on_worker(self, message: Message) -> Room | None:
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
                self._router.counters["stream request at the wrong address"] += 1
        return None

    def _read(self, message: Message) -> Request | None:
        try:
            return decode_request(message.payload)
        except WireError:
            # No answer: to a producer it would be data (spec §11.6, 6), and to others an oracle.
            self._router.counters["undecodable stream request"] += 1
            return None

    def _client(self, facts: Facts) -> _Client:
        key = facts.identifier or facts.link or facts.stream
        client = self._clients.get(key)
        if client is None:
            if len(self._clients) >= 256:
                self._forget_clients()
            client = self._clients[key] = _Client(Room(self._limits.push_bytes))
        return client

    def _forget_clients(self) -> None:
        for key, client in list(self._clients.items()):
            if not client.room.size and not client.requests and (key is None or key not in self._router):
                del self._clients[key]

    def _spawn(self, message: Message, task: Callable[[], Awaitable[None]], refusal: Response | None = None) -> bool:
        """Run a request that may wait in a task of its own; False if that is over its client's limit."""
        client = self._client(message.facts)
        if client.requests >= self._limits.requests or self._nursery is None:
            self._router.counters["too many stream requests"] += 1
            if refusal is not None:
                self._answer(message, message.onward[0], refusal)
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
        if self._rarely.is_due(what + stream, trio.current_time()):
            log.warning(what, shown(stream), shown(error))

    def _worker(self, stream: str) -> Encoded:
        return encode_address(LOCAL, self._prefix + stream.encode())

    # Ownership

    def _may_use(self, stream: str, facts: Facts) -> bool:
        """Whether a client may use a stream that it names: it owns it, or nobody in particular does, or the name is a capability."""
        return self._owners.get(stream, "") in ("", _owner(facts)) or (
            is_capability(stream) and facts.identifier is not None
        )

    def _may_save(self, request: IndexSave, facts: Facts) -> bool:
        known = valid_client_id(request.client_id) and valid_stream_name(request.stream)
        return known and len(self._saves) < MAX_SAVES and self._may_use(request.stream, facts)

    async def _create(self, message: Message, request: CreateRequest) -> None:
        name = request.name
        if name is None or not valid_stream_name(name):
            refusal: str | None = (
                "a stream is named by 1 to 200 of A-Z a-z 0-9 . _ -; make a name that nobody can guess with unique()"
            )
        else:
            refusal = await self._meet(name, message.facts)
        if name is None or refusal is not None:
            self._answer(message, self._service, ErrorResponse(refusal or ""))
        else:
            self._answer(message, self._worker(name), CreateResponse(name))

    async def _meet(self, name: str, facts: Facts) -> str | None:
        """Learn whose a stream is, which is made if there is none; why this client may not use it, None if it may.

        A stream's worker can be used without a create, so who comes first to this hub need not be who made it at another one.
        """
        client = self._client(facts)
        if name not in client.streams and len(client.streams) >= self._limits.streams:
            return f"this hub lets a client use {self._limits.streams} streams"
        try:
            self._owners[name] = await self._store.create(name, _owner(facts))
        except StoreError as error:
            self._tell("stream %s could not be created: %s", name, error)
            return f"the stream could not be created: {error}"
        if not self._may_use(name, facts):
            return "the stream belongs to another identity"
        client.streams.add(name)
        return None

    # Pushes

    def _push(self, message: Message, name: str, request: PushRequest) -> Room | None:
        if not message.back:
            return None
        client = self._client(message.facts)
        _, producer = decode_address(message.back[-1])
        waiting = WaitingPush(Push(name, producer, request.request_id, request.record), message, client.room)
        # A client's room is full only where its readers don't wait, on a trunk.
        if len(request.record) > MAX_RECORD or self._closing or client.room.is_full:
            self._pushes.refuse(waiting)
            return None
        if name not in self._owners and not self._pushes.is_held(name):
            if client.requests >= self._limits.requests:
                self._pushes.refuse(waiting)
                return None
            self._pushes.hold(name)
            self._spawn(message, partial(self._introduce, name, message.facts))
        return self._pushes.put(waiting)

    async def _introduce(self, name: str, facts: Facts) -> None:
        """Meet a stream that was pushed to before it was created here; its pushes wait meanwhile."""
        try:
            await self._meet(name, facts)
        finally:
            self._pushes.let_go(name)

    def _may_push(self, waiting: WaitingPush) -> bool:
        stream = waiting.push.stream
        return stream in self._owners and self._may_use(stream, waiting.message.facts)

    def _confirm(self, waiting: WaitingPush, result: Stored | StoreError | None) -> None:
        if isinstance(result, StoreError):
            self._tell("a push to stream %s was refused: %s", waiting.push.stream, result)
        ok = isinstance(result, Stored)
        index = result.index if isinstance(result, Stored) else 0
        self._answer(waiting.message, waiting.message.onward[0], PushResponse(waiting.push.request_id, ok, index))

    # Pulls

    def _take_pull(self, message: Message, name: str, request: PullRequest) -> None:
        """Let a pull wait, in the place of the one that the same consumer sent before: that is answered, empty, since it was given up."""
        # Here and not in the pull's task, since of tasks that are started together any may run first.
        scope = trio.CancelScope()
        if self._spawn(
            message, partial(self._pull, message, name, request, scope), PullResponse(request.request_id, ())
        ):
            key = (name, message.back)
            former = self._pulls.get(key)
            if former is not None:
                former.cancel()
            self._pulls[key] = scope
            if self._closing:
                scope.cancel()

    async def _pull(self, message: Message, name: str, request: PullRequest, scope: trio.CancelScope) -> None:
        records: Sequence[Record] = ()
        scope.deadline = trio.current_time() + LONG_POLL_SECONDS
        with scope:
            try:
                known = name in self._owners or await self._meet(name, message.facts) is None
                if known and self._may_use(name, message.facts):
                    limit = max(1, min(request.limit, MAX_PULL_LIMIT))
                    records = await self._store.read(
                        name, request.index, limit=limit, max_bytes=MAX_ANSWER - ANSWER_MARGIN
                    )
            except StoreError as error:
                self._tell("a pull of stream %s failed: %s", name, error)
        key = (name, message.back)
        if self._pulls.get(key) is scope:
            del self._pulls[key]
            self._quieter.set()
        self._answer(message, message.onward[0], PullResponse(request.request_id, tuple(records)))

    # Positions

    async def _get(self, message: Message, request: IndexGet) -> None:
        position = None
        if (
            valid_client_id(request.client_id)
            and valid_stream_name(request.stream)
            and self._may_use(request.stream, message.facts)
        ):
            client_id = _scoped(request.client_id, message.facts)
            position = self._saves.get((client_id, request.stream))
            if position is None:
                try:
                    position = await self._store.position(client_id, request.stream)
                except StoreError as error:
                    self._tell("a position in stream %s could not be read: %s", request.stream, error)
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
                log.warning("positions were not saved: %s", shown(error))
            for key, index in due.items():
                if self._saves.get(key) == index:
                    del self._saves[key]
            self._quieter.set()


def _owner(facts: Facts) -> str:
    """Who owns what a client makes: its authenticated identifier in hex, or nobody in particular."""
    return "" if facts.identifier is None else facts.identifier.hex()


def _scoped(client_id: str, facts: Facts) -> str:
    """A client id of its own for each identity, so that nobody rewinds another's position."""
    if facts.identifier is None:
        return client_id
    scoped = f"{facts.identifier.hex()[:32]}.{client_id}"
    return scoped if valid_client_id(scoped) else f"{scoped[:32]}.{sha256(client_id.encode()).hexdigest()}"
