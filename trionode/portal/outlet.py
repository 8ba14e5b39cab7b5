"""Outlets: an address of this node whose connections lead to a TCP service (spec §13.3)."""

from collections import Counter

import trio

from trionode.counters import DropReason
from trionode.errors import WireError
from trionode.log import LogThrottle, sanitize
from trionode.portal.connection import Connection, PortalLimits, prepare
from trionode.protocol import portal
from trionode.protocol.portal import Ping, PortalEnd, State
from trionode.protocol.rules.access import Access, client_of
from trionode.protocol.wire.address import Address, Encoded, parse_host_port
from trionode.protocol.wire.message import Message
from trionode.routing.router import Router
from trionode.routing.service import Service

#: Seconds that the target has to accept a connection: well within the time that an inlet waits.
CONNECT_SECONDS = 10.0


class Outlet(Service):
    """Connects to its target once for each Ping that it admits. `Node.serve_outlet` makes it."""

    def __init__(self, router: Router, encoded: Encoded, target: str, limits: PortalLimits) -> None:
        super().__init__()
        self.encoded = encoded
        #: HOST:PORT of the TCP service.
        self.target = target
        self._host, self._port = parse_host_port(target)
        self._router = router
        self._limits = limits
        # By the return route of the Ping: the same Ping again is no second connection.
        self._connections: dict[tuple[Encoded, ...], Connection] = {}
        self._clients: Counter[Encoded | None] = Counter()
        self._log_throttle = LogThrottle()

    @property
    def address(self) -> Address:
        """The address that inlets name last in their route."""
        return Address.from_encoded(self.encoded)

    @property
    def connections(self) -> int:
        """How many connections there are now."""
        return len(self._connections)

    async def _run(self, *, allow: Access, task_status: trio.TaskStatus["Outlet"] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until `aclose`, or the end of the node; AddressInUseError if the name is taken."""
        self._router.register(self.encoded, self._hop, allow=allow)
        try:
            async with self._serving():
                task_status.started(self)
                await trio.sleep_forever()
        finally:
            self._router.unregister(self.encoded)

    def _hop(self, message: Message) -> None:
        """A Ping opens a connection; no other message is for this address (spec §13.3)."""
        counters = self._router.counters
        try:
            ping = portal.decode(message.payload)
        except WireError:
            counters[DropReason.PORTAL_UNDECODABLE] += 1
            return
        if not isinstance(ping, Ping) or not message.back:
            counters[DropReason.PORTAL_NOT_A_PING] += 1
            return
        if message.back in self._connections:
            counters[DropReason.PORTAL_PING_REPEATED] += 1
            return
        client = client_of(message.origin)
        connection = Connection(self._router, PortalEnd.outlet(ping, self._limits.window))
        connection.follow(message)
        if len(self._connections) >= self._limits.connections or self._clients[client] >= self._limits.per_client:
            self._log_throttled("refused a connection: there are too many already, in all or of this client")
            connection.finish()
        elif self._start_soon(self._serve, connection, message.back, client):
            self._connections[message.back] = connection
            self._clients[client] += 1
        else:  # the outlet is ending
            connection.finish()

    async def _serve(self, connection: Connection, key: tuple[Encoded, ...], client: Encoded | None) -> None:
        try:
            sock = await self._connect()
            if sock is None:
                connection.end.abort()
                return
            try:
                connection.end.connected()
                await connection.flush()
                if connection.end.state is not State.CLOSED:
                    await connection.run(sock)
            finally:
                sock.close()
        finally:
            connection.finish()
            del self._connections[key]
            self._clients[client] -= 1
            if not self._clients[client]:
                del self._clients[client]

    async def _connect(self) -> trio.socket.SocketType | None:
        try:
            with trio.fail_after(CONNECT_SECONDS):
                stream = await trio.open_tcp_stream(self._host, self._port)
        except OSError as error:
            self._log_throttled(f"the target can't be reached: {sanitize(error.strerror or error)}")
            return None
        except trio.TooSlowError:
            self._log_throttled(f"the target did not accept a connection within {CONNECT_SECONDS:g} s")
            return None
        prepare(stream.socket)
        return stream.socket

    def _log_throttled(self, event: str) -> None:
        self._log_throttle.log_warning(event, "outlet %s to %s: %s", self.address, self.target, event)

    async def aclose(self) -> None:
        """Take no more connections and break the existing ones; the target and the inlet of each are notified.

        If cancelled, the outlet still ends.
        """
        await super().aclose()

    def __repr__(self) -> str:
        return f"<Outlet {self.address} to {self.target}>"
