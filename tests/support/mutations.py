"""Lies: in each of them the proof, or one part of a running node, says or does something else than it should, in one place."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest.mock import patch

import attrs

from trionode.channel import listener, secure_channel
from trionode.protocol.rules.access import from_anywhere
from trionode.protocol.wire.address import local
from trionode.protocol.wire.message import Message, Origin
from trionode.relay import client, return_path
from trionode.routing import link, mailbox, router
from trionode.stream import service
from trionode.topology.endpoints import Endpoint
from trionode.verify import paths
from trionode.verify.model import build, channels, messages, network, relays, streams
from trionode.verify.model.messages import LOCAL, Clear, Record, Sealed

Lie = Callable[[], AbstractContextManager[object]]
LIES: dict[str, Lie] = {}


def lie(make: Callable[[], Iterator[None]]) -> Lie:
    LIES[make.__name__] = contextmanager(make)
    return LIES[make.__name__]


# Of the proof


@lie
def the_proof_lets_everybody_use_links() -> Iterator[None]:
    with patch.object(network, "from_local", network.from_anywhere):
        yield


@lie
def the_proof_lets_nobody_use_the_links_of_hubs() -> Iterator[None]:
    with patch.object(network, "from_local_or_links", network.from_local):
        yield


@lie
def the_proof_trusts_whoever_comes() -> Iterator[None]:
    with patch.object(network.World, "trusts", lambda *_: True):
        yield


@lie
def the_proof_takes_channels_for_bare_links() -> Iterator[None]:
    decrypt = channels._Side.decrypt

    def forgets(side: Any, message: messages.Message) -> None:
        decrypt(attrs.evolve(side, peer=None), message)

    with patch.object(channels._Side, "decrypt", forgets):
        yield


@lie
def the_proof_reads_what_is_sealed() -> Iterator[None]:
    seen_in = paths.seen_in

    def reads(message: messages.Message) -> paths.Seen:
        seen = seen_in(message)
        return attrs.evolve(seen, payload="plaintext") if seen.payload == "ciphertext" else seen

    with patch.object(paths, "seen_in", reads):
        yield


@lie
def the_proof_sees_no_addresses_in_records() -> Iterator[None]:
    seen_in = paths.seen_in

    def overlooks(message: messages.Message) -> paths.Seen:
        body = message.body
        hidden = attrs.evolve(body, onward=(), back=()) if isinstance(body, Record) else body
        return seen_in(attrs.evolve(message, body=hidden))

    with patch.object(paths, "seen_in", overlooks):
        yield


@lie
def the_proof_hides_all_wires() -> Iterator[None]:
    with patch.object(Endpoint, "is_seen_by_network", False):
        yield


@lie
def the_proof_opens_all_wires() -> Iterator[None]:
    with patch.object(Endpoint, "is_seen_by_network", True):
        yield


@lie
def the_proof_overlooks_stores() -> Iterator[None]:
    watchers_of = paths.watchers_of

    def overlooks(step: messages.Step) -> Any:
        return ((at, seen) for at, seen in watchers_of(step) if at.kind != "store")

    with patch.object(paths, "watchers_of", overlooks):
        yield


@lie
def the_proof_lends_relayed_strangers_an_identity() -> Iterator[None]:
    def lends(holder: Any, message: messages.Message) -> None:
        origin = attrs.evolve(message.origin, identifier=holder._node.identity)
        holder._world.deliver(holder._node, attrs.evolve(message, onward=message.onward[1:], origin=origin))

    pass_ = relays._Holder._pass

    def first(holder: Any, message: messages.Message) -> None:
        (pass_ if len(message.onward) == 1 else lends)(holder, message)

    with patch.object(relays._Holder, "_pass", first):
        yield


@lie
def the_proof_knows_no_passages() -> Iterator[None]:
    def pass_on(return_paths: Any, message: messages.Message, way: Any, rest: tuple[str, ...]) -> None:
        onward = (way.first, *rest)
        return_paths._world.deliver(return_paths._node, attrs.evolve(message, onward=onward), by_own_authority=True)

    with patch.object(relays._ReturnPaths, "pass_on", pass_on):
        yield


@lie
def the_proof_gives_streams_to_everybody() -> Iterator[None]:
    with patch.object(streams.StreamService, "_may_use", lambda *_: True):
        yield


@lie
def the_proof_lets_nobody_put_in_anything() -> Iterator[None]:
    with patch.object(paths, "_injection", lambda *_: None):
        yield


@lie
def the_proof_lets_everybody_put_in_everything() -> Iterator[None]:
    with patch.object(paths, "_injection", lambda *_: "as the sender"):
        yield


@lie
def the_proof_forgets_what_workers_pass_on() -> Iterator[None]:
    at_worker = build._at_worker

    def keeps(world_: Any, node: Any, name: str, spec: Any, message: messages.Message) -> None:
        at_worker(world_, node, name, attrs.evolve(spec, sends=()), message)

    with patch.object(build, "_at_worker", keeps):
        yield


@lie
def the_proof_lets_answers_go_astray() -> Iterator[None]:
    run = network.World.run

    def loses(world_: Any, node: Any, message: messages.Message) -> Any:
        return (
            ()
            if message.onward
            and message.back
            and isinstance(message.body, Clear)
            and node.table.get(message.back[0]) is not None
            else run(world_, node, message)
        )

    with patch.object(network.World, "run", loses):
        yield


# Of running nodes


@lie
def a_node_lets_everybody_reach_everything() -> Iterator[None]:
    def deliver(self: router.Router, message: Message) -> Any:
        entry = (
            (self._table.get(message.onward[0]) or self._prefix_entry(message.onward[0])) if message.onward else None
        )
        return self._nobody(message) if entry is None else entry.hop(message)

    with patch.object(router.Router, "deliver", deliver):
        yield


@lie
def a_node_lets_everybody_use_its_links() -> Iterator[None]:
    init = link.NodeLink.__init__

    def opens(self: link.NodeLink, *args: Any, **options: Any) -> None:
        init(self, *args, **{**options, "allow": from_anywhere})

    with patch.object(link.NodeLink, "__init__", opens):
        yield


@lie
def a_channel_sends_its_plaintext_too() -> Iterator[None]:
    encrypt = secure_channel.SecureChannel.encrypt

    def leaks(self: secure_channel.SecureChannel, message: Message) -> Any:
        self._router.deliver(Message((*self._route[:-1], local("leak")), (), message.payload))
        return encrypt(self, message)

    with patch.object(secure_channel.SecureChannel, "encrypt", leaks):
        yield


@lie
def a_channel_sends_its_inner_route_too() -> Iterator[None]:
    encrypt = secure_channel.SecureChannel.encrypt

    def leaks(self: secure_channel.SecureChannel, message: Message) -> Any:
        self._router.deliver(Message((*self._route[:-1], *message.onward[1:], local("leak")), (), b"nothing"))
        return encrypt(self, message)

    with patch.object(secure_channel.SecureChannel, "encrypt", leaks):
        yield


@lie
def a_channel_forgets_who_its_peer_is() -> Iterator[None]:
    with patch.object(secure_channel.SecureChannel, "_know", lambda _, outer: outer):
        yield


@lie
def a_listener_trusts_everybody() -> Iterator[None]:
    async def trusts(*_: object) -> bool:
        return True

    with patch.object(listener, "is_trusted", trusts):
        yield


@lie
def an_initiator_trusts_nobody() -> Iterator[None]:
    async def refuses(*_: object) -> bool:
        return False

    with patch.object(secure_channel, "is_trusted", refuses):
        yield


@lie
def a_relay_takes_strangers_for_its_hub() -> Iterator[None]:
    with patch.object(client, "origin_behind_relay", lambda origin, _: attrs.evolve(origin, identifier=b"hub" * 10)):
        yield


@lie
def a_relay_gives_out_no_passages() -> Iterator[None]:
    def pass_on(
        self: return_path.ReturnPaths, message: Message, entry: return_path.PathEntry, rest: tuple[bytes, ...]
    ) -> Any:
        return self._router.bridge(
            Message((entry.first, *rest), message.back, message.payload, message.origin, message.deliveries)
        )

    with patch.object(return_path.ReturnPaths, "pass_on", pass_on):
        yield


@lie
def a_hub_gives_everybody_every_stream() -> Iterator[None]:
    with patch.object(service.StreamService, "_may_use", lambda *_: True):
        yield


@lie
def a_hub_keeps_a_stranger_s_answers() -> Iterator[None]:
    reply = mailbox.Mailbox.reply

    async def silent(self: mailbox.Mailbox, message: Message, body: bytes) -> None:
        if message.origin.stream is None:
            await reply(self, message, body)

    with patch.object(mailbox.Mailbox, "reply", silent):
        yield


@lie
def a_link_loses_the_identity_of_its_messages() -> Iterator[None]:
    init = link.NodeLink.__init__

    def loses(self: link.NodeLink, *args: Any, **options: Any) -> None:
        init(self, *args, **options)
        self.origin = Origin()

    with patch.object(link.NodeLink, "__init__", loses):
        yield


__all__ = ["LIES", "LOCAL", "Sealed"]
