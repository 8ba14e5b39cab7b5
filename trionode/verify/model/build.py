"""Builds the symbolic network of a topology: all services of its nodes, and everything open that can be opened."""

from collections.abc import Callable
from functools import partial

from trionode.topology.endpoints import is_within_machine, parse_endpoint, service_endpoint, store_endpoint
from trionode.topology.spec import OutletSpec, StreamServiceSpec, TopologySpec, WorkerSpec
from trionode.verify.model.channels import open_channel, serve_channels
from trionode.verify.model.messages import Observer, Step, SymbolicMessage
from trionode.verify.model.network import (
    EVENTS,
    CannotOpenError,
    SymbolicNetwork,
    SymbolicNode,
    SymbolicStore,
    Unopened,
    options_of,
)
from trionode.verify.model.relays import RelayService, open_relay
from trionode.verify.model.streams import StreamService, open_stream


def build(spec: TopologySpec) -> SymbolicNetwork:
    """Return the network of a topology with everything open that can be opened."""
    network = SymbolicNetwork(spec)
    stores: dict[str, SymbolicStore] = {}
    for node in network.nodes.values():
        _add_services(network, node, stores)
    _open_all(network)
    return network


def _add_services(network: SymbolicNetwork, node: SymbolicNode, stores: dict[str, SymbolicStore]) -> None:
    spec = node.spec
    for name, worker in spec.workers.items():
        hop = partial(_at_worker, network, node, name, worker)
        node.table[name] = network.service_entry("worker", worker.allow, hop)
    for name, outlet in spec.outlets.items():
        hop = partial(_at_outlet, network, node, name, outlet)
        node.table[name] = network.service_entry("outlet", outlet.allow, hop)
    for name, listener in spec.secure_channel_listeners.items():
        serve_channels(network, node, name, listener)
    for name, service in spec.stream_services.items():
        network.services[node.name, name] = store = _store(node, service, stores)
        StreamService(network, node, name, service, store)
    if spec.relay_service is not None:
        RelayService(network, node, spec.relay_service)
    for name, link in spec.links.items():
        endpoint = parse_endpoint(link.to, options_of(spec, link.to))
        if endpoint is not None:
            network.connect(node, endpoint, name)


def _store(node: SymbolicNode, service: StreamServiceSpec, stores: dict[str, SymbolicStore]) -> SymbolicStore:
    at = service.store.address
    if at == "memory":
        return SymbolicStore(f"memory of {node.name}", None)
    # Services that name the same address share the store.
    return stores.setdefault(at, SymbolicStore(at, store_endpoint(at, service.store.options)))


def _at_worker(
    network: SymbolicNetwork, node: SymbolicNode, name: str, spec: WorkerSpec, message: SymbolicMessage
) -> None:
    network.end("arrived", node, message)
    if not spec.sends:
        return
    event = Observer("node", node.name), EVENTS["worker"].format(name)
    if sum((step.at, step.what) == event for step in message.trail) > 1:
        network.end("loops", node, message, f"the worker {name} receives again what it has passed on")
        return
    for route in spec.sends:
        try:
            onward = network.resolve(node, route)
        except CannotOpenError as error:
            network.drop(node, message, str(error))
        else:
            network.deliver(node, SymbolicMessage(onward, (name,), message.body, trail=message.trail))


def _at_outlet(
    network: SymbolicNetwork, node: SymbolicNode, name: str, spec: OutletSpec, message: SymbolicMessage
) -> None:
    if is_within_machine(spec.target):  # the target is then part of the node: no observer beyond it sees anything
        network.end("arrived", node, message)
        return
    endpoint = service_endpoint(spec.target)
    connection = Observer("connection", f"{node.name} → {spec.target}")
    target = Observer("outsider", spec.target)
    steps = (
        Step(connection, f"the outlet {name} connects there", message, None, endpoint),
        Step(target, "the target of the outlet", message, None, endpoint),
    )
    network.end("arrived", node, message.after(*steps))


def _open_all(network: SymbolicNetwork) -> None:
    """Open channels, streams and relays until no more can be opened: each may need others."""
    waiting: dict[Unopened, Callable[[], None]] = {}
    for node in network.nodes.values():
        for name, relay in node.spec.relays.items():
            waiting[node.name, "relays", name] = partial(open_relay, network, node, name, relay)
        for name, channel in node.spec.secure_channels.items():
            waiting[node.name, "secure_channels", name] = partial(open_channel, network, node, name, channel)
        for name, stream in node.spec.streams.items():
            waiting[node.name, "streams", name] = partial(open_stream, network, node, name, stream)
    progress = True
    while progress:
        progress = False
        for key in list(waiting):
            try:
                waiting[key]()
            except CannotOpenError as error:
                network.unopened[key] = str(error)
            else:
                network.unopened.pop(key, None)
                del waiting[key]
                progress = True
