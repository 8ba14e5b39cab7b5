"""Pushes on their way to a store: in order for each stream and each producer, and in batches that hold up no other stream."""

from collections import deque
from collections.abc import Callable, Sequence

import attrs
import trio

from trionode.log import LogThrottle, log, sanitize
from trionode.protocol.stream import born_at
from trionode.protocol.wire.message import Message
from trionode.routing.byte_budget import ByteBudget
from trionode.stream.store.base import FinalError, Push, Stored, StoreError, StreamStore

#: Pushes in one batch for the store, and batches that are with the store at a time, each with streams of its own.
BATCH = 512
MAX_BATCHES = 4
#: Producers whose next request id is kept; one that is forgotten may, after a lost link, be overtaken by its own later pushes.
MAX_PRODUCERS = 10_000
#: What a waiting push costs beside its record.
PUSH_OVERHEAD = 512
#: Seconds until the store is asked again for clients that don't ask again themselves.
RETRY_SECONDS = 0.5


@attrs.frozen(eq=False)
class WaitingPush:
    """A push on its way to the store, the message that is answered, and the room of its client, which it takes up meanwhile."""

    push: Push
    #: What its client calls it, and the answer therefore.
    request_id: int
    message: Message
    room: ByteBudget
    #: Whether its client sends it again until it is stored.
    resends: bool

    @property
    def cost(self) -> int:
        """The bytes that it takes up."""
        return len(self.push.record) + PUSH_OVERHEAD

    @property
    def producer(self) -> tuple[str, bytes]:
        """Whose it is: request ids rise within this."""
        return self.push.stream, self.push.producer


class PushBatches:
    """Takes pushes one by one and gives them to the store in batches; while a batch is there, pushes to other streams make up the next.

    `may_store` is asked when a push's time has come; `answer` is told what became of each: where it lies, the store's refusal, or None
    where it was not its turn or not allowed. `settled` is called whenever a batch is done.

    What the store fails to take is left to a client that sends it again; for one that does not (spec §11.5) it is tried again here, before
    all that was pushed to its stream since, until the store takes it or never will.
    """

    def __init__(
        self,
        store: StreamStore,
        may_store: Callable[[WaitingPush], bool],
        answer: Callable[[WaitingPush, Stored | StoreError | None], None],
        settled: Callable[[], None],
    ) -> None:
        self._store = store
        self._allowed = may_store
        self._answer = answer
        self._settled = settled
        self._queues: dict[str, deque[WaitingPush]] = {}
        self._held: set[str] = set()
        # The request id whose turn it is, of each producer that sends again: what comes after it may not overtake it (spec §11.6, 5),
        # be it that the store refused it, or that a link was lost whose last bytes are read after the first of the next link.
        self._turns: dict[tuple[str, bytes], int] = {}
        self._batches = 0
        self._log_throttle = LogThrottle()
        self._nursery: trio.Nursery | None = None

    async def run(self) -> None:
        """Serve until cancelled; what is with the store then is not answered."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._start_batch()
            try:
                await trio.sleep_forever()
            finally:
                # Before it can close: pushes still come, and streams are let go.
                self._nursery = None

    @property
    def is_busy(self) -> bool:
        """Whether pushes are with the store, or wait for it."""
        return self._batches > 0 or bool(self._queues)

    def put(self, waiting: WaitingPush) -> ByteBudget | None:
        """Queue a push; its client's room, if that is now over its bound."""
        self._queues.setdefault(waiting.push.stream, deque()).append(waiting)
        over_budget = waiting.room.add(waiting.cost)
        self._start_batch()
        return over_budget

    def is_held(self, stream: str) -> bool:
        """Whether pushes to a stream wait: for a batch of it that is with the store, or because it was said so."""
        return stream in self._held

    def hold(self, stream: str) -> None:
        """Let pushes to a stream wait until `let_go`."""
        self._held.add(stream)

    def let_go(self, stream: str) -> None:
        """Let pushes to a stream go on."""
        self._held.discard(stream)
        self._start_batch()

    def give_up(self) -> None:
        """Refuse what clients don't send again and the store has not taken: this is the end."""
        lost = [waiting for queue in self._queues.values() for waiting in queue if not waiting.resends]
        for waiting in lost:
            self.refuse(waiting)
        if lost:
            log.warning("%d pushes of clients that don't send them again were not stored before the end", len(lost))

    def refuse(self, waiting: WaitingPush, error: StoreError | None = None) -> None:
        """Answer a push that is not stored; it keeps its turn until its producer sends it again."""
        request_id = waiting.push.request_id
        self._set_turn(waiting, min(self._turns.get(waiting.producer, request_id), request_id))
        self._answer(waiting, error)

    def _is_its_turn(self, waiting: WaitingPush) -> bool:
        request_id = waiting.push.request_id
        turn = self._turns.get(waiting.producer, request_id)
        self._set_turn(waiting, max(turn, request_id + 1) if request_id <= turn else turn)
        return request_id <= turn

    def _set_turn(self, waiting: WaitingPush, turn: int) -> None:
        if not waiting.resends or born_at(waiting.push.producer) is None:
            return  # whoever sends nothing again may not be waited for (spec §11.5)
        self._turns[waiting.producer] = turn
        if len(self._turns) > MAX_PRODUCERS:
            del self._turns[next(iter(self._turns))]

    def _start_batch(self) -> None:
        if self._batches >= MAX_BATCHES or self._nursery is None or self._queues.keys() <= self._held:
            return
        # A task that is started runs after the reader has delivered its whole burst: the batch is taken then, not now.
        self._batches += 1
        self._nursery.start_soon(self._append)

    def _take_batch(self) -> tuple[list[WaitingPush], set[str]]:
        batch: list[WaitingPush] = []
        streams: set[str] = set()
        for stream, queue in list(self._queues.items()):
            if stream in self._held or len(batch) >= BATCH:
                continue
            streams.add(stream)
            while queue and len(batch) < BATCH:
                waiting = queue.popleft()
                if self._allowed(waiting) and self._is_its_turn(waiting):
                    batch.append(waiting)
                else:
                    waiting.room.release(waiting.cost)
                    self.refuse(waiting)
            if not queue:
                del self._queues[stream]
        return batch, streams

    async def _append(self) -> None:
        batch, streams = self._take_batch()
        self._held |= streams
        again: dict[str, list[WaitingPush]] = {}
        settled = 0
        try:
            for waiting, result in zip(batch, await self._stored(batch), strict=True):
                settled += 1
                if isinstance(result, StoreError) and not waiting.resends and not isinstance(result, FinalError):
                    again.setdefault(waiting.push.stream, []).append(waiting)
                    self._tell("pushes to stream %s wait for the store: %s", waiting.push.stream, result)
                    continue
                waiting.room.release(waiting.cost)
                if isinstance(result, Stored):
                    self._answer(waiting, result)
                else:
                    self.refuse(waiting, result)
        finally:
            self._batches -= 1
            for waiting in batch[settled:]:
                waiting.room.release(waiting.cost)
            self._wait_again(again)
            self._held -= streams - again.keys()
            self._settled()
        self._start_batch()

    async def _stored(self, batch: list[WaitingPush]) -> Sequence[Stored | StoreError]:
        if not batch:
            return ()
        try:
            return await self._store.append([waiting.push for waiting in batch])
        except StoreError as error:
            self._tell("a batch of %d pushes was not stored: %s", len(batch), error)
            return [error] * len(batch)

    def _tell(self, what: str, which: object, error: StoreError) -> None:
        """Log a failure at most once a minute: what is tried again fails as often."""
        if self._log_throttle.is_due(f"{what}{which}", trio.current_time()):
            log.warning(what, which, sanitize(error))

    def _wait_again(self, again: dict[str, list[WaitingPush]]) -> None:
        """Put pushes back before those that came since, and let their streams wait for RETRY_SECONDS."""
        for stream, pushes in again.items():
            self._queues.setdefault(stream, deque()).extendleft(reversed(pushes))
        if again and self._nursery is not None:
            self._nursery.start_soon(self._let_go_later, list(again))

    async def _let_go_later(self, streams: list[str]) -> None:
        await trio.sleep(RETRY_SECONDS)
        for stream in streams:
            self.let_go(stream)
