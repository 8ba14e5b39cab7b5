"""Builds the nodes of a topology with all that they offer, and opens all that can be opened."""

from collections.abc import Callable
from functools import partial

import attrs

from trionode.topology.endpoints import is_within_machine, parse_endpoint, service_endpoint, store_endpoint
from trionode.topology.spec import OutletSpec, StreamServiceSpec, TopologySpec, WorkerSpec
from trionode.verify.model.channels import open_channel, serve_channels
from trionode.verify.model.messages import Message, Step, Watcher
from trionode.verify.model.network import VERBS, Entry, Node, Store, UnopenedError, World, describe, options_of
from trionode.verify.model.relays import RelayService, open_relay
from trionode.verify.model.streams import StreamService, open_stream


def build(spec: TopologySpec) -> World:
    """Return the nodes of a topology with everything open that can be."""
    world = World(spec)
    stores: dict[str, Store] = {}
    for node in world.nodes.values():
        _furnish(world, node, stores)
    _open_all(world)
    return world


def _furnish(world: World, node: Node, stores: dict[str, Store]) -> None:
    spec = node.spec
    for name, worker in spec.workers.items():
        hop = partial(_at_worker, world, node, name, worker)
        node.table[name] = Entry("worker", hop, world.allow(worker.allow), describe(worker.allow))
    for name, outlet in spec.outlets.items():
        hop = partial(_at_outlet, world, node, name, outlet)
        node.table[name] = Entry("outlet", hop, world.allow(outlet.allow), describe(outlet.allow))
    for name, listener in spec.secure_channel_listeners.items():
        serve_channels(world, node, name, listener)
    for name, service in spec.stream_services.items():
        world.services[node.name, name] = store = _store(node, service, stores)
        StreamService(world, node, name, service, store)
    if spec.relay_service is not None:
        RelayService(world, node, spec.relay_service)
    for name, link in spec.links.items():
        endpoint = parse_endpoint(link.to, options_of(spec, link.to))
        if endpoint is not None:
            world.connect(node, endpoint, name)


def _store(node: Node, service: StreamServiceSpec, stores: dict[str, Store]) -> Store:
    at = service.store.address
    if at == "memory":
        return Store(f"memory of {node.name}", None)
    # Elsewhere it is the same for all who name the same place.
    return stores.setdefault(at, Store(at, store_endpoint(at, service.store.options)))


def _at_worker(world: World, node: Node, name: str, spec: WorkerSpec, message: Message) -> None:
    world.end("arrived", node, message)
    if not spec.sends:
        return
    visit = Watcher("node", node.name)
    verb = VERBS["worker"].format(name)
    if sum(step.at == visit and step.what == verb for step in message.trail) > 1:
        world.end("circles", node, message, f"the worker {name} gets again what it has passed on")
        return
    for route in spec.sends:
        try:
            onward = world.resolve(node, route)
        except UnopenedError as error:
            world.drop(node, message, str(error))
            continue
        world.deliver(node, Message(onward, (name,), message.body, trail=message.trail))


def _at_outlet(world: World, node: Node, name: str, spec: OutletSpec, message: Message) -> None:
    if is_within_machine(spec.target):  # so is whoever it is for: nobody else sees anything
        world.end("arrived", node, message)
        return
    endpoint = service_endpoint(spec.target)
    connection = Step(
        Watcher("connection", f"{node.name} → {spec.target}"), f"outlet {name} connects there", message, None, endpoint
    )
    target = Step(Watcher("outsider", spec.target), "the target of the outlet", message, None, endpoint)
    world.end("arrived", node, attrs.evolve(message, trail=(*message.trail, connection, target)))


def _open_all(world: World) -> None:
    """Open channels, streams and relays until no more of them can be: each may need others."""
    waiting: list[tuple[tuple[str, str, str], Callable[[], None]]] = []
    for node in world.nodes.values():
        for name, relay in node.spec.relays.items():
            waiting.append(((node.name, "relays", name), partial(open_relay, world, node, name, relay)))
        for name, channel in node.spec.secure_channels.items():
            waiting.append(((node.name, "secure_channels", name), partial(open_channel, world, node, name, channel)))
        for name, stream in node.spec.streams.items():
            waiting.append(((node.name, "streams", name), partial(open_stream, world, node, name, stream)))
    while waiting:
        left = []
        for key, open_it in waiting:
            try:
                open_it()
            except UnopenedError as error:
                world.unopened[key] = str(error)
                left.append((key, open_it))
            else:
                world.unopened.pop(key, None)
        if len(left) == len(waiting):
            break
        waiting = left
