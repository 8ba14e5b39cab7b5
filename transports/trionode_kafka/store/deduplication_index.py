"""What a hub knows of the pushes that are stored: each producer's last and the recent ones' indexes, learnt by reading topics."""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable

from trionode.plugins import Push, born_at
from trionode_kafka.client import Bridge

#: Seconds for which a hub relies on what it knows of a topic to which others may write too.
KNOWN_SECONDS = 10
#: Seconds by which a producer's clock, which names its birth, may differ from the hubs'; also how far back a hub looks for the pushes of
#: producers whose address says nothing of their birth, and which never resend.
BIRTH_SKEW_SECONDS = 300
#: Producers, over all streams, of which the last request id is kept; one that is forgotten costs a look back to its birth.
MAX_PRODUCERS = 50_000
#: Pushes, over all streams, whose index is kept for a resend: 256 outstanding ones (MAX_PUSHES) of 400 producers.
MAX_RECENT = 100_000


class Knowledge:
    """What is known of one topic: every record from `_since` to `_upto` was looked at, at the time `_at` (wall clock, Unix seconds)."""

    def __init__(self, bridge: Bridge, topic: str, memory: "Memory") -> None:
        self._bridge = bridge
        self._topic = topic
        self._memory = memory
        self._since = 0
        self._upto: int | None = None
        self._at = 0.0

    async def learn(self, waiting: Callable[[], Iterable[Push]]) -> None:
        """Know of every push that waits whether it is stored, by reading what of the topic is not known yet.

        Pushes that come while this reads are looked up too: after the last look nothing waits before it returns.
        """
        began = time.time()
        if self._upto is None:
            end = await self._bridge.end_offset(self._topic)
            self._since = self._upto = end
            self._at = began
        elif began - self._at > KNOWN_SECONDS or began < self._at:
            end = await self._bridge.end_offset(self._topic)
            if end > self._upto:
                await self._look(self._upto, end)
            self._upto = max(self._upto, end)
            self._at = began
        looked: set[tuple[bytes, int]] = set()
        while unknown := [
            push
            for push in waiting()
            if (push.producer, push.request_id) not in looked
            and ((self, push.producer) not in self._memory.last or self.superseded(push))
        ]:
            looked.update((push.producer, push.request_id) for push in unknown)
            # A resend of something stored so long ago that its index is forgotten: only its producer's whole past can tell.
            stale = any(self.superseded(push) for push in unknown)
            births = [_birth_ms(push.producer, began) for push in unknown]
            back = await self._bridge.offset_at(self._topic, min(births) - BIRTH_SKEW_SECONDS * 1000)
            upto = self._upto if stale else self._since
            if back is not None and back < upto:
                await self._look(back, upto)
                self._since = min(self._since, back)
            for push in unknown:
                self._memory.note_producer(self, push.producer, -1)

    def index(self, push: Push) -> int | None:
        """Where the push lies, if it is a recent one."""
        return self._memory.recent.get((self, push.producer, push.request_id))

    def superseded(self, push: Push) -> bool:
        """Whether the push is below its producer's last, yet not among the recent ones."""
        return (
            push.request_id <= self._memory.last.get((self, push.producer), -1)
            and self.index(push) is None
            and born_at(push.producer) is not None
        )

    def sure_ms(self) -> int:
        """The time (Unix milliseconds) at which all this was known, not the present one.

        A hub that freezes before it sends must be refused when it wakes late.
        """
        return int(min(time.time(), self._at + KNOWN_SECONDS) * 1000)

    def stored(self, push: Push, offset: int) -> int:
        """Note that the producer stored a push; the index that the push has, which is an earlier one if this is a copy."""
        index = self._memory.note(self, push.producer, push.request_id, offset)
        if offset == self._upto:
            self._upto = offset + 1
        return index

    def doubt(self) -> None:
        """Look again, before the next push, at what others wrote."""
        self._at = 0.0

    def forget_before_end(self) -> None:
        """Whoever is not in the memory is no longer known to have stored nothing."""
        self._since = self._upto or 0

    async def _look(self, start: int, end: int) -> None:
        async for records in self._bridge.scan(self._topic, start, end):
            for record in records:
                if record.producer is not None and record.request_id is not None:
                    self._memory.note(self, record.producer, record.request_id, record.offset)


class Memory:
    """What producers stored, over all topics, least recently used first: the last request ids, and the indexes of recent pushes."""

    __slots__ = ("last", "recent")

    def __init__(self) -> None:
        self.last: OrderedDict[tuple[Knowledge, bytes], int] = OrderedDict()
        self.recent: OrderedDict[tuple[Knowledge, bytes, int], int] = OrderedDict()

    def note(self, of: Knowledge, producer: bytes, request_id: int, offset: int) -> int:
        """Remember a stored push; its index, the lowest that was noted."""
        self.note_producer(of, producer, request_id)
        key = (of, producer, request_id)
        index = self.recent[key] = min(offset, self.recent.get(key, offset))
        self.recent.move_to_end(key)
        if len(self.recent) > MAX_RECENT:
            self.recent.popitem(last=False)
        return index

    def note_producer(self, of: Knowledge, producer: bytes, request_id: int) -> None:
        """Remember that a producer's last push is this one, or a later one; -1 for a producer that stored nothing."""
        key = (of, producer)
        self.last[key] = max(request_id, self.last.get(key, -1))
        self.last.move_to_end(key)
        if len(self.last) > MAX_PRODUCERS:
            (forgotten, _), _ = self.last.popitem(last=False)
            forgotten.forget_before_end()

    def drop(self, of: Knowledge) -> None:
        """Remember nothing of a topic that is gone."""
        for producer in [key for key in self.last if key[0] is of]:
            del self.last[producer]
        for push in [key for key in self.recent if key[0] is of]:
            del self.recent[push]


def _birth_ms(producer: bytes, now: float) -> int:
    born = born_at(producer)
    return int(now * 1000) if born is None else min(born, int(now * 1000))
