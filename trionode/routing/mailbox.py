"""A mailbox: a bounded memory channel and the task that reads it, with the verbs a worker needs."""

from collections.abc import Awaitable, Callable
from typing import Self

import trio

from trionode.counters import DropReason
from trionode.errors import MessageTooLargeError, UnknownAddressError
from trionode.log import log
from trionode.protocol.wire.address import Address, Encoded
from trionode.protocol.wire.message import LOCAL, Message, payload_of
from trionode.protocol.wire.route import Route
from trionode.routing.byte_budget import DEFAULT_BOUND, ByteBudget
from trionode.routing.memory_channel import FAIR_BURST, MemoryChannel
from trionode.routing.router import Router

#: Seconds that a link waits for a mailbox of which nothing is taken, before its messages are dropped.
STALL_TIMEOUT = 5.0
#: Debts that a sender remembers; beyond it those that are settled by themselves are forgotten.
MAX_OVER_BUDGET = 64


class Sender:
    """Sends from one address and waits for the queues that it owes: one for each task or worker that sends."""

    __slots__ = ("_over_budgets", "_router", "encoded", "source", "turn")

    def __init__(self, router: Router, encoded: Encoded) -> None:
        self._router = router
        self.encoded = encoded
        #: The return route of what is sent.
        self.source = (encoded,)
        #: Messages sent since other tasks could run; a mailbox that lets them run when it receives begins anew.
        self.turn = 0
        self._over_budgets: dict[Encoded, ByteBudget] = {}

    async def deliver(self, message: Message) -> None:
        """Settle what is owed on the way that the message takes, then deliver it; cancelled, it has not been delivered."""
        self.turn += 1
        if self._over_budgets or self.turn > FAIR_BURST:
            await self._settle(message)
        over_budget = self._router.deliver(message)
        if over_budget is not None:
            if len(self._over_budgets) >= MAX_OVER_BUDGET:
                self._over_budgets = {key: room for key, room in self._over_budgets.items() if room.size > room.bound}
            self._over_budgets[message.onward[0]] = over_budget

    async def _settle(self, message: Message) -> None:
        if self.turn > FAIR_BURST:
            self.turn = 0
            await trio.lowlevel.checkpoint()
        first = message.onward[0] if message.onward else b""
        over_budget = self._over_budgets.get(first)
        if over_budget is not None:
            await over_budget.wait_for_capacity()
            self._over_budgets.pop(first, None)  # another task of the same sender may have settled it meanwhile


class Mailbox:
    """A worker's whole world: messages come in by `receive` or iteration, and leave by `send`, `reply` and `forward`.

    Iteration takes what waits without letting other tasks run, but for every 64th message.
    """

    __slots__ = ("_inbox", "_overrun", "_router", "_sender", "_stall_timeout", "_turn", "encoded")

    def __init__(
        self, router: Router, encoded: Encoded, *, bound: int = DEFAULT_BOUND, stall_timeout: float = STALL_TIMEOUT
    ) -> None:
        self._router = router
        self.encoded = encoded
        self._inbox: MemoryChannel[Message] = MemoryChannel(bound, stall_timeout=stall_timeout, on_stall=self._on_stall)
        self._sender = Sender(router, encoded)
        self._overrun = False
        self._stall_timeout = stall_timeout
        self._turn = 0

    @property
    def address(self) -> Address:
        """This mailbox's address on its node."""
        return Address.from_encoded(self.encoded)

    def hop(self, message: Message) -> ByteBudget | None:
        """Put the message in, as the router asks, unless nobody has taken one for too long."""
        inbox = self._inbox
        # Only a link's reader stops waiting: what comes from here or by a stream is owed by somebody who waits without end, and kept.
        if self._overrun and message.origin.link is not None:
            if inbox.size > inbox.bound // 2:
                self._router.counters[DropReason.MAILBOX_STALLED] += 1
                return None
            self._overrun = False
        if message.origin.drop_when_full and inbox.is_full:
            self._router.counters[DropReason.MAILBOX_FULL] += 1
            return None
        # The routes count too: a peer can make them 32 KiB long around an empty payload.
        return inbox.put(message, len(message.payload) + sum(map(len, message.onward)) + sum(map(len, message.back)))

    def _on_stall(self) -> None:
        if not self._overrun:
            self._overrun = True
            log.warning(
                "worker %s took no message for %g s: dropping what comes until half of its mailbox is empty",
                self.address,
                self._stall_timeout,
            )

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        try:
            return await self.receive()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None

    async def receive(self) -> Message:
        """Wait for the next message and return it; EndOfChannel once the mailbox is closed and empty. Cancelled, none is taken."""
        self._turn += 1
        if self._turn >= FAIR_BURST:
            self._turn = self._sender.turn = 0
            await trio.lowlevel.checkpoint()
        message = self._inbox.take()
        while message is None:
            self._turn = self._sender.turn = 0
            if not await self._inbox.ready():
                raise trio.EndOfChannel
            message = self._inbox.take()
        return message

    async def send(self, route: Route, body: bytes | str) -> None:
        """Send a payload from this address: bytes as they are, a str as a BARE string (spec §5).

        Waits while the way is over its bound since the last message that this mailbox sent by it; cancelled, nothing was sent.
        UnknownAddressError if the first address is nobody's here: a worker does not dial, connect first.
        """
        await self._sender.deliver(Message(route.encoded, self._sender.source, payload_of(body)))

    async def reply(self, message: Message, body: bytes | str) -> None:
        """Answer a message along its return route exactly as it arrived (spec §4.1).

        Dropped and counted if that way is gone (spec §4.2), or can't carry it: how long the way back is was the peer's choice.
        """
        try:
            await self._sender.deliver(
                Message(message.back, self._sender.source, payload_of(body), LOCAL, message.deliveries)
            )
        except UnknownAddressError:
            self._router.counters[DropReason.REPLY_PATH_GONE] += 1
        except MessageTooLargeError:
            self._router.counters[DropReason.REPLY_TOO_LARGE] += 1

    def reply_nowait(self, message: Message, body: bytes) -> None:
        """Answer without waiting, as a service for strangers does: a link that does not take its answers is closed at its hard bound."""
        self._router.answer(message, self.encoded, body)

    async def forward(self, message: Message, onward: Route) -> None:
        """Send a message on with another onward route and its return route untouched (spec §4.1): the answer does not come by here.

        UnknownAddressError if the first address is nobody's here; a message too large for its way is dropped and counted.
        """
        try:
            await self._sender.deliver(
                Message(onward.encoded, message.back, message.payload, LOCAL, message.deliveries)
            )
        except MessageTooLargeError:
            self._router.counters[DropReason.FORWARD_TOO_LARGE] += 1

    def close(self) -> None:
        """Let nothing more in; the worker's iteration ends when what waits has been taken."""
        self._inbox.close()


#: A worker: an async function that owns its mailbox. What it raises ends its node.
Worker = Callable[[Mailbox], Awaitable[None]]
