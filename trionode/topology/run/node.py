"""A running node of a topology, as the program that runs it sees it."""

from collections.abc import Sequence
from typing import cast

import trio

from trionode.channel.secure_channel import SecureChannel
from trionode.errors import AnswerTimeout
from trionode.node.node import ANSWER_TIMEOUT, Node
from trionode.portal import Inlet
from trionode.protocol.wire.address import Address
from trionode.protocol.wire.message import Message
from trionode.protocol.wire.route import Route
from trionode.relay.client import Relay
from trionode.stream.client import Stream
from trionode.topology.run.runner import NodeRunner


class RunningNode:
    """A node of a running topology, with everything that its spec describes. `RunningTopology` makes it.

    Attributes:
      name: Its name in the spec.
      spec: Its spec.
      identity: Its identity.
    """

    def __init__(self, runner: NodeRunner) -> None:
        self.name = runner.name
        self.spec = runner.spec
        self.identity = runner.identity
        self._runner = runner

    @property
    def endpoints(self) -> tuple[Address, ...]:
        """The addresses that the node listens at, as bound, in the order of the spec."""
        return self._runner.endpoints

    @property
    def node(self) -> Node:
        """The node itself, for everything that the spec does not describe.

        Raises:
          LocalError: The node does not run.
        """
        return self._runner.node

    def channel(self, name: str) -> SecureChannel:
        """Return the secure channel of a name as it is now.

        Args:
          name: The key of the channel in the spec.

        Raises:
          ConnectionLost: The channel was lost, and is being opened again.
          LocalError: The spec has no channel of that name.
        """
        return cast("SecureChannel", self._runner.part("secure_channels", name, "secure channel").value)

    def stream(self, name: str) -> Stream:
        """Return the stream of a name.

        Args:
          name: The key of the stream in the spec.

        Raises:
          ConnectionLost: The stream is being opened.
          LocalError: The spec has no stream of that name.
        """
        return cast("Stream", self._runner.part("streams", name, "stream").value)

    def relay(self, name: str) -> Relay:
        """Return the relay of a name.

        Args:
          name: The key of the relay in the spec.

        Raises:
          ConnectionLost: The relay is being opened.
          LocalError: The spec has no relay of that name.
        """
        return cast("Relay", self._runner.part("relays", name, "relay").value)

    def inlet(self, name: str) -> Inlet:
        """Return the inlet of a name, which knows the port that it is bound to.

        Args:
          name: The key of the inlet in the spec.

        Raises:
          ConnectionLost: The inlet is being opened.
          LocalError: The spec has no inlet of that name.
        """
        return cast("Inlet", self._runner.part("inlets", name, "inlet").value)

    def route(self, *hops: str) -> Route:
        """Return a route of this node as it is now.

        Args:
          hops: The hops as in the spec: `@bob` is the node's channel or stream of that name.

        Raises:
          ConnectionLost: The channel or stream was lost, and is being opened again.
          LocalError: The spec has no channel or stream of that name.
        """
        return self._runner.route(hops)

    async def send(self, hops: Sequence[str], body: bytes | str) -> None:
        """Send a message, once the channel or stream that the route begins with is open.

        Args:
          hops: The route, as in the spec.
          body: The payload.

        Raises:
          LocalError: See `Node.send`.

        If cancelled, nothing was sent.
        """
        await self.node.send(await self._runner.open_route(hops), body)

    async def ask(self, hops: Sequence[str], body: bytes | str, *, timeout: float = ANSWER_TIMEOUT) -> Message:  # noqa: ASYNC109  # an answer always has a deadline
        """Send a message, and wait for the answer.

        Args:
          hops: The route, as in the spec.
          body: The payload.
          timeout: Seconds until the answer must be here. They include the wait for a channel or stream that is being
              opened.

        Returns:
          The answer.

        Raises:
          AnswerTimeout: No answer came in time.
          LocalError: See `Node.ask`.

        If cancelled, the message may have been sent, and the answer is dropped.
        """
        deadline = trio.current_time() + timeout
        route = None
        with trio.CancelScope(deadline=deadline):
            route = await self._runner.open_route(hops)
        if route is None:
            first = self._runner.first_part(hops)
            assert first is not None
            raise AnswerTimeout(f"{first.part} was not open within {timeout:g} s: {first.reason}")
        return await self.node.ask(route, body, timeout=deadline - trio.current_time())
