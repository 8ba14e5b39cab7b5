"""Inlets: a TCP port of this machine whose connections go to an outlet, along a route (spec §13.3)."""

from collections.abc import Awaitable, Callable

import trio

from trionode.errors import TrionodeError
from trionode.log import LogThrottle, log, sanitize
from trionode.net.sockets import join_host_port, open_listeners
from trionode.portal.connection import Connection, PortalLimits, prepare, reset
from trionode.protocol.portal import PortalEnd, State
from trionode.protocol.wire.address import Encoded
from trionode.routing.router import Router

#: Makes the way to the outlet, anew each time it was lost: the encoded hops, the outlet's address last.
OpenWay = Callable[[], Awaitable[tuple[Encoded, ...]]]

#: Seconds that a client waits for its connection: for the way to be opened and for the outlet's answer, which connects its target first.
OPEN_SECONDS = 30.0
#: Seconds that an answer is listened for after that, so that an outlet which answers late doesn't keep its target for nobody.
LATE_SECONDS = 60.0


class Inlet:
    """A listening port; each client that connects gets a connection of its own at the outlet. Made by `Node.open_inlet`.

    A client is accepted before anything is known of the target: one that can't be connected through is closed with a reset.
    """

    def __init__(self, router: Router, open_way: OpenWay, limits: PortalLimits) -> None:
        #: HOST:PORT as bound.
        self.bound = ""
        self._router = router
        self._open_way = open_way
        self._limits = limits
        self._connections: set[Connection] = set()
        self._log_throttle = LogThrottle()
        self._scope = trio.CancelScope()
        self._ended = trio.Event()

    @property
    def connections(self) -> int:
        """How many connections there are now."""
        return len(self._connections)

    async def run(self, at: str, *, task_status: trio.TaskStatus["Inlet"] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen until `aclose`, or the end of the node; LocalError if the port can't be had."""
        listeners = await open_listeners(at)
        self.bound = join_host_port(listeners[0].socket.getsockname())
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(trio.serve_listeners, self._accept, listeners)
                    task_status.started(self)
        finally:
            self._ended.set()

    async def _accept(self, stream: trio.SocketStream) -> None:
        sock = stream.socket
        if len(self._connections) >= self._limits.connections:
            self._tell(f"it holds {len(self._connections)} connections already")
            reset(sock)
            return
        prepare(sock)
        connection = Connection(self._router, PortalEnd.inlet(self._limits.window))
        self._connections.add(connection)
        try:
            await self._open(connection)
            if connection.end.state in (State.ABANDONED, State.CLOSED):
                reset(sock)
                await connection.answered(LATE_SECONDS)
            else:
                await connection.run(sock)
        finally:
            sock.close()
            self._connections.discard(connection)
            connection.finish()

    async def _open(self, connection: Connection) -> None:
        """Send the Ping and wait for the Pong; afterwards the connection is open, or given up."""
        why = f"the outlet did not answer within {OPEN_SECONDS:g} s"
        with trio.move_on_after(OPEN_SECONDS):
            try:
                connection.go_by(await self._open_way())
            except TrionodeError as error:
                # Whatever the way was made of, by these it says that there is none now; there may be one for the next client.
                why = str(error)
                connection.end.lose()
            await connection.flush()
            await connection.opened(OPEN_SECONDS)
        if not connection.end.has_opened:
            connection.end.leave()
        elif connection.end.state is State.CLOSED:
            self._tell("the outlet refused it, or the way is gone" if connection.onward else why)
            return
        if connection.end.state is State.ABANDONED:
            self._tell(why)

    def _tell(self, why: str) -> None:
        if self._log_throttle.is_due(why, trio.current_time()):
            log.warning("inlet at %s turned a client away: %s", self.bound, sanitize(why))

    async def aclose(self) -> None:
        """Stop listening and break every connection; both their ends are told."""
        self._scope.cancel()
        await self._ended.wait()

    def __repr__(self) -> str:
        return f"<Inlet at {self.bound}>"
