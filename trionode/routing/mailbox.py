"""A mailbox: a bounded memory channel with an address, and the methods that a worker needs."""

from collections.abc import Awaitable, Callable

import trio

from trionode.counters import DropReason
from trionode.errors import MessageTooLargeError, UnknownAddressError
from trionode.log import log
from trionode.protocol.wire.address import Address, Encoded
from trionode.protocol.wire.message import LOCAL, Message, payload_of
from trionode.protocol.wire.route import Route, RouteLike
from trionode.routing.byte_budget import DEFAULT_BOUND, ByteBudget
from trionode.routing.memory_channel import FAIR_BURST, MemoryChannel, Receiver
from trionode.routing.router import Router

#: Seconds that a link waits for a full mailbox of which nothing is taken, before its messages are dropped.
STALL_TIMEOUT = 5.0
#: Queues over their bound that a sender remembers; beyond it those that have capacity again are forgotten.
MAX_OVER_BUDGET = 64


class Sender:
    """Sends from one address, and waits for the queues that its messages filled beyond their bound.

    One for each task that sends.
    """

    __slots__ = ("_over_budgets", "_router", "encoded", "source", "turn")

    def __init__(self, router: Router, encoded: Encoded) -> None:
        self._router = router
        self.encoded = encoded
        #: The return route of sent messages.
        self.source = (encoded,)
        #: Messages sent since other tasks could run. A mailbox that lets them run when it receives sets it to 0.
        self.turn = 0
        self._over_budgets: dict[Encoded, ByteBudget] = {}

    async def deliver(self, message: Message) -> None:
        """Wait until the first hop's queue has capacity again, if this sender filled it, and deliver.

        If cancelled, nothing was delivered.
        """
        self.turn += 1
        if self._over_budgets or self.turn > FAIR_BURST:
            await self._wait(message)
        over_budget = self._router.deliver(message)
        if over_budget is not None:
            if len(self._over_budgets) >= MAX_OVER_BUDGET:
                self._over_budgets = {
                    key: budget for key, budget in self._over_budgets.items() if budget.size > budget.bound
                }
            self._over_budgets[message.onward[0]] = over_budget

    async def _wait(self, message: Message) -> None:
        if self.turn > FAIR_BURST:
            self.turn = 0
            await trio.lowlevel.checkpoint()
        first = message.onward[0] if message.onward else b""
        over_budget = self._over_budgets.get(first)
        if over_budget is not None:
            await over_budget.wait_for_capacity()
            self._over_budgets.pop(first, None)  # another task of the same sender may have removed it meanwhile


class Mailbox(Receiver[Message]):
    """What a worker works with: messages come in by `receive` or iteration, and leave by `send`, `reply` and `forward`.

    Iteration takes what waits without letting other tasks run, except for every 64th message.
    """

    __slots__ = ("_current", "_inbox", "_is_stalled", "_router", "_sender", "_stall_timeout", "_turn", "encoded")

    def __init__(
        self, router: Router, encoded: Encoded, *, bound: int = DEFAULT_BOUND, stall_timeout: float = STALL_TIMEOUT
    ) -> None:
        self._router = router
        self.encoded = encoded
        self._inbox: MemoryChannel[Message] = MemoryChannel(bound, stall_timeout=stall_timeout, on_stall=self._on_stall)
        self._sender = Sender(router, encoded)
        self._is_stalled = False
        self._stall_timeout = stall_timeout
        self._turn = 0
        #: The message that was handed out last, until the next one is asked for: the one that the worker handles.
        self._current: Message | None = None

    @property
    def address(self) -> Address:
        """This mailbox's address on its node."""
        return Address.from_encoded(self.encoded)

    def _hop(self, message: Message) -> ByteBudget | None:
        """Put the message in, unless nothing was taken for too long."""
        inbox = self._inbox
        # Only a link's reader stops waiting. For a local message or one of a stream, some task waits without end, so it
        # is not dropped.
        if self._is_stalled and message.origin.link is not None and not message.origin.is_held:
            if inbox.size > inbox.bound // 2:
                self._router.counters[DropReason.MAILBOX_STALLED] += 1
                return None
            self._is_stalled = False
        if message.origin.drop_when_full and inbox.is_full:
            self._router.counters[DropReason.MAILBOX_FULL] += 1
            return None
        if message.receipt is not None:
            message.receipt.is_queued = True
        # The routes count too: a peer can make them 32 KiB long around an empty payload.
        return inbox.put(message, len(message.payload) + sum(map(len, message.onward)) + sum(map(len, message.back)))

    def _on_stall(self) -> None:
        if not self._is_stalled:
            self._is_stalled = True
            log.warning(
                "worker %s took no message for %g s: dropping messages until half of its mailbox is empty",
                self.address,
                self._stall_timeout,
            )

    async def receive(self) -> Message:
        """Wait for the next message and return it.

        Raises:
          trio.EndOfChannel: The mailbox is closed and empty.

        If cancelled, no message is taken.
        """
        self._turn += 1
        if self._turn >= FAIR_BURST:
            self._turn = self._sender.turn = 0
            await trio.lowlevel.checkpoint()
        current = self._current
        if current is not None and current.receipt is not None:
            current.receipt.done()
        message = self._inbox.take()
        while message is None:
            self._current = None
            self._turn = self._sender.turn = 0
            if not await self._inbox.ready():
                raise trio.EndOfChannel
            message = self._inbox.take()
        self._current = message
        return message

    def _take_current(self) -> Message | None:
        """Return the message that the worker was handling when it raised, and forget it."""
        message, self._current = self._current, None
        return message

    async def send(self, route: RouteLike, body: bytes | str) -> None:
        """Send a payload from this address.

        It waits while the path is over its byte budget because of this mailbox's messages. A worker does not dial:
        connect first.

        Args:
          route: Where it goes.
          body: bytes are sent as they are, a str as a BARE string (spec §5).

        Raises:
          UnknownAddressError: This node has no such first hop.
          MessageTooLargeError: A link or stream on this node can't carry it.
          ConfigError: The route or the body is something else.

        If cancelled, nothing was sent.
        """
        onward = route.encoded if type(route) is Route else Route.of(route).encoded
        await self._sender.deliver(Message(onward, self._sender.source, payload_of(body), is_promised=True))

    async def reply(self, message: Message, body: bytes | str) -> None:
        """Answer a message along its return route, exactly as it arrived (spec §4.1).

        If that path is gone (spec §4.2) or does not carry the answer, which is the peer's choice, the answer is dropped
        and counted.

        Args:
          message: The message to answer.
          body: As for `send`.

        Raises:
          ConfigError: The body is something else.

        If cancelled, nothing was sent.
        """
        answer = Message(message.back, self._sender.source, payload_of(body), LOCAL, message.deliveries)
        try:
            await self._sender.deliver(answer)
        except UnknownAddressError:
            self._router.counters[DropReason.REPLY_PATH_GONE] += 1
        except MessageTooLargeError:
            self._router.counters[DropReason.REPLY_TOO_LARGE] += 1

    def reply_nowait(self, message: Message, body: bytes | str) -> None:
        """Answer without waiting, as a service for unauthenticated peers does.

        A link that takes no answers is closed at its hard limit.

        Args:
          message: The message to answer.
          body: As for `send`.

        Raises:
          ConfigError: The body is something else.
        """
        self._router.answer(message, self.encoded, payload_of(body))

    async def forward(self, message: Message, onward: RouteLike) -> None:
        """Send a message on with another onward route, and its return route untouched (spec §4.1).

        The answer does not come by here. A message that is too large for its path is dropped and counted.

        Args:
          message: The message.
          onward: Where it goes.

        Raises:
          UnknownAddressError: This node has no such first hop.
          ConfigError: The route is something else.

        If cancelled, nothing was sent.
        """
        forwarded = Message(Route.of(onward).encoded, message.back, message.payload, LOCAL, message.deliveries)
        try:
            await self._sender.deliver(forwarded)
        except MessageTooLargeError:
            self._router.counters[DropReason.FORWARD_TOO_LARGE] += 1

    def _close(self) -> None:
        """Accept no more messages. The worker's iteration ends when the queue is empty."""
        self._inbox.close()

    def _finish(self) -> None:
        """Note that the reader has handled its last message and takes no more. What still waits is dropped."""
        current = self._take_current()
        for message in (current, *self._inbox.take_all()):
            if message is None:
                continue
            if message is not current:
                self._router.counters[DropReason.MAILBOX_CLOSED] += 1
            if message.receipt is not None:
                message.receipt.done()


#: A worker: an async function that gets its mailbox. `Node.start_worker` says what an exception of it leads to.
Worker = Callable[[Mailbox], Awaitable[None]]
