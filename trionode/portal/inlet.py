"""Inlets: a TCP port of this machine whose connections go to an outlet, along a route (spec §13.3)."""

import trio

from trionode.errors import TrionodeError
from trionode.log import LogThrottle, sanitize
from trionode.net.sockets import join_host_port, open_listeners
from trionode.portal.connection import Connection, PortalLimits, prepare, reset
from trionode.protocol.portal import PortalEnd, State
from trionode.routing.hub_connection import OpenPath
from trionode.routing.router import Router
from trionode.routing.service import Service

#: Seconds that a client waits for its connection: for the path to be opened, and for the outlet's answer, which
#: connects its target first.
OPEN_SECONDS = 30.0
#: Seconds to listen for a late answer after that, so the outlet learns that its target is not needed.
LATE_SECONDS = 60.0


class Inlet(Service):
    """A listening port. Each client that connects gets its own connection at the outlet. `Node.open_inlet` makes it.

    A client is accepted before anything is known of the target. If the target can't be connected, the client's
    connection is reset.
    """

    def __init__(self, router: Router, open_path: OpenPath, limits: PortalLimits) -> None:
        super().__init__()
        #: HOST:PORT as bound.
        self.bound = ""
        self._router = router
        self._open_path = open_path
        self._limits = limits
        self._connections: set[Connection] = set()
        self._log_throttle = LogThrottle()

    @property
    def connections(self) -> int:
        """How many connections there are now."""
        return len(self._connections)

    async def _run(self, at: str, *, task_status: trio.TaskStatus["Inlet"] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen until `aclose`, or the end of the node; ConfigError if the port can't be bound."""
        listeners = await open_listeners(at)
        self.bound = join_host_port(listeners[0].socket.getsockname())
        async with self._serving() as nursery:
            nursery.start_soon(trio.serve_listeners, self._accept, listeners)
            task_status.started(self)

    async def _accept(self, stream: trio.SocketStream) -> None:
        sock = stream.socket
        if len(self._connections) >= self._limits.connections:
            self._log_refusal(f"it holds {len(self._connections)} connections already")
            reset(sock)
            return
        prepare(sock)
        connection = Connection(self._router, PortalEnd.inlet(self._limits.window))
        self._connections.add(connection)
        end = connection.end
        try:
            await self._open(connection)
            if end.state in (State.ABANDONED, State.CLOSED):
                reset(sock)
                await connection.wait_while(lambda: end.state is State.ABANDONED, LATE_SECONDS)
            else:
                await connection.run(sock)
        finally:
            sock.close()
            self._connections.discard(connection)
            connection.finish()

    async def _open(self, connection: Connection) -> None:
        """Send the Ping and wait for the Pong; then the connection is open, abandoned or closed."""
        end = connection.end
        why = f"the outlet did not answer within {OPEN_SECONDS:g} s"
        with trio.move_on_after(OPEN_SECONDS):
            try:
                connection.use_path(await self._open_path())
            except TrionodeError as error:
                # Whatever opens the path says by these errors that there is none now. There may be one for the next
                # client.
                why = str(error)
                end.route_lost()
            await connection.flush()
            await connection.wait_while(lambda: not end.has_opened, OPEN_SECONDS)
        if not end.has_opened:
            end.abort()
        elif end.state is State.CLOSED:
            self._log_refusal("the outlet refused it, or the path was lost" if connection.onward else why)
            return
        if end.state is State.ABANDONED:
            self._log_refusal(why)

    def _log_refusal(self, why: str) -> None:
        self._log_throttle.log_warning(why, "inlet at %s reset a client's connection: %s", self.bound, sanitize(why))

    async def aclose(self) -> None:
        """Stop listening and break every connection; the client and the outlet of each are notified.

        If cancelled, the inlet still ends.
        """
        await super().aclose()

    def __repr__(self) -> str:
        return f"<Inlet at {self.bound}>"
