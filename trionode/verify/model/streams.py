"""Stream services and streams without time: what is written to a stream goes to all who read it.

Behind it stand trionode/stream.py and trionode/stream_service.py.
"""

from functools import partial

import attrs

from trionode.protocol.stream import is_capability
from trionode.protocol.wire.route import MAX_HOPS
from trionode.topology.spec import StreamServiceSpec, StreamSpec
from trionode.verify.model.messages import LOCAL, Body, Message, Origin, Record, Request, Step, Watcher
from trionode.verify.model.network import Entry, Node, Store, UnopenedError, World, describe


class StreamService:
    """The addresses of a stream service, and one for each stream."""

    def __init__(self, world: World, node: Node, name: str, spec: StreamServiceSpec, store: Store) -> None:
        self._world = world
        self._node = node
        self._name = name
        self._store = store
        self._declared = frozenset(spec.owners)
        self._limit = spec.limits.streams
        self._used: dict[str, set[str]] = {}
        self._index = spec.index or f"{name}_index"
        for stream, owner in spec.owners.items():
            store.owners[stream] = world.identity_of(owner) if owner in world.spec.nodes else owner
        allow, lets_in = world.allow(spec.allow), describe(spec.allow)
        node.table[name] = Entry("stream service", self._on_service, allow, lets_in)
        node.table[self._index] = Entry("stream service", self._on_index, allow, lets_in)
        node.prefixes[f"{name}."] = Entry("stream service", self._on_worker, allow, lets_in)

    def _answer(self, message: Message, source: str, body: Body) -> None:
        self._world.deliver(self._node, Message(message.back, (source,), body))

    def _may_use(self, stream: str, origin: Origin) -> bool:
        owner = self._store.owners.setdefault(stream, origin.identifier or "")
        return owner in ("", origin.identifier or "") or (is_capability(stream) and origin.identifier is not None)

    def _refuse(self, message: Message, stream: str) -> None:
        owner = self._world.who(self._store.owners.get(stream, ""))
        self._world.drop(
            self._node,
            message,
            f"the stream {stream} at {self._node.name} belongs to {owner}; this comes {self._world.origin(message.origin)}",
        )

    def _on_service(self, message: Message) -> None:
        body = message.body
        if not isinstance(body, Request) or body.what != "create":
            self._world.drop(self._node, message, f"{self._name} at {self._node.name} takes requests for streams only")
            return
        if body.name not in self._declared:
            self._store.claims.setdefault(body.name, set()).add(message.origin.identifier or "")
        origin = message.origin
        used = self._used.setdefault(origin.identifier or origin.link or origin.stream or "", set())
        if body.name not in used and len(used) >= self._limit:
            what = f"{self._name} at {self._node.name} lets a client use {self._limit} streams, and this is one more (limits.streams)"
            self._world.drop(self._node, message, what)
        elif self._may_use(body.name, origin):
            used.add(body.name)
            self._answer(message, f"{self._name}.{body.name}", Request("answer", body.name))
        else:
            self._refuse(message, body.name)

    def _on_index(self, message: Message) -> None:
        body = message.body
        if not isinstance(body, Request) or body.what != "index":
            self._world.drop(
                self._node, message, f"{self._index} at {self._node.name} takes requests for positions only"
            )
        else:
            self._answer(message, self._index, Request("answer", body.name))

    def _on_worker(self, message: Message) -> None:
        stream, body = message.onward[0].removeprefix(f"{self._name}."), message.body
        if isinstance(body, Request) and body.what == "pull":
            if self._may_use(stream, message.origin):
                pulls = self._store.pulls.setdefault(stream, {})
                pulls[self._node.name, message.back] = partial(self._serve, message)
                self._answer(message, message.onward[0], Request("answer", stream))
            else:
                self._refuse(message, stream)
        elif isinstance(body, Record) and message.back:
            if self._may_use(stream, message.origin):
                self._keep(stream, attrs.evolve(message, body=attrs.evolve(body, stream=stream)))
            else:
                self._refuse(message, stream)
        else:
            self._world.drop(self._node, message, f"{message.onward[0]} at {self._node.name} takes records only")

    def _keep(self, stream: str, message: Message) -> None:
        kept = attrs.evolve(message, onward=(), back=(), origin=LOCAL)
        step = Step(
            Watcher("store", self._store.at),
            f"keeps it in stream {stream}",
            kept,
            partial(self._give, stream),
            self._store.endpoint,
        )
        self._give(stream, message.seen(step))

    def _give(self, stream: str, message: Message) -> None:
        pulls = list(self._store.pulls.get(stream, {}).values())
        for serve in pulls:
            serve(message)
        if not pulls:
            self._world.drop(self._node, message, f"nobody reads the stream {stream} of {self._store.at}")

    def _serve(self, pull: Message, record: Message) -> None:
        answer = Message(pull.back, (pull.onward[0],), record.body, trail=record.trail)
        self._world.deliver(self._node, answer)


def open_stream(world: World, node: Node, name: str, spec: StreamSpec) -> None:
    """Open a stream of a node; UnopenedError says why that can't be."""
    stream = _Stream(world, node, name, spec)
    stream.open()
    node.opened[name] = stream.encoded
    node.origins.append((Origin(stream=stream.encoded), f"those who write the stream {spec.receives}"))


class _Stream:
    def __init__(self, world: World, node: Node, name: str, spec: StreamSpec) -> None:
        self._world = world
        self._node = node
        self._spec = spec
        self._hub = world.resolve(node, spec.via)
        self._name = name
        self.encoded = world.random(f"stream {name} at", node.name)
        self._consumer = world.random(f"reader of {name} at", node.name)
        self._worker: tuple[str, ...] = ()
        self._answered: tuple[str, ...] = ()
        self._reader: tuple[str, ...] = ()
        node.table[self.encoded] = Entry("stream", self._on_producer)
        node.table[self._consumer] = Entry("stream", self._on_consumer)

    def open(self) -> None:
        """Ask the hub for both streams and the position, as a stream does before it is ready."""
        for source, onward, request in (
            (self.encoded, self._spec.service, Request("create", self._spec.sends)),
            (self._consumer, self._spec.service, Request("create", self._spec.receives)),
            (self._consumer, self._spec.index_service, Request("index", self._spec.receives)),
        ):
            self._ask((*self._hub, onward), source, request)
            if request.what == "create" and source == self.encoded:
                self._worker = self._answered
        self._ask(self._reader, self._consumer, Request("pull", self._spec.receives))

    def _ask(self, onward: tuple[str, ...], source: str, request: Request) -> None:
        self._answered = ()
        ends = self._world.run(self._node, Message(onward, (source,), request))
        answered = self._answer_to_last
        if not answered:
            raise UnopenedError(next((end.text for end in ends if end.text), "the hub does not answer"))
        if request.what == "create":
            self._reader = answered

    @property
    def _answer_to_last(self) -> tuple[str, ...]:
        return self._answered  # hops have set it meanwhile

    def _is_from_hub(self, message: Message) -> bool:
        return message.back[: len(self._hub)] == self._hub

    def _on_producer(self, message: Message) -> None:
        if message.origin.is_local:
            if not self._worker:
                self._world.drop(self._node, message, f"@{self._name} of {self._node.name} is not open")
                return
            record = Record(self._spec.sends, message.onward[1:], message.back, message.body)
            self._world.deliver(
                self._node, Message(self._worker, (self.encoded,), record, LOCAL, message.deliveries, message.trail)
            )
        elif self._is_from_hub(message) and isinstance(message.body, Request):
            self._answered = message.back
        else:
            self._world.drop(self._node, message, "a stream takes answers of its hub only, by the way to it")

    def _on_consumer(self, message: Message) -> None:
        if not self._is_from_hub(message):
            self._world.drop(self._node, message, "a stream takes answers of its hub only, by the way to it")
            return
        record = message.body
        if isinstance(record, Request):
            self._answered = message.back
            return
        if not isinstance(record, Record):
            self._world.drop(self._node, message, "a stream takes records and answers of its hub only")
            return
        if len(record.onward) + len(record.back) >= MAX_HOPS:
            self._world.end("circles", self._node, message, f"its routes have {MAX_HOPS} hops or more together")
            return
        inner = attrs.evolve(
            message,
            onward=record.onward,
            back=(self.encoded, *record.back),
            body=record.body,
            origin=Origin(stream=self.encoded),
            deliveries=0,
        )
        if record.onward:
            self._world.deliver(self._node, inner)
        else:
            self._world.end("arrived", self._node, attrs.evolve(inner, onward=(f"@{self._name}",)))
