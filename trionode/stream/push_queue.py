"""Pushes on their way to a store: in order for each stream and each producer, in batches that delay no other stream."""

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress

import attrs
import trio

from trionode.log import log
from trionode.protocol.stream.names import uuid7_milliseconds
from trionode.protocol.wire.message import Message
from trionode.routing.byte_budget import ByteBudget
from trionode.stream.owners import RETRY_SECONDS, StoreLog
from trionode.stream.store.base import FinalError, Push, Stored, StoreError, StreamStore

#: Pushes in one batch for the store, and batches that are with the store at a time, each of other streams.
BATCH = 512
MAX_BATCHES = 4
#: Producers whose next request id is remembered. A forgotten one may, after a lost link, be overtaken by its own later
#: pushes.
MAX_PRODUCERS = 10_000
#: Seconds for which all pushes of a producer were out of order until the next one counts as its first. A producer sends
#: the missing one many times within that, unless a false confirmation has told it that it is stored.
STUCK_SECONDS = 10.0
#: Producers in one batch for which the store is asked what other hubs stored, and seconds until it is asked for the same
#: one again. A producer that lost a push looks like one that comes back from another hub.
MAX_ASKED = 16
ASK_SECONDS = 1.0
#: What a waiting push costs beside its record, bytes.
PUSH_OVERHEAD = 512


@attrs.frozen(eq=False)
class WaitingPush:
    """A push on its way to the store, with the message to answer and the budget of its client."""

    push: Push
    #: The request id that its client gave it, for the answer.
    request_id: int
    message: Message
    budget: ByteBudget
    #: Whether its client sends it again until it is stored.
    resends: bool

    @property
    def cost(self) -> int:
        """The bytes that it takes up."""
        return len(self.push.record) + PUSH_OVERHEAD

    @property
    def producer(self) -> tuple[str, bytes]:
        """The stream and the producer: request ids rise within this pair."""
        return self.push.stream, self.push.producer


class PushQueue:
    """Takes pushes one by one and stores them in batches.

    While a batch is stored, pushes to other streams make up the next one.

    A push that the store does not take is left to its client if that sends it again. For other clients (spec §11.5)
    the queue tries it again, before all later pushes to its stream, until the store takes it or refuses it for good.
    """

    def __init__(
        self,
        store: StreamStore,
        store_log: StoreLog,
        *,
        start_soon: Callable[..., bool],
        is_allowed: Callable[[WaitingPush], bool],
        answer: Callable[[WaitingPush, Stored | StoreError | None], None],
        changed: Callable[[], object],
    ) -> None:
        """Make an empty queue.

        Args:
          store: Takes the batches.
          store_log: Logs its failures.
          start_soon: Starts a task, unless the service has ended; returns whether it did.
          is_allowed: Asked when a push's turn has come: whether its client may use the stream.
          answer: Takes the result of each push: its place, the store's error, or None if it was out of order or not
              allowed.
          changed: Called after each batch.
        """
        self._store = store
        self._log = store_log
        self._start_soon = start_soon
        self._is_allowed = is_allowed
        self._answer = answer
        self._changed = changed
        self._queues: dict[str, deque[WaitingPush]] = {}
        self._held: set[str] = set()
        # The next request id of each producer that sends again. No later push may overtake it (spec §11.6, 5), be it
        # that the store refused it, or that the last bytes of a lost link are read after the first bytes of the next
        # one.
        self._next_ids: dict[tuple[str, bytes], int] = {}
        # The request id behind the last stored push of each of them. A copy of a stored push that the store refuses
        # makes no later push wait: its producer, which knows that it is stored, will not send it again.
        self._stored_ids: dict[tuple[str, bytes], int] = {}
        # Since when each of them has sent only pushes that were out of order.
        self._stuck_since: dict[tuple[str, bytes], float] = {}
        # When the store was asked for the last push of a producer.
        self._asked_at: dict[tuple[str, bytes], float] = {}
        self._batches = 0

    @property
    def is_busy(self) -> bool:
        """Whether pushes are with the store, or wait for it."""
        return self._batches > 0 or bool(self._queues)

    def put(self, waiting: WaitingPush) -> ByteBudget | None:
        """Queue a push, and return its client's budget if that is now over its limit."""
        self._queues.setdefault(waiting.push.stream, deque()).append(waiting)
        over_budget = waiting.budget.add(waiting.cost)
        self._start_batch()
        return over_budget

    def is_held(self, stream: str) -> bool:
        """Whether pushes to a stream wait, for a batch of it or for `release`."""
        return stream in self._held

    def hold(self, stream: str) -> None:
        """Make pushes to a stream wait until `release`."""
        self._held.add(stream)

    def release(self, stream: str) -> None:
        """Let pushes to a stream continue."""
        self._held.discard(stream)
        self._start_batch()

    def refuse_rest(self) -> None:
        """Refuse the waiting pushes of clients that do not send again: the service ends."""
        rest = [waiting for queue in self._queues.values() for waiting in queue if not waiting.resends]
        for waiting in rest:
            self.refuse(waiting)
        if rest:
            log.warning("the service ends, and %d pushes of clients that don't send again were not stored", len(rest))

    def refuse(self, waiting: WaitingPush, error: StoreError | None = None) -> None:
        """Answer a push that is not stored. Its request id stays the next one until its producer sends it again."""
        request_id = waiting.push.request_id
        next_id = min(self._next_ids.get(waiting.producer, request_id), request_id)
        self._set_next_id(waiting, max(next_id, self._stored_ids.get(waiting.producer, 0)))
        self._answer(waiting, error)

    def _is_in_order(self, waiting: WaitingPush) -> bool:
        request_id = waiting.push.request_id
        next_id = self._next_ids.get(waiting.producer, request_id)
        if request_id > next_id:
            now = trio.current_time()
            if now - self._stuck_since.setdefault(waiting.producer, now) < STUCK_SECONDS:
                return False
        self._stuck_since.pop(waiting.producer, None)
        self._set_next_id(waiting, max(next_id, request_id + 1))
        return True

    def _set_next_id(self, waiting: WaitingPush, next_id: int) -> None:
        if not waiting.resends or uuid7_milliseconds(waiting.push.producer) is None:
            return  # a producer that never sends again must not be waited for (spec §11.5)
        self._next_ids[waiting.producer] = next_id
        if len(self._next_ids) > MAX_PRODUCERS:
            forgotten = next(iter(self._next_ids))
            del self._next_ids[forgotten]
            self._stored_ids.pop(forgotten, None)
            self._stuck_since.pop(forgotten, None)
            self._asked_at.pop(forgotten, None)

    def _start_batch(self) -> None:
        # A new task runs after the reader has delivered its whole burst: the batch is taken then, not now.
        if self._batches < MAX_BATCHES and not self._queues.keys() <= self._held and self._start_soon(self._append):
            self._batches += 1

    def _take_batch(self) -> tuple[list[WaitingPush], set[str]]:
        batch: list[WaitingPush] = []
        streams: set[str] = set()
        for stream, queue in list(self._queues.items()):
            if stream in self._held or len(batch) >= BATCH:
                continue
            streams.add(stream)
            while queue and len(batch) < BATCH:
                batch.append(queue.popleft())
            if not queue:
                del self._queues[stream]
        return batch, streams

    async def _append(self) -> None:
        taken, streams = self._take_batch()
        self._held |= streams
        again: dict[str, list[WaitingPush]] = {}
        unanswered = dict.fromkeys(taken)
        try:
            batch = [waiting for waiting in taken if self._is_allowed(waiting) and self._is_in_order(waiting)]
            if len(batch) < len(taken):
                in_order = set(batch)
                others = [waiting for waiting in taken if waiting not in in_order and self._is_allowed(waiting)]
                await self._ask_store(others)
                batch += [waiting for waiting in others if self._is_in_order(waiting)]
                in_order = set(batch)
                for waiting in [waiting for waiting in taken if waiting not in in_order]:
                    del unanswered[waiting]
                    waiting.budget.release(waiting.cost)
                    self.refuse(waiting)
            for waiting, result in zip(batch, await self._stored(batch), strict=True):
                del unanswered[waiting]
                if isinstance(result, StoreError) and not waiting.resends and not isinstance(result, FinalError):
                    again.setdefault(waiting.push.stream, []).append(waiting)
                    self._log.failed("pushes to the stream %s wait for the store: %s", waiting.push.stream, result)
                    continue
                waiting.budget.release(waiting.cost)
                if isinstance(result, Stored):
                    if waiting.producer in self._next_ids:
                        stored = max(self._stored_ids.get(waiting.producer, 0), waiting.push.request_id + 1)
                        self._stored_ids[waiting.producer] = stored
                    self._answer(waiting, result)
                else:
                    self.refuse(waiting, result)
        finally:
            self._batches -= 1
            for waiting in unanswered:
                waiting.budget.release(waiting.cost)
            for stream, pushes in again.items():  # before those that came since
                self._queues.setdefault(stream, deque()).extendleft(reversed(pushes))
            self._held -= streams - again.keys()
            self._changed()
        if again:
            self._start_soon(self._release_later, list(again))
        self._start_batch()

    async def _ask_store(self, others: Sequence[WaitingPush]) -> None:
        """Find out what other hubs stored meanwhile of producers whose pushes seem to have overtaken earlier ones."""
        now = trio.current_time()
        first = {waiting.producer: waiting for waiting in reversed(others)}
        for producer, waiting in list(first.items())[:MAX_ASKED]:
            if now - self._asked_at.get(producer, -ASK_SECONDS) < ASK_SECONDS:
                continue
            self._asked_at[producer] = now
            with suppress(StoreError):  # the producer sends again
                last = await self._store.last_request(*producer)
                # If the stream has lost all that it held of the producer, that goes on where it is.
                next_id = waiting.push.request_id if last is None else last + 1
                self._set_next_id(waiting, max(next_id, self._next_ids.get(producer, 0)))

    async def _stored(self, batch: list[WaitingPush]) -> Sequence[Stored | StoreError]:
        if not batch:
            return ()
        try:
            return await self._store.append([waiting.push for waiting in batch])
        except StoreError as error:
            self._log.failed("a batch of %s pushes was not stored: %s", len(batch), error)
            return [error] * len(batch)

    async def _release_later(self, streams: list[str]) -> None:
        await trio.sleep(RETRY_SECONDS)
        for stream in streams:
            self.release(stream)
