"""Stream services and streams without time: a record that is written to a stream goes to all its readers.

It models trionode/stream/service.py and trionode/stream/client.py.
"""

from functools import partial

import attrs

from trionode.protocol.rules.access import client_of
from trionode.protocol.rules.stream import is_by_way_to_hub, is_from_worker, may_open_another, may_use_stream
from trionode.topology.spec import StreamServiceSpec, StreamSpec
from trionode.verify.model.messages import (
    LOCAL,
    Body,
    Observer,
    Record,
    Request,
    Step,
    SymbolicMessage,
    SymbolicOrigin,
)
from trionode.verify.model.network import (
    CannotOpenError,
    SymbolicNetwork,
    SymbolicNode,
    SymbolicStore,
)


class StreamService:
    """The addresses of a stream service, and one address for each stream."""

    def __init__(
        self, network: SymbolicNetwork, node: SymbolicNode, name: str, spec: StreamServiceSpec, store: SymbolicStore
    ) -> None:
        self._network = network
        self._node = node
        self._name = name
        self._store = store
        self._declared = frozenset(spec.owners)
        self._limit = spec.limits.streams
        self._used: dict[str, set[str]] = {}
        self._index = spec.index or f"{name}_index"
        for stream, owner in spec.owners.items():
            store.owners[stream] = network.identity_of(owner) if owner in network.spec.nodes else owner
        for address, hop in ((name, self._on_service), (self._index, self._on_index)):
            node.table[address] = network.service_entry("stream service", spec.allow, hop)
        node.prefixes[f"{name}."] = network.service_entry("stream service", spec.allow, self._on_stream)

    def _answer(self, message: SymbolicMessage, source: str, body: Body) -> None:
        self._network.deliver(self._node, SymbolicMessage(message.back, (source,), body))

    def _drop(self, message: SymbolicMessage, why: str) -> None:
        self._network.drop(self._node, message, why)

    def _may_use(self, stream: str, message: SymbolicMessage) -> bool:
        """Return whether the sender of a message may use a stream; if not, the message is dropped."""
        identity = message.origin.identifier or ""
        owner = self._store.owners.setdefault(stream, identity)
        if may_use_stream(stream, owner, identity):
            return True
        owner = self._network.node_of(owner)
        how = self._network.describe(message.origin)
        self._drop(message, f"the stream {stream} at {self._node.name} belongs to {owner}; this comes {how}")
        return False

    def _on_service(self, message: SymbolicMessage) -> None:
        body, origin = message.body, message.origin
        if not isinstance(body, Request) or body.what != "create":
            self._drop(message, f"{self._name} at {self._node.name} accepts requests for streams only")
            return
        if body.name not in self._declared:
            self._store.claims.setdefault(body.name, set()).add(origin.identifier or "")
        used = self._used.setdefault(client_of(origin) or "", set())
        if not may_open_another(body.name, used, self._limit):
            where = f"{self._name} at {self._node.name}"
            self._drop(message, f"{where} allows a client {self._limit} streams, and this is one more (limits.streams)")
        elif self._may_use(body.name, message):
            used.add(body.name)
            self._answer(message, f"{self._name}.{body.name}", Request("answer", body.name))

    def _on_index(self, message: SymbolicMessage) -> None:
        body = message.body
        if isinstance(body, Request) and body.what == "index":
            self._answer(message, self._index, Request("answer", body.name))
        else:
            self._drop(message, f"{self._index} at {self._node.name} accepts requests for positions only")

    def _on_stream(self, message: SymbolicMessage) -> None:
        address, body = message.onward[0], message.body
        stream = address.removeprefix(f"{self._name}.")
        is_pull = isinstance(body, Request) and body.what == "pull"
        if not is_pull and not (isinstance(body, Record) and message.back):
            self._drop(message, f"{address} at {self._node.name} accepts records only")
        elif not self._may_use(stream, message):
            pass
        elif isinstance(body, Record):
            self._append(stream, attrs.evolve(message, body=attrs.evolve(body, stream=stream)))
        else:
            pulls = self._store.pulls.setdefault(stream, {})
            pulls[self._node.name, message.back] = partial(self._push, message)
            self._answer(message, address, Request("answer", stream))

    def _append(self, stream: str, message: SymbolicMessage) -> None:
        stored = attrs.evolve(message, onward=(), back=(), origin=LOCAL)
        push = partial(self._push_to_all, stream)
        at = Observer("store", self._store.at)
        push(message.after(Step(at, f"stores it in stream {stream}", stored, push, self._store.endpoint)))

    def _push_to_all(self, stream: str, message: SymbolicMessage) -> None:
        pulls = list(self._store.pulls.get(stream, {}).values())
        for push in pulls:
            push(message)
        if not pulls:
            self._drop(message, f"no node reads the stream {stream} of {self._store.at}")

    def _push(self, pull: SymbolicMessage, record: SymbolicMessage) -> None:
        answer = SymbolicMessage(pull.back, (pull.onward[0],), record.body, trail=record.trail)
        self._network.deliver(self._node, answer)


def open_stream(network: SymbolicNetwork, node: SymbolicNode, name: str, spec: StreamSpec) -> None:
    """Open a stream of a node; CannotOpenError says why that fails."""
    stream = _Stream(network, node, name, spec)
    stream.open()
    node.opened[name] = stream.address
    node.origins.append((SymbolicOrigin(stream=stream.address), f"writers of the stream {spec.receives}"))


class _Stream:
    def __init__(self, network: SymbolicNetwork, node: SymbolicNode, name: str, spec: StreamSpec) -> None:
        self._network = network
        self._node = node
        self._spec = spec
        self._hub = network.resolve(node, spec.via)
        self._name = name
        self.address = network.random(f"stream {name} at", node.name)
        self._consumer = network.random(f"reader of {name} at", node.name)
        #: The routes to the streams that this one writes and reads, once the hub has answered.
        self._writes: tuple[str, ...] = ()
        self._reads: tuple[str, ...] = ()
        #: The return routes of the hub's answers to the last request.
        self._answers: list[tuple[str, ...]] = []
        node.add(self.address, "stream", self._on_producer)
        node.add(self._consumer, "stream", self._on_consumer)

    def open(self) -> None:
        """Create both streams, ask for the position and pull, as a stream does before it is ready."""
        spec = self._spec
        service, index = (*self._hub, spec.service), (*self._hub, spec.index_service)
        self._writes = self._ask(service, self.address, Request("create", spec.sends))
        self._reads = self._ask(service, self._consumer, Request("create", spec.receives))
        self._ask(index, self._consumer, Request("index", spec.receives))
        self._ask(self._reads, self._consumer, Request("pull", spec.receives))

    def _ask(self, onward: tuple[str, ...], source: str, request: Request) -> tuple[str, ...]:
        """Send a request to the hub, and return the return route of its answer."""
        self._answers.clear()
        outcomes = self._network.run(self._node, SymbolicMessage(onward, (source,), request))
        if not self._answers:
            raise CannotOpenError(next((each.text for each in outcomes if each.text), "the hub does not answer"))
        return self._answers[-1]

    def _drop(self, message: SymbolicMessage, why: str) -> None:
        self._network.drop(self._node, message, why)

    def _is_from_hub(self, message: SymbolicMessage) -> bool:
        return is_by_way_to_hub(message.back, self._hub)

    def _on_producer(self, message: SymbolicMessage) -> None:
        if message.origin.is_local and self._writes:
            record = Record(self._spec.sends, message.onward[1:], message.back, message.body)
            out = SymbolicMessage(self._writes, (self.address,), record, LOCAL, message.deliveries, message.trail)
            self._network.deliver(self._node, out)
        elif message.origin.is_local:
            self._drop(message, f"@{self._name} of {self._node.name} is not open")
        elif self._is_from_hub(message) and isinstance(message.body, Request):
            self._answers.append(message.back)
        else:
            self._drop(message, "a stream accepts answers of its hub only, by the way to it")

    def _on_consumer(self, message: SymbolicMessage) -> None:
        record = message.body
        if not self._is_from_hub(message):
            self._drop(message, "a stream accepts answers of its hub only, by the way to it")
        elif isinstance(record, Request):
            self._answers.append(message.back)
        elif isinstance(record, Record) and is_from_worker(message.back, self._reads):
            self._deliver(message, record)
        else:
            self._drop(message, "a stream accepts records and answers of its hub only")

    def _deliver(self, message: SymbolicMessage, record: Record) -> None:
        """Deliver the message in a record, as a message from the stream."""
        inner = attrs.evolve(
            message,
            onward=record.onward,
            back=record.back,
            body=record.body,
            origin=SymbolicOrigin(stream=self.address),
            deliveries=0,
        )
        if not self._network.has_room(self._node, inner, adds=1):
            return
        inner = attrs.evolve(inner, back=(self.address, *record.back))
        if record.onward:
            self._network.deliver(self._node, inner)
        else:
            self._network.end("arrived", self._node, attrs.evolve(inner, onward=(f"@{self._name}",)))
