"""One end of one connection through a portal: a hop, and two tasks between socket and route (spec §13.3)."""

import socket
import struct
from collections.abc import Callable
from contextlib import suppress

import attrs
import trio

from trionode.counters import DropReason
from trionode.errors import ClosedError, MessageTooLargeError, UnknownAddressError, WireError
from trionode.protocol import portal
from trionode.protocol.portal import MAX_DATA, WINDOW, Pong, PortalEnd, State
from trionode.protocol.wire.address import Address, Encoded
from trionode.protocol.wire.message import Message, Origin
from trionode.routing.mailbox import Sender
from trionode.routing.router import Router, random_address

#: Seconds that a socket gets to take what arrived before its connection broke. Its program may never read again, and
#: the socket costs memory.
DRAIN_SECONDS = 30.0
#: Seconds to read on for the socket's end after ours was sent: a plain close can destroy data that are on their way to
#: it.
CLOSE_SECONDS = 2.0
#: Bytes that the kernel takes for a socket before it reports that it is full. Trio's streams set 16 KiB, a task switch
#: for each.
UNSENT = 256 * 1024
#: Bytes in one recv: one Payload.
READ_SIZE = MAX_DATA
#: Bytes of an encoded message beside its addresses and its data: heads of arrays and of bytes, type, length and counter
#: of the Payload.
OVERHEAD = 64


@attrs.frozen
class PortalLimits:
    """Limits of an inlet or an outlet: a connection costs a socket, and `window` bytes that wait (Rust peer: 1 MiB)."""

    #: Connections of one inlet or outlet.
    connections: int = 500
    #: Connections of one client at an outlet: an authenticated identity, or a link or stream without one.
    per_client: int = 250
    #: Bytes that the peer may send ahead of the socket. No connection is faster than one window in each round trip.
    window: int = WINDOW


class Connection:
    """An end with its own address, made before there is a socket or a path.

    What waits between them is bounded by its state machine.
    """

    def __init__(self, router: Router, end: PortalEnd) -> None:
        self.encoded = random_address()
        self.end = end
        #: The route to the peer, once it is known.
        self.onward: tuple[Encoded, ...] = ()
        self._router = router
        self._sender = Sender(router, self.encoded)
        self._admits: Callable[[Origin], bool] | None = None
        self._carriers: set[Encoded] = set()
        self._changed = trio.lowlevel.ParkingLot()
        self._scope = trio.CancelScope()
        router.register(self.encoded, self._hop, allow=self._allow)

    def _allow(self, origin: Origin) -> bool:
        # Before the peer has answered: whatever knows the 128 random bits. Then only the identity that answered.
        return self._admits is None or self._admits(origin)

    def use_path(self, path: tuple[Encoded, ...]) -> None:
        """Send by this path from now on; the connection is lost with its first hop."""
        self._watch({path[0]})
        self.onward = path
        limit = self._router.limit(path[0])
        if limit is not None:
            self.end.max_data = min(MAX_DATA, limit - sum(map(len, path[1:])) - len(self.encoded) - OVERHEAD)
            if self.end.max_data <= 0:
                self._on_path_lost()

    def follow(self, message: Message) -> None:
        """Send by the return route of a Ping or Pong from now on, and accept only messages of its sender (spec §13.3).

        The connection is lost with the first hop of that route, and with the link that the message came by. A channel
        may outlive its link, but what was under way on the link is then missing from the bytes of the connection.
        """
        identifier = message.origin.identifier
        self._admits = lambda origin: origin.identifier == identifier
        self.use_path(message.back)
        if message.origin.link is not None:
            self._watch({message.back[0], message.origin.link})

    def _watch(self, carriers: set[Encoded]) -> None:
        for gone in self._carriers - carriers:
            self._router.forget(gone, self._on_path_lost)
        new = carriers - self._carriers
        self._carriers = carriers
        for carrier in new:
            self._router.on_close(carrier, self._on_path_lost)

    def _on_path_lost(self) -> None:
        self.end.route_lost()
        self.wake()

    def wake(self) -> None:
        """Make the tasks look at the state machine again."""
        if self.end.is_broken and self._scope.deadline == float("inf"):
            self._scope.deadline = trio.current_time() + DRAIN_SECONDS
        self._changed.unpark_all()

    def _hop(self, message: Message) -> None:
        try:
            content = portal.decode(message.payload)
        except WireError:
            self._router.counters[DropReason.PORTAL_UNDECODABLE] += 1
            return
        if isinstance(content, Pong) and self.end.state in (State.WAITING, State.ABANDONED):
            if not message.back:
                return
            self.follow(message)
        self.end.receive(content)
        self.wake()

    async def wait_while(self, condition: Callable[[], bool], seconds: float) -> None:
        """Wait until a condition of the state machine no longer holds, or the seconds are over."""
        with trio.move_on_after(seconds):
            while condition():
                await self._changed.park()

    async def flush(self) -> None:
        """Send what the state machine has to send, and wait while the path is over its budget.

        If cancelled, the rest stays to be sent.
        """
        outgoing = self.end.outgoing
        while outgoing:
            content = outgoing.popleft()
            try:
                await self._sender.deliver(Message(self.onward, self._sender.source, portal.encode(content)))
            except trio.Cancelled:
                outgoing.appendleft(content)
                raise
            except (UnknownAddressError, ClosedError, MessageTooLargeError):
                # The path ended, or it now leads over a link with smaller frames than the first one.
                self._on_path_lost()

    async def run(self, sock: trio.socket.SocketType) -> None:
        """Carry bytes both ways until both directions have ended or the connection broke.

        Then close the socket, or reset it if it broke.
        """
        input_ended = False

        async def read() -> None:
            nonlocal input_ended
            input_ended = await self._read(sock)

        is_whole = False
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(read)
                    await self._write(sock)
                    nursery.cancel_scope.cancel()
                is_whole = not self.end.is_broken
            if is_whole and not input_ended:
                await _read_to_end(sock)
        finally:
            if is_whole:
                sock.close()  # in order: all that was written still goes out
            else:
                reset(sock)

    async def _read(self, sock: trio.socket.SocketType) -> bool:
        """Socket to route: no more than there is credit for, and no faster than the path takes it.

        Whether the socket's input has ended.
        """
        end = self.end
        while end.can_send:
            capacity = end.sendable
            if not capacity:
                await self._changed.park()
                continue
            try:
                data = await sock.recv(min(capacity, READ_SIZE))
            except OSError:
                end.abort()
                self.wake()
                return True
            if data:
                end.send(data)
            else:
                end.input_ended()
                self.wake()
            await self.flush()
            if not data:
                return True
        return False

    async def _write(self, sock: trio.socket.SocketType) -> None:
        """Route to socket, all that waits at once; ends when all is written and both directions are over."""
        end = self.end
        is_shut = False
        while True:
            if data := end.take():
                left = memoryview(data)
                try:
                    while left:
                        count = await sock.send(left)
                        left = left[count:]
                        end.written(count)
                        await self.flush()
                except OSError:
                    end.abort()
                    self.wake()
                    return
            elif end.state is State.CLOSED:
                return
            elif not end.can_receive and not is_shut:
                is_shut = True
                with suppress(OSError):  # the socket is closed already, and reading notices that
                    sock.shutdown(socket.SHUT_WR)
            else:
                await self._changed.park()

    def finish(self) -> None:
        """Remove the address, and send the last messages to the peer without waiting."""
        self._watch(set())
        self._router.unregister(self.encoded)
        self.end.abort()
        outgoing = self.end.outgoing
        with suppress(UnknownAddressError, ClosedError, MessageTooLargeError):
            while outgoing and self.onward:
                self._router.deliver(Message(self.onward, self._sender.source, portal.encode(outgoing.popleft())))

    def __repr__(self) -> str:
        return f"<Connection at {Address.from_encoded(self.encoded)}: {self.end.state.value}>"


def prepare(sock: trio.socket.SocketType) -> None:
    """Send small writes at once, notice a vanished peer, and use the kernel's buffers."""
    with suppress(OSError):  # a socket that is reset already
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT)


def reset(sock: trio.socket.SocketType) -> None:
    """Close with a reset, so the program at the other end sees an error and not the end of the data."""
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


async def _read_to_end(sock: trio.socket.SocketType) -> None:
    """Send our end, and read on for the other's, for at most CLOSE_SECONDS."""
    with suppress(OSError), trio.move_on_after(CLOSE_SECONDS):
        sock.shutdown(socket.SHUT_WR)
        while await sock.recv(READ_SIZE):
            pass
