"""The transport `kafka:HOST:PORT[,HOST:PORT…]/NAME`: links over a pair of topics, without a hub.

An endpoint to listen at is a topic. A dialer creates two more topics, one for each direction, and announces them in the
endpoint's topic. Each end deletes the topic that it reads, once the peer has written its last record. Listeners delete
what dead programs leave behind.
"""

from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from copy import copy
from functools import partial
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
    StoreError,
    Transport,
    valid_stream_name,
)
from trionode_kafka.client import Security, exposure_of, open_kafka_client, parse_addresses
from trionode_kafka.link.claim import Claim, taken
from trionode_kafka.link.link import open_link
from trionode_kafka.link.listener import Listener
from trionode_kafka.link.records import Announcement, AnnouncementKind
from trionode_kafka.link.shared_client import SharedClient
from trionode_kafka.link.topics import LINK_SETTINGS, TopicNames, new_id

#: Seconds in which a living listener must have answered, which took 0.1-0.2 s.
CONNECT_SECONDS = 10.0


@attrs.frozen
class Address:
    """HOST:PORT[,HOST:PORT…]/NAME. The name is empty in an address to listen at that leaves it open."""

    bootstrap: str
    name: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse an address; ConfigError if it has another form."""
        bootstrap, _, name = text.partition("/")
        parse_addresses(bootstrap)
        if name and not (valid_stream_name(name) and len(name) <= 100):
            raise ConfigError(
                f"expected HOST:PORT[,HOST:PORT…]/NAME with a name of 1 to 100 of A-Z a-z 0-9 . _ -, got {text!r:.300}"
            )
        return cls(bootstrap, name)

    def __str__(self) -> str:
        return f"{self.bootstrap}/{self.name}"


class KafkaTransport(Transport):
    """The transport `kafka:HOST:PORT[,HOST:PORT…]/NAME`.

    Nodes that connect to each other need the same name, prefix and Kafka. A node has one Kafka client for each
    bootstrap address. It is opened by the first link or listener, and closed when the node ends or nothing has used it
    for a minute.

    Args:
      prefix: Prefix of all topics of this transport. Nothing else in the Kafka is touched.
      replication_factor: Replicas of each topic that is created.
      max_frame: Bytes in the largest frame; it bounds what one peer can make this node hold.
      security: "plaintext", "ssl", "sasl_plaintext" or "sasl_ssl".
      ca_file: PEM file with the CA that signed the brokers' certificates; the system's CAs by default. For ssl.
      certificate: PEM file with the client's certificate, if the brokers demand one. For ssl.
      key: PEM file with the key of `certificate`, unless that file contains it.
      username: The user who authenticates. For sasl.
      password: The user's password.
      password_file: A file whose first line is the password.
      mechanism: "SCRAM-SHA-512", "SCRAM-SHA-256" or "PLAIN".

    Raises:
      ConfigError: An option has a wrong value, or options do not fit together.
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
            raise ConfigError(f"a prefix is 1 to 40 of A-Z a-z 0-9 . _ -, not {prefix!r:.100}")
        self._names = TopicNames(prefix)
        self._replication_factor = replication_factor
        self._max_frame = max_frame
        self._log_throttle = LogThrottle()
        self._security = Security.of(security, ca_file, certificate, key, username, password, password_file, mechanism)
        # `open` gives each node its own.
        self._nursery: trio.Nursery | None = None
        self._clients: dict[str, SharedClient] = {}
        self._opening: defaultdict[str, trio.Lock] = defaultdict(trio.Lock)

    @classmethod
    def parse_address(cls, address: str) -> AddressParts:
        """Return the name as path, and host and port if there is one broker."""
        at = Address.parse(address)
        if not at.name:
            raise ConfigError(f"expected HOST:PORT/NAME, such as 127.0.0.1:9092/alice, got {address!r:.300}")
        brokers = parse_addresses(at.bootstrap)
        return AddressParts(*brokers[0], at.name) if len(brokers) == 1 else AddressParts(path=address)

    @classmethod
    def exposure_with(cls, options: Mapping[str, object]) -> Exposure:
        """Return who observes the bytes: the brokers, and without TLS the network too."""
        return exposure_of(options)

    def open(self, nursery: trio.Nursery) -> "KafkaTransport":
        """Return the transport for one node.

        Args:
          nursery: Holds the Kafka clients of the node, and the tasks of their links. It may take 2 s to end: closed
              links wait until Kafka has confirmed their last records.
        """
        opened = copy(self)
        opened._nursery = nursery  # noqa: SLF001 - the same class
        opened._clients = {}  # noqa: SLF001
        opened._opening = defaultdict(trio.Lock)  # noqa: SLF001
        return opened

    @asynccontextmanager
    async def _client(self, bootstrap: str) -> AsyncIterator[SharedClient]:
        """Keep the client for these brokers open for the length of a block."""
        if self._nursery is None:
            raise LocalError(
                "this transport is not open: give it to open_node, or connect by what open(nursery) returns"
            )
        async with AsyncExitStack() as stack:
            async with self._opening[bootstrap]:
                shared = self._clients.get(bootstrap)
                if shared is None:
                    shared = await self._nursery.start(self._run_client, bootstrap)
                await stack.enter_async_context(shared.in_use())
            yield shared

    async def _run_client(self, bootstrap: str, *, task_status: trio.TaskStatus[SharedClient]) -> None:
        async with open_kafka_client(bootstrap, self._security) as client, trio.open_nursery() as nursery:
            shared = self._clients[bootstrap] = SharedClient(client, nursery)
            try:
                task_status.started(shared)
                await shared.run()
            finally:
                del self._clients[bootstrap]

    async def connect(self, peer: str) -> Link:
        """Connect to the node that listens at an endpoint.

        Args:
          peer: HOST:PORT[,HOST:PORT…]/NAME.

        Returns:
          The link, once the listener has answered.

        Raises:
          ConnectionLost: No node listens there, or Kafka does not answer or refuses.
          ConfigError: The address has another form.

        If cancelled, no link stays open, and its topics are deleted.
        """
        address = Address.parse(peer)
        if not address.name:
            raise ConfigError(f"expected HOST:PORT[,HOST:PORT…]/NAME, as the listener reported it, got {peer!r:.300}")
        async with self._client(address.bootstrap) as shared:
            try:
                with trio.fail_after(CONNECT_SECONDS):
                    return await self._dial(shared, address)
            except trio.TooSlowError:
                raise ConnectionLost(
                    f"no answer from kafka:{address} within {CONNECT_SECONDS:g} s: has that node died?"
                ) from None
            except StoreError as error:
                raise ConnectionLost(f"can't connect to kafka:{address}: {error}") from error

    async def _dial(self, shared: SharedClient, address: Address) -> Link:
        client, endpoint = shared.client, self._names.of_endpoint(address.name)
        if not await client.admin.describe_topics([endpoint]):
            raise ConnectionLost(f"no node listens at kafka:{address}: start the one that should")
        await client.producer.load_metadata(endpoint)
        link_id = new_id()
        to_listener, to_dialer = self._names.of_link(link_id)
        await client.admin.create_topics(
            to_listener, to_dialer, replication_factor=self._replication_factor, settings=LINK_SETTINGS, keep=False
        )
        link = open_link(
            shared, peer=f"kafka:{address}", reads=to_dialer, writes=to_listener, max_frame=self._max_frame
        )
        await link.exchange_prefaces(
            partial(shared.write, endpoint, Announcement(AnnouncementKind.DIAL, link_id).encode())
        )
        return link

    async def serve(
        self,
        at: str,
        accept: Callable[[Link], Awaitable[None]],
        *,
        task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
    ) -> Never:
        """Listen at an endpoint.

        Args:
          at: HOST:PORT[,HOST:PORT…]/NAME. Without a name, the listener takes a new one.
          accept: Runs in a task of its own for each link.
          task_status: `started` reports the address, with the name.

        Raises:
          ConfigError: Another node listens there, the address has another form, or Kafka does not answer or refuses.

        If cancelled, the endpoint is free for the next listener.
        """
        address = Address.parse(at)
        address = attrs.evolve(address, name=address.name or new_id())
        topic, text = self._names.of_endpoint(address.name), f"kafka:{address}"
        async with AsyncExitStack() as stack:
            try:
                shared = await stack.enter_async_context(self._client(address.bootstrap))
            except ConnectionLost as error:
                raise ConfigError(f"can't listen at kafka:{at}: {error}") from error
            if topic in shared.endpoints:
                raise taken(text)
            shared.endpoints.add(topic)
            stack.callback(shared.endpoints.discard, topic)
            claim = Claim(shared, topic, text, replication_factor=self._replication_factor)
            listener = Listener(shared, claim, self._names, max_frame=self._max_frame, log_throttle=self._log_throttle)
            await listener.serve(accept, partial(task_status.started, str(address)))
