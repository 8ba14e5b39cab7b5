import socket
from pathlib import Path

import attrs
import pytest
from hypothesis import HealthCheck, given, settings

from tests.support.random_topologies import ENDPOINTS, topologies
from trionode.errors import LocalError
from trionode.topology import IdentitySpec, TopologySpec, check_spec, load_topology, parse_topology, swap
from trionode.topology.endpoints import Endpoint, parse_endpoint
from trionode.topology.types import Leaf, leaves, record_of
from trionode.verify.paths import trace_route

GOOD = Path(__file__).parent / "good" / "alice_bob_and_a_hub.toml"


def all_leaves(spec: TopologySpec) -> list[Leaf]:
    return list(leaves(spec, record_of(TopologySpec)))


def endpoints(spec: TopologySpec) -> list[Endpoint]:
    """All places of a spec, in its order, each as often as it is named."""
    found: list[Endpoint] = []
    for leaf in all_leaves(spec):
        texts = leaf.value if isinstance(leaf.value, tuple) else (leaf.value,)
        found += [
            endpoint for text in texts if isinstance(text, str) and (endpoint := parse_endpoint(text)) is not None
        ]
    return found


def without_places(spec: TopologySpec) -> list[tuple[object, object]]:
    def plain(value: object) -> object:
        if isinstance(value, tuple):
            return tuple(map(plain, value))
        return "a place" if isinstance(value, str) and parse_endpoint(value) is not None else value

    return [(leaf.path, plain(leaf.value)) for leaf in all_leaves(spec)]


@given(topologies())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_swap_to_loopback_and_back_changes_only_addresses(spec: TopologySpec) -> None:
    in_memory = swap(spec, **{name: "loopback" for name in ENDPOINTS if name != "loopback"})
    assert {endpoint.transport for endpoint in endpoints(in_memory)} <= {"loopback"}
    assert check_spec(in_memory) == ()
    back = swap(in_memory, loopback="tcp")
    assert {endpoint.transport for endpoint in endpoints(back)} <= {"tcp"}
    assert without_places(in_memory) == without_places(back) == without_places(spec)
    # The same addresses are reached, and no others.
    before, between, after = endpoints(spec), endpoints(in_memory), endpoints(back)
    for one in range(len(before)):
        for other in range(len(before)):
            same = before[one].takes(before[other])
            assert between[one].takes(between[other]) == after[one].takes(after[other]) == same


def test_swap_keeps_the_paths_of_messages() -> None:
    spec = load_topology(GOOD)
    swapped = swap(spec, tcp="loopback", store="memory")
    for name, flow in spec.flows.items():
        before, after = trace_route(spec, flow.node, flow.to), trace_route(swapped, flow.node, swapped.flows[name].to)
        assert (before.receiver, before.returns) == (after.receiver, after.returns)


def test_swap_removes_options_of_replaced_plugins() -> None:
    spec = load_topology(GOOD)
    swapped = swap(spec, tcp="loopback", store="memory")
    assert swapped.nodes["hub"].listen[0].address == "loopback:127.0.0.1:4000"
    assert swapped.nodes["hub"].transports == {}
    assert swapped.nodes["hub"].stream_services["stream"].store.options == {}
    assert swapped.nodes["bob"].identity == IdentitySpec()
    assert swapped.nodes["bob"].outlets == spec.nodes["bob"].outlets
    assert swapped.nodes["carol"] == spec.nodes["carol"]  # is external
    assert swap(spec, tcp="tcp").nodes["hub"].transports == spec.nodes["hub"].transports
    assert swap(spec, vault=None) == spec


def test_wildcard_and_localhost_addresses_mean_the_same_listener() -> None:
    spec = parse_topology("""
        [nodes.hub]
        listen = "tcp:0.0.0.0:4000"
        [nodes.alice.links]
        here.to = "tcp:127.0.0.1:4000"
        there.to = "tcp:hub.example:4000"
        classic.to = "tcp_classic:localhost:4000"
        other.to = "tcp:hub.example:4001"
    """)
    swapped = swap(spec, tcp="loopback", tcp_classic="loopback")
    links = {name: link.to for name, link in swapped.nodes["alice"].links.items()}
    assert links["here"] == links["there"] == links["classic"] == swapped.nodes["hub"].listen[0].address
    assert links["other"] == "loopback:hub.example:4001"


def test_swap_replaces_identifiers_by_names() -> None:
    bobs, somebodys = "I" + "b0" * 32, "I" + "99" * 32
    spec = parse_topology(f"""
        [nodes.bob]
        listen = "tcp:127.0.0.1:4000"
        identity = {{ vault = "sqlite:bob.db", passphrase_file = "bob.pass", identifier = "{bobs}" }}
        stream_services.orders = {{ store = "memory", owners = {{ mine = "{bobs}", his = "{somebodys}" }} }}
        workers.echoer = {{ run = "echoer", allow.identifiers = ["{bobs}"] }}
        secure_channel_listeners.api.trust.nodes = "alice"
        [nodes.alice.secure_channels.bob]
        to = ["tcp:127.0.0.1:4000", "api"]
        trust = {{ identifiers = ["{bobs}", "{somebodys}"] }}
    """)
    swapped = swap(spec)
    channel = swapped.nodes["alice"].secure_channels["bob"]
    assert (channel.trust.identifiers, channel.trust.nodes) == ((somebodys,), ("bob",))
    assert swapped.nodes["bob"].workers["echoer"].allow.nodes == ("bob",)
    assert swapped.nodes["bob"].stream_services["orders"].owners == {"mine": "bob", "his": somebodys}
    assert swapped.nodes["bob"].identity == IdentitySpec()
    kept = swap(spec, vault="sqlite:/tmp/{}.db").nodes["bob"].identity
    assert kept.passphrase_file == "bob.pass"
    assert kept.vault.startswith("sqlite:/tmp/")
    assert kept.vault != "sqlite:/tmp/{}.db"


def test_ports_are_free_and_each_listener_has_its_own() -> None:
    spec = parse_topology("""
        [nodes.hub]
        listen = ["tcp:127.0.0.1:4000", "tcp:127.0.0.1:4001", "tcp:127.0.0.1:0"]
        outlets.web.target = "127.0.0.1:8080"
        outlets.other.target = "127.0.0.1:8081"
        [nodes.alice.inlets.web]
        listen = "127.0.0.1:8080"
        to = ["tcp:127.0.0.1:4001", "web"]
    """)
    swapped = swap(spec, tcp="ws")
    listeners = [listener.address for listener in swapped.nodes["hub"].listen]
    inlet = swapped.nodes["alice"].inlets["web"]
    assert inlet.to[0] == listeners[1]
    assert swapped.nodes["hub"].outlets["web"].target == inlet.listen
    assert swapped.nodes["hub"].outlets["other"].target == "127.0.0.1:8081"
    assert len({*listeners, inlet.listen}) == 4
    for at in (*(each.removeprefix("ws:") for each in listeners), inlet.listen):
        host, _, port = at.rpartition(":")
        with socket.create_server((host, int(port))):
            pass


@pytest.mark.parametrize("tcp", ["kafka", "unix", "kafka:127.0.0.1:9092/alice"])
def test_swap_needs_a_template_for_other_transports(tcp: str) -> None:
    spec = load_topology(GOOD)
    two = attrs.evolve(
        spec, nodes={**spec.nodes, "dora": attrs.evolve(spec.nodes["alice"], listen="tcp:127.0.0.1:5000")}
    )
    with pytest.raises(LocalError, match=r"write a template, with {} for the part that differs for each address, such as tcp=\"(kafka|unix):ADDRESS/{}\""):  # fmt: skip
        swap(two, tcp=tcp)
    swapped = swap(two, tcp="kafka:127.0.0.1:9092/{}")
    (hub, dora) = (swapped.nodes[name].listen[0].address for name in ("hub", "dora"))
    assert hub != dora
    assert hub.startswith("kafka:127.0.0.1:9092/")
    assert swapped.nodes["bob"].links["hub"].to == hub
