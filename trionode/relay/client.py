"""A relay as its holder has it: an address on a hub by which others reach this node, kept registered (spec §13.2)."""

import random
from collections.abc import Sequence
from itertools import chain, repeat

import trio

from trionode.counters import DropReason
from trionode.errors import AnswerTimeout, ClosedError, ConnectionLost, RemoteError, UnknownAddressError, WireError
from trionode.log import log, sanitize
from trionode.net.backoff import STEADY_SECONDS
from trionode.protocol.rules.access import from_anywhere
from trionode.protocol.rules.relay import origin_behind_relay
from trionode.protocol.wire import bare
from trionode.protocol.wire.address import Address, Encoded, local
from trionode.protocol.wire.message import Message, Origin
from trionode.relay.return_path import PathEntry, ReturnPaths
from trionode.relay.service import REGISTER
from trionode.routing.byte_budget import ByteBudget
from trionode.routing.hub_connection import OpenPath as OpenWay
from trionode.routing.router import Router, random_address

BACKOFF = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)

#: Seconds without an answer before a registration is sent again, the last one for ever: a hub that has not noticed yet that this node's former
#: link is dead keeps the name for that. Once answered it is never sent again on the same way: a 0.77 service would take the relay away.
RETRIES: Sequence[float] = (5.0, 10.0, 20.0, 60.0)


class Relay:
    """This node's place on a hub; made by `Node.open_relay`, and kept until `aclose`, or the end of the node.

    Others put `remote` behind their own way to the hub: `Route("tcp:HUB:4000", relay.remote, "listener")`. Whoever comes by it is a
    stranger here, also where the hub itself is at the other end of a secure channel: the hub vouches for itself, not for its guests.
    """

    def __init__(
        self,
        router: Router,
        ways: Sequence[tuple[str, OpenWay]],
        *,
        name: str | None,
        service: str,
        open_target: OpenWay | None,
    ) -> None:
        #: Where the hub sends what comes for this node: random, and known to the hub only.
        self.encoded = random_address()
        #: The name that was asked for; None for one that the hub chooses.
        self.name = name
        self._router = router
        self._ways = ways
        self._hub = ways[0][0]
        self._open_target = open_target
        self._return_paths = ReturnPaths(router)
        self._target: tuple[PathEntry, tuple[Encoded, ...]] | None = None
        self._service = local(service)
        self._remote: Address | None = None
        self._first: Encoded | None = None
        self._answered = trio.Event()
        self._ready = trio.Event()
        self._failure: RemoteError | None = None
        self._origins: dict[Origin, Origin] = {}
        self._scope = trio.CancelScope()
        self._ended = trio.Event()

    @property
    def remote(self) -> Address:
        """The relay's address on the hub. Where the hub chooses the name it is another one each time the way to the hub was lost."""
        assert self._remote is not None, "open_relay returns relays that are registered"
        return self._remote

    async def run(self, *, task_status: trio.TaskStatus["Relay"] = trio.TASK_STATUS_IGNORED) -> None:
        """Live until `aclose`, or the end of the node."""
        self._router.register(self.encoded, self._pass, allow=from_anywhere)
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    if self._open_target is not None:
                        nursery.start_soon(self._stay_joined, self._open_target)
                    nursery.start_soon(self._stay_registered)
                    task_status.started(self)
        finally:
            self._router.unregister(self.encoded)
            self._return_paths.close()
            self._ended.set()

    async def ready(self, deadline: float) -> None:
        """Wait until the hub has answered; a RemoteError that says why if it hasn't by then."""
        with trio.CancelScope(deadline=deadline):
            await self._ready.wait()
        if self._failure is not None:
            raise self._failure
        if not self._ready.is_set():
            what = "a relay" if self.name is None else f"the relay name {self.name}"
            raise AnswerTimeout(
                f"the hub {self._hub} did not answer for {what} in time: it may not offer the service {Address.from_encoded(self._service)}, or "
                f"not to this node, or the name belongs to somebody else: a hub doesn't say which"
            )

    # Staying registered

    async def _stay_registered(self) -> None:
        failures = 0
        turn = 0
        while True:
            self._hub, open_way = self._ways[turn % len(self._ways)]
            try:
                way = await open_way()
            except (RemoteError, UnknownAddressError) as error:
                failures += 1
                turn += 1
                if not self._ready.is_set() and failures >= len(self._ways):
                    self._failure = error if isinstance(error, RemoteError) else ConnectionLost(str(error))
                    self._ready.set()
                    return
                pause = self._pause(failures)
                log.warning("no way to the hub %s: %s; trying again in %g s", self._hub, sanitize(error), pause)
                await trio.sleep(pause * random.uniform(0.8, 1.2))  # noqa: S311  # spreads the clients of a hub that restarts
                continue
            began = trio.current_time()
            await self._hold(way)
            steady = trio.current_time() - began >= STEADY_SECONDS
            failures = 1 if self._answered.is_set() and steady else failures + 1
            # The same hub first, since it may only have restarted; the next one if it never spoke.
            turn += 0 if self._answered.is_set() else 1
            log.warning("the link with the hub %s was lost: registering the relay again", self._hub)
            await trio.sleep(self._pause(failures))

    def _pause(self, failures: int) -> float:
        return BACKOFF[min((failures - 1) // len(self._ways), len(BACKOFF) - 1)]

    async def _hold(self, way: tuple[Encoded, ...]) -> None:
        """Register along a way until the hub answers, then wait until that way is gone."""
        gone = trio.Event()
        self._first, self._answered = way[0], trio.Event()
        self._router.on_close(way[0], gone.set)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._register, way)
                await gone.wait()
                nursery.cancel_scope.cancel()
        finally:
            self._first = None
            self._router.forget(way[0], gone.set)

    async def _register(self, way: tuple[Encoded, ...]) -> None:
        payload = bare.string(REGISTER if self.name is None else self.name)
        for wait in chain(RETRIES, repeat(RETRIES[-1])):
            try:
                self._router.deliver(Message((*way, self._service), (self.encoded,), payload))
            except (UnknownAddressError, ClosedError):
                return  # the way went a moment ago, which `_hold` hears of too
            with trio.move_on_after(wait):
                await self._answered.wait()
                return
            log.warning("the hub %s did not answer for the relay within %g s: asking again", self._hub, wait)

    # The node that the relay leads to, where that isn't this one

    async def _stay_joined(self, open_target: OpenWay) -> None:
        """Keep a link to the node that is to be reached; what comes while there is none is dropped and counted."""
        failures = 0
        while True:
            try:
                way = await open_target()
            except RemoteError as error:
                failures += 1
                pause = BACKOFF[min(failures - 1, len(BACKOFF) - 1)]
                log.warning("no way to the node behind the relay: %s; trying again in %g s", sanitize(error), pause)
                await trio.sleep(pause)
                continue
            failures = 0
            gone = trio.Event()
            self._target = self._return_paths.enter(way[0], Origin(link=way[0])), way[1:]
            self._router.on_close(way[0], gone.set)
            try:
                await gone.wait()
            finally:
                self._router.forget(way[0], gone.set)
            self._target = None
            log.warning("the link with the node behind the relay was lost: connecting again")
            await trio.sleep(BACKOFF[0])

    # What comes in

    def _pass(self, message: Message) -> ByteBudget | None:
        """The hop that the hub knows: it takes itself away and delivers the rest here, as from a stranger."""
        if len(message.onward) == 1:
            self._take(message)
            return None
        origin = self._origins.get(message.origin)
        if origin is None:
            # One object for all messages of one origin, and one origin at a time.
            origin = origin_behind_relay(message.origin, self.encoded)
            self._origins = {message.origin: origin}
        if self._open_target is None:
            return self._router.deliver(
                Message(message.onward[1:], message.back, message.payload, origin, message.deliveries)
            )
        if self._target is None:
            self._router.counters[DropReason.RELAY_TARGET_AWAY] += 1
            return None
        entry, rest = self._target
        return self._return_paths.pass_on(message, entry, (*rest, *message.onward[1:]))

    def _take(self, message: Message) -> None:
        """The hub's answer: the relay's address is the last hop of its return route, whatever its payload says of it."""
        back = message.back
        # An answered relay takes no other: callers can send what looks like one.
        if self._answered.is_set() or len(back) < 2 or back[0] != self._first:
            self._router.counters[DropReason.REGISTRATION_ANSWER_UNEXPECTED] += 1
            return
        try:
            text = message.text
        except WireError:
            text = None
        if text is None or not text.endswith(self.name or ""):
            self._router.counters[DropReason.REGISTRATION_ANSWER_INVALID] += 1
            return
        remote = Address.from_encoded(back[-1])
        if self._ready.is_set():
            log.info("the relay %s is registered at the hub %s again", sanitize(remote), self._hub)
        self._remote = remote
        self._answered.set()
        self._ready.set()

    async def aclose(self) -> None:
        """Take nothing more from the hub. The hub is not told: there the name leads nowhere until its link ends or its owner takes it again."""
        self._scope.cancel()
        await self._ended.wait()

    def __repr__(self) -> str:
        return f"<Relay {self._remote} at {self._hub}>"
