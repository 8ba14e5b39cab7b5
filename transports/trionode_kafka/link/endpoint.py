"""A place to meet at, which is a topic: who listens there says so in it, who would talk writes there which topics he has made for a link.

Several may want to listen at one place, also from several machines. The log decides: each says LISTEN, and whoever was there before says
HERE to that. One who hears nothing for CLAIM_SECONDS has the place. One who stood still meanwhile finds a HERE that answers no LISTEN
from before its own, and has lost it. Nobody can tell who says so from a stranger; so it only ever makes a listener claim its place again.
"""

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import NoReturn

import trio

from trionode.plugins import LocalError, StoreError, uuid7_hex
from trionode_kafka.client import Fetched, Outgoing, RefusedByBrokerError
from trionode_kafka.link.frames import Invitation, Word
from trionode_kafka.link.shared_client import SharedKafka

#: Seconds in which a listener that lives answers another one: a record there and back took 10-30 ms.
CLAIM_SECONDS = 2.0
#: Seconds after which a listener says that it lives, so that nobody takes its topic for a leftover, and looks for leftovers itself.
SWEEP_SECONDS = 600.0

#: Those who dial that may wait until the listener looks at them, a short text each.
MAX_DIALS = 1000
#: Those who dial whose topics are asked for in one request, two each: it took 10 ms, also for topics that are not there.
DIALS_AT_ONCE = 200
#: Seconds by which what an id says of its making may be off, as clocks may: what is older, or no such id, is nobody's who still waits.
DIAL_SECONDS = 3600.0
#: Those who would listen too that are remembered until our answer to them is read, a round trip: nodes that start, and not a flood.
MAX_RIVALS = 100

SETTINGS: Mapping[str, str] = {
    "cleanup.policy": "delete",
    # What was said last has to remain: by its time a leftover is known.
    "retention.ms": "-1",
    "retention.bytes": str(1 << 20),
    "segment.bytes": str(1 << 20),
    "message.timestamp.type": "LogAppendTime",
}


class Endpoint:
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
        self._why: StoreError | None = None
        self._saying = False
        self._asked_again = False
        self._dialled, self._dials = trio.open_memory_channel[str](MAX_DIALS)
        #: Whether the topic is this listener's to delete.
        self.mine = False

    async def claim(self, *, fresh: bool) -> None:
        """Take the place, whose topic exists, `fresh` if it was made for this; LocalError if somebody else has it."""
        bridge = self._shared.bridge
        self._lost, self._why = trio.Event(), None
        self._me, self._listened, self._claimed = fresh_id(), False, False
        self._saying = self._asked_again = False
        self._rivals.clear()
        self._offset = 0 if fresh else await bridge.end_offset(self.topic)
        bridge.follow(self.topic, self._offset, self.arrive)
        first = await self._shared.write(self.topic, Invitation(Word.LISTEN, self._me).encoded())
        if not (fresh and first == 0):
            with trio.move_on_after(CLAIM_SECONDS):
                await self._lost.wait()
            if self.is_lost:
                self._raise()
            self._say(Word.LOCAL)
        self._claimed = True

    async def keep(self) -> str:
        """Say again and again that somebody is here, until the place is lost; why it is."""
        while not self.is_lost:
            with trio.move_on_after(SWEEP_SECONDS):
                await self._lost.wait()
                break
            self._say(Word.LOCAL)
        await trio.lowlevel.checkpoint()
        return str(self._why or "somebody else says that he listens there")

    def lose(self, why: StoreError | None = None) -> None:
        """Hold it no more, nor answer who has dialled."""
        if not self.is_lost:
            self._why = why
            self._lost.set()
        with suppress(trio.WouldBlock):
            while True:
                self._dials.receive_nowait()

    def _raise(self) -> NoReturn:
        raise self._why or taken(self.shown)

    async def dialled(self) -> Sequence[str]:
        """Wait for ids of links that others have made; each of at most DIALS_AT_ONCE once."""
        ids = {await self._dials.receive(): None}
        with suppress(trio.WouldBlock):
            while len(ids) < DIALS_AT_ONCE:
                ids[self._dials.receive_nowait()] = None
        return list(ids)

    @property
    def is_lost(self) -> bool:
        """Whether it has to be claimed again."""
        return self._lost.is_set()

    def leave(self) -> None:
        """Hear no more."""
        self._shared.bridge.unfollow(self.topic)

    def arrive(self, records: Sequence[Fetched] | StoreError) -> None:
        """Take what was said; called by the bridge."""
        if isinstance(records, RefusedByBrokerError):
            self.lose(records)  # made anew, or we were too slow: whatever was said is gone
            return
        if isinstance(records, StoreError):
            self._shared.bridge.follow(self.topic, self._offset, self.arrive)
            return
        for record in records:
            self._offset = record.offset + 1
            said = Invitation.decode(record.value)
            if said is not None:
                self._hear(said)

    def _hear(self, said: Invitation) -> None:
        if self.is_lost:
            return
        if said.who == self._me:
            self._listened = True
            self._rivals.clear()
        elif not self._listened:
            pass  # before our own LISTEN it is meant for others, who will answer that
        elif said.word is Word.DIAL:
            if abs(time.time() - made_at(said.who)) < DIAL_SECONDS:
                with suppress(trio.WouldBlock):  # one more would wait for longer than its patience
                    self._dialled.send_nowait(said.who)
        elif said.word is Word.LISTEN:
            if len(self._rivals) < MAX_RIVALS:
                self._rivals.add(said.who)
            self._say(Word.LOCAL)
        elif not self._claimed or said.who in self._rivals:
            self.lose()

    def _say(self, word: Word) -> None:
        """Say a word, once for all who ask while it is on its way, and once more for those who may have missed it."""
        if self._saying:
            self._asked_again = True
            return
        self._saying, me = True, self._me

        def said(answer: int | StoreError) -> None:
            if me != self._me:
                return  # of an earlier claim
            again, self._saying, self._asked_again = self._asked_again, False, False
            if again and isinstance(answer, int) and not self.is_lost:
                self._say(word)

        self._shared.bridge.send(self.topic, [(Outgoing(0, Invitation(word, me).encoded()), said)])


def taken(endpoint: str) -> LocalError:
    """Return what to tell who can't listen."""
    return LocalError(f"{endpoint} is taken: choose another name, or close the node that listens there")


def fresh_id() -> str:
    """Return 32 hex characters that nobody else has, which tell when they were made: the name of a link, or of a listener."""
    return uuid7_hex(int(time.time() * 1000), os.urandom(10))


def made_at(made: str) -> float:
    """Return the Unix time, in seconds, at which an id of 32 hex characters says that it was made."""
    return int(made[:12], 16) / 1000
