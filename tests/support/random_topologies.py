"""Random topologies: mixed transports, links, relays, streams, nested channels, and workers that forward."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import attrs
from hypothesis import strategies as st

from trionode.topology.spec import (
    AccessSpec,
    ChannelListenerSpec,
    ChannelSpec,
    FlowSpec,
    LinkSpec,
    ListenerSpec,
    NodeSpec,
    RelayServiceSpec,
    RelaySpec,
    StreamServiceSpec,
    StreamSpec,
    TopologySpec,
    TrustSpec,
    WorkerSpec,
)
from trionode.verify.model.build import build
from trionode.verify.paths import trace_route

#: Transports and the forms of their addresses; in a test all of them run in memory.
ENDPOINTS = {
    "tcp": "tcp:127.0.0.1:{}",
    "tls": "tls:127.0.0.1:{}",
    "ws": "ws:127.0.0.1:{}/node",
    "wss": "wss:127.0.0.1:{}",
    "kafka": "kafka:127.0.0.1:9092/node{}",
    "loopback": "loopback:node{}",
}
WORKER = "tests.support.harness:noting_worker"


@attrs.define
class _Draft:
    nodes: dict[str, dict[str, Any]]
    #: By node: hops that lead to a node, and that node.
    routes: dict[str, list[tuple[tuple[str, ...], str]]]
    #: By hub: relays there, and the node that each leads to.
    relays: dict[str, list[tuple[str, str]]]
    links: dict[str, list[tuple[str, str]]]
    number: int = 0

    def name(self, kind: str) -> str:
        self.number += 1
        return f"{kind}-{self.number:02d}-{kind}"

    def spec(self, flows: Mapping[str, FlowSpec] = MappingProxyType({})) -> TopologySpec:
        """Return the topology so far."""
        return TopologySpec({name: NodeSpec(**node) for name, node in self.nodes.items()}, dict(flows))

    def longer(self, node: str) -> list[tuple[tuple[str, ...], str]]:
        """Return the routes of a node, also extended by links and relays of the nodes that they lead to."""
        routes = list(self.routes[node])
        routes += (((name,), to) for name, to in self.links[node])
        for _ in range(2):
            for hops, at in list(routes):
                if len(hops) < 4:
                    more = [((*hops, name), to) for name, to in self.links[at]]
                    more += [((*hops, f"forward_to_{name}"), holder) for name, holder in self.relays[at]]
                    routes += (each for each in more if each not in routes)
        return routes


@st.composite
def topologies(draw: Callable[..., Any]) -> TopologySpec:
    """A topology with flows, most of which arrive."""

    def often(percent: int) -> bool:
        return bool(draw(st.integers(0, 99)) < percent)

    def one_of(values: Sequence[Any]) -> Any:
        return draw(st.sampled_from(values))

    names = [f"node{letter}" for letter in "abcdef"[: draw(st.integers(2, 6))]]
    draft = _Draft(
        {name: {} for name in names},
        {name: [] for name in names},
        {name: [] for name in names},
        {name: [] for name in names},
    )
    endpoints: dict[str, list[str]] = {}
    port = 4000
    for index, name in enumerate(names):
        endpoints[name] = []
        for _ in range(draw(st.integers(1 if index == 0 else 0, 2))):
            port += 1
            endpoints[name].append(ENDPOINTS[one_of(list(ENDPOINTS))].format(port))
        draft.nodes[name] = {
            "listen": [ListenerSpec(endpoint) for endpoint in endpoints[name]],
            "forwards": often(75),
            "workers": {},
            "links": {},
            "relays": {},
            "streams": {},
            "secure_channels": {},
            "secure_channel_listeners": {},
            "stream_services": {},
        }

    def access(*, anyone: int = 25) -> AccessSpec:
        if often(anyone):
            return AccessSpec("anyone")
        if often(12):
            return AccessSpec("local")
        return AccessSpec("named", nodes=[one_of(names)]) if often(20) else AccessSpec("channels")

    def trust() -> TrustSpec:
        if often(70):
            return TrustSpec(everyone=True)
        return TrustSpec(nodes=sorted({one_of(names) for _ in range(3)}))

    for name in names:
        node = draft.nodes[name]
        for _ in range(draw(st.integers(1, 2))):
            key = draft.name("wk")
            node["workers"][key] = WorkerSpec(WORKER, {"node": name, "name": key}, allow=access())
        for _ in range(draw(st.integers(0, 2)) or often(60)):
            node["secure_channel_listeners"][draft.name("ls")] = ChannelListenerSpec(trust(), access(anyone=85))
        if endpoints[name] and often(50):
            node["stream_services"][draft.name("sv")] = StreamServiceSpec("memory", allow=access(anyone=85))
        if endpoints[name] and often(50):
            node["relay_service"] = RelayServiceSpec(access(anyone=75))
        draft.routes[name] += (
            ((endpoint,), other) for other in names if other != name for endpoint in endpoints[other]
        )
    for name in names:
        if draft.routes[name] and often(50):
            hops, other = one_of(draft.routes[name])
            link = draft.name("lk")
            draft.nodes[name]["links"][link] = LinkSpec(hops[0], dial="on_demand" if often(30) else "at_start")
            draft.links[name].append((link, other))

    def channel(name: str) -> None:
        routes = [
            (hops, to) for hops, to in draft.longer(name) if to != name and draft.nodes[to]["secure_channel_listeners"]
        ]
        if not routes:
            return
        key, wanted = draft.name("ch"), often(75)
        to = name
        for _ in range(3):
            hops, to = one_of(routes)
            route = (*hops, one_of(list(draft.nodes[to]["secure_channel_listeners"])))
            trusted = TrustSpec(everyone=True) if often(85) else trust()
            draft.nodes[name]["secure_channels"][key] = ChannelSpec(route, trusted)
            # The analysis only chooses here, so that not too many fail. The test still compares what it says.
            if not wanted or key in build(draft.spec()).nodes[name].channels:
                break
        draft.routes[name].append(((f"@{key}",), to))

    def relay(name: str) -> None:
        hubs = [(hops, to) for hops, to in draft.longer(name) if "relay_service" in draft.nodes[to]]
        if not hubs:
            return
        hops, hub = one_of(hubs)
        key, to, holder = draft.name("rl"), None, name
        direct = [(far, other) for far, other in draft.routes[name] if ":" in far[0]]
        if direct and often(30):
            to, holder = one_of(direct)
        draft.nodes[name]["relays"][key] = RelaySpec(hops, to)
        draft.relays[hub].append((key, holder))

    def conversation() -> None:
        ends = [
            (name, hops, to) for name in names for hops, to in draft.longer(name) if draft.nodes[to]["stream_services"]
        ]
        if not ends:
            return
        one, hops, hub = one_of(ends)
        others = [(name, other_hops) for name, other_hops, to in ends if to == hub and name != one]
        if not others:
            return
        other, other_hops = one_of(others)
        service = one_of(list(draft.nodes[hub]["stream_services"]))
        there, back, key, yek = draft.name("st"), draft.name("st"), draft.name("sk"), draft.name("sk")
        spec = {"service": service, "index_service": f"{service}_index"}
        if any(hop.startswith("@") for hop in (hops[0], other_hops[0])):
            # Otherwise the first node to use it would own it, and which one is first is random.
            here = draft.nodes[hub]["stream_services"]
            here[service] = attrs.evolve(here[service], owners={**here[service].owners, there: one, back: one})
        draft.nodes[one]["streams"][key] = StreamSpec(hops, there, back, **spec)
        answers = back if often(85) else draft.name("st")  # which no node reads
        draft.nodes[other]["streams"][yek] = StreamSpec(other_hops, answers, there, **spec)
        draft.routes[one].append(((f"@{key}",), other))
        draft.routes[other].append(((f"@{yek}",), one))
        listeners = [
            (name, far)
            for name, far in others
            if name != other and not any(each[0].startswith("@") for each in (hops, other_hops, far))
        ]
        if listeners and often(25):
            third, far = one_of(listeners)
            draft.nodes[third]["streams"][draft.name("sk")] = StreamSpec(far, draft.name("st"), there, **spec)

    for name in names:
        if often(30):
            channel(name)
        if often(50):
            relay(name)
    for _ in range(draw(st.integers(0, 2))):
        conversation()
    for _ in range(draw(st.integers(1, 5))):
        channel(one_of(names))
    flows: dict[str, FlowSpec] = {}
    for index, name in enumerate(names):
        for key in list(draft.nodes[name]["workers"]):
            farther = [(hops, to) for hops, to in draft.longer(name) if names.index(to) > index]
            if farther and often(35):
                hops, to = one_of(farther)
                route = (*hops, one_of(list(draft.nodes[to]["workers"])))
                worker = draft.nodes[name]["workers"][key]
                draft.nodes[name]["workers"][key] = attrs.evolve(worker, sends=(route,))
    network = build(draft.spec())
    for number in range(draw(st.integers(2, 4))):
        senders = [name for name in names if draft.routes[name]]
        name = one_of(senders)
        own = [(hops, to) for hops, to in draft.routes[name] if hops[0].startswith("@")]
        routes = own if own and often(70) else draft.longer(name)
        wanted = often(60)
        flow = FlowSpec(name, (name,))
        for _ in range(4):
            hops, to = one_of([(hops, to) for hops, to in routes if to != name or often(20)] or routes)
            flow = FlowSpec(name, (*hops, one_of(list(draft.nodes[to]["workers"]))))
            if not wanted or trace_route(network, name, flow.to).arrives:
                break
        flows[f"flow{number}"] = flow
    return draft.spec(flows)
