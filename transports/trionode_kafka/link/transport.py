"""The transport `kafka:HOST:PORT[,HOST:PORT…]/NAME`: links over a pair of topics, straight to the brokers, without a hub.

A place to listen at is a topic. Whoever connects makes two more with random names, one for each direction, and writes the link's id into the place.
Each end deletes the topic that it reads, once its peer has written its last into it. What dead programs leave behind, listeners delete.
"""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import ClassVar, Never, Self

import attrs
import trio

from trionode.plugins import (
    CURRENT,
    AddressParts,
    ConfigError,
    ConnectionLost,
    Exposure,
    Link,
    LocalError,
    LogThrottle,
    RemoteError,
    StoreError,
    Transport,
    log,
    sanitize,
    valid_stream_name,
)
from trionode_kafka.client import Slot, parse_addresses
from trionode_kafka.client.security import Security, exposure_of
from trionode_kafka.link import endpoint as endpoints
from trionode_kafka.link.endpoint import Endpoint, fresh_id, taken
from trionode_kafka.link.frames import Invitation, Word
from trionode_kafka.link.link import KafkaLink
from trionode_kafka.link.shared_client import Kafkas, SharedKafka

#: Seconds until a listener that is there has answered, which took 0.1-0.2 s, or Kafka has let us listen.
CONNECT_SECONDS = 10.0
#: Links that may be greeting a listener at a time: one that says nothing costs a followed topic for CONNECT_SECONDS.
MAX_GREETING = 512
#: Seconds that a listener which ends waits until its place is free again, which took 0.1 s.
FREE_SECONDS = 1.0
#: Seconds after whose silence a topic is a leftover of the dead: links speak every 10 s, listeners every 10 minutes, and clocks may differ.
LEFTOVER_SECONDS = 3600.0
#: Seconds until a place that was lost is claimed again, and those to which that doubles while somebody else has it: each try is two records.
AGAIN_SECONDS = 1.0
AGAIN_SECONDS_MOST = 30.0
#: Topics of one request for what is a leftover.
SWEPT_AT_ONCE = 200

#: What is unread is bounded by the link's window, so that size alone tells what nobody needs any more.
_SETTINGS: Mapping[str, str] = {
    "cleanup.policy": "delete",
    "retention.ms": "-1",
    "retention.bytes": str(32 << 20),
    "segment.bytes": str(8 << 20),
    "max.message.bytes": str(1 << 20),
    "message.timestamp.type": "LogAppendTime",
}


@attrs.frozen
class _At:
    """HOST:PORT[,HOST:PORT…]/NAME; without a name one that nobody has."""

    bootstrap: str
    name: str

    @classmethod
    def parse(cls, text: str) -> Self:
        bootstrap, _, name = text.partition("/")
        parse_addresses(bootstrap)
        if name and not (valid_stream_name(name) and len(name) <= 100):
            raise LocalError(
                f"expected HOST:PORT[,HOST:PORT…]/NAME with a name of 1 to 100 of A-Z a-z 0-9 . _ -, this is {text!r:.300}"
            )
        return cls(bootstrap, name)

    def __str__(self) -> str:
        return f"{self.bootstrap}/{self.name}"


class KafkaTransport(Transport):
    """The transport `kafka:HOST:PORT[,HOST:PORT…]/NAME`; nodes meet that say the same name, prefix and Kafka.

    Only topics whose names begin with `prefix` are touched; they are made with `replication_factor` replicas. `max_frame` bounds what one
    peer can make this node hold (bytes, at most the wire's 16 MiB).

    `security` is plaintext, ssl, sasl_plaintext or sasl_ssl. With ssl, `ca_file` is who has signed the brokers' certificates (the system's
    authorities without it), `certificate` and `key` what we show where that is demanded, all paths of PEM files. With sasl, the user
    `username` proves a `password`, which may stand in a `password_file`, by `mechanism`: SCRAM-SHA-512, SCRAM-SHA-256 or PLAIN.
    """

    name: ClassVar[str] = "kafka"

    def __init__(
        self,
        *,
        prefix: str = "trionode-link-",
        replication_factor: int = 1,
        max_frame: int = CURRENT.max_frame,
        security: str = "plaintext",
        ca_file: str | None = None,
        certificate: str | None = None,
        key: str | None = None,
        username: str | None = None,
        password: str | None = None,
        password_file: str | None = None,
        mechanism: str = "SCRAM-SHA-512",
    ) -> None:
        if not valid_stream_name(prefix) or len(prefix) > 40:
            raise LocalError(f"a prefix is 1 to 40 of A-Z a-z 0-9 . _ -, not {prefix!r:.100}")
        self._prefix = prefix
        self._replication_factor = replication_factor
        self._max_frame = max_frame
        self._log_throttle = LogThrottle()
        self._kafkas = Kafkas(
            Security.of(
                security,
                ca_file=ca_file,
                certificate=certificate,
                key=key,
                username=username,
                password=password,
                password_file=password_file,
                mechanism=mechanism,
            )
        )

    @classmethod
    def parse_address(cls, address: str) -> AddressParts:
        """Return the name as path, and host and port if there is one broker."""
        at = _At.parse(address)
        if not at.name:
            raise ConfigError(f"expected HOST:PORT/NAME, such as 127.0.0.1:9092/alice; this is {address!r:.300}")
        brokers = parse_addresses(at.bootstrap)
        return AddressParts(*brokers[0], at.name) if len(brokers) == 1 else AddressParts(path=address)

    @classmethod
    def exposure_with(cls, options: Mapping[str, object]) -> Exposure:
        """Return who observes the bytes: the brokers, and without TLS the network too."""
        return exposure_of(options)

    async def connect(self, peer: str) -> Link:
        """Meet whoever listens at the place; ConnectionLost if nobody does, or Kafka does not let us."""
        at = _At.parse(peer)
        if not at.name:
            raise LocalError(
                f"expected HOST:PORT[,HOST:PORT…]/NAME, as the listener has reported it, this is {peer!r:.300}"
            )
        shared = await self._kafkas.use(at.bootstrap)
        try:
            with trio.fail_after(CONNECT_SECONDS):
                return await self._dial(shared, at)
        except trio.TooSlowError:
            msg = f"nobody answers at kafka:{at} within {CONNECT_SECONDS:g} s: has the node that listened there died?"
            raise ConnectionLost(msg) from None
        except StoreError as error:
            msg = f"can't connect to kafka:{at}: {error}"
            raise ConnectionLost(msg) from error
        finally:
            await shared.release()

    async def _dial(self, shared: SharedKafka, at: _At) -> Link:
        bridge, endpoint = shared.bridge, self._endpoint(at)
        if not await bridge.describe([endpoint]):
            msg = f"nobody listens at kafka:{at}: start the node that should"
            raise ConnectionLost(msg)
        link_id = fresh_id()
        there, back = self._topics(link_id)
        await bridge.create_topics(
            [there, back], replication_factor=self._replication_factor, settings=_SETTINGS, keep=False
        )
        link = KafkaLink(shared, peer=f"kafka:{at}", reads=back, writes=there, max_frame=self._max_frame)
        try:
            await bridge.introduce(endpoint)
            await link.open()
            await shared.write(endpoint, Invitation(Word.DIAL, link_id).encoded())
            await link.greeted()
        except BaseException:  # whatever ends it, cancellation too: nothing stays open
            await link.aclose()
            raise
        return link

    async def serve(
        self,
        at: str,
        accept: Callable[[Link], Awaitable[None]],
        *,
        task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
    ) -> Never:
        """Listen at HOST:PORT[,HOST:PORT…][/NAME], without a name at one that nobody has; LocalError if that is not possible."""
        endpoint = _At.parse(at)
        endpoint = attrs.evolve(endpoint, name=endpoint.name or fresh_id())
        try:
            shared = await self._kafkas.use(endpoint.bootstrap)
        except ConnectionLost as error:
            raise LocalError(f"can't listen at kafka:{at}: {error}") from error
        topic = self._endpoint(endpoint)
        if topic in shared.endpoints:
            await shared.release()
            raise taken(f"kafka:{endpoint}")
        shared.endpoints.add(topic)
        try:
            async with self._held(shared, Endpoint(shared, topic, f"kafka:{endpoint}")) as hold:
                await self._listen(shared, hold, accept, task_status=task_status, bound=str(endpoint))
        finally:
            shared.endpoints.discard(topic)
            await shared.release()

    async def _listen(
        self,
        shared: SharedKafka,
        hold: Endpoint,
        accept: Callable[[Link], Awaitable[None]],
        *,
        task_status: trio.TaskStatus[str],
        bound: str,
    ) -> Never:
        """Greet who dials whenever the place is ours, for good."""
        greeting = trio.Semaphore(MAX_GREETING)
        async with trio.open_nursery() as nursery:

            async def greet() -> Never:
                while True:
                    for link_id in await self._there(shared, await hold.dialled()):
                        nursery.start_soon(self._greet, shared, hold.shown, link_id, greeting, accept)

            nursery.start_soon(self._sweep, shared)
            task_status.started(bound)
            while True:
                async with trio.open_nursery() as holding:
                    holding.start_soon(greet)
                    why = await hold.keep()
                    holding.cancel_scope.cancel()
                if self._log_throttle.is_due(hold.topic, trio.current_time()):
                    log.warning("%s is lost, and will be claimed again: %s", hold.shown, sanitize(why))
                await self._claim_again(shared, hold)

    async def _there(self, shared: SharedKafka, ids: Sequence[str]) -> Sequence[str]:
        """Those of the ids under which somebody has made both topics, and no link of ours was."""
        wanted = {link_id: self._topics(link_id) for link_id in ids if not shared.has_read(self._topics(link_id)[0])}
        try:
            found = await shared.bridge.describe([topic for both in wanted.values() for topic in both])
        except StoreError as error:
            if self._log_throttle.is_due("describe", trio.current_time()):
                log.warning("refused %d links: %s", len(wanted), sanitize(error))
            return ()
        return [link_id for link_id, both in wanted.items() if found.keys() >= set(both)]

    async def _claim_again(self, shared: SharedKafka, endpoint: Endpoint) -> None:
        """Take a place that was lost, as soon as it is free."""
        seconds = AGAIN_SECONDS
        while True:
            await trio.sleep(seconds)
            seconds = min(2 * seconds, AGAIN_SECONDS_MOST)
            try:
                await self._claim(shared, endpoint)
            except (StoreError, LocalError, trio.TooSlowError):
                endpoint.lose()  # somebody else answers, or Kafka does not
            else:
                return

    async def _claim(self, shared: SharedKafka, endpoint: Endpoint) -> None:
        """Make the place's topic unless it exists, and take it; LocalError if somebody else has it, StoreError or TooSlowError if Kafka lets us not."""
        bridge, topic = shared.bridge, endpoint.topic
        endpoint.mine = False
        with trio.fail_after(CONNECT_SECONDS):
            while not endpoint.mine:
                # What was made remains only if this block is left in the ordinary way, in which `mine` says what is to be done.
                endpoint.mine = await bridge.create_topics(
                    [topic], replication_factor=self._replication_factor, settings=endpoints.SETTINGS, keep=False
                )
                before = await bridge.describe([topic])
                await bridge.introduce(topic)
                await endpoint.claim(fresh=endpoint.mine)
                # Whoever had it may have deleted it meanwhile.
                endpoint.mine = bool(before) and await bridge.describe([topic]) == before

    @asynccontextmanager
    async def _held(self, shared: SharedKafka, endpoint: Endpoint) -> AsyncIterator[Endpoint]:
        """The place, claimed, for the length of a block, and then free again."""
        bridge, topic = shared.bridge, endpoint.topic
        try:
            try:
                await self._claim(shared, endpoint)
            except (StoreError, trio.TooSlowError) as error:
                raise LocalError(
                    f"can't listen at {endpoint.shown}: {str(error) or 'Kafka does not answer'}"
                ) from error
            yield endpoint
        finally:
            endpoint.leave()
            if endpoint.mine and not endpoint.is_lost:
                deleted: Slot[None] = bridge.delete_topics([topic])
                with trio.CancelScope(shield=True), trio.move_on_after(FREE_SECONDS), suppress(StoreError):
                    await deleted.answer()
                    while await bridge.describe([topic]):
                        pass  # the broker that was asked has not heard of it yet; each time is a round trip

    async def _greet(
        self,
        shared: SharedKafka,
        endpoint: str,
        link_id: str,
        greeting: trio.Semaphore,
        accept: Callable[[Link], Awaitable[None]],
    ) -> None:
        """Answer one who would talk, and hand the link over."""
        there, back = self._topics(link_id)
        try:
            greeting.acquire_nowait()
        except trio.WouldBlock:
            if self._log_throttle.is_due("greeting", trio.current_time()):
                log.warning("refused links at %s: %d others have not greeted", endpoint, MAX_GREETING)
            return
        try:
            if shared.has_read(there):
                return  # said twice: a second reader would do all again that was sent
            link = KafkaLink(shared, peer=f"{endpoint}:{link_id}", reads=there, writes=back, max_frame=self._max_frame)
            try:
                with trio.fail_after(CONNECT_SECONDS):
                    await link.open()
                    await link.greeted()
            except BaseException:  # whatever ends it, cancellation too: nothing stays open
                await link.aclose()
                raise
        except (RemoteError, StoreError, trio.TooSlowError) as error:
            log.info("refused a link at %s: %s", endpoint, sanitize(str(error) or "no greeting in time"))
            return
        finally:
            greeting.release()
        await accept(link)

    async def _sweep(self, shared: SharedKafka) -> None:
        """Delete, now and again, topics in which nobody has spoken for so long that whoever made them is dead."""
        while True:
            with suppress(StoreError):  # it is tried again
                await self._sweep_once(shared)
            await trio.sleep(endpoints.SWEEP_SECONDS)

    async def _sweep_once(self, shared: SharedKafka) -> None:
        bridge, before = shared.bridge, int((time.time() - LEFTOVER_SECONDS) * 1000)
        names = [name for name in await bridge.topics(self._prefix) if self._may_be_left(name, before)]
        for start in range(0, len(names), SWEPT_AT_ONCE):
            some = names[start : start + SWEPT_AT_ONCE]
            written = await bridge.last_written(some)
            # A place without a record is one that somebody is about to claim.
            if left := [name for name in some if written.get(name, before if self._is_place(name) else 0) < before]:
                log.info("deleting %d topics that programs which have died left in Kafka", len(left))
                bridge.delete_topics(left)

    def _may_be_left(self, name: str, before: int) -> bool:
        # The id of a link tells when it was made.
        link_id, _, way = name.removeprefix(self._prefix).partition("-")
        return self._is_place(name) or (way in _WAYS and len(link_id) == 32 and _hex(link_id[:12]) < before)

    def _is_place(self, name: str) -> bool:
        return name.startswith(f"{self._prefix}{_PLACE}")

    def _endpoint(self, at: _At) -> str:
        return f"{self._prefix}{_PLACE}{at.name}"

    def _topics(self, link_id: str) -> tuple[str, str]:
        there, back = (f"{self._prefix}{link_id}-{way}" for way in _WAYS)
        return there, back


_PLACE = "at-"
#: From who connected to who listens, and back.
_WAYS = ("there", "back")


def _hex(text: str) -> int:
    try:
        return int(text, 16)
    except ValueError:
        return 1 << 48
