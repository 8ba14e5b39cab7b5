"""One Kafka as links and listeners of a transport share it: opened by the first, closed by the last."""

from collections import OrderedDict
from typing import TYPE_CHECKING

import trio

from trionode.plugins import StoreError
from trionode_kafka.client import Bridge, Outgoing, close_bridge, connect_bridge
from trionode_kafka.client.security import Security

if TYPE_CHECKING:
    from trionode_kafka.link.link import KafkaLink

#: Seconds after which whoever has nothing to say says that he lives.
BEAT_SECONDS = 10.0
#: Seconds that closed links are given to hear the last of peers that close at the same time: whoever misses it leaves a topic behind.
LINGER_SECONDS = 0.5
#: Topics of links that have left which are remembered: until they are deleted, 5-20 ms, who has read them is not to do so again.
MAX_LEFT = 1000


class SharedKafka:
    """A bridge with those who use it."""

    def __init__(self, bridge: Bridge, closing: trio.Lock) -> None:
        self.bridge = bridge
        self.protocol_version = 0
        self.renewing = False
        self.users = 0
        self.closed = False
        #: The topics of places that somebody listens at by this bridge: it can follow each once.
        self.endpoints: set[str] = set()
        self._closing = closing
        self._links: set[KafkaLink] = set()
        #: The topics that links read, and the last that were: each is read once.
        self._reading: set[str] = set()
        self._read: OrderedDict[str, None] = OrderedDict()
        self._left = trio.lowlevel.ParkingLot()
        #: Records that nobody waits for any more: when they were given up, and what the producer has said of each since.
        self._strays: list[tuple[float, list[int | StoreError]]] = []
        bridge.beat(BEAT_SECONDS / 2, self.beat)

    def join(self, link: "KafkaLink") -> None:
        """Let a link use this until it releases it, and have beats until it leaves."""
        self.users += 1
        self._links.add(link)
        self._reading.add(link.reads)

    def has_read(self, topic: str) -> bool:
        """Whether a link reads a topic, or did so lately."""
        return topic in self._reading or topic in self._read

    def beat(self) -> None:
        """Let all see what time it is."""
        for link in list(self._links):
            link.beat()
        self._strays = [stray for stray in self._strays if not stray[1]]
        if any(trio.current_time() - since > BEAT_SECONDS for since, _ in self._strays):
            # Its topic is gone, and the producer would try for ever.
            self._strays.clear()
            self.renew()

    def leave(self, link: "KafkaLink") -> None:
        """Let a link have no more beats: nothing is left to be done for it."""
        self._links.discard(link)
        self._reading.discard(link.reads)
        self._read[link.reads] = None
        if len(self._read) > MAX_LEFT:
            self._read.popitem(last=False)
        self._left.unpark_all()

    def renew(self) -> None:
        """Replace the producer, which has failed; what is written meanwhile is held back."""
        if not self.renewing:
            self.renewing = True
            self.bridge.renew_producer_soon(self._renewed)

    def _renewed(self) -> None:
        self.protocol_version += 1
        self.renewing = False
        for link in list(self._links):
            link.again()

    async def write(self, topic: str, value: bytes) -> int:
        """Write one record and wait until Kafka has it; its offset. StoreError if that can't be."""
        answers: list[int | StoreError] = []
        done = trio.Event()

        def confirm(answer: int | StoreError) -> None:
            answers.append(answer)
            done.set()

        self.bridge.send(topic, [(Outgoing(0, value), confirm)])
        try:
            await done.wait()
        except trio.Cancelled:
            if not answers:
                self._strays.append((trio.current_time(), answers))
            raise
        (answer,) = answers
        if isinstance(answer, StoreError):
            self.renew()
            raise answer
        return answer

    async def release(self) -> None:
        """One user fewer; the last one closes the bridge, within some seconds whatever Kafka does. Not cancellable."""
        self.users -= 1
        if not self.users:
            await self._close_unless_used()

    async def _close_unless_used(self) -> None:
        with trio.CancelScope(shield=True):
            async with self._closing:
                if self.users or self.closed:
                    return
                self.closed = True
                with trio.move_on_after(LINGER_SECONDS):
                    while any(link.lingers for link in self._links):
                        await self._left.park()
                for link in list(self._links):
                    link.abandon()
                await close_bridge(self.bridge)


class Kafkas:
    """The Kafkas that one transport is connected to, by their addresses."""

    def __init__(self, security: Security) -> None:
        self._security = security
        self._connected: dict[str, SharedKafka] = {}
        self._locks: dict[str, trio.Lock] = {}

    async def use(self, bootstrap: str) -> SharedKafka:
        """Return a connected Kafka with one user more, who has to `release` it; ConnectionLost or LocalError says why there is none."""
        lock = self._locks.setdefault(bootstrap, trio.Lock())
        async with lock:
            shared = self._connected.get(bootstrap)
            if shared is None or shared.closed:
                shared = SharedKafka(await connect_bridge(bootstrap, self._security), lock)
                self._connected[bootstrap] = shared
            shared.users += 1
            return shared
