"""One end of one connection through a portal: a hop that never waits, and two tasks between the socket and the route (spec §13.3)."""

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

#: Seconds that a socket has to take what arrived before a connection broke: its other end may read no more, and holds a place here.
DRAIN_SECONDS = 30.0
#: Seconds that a socket is read on for its own end, after it was told ours: a plain close can destroy what is on its way to it.
CLOSE_SECONDS = 2.0
#: Bytes that the kernel takes for a socket before it says that it has had enough; Trio's streams make it 16 KiB, a task switch for each.
UNSENT = 256 * 1024
#: Bytes in one recv: one Payload.
READ_SIZE = MAX_DATA
#: Bytes of an encoded message beside its addresses and its data: heads of arrays and of bytes, type, length and counter of the Payload.
OVERHEAD = 64


@attrs.frozen
class PortalLimits:
    """What an inlet or an outlet holds at most: each connection costs a socket, and at worst `window` bytes that wait for it (1 MiB from a Rust peer)."""

    #: Connections of one inlet or outlet.
    connections: int = 500
    #: Connections that one client may have at an outlet: an authenticated identity, or a link or stream without one.
    per_client: int = 250
    #: Bytes that the peer may send ahead of the socket; a connection is never faster than this in one round trip.
    window: int = WINDOW


class Connection:
    """An end with an address of its own. Made before there is a socket or a way; what waits between them stands in its machine, bounded."""

    def __init__(self, router: Router, end: PortalEnd) -> None:
        self.encoded = random_address()
        self.end = end
        #: Where the peer is, once that is known.
        self.onward: tuple[Encoded, ...] = ()
        self._router = router
        self._sender = Sender(router, self.encoded)
        self._admits: Callable[[Origin], bool] | None = None
        self._carriers: set[Encoded] = set()
        self._stirred = trio.lowlevel.ParkingLot()
        self._scope = trio.CancelScope()
        router.register(self.encoded, self._hop, allow=self._allow)

    def _allow(self, origin: Origin) -> bool:
        # Until the peer has answered, whoever was told 128 random bits; then only the identity that answered.
        return self._admits is None or self._admits(origin)

    def go_by(self, hops: tuple[Encoded, ...]) -> None:
        """Send by this way from now on; the connection is lost with its first hop."""
        self._watch({hops[0]})
        self.onward = hops
        limit = self._router.limit(hops[0])
        if limit is not None:
            self.end.max_data = min(MAX_DATA, limit - sum(map(len, hops[1:])) - len(self.encoded) - OVERHEAD)
            if self.end.max_data <= 0:
                self._lose()

    def follow(self, message: Message) -> None:
        """Send by the return route of a Ping or Pong for the whole life, and hear only who sent it (spec §13.3).

        It is lost with the first hop of that route, and with the link that the message came by: a channel may outlive its link, but what was
        on its way then is missing from the bytes of a connection.
        """
        identifier = message.origin.identifier
        self._admits = lambda origin: origin.identifier == identifier
        self.go_by(message.back)
        if message.origin.link is not None:
            self._watch({message.back[0], message.origin.link})

    def _watch(self, carriers: set[Encoded]) -> None:
        for gone in self._carriers - carriers:
            self._router.forget(gone, self._lose)
        new = carriers - self._carriers
        self._carriers = carriers
        for carrier in new:
            self._router.on_close(carrier, self._lose)

    def _lose(self) -> None:
        self.end.lose()
        self.stir()

    def stir(self) -> None:
        """Let the tasks look at the machine again."""
        if self.end.is_broken and self._scope.deadline == float("inf"):
            self._scope.deadline = trio.current_time() + DRAIN_SECONDS
        self._stirred.unpark_all()

    def _hop(self, message: Message) -> None:
        try:
            said = portal.decode(message.payload)
        except WireError:
            self._router.counters[DropReason.PORTAL_UNDECODABLE] += 1
            return
        if isinstance(said, Pong) and self.end.state in (State.WAITING, State.ABANDONED):
            if not message.back:
                return
            self.follow(message)
        self.end.receive(said)
        self.stir()

    async def opened(self, seconds: float) -> None:
        """Wait until the time before data is over, or the seconds are."""
        with trio.move_on_after(seconds):
            while not self.end.has_opened:
                await self._stirred.park()

    async def answered(self, seconds: float) -> None:
        """Wait for the answer to a Ping that was given up, so that whoever gives it is told; or until the seconds are over."""
        with trio.move_on_after(seconds):
            while self.end.state is State.ABANDONED:
                await self._stirred.park()

    async def flush(self) -> None:
        """Send what is to be sent, waiting while the way is over its bound. Cancelled, the rest stays to be sent."""
        outgoing = self.end.outgoing
        while outgoing:
            said = outgoing.popleft()
            try:
                await self._sender.deliver(Message(self.onward, self._sender.source, portal.encode(said)))
            except trio.Cancelled:
                outgoing.appendleft(said)
                raise
            except (UnknownAddressError, ClosedError, MessageTooLargeError):
                # The way ended, or it now leads over a link that can't carry what the first one could.
                self._lose()

    async def run(self, sock: trio.socket.SocketType) -> None:
        """Carry bytes both ways until both have ended, or the connection broke; the socket is closed then, in order or with a reset."""
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
                await _read_out(sock)
        finally:
            (close if is_whole else reset)(sock)

    async def _read(self, sock: trio.socket.SocketType) -> bool:
        """Socket to route: no more than there is credit for, and no faster than the way takes it; whether the socket's input has ended."""
        end = self.end
        while end.speaks:
            room = end.room
            if not room:
                await self._stirred.park()
                continue
            try:
                data = await sock.recv(min(room, READ_SIZE))
            except OSError:
                end.leave()
                self.stir()
                return True
            if data:
                end.send(data)
            else:
                end.end()
                self.stir()
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
                    end.leave()
                    self.stir()
                    return
            elif end.state is State.CLOSED:
                return
            elif end.is_heard_out and not is_shut:
                is_shut = True
                with suppress(OSError):  # it is gone already, which reading tells
                    sock.shutdown(socket.SHUT_WR)
            else:
                await self._stirred.park()

    def finish(self) -> None:
        """Take the address away; what the peer is still to be told it is told now, without waiting."""
        self._watch(set())
        self._router.unregister(self.encoded)
        self.end.leave()
        outgoing = self.end.outgoing
        with suppress(UnknownAddressError, ClosedError, MessageTooLargeError):
            while outgoing and self.onward:
                self._router.deliver(Message(self.onward, self._sender.source, portal.encode(outgoing.popleft())))

    def __repr__(self) -> str:
        return f"<Connection at {Address.from_encoded(self.encoded)}: {self.end.state.value}>"


def prepare(sock: trio.socket.SocketType) -> None:
    """Small writes go out at once, a peer that vanished is noticed, and the kernel's buffers are used: Trio's streams keep them short."""
    with suppress(OSError):  # a socket that is reset already
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT)


def close(sock: trio.socket.SocketType) -> None:
    """Close in order: all that was written still goes out."""
    sock.close()


def reset(sock: trio.socket.SocketType) -> None:
    """Close with a reset, so that the program at the other end sees an error and takes no cut-off data for the whole."""
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


async def _read_out(sock: trio.socket.SocketType) -> None:
    """Tell our end, and read on for the other's, for at most CLOSE_SECONDS."""
    with suppress(OSError), trio.move_on_after(CLOSE_SECONDS):
        sock.shutdown(socket.SHUT_WR)
        while await sock.recv(READ_SIZE):
            pass
