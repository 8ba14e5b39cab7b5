"""Mutations: each changes the analysis, or one part of a running node, in one place. Every one has to be noticed."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest.mock import patch

import attrs

from trionode.channel import hops, initiator, listener
from trionode.protocol.rules.access import from_anywhere, from_local
from trionode.protocol.wire.address import local
from trionode.protocol.wire.message import Message, Origin
from trionode.relay import client, return_path
from trionode.routing import link, mailbox, router
from trionode.stream import hub_client, owners
from trionode.topology.endpoints import Endpoint
from trionode.verify import paths
from trionode.verify.model import build, channels, messages, network, relays, streams
from trionode.verify.model.messages import Clear, Record

Mutation = Callable[[], AbstractContextManager[object]]
MUTATIONS: dict[str, Mutation] = {}


def mutation(make: Callable[[], Iterator[None]]) -> Mutation:
    MUTATIONS[make.__name__] = contextmanager(make)
    return MUTATIONS[make.__name__]


# In the analysis


@mutation
def analysis_lets_every_peer_use_links() -> Iterator[None]:
    with patch.object(network, "link_access", lambda **_: from_anywhere):
        yield


@mutation
def analysis_lets_no_peer_use_links_of_hubs() -> Iterator[None]:
    with patch.object(network, "link_access", lambda **_: from_local):
        yield


@mutation
def analysis_trusts_everyone() -> Iterator[None]:
    with patch.object(network.SymbolicNetwork, "trusts", lambda *_: True):
        yield


@mutation
def analysis_forgets_the_identity_of_a_channel() -> Iterator[None]:
    decrypt = channels._Side.decrypt

    def forgets(side: Any, message: messages.SymbolicMessage) -> None:
        decrypt(attrs.evolve(side, peer=None), message)

    with patch.object(channels._Side, "decrypt", forgets):
        yield


@mutation
def analysis_reads_ciphertext() -> Iterator[None]:
    visible_in = paths.visible_in

    def reads(message: messages.SymbolicMessage) -> paths.Visible:
        visible = visible_in(message)
        return attrs.evolve(visible, payload="plaintext") if visible.payload == "ciphertext" else visible

    with patch.object(paths, "visible_in", reads):
        yield


@mutation
def analysis_sees_no_addresses_in_records() -> Iterator[None]:
    visible_in = paths.visible_in

    def overlooks(message: messages.SymbolicMessage) -> paths.Visible:
        body = message.body
        hidden = attrs.evolve(body, onward=(), back=()) if isinstance(body, Record) else body
        return visible_in(attrs.evolve(message, body=hidden))

    with patch.object(paths, "visible_in", overlooks):
        yield


@mutation
def analysis_hides_all_connections() -> Iterator[None]:
    with patch.object(Endpoint, "is_seen_by_network", False):
        yield


@mutation
def analysis_shows_all_connections() -> Iterator[None]:
    with patch.object(Endpoint, "is_seen_by_network", True):
        yield


@mutation
def analysis_overlooks_stores() -> Iterator[None]:
    observers_of = paths.observers_of

    def overlooks(step: messages.Step) -> Any:
        return ((at, visible) for at, visible in observers_of(step) if at.kind != "store")

    with patch.object(paths, "observers_of", overlooks):
        yield


@mutation
def analysis_gives_relayed_messages_an_identity() -> Iterator[None]:
    with patch.object(relays, "origin_behind_relay", lambda origin, _: attrs.evolve(origin, identifier="node hub")):
        yield


@mutation
def analysis_has_no_return_paths() -> Iterator[None]:
    def pass_on(return_paths: Any, message: messages.SymbolicMessage, entry: Any, rest: tuple[str, ...]) -> None:
        out = attrs.evolve(message, onward=(entry.first, *rest))
        return_paths._network.deliver(return_paths._node, out, by_own_authority=True)

    with patch.object(relays._ReturnPaths, "pass_on", pass_on):
        yield


@mutation
def analysis_gives_streams_to_everyone() -> Iterator[None]:
    with patch.object(streams.StreamService, "_may_use", lambda *_: True):
        yield


@mutation
def analysis_lets_no_observer_inject() -> Iterator[None]:
    with patch.object(paths, "_injection", lambda *_: None):
        yield


@mutation
def analysis_lets_every_observer_inject() -> Iterator[None]:
    with patch.object(paths, "_injection", lambda *_: "as the sender"):
        yield


@mutation
def analysis_forgets_what_workers_pass_on() -> Iterator[None]:
    at_worker = build._at_worker

    def keeps(model: Any, node: Any, name: str, spec: Any, message: messages.SymbolicMessage) -> None:
        at_worker(model, node, name, attrs.evolve(spec, sends=()), message)

    with patch.object(build, "_at_worker", keeps):
        yield


@mutation
def analysis_loses_answers() -> Iterator[None]:
    run = network.SymbolicNetwork.run

    def loses(model: Any, node: Any, message: messages.SymbolicMessage) -> Any:
        return (
            ()
            if message.onward
            and message.back
            and isinstance(message.body, Clear)
            and node.table.get(message.back[0]) is not None
            else run(model, node, message)
        )

    with patch.object(network.SymbolicNetwork, "run", loses):
        yield


# In running nodes


@mutation
def router_skips_access_rules() -> Iterator[None]:
    def deliver(self: router.Router, message: Message) -> Any:
        entry = (
            (self._table.get(message.onward[0]) or self._prefix_entry(message.onward[0])) if message.onward else None
        )
        return self._unknown(message) if entry is None else entry.hop(message)

    with patch.object(router.Router, "deliver", deliver):
        yield


@mutation
def links_admit_every_message() -> Iterator[None]:
    init = link.NodeLink.__init__

    def opens(self: link.NodeLink, *args: Any, **options: Any) -> None:
        init(self, *args, **{**options, "allow": from_anywhere})

    with patch.object(link.NodeLink, "__init__", opens):
        yield


@mutation
def channel_also_sends_plaintext() -> Iterator[None]:
    encrypt = hops.ChannelHops.encrypt

    def leaks(self: hops.ChannelHops, message: Message) -> Any:
        self._router.deliver(Message((*self.route[:-1], local("leak")), (), message.payload))
        return encrypt(self, message)

    with patch.object(hops.ChannelHops, "encrypt", leaks):
        yield


@mutation
def channel_also_sends_its_inner_route() -> Iterator[None]:
    encrypt = hops.ChannelHops.encrypt

    def leaks(self: hops.ChannelHops, message: Message) -> Any:
        self._router.deliver(Message((*self.route[:-1], *message.onward[1:], local("leak")), (), b"nothing"))
        return encrypt(self, message)

    with patch.object(hops.ChannelHops, "encrypt", leaks):
        yield


@mutation
def channel_forgets_its_peer() -> Iterator[None]:
    with patch.object(hops.ChannelHops, "_peer_origin", lambda _, outer: outer):
        yield


@mutation
def listener_trusts_everyone() -> Iterator[None]:
    async def trusts(*_: object) -> bool:
        return True

    with patch.object(listener, "is_trusted", trusts):
        yield


@mutation
def initiator_trusts_no_peer() -> Iterator[None]:
    async def refuses(*_: object) -> bool:
        return False

    with patch.object(initiator, "is_trusted", refuses):
        yield


@mutation
def relay_takes_every_peer_for_its_hub() -> Iterator[None]:
    with patch.object(client, "origin_behind_relay", lambda origin, _: attrs.evolve(origin, identifier=b"hub" * 10)):
        yield


@mutation
def relay_makes_no_aliases() -> Iterator[None]:
    def pass_on(
        self: return_path.ReturnPaths, message: Message, entry: return_path.PathEntry, rest: tuple[bytes, ...]
    ) -> Any:
        return self._router.bridge(
            Message((entry.first, *rest), message.back, message.payload, message.origin, message.deliveries)
        )

    with patch.object(return_path.ReturnPaths, "pass_on", pass_on):
        yield


@mutation
def stream_believes_only_answers_without_aliases() -> Iterator[None]:
    with patch.object(hub_client, "is_by_way_to_hub", lambda back, path: bool(path) and back[: len(path)] == path):
        yield


@mutation
def stream_service_ignores_owners() -> Iterator[None]:
    with patch.object(owners.Owners, "may_use", lambda *_: True):
        yield


@mutation
def worker_answers_streams_only() -> Iterator[None]:
    reply = mailbox.Mailbox.reply

    async def silent(self: mailbox.Mailbox, message: Message, body: bytes) -> None:
        if message.origin.stream is None:
            await reply(self, message, body)

    with patch.object(mailbox.Mailbox, "reply", silent):
        yield


@mutation
def link_makes_messages_local() -> Iterator[None]:
    init = link.NodeLink.__init__

    def loses(self: link.NodeLink, *args: Any, **options: Any) -> None:
        init(self, *args, **options)
        self.origin = Origin()

    with patch.object(link.NodeLink, "__init__", loses):
        yield
