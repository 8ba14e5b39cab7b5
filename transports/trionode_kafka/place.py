"""A place to meet at, which is a topic: who listens there says so in it, who would talk writes there which topics he has made for a link.

Several may want to listen at one place, also from several machines. The log decides: each says LISTEN, and whoever was there before says
HERE to that. One who hears nothing for CLAIM_SECONDS has the place. One who stood still meanwhile finds a HERE that answers no LISTEN
from before its own, and has lost it.
"""

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

import trio

from trionode.errors import LocalError
from trionode.protocol.stream import uuid7_hex
from trionode.stream_store import StoreError
from trionode_kafka.bridge import Fetched, Outgoing
from trionode_kafka.records import Invitation, Word
from trionode_kafka.sharing import SharedKafka

#: Seconds in which a listener that lives answers another one: a record there and back took 10-30 ms.
CLAIM_SECONDS = 2.0
#: Seconds after which a listener says that it lives, so that nobody takes its topic for a leftover, and looks for leftovers itself.
SWEEP_SECONDS = 600.0

#: Those who dial that may wait until the listener looks at them, a short text each.
MAX_DIALS = 1000

SETTINGS: Mapping[str, str] = {
    "cleanup.policy": "delete",
    # What was said last has to remain: by its time a leftover is known.
    "retention.ms": "-1",
    "retention.bytes": str(1 << 20),
    "segment.bytes": str(1 << 20),
    "message.timestamp.type": "LogAppendTime",
}


class Place:
    """A listener's hold on a place, in `topic`; it learns the ids of the links that others have made."""

    def __init__(self, shared: SharedKafka, topic: str, shown: str) -> None:
        self.topic = topic
        self.shown = shown
        self._shared = shared
        self._me = ""
        self._offset = 0
        self._listened = False
        self._claimed = False
        self._rivals: set[str] = set()
        self._lost = trio.Event()
        self._dialled, self._dials = trio.open_memory_channel[str](MAX_DIALS)

    async def claim(self, *, fresh: bool) -> None:
        """Take the place, whose topic exists, `fresh` if it was made for this; LocalError if somebody else has it."""
        bridge = self._shared.bridge
        self._me, self._listened, self._claimed = fresh_id(), False, False
        self._rivals.clear()
        self._offset = 0 if fresh else await bridge.end_offset(self.topic)
        bridge.follow(self.topic, self._offset, self.arrive)
        first = await self._shared.write(self.topic, Invitation(Word.LISTEN, self._me).encoded())
        if not (fresh and first == 0):
            with trio.move_on_after(CLAIM_SECONDS):
                await self._lost.wait()
            if self.is_lost:
                raise taken(self.shown)
            self._say(Word.HERE)
        self._claimed = True

    async def keep(self) -> None:
        """Say again and again that somebody is here, until somebody else is."""
        while not self.is_lost:
            with trio.move_on_after(SWEEP_SECONDS):
                await self._lost.wait()
            self._say(Word.HERE)

    async def dialled(self) -> str:
        """Wait for the id of a link that somebody has made."""
        return await self._dials.receive()

    @property
    def is_lost(self) -> bool:
        """Whether somebody else has it."""
        return self._lost.is_set()

    def leave(self) -> None:
        """Hear no more."""
        self._shared.bridge.unfollow(self.topic)

    def arrive(self, records: Sequence[Fetched] | StoreError) -> None:
        """Take what was said; called by the bridge."""
        if isinstance(records, StoreError):
            self._shared.bridge.follow(self.topic, self._offset, self.arrive)
            return
        for record in records:
            self._offset = record.offset + 1
            said = Invitation.decode(record.value)
            if said is not None:
                self._hear(said)

    def _hear(self, said: Invitation) -> None:
        if said.who == self._me:
            self._listened = True
            self._rivals.clear()
        elif not self._listened:
            pass  # before our own LISTEN it is meant for others, who will answer that
        elif said.word is Word.DIAL:
            with suppress(trio.WouldBlock):  # one more would wait for longer than its patience
                self._dialled.send_nowait(said.who)
        elif said.word is Word.LISTEN:
            self._rivals.add(said.who)
            self._say(Word.HERE)
        elif not self._claimed or said.who in self._rivals:
            self._lost.set()

    def _say(self, word: Word) -> None:
        self._shared.bridge.send(self.topic, [(Outgoing(0, Invitation(word, self._me).encoded()), lambda _: None)])


def taken(place: str) -> LocalError:
    """Return what to tell who can't listen."""
    return LocalError(f"{place} is taken: choose another name, or close the node that listens there")


def fresh_id() -> str:
    """Return 32 hex characters that nobody else has, which tell when they were made: the name of a link, or of a listener."""
    return uuid7_hex(int(time.time() * 1000), os.urandom(10))
