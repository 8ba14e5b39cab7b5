"""Relays: an address on a hub that leads to this node, registered again whenever the hub was lost (spec §13.2)."""

from collections.abc import Sequence
from itertools import chain, repeat

import trio

from trionode.counters import DropReason
from trionode.errors import AnswerTimeout, ClosedError, RemoteError, UnknownAddressError, WireError
from trionode.log import log, sanitize
from trionode.net.backoff import Backoff, reconnect
from trionode.protocol.rules.access import from_anywhere
from trionode.protocol.rules.relay import origin_behind_relay
from trionode.protocol.wire import bare
from trionode.protocol.wire.address import Address, Encoded, local
from trionode.protocol.wire.message import Message, Origin
from trionode.relay.return_path import PathEntry, ReturnPaths
from trionode.relay.service import REGISTER
from trionode.routing.byte_budget import ByteBudget
from trionode.routing.hub_connection import HubConnection, OpenPath
from trionode.routing.router import Router, random_address
from trionode.routing.service import Service

#: Seconds without an answer before a registration is sent again; the last one repeats. A hub that has not noticed yet
#: that this node's former link is dead keeps the name for that link. An answered registration is never sent again on
#: the same path: a 0.77 hub would delete the relay.
RETRIES: Sequence[float] = (5.0, 10.0, 20.0, 60.0)


class Relay(Service):
    """An address on a hub that leads to this node. `Node.open_relay` makes it.

    Others put `remote` behind their own route to the hub: `Route("tcp:HUB:4000", relay.remote, "listener")`. A message
    that comes by it counts as one of an unauthenticated peer, also if the hub is reached through a secure channel: the
    hub vouches for itself, not for its clients.
    """

    def __init__(
        self,
        router: Router,
        hubs: Sequence[tuple[str, OpenPath]],
        *,
        name: str | None,
        service: str,
        open_target: OpenPath | None,
    ) -> None:
        super().__init__()
        #: The name that was asked for; None for one that the hub chooses.
        self.name = name
        # Where the hub sends what comes for this node: random, and known to the hub only.
        self._encoded = random_address()
        self._router = router
        self._hub = HubConnection(router, hubs)
        self._open_target = open_target
        self._return_paths = ReturnPaths(router)
        self._target: tuple[PathEntry, tuple[Encoded, ...]] | None = None
        self._service = local(service)
        self._remote: Address | None = None
        self._answered = trio.Event()
        self._ready = trio.Event()
        self._failure: RemoteError | None = None
        self._origins: dict[Origin, Origin] = {}

    @property
    def remote(self) -> Address:
        """The relay's address on the hub. If the hub chooses the name, it changes whenever the hub was lost."""
        assert self._remote is not None, "open_relay returns relays that are registered"
        return self._remote

    async def _run(self, *, task_status: trio.TaskStatus["Relay"] = trio.TASK_STATUS_IGNORED) -> None:
        """Live until `aclose`, or the end of the node."""
        self._router.register(self._encoded, self._hop, allow=from_anywhere)
        try:
            async with self._serving() as nursery:
                if self._open_target is not None:
                    nursery.start_soon(self._keep_target_connected, self._open_target)
                nursery.start_soon(self._hub.keep, self._register, self._on_hub_lost, self._on_unreachable)
                task_status.started(self)
        finally:
            self._router.unregister(self._encoded)
            self._return_paths.close()

    async def _wait_ready(self, deadline: float) -> None:
        """Wait until the hub has answered; raise the RemoteError that says why if it has not by then."""
        with trio.CancelScope(deadline=deadline):
            await self._ready.wait()
        if self._failure is not None:
            raise self._failure
        if not self._ready.is_set():
            what = "a relay" if self.name is None else f"the relay name {self.name}"
            raise AnswerTimeout(
                f"the hub {self._hub.name} did not answer for {what} in time. A hub does not say why: it may not offer "
                f"the service {Address.from_encoded(self._service)}, may refuse this node, or the name may belong to "
                "another client"
            )

    # Registration

    def _on_unreachable(self, error: RemoteError) -> bool:
        if not self._ready.is_set():
            self._failure = error
            self._ready.set()
        return self._failure is None

    def _on_hub_lost(self) -> None:
        log.warning("the connection to the hub %s was lost: registering the relay again", self._hub.name)

    async def _register(self) -> None:
        """Register at the connected hub until it answers."""
        self._answered = trio.Event()
        payload = bare.string(REGISTER if self.name is None else self.name)
        for wait in chain(RETRIES, repeat(RETRIES[-1])):
            try:
                self._router.deliver(Message((*self._hub.path, self._service), (self._encoded,), payload))
            except (UnknownAddressError, ClosedError):
                return  # the path ended a moment ago, and the hub connection notices too
            with trio.move_on_after(wait):
                await self._answered.wait()
                return
            log.warning("the hub %s did not answer the registration within %g s: asking again", self._hub.name, wait)

    def _on_registered(self, message: Message) -> None:
        """Take the hub's answer: the relay's address is the last hop of its return route, whatever its payload says."""
        back = message.back
        # Callers can send messages that look like an answer, so a registered relay takes no other.
        if self._answered.is_set() or len(back) < 2 or not self._hub.path or back[0] != self._hub.path[0]:
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
            log.info("the relay %s is registered at the hub %s again", sanitize(remote), self._hub.name)
        self._remote = remote
        self._hub.has_answered = True
        self._answered.set()
        self._ready.set()

    # The node behind the relay, if that is another one

    async def _keep_target_connected(self, open_target: OpenPath) -> None:
        """Keep a link to the node behind the relay.

        Messages that arrive without a path are dropped and counted.
        """

        async def use(path: tuple[Encoded, ...]) -> bool:
            lost = trio.Event()
            self._target = self._return_paths.enter(path[0], Origin(link=path[0])), path[1:]
            self._router.on_close(path[0], lost.set)
            try:
                await lost.wait()
            finally:
                self._router.forget(path[0], lost.set)
                self._target = None
            log.warning("the link to the node behind the relay was lost: connecting again")
            return True

        def failed(error: Exception, delay: float) -> bool:
            log.warning(
                "no connection to the node behind the relay: %s; trying again in %.1f s", sanitize(error), delay
            )
            return True

        await reconnect(open_target, use, failed, Backoff())

    # Messages

    def _hop(self, message: Message) -> ByteBudget | None:
        """The hop that the hub knows: it removes itself and delivers the rest here, as from an unauthenticated peer."""
        if len(message.onward) == 1:
            self._on_registered(message)
            return None
        origin = self._origins.get(message.origin)
        if origin is None:
            # One object serves all messages of one origin, and messages come from one origin at a time.
            origin = origin_behind_relay(message.origin, self._encoded)
            self._origins = {message.origin: origin}
        rest = message.onward[1:]
        if self._open_target is None:
            return self._router.deliver(Message(rest, message.back, message.payload, origin, message.deliveries))
        if self._target is None:
            self._router.counters[DropReason.RELAY_TARGET_AWAY] += 1
            return None
        entry, hops = self._target
        return self._return_paths.pass_on(message, entry, (*hops, *rest))

    async def aclose(self) -> None:
        """Take no more messages from the hub.

        The hub is not notified. There the name leads nowhere until the link ends or the owner registers the name again.

        If cancelled, the relay still ends.
        """
        await super().aclose()

    def __repr__(self) -> str:
        return f"<Relay {self._remote} at {self._hub.name}>"
