"""Secure channels without cryptography: handshakes along their routes, then encryptors and decryptors.

It models trionode/channel/secure_channel.py and trionode/channel/listener.py.
"""

from functools import partial

import attrs

from trionode.protocol.rules.access import from_local
from trionode.topology.spec import ChannelListenerSpec, ChannelSpec
from trionode.verify.model.messages import LOCAL, Channel, Handshake, Request, Sealed, SymbolicMessage
from trionode.verify.model.network import CannotOpenError, SymbolicEntry, SymbolicNetwork, SymbolicNode


def serve_channels(network: SymbolicNetwork, node: SymbolicNode, name: str, spec: ChannelListenerSpec) -> None:
    """Give a node an address that answers handshakes."""
    hop = partial(_at_listener, network, node, name, spec)
    node.table[name] = network.service_entry("listener", spec.allow, hop)


def _at_listener(
    network: SymbolicNetwork, node: SymbolicNode, name: str, spec: ChannelListenerSpec, message: SymbolicMessage
) -> None:
    """Message 1 of a handshake."""
    handshake = message.body.handshake if isinstance(message.body, Request) else None
    if handshake is None or handshake.responder is not None:
        network.drop(node, message, f"{name} at {node.name} accepts handshakes only")
        return
    version = handshake.spec.protocol_version
    if version not in spec.protocol_versions:
        handshake.refusal = (
            f"the listener {node.name}/{name} answers {', '.join(spec.protocol_versions)} only, not {version}"
        )
        return
    if not message.back:
        network.drop(node, message, "a handshake without a return route cannot be answered")
        return
    pending = network.random(f"channel of {handshake.initiator} at", node.name)
    node.add(pending, "handshake", partial(_at_pending, network, handshake, name))
    handshake.responder, handshake.listener_spec = node.name, spec
    network.deliver(node, SymbolicMessage(message.back, (pending,), message.body))


def _at_attempt(network: SymbolicNetwork, handshake: Handshake, attempt: str, message: SymbolicMessage) -> None:
    """Message 2 of a handshake, at the initiator."""
    initiator = network.nodes[handshake.initiator]
    if handshake.responder is None or handshake.onward:
        network.drop(initiator, message, "no handshake waits for it")
        return
    responder = network.nodes[handshake.responder]
    if responder.identity == initiator.identity:
        handshake.refusal = (
            f"{responder.name}, which answers, has the same identity: a node opens no channel with itself"
        )
    elif not network.trusts(handshake.spec.trust, responder.identity):
        handshake.refusal = f"{initiator.name} does not trust {responder.name}, which answers"
    else:
        handshake.onward = message.back
        network.deliver(initiator, SymbolicMessage(handshake.onward, (attempt,), message.body))


def _at_pending(network: SymbolicNetwork, handshake: Handshake, listener: str, message: SymbolicMessage) -> None:
    """Message 3 of a handshake, at the responder."""
    assert handshake.responder is not None
    assert handshake.listener_spec is not None
    responder, initiator = network.nodes[handshake.responder], network.nodes[handshake.initiator]
    if not isinstance(message.body, Request) or handshake.back:
        network.drop(responder, message, "it is not encrypted")
    elif not network.trusts(handshake.listener_spec.trust, initiator.identity):
        handshake.refusal = f"the listener {responder.name}/{listener} does not trust {initiator.name}"
    else:
        handshake.back = message.back


def open_channel(network: SymbolicNetwork, node: SymbolicNode, name: str, spec: ChannelSpec) -> None:
    """Open a channel of a node; CannotOpenError says why that fails."""
    onward = network.resolve(node, spec.to)
    handshake = Handshake(node.name, spec)
    attempt = network.random(f"channel {name} at", node.name)
    node.add(attempt, "handshake", partial(_at_attempt, network, handshake, attempt))
    outcomes = network.run(node, SymbolicMessage(onward, (attempt,), Request("handshake", handshake=handshake)))
    if not handshake.back or handshake.responder is None or handshake.listener_spec is None:
        why = handshake.refusal or next((each.text for each in outcomes if each.text), "the route ends at no listener")
        is_lost = handshake.responder is not None and not handshake.refusal
        raise CannotOpenError(("the listener's answer does not come back: " if is_lost else "") + why)
    responder = network.nodes[handshake.responder]
    channel = node.channels[name] = Channel(name, node.name, responder.name, spec, handshake.listener_spec)
    node.opened[name] = network.random(f"channel {name} at", node.name)
    encryptor = network.random(f"channel with {node.name} at", responder.name)
    _Side(network, channel, node, responder.identity, handshake.onward, attempt, node.opened[name]).open()
    _Side(network, channel, responder, node.identity, handshake.back, handshake.onward[-1], encryptor).open()


@attrs.frozen(eq=False)
class _Side:
    """One side of an open channel."""

    network: SymbolicNetwork
    channel: Channel
    node: SymbolicNode
    #: The identity of the other side.
    peer: str
    #: The route to the other side's decryptor.
    route: tuple[str, ...]
    decryptor: str
    encryptor: str

    def open(self) -> None:
        """Add both addresses to the node."""
        self.node.table[self.encryptor] = SymbolicEntry("channel", self.encrypt, from_local, "this node only")
        self.node.add(self.decryptor, "decryptor", self.decrypt)

    def encrypt(self, message: SymbolicMessage) -> None:
        """The hop of the encryptor."""
        onward = message.onward[1:]
        if not onward:
            self.network.drop(self.node, message, "its route ends at the channel")
            return
        back = () if self.channel.spec.protocol_version == "current" else (self.decryptor,)
        body = Sealed(self.channel, self.node.name, onward, message.back, message.body)
        sealed = SymbolicMessage(self.route, back, body, LOCAL, message.deliveries, message.trail)
        self.network.deliver(self.node, sealed)

    def decrypt(self, message: SymbolicMessage) -> None:
        """The hop of the decryptor."""
        body = message.body
        if not isinstance(body, Sealed) or body.channel is not self.channel:
            self.network.drop(self.node, message, "the channel did not encrypt it")
            return
        origin = attrs.evolve(message.origin, identifier=self.peer)
        inner = attrs.evolve(message, onward=body.onward, back=body.back, body=body.body, origin=origin)
        if self.network.has_room(self.node, inner, adds=1):
            self.network.deliver(self.node, attrs.evolve(inner, back=(self.encryptor, *body.back)))
