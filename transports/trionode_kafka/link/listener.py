"""A listener: it holds an endpoint, accepts dialers, and deletes topics that dead programs left behind."""

import math
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Never

import trio

from trionode.plugins import Link, LogThrottle, RemoteError, StoreError, log, sanitize
from trionode_kafka.link.claim import ANNOUNCE_SECONDS, Claim
from trionode_kafka.link.link import KafkaLink, open_link
from trionode_kafka.link.shared_client import SharedClient
from trionode_kafka.link.topics import TopicNames

#: Seconds in which a dialer must have sent its preface.
HANDSHAKE_SECONDS = 10.0
#: Links that may be in their handshake at a time: one that sends nothing costs a followed topic for HANDSHAKE_SECONDS.
MAX_HANDSHAKES = 512
#: Seconds of silence after which a topic is a leftover: links write every 10 s, listeners every 10 minutes, and clocks
#: may differ.
LEFTOVER_SECONDS = 3600.0
#: Topics in one request for their last timestamps.
SWEPT_AT_ONCE = 200


class Listener:
    """Accepts links at one endpoint."""

    def __init__(
        self, shared: SharedClient, claim: Claim, names: TopicNames, *, max_frame: int, log_throttle: LogThrottle
    ) -> None:
        self._shared = shared
        self._claim = claim
        self._names = names
        self._max_frame = max_frame
        self._log_throttle = log_throttle
        self._handshakes = trio.Semaphore(MAX_HANDSHAKES)

    async def serve(self, accept: Callable[[Link], Awaitable[None]], started: Callable[[], None]) -> Never:
        """Hold the endpoint, call `started`, and run `accept(link)` in a task of its own for each dialer."""
        async with self._claim.held(), trio.open_nursery() as nursery:

            async def accept_dialers() -> Never:
                while True:
                    for link_id in await self._with_topics(await self._claim.next_dials()):
                        nursery.start_soon(self._handshake, link_id, accept)

            nursery.start_soon(self._sweep)
            started()
            while True:
                async with trio.open_nursery() as holding:
                    holding.start_soon(accept_dialers)
                    reason = await self._claim.hold()
                    holding.cancel_scope.cancel()
                self._warn("lost", "%s is lost, and will be claimed again: %s", self._claim.address, sanitize(reason))
                await self._claim.reclaim()

    async def _with_topics(self, ids: Sequence[str]) -> Sequence[str]:
        """Return the ids of links whose two topics exist, and that this node has not accepted before."""
        wanted = {link_id: self._names.of_link(link_id) for link_id in ids}
        wanted = {link_id: topics for link_id, topics in wanted.items() if not self._shared.has_read(topics[0])}
        try:
            found = await self._shared.client.admin.describe_topics(
                [topic for topics in wanted.values() for topic in topics]
            )
        except StoreError as error:
            self._warn("describe", "refused %d links: %s", len(wanted), sanitize(error))
            return ()
        return [link_id for link_id, topics in wanted.items() if found.keys() >= set(topics)]

    async def _handshake(self, link_id: str, accept: Callable[[Link], Awaitable[None]]) -> None:
        try:
            self._handshakes.acquire_nowait()
        except trio.WouldBlock:
            self._warn(
                "handshake",
                "refused links at %s: %d others are in their handshake",
                self._claim.address,
                MAX_HANDSHAKES,
            )
            return
        try:
            with trio.fail_after(HANDSHAKE_SECONDS):
                link = await self._open(link_id)
        except (RemoteError, StoreError, trio.TooSlowError) as error:
            log.info("refused a link at %s: %s", self._claim.address, sanitize(str(error) or "no preface in time"))
            return
        finally:
            self._handshakes.release()
        if link is not None:
            await accept(link)

    async def _open(self, link_id: str) -> KafkaLink | None:
        reads, writes = self._names.of_link(link_id)
        if self._shared.has_read(reads):
            return None  # announced twice: a second link would receive all frames again
        peer = f"{self._claim.address}:{link_id}"
        link = open_link(self._shared, peer=peer, reads=reads, writes=writes, max_frame=self._max_frame)
        await link.exchange_prefaces()
        return link

    async def _sweep(self) -> Never:
        """Delete leftovers now and then: topics that were silent for so long that their programs must be dead."""
        while True:
            with suppress(StoreError):  # it tries again
                await self.sweep_once()
            await trio.sleep(ANNOUNCE_SECONDS)

    async def sweep_once(self) -> None:
        """Delete the leftovers that exist now."""
        admin, before = self._shared.client.admin, time.time() - LEFTOVER_SECONDS
        topics = await admin.list_topics(self._names.prefix)
        topics = [topic for topic in topics if self._names.may_be_leftover(topic, before)]
        for start in range(0, len(topics), SWEPT_AT_ONCE):
            some = topics[start : start + SWEPT_AT_ONCE]
            written = await admin.last_timestamps(some)
            # A listener is about to claim an endpoint without a record.
            leftovers = [
                topic
                for topic in some
                if written.get(topic, math.inf if self._names.is_endpoint(topic) else 0) < before * 1000
            ]
            if leftovers:
                log.info("deleting %d topics that dead programs left in Kafka", len(leftovers))
                self._shared.client.delete_topics(leftovers)

    def _warn(self, kind: str, text: str, *arguments: object) -> None:
        if self._log_throttle.is_due(f"{kind} {self._claim.address}", trio.current_time()):
            log.warning(text, *arguments)
