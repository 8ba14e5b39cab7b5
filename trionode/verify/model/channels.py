"""Secure channels without cryptography: handshakes that go and come by the routes that they find, then hops that seal and open.

Behind it stand trionode/secure_channel.py and trionode/secure_channel_listener.py.
"""

from functools import partial

import attrs

from trionode.protocol.wire.route import MAX_HOPS
from trionode.topology.spec import ChannelListenerSpec, ChannelSpec
from trionode.verify.model.messages import LOCAL, Message, Request, Sealed
from trionode.verify.model.network import Entry, Node, UnopenedError, World, describe, from_local


@attrs.define(eq=False)
class Handshake:
    """A handshake on its way, and what its two sides learn from it."""

    initiator: Node
    name: str
    spec: ChannelSpec
    responder: Node | None = None
    listener: str = ""
    #: Where message 3 goes, and where it is taken.
    onward: tuple[str, ...] = ()
    back: tuple[str, ...] = ()
    refusal: str = ""


@attrs.define(eq=False)
class Channel:
    """An open channel, as who opened it calls it."""

    name: str
    initiator: Node
    responder: Node
    listener: str


def serve_channels(world: World, node: Node, name: str, spec: ChannelListenerSpec) -> None:
    """Give a node an address that answers handshakes."""
    hop = partial(_at_listener, world, node, name, spec)
    node.table[name] = Entry("listener", hop, world.allow(spec.allow), describe(spec.allow))


def _at_listener(world: World, node: Node, name: str, spec: ChannelListenerSpec, message: Message) -> None:
    handshake = message.body.handshake if isinstance(message.body, Request) else None
    if handshake is None or handshake.responder is not None:
        world.drop(node, message, f"{name} at {node.name} takes handshakes only")
        return
    if handshake.spec.protocol_version not in spec.protocol_versions:
        handshake.refusal = f"the listener {node.name}/{name} answers {', '.join(spec.protocol_versions)} only, not {handshake.spec.protocol_version}"
        return
    if not message.back:
        world.drop(node, message, "a handshake without a return route can't be answered")
        return
    pending = world.random(f"channel of {handshake.initiator.name} at", node.name)
    node.table[pending] = Entry("handshake", partial(_at_pending, world, handshake))
    handshake.responder, handshake.listener = node, name
    world.deliver(node, Message(message.back, (pending,), message.body))


def _at_attempt(world: World, handshake: Handshake, attempt: str, message: Message) -> None:
    responder = handshake.responder
    if responder is None or handshake.onward:
        world.drop(handshake.initiator, message, "no handshake waits for it")
        return
    if responder.identity == handshake.initiator.identity:
        handshake.refusal = (
            f"{responder.name}, who answers there, has the same identity: nobody opens a channel with himself"
        )
        return
    if not world.trusts(handshake.spec.trust, responder.identity):
        handshake.refusal = f"{handshake.initiator.name} does not trust {responder.name}, who answers there"
        return
    handshake.onward = message.back
    world.deliver(handshake.initiator, Message(handshake.onward, (attempt,), message.body))


def _at_pending(world: World, handshake: Handshake, message: Message) -> None:
    responder = handshake.responder
    assert responder is not None
    if not isinstance(message.body, Request) or handshake.back:
        world.drop(responder, message, "it is not sealed")
        return
    trust = responder.spec.secure_channel_listeners[handshake.listener].trust
    if not world.trusts(trust, handshake.initiator.identity):
        handshake.refusal = (
            f"the listener {responder.name}/{handshake.listener} does not trust {handshake.initiator.name}"
        )
        return
    handshake.back = message.back


def open_channel(world: World, node: Node, name: str, spec: ChannelSpec) -> None:
    """Open a channel of a node; UnopenedError says why that can't be."""
    onward = world.resolve(node, spec.to)
    handshake = Handshake(node, name, spec)
    attempt = world.random(f"channel {name} at", node.name)
    node.table[attempt] = Entry("handshake", partial(_at_attempt, world, handshake, attempt))
    ends = world.run(node, Message(onward, (attempt,), Request("handshake", handshake=handshake)))
    responder = handshake.responder
    if not handshake.back or responder is None:
        why = handshake.refusal or next((end.text for end in ends if end.text), "the route ends at no listener")
        answered = (
            "the listener's answer does not come back: " if responder is not None and not handshake.refusal else ""
        )
        raise UnopenedError(answered + why)
    pending = handshake.onward[-1]
    channel = Channel(name, node, responder, handshake.listener)
    ours = _Side(
        world,
        channel,
        node,
        responder.identity,
        handshake.onward,
        attempt,
        world.random(f"channel {name} at", node.name),
    )
    theirs = _Side(
        world,
        channel,
        responder,
        node.identity,
        handshake.back,
        pending,
        world.random(f"channel with {node.name} at", responder.name),
    )
    for side in (ours, theirs):
        side.node.table[side.encryptor] = Entry("channel", side.encrypt, from_local, "what begins at this node")
        side.node.table[side.decryptor] = Entry("decryptor", side.decrypt)
    node.opened[name] = ours.encryptor
    node.channels[name] = channel


@attrs.frozen(eq=False)
class _Side:
    """One side of an open channel."""

    world: World
    channel: Channel
    node: Node
    #: Who is at the other side.
    peer: str
    #: The way to the other side's decryptor.
    route: tuple[str, ...]
    decryptor: str
    encryptor: str

    def encrypt(self, message: Message) -> None:
        """The hop that seals."""
        onward = message.onward[1:]
        if not onward:
            self.world.drop(self.node, message, "its route ends at the channel")
            return
        initiator = self.channel.initiator
        is_current = initiator.spec.secure_channels[self.channel.name].protocol_version == "current"
        back = () if is_current else (self.decryptor,)
        body = Sealed(self.channel, self.node.name, onward, message.back, message.body)
        self.world.deliver(self.node, Message(self.route, back, body, LOCAL, message.deliveries, message.trail))

    def decrypt(self, message: Message) -> None:
        """The hop that opens."""
        body = message.body
        if not isinstance(body, Sealed) or body.channel is not self.channel:
            self.world.drop(self.node, message, "it is not sealed by the channel")
        elif len(body.onward) + len(body.back) >= MAX_HOPS:
            self.world.end("circles", self.node, message, f"its routes have {MAX_HOPS} hops or more together")
        else:
            origin = attrs.evolve(message.origin, identifier=self.peer)
            back = (self.encryptor, *body.back)
            self.world.deliver(
                self.node, attrs.evolve(message, onward=body.onward, back=back, body=body.body, origin=origin)
            )
